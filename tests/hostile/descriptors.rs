//! Descriptors whose last close blocks, where a memory is expected: fault 35. A file of a hostile file server is one; these
//! are TCP connections that linger, which need no right to be made.

use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use objbus::{MethodTable, Untyped};

use crate::caller::*;
use crate::owner;
use crate::raw::*;
use crate::support::*;
use crate::victim::victim;

/// A descriptor whose last close takes an hour, unless the other end is closed before.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    loop {
        match ours.write(&[0; 1 << 16]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("filling a connection: {error}"),
        }
    }
    let linger = libc::linger { l_onoff: 1, l_linger: 3600 };
    let len = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the option is a `linger`, which outlives the call.
    let set = unsafe {
        let value = (&raw const linger).cast();
        libc::setsockopt(ours.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, len)
    };
    assert_eq!(set, 0);
    (ours.into(), theirs)
}

/// Sends `message` with `fds`, which are the receiver's alone after it: it stands still until they are closed here, since a
/// quicker one would leave the last close, and its hour, to us.
fn part_with(receiver: &Child, socket: &OwnedFd, message: &[u8], fds: Vec<OwnedFd>) {
    receiver.stop();
    let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    send(socket, message, &borrowed).unwrap();
    drop(fds);
    receiver.signal(libc::SIGCONT);
}

#[test]
fn fault_35_descriptors_that_block_who_closes_them_hold_up_nobody_else() {
    let victim = victim();
    let (fds, _other_ends): (Vec<_>, Vec<_>) = (0..8).map(|_| lingering()).unzip();
    let mut fds = fds.into_iter();
    let mut next = |count: usize| -> Vec<_> { fds.by_ref().take(count).collect() };
    // In a handshake: in the place of the memory, too many of them, and with a message that takes none.
    for (body, count) in [(hello(LAYOUT), 1), (hello(LAYOUT), 3), (vec![3], 1)] {
        part_with(&victim.process, &dial(&victim.path()), &message(1, &body), next(count));
    }
    // On a lane: in the place of a segment, beyond every limit, and with a message that takes none.
    let announcement = |len: u64| [&[2][..], &1_u32.to_le_bytes(), &len.to_le_bytes()].concat();
    for message in [announcement(4096), announcement(u64::MAX), vec![1]] {
        let caller = Caller::connect(&victim.path());
        part_with(&victim.process, &caller.socket, &message, next(1));
        caller.expect_broken("a descriptor that is no memory");
    }
    victim.expect_unharmed();
}

/// Its own caller can be hung by an owner's doorbell, but not what serves everybody in that process.
#[test]
fn fault_35_a_doorbell_made_to_block_does_not_stop_the_callers_process() {
    let place = place();
    let bus = place.bus();
    let _own = bus.publish("own", MethodTable::named("Own").method("one", || 1_u8)).unwrap();
    let listener = owner::listen(&place, "math");
    let proxies = bus.clone();
    let connecting = std::thread::spawn(move || proxies.proxy::<Untyped>("math").wait());
    let owner = owner::Owner::meet(&listener);
    let math = connecting.join().unwrap().expect("the welcome was honest");
    rustix::fs::fcntl_setfl(&owner.bell, rustix::fs::OFlags::empty()).unwrap();
    rustix::io::write(&owner.bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    // As if somebody looked at the lane: nothing is rung until the call has been hidden for a while.
    owner.response.word(0).store(1, Ordering::Relaxed);
    let call = math.call::<_, u32>("add", &(1_u32, 2_u32)).started();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(200) {
        drop(Caller::connect(&place.path().join("own")));
    }
    // Emptied, it can be rung again.
    rustix::io::read(&owner.bell, &mut [0_u8; 8]).unwrap();
    drop(call);
}

/// The other end of what wakes a caller's tasks: fault 35. What is no Unix stream socket is refused; one that is cannot block its
/// owner, full or with something in it whose close takes an hour.
#[test]
fn fault_35_a_socket_to_be_woken_by_blocks_nobody() {
    const NOTIFY: u8 = 11;
    const BY_NOTIFY: u32 = 1 << 31;
    let victim = victim();
    let (tcp, _other_end) = lingering();
    let (pipe, _reader) = {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (writer, reader)
    };
    let datagrams = std::os::unix::net::UnixDatagram::pair().unwrap();
    for fd in [tcp, pipe, OwnedFd::from(datagrams.0)] {
        let caller = Caller::connect(&victim.path());
        part_with(&victim.process, &caller.socket, &[NOTIFY], vec![fd]);
        caller.expect_broken("no Unix stream socket");
    }
    for _ in 0..3 {
        let mut caller = Caller::connect(&victim.path());
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        // Something to be closed with it, and no room.
        let (tcp, _other_end) = lingering();
        let within = theirs.try_clone().unwrap();
        send(OwnedFd::from(ours.try_clone().unwrap()), &[1], &[tcp.as_fd()]).unwrap();
        within.set_nonblocking(true).unwrap();
        while (&within).write(&[0; 4096]).is_ok() {}
        drop((within, tcp));
        part_with(&victim.process, &caller.socket, &[NOTIFY], vec![theirs.into()]);
        // Woken by it all the same, many times.
        for arm in 2..100 {
            caller.request.word(0).store(BY_NOTIFY | arm, Ordering::Relaxed);
            let request = caller.request("add", 0, &varints(&[1, 2]));
            assert_eq!(caller.call(&request).number(), 3);
        }
        // A second one is one too many.
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        part_with(&victim.process, &caller.socket, &[NOTIFY], vec![theirs.into()]);
        caller.expect_broken("a second socket");
    }
    victim.expect_unharmed();
}
