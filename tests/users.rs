//! Row 20: a bus between two users. Another user can only be had by root, so without root these tests say so and pass.

mod support;
use support::system::*;
use support::*;

use std::os::unix::fs::PermissionsExt;

use objbus::{Access, Bus, CallError, ConnectError, Executed, OpenError, PublishError, Untyped};

const STRANGER: u32 = 12_345;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    // SAFETY: the library has no threads yet; glibc changes the user of all others.
    assert_eq!(unsafe { libc::setgid(STRANGER) | libc::setuid(STRANGER) }, 0);
    match name.as_str() {
        "stranger" => stranger(&arguments[0]),
        "squatter" => {
            let bus = Bus::builder().directory(&arguments[0]).admit(0).open().unwrap();
            let _published = bus.publish("math", table()).unwrap();
            say("ready");
            stay();
        }
        other => panic!("no role {other}"),
    }
}

/// Whether this test can be; says so if not.
fn can_change_user() -> bool {
    if !is_root() {
        println!("not run: only root can become another user");
    }
    is_root()
}

/// Answers each line heard with what becomes of it.
fn stranger(directory: &str) {
    let open = |owner| Bus::builder().directory(directory).owner(owner).open();
    let bus = open(0).unwrap();
    let math: Untyped = bus.proxy("math").lazy().unwrap();
    say("ready");
    loop {
        let answer = match hear().as_str() {
            "call" => format!("{:?}", pow(&math).wait()),
            "who" => format!("{:?}", math.call::<_, Option<(u32, u32)>>("caller", &()).wait()),
            "nap" => format!("{:?}", math.call::<_, ()>("nap", &(0_u64,)).wait()),
            "connect" => format!("{:?}", bus.proxy::<Untyped>("math").wait().map(drop)),
            "expect another" => {
                format!("{:?}", open(STRANGER).unwrap().proxy::<Untyped>("math").wait().map(drop))
            }
            "publish" => format!("{:?}", bus.publish("mine", table()).map(drop)),
            "replace" => format!("{:?}", bus.publication("math", table()).replace().publish().map(drop)),
            "as if private" => format!("{:?}", bus_in(directory)),
            other => panic!("no line {other}"),
        };
        say(answer);
    }
}

fn bus_in(directory: &str) -> Result<(), String> {
    match Bus::builder().directory(directory).open() {
        Err(OpenError::RuntimeDirUnsafe { .. }) => Err("unsafe".to_owned()),
        _ => Ok(()),
    }
}

/// What the stranger says to `line`.
fn asked(child: &mut Child, line: &str) -> String {
    child.tell(line);
    child.hear()
}

#[test]
fn row_20_an_admitted_stranger_calls_and_does_nothing_else() {
    if !can_change_user() {
        return;
    }
    let place = place();
    let bus = Bus::builder().directory(place.path()).admit(STRANGER).open().unwrap();
    let rules = bus.publication("math", table()).method_access("nap", Access::only().uid(0));
    let published = rules.publish().unwrap();
    let mut stranger = start("stranger", &[place.text()]);
    stranger.expect("ready");
    assert_eq!(asked(&mut stranger, "call"), "Ok(8.0)");
    let pid = stranger.pid();
    assert_eq!(asked(&mut stranger, "who"), format!("Ok(Some(({pid}, {STRANGER})))"));
    let denied = CallError::<std::convert::Infallible>::PermissionDenied { executed: Executed::No };
    assert_eq!(asked(&mut stranger, "nap"), format!("Err({denied:?})"));
    let wrong = ConnectError::WrongOwnerUid { uid: 0 };
    assert_eq!(asked(&mut stranger, "expect another"), format!("Err({wrong:?})"));
    let refused = format!("Err({:?})", PublishError::PermissionDenied);
    assert_eq!(asked(&mut stranger, "publish"), refused);
    assert_eq!(asked(&mut stranger, "replace"), refused);
    assert_eq!(asked(&mut stranger, "as if private"), "Err(\"unsafe\")");
    assert!(!published.is_withdrawn());
    assert_eq!(asked(&mut stranger, "call"), "Ok(8.0)");
    assert_eq!(place.files(), ["math"]);
}

#[test]
fn row_20_a_stranger_who_is_not_admitted_gets_no_memory() {
    if !can_change_user() {
        return;
    }
    let place = place();
    let bus = Bus::builder().directory(place.path()).admit(STRANGER + 1).open().unwrap();
    let published = bus.publish("math", table()).unwrap();
    let mut stranger = start("stranger", &[place.text()]);
    stranger.expect("ready");
    let denied = format!("Err({:?})", ConnectError::PermissionDenied);
    for _ in 0..100 {
        // More than may be in the middle of a handshake: a refusal must not count as one.
        assert_eq!(asked(&mut stranger, "connect"), denied);
    }
    assert_eq!(published.callers(), 0);
}

#[test]
fn row_20_a_squatters_object_is_not_called() {
    if !can_change_user() {
        return;
    }
    let place = place();
    std::fs::create_dir(place.path()).unwrap();
    std::os::unix::fs::chown(place.path(), Some(STRANGER), Some(STRANGER)).unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let squatter = start("squatter", &[place.text()]);
    squatter.expect("ready");
    // Our own bus does not open there, and one that expects somebody else in it does not call him.
    assert!(bus_in(place.text()).is_err());
    assert!(Bus::builder().directory(place.path()).owner(0).open().is_err());
    let theirs = Bus::builder().directory(place.path()).owner(STRANGER).open().unwrap();
    let math: Untyped = theirs.proxy("math").wait().unwrap();
    assert_eq!(pow(&math).wait(), Ok(8.0));
    // In a directory of root's, which may hold sockets of several users, each is known by who listens.
    let common = support::place();
    let ours = Bus::builder().directory(common.path()).owner(STRANGER).open().unwrap();
    std::os::unix::fs::symlink(place.path().join("math"), common.path().join("math")).unwrap();
    assert!(matches!(ours.proxy::<Untyped>("math").wait(), Err(ConnectError::NotFound { .. })));
}
