//! Any sequence of what three processes can do with blobs, against a model of who holds what: after each step every byte of
//! every blob is what it was made as, and in the end all memory is back.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use crate::actor::*;
use crate::probe::Random;
use crate::support::*;

const MEMORY: u64 = 4 << 20;
const PROCESSES: usize = 3;
const SEQUENCES: u32 = 10;
/// More blobs than this are not held at once.
const HELD_MAX: usize = 40;

/// One step. A process or a blob is chosen by a number, modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    Make {
        by: usize,
        len: usize,
    },
    Give {
        by: usize,
        to: usize,
        blob: usize,
    },
    Take {
        by: usize,
        from: usize,
        blob: usize,
    },
    Slice {
        by: usize,
        blob: usize,
        start: usize,
        len: usize,
    },
    Drop {
        by: usize,
        blob: usize,
    },
    /// Takes all memory there is, and lets go of it again.
    Fill {
        by: usize,
    },
    Disconnect {
        by: usize,
        from: usize,
    },
    /// Withdraws its shelf, and publishes it anew.
    Republish {
        by: usize,
    },
    Kill {
        which: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (p, b) = (|| 0..PROCESSES, || 0..HELD_MAX);
    let len = prop_oneof![0..300_usize, 300..9_000_usize, 9_000..80_000_usize];
    prop_oneof![
        4 => (p(), len).prop_map(|(by, len)| Step::Make { by, len }),
        5 => (p(), p(), b()).prop_map(|(by, to, blob)| Step::Give { by, to, blob }),
        5 => (p(), p(), b()).prop_map(|(by, from, blob)| Step::Take { by, from, blob }),
        2 => (p(), b(), 0..80_000_usize, 0..80_000_usize)
            .prop_map(|(by, blob, start, len)| Step::Slice { by, blob, start, len }),
        5 => (p(), b()).prop_map(|(by, blob)| Step::Drop { by, blob }),
        2 => p().prop_map(|by| Step::Fill { by }),
        1 => (p(), p()).prop_map(|(by, from)| Step::Disconnect { by, from }),
        1 => p().prop_map(|by| Step::Republish { by }),
        1 => p().prop_map(|which| Step::Kill { which }),
    ]
}

/// What a blob should be: so many bytes of a pattern, from somewhere on.
#[derive(Clone, Copy, Debug)]
struct Piece {
    seed: u8,
    start: usize,
    len: usize,
}

/// The processes, and what each should hold.
struct World {
    place: Place,
    actors: Vec<Actor>,
    held: Vec<BTreeMap<u64, Piece>>,
    last: u64,
}

impl World {
    fn new() -> World {
        let place = place();
        let mut world = World { place, actors: vec![], held: vec![BTreeMap::new(); PROCESSES], last: 0 };
        for which in 0..PROCESSES {
            let actor = world.start(which);
            world.actors.push(actor);
        }
        world
    }

    fn start(&self, which: usize) -> Actor {
        let mut actor = actor(&self.place, MEMORY);
        actor.order(&format!("publish {which}"));
        actor
    }

    fn id(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The blob that a number stands for, if the process holds any.
    fn choose(&self, by: usize, blob: usize) -> Option<(u64, Piece)> {
        let held = &self.held[by];
        held.iter().nth(blob.checked_rem(held.len())?).map(|(id, piece)| (*id, *piece))
    }

    /// Has a process do what makes it, or another, hold `piece` under a new number, if there is memory.
    fn order(
        &mut self,
        by: usize,
        command: &str,
        holder: usize,
        id: u64,
        piece: Piece,
    ) -> Result<(), String> {
        match self.actors[by].ask(command).as_str() {
            "ok" => _ = self.held[holder].insert(id, piece),
            "no memory" => {}
            other => return Err(format!("process {by} was told `{command}` and said {other}")),
        }
        Ok(())
    }

    fn run(&mut self, step: &Step) -> Result<(), String> {
        let id = self.id();
        match *step {
            Step::Make { by, len } if self.held[by].len() < HELD_MAX => {
                let seed = id as u8;
                self.order(by, &format!("make {id} {seed} {len}"), by, id, Piece { seed, start: 0, len })
            }
            Step::Give { by, to, blob } if self.held[to].len() < HELD_MAX => match self.choose(by, blob) {
                Some((given, piece)) => self.order(by, &format!("give {to} {given} {id}"), to, id, piece),
                None => Ok(()),
            },
            Step::Take { by, from, blob } if self.held[by].len() < HELD_MAX => {
                match self.choose(from, blob) {
                    Some((taken, piece)) => {
                        self.order(by, &format!("take {from} {taken} {id}"), by, id, piece)
                    }
                    None => Ok(()),
                }
            }
            Step::Slice { by, blob, start, len } if self.held[by].len() < HELD_MAX => {
                let Some((of, piece)) = self.choose(by, blob) else { return Ok(()) };
                let start = start.min(piece.len);
                let end = (start + len).min(piece.len);
                let part = Piece { start: piece.start + start, len: end - start, ..piece };
                self.order(by, &format!("slice {of} {id} {start} {end}"), by, id, part)
            }
            Step::Drop { by, blob } => {
                if let Some((dropped, _)) = self.choose(by, blob) {
                    self.held[by].remove(&dropped);
                    self.actors[by].order(&format!("drop {dropped}"));
                }
                Ok(())
            }
            Step::Fill { by } => {
                self.actors[by].order("fill");
                let checked = self.check();
                self.actors[by].order("empty");
                checked
            }
            Step::Disconnect { by, from } => {
                self.actors[by].order(&format!("disconnect {from}"));
                Ok(())
            }
            Step::Republish { by } => {
                self.actors[by].order("unpublish");
                self.actors[by].order(&format!("publish {by}"));
                self.disconnect_all(by);
                Ok(())
            }
            Step::Kill { which } => {
                self.actors[which].0.kill();
                self.actors[which] = self.start(which);
                self.held[which].clear();
                self.disconnect_all(which);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Has all give up their proxies of a process' shelf, which is another now.
    fn disconnect_all(&mut self, from: usize) {
        self.actors.iter_mut().for_each(|actor| actor.order(&format!("disconnect {from}")));
    }

    /// Compares every byte of every blob, in all processes at once.
    fn check(&mut self) -> Result<(), String> {
        for (actor, held) in self.actors.iter_mut().zip(&self.held) {
            for (id, Piece { seed, start, len }) in held {
                actor.0.tell(&format!("check {id} {seed} {start} {len}"));
            }
        }
        let mut wrong = Vec::new();
        for (which, (actor, held)) in self.actors.iter().zip(&self.held).enumerate() {
            for (id, piece) in held {
                let said = actor.0.hear();
                if said != "ok" {
                    wrong.push(format!("blob {id} of process {which}, {piece:?}: {said}"));
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// Lets go of everything, and sees it come back.
    fn end(mut self) {
        for (actor, held) in self.actors.iter_mut().zip(&self.held) {
            held.keys().for_each(|id| actor.order(&format!("drop {id}")));
        }
        self.actors.iter_mut().for_each(|actor| actor.wait_for_memory("all is dropped"));
        self.actors.iter_mut().for_each(|actor| actor.order("drop bus"));
        for actor in &self.actors {
            wait_until("nothing is mapped any more", || held_by(actor.0.pid()).mappings == 0);
        }
    }
}

#[test]
fn any_sequence_keeps_every_byte_and_gives_all_memory_back() {
    let seed = Random::new().seed;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config =
        Config { cases: SEQUENCES, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let steps = prop::collection::vec(step(), 20..90);
    let outcome = TestRunner::new_with_rng(config, rng).run(&steps, |steps| {
        let mut world = World::new();
        for (at, step) in steps.iter().enumerate() {
            let done = world.run(step).and_then(|()| world.check());
            done.map_err(|wrong| TestCaseError::fail(format!("step {at}, {step:?}: {wrong}")))?;
        }
        world.end();
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => panic!("seed {seed}: {why}\nof {steps:#?}"),
        Err(other) => panic!("seed {seed}: {other}"),
    }
}
