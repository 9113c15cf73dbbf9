//! Async methods that did not end at their first poll.
//!
//! They go on in the publisher's tokio runtime if there was one, else on the pool's own threads: a woken task is put in
//! the pool's queue and polled by the next worker. Whatever happens to the task - it ends, panics, is withdrawn, or
//! its runtime is shut down and drops it - its request is answered exactly once, by the drop of its [`Ticket`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use super::context::{self, Served};
use super::dispatch::{self, Response};
use super::hosted::Hosted;
use super::lane::OwnerLane;
use crate::blob::limit::Charge;
use crate::error::Executed;
use crate::object::PooledFuture;
use crate::status::Refused;

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
    fn abandon(self, object: &Hosted) {
        let Running { future, mut ticket } = self;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(future))) {
            ticket.answer(Response::panicked(object, panic));
        }
    }
}

/// An async method under way.
pub(crate) struct Task {
    id: u64,
    served: Served,
    running: Mutex<Option<Running>>,
    /// It is in the pool's queue.
    queued: AtomicBool,
    /// Where a runtime polls it: that runtime's waker.
    outer: Mutex<Option<Waker>>,
}

impl Task {
    /// Hands a pending method over to where it goes on.
    pub fn start(served: Served, future: PooledFuture, has_permit: bool, charge: Option<Charge>) {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let object = Arc::clone(&served.lane.object);
        let ticket = Ticket { served: served.clone(), has_permit, charge, answered: false };
        let task = Arc::new(Task {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            served,
            running: Mutex::new(Some(Running { future, ticket })),
            queued: AtomicBool::new(false),
            outer: Mutex::new(None),
        });
        object.tasks.lock().insert(task.id, Arc::downgrade(&task));
        #[cfg(feature = "tokio")]
        if let Some(runtime) = &object.runtime {
            runtime.spawn(Outer(task));
            return;
        }
        task.schedule();
    }

    /// Whether the task serves a call that `lane`'s caller has given up.
    pub fn is_withdrawn_from(&self, lane: &OwnerLane) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.served.lane), lane) && self.is_withdrawn()
    }

    fn is_withdrawn(&self) -> bool {
        let Served { lane, slot, wanted, one_way, .. } = &self.served;
        !one_way && lane.ring.is_withdrawn(*slot, *wanted)
    }

    /// Has it polled soon.
    pub fn schedule(self: &Arc<Self>) {
        let outer = self.outer.lock().take();
        if let Some(outer) = outer {
            outer.wake();
        } else if !self.queued.swap(true, Ordering::AcqRel) {
            self.served.lane.object.engine.pool.enqueue_task(Arc::clone(self));
        }
    }

    /// Polls it, on a worker.
    pub fn run(self: Arc<Self>) {
        // Before the poll: a wake during it must queue the task again.
        self.queued.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&self));
        let _ = self.poll(&mut Context::from_waker(&waker));
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        // A second worker may come while one polls: it waits, then finds the task ended or polls once more.
        let mut slot = self.running.lock();
        let Some(running) = slot.as_mut() else { return Poll::Ready(()) };
        let polled = if self.is_withdrawn() {
            Ok(Poll::Ready(Response::refused(Refused::Cancelled { executed: Executed::Unknown })))
        } else {
            let frame = self.served.frame();
            context::enter(&frame, || catch_unwind(AssertUnwindSafe(|| poll_future(&mut running.future, cx))))
        };
        let response = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(response)) => response,
            Err(panic) => Response::panicked(&self.served.lane.object, panic),
        };
        let Some(Running { future, mut ticket }) = slot.take() else { return Poll::Ready(()) };
        drop(slot);
        // The future goes before the answer: after that its slot is the caller's again.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(future)));
        ticket.answer(match dropped {
            Ok(()) => response,
            Err(panic) => Response::panicked(&self.served.lane.object, panic),
        });
        Poll::Ready(())
    }
}

fn poll_future(future: &mut PooledFuture, cx: &mut Context<'_>) -> Poll<Response> {
    Pin::new(future).poll(cx).map(Response::completed)
}

impl Drop for Task {
    fn drop(&mut self) {
        let object = &self.served.lane.object;
        object.tasks.lock().remove(&self.id);
        if let Some(running) = self.running.get_mut().take() {
            running.abandon(object);
        }
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
            running.abandon(&self.0.served.lane.object);
        }
    }
}
