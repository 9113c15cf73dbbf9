//! From a stream into a channel.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use parking_lot::Mutex;
use serde::Serialize;

use super::{Core, EncodedItem, Home, Homed, ItemSender, Push, Upload};
use crate::error::Executed;
use crate::job::{Job, Runtime};
use crate::status::Refused;
use crate::wire::output::EncodeError;

/// Items that are sent in one go; then others have their turn.
const ITEMS_PER_TURN: u32 = 256;

/// Sends what a stream gives, as the receiver has room for it.
pub(crate) struct Pump {
    item: EncodedItem,
    /// The item is encoded and not sent.
    is_waiting: bool,
    has_begun: bool,
}

impl Pump {
    pub fn new() -> Pump {
        Pump { item: EncodedItem::blank(), is_waiting: false, has_begun: false }
    }

    /// Ready once the stream has ended, or nobody takes anything any more.
    pub fn poll<S>(
        &mut self,
        sender: &mut ItemSender,
        home: &dyn Home,
        mut stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<()>
    where
        S: Stream,
        S::Item: Serialize,
    {
        if !std::mem::replace(&mut self.has_begun, true) {
            // The call is answered first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        for _ in 0..ITEMS_PER_TURN {
            if !self.is_waiting {
                // Before the next value takes memory: what came back last is warm.
                home.parcels().collect_if_lent();
                match stream.as_mut().poll_next(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => {
                        sender.close();
                        return Poll::Ready(());
                    }
                    Poll::Ready(Some(value)) => {
                        if let Err(error) = sender.encode_into(&mut self.item, &value, home.body_limit()) {
                            sender.fail(unencodable(*error));
                            return Poll::Ready(());
                        }
                    }
                }
            }
            self.is_waiting = true;
            match self.push(sender, cx) {
                Push::Sent => self.is_waiting = false,
                Push::Full => return Poll::Pending,
                Push::Closed => return Poll::Ready(()),
                Push::NoMemory => {
                    sender.fail(Refused::NoMemory { executed: Executed::Yes });
                    return Poll::Ready(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    #[inline(always)]
    fn push(&mut self, sender: &mut ItemSender, cx: &Context<'_>) -> Push {
        match sender.push_mut(&self.item) {
            Push::Full => {
                sender.register(cx.waker());
                sender.push_mut(&self.item)
            }
            pushed => pushed,
        }
    }
}

#[cold]
fn unencodable(error: EncodeError) -> Refused {
    match error {
        EncodeError::TooLarge { limit, size } => Refused::TooLargeResponse { limit, size },
        EncodeError::NoMemory => Refused::NoMemory { executed: Executed::Yes },
        EncodeError::Unencodable(reason) => Refused::BadResponse(reason),
    }
}

/// A stream that goes along with a call, from the caller to the method.
pub(crate) struct StreamUpload<S> {
    /// Taken once the owner has accepted the channel, not before: the call may go to a successor instead.
    stream: Arc<Mutex<Option<Pin<Box<S>>>>>,
    runtime: Runtime,
    begun: Option<Arc<Core>>,
}

impl<S> StreamUpload<S> {
    pub fn new(stream: S) -> StreamUpload<S> {
        let stream = Arc::new(Mutex::new(Some(Box::pin(stream))));
        StreamUpload { stream, runtime: Runtime::current(), begun: None }
    }

    /// Ends what was begun, if the owner has not accepted it.
    fn stop(&mut self) {
        if let Some(begun) = self.begun.take() {
            begun.parcels.hear();
            begun.end_unaccepted();
        }
    }
}

impl<S> Upload for StreamUpload<S>
where
    S: Stream + Send + 'static,
    S::Item: Serialize,
{
    fn begin(&mut self, mut sender: Homed<ItemSender>) {
        self.stop();
        let engine = sender.home.parcels().engine();
        self.begun = Some(Arc::clone(&sender.end.core));
        let (place, mut pump, mut stream) = (Arc::clone(&self.stream), Pump::new(), None);
        let doing = std::future::poll_fn(move |cx| {
            let Homed { end, home } = &mut sender;
            end.register_end(cx.waker());
            if end.is_closed() {
                return Poll::Ready(());
            }
            if stream.is_none() {
                end.register(cx.waker());
                if !end.is_accepted() {
                    return Poll::Pending;
                }
                stream = place.lock().take();
            }
            match &mut stream {
                Some(stream) => pump.poll(end, &**home, stream.as_mut(), cx),
                None => Poll::Ready(()),
            }
        });
        Job::new(engine, Box::pin(doing)).start(&self.runtime);
    }
}

impl<S> Drop for StreamUpload<S> {
    fn drop(&mut self) {
        self.stop();
    }
}
