//! Starting: what is said, in which order services start, and what is wrong before anything has started.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use objbus_app::{AppState, ProcessState, ServiceState};

use crate::harness::{Running, directory};

crate::tests!(
    it_says_when_all_has_started,
    services_start_in_the_order_of_dependencies_and_stop_in_reverse,
    a_cycle_is_named_before_anything_starts,
    a_service_that_does_not_start_is_named_with_its_reason_and_everything_stops,
    a_service_that_takes_too_long_is_named_and_killed,
    a_port_in_use_is_an_error_that_says_what_to_do,
    a_second_application_of_the_name_names_the_first_one_s_process,
    the_example_greets,
    a_file_overrides_the_code_and_the_environment_the_file,
    a_program_that_a_service_starts_is_no_process_of_the_application,
);

fn it_says_when_all_has_started() {
    let mut app = Running::start("diamond");
    let line = app.wait_for("Application start successful");
    assert!(line.contains(" INFO "), "{line}");
    let status = app.status();
    assert_eq!((&*status.name, status.state), ("test", AppState::Running));
    let processes: Vec<_> = status.processes.iter().map(|process| (&*process.name, process.state)).collect();
    assert_eq!(processes, [("worker", ProcessState::Running), ("background", ProcessState::Running)]);
    let services = status.processes.iter().flat_map(|process| &process.services);
    assert!(services.into_iter().all(|service| service.state == ServiceState::Running));
}

fn services_start_in_the_order_of_dependencies_and_stop_in_reverse() {
    let mut app = Running::up("diamond");
    let started = app.record();
    assert_eq!((&*started[0], &*started[3], started.len()), ("start base", "start top", 4), "{started:?}");
    app.signal(rustix::process::Signal::TERM);
    app.ends(0);
    let stopped = &app.record()[4..];
    assert_eq!((&*stopped[0], &*stopped[3], stopped.len()), ("stop top", "stop base", 4), "{stopped:?}");
}

fn a_cycle_is_named_before_anything_starts() {
    let directory = directory();
    let errors = std::fs::File::create(directory.join("errors")).unwrap();
    let mut app = Running::start_in("cycle", directory, |command| command.stderr(errors));
    app.ends(2);
    let errors = std::fs::read_to_string(app.directory.join("errors")).unwrap();
    assert!(errors.contains("a -> b -> c -> a"), "{errors}");
}

fn a_service_that_does_not_start_is_named_with_its_reason_and_everything_stops() {
    let mut app = Running::start("cannot start");
    let line = app.wait_for("Application start failed");
    assert!(
        line.contains("`broken`") && line.contains("out of order") && line.contains("`worker`"),
        "{line}"
    );
    app.ends(1);
    assert_eq!(app.record(), ["start fine", "stop fine"]);
}

fn a_service_that_takes_too_long_is_named_and_killed() {
    let mut app = Running::start("starts slowly");
    let line = app.wait_for("Application start failed");
    assert!(line.contains("`slow`") && line.contains("within 200ms"), "{line}");
    app.ends(1);
}

fn a_port_in_use_is_an_error_that_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let mut app = Running::start_in("port", directory(), |command| command.env("TEST_ECHO__ADDR", &addr));
    let line = app.wait_for("Application start failed");
    assert!(line.contains(&format!("{addr} is in use")) && line.contains("another port"), "{line}");
    app.ends(1);
}

fn a_second_application_of_the_name_names_the_first_one_s_process() {
    let first = Running::up("diamond");
    let mut second =
        Running::start_in("diamond", directory(), |command| command.env("OBJBUS_DIR", &first.directory));
    let line = second.wait_for("Application start failed");
    assert!(line.contains(&format!("runs already, as process {}", first.status().pid)), "{line}");
    second.ends(1);
    assert_eq!(first.status().state, AppState::Running);
}

/// The variable that tells a process what it is, is inherited.
fn a_program_that_a_service_starts_is_no_process_of_the_application() {
    let outer = Running::up("diamond");
    let worker = outer.pid_of("worker", 0);
    let environment = std::fs::read_to_string(format!("/proc/{worker}/environ")).unwrap();
    let role = environment.split('\0').find_map(|variable| variable.strip_prefix("OBJBUS_APP_ROLE="));
    let role = role.expect("a process has its role from there").to_owned();
    let mut inner = Running::start_in("diamond", directory(), |command| command.env("OBJBUS_APP_ROLE", role));
    inner.wait_for("Application start successful");
}

/// The program of the example, started in this directory.
fn example(directory: PathBuf, adjust: impl FnOnce(&mut Command) -> &mut Command) -> Running {
    let this = std::env::current_exe().unwrap();
    let example = this.ancestors().nth(2).unwrap().join("examples/hello");
    assert!(example.exists(), "build it first: cargo build -p objbus-app --examples");
    Running::start_program(&example, "", directory, adjust)
}

fn the_example_greets() {
    let mut app = example(directory(), |command| command);
    let line = app.wait_for("Hello, process");
    assert!(line.contains("[serviceName: visitor, processName: worker]"), "{line}");
    app.wait_for("Application start successful");
    app.signal(rustix::process::Signal::TERM);
    app.ends(0);
}

fn a_file_overrides_the_code_and_the_environment_the_file() {
    for (file, variable, greeting) in [
        (None, None, "Hello"),
        (Some("Servus"), None, "Servus"),
        (None, Some("Moin"), "Moin"),
        (Some("Servus"), Some("Moin"), "Moin"),
    ] {
        let directory = directory();
        if let Some(file) = file {
            let text = format!("[services.greeter]\ngreeting = {file:?}\n");
            std::fs::write(directory.join("hello.toml"), text).unwrap();
        }
        let mut app = example(directory, |command| match variable {
            Some(variable) => command.env("HELLO_GREETER__GREETING", variable),
            None => command,
        });
        app.wait_for(&format!("{greeting}, process"));
    }
}
