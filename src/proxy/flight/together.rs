//! A call as one of a batch: sent without ringing, and waited for beside others.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::{Flight, State, Verdict, overloaded};
use crate::error::BusError;
use crate::proxy::call::Prepared;
use crate::proxy::lane::{Lane, Sent};
use crate::proxy::link::{Link, NoSlot};

/// What ringing for a call of some lane has shown.
#[derive(Clone, Copy)]
pub(crate) struct Rung {
    /// Only to be compared.
    lane: *const Lane,
    sent: Sent,
}

impl Rung {
    /// Whether the owner has to be woken.
    pub fn has_rung(&self) -> bool {
        self.sent.rang
    }
}

impl Flight {
    /// Puts the request into the ring, to be followed by [`ring_like`](Self::ring_like). On
    /// which lane, only to be compared; `None`: it would have to wait.
    pub fn put(&mut self, link: &Arc<Link>, request: &mut Prepared) -> Result<Option<*const Lane>, BusError> {
        match self.state {
            State::Unsent if self.is_out() => return Ok(None),
            State::Unsent => self.start_clock(request.timeout_ns),
            State::Out { .. } | State::Ended => {
                return Ok(Some(self.place(link).map_or(ptr::null(), |(lane, ..)| ptr::from_ref(lane))));
            }
        }
        loop {
            let (port, slot) = match link.reserve() {
                Ok(reserved) => reserved,
                Err(NoSlot::Full) if request.immediate => return Err(overloaded()),
                Err(_) => return Ok(None),
            };
            // SAFETY: we hold the slot until the call ends.
            let lane = unsafe { port.lane() };
            match self.put_into(link, request, port, slot, lane) {
                Ok(()) => {
                    self.state = State::Out { port: NonNull::from(port), slot, sent: Sent { rang: false } };
                    return Ok(Some(Arc::as_ptr(lane)));
                }
                Err(Verdict::Fail(error)) => return Err(error),
                Err(Verdict::Resend) => {}
            }
        }
    }

    /// Rings if need be, unless the call before went to the same lane.
    pub fn ring_like(&mut self, link: &Link, before: Option<Rung>) -> Option<Rung> {
        if link.is_foreign() {
            return None;
        }
        let State::Out { port, sent, .. } = &mut self.state else { return before };
        // SAFETY: ports live as long as their link, which the call holds, and we hold the slot.
        let lane = unsafe { port.as_ref().lane() };
        let rung = match before {
            Some(before) if ptr::eq(before.lane, &**lane) => before,
            _ => Rung { lane: &**lane, sent: lane.ring_if_asleep() },
        };
        sent.rang |= rung.sent.rang;
        Some(rung)
    }

    pub fn deadline_ns(&self) -> u64 {
        self.deadline_ns
    }

    /// Where the call is out, and what is known of its sending. `None` in a forked child too, which has nothing to look at.
    fn place(&self, link: &Link) -> Option<(&Lane, usize, Sent)> {
        let State::Out { port, slot, sent } = &self.state else { return None };
        if link.is_foreign() {
            return None;
        }
        // SAFETY: ports live as long as their link, which the call holds, and we hold the slot.
        Some((unsafe { port.as_ref().lane() }, *slot, *sent))
    }

    /// Whether there is nothing to wait for, now or after looking for as long as a thread does.
    pub fn is_answered_soon(&self, link: &Link) -> bool {
        self.place(link).is_none_or(|(lane, slot, sent)| lane.look_for_thread(slot, sent))
    }

    /// The same as long as a task does.
    pub fn is_answered_for_task(&self, link: &Link) -> bool {
        self.place(link).is_none_or(|(lane, slot, sent)| lane.look_for_task(slot, sent))
    }

    /// Sleeps until the call is answered, never will be, or `until_ns`; then it is waited for.
    pub fn stand_by(&mut self, link: &Arc<Link>, until_ns: u64) {
        let is_left = !self.is_armed || self.leave_task(link).is_ok();
        if let (true, Some((lane, slot, sent))) = (is_left, self.place(link)) {
            lane.stand_by(slot, sent, until_ns);
        }
    }
}
