//! Futures of async methods in recycled boxes, so that a hot async call allocates nothing.
//!
//! Each async method has one [`FuturePool`]. A box is a pinned `Option` of the method's future: it is filled by
//! [`Pin::set`], emptied by the same, which drops the future in place, and kept for the next call in between.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;

use super::invocation::Completed;

/// Boxes kept per method; more calls than this at once allocate and free theirs.
const KEPT: usize = 64;

type Slot<F> = Pin<Box<Option<F>>>;

/// The spare boxes of one async method.
pub(super) struct FuturePool<F> {
    spare: Mutex<Vec<Slot<F>>>,
}

impl<F: Future<Output = Completed> + Send + 'static> FuturePool<F> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(FuturePool { spare: Mutex::new(Vec::new()) })
    }

    /// Puts `future` into a spare box, or into a new one.
    pub(super) fn start(self: &Arc<Self>, future: F) -> PooledFuture {
        let spare = self.spare.lock().pop();
        let slot = match spare {
            Some(mut slot) => {
                slot.set(Some(future));
                slot
            }
            None => Box::pin(Some(future)),
        };
        PooledFuture { slot: Some(slot), pool: Arc::clone(self) as Arc<dyn Any + Send + Sync> }
    }
}

/// The future of one call of an async method; its box goes back to the method's pool when it is dropped.
#[must_use = "a future does nothing unless it is polled"]
pub struct PooledFuture {
    /// Present until dropped.
    slot: Option<Pin<Box<dyn Pooled>>>,
    /// The `FuturePool` of the future's type.
    pool: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for PooledFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PooledFuture")
    }
}

impl Future for PooledFuture {
    type Output = Completed;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completed> {
        match &mut self.slot {
            Some(slot) => slot.as_mut().poll_slot(context),
            None => unreachable!("the slot is taken in drop only"),
        }
    }
}

impl Drop for PooledFuture {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.give_back(&*self.pool);
        }
    }
}

/// A slot whose future's type is forgotten.
trait Pooled: Send {
    fn poll_slot(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completed>;

    fn give_back(self: Pin<Box<Self>>, pool: &(dyn Any + Send + Sync));
}

impl<F: Future<Output = Completed> + Send + 'static> Pooled for Option<F> {
    #[inline]
    fn poll_slot(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completed> {
        match self.as_pin_mut() {
            Some(future) => future.poll(context),
            None => unreachable!("a slot is filled before it is lent out"),
        }
    }

    fn give_back(self: Pin<Box<Self>>, pool: &(dyn Any + Send + Sync)) {
        let pool = pool.downcast_ref::<FuturePool<F>>();
        let mut returning = Returning { slot: Some(self), pool };
        if let Some(slot) = &mut returning.slot {
            // Drops the future. If that panics, the slot is empty all the same, and `returning` still takes it home.
            slot.set(None);
        }
    }
}

/// Takes a slot home when dropped, in a panic too.
struct Returning<'a, F> {
    slot: Option<Slot<F>>,
    pool: Option<&'a FuturePool<F>>,
}

impl<F> Drop for Returning<'_, F> {
    fn drop(&mut self) {
        let Some((slot, pool)) = self.slot.take().zip(self.pool) else { return };
        let mut spare = pool.spare.lock();
        if spare.len() < KEPT {
            spare.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use super::*;
    use crate::object::invocation::Refusal;
    use crate::wire::output::Output;

    fn completed() -> Completed {
        Completed { output: Output::heap(16), concluded: Ok(()) }
    }

    fn poll(future: &mut PooledFuture) -> Poll<Completed> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Counts its drops and panics in them when told to.
    struct Dropped<'a>(&'a AtomicUsize, bool);

    impl Drop for Dropped<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
            assert!(!self.1, "panic in drop");
        }
    }

    #[test]
    fn a_box_is_used_again() {
        let pool = FuturePool::new();
        let run = |value: u64| {
            let mut future = pool.start(async move {
                std::hint::black_box(value);
                completed()
            });
            assert!(poll(&mut future).is_ready());
        };
        run(1);
        let address = std::ptr::from_ref(&**pool.spare.lock().first().unwrap()) as usize;
        run(2);
        run(3);
        let spare = pool.spare.lock();
        assert_eq!(spare.len(), 1);
        assert_eq!(std::ptr::from_ref(&**spare.first().unwrap()) as usize, address);
        assert!(spare.first().unwrap().is_none());
    }

    #[test]
    fn no_more_boxes_are_kept_than_the_limit() {
        let pool = FuturePool::new();
        let all: Vec<_> = (0..KEPT + 10).map(|_| pool.start(async { completed() })).collect();
        drop(all);
        assert_eq!(pool.spare.lock().len(), KEPT);
    }

    #[test]
    fn a_future_dropped_unfinished_is_dropped_once() {
        static DROPS: AtomicUsize = AtomicUsize::new(0);
        let pool = FuturePool::new();
        let guard = Dropped(&DROPS, false);
        let mut future = pool.start(async move {
            std::future::pending::<()>().await;
            drop(guard);
            completed()
        });
        assert!(poll(&mut future).is_pending());
        drop(future);
        assert_eq!(DROPS.load(Ordering::Relaxed), 1);
        assert_eq!(pool.spare.lock().len(), 1);
    }

    #[test]
    fn a_panic_while_dropping_loses_neither_box_nor_drop() {
        static DROPS: AtomicUsize = AtomicUsize::new(0);
        let pool = FuturePool::new();
        let guard = Dropped(&DROPS, true);
        let mut future = pool.start(async move {
            std::future::pending::<()>().await;
            drop(guard);
            completed()
        });
        assert!(poll(&mut future).is_pending());
        assert!(catch_unwind(AssertUnwindSafe(|| drop(future))).is_err());
        assert_eq!(DROPS.load(Ordering::Relaxed), 1);
        assert_eq!(pool.spare.lock().len(), 1);
        assert!(pool.spare.lock()[0].is_none());
    }

    #[test]
    fn a_panic_while_polling_leaves_the_box_usable() {
        let pool = FuturePool::new();
        let start = |fails: bool| {
            pool.start(async move {
                assert!(!fails, "panic in poll");
                Completed {
                    output: Output::heap(1),
                    concluded: Err(Box::new(Refusal::BadRequest(String::new()))),
                }
            })
        };
        let mut future = start(true);
        assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut future))).is_err());
        drop(future);
        assert!(poll(&mut start(false)).is_ready());
        assert_eq!(pool.spare.lock().len(), 1);
    }
}
