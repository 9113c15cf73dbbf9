//! Methods that return streams: the call is answered once the method has returned, and the stream goes on beside it.
//!
//! The stream may borrow from the object and the arguments, so one future owns all of that: it runs the method, tells the call's
//! answer, and pumps what the stream gives into the channel. It runs as a [`Job`], under the call's context.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use parking_lot::Mutex;
use serde::Serialize;

use super::invocation::{AsyncAnswer, AsyncInvocation, AsyncRequest, Completed, Refusal};
use super::table::{Handler, MethodSpec, MethodTable, asynchronous};
use crate::channel::{Homed, ItemSender, Pump, claim_sender};
use crate::job::{Job, Runtime};
use crate::owner::context::{self, CallContext, Served};
use crate::owner::hosted::Hosted;
use crate::owner::respond::panicked;

/// What the call is to be answered with.
enum Outcome {
    Opened,
    Refused(Box<Refusal>),
    Failed(Box<dyn FnOnce(AsyncAnswer) -> Completed + Send>),
    Panicked(Box<dyn Any + Send>),
}

/// What the call's future and the job share.
#[derive(Default)]
struct Shared {
    told: Mutex<Told>,
    sender: Mutex<Option<Homed<ItemSender>>>,
}

#[derive(Default)]
struct Told {
    outcome: Option<Outcome>,
    has_told: bool,
    waker: Option<Waker>,
}

impl Shared {
    fn tell(&self, outcome: Outcome) {
        let waker = {
            let mut told = self.told.lock();
            (told.outcome, told.has_told) = (Some(outcome), true);
            told.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn has_told(&self) -> bool {
        self.told.lock().has_told
    }

    fn poll_outcome(&self, cx: &Context<'_>) -> Poll<Outcome> {
        let mut told = self.told.lock();
        match told.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                told.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A call whose method is about to return a stream. For generated code.
pub struct Opening {
    shared: Arc<Shared>,
}

impl Opening {
    /// The arguments are none.
    pub fn refuse(self, refusal: Box<Refusal>) {
        self.shared.tell(Outcome::Refused(refusal));
    }

    /// Claims the channel that the request names; `None`: nobody waits for it any more, and the call is answered.
    pub fn claim(self, channel: u32) -> Option<Opening> {
        match claim_sender(channel) {
            Ok(sender) => {
                *self.shared.sender.lock() = Some(sender);
                Some(self)
            }
            Err(refusal) => {
                self.refuse(Box::new(refusal));
                None
            }
        }
    }

    /// The method has returned its own error.
    pub fn fail<E: Serialize + Send + 'static>(self, error: E) {
        let sender = self.shared.sender.lock().take();
        drop(sender);
        let answer = move |answer: AsyncAnswer| answer.answer_result(&Err::<(), E>(error));
        self.shared.tell(Outcome::Failed(Box::new(answer)));
    }

    /// The method has returned a stream: answers the call, and sends what it gives.
    pub async fn pump<S>(self, stream: S)
    where
        S: Stream,
        S::Item: Serialize,
    {
        self.shared.tell(Outcome::Opened);
        let shared = Arc::clone(&self.shared);
        drop(self);
        let mut stream = std::pin::pin!(stream);
        let mut pump = Pump::new();
        poll_fn(move |cx| match &mut *shared.sender.lock() {
            Some(Homed { end, home }) => pump.poll(end, &**home, stream.as_mut(), cx),
            None => Poll::Ready(()),
        })
        .await;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.shared.has_told() {
            self.shared.tell(Outcome::Refused(Box::new(Refusal::Cancelled)));
        }
    }
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opening")
    }
}

impl MethodTable {
    /// Adds a method that returns a stream; for generated code. What `code` gives goes on until the stream ends or nobody
    /// takes anything any more.
    #[doc(hidden)]
    pub fn streaming<F, R>(&mut self, spec: &MethodSpec, code: F)
    where
        F: Fn(AsyncRequest, Opening) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let signature = spec.signature(&mut self.types);
        self.push(signature, handler(code));
    }
}

/// The handler of a method that returns a stream.
pub(super) fn handler<F, R>(code: F) -> Handler
where
    F: Fn(AsyncRequest, Opening) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let code = Arc::new(code);
    asynchronous(move |call| open(call, Arc::clone(&code)))
}

/// Answers the call once its method has returned.
async fn open<F, R>(call: AsyncInvocation, code: Arc<F>) -> Completed
where
    F: Fn(AsyncRequest, Opening) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let (request, answer) = call.split();
    let Some(CallContext(served)) = CallContext::current() else {
        return answer.refuse(Box::new(Refusal::Cancelled));
    };
    let shared = Arc::new(Shared::default());
    let (engine, runtime) = (served.lane.object.engine, runtime_of(&served));
    let opening = Opening { shared: Arc::clone(&shared) };
    let doing = Serving {
        _running: Running::new(&served.lane.object),
        served,
        shared: Arc::clone(&shared),
        doing: Some(Box::pin(code(request, opening))),
    };
    let job = Job::new(engine, Box::pin(doing));
    // Here, as any method runs; what comes after the answer goes on elsewhere.
    job.poll_here();
    job.start(&runtime);
    match poll_fn(|cx| shared.poll_outcome(cx)).await {
        Outcome::Opened => answer.answer(&()),
        Outcome::Refused(refusal) => answer.refuse(refusal),
        Outcome::Failed(fail) => fail(answer),
        Outcome::Panicked(panic) => resume_unwind(panic),
    }
}

fn runtime_of(served: &Served) -> Runtime {
    let _ = served;
    Runtime {
        #[cfg(feature = "tokio")]
        handle: served.lane.object.runtime.clone(),
    }
}

/// What runs the method and its stream: under the call's context, until nobody takes anything any more.
struct Serving<R> {
    served: Served,
    shared: Arc<Shared>,
    doing: Option<Pin<Box<R>>>,
    _running: Running,
}

/// Counts as running, so that who withdraws the object can wait for it.
struct Running(Arc<Hosted>);

impl Running {
    fn new(object: &Arc<Hosted>) -> Running {
        object.begin_background();
        Running(Arc::clone(object))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end_background();
    }
}

impl<R: Future<Output = ()>> Serving<R> {
    /// Whether nobody takes anything any more; wakes the task once it is so.
    fn is_closed(&self, cx: &Context<'_>) -> bool {
        let sender = self.shared.sender.lock();
        sender.as_ref().is_some_and(|sender| {
            sender.end.register_end(cx.waker());
            sender.end.is_closed()
        })
    }

    fn poll_doing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Serving { served, shared, doing, .. } = self;
        let Some(future) = doing.as_mut() else { return Poll::Ready(()) };
        if shared.has_told() {
            // The deadline was that of the answer.
            served.deadline_ms = 0;
        }
        let polled =
            context::enter(&served.frame(), || catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))));
        polled.unwrap_or_else(|panic| {
            self.end(Some(panic));
            Poll::Ready(())
        })
    }

    /// Drops what it does, and tells of a panic who waits for it.
    #[cold]
    fn end(&mut self, panic: Option<Box<dyn Any + Send>>) {
        let doing = self.doing.take();
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            context::enter(&self.served.frame(), || drop(doing));
        }));
        let Some(panic) = panic.or(dropped.err()) else { return };
        if !self.shared.has_told() {
            return self.shared.tell(Outcome::Panicked(panic));
        }
        let refused = panicked(&self.served.lane.object, panic);
        if let Some(sender) = self.shared.sender.lock().take() {
            sender.end.fail(refused);
        }
    }
}

impl<R: Future<Output = ()>> Future for Serving<R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if !this.is_closed(cx) && this.poll_doing(cx).is_pending() && !this.is_closed(cx) {
            return Poll::Pending;
        }
        this.end(None);
        Poll::Ready(())
    }
}

impl<R> Drop for Serving<R> {
    fn drop(&mut self) {
        let doing = self.doing.take();
        context::enter(&self.served.frame(), || drop(doing));
    }
}
