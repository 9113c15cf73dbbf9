//! The supervisor: decides what runs. One task holds all there is to know; whatever happens comes to it as an [`Event`], it
//! changes its [`State`], and then does what is to be done next. Nothing in it waits.
//!
//! `state` knows what to do next, `lifecycle` does it, `operation` has reloads and restarts that were asked for.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use objbus::{Bus, Published};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::control::{Connection, FromGuard, ToGuard, ToSupervisor};
use crate::log::{self, Level};
use crate::plan::Plan;

mod backoff;
mod instance;
mod journal;
mod lifecycle;
mod listeners;
mod memory;
pub(crate) mod object;
mod operation;
pub(crate) mod orphans;
mod state;
mod status;
pub(crate) mod systemd;

use instance::{Instance, Sinks};
use journal::Journal;
use listeners::Listeners;
use operation::Operation;
use state::{At, Phase, Serial, State};

/// How often the memory of a process that has a limit is looked at.
const MEMORY_INTERVAL: Duration = Duration::from_millis(200);
/// When a child of unclear origin is looked at again.
const SECOND_LOOK: Duration = Duration::from_millis(100);
/// How long the supervisor's end waits for those who were asked on the bus, and for the last lines of the log.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How many events may wait: whoever sends one waits then.
const EVENTS_MAX: usize = 256;

/// Something that happens.
pub(crate) enum Event {
    /// A user or the service manager wants the application to end: at once, if the same one has said so before.
    Stop(Teller),
    /// A user or the service manager wants every process reloaded.
    Reload,
    /// The guard has ended: so must everything else.
    GuardGone,
    Said(Serial, ToSupervisor),
    /// A process has ended.
    Died(Serial),
    /// Some child has, an adopted one perhaps, or these children of unclear origin are to be looked at again.
    Orphans(Vec<u32>),
    Due(Due),
    Asked(object::Request),
    /// The memory of processes that have a limit is to be looked at.
    Measure,
    /// The service manager is to be told that this task is alive.
    Watchdog,
}

/// By which way it came that the application is to end. A service manager that signals every process says it by both, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Teller {
    Guard,
    Signal,
}

/// A time that has come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    /// A process should have said hello.
    Hello(Serial),
    /// A service of a process, by its place there, should be further than this.
    Start(Serial, usize, At),
    /// A process should have ended.
    Stop(Serial),
    /// The process of a slot is to be started again, after having ended so many times.
    Restart(usize, u32),
}

/// Runs the application to its end. On the main thread: see [`Instance::launch`].
pub(crate) fn run(
    plan: Plan,
    json: bool,
    open_bus: impl FnOnce() -> Result<Bus, String>,
    guard: OwnedFd,
) -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        orphans::adopt_orphans()?;
        let guard = Connection::new(guard)?;
        let mut listeners = Listeners::default();
        loop {
            match guard.recv().await? {
                Some((FromGuard::Socket, Some(socket))) => listeners.add_passed(socket.into()),
                Some((FromGuard::Start, _)) => break,
                Some(_) => {}
                None => return Ok(ExitCode::FAILURE),
            }
        }
        let (events, mut happening) = mpsc::channel(EVENTS_MAX);
        let (logs, mut lines) = mpsc::channel(EVENTS_MAX);
        let to_guard = connect_guard(guard, &events);
        pass_signals(&events)?;
        let mut supervisor = Supervisor {
            state: State::new(plan),
            binary: std::env::current_exe()?,
            instances: HashMap::new(),
            launched: 0,
            operations: VecDeque::new(),
            listeners,
            journal: Journal::new(json)?,
            sinks: Sinks { events, logs },
            guard: to_guard,
            told_to_stop: Vec::new(),
            began: Instant::now(),
        };
        let code = supervisor.live(open_bus, &mut happening, &mut lines).await;
        // Whoever is left was started by a service, which should have ended it.
        orphans::kill_all();
        supervisor.finish(lines).await;
        Ok(code)
    })
}

/// All that there is to know.
pub(crate) struct Supervisor {
    state: State,
    /// What is run again for each process.
    binary: PathBuf,
    /// One for each of [`State::lives`].
    instances: HashMap<Serial, Instance>,
    /// How many processes were started so far.
    launched: Serial,
    /// The first is under way.
    operations: VecDeque<Operation>,
    listeners: Listeners,
    journal: Journal,
    sinks: Sinks,
    guard: mpsc::UnboundedSender<ToGuard>,
    /// Who has said so.
    told_to_stop: Vec<Teller>,
    began: Instant,
}

/// What has become of an event.
enum Then {
    GoOn,
    /// Without another look at anybody.
    End,
}

impl Supervisor {
    async fn live(
        &mut self,
        open_bus: impl FnOnce() -> Result<Bus, String>,
        happening: &mut mpsc::Receiver<Event>,
        lines: &mut mpsc::Receiver<log::Event>,
    ) -> ExitCode {
        let name = &self.state.plan.name;
        let published = open_bus().and_then(|bus| object::publish(&bus, name, self.sinks.events.clone()));
        let published = match published {
            Ok(published) => published,
            Err(why) => {
                self.journal.say(Level::Error, format!("Application start failed: {why}"));
                return ExitCode::FAILURE;
            }
        };
        self.launch_all();
        loop {
            self.advance();
            if let Phase::Stopping { has_failed } = self.state.phase
                && self.state.lives.is_empty()
            {
                withdraw(published).await;
                self.journal.say(Level::Info, "Application stopped");
                return if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            }
            tokio::select! {
                biased;
                Some(event) = happening.recv() => {
                    // Those that were said before it happened; not those that come meanwhile, or a flood would hold it up.
                    for line in (0..lines.len()).map_while(|_| lines.try_recv().ok()) {
                        self.journal.add(line);
                    }
                    match self.handle(event) {
                        Then::GoOn => {}
                        Then::End => return ExitCode::FAILURE,
                    }
                }
                Some(line) = lines.recv() => self.journal.add(line),
            }
        }
    }

    fn handle(&mut self, event: Event) -> Then {
        match event {
            Event::GuardGone => return Then::End,
            Event::Stop(teller) if self.told_to_stop.contains(&teller) => {
                self.journal.say(Level::Warn, "Told to stop again: killing all processes");
                return Then::End;
            }
            Event::Stop(teller) => {
                self.told_to_stop.push(teller);
                self.stop(false);
            }
            Event::Reload => self.reload_all(),
            Event::Said(serial, message) => self.said(serial, message),
            Event::Died(serial) => self.died(serial),
            Event::Orphans(suspects) => self.sweep(&suspects),
            Event::Due(due) => self.due(due),
            Event::Asked(request) => self.asked(request),
            Event::Measure => self.measure(),
            Event::Watchdog => self.tell_guard(ToGuard::Watchdog),
        }
        Then::GoOn
    }

    /// The guard's end is an event of its own.
    fn tell_guard(&self, what: ToGuard) {
        let _ = self.guard.send(what);
    }

    /// Has an event come at a time.
    fn at(&self, after: Duration, event: Event) {
        let events = self.sinks.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = events.send(event).await;
        });
    }

    /// Has an event come again and again.
    fn every(&self, interval: Duration, event: impl Fn() -> Event + Send + 'static) {
        let events = self.sinks.events.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if events.send(event()).await.is_err() {
                    return;
                }
            }
        });
    }

    /// All processes are dead, so their pipes have an end.
    async fn finish(mut self, mut lines: mpsc::Receiver<log::Event>) {
        drop(self.sinks);
        let deadline = tokio::time::Instant::now() + LAST_WORDS;
        while let Ok(Some(line)) = tokio::time::timeout_at(deadline, lines.recv()).await {
            self.journal.add(line);
        }
        self.journal.finish();
    }
}

/// Lets who has asked for the end have the answer.
async fn withdraw(published: Published) {
    let _ = tokio::time::timeout(LAST_WORDS, published.shutdown()).await;
}

/// Makes events of what the guard says and of its end; what is sent to the result, it hears.
fn connect_guard(guard: Connection, events: &mpsc::Sender<Event>) -> mpsc::UnboundedSender<ToGuard> {
    let guard = Arc::new(guard);
    let (outbox, mut messages) = mpsc::unbounded_channel();
    let (reader, events) = (guard.clone(), events.clone());
    tokio::spawn(async move {
        loop {
            // Nobody else has the other end, so its end is the guard's.
            let event = match reader.recv().await {
                Ok(Some((FromGuard::Stop, _))) => Event::Stop(Teller::Guard),
                Ok(Some((FromGuard::Reload, _))) => Event::Reload,
                Ok(Some((FromGuard::Socket | FromGuard::Start, _))) => continue,
                Ok(None) | Err(_) => Event::GuardGone,
            };
            let is_last = matches!(event, Event::GuardGone);
            if events.send(event).await.is_err() || is_last {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            let _ = guard.send(&message, None::<OwnedFd>).await;
        }
    });
    outbox
}

/// Makes events of signals, for who sends them here instead of to the guard; and of the ends of children.
fn pass_signals(events: &mpsc::Sender<Event>) -> io::Result<()> {
    let kinds: [(SignalKind, fn() -> Event); 4] = [
        (SignalKind::interrupt(), || Event::Stop(Teller::Signal)),
        (SignalKind::terminate(), || Event::Stop(Teller::Signal)),
        (SignalKind::hangup(), || Event::Reload),
        (SignalKind::child(), || Event::Orphans(Vec::new())),
    ];
    for (kind, event) in kinds {
        let (mut signals, events) = (signal(kind)?, events.clone());
        tokio::spawn(
            async move { while signals.recv().await.is_some() && events.send(event()).await.is_ok() {} },
        );
    }
    Ok(())
}
