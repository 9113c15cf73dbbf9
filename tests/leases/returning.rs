//! Row 45: whatever becomes of a call, what was lent with it, either way, comes back once.

use std::time::Duration;

use objbus::{Blob, Bus, CallError, Executed, Proxy, Untyped};

use crate::actor::{Odd, difference};
use crate::desk::*;
use crate::probe::poll_once;
use crate::support::*;

/// An owner in a process of its own, and its caller here.
struct Meeting {
    owner: Child,
    desk: DeskProxy,
    bus: Bus,
    _place: Place,
}

fn meet(options: &[&str]) -> Meeting {
    let place = place();
    let owner = start("desk", &[&[place.text()], options].concat());
    owner.expect("ready");
    let bus = bus_of(place.text());
    let desk = bus.proxy("desk").wait().expect("it is published");
    Meeting { owner, desk, bus, _place: place }
}

#[track_caller]
fn check(what: &str, came: &[Blob], sent: usize) {
    assert_eq!(came.len(), 2 * sent, "{what}");
    for (i, blob) in came.iter().enumerate() {
        let i = i % sent;
        assert_eq!(difference(blob, i as u8, 0, LENGTHS[i % LENGTHS.len()]), None, "{what}: blob {i}");
    }
}

impl Meeting {
    fn blobs(&self, count: usize) -> Vec<Blob> {
        blobs(&self.bus, count)
    }

    /// Everything that either side lent is back, and the lane is as good as before.
    #[track_caller]
    fn expect_settled(&mut self, what: &str) {
        for _ in 0..2 {
            let mut now = [String::new(), String::new()];
            let began = std::time::Instant::now();
            while now.iter().any(|memory| memory != "0 0 0") {
                let late = began.elapsed() > PATIENCE;
                assert!(!late, "{what}: in use, lent and leases are {now:?} here and there");
                self.owner.tell("memory");
                now = [memory_of(&self.bus), self.owner.hear()];
            }
            check(what, &self.desk.echo(self.blobs(3)).wait().expect(what), 3);
        }
        self.owner.tell("violations");
        assert_eq!(self.owner.hear(), "0", "{what}");
    }

    fn shut(&mut self) {
        self.owner.tell("shut");
        self.owner.expect("is shut");
    }
}

/// Once with loans that fit a cell, once with more.
const COUNTS: [usize; 3] = [1, 3, 40];

#[test]
fn row_45_answered_calls() {
    let mut meeting = meet(&[]);
    for count in COUNTS {
        check("echo", &meeting.desk.echo(meeting.blobs(count)).wait().unwrap(), count);
        meeting.expect_settled("echo");
        check("echo", &block_on(meeting.desk.echo_async(meeting.blobs(count))).unwrap(), count);
        meeting.expect_settled("an awaited echo");
        let error = meeting.desk.fail(meeting.blobs(count)).wait().unwrap_err();
        check("an error", &error.into_app().unwrap(), count);
        meeting.expect_settled("an error");
    }
}

#[test]
fn row_45_late_answers() {
    let mut meeting = meet(&[]);
    for count in COUNTS {
        for is_async in [false, true] {
            let what = format!("a late answer, async: {is_async}, {count} blobs");
            let (desk, bus) = (&meeting.desk, &meeting.bus);
            let late = time_out_begun(|span| {
                let blobs = blobs(bus, count);
                let call = if is_async { desk.held_async(blobs) } else { desk.held(blobs) };
                call.timeout(span).wait().map(|blobs| blobs.len())
            });
            assert_eq!(late, Err(CallError::DeadlineExceeded { executed: Executed::Unknown }), "{what}");
            meeting.owner.expect("began");
            meeting.owner.tell("open");
            meeting.expect_settled(&what);
            meeting.shut();
        }
    }
}

/// What does not fit a cell or a slot is lent as well.
#[test]
fn row_45_large_bodies() {
    let mut meeting = meet(&["workers=1"]);
    let large = vec![1; 100_000];
    for round in 0..4 {
        let late = time_out_begun(|span| meeting.desk.held_large(&large, 100_000).timeout(span).wait());
        assert_eq!(late, Err(CallError::DeadlineExceeded { executed: Executed::Unknown }));
        meeting.owner.expect("began");
        drop(meeting.desk.large(&large, 100_000, vec![]).started());
        let expired = meeting.desk.large(&large, 100_000, vec![]).timeout(Duration::from_millis(1)).wait();
        assert!(matches!(expired, Err(CallError::DeadlineExceeded { executed: Executed::No })));
        meeting.owner.tell("open");
        meeting.desk.large(&large, 100_000, vec![]).send().unwrap();
        drop(meeting.desk.large(&large, 100_000, vec![]).started());
        let answer = meeting.desk.large(&large, 100_000, vec![]).wait().unwrap();
        assert_eq!(answer, (vec![0; 100_000], vec![]));
        meeting.expect_settled(&format!("large bodies, round {round}"));
        meeting.shut();
    }
}

#[test]
fn row_45_cancelled_and_dropped_calls() {
    let mut meeting = meet(&["workers=1"]);
    for count in COUNTS {
        drop(meeting.desk.echo(meeting.blobs(count)));
        meeting.expect_settled("a call that was never sent");

        drop(meeting.desk.echo(meeting.blobs(count)).started());
        meeting.expect_settled("a call dropped at once");

        let call = meeting.desk.held(meeting.blobs(count)).started();
        meeting.owner.expect("began");
        drop(call);
        meeting.owner.tell("open");
        meeting.expect_settled("a call dropped once it began");
        meeting.shut();

        let mut call = meeting.desk.held_async(meeting.blobs(count));
        assert!(poll_once(&mut call).is_pending());
        meeting.owner.expect("began");
        drop(call);
        meeting.owner.tell("open");
        meeting.expect_settled("an awaited call dropped once it began");
        meeting.shut();

        let first = meeting.desk.held(meeting.blobs(count)).started();
        meeting.owner.expect("began");
        let queued: Vec<_> =
            (0..8).map(|_| meeting.desk.echo(meeting.blobs(count / 4 + 1)).started()).collect();
        drop(queued);
        let mut queued = meeting.desk.echo_async(meeting.blobs(count));
        assert!(poll_once(&mut queued).is_pending());
        drop(queued);
        let expired = meeting.desk.echo(meeting.blobs(count)).timeout(Duration::from_millis(1)).wait();
        assert!(matches!(expired, Err(CallError::DeadlineExceeded { executed: Executed::No })));
        meeting.owner.tell("open");
        check("the first", &first.wait().unwrap(), count);
        meeting.expect_settled("calls withdrawn before they began");
        meeting.shut();
    }
}

#[test]
fn row_45_one_way_calls() {
    let mut meeting = meet(&[]);
    for count in COUNTS {
        for _ in 0..4 {
            meeting.desk.echo(meeting.blobs(count)).send().unwrap();
            meeting.desk.fail(meeting.blobs(count)).send().unwrap();
            meeting.desk.echo_async(meeting.blobs(count)).send().unwrap();
            meeting.desk.misread(Odd(Blob::from("odd")), meeting.blobs(count)).send().unwrap();
            meeting.desk.denied(meeting.blobs(count)).send().unwrap();
        }
        meeting.expect_settled("calls one way");
    }
}

#[test]
fn row_45_bodies_that_cannot_be_decoded() {
    let mut meeting = meet(&[]);
    for count in COUNTS {
        for _ in 0..3 {
            let bad = meeting.desk.misread(Odd(meeting.blobs(2)[1].clone()), meeting.blobs(count)).wait();
            assert!(matches!(bad, Err(CallError::BadRequest { executed: Executed::No, .. })), "{bad:?}");
        }
        meeting.expect_settled("undecodable requests");
        for _ in 0..3 {
            let bad = meeting.desk.odd(meeting.blobs(count)).wait().map(drop);
            assert!(matches!(bad, Err(CallError::BadResponse { executed: Executed::Yes, .. })), "{bad:?}");
            let bad = block_on(meeting.desk.odd(meeting.blobs(count))).map(drop);
            assert!(matches!(bad, Err(CallError::BadResponse { executed: Executed::Yes, .. })), "{bad:?}");
        }
        meeting.expect_settled("undecodable responses");
    }
}

#[test]
fn row_45_panics() {
    let mut meeting = meet(&[]);
    for count in COUNTS {
        let panicked = meeting.desk.panic(meeting.blobs(count)).wait().map(drop);
        assert!(matches!(panicked, Err(CallError::MethodPanicked { .. })), "{panicked:?}");
        let panicked = block_on(meeting.desk.panic_async(meeting.blobs(count))).map(drop);
        assert!(matches!(panicked, Err(CallError::MethodPanicked { .. })), "{panicked:?}");
        meeting.expect_settled("panics");
    }
}

#[test]
fn row_45_refused_calls() {
    let mut meeting = meet(&["workers=1"]);
    for count in COUNTS {
        let denied = meeting.desk.denied(meeting.blobs(count)).wait().map(drop);
        assert!(matches!(denied, Err(CallError::PermissionDenied { .. })), "{denied:?}");
        meeting.expect_settled("a method that is denied");

        let answer = meeting.desk.reenter(meeting.blobs(count)).wait().unwrap();
        assert!(answer.contains("WouldDeadlock"), "{answer}");
        meeting.expect_settled("a call into itself");

        let untyped: Untyped = meeting.bus.proxy("desk").wait().unwrap();
        let unknown = untyped.call::<_, ()>("nothing", &(meeting.blobs(count),)).wait();
        assert!(matches!(unknown, Err(CallError::UnknownMethod { .. })), "{unknown:?}");
        let other = untyped.call::<_, ()>("echo", &(meeting.blobs(count), 7_u8)).wait();
        assert!(matches!(other, Err(CallError::SchemaMismatch { .. })), "{other:?}");
        meeting.expect_settled("methods that it does not have");

        let request = vec![0; BODY_MAX as usize];
        let large = meeting.desk.large(&request, 0, meeting.blobs(count)).wait().map(drop);
        assert!(matches!(large, Err(CallError::TooLarge { executed: Executed::No, .. })), "{large:?}");
        let large = meeting.desk.large(&[], BODY_MAX, meeting.blobs(count)).wait().map(drop);
        assert!(matches!(large, Err(CallError::TooLarge { executed: Executed::Yes, .. })), "{large:?}");
        meeting.expect_settled("bodies that are too large");
    }
}

/// What the owner passes on it has to copy, and has no memory for.
#[test]
fn row_45_results_without_memory() {
    let mut meeting = meet(&[]);
    for len in [1 << 20, 3 << 20] {
        let blob = crate::actor::pattern(&meeting.bus, 5, len).unwrap();
        let many = vec![blob; 2 * MEMORY as usize / len];
        let full = meeting.desk.echo(many).wait().map(drop);
        assert_eq!(full, Err(CallError::NoMemory { executed: Executed::Yes }));
        meeting.expect_settled("a result without memory");
    }
}

#[test]
fn row_45_overload() {
    let mut meeting = meet(&["workers=1", "in_flight=4"]);
    for count in COUNTS {
        let first = meeting.desk.held(meeting.blobs(count)).started();
        meeting.owner.expect("began");
        let (to, results) = std::sync::mpsc::channel();
        for _ in 0..8 {
            let (call, to) = (meeting.desk.echo(meeting.blobs(count / 4 + 1)).started(), to.clone());
            std::thread::spawn(move || to.send(call.wait().map(drop)));
        }
        for _ in 0..5 {
            let refused = results.recv_timeout(PATIENCE).expect("those beyond the limit are refused");
            assert!(matches!(refused, Err(CallError::Overloaded { .. })), "{refused:?}");
        }
        meeting.owner.tell("open");
        check("the first", &first.wait().unwrap(), count);
        (0..3).for_each(|_| assert_eq!(results.recv_timeout(PATIENCE).unwrap(), Ok(())));
        meeting.expect_settled("calls beyond the limit of those in flight");
        meeting.shut();
    }
    // All slots of the caller's: what is not sent lends nothing.
    let first = meeting.desk.held(meeting.blobs(1)).started();
    meeting.owner.expect("began");
    let all: Vec<_> = (0..63).map(|_| meeting.desk.held(meeting.blobs(1)).started()).collect();
    let beyond = meeting.desk.echo(meeting.blobs(40)).try_wait().map(drop);
    assert!(matches!(beyond, Err(CallError::Overloaded { executed: Executed::No })), "{beyond:?}");
    drop((first, all));
    meeting.owner.tell("open");
    meeting.expect_settled("no slot");
}

#[test]
fn row_45_an_object_withdrawn_with_calls_queued() {
    for count in COUNTS {
        let mut meeting = meet(&["workers=1"]);
        let first = meeting.desk.held(meeting.blobs(count)).started();
        meeting.owner.expect("began");
        let queued: Vec<_> =
            (0..8).map(|_| meeting.desk.echo(meeting.blobs(count / 4 + 1)).started()).collect();
        meeting.owner.tell("withdraw");
        for call in queued {
            let withdrawn = call.wait().map(drop);
            assert_eq!(withdrawn, Err(CallError::Unpublished { executed: Executed::No }));
        }
        let absent = meeting.desk.echo(meeting.blobs(count)).wait().map(drop);
        assert!(matches!(absent, Err(CallError::NotFound { .. })), "{absent:?}");
        meeting.owner.tell("open");
        check("the first", &first.wait().unwrap(), count);
        wait_until("all is back at the caller", || memory_of(&meeting.bus) == "0 0 0");
        wait_until("all is back at the owner", || {
            meeting.owner.tell("memory");
            meeting.owner.hear() == "0 0 0"
        });
    }
}

#[test]
fn row_07_what_was_lent_with_an_answer_is_read_after_the_death_of_its_lender() {
    for count in COUNTS {
        let mut meeting = meet(&["workers=1"]);
        let mut call = meeting.desk.held(meeting.blobs(count));
        assert!(poll_once(&mut call).is_pending());
        meeting.owner.expect("began");
        meeting.owner.tell("open");
        // One at a time: when this is served, the other is answered.
        assert_eq!(meeting.desk.echo(vec![]).wait(), Ok(vec![]));
        meeting.owner.kill();
        wait_until("the death is known", || !meeting.desk.handle().is_connected());
        let came = block_on(call).expect("what was answered before the death is delivered");
        check("of the dead", &came, count);
        wait_until("all is back at the caller", || memory_of(&meeting.bus) == "0 0 0");
        check("of the dead, still", &came, count);
    }
}
