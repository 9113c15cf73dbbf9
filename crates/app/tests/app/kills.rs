//! Processes that die: each role by SIGKILL, crash loops, and memory limits.

use std::time::{Duration, Instant};

use objbus_app::ProcessState;
use rustix::process::Signal;

use crate::apps::ActorProxy;
use crate::harness::{FAMILY, PATIENCE, Running, kill, put, wait_dead};

crate::tests!(
    nothing_is_left_of_a_killed_guard,
    nothing_is_left_of_a_killed_supervisor,
    what_a_killed_process_had_started_dies_with_it_and_nothing_else_does,
    a_process_that_ends_is_started_again_and_its_proxies_go_on,
    a_crash_loop_backs_off_and_has_an_end,
    a_process_that_ends_again_after_a_restart_by_hand_waits_its_own_time,
    a_process_over_its_memory_limit_is_started_again,
    shared_memory_does_not_count_against_the_limit,
);

fn nothing_is_left_of_a_killed_guard() {
    let mut app = Running::up("family");
    let all = app.all_pids(FAMILY);
    kill(app.guard.id(), Signal::KILL);
    wait_dead(&all);
    app.wait();
    app.nothing_is_left();
}

fn nothing_is_left_of_a_killed_supervisor() {
    let mut app = Running::up("family");
    let all = app.all_pids(FAMILY);
    kill(app.status().pid, Signal::KILL);
    wait_dead(&all);
    app.ends(128 + 9);
}

fn what_a_killed_process_had_started_dies_with_it_and_nothing_else_does() {
    let mut app = Running::up("family");
    let (worker, background) = (app.pid_of("worker", 0), app.pid_of("background", 0));
    let started_by = |app: &Running, pid: u32| {
        let of = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
        let mark =
            of.split('\0').find(|variable| variable.starts_with("OBJBUS_APP_INSTANCE=")).unwrap().to_owned();
        let bears = |pid: &u32| {
            let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split('\0').any(|variable| variable == mark)
        };
        app.pids().into_iter().filter(bears).collect::<Vec<_>>()
    };
    app.all_pids(FAMILY);
    let (dies, stays) = (started_by(&app, worker), started_by(&app, background));
    assert_eq!((dies.len(), stays.len()), (4, 4), "a process and its three programs");
    kill(worker, Signal::KILL);
    wait_dead(&dies);
    app.wait_for("process `worker` ended by itself: killed by signal 9");
    app.wait_for("process `worker` runs");
    assert_eq!(started_by(&app, background), stays);
}

fn a_process_that_ends_is_started_again_and_its_proxies_go_on() {
    let mut app = Running::up("crashes");
    let fragile: ActorProxy = app.bus().proxy("fragile").call_timeout(PATIENCE).wait_for(PATIENCE).unwrap();
    let before = fragile.pid().wait().unwrap();
    fragile.exit().wait().unwrap_err();
    app.wait_for("process `worker` ended by itself: exit code 3; starting it again in 10ms");
    app.wait_for("process `worker` runs");
    let after = fragile.pid().wait().unwrap();
    assert_ne!(before, after);
    let status = app.status();
    assert_eq!((status.processes[0].restarts, status.processes[1].restarts), (1, 0));
    assert_eq!(status.processes[0].pid, Some(after));
}

fn a_crash_loop_backs_off_and_has_an_end() {
    let mut app = Running::up("crashes");
    put(&app.directory, "exit");
    kill(app.pid_of("worker", 0), Signal::KILL);
    for delay in ["10ms", "20ms", "40ms", "40ms"] {
        app.wait_for(&format!("starting it again in {delay}"));
    }
    let line = app.wait_for("giving up");
    assert!(line.contains(" ERROR ") && line.contains("`worker` ended 5 times"), "{line}");
    assert!(line.contains("exit code 3"), "{line}");
    app.ends(1);
    assert_eq!(app.record().last().unwrap(), "stop steady", "everybody else stops gracefully");
}

fn a_process_that_ends_again_after_a_restart_by_hand_waits_its_own_time() {
    let mut app = Running::up("hesitates");
    kill(app.pid_of("worker", 0), Signal::KILL);
    app.wait_for("starting it again in 1s");
    app.control().restart("worker").wait().unwrap();
    let (ended, worker) = (Instant::now(), app.pid_of("worker", 0));
    kill(worker, Signal::KILL);
    app.wait_for("starting it again in 2s");
    app.wait_for("process `worker` runs");
    assert!(ended.elapsed() >= Duration::from_secs(2), "by the first end's time: {:?}", ended.elapsed());
}

fn a_process_over_its_memory_limit_is_started_again() {
    let mut app = Running::up("hungry");
    let before = app.pid_of("worker", 0);
    let eater: ActorProxy = app.bus().proxy("eater").call_timeout(PATIENCE).wait_for(PATIENCE).unwrap();
    eater.eat(300).wait().unwrap();
    let line = app.wait_for("MiB of memory, and may have 200");
    assert!(line.contains("process `worker` has "), "{line}");
    app.wait_for("process `worker` runs");
    assert_ne!(app.pid_of("worker", 0), before);
    assert!(app.record().contains(&"stop eater".to_owned()), "it is stopped gracefully");
}

fn shared_memory_does_not_count_against_the_limit() {
    let app = Running::up("hungry");
    let before = app.pid_of("patient", 0);
    let sharer: ActorProxy = app.bus().proxy("sharer").call_timeout(PATIENCE).wait_for(PATIENCE).unwrap();
    sharer.share(300).wait().unwrap();
    // Longer than the supervisor looks away.
    sharer.pid_later(500).timeout(Duration::from_secs(10)).wait().unwrap();
    let status = app.status();
    let patient = status.processes.iter().find(|process| process.name == "patient").unwrap();
    assert_eq!((patient.pid, patient.state), (Some(before), ProcessState::Running));
    assert!(patient.memory < 100 << 20, "{} bytes are its own", patient.memory);
}
