//! Futures that go on beside calls: what pumps a stream into its channel.
//!
//! A job runs in a tokio runtime if there is one, else on the pool's workers, as async methods do. It ends when its future does,
//! and whoever wants it to end sooner says so to that.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use crate::engine::Engine;
use crate::panics::contain;

/// Something for a worker to do that is no request: an async method or a job to be polled.
pub(crate) trait Work: Send + Sync {
    fn run(self: Arc<Self>);
}

/// What a job does.
pub(crate) type Doing = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) struct Job {
    engine: &'static Engine,
    /// `None` once it has ended.
    doing: Mutex<Option<Doing>>,
    /// It is in the pool's queue, or somebody else sees to it that it is polled.
    queued: AtomicBool,
    /// Where a runtime polls it: that runtime's waker.
    outer: Mutex<Option<Waker>>,
}

/// The runtime that a job runs in.
#[derive(Clone, Default)]
pub(crate) struct Runtime {
    #[cfg(feature = "tokio")]
    pub handle: Option<tokio::runtime::Handle>,
}

impl Runtime {
    /// That in which this thread is, if any.
    pub fn current() -> Runtime {
        Runtime {
            #[cfg(feature = "tokio")]
            handle: tokio::runtime::Handle::try_current().ok(),
        }
    }
}

impl Job {
    /// A job that has not begun. Its waker may be used at once, then it is to be [started](Self::start).
    pub fn new(engine: &'static Engine, doing: Doing) -> Arc<Job> {
        Arc::new(Job {
            engine,
            doing: Mutex::new(Some(doing)),
            // A wake before the start is no reason to run it elsewhere.
            queued: AtomicBool::new(true),
            outer: Mutex::new(None),
        })
    }

    /// Polls it once, here.
    pub fn poll_here(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let _ = self.poll(&mut Context::from_waker(&waker));
    }

    /// Has it go on by itself.
    pub fn start(self: Arc<Self>, runtime: &Runtime) {
        #[cfg(feature = "tokio")]
        if let Some(handle) = &runtime.handle {
            // It stays marked as queued: the runtime alone polls it.
            handle.spawn(Outer(self));
            return;
        }
        let Runtime { .. } = runtime;
        self.engine.pool.enqueue_task(self);
    }

    fn schedule(self: &Arc<Self>) {
        let outer = self.outer.lock().take();
        if let Some(outer) = outer {
            outer.wake();
        } else if !self.queued.swap(true, Ordering::AcqRel) {
            self.engine.pool.enqueue_task(Arc::clone(self) as Arc<dyn Work>);
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        // A second thread may come while one polls: it waits, then finds the job ended or polls once more.
        let mut slot = self.doing.lock();
        let Some(doing) = slot.as_mut() else { return Poll::Ready(()) };
        let mut polled = Poll::Ready(());
        // What a panic is to say, the future sees to; one that does not has ended.
        contain(|| polled = doing.as_mut().poll(cx));
        if polled.is_ready() {
            let doing = slot.take();
            drop(slot);
            contain(|| drop(doing));
        }
        polled
    }
}

impl Work for Job {
    fn run(self: Arc<Self>) {
        // Before the poll: a wake during it must queue the job again.
        self.queued.store(false, Ordering::Release);
        self.poll_here();
    }
}

impl Wake for Job {
    fn wake(self: Arc<Self>) {
        self.schedule();
    }
}

/// The job as a runtime's future.
#[cfg(feature = "tokio")]
struct Outer(Arc<Job>);

#[cfg(feature = "tokio")]
impl Future for Outer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        *self.0.outer.lock() = Some(cx.waker().clone());
        // With the job's own waker: whoever keeps it must not depend on which waker the runtime uses.
        let waker = Waker::from(Arc::clone(&self.0));
        self.0.poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(feature = "tokio")]
impl Drop for Outer {
    fn drop(&mut self) {
        let doing = self.0.doing.lock().take();
        contain(|| drop(doing));
    }
}
