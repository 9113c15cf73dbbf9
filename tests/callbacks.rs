//! Objects that callers give along with a call, called back by the owner's method: in other processes, and through deaths.

#[path = "support/errand.rs"]
mod errand;
mod support;
use errand::*;
use support::system::expect_quick;
use support::*;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use objbus::{Blob, Bus, CallContext, CallError, Executed, MethodTable, Proxy, Untyped};

/// After a kill, the news of it; the rows say 100 ms, which the best of some rounds must keep.
const NEWS: Duration = Duration::from_millis(100);
const ROUNDS: usize = 5;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "errand" => errand::run(&arguments),
        "caller" => {
            let errand = connect(&bus_at(&arguments[0]));
            let _ = errand.pester(Telling(Once::new())).timeout(Duration::MAX).wait();
            stay()
        }
        "slow caller" => {
            let errand = connect(&bus_at(&arguments[0]));
            let _ = errand.pester(Stuck).timeout(Duration::MAX).wait();
            stay()
        }
        other => panic!("no role `{other}`"),
    }
}

/// Writes down what it is told.
#[derive(Clone, Default)]
struct Notes(Arc<Said>);

#[derive(Default)]
struct Said {
    numbers: Mutex<Vec<u32>>,
    /// Says no from here on, unless it is 0.
    enough: AtomicU32,
}

impl Notes {
    fn stopping_at(enough: u32) -> Notes {
        let notes = Notes::default();
        notes.0.enough.store(enough, Ordering::Relaxed);
        notes
    }

    fn numbers(&self) -> Vec<u32> {
        self.0.numbers.lock().unwrap().clone()
    }

    /// How many hold it beside the test.
    fn holders(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

impl Progress for Notes {
    fn at(&self, done: u32) -> Result<bool, Lost> {
        self.0.numbers.lock().unwrap().push(done);
        let enough = self.0.enough.load(Ordering::Relaxed);
        Ok(enough == 0 || done < enough)
    }

    fn turn(&self, text: &str, blob: Blob) -> Result<(String, Blob), Lost> {
        let turned: Vec<u8> = blob.iter().rev().copied().collect();
        Ok((text.chars().rev().collect(), Blob::from(turned)))
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        let call = CallContext::current().ok_or_else(|| Lost("no call".to_owned()))?;
        Ok((call.pid(), call.remaining().is_some()))
    }
}

/// Panics.
struct Faulty;

impl Progress for Faulty {
    fn at(&self, done: u32) -> Result<bool, Lost> {
        panic!("cannot bear {done}")
    }

    fn turn(&self, _: &str, _: Blob) -> Result<(String, Blob), Lost> {
        Err(Lost("my own".to_owned()))
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        Ok((0, false))
    }
}

/// Says when it is called first.
struct Telling(Once);

impl Progress for Telling {
    fn at(&self, _: u32) -> Result<bool, Lost> {
        self.0.call_once(|| say("called"));
        Ok(true)
    }

    fn turn(&self, _: &str, _: Blob) -> Result<(String, Blob), Lost> {
        stay()
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        stay()
    }
}

/// Never comes back.
struct Stuck;

impl Progress for Stuck {
    fn at(&self, _: u32) -> Result<bool, Lost> {
        say("stuck");
        stay()
    }

    fn turn(&self, _: &str, _: Blob) -> Result<(String, Blob), Lost> {
        stay()
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        stay()
    }
}

fn connect(bus: &Bus) -> ErrandProxy {
    bus.proxy("errand").call_timeout(PATIENCE).wait().expect("the errand is there")
}

fn owner(place: &Place) -> (Child, ErrandProxy) {
    let owner = start("errand", &[place.text()]);
    owner.expect("ready");
    (owner, connect(&place.bus()))
}

#[test]
fn a_method_calls_its_callers_object_in_another_process() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let notes = Notes::default();
    assert_eq!(errand.run(5, notes.clone()).wait(), Ok(5));
    assert_eq!(notes.numbers(), [0, 1, 2, 3, 4]);
    wait_until("it has gone with the call", || notes.holders() == 0);

    let stops = Notes::stopping_at(2);
    assert_eq!(errand.run(5, stops.clone()).wait(), Ok(2));
    assert_eq!(block_on(errand.run(3, notes.clone())), Ok(3));
}

#[test]
fn several_and_optional_objects() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let (first, second) = (Notes::default(), Notes::stopping_at(1));
    assert_eq!(errand.pair(first.clone(), 4, second.clone()).wait(), Ok((4, 1)));
    assert_eq!((first.numbers(), second.numbers()), (vec![0, 1, 2, 3], vec![0, 1]));
    assert_eq!(errand.perhaps(Some(first.clone())).wait(), Ok(Some(3)));
    assert_eq!(errand.perhaps(None::<Notes>).wait(), Ok(None));
}

#[test]
fn an_interface_takes_objects_that_it_owns() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let guide: GuideProxy = place.bus().proxy("errand.guide").wait().unwrap();
    let there = Notes::default();
    assert_eq!(guide.walk(3, there.clone()), Ok(3));
    let here = Notes::default();
    assert_eq!(Errand::new(place.bus()).walk(3, here.clone()), Ok(3));
    assert_eq!(there.numbers(), here.numbers());
    drop(errand);
}

#[test]
fn texts_and_blobs_go_both_ways() {
    let place = place();
    let (_owner, errand) = owner(&place);
    for len in [3, 5_000, 2_000_000] {
        let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let text = "abc".repeat(len / 3);
        let (turned, blob) = errand.turn(Notes::default(), &text, Blob::from(bytes.clone())).wait().unwrap();
        assert_eq!(turned, "cba".repeat(len / 3));
        assert!(blob.iter().rev().eq(bytes.iter()), "{len} bytes");
    }
}

#[test]
fn a_callback_knows_its_caller_and_keeps_to_the_deadline_of_the_call() {
    let place = place();
    let (owner, errand) = owner(&place);
    assert_eq!(errand.context(Notes::default()).wait(), Ok((owner.pid(), true)));
    let ended = time_out_begun(|span| match errand.run(1, Napping(3 * span)).timeout(span).wait() {
        Err(CallError::App(lost)) => panic!("the call ended first: {lost:?}"),
        Err(CallError::DeadlineExceeded { executed }) => Err(CallError::DeadlineExceeded { executed }),
        other => Ok(other),
    });
    assert!(matches!(ended, Err(CallError::DeadlineExceeded { executed: Executed::Unknown })), "{ended:?}");
}

/// Takes its time.
struct Napping(Duration);

impl Progress for Napping {
    fn at(&self, _: u32) -> Result<bool, Lost> {
        let until = Instant::now() + self.0;
        while Instant::now() < until {
            std::thread::park_timeout(self.0);
        }
        Ok(true)
    }

    fn turn(&self, _: &str, _: Blob) -> Result<(String, Blob), Lost> {
        Err(Lost("asleep".to_owned()))
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        Err(Lost("asleep".to_owned()))
    }
}

#[test]
fn a_panic_and_an_error_of_the_callers_reach_the_method() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let Err(CallError::App(Lost(why))) = errand.run(1, Faulty).wait() else { panic!("it went well") };
    assert!(why.contains("MethodPanicked") && why.contains("cannot bear 0"), "{why}");
    let turned = errand.turn(Faulty, "", Blob::default()).wait();
    assert_eq!(turned.err(), Some(CallError::App(Lost("my own".to_owned()))));
    assert_eq!(errand.run(2, Notes::default()).wait(), Ok(2));
}

#[test]
fn one_object_is_called_by_many_threads_and_many_calls_have_one_each() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let notes = Notes::default();
    assert_eq!(errand.at_once(4, 50, notes.clone()).wait(), Ok(200));
    assert_eq!(notes.numbers().len(), 200);
    let given: Vec<_> = (0..40).map(|_| Notes::default()).collect();
    let calls: Vec<_> = (1..).zip(&given).map(|(n, notes)| errand.run(n, notes.clone()).started()).collect();
    for (n, call) in (1..).zip(calls) {
        assert_eq!(call.wait(), Ok(n));
    }
    for (n, notes) in (1..).zip(&given) {
        assert_eq!(notes.numbers(), (0..n).collect::<Vec<_>>());
        wait_until("it has gone with its call", || notes.holders() == 0);
    }
}

/// Gives twice what it gets, once it was pending; where it was polled, says whether in a runtime.
#[derive(Clone, Default)]
struct Twice(Arc<AtomicBool>);

impl Steps for Twice {
    async fn step(&self, number: u32) -> Result<u32, Lost> {
        let mut is_first = true;
        std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            if std::mem::take(&mut is_first) { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
        })
        .await;
        #[cfg(feature = "tokio")]
        self.0.store(tokio::runtime::Handle::try_current().is_ok(), Ordering::Relaxed);
        Ok(2 * number)
    }
}

#[test]
fn async_methods_call_back_async_methods() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let twice = Twice::default();
    assert_eq!(errand.follow(10, twice.clone()).wait(), Ok(90));
    assert_eq!(block_on(errand.follow(10, twice.clone())), Ok(90));
    assert!(!twice.0.load(Ordering::Relaxed), "no runtime is about");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let sum = runtime.block_on(errand.follow(10, twice.clone()));
    assert_eq!(sum, Ok(90));
    assert_eq!(
        twice.0.load(Ordering::Relaxed),
        cfg!(feature = "tokio"),
        "it goes on in its caller's runtime"
    );
}

#[test]
fn what_is_kept_is_called_until_it_is_dropped_or_the_connection_ends() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let (first, second) = (Notes::default(), Notes::stopping_at(1));
    assert_eq!(errand.keep(first.clone()).wait(), Ok(1));
    assert_eq!(errand.keep(second.clone()).wait(), Ok(2));
    assert_eq!(errand.ask_kept(1).wait(), Ok(vec![Ok(true), Ok(false)]));
    assert_eq!((first.holders(), second.holders()), (1, 1));
    errand.drop_kept().wait().unwrap();
    wait_until("the owner's dropping them is heard of", || first.holders() + second.holders() == 0);

    assert_eq!(errand.keep(first.clone()).wait(), Ok(1));
    drop(errand);
    wait_until("the connection's end lets go of it", || first.holders() == 0);
    let [said] = &connect(&place.bus()).ask_kept(1).wait().unwrap()[..] else { panic!("one was kept") };
    let Err(Lost(why)) = said else { panic!("the caller has gone: {said:?}") };
    assert!(why.contains("Unpublished"), "{why}");
}

#[test]
fn a_stream_calls_back_until_it_is_dropped() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let (even, odd) = (Notes::default(), Notes::default());
    let mut asked = errand.asked(even.clone(), Some(odd.clone())).wait().unwrap();
    // More than may be under way when the call is answered.
    asked.iter().take(4000).for_each(|said| assert_eq!(said, Ok(Ok(true))));
    assert!(even.numbers().len() >= 2000 && odd.numbers().len() >= 2000);
    drop(asked);
    wait_until("nobody can call them any more", || even.holders() + odd.holders() == 0);
}

#[test]
fn a_thread_of_the_owners_own_calls_back() {
    let place = place();
    let (_owner, errand) = owner(&place);
    assert_eq!(errand.aside(Notes::default()).wait(), Ok(true));
}

#[test]
fn an_object_is_passed_on_to_a_third_process() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let third = start("errand", &[place.text(), "third"]);
    third.expect("ready");
    let notes = Notes::default();
    assert_eq!(errand.pass_on("third".to_owned(), 4, notes.clone()).wait(), Ok(4));
    assert_eq!(notes.numbers(), [0, 1, 2, 3]);
    wait_until("it went with the call", || notes.holders() == 0);
}

#[test]
fn an_object_goes_with_a_call_that_its_caller_has_given_up() {
    let place = place();
    let (owner, errand) = owner(&place);
    let notes = Notes::default();
    let call = errand.outlive(notes.clone()).started();
    owner.expect("running");
    drop(call);
    let said = owner.hear();
    assert!(said.starts_with("cancelled: Err") && said.contains("Unpublished"), "{said}");
    assert_eq!((notes.numbers(), notes.holders()), (vec![], 0));
}

#[test]
fn a_call_with_an_object_is_not_sent_one_way() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let refused = errand.run(1, Notes::default()).send();
    assert!(matches!(refused, Err(CallError::BadRequest { executed: Executed::No, .. })), "{refused:?}");
}

#[test]
fn a_withdrawn_objects_last_calls_still_call_back() {
    let place = place();
    let (mut owner, errand) = owner(&place);
    let gate = Gate::default();
    let call = errand.run(2, gate.clone()).started();
    wait_until("it has begun", || gate.0.is_passing.load(Ordering::Relaxed));
    owner.tell("withdraw");
    wait_until("the withdrawal is heard of", || !errand.handle().is_connected());
    gate.0.is_open.store(true, Ordering::Relaxed);
    assert_eq!(call.wait(), Ok(2));
}

/// Lets nobody pass before it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<Latch>);

#[derive(Default)]
struct Latch {
    is_passing: AtomicBool,
    is_open: AtomicBool,
}

impl Progress for Gate {
    fn at(&self, _: u32) -> Result<bool, Lost> {
        self.0.is_passing.store(true, Ordering::Relaxed);
        wait_until("the gate is opened", || self.0.is_open.load(Ordering::Relaxed));
        Ok(true)
    }

    fn turn(&self, _: &str, _: Blob) -> Result<(String, Blob), Lost> {
        Err(Lost("a gate".to_owned()))
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        Err(Lost("a gate".to_owned()))
    }
}

#[test]
fn in_one_process_it_is_the_same() {
    let bus = Bus::in_memory();
    let _published = bus.publish("errand", Errand::new(bus.clone())).unwrap();
    let errand = connect(&bus);
    let notes = Notes::default();
    assert_eq!(errand.run(3, notes.clone()).wait(), Ok(3));
    assert_eq!(errand.follow(3, Twice::default()).wait(), Ok(6));
    assert_eq!(errand.context(notes.clone()).wait(), Ok((std::process::id(), true)));
    assert_eq!(notes.numbers(), [0, 1, 2]);
    wait_until("it has gone with its call", || notes.holders() == 0);
}

/// Calls an object when it is called.
struct Relaying(Untyped);

impl Progress for Relaying {
    fn at(&self, _: u32) -> Result<bool, Lost> {
        Ok(self.0.call::<(), bool>("free", &()).wait()?)
    }

    fn turn(&self, _: &str, _: Blob) -> Result<(String, Blob), Lost> {
        Err(Lost("it relays".to_owned()))
    }

    fn context(&self) -> Result<(u32, bool), Lost> {
        Err(Lost("it relays".to_owned()))
    }
}

#[test]
fn a_call_that_would_wait_for_itself_through_a_callback_is_refused() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let bus = place.bus();
    let desk: Untyped = bus.proxy("desk").lazy().unwrap();
    let inside = desk.clone();
    let table = MethodTable::named("Desk")
        .method("free", || true)
        .method("busy", move || format!("{:?}", errand.run(1, Relaying(inside.clone())).wait()));
    let _published = bus.publication("desk", table).workers(1).publish().unwrap();
    assert_eq!(desk.call::<(), bool>("free", &()).wait(), Ok(true));
    let said = desk.call::<(), String>("busy", &()).timeout(PATIENCE).wait().unwrap();
    assert!(said.contains("WouldDeadlock"), "{said}");
}

#[test]
fn thousands_of_calls_cost_no_further_descriptors_or_mappings() {
    let place = place();
    let (mut owner, errand) = owner(&place);
    drop(errand);
    wait_until("nobody is connected", || {
        owner.tell("callers");
        owner.hear() == "0"
    });
    let this = std::process::id();
    let bare = (held_by(owner.pid()), held_by(this));
    let errand = connect(&place.bus());
    let connected = (held_by(owner.pid()), held_by(this));
    let notes = Notes::default();
    let call = || assert_eq!(errand.run(1, notes.clone()).wait(), Ok(1));
    // By then all threads are through with what they needed to make the lanes.
    (0..100).for_each(|_| call());
    let with_callbacks = (held_by(owner.pid()), held_by(this));
    assert!(with_callbacks.0.mappings > connected.0.mappings, "{with_callbacks:?} after {connected:?}");
    (0..3000).for_each(|_| call());
    assert_eq!((held_by(owner.pid()), held_by(this)), with_callbacks);
    assert_eq!(notes.numbers().len(), 3100);
    wait_until("it has gone with its calls", || notes.holders() == 0);
    drop(errand);
    let is_back = |now: Held, before: Held| now.fds <= before.fds && now.mappings <= before.mappings;
    let is_all = || is_back(held_by(owner.pid()), bare.0) && is_back(held_by(this), bare.1);
    wait_until("all of it goes with the connection", is_all);
}

#[test]
fn an_owner_has_so_many_objects_of_one_connection_and_no_more() {
    const EXPORTS_MAX: u64 = 4096;
    let place = place();
    let (_owner, errand) = owner(&place);
    let notes = Notes::default();
    for kept in 1..=EXPORTS_MAX {
        assert_eq!(errand.keep(notes.clone()).wait(), Ok(kept));
    }
    let refused = errand.run(1, notes.clone()).wait();
    assert_eq!(refused, Err(CallError::Overloaded { executed: Executed::No }));
    assert_eq!(notes.holders() as u64, EXPORTS_MAX);
    errand.drop_kept().wait().unwrap();
    wait_until("the owner's dropping them is heard of", || notes.holders() == 0);
    assert_eq!(errand.run(1, notes).wait(), Ok(1));
}

/// The same as other callers know it.
#[allow(dead_code)] // it is known by its proxy
mod other {
    use super::Lost;

    #[objbus::interface]
    pub trait Progress {
        fn at(&self, done: u64) -> Result<bool, Lost>;
    }

    pub struct Errand;

    #[objbus::object]
    impl Errand {
        pub fn run(&self, steps: u32, progress: &dyn Progress) -> Result<u32, Lost> {
            progress.at(steps.into()).map(u32::from)
        }
    }

    pub struct Always;

    impl Progress for Always {
        fn at(&self, _: u64) -> Result<bool, Lost> {
            Ok(true)
        }
    }
}

#[test]
fn another_version_of_the_interface_is_another_method() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let other: other::ErrandProxy = place.bus().proxy("errand").wait().unwrap();
    let refused = other.run(1, other::Always).wait();
    assert!(matches!(refused, Err(CallError::SchemaMismatch { .. })), "{refused:?}");
    let description = errand.handle().describe().wait().unwrap().to_string();
    assert!(description.contains("fn run(steps: u32, progress: &dyn Progress) -> Result<u32, Lost>;"));
    assert!(description.contains("fn perhaps(progress: Option<&dyn Progress>)"), "{description}");
    let interface = "interface Progress {\n    fn at(done: u32) -> Result<bool, Lost>;\n";
    assert!(description.contains(interface), "{description}");
}

#[test]
fn row_03_a_caller_killed_in_a_callback_is_news_to_the_method() {
    let place = place();
    let (owner, errand) = owner(&place);
    expect_quick("the callback of a dead caller ends", ROUNDS, NEWS, || {
        let mut caller = start("slow caller", &[place.text()]);
        caller.expect("stuck");
        let at = caller.kill();
        let said = owner.hear();
        let took = at.elapsed();
        assert!(said.starts_with("lost: ") && said.contains("OwnerDied"), "{said}");
        took
    });
    for _ in 0..ROUNDS {
        let mut caller = start("caller", &[place.text()]);
        caller.expect("called");
        caller.kill();
        let said = owner.hear();
        assert!(said.contains("OwnerDied") || said.contains("Unpublished"), "{said}");
    }
    assert_eq!(errand.run(3, Notes::default()).wait(), Ok(3));
}

#[test]
fn row_04_an_owner_killed_in_a_callback_is_news_to_the_caller() {
    let place = place();
    expect_quick("the call of a dead owner ends", ROUNDS, NEWS, || {
        let (mut owner, errand) = owner(&place);
        let gate = Gate::default();
        let call = errand.run(2, gate.clone()).started();
        wait_until("it has begun", || gate.0.is_passing.load(Ordering::Relaxed));
        let at = owner.kill();
        let ended = call.wait();
        let took = at.elapsed();
        assert_eq!(ended, Err(CallError::OwnerDied { executed: Executed::Unknown }));
        gate.0.is_open.store(true, Ordering::Relaxed);
        wait_until("what ran ends, and goes", || Arc::strong_count(&gate.0) == 1);
        took
    });
}

#[test]
fn row_25_a_forked_child_leaves_its_parents_objects_alone() {
    let place = place();
    let (_owner, errand) = owner(&place);
    let gate = Gate::default();
    let call = errand.run(1, gate.clone()).started();
    wait_until("it has begun", || gate.0.is_passing.load(Ordering::Relaxed));
    let child = system::fork(|| {
        let forked = Err(CallError::ForkedHandle { executed: Executed::No });
        let refused = errand.run(1, Notes::default()).wait() == forked;
        i32::from(!refused)
    });
    assert_eq!(system::exit_code(child), 0);
    gate.0.is_open.store(true, Ordering::Relaxed);
    assert_eq!(call.wait(), Ok(1));
}
