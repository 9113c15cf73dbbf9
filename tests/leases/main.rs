//! How long what is lent stays lent: until who holds it lets go or dies, whatever becomes of the lane meanwhile.

#[path = "../support/probe.rs"]
mod probe;
#[path = "../support/mod.rs"]
mod support;
use support::*;

mod actor;
mod desk;
mod holding;
mod kills;
mod model;
mod returning;
mod sharing;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "actor" => actor::act(&arguments),
        "desk" => desk::own(&arguments),
        "forker" => sharing::run_forker(&arguments),
        "trader" => kills::run(&arguments),
        other => panic!("no role `{other}`"),
    }
}
