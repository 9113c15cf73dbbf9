//! A caller that does all it can to be a nuisance, beside eight honest ones: faults 15 and 32.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use objbus::Bus;

use crate::caller::*;
use crate::owner;
use crate::raw::*;
use crate::support::system::resident_kb;
use crate::support::*;
use crate::victim::{Victim, connected, cpu_us, victim};

/// Calls until told to stop; says how many calls it made and how many failed. Arguments: the directory, and, where the first
/// failure is to be told instead, anything.
pub fn run_honest(arguments: &[String]) {
    let bus =
        Bus::builder().directory(&arguments[0]).timeout(PATIENCE).open().expect("the directory is ours");
    let victim = connected(&bus).expect("it is published");
    say("ready");
    static STOP: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        hear();
        STOP.store(true, Ordering::Relaxed);
    });
    let (mut calls, mut failed, mut worst) = (0_u32, 0_u32, Duration::ZERO);
    while !STOP.load(Ordering::Relaxed) {
        let began = Instant::now();
        let sum = victim.call::<_, u32>("add", &(calls, 1_u32)).wait();
        worst = worst.max(began.elapsed());
        if sum != Ok(calls + 1) {
            failed += 1;
            if failed == 1 {
                eprintln!("call {calls}: {sum:?} after {:?}", began.elapsed());
            }
            if arguments.len() > 1 {
                say(format!("{sum:?}"));
                stay();
            }
        }
        calls += 1;
    }
    say(format!("{calls} {failed} {}", worst.as_micros()));
    stay();
}

/// What a storm did.
struct Outcome {
    owner_cpu_us: u64,
    heap_growth: i64,
    resident_growth_kb: u64,
}

/// Runs `thrash` again and again for a while, beside `honest` callers, none of whose calls may fail.
fn storm(victim: &Victim, honest: usize, span: Duration, mut thrash: impl FnMut(usize)) -> Outcome {
    let mut others: Vec<Child> = (0..honest).map(|_| start("honest", &[victim.place.text()])).collect();
    others.iter().for_each(|other| other.expect("ready"));
    let pid = victim.process.pid();
    let heap = |victim: &Victim| victim.honest.call::<_, i64>("heap", &()).wait().expect("an honest call");
    let (heap_before, resident_before) = (heap(victim), resident_kb(pid));
    let before = victim.number("cpu_us");
    let began = Instant::now();
    for round in 0.. {
        if began.elapsed() >= span {
            break;
        }
        thrash(round);
    }
    let owner_cpu_us = victim.number("cpu_us") - before;
    let mut calls = 0;
    for other in &mut others {
        other.tell("stop");
        let line = other.hear();
        let numbers: Vec<u32> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        println!("{} calls, {} failed, the longest {} us", numbers[0], numbers[1], numbers[2]);
        assert_eq!(numbers[1], 0, "calls of honest callers failed");
        assert!(numbers[0] > 0);
        calls += numbers[0];
    }
    println!("{calls} honest calls in {span:?}; the owner used {owner_cpu_us} us");
    victim.expect_unharmed();
    Outcome {
        owner_cpu_us,
        heap_growth: heap(victim) - heap_before,
        resident_growth_kb: resident_kb(pid).saturating_sub(resident_before),
    }
}

/// One of the things that it does to its lane; each ends that lane, or leaves it.
fn misbehave(victim: &Victim, round: usize) {
    let Ok(mut caller) = Caller::try_connect(&victim.path()) else { return };
    let add = caller.request("add", 0, &[1, 2]);
    match round % 7 {
        // All cells at once, in the same slots, with numbers from everywhere.
        0 => {
            for cell in 0..SLOTS {
                let at = caller.cell(cell);
                caller.request.word(at).store(cell.wrapping_mul(0x9e37_79b9), Ordering::Release);
                caller.ring();
            }
        }
        // Calls whose answers nobody reads, and then gone.
        1 => (0..SLOTS).for_each(|slot| caller.publish(&Request { slot, ..add.clone() })),
        2 => (0..2_000).for_each(|_| caller.ring()),
        // The socket: wakes, until it is full or closed.
        3 => (0..2_000).for_each(|_| {
            let _ = send(&caller.socket, &[1], &[]);
        }),
        // Garbage.
        4 => (0..12).for_each(|slot| {
            caller.publish(&Request { slot, len: 200, body: vec![0xff; 200], ..add.clone() });
        }),
        // Every sleep word says something else.
        5 => {
            for slot in 0..SLOTS {
                caller.request.word(64 * slot as usize).store(slot + 1, Ordering::Relaxed);
                caller.publish(&Request { slot, ..add.clone() });
            }
        }
        // Segments come and go.
        _ => {
            let (segment, _map) = memory(1 << 16);
            for id in 0..200_u32 {
                use std::os::fd::AsFd;
                let message = [&[2][..], &id.to_le_bytes(), &(1_u64 << 16).to_le_bytes()].concat();
                let _ = send(&caller.socket, &message, &[segment.as_fd()]);
                let _ = send(&caller.socket, &[&[3][..], &id.to_le_bytes()].concat(), &[]);
            }
        }
    }
}

#[test]
fn fault_32_a_nuisance_harms_none_of_eight_honest_callers() {
    let victim = victim();
    let before = held_by(victim.process.pid());
    let outcome = storm(&victim, 8, Duration::from_secs(4), |round| misbehave(&victim, round));
    println!("heap grew by {}, memory by {} KiB", outcome.heap_growth, outcome.resident_growth_kb);
    assert!(outcome.heap_growth < 8 << 20, "the heap grew by {} bytes", outcome.heap_growth);
    assert!(outcome.resident_growth_kb < 64 << 10, "it grew by {} KiB", outcome.resident_growth_kb);
    // The eight have lanes still.
    let bound = before.fds + 8 * 4 + 16;
    wait_until("the nuisance's lanes are gone", || held_by(victim.process.pid()).fds <= bound);
}

#[test]
fn fault_32_a_caller_that_only_rings_costs_the_owner_little() {
    let victim = victim();
    let caller = Caller::connect(&victim.path());
    let span = Duration::from_secs(2);
    let outcome = storm(&victim, 0, span, |_| (0..1_000).for_each(|_| caller.ring()));
    let share = outcome.owner_cpu_us as f64 / span.as_micros() as f64;
    println!("{:.1} % of a processor", 100.0 * share);
    assert!(share < 0.5, "{:.0} % of a processor", 100.0 * share);
}

#[test]
fn fault_32_a_caller_that_only_floods_its_socket_costs_the_owner_little() {
    let victim = victim();
    let caller = Caller::connect(&victim.path());
    let (segment, _map) = memory(4096);
    let mut id = 0_u32;
    let span = Duration::from_secs(2);
    let outcome = storm(&victim, 1, span, |_| {
        use std::os::fd::AsFd;
        let message = [&[2][..], &id.to_le_bytes(), &4096_u64.to_le_bytes()].concat();
        if send(&caller.socket, &message, &[segment.as_fd()]).is_ok() {
            let drop = [&[3][..], &id.to_le_bytes()].concat();
            while send(&caller.socket, &drop, &[]) == Err(rustix::io::Errno::AGAIN) {}
            id += 1;
        }
    });
    println!("{id} segments came and went");
    // A new caller is served meanwhile: the watcher was not busy with the flood alone.
    assert!(Caller::try_connect(&victim.path()).is_ok());
    println!("{} us of the owner", outcome.owner_cpu_us);
}

#[test]
fn fault_32_a_lane_closed_for_a_violation_can_ring_no_more() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    // Muted first, so that the owner has to remember not to listen again.
    (0..500).for_each(|_| caller.ring());
    let bad = Request { slot: 64, ..caller.request("add", 0, &[1, 2]) };
    caller.publish(&bad);
    caller.expect_broken("slot 64");
    let span = Duration::from_secs(1);
    let outcome = storm(&victim, 0, span, |_| (0..1_000).for_each(|_| caller.ring()));
    let share = outcome.owner_cpu_us as f64 / span.as_micros() as f64;
    assert!(share < 0.1, "{:.0} % of a processor", 100.0 * share);
}

/// The other way round: the owner does it, to a caller that publishes as well.
#[test]
fn fault_32_an_owner_that_only_floods_its_callers_sockets_costs_them_little() {
    let place = place();
    let _bus = place.bus();
    let listener = owner::listen(&place, "math");
    let mut caller = start("flooded", &[place.text()]);
    let owner = owner::Owner::meet(&listener);
    caller.expect("connected");
    let span = Duration::from_secs(1);
    let began = Instant::now();
    while began.elapsed() < span {
        let _ = send(&owner.socket, &[1], &[]);
    }
    caller.tell("how much?");
    let cpu_us: u64 = caller.hear().parse().unwrap();
    let share = cpu_us as f64 / span.as_micros() as f64;
    println!("{:.1} % of a processor", 100.0 * share);
    assert!(share < 0.2, "{:.0} % of a processor", 100.0 * share);
}

/// Connects to the owner that floods it; says how much of a processor that took, in microseconds.
pub fn run_flooded(arguments: &[String]) {
    let bus = Bus::builder().directory(&arguments[0]).open().expect("the directory is ours");
    let _math: objbus::Untyped = bus.proxy("math").wait().expect("the welcome was honest");
    let before = cpu_us();
    say("connected");
    hear();
    say((cpu_us() - before).to_string());
    stay();
}
