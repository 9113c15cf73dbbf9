//! Processes that are not where, or not who, their numbers say: faults 33 and 48.

use std::io;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use objbus::{Bus, CallError, Executed};

use crate::support::*;
use crate::victim::{connected, victim, victim_for};

/// Moves this process, or its children, into namespaces of their own.
fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    if unsafe { libc::unshare(flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Enters namespaces, those of process ids and of time as the first process in them.
fn enter(flags: i32) -> io::Result<()> {
    unshare(flags)?;
    if flags & libc::CLONE_NEWTIME != 0 {
        std::fs::write("/proc/self/timens_offsets", "monotonic 100000 0\n")?;
    }
    if flags & (libc::CLONE_NEWPID | libc::CLONE_NEWTIME) == 0 {
        return Ok(());
    }
    // SAFETY: the process has one thread; the parent makes system calls only.
    unsafe {
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(()),
            child => {
                // Its descriptors keep the pipes open that the child is heard through.
                (0..1024).for_each(|fd| {
                    libc::close(fd);
                });
                libc::waitpid(child, std::ptr::null_mut(), 0);
                libc::_exit(0)
            }
        }
    }
}

/// Starts a role in other namespaces; says why not where that is not allowed.
fn start_unshared(role: &str, arguments: &[&str], flags: i32) -> Option<Child> {
    let mut allowed = std::process::Command::new("true");
    // SAFETY: the process has one thread, so that anything goes.
    unsafe { allowed.pre_exec(move || enter(flags)) };
    if let Err(error) = allowed.status() {
        println!("SKIPPED: namespaces {flags:x} are not to be had here ({error})");
        return None;
    }
    Some(start_with(role, arguments, |command| {
        // SAFETY: as above.
        unsafe { command.pre_exec(move || enter(flags)) };
    }))
}

/// Calls the victim. Arguments: the directory.
pub fn run_caller(arguments: &[String]) {
    let bus = Bus::builder().directory(&arguments[0]).open();
    let answer = bus.map_err(|error| format!("{error:?}")).and_then(|bus| {
        let victim = connected(&bus).map_err(|error| format!("{error:?}"))?;
        let span = Duration::from_secs(20);
        let sum = victim.call::<_, u32>("add", &(1_u32, 2_u32)).timeout(span).wait();
        sum.map_err(|error| format!("{error:?}"))
    });
    say(format!("{answer:?}"));
    stay();
}

#[test]
fn fault_48_a_caller_in_another_user_namespace_takes_the_owner_for_nobody() {
    let victim = victim();
    let Some(caller) = start_unshared("caller", &[victim.place.text()], libc::CLONE_NEWUSER) else { return };
    let answer = caller.hear();
    println!("{answer}");
    // Its own uid is 65534 there, as everybody's is; so is the owner's, and that equals nobody's.
    assert!(answer.contains("WrongOwnerUid") || answer.contains("belongs to user"), "{answer}");
    victim.expect_unharmed();
}

#[test]
fn fault_48_an_owner_in_another_user_namespace_admits_nobody_by_the_overflow_uid() {
    // There the directory belongs to 65534, as does everybody's, and as the process itself seems to be.
    for admitted in [&[][..], &["65534"]] {
        let place = place();
        let _directory = place.bus();
        let arguments = [&[place.text()], admitted].concat();
        let Some(owner) = start_unshared("victim", &arguments, libc::CLONE_NEWUSER) else { return };
        assert_eq!(owner.hear(), "the bus does not open");
        assert_eq!(place.files(), [""; 0], "nothing was published");
    }
}

#[test]
fn fault_48_another_pid_namespace_makes_no_difference() {
    let victim = victim();
    let Some(caller) = start_unshared("caller", &[victim.place.text()], libc::CLONE_NEWPID) else { return };
    assert_eq!(caller.hear(), "Ok(3)");
    let place = place();
    let Some(mut owner) = start_unshared("victim", &[place.text()], libc::CLONE_NEWPID) else { return };
    owner.expect("ready");
    let inner = connected(&place.bus()).expect("an owner in another pid namespace");
    assert_eq!(inner.call::<_, u32>("add", &(1_u32, 2_u32)).wait(), Ok(3));
    // The end of its namespace's first process is heard.
    owner.kill();
    wait_until("the owner's death is heard", || inner.call::<_, u32>("add", &(1_u32, 2_u32)).wait().is_err());
    victim.expect_unharmed();
}

#[test]
fn fault_48_another_time_namespace_keeps_its_deadlines() {
    let victim = victim();
    let Some(caller) = start_unshared("caller", &[victim.place.text()], libc::CLONE_NEWTIME) else { return };
    assert_eq!(caller.hear(), "Ok(3)");
    let place = place();
    let Some(owner) = start_unshared("victim", &[place.text()], libc::CLONE_NEWTIME) else { return };
    owner.expect("ready");
    let there = connected(&place.bus()).expect("an owner in another time namespace");
    for i in 0..100_u32 {
        assert_eq!(there.call::<_, u32>("add", &(i, 1_u32)).wait(), Ok(i + 1));
    }
    let call = time_out_begun(|span| there.call::<_, ()>("block", &()).timeout(span).wait());
    assert_eq!(call, Err(CallError::DeadlineExceeded { executed: Executed::Unknown }));
}

/// Makes a process with this number that does nothing; `None` where that is not allowed.
fn stranger_with(pid: u32) -> Option<Stranger> {
    let pids = [pid as libc::pid_t];
    // SAFETY: zeroed clone_args are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.set_tid = pids.as_ptr().addr() as u64;
    arguments.set_tid_size = 1;
    // SAFETY: without flags this is a fork; the child makes system calls only.
    let made = unsafe {
        let made = libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>());
        if made == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
        made
    };
    if made < 0 {
        println!("SKIPPED: no process can be given the number {pid} ({})", io::Error::last_os_error());
        return None;
    }
    Some(Stranger(made as i32))
}

struct Stranger(i32);

impl Stranger {
    fn lives(&self) -> bool {
        // SAFETY: signal 0 is none.
        unsafe {
            libc::kill(self.0, 0) == 0 && libc::waitpid(self.0, std::ptr::null_mut(), libc::WNOHANG) == 0
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // SAFETY: it is our child and not reaped yet.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// The caller is stopped while its owner dies and a stranger takes the owner's number.
#[test]
fn fault_33_a_stranger_with_the_owners_number_is_not_taken_for_it() {
    let place = place();
    let mut owner = start("victim", &[place.text()]);
    owner.expect("ready");
    let caller = start("honest", &[place.text(), "tell"]);
    caller.expect("ready");
    caller.signal(libc::SIGSTOP);
    let pid = owner.pid();
    owner.kill();
    let Some(stranger) = stranger_with(pid) else { return };
    caller.signal(libc::SIGCONT);
    let error = caller.hear();
    assert!(error.contains("OwnerDied") || error.contains("NotFound"), "{error}");
    assert!(stranger.lives(), "nobody ends a stranger");
    // The name is free, though its last holder's number is in use.
    let next = start("victim", &[place.text()]);
    next.expect("ready");
}

#[test]
fn fault_33_a_stranger_with_a_callers_number_keeps_no_lane() {
    let victim = victim_for(&[]);
    let before = held_by(victim.process.pid());
    let mut caller = start("caller", &[victim.place.text()]);
    caller.expect("Ok(3)");
    victim.process.signal(libc::SIGSTOP);
    let pid = caller.pid();
    caller.kill();
    let stranger = stranger_with(pid);
    victim.process.signal(libc::SIGCONT);
    let Some(stranger) = stranger else { return };
    wait_until("the dead caller's lane is gone", || {
        let now = held_by(victim.process.pid());
        now.fds <= before.fds && now.mappings <= before.mappings
    });
    assert!(stranger.lives());
    victim.expect_unharmed();
}
