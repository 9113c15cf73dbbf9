//! Peers that break the protocol, written by hand from `docs/layout.md`. Each test has the number of its fault in the name.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/errand.rs"]
mod errand;

mod answers;
mod bodies;
mod callbacks;
mod caller;
mod channels;
mod descriptors;
mod handshakes;
mod leases;
mod lending;
mod memories;
mod namespaces;
mod owner;
mod quotas;
mod raw;
mod requests;
mod storm;
mod victim;

use support::{bus_at, hear, say};

#[global_allocator]
static COUNTING: victim::Counting = victim::Counting;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "victim" => victim::run(&arguments),
        "errand" => errand::run(&arguments),
        "honest" => storm::run_honest(&arguments),
        "flooded" => storm::run_flooded(&arguments),
        "sender" => quotas::run_sender(&arguments),
        "user" => handshakes::run_user(&arguments),
        "squatter" => handshakes::run_squatter(&arguments),
        "caller" => namespaces::run_caller(&arguments),
        "visitor" => leases::run_visitor(&arguments),
        other => panic!("nobody is called {other}"),
    }
}
