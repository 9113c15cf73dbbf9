//! The process' side of the connection, with the supervisor played by the test.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use objbus::{Bus, MethodTable};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::*;
use crate::context::ServiceContext;
use crate::control::{ToProcess, pair};
use crate::service::{Service, ServiceError};

/// A service that does what its configuration says, and writes down what it was told.
struct Scripted {
    ctx: ServiceContext<String>,
}

#[objbus::object]
impl Scripted {
    pub fn name(&self) -> String {
        self.ctx.name().to_owned()
    }
}

impl Scripted {
    /// What the script has for a step; the words of a script are `step:act`.
    async fn act(&self, step: &str) -> Result<(), ServiceError> {
        Scripted::play(&self.ctx, step).await
    }

    async fn play(ctx: &ServiceContext<String>, step: &str) -> Result<(), ServiceError> {
        let script = ctx.config().split_whitespace().filter_map(|word| word.split_once(':'));
        for (_, act) in script.filter(|(at, _)| *at == step) {
            match act {
                "fail" => return Err(std::io::Error::other("as it was told").into()),
                "panic" => panic!("as it was told"),
                "hang" => std::future::pending().await,
                "block" => loop {
                    std::thread::park();
                },
                "spawn" => drop(ctx.spawn(ctx.stopping())),
                "endless" => drop(ctx.spawn(std::future::pending::<()>())),
                "outlast" => {
                    let (of_task, stopping) = (ctx.clone(), ctx.stopping());
                    drop(ctx.spawn(async move {
                        stopping.await;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        let table = MethodTable::named("Outlasted").method("nop", || ());
                        std::mem::forget(of_task.bus().publish("outlasted", table));
                    }));
                }
                "listen" => drop(ctx.listen(ADDRESS).await?),
                other => return Err(format!("no act `{other}`").into()),
            }
        }
        Ok(())
    }
}

const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 5511);

impl Service for Scripted {
    type Config = String;

    async fn new(ctx: ServiceContext<String>) -> Result<Self, ServiceError> {
        Scripted::play(&ctx, "new").await?;
        Ok(Scripted { ctx })
    }

    async fn start(&self) -> Result<(), ServiceError> {
        self.act("start").await
    }

    async fn stop(&self) -> Result<(), ServiceError> {
        self.act("stop").await
    }
}

/// A process with the services `a` and `b`, and the supervisor's end of its connection.
struct Played {
    control: Connection,
    bus: Bus,
    ends: JoinHandle<End>,
}

impl Played {
    async fn new(script_of_a: &str) -> Played {
        Played::with(script_of_a, PATIENT, Ok(Bus::in_memory()), Handle::current()).await
    }

    async fn with_limits(script_of_a: &str, limits: Limits) -> Played {
        Played::with(script_of_a, limits, Ok(Bus::in_memory()), Handle::current()).await
    }

    async fn with(script_of_a: &str, limits: Limits, bus: Result<Bus, String>, runtime: Handle) -> Played {
        let script = script_of_a.to_owned();
        let app = App::new("played")
            .process("worker", |p| p.scale(1))
            .service::<Scripted>("a", |s| s.config(script).publish())
            .service::<Scripted>("b", |s| s.publish().depends_on("a"))
            .service::<Scripted>("elsewhere", |s| s.process("background"))
            .start_timeout(limits.start)
            .stop_timeout(limits.stop);
        let (plan, settings) = app.configured(&Options::default()).unwrap();
        let instance = Instance { name: "worker".into(), index: 2, supervisor: 0 };
        let (here, there) = pair().unwrap();
        let host = Host {
            app,
            plan,
            settings: Arc::new(settings),
            is_dev: false,
            instance,
            bus: bus.clone(),
            runtime,
        };
        let there = Connection::new(there).unwrap();
        let ends = tokio::spawn(async move { serve(host, &there).await });
        let played = Played {
            control: Connection::new(here).unwrap(),
            bus: bus.unwrap_or_else(|_| Bus::in_memory()),
            ends,
        };
        assert_eq!(played.hears().await, ToSupervisor::Hello);
        played
    }

    async fn says(&self, message: ToProcess) {
        self.control.send(&message, None::<OwnedFd>).await.unwrap();
    }

    async fn hears(&self) -> ToSupervisor {
        let heard = tokio::time::timeout(DEADLINE, self.control.recv()).await;
        heard.expect("it answers").unwrap().expect("it is there").0
    }

    async fn start(&self, service: &str) -> ToSupervisor {
        self.says(ToProcess::Start { service: service.into(), replace: false }).await;
        self.hears().await
    }

    async fn stop(&self, service: &str) -> ToSupervisor {
        self.says(ToProcess::Stop { service: service.into(), is_replaced: false }).await;
        self.hears().await
    }

    fn names(&self) -> Vec<String> {
        self.bus.names().into_iter().map(|(name, _)| name).collect()
    }
}

/// How long a service may start and stop.
#[derive(Clone, Copy)]
struct Limits {
    start: Duration,
    stop: Duration,
}

/// For everything that comes to an end by itself.
const PATIENT: Limits = Limits { start: DEADLINE, stop: DEADLINE };
/// For a start that does not.
const SHORT_START: Limits = Limits { start: Duration::from_millis(50), stop: DEADLINE };
/// For a stop that does not.
const SHORT_STOP: Limits = Limits { start: DEADLINE, stop: Duration::from_millis(50) };
/// Within which everything must happen.
const DEADLINE: Duration = Duration::from_secs(10);

fn started(service: &str) -> ToSupervisor {
    ToSupervisor::Started { service: service.into() }
}

fn stopped(service: &str) -> ToSupervisor {
    ToSupervisor::Stopped { service: service.into(), error: None }
}

fn failure(message: ToSupervisor) -> String {
    match message {
        ToSupervisor::Failed { service, why } => format!("{service}: {why}"),
        ToSupervisor::Stopped { service, error: Some(error) } => format!("{service}: {error}"),
        other => panic!("no failure: {other:?}"),
    }
}

/// Threads enough that a service can block one of them.
macro_rules! on_threads {
    ($(fn $name:ident() $body:block)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() $body)*
    };
}

on_threads! {
    fn a_service_is_published_when_it_has_started_and_withdrawn_before_it_has_stopped() {
        let played = Played::new("").await;
        assert_eq!(played.start("a").await, started("a"));
        assert_eq!(played.start("b").await, started("b"));
        let proxy: ScriptedProxy = played.bus.proxy("b").await.unwrap();
        assert_eq!(proxy.name().await.unwrap(), "b");
        assert_eq!(played.stop("b").await, stopped("b"));
        assert_eq!(played.names(), ["a"]);
        assert_eq!(played.stop("a").await, stopped("a"));
        played.says(ToProcess::End).await;
        assert_eq!(played.ends.await.unwrap(), End::Told);
    }

    fn a_failure_a_panic_and_a_hang_are_told_with_their_reason() {
        let cases = [
            ("new:fail", PATIENT, "a: as it was told"),
            ("start:fail", PATIENT, "a: as it was told"),
            ("new:panic", PATIENT, "a: it panicked: as it was told"),
            ("start:panic", PATIENT, "a: it panicked: as it was told"),
            ("new:hang", SHORT_START, "a: it did not start within 50ms"),
            ("start:hang", SHORT_START, "a: it did not start within 50ms"),
        ];
        for (script, limits, told) in cases {
            let played = Played::with_limits(script, limits).await;
            assert_eq!(failure(played.start("a").await), told, "{script}");
            assert_eq!(played.names(), [""; 0]);
            assert_eq!(played.stop("a").await, stopped("a"), "{script}");
        }
    }

    fn a_process_goes_on_after_a_failure() {
        let played = Played::new("start:panic").await;
        failure(played.start("a").await);
        assert_eq!(played.start("b").await, started("b"));
        failure(played.start("a").await);
    }

    fn a_stop_that_fails_panics_or_hangs_is_told_and_is_one() {
        let cases = [
            ("stop:fail", PATIENT, "a: as it was told"),
            ("stop:panic", PATIENT, "a: it panicked: as it was told"),
            ("stop:hang", SHORT_STOP, "a: it did not stop within 50ms"),
            ("start:endless", SHORT_STOP, "a: it did not stop within 50ms"),
        ];
        for (script, limits, told) in cases {
            let played = Played::with_limits(script, limits).await;
            assert_eq!(played.start("a").await, started("a"));
            assert_eq!(failure(played.stop("a").await), told, "{script}");
            assert_eq!(played.names(), [""; 0]);
        }
    }

    fn what_a_service_has_spawned_is_told_and_waited_for() {
        let played = Played::new("start:spawn").await;
        assert_eq!(played.start("a").await, started("a"));
        assert_eq!(played.stop("a").await, stopped("a"));
    }

    fn a_service_that_is_told_to_stop_while_it_starts_does() {
        let played = Played::new("start:hang").await;
        played.says(ToProcess::Start { service: "a".into(), replace: false }).await;
        assert_eq!(played.stop("a").await, stopped("a"));
        played.says(ToProcess::Start { service: "a".into(), replace: false }).await;
        assert_eq!(played.stop("a").await, stopped("a"));
    }

    fn a_service_that_is_not_there_fails_to_start_and_stops_at_once() {
        let played = Played::new("").await;
        for service in ["elsewhere", "nowhere"] {
            let told = failure(played.start(service).await);
            assert_eq!(told, format!("{service}: it is not declared for process `worker`"));
            assert_eq!(played.stop(service).await, stopped(service));
        }
        assert_eq!(played.start("a").await, started("a"));
        assert_eq!(failure(played.start("a").await), "a: it is there already");
    }

    fn a_name_that_somebody_has_is_a_failure_to_start() {
        let played = Played::new("").await;
        let table = objbus::MethodTable::named("Other").method("nop", || ());
        let _other = played.bus.publish("a", table).unwrap();
        let told = failure(played.start("a").await);
        assert!(told.contains("already"), "{told}");
    }

    fn a_replacing_process_takes_names_over_when_it_is_told() {
        let old = Played::new("").await;
        assert_eq!(old.start("a").await, started("a"));
        let new = Played::with("", PATIENT, Ok(old.bus.clone()), Handle::current()).await;
        new.says(ToProcess::Start { service: "a".into(), replace: true }).await;
        assert_eq!(new.hears().await, started("a"));
        assert_eq!(old.names(), ["a"]);
        assert_eq!(old.stop("a").await, stopped("a"));
        assert_eq!(old.names(), [""; 0], "the new one has not published yet");
        new.says(ToProcess::TakeOver { service: "a".into() }).await;
        assert_eq!(new.hears().await, started("a"));
        assert_eq!(new.names(), ["a"]);
        new.says(ToProcess::TakeOver { service: "b".into() }).await;
        assert_eq!(failure(new.hears().await), "b: it has not started");
    }

    fn the_end_of_the_supervisor_is_seen_while_services_hang() {
        let played = Played::new("start:hang").await;
        played.says(ToProcess::Start { service: "a".into(), replace: false }).await;
        drop(played.control);
        assert_eq!(tokio::time::timeout(DEADLINE, played.ends).await.unwrap().unwrap(), End::Lost);
    }

    fn a_bus_that_cannot_be_opened_is_why_nothing_starts() {
        let played = Played::with("", PATIENT, Err("the bus cannot be opened: why".into()), Handle::current()).await;
        assert_eq!(failure(played.start("a").await), "a: the bus cannot be opened: why");
    }

    fn a_socket_is_asked_for_and_its_refusal_told() {
        let played = Played::new("start:listen").await;
        let asked = ToSupervisor::Listen { id: 0, service: "a".into(), addr: SocketAddr::from(ADDRESS) };
        assert_eq!(played.start("a").await, asked);
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        played.control.send(&ToProcess::Listening { id: 0, result: Ok(()) }, Some(socket)).await.unwrap();
        assert_eq!(played.hears().await, started("a"));
        assert_eq!(played.stop("a").await, stopped("a"));
        let ToSupervisor::Listen { id, .. } = played.start("a").await else { panic!("it asks again") };
        played.says(ToProcess::Listening { id, result: Err("in use".into()) }).await;
        assert_eq!(failure(played.hears().await), "a: in use");
    }
}

/// As in a real process: services have a runtime of their own.
#[tokio::test]
async fn a_service_that_blocks_every_thread_holds_nothing_up() {
    let services = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let played =
        Played::with("start:block", SHORT_START, Ok(Bus::in_memory()), services.handle().clone()).await;
    assert_eq!(failure(played.start("a").await), "a: it did not start within 50ms");
    drop(played.control);
    assert_eq!(tokio::time::timeout(DEADLINE, played.ends).await.unwrap().unwrap(), End::Lost);
    services.shutdown_background();
}

#[test]
fn a_reason_is_cut_to_fit_a_message() {
    let long = "ä".repeat(crate::control::MESSAGE_MAX);
    let reply = services::failed("a".into(), long);
    let length = postcard::to_stdvec(&reply).unwrap().len();
    assert!(length < crate::control::MESSAGE_MAX, "{length}");
}

#[tokio::test]
async fn what_was_spawned_is_waited_for_even_if_the_service_fails_to_stop() {
    let played = Played::new("start:outlast stop:fail").await;
    assert_eq!(played.start("a").await, started("a"));
    assert_eq!(failure(played.stop("a").await), "a: as it was told");
    assert_eq!(played.names(), ["outlasted"]);
}
