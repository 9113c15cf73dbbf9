//! Streams between processes, in either direction: complete and in order, held back by their receivers, ended with either side.

#[path = "support/numbers.rs"]
mod numbers;
#[path = "support/probe.rs"]
mod probe;
#[path = "support/shelf.rs"]
mod shelf;
mod support;
use numbers::*;
use probe::Random;
use shelf::{is_pattern, pattern};
use support::system::{exit_code, expect_quick, fork};
use support::*;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::{Duration, Instant};

use objbus::{Bus, CallError, Executed, stream_of};

/// After a kill, the news of it, in the best of some rounds.
const NEWS: Duration = Duration::from_millis(100);
const ROUNDS: usize = 5;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        "consumer" => {
            let mut endless = numbers_of(&bus_at(&arguments[0])).endless().wait().expect("it opens");
            (0..10).for_each(|i| assert_eq!(endless.iter().next(), Some(Ok(i))));
            say("reading");
            stay()
        }
        "uploader" => {
            let numbers = numbers_of(&bus_at(&arguments[0]));
            let _ = numbers
                .sum_until_end(Counted::new(&Arc::default(), 0..10).staying())
                .timeout(PATIENCE)
                .wait();
            unreachable!("the upload never ends");
        }
        "forker" => fork_between(&arguments),
        other => panic!("no role `{other}`"),
    }
}

/// A child that is forked with a stream in hand has none, by whichever way it asks; the parent goes on with its own.
fn fork_between(arguments: &[String]) -> ! {
    let numbers = numbers_of(&bus_at(&arguments[0]));
    let [mut looked_at, mut awaited, mut kept] =
        [(); 3].map(|()| numbers.endless().wait().expect("it opens"));
    for stream in [&mut looked_at, &mut awaited, &mut kept] {
        assert_eq!(stream.iter().next(), Some(Ok(0)));
    }
    let code = exit_code(fork(|| {
        let forked = Some(Err(CallError::ForkedHandle { executed: Executed::No }));
        let is_told = looked_at.wait_next(PATIENCE) == forked && looked_at.iter().next().is_none();
        let is_told = is_told && block_on(awaited.next()) == forked;
        drop((looked_at, awaited));
        i32::from(!is_told)
    }));
    assert_eq!(code, 0);
    assert!(kept.iter().take(10_000).map(Result::unwrap).eq(1..10_001));
    say("the parent goes on");
    stay()
}

fn own(arguments: &[String]) -> ! {
    let bus = bus_at(&arguments[0]);
    let numbers = Numbers { bus: bus.clone(), counts: Arc::default(), gate: Arc::default() };
    let (counts, gate) = (Arc::clone(&numbers.counts), Arc::clone(&numbers.gate));
    let mut published = Some(bus.publish("numbers", numbers).expect("the name is free"));
    say("ready");
    loop {
        match hear().as_str() {
            "open" => gate.open(),
            "withdraw" => drop(published.take()),
            "shut down" => {
                let ended = published.take().expect("it is published").shutdown().wait(PATIENCE);
                say(format!("ended: {ended}, left: {}", counts.alive()));
            }
            "await none" => {
                wait_until("no stream is left", || counts.alive() == 0);
                say("none");
            }
            "await still" => {
                wait_until("a stream gave all", || counts.still.load(Ordering::SeqCst) > 0);
                say("still");
            }
            "lent" => say(lent_by(&bus).to_string()),
            other => panic!("told `{other}`"),
        }
    }
}

fn owner(place: &Place) -> Child {
    let owner = start("owner", &[place.text()]);
    owner.expect("ready");
    owner
}

#[test]
fn a_million_small_items_come_complete_and_in_order() {
    let place = place();
    let _owner = owner(&place);
    let mut stream = numbers_of(&place.bus()).up_to(1_000_000).wait().unwrap();
    let mut expected = 0;
    for number in stream.iter() {
        assert_eq!(number, Ok(expected));
        expected += 1;
    }
    assert_eq!(expected, 1_000_000);
    assert_eq!(stream.iter().next(), None, "the end stays the end");
}

#[test]
fn a_million_small_items_go_up_complete() {
    let place = place();
    let _owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    assert_eq!(numbers.sum(stream_of(0..1_000_000_u64), 1).wait(), Ok(1_000_000 * 999_999 / 2 + 1));
    assert_eq!(block_on(numbers.sum(stream_of(0..1_000_u64), 1)), Ok(1_000 * 999 / 2 + 1));
}

#[test]
fn items_of_every_size_come_whole() {
    let place = place();
    let _owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    let lens: Vec<u32> =
        (0..70).chain((0..40).map(|i| 4_000 + 8 * i)).chain([70_000, 1, 3_000_000, 0]).collect();
    let mut stream = numbers.bytes(lens.clone()).wait().unwrap();
    for len in lens {
        let bytes = stream.iter().next().unwrap().unwrap();
        assert!(bytes.len() == len as usize && bytes.iter().all(|byte| *byte == len as u8), "of {len}");
    }
    assert_eq!(stream.iter().next(), None);
}

#[test]
fn a_stream_may_borrow_from_its_arguments_and_its_method_may_fail() {
    let place = place();
    let _owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    let mut words = block_on(numbers.words("one two three", false)).unwrap();
    let all = block_on(async {
        let mut all = Vec::new();
        while let Some(word) = words.next().await {
            all.push(word.unwrap());
        }
        all
    });
    assert_eq!(all, ["one", "two", "three"]);
    let refused = numbers.words("one", true).wait().map(drop);
    assert_eq!(refused, Err(CallError::App("no words in \"one\"".to_owned())));
}

#[test]
fn frames_are_lent_four_ahead_and_all_come_back() {
    let (place, frames, len) = (place(), 100, 1 << 17);
    let mut owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    let mut stream = numbers.frames(frames, len).wait().unwrap();
    let mut most = 0;
    for number in 0..frames {
        let frame = stream.iter().next().unwrap().unwrap();
        assert!(is_pattern(&frame, len as usize, number as u8), "frame {number}");
        most = most.max(numbers.memory().wait().unwrap());
    }
    // Those ahead, one in the making, one read here, and what a rounded size and the arena's own habits add.
    assert!(most <= 10 * len, "{most} bytes for frames of {len}");
    drop(stream);
    owner.tell("await none");
    owner.expect("none");
    wait_until("all is given back", || numbers.lent().wait() == Ok(0));
}

#[test]
fn row_15_a_receiver_that_does_not_take_holds_the_sender_back() {
    let place = place();
    let _owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    let mut stream = numbers.endless().wait().unwrap();
    // The ring is full: 16 KiB, at two words for a small number.
    let mut last = 0;
    wait_until("the sender stands still", || {
        let (before, now) = (last, numbers.made().wait().unwrap());
        last = now;
        now == before && now > 500
    });
    assert!(last <= 1_100, "{last} items made ahead");
    (0..2_000).for_each(|i| assert_eq!(stream.iter().next(), Some(Ok(i))));
    wait_until("it goes on", || numbers.made().wait().unwrap() > 2_000);
}

#[test]
fn dropping_a_stream_drops_its_sender() {
    let place = place();
    let _owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    expect_quick("the sender's drop", ROUNDS, NEWS, || {
        // One that waits for room, and one that has nothing to send.
        let (mut endless, silent) = (numbers.endless().wait().unwrap(), numbers.silent().wait().unwrap());
        assert_eq!(endless.iter().next(), Some(Ok(0)));
        assert_eq!(numbers.alive().wait(), Ok(2));
        let began = Instant::now();
        drop((endless, silent));
        wait_until("both are dropped", || numbers.alive().wait() == Ok(0));
        began.elapsed()
    });
}

#[test]
fn frames_that_nobody_took_come_back_when_the_stream_is_dropped() {
    let place = place();
    let _owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    for taken in 0..3 {
        let mut stream = numbers.frames(100, 100_000).wait().unwrap();
        wait_until("frames are ahead", || numbers.made().wait().unwrap() % 100 >= 4 || taken > 0);
        let held: Vec<_> = stream.iter().take(taken).map(Result::unwrap).collect();
        drop(stream);
        wait_until("the sender is gone", || numbers.alive().wait() == Ok(0));
        wait_until("what is not held is back", || numbers.lent().wait() == Ok(100_000 * taken as u64));
        drop(held);
        wait_until("all is back", || numbers.lent().wait() == Ok(0));
    }
}

#[test]
fn row_7_a_killed_sender_is_told_within_100_ms_after_what_it_sent() {
    let place = place();
    expect_quick("the news of the death", ROUNDS, NEWS, || {
        let mut owner = owner(&place);
        let mut stream = numbers_of(&place.bus()).some(300).wait().unwrap();
        assert_eq!(stream.iter().next(), Some(Ok(0)));
        owner.tell("await still");
        owner.expect("still");
        let killed = owner.kill();
        (1..300).for_each(|i| assert_eq!(stream.iter().next(), Some(Ok(i))));
        let end = stream.iter().next();
        assert_eq!(end, Some(Err(CallError::OwnerDied { executed: Executed::Unknown })));
        let news = killed.elapsed();
        assert_eq!(stream.iter().next(), None);
        news
    });
}

#[test]
fn row_3_a_killed_receiver_drops_the_sender_within_100_ms() {
    let place = place();
    let _owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    expect_quick("the sender's drop", ROUNDS, NEWS, || {
        let mut consumer = start("consumer", &[place.text()]);
        consumer.expect("reading");
        assert_eq!(numbers.alive().wait(), Ok(1));
        let killed = consumer.kill();
        wait_until("the sender is dropped", || numbers.alive().wait() == Ok(0));
        killed.elapsed()
    });
}

#[test]
fn row_3_a_killed_uploader_is_told_to_the_method_after_what_it_sent() {
    let place = place();
    let owner = owner(&place);
    let mut uploader = start("uploader", &[place.text()]);
    let counts = numbers_of(&place.bus());
    // Its call is in flight once the owner has two callers.
    assert_eq!(counts.alive().wait(), Ok(0));
    wait_until("the uploader has sent", || held_by(uploader.pid()).mappings >= 4);
    uploader.kill();
    let said = owner.hear();
    assert!(said.ends_with("and then Disconnected { executed: Unknown }"), "{said}");
}

#[test]
fn a_shutdown_waits_for_streams() {
    let place = place();
    let mut owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    let mut streams: Vec<_> = (0..8).map(|_| numbers.endless().wait().unwrap()).collect();
    streams.iter_mut().for_each(|stream| assert_eq!(stream.iter().next(), Some(Ok(0))));
    owner.tell("shut down");
    owner.expect("ended: true, left: 0");
}

#[test]
fn row_40_a_withdrawn_object_ends_its_streams_after_what_was_sent() {
    let place = place();
    let mut owner = owner(&place);
    let mut stream = numbers_of(&place.bus()).some(100).wait().unwrap();
    assert_eq!(stream.iter().next(), Some(Ok(0)));
    owner.tell("await still");
    owner.expect("still");
    owner.tell("withdraw");
    owner.tell("await none");
    owner.expect("none");
    (1..100).for_each(|i| assert_eq!(stream.iter().next(), Some(Ok(i))));
    let end = stream.iter().next();
    assert_eq!(end, Some(Err(CallError::Unpublished { executed: Executed::Unknown })));
    assert_eq!(stream.iter().next(), None);
}

#[test]
fn row_26_a_panic_in_a_stream_is_its_last_item() {
    let place = place();
    let _owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    let mut stream = numbers.failing(5).wait().unwrap();
    (0..5).for_each(|i| assert_eq!(stream.iter().next(), Some(Ok(i))));
    let message = "no more than 5".to_owned();
    let panicked = CallError::MethodPanicked { message, executed: Executed::Unknown };
    assert_eq!(stream.iter().next(), Some(Err(panicked)));
    assert_eq!(stream.iter().next(), None);
    wait_until("it is dropped", || numbers.alive().wait() == Ok(0));
}

#[test]
fn a_stream_outlives_its_proxy() {
    let place = place();
    let _owner = owner(&place);
    let mut stream = numbers_of(&place.bus()).up_to(10_000).wait().unwrap();
    assert!(stream.iter().map(Result::unwrap).eq(0..10_000));
}

#[test]
fn waiting_for_an_item_has_a_time_out_of_its_own() {
    let place = place();
    let _owner = owner(&place);
    let mut stream = numbers_of(&place.bus()).some(1).wait().unwrap();
    assert_eq!(stream.wait_next(PATIENCE), Some(Ok(0)));
    let late = stream.wait_next(Duration::from_millis(20));
    assert_eq!(late, Some(Err(CallError::DeadlineExceeded { executed: Executed::Unknown })));
    // It goes on, and a deadline of the opening call does not end it.
    let late = stream.wait_next(Duration::from_millis(20));
    assert_eq!(late, Some(Err(CallError::DeadlineExceeded { executed: Executed::Unknown })));
}

#[test]
fn an_opening_that_is_given_up_leaves_nothing() {
    let place = place();
    let mut owner = owner(&place);
    let bus = place.bus();
    let numbers = numbers_of(&bus);
    numbers.up_to(1).wait().map(drop).unwrap();
    wait_until("the first is gone", || numbers.alive().wait() == Ok(0));
    let before = (held_by(std::process::id()), held_by(owner.pid()));
    for round in 0..20 {
        if round % 2 == 0 {
            let timed_out = numbers.when_open().timeout(Duration::from_millis(5)).wait().map(drop);
            assert!(matches!(timed_out, Err(CallError::DeadlineExceeded { .. })), "{timed_out:?}");
        } else {
            let mut call = Box::pin(numbers.when_open());
            let polled = call.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
            assert!(polled.is_pending());
        }
    }
    owner.tell("open");
    wait_until("nothing is left", || {
        let now = (held_by(std::process::id()), held_by(owner.pid()));
        now.0.fds <= before.0.fds
            && now.0.mappings <= before.0.mappings
            && now.1.mappings <= before.1.mappings
    });
    assert_eq!(numbers.alive().wait(), Ok(0));
    assert_eq!(numbers.when_open().wait().unwrap().iter().count(), 3);
}

#[test]
fn an_upload_whose_call_is_given_up_leaves_nothing() {
    let place = place();
    let owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    assert_eq!(numbers.sum(stream_of(0..10), 0).wait(), Ok(45));
    let before = (held_by(std::process::id()), held_by(owner.pid()));
    let counts = Arc::default();
    for round in 0..20 {
        let call = numbers.sum_until_end(Counted::new(&counts, 0..10).staying());
        if round % 2 == 0 {
            let timed_out = call.timeout(Duration::from_millis(5)).wait();
            assert!(matches!(timed_out, Err(CallError::DeadlineExceeded { .. })), "{timed_out:?}");
        } else {
            let polled = Box::pin(call).as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
            assert!(polled.is_pending());
        }
    }
    wait_until("no upload is left", || counts.alive() == 0);
    wait_until("nothing of them is left", || {
        let now = (held_by(std::process::id()), held_by(owner.pid()));
        now.0.fds <= before.0.fds
            && now.1.fds <= before.1.fds
            && now.0.mappings <= before.0.mappings
            && now.1.mappings <= before.1.mappings
    });
    assert_eq!(numbers.sum(stream_of(0..10), 0).wait(), Ok(45));
}

#[test]
fn a_method_that_stops_taking_drops_the_upload() {
    let place = place();
    let _owner = owner(&place);
    let numbers = numbers_of(&place.bus());
    let counts = Arc::new(Counts::default());
    let first = numbers.first(3, Counted::new(&counts, 0..)).wait();
    assert_eq!(first, Ok(vec![0, 1, 2]));
    wait_until("the upload is dropped", || counts.alive() == 0);
    assert!(counts.made() <= 1_100, "{} made", counts.made());
}

#[test]
fn an_upload_to_nobody_is_dropped_and_never_asked() {
    let place = place();
    let counts = Arc::new(Counts::default());
    let numbers: NumbersProxy = place.bus().proxy("numbers").lazy().unwrap();
    let refused = numbers.sum(Counted::new(&counts, 0..), 0).wait();
    assert!(matches!(refused, Err(CallError::NotFound { .. })), "{refused:?}");
    drop(numbers.sum(Counted::new(&counts, 0..), 0));
    assert_eq!((counts.alive(), counts.made()), (0, 0));
}

/// A process with random pauses at both ends, items of random sizes, some with blobs: everything comes back in order.
fn echo_random(numbers: &NumbersProxy, bus: &Bus, seed: u64) {
    let mut random = Random::of(seed);
    let items: Vec<Mixed> =
        (0..60 + random.below(60)).map(|number| mixed(bus, &mut random, number)).collect();
    let uploaded = stream_of(items.clone());
    let mut stream =
        numbers.echo(uploaded, seed).wait().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let mut held = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let back = match random.below(3) {
            0 => block_on(stream.next()),
            1 => stream.wait_next(PATIENCE),
            _ => stream.iter().next(),
        };
        let back = back.unwrap_or_else(|| panic!("seed {seed}: item {at} is missing"));
        let back = back.unwrap_or_else(|error| panic!("seed {seed}: item {at}: {error}"));
        assert_eq!(back, Mixed { number: item.number + 1, ..item.clone() }, "seed {seed}: item {at}");
        held.push(back);
        held.truncate(random.below(6) as usize);
    }
    if random.below(2) == 0 {
        assert!(stream.iter().next().is_none(), "seed {seed}: more than was sent");
    }
}

fn mixed(bus: &Bus, random: &mut Random, number: u64) -> Mixed {
    let len = match random.below(4) {
        0 => 0,
        1 => random.below(100),
        2 => random.below(5_000),
        _ => random.below(65_536),
    };
    let blobs = (0..random.below(6).saturating_sub(3)).map(|_| {
        let (seed, len) = (random.below(256) as u8, random.below(65_536) as usize);
        (seed, pattern(bus, len, seed))
    });
    let blobs = blobs.collect();
    Mixed { number, bytes: vec![number as u8; len as usize], blobs }
}

#[test]
fn random_items_come_back_whatever_the_pauses() {
    let place = place();
    let mut owner = owner(&place);
    let bus = place.bus();
    let numbers = numbers_of(&bus);
    let first = Random::new().seed;
    (0..40).for_each(|round| echo_random(&numbers, &bus, first.wrapping_add(round)));
    wait_until("the owner has all back", || {
        owner.tell("lent");
        owner.hear() == "0"
    });
    wait_until("we have all back", || lent_by(&bus) == 0);
}

#[test]
fn streams_work_inside_one_process() {
    let bus = Bus::in_memory();
    let _published = publish(&bus);
    let numbers = numbers_of(&bus);
    assert!(numbers.up_to(5_000).wait().unwrap().iter().map(Result::unwrap).eq(0..5_000));
    (0..5).for_each(|seed| echo_random(&numbers, &bus, seed));
}

#[cfg(feature = "tokio")]
#[test]
fn streams_work_in_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let place = place();
    let _owner = owner(&place);
    runtime.block_on(async {
        let numbers: NumbersProxy = place.bus().proxy("numbers").await.unwrap();
        let mut stream = numbers.up_to(10_000).await.unwrap();
        let mut expected = 0;
        while let Some(number) = stream.next().await {
            assert_eq!(number, Ok(expected));
            expected += 1;
        }
        assert_eq!(expected, 10_000);
        assert_eq!(numbers.sum(stream_of(0..10_000_u64), 0).await, Ok(10_000 * 9_999 / 2));
    });
}

#[test]
fn row_25_a_forked_childs_streams_fail_and_the_parents_go_on() {
    let place = place();
    let _owner = owner(&place);
    let forker = start("forker", &[place.text()]);
    forker.expect("the parent goes on");
}
