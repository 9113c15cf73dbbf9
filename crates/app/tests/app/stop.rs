//! Stopping: gracefully, by a time-out, and at once.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{FAMILY, Running, kill};

crate::tests!(
    both_signals_stop_gracefully,
    a_process_that_does_not_stop_is_killed_after_the_time_out,
    a_second_signal_kills_at_once,
    a_signal_to_the_process_and_its_group_counts_once,
    what_a_service_has_started_does_not_outlive_a_graceful_stop,
    a_signal_during_the_start_stops,
    a_signal_to_every_process_at_once_stops_gracefully,
    who_waits_for_a_slow_process_has_its_own_time_to_stop,
);

fn both_signals_stop_gracefully() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut app = Running::up("diamond");
        app.signal(signal);
        app.wait_for("Application stopped");
        app.ends(0);
        assert_eq!(app.record().iter().filter(|line| line.starts_with("stop")).count(), 4);
    }
}

fn a_process_that_does_not_stop_is_killed_after_the_time_out() {
    let mut app = Running::up("stops slowly");
    app.signal(Signal::TERM);
    app.wait_for("`worker` has not stopped within 300ms: killing it");
    app.ends(0);
}

fn a_second_signal_kills_at_once() {
    let mut app = Running::up("never stops");
    app.signal(Signal::INT);
    app.wait_for("hanging");
    // One that follows at once would be the same, sent to the process and to its group.
    assert!(!app.is_dead_within(Duration::from_millis(200)), "it waits for its service");
    app.signal(Signal::INT);
    app.ends(1);
}

fn a_signal_to_the_process_and_its_group_counts_once() {
    let mut app = Running::up("diamond");
    app.signal(Signal::INT);
    app.signal(Signal::INT);
    app.wait_for("Application stopped");
    app.ends(0);
}

fn what_a_service_has_started_does_not_outlive_a_graceful_stop() {
    let mut app = Running::up("family");
    app.all_pids(FAMILY);
    app.signal(Signal::TERM);
    app.ends(0);
}

fn a_signal_during_the_start_stops() {
    let mut app = Running::start("starts slowly");
    app.wait_for("Application start");
    app.signal(Signal::TERM);
    app.wait();
    app.nothing_is_left();
}

/// Service managers may send it so, systemd by default.
fn a_signal_to_every_process_at_once_stops_gracefully() {
    let mut app = Running::up("diamond");
    app.all_pids(4).into_iter().for_each(|pid| kill(pid, Signal::TERM));
    app.wait_for("Application stopped");
    app.ends(0);
    let stopped = &app.record()[4..];
    assert_eq!((&*stopped[0], &*stopped[3], stopped.len()), ("stop top", "stop base", 4), "{stopped:?}");
}

fn who_waits_for_a_slow_process_has_its_own_time_to_stop() {
    let mut app = Running::up("stops slowly between");
    app.signal(Signal::TERM);
    app.wait_for("`background` has not stopped within 300ms: killing it");
    app.ends(0);
    assert_eq!(app.record()[3..], ["stop top", "stop base"]);
}
