//! Row 37: a caller that has given up its system calls after connecting. Calls whose bodies fit a cell need `futex`, and
//! `write` for the doorbell; anything else that is refused gives an error, not a crash.

mod support;
use support::system::*;
use support::*;

use std::time::Duration;

use objbus::{CallError, Executed, Untyped};

/// What a thread needs for calls within a cell, its end and its report included.
const NEEDED: [i64; 5] =
    [libc::SYS_futex, libc::SYS_write, libc::SYS_exit_group, libc::SYS_exit, libc::SYS_rt_sigreturn];

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => {
            let bus = bus_at(&arguments[0]);
            let echo = table().method("echo", |body: Vec<u8>| body.len() as u64);
            let _published = bus.publish("math", echo).unwrap();
            say("ready");
            stay();
        }
        "killed if it strays" => within_a_cell(&arguments[0]),
        "refused if it strays" => beyond_a_cell(&arguments[0]),
        other => panic!("no role {other}"),
    }
}

/// Refuses the present thread every system call but the needed ones: with `refusal`, a SECCOMP_RET value.
fn give_up_system_calls(refusal: u32) {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![step(LOAD_NUMBER, 0, 0, 0)];
    for number in NEEDED {
        program.push(step(JUMP_IF_EQUAL, 0, 1, number as u32));
        program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    }
    program.push(step(RETURN, 0, 0, refusal));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the call that copies it. One architecture is enough: the test makes no calls of another.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Tells the parent with write(2) alone, and ends.
fn report(line: &str) -> ! {
    // SAFETY: the bytes outlive the call; _exit runs nothing.
    unsafe {
        libc::write(1, line.as_ptr().cast(), line.len());
        libc::_exit(0)
    }
}

fn within_a_cell(directory: &str) {
    let bus = bus_at(directory);
    let math: Untyped = bus.proxy("math").wait().unwrap();
    // What is set up once per thread and process is set up before.
    assert_eq!(pow(&math).wait(), Ok(8.0));
    let late = math.call::<_, ()>("nap", &(1_000_u64,)).timeout(Duration::from_millis(1)).wait();
    assert!(late.is_err());
    assert_eq!(math.call::<_, ()>("nap", &(100_u64,)).wait(), Ok(()));
    give_up_system_calls(libc::SECCOMP_RET_KILL_PROCESS);
    for i in 0..1_000 {
        let i = f64::from(i);
        assert_eq!(math.call::<_, f64>("pow", &(i, 1.0)).wait(), Ok(i));
    }
    // Asleep until the answer, and asleep until the deadline.
    for _ in 0..3 {
        assert_eq!(math.call::<_, ()>("nap", &(10_u64,)).wait(), Ok(()));
        let late = math.call::<_, ()>("nap", &(1_000_u64,)).timeout(Duration::from_millis(10)).wait();
        assert!(matches!(late, Err(CallError::DeadlineExceeded { .. })));
    }
    assert_eq!(math.call::<_, ()>("nap", &(0_u64,)).send(), Ok(()));
    report("\nobjbus>all within the filter\n");
}

fn beyond_a_cell(directory: &str) {
    let bus = bus_at(directory);
    let math: Untyped = bus.proxy("math").wait().unwrap();
    assert_eq!(pow(&math).wait(), Ok(8.0));
    let other = bus_at(directory);
    let (call, connect) =
        (math.call::<_, u64>("echo", &(vec![1_u8; 1 << 20],)), other.proxy::<Untyped>("math"));
    give_up_system_calls(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let refused = call.wait();
    let unconnected = connect.wait();
    let right =
        matches!(refused, Err(CallError::NoMemory { executed: Executed::No })) && unconnected.is_err();
    // The lane is none the worse for it.
    let on = pow(&math).wait() == Ok(8.0);
    if right && on {
        report("\nobjbus>errors\n");
    }
    report(&format!("\nobjbus>{refused:?}, {unconnected:?}, and then {on}\n"));
}

#[test]
fn row_37_calls_within_a_cell_need_futex_and_write_alone() {
    let place = place();
    let _owner = math_owner(&place);
    let caller = start("killed if it strays", &[place.text()]);
    caller.expect("all within the filter");
    assert!(caller.finish().success());
}

#[test]
fn row_37_what_the_filter_refuses_is_an_error() {
    let place = place();
    let _owner = math_owner(&place);
    let caller = start("refused if it strays", &[place.text()]);
    caller.expect("errors");
    let math: Untyped = place.bus().proxy("math").wait().unwrap();
    assert_eq!(pow(&math).wait(), Ok(8.0));
}
