//! What an object keeps in order to tell: an event, or a value that others watch.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use super::subscribers::{Arrival, Subscribers};
use super::{EmitError, Lag, Told, event_schema, watched_schema};
use crate::channel::claim_sender;
use crate::object::{Concluded, Invocation, Refusal};
use crate::owner::context;
use crate::wire::schema::{Schemas, Type, TypeRef};

/// Something that happens at an object again and again, and that others [subscribe](crate::Subscribe) to.
///
/// It is a field of the object, and a method of its [`object`](macro@crate::object) block returns it by reference; the proxy's method
/// of that name is the subscription. A clone is the same event, for a thread or a task that emits. Subscriptions end with the last
/// clone.
///
/// ```
/// use objbus::{Bus, Event};
///
/// #[derive(Default)]
/// struct Downloads {
///     loaded: Event<String>,
/// }
///
/// #[objbus::object]
/// impl Downloads {
///     /// A page is there; its address.
///     pub fn loaded(&self) -> &Event<String> {
///         &self.loaded
///     }
///
///     pub fn load(&self, url: &str) -> Result<(), objbus::EmitError> {
///         self.loaded.emit(&url.to_owned())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::in_memory();
/// # let _published = bus.publish("downloads", Downloads::default())?;
/// let downloads: DownloadsProxy = bus.proxy("downloads").wait()?; // in any process
/// let mut loaded = downloads.loaded().wait()?;
/// downloads.load("https://example.org").wait()?;
/// assert_eq!(loaded.iter().next(), Some(Ok("https://example.org".to_owned())));
/// # Ok(()) }
/// ```
pub struct Event<T> {
    subscribers: Arc<Subscribers>,
    emits: PhantomData<fn(&T)>,
}

impl<T> Event<T> {
    /// One without subscribers.
    pub fn new() -> Event<T> {
        Event { subscribers: Arc::default(), emits: PhantomData }
    }

    /// How many subscribe to it. One that is dropped or killed is not counted any more 100 ms later.
    pub fn subscribers(&self) -> usize {
        self.subscribers.len()
    }
}

impl<T: Serialize> Event<T> {
    /// Tells all subscribers, in the same order as every other event of it.
    ///
    /// The value is encoded once, whatever their number, and not at all if there is none. It waits for nobody but for subscribers who
    /// asked for that with [`Lag::Block`].
    ///
    /// # Errors
    ///
    /// [`EmitError`]; nobody is told then.
    pub fn emit(&self, value: &T) -> Result<(), EmitError> {
        self.subscribers.tell(value)
    }

    /// As [`emit`](Self::emit), for async code: where it has to wait, the task does. Dropped before it is ready, it has told nobody.
    ///
    /// # Errors
    ///
    /// As [`emit`](Self::emit).
    pub fn emit_async(&self, value: &T) -> impl Future<Output = Result<(), EmitError>> + Send + use<T> {
        let subscribers = Arc::clone(&self.subscribers);
        let item = if subscribers.is_empty() { Ok(None) } else { subscribers.encode(value) };
        async move {
            if let Some(item) = item? {
                std::future::poll_fn(|cx| subscribers.poll_emit(&item, cx.waker())).await;
                subscribers.reuse(item);
            }
            Ok(())
        }
    }
}

impl<T> Clone for Event<T> {
    fn clone(&self) -> Event<T> {
        Event { subscribers: Arc::clone(&self.subscribers), emits: PhantomData }
    }
}

impl<T> Default for Event<T> {
    fn default() -> Event<T> {
        Event::new()
    }
}

impl<T> fmt::Debug for Event<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("subscribers", &self.subscribers()).finish()
    }
}

impl<T: Type + Serialize> Told for Event<T> {
    fn schema(types: &mut Schemas) -> TypeRef {
        event_schema::<T>(types)
    }

    fn serve(&self, call: Invocation<'_>) -> Concluded {
        let (lag, channel) = call.arguments()?;
        self.subscribers.add(arrival(channel, lag)?, None);
        call.answer(&())
    }
}

/// The subscriber whose call this thread serves.
fn arrival(channel: u32, lag: Lag) -> Result<Arrival, Box<Refusal>> {
    let refuse = |why: &str| Err(Box::new(Refusal::BadRequest(why.to_owned())));
    let Some(lane) = context::current_lane() else {
        return refuse("it is subscribed to through a connection only");
    };
    if lag == Lag::Block && lane.peer.credentials.uid != rustix::process::geteuid().as_raw() {
        return refuse("only processes of the object's own user may hold it up by `Lag::Block`");
    }
    let limit = lane.object.rules.limits.body_bytes;
    // Without the lane: it holds the object, and the object this.
    let sender = claim_sender(channel)?.end;
    Ok(Arrival { sender, lag, limit })
}

/// A value that others [watch](crate::Watch): a title, a state, a configuration.
///
/// Like an [`Event`], it is a field of the object, and a method that returns it by reference makes it known. Who subscribes gets the
/// value at once, and then each later one; who lags gets the latest only. A clone is the same value.
///
/// ```
/// use objbus::{Bus, Watched};
///
/// struct Page {
///     title: Watched<String>,
/// }
///
/// #[objbus::object]
/// impl Page {
///     pub fn title(&self) -> &Watched<String> {
///         &self.title
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::in_memory();
/// let title = Watched::new("untitled".to_owned());
/// let _published = bus.publish("page", Page { title: title.clone() })?;
///
/// let page: PageProxy = bus.proxy("page").wait()?; // in any process
/// assert_eq!(page.title().get().wait()?, "untitled");
/// let mut titles = page.title().subscribe().wait()?;
/// assert_eq!(titles.iter().next(), Some(Ok("untitled".to_owned())));
/// title.set("news".to_owned())?;
/// assert_eq!(titles.iter().next(), Some(Ok("news".to_owned())));
/// # Ok(()) }
/// ```
pub struct Watched<T>(Arc<Kept<T>>);

struct Kept<T> {
    /// Held while it is told, so that everybody gets the values in the order in which they were set.
    value: Mutex<T>,
    subscribers: Arc<Subscribers>,
}

impl<T> Watched<T> {
    /// One of this value.
    pub fn new(value: T) -> Watched<T> {
        Watched(Arc::new(Kept { value: Mutex::new(value), subscribers: Arc::default() }))
    }

    /// How many subscribe to it.
    pub fn subscribers(&self) -> usize {
        self.0.subscribers.len()
    }

    /// The value at present.
    pub fn get(&self) -> T
    where
        T: Clone,
    {
        self.0.value.lock().clone()
    }
}

impl<T: Serialize> Watched<T> {
    /// Replaces the value and tells it. It waits for no subscriber.
    ///
    /// # Errors
    ///
    /// [`EmitError`]; the value is set then, and who subscribes is not told.
    pub fn set(&self, value: T) -> Result<(), EmitError> {
        self.update(|present| std::mem::replace(present, value)).map(drop)
    }

    /// Changes the value in place and tells it; what `change` returns. The value is locked meanwhile: `change` must not use it in
    /// another way, and neither must the `Serialize` of `T`.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, EmitError> {
        let mut value = self.0.value.lock();
        let result = change(&mut value);
        self.0.subscribers.tell(&*value)?;
        Ok(result)
    }
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Watched<T> {
        Watched(Arc::clone(&self.0))
    }
}

impl<T: Default> Default for Watched<T> {
    fn default() -> Watched<T> {
        Watched::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Watched");
        match self.0.value.try_lock() {
            Some(value) => shown.field("value", &*value),
            None => shown.field("value", &format_args!("<locked>")),
        };
        shown.field("subscribers", &self.subscribers()).finish()
    }
}

impl<T: Type + Serialize> Told for Watched<T> {
    fn schema(types: &mut Schemas) -> TypeRef {
        watched_schema::<T>(types)
    }

    /// Without arguments it is read, with a channel subscribed to.
    fn serve(&self, call: Invocation<'_>) -> Concluded {
        if call.is_empty() {
            return call.answer(&*self.0.value.lock());
        }
        let (channel,) = call.arguments()?;
        let arrival = arrival(channel, Lag::Latest)?;
        {
            let value = self.0.value.lock();
            let present = arrival.encode(&*value, None)?;
            self.0.subscribers.add(arrival, Some(present));
        }
        call.answer(&())
    }
}
