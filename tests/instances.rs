//! Several processes that share a name: whom calls go to, and what becomes of them when instances come, go, stand still or die.

#[path = "support/probe.rs"]
mod probe;
mod support;
use probe::*;
use support::system::*;
use support::*;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use objbus::{
    Absent, Balance, Bus, CallError, ConnectError, Executed, Instance, Proxy, PublishError, Untyped,
};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        "blind" => blind(&arguments[0]),
        other => panic!("no role {other}"),
    }
}

/// Calls instances where nothing tells who comes and goes.
fn blind(directory: &str) {
    let bus = bus_at(directory);
    let probe = connecting(&bus).absent(Absent::Wait).lazy().unwrap();
    say("waits");
    say(probe.process().wait().unwrap().to_string());
    wait_for_instances(&probe, 2);
    say("met both");
    let only = connecting(&bus).tag("late").absent(Absent::Wait).lazy().unwrap();
    say("waits");
    say(block_on(only.process()).unwrap().to_string());
    // Without asking who is there: by calling, again and again.
    wait_until("calls go to all three", || spread(&probe, 30).len() == 3);
    say("called all");
}

/// How many of `calls` calls each process got.
fn spread(probe: &ProbeProxy, calls: usize) -> BTreeMap<u32, usize> {
    let mut got = BTreeMap::new();
    (0..calls).for_each(|_| *got.entry(probe.process().wait().unwrap()).or_default() += 1);
    got
}

#[test]
fn calls_are_spread_as_the_proxy_asks() {
    let place = place();
    let owners: [_; 3] = instances(&place);
    let bus = place.bus();
    for balance in [Balance::LeastInFlight, Balance::RoundRobin] {
        let probe = connecting(&bus).balance(balance).wait().unwrap();
        wait_for_instances(&probe, 3);
        let expected: BTreeMap<_, _> = owners.iter().map(|owner| (owner.pid(), 20)).collect();
        assert_eq!(spread(&probe, 60), expected, "{balance:?}");
    }
    let sticky = connecting(&bus).balance(Balance::Sticky).wait().unwrap();
    assert_eq!(spread(&sticky, 60).len(), 1);
    let other = sticky.clone();
    assert_eq!(spread(&other, 10).keys().collect::<Vec<_>>(), spread(&sticky, 10).keys().collect::<Vec<_>>());
    let pids: Vec<_> = owners.iter().map(Child::pid).collect();
    assert!(sticky.handle().owner_pid().is_some_and(|pid| pids.contains(&pid)));
    assert_eq!(bus.names().len(), 1, "a name is listed once");
    assert_eq!(place.files().len(), 3);
}

#[test]
fn one_that_is_stuck_gets_no_further_call() {
    let place = place();
    let mut owners: [_; 2] = instances(&place);
    let probe = connecting(&place.bus()).wait().unwrap();
    wait_for_instances(&probe, 2);
    let stuck = probe.held(1).started();
    let position = usize::from(owners[1].hear_within(Duration::from_millis(500)).is_some());
    if position == 0 {
        owners[0].expect("began 1");
    }
    let free = owners[1 - position].pid();
    assert_eq!(spread(&probe, 50), BTreeMap::from([(free, 50)]));
    owners[position].tell("open");
    assert_eq!(stuck.wait(), Ok(1));
    assert_eq!(spread(&probe, 50).len(), 2);
}

#[test]
fn tags_and_process_ids_select() {
    let place = place();
    let (eu, us, more_us) = (instance(&place, "eu"), instance(&place, "us"), instance(&place, "us"));
    let bus = place.bus();
    let in_us = connecting(&bus).tag("us").wait().unwrap();
    wait_for_instances(&in_us, 2);
    assert_eq!(spread(&in_us, 20), BTreeMap::from([(us.pid(), 10), (more_us.pid(), 10)]));
    let only = connecting(&bus).pid(more_us.pid()).wait().unwrap();
    assert_eq!(spread(&only, 20), BTreeMap::from([(more_us.pid(), 20)]));
    let async_only = block_on(connecting(&bus).pid(eu.pid())).unwrap();
    assert_eq!(block_on(async_only.process()), Ok(eu.pid()));
    for nobody in
        [connecting(&bus).tag("asia"), connecting(&bus).pid(1), connecting(&bus).tag("eu").pid(us.pid())]
    {
        assert!(matches!(nobody.wait(), Err(ConnectError::NotFound { .. })));
    }
    let asia = connecting(&bus).tag("asia").lazy().unwrap();
    let refused = asia.process().wait().unwrap_err();
    assert_eq!(refused, CallError::NotFound { name: "probe@asia".to_owned(), executed: Executed::No });
    assert_eq!(block_on(asia.process()), Err(refused));
    let mut met: Vec<_> = connecting(&bus)
        .wait()
        .unwrap()
        .instances()
        .wait()
        .iter()
        .map(|instance| {
            assert_eq!(instance.proxy().process().wait(), Ok(instance.pid()));
            // SAFETY: it reads a number of this process's.
            assert_eq!(instance.uid(), unsafe { libc::geteuid() });
            (instance.pid(), instance.tag().unwrap().to_owned())
        })
        .collect();
    met.sort();
    let mut expected =
        [(eu.pid(), "eu".to_owned()), (us.pid(), "us".to_owned()), (more_us.pid(), "us".to_owned())];
    expected.sort();
    assert_eq!(met, expected);
}

#[test]
fn a_name_is_one_owners_or_the_instances() {
    let place = place();
    let bus = place.bus();
    let mut first = instance(&place, "");
    let alone = || bus.publish("probe", table());
    let shared = |tag: &str| bus.publish_as("probe", table(), Instance::new().tag(tag));
    let refused = alone().unwrap_err();
    assert_eq!(refused, PublishError::PublishedAsInstances { pid: first.pid() });
    assert!(refused.to_string().contains("publish_as()"), "{refused}");
    first.kill();
    let published = alone().expect("dead instances hold no name");
    assert_eq!(shared("a").unwrap_err(), PublishError::AlreadyPublished { pid: std::process::id() });
    drop(published);
    let _published = shared("a").unwrap();
    assert!(matches!(shared("a@b"), Err(PublishError::NameInvalid { .. })));
    assert!(matches!(shared(""), Err(PublishError::NameInvalid { .. })));
    let _same_tag = shared("a").unwrap();
    assert_eq!(place.files().len(), 2, "{:?}", place.files());
}

#[test]
fn sockets_of_the_dead_are_removed_by_who_publishes_next() {
    let place = place();
    let mut owners: [_; 4] = instances(&place);
    for owner in &mut owners {
        owner.kill();
    }
    assert_eq!(place.files().len(), 4, "a killed process removes nothing");
    let bus = place.bus();
    assert!(matches!(connecting(&bus).wait(), Err(ConnectError::NotFound { .. })));
    let mut alive = instance(&place, "");
    assert_eq!(place.files().len(), 1);
    assert_eq!(bus.names(), [("probe".to_owned(), alive.pid())]);
    alive.tell("withdraw");
    wait_until("one that is withdrawn leaves none", || place.files().is_empty());
}

/// The best and the median of some rounds.
fn span_of(rounds: usize, mut round: impl FnMut() -> Duration) -> (Duration, Duration) {
    let mut spans: Vec<_> = (0..rounds).map(|_| round()).collect();
    spans.sort();
    (spans[0], spans[rounds / 2])
}

#[test]
fn who_joins_or_leaves_is_seen_within_5_ms() {
    let place = place();
    let _stays = instance(&place, "");
    let bus = place.bus();
    let probe = connecting(&bus).wait().unwrap();
    // Who joins is met without anybody asking: a call that waits for that very instance is answered.
    let joined = span_of(10, || {
        let waits = connecting(&bus).tag("new").absent(Absent::Wait).lazy().unwrap();
        let waiting = std::thread::spawn(move || (waits.process().wait(), Instant::now()));
        let publisher = place.bus();
        let published = Instant::now();
        let _new = publisher.publish_as("probe", Probe::default(), Instance::new().tag("new")).unwrap();
        let (answered, at) = waiting.join().unwrap();
        assert_eq!(answered, Ok(std::process::id()));
        at.saturating_duration_since(published)
    });
    // Who dies is not called any more.
    let left = span_of(10, || {
        let mut leaves = instance(&place, "");
        wait_for_instances(&probe, 2);
        let at = leaves.kill();
        wait_for_instances(&probe, 1);
        at.elapsed()
    });
    println!(
        "joining: best {:?}, median {:?}; leaving: best {:?}, median {:?}",
        joined.0, joined.1, left.0, left.1
    );
    // The best of some rounds, on a machine that others load.
    assert!(joined.0 < Duration::from_millis(5) && left.0 < Duration::from_millis(5));
}

#[test]
fn call_all_asks_every_instance_at_once() {
    let place = place();
    let mut owners = [instance(&place, "a"), instance(&place, "b"), instance(&place, "c")];
    let probe = connecting(&place.bus()).wait().unwrap();
    let answers = probe.call_all(ProbeProxy::process).wait();
    assert_eq!(answers.len(), 3);
    for (instance, answer) in &answers {
        assert_eq!(answer.as_ref(), Ok(&instance.pid()));
    }
    // None answers before the gates are opened, so all must have been sent.
    let asked = probe.clone();
    let calling = std::thread::spawn(move || {
        let awaited = asked.clone();
        let waiting = std::thread::spawn(move || block_on(awaited.call_all(|one| one.held_async(2))));
        (asked.call_all(|one| one.held(1)).wait(), waiting.join().unwrap())
    });
    for owner in &owners {
        let mut began = [owner.hear(), owner.hear()];
        began.sort();
        assert_eq!(began, ["began 1", "began 2"]);
    }
    owners[1].kill();
    owners[0].tell("open");
    owners[2].tell("open");
    let (blocking, awaited) = calling.join().unwrap();
    for (answers, id) in [(blocking, 1), (awaited, 2)] {
        assert_eq!(answers.len(), 3);
        for (instance, answer) in answers {
            match instance.tag() {
                Some("b") => assert!(matches!(answer, Err(CallError::OwnerDied { .. })), "{answer:?}"),
                _ => assert_eq!(answer, Ok(id)),
            }
        }
    }
    let rest = block_on(probe.call_all(ProbeProxy::process));
    assert_eq!(rest.len(), 2, "the dead one is not asked any more");
}

#[test]
fn a_proxy_bound_to_an_instance_calls_no_other() {
    let place = place();
    let (mut first, _second) = (instance(&place, "first"), instance(&place, "second"));
    let probe = connecting(&place.bus()).wait().unwrap();
    wait_for_instances(&probe, 2);
    let bound =
        probe.instances().wait().into_iter().find(|instance| instance.tag() == Some("first")).unwrap();
    assert_eq!(spread(bound.proxy(), 10), BTreeMap::from([(first.pid(), 10)]));
    first.kill();
    wait_for_instances(&probe, 1);
    assert!(matches!(
        bound.proxy().process().wait(),
        Err(CallError::NotFound { executed: Executed::No, .. })
    ));
    assert!(matches!(
        block_on(bound.proxy().process()),
        Err(CallError::NotFound { executed: Executed::No, .. })
    ));
}

#[test]
fn a_stopped_instance_holds_nobody_up() {
    let place = place();
    let [stopped, lives] = instances(&place);
    stopped.stop();
    // It accepts, but answers no handshake.
    let bus = place.bus();
    let probe = connecting(&bus).wait().unwrap();
    assert_eq!(spread(&probe, 50), BTreeMap::from([(lives.pid(), 50)]));
    let awaited = block_on(connecting(&place.bus())).unwrap();
    assert_eq!(block_on(awaited.process()), Ok(lives.pid()));
    stopped.signal(libc::SIGCONT);
    wait_for_instances(&probe, 2);
    assert_eq!(spread(&probe, 50).len(), 2);
    // And when it stops in the middle, a call waits for it, and the others go elsewhere.
    let bound = connecting(&bus).pid(stopped.pid()).wait().unwrap();
    stopped.stop();
    let waits = bound.process().started();
    assert_eq!(spread(&probe, 50), BTreeMap::from([(lives.pid(), 50)]));
    stopped.signal(libc::SIGCONT);
    assert_eq!(waits.wait(), Ok(stopped.pid()));
}

#[test]
fn where_all_instances_are_full_calls_wait_for_any() {
    let place = place();
    let mut owners: [_; 2] = instances(&place);
    let probe = connecting(&place.bus()).wait().unwrap();
    wait_for_instances(&probe, 2);
    // On threads, since a call keeps its slot until somebody has looked for its answer.
    let hold = |id| {
        let probe = probe.clone();
        std::thread::spawn(move || probe.held_quietly(id).wait())
    };
    let held: Vec<_> = (0..128).map(hold).collect();
    wait_until("all slots are taken", || probe.handle().in_flight() == 128);
    let refused = probe.process().try_wait();
    assert_eq!(refused, Err(CallError::Overloaded { executed: Executed::No }));
    let late = probe.process().timeout(Duration::from_millis(50));
    assert_eq!(late.wait(), Err(CallError::DeadlineExceeded { executed: Executed::No }));
    let waiting: Vec<_> = (0..8)
        .map(|n| {
            let probe = probe.clone();
            std::thread::spawn(
                move || if n % 2 == 0 { probe.process().wait() } else { block_on(probe.process()) },
            )
        })
        .collect();
    let [first, second] = &mut owners;
    first.tell("open");
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap(), Ok(first.pid()), "it had room first");
    }
    second.tell("open");
    for (id, call) in (0..).zip(held) {
        assert_eq!(call.join().unwrap(), Ok(id));
    }
}

#[test]
fn who_waits_for_an_absent_name_is_served_by_the_first_instance() {
    let place = place();
    let bus = place.bus();
    let proxies = [
        connecting(&bus).absent(Absent::Wait).lazy().unwrap(),
        connecting(&bus).absent(Absent::Wait).balance(Balance::RoundRobin).lazy().unwrap(),
        connecting(&bus).absent(Absent::Wait).tag("eu").lazy().unwrap(),
    ];
    for _ in 0..3 {
        let waiting: Vec<_> = proxies
            .iter()
            .flat_map(|probe| [(probe.clone(), false), (probe.clone(), true)])
            .map(|(probe, awaits)| {
                std::thread::spawn(
                    move || if awaits { block_on(probe.process()) } else { probe.process().wait() },
                )
            })
            .collect();
        let patient = connecting(&bus);
        let connecting =
            std::thread::spawn(move || patient.wait_for(PATIENCE).map(|probe| probe.process().wait()));
        let mut comes = instance(&place, "eu");
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap(), Ok(comes.pid()));
        }
        assert_eq!(connecting.join().unwrap(), Ok(Ok(comes.pid())));
        comes.kill();
        wait_until("the death is known", || proxies.iter().all(|probe| !probe.handle().is_connected()));
    }
    let gave_up = connecting(&bus).patience(Duration::from_millis(20));
    assert!(matches!(block_on(gave_up), Err(ConnectError::NotFound { waited, .. }) if !waited.is_zero()));
}

#[test]
fn proxies_live_on_when_a_name_becomes_the_instances_and_back() {
    let place = place();
    let bus = place.bus();
    let mut alone = owner(&place, &[]);
    let proxies = [
        connecting(&bus).wait().unwrap(),
        connecting(&bus).balance(Balance::RoundRobin).wait().unwrap(),
        connecting(&bus).balance(Balance::Sticky).wait().unwrap(),
    ];
    for round in 0..4 {
        for probe in &proxies {
            assert_eq!(probe.process().wait(), Ok(alone.pid()));
            assert_eq!(block_on(probe.process()), Ok(alone.pid()));
            assert_eq!(probe.instances().wait().len(), 1);
        }
        // Once by handing over, once with a gap between.
        let replaces = round % 2 == 0;
        let mut shared = if replaces {
            owner(&place, &["instance=a", "replace"])
        } else {
            alone.kill();
            instance(&place, "a")
        };
        let second = instance(&place, "b");
        for probe in &proxies {
            wait_for_instances(probe, 2);
            let pids = [shared.pid(), second.pid()];
            assert!((0..10).all(|_| pids.contains(&probe.process().wait().unwrap())));
            assert!((0..10).all(|_| pids.contains(&block_on(probe.process()).unwrap())));
        }
        alone = if replaces {
            owner(&place, &["replace"])
        } else {
            shared.kill();
            second.finish();
            owner(&place, &[])
        };
        assert_eq!(place.files(), ["probe"]);
    }
}

#[test]
fn a_sticky_proxy_moves_on_when_its_instance_is_gone() {
    let place = place();
    let mut owners: [_; 3] = instances(&place);
    let probe = connecting(&place.bus()).balance(Balance::Sticky).wait().unwrap();
    wait_for_instances(&probe, 3);
    for left in (1..=3).rev() {
        let got = spread(&probe, 20);
        assert_eq!(got.len(), 1, "with {left} left");
        let kept = owners.iter_mut().find(|owner| got.contains_key(&owner.pid())).unwrap();
        kept.kill();
        wait_for_instances(&probe, left - 1);
    }
    assert!(matches!(probe.process().wait(), Err(CallError::NotFound { .. })));
}

#[test]
fn one_way_calls_go_to_instances_too() {
    let (place, logs) = (place(), place());
    std::fs::create_dir_all(logs.path()).unwrap();
    let paths: Vec<_> = (0..2).map(|n| logs.path().join(n.to_string())).collect();
    let _owners: Vec<_> =
        paths.iter().map(|log| owner(&place, &["instance=", &format!("log={}", log.display())])).collect();
    let bus = place.bus();
    let probe = connecting(&bus).wait().unwrap();
    wait_for_instances(&probe, 2);
    for id in 0..200 {
        probe.mark(id).send().unwrap();
    }
    assert!(bus.close(PATIENCE), "closing waits until they are taken");
    wait_until("all have run", || runs_in(&paths).len() == 200);
    assert!(runs_in(&paths).values().all(|times| *times == 1));
    assert!(matches!(
        probe.process().wait(),
        Err(CallError::Unreachable { .. } | CallError::NotFound { .. })
    ));
}

#[test]
fn a_forked_child_uses_none_of_it_and_harms_nothing() {
    let place = place();
    let owners: [_; 2] = instances(&place);
    let bus = place.bus();
    let probe = connecting(&bus).wait().unwrap();
    wait_for_instances(&probe, 2);
    let selecting = connecting(&bus).balance(Balance::RoundRobin).wait().unwrap();
    let _ours = bus.publish_as("probe", table(), Instance::new()).unwrap();
    wait_for_instances(&probe, 3);
    let child = fork(|| {
        let is_refused = |probe: &ProbeProxy| {
            let refused = Err(CallError::ForkedHandle { executed: Executed::No });
            probe.process().wait() == refused && block_on(probe.process()) == refused
        };
        let is_empty =
            probe.instances().wait().is_empty() && probe.call_all(ProbeProxy::process).wait().is_empty();
        let own = bus_at(place.text());
        let met = connecting(&own).tag("none").wait();
        i32::from(!(is_refused(&probe) && is_refused(&selecting) && is_empty && met.is_err()))
    });
    assert_eq!(exit_code(child), 0);
    assert_eq!(place.files().len(), 3, "the child removed its parent's socket");
    let pids = owners.iter().map(Child::pid).collect::<Vec<_>>();
    wait_for_instances(&probe, 3);
    assert!(pids.iter().all(|pid| probe.instances().wait().iter().any(|instance| instance.pid() == *pid)));
}

#[test]
fn without_inotify_instances_are_found_too() {
    let place = place();
    drop(place.bus());
    let caller = start_with("blind", &[place.text()], |command| {
        command.env("OBJBUS_TEST_DISABLE", "inotify");
    });
    caller.expect("waits");
    let first = instance(&place, "");
    caller.expect(&first.pid().to_string());
    let _second = instance(&place, "");
    caller.expect("met both");
    caller.expect("waits");
    let late = instance(&place, "late");
    caller.expect(&late.pid().to_string());
    caller.expect("called all");
}

#[test]
fn instances_in_memory_are_like_those_in_processes() {
    let bus = Bus::in_memory();
    let number = |n: u64| objbus::MethodTable::named("Number").method("number", move || n);
    let publish = |n, tag: &str| bus.publish_as("number", number(n), Instance::new().tag(tag)).unwrap();
    let mut published = vec![publish(0, "a"), publish(1, "b"), publish(2, "b")];
    assert!(matches!(bus.publish("number", number(9)), Err(PublishError::PublishedAsInstances { .. })));
    let all: Untyped = bus.proxy("number").wait().unwrap();
    let of_b: Untyped = bus.proxy("number").tag("b").balance(Balance::RoundRobin).wait().unwrap();
    let call = |proxy: &Untyped| proxy.call::<_, u64>("number", &());
    wait_until("all are met", || all.instances().wait().len() == 3);
    let mut got: Vec<_> = (0..6).map(|_| call(&all).wait().unwrap()).collect();
    got.sort_unstable();
    assert_eq!(got, [0, 0, 1, 1, 2, 2]);
    let mut got: Vec<_> = (0..4).map(|_| block_on(call(&of_b)).unwrap()).collect();
    got.sort_unstable();
    assert_eq!(got, [1, 1, 2, 2]);
    drop(published.pop());
    assert_eq!(of_b.call_all(|one| call(one)).wait().len(), 1);
    assert_eq!(bus.names(), [("number".to_owned(), std::process::id())]);
    // A successor with the tag of one leaves the other.
    let next = bus.publication("number", number(7)).instance(Instance::new().tag("b")).replace();
    let _next = next.publish().unwrap();
    wait_until("the successor is met", || call(&of_b).wait() == Ok(7));
    wait_until("the old one is told", || published[1].is_withdrawn());
    assert!(!published[0].is_withdrawn());
    let _alone = bus.publication("number", number(8)).replace().publish().unwrap();
    wait_until("all were replaced", || published.iter().all(objbus::Published::is_withdrawn));
    assert_eq!(call(&all).wait(), Ok(8));
    assert!(matches!(call(&of_b).wait(), Err(CallError::NotFound { .. })), "it has no tag");
}
