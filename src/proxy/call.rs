//! One call, from its arguments to its result.
//!
//! Making the value encodes the arguments; nothing of the user's runs after that until the result is decoded, so a
//! `Serialize` that panics or blocks harms its own call only. Sending it is: reserve a slot, publish, ring if need be.
//! Then it waits, on the thread or as a future; dropped before the answer, it gives the call up.

use std::cell::Cell;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::ptr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Absent;
use super::answer::Answer;
use super::extras::Extras;
use super::flight::{Flight, Rung};
use super::lane::Lane;
use super::link::Link;
use crate::blob::arena::Arena;
use crate::blob::limit::NoMemory;
use crate::error::{BusError, CallError, Executed};
use crate::owner::context;
use crate::parcels::{PackError, Parcels};
use crate::ring::buffer::RequestBuffer;
use crate::ring::layout::{NO_CPU, RequestMeta, len_with_loans};
use crate::sys::clock;
use crate::wire::blob::Blobs;
use crate::wire::errors::OwnError;
use crate::wire::output::{EncodeError, Encoded, Spilled, encode_request};

/// A call that is made, but not yet sent.
///
/// It is sent by [`wait`](Call::wait), by awaiting it, or by [`send`](Call::send). It borrows nothing: keep it, move it to
/// another thread, spawn it. Dropped before it is sent, it does nothing; dropped after, it cancels the call:
/// a call that has not begun never will, a running one sees [`CallContext::cancelled`](crate::CallContext::cancelled).
///
/// As a future it panics when it is polled after it was ready, and likewise when it is then waited for or sent: it is one call.
///
/// `E` is the method's own error; see [`CallError`].
///
/// ```
/// # #[derive(Clone)] struct Math;
/// # #[objbus::object] impl Math { pub fn pow(&self, x: f64, y: f64) -> f64 { x.powf(y) } }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let bus = objbus::Bus::in_memory();
/// let _published = bus.publish("math", Math)?;
/// let math: MathProxy = bus.proxy("math").wait()?;
///
/// assert_eq!(math.pow(2.0, 10.0).wait()?, 1024.0);
/// assert_eq!(math.pow(2.0, 0.5).timeout(Duration::from_secs(1)).wait()?, 2_f64.sqrt());
/// # Ok(()) }
/// ```
#[must_use = "a call does nothing until it is sent: wait for it, await it, or send it"]
pub struct Call<T, E = Infallible> {
    raw: RawCall,
    returns: PhantomData<fn() -> (T, E)>,
}

/// A call without its types.
struct RawCall {
    link: Arc<Link>,
    /// Present until dropped.
    parts: ManuallyDrop<Box<Parts>>,
}

/// What a call consists of, in a box that its thread uses again: a call is moved as two words, and a hot one allocates
/// nothing.
struct Parts {
    request: Prepared,
    flight: Flight,
    /// What went wrong when the call was made; told when it is sent.
    failure: Option<Box<BusError>>,
    /// The next spare one, and how many there are from here on.
    next: Option<Box<Parts>>,
    spare: usize,
}

/// Boxes that a thread keeps; more calls than this at once allocate and free theirs.
const KEPT: usize = 64;

thread_local! {
    /// Of calls that have ended, and were dropped on this thread: the first of a list.
    static SPARE: Cell<Option<Box<Parts>>> = const { Cell::new(None) };
}

/// A request, ready to be sent as often as it takes to find an owner that begins it.
pub(crate) struct Prepared {
    pub key: u64,
    pub method: MethodName,
    pub body: RequestBuffer,
    pub len: u32,
    pub flags: u8,
    /// The whole body, where it does not fit the cell.
    pub spill: Option<Spilled>,
    /// What is lent with it.
    pub blobs: Blobs,
    /// What else goes along.
    pub extras: Extras,
    /// `u64::MAX`: none.
    pub timeout_ns: u64,
    pub absent: Absent,
    /// Fails with `Overloaded` rather than wait for a slot.
    pub immediate: bool,
}

/// The name of a method, for errors.
#[derive(Debug)]
pub(crate) struct MethodName {
    /// As the program's text has it; empty where the call was given one.
    fixed: &'static str,
    /// What is left of an earlier call's, if `fixed` is not empty: its memory is used again.
    given: String,
}

impl MethodName {
    #[cold]
    pub fn as_str(&self) -> &str {
        if self.fixed.is_empty() { &self.given } else { self.fixed }
    }
}

/// How a proxy calls, copied into each call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// `u64::MAX`: none.
    pub timeout_ns: u64,
    pub absent: Absent,
}

impl Parts {
    fn blank() -> Box<Parts> {
        let request = Prepared {
            key: 0,
            method: MethodName { fixed: "", given: String::new() },
            body: RequestBuffer::new(),
            len: 0,
            flags: 0,
            spill: None,
            blobs: Blobs::new(),
            extras: Extras::default(),
            timeout_ns: 0,
            absent: Absent::Fail,
            immediate: false,
        };
        Box::new(Parts { request, flight: Flight::unsent(), failure: None, next: None, spare: 0 })
    }

    #[inline(always)]
    fn take_spare() -> Option<Box<Parts>> {
        // A thread at its end has no spare ones any more.
        let first = SPARE.try_with(|spare| {
            let mut first = spare.take()?;
            spare.set(first.next.take());
            Some(first)
        });
        first.ok().flatten()
    }

    #[inline(always)]
    fn keep(mut self: Box<Self>) {
        let _ = SPARE.try_with(move |spare| {
            self.next = spare.take();
            self.spare = self.next.as_ref().map_or(1, |next| next.spare + 1);
            let kept = if self.spare > KEPT { self.next.take() } else { Some(self) };
            spare.set(kept);
        });
    }

    /// Makes it as good as new.
    #[inline(always)]
    fn clear(&mut self) {
        let Parts { request, flight, failure, .. } = self;
        request.body.clear();
        (request.len, request.flags, request.immediate) = (0, 0, false);
        if request.spill.is_some() {
            request.spill = None;
        }
        if !request.blobs.is_empty() {
            request.blobs.clear();
        }
        if !request.extras.is_empty() {
            request.extras.clear();
        }
        if failure.is_some() {
            *failure = None;
        }
        flight.clear();
    }
}

impl RawCall {
    /// Without arguments yet.
    #[inline(always)]
    fn new(link: &Arc<Link>, key: u64, method: &'static str, style: Style) -> RawCall {
        let mut parts = Parts::take_spare().unwrap_or_else(Parts::blank);
        let request = &mut parts.request;
        request.key = key;
        request.method.fixed = method;
        request.timeout_ns = style.timeout_ns;
        request.absent = style.absent;
        RawCall { link: Arc::clone(link), parts: ManuallyDrop::new(parts) }
    }

    #[inline(always)]
    fn encode<A: Serialize + ?Sized>(&mut self, arguments: &A) {
        let Parts { request, failure, .. } = &mut **self.parts;
        let (bus, arena) = (&self.link.bus, &self.link.arena);
        let Prepared { body, blobs, .. } = request;
        match encode_request(arguments, body.bytes(), bus.body_limit(), arena, blobs) {
            Ok(Encoded::Inline(len)) => {
                request.body.close(len);
                request.len = len as u32;
            }
            Ok(Encoded::Spilled(spilled)) => *failure = request.set_spilled(spilled),
            Err(error) => *failure = Some(unencodable(*error)),
        }
        if let Some(inherited) = context::inherited() {
            *failure = failure.take().or_else(|| request.inherit(&inherited, arena));
        }
    }

    /// Sends the call and waits for the answer on this thread.
    #[inline(always)]
    fn wait(&mut self, answer: &mut Answer) -> Result<(), BusError> {
        let Parts { request, flight, failure, .. } = &mut **self.parts;
        if let Some(failure) = failure.take() {
            return Err(*failure);
        }
        flight.wait(&self.link, request, answer)
    }

    #[inline(always)]
    fn start(&mut self) {
        let Parts { request, flight, failure, .. } = &mut **self.parts;
        if failure.is_none()
            && !flight.is_out()
            && let Err(error) = flight.start_unwatched(&self.link, request)
        {
            *failure = Some(Box::new(error));
        }
    }

    fn send(&mut self) -> Result<(), BusError> {
        let Parts { request, flight, failure, .. } = &mut **self.parts;
        if let Some(failure) = failure.take() {
            return Err(*failure);
        }
        if request.extras.end_with_answer() {
            let reason = "a call with an object to be called back is not sent one way: wait for its answer";
            return Err(CallError::BadRequest { reason: reason.to_owned(), executed: Executed::No });
        }
        request.flags |= RequestMeta::ONE_WAY;
        flight.send_one_way(&self.link, request)
    }

    fn poll(&mut self, cx: &mut Context<'_>, answer: &mut Answer) -> Poll<Result<(), BusError>> {
        let Parts { request, flight, failure, .. } = &mut **self.parts;
        if let Some(failure) = failure.take() {
            flight.end_unsent();
            return Poll::Ready(Err(*failure));
        }
        flight.poll(&self.link, request, cx, answer)
    }
}

impl Drop for RawCall {
    #[inline(always)]
    fn drop(&mut self) {
        if self.parts.flight.is_out() {
            self.parts.flight.give_up(&self.link);
        }
        // SAFETY: the value is dropped, so nothing looks at `parts` after this.
        let mut parts = unsafe { ManuallyDrop::take(&mut self.parts) };
        parts.clear();
        parts.keep();
    }
}

impl Prepared {
    #[cold]
    fn set_spilled(&mut self, spilled: Spilled) -> Option<Box<BusError>> {
        let Ok(len) = u32::try_from(spilled.len()) else {
            let (limit, size) = (u64::from(u32::MAX), spilled.len() as u64);
            return Some(Box::new(CallError::TooLarge { limit, size, executed: Executed::No }));
        };
        self.len = len;
        self.flags |= RequestMeta::SPILLED;
        self.spill = Some(spilled);
        None
    }

    /// The encoded body, where it is in the cell's words.
    fn inline(&mut self) -> &[u8] {
        let len = self.len as usize;
        // SAFETY: `close(len)` was told that the first `len` bytes are initialised, and nothing was put over a body that is not
        // spilled.
        unsafe { std::slice::from_raw_parts(self.body.bytes().as_ptr().cast(), len) }
    }

    /// Bytes of the cell that the body may take, with what is lent.
    fn room(&self) -> u64 {
        RequestMeta { slot: 0, flags: self.flags, cpu: NO_CPU }.room() as u64
    }

    /// Lends what goes with the request, and writes where it lies.
    #[cold]
    pub fn lend(&mut self, parcels: &Parcels) -> Result<(), PackError> {
        let loans = parcels.lend_all(self.blobs.iter().cloned())?;
        let lent = self.blobs.len() as u32;
        if self.spill.is_none() && len_with_loans(self.len.into(), lent) <= self.room() {
            self.body.set_loans(self.len.div_ceil(8) as usize, &loans);
            return Ok(());
        }
        let body = self.spill_now(parcels).and_then(|spill| parcels.lend_body(spill, &loans, None));
        let body = body.inspect_err(|_| parcels.unlend(&loans))?;
        self.body.set_loans(0, &[body]);
        Ok(())
    }

    fn spill_now(&mut self, parcels: &Parcels) -> Result<&mut Spilled, PackError> {
        if self.spill.is_none() {
            let spilled = parcels.spill(self.inline())?;
            // What fits a cell has a length that does.
            let _fits = self.set_spilled(spilled);
        }
        self.spill.as_mut().ok_or(PackError::NoMemory)
    }

    /// Made inside a method: the call keeps to that one's deadline and names the objects it comes through.
    #[cold]
    fn inherit(&mut self, inherited: &context::Inherited, arena: &Arena) -> Option<Box<BusError>> {
        if let Some(left) = inherited.left() {
            self.timeout_ns = self.timeout_ns.min(clock::span_ns(left));
        }
        self.flags |= RequestMeta::CHAIN;
        if self.spill.is_none() && u64::from(self.len) > self.room() {
            // The chain takes the end of the cell, so the body moves out.
            match Spilled::copy_of(self.inline(), arena) {
                Ok(spilled) => drop(self.set_spilled(spilled)),
                Err(NoMemory) => return Some(Box::new(CallError::NoMemory { executed: Executed::No })),
            }
        }
        self.body.set_chain(&inherited.chain);
        None
    }
}

#[cold]
fn unencodable(error: EncodeError) -> Box<BusError> {
    let executed = Executed::No;
    Box::new(match error {
        EncodeError::TooLarge { limit, size } => CallError::TooLarge { limit, size, executed },
        EncodeError::NoMemory => CallError::NoMemory { executed },
        EncodeError::Unencodable(reason) => CallError::BadRequest { reason, executed },
    })
}

impl<T: DeserializeOwned + 'static, E: OwnError> Call<T, E> {
    /// Encodes the arguments.
    #[inline(always)]
    pub(crate) fn new<A: Serialize + ?Sized>(
        link: &Arc<Link>,
        key: u64,
        method: &'static str,
        style: Style,
        arguments: &A,
    ) -> Call<T, E> {
        let mut raw = RawCall::new(link, key, method, style);
        raw.encode(arguments);
        Call { raw, returns: PhantomData }
    }

    /// As [`new`](Self::new), of a method whose name need not outlive the call.
    pub(crate) fn named<A: Serialize + ?Sized>(
        link: &Arc<Link>,
        key: u64,
        method: &str,
        style: Style,
        arguments: &A,
    ) -> Call<T, E> {
        let mut call = Call::new(link, key, "", style, arguments);
        let given = &mut call.raw.parts.request.method.given;
        given.clear();
        given.push_str(method);
        call
    }

    pub(super) fn with(mut self, extras: Extras) -> Call<T, E> {
        self.raw.parts.request.extras = extras;
        self
    }

    /// Sends the call and blocks until its result is there, or the time-out is over. Connects first if there is no connection, and
    /// waits for a slot if 64 calls are in flight; both count towards the time-out.
    ///
    /// # Errors
    ///
    /// The method's own error, or the bus's with its [`Executed`].
    #[inline(always)]
    pub fn wait(mut self) -> Result<T, CallError<E>> {
        self.wait_in_place()
    }

    #[inline(always)]
    pub(super) fn wait_in_place(&mut self) -> Result<T, CallError<E>> {
        let mut answer = Answer::blank();
        self.raw.wait(&mut answer).map_err(BusError::widen)?;
        answer.decode(&self.raw.link, self.raw.parts.request.key, &self.raw.parts.request.method)
    }

    /// As [`wait`](Call::wait), but `Overloaded` at once where the call would have to wait for one of the caller's 64 in
    /// flight to end.
    ///
    /// # Errors
    ///
    /// As [`wait`](Call::wait).
    pub fn try_wait(self) -> Result<T, CallError<E>> {
        self.immediate().wait()
    }

    /// Makes sending fail with `Overloaded` where it would have to wait for one of the 64 calls that can be in flight.
    pub fn immediate(mut self) -> Call<T, E> {
        self.raw.parts.request.immediate = true;
        self
    }

    /// Sends the call now, to be waited for or awaited later: for many calls in flight from one thread. Blocks only where
    /// all 64 slots are taken. What goes wrong is told when it is waited for.
    ///
    /// ```
    /// # #[derive(Clone)] struct Math;
    /// # #[objbus::object] impl Math { pub fn pow(&self, x: f64, y: f64) -> f64 { x.powf(y) } }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = objbus::Bus::in_memory();
    /// # let _published = bus.publish("math", Math)?;
    /// # let math: MathProxy = bus.proxy("math").wait()?;
    /// let calls: Vec<_> = (0..8).map(|i| math.pow(2.0, f64::from(i)).started()).collect();
    /// for (i, call) in (0..).zip(calls) {
    ///     assert_eq!(call.wait()?, 2_f64.powi(i));
    /// }
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn started(mut self) -> Call<T, E> {
        self.raw.start();
        self
    }

    /// Limits this call, from its sending to its answer; the proxy's time-out otherwise. `Duration::MAX` is no limit. With
    /// `Duration::ZERO` the call may be sent nevertheless, and give its result where the owner is quick.
    ///
    /// Inside a method, the deadline of the call being served holds too.
    pub fn timeout(mut self, timeout: Duration) -> Call<T, E> {
        let left = context::inherited().and_then(|inherited| inherited.left());
        self.raw.parts.request.timeout_ns = clock::span_ns(left.map_or(timeout, |left| timeout.min(left)));
        self
    }

    /// Sends the call without waiting for its result: one way.
    ///
    /// Once this returns `Ok`, the method runs even if this process ends at once, as long as the owner lives. What comes of it
    /// is not told. Blocks where all 64 slots are taken (see [`immediate`](Call::immediate)) and where it has to connect first, until
    /// its time-out at most.
    ///
    /// # Errors
    ///
    /// Where it could not be sent; the method did not run then.
    pub fn send(mut self) -> Result<(), BusError> {
        self.raw.send()
    }
}

/// As one of a batch.
impl<T, E> Call<T, E> {
    /// Puts the request into the ring, and leaves it to [`ring_like`](Self::ring_like) to tell the owner: on which lane, only to be
    /// compared. `None`: it would have to wait. What goes wrong is told when it is waited for.
    pub(super) fn put(&mut self) -> Option<*const Lane> {
        let Parts { request, flight, failure, .. } = &mut **self.raw.parts;
        if failure.is_some() {
            return Some(ptr::null());
        }
        flight.put(&self.raw.link, request).unwrap_or_else(|error| {
            *failure = Some(Box::new(error));
            Some(ptr::null())
        })
    }

    /// Rings after [`put`](Self::put), unless that was done for one of the same lane, `before`.
    pub(super) fn ring_like(&mut self, before: Option<Rung>) -> Option<Rung> {
        self.raw.parts.flight.ring_like(&self.raw.link, before)
    }

    pub(super) fn deadline_ns(&self) -> u64 {
        self.raw.parts.flight.deadline_ns()
    }

    /// Whether there is nothing to wait for, now or after looking for a while.
    pub(super) fn is_answered_soon(&self) -> bool {
        self.raw.parts.flight.is_answered_soon(&self.raw.link)
    }

    /// The same for a task.
    pub(super) fn is_answered_for_task(&self) -> bool {
        self.raw.parts.flight.is_answered_for_task(&self.raw.link)
    }

    /// Sleeps until it is answered, never will be, or `until_ns`.
    pub(super) fn stand_by(&mut self, until_ns: u64) {
        self.raw.parts.flight.stand_by(&self.raw.link, until_ns);
    }
}

impl<T: DeserializeOwned + 'static, E: OwnError> Future for Call<T, E> {
    type Output = Result<T, CallError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let raw = &mut self.get_mut().raw;
        let mut answer = Answer::blank();
        raw.poll(cx, &mut answer).map(|result| match result {
            Ok(()) => answer.decode(&raw.link, raw.parts.request.key, &raw.parts.request.method),
            Err(error) => Err(error.widen()),
        })
    }
}

impl<T, E> std::fmt::Debug for Call<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("object", self.raw.link.name())
            .field("method", &self.raw.parts.request.method.as_str())
            .finish()
    }
}
