//! A call between its sending and its end: which slot it holds, and how it waits on a thread; [`awaited`] is how it waits
//! as a future.

mod awaited;
mod together;
mod verdict;

use std::ptr::NonNull;
use std::sync::Arc;

use awaited::Alarm;
pub(crate) use together::Rung;
use verdict::Verdict;

use super::Absent;
use super::answer::Answer;
use super::call::Prepared;
use super::group::{Lacking, Waiting};
use super::lane::{Ended, Lane, Sent};
use super::link::{Attempt, Link, NoSlot};
use super::port::{Port, Queued, Reserved};
use crate::error::{BusError, CallError, ConnectError, Executed};
use crate::parcels::PackError;
use crate::park::Parker;
use crate::ring::caller::{Header, Look};
use crate::sys::{clock, cpu};

/// Time-outs below this are measured from a precise clock; reading it costs a tenth of a hot call, and the coarse clock is
/// exact to a tick.
const PRECISE_BELOW_NS: u64 = 100_000_000;
/// Milliseconds modulo 2^32 tell earlier from later over half that range, 24 days; the owner is told of no deadline beyond.
const LONGEST_TOLD_NS: u64 = 20 * 24 * 60 * 60 * 1_000_000_000;
/// Looks for a one-way call to be taken, before the owner is rung to make sure: about two round trips.
const LOOKS_FOR_TAKEN: u32 = 32;

/// A call's way.
pub(crate) struct Flight {
    state: State,
    /// CLOCK_MONOTONIC; 0 until the first attempt to send.
    deadline_ns: u64,
    /// Where a task waits before it has a slot.
    aside: Option<Box<Aside>>,
    /// The instance that it goes to, which keeps the port; `None` where it goes to its own link's lane.
    member: Option<Arc<Link>>,
    /// A task is registered for the answer.
    is_armed: bool,
}

/// What only a task that waits for a slot or a lane has. Boxed, so that other calls are no larger for it and nothing of it is looked at.
#[derive(Default)]
struct Aside {
    /// Wakes the task at the deadline.
    alarm: Option<Alarm>,
    /// Registered with who tells when to look for a slot again.
    queued: Option<Queue>,
    /// A lane is being made.
    attempt: Option<Arc<Attempt>>,
}

/// Where a call waits for a slot.
enum Queue {
    /// At its link's port.
    Link(Queued),
    /// At the instances of the name.
    Group(Waiting),
}

enum State {
    Unsent,
    /// Holds `slot` of `port`.
    Out {
        port: NonNull<Port>,
        slot: usize,
        sent: Sent,
    },
    Ended,
}

// SAFETY: the pointer is to a port of a link that the call holds, and ports are Sync; a slot is bound to no thread.
unsafe impl Send for Flight {}
// SAFETY: nothing is done through a shared reference.
unsafe impl Sync for Flight {}

impl Flight {
    #[inline(always)]
    pub fn unsent() -> Flight {
        Flight { state: State::Unsent, deadline_ns: 0, aside: None, member: None, is_armed: false }
    }

    /// Makes it as good as new. After [`give_up`](Self::give_up), where it is out.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.state = State::Unsent;
        self.deadline_ns = 0;
        self.is_armed = false;
        if self.member.is_some() {
            self.leave_member();
        }
    }

    #[cold]
    #[inline(never)]
    fn leave_member(&mut self) {
        self.member = None;
    }

    /// Whether the call is sent, or waits for that, and is not ended: dropping it means something.
    #[inline(always)]
    pub fn is_out(&self) -> bool {
        matches!(self.state, State::Out { .. }) || self.aside.is_some()
    }

    /// Sends and waits on this thread.
    #[inline(always)]
    pub fn wait(
        &mut self,
        link: &Arc<Link>,
        request: &mut Prepared,
        answer: &mut Answer,
    ) -> Result<(), BusError> {
        if self.is_out() {
            self.leave_task(link)?;
        }
        self.expect_not_ended();
        loop {
            let (port, slot, sent) = match self.state {
                State::Out { port, slot, sent } => (port, slot, sent),
                _ => self.start(link, request)?,
            };
            // SAFETY: ports live as long as their link, which the call holds.
            let port = unsafe { port.as_ref() };
            // SAFETY: we hold the slot until `answered` or `ended`, below.
            let lane = unsafe { port.lane() };
            let verdict = match lane.wait(slot, sent, self.deadline_ns) {
                Ok(()) if self.member.is_none() => {
                    return self.answered(link, port, slot, lane, sent, answer);
                }
                Ok(()) => match self.answered_by_member(link, port, slot, lane, sent, answer) {
                    Ok(()) => return Ok(()),
                    Err(verdict) => verdict,
                },
                Err(ended) => self.ended(link, port, slot, lane, ended),
            };
            if let Verdict::Fail(error) = verdict {
                return Err(error);
            }
        }
    }

    /// A call whose result was given is never sent again.
    ///
    /// # Panics
    ///
    /// If the call has ended.
    #[inline(always)]
    fn expect_not_ended(&self) {
        assert!(!matches!(self.state, State::Ended), "`Call` polled after completion");
    }

    /// The result is about to be given, without the call having been sent.
    #[cold]
    pub fn end_unsent(&mut self) {
        self.state = State::Ended;
    }

    /// Takes a slot and puts the request into the ring.
    #[inline(always)]
    pub fn start(
        &mut self,
        link: &Arc<Link>,
        request: &mut Prepared,
    ) -> Result<(NonNull<Port>, usize, Sent), BusError> {
        self.start_clock(request.timeout_ns);
        loop {
            let (port, slot) = match link.reserve() {
                Ok((port, slot)) => (NonNull::from(port), slot),
                Err(why) => self.reserve_blocking(link, request, why)?,
            };
            // SAFETY: ports live as long as their link, which the call holds.
            let at = unsafe { port.as_ref() };
            // SAFETY: we hold the slot until the call ends.
            match self.publish(link, request, at, slot, unsafe { at.lane() }) {
                Ok(sent) => return Ok((port, slot, sent)),
                Err(Verdict::Fail(error)) => return Err(error),
                Err(Verdict::Resend) => {}
            }
        }
    }

    /// Sends; who does it goes on with something else.
    pub fn start_unwatched(&mut self, link: &Arc<Link>, request: &mut Prepared) -> Result<(), BusError> {
        let (port, _, sent) = self.start(link, request)?;
        if !sent.rang {
            // SAFETY: ports live as long as their link, which the call holds, and we hold the slot.
            unsafe { port.as_ref().lane() }.ring_soon_if_hidden();
        }
        Ok(())
    }

    #[inline(always)]
    fn start_clock(&mut self, timeout_ns: u64) {
        if self.deadline_ns != 0 {
            return;
        }
        let start_ns = if timeout_ns < PRECISE_BELOW_NS {
            clock::now_ns()
        } else {
            clock::coarse_ns() + *clock::COARSE_TICK_NS
        };
        self.deadline_ns = start_ns.saturating_add(timeout_ns);
    }

    /// Puts the request into the ring and rings if need be.
    #[inline(always)]
    fn publish(
        &mut self,
        link: &Arc<Link>,
        request: &mut Prepared,
        port: &Port,
        slot: usize,
        lane: &Arc<Lane>,
    ) -> Result<Sent, Verdict> {
        self.put_into(link, request, port, slot, lane)?;
        let sent = lane.ring_if_asleep();
        self.state = State::Out { port: NonNull::from(port), slot, sent };
        Ok(sent)
    }

    /// Puts the request into the ring.
    #[inline(always)]
    fn put_into(
        &mut self,
        link: &Arc<Link>,
        request: &mut Prepared,
        port: &Port,
        slot: usize,
        lane: &Arc<Lane>,
    ) -> Result<(), Verdict> {
        if request.spill.is_some() || !request.blobs.is_empty() || !request.extras.is_empty() {
            self.attach(link, request, port, slot, lane)?;
        }
        let header = Header {
            key: request.key,
            flags: request.flags,
            cpu: cpu::current(),
            deadline_ms: if request.timeout_ns > LONGEST_TOLD_NS {
                0
            } else {
                deadline_ms(self.deadline_ns, lane.owner_ahead_ms)
            },
            len: request.len,
            lent: request.blobs.len() as u32,
            returned: lane.parcels.take_pending(),
        };
        // SAFETY: a RequestBuffer keeps what the flags and the length promise initialised, and `lend` has written the loans.
        unsafe { lane.ring.publish(slot, header, request.body.words()) };
        Ok(())
    }

    /// Lends what goes with the request, and tells what else does; gives the slot back where it cannot.
    #[cold]
    fn attach(
        &self,
        link: &Arc<Link>,
        request: &mut Prepared,
        port: &Port,
        slot: usize,
        lane: &Arc<Lane>,
    ) -> Result<(), Verdict> {
        let told = request.extras.attach(lane).map_err(|error| match error {
            CallError::Disconnected { .. } => Verdict::unsent(lane.heard_end()),
            error => Verdict::Fail(error),
        });
        let lent = told.and_then(|()| {
            if request.spill.is_none() && request.blobs.is_empty() {
                return Ok(());
            }
            request.lend(&lane.parcels).map_err(|error| match error {
                PackError::NoMemory => Verdict::Fail(CallError::NoMemory { executed: Executed::No }),
                PackError::Ended => Verdict::unsent(lane.heard_end()),
            })
        });
        lent.map_err(|verdict| {
            link.give_back(port, slot);
            self.elsewhere(verdict)
        })
    }

    /// Copies the answer out and frees the slot.
    #[inline(always)]
    fn answered(
        &mut self,
        link: &Link,
        port: &Port,
        slot: usize,
        lane: &Lane,
        sent: Sent,
        answer: &mut Answer,
    ) -> Result<(), BusError> {
        let read = answer.read(link, lane, slot);
        if let Ok(meta) = &read {
            lane.note_answer(meta.cpu, sent.rang);
        }
        lane.parcels.collect_if_lent();
        lane.ring.finish(slot);
        self.free_slot(link, port, slot);
        read.map(drop)
    }

    /// The same of an answer that may be an instance's. Out of line, as other calls do not need it.
    #[cold]
    #[inline(never)]
    fn answered_by_member(
        &mut self,
        link: &Link,
        port: &Port,
        slot: usize,
        lane: &Lane,
        sent: Sent,
        answer: &mut Answer,
    ) -> Result<(), Verdict> {
        self.answered(link, port, slot, lane, sent, answer).map_err(Verdict::Fail)?;
        let is_withdrawn = self.member.is_some() && answer.take_withdrawal();
        if is_withdrawn { Err(Verdict::Resend) } else { Ok(()) }
    }

    #[inline(always)]
    fn free_slot(&mut self, link: &Link, port: &Port, slot: usize) {
        self.state = State::Ended;
        link.give_back(port, slot);
    }

    /// Waiting ended without an answer.
    #[cold]
    fn ended(&mut self, link: &Link, port: &Port, slot: usize, lane: &Lane, ended: Ended) -> Verdict {
        let fate = match ended {
            Ended::TimedOut => {
                let began = lane.ring.withdraw(slot);
                // The owner polls nothing for a call that it has not begun; a running one is to see it.
                lane.ring_bell();
                self.abandon(link, port, slot);
                let executed = if began { Executed::Unknown } else { Executed::No };
                return Verdict::Fail(CallError::DeadlineExceeded { executed });
            }
            Ended::Fate(fate) => fate,
        };
        // Withdrawn, not only looked at: an owner that lives may still take it from the ring.
        let began = lane.ring.withdraw(slot);
        let executed = if began { Executed::Unknown } else { Executed::No };
        self.free_slot(link, port, slot);
        self.elsewhere(Verdict::of(fate, executed))
    }

    /// A call that an instance did not begin goes to another one.
    #[cold]
    fn elsewhere(&self, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Fail(
                CallError::OwnerDied { executed: Executed::No }
                | CallError::Disconnected { executed: Executed::No }
                | CallError::Unpublished { executed: Executed::No },
            ) if self.member.is_some() => Verdict::Resend,
            verdict => verdict,
        }
    }

    fn abandon(&mut self, link: &Link, port: &Port, slot: usize) {
        self.state = State::Ended;
        // SAFETY: we held the slot, and forget it.
        unsafe { link.abandon(port, slot) };
    }

    /// Nobody waits any more.
    #[cold]
    pub fn give_up(&mut self, link: &Arc<Link>) {
        if link.is_foreign() {
            self.forget();
            return;
        }
        self.stop_waiting(link);
        let State::Out { port, slot, .. } = self.state else { return };
        // SAFETY: ports live as long as their link, which the call holds.
        let port = unsafe { port.as_ref() };
        // SAFETY: we hold the slot until `abandon`.
        let lane = unsafe { port.lane() };
        self.disarm(lane, slot);
        if lane.ring.look(slot) == Look::Waiting {
            lane.ring.withdraw(slot);
            lane.ring_bell();
        }
        self.abandon(link, port, slot);
    }

    /// In a forked child: the call is the parent's, and what it holds is not to be touched here.
    #[cold]
    fn forget(&mut self) -> BusError {
        let is_out = matches!(self.state, State::Out { .. });
        self.state = State::Ended;
        std::mem::forget(self.aside.take());
        std::mem::forget(self.member.take());
        CallError::ForkedHandle { executed: if is_out { Executed::Unknown } else { Executed::No } }
    }

    /// The call was sent or polled before, and is waited for in another way from here on: no task is woken any more. A waker
    /// left behind would have the next call in the slot woken as a task.
    #[cold]
    fn leave_task(&mut self, link: &Arc<Link>) -> Result<(), BusError> {
        if link.is_foreign() {
            return Err(self.forget());
        }
        self.stop_waiting(link);
        if let State::Out { port, slot, .. } = self.state {
            // SAFETY: ports live as long as their link, which the call holds, and we hold the slot until the call ends.
            self.disarm(unsafe { port.as_ref().lane() }, slot);
        }
        Ok(())
    }

    /// Forgets the alarm, the place in the queue and the attempt.
    fn stop_waiting(&mut self, link: &Link) {
        if let Some(aside) = self.aside.take()
            && let Some(alarm) = aside.alarm
        {
            link.bus.engine.cancel_alarm(alarm.id);
        }
    }

    /// Sends without waiting for a result; returns when it is certain to be taken if the owner lives.
    pub fn send_one_way(&mut self, link: &Arc<Link>, request: &mut Prepared) -> Result<(), BusError> {
        if self.is_out() {
            self.leave_task(link)?;
        }
        self.expect_not_ended();
        let (port, slot, sent) = match self.state {
            State::Out { port, slot, sent } => (port, slot, sent),
            _ => self.start(link, request)?,
        };
        // SAFETY: ports live as long as their link, which the call holds.
        let port = unsafe { port.as_ref() };
        // SAFETY: we hold the slot until `abandon`.
        let lane = unsafe { port.lane() };
        // An owner that polls this lane may be in a slow method by now, and nobody would ring again.
        if !sent.rang && !lane.glance(slot, sent, LOOKS_FOR_TAKEN) {
            lane.ring_again();
        }
        self.abandon(link, port, slot);
        Ok(())
    }

    /// No slot was free, or there was no lane: waits for one.
    #[cold]
    fn reserve_blocking(
        &mut self,
        link: &Arc<Link>,
        request: &mut Prepared,
        mut why: NoSlot,
    ) -> Result<(NonNull<Port>, usize), BusError> {
        loop {
            if why == NoSlot::NoLane && link.group().is_some() {
                return self.reserve_member(link, request);
            }
            match why {
                NoSlot::NoLane => self.connect_blocking(link, request)?,
                NoSlot::Full if request.immediate => return Err(overloaded()),
                NoSlot::Full => {
                    let parker = Parker::new();
                    let queued = link.queue_for_slot(parker.waker());
                    match link.reserve() {
                        Ok((port, slot)) => return Ok((NonNull::from(port), slot)),
                        // In no queue there is nobody to wake us: the lane that is full came after that look for one.
                        Err(NoSlot::Full) if queued.is_some() => parker.park(self.deadline_ns),
                        Err(_) => {}
                    }
                }
            }
            match link.reserve() {
                Ok((port, slot)) => return Ok((NonNull::from(port), slot)),
                Err(again) => why = again,
            }
            if clock::now_ns() >= self.deadline_ns {
                return Err(CallError::DeadlineExceeded { executed: Executed::No });
            }
        }
    }

    /// The same at one of the name's instances.
    fn reserve_member(
        &mut self,
        link: &Arc<Link>,
        request: &Prepared,
    ) -> Result<(NonNull<Port>, usize), BusError> {
        let group = match link.group() {
            Some(group) if !link.is_foreign() => group,
            _ => return Err(self.forget()),
        };
        let since_ns = clock::now_ns();
        if let Ok(reserved) = group.reserve(&link.choice, since_ns) {
            return Ok(self.go_to(reserved));
        }
        let parker = Parker::new();
        loop {
            let _waiting = group.wait(&link.choice, parker.waker(), since_ns);
            match group.reserve(&link.choice, since_ns) {
                Ok(reserved) => return Ok(self.go_to(reserved)),
                Err(lacking) => self.may_wait(link, request, lacking)?,
            }
            if clock::now_ns() >= self.deadline_ns {
                return Err(CallError::DeadlineExceeded { executed: Executed::No });
            }
            parker.park(self.deadline_ns);
        }
    }

    /// Keeps the link of the instance that the call goes to.
    fn go_to(&mut self, Reserved { link, port, slot }: Reserved) -> (NonNull<Port>, usize) {
        self.member = Some(link);
        (port, slot)
    }

    /// Whether a call that no instance takes at present is to wait until one does.
    fn may_wait(&self, link: &Arc<Link>, request: &Prepared, lacking: Lacking) -> Result<(), BusError> {
        match lacking {
            Lacking::Slot if request.immediate => Err(overloaded()),
            Lacking::Instance if request.absent == Absent::Fail => {
                let name = link.choice.label(link.name());
                Err(CallError::NotFound { name, executed: Executed::No })
            }
            Lacking::Reachable(error) => self.excuse(link, request, error),
            Lacking::Slot | Lacking::Connection | Lacking::Instance => Ok(()),
        }
    }

    fn connect_blocking(&self, link: &Arc<Link>, request: &Prepared) -> Result<(), BusError> {
        let connected = match request.absent {
            Absent::Fail => link.connect(self.deadline_ns),
            Absent::Wait => link.connect_patiently(self.deadline_ns),
        };
        connected.or_else(|error| self.excuse(link, request, error))
    }

    /// A failed attempt to connect, as an error of the call.
    fn excuse(&self, link: &Arc<Link>, request: &Prepared, error: ConnectError) -> Result<(), BusError> {
        let executed = Executed::No;
        Err(match error {
            // What the connection brought ends with it.
            ConnectError::NotFound { .. } if link.is_bound() => CallError::Unpublished { executed },
            ConnectError::NotFound { .. } if request.absent == Absent::Wait => {
                CallError::DeadlineExceeded { executed }
            }
            ConnectError::NotFound { .. } => CallError::NotFound { name: link.name().to_string(), executed },
            ConnectError::HandshakeTimeout { .. } if clock::now_ns() >= self.deadline_ns => {
                CallError::DeadlineExceeded { executed }
            }
            ConnectError::PermissionDenied => CallError::PermissionDenied { executed },
            ConnectError::ForkedHandle => CallError::ForkedHandle { executed },
            ConnectError::NoMemory => CallError::NoMemory { executed },
            reason => CallError::Unreachable { reason: Box::new(reason), executed },
        })
    }
}

#[cold]
fn overloaded() -> BusError {
    CallError::Overloaded { executed: Executed::No }
}

/// A deadline as it travels: milliseconds of the owner's clock, rounded up past its tick, modulo 2^32; 0: none.
#[inline(always)]
fn deadline_ms(deadline_ns: u64, owner_ahead_ms: u32) -> u32 {
    if deadline_ns == u64::MAX {
        return 0;
    }
    ((deadline_ns / 1_000_000) as u32).wrapping_add(owner_ahead_ms).wrapping_add(5).max(1)
}
