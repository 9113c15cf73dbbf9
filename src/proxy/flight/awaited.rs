//! A call as a future: the same way, without a thread that sleeps.

use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::{Aside, Flight, Queue, State, Verdict, overloaded};
use crate::engine::Token;
use crate::error::{BusError, CallError, Executed};
use crate::proxy::Absent;
use crate::proxy::answer::Answer;
use crate::proxy::call::Prepared;
use crate::proxy::lane::{Ended, Lane};
use crate::proxy::link::{Link, NoSlot};
use crate::proxy::port::Port;
use crate::sys::clock;

/// Wakes a task that has no slot at its call's deadline; one that has is woken by its [lane](Lane::arm).
pub(super) struct Alarm {
    pub(super) id: (u64, Token),
    /// Whom it wakes.
    waker: Waker,
}

impl Flight {
    /// One step of the call as a future.
    pub fn poll(
        &mut self,
        link: &Arc<Link>,
        request: &mut Prepared,
        cx: &mut Context<'_>,
        answer: &mut Answer,
    ) -> Poll<Result<(), BusError>> {
        self.expect_not_ended();
        self.start_clock(request.timeout_ns);
        loop {
            if link.is_foreign() {
                return Poll::Ready(Err(self.forget()));
            }
            let State::Out { port, slot, sent } = self.state else {
                match self.poll_send(link, request, cx) {
                    Some(Ok(())) => continue,
                    Some(Err(error)) => return self.done(link, Err(error)),
                    None => return Poll::Pending,
                }
            };
            // SAFETY: ports live as long as their link, which the call holds.
            let port = unsafe { port.as_ref() };
            // SAFETY: we hold the slot until `answered` or `ended`.
            let lane = unsafe { port.lane() };
            // The look that may take a while comes right after sending only: who polls a waiting call again has others to poll.
            let ended = match lane.look(slot) {
                Ok(false) if !self.is_armed && lane.look_for_task(slot, sent) => continue,
                Ok(true) => {
                    self.disarm(lane, slot);
                    match self.answered_by_member(link, port, slot, lane, sent, answer) {
                        Ok(()) => return self.done(link, Ok(())),
                        Err(Verdict::Fail(error)) => return self.done(link, Err(error)),
                        Err(Verdict::Resend) => {
                            self.state = State::Unsent;
                            continue;
                        }
                    }
                }
                Ok(false) if lane.fate().is_final() => match lane.last_look(slot, lane.fate()) {
                    Ok(()) => continue,
                    Err(ended) => ended,
                },
                Ok(false) if self.is_late() => Ended::TimedOut,
                Ok(false) => {
                    self.is_armed = true;
                    if lane.arm(slot, cx.waker(), sent, self.alarm_ns()) {
                        continue;
                    }
                    return Poll::Pending;
                }
                Err(ended) => ended,
            };
            self.disarm(lane, slot);
            if let Verdict::Fail(error) = self.ended(link, port, slot, lane, ended) {
                return self.done(link, Err(error));
            }
            self.state = State::Unsent;
        }
    }

    pub(super) fn disarm(&mut self, lane: &Lane, slot: usize) {
        if std::mem::take(&mut self.is_armed) {
            lane.disarm(slot);
        }
    }

    fn done(&mut self, link: &Arc<Link>, result: Result<(), BusError>) -> Poll<Result<(), BusError>> {
        self.stop_waiting(link);
        self.state = State::Ended;
        Poll::Ready(result)
    }

    /// Sends, as far as that goes without waiting; `None`: the task will be woken.
    fn poll_send(
        &mut self,
        link: &Arc<Link>,
        request: &mut Prepared,
        cx: &mut Context<'_>,
    ) -> Option<Result<(), BusError>> {
        loop {
            let mut reserved = link.reserve().map(|(port, slot)| (NonNull::from(port), slot));
            if reserved == Err(NoSlot::NoLane) && link.group().is_some() {
                match self.poll_member(link, request, cx) {
                    Poll::Ready(Ok(member)) => reserved = Ok(member),
                    Poll::Ready(Err(error)) => return Some(Err(error)),
                    Poll::Pending => return None,
                }
            } else if reserved.is_ok() {
                self.member = None;
            }
            match reserved {
                Ok((port, slot)) => {
                    self.stop_waiting(link);
                    // SAFETY: ports live as long as their link, which the call holds.
                    let port = unsafe { port.as_ref() };
                    // SAFETY: we hold the slot.
                    let lane = unsafe { port.lane() };
                    match self.publish(link, request, port, slot, lane) {
                        Ok(_) => return Some(Ok(())),
                        Err(Verdict::Fail(error)) => return Some(Err(error)),
                        Err(Verdict::Resend) => {}
                    }
                }
                Err(_) if self.is_late() => {
                    return Some(Err(CallError::DeadlineExceeded { executed: Executed::No }));
                }
                Err(NoSlot::NoLane) => match self.aside().attempt.take() {
                    Some(attempt) => {
                        attempt.set_waker(cx.waker());
                        match attempt.outcome() {
                            None => {
                                self.aside().attempt = Some(attempt);
                                self.set_alarm(link, cx.waker());
                                return None;
                            }
                            Some(Err(error)) => return Some(self.excuse(link, request, error)),
                            Some(Ok(())) => {}
                        }
                    }
                    None => {
                        let patient = request.absent == Absent::Wait;
                        let attempt = link.connect_in_background(cx.waker(), self.deadline_ns, patient);
                        self.aside().attempt = Some(attempt);
                    }
                },
                Err(NoSlot::Full) if request.immediate => return Some(Err(overloaded())),
                Err(NoSlot::Full) => {
                    let aside = self.aside();
                    if let Some(Queue::Link(queued)) = &aside.queued
                        && queued.is_for(cx.waker())
                        && queued.is_waiting()
                    {
                        return None;
                    }
                    // Dropped first: a wake that it had and could not use goes to the next in the queue.
                    aside.queued = None;
                    aside.queued = link.queue_for_slot(cx.waker()).map(Queue::Link);
                    self.set_alarm(link, cx.waker());
                }
            }
        }
    }

    /// A slot of one of the name's instances.
    fn poll_member(
        &mut self,
        link: &Arc<Link>,
        request: &Prepared,
        cx: &Context<'_>,
    ) -> Poll<Result<(NonNull<Port>, usize), BusError>> {
        let Some(group) = link.group() else { return Poll::Pending };
        let since_ns = match self.aside.as_ref().and_then(|aside| aside.queued.as_ref()) {
            Some(Queue::Group(waiting)) => waiting.since_ns,
            _ => clock::now_ns(),
        };
        if let Ok(reserved) = group.reserve(&link.choice, since_ns) {
            return Poll::Ready(Ok(self.go_to(reserved)));
        }
        // Dropped first: a wake that it had and could not use goes to the next in the queue.
        let aside = self.aside();
        aside.queued = None;
        aside.queued = Some(Queue::Group(group.wait(&link.choice, cx.waker(), since_ns)));
        match group.reserve(&link.choice, since_ns) {
            Ok(reserved) => Poll::Ready(Ok(self.go_to(reserved))),
            Err(lacking) => match self.may_wait(link, request, lacking) {
                Err(error) => Poll::Ready(Err(error)),
                Ok(()) if self.is_late() => {
                    Poll::Ready(Err(CallError::DeadlineExceeded { executed: Executed::No }))
                }
                Ok(()) => {
                    self.set_alarm(link, cx.waker());
                    Poll::Pending
                }
            },
        }
    }

    /// What a task has that waits for a slot.
    fn aside(&mut self) -> &mut Aside {
        self.aside.get_or_insert_default()
    }

    /// Whether the deadline has passed. The coarse clock may lie behind by more than a tick where the host delays the
    /// tick; an alarm rings once, so that its time has come must do.
    fn is_late(&self) -> bool {
        let has_alarm = self.is_armed || self.aside.is_some();
        clock::coarse_ns() >= self.deadline_ns || has_alarm && clock::now_ns() >= self.alarm_ns()
    }

    /// When the task is to be polled for its deadline: after the coarse clock's next tick, so that the poll finds it passed.
    fn alarm_ns(&self) -> u64 {
        self.deadline_ns.saturating_add(*clock::COARSE_TICK_NS)
    }

    /// Has a task that has no slot polled at the deadline.
    fn set_alarm(&mut self, link: &Link, waker: &Waker) {
        let (at_ns, alarm) = (self.alarm_ns(), &mut self.aside().alarm);
        let is_set = alarm.as_ref().is_some_and(|alarm| alarm.waker.will_wake(waker));
        if is_set || at_ns == u64::MAX {
            return;
        }
        // The call may have gone to another task since.
        if let Some(alarm) = alarm.take() {
            link.bus.engine.cancel_alarm(alarm.id);
        }
        let rings = waker.clone();
        let id = link.bus.engine.alarm(at_ns, move |_| rings.wake());
        *alarm = Some(Alarm { id, waker: waker.clone() });
    }
}
