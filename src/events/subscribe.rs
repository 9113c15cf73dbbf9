//! The subscriber's side: a stream that is made anew whenever its owner is.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::gap::is_final;
use super::pause::Pause;
use super::{Gap, Lag, event_schema, watched_schema};
use crate::error::{BusError, CallError, Executed};
use crate::park::Parker;
use crate::proxy::{Call, Extras, Handle};
use crate::stream::{Stream, StreamCall};
use crate::sys::clock;
use crate::wire::key::getter_key;
use crate::wire::schema::Type;

/// A subscription that is made, but not yet sent. What a proxy's method returns where the object's returns an
/// [`Event`](crate::Event).
///
/// Like a [`Call`], it does nothing until it is waited for or awaited. Then it gives [`Events`].
///
/// ```
/// # #[derive(Default)] struct Clock { ticks: objbus::Event<u32> }
/// # #[objbus::object] impl Clock { pub fn ticks(&self) -> &objbus::Event<u32> { &self.ticks } }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use objbus::{Bus, Event, Lag};
///
/// let bus = Bus::in_memory();
/// let ticks = Event::new();
/// let _published = bus.publish("clock", Clock { ticks: ticks.clone() })?;
/// let clock: ClockProxy = bus.proxy("clock").wait()?;
///
/// let mut every = clock.ticks().lag(Lag::DropOldest { keep: 1000 }).wait()?;
/// let mut latest = clock.ticks().lag(Lag::Latest).wait()?;
/// (1..=3).try_for_each(|tick| ticks.emit(&tick))?;
/// assert_eq!(every.iter().take(3).collect::<Result<Vec<_>, _>>()?, [1, 2, 3]);
/// assert_eq!(latest.iter().take(2).collect::<Result<Vec<_>, _>>()?, [1, 3]);
/// # Ok(()) }
/// ```
#[must_use = "a subscription does nothing until it is waited for or awaited"]
pub struct Subscribe<T> {
    target: Target,
    timeout: Option<Duration>,
    /// Once it is polled.
    call: Option<StreamCall<T>>,
}

/// What is subscribed to, and how: all that it takes to do it again.
#[derive(Clone)]
struct Target {
    handle: Handle,
    key: u64,
    method: Arc<str>,
    /// `None`: a watched property.
    lag: Option<Lag>,
}

impl Target {
    fn subscribe<T>(self) -> Subscribe<T> {
        Subscribe { target: self, timeout: None, call: None }
    }

    /// The call that subscribes.
    fn call<T: DeserializeOwned + 'static>(&self) -> StreamCall<T> {
        self.call_through(&self.handle)
    }

    /// The same once more: it waits until somebody publishes the name, and agrees.
    fn call_again<T: DeserializeOwned + 'static>(&self) -> StreamCall<T> {
        self.call_through(&self.handle.clone().patient())
    }

    fn call_through<T: DeserializeOwned + 'static>(&self, handle: &Handle) -> StreamCall<T> {
        let mut extras = Extras::default();
        let receiving = extras.receive();
        let (key, method, channel) = (self.key, &self.method, receiving.id());
        match self.lag {
            Some(lag) => handle.stream_by_key(key, method, &(lag, channel), (extras, receiving)),
            None => handle.stream_by_key(key, method, &(channel,), (extras, receiving)),
        }
    }
}

impl<T: DeserializeOwned + 'static> Subscribe<T> {
    /// For generated code.
    #[doc(hidden)]
    pub fn new(handle: &Handle, index: usize, method: &'static str) -> Subscribe<T> {
        let lag = Some(Lag::default());
        Target { handle: handle.clone(), key: handle.key(index), method: method.into(), lag }.subscribe()
    }

    pub(crate) fn named(handle: &Handle, method: &str) -> Subscribe<T>
    where
        T: Type,
    {
        let key = getter_key(method, event_schema::<T>);
        Target { handle: handle.clone(), key, method: method.into(), lag: Some(Lag::default()) }.subscribe()
    }

    /// What becomes of events while this subscriber does not take them; by default the latest 256 are kept.
    pub fn lag(mut self, lag: Lag) -> Subscribe<T> {
        self.target.lag = Some(lag);
        self
    }

    /// Limits the time until the subscription stands; the proxy's time-out for calls otherwise. How long events take to come is not
    /// limited by either.
    pub fn timeout(mut self, timeout: Duration) -> Subscribe<T> {
        self.timeout = Some(timeout);
        self
    }

    fn make(&self) -> StreamCall<T> {
        let call = self.target.call();
        match self.timeout {
            Some(timeout) => call.timeout(timeout),
            None => call,
        }
    }

    /// Subscribes and blocks until the object has agreed. What it emits from then on is received.
    ///
    /// # Errors
    ///
    /// As those of a [`Call`].
    pub fn wait(self) -> Result<Events<T>, BusError> {
        let stream = self.make().wait()?;
        Ok(Events::of(self.target, stream))
    }
}

impl<T: DeserializeOwned + 'static> Future for Subscribe<T> {
    type Output = Result<Events<T>, BusError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut call = this.call.take().unwrap_or_else(|| this.make());
        let Poll::Ready(made) = Pin::new(&mut call).poll(cx) else {
            this.call = Some(call);
            return Poll::Pending;
        };
        Poll::Ready(made.map(|stream| Events::of(this.target.clone(), stream)))
    }
}

impl<T> fmt::Debug for Subscribe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscribe").field(&self.target).finish()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("object", &self.handle.name())
            .field("event", &self.method)
            .field("lag", &self.lag)
            .finish()
    }
}

/// A watched property of an object, to be read or subscribed to. What a proxy's method returns where the object's returns a
/// [`Watched`](crate::Watched), which has an example.
#[derive(Clone)]
pub struct Watch<T> {
    target: Target,
    gives: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned + 'static> Watch<T> {
    /// For generated code.
    #[doc(hidden)]
    pub fn new(handle: &Handle, index: usize, method: &'static str) -> Watch<T> {
        Watch::of(handle, handle.key(index), method)
    }

    pub(crate) fn named(handle: &Handle, method: &str) -> Watch<T>
    where
        T: Type,
    {
        Watch::of(handle, getter_key(method, watched_schema::<T>), method)
    }

    fn of(handle: &Handle, key: u64, method: &str) -> Watch<T> {
        let target = Target { handle: handle.clone(), key, method: method.into(), lag: None };
        Watch { target, gives: PhantomData }
    }

    /// Reads the value.
    pub fn get(&self) -> Call<T> {
        let Target { handle, key, method, .. } = &self.target;
        handle.call_by_key(*key, method, &())
    }

    /// The value at present, and then each later one; the latest only if this subscriber does not take them in time.
    pub fn subscribe(&self) -> Subscribe<T> {
        self.target.clone().subscribe()
    }
}

impl<T> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.target).finish()
    }
}

/// The events of one subscription: a `Stream`, or, blocking, an [iterator](Events::iter).
///
/// Beside the events it tells, each at its place, what was [missed](Gap::Missed), that it was made [anew](Gap::Resubscribed) after the
/// owner's end, and the error that [ended](Gap::Ended) it. Nobody else ends it: while the object is away it waits for the next to publish
/// the name. That happens when it is polled. Dropping it unsubscribes.
pub struct Events<T> {
    target: Target,
    state: State<T>,
    /// Came with a number of those missed, which is told first.
    next: Option<T>,
    /// How often the subscription has been lost since something last came.
    losses: u32,
}

enum State<T> {
    Open(Stream<T>),
    /// Being made anew.
    Calling(Box<StreamCall<T>>),
    /// Failed, and to be tried again.
    Pausing(Pause),
    /// To be told.
    Failed(Box<BusError>),
    Ended,
}

impl<T: DeserializeOwned + 'static> Events<T> {
    fn of(target: Target, stream: Stream<T>) -> Events<T> {
        Events { target, state: State::Open(stream), next: None, losses: 0 }
    }

    /// The next event, or what is to be told at this place; `None` once it has ended.
    pub async fn next(&mut self) -> Option<Result<T, Gap>> {
        std::future::poll_fn(|cx| self.poll_told(cx)).await
    }

    /// As [`next`](Self::next), for a thread; [`Gap::TimedOut`] where nothing comes in time.
    pub fn wait_next(&mut self, timeout: Duration) -> Option<Result<T, Gap>> {
        self.wait_until(clock::now_ns().saturating_add(clock::span_ns(timeout)))
    }

    /// What comes, one after the other; blocks for each.
    pub fn iter(&mut self) -> impl Iterator<Item = Result<T, Gap>> {
        std::iter::from_fn(|| self.wait_until(u64::MAX))
    }

    fn wait_until(&mut self, deadline_ns: u64) -> Option<Result<T, Gap>> {
        let mut parker = None;
        loop {
            self.leave_to_parent();
            if let (State::Open(stream), None) = (&mut self.state, &self.next) {
                let taken = stream.wait_item(deadline_ns);
                let is_late = matches!(taken, Some(Err(CallError::DeadlineExceeded { .. })));
                if is_late && clock::now_ns() >= deadline_ns {
                    return Some(Err(Gap::TimedOut));
                }
                if let told @ Some(_) = self.heard(taken) {
                    return told;
                }
            }
            let parker = parker.get_or_insert_with(Parker::new);
            if let Poll::Ready(told) = self.poll_told(&mut Context::from_waker(parker.waker())) {
                return told;
            }
            if clock::now_ns() >= deadline_ns {
                return Some(Err(Gap::TimedOut));
            }
            parker.park(deadline_ns);
        }
    }

    /// In a forked child it ends: its memory is the parent's, and not mapped here.
    fn leave_to_parent(&mut self) {
        if self.target.handle.is_foreign() && !matches!(self.state, State::Ended | State::Failed(_)) {
            self.state = State::Failed(Box::new(CallError::ForkedHandle { executed: Executed::No }));
        }
    }

    fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Gap>>> {
        self.leave_to_parent();
        if let Some(item) = self.next.take() {
            return Poll::Ready(Some(Ok(item)));
        }
        loop {
            match &mut self.state {
                State::Open(stream) => {
                    let taken = ready!(stream.poll_item(cx));
                    if let Some(told) = self.heard(taken) {
                        return Poll::Ready(Some(told));
                    }
                }
                State::Calling(call) => match ready!(Pin::new(&mut **call).poll(cx)) {
                    Ok(stream) => {
                        self.state = State::Open(stream);
                        return Poll::Ready(Some(Err(Gap::Resubscribed)));
                    }
                    Err(error) => self.lose(error),
                },
                State::Pausing(pause) => {
                    ready!(pause.poll(cx));
                    self.state = State::Calling(Box::new(self.target.call_again()));
                }
                State::Failed(_) => {
                    let State::Failed(error) = std::mem::replace(&mut self.state, State::Ended) else {
                        continue;
                    };
                    return Poll::Ready(Some(Err(Gap::Ended(*error))));
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    }

    /// What is to be told of what came; `None`: the subscription is lost.
    fn heard(&mut self, taken: Option<Result<(u64, T), BusError>>) -> Option<Result<T, Gap>> {
        match taken {
            Some(Ok((missed, item))) => {
                self.losses = 0;
                self.free_for_latest();
                if missed == 0 {
                    return Some(Ok(item));
                }
                self.next = Some(item);
                return Some(Err(Gap::Missed(missed)));
            }
            Some(Err(error)) => self.lose(error),
            None => self.lose(CallError::Unpublished { executed: Executed::Yes }),
        }
        None
    }

    /// The latest is sent only once the one before it is known to be taken.
    fn free_for_latest(&mut self) {
        if let (State::Open(stream), None | Some(Lag::Latest)) = (&mut self.state, self.target.lag) {
            stream.tell_taken();
        }
    }

    fn lose(&mut self, error: BusError) {
        self.losses += 1;
        self.state = match is_final(&error) {
            true => State::Failed(Box::new(error)),
            false => State::Pausing(Pause::after(self.target.handle.engine(), self.losses)),
        };
    }
}

impl<T: DeserializeOwned + 'static> futures_core::Stream for Events<T> {
    type Item = Result<T, Gap>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_told(cx)
    }
}

// Nothing in it is pinned.
impl<T> Unpin for Events<T> {}

impl<T> fmt::Debug for Events<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.target).finish()
    }
}
