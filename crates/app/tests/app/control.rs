//! The application on the bus: what it says of itself, and that it does as it is told.

use objbus_app::{ControlError, ProcessState};
use rustix::process::Signal;

use crate::harness::{PATIENCE, Running, kill};

crate::tests!(
    status_tells_what_runs,
    a_restart_stops_and_starts_one_process_and_no_other,
    a_process_that_is_not_there_is_named_with_those_that_are,
    stop_ends_the_application_gracefully,
    the_log_can_be_read_from_any_line_on,
    a_process_that_waits_for_its_restart_is_told_of,
);

fn status_tells_what_runs() {
    let app = Running::up("served");
    let status = app.status();
    let worker = &status.processes[0];
    assert_eq!((&*worker.name, worker.index, worker.state), ("worker", 0, ProcessState::Running));
    assert_eq!((worker.restarts, worker.services.len()), (0, 2));
    assert!(worker.memory > 1 << 16 && worker.memory < 1 << 30, "{}", worker.memory);
    assert!(worker.since_ms > 1_700_000_000_000);
    assert!(app.pids().contains(&worker.pid.unwrap()));
}

fn a_restart_stops_and_starts_one_process_and_no_other() {
    let app = Running::up("served");
    let before = (app.pid_of("worker", 0), app.pid_of("background", 0));
    app.control().restart("worker").wait().unwrap();
    let after = (app.pid_of("worker", 0), app.pid_of("background", 0));
    assert_ne!(before.0, after.0);
    assert_eq!(before.1, after.1);
    assert_eq!(app.status().processes[0].restarts, 0, "it was asked for");
    let tail = &app.record()[3..];
    assert_eq!(tail, ["stop second", "stop first", "start first", "start second"]);
}

fn a_process_that_is_not_there_is_named_with_those_that_are() {
    let app = Running::up("served");
    let error = app.control().reload("wroker").wait().unwrap_err();
    let known = vec!["worker".to_owned(), "background".to_owned()];
    assert_eq!(
        error,
        objbus::CallError::App(ControlError::UnknownProcess { process: "wroker".to_owned(), known })
    );
}

fn stop_ends_the_application_gracefully() {
    let mut app = Running::up("served");
    app.control().stop().wait().unwrap();
    app.ends(0);
    assert_eq!(app.record().iter().filter(|line| line.starts_with("stop")).count(), 3);
}

fn the_log_can_be_read_from_any_line_on() {
    let app = Running::up("served");
    let control = app.control();
    let all = control.log(0, 1_000).wait().unwrap();
    assert_eq!((all.lost, all.lines[0].number), (0, 1));
    let there = all.lines.iter().find(|line| line.text == "first is there").expect("a service's line");
    assert_eq!((there.service.as_deref(), there.process.as_deref()), (Some("first"), Some("worker")));
    assert_eq!(Some(there.pid), app.status().processes[0].pid);
    let page = control.log(there.number - 1, 1).wait().unwrap();
    assert_eq!(page.lines, std::slice::from_ref(there));
    assert_eq!(control.log(1_000_000, 10).wait().unwrap().lines, []);
}

fn a_process_that_waits_for_its_restart_is_told_of() {
    let app = Running::up("waits");
    kill(app.pid_of("worker", 0), Signal::KILL);
    let control = app.control();
    let waiting = std::iter::repeat_with(|| control.status().wait().unwrap().processes.remove(0));
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut looked = waiting.take_while(|_| std::time::Instant::now() < deadline);
    let worker = looked.find(|worker| worker.state == ProcessState::Waiting).expect("it waits for an hour");
    assert_eq!((worker.pid, worker.since_ms), (None, 0));
    let error = control.reload("worker").wait().unwrap_err();
    assert!(error.to_string().contains("does not run at present"), "{error}");
    control.restart("worker").wait().unwrap();
    assert!(app.pid_of("worker", 0) > 0);
}
