//! Publishing an object: the builder, and the guard that keeps it published.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::access::Access;
use crate::bus::Bus;
use crate::engine::engine;
use crate::error::PublishError;
use crate::handshake::METHODS_MAX;
use crate::names::{Address, Bound, Name, Tag};
use crate::object::MethodTable;
use crate::owner::hosted::{Hosted, Limits, PanicPolicy, Parts, Rules};
use crate::owner::listener::Listener;
use crate::park::Parker;
use crate::ring::layout::CLOSING;
use crate::sys::clock;

/// What makes an object one of the instances that share a name; see [`Bus::publish_as`].
///
/// ```
/// use objbus::Instance;
///
/// let nameless = Instance::new();
/// let in_europe = Instance::new().tag("eu");
/// # let _ = (nameless, in_europe);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "an instance is given to `publish_as`"]
pub struct Instance {
    tag: Option<String>,
}

impl Instance {
    /// Without a tag.
    pub fn new() -> Instance {
        Instance::default()
    }

    /// A tag, by which proxies can be [told apart](crate::Connect::tag): 1 to 64 letters, digits, `.`, `_` and `-`. Any number of
    /// instances may have the same.
    pub fn tag(mut self, tag: impl Into<String>) -> Instance {
        self.tag = Some(tag.into());
        self
    }
}

/// An object about to be published.
///
/// ```
/// # struct Counter;
/// # #[objbus::object] impl Counter { pub fn reset(&self) {} }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use objbus::{Access, Bus};
///
/// let bus = Bus::in_memory();
/// let _published = bus
///     .publication("counter", Counter)
///     .workers(1) // one call at a time
///     .method_access("reset", Access::only().uid(0))
///     .publish()?;
/// # Ok(()) }
/// ```
#[must_use = "an object is not published until `publish`"]
pub struct Publication {
    bus: Bus,
    name: String,
    table: MethodTable,
    rules: Rules,
    instance: Option<Instance>,
    replaces: bool,
}

impl Publication {
    pub(crate) fn new(bus: Bus, name: &str, table: MethodTable) -> Publication {
        let limits = bus.0.limits().clone();
        let rules = Rules::plain(limits);
        Publication { bus, name: name.to_owned(), table, rules, instance: None, replaces: false }
    }

    /// How many calls of the object run at once; as many as the process has workers by default. With 1, a call that would
    /// wait for itself, through other objects, gets `WouldDeadlock`.
    ///
    /// # Panics
    ///
    /// If `workers` is 0.
    pub fn workers(mut self, workers: usize) -> Publication {
        assert!(workers > 0, "an object without a worker would answer nobody");
        self.rules.workers = workers;
        self
    }

    /// Who may call the object.
    pub fn access(mut self, access: Access) -> Publication {
        self.rules.access = access;
        self
    }

    /// Who may call one method, of those who may call the object.
    pub fn method_access(mut self, method: &str, access: Access) -> Publication {
        self.rules.method_access.insert(method.to_owned(), access);
        self
    }

    /// What callers may use; the bus's limits by default.
    pub fn limits(mut self, limits: Limits) -> Publication {
        self.rules.limits = limits;
        self
    }

    /// What happens after a method has panicked.
    pub fn on_panic(mut self, policy: PanicPolicy) -> Publication {
        self.rules.on_panic = policy;
        self
    }

    /// Publishes the object as one of the instances that share the name, instead of having the name for itself; see
    /// [`Bus::publish_as`].
    pub fn instance(mut self, instance: Instance) -> Publication {
        self.instance = Some(instance);
        self
    }

    /// Takes the name over from its present owner, if there is one, without losing a call: that owner finishes what it
    /// has, and callers come here. It must run as the same user.
    ///
    /// Who has a name for itself so takes over from all of its instances; an [instance](Publication::instance) from who has the name
    /// for itself, and from the instances with its own tag, if it has one. Other instances stay.
    pub fn replace(mut self) -> Publication {
        self.replaces = true;
        self
    }

    /// Publishes. Async methods will run on the tokio runtime that this is called in, with the feature `tokio`.
    ///
    /// # Errors
    ///
    /// [`PublishError`]; nothing is published then.
    pub fn publish(self) -> Result<Published, PublishError> {
        let inner = Arc::clone(&self.bus.0);
        if inner.is_foreign() {
            return Err(PublishError::ForkedHandle);
        }
        if inner.is_closed() {
            return Err(PublishError::Closed);
        }
        self.check()?;
        let address = self.address()?;
        let system = |errno| PublishError::System { reason: format!("publishing: {errno}") };
        let bound = self.bind(&address)?;
        let hosted = Arc::new(Hosted::new(Parts {
            name: self.name,
            table: self.table,
            rules: self.rules,
            bus: Arc::downgrade(&inner),
            engine: engine().map_err(system)?,
            exports: None,
        }));
        let listener = Listener::new(Arc::clone(&hosted), bound).map_err(system)?;
        inner.add_listener(&address, &listener, self.replaces)?;
        if cfg!(panic = "abort") {
            warn_that_panics_abort(hosted.name());
        }
        Ok(Published { bus: self.bus, hosted, listener })
    }

    /// Where it is to be met.
    fn address(&self) -> Result<Address, PublishError> {
        let invalid = |name: &str, reason| PublishError::NameInvalid { name: name.to_owned(), reason };
        let name = Name::new(&self.name).map_err(|reason| invalid(&self.name, reason))?;
        let Some(instance) = &self.instance else { return Ok(Address::from(name)) };
        let checked = |tag: &String| Tag::new(tag).map_err(|reason| invalid(tag, reason));
        let tag = instance.tag.as_ref().map(checked).transpose()?;
        Ok(Address::of_new_instance(name, tag))
    }

    fn check(&self) -> Result<(), PublishError> {
        let bad = |reason| Err(PublishError::BadObject { reason });
        if let Err(reason) = self.table.check() {
            return bad(reason);
        }
        if self.table.methods().len() > METHODS_MAX {
            return bad(format!("it has more than {METHODS_MAX} methods"));
        }
        match self.rules.method_access.keys().find(|name| self.table.find_name(name).is_none()) {
            Some(unknown) => {
                bad(format!("an access rule names the method `{unknown}`, which it does not have"))
            }
            None => Ok(()),
        }
    }

    /// Takes the address; `None` on an in-memory bus, whose registry is the listener's business.
    fn bind(&self, address: &Address) -> Result<Option<Bound>, PublishError> {
        let inner = &self.bus.0;
        match inner.directory() {
            Some(_) if self.replaces => inner.take_over(address).map(Some),
            Some(directory) => directory.bind(address).map(Some),
            None => Ok(None),
        }
    }
}

/// Tells the publisher, once, that no panic of a method can be caught in this program: whatever the object's
/// [`PanicPolicy`], it is the end of the process.
fn warn_that_panics_abort(name: &str) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        tracing::warn!(
            name,
            "this program is built with `panic = \"abort\"`: a method that panics ends the process, and callers get `OwnerDied` instead of `MethodPanicked`"
        );
    });
}

/// Keeps an object published; dropping it withdraws the object.
///
/// The drop does not wait: running methods end as they will, and are answered; calls that have not begun get `Unpublished`.
/// [`shutdown`](Published::shutdown) waits for the running ones.
#[must_use = "dropping the guard withdraws the object"]
pub struct Published {
    bus: Bus,
    hosted: Arc<Hosted>,
    listener: Arc<Listener>,
}

impl Published {
    /// The name.
    pub fn name(&self) -> &str {
        self.hosted.name()
    }

    /// Whether the object is published no more, though the guard lives: another publisher has taken the name over (this is
    /// known a moment after it has), or the bus was closed.
    pub fn is_withdrawn(&self) -> bool {
        self.hosted.is_closing()
    }

    /// Callers that were disconnected for breaking the protocol, so far.
    pub fn violations(&self) -> u64 {
        self.hosted.violations()
    }

    /// Callers connected at present: one per process and bus opened in it.
    pub fn callers(&self) -> usize {
        self.hosted.callers()
    }

    /// Withdraws the object; the result ends when nothing of it runs any more.
    pub fn shutdown(self) -> Shutdown {
        Shutdown { hosted: Arc::clone(&self.hosted), waiter: fresh_waiter() }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if self.bus.0.is_foreign() {
            return;
        }
        self.listener.withdraw();
        self.bus.0.forget(&self.listener);
        self.hosted.close(CLOSING);
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").field("name", &self.name()).field("callers", &self.callers()).finish()
    }
}

/// Ends when a withdrawn object's running methods have, and its streams, which are dropped at their next await: await it, or [`wait`](Shutdown::wait).
#[must_use = "await it, or wait for it"]
pub struct Shutdown {
    hosted: Arc<Hosted>,
    /// Its number among those who wait.
    waiter: u64,
}

impl Shutdown {
    /// Blocks for up to `deadline`; whether all had ended by then.
    pub fn wait(self, deadline: Duration) -> bool {
        wait_idle(&self.hosted, deadline)
    }
}

impl Future for Shutdown {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.hosted.engine.is_foreign() {
            return Poll::Ready(());
        }
        if !self.hosted.is_idle() {
            self.hosted.on_idle(self.waiter, cx.waker());
        }
        if self.hosted.is_idle() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        if !self.hosted.engine.is_foreign() {
            self.hosted.forget_waiter(self.waiter);
        }
    }
}

/// A number for one who waits until an object is idle.
fn fresh_waiter() -> u64 {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Blocks until nothing of a withdrawn object runs any more.
pub(crate) fn wait_idle(hosted: &Hosted, deadline: Duration) -> bool {
    let span_ns = clock::span_ns(deadline);
    let until_ns = clock::now_ns().saturating_add(span_ns);
    if hosted.engine.is_foreign() {
        return true;
    }
    let (parker, waiter) = (Parker::new(), fresh_waiter());
    loop {
        hosted.on_idle(waiter, parker.waker());
        if hosted.is_idle() || clock::now_ns() >= until_ns {
            break;
        }
        parker.park(until_ns);
    }
    hosted.forget_waiter(waiter);
    hosted.is_idle()
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use parking_lot::Mutex;
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;

    /// Writes down what is told.
    #[derive(Clone, Default)]
    struct Listening(Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.0 += &format!(" {field}={value:?}");
        }
    }

    impl Subscriber for Listening {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.level() <= &Level::WARN
        }

        fn event(&self, event: &Event<'_>) {
            let mut line = Line(event.metadata().level().to_string());
            event.record(&mut line);
            self.0.lock().push(line.0);
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_shutdown_keeps_one_waker_however_often_it_is_polled() {
        let bus = Bus::in_memory();
        let published = bus.publish("busy", MethodTable::named("Busy").method("nop", || ())).unwrap();
        let hosted = Arc::clone(&published.hosted);
        hosted.begin_background();
        let mut shutdown = published.shutdown();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..100 {
            assert!(Pin::new(&mut shutdown).poll(&mut cx).is_pending());
            assert!(!wait_idle(&hosted, Duration::ZERO));
        }
        assert_eq!(hosted.waiters(), 1);
        drop(shutdown);
        assert_eq!(hosted.waiters(), 0);
        hosted.end_background();
        assert!(wait_idle(&hosted, Duration::ZERO));
    }

    #[test]
    fn row_26_that_panics_abort_is_told_once() {
        let listening = Listening::default();
        tracing::subscriber::with_default(listening.clone(), || {
            let bus = Bus::in_memory();
            let _quiet = bus.publish("quiet", MethodTable::named("Quiet").method("hush", || ())).unwrap();
            assert_eq!(*listening.0.lock(), Vec::<String>::new(), "panics unwind here");
            warn_that_panics_abort("first");
            warn_that_panics_abort("second");
        });
        let told = listening.0.lock();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("WARN") && told[0].contains("first"), "{told:?}");
        assert!(told[0].contains("OwnerDied"), "{told:?}");
    }
}
