//! Reloading: no call is lost and no connection refused, and a new process that does not start changes nothing.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use objbus_app::ControlError;
use rustix::process::Signal;

use crate::apps::ActorProxy;
use crate::harness::{PATIENCE, Running, kill, put};

crate::tests!(
    no_call_fails_while_its_process_is_reloaded,
    a_new_process_that_does_not_start_leaves_the_old_one_as_it_was,
    two_processes_share_a_port_and_a_reload_refuses_no_connection,
    a_hang_up_reloads_everything,
    a_hang_up_reloads_the_others_while_one_is_down,
    a_new_process_that_is_killed_leaves_the_old_one_as_it_was,
    an_old_process_that_is_killed_leaves_its_place_to_the_new_one,
    an_old_process_over_its_memory_limit_is_replaced_and_the_reload_ends,
);

const RELOADS: usize = 10;

fn no_call_fails_while_its_process_is_reloaded() {
    let app = Running::up("served");
    let (control, bus) = (app.control(), app.bus());
    let done = AtomicBool::new(false);
    let call = |ms: Option<u64>| {
        let proxy: ActorProxy = bus.proxy("first").call_timeout(PATIENCE).wait_for(PATIENCE).unwrap();
        let (mut pids, mut calls) = (BTreeSet::new(), 0_u32);
        while !done.load(Ordering::Relaxed) {
            let answer = match ms {
                None => proxy.pid().wait(),
                Some(ms) => proxy.pid_later(ms).wait(),
            };
            pids.insert(answer.expect("no call fails"));
            calls += 1;
        }
        (pids, calls)
    };
    thread::scope(|threads| {
        let callers = [None, None, Some(5), Some(50)].map(|ms| threads.spawn(move || call(ms)));
        for _ in 0..RELOADS {
            let reloaded = control.reload("worker").wait();
            if reloaded.is_err() {
                done.store(true, Ordering::Relaxed);
            }
            reloaded.unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for caller in callers {
            let (pids, calls) = caller.join().unwrap();
            assert!(pids.len() > RELOADS / 2, "{} calls reached {} processes", calls, pids.len());
        }
    });
    assert!(app.record().iter().filter(|line| *line == "stop first").count() >= RELOADS);
}

fn a_new_process_that_does_not_start_leaves_the_old_one_as_it_was() {
    let mut app = Running::up("served");
    let before = app.pid_of("worker", 0);
    put(&app.directory, "fail");
    let error = app.control().reload("worker").wait().unwrap_err();
    let objbus::CallError::App(ControlError::Failed { why }) = error else { panic!("{error}") };
    assert!(why.contains("`second`") && why.contains("told to fail"), "{why}");
    app.wait_for("the old process stays");
    assert_eq!(app.pid_of("worker", 0), before);
    // The first service of the new process had started, and has not taken its name.
    for name in ["first", "second"] {
        let proxy: ActorProxy = app.bus().proxy(name).wait_for(PATIENCE).unwrap();
        assert_eq!(proxy.pid().wait().unwrap(), before, "{name}");
    }
    std::fs::remove_file(app.directory.join("fail")).unwrap();
    app.control().reload("worker").wait().unwrap();
    assert_ne!(app.pid_of("worker", 0), before);
}

fn two_processes_share_a_port_and_a_reload_refuses_no_connection() {
    let app = Running::up("port");
    let addr: SocketAddr = app.recorded("listen").parse().unwrap();
    let control = app.control();
    let done = AtomicBool::new(false);
    let pids: BTreeSet<String> = thread::scope(|threads| {
        let connect = || {
            let mut pids = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                let mut pid = String::new();
                let mut connection = TcpStream::connect(addr).expect("no connection is refused");
                connection.set_read_timeout(Some(PATIENCE)).unwrap();
                connection.read_to_string(&mut pid).expect("none is reset");
                assert!(!pid.is_empty(), "and none forgotten");
                pids.insert(pid);
            }
            pids
        };
        let callers = [(); 3].map(|()| threads.spawn(connect));
        for _ in 0..3 {
            let reloaded = control.reload("worker").wait();
            if reloaded.is_err() {
                done.store(true, Ordering::Relaxed);
            }
            reloaded.unwrap();
        }
        done.store(true, Ordering::Relaxed);
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    assert!(pids.len() >= 4, "two processes, each reloaded three times: {pids:?}");
    let listening: BTreeSet<String> = app.record().into_iter().collect();
    assert_eq!(listening.len(), 1, "all have the same socket: {listening:?}");
}

fn a_hang_up_reloads_everything() {
    let mut app = Running::up("served");
    let before = (app.pid_of("worker", 0), app.pid_of("background", 0));
    app.signal(Signal::HUP);
    app.wait_for("process `worker` runs");
    app.wait_for("process `background` runs");
    let after = (app.pid_of("worker", 0), app.pid_of("background", 0));
    assert!(before.0 != after.0 && before.1 != after.1);
}

fn a_hang_up_reloads_the_others_while_one_is_down() {
    let mut app = Running::up("waits");
    let before = app.pid_of("background", 0);
    kill(app.pid_of("worker", 0), Signal::KILL);
    app.wait_for("starting it again");
    app.signal(Signal::HUP);
    app.wait_for("process `worker` does not run at present");
    app.wait_for("process `background` runs");
    assert_ne!(app.pid_of("background", 0), before);
}

/// Reloads a process, and kills one while the new one starts: the old one, or the new one. Gives the application, the old process,
/// and what became of the reload.
fn reload_and_kill(kills_old: bool) -> (Running, u32, Result<(), String>) {
    let mut app = Running::up("served");
    let (old, before) = (app.pid_of("worker", 0), app.pids());
    put(&app.directory, "wait");
    let control = app.control();
    let reload = thread::spawn(move || control.reload("worker").wait().map_err(|error| error.to_string()));
    app.wait_for("Reloading process `worker`");
    let all = app.all_pids(before.len() + 1);
    let new = all.into_iter().find(|pid| !before.contains(pid)).unwrap();
    kill(if kills_old { old } else { new }, Signal::KILL);
    app.wait_for("ended by itself: killed by signal 9");
    std::fs::remove_file(app.directory.join("wait")).unwrap();
    let reloaded = reload.join().unwrap();
    (app, old, reloaded)
}

fn a_new_process_that_is_killed_leaves_the_old_one_as_it_was() {
    let (app, old, reloaded) = reload_and_kill(false);
    let error = reloaded.unwrap_err();
    assert!(error.contains("killed by signal 9"), "{error}");
    assert_eq!(app.pid_of("worker", 0), old);
    app.control().reload("worker").wait().unwrap();
}

fn an_old_process_that_is_killed_leaves_its_place_to_the_new_one() {
    let (app, old, reloaded) = reload_and_kill(true);
    reloaded.unwrap();
    let new = app.pid_of("worker", 0);
    assert_ne!(new, old);
    assert_eq!(app.status().processes[0].restarts, 0, "nobody else was started");
    let proxy: ActorProxy = app.bus().proxy("second").wait_for(PATIENCE).unwrap();
    assert_eq!(proxy.pid().wait().unwrap(), new);
}

fn an_old_process_over_its_memory_limit_is_replaced_and_the_reload_ends() {
    let mut app = Running::up("served, with a limit");
    let old = app.pid_of("worker", 0);
    put(&app.directory, "wait");
    let control = app.control();
    let reload = thread::spawn(move || control.reload("worker").wait());
    app.wait_for("Reloading process `worker`");
    let first: ActorProxy = app.bus().proxy("first").call_timeout(PATIENCE).wait_for(PATIENCE).unwrap();
    // It stops once this call has ended, and is still there when the new one is up.
    let call = thread::spawn({
        let first = first.clone();
        move || first.pid_later(1_500).wait()
    });
    first.eat(300).wait().unwrap();
    app.wait_for("MiB of memory, and may have 200: stopping it");
    std::fs::remove_file(app.directory.join("wait")).unwrap();
    reload.join().unwrap().unwrap();
    assert_eq!(call.join().unwrap().unwrap(), old);
    assert_ne!(app.pid_of("worker", 0), old);
    app.control().reload("worker").wait().expect("the next one has its turn");
}
