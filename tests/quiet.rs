//! What the library's threads do when nothing happens, and what they leave to the program: nothing, and every signal.

mod support;
use support::system::*;
use support::*;

use std::time::Duration;

use objbus::{Bus, Untyped};

const PROCESSES: usize = 20;
const BUSES: usize = 5;
/// How long nobody may wake.
const QUIET: Duration = Duration::from_secs(2);

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own_math(&arguments[0]),
        "callers" => {
            let buses: Vec<Bus> = (0..BUSES).map(|_| bus_at(&arguments[0])).collect();
            let proxies: Vec<Untyped> = buses.iter().map(|bus| bus.proxy("math").wait().unwrap()).collect();
            for math in &proxies {
                assert_eq!(pow(math).wait(), Ok(8.0));
                assert_eq!(block_on(pow(math)), Ok(8.0));
            }
            say("called");
            stay();
        }
        other => panic!("no role {other}"),
    }
}

#[test]
fn a_hundred_idle_callers_wake_nobody() {
    let place = place();
    let mut owner = math_owner(&place);
    let callers: Vec<_> = (0..PROCESSES).map(|_| start("callers", &[place.text()])).collect();
    callers.iter().for_each(|process| process.expect("called"));
    owner.tell("how many?");
    owner.expect(&(PROCESSES * BUSES).to_string());
    let all: Vec<u32> = callers.iter().chain([&owner]).map(Child::pid).collect();
    let switches = || all.iter().map(|pid| voluntary_switches(*pid)).collect::<Vec<_>>();
    // The handshakes' time limits, a second after them, are the last thing to happen.
    let quiet_from_window = (1..=4).find(|window| {
        let before = switches();
        assert_eq!(owner.hear_within(QUIET), None);
        let woken: u64 = switches().iter().zip(&before).map(|(now, then)| now.abs_diff(*then)).sum();
        println!("{woken} voluntary switches in window {window} of {QUIET:?}, in {} processes", all.len());
        woken == 0
    });
    assert!(quiet_from_window.is_some_and(|window| window <= 3), "they never come to rest");
}

#[test]
fn the_librarys_threads_block_every_signal_and_the_programs_none() {
    let place = place();
    let owner = math_owner(&place);
    let callers = start("callers", &[place.text()]);
    callers.expect("called");
    for pid in [owner.pid(), callers.pid()] {
        let masks = || {
            let masks = of_threads(pid, "SigBlk").into_iter();
            let masks = masks.map(|(name, mask)| (name, u64::from_str_radix(&mask, 16).unwrap()));
            masks.partition::<Vec<_>, _>(|(name, _)| name.starts_with("objbus-"))
        };
        // A thread of the library's has its maker's name until it gives itself one.
        wait_until("the program's threads block nothing", || masks().1.iter().all(|(_, mask)| *mask == 0));
        let (ours, _) = masks();
        assert!(!ours.is_empty());
        for (name, mask) in ours {
            // All but SIGKILL and SIGSTOP, which cannot be, and the two that glibc keeps for itself.
            let spared = [libc::SIGKILL, libc::SIGSTOP, 32, 33].map(|signal| 1_u64 << (signal - 1));
            assert_eq!(mask | spared.iter().sum::<u64>(), u64::MAX, "{name} blocks {mask:x}");
        }
    }
}
