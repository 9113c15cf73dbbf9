//! What a method can know about the call that it serves.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use crate::blob::error::AllocError;
use crate::blob::exclusive::BlobMut;
use crate::owner::lane::OwnerLane;
use crate::ring::layout::CHAIN_WORDS;
use crate::ring::owner::Request;
use crate::sys::clock;

/// The call being served, for the method that serves it.
///
/// ```
/// use objbus::CallContext;
///
/// struct Files;
/// #[objbus::object]
/// impl Files {
///     /// Removes everything, for the superuser and the owner's own user only.
///     pub fn clear(&self) -> bool {
///         CallContext::current().is_some_and(|call| call.uid() == 0 || call.is_own_uid())
///     }
/// }
/// ```
#[derive(Clone)]
pub struct CallContext(pub(crate) Served);

/// The facts behind a [`CallContext`], also what travels with an async method's task.
#[derive(Clone)]
pub(crate) struct Served {
    pub lane: Arc<OwnerLane>,
    pub slot: usize,
    pub wanted: u32,
    pub one_way: bool,
    /// CLOCK_MONOTONIC milliseconds of this process, modulo 2^32; 0: none.
    pub deadline_ms: u32,
    pub chain: [u64; CHAIN_WORDS],
}

/// The same, borrowed: what a plain method runs under, so that a hot call clones nothing.
pub(crate) struct Frame<'a> {
    pub lane: &'a Arc<OwnerLane>,
    pub slot: usize,
    pub wanted: u32,
    pub one_way: bool,
    pub deadline_ms: u32,
    pub source: Source<'a>,
}

/// What is left of the request.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Whole(&'a Request),
    /// An async method goes on elsewhere: only the chain.
    Chain(&'a [u64; CHAIN_WORDS]),
}

impl Source<'_> {
    fn chain(&self) -> [u64; CHAIN_WORDS] {
        match self {
            Source::Whole(request) => request.chain(),
            Source::Chain(chain) => **chain,
        }
    }
}

thread_local! {
    /// The innermost call that this thread is serving, null outside of methods.
    static CURRENT: Cell<*const Frame<'static>> = const { Cell::new(ptr::null()) };
}

/// Runs `f` as part of serving `frame`'s call.
#[inline(always)]
pub(crate) fn enter<R>(frame: &Frame<'_>, f: impl FnOnce() -> R) -> R {
    struct Leave(*const Frame<'static>);
    impl Drop for Leave {
        #[inline(always)]
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    // The lifetime is erased only for the thread-local, which `Leave` restores before `frame` can end.
    let _leave = Leave(CURRENT.replace(ptr::from_ref(frame).cast()));
    f()
}

/// What a call made here inherits: the rest of the deadline, and the chain of objects it comes through.
#[derive(Clone, Copy)]
pub(crate) struct Inherited {
    pub deadline_ms: u32,
    pub chain: [u64; CHAIN_WORDS],
}

impl Inherited {
    /// How long the caller of the call being served still waits; `None`: it has no deadline.
    pub fn left(&self) -> Option<Duration> {
        left_until(self.deadline_ms)
    }
}

/// How long a caller with this deadline still waits, to a tick of the coarse clock; `None`: for ever.
pub(crate) fn left_until(deadline_ms: u32) -> Option<Duration> {
    (deadline_ms != 0).then(|| {
        let left = deadline_ms.wrapping_sub(clock::now_ms()) as i32;
        Duration::from_millis(left.max(0) as u64)
    })
}

/// `None` outside of methods, which costs one load.
#[inline(always)]
pub(crate) fn inherited() -> Option<Inherited> {
    let frame = CURRENT.get();
    if frame.is_null() { None } else { with_frame(frame, |frame| frame.inherit()) }
}

#[cold]
fn with_frame<R>(frame: *const Frame<'static>, f: impl FnOnce(&Frame<'_>) -> R) -> Option<R> {
    // SAFETY: `enter` keeps the frame alive while the pointer stands in the thread-local, and this thread is inside of it.
    unsafe { frame.as_ref() }.map(f)
}

/// The lane of the call that this thread is serving; `None` outside of methods.
pub(crate) fn current_lane() -> Option<Arc<OwnerLane>> {
    with_frame(CURRENT.get(), |frame| Arc::clone(frame.lane))
}

/// Takes back what the request being served gives back, which else waits until its method has run: memory is short.
#[inline]
pub(crate) fn take_back_returned() {
    let frame = CURRENT.get();
    if !frame.is_null() {
        let _none = with_frame(frame, |frame| {
            if let Source::Whole(request) = frame.source {
                frame.lane.take_back_returned(request);
            }
        });
    }
}

impl Frame<'_> {
    /// The chain grows by this call's object; of a full one the oldest entry is forgotten.
    fn inherit(&self) -> Inherited {
        let mut chain = self.source.chain();
        match chain.iter().position(|&id| id == 0) {
            Some(free) => chain[free] = self.lane.object.id,
            None => {
                chain.rotate_left(1);
                chain[CHAIN_WORDS - 1] = self.lane.object.id;
            }
        }
        Inherited { deadline_ms: self.deadline_ms, chain }
    }

    pub fn to_served(&self) -> Served {
        Served {
            lane: Arc::clone(self.lane),
            slot: self.slot,
            wanted: self.wanted,
            one_way: self.one_way,
            deadline_ms: self.deadline_ms,
            chain: self.source.chain(),
        }
    }
}

impl Served {
    pub fn frame(&self) -> Frame<'_> {
        Frame {
            lane: &self.lane,
            slot: self.slot,
            wanted: self.wanted,
            one_way: self.one_way,
            deadline_ms: self.deadline_ms,
            source: Source::Chain(&self.chain),
        }
    }
}

impl CallContext {
    /// The call that this thread, or the async method polled on it, is serving; `None` outside of methods.
    ///
    /// Threads and tasks that a method starts do not belong to its call: take what they need along.
    pub fn current() -> Option<CallContext> {
        with_frame(CURRENT.get(), |frame| CallContext(frame.to_served()))
    }

    /// The caller's process id as the kernel attests it; 0 if it lies outside this pid namespace. For display: no right
    /// should hang on it.
    pub fn pid(&self) -> u32 {
        self.0.lane.peer.credentials.pid
    }

    /// The caller's user id as the kernel attests it.
    pub fn uid(&self) -> u32 {
        self.0.lane.peer.credentials.uid
    }

    /// The caller's group id as the kernel attests it.
    pub fn gid(&self) -> u32 {
        self.0.lane.peer.credentials.gid
    }

    /// Whether the caller runs as the same user as this process.
    pub fn is_own_uid(&self) -> bool {
        self.uid() == rustix::process::geteuid().as_raw()
    }

    /// How long the caller still waits, rounded up by a few milliseconds; zero when it does no more, `None` if it has no deadline.
    pub fn remaining(&self) -> Option<Duration> {
        left_until(self.0.deadline_ms)
    }

    /// Whether nobody waits for the answer any more: the call was cancelled or timed out, or its caller is gone.
    ///
    /// A long method asks from time to time, and stops. An async one that was cancelled or timed out is dropped at its next
    /// await without asking; one whose caller is gone goes on until its time is up, and is dropped then. A one-way call has
    /// nobody who waits and is never cancelled.
    pub fn cancelled(&self) -> bool {
        !self.0.one_way && self.0.lane.is_given_up(self.0.slot, self.0.wanted)
    }

    /// The name under which the object serving the call is published.
    pub fn object_name(&self) -> &str {
        self.0.lane.object.name()
    }

    /// Shared memory for a blob in the answer, as [`Bus::alloc`](crate::Bus::alloc) gives it, but to be lent to processes of the
    /// caller's user. What was allocated for one user is copied when it is sent to another.
    ///
    /// ```
    /// use objbus::{AllocError, Blob, Bus, CallContext};
    ///
    /// struct Screen;
    /// impl Screen {
    ///     /// All white.
    ///     fn shot(&self, bus: &Bus) -> Result<Blob, AllocError> {
    ///         let mut shot = match CallContext::current() {
    ///             Some(call) => call.alloc(640 * 480)?,
    ///             None => bus.alloc(640 * 480)?, // called from inside this process
    ///         };
    ///         shot.fill(0xff);
    ///         Ok(shot.freeze())
    ///     }
    /// }
    /// # assert!(Screen.shot(&Bus::in_memory()).unwrap().iter().all(|&byte| byte == 0xff));
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Bus::alloc`](crate::Bus::alloc), and [`AllocError::Closed`] if the bus that the object was published through is
    /// gone, which may be when the call is over.
    pub fn alloc(&self, len: usize) -> Result<BlobMut, AllocError> {
        let bus = self.0.lane.object.bus.upgrade().ok_or(AllocError::Closed)?;
        bus.alloc_for(self.uid(), len)
    }
}
