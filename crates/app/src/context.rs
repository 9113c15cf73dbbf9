//! What a service is given: its configuration, its bus, its log, and what else it can ask of the process that runs it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use objbus::{Bus, Connect, Instance, Object, Proxy, Publication, PublishError, Published};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use crate::log::layer::service_span;

/// How often it is looked whether a name was taken over, and for how long.
const HANDED_OVER_INTERVAL: Duration = Duration::from_millis(1);
const HANDED_OVER_MAX: Duration = Duration::from_millis(500);

/// A service's view of the application. Cheap to clone; keep it in the service.
pub struct ServiceContext<C> {
    scope: Arc<Scope>,
    config: Arc<C>,
}

impl<C> Clone for ServiceContext<C> {
    fn clone(&self) -> Self {
        ServiceContext { scope: Arc::clone(&self.scope), config: Arc::clone(&self.config) }
    }
}

impl<C> fmt::Debug for ServiceContext<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scope { place, .. } = &*self.scope;
        f.debug_struct("ServiceContext").field("place", place).finish_non_exhaustive()
    }
}

impl<C> ServiceContext<C> {
    pub(crate) fn new(scope: Arc<Scope>, config: Arc<C>) -> ServiceContext<C> {
        ServiceContext { scope, config }
    }

    /// For a unit test of a service: without an application, and with a bus inside the process. What the service depends on is
    /// published there by the test, through [`bus`](ServiceContext::bus).
    pub fn detached(config: C) -> ServiceContext<C> {
        let place = Place {
            name: "detached".into(),
            process: "detached".into(),
            index: 0,
            is_scaled: false,
            is_dev: true,
            dependencies: Vec::new(),
        };
        let scope = Scope::new(place, Bus::in_memory(), Handle::try_current().ok(), false, None);
        ServiceContext::new(Arc::new(scope), Arc::new(config))
    }

    /// The service's name.
    pub fn name(&self) -> &str {
        self.scope.name()
    }

    /// The name of the process that it runs in.
    pub fn process(&self) -> &str {
        &self.scope.place.process
    }

    /// Which instance of the process this is, from 0 to its scale.
    pub fn index(&self) -> u32 {
        self.scope.place.index
    }

    /// Whether the application runs with `--dev`.
    pub fn is_dev(&self) -> bool {
        self.scope.place.is_dev
    }

    /// The services that this one was declared to depend on.
    pub fn dependencies(&self) -> &[String] {
        &self.scope.place.dependencies
    }

    /// The service's configuration.
    pub fn config(&self) -> &C {
        &self.config
    }

    /// The application's bus.
    pub fn bus(&self) -> &Bus {
        &self.scope.bus
    }

    /// Connects to an object on the bus, a service of the application or any other: await the result. The proxy connects again
    /// by itself after the object's process was restarted or reloaded.
    pub fn proxy<P: Proxy>(&self, name: &str) -> Connect<P> {
        self.bus().proxy(name)
    }

    /// Publishes a further object, until the service stops; as an [instance](Bus::publish_as) in a process with a scale of more
    /// than 1, whose tag is the process' index.
    ///
    /// In a process that is about to replace another one, this happens once all of its services have started.
    ///
    /// # Errors
    ///
    /// [`PublishError`], for example when somebody else has the name.
    pub fn publish(&self, name: &str, object: impl Object) -> Result<(), PublishError> {
        self.scope.publish(self.bus().publication(name, object))
    }

    /// The service's log.
    pub fn logger(&self) -> &Logger {
        &self.scope.logger
    }

    /// The span that the service runs in. What is logged with the macros of `tracing` inside of it carries the service's name;
    /// [`spawn`](ServiceContext::spawn) has it, a thread or a call from the bus has it not.
    pub fn span(&self) -> Span {
        self.scope.logger.span.clone()
    }

    /// Runs a future beside the service, in its span. When the service is told to stop, what was spawned is waited for after
    /// [`stop`](crate::Service::stop), as long as the time-out allows: see [`stopping`](ServiceContext::stopping).
    ///
    /// # Panics
    ///
    /// If the context is a detached one that was made outside of a tokio runtime.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let runtime = self.scope.runtime.as_ref();
        let runtime = runtime.expect("a detached context spawns if it was made within a tokio runtime");
        self.scope.tasks.spawn_on(future.instrument(self.span()), runtime)
    }

    /// Ends when the service is told to stop, before its name is withdrawn.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + use<C> {
        self.scope.stopping.clone().cancelled_owned()
    }

    /// A TCP socket that listens at `addr`, ready for [`tokio::net::TcpListener::from_std`].
    ///
    /// It is the same socket in every process in which this service asks for it, and stays open while processes are restarted and
    /// reloaded: they share its connections, and none is refused meanwhile. A socket for this address that the application was
    /// started with (socket activation by systemd) is used instead of a new one.
    ///
    /// # Errors
    ///
    /// Those of binding: the address is in use, is not of this machine, or may not be used by this user.
    pub async fn listen(&self, addr: impl Into<SocketAddr>) -> io::Result<TcpListener> {
        let addr = addr.into();
        let listener = match &self.scope.listen {
            None => TcpListener::bind(addr)
                .map_err(|error| io::Error::new(error.kind(), format!("cannot listen at {addr}: {error}")))?,
            Some(requests) => {
                let (reply, answer) = oneshot::channel();
                let request = ListenRequest { service: self.name().to_owned(), addr, reply };
                let ended = || io::Error::other("the process is ending");
                requests.send(request).map_err(|_| ended())?;
                TcpListener::from(answer.await.map_err(|_| ended())??)
            }
        };
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

/// Writes to the application's log, from any thread, with the service's name.
#[derive(Clone, Debug)]
pub struct Logger {
    span: Span,
}

/// What the log says its lines come from; `RUST_LOG=service=debug` sets the level of all loggers.
macro_rules! say {
    ($self:ident, $level:ident, $text:ident) => {
        $self.span.in_scope(|| tracing::event!(target: "service", tracing::Level::$level, "{}", $text))
    };
}

impl Logger {
    /// What is of use only while looking for a mistake, and too much otherwise.
    pub fn trace(&self, text: impl fmt::Display) {
        say!(self, TRACE, text);
    }

    /// What is of use only while looking for a mistake.
    pub fn debug(&self, text: impl fmt::Display) {
        say!(self, DEBUG, text);
    }

    /// What happens in the normal course.
    pub fn info(&self, text: impl fmt::Display) {
        say!(self, INFO, text);
    }

    /// What somebody should look at.
    pub fn warn(&self, text: impl fmt::Display) {
        say!(self, WARN, text);
    }

    /// What has gone wrong.
    pub fn error(&self, text: impl fmt::Display) {
        say!(self, ERROR, text);
    }
}

/// Asks the supervisor, by way of the process, for a listening socket.
pub(crate) struct ListenRequest {
    pub service: String,
    pub addr: SocketAddr,
    pub reply: oneshot::Sender<io::Result<OwnedFd>>,
}

/// Which service it is, and where it runs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub name: String,
    pub process: String,
    pub index: u32,
    /// Several instances of the process run at a time, and share the names of what they publish.
    pub is_scaled: bool,
    pub is_dev: bool,
    pub dependencies: Vec<String>,
}

/// What belongs to one service while it runs.
pub(crate) struct Scope {
    place: Place,
    bus: Bus,
    logger: Logger,
    runtime: Option<Handle>,
    stopping: CancellationToken,
    tasks: TaskTracker,
    names: Mutex<Names>,
    /// `None`: there is no supervisor, and the context binds by itself.
    listen: Option<mpsc::UnboundedSender<ListenRequest>>,
}

/// What a service has published.
struct Names {
    /// Taken over from the process that this one replaces.
    replace: bool,
    /// Nothing is published yet, since this process may still turn out not to replace the other.
    is_held: bool,
    held: Vec<Publication>,
    published: Vec<Published>,
    /// The service has been told to stop, and publishes no more.
    is_over: bool,
}

impl Names {
    fn publish(&mut self, publication: Publication) -> Result<(), PublishError> {
        if self.is_over {
            return Err(PublishError::Closed);
        }
        let publication = if self.replace { publication.replace() } else { publication };
        self.published.push(publication.publish()?);
        Ok(())
    }
}

impl Scope {
    pub fn new(
        place: Place,
        bus: Bus,
        runtime: Option<Handle>,
        replace: bool,
        listen: Option<mpsc::UnboundedSender<ListenRequest>>,
    ) -> Scope {
        let names =
            Names { replace, is_held: replace, held: Vec::new(), published: Vec::new(), is_over: false };
        Scope {
            logger: Logger { span: service_span(&place.name) },
            place,
            bus,
            runtime,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            names: Mutex::new(names),
            listen,
        }
    }

    pub fn name(&self) -> &str {
        &self.place.name
    }

    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    pub fn span(&self) -> Span {
        self.logger.span.clone()
    }

    /// Publishes, or keeps it for [`take_over`](Self::take_over).
    pub fn publish(&self, publication: Publication) -> Result<(), PublishError> {
        let publication = match self.place.is_scaled {
            true => publication.instance(Instance::new().tag(self.place.index.to_string())),
            false => publication,
        };
        let mut names = self.names.lock();
        if names.is_held {
            names.held.push(publication);
            return Ok(());
        }
        names.publish(publication)
    }

    /// Publishes what was held back.
    pub fn take_over(&self) -> Result<(), PublishError> {
        let mut names = self.names.lock();
        names.is_held = false;
        let held = std::mem::take(&mut names.held);
        held.into_iter().try_for_each(|publication| names.publish(publication))
    }

    /// Tells the service that it is to stop, withdraws its names and lets the calls that run end. `is_replaced`: the names
    /// are another process' by now, and calls that have not begun go there.
    pub async fn withdraw(&self, is_replaced: bool) {
        self.stopping.cancel();
        let published = {
            let mut names = self.names.lock();
            names.is_over = true;
            names.held.clear();
            std::mem::take(&mut names.published)
        };
        if is_replaced {
            handed_over(&published).await;
        }
        let shutdowns: Vec<_> = published.into_iter().map(Published::shutdown).collect();
        for shutdown in shutdowns {
            shutdown.await;
        }
    }

    /// Waits for what the service has spawned.
    pub async fn tasks_ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Waits until the bus has noticed that names were taken over, which it does a moment later: calls in the rings of a name that is
/// withdrawn before that would be refused. A name that the other process does not have stays here, and is not waited for long.
async fn handed_over(published: &[Published]) {
    let all = async {
        while !published.iter().all(Published::is_withdrawn) {
            tokio::time::sleep(HANDED_OVER_INTERVAL).await;
        }
    };
    let _ = tokio::time::timeout(HANDED_OVER_MAX, all).await;
}

#[cfg(test)]
mod tests {
    use objbus::MethodTable;

    use super::*;

    #[tokio::test]
    async fn a_detached_context_is_complete() {
        let ctx = ServiceContext::detached(7_u32);
        assert_eq!((*ctx.config(), ctx.name(), ctx.process(), ctx.index()), (7, "detached", "detached", 0));
        assert!(ctx.is_dev() && ctx.dependencies().is_empty());
        ctx.logger().info("nobody listens");
        ctx.publish("further", MethodTable::named("Further").method("nop", || ())).unwrap();
        assert_eq!(ctx.bus().names().len(), 1);
        let listener = ctx.listen(([127, 0, 0, 1], 0)).await.unwrap();
        let again = ctx.listen(listener.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        assert!(again.to_string().contains("127.0.0.1"), "{again}");
        assert!(tokio::net::TcpListener::from_std(listener).is_ok());
    }

    #[tokio::test]
    async fn what_was_spawned_runs_and_is_waited_for() {
        let ctx = ServiceContext::detached(());
        assert_eq!(ctx.spawn(async { 1 }).await.unwrap(), 1);
        let stopping = ctx.stopping();
        let waits = ctx.spawn(stopping);
        let scope = Arc::clone(&ctx.scope);
        scope.withdraw(false).await;
        scope.tasks_ended().await;
        assert!(waits.is_finished());
    }

    #[test]
    fn a_context_spawns_from_any_thread() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let ctx = runtime.block_on(async { ServiceContext::detached(()) });
        let spawned = std::thread::spawn(move || ctx.spawn(async { 3 })).join().unwrap();
        assert_eq!(runtime.block_on(spawned).unwrap(), 3);
    }

    #[tokio::test]
    async fn names_are_withdrawn_when_the_service_stops() {
        let ctx = ServiceContext::detached(());
        ctx.publish("further", MethodTable::named("Further").method("nop", || ())).unwrap();
        ctx.scope.withdraw(false).await;
        assert_eq!(ctx.bus().names(), []);
    }

    #[tokio::test]
    async fn a_process_that_replaces_another_publishes_nothing_before_it_takes_over() {
        let bus = Bus::in_memory();
        let place = ServiceContext::detached(()).scope.place.clone();
        let scope = Arc::new(Scope::new(place, bus.clone(), None, true, None));
        let ctx = ServiceContext::new(Arc::clone(&scope), Arc::new(()));
        let table = || MethodTable::named("Further").method("nop", || ());
        let old = bus.publish("further", table()).unwrap();
        ctx.publish("further", table()).unwrap();
        assert!(!old.is_withdrawn());
        scope.take_over().unwrap();
        assert_eq!(bus.names().len(), 1);
        drop(old);
        assert_eq!(bus.names().len(), 1, "the name is the new one's");
        ctx.publish("late", table()).unwrap();
        assert_eq!(bus.names().len(), 2);
    }
}
