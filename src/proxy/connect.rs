//! Getting a proxy: like a call, a value that is waited for or awaited.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::call::Style;
use super::link::{Attempt, Link};
use super::{Absent, Handle};
use crate::bus::Bus;
use crate::error::ConnectError;
use crate::names::Name;
use crate::object::Proxy;
use crate::sys::clock;

/// A connection that is about to be made; see [`Bus::proxy`].
///
/// ```
/// # struct Clock;
/// # #[objbus::object] impl Clock { pub fn ticks(&self) -> u64 { 0 } }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = objbus::Bus::in_memory();
/// # let _published = bus.publish("clock", Clock)?;
/// use std::time::Duration;
///
/// // Whoever publishes it may still be starting.
/// let clock: ClockProxy = bus.proxy("clock").call_timeout(Duration::from_secs(1)).wait_for(Duration::from_secs(10))?;
/// assert_eq!(clock.ticks().wait()?, 0);
/// # Ok(()) }
/// ```
#[must_use = "it connects when it is waited for or awaited"]
pub struct Connect<P> {
    bus: Bus,
    name: String,
    style: Style,
    /// How long to wait for the name; zero: not at all.
    patience: Duration,
    /// The future's state.
    started: Option<(Arc<Link>, Option<Arc<Attempt>>)>,
    makes: PhantomData<fn() -> P>,
}

impl<P: Proxy> Connect<P> {
    pub(crate) fn new(bus: Bus, name: &str) -> Connect<P> {
        let style = Style { timeout_ns: clock::span_ns(bus.0.timeout()), absent: Absent::Fail };
        Connect {
            bus,
            name: name.to_owned(),
            style,
            patience: Duration::ZERO,
            started: None,
            makes: PhantomData,
        }
    }

    /// How long each call of this proxy may take; the bus's default otherwise.
    pub fn call_timeout(mut self, timeout: Duration) -> Connect<P> {
        self.style.timeout_ns = clock::span_ns(timeout);
        self
    }

    /// What a call does while nobody publishes the name, after this connection was made.
    pub fn absent(mut self, policy: Absent) -> Connect<P> {
        self.style.absent = policy;
        self
    }

    /// Waits for the name to appear, up to `patience`, when this is awaited; [`wait_for`](Connect::wait_for) is for threads.
    pub fn patience(mut self, patience: Duration) -> Connect<P> {
        self.patience = patience;
        self
    }

    /// Connects. Blocks for the handshake: some 100 us, a second at most.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; `NotFound` at once where nobody publishes the name.
    pub fn wait(self) -> Result<P, ConnectError> {
        let patience = self.patience;
        self.wait_for(patience)
    }

    /// Connects, waiting for the name to appear, up to `patience`.
    ///
    /// # Errors
    ///
    /// As [`wait`](Connect::wait); `NotFound` after the whole of `patience`.
    pub fn wait_for(self, patience: Duration) -> Result<P, ConnectError> {
        let link = self.link()?;
        if patience.is_zero() {
            link.connect(u64::MAX)?;
        } else {
            link.connect_patiently(deadline_ns(patience)).map_err(|error| gave_up(error, patience))?;
        }
        Ok(self.finish(link))
    }

    /// A proxy that is not connected yet: its first call connects.
    ///
    /// # Errors
    ///
    /// [`ConnectError::NameInvalid`].
    pub fn lazy(self) -> Result<P, ConnectError> {
        let link = self.link()?;
        Ok(self.finish(link))
    }

    fn link(&self) -> Result<Arc<Link>, ConnectError> {
        // In a forked child the lock below may be held for ever.
        if self.bus.0.is_foreign() {
            return Err(ConnectError::ForkedHandle);
        }
        let name = Name::new(&self.name)
            .map_err(|reason| ConnectError::NameInvalid { name: self.name.clone(), reason })?;
        Ok(self.bus.0.link(&name))
    }

    fn finish(&self, link: Arc<Link>) -> P {
        P::from_handle(Handle::new(link, &P::interface(), self.style))
    }
}

/// An absence that was waited out says so.
fn gave_up(error: ConnectError, waited: Duration) -> ConnectError {
    match error {
        ConnectError::NotFound { name, .. } => ConnectError::NotFound { name, waited },
        other => other,
    }
}

fn deadline_ns(span: Duration) -> u64 {
    clock::now_ns().saturating_add(clock::span_ns(span))
}

impl<P: Proxy> Future for Connect<P> {
    type Output = Result<P, ConnectError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let (link, attempt) = match this.started.take() {
            Some(started) => started,
            None => (this.link()?, None),
        };
        let attempt = attempt.unwrap_or_else(|| {
            let (patient, deadline_ns) = (!this.patience.is_zero(), deadline_ns(this.patience));
            link.connect_in_background(cx.waker(), if patient { deadline_ns } else { u64::MAX }, patient)
        });
        match attempt.outcome() {
            Some(Ok(())) => Poll::Ready(Ok(this.finish(link))),
            Some(Err(error)) => Poll::Ready(Err(gave_up(error, this.patience))),
            None => {
                attempt.set_waker(cx.waker());
                // The outcome may have come before the waker.
                if let Some(outcome) = attempt.outcome() {
                    let made = outcome.map(|()| this.finish(link));
                    return Poll::Ready(made.map_err(|error| gave_up(error, this.patience)));
                }
                this.started = Some((link, Some(attempt)));
                Poll::Pending
            }
        }
    }
}

impl<P> std::fmt::Debug for Connect<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect").field("name", &self.name).finish_non_exhaustive()
    }
}
