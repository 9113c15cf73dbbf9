//! Blobs that several processes read at once, that are passed on, and that a fork finds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use objbus::Blob;

use crate::actor::*;
use crate::probe::Random;
use crate::support::system::{exit_code, fork};
use crate::support::*;

const MEMORY: u64 = 8 << 20;
const LEN: usize = 300_000;

#[test]
fn three_processes_read_a_blob_at_once_and_drop_it_in_any_order() {
    let mut random = Random::new();
    let place = place();
    let mut actors = [actor(&place, MEMORY), actor(&place, MEMORY), actor(&place, MEMORY)];
    actors[0].order("publish shelf");
    for round in 0..12 {
        let when = format!("round {round}, seed {}", random.seed);
        actors[0].order(&format!("make 1 {round} {LEN}"));
        actors[1].order("take shelf 1 1");
        actors[2].order("take shelf 1 1");
        let mut holders = vec![0, 1, 2];
        while !holders.is_empty() {
            // All of them at once; the owner, if it reads no more, makes others meanwhile.
            if !holders.contains(&0) {
                actors[0].order("fill");
            }
            for _ in 0..3 {
                let check = format!("check 1 {round} 0 {LEN}");
                holders.iter().for_each(|holder| actors[*holder].0.tell(&check));
                for holder in &holders {
                    assert_eq!(actors[*holder].0.hear(), "ok", "process {holder} of {holders:?}, {when}");
                }
            }
            actors[0].order("empty");
            let out = holders.remove(random.below(holders.len() as u64) as usize);
            actors[out].order("drop 1");
        }
        actors[0].wait_for_memory(&when);
    }
}

#[test]
fn a_blob_that_is_passed_on_is_a_copy_and_counted() {
    let place = place();
    let mut actors = [actor(&place, MEMORY), actor(&place, MEMORY), actor(&place, MEMORY)];
    actors[1].order("publish second");
    actors[2].order("publish third");
    for round in 1..=5_u64 {
        let [first, second, third] = &mut actors;
        first.order(&format!("make 1 {round} {LEN}"));
        first.order("give second 1 1");
        first.order("drop 1");
        second.order("slice 1 2 1000 200000");
        second.order("give third 1 1");
        second.order("give third 2 2");
        assert_eq!(second.number("copied"), 2 * round);
        second.order("drop 1");
        second.order("drop 2");
        first.wait_for_memory("who made it has it back, though the third holds it");
        for other in [&mut *first, &mut *second] {
            other.order("fill");
            assert_eq!(third.ask(&format!("check 1 {round} 0 {LEN}")), "ok");
            assert_eq!(third.ask(&format!("check 2 {round} 1000 199000")), "ok");
            other.order("empty");
        }
        assert!(second.ask("memory").ends_with(" 2"), "the copies are lent");
        third.order("drop 1");
        third.order("drop 2");
        second.wait_for_memory("the copies are back");
        assert_eq!(first.number("copied"), 0);
    }
}

#[test]
fn a_blob_passed_back_is_read_by_who_made_it() {
    let place = place();
    let (mut maker, mut other) = (actor(&place, MEMORY), actor(&place, MEMORY));
    maker.order("publish shelf");
    maker.order(&format!("make 1 9 {LEN}"));
    other.order("take shelf 1 1");
    other.order("give shelf 1 2");
    other.order("drop 1");
    maker.order("drop 1");
    assert_eq!(maker.ask(&format!("check 2 9 0 {LEN}")), "ok");
    maker.order("drop 2");
    maker.wait_for_memory("all is back");
    other.wait_for_memory("all is back");
}

/// What a panic says, if `f` panics.
fn complaint<R>(f: impl FnOnce() -> R) -> Option<String> {
    let payload = catch_unwind(AssertUnwindSafe(f)).err()?;
    payload
        .downcast::<String>()
        .map(|text| *text)
        .or_else(|other| other.downcast::<&str>().map(|t| (*t).to_owned()))
        .ok()
}

/// Holds blobs of its own and of others, and forks.
pub fn run_forker(arguments: &[String]) {
    let bus = bus_at(&arguments[0]);
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    let lent = shelf.kept(1).wait().unwrap().expect("it is there");
    let own = pattern(&bus, 7, LEN).unwrap();
    shelf.keep(2, own.clone()).wait().unwrap();
    let part = lent.slice(100..200);
    let mut filling = bus.alloc(LEN).unwrap();
    let held = std::cell::Cell::new(Some((lent.clone(), part.clone(), own.clone())));
    let tells = |f: &dyn Fn() -> u8| complaint(f).is_some_and(|text| text.contains("fork"));
    let child = || {
        let failed = [
            ("read what was lent", tells(&|| lent[0])),
            ("read a part of it", tells(&|| part[0])),
            ("read our own", tells(&|| own[0])),
            ("a slice's clone", tells(&|| part.slice(1..2).clone()[0])),
            ("drop", held.take().is_some()),
            ("send", shelf.keep(3, lent.clone()).wait().is_err()),
            ("alloc", bus.alloc(10).is_err()),
            ("memory", bus.memory() == objbus::Memory::default()),
            ("the heap's", Blob::from("heap")[0] == b'h'),
        ];
        let failed: Vec<_> = failed.iter().filter(|(_, ok)| !ok).map(|(what, _)| *what).collect();
        failed.iter().for_each(|what| say(format!("in the child: {what}")));
        failed.len() as i32
    };
    let codes: Vec<_> = (0..3).map(|_| exit_code(fork(child))).collect();
    say(format!("children {codes:?}"));
    filling.fill(1);
    hear();
    assert_eq!(difference(&lent, 5, 0, LEN), None);
    assert_eq!(difference(&own, 7, 0, LEN), None);
    assert_eq!(difference(&part, 5, 100, 100), None);
    say("the parent reads on");
    drop((lent, own, part, held.take(), filling));
    hear();
    assert_eq!(bus.memory().in_use(), 0, "all of our own is back");
    say("all is back");
    stay();
}

#[test]
fn row_25_a_fork_leaves_held_blobs_to_the_parent() {
    let place = place();
    let mut owner = actor(&place, MEMORY);
    owner.order("publish shelf");
    owner.order(&format!("make 1 5 {LEN}"));
    let mut forker = start("forker", &[place.text()]);
    forker.expect("children [0, 0, 0]");
    owner.order("drop 1");
    owner.order("fill");
    assert_eq!(owner.ask(&format!("check 2 7 0 {LEN}")), "ok");
    forker.tell("read");
    forker.expect("the parent reads on");
    owner.order("empty");
    owner.order("drop 2");
    owner.wait_for_memory("the parent has let go");
    forker.tell("count");
    forker.expect("all is back");
    assert!(forker.finish().success());
}
