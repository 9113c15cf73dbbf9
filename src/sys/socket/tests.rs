//! Messages, descriptors under way, and what the other side's process looks like.

use std::time::Duration;

use super::*;
use crate::sys::testing::{child_status, fork, rerun_without, wait_until};

fn devices(n: usize) -> Vec<OwnedFd> {
    (0..n).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
}

#[test]
fn a_message_and_its_descriptors_arrive_whole() {
    let (a, b) = pair().unwrap();
    let fds = devices(3);
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    send(&a, b"hello", &borrowed).unwrap();
    let mut buf = [0; 16];
    let got = recv(&b, &mut buf, 3).unwrap();
    assert_eq!((got.len, got.fds.len(), got.truncated, got.no_fds), (5, 3, false, false));
    assert_eq!(&buf[..5], b"hello");
    for fd in &got.fds {
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
    assert_eq!(recv(&b, &mut buf, 3).unwrap_err(), Errno::AGAIN);
    drop(a);
    assert_eq!(recv(&b, &mut buf, 3).unwrap().len, 0);
}

#[test]
fn what_is_truncated_says_so_and_keeps_no_descriptor() {
    let (a, b) = pair().unwrap();
    let fds = devices(2);
    send(&a, b"too long", &[]).unwrap();
    send(&a, b"x", &[fds[0].as_fd(), fds[1].as_fd()]).unwrap();
    let mut buf = [0; 4];
    let long = recv(&b, &mut buf, 0).unwrap();
    assert!(long.truncated && !long.no_fds);
    let many = recv(&b, &mut buf, 1).unwrap();
    assert!(many.truncated && many.fds.is_empty() && !many.no_fds);
}

#[test]
fn a_lack_of_descriptors_is_told_apart() {
    let child = fork(|| {
        let (a, b) = pair().unwrap();
        let fds = devices(1);
        send(&a, b"x", &[fds[0].as_fd()]).unwrap();
        let next = rustix::io::fcntl_dupfd_cloexec(&a, 0).unwrap().as_raw_fd() as u64;
        let limit = rustix::process::Rlimit { current: Some(next), maximum: Some(next) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let got = recv(&b, &mut [0; 4], 1).unwrap();
        i32::from(!(got.truncated && got.no_fds))
    });
    assert_eq!(child_status(child), 0);
}

#[test]
fn sending_never_blocks_and_never_kills() {
    let (a, b) = pair().unwrap();
    while send(&a, &[0; 1024], &[]).is_ok() {}
    assert_eq!(send(&a, &[0; 1024], &[]).unwrap_err(), Errno::AGAIN);
    drop(b);
    // Not at once: a child of another test's may hold the end for a moment.
    wait_until("the end shows", || matches!(send(&a, b"x", &[]), Err(Errno::PIPE)));
    assert_eq!(send(&a, b"x", &[a.as_fd(); MAX_FDS + 1]).unwrap_err(), Errno::INVAL);
}

#[test]
fn the_peer_is_this_process() {
    let (a, _b) = pair().unwrap();
    let credentials = peer_credentials(&a).unwrap();
    assert_eq!(credentials.pid, std::process::id());
    assert_eq!(credentials.uid, rustix::process::geteuid().as_raw());
    assert_eq!(credentials.gid, rustix::process::getegid().as_raw());
    let own: Vec<_> = rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
    assert_eq!(peer_groups(&a).unwrap(), own);
}

#[test]
fn the_death_of_who_connected_shows() {
    let path = std::env::temp_dir().join(format!("objbus-socket-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = listen_at(&path, 8).unwrap();
    let child = fork(|| {
        let _connected = connect(&path).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        0
    });
    let mut accepted = None;
    wait_until("the child connects", || {
        accepted = accept(&listener).ok();
        accepted.is_some()
    });
    let accepted = accepted.unwrap();
    assert_eq!(peer_credentials(&accepted).unwrap().pid, child as u32);
    let pidfd = peer_pidfd(&accepted).unwrap().expect("a pidfd");
    assert!(!pidfd::is_dead(&pidfd));
    rustix::process::kill_process(Pid::from_raw(child).unwrap(), rustix::process::Signal::KILL).unwrap();
    wait_until("the death shows", || pidfd::is_dead(&pidfd));
    child_status(child);
    // Reaped: either the kernel still gives a descriptor, then of a dead process, or it says that there is none.
    match peer_pidfd(&accepted) {
        Ok(Some(late)) => assert!(pidfd::is_dead(&late)),
        Ok(None) => panic!("a pidfd was to be had before"),
        Err(error) => assert_eq!(error, Errno::SRCH),
    }
    drop(listener);
    assert_eq!(connect(&path).unwrap_err(), Errno::CONNREFUSED);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(connect(&path).unwrap_err(), Errno::NOENT);
}

#[test]
fn the_death_shows_on_older_kernels_too() {
    rerun_without("peerpidfd", "sys::socket::tests::the_death_of_who_connected_shows");
}

#[test]
fn without_pidfds_there_is_none() {
    if features::disabled(Feature::PidfdOpen) {
        assert!(peer_pidfd(pair().unwrap().0).unwrap().is_none());
    } else {
        rerun_without("peerpidfd,pidfd_open", "sys::socket::tests::without_pidfds_there_is_none");
    }
}
