//! Many calls sent together: all are in the ring before the owner is rung, and one wake serves who waits for them.
//!
//! Nobody waits for a call before the last is sent; and who has to sleep does so on the last one, since an owner takes calls in order:
//! when that is answered, most often all are.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::vec::Drain;

use serde::de::DeserializeOwned;

use super::call::Call;
use crate::error::CallError;
use crate::wire::errors::OwnError;

/// Calls that are sent together, and waited for or awaited together.
///
/// They are in the ring before their owner is told, so that one that sleeps is woken once, and so is who waits: much less for each
/// than calls one after the other cost. The calls may be of one proxy or of several, but have results of one type; each has its own
/// time-out. Of one object 64 calls can be in flight; a larger batch sends the rest as slots become free.
///
/// Used again, a batch allocates nothing: not for its calls, nor for their results, beyond what they themselves hold.
///
/// ```
/// # #[derive(Clone)] struct Math;
/// # #[objbus::object] impl Math { pub fn pow(&self, x: f64, y: f64) -> f64 { x.powf(y) } }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use objbus::Batch;
///
/// # let bus = objbus::Bus::in_memory();
/// # let _published = bus.publish("math", Math)?;
/// let math: MathProxy = bus.proxy("math").wait()?;
/// let mut batch = Batch::new();
/// for _round in 0..3 {
///     batch.extend((0..64).map(|exponent| math.pow(2.0, f64::from(exponent))));
///     for (exponent, power) in (0..).zip(batch.wait()) { // or `batch.join().await`
///         assert_eq!(power?, 2_f64.powi(exponent));
///     }
/// }
/// # Ok(()) }
/// ```
///
/// Dropping a batch drops its calls, which cancels those in flight.
pub struct Batch<T, E = Infallible> {
    members: Vec<Member<T, E>>,
    /// So many from the front are sent, or have failed.
    sent: usize,
    /// So many from the front have ended.
    ended: usize,
}

enum Member<T, E> {
    Call(Call<T, E>),
    Ended(Result<T, CallError<E>>),
}

impl<T, E> Batch<T, E> {
    /// Without calls.
    pub const fn new() -> Batch<T, E> {
        Batch { members: Vec::new(), sent: 0, ended: 0 }
    }

    /// The number of calls.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are no calls.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Adds a call, which is sent with the others.
    pub fn push(&mut self, call: Call<T, E>) {
        self.members.push(Member::Call(call));
    }

    /// The results of all, in the order of the calls.
    fn results(&mut self) -> Results<'_, T, E> {
        (self.sent, self.ended) = (0, 0);
        Results(self.members.drain(..))
    }
}

impl<T: DeserializeOwned + 'static, E: OwnError> Batch<T, E> {
    /// Sends the calls, and blocks until each has its result or its time-out is over. Their results, in the order of the calls;
    /// the batch is empty then.
    pub fn wait(&mut self) -> Results<'_, T, E> {
        while self.ended < self.members.len() {
            self.send();
            self.await_front();
            if let Member::Call(call) = &mut self.members[self.ended] {
                let result = call.wait_in_place();
                self.members[self.ended] = Member::Ended(result);
            }
            self.ended += 1;
            self.sent = self.sent.max(self.ended);
        }
        self.results()
    }

    /// Sends the calls when it is first polled, and is ready when each has its result or its time-out is over. Dropped before, it
    /// leaves the calls in the batch, in flight.
    pub fn join(&mut self) -> Join<'_, T, E> {
        Join(Some(self))
    }

    /// Looks for the answer to the first call; sleeps, if it must, until the last of those sent is answered.
    fn await_front(&mut self) {
        if let [Member::Call(first), .., Member::Call(last)] = &mut self.members[self.ended..self.sent]
            && !first.is_answered_soon()
        {
            last.stand_by(first.deadline_ns());
        }
    }

    /// Sends as many as there are slots for, then rings where that is needed, once for those that go to one owner in a row.
    fn send(&mut self) {
        let from = self.sent;
        let (mut lane, mut is_mixed) = (None, false);
        while let Some(Member::Call(call)) = self.members.get_mut(self.sent)
            && let Some(put) = call.put()
        {
            is_mixed |= lane.replace(put).is_some_and(|before| before != put);
            self.sent += 1;
        }
        let (mut rung, members) = (None, &mut self.members[from..self.sent]);
        // Where all go to one owner that need not be woken, the others are not touched again: they have left the nearest cache.
        if let (false, Some(Member::Call(last))) = (is_mixed, members.last_mut()) {
            rung = last.ring_like(None);
            if rung.is_none_or(|rung| !rung.has_rung()) {
                return;
            }
        }
        for member in members {
            if let Member::Call(call) = member {
                rung = call.ring_like(rung);
            }
        }
    }

    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.send();
            self.collect(cx);
            if self.ended == self.members.len() {
                return Poll::Ready(());
            }
            let last = self.sent.checked_sub(1).filter(|&last| matches!(self.members[last], Member::Call(_)));
            ready!(self.poll_one(last.unwrap_or(self.ended), cx));
        }
    }

    /// Takes the answers that are there, or are about to come, from the front on.
    fn collect(&mut self, cx: &mut Context<'_>) {
        while let Some(member) = self.members.get(self.ended) {
            let is_there = match member {
                Member::Ended(_) => true,
                Member::Call(call) => self.ended < self.sent && call.is_answered_for_task(),
            };
            if !is_there || self.poll_one(self.ended, cx).is_pending() {
                return;
            }
            self.ended += 1;
            self.sent = self.sent.max(self.ended);
        }
    }

    fn poll_one(&mut self, at: usize, cx: &mut Context<'_>) -> Poll<()> {
        if let Member::Call(call) = &mut self.members[at] {
            let result = ready!(Pin::new(call).poll(cx));
            self.members[at] = Member::Ended(result);
        }
        Poll::Ready(())
    }
}

impl<T, E> Default for Batch<T, E> {
    fn default() -> Batch<T, E> {
        Batch::new()
    }
}

impl<T, E> Extend<Call<T, E>> for Batch<T, E> {
    fn extend<I: IntoIterator<Item = Call<T, E>>>(&mut self, calls: I) {
        self.members.extend(calls.into_iter().map(Member::Call));
    }
}

impl<T, E> FromIterator<Call<T, E>> for Batch<T, E> {
    fn from_iter<I: IntoIterator<Item = Call<T, E>>>(calls: I) -> Batch<T, E> {
        let mut batch = Batch::new();
        batch.extend(calls);
        batch
    }
}

impl<T, E> fmt::Debug for Batch<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("calls", &self.len()).finish_non_exhaustive()
    }
}

/// Awaits the calls of a [`Batch`]; see [`Batch::join`].
#[must_use = "a future does nothing unless it is polled"]
pub struct Join<'a, T, E = Infallible>(Option<&'a mut Batch<T, E>>);

impl<'a, T: DeserializeOwned + 'static, E: OwnError> Future for Join<'a, T, E> {
    type Output = Results<'a, T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Results<'a, T, E>> {
        let batch = self.0.as_mut().expect("`Join` polled after completion");
        ready!(batch.poll_all(cx));
        self.0.take().map_or(Poll::Pending, |batch| Poll::Ready(batch.results()))
    }
}

impl<T, E> fmt::Debug for Join<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Join").field(&self.0).finish()
    }
}

/// The results of a [`Batch`], in the order of its calls.
pub struct Results<'a, T, E = Infallible>(Drain<'a, Member<T, E>>);

impl<T, E> Iterator for Results<'_, T, E> {
    type Item = Result<T, CallError<E>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|member| match member {
            Member::Ended(result) => result,
            Member::Call(_) => unreachable!("results are given when all calls have ended"),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<T, E> ExactSizeIterator for Results<'_, T, E> {}

impl<T, E> fmt::Debug for Results<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Results").field("left", &self.len()).finish()
    }
}
