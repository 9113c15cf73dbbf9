//! What a caller gets of a method that returns a stream, and a method of one that it takes.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer};

use crate::channel::{Ending, Homed, Item, ItemReceiver, Place, claim_receiver};
use crate::error::{BusError, CallError, Executed};
use crate::object::Refusal;
use crate::proxy::Call;
use crate::sys::clock;
use crate::wire::errors::OwnError;
use crate::wire::schema::{Schemas, Type, TypeRef};

/// Values that another process sends, one after the other, as they are made.
///
/// What a proxy gives for a method that returns `impl Stream<Item = T>`, and what a method takes that wants values from its
/// caller. It is a [`futures_core::Stream`], with [`next`](Stream::next) for who needs no more than that, and
/// [`iter`](Stream::iter) for threads.
///
/// The receiver's speed is the sender's: a few KiB of values, or four that hold blobs, are under way at most. Dropping the stream
/// stops the sender at its next await. An `Err` is the last item: the sender died (all that it had sent comes first), was
/// withdrawn, or panicked.
///
/// ```
/// # #[derive(Clone)] struct Clock;
/// #[objbus::object]
/// impl Clock {
///     /// Counts down.
///     pub fn countdown(&self, from: u32) -> impl objbus::futures_core::Stream<Item = u32> + use<> {
///         objbus::stream_of((0..from).rev())
///     }
/// }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = objbus::Bus::in_memory();
/// let _published = bus.publish("clock", Clock)?;
/// let clock: ClockProxy = bus.proxy("clock").wait()?;
/// let mut seconds = clock.countdown(3).wait()?;
/// assert_eq!(seconds.iter().collect::<Result<Vec<_>, _>>()?, [2, 1, 0]);
/// # Ok(()) }
/// ```
#[must_use = "a stream that is dropped stops its sender"]
pub struct Stream<T> {
    state: State,
    gives: PhantomData<fn() -> T>,
}

enum State {
    Live(Box<Homed<ItemReceiver>>),
    /// To be told once.
    Failed(Box<BusError>),
    Over,
}

impl<T> Stream<T> {
    pub(crate) fn new(receiver: Homed<ItemReceiver>) -> Stream<T> {
        Stream { state: State::Live(Box::new(receiver)), gives: PhantomData }
    }

    /// One that has failed already.
    pub(crate) fn failed(error: BusError) -> Stream<T> {
        Stream { state: State::Failed(Box::new(error)), gives: PhantomData }
    }
}

impl<T: DeserializeOwned> Stream<T> {
    /// The next value; `None` once there are no more.
    ///
    /// ```
    /// # async fn sum(mut numbers: objbus::Stream<u64>) -> Result<u64, objbus::BusError> {
    /// let mut sum = 0;
    /// while let Some(number) = numbers.next().await {
    ///     sum += number?;
    /// }
    /// # Ok(sum) }
    /// ```
    #[expect(clippy::should_implement_trait, reason = "as everybody calls it, and it is no iterator")]
    pub fn next(&mut self) -> Next<'_, T> {
        Next(self)
    }

    /// Blocks until there is a value, or there are no more, or the time is over: then the error is `DeadlineExceeded`, and the
    /// stream goes on.
    pub fn wait_next(&mut self, timeout: Duration) -> Option<Result<T, BusError>> {
        let deadline_ns = clock::now_ns().saturating_add(clock::span_ns(timeout));
        Some(self.wait_item(deadline_ns)?.map(|(_, value)| value))
    }

    /// Iterates over the values, and blocks for each.
    pub fn iter(&mut self) -> Iter<'_, T> {
        Iter(self)
    }

    /// The next value, and how many were left out before it.
    pub(crate) fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(u64, T), BusError>>> {
        self.leave_to_parent();
        let State::Live(live) = &mut self.state else { return Poll::Ready(self.last_word()) };
        let Homed { end, home } = &mut **live;
        match end.poll(&**home, cx) {
            Poll::Ready(taken) => Poll::Ready(self.given(taken)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The same, waiting on this thread.
    pub(crate) fn wait_item(&mut self, deadline_ns: u64) -> Option<Result<(u64, T), BusError>> {
        self.leave_to_parent();
        let State::Live(live) = &mut self.state else { return self.last_word() };
        let Homed { end, home } = &mut **live;
        match end.wait(&**home, deadline_ns) {
            Ok(taken) => self.given(taken),
            Err(_timed_out) => Some(Err(CallError::DeadlineExceeded { executed: Executed::Unknown })),
        }
    }

    /// In a forked child it fails: its memory is the parent's, and not mapped here.
    #[inline(always)]
    fn leave_to_parent(&mut self) {
        if let State::Live(live) = &self.state
            && live.end.is_inherited()
        {
            self.state = State::Failed(Box::new(CallError::ForkedHandle { executed: Executed::No }));
        }
    }

    /// Tells the sender at once what was taken, and not with the look that finds nothing more.
    pub(crate) fn tell_taken(&mut self) {
        if let State::Live(live) = &mut self.state {
            live.end.tell_taken();
        }
    }

    #[inline(always)]
    fn given(&mut self, taken: Option<Result<Item, BusError>>) -> Option<Result<(u64, T), BusError>> {
        let State::Live(live) = &mut self.state else { return None };
        let Homed { end, home } = &mut **live;
        let given = taken.map(|taken| taken.and_then(|item| Ok((item.missed, end.decode(&**home, &item)?))));
        if !matches!(given, Some(Ok(_))) {
            // Nothing comes after it, so the sender, if there is one, need not go on.
            self.state = State::Over;
        }
        given
    }

    #[cold]
    fn last_word<V>(&mut self) -> Option<Result<V, BusError>> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Failed(error) => Some(Err(*error)),
            State::Over | State::Live(_) => None,
        }
    }
}

impl<T: DeserializeOwned> futures_core::Stream for Stream<T> {
    type Item = Result<T, BusError>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_item(cx).map(|given| given.map(|taken| taken.map(|(_, value)| value)))
    }
}

impl<T> fmt::Debug for Stream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.state {
            State::Live(_) => "Stream(live)",
            State::Failed(_) => "Stream(failed)",
            State::Over => "Stream(over)",
        })
    }
}

/// A stream is a type of its own in a method's signature: it is no sequence of its values.
impl<T: Type> Type for Stream<T> {
    fn schema(types: &mut Schemas) -> TypeRef {
        TypeRef::Stream(Box::new(T::schema(types)))
    }
}

/// As an argument, in the method that takes it.
impl<'de, T> Deserialize<'de> for Stream<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Stream<T>, D::Error> {
        let id = u32::deserialize(deserializer)?;
        match claim_receiver(id) {
            Ok(receiver) => Ok(Stream::new(receiver)),
            // Of a caller that has given the call up, as a rule. One that lies harms nobody but itself.
            Err(Refusal::Cancelled) => Ok(Stream::failed(Ending::PeerClosed.error())),
            Err(_) => Err(de::Error::custom("there is no memory for a stream that goes along with the call")),
        }
    }
}

/// The next value of a [`Stream`], as a future.
#[derive(Debug)]
#[must_use = "a future does nothing unless it is polled"]
pub struct Next<'a, T>(&'a mut Stream<T>);

impl<T: DeserializeOwned> Future for Next<'_, T> {
    type Output = Option<Result<T, BusError>>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        futures_core::Stream::poll_next(Pin::new(&mut *self.0), cx)
    }
}

/// The values of a [`Stream`], for a thread.
#[derive(Debug)]
pub struct Iter<'a, T>(&'a mut Stream<T>);

impl<T: DeserializeOwned> Iterator for Iter<'_, T> {
    type Item = Result<T, BusError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.wait_item(u64::MAX)?.map(|(_, value)| value))
    }
}

/// A call whose method returns a stream: what a proxy gives for it.
///
/// As a [`Call`], it does nothing until it is waited for or awaited, and is cancelled by being dropped. Its time-out is that of
/// opening the stream; the stream itself has none.
#[must_use = "a call does nothing until it is sent: wait for it or await it"]
pub struct StreamCall<T, E = std::convert::Infallible> {
    call: Call<(), E>,
    place: Place<ItemReceiver>,
    gives: PhantomData<fn() -> T>,
}

impl<T, E: OwnError> StreamCall<T, E> {
    pub(crate) fn new(call: Call<(), E>, place: Place<ItemReceiver>) -> StreamCall<T, E> {
        StreamCall { call, place, gives: PhantomData }
    }

    /// Sends the call and blocks until the stream is open, or the time-out is over.
    ///
    /// # Errors
    ///
    /// The method's own error, or the bus's, as for a [`Call`].
    pub fn wait(self) -> Result<Stream<T>, CallError<E>> {
        let StreamCall { call, place, .. } = self;
        call.wait().and_then(|()| opened(&place))
    }

    /// Limits how long opening the stream may take; the proxy's time-out otherwise.
    pub fn timeout(mut self, timeout: Duration) -> StreamCall<T, E> {
        self.call = self.call.timeout(timeout);
        self
    }
}

/// The method has returned a stream: the owner's half was sent before that.
fn opened<T, E>(place: &Place<ItemReceiver>) -> Result<Stream<T>, CallError<E>> {
    match place.lock().take() {
        Some(receiver) if receiver.end.is_accepted() => Ok(Stream::new(receiver)),
        _ => Err(CallError::Disconnected { executed: Executed::Unknown }),
    }
}

impl<T, E: OwnError> Future for StreamCall<T, E> {
    type Output = Result<Stream<T>, CallError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        Pin::new(&mut this.call).poll(cx).map(|answered| answered.and_then(|()| opened(&this.place)))
    }
}

impl<T, E> fmt::Debug for StreamCall<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StreamCall").field(&self.call).finish()
    }
}

/// A stream of what an iterator gives, for methods that need no more than that.
pub fn stream_of<I: IntoIterator>(values: I) -> impl futures_core::Stream<Item = I::Item> + use<I>
where
    I::IntoIter: Unpin,
{
    struct Values<I>(I);

    impl<I: Iterator + Unpin> futures_core::Stream for Values<I> {
        type Item = I::Item;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
            Poll::Ready(self.0.next())
        }
    }

    Values(values.into_iter())
}
