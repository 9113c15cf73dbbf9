//! Under a service manager: who tells it that the application is ready, and whose sockets are used.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;

use crate::harness::{PATIENCE, Running, directory};

crate::tests!(
    the_guard_tells_that_it_is_ready_reloads_and_stops,
    the_watchdog_hears_of_it,
    a_socket_that_was_passed_is_served,
);

/// What is said next, and which process says it.
fn hear(socket: &UnixDatagram) -> (String, i32) {
    let (mut bytes, mut space) =
        ([0; 256], [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))]);
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut io = [std::io::IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket.as_fd(), &mut io, &mut ancillary, RecvFlags::empty()).expect("in time");
    let credentials = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid.as_raw_nonzero().get()),
        _ => None,
    });
    (String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), credentials.expect("who says it"))
}

fn manager(directory: &std::path::Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(directory.join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    set_socket_passcred(&socket, true).unwrap();
    socket
}

fn the_guard_tells_that_it_is_ready_reloads_and_stops() {
    let directory = directory();
    let socket = manager(&directory);
    let address = directory.join("notify");
    let mut app = Running::start_in("served", directory, |command| command.env("NOTIFY_SOCKET", address));
    let expect = |what: &str| {
        let (said, pid) = hear(&socket);
        assert!(said.starts_with(what), "{said}");
        assert_eq!(pid.cast_unsigned(), app.guard.id());
        said
    };
    expect("READY=1");
    app.signal(Signal::HUP);
    assert!(expect("RELOADING=1").contains("MONOTONIC_USEC="));
    expect("READY=1");
    app.signal(Signal::TERM);
    expect("STOPPING=1");
    app.ends(0);
    socket.set_nonblocking(true).unwrap();
    assert_eq!(socket.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock, "nothing else is said");
}

fn the_watchdog_hears_of_it() {
    let directory = directory();
    let socket = manager(&directory);
    let address = directory.join("notify");
    let _app = Running::start_in("served", directory, |command| {
        command.env("NOTIFY_SOCKET", address).env("WATCHDOG_USEC", "200000")
    });
    let heard: Vec<String> = (0..4).map(|_| hear(&socket).0).collect();
    assert_eq!(heard.iter().filter(|said| said.trim() == "WATCHDOG=1").count(), 3, "{heard:?}");
}

/// The socket is the service manager's, so that somebody who connects before the application is up is served in the end.
fn a_socket_that_was_passed_is_served() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let mut early = TcpStream::connect(addr).unwrap();
    // Standard input is where a test can put a descriptor: the variable says where the first one is.
    let mut app = Running::start_in("port", directory(), |command| {
        let socket: std::os::fd::OwnedFd = socket.into();
        command.stdin(Stdio::from(socket)).env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", "0");
        command.env("TEST_ECHO__ADDR", addr.to_string())
    });
    app.wait_for("Application start successful");
    let mut pid = String::new();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    early.read_to_string(&mut pid).unwrap();
    let pid: u32 = pid.trim().parse().unwrap();
    assert!([app.pid_of("worker", 0), app.pid_of("worker", 1)].contains(&pid));
}
