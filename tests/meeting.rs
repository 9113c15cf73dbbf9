//! The harness itself: two processes meet, call, and one dies.

mod support;
use support::*;

use objbus::{CallError, Executed, MethodTable, Untyped};
use std::time::Duration;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    assert_eq!(name, "owner");
    let bus = bus_at(&arguments[0]);
    let table = MethodTable::named("Math")
        .method("pow", |x: f64, y: f64| x.powf(y))
        .method("sleep", |ms: u64| std::thread::park_timeout(Duration::from_millis(ms)));
    let _published = bus.publish("math", table).expect("the name is free");
    say("ready");
    stay();
}

#[test]
fn a_call_crosses_and_a_death_is_heard() {
    let place = place();
    let mut owner = start("owner", &[place.text()]);
    owner.expect("ready");
    let math: Untyped = place.bus().proxy("math").wait().unwrap();
    for i in 0..20_000 {
        assert_eq!(math.call::<_, f64>("pow", &(2.0, 3.0)).wait(), Ok(8.0), "call {i}");
    }
    let call = math.call::<_, ()>("sleep", &(20_000_u64,));
    let waiting = std::thread::spawn(move || call.wait());
    wait_until("the call is out", || objbus::Proxy::handle(&math).in_flight() == 1);
    std::thread::yield_now();
    let at = owner.kill();
    let error = waiting.join().unwrap().unwrap_err();
    println!("{error:?} after {:?}", at.elapsed());
    assert!(
        matches!(error, CallError::OwnerDied { executed: Executed::Unknown | Executed::No }),
        "{error:?}"
    );
    assert!(at.elapsed() < Duration::from_millis(100));
    assert!(matches!(math.call::<_, f64>("pow", &(2.0, 3.0)).wait(), Err(CallError::NotFound { .. })));
}
