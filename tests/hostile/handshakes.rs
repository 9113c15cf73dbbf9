//! Handshakes that lie, stall or come from the wrong user: faults 12, 17 and 20.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use objbus::{Bus, CallError, ConnectError, MethodTable, Untyped};
use serde::{Deserialize, Serialize};

use crate::caller::*;
use crate::owner;
use crate::raw::*;
use crate::support::*;
use crate::victim::{connected, victim, victim_for};

#[test]
fn fault_12_another_version_or_layout_is_told_before_anything_is_mapped() {
    let victim = victim();
    let (fd, _map) = memory(REQUEST_SIZE);
    let shake = |message: &[u8]| shake(&victim.path(), message, &[&fd]).map(drop);
    for version in [0, 2, u32::MAX] {
        assert_eq!(shake(&message(version, &hello(LAYOUT))), Err(Refusal::Version(1)));
        assert_eq!(shake(&message(version, b"what version 9 says")), Err(Refusal::Version(1)));
    }
    for layout in [LAYOUT ^ 1, LAYOUT ^ 2, LAYOUT + (1 << 32), 0, u64::MAX] {
        assert_eq!(shake(&message(1, &hello(layout))), Err(Refusal::Because(6)), "{layout:x}");
    }
    victim.expect_unharmed();
}

#[test]
fn fault_12_an_owner_of_another_version_or_layout_is_a_version_mismatch() {
    let cases = [(message(7, &[2, 0]), 7), (message(7, b"other"), 7), (message(1, &[2, 6]), 1)];
    for (answer, theirs) in cases {
        let place = place();
        let bus = place.bus();
        let listener = owner::listen(&place, "math");
        let connecting = std::thread::spawn(move || bus.proxy::<Untyped>("math").wait().map(drop));
        let (socket, _) = owner::accept(&listener);
        send(&socket, &answer, &[]).unwrap();
        assert_eq!(connecting.join().unwrap(), Err(ConnectError::VersionMismatch { ours: 1, theirs }));
    }
}

/// What an owner of another build cannot do is said, and is no lack of permission.
#[test]
fn fault_12_an_owner_of_another_version_cannot_hand_over() {
    let place = place();
    let bus = place.bus();
    let listener = owner::listen(&place, "math");
    let table = objbus::MethodTable::named("Math").method("one", || 1_u8);
    let publishing = std::thread::spawn(move || bus.publication("math", table).replace().publish().map(drop));
    let (socket, heard) = owner::accept_and_hear(&listener);
    assert_eq!(heard.map(|(replace, _)| replace), Some(message(1, &[3])));
    send(&socket, &message(7, &[2, 6]), &[]).unwrap();
    let sentence = publishing.join().unwrap().expect_err("nobody granted it").to_string();
    assert!(sentence.contains("version 7, this process 1"), "{sentence}");
}

#[test]
fn fault_12_garbage_in_the_handshake_ends_it() {
    let victim = victim();
    let (fd, _map) = memory(REQUEST_SIZE);
    let mut trailing = message(1, &hello(LAYOUT));
    trailing.push(0);
    let garbage: [(&str, Vec<u8>); 8] = [
        ("no magic", b"objB\x01\0\0\0\x03".to_vec()),
        ("a byte", vec![b'o']),
        ("the prefix alone", message(1, &[])),
        ("an unknown message", message(1, &[5])),
        ("a message of owners", message(1, &[4])),
        ("half a hello", message(1, &hello(LAYOUT)[..5])),
        ("a long number", message(1, &[[0].as_slice(), &[0xff; 64]].concat())),
        ("trailing bytes", trailing),
    ];
    for (what, message) in garbage {
        let answer = shake(&victim.path(), &message, &[&fd]).map(drop);
        assert_eq!(answer, Err(Refusal::Ended), "{what}");
    }
    let many: Vec<_> = (0..16).map(|_| &fd).collect();
    let answer = shake(&victim.path(), &message(1, &hello(LAYOUT)), &many).map(drop);
    assert!(answer.is_err(), "sixteen descriptors");
    victim.expect_unharmed();
}

/// The same names, built with other types.
mod newer {
    use super::*;

    #[derive(Serialize, Deserialize, objbus::Type)]
    pub struct Shape {
        pub corners: u32,
    }
}

#[test]
fn fault_12_a_method_of_another_schema_is_a_mismatch_and_the_others_work() {
    let victim = victim();
    let shape = newer::Shape { corners: 3 };
    let error = victim.honest.call::<_, ()>("shape", &(shape,)).wait().unwrap_err();
    assert!(matches!(&error, CallError::SchemaMismatch { method, .. } if method == "shape"), "{error:?}");
    assert_eq!(error.executed(), objbus::Executed::No);
    let error = victim.honest.call::<_, u64>("add", &(1_u64, 2_u64)).wait().unwrap_err();
    assert!(matches!(error, CallError::SchemaMismatch { .. }), "{error:?}");
    let error = victim.honest.call::<_, ()>("no such method", &()).wait().unwrap_err();
    assert!(matches!(error, CallError::UnknownMethod { .. }), "{error:?}");
    victim.expect_unharmed();
}

/// Half of the caller's uid is used up by connections that say nothing.
#[test]
fn fault_17_who_connects_and_stalls_is_disconnected_after_a_second_and_hinders_nobody() {
    let victim = victim();
    let stalled: Vec<OwnedFd> = (0..32).map(|_| dial(&victim.path())).collect();
    let began = Instant::now();
    let other = connected(&victim.place.bus()).expect("another connects beside them");
    assert_eq!(other.call::<_, u32>("add", &(1_u32, 2_u32)).wait(), Ok(3));
    println!("another was served after {:?}", began.elapsed());
    for socket in &stalled {
        wait_until("the stalled connection is ended", || has_ended(socket));
    }
    println!("the stalled ones were ended after {:?}", began.elapsed());
}

#[test]
fn fault_17_a_flood_of_connections_is_refused_and_ends() {
    let victim = victim();
    let before = held_by(victim.process.pid());
    let mut flood: Vec<OwnedFd> = (0..400).map(|_| dial(&victim.path())).collect();
    // Those who take the name over wait as well; they too must let go.
    for socket in &flood[..40] {
        let _ = send(socket, &message(1, &[3]), &[]);
    }
    victim.expect_unharmed();
    // One that was let in is disconnected without a word, after a second.
    let is_told = |socket: &&OwnedFd| receive(socket).is_some_and(|(answer, _)| answer[8..10] == [2, 1]);
    let told = flood[40..].iter().filter(is_told).count();
    assert!(told > 180, "only {told} of 360 were told that they are too many");
    let connect = || victim.place.bus().proxy::<Untyped>("victim").wait().is_ok();
    wait_until("others connect again, though the flood stays", connect);
    flood.truncate(40);
    wait_until("who asked for the name and did nothing is let go of", || flood.iter().all(has_ended));
    drop(flood);
    wait_until("nothing is left of it", || held_by(victim.process.pid()).fds <= before.fds);
    victim.expect_unharmed();
}

fn is_root() -> bool {
    // SAFETY: the call touches nothing.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("SKIPPED: only root can become another user");
    }
    root
}

const STRANGER: u32 = 4242;
const FRIEND: u32 = 4243;

fn become_user(uid: u32) {
    // SAFETY: the call touches nothing.
    assert_eq!(unsafe { libc::setuid(uid) }, 0);
}

/// Calls the victim as another user. Arguments: the directory, the uid.
pub fn run_user(arguments: &[String]) {
    become_user(arguments[1].parse().unwrap());
    let path = Path::new(&arguments[0]);
    let raw = Caller::try_connect(&path.join("victim")).map(drop);
    let bus = Bus::builder().directory(path).owner(0).open().expect("the directory is shared");
    let answer = connected(&bus);
    say(match answer {
        Ok(victim) => format!("{:?}", victim.call::<_, u32>("add", &(1_u32, 2_u32)).wait()),
        Err(error) => format!("{error:?} {raw:?}"),
    });
    stay();
}

/// Lets another user answer under a name in root's directory. Arguments: the directory.
pub fn run_squatter(arguments: &[String]) {
    let listener = owner::bind(&Path::new(&arguments[0]).join("squatted"));
    become_user(STRANGER);
    rustix::net::listen(&listener, 8).unwrap();
    say("ready");
    loop {
        let (_, heard) = owner::accept_and_hear(&listener);
        say(if heard.is_none() { "silence" } else { "it spoke" });
    }
}

#[test]
fn fault_20_a_caller_of_another_user_is_refused_unless_admitted() {
    if !is_root() {
        return;
    }
    let victim = victim_for(&[&FRIEND.to_string()]);
    let answer = |uid: u32| start("user", &[victim.place.text(), &uid.to_string()]).hear();
    assert_eq!(answer(STRANGER), "PermissionDenied Err(Because(0))");
    assert_eq!(answer(FRIEND), "Ok(3)");
    assert_eq!(answer(65534), "PermissionDenied Err(Because(0))");
    victim.expect_unharmed();
}

#[test]
fn fault_20_nothing_is_sent_to_an_owner_of_another_user() {
    if !is_root() {
        return;
    }
    let place = place();
    let bus = Bus::builder().directory(place.path()).owner(0).open().unwrap();
    let squatter = start("squatter", &[place.text()]);
    squatter.expect("ready");
    let answer = bus.proxy::<Untyped>("squatted").wait().map(drop);
    assert_eq!(answer, Err(ConnectError::WrongOwnerUid { uid: STRANGER }));
    squatter.expect("silence");
    let publish = || bus.publish("other", MethodTable::named("Other").method("one", || 1_u8));
    assert!(publish().is_ok(), "other names in the directory work");
}
