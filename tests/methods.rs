//! Rows 26, 27 and 41 of the table of faults: what goes wrong in methods and in what they take and give.

#[path = "support/probe.rs"]
mod probe;
mod support;
use probe::*;
use support::system::expect_quick;
use support::*;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use objbus::{Bus, CallError, Executed, MethodTable, PanicPolicy, Proxy, Type, Untyped};
use serde::{Deserialize, Serialize, Serializer};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        "fragile" => own_fragile(&arguments),
        "doomed" => own_doomed(&arguments),
        "ring" => own_ring(&arguments),
        other => panic!("no role `{other}`"),
    }
}

/// Panics when it is dropped.
#[derive(Type, Serialize, Deserialize)]
struct Mine(u32);

impl Drop for Mine {
    fn drop(&mut self) {
        if self.0 == 13 {
            self.0 = 0;
            panic!("a panic in drop");
        }
    }
}

struct Fragile;

#[objbus::object]
impl Fragile {
    pub fn fine(&self) -> u32 {
        1
    }

    pub fn panics(&self, with: &str) -> u32 {
        panic!("{with}")
    }

    pub async fn panics_async(&self, with: &str) -> u32 {
        panic!("{with}")
    }

    /// Panics at its second poll.
    pub async fn panics_later(&self) -> u32 {
        let mut polled = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut polled, true) {
                panic!("later");
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await
    }

    pub fn drops(&self, mine: Mine) -> u32 {
        mine.0
    }

    pub fn gives(&self) -> Mine {
        Mine(13)
    }

    /// What is thrown panics when it is dropped.
    pub fn throws(&self) -> u32 {
        std::panic::panic_any(Mine(13))
    }

    /// Waits for what never comes and tells nobody, so that its future is dropped at once.
    pub async fn forgotten(&self) -> u32 {
        let mine = Mine(13);
        std::future::pending::<()>().await;
        mine.0
    }

    pub fn aborts(&self) -> u32 {
        std::process::abort()
    }

    pub fn overflows(&self, depth: u64) -> u64 {
        deep(depth)
    }
}

#[allow(unconditional_recursion)]
fn deep(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    deep(depth + 1) + std::hint::black_box(frame)[7]
}

/// Publishes a [`Fragile`]; with a second argument it is poisoned by a panic.
fn own_fragile(arguments: &[String]) -> ! {
    std::panic::set_hook(Box::new(|_| {}));
    let policy = if arguments.len() > 1 { PanicPolicy::Poison } else { PanicPolicy::Continue };
    let bus = bus_at(&arguments[0]);
    let _published =
        bus.publication("fragile", Fragile).on_panic(policy).publish().expect("the name is free");
    say("ready");
    stay()
}

fn fragile(place: &Place, options: &[&str]) -> (Child, FragileProxy) {
    let mut arguments = vec![place.text()];
    arguments.extend(options);
    let owner = start("fragile", &arguments);
    owner.expect("ready");
    let connecting = place.bus().proxy("fragile").call_timeout(PATIENCE);
    (owner, connecting.wait().expect("it is published"))
}

fn panicked(message: &str) -> CallError {
    CallError::MethodPanicked { message: message.to_owned(), executed: Executed::Unknown }
}

#[test]
fn row_26_method_panics() {
    let place = place();
    let (_owner, proxy) = fragile(&place, &[]);
    let long = "long ".repeat(1000);
    for _ in 0..20 {
        assert_eq!(proxy.panics("ouch").wait(), Err(panicked("ouch")));
        assert_eq!(block_on(proxy.panics("ouch")), Err(panicked("ouch")));
        assert_eq!(proxy.panics_async("async").wait(), Err(panicked("async")));
        assert_eq!(proxy.panics_later().wait(), Err(panicked("later")));
        assert_eq!(proxy.panics(&long).wait(), Err(panicked(&long)));
        proxy.panics("one way").send().expect("it is sent");
        assert_eq!(proxy.fine().wait(), Ok(1), "others are served");
    }
}

#[test]
fn row_26_panic_in_drop() {
    let place = place();
    let (_owner, proxy) = fragile(&place, &[]);
    for _ in 0..20 {
        let argument = std::mem::ManuallyDrop::new(Mine(13));
        // `Call` holds the argument encoded, so it is dropped by hand or not at all.
        let call = proxy.handle().call::<_, u32, std::convert::Infallible>(
            index_of("drops"),
            "drops",
            &(&*argument,),
        );
        assert_eq!(call.wait(), Err(panicked("a panic in drop")));
        assert!(matches!(proxy.throws().wait(), Err(CallError::MethodPanicked { .. })));
        let given = proxy.gives().wait();
        assert!(matches!(given, Err(CallError::MethodPanicked { .. })), "the result is dropped by the owner");
        assert_eq!(proxy.fine().wait(), Ok(1));
    }
}

/// More than a process has workers: each that ended would be missed.
const DROPS: u32 = 300;

#[test]
fn row_26_a_panic_in_the_drop_of_an_async_method_ends_no_worker() {
    let place = place();
    let (_owner, proxy) = fragile(&place, &[]);
    for _ in 0..DROPS {
        assert_eq!(proxy.forgotten().wait(), Err(panicked("a panic in drop")));
    }
    assert_eq!(proxy.fine().wait(), Ok(1));
}

/// Publishes objects whose drop panics, one after the other, each as soon as it is told to, and beside them one that stays.
fn own_doomed(arguments: &[String]) -> ! {
    std::panic::set_hook(Box::new(|_| {}));
    let bus = bus_at(&arguments[0]);
    let _published = bus.publish("fragile", Fragile).expect("the name is free");
    say("ready");
    loop {
        let mine = Mine(13);
        let number = move || Some(&mine).map(|mine| mine.0);
        let table = MethodTable::named("Doomed").method("number", number);
        let published = bus.publish("doomed", table).expect("the name is free");
        say("doomed");
        hear();
        drop(published);
    }
}

#[test]
fn row_26_a_panic_in_the_drop_of_an_object_ends_no_thread_of_the_library() {
    let place = place();
    let mut owner = start("doomed", &[place.text()]);
    owner.expect("ready");
    let bus = place.bus();
    let fine: FragileProxy = bus.proxy("fragile").call_timeout(PATIENCE).wait().expect("it is published");
    let doomed: Untyped = bus.proxy("doomed").call_timeout(PATIENCE).lazy().expect("the name is valid");
    for _ in 0..DROPS {
        owner.expect("doomed");
        assert_eq!(doomed.call::<(), Option<u32>>("number", &()).wait(), Ok(Some(13)));
        owner.tell("go on");
        assert_eq!(fine.fine().wait(), Ok(1));
    }
}

fn index_of(name: &str) -> usize {
    FragileProxy::interface().methods.iter().position(|(method, _)| *method == name).expect("it is there")
}

#[test]
fn row_26_abort_and_stack_overflow_are_the_owners_death() {
    let died = CallError::OwnerDied { executed: Executed::Unknown };
    for overflow in [false, true] {
        let place = place();
        let (_owner, proxy) = fragile(&place, &[]);
        let error = match overflow {
            true => proxy.overflows(0).wait().unwrap_err(),
            false => proxy.aborts().wait().unwrap_err(),
        };
        assert_eq!(error, died);
    }
}

#[test]
fn row_26_an_object_can_be_poisoned() {
    let place = place();
    let (_owner, proxy) = fragile(&place, &["poison"]);
    assert_eq!(proxy.fine().wait(), Ok(1));
    assert_eq!(proxy.panics("the first").wait(), Err(panicked("the first")));
    let poisoned = CallError::MethodPanicked { message: "the first".to_owned(), executed: Executed::No };
    assert_eq!(proxy.fine().wait(), Err(poisoned.clone()));
    assert_eq!(proxy.panics_async("a second").wait(), Err(poisoned));
}

/// Publishes `name`, whose method `pass` calls the next object in a list, until the list is empty.
fn own_ring(arguments: &[String]) -> ! {
    let bus = bus_at(&arguments[0]);
    let calling = bus.clone();
    let table = MethodTable::named("Ring").method("pass", move |rest: Vec<String>| pass(&calling, rest));
    let publication = bus.publication(&arguments[1], table);
    let publication = if arguments[2] == "exclusive" { publication.workers(1) } else { publication };
    let _published = publication.publish().expect("the name is free");
    say("ready");
    stay()
}

/// How the innermost call ended, and how many microseconds it took who made it.
fn pass(bus: &Bus, mut rest: Vec<String>) -> (String, u64) {
    if rest.is_empty() {
        return ("served".to_owned(), 0);
    }
    let next = rest.remove(0);
    let proxy: Untyped = bus.proxy(&next).call_timeout(PATIENCE).wait().expect("it is published");
    let call = proxy.call::<_, (String, u64)>("pass", &(rest,));
    let began = Instant::now();
    match call.wait() {
        Ok(innermost) => innermost,
        Err(error) => (format!("{error:?}"), began.elapsed().as_micros() as u64),
    }
}

/// The objects that a call is passed along, each in a process of its own, and a proxy of the first.
struct Ring {
    first: Untyped,
    _owners: Vec<Child>,
    _place: Place,
}

fn ring(kind: &str, way: &[&str], timeout: Duration) -> Ring {
    let place = place();
    let mut names = way.to_vec();
    names.sort_unstable();
    names.dedup();
    let owners: Vec<_> = names.iter().map(|name| start("ring", &[place.text(), name, kind])).collect();
    owners.iter().for_each(|owner| owner.expect("ready"));
    let first = place.bus().proxy(way[0]).call_timeout(timeout).wait().expect("it is published");
    Ring { first, _owners: owners, _place: place }
}

impl Ring {
    /// Passes a call along `way` and gives how the innermost ended, and after how long.
    fn along(&self, way: &[&str]) -> (String, Duration) {
        let rest: Vec<String> = way[1..].iter().map(ToString::to_string).collect();
        let began = Instant::now();
        match self.first.call::<_, (String, u64)>("pass", &(rest,)).wait() {
            Ok((how, us)) => (how, Duration::from_micros(us)),
            Err(error) => (format!("outermost: {error:?}"), began.elapsed()),
        }
    }
}

const WAYS: [&[&str]; 4] = [&["a", "a"], &["a", "b", "a"], &["a", "b", "c", "a"], &["a", "b", "c", "b"]];

#[test]
fn row_27_reentrant_calls_of_exclusive_objects_would_deadlock_within_1_ms() {
    for way in WAYS {
        let ring = ring("exclusive", way, PATIENCE);
        expect_quick(&format!("{way:?} is refused"), 1, Duration::from_millis(1), || {
            let (how, after) = ring.along(way);
            assert_eq!(how, "WouldDeadlock { executed: No }", "{way:?}");
            after
        });
    }
}

#[test]
fn row_27_reentrant_calls_of_others_are_served() {
    for way in WAYS {
        let (how, _) = ring("shared", way, PATIENCE).along(way);
        assert_eq!(how, "served", "{way:?}");
    }
    // Longer than a chain can name, and than the workers are many: served, or ended by the deadline.
    let long: Vec<&str> = ["a", "b"].into_iter().cycle().take(40).collect();
    let ring = ring("shared", &long, Duration::from_secs(3));
    let (how, _) = ring.along(&long);
    assert!(how == "served" || how.contains("DeadlineExceeded"), "{how}");
}

/// Encodes itself in an unusual way.
#[derive(Type, Deserialize)]
enum Odd {
    Panics,
    Blocks,
    Reenters,
}

static GATE: std::sync::LazyLock<Gate> = std::sync::LazyLock::new(Gate::default);
static PROXY: std::sync::Mutex<Option<Untyped>> = std::sync::Mutex::new(None);
static IS_ENCODING: AtomicBool = AtomicBool::new(false);

impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Odd::Panics => panic!("in an encoder"),
            Odd::Blocks => {
                IS_ENCODING.store(true, Ordering::SeqCst);
                GATE.pass();
            }
            Odd::Reenters => {
                let proxy = PROXY.lock().unwrap().clone().expect("it was put there");
                assert_eq!(proxy.call::<_, u64>("add", &(1_u64, 2_u64)).wait(), Ok(3));
            }
        }
        to.serialize_u64(7)
    }
}

#[test]
fn row_41_an_encoder_that_panics_blocks_or_reenters() {
    let place = place();
    let _owner = owner(&place, &[]);
    let proxy: Untyped = place.bus().proxy("probe").call_timeout(PATIENCE).wait().unwrap();
    *PROXY.lock().unwrap() = Some(proxy.clone());
    let key_of_u64 = |odd: Odd| proxy.call::<_, u64>("mark", &(odd,));
    let blocked = {
        let proxy = proxy.clone();
        std::thread::spawn(move || proxy.call::<_, u64>("mark", &(Odd::Blocks,)).wait())
    };
    wait_until("one is being encoded", || IS_ENCODING.load(Ordering::SeqCst));
    for i in 0..200_u64 {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| key_of_u64(Odd::Panics)));
        assert!(panic.is_err(), "the panic is the caller's own");
        // Its types are not the method's, which is found out after it was encoded and sent.
        assert!(key_of_u64(Odd::Reenters).wait().is_err());
        let call = proxy.call::<_, u64>("add", &(i, 1_u64));
        assert_eq!(call.wait(), Ok(i + 1), "other calls go on");
    }
    let threads: Vec<_> = (0..70_u64)
        .map(|i| {
            let call = proxy.call::<_, u64>("add", &(i, 1_u64));
            std::thread::spawn(move || call.wait())
        })
        .collect();
    for (i, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), Ok(i as u64 + 1), "no slot was lost");
    }
    GATE.open();
    assert!(matches!(blocked.join().unwrap(), Err(CallError::SchemaMismatch { .. })));
    *PROXY.lock().unwrap() = None;
    assert_eq!(proxy.handle().in_flight(), 0);
}

/// Encoders of results are the owner's, and run while it serves.
#[test]
fn row_41_an_encoder_of_a_result_that_panics() {
    let bus = Bus::in_memory();
    let table = MethodTable::named("Odd").method("odd", || Odd::Panics).method("fine", || 1_u8);
    let _published = bus.publish("odd", table).unwrap();
    let proxy: Untyped = Arc::new(bus).proxy("odd").wait().unwrap();
    for _ in 0..100 {
        let result = proxy.call::<(), Odd>("odd", &()).wait().map(drop);
        assert!(matches!(result, Err(CallError::MethodPanicked { .. })), "{result:?}");
        assert_eq!(proxy.call::<(), u8>("fine", &()).wait(), Ok(1));
    }
}
