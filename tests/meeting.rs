//! The harness itself: two processes meet, call, and one dies.

mod support;
use support::system::*;
use support::*;

use objbus::{CallError, Executed, Proxy, Untyped};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    assert_eq!(name, "owner");
    own_math(&arguments[0])
}

#[test]
fn a_call_crosses_and_a_death_is_heard() {
    let place = place();
    let mut owner = math_owner(&place);
    let math: Untyped = place.bus().proxy("math").wait().unwrap();
    for i in 0..20_000 {
        assert_eq!(pow(&math).wait(), Ok(8.0), "call {i}");
    }
    let call = math.call::<_, ()>("nap", &(20_000_u64,)).timeout(PATIENCE);
    let waiting = std::thread::spawn(move || call.wait());
    wait_until("the call is out", || math.handle().in_flight() == 1);
    owner.kill();
    let error = waiting.join().unwrap().unwrap_err();
    assert!(
        matches!(error, CallError::OwnerDied { executed: Executed::Unknown | Executed::No }),
        "{error:?}"
    );
    assert!(matches!(pow(&math).wait(), Err(CallError::NotFound { .. })));
}
