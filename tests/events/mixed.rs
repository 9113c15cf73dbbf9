//! Whatever happens in whatever order: what was received and what was missed is what was emitted.

use super::*;

use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Emit { count: u64 },
    Take { who: usize },
    Stop { who: usize },
    Continue { who: usize },
    Kill { who: usize },
    Drop { who: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0_usize..3;
    let step = prop_oneof![
        6 => (1_u64..5000).prop_map(|count| Step::Emit { count }),
        4 => who.clone().prop_map(|who| Step::Take { who }),
        2 => who.clone().prop_map(|who| Step::Stop { who }),
        2 => who.clone().prop_map(|who| Step::Continue { who }),
        1 => who.clone().prop_map(|who| Step::Kill { who }),
        1 => who.prop_map(|who| Step::Drop { who }),
    ];
    prop::collection::vec(step, 1..25)
}

/// One subscriber, and what became of it.
struct Actor {
    child: Child,
    is_stopped: bool,
    is_subscribed: bool,
}

impl Actor {
    fn resume(&mut self) {
        if std::mem::take(&mut self.is_stopped) {
            self.child.signal(libc::SIGCONT);
        }
    }
}

/// The subscribers keep, in their order, 1, 100 and the latest only.
fn run(steps: Vec<Step>) {
    let place = place();
    let news = News::default();
    let _published = place.bus().publish("news", news.clone()).unwrap();
    let mut actors = ["1", "100", "latest"]
        .map(|lag| Some(Actor { child: subscriber(&place, lag), is_stopped: false, is_subscribed: true }));
    let mut emitted = 0;
    let check = |who: usize, actor: &mut Actor, emitted: u64| {
        actor.resume();
        if !actor.is_subscribed || emitted == 0 {
            return;
        }
        let (received, missed) = taken(&mut actor.child, emitted - 1);
        match who {
            2 => assert!(missed == 0 && received <= emitted),
            _ => assert_eq!(received + missed, emitted, "subscriber {who}"),
        }
    };
    for step in steps {
        match step {
            Step::Emit { count } => {
                (emitted..emitted + count).for_each(|number| news.told.emit(&number).unwrap());
                emitted += count;
            }
            Step::Take { who } => {
                if let Some(actor) = &mut actors[who] {
                    check(who, actor, emitted);
                }
            }
            Step::Stop { who } => {
                if let Some(actor) = actors[who].as_mut().filter(|actor| !actor.is_stopped) {
                    actor.child.stop();
                    actor.is_stopped = true;
                }
            }
            Step::Continue { who } => {
                if let Some(actor) = &mut actors[who] {
                    actor.resume();
                }
            }
            Step::Kill { who } => {
                if let Some(mut actor) = actors[who].take() {
                    actor.child.kill();
                }
            }
            Step::Drop { who } => {
                if let Some(actor) = actors[who].as_mut().filter(|actor| actor.is_subscribed) {
                    actor.resume();
                    actor.child.tell("drop");
                    actor.child.expect("dropped");
                    actor.is_subscribed = false;
                }
            }
        }
        let there = actors.iter().flatten().filter(|actor| actor.is_subscribed).count();
        wait_until("those that are gone are not counted", || news.told.subscribers() == there);
    }
    for (who, actor) in actors.iter_mut().enumerate() {
        if let Some(actor) = actor {
            check(who, actor, emitted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn received_and_missed_make_up_what_was_emitted(steps in steps()) {
        run(steps);
    }
}
