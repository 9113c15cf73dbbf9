//! Rows 31 and 32: clocks that jump, waits that are interrupted every millisecond, and callers that ring for nothing.

mod support;
use support::system::*;
use support::*;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use objbus::{CallError, ConnectError, Untyped};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own_math(&arguments[0]),
        "stormed caller" => stormed_caller(&arguments[0]),
        "ringer" => ringer(&arguments[0]),
        other => panic!("no role {other}"),
    }
}

/// The wall clock of a machine cannot be set for one test alone: time namespaces do not have it. So that nobody asks it is
/// what is tested: the library names no clock but the monotonic ones.
#[test]
fn row_31_the_library_never_asks_what_time_of_day_it_is() {
    fn walk(directory: &Path, see: &mut impl FnMut(&Path, &str)) {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, see);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                see(&path, &std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut complaints = Vec::new();
    let forbidden = [
        "SystemTime::now",
        "UNIX_EPOCH",
        "CLOCK_REALTIME",
        "ClockId::Realtime",
        "ClockId::Tai",
        "gettimeofday",
        "libc::time(",
        "CLOCK_REALTIME_COARSE",
        "Flags::CLOCK_REALTIME",
        "TimerfdClockId::Realtime",
    ];
    let mut files = 0;
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |path, text| {
        files += 1;
        let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (index, line) in code {
            if forbidden.iter().any(|word| line.contains(word)) {
                complaints.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    });
    assert!(files > 30, "only {files} files were looked at");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Has the present thread interrupted every millisecond, without SA_RESTART, from here on.
fn begin_storm() {
    // SAFETY: the handler touches an atomic alone; the structures are whole and outlive the calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_signal as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer = std::mem::zeroed();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer), 0);
        let ms = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let every = libc::itimerspec { it_interval: ms, it_value: ms };
        assert_eq!(libc::timer_settime(timer, 0, &raw const every, std::ptr::null_mut()), 0);
    }
}

fn stormed_caller(directory: &str) {
    const SPAN: Duration = Duration::from_millis(80);
    const PRECISION: Duration = Duration::from_millis(10);
    begin_storm();
    let bus = bus_at(directory);
    let math: Untyped = bus.proxy("math").wait().unwrap();
    for i in 0..2_000 {
        assert_eq!(math.call::<_, f64>("pow", &(f64::from(i), 1.0)).wait(), Ok(f64::from(i)));
    }
    assert_eq!(math.call::<_, ()>("nap", &(100_u64,)).wait(), Ok(()));
    let overdue = |kind: &str, wait: &dyn Fn()| {
        let took = expect_quick(kind, 6, SPAN + PRECISION, || {
            let began = Instant::now();
            wait();
            let took = began.elapsed();
            // Less than the coarse clock's tick is no haste.
            assert!(took + PRECISION >= SPAN, "{kind}: too soon, after {took:?}");
            took
        });
        say(format!("{kind}: {SPAN:?} took {took:?}"));
    };
    let is_late = |result| matches!(result, Err(CallError::DeadlineExceeded { .. }));
    let nap = || math.call::<_, ()>("nap", &(1_000_u64,)).timeout(SPAN);
    overdue("wait", &|| assert!(is_late(nap().wait())));
    overdue("await", &|| assert!(is_late(block_on(nap()))));
    overdue("wait for a name", &|| {
        let none = bus.proxy::<Untyped>("absent").wait_for(SPAN);
        assert!(matches!(none, Err(ConnectError::NotFound { .. })), "{none:?}");
    });
    let signals = SIGNALS.load(Ordering::Relaxed);
    assert!(signals > 100, "only {signals} signals came");
    say(format!("kept every deadline through {signals} signals"));
    stay();
}

#[test]
fn row_32_deadlines_are_kept_through_a_storm_of_signals() {
    let place = place();
    let owner = math_owner(&place);
    let caller = start("stormed caller", &[place.text()]);
    for _ in 0..3 {
        println!("{}", caller.hear());
    }
    let said = caller.hear();
    println!("the caller {said}");
    assert!(said.starts_with("kept every deadline"), "{said}");
    // And an owner whose threads, all of them, are sent signals again and again goes on.
    let math: Untyped = place.bus().proxy("math").wait().unwrap();
    let (stop, pid) = (AtomicBool::new(false), owner.pid() as i32);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Stopping and going on interrupts every wait of every thread.
                for signal in [libc::SIGSTOP, libc::SIGCONT] {
                    // SAFETY: kill touches no memory; the owner is not reaped yet, so its pid is its own.
                    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
                }
                std::thread::yield_now();
            }
        });
        for _ in 0..500 {
            assert_eq!(pow(&math).timeout(PATIENCE).wait(), Ok(8.0));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Rings every doorbell it has as fast as it can.
fn ringer(directory: &str) {
    let bells = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let is_bell =
            |path: &Path| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("eventfd"));
        fds.filter(|entry| is_bell(&entry.path()))
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .collect::<Vec<_>>()
    };
    let bus = bus_at(directory);
    let own = bells();
    let math: Untyped = bus.proxy("math").wait().unwrap();
    let doorbells: Vec<i32> = bells().into_iter().filter(|fd| !own.contains(fd)).collect();
    assert_eq!(doorbells.len(), 1, "the lane's doorbell");
    say("rings");
    std::thread::spawn(move || {
        let one = 1_u64;
        loop {
            // SAFETY: eight bytes that outlive the call.
            unsafe { libc::write(doorbells[0], (&raw const one).cast(), 8) };
        }
    });
    // It is still served itself, if a little later.
    hear();
    assert_eq!(pow(&math).wait(), Ok(8.0));
    say("served");
    stay();
}

#[test]
fn row_32_who_rings_for_nothing_costs_its_owner_little() {
    let place = place();
    let owner = math_owner(&place);
    let math: Untyped = place.bus().proxy("math").wait().unwrap();
    assert_eq!(pow(&math).wait(), Ok(8.0));
    let mut ringer = start("ringer", &[place.text()]);
    ringer.expect("rings");
    let (cpu, began) = (cpu_time(owner.pid()), Instant::now());
    assert_eq!(ringer.hear_within(Duration::from_secs(1)), None);
    let (burnt, span) = (cpu_time(owner.pid()) - cpu, began.elapsed());
    println!("{burnt:?} of {span:?} burnt on rings for nothing");
    assert!(burnt < span / 4, "{burnt:?} of {span:?} burnt");
    for _ in 0..1_000 {
        assert_eq!(pow(&math).wait(), Ok(8.0));
    }
    ringer.tell("call");
    ringer.expect("served");
}
