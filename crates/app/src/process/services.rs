//! The services of a process: in which state each is, and what happens next.
//!
//! All state is here and belongs to the task that holds the connection to the supervisor. The work itself is done by tasks of the
//! services' runtime, one at a time for a service; each is watched, and its result comes back as an event. So a service that
//! panics, or that does not come to an end, is a failure like any other.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use super::{End, Host, panic_text};
use crate::context::{ListenRequest, Place, Scope};
use crate::control::{MESSAGE_MAX, ToProcess, ToSupervisor};
use crate::log::cut;
use crate::service::{AnyStarted, chain};

/// The longest reason of a failure, in bytes: with the rest of its message it stays below the limit of that.
const WHY_MAX: usize = MESSAGE_MAX / 2;

/// What a service wants, and what the tasks that work for it have done.
pub(super) enum Event {
    Listen(ListenRequest),
    Started { service: String, result: Result<Arc<dyn AnyStarted>, String> },
    TookOver { service: String, result: Result<(), String> },
    Stopped { service: String, result: Result<(), String> },
}

/// The events, as they come.
pub(super) struct Events {
    done: mpsc::UnboundedReceiver<Event>,
    listen: mpsc::UnboundedReceiver<ListenRequest>,
}

impl Events {
    /// The next one; [`Services`] holds the other end of either channel, so that there always is one to come.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            event = self.done.recv() => event,
            request = self.listen.recv() => request.map(Event::Listen),
        }
    }
}

/// Where a service is on its way.
enum State {
    /// Being made, started and, unless that is held back, published.
    Starting(AbortHandle),
    /// Told to stop before it had started.
    Cancelled,
    Started(Arc<dyn AnyStarted>),
    Stopping,
}

struct Running {
    scope: Arc<Scope>,
    state: State,
}

/// All services of the process, and what they wait for.
pub(super) struct Services {
    host: Host,
    running: HashMap<String, Running>,
    listening: HashMap<u32, oneshot::Sender<io::Result<OwnedFd>>>,
    next_listen: u32,
    done: mpsc::UnboundedSender<Event>,
    listen: mpsc::UnboundedSender<ListenRequest>,
}

impl Services {
    pub fn new(host: Host) -> (Services, Events) {
        let (done, done_events) = mpsc::unbounded_channel();
        let (listen, listen_events) = mpsc::unbounded_channel();
        let services = Services {
            host,
            running: HashMap::new(),
            listening: HashMap::new(),
            next_listen: 0,
            done,
            listen,
        };
        (services, Events { done: done_events, listen: listen_events })
    }

    /// Does what the supervisor says, or begins to; gives what is to be answered at once.
    ///
    /// # Errors
    ///
    /// That it is the end.
    pub fn told(
        &mut self,
        message: ToProcess,
        descriptor: Option<OwnedFd>,
    ) -> Result<Option<ToSupervisor>, End> {
        Ok(match message {
            ToProcess::Start { service, replace } => {
                self.start(&service, replace).err().map(|why| failed(service, why))
            }
            ToProcess::TakeOver { service } => self.take_over(&service).err().map(|why| failed(service, why)),
            ToProcess::Stop { service, is_replaced } => self.stop(service, is_replaced),
            ToProcess::Listening { id, result } => {
                self.listening(id, result, descriptor);
                None
            }
            ToProcess::End => return Err(End::Told),
        })
    }

    /// Goes on after an event; gives what the supervisor is to be told.
    pub fn happened(&mut self, event: Event) -> Option<ToSupervisor> {
        match event {
            Event::Listen(request) => Some(self.ask_to_listen(request)),
            Event::Started { service, result } => self.started(service, result),
            Event::TookOver { service, result } => Some(match result {
                Ok(()) => ToSupervisor::Started { service },
                Err(why) => failed(service, why),
            }),
            Event::Stopped { service, result } => {
                self.running.remove(&service);
                Some(ToSupervisor::Stopped { service, error: result.err().map(|why| cut(why, WHY_MAX)) })
            }
        }
    }

    fn start(&mut self, name: &str, replace: bool) -> Result<(), String> {
        if self.running.contains_key(name) {
            return Err("it is there already".to_owned());
        }
        let bus = self.host.bus.clone()?;
        let instance = &self.host.instance;
        let planned = self.host.plan.services.iter().find(|service| service.name == name);
        let planned = planned.filter(|service| service.processes.contains(&instance.name));
        let (Some(planned), Some(service)) = (planned, self.host.app.find_service(name)) else {
            return Err(format!("it is not declared for process `{}`", instance.name));
        };
        let place = Place {
            name: name.to_owned(),
            process: instance.name.clone(),
            index: instance.index,
            is_scaled: self.host.plan.is_scaled(&instance.name),
            is_dev: self.host.is_dev,
            dependencies: planned.depends_on.clone(),
        };
        let runtime = self.host.runtime.clone();
        let scope = Arc::new(Scope::new(place, bus, Some(runtime), replace, Some(self.listen.clone())));
        let (settings, of_task) = (Arc::clone(&self.host.settings), Arc::clone(&scope));
        let work = async move {
            let started = service.start(Arc::clone(&of_task), &settings).await;
            let started = started.map_err(|error| chain(&*error))?;
            if let Some(publication) = started.publication(of_task.bus(), of_task.name()) {
                of_task.publish(publication).map_err(|error| chain(&error))?;
            }
            Ok(Arc::from(started))
        };
        let service = name.to_owned();
        let (limit, span) = (self.host.plan.start_timeout, scope.span());
        let then = |result| Event::Started { service, result };
        let abort = self.watch("start", limit, work.instrument(span), then);
        self.running.insert(name.to_owned(), Running { scope, state: State::Starting(abort) });
        Ok(())
    }

    fn started(
        &mut self,
        service: String,
        result: Result<Arc<dyn AnyStarted>, String>,
    ) -> Option<ToSupervisor> {
        let running = self.running.get_mut(&service)?;
        match (&running.state, result) {
            (State::Starting(_), Ok(started)) => {
                running.state = State::Started(started);
                Some(ToSupervisor::Started { service })
            }
            (State::Starting(_), Err(why)) => {
                let Running { scope, .. } = self.running.remove(&service)?;
                self.host.runtime.spawn(async move { scope.withdraw(false).await });
                Some(failed(service, why))
            }
            // It was told to stop meanwhile, perhaps too late to be kept from starting.
            (State::Cancelled, result) => {
                running.state = State::Stopping;
                let scope = Arc::clone(&running.scope);
                self.end(service, scope, result.ok(), false);
                None
            }
            (State::Started(_) | State::Stopping, _) => None,
        }
    }

    /// Publishes what a process that replaces another has held back.
    fn take_over(&mut self, name: &str) -> Result<(), String> {
        let running = self.running.get(name).filter(|running| matches!(running.state, State::Started(_)));
        let scope = Arc::clone(&running.ok_or("it has not started")?.scope);
        let (service, span) = (name.to_owned(), scope.span());
        let work = async move { scope.take_over().map_err(|error| chain(&error)) };
        let limit = self.host.plan.start_timeout;
        let then = |result| Event::TookOver { service, result };
        self.watch("take its name over", limit, work.instrument(span), then);
        Ok(())
    }

    fn stop(&mut self, service: String, is_replaced: bool) -> Option<ToSupervisor> {
        let Some(running) = self.running.get_mut(&service) else {
            return Some(ToSupervisor::Stopped { service, error: None });
        };
        let scope = Arc::clone(&running.scope);
        match std::mem::replace(&mut running.state, State::Stopping) {
            State::Starting(abort) => {
                abort.abort();
                running.state = State::Cancelled;
            }
            State::Cancelled => running.state = State::Cancelled,
            State::Started(started) => self.end(service, scope, Some(started), is_replaced),
            State::Stopping => {}
        }
        None
    }

    /// Stops what has started, and ends what belongs to it.
    fn end(
        &self,
        service: String,
        scope: Arc<Scope>,
        started: Option<Arc<dyn AnyStarted>>,
        is_replaced: bool,
    ) {
        let span = scope.span();
        let work = async move {
            scope.withdraw(is_replaced).await;
            let stopped = match started {
                Some(started) => started.stop().await.map_err(|error| chain(&*error)),
                None => Ok(()),
            };
            scope.tasks_ended().await;
            stopped
        };
        let limit = self.host.plan.stop_timeout;
        self.watch("stop", limit, work.instrument(span), |result| Event::Stopped { service, result });
    }

    /// Has the services' runtime do `work`, and makes an event of its result, its panic, or its taking too long.
    fn watch<T: Send + 'static>(
        &self,
        what: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, String>> + Send + 'static,
        then: impl FnOnce(Result<T, String>) -> Event + Send + 'static,
    ) -> AbortHandle {
        let task = self.host.runtime.spawn(work);
        let (abort, of_watch) = (task.abort_handle(), task.abort_handle());
        let done = self.done.clone();
        tokio::spawn(async move {
            let result = match tokio::time::timeout(limit, task).await {
                Ok(Ok(result)) => result,
                Ok(Err(error)) => Err(match error.try_into_panic() {
                    Ok(payload) => format!("it panicked: {}", panic_text(&*payload)),
                    Err(_) => "it was told to stop".to_owned(),
                }),
                Err(_) => {
                    of_watch.abort();
                    Err(format!("it did not {what} within {limit:?}"))
                }
            };
            // Nobody is there for it once the process ends.
            let _ = done.send(then(result));
        });
        abort
    }

    fn ask_to_listen(&mut self, request: ListenRequest) -> ToSupervisor {
        let ListenRequest { service, addr, reply } = request;
        let id = self.next_listen;
        self.next_listen = self.next_listen.wrapping_add(1);
        self.listening.insert(id, reply);
        ToSupervisor::Listen { id, service, addr }
    }

    fn listening(&mut self, id: u32, result: Result<(), String>, socket: Option<OwnedFd>) {
        let Some(reply) = self.listening.remove(&id) else { return };
        let socket = result.and_then(|()| socket.ok_or_else(|| "the supervisor sent no socket".to_owned()));
        // Who has asked may have been cancelled.
        let _ = reply.send(socket.map_err(io::Error::other));
    }
}

pub(super) fn failed(service: String, why: String) -> ToSupervisor {
    ToSupervisor::Failed { service, why: cut(why, WHY_MAX) }
}
