//! Async methods that did not end at their first poll.
//!
//! They go on in the publisher's tokio runtime if there was one, else on the pool's own threads: a woken task is put in
//! the pool's queue and polled by the next worker. Whatever happens to the task - it ends, panics, is withdrawn, or
//! its runtime is shut down and drops it - its request is answered exactly once, by the drop of its [`Ticket`].
//!
//! A caller that dies has not withdrawn its call, so the method goes on. But it keeps its lane, so it goes on no longer than
//! the caller would have waited: at the call's deadline it is dropped at its next await, as after a time-out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use super::context::{self, Served};
use super::dispatch;
use super::hosted::{Hosted, Runtime};
use super::lane::OwnerLane;
use super::respond::Response;
use crate::blob::limit::Charge;
use crate::engine::{Engine, Token};
use crate::error::Executed;
use crate::job::Work;
use crate::object::PooledFuture;
use crate::status::Refused;
use crate::sys::clock;

/// The duty to answer one request, for who cannot answer on the spot.
pub(crate) struct Ticket {
    served: Served,
    /// Whether a right to run is to be given back.
    has_permit: bool,
    /// What the request takes of what its caller may have in flight.
    charge: Option<Charge>,
    answered: bool,
}

impl Ticket {
    fn answer(&mut self, response: Response) {
        self.answered = true;
        // Before the answer: who has it may send as much again at once.
        self.charge = None;
        dispatch::answer_aside(&self.served, response, self.has_permit);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(Response::refused(Refused::Cancelled { executed: Executed::Unknown }));
        }
    }
}

/// What is polled; the future first, since its output points at what the ticket keeps alive.
struct Running {
    future: PooledFuture,
    ticket: Ticket,
}

impl Running {
    /// Ends it unfinished, on whichever thread lets go of it last: what its drop throws is the answer, and goes no further.
    fn abandon(self) {
        let Running { future, mut ticket } = self;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(future))) {
            ticket.answer(Response::panicked(&Arc::clone(&ticket.served.lane.object), panic));
        }
    }
}

/// An async method under way.
///
/// Wakers hold it, and may be kept by somebody long after it has ended: so what it serves stands in `running`.
pub(crate) struct Task {
    id: u64,
    engine: &'static Engine,
    object: Weak<Hosted>,
    lane: Weak<OwnerLane>,
    slot: usize,
    wanted: u32,
    one_way: bool,
    deadline_ms: u32,
    /// `None` once it has ended.
    running: Mutex<Option<Running>>,
    /// It is in the pool's queue.
    queued: AtomicBool,
    /// Where a runtime polls it: that runtime's waker.
    outer: Mutex<Option<Waker>>,
    /// Polls it at its deadline, once its caller is gone.
    alarm: Mutex<Option<(u64, Token)>>,
}

impl Task {
    /// Hands a pending method over to where it goes on.
    pub fn start(served: Served, future: PooledFuture, runtime: Option<&Runtime>, charge: Option<Charge>) {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let lane = Arc::clone(&served.lane);
        let object = &lane.object;
        let has_permit = object.permits.is_limited();
        let task = Arc::new(Task {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            engine: object.engine,
            object: Arc::downgrade(object),
            lane: Arc::downgrade(&lane),
            slot: served.slot,
            wanted: served.wanted,
            one_way: served.one_way,
            deadline_ms: served.deadline_ms,
            running: Mutex::new(Some(Running {
                future,
                ticket: Ticket { served, has_permit, charge, answered: false },
            })),
            queued: AtomicBool::new(false),
            outer: Mutex::new(None),
            alarm: Mutex::new(None),
        });
        object.tasks.lock().insert(task.id, Arc::downgrade(&task));
        // After the insertion: who finds the caller gone after this look finds the task.
        if lane.is_abandoned() {
            task.end_at_deadline();
        }
        #[cfg(feature = "tokio")]
        if let Some(runtime) = runtime {
            runtime.spawn(Outer(task));
            return;
        }
        #[cfg(not(feature = "tokio"))]
        if let Some(never) = runtime {
            match *never {}
        }
        task.schedule();
    }

    /// Whether the task serves a call of `lane`'s.
    pub fn is_of(&self, lane: &OwnerLane) -> bool {
        std::ptr::eq(self.lane.as_ptr(), lane)
    }

    /// Whether the caller, at the other end of `lane`, has given the call up; or is gone, and would have by now.
    pub fn is_withdrawn(&self, lane: &OwnerLane) -> bool {
        let is_late = || context::left_until(self.deadline_ms) == Some(Duration::ZERO);
        !self.one_way && (lane.ring.is_withdrawn(self.slot, self.wanted) || lane.is_abandoned() && is_late())
    }

    /// Its caller is gone: has it polled when that would have stopped waiting.
    pub fn end_at_deadline(self: &Arc<Self>) {
        let Some(left) = context::left_until(self.deadline_ms).filter(|_| !self.one_way) else { return };
        let task = Arc::downgrade(self);
        // The deadline is one of the coarse clock's, which may be a tick late to show it.
        let at_ns = clock::now_ns() + clock::span_ns(left) + *clock::COARSE_TICK_NS;
        let alarm = self.engine.alarm(at_ns, move |_| {
            if let Some(task) = task.upgrade() {
                task.schedule();
            }
        });
        let former = self.alarm.lock().replace(alarm);
        if let Some(former) = former {
            self.engine.cancel_alarm(former);
        }
    }

    /// Has it polled soon.
    pub fn schedule(self: &Arc<Self>) {
        let outer = self.outer.lock().take();
        if let Some(outer) = outer {
            outer.wake();
        } else if !self.queued.swap(true, Ordering::AcqRel) {
            self.engine.pool.enqueue_task(Arc::clone(self) as Arc<dyn Work>);
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        // A second worker may come while one polls: it waits, then finds the task ended or polls once more.
        let mut slot = self.running.lock();
        let Some(running) = slot.as_mut() else { return Poll::Ready(()) };
        let served = &running.ticket.served;
        let polled = if self.is_withdrawn(&served.lane) {
            Ok(Poll::Ready(Response::refused(Refused::Cancelled { executed: Executed::Unknown })))
        } else {
            let (frame, future) = (served.frame(), &mut running.future);
            context::enter(&frame, || catch_unwind(AssertUnwindSafe(|| poll_future(future, cx))))
        };
        let response = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(response)) => response,
            Err(panic) => Response::panicked(&served.lane.object, panic),
        };
        let Some(Running { future, mut ticket }) = slot.take() else { return Poll::Ready(()) };
        drop(slot);
        self.forget();
        // The future goes before the answer: after that its slot is the caller's again.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(future)));
        ticket.answer(match dropped {
            Ok(()) => response,
            Err(panic) => Response::panicked(&ticket.served.lane.object, panic),
        });
        Poll::Ready(())
    }

    /// Nothing is to be done for it any more.
    fn forget(&self) {
        if let Some(object) = self.object.upgrade() {
            object.tasks.lock().remove(&self.id);
        }
        let alarm = self.alarm.lock().take();
        if let Some(alarm) = alarm {
            self.engine.cancel_alarm(alarm);
        }
    }
}

fn poll_future(future: &mut PooledFuture, cx: &mut Context<'_>) -> Poll<Response> {
    Pin::new(future).poll(cx).map(Response::completed)
}

impl Drop for Task {
    fn drop(&mut self) {
        self.forget();
        if let Some(running) = self.running.get_mut().take() {
            running.abandon();
        }
    }
}

impl Work for Task {
    /// Polls it.
    fn run(self: Arc<Self>) {
        // Before the poll: a wake during it must queue the task again.
        self.queued.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&self));
        let _ = self.poll(&mut Context::from_waker(&waker));
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.schedule();
    }
}

/// The task as a runtime's future; dropping it unfinished answers the request.
#[cfg(feature = "tokio")]
struct Outer(Arc<Task>);

#[cfg(feature = "tokio")]
impl Future for Outer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        *self.0.outer.lock() = Some(cx.waker().clone());
        self.0.poll(cx)
    }
}

#[cfg(feature = "tokio")]
impl Drop for Outer {
    fn drop(&mut self) {
        let running = self.0.running.lock().take();
        if let Some(running) = running {
            running.abandon();
        }
        self.0.forget();
    }
}
