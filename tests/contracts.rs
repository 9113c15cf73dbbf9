//! What an object promises its callers: its own errors, its description, its interface, who may call, and how much.

#[path = "support/probe.rs"]
mod probe;
mod support;
use probe::*;
use support::*;

use std::error::Error;
use std::io;
use std::task::Poll;
use std::time::Duration;

use objbus::{BusError, CallError, ConnectError, Executed, MethodTable, Proxy, RemoteError, Type, Untyped};
use serde::{Deserialize, Serialize};

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "owner" => own(&arguments),
        "shop" => {
            let bus = bus_at(&arguments[0]);
            let _shop = bus.publish("shop", Shop).expect("the name is free");
            let _counter = bus.publish("counter", CounterObject(Local)).expect("the name is free");
            let _table = bus.publish("table", closures()).expect("the name is free");
            let forwarder = || Forwarder(bus.proxy("nobody").lazy().expect("the name is valid"));
            let _relay = bus.publish("relay", RelayObject(forwarder())).expect("the name is free");
            let _forwarder = bus.publish("forwarder", forwarder()).expect("the name is free");
            say("ready");
            stay()
        }
        "sender" => {
            let echoed = probe_at(&arguments[0]).echo(&[7; 400_000]).wait();
            say(format!("{:?}", echoed.map(|data| data.len())));
            stay()
        }
        "hoarder" => {
            let probe = probe_at(&arguments[0]);
            let _held = probe.held_async(1).timeout(Duration::MAX).started();
            let _unread = probe.echo(&[7; 1_500_000]).started();
            // One worker is left beside the held call: when this is answered, so is what came before.
            assert_eq!(probe.add(1, 1).wait(), Ok(2));
            say("full");
            stay()
        }
        other => panic!("no role `{other}`"),
    }
}

fn probe_at(directory: &str) -> ProbeProxy {
    let connecting = bus_at(directory).proxy("probe").call_timeout(PATIENCE);
    connecting.wait().expect("the probe is published")
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
enum ShopError {
    SoldOut { left: u32 },
    Closed(String),
}

struct Shop;

/// A shop.
#[objbus::object]
impl Shop {
    /// Buys so many.
    pub fn buy(&self, count: u32) -> Result<u32, ShopError> {
        match count {
            0 => Err(ShopError::Closed("for ever".to_owned())),
            1..=9 => Ok(count),
            _ => Err(ShopError::SoldOut { left: 9 }),
        }
    }

    pub async fn buy_later(&self, count: u32) -> Result<u32, ShopError> {
        self.buy(count)
    }

    pub fn open_file(&self) -> io::Result<u32> {
        Err(io::Error::new(io::ErrorKind::NotFound, "no such list"))
    }

    pub fn boxed(&self) -> Result<u32, Box<dyn Error + Send + Sync>> {
        Err("the till is broken".into())
    }

    #[cfg(feature = "anyhow")]
    pub fn wrapped(&self) -> anyhow::Result<u32> {
        Err(anyhow::anyhow!("no paper").context("cannot print"))
    }

    /// What it is called.
    #[objbus(property)]
    pub fn title(&self) -> String {
        "corner".to_owned()
    }
}

fn closures() -> MethodTable {
    MethodTable::named("Math")
        .method("hypot", |x: f64, y: f64| x.hypot(y))
        .docs("The long side.")
        .argument_names(&["x", "y"])
        .property("pi", || 3_u8)
        .try_method("root", |x: i64| if x < 0 { Err(ShopError::SoldOut { left: 0 }) } else { Ok(x.isqrt()) })
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Type)]
enum CounterError {
    Full,
    Bus(String),
}

impl From<BusError> for CounterError {
    fn from(error: BusError) -> CounterError {
        CounterError::Bus(error.to_string())
    }
}

/// Counts.
#[objbus::interface]
trait Counter {
    /// The sum, up to 100.
    fn sum(&self, numbers: &[u32]) -> Result<u32, CounterError>;

    async fn later(&self, number: u32) -> Result<u32, CounterError>;
}

struct Local;

impl Counter for Local {
    fn sum(&self, numbers: &[u32]) -> Result<u32, CounterError> {
        Some(numbers.iter().sum()).filter(|sum| *sum <= 100).ok_or(CounterError::Full)
    }

    async fn later(&self, number: u32) -> Result<u32, CounterError> {
        self.sum(&[number])
    }
}

/// Passes calls on to an object that may not be there; its only errors are the bus's.
#[objbus::interface]
trait Relay {
    fn buy(&self, count: u32) -> Result<u32, BusError>;

    async fn buy_later(&self, count: u32) -> Result<u32, BusError>;
}

struct Forwarder(Untyped);

impl Relay for Forwarder {
    fn buy(&self, count: u32) -> Result<u32, BusError> {
        self.0.call("absent", &(count,)).wait()
    }

    async fn buy_later(&self, count: u32) -> Result<u32, BusError> {
        self.0.call("absent", &(count,)).await
    }
}

#[objbus::object]
impl Forwarder {
    pub fn forwarded(&self, count: u32) -> Result<u32, BusError> {
        Relay::buy(self, count)
    }
}

fn shop(place: &Place) -> Child {
    let owner = start("shop", &[place.text()]);
    owner.expect("ready");
    owner
}

fn remote<T>(result: Result<T, CallError<RemoteError>>) -> RemoteError {
    match result {
        Err(CallError::App(error)) => error,
        Err(other) => panic!("the bus's error: {other}"),
        Ok(_) => panic!("it cannot succeed"),
    }
}

#[test]
fn a_methods_own_errors_arrive() {
    let place = place();
    let _owner = shop(&place);
    let shop: ShopProxy = place.bus().proxy("shop").call_timeout(PATIENCE).wait().unwrap();
    assert_eq!(shop.buy(3).wait(), Ok(3));
    assert_eq!(shop.buy(10).wait(), Err(CallError::App(ShopError::SoldOut { left: 9 })));
    assert_eq!(block_on(shop.buy_later(0)), Err(CallError::App(ShopError::Closed("for ever".to_owned()))));
    assert_eq!(shop.buy(0).wait().unwrap_err().executed(), Executed::Yes);
    let missing = remote(shop.open_file().wait());
    assert_eq!(
        (missing.kind.as_str(), missing.message.as_str()),
        ("std::io::ErrorKind::NotFound", "no such list")
    );
    assert_eq!(remote(shop.boxed().wait()).message, "the till is broken");
    #[cfg(feature = "anyhow")]
    {
        let wrapped = remote(shop.wrapped().wait());
        assert_eq!(
            (wrapped.message.as_str(), wrapped.sources),
            ("cannot print", vec!["no paper".to_owned()])
        );
    }
}

#[test]
fn an_object_describes_itself() {
    let place = place();
    let _owner = shop(&place);
    let bus = place.bus();
    let shop: ShopProxy = bus.proxy("shop").call_timeout(PATIENCE).wait().unwrap();
    let description = shop.handle().describe().wait().unwrap();
    assert_eq!((description.type_name.as_str(), description.docs.as_str()), ("Shop", "A shop."));
    let text = description.to_string();
    for line in [
        "/// Buys so many.",
        "fn buy(count: u32) -> Result<u32, ShopError>;",
        "property title()",
        "async fn buy_later",
    ] {
        assert!(text.contains(line), "`{line}` is not in\n{text}");
    }
    assert_eq!(block_on(shop.title()), Ok("corner".to_owned()));
    let table: Untyped = bus.proxy("table").call_timeout(PATIENCE).wait().unwrap();
    let text = table.handle().describe().wait().unwrap().to_string();
    assert!(text.contains("    /// The long side.\n    fn hypot(x: f64, y: f64) -> f64;"), "{text}");
    assert_eq!(table.property::<u8>("pi").wait(), Ok(3));
    let root = |x: i64| table.try_call::<_, i64, ShopError>("root", &(x,)).wait();
    assert_eq!(root(10), Ok(3));
    assert_eq!(root(-1), Err(CallError::App(ShopError::SoldOut { left: 0 })));
    let unknown = table.call::<(), u8>("tau", &()).wait();
    assert!(
        matches!(unknown, Err(CallError::UnknownMethod { method, executed: Executed::No }) if method == "tau")
    );
    // A name from elsewhere, gone before the call is made; the next call in its memory has its own.
    let made = table.call::<(), u8>(&["ta", "u"].concat(), &());
    assert!(format!("{made:?}").contains("\"tau\""), "{made:?}");
    assert!(matches!(made.wait(), Err(CallError::UnknownMethod { method, .. }) if method == "tau"));
    let typed = shop.buy(1);
    assert!(format!("{typed:?}").contains("\"buy\""), "{typed:?}");
    let other = table.call::<(), u64>("pi", &()).wait();
    assert!(matches!(other, Err(CallError::SchemaMismatch { method, .. }) if method == "pi"));
}

#[test]
fn an_interface_takes_a_local_object_or_a_proxy() {
    async fn work(counter: &impl Counter) -> (Result<u32, CounterError>, Result<u32, CounterError>, u32) {
        (counter.sum(&[1, 2, 3]), counter.sum(&[100, 1]), counter.later(7).await.unwrap())
    }
    let place = place();
    let mut owner = shop(&place);
    let proxy: CounterProxy = place.bus().proxy("counter").call_timeout(PATIENCE).wait().unwrap();
    let (here, there) = (block_on(work(&Local)), block_on(work(&proxy)));
    assert_eq!(here, there);
    assert_eq!(here, (Ok(6), Err(CounterError::Full), 7));
    owner.stop();
    let hurried = proxy.clone().with_timeout(Duration::from_millis(20));
    let late = Counter::sum(&hurried, &[1]);
    assert!(matches!(&late, Err(CounterError::Bus(why)) if why.contains("deadline")), "{late:?}");
    assert!(format!("{proxy:?}").contains("\"counter\""), "{proxy:?}");
    owner.kill();
    assert!(matches!(Counter::sum(&proxy, &[1]), Err(CounterError::Bus(sentence)) if !sentence.is_empty()));
}

#[test]
fn the_bus_errors_of_an_interface_are_the_callers_or_nested() {
    let place = place();
    let mut owner = shop(&place);
    let bus = place.bus();
    let relay: RelayProxy = bus.proxy("relay").call_timeout(PATIENCE).wait().unwrap();
    for returned in [Relay::buy(&relay, 1), block_on(Relay::buy_later(&relay, 1))] {
        // The method ran, whatever became of the call that it made.
        let Err(CallError::Nested { error, executed: Executed::Yes }) = returned else {
            panic!("{returned:?}")
        };
        assert_eq!(error.kind, "objbus::CallError::NotFound");
        assert!(error.message.contains("nobody publishes `nobody`"), "{error}");
    }
    let forwarder: ForwarderProxy = bus.proxy("forwarder").call_timeout(PATIENCE).wait().unwrap();
    assert_eq!(remote(forwarder.forwarded(1).wait()).kind, "objbus::CallError::NotFound");
    owner.kill();
    let gone = Relay::buy(&relay, 1);
    assert!(
        matches!(gone, Err(CallError::NotFound { .. } | CallError::OwnerDied { executed: Executed::No })),
        "{gone:?}"
    );
}

#[test]
fn access_rules_hold_for_the_object_and_for_each_method() {
    let place = place();
    let _closed = owner_of(&place, "closed", &["deny"]);
    let refused = place.bus().proxy::<ProbeProxy>("closed").wait();
    assert_eq!(refused.err(), Some(ConnectError::PermissionDenied));
    let _owner = owner(&place, &["deny=mark", "deny=add_async"]);
    let proxy = probe(&place);
    let denied = Err(CallError::PermissionDenied { executed: Executed::No });
    for _ in 0..20 {
        assert_eq!(proxy.mark(1).wait(), denied);
        assert_eq!(block_on(proxy.add_async(1, 1)), denied);
        assert_eq!(proxy.add(1, 1).wait(), Ok(2));
        proxy.mark(1).send().expect("it is sent, and not run");
    }
    assert_eq!(proxy.runs().wait(), Ok(0));
}

#[test]
fn quotas_bound_what_a_caller_uses() {
    let place = place();
    let mut owner = owner(&place, &["in_flight=4"]);
    let (proxy, other) = (probe(&place), probe(&place));
    let mut held: Vec<_> = (0..4).map(|id| proxy.held_quietly(id)).collect();
    held.iter_mut().for_each(|call| assert!(poll_once(call).is_pending()));
    let overloaded = Err(CallError::Overloaded { executed: Executed::No });
    wait_until("the four are taken", || proxy.add(1, 1).wait() == overloaded);
    assert_eq!(other.add(1, 1).wait(), Ok(2), "another caller has a quota of its own");
    owner.tell("open");
    for (id, call) in held.into_iter().enumerate() {
        assert_eq!(block_on(call), Ok(id as u64));
    }
    assert_eq!(proxy.add(1, 1).wait(), Ok(2));
    let lanes = owner_of(&place, "few", &["lanes=2"]);
    let connect = || place.bus().proxy::<ProbeProxy>("few").wait();
    let two = [connect().unwrap(), connect().unwrap()];
    assert_eq!(connect().err(), Some(ConnectError::TooManyCallers));
    drop(two);
    wait_until("a lane is free again", || connect().is_ok());
    drop(lanes);
}

/// Several workers take what comes at once; what a caller sent within its quota is served, whatever came after it.
#[test]
fn a_quota_refuses_what_came_beyond_it_and_nothing_before() {
    let place = place();
    let mut owner = owner(&place, &["in_flight=4"]);
    let proxy = probe(&place);
    for round in 0..100 {
        shut_gate(&mut owner);
        let mut calls: Vec<_> = (0..12).map(|id| proxy.held_quietly(id)).collect();
        let mut polled: Vec<_> = calls.iter_mut().map(poll_once).collect();
        let beyond = calls.split_off(4).into_iter().zip(polled.split_off(4));
        for (call, polled) in beyond {
            let refused = match polled {
                Poll::Ready(refused) => refused,
                Poll::Pending => block_on(call),
            };
            assert_eq!(refused, Err(CallError::Overloaded { executed: Executed::No }), "round {round}");
        }
        owner.tell("open");
        for (id, call) in calls.into_iter().enumerate() {
            assert_eq!(block_on(call), Ok(id as u64), "round {round}");
        }
    }
}

const OVERLOADED: CallError = CallError::Overloaded { executed: Executed::No };

#[test]
fn quotas_bound_the_bytes_of_requests_over_all_lanes_of_a_process() {
    let place = place();
    let mut owner = owner(&place, &["bytes=1000000"]);
    let lanes = [probe(&place), probe(&place)];
    let data = vec![7; 400_000];
    let mut held: Vec<_> = (0..).zip(&lanes).map(|(id, lane)| lane.held_with(id, &data)).collect();
    for (id, call) in held.iter_mut().enumerate() {
        assert!(poll_once(call).is_pending());
        owner.expect(&format!("began {id}"));
    }
    for lane in &lanes {
        assert_eq!(lane.echo(&data).wait(), Err(OVERLOADED));
        assert_eq!(block_on(lane.echo(&data)), Err(OVERLOADED));
        lane.mark(1).send().expect("it is sent");
        assert_eq!(lane.add(1, 1).wait(), Ok(2), "small bodies do not count");
    }
    let other = start("sender", &[place.text()]);
    other.expect("Ok(400000)");
    owner.tell("open");
    held.into_iter().for_each(|call| assert_eq!(block_on(call), Ok(400_000)));
    // As much as there may be, there and back, again and again: nothing is held longer than the call.
    let whole = vec![7; 999_990];
    for round in 0..10 {
        assert_eq!(lanes[round % 2].echo(&whole).wait().map(|data| data.len()), Ok(whole.len()), "{round}");
        assert_eq!(block_on(lanes[0].held_with(1, &whole)), Ok(whole.len() as u64), "{round}");
        owner.expect("began 1");
    }
    let too_large = lanes[0].echo(&vec![7; 1_000_001]).wait();
    assert!(matches!(too_large, Err(CallError::TooLarge { limit: 1_000_000, executed: Executed::No, .. })));
}

#[test]
fn quotas_bound_the_bytes_of_answers_not_taken() {
    let place = place();
    // One worker: when a call is answered, those before it are.
    let mut owner = owner(&place, &["workers=1", "bytes=1000000"]);
    owner.tell("open");
    let (proxy, lane) = (probe(&place), probe(&place));
    let unread = proxy.held_bytes(1, 600_000).started();
    owner.expect("began 1");
    assert_eq!(proxy.add(1, 1).wait(), Ok(2));
    for _ in 0..3 {
        assert_eq!(lane.echo(&[7; 500_000]).wait(), Err(OVERLOADED));
        let result = lane.held_bytes(2, 500_000).wait();
        assert_eq!(result, Err(CallError::NoMemory { executed: Executed::Yes }));
        owner.expect("began 2");
    }
    assert_eq!(lane.echo(&[7; 390_000]).wait().map(|data| data.len()), Ok(390_000));
    assert_eq!(unread.wait().map(|data| data.len()), Ok(600_000), "nothing is lost");
    assert_eq!(lane.echo(&[7; 500_000]).wait().map(|data| data.len()), Ok(500_000));
}

#[test]
fn quotas_and_memory_of_a_dead_caller_come_back_while_its_method_runs() {
    let place = place();
    let mut owner = owner(&place, &["memory=2097152", "workers=2"]);
    let mut hoarder = start("hoarder", &[place.text()]);
    owner.expect("began 1");
    hoarder.expect("full");
    let proxy = probe(&place);
    let echo = || proxy.echo(&[7; 1_500_000]).wait().map(|data| data.len());
    assert_eq!(echo(), Err(CallError::NoMemory { executed: Executed::Yes }));
    hoarder.kill();
    wait_until("the unread answer's memory is free", || echo() == Ok(1_500_000));
    wait_for_callers(&mut owner, 2);
    owner.tell("open");
    owner.expect("left 1");
    wait_for_callers(&mut owner, 1);
}

#[test]
fn bodies_beyond_the_limit_are_refused() {
    let place = place();
    let mut owner = owner(&place, &["body=1000"]);
    let proxy = probe(&place);
    let size = |result: Result<Vec<u8>, CallError>| match result {
        Err(CallError::TooLarge { limit, executed, .. }) => Some((limit, executed)),
        _ => None,
    };
    assert_eq!(size(proxy.echo(&[1; 2000]).wait()), Some((1000, Executed::No)));
    owner.tell("open");
    assert_eq!(size(proxy.held_bytes(1, 2000).wait()), Some((1000, Executed::Yes)));
    assert_eq!(proxy.echo(&[1; 900]).wait().map(|data| data.len()), Ok(900));
    // The caller's own limit is kept before anything is sent.
    let limits = objbus::Limits { body_bytes: 500, ..objbus::Limits::default() };
    let small = objbus::Bus::builder().directory(place.path()).limits(limits).open().unwrap();
    let proxy: ProbeProxy = small.proxy("probe").wait().unwrap();
    assert_eq!(size(proxy.echo(&[1; 900]).wait()), Some((500, Executed::No)));
}
