//! Getting a proxy: like a call, a value that is waited for or awaited.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::call::Style;
use super::group::{Balance, Choice, Waiting};
use super::link::{Attempt, Link};
use super::{Absent, Handle};
use crate::bus::Bus;
use crate::engine::Token;
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
    balance: Balance,
    tag: Option<String>,
    pid: Option<u32>,
    /// How long to wait for the name; zero: not at all.
    patience: Duration,
    /// The future's state.
    started: Option<Started>,
    makes: PhantomData<fn() -> P>,
}

/// A connection being made for a task.
struct Started {
    link: Arc<Link>,
    since_ns: u64,
    /// Until when it waits for the name; `None`: not at all.
    deadline_ns: Option<u64>,
    attempt: Option<Arc<Attempt>>,
    /// For one of the instances.
    waiting: Option<Waiting>,
    /// Has the task polled at the deadline.
    alarm: Option<(Waker, (u64, Token))>,
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.link.is_foreign() {
            std::mem::forget((self.attempt.take(), self.waiting.take()));
        } else if let Some((_, alarm)) = self.alarm.take() {
            self.link.bus.engine.cancel_alarm(alarm);
        }
    }
}

impl<P: Proxy> Connect<P> {
    pub(crate) fn new(bus: Bus, name: &str) -> Connect<P> {
        let style = Style { timeout_ns: clock::span_ns(bus.0.timeout()), absent: Absent::Fail };
        Connect {
            bus,
            name: name.to_owned(),
            style,
            balance: Balance::default(),
            tag: None,
            pid: None,
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

    /// How calls are spread over the [instances](Bus::publish_as) of the name, if it has any.
    ///
    /// ```
    /// # struct Counter;
    /// # #[objbus::object] impl Counter { pub fn pid(&self) -> u32 { std::process::id() } }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = objbus::Bus::in_memory();
    /// # let _published = bus.publish_as("counter", Counter, objbus::Instance::new())?;
    /// use objbus::Balance;
    ///
    /// let counter: CounterProxy = bus.proxy("counter").balance(Balance::RoundRobin).wait()?;
    /// # counter.pid().wait()?;
    /// # Ok(()) }
    /// ```
    pub fn balance(mut self, balance: Balance) -> Connect<P> {
        self.balance = balance;
        self
    }

    /// Calls those instances only that were published with this tag.
    pub fn tag(mut self, tag: impl Into<String>) -> Connect<P> {
        self.tag = Some(tag.into());
        self
    }

    /// Calls the instances of this process only: the process id that the kernel attests.
    pub fn pid(mut self, pid: u32) -> Connect<P> {
        self.pid = Some(pid);
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
        let deadline_ns = if patience.is_zero() { u64::MAX } else { deadline_ns(patience) };
        link.meet(deadline_ns, !patience.is_zero()).map_err(|error| gave_up(error, patience))?;
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
        let home = self.bus.0.link(&name);
        let choice = Choice::new(self.balance, self.tag.as_deref(), self.pid);
        Ok(if choice.is_default() { home } else { Arc::new(Link::choosing(home, choice)) })
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
        let mut started = match this.started.take() {
            Some(started) => started,
            None => Started::new(this.link()?, this.patience),
        };
        match started.step(cx.waker()) {
            Some(outcome) => {
                let made = outcome.map(|()| this.finish(Arc::clone(&started.link)));
                Poll::Ready(made.map_err(|error| gave_up(error, this.patience)))
            }
            None => {
                this.started = Some(started);
                Poll::Pending
            }
        }
    }
}

impl Started {
    fn new(link: Arc<Link>, patience: Duration) -> Started {
        let deadline_ns = (!patience.is_zero()).then(|| deadline_ns(patience));
        let since_ns = clock::now_ns();
        Started { link, since_ns, deadline_ns, attempt: None, waiting: None, alarm: None }
    }

    /// The outcome, if it is there; else `waker` will be used.
    fn step(&mut self, waker: &Waker) -> Option<Result<(), ConnectError>> {
        if self.link.is_foreign() {
            return Some(Err(ConnectError::ForkedHandle));
        }
        if self.link.group().is_none() {
            let (link, patient) = (&self.link, self.deadline_ns.is_some());
            let attempt = self.attempt.get_or_insert_with(|| {
                link.connect_in_background(waker, self.deadline_ns.unwrap_or(u64::MAX), patient)
            });
            attempt.set_waker(waker);
            // After the waker is set: the outcome may have come before that.
            if let Err(error) = attempt.outcome()? {
                return Some(Err(error));
            }
        }
        let Some(group) = self.link.group() else { return Some(Ok(())) };
        let choice = &self.link.choice;
        self.waiting = None;
        self.waiting = Some(group.wait(choice, waker, self.since_ns));
        let (deadline_ns, patient) = (self.deadline_ns.unwrap_or(u64::MAX), self.deadline_ns.is_some());
        let outcome = group.outcome(choice, self.since_ns, deadline_ns, patient);
        if outcome.is_none() && patient {
            self.set_alarm(deadline_ns, waker);
        }
        outcome
    }

    fn set_alarm(&mut self, at_ns: u64, waker: &Waker) {
        let engine = self.link.bus.engine;
        if let Some((_, alarm)) = self.alarm.take_if(|(whose, _)| !whose.will_wake(waker)) {
            engine.cancel_alarm(alarm);
        }
        let rings = waker.clone();
        self.alarm.get_or_insert_with(|| (waker.clone(), engine.alarm(at_ns, move |_| rings.wake())));
    }
}

impl<P> std::fmt::Debug for Connect<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect").field("name", &self.name).finish_non_exhaustive()
    }
}
