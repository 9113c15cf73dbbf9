//! How tasks of a tokio runtime are woken without the watcher: by a socket of the lane's own, which their runtime watches.
//!
//! It is made when a task first waits inside a runtime, and the owner is sent the other end. Its runtime's driver reads it and wakes
//! the tasks whose answers are there, in passing: nothing is spawned. One runtime at a time watches it, the first that comes, until it
//! is shut down. Tasks elsewhere are woken by the watcher, as all are without this.

use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};
use tokio::task::unconstrained;

use super::Lane;
use crate::sys::fd::Fd;
use crate::sys::socket;

/// Runtimes that were found without a driver for descriptors. A number that is used again costs its runtime the short way only.
static WITHOUT_IO: Mutex<Vec<Id>> = Mutex::new(Vec::new());

/// The caller's end of the socket, and who watches it.
#[derive(Default)]
pub(super) struct Notify(Mutex<State>);

#[derive(Default)]
enum State {
    /// No task has waited inside a runtime.
    #[default]
    Unmade,
    /// The owner has its end, and no runtime watches ours.
    Idle(Arc<Fd>),
    Watched {
        end: AsyncFd<End>,
        runtime: Id,
        /// A [`Herald`]'s, made once.
        waker: Waker,
    },
    /// There is none to be had, or the owner has closed its end.
    Gone,
}

/// Shared, since a runtime that cannot watch it drops it.
struct End(Arc<Fd>);

impl AsRawFd for End {
    fn as_raw_fd(&self) -> RawFd {
        std::os::fd::AsFd::as_fd(&*self.0).as_raw_fd()
    }
}

/// What the runtime's driver wakes.
struct Herald(Weak<Lane>);

impl Wake for Herald {
    fn wake(self: Arc<Self>) {
        if let Some(lane) = self.0.upgrade() {
            lane.notify.read();
            lane.wake_tasks();
        }
    }
}

/// What listening has come to.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// The driver will wake us.
    Later,
    /// The runtime is shut down.
    NoRuntime,
    /// The owner's end is closed.
    End,
}

impl Notify {
    /// Whether a task that is polled on this thread is woken by the socket. Has the present runtime watch it, if none does.
    pub fn serves_this_thread(&self, lane: &Lane) -> bool {
        let Ok(runtime) = Handle::try_current().map(|runtime| runtime.id()) else { return false };
        let mut state = self.0.lock();
        if let State::Unmade = *state {
            *state = make(lane);
        }
        match &*state {
            State::Watched { runtime: watching, .. } => *watching == runtime,
            State::Idle(fd) => {
                let watched = watch(fd, runtime, &lane.this);
                let is_watched = watched.is_some();
                *state = watched.unwrap_or_else(|| State::Idle(Arc::clone(fd)));
                is_watched
            }
            State::Unmade | State::Gone => false,
        }
    }

    /// Whether some runtime watches it.
    pub fn is_watched(&self) -> bool {
        matches!(*self.0.lock(), State::Watched { .. })
    }

    /// Empties the socket and listens again.
    fn read(&self) {
        let mut state = self.0.lock();
        let State::Watched { end, waker, .. } = &*state else { return };
        let next = match listen(end, waker) {
            Heard::Later => return,
            Heard::NoRuntime => State::Idle(Arc::clone(&end.get_ref().0)),
            Heard::End => State::Gone,
        };
        let former = mem::replace(&mut *state, next);
        drop(state);
        // Without the lock, which the driver may wait for.
        drop(former);
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        // In a forked child the driver is the parent's: its locks and its epoll set are not to be touched.
        if let State::Watched { end, .. } = &*self.0.get_mut()
            && end.get_ref().0.is_inherited()
        {
            mem::forget(mem::take(self.0.get_mut()));
        }
    }
}

/// Makes the two ends and sends the owner its own.
fn make(lane: &Lane) -> State {
    let Ok((ours, theirs)) = socket::stream_pair() else { return State::Gone };
    match lane.parcels.send_notify(&theirs) {
        Ok(()) => State::Idle(Arc::new(ours)),
        // A later task tries again.
        Err(Errno::AGAIN) => State::Unmade,
        Err(_) => State::Gone,
    }
}

/// Has the present runtime watch our end; `None` if it cannot.
fn watch(fd: &Arc<Fd>, runtime: Id, lane: &Weak<Lane>) -> Option<State> {
    // Where a panic is the end of the process, there is no asking (see below).
    if cfg!(panic = "abort") || WITHOUT_IO.lock().contains(&runtime) {
        return None;
    }
    let end = End(Arc::clone(fd));
    // SAFETY: the descriptor is that of the `Fd` within, which stays open and the same as long as it lives.
    let register = || unsafe { AsyncFd::register_with_interest(end, Interest::READABLE) };
    // tokio tells that a runtime has no such driver by a panic, and in no other way.
    let Ok(registered) = catch_unwind(AssertUnwindSafe(register)) else {
        WITHOUT_IO.lock().push(runtime);
        return None;
    };
    let end = registered.ok()?;
    let waker = Waker::from(Arc::new(Herald(Weak::clone(lane))));
    (listen(&end, &waker) == Heard::Later).then_some(State::Watched { end, runtime, waker })
}

/// Reads what is there, and asks the driver to use `waker` when there is more.
fn listen(end: &AsyncFd<End>, waker: &Waker) -> Heard {
    let mut cx = Context::from_waker(waker);
    loop {
        // A task that has used up its turn would be refused, and this waker woken for it at once.
        let ready = pin!(unconstrained(std::future::poll_fn(|cx| end.poll_read_ready(cx)))).poll(&mut cx);
        let mut guard = match ready {
            Poll::Pending => return Heard::Later,
            Poll::Ready(Ok(guard)) => guard,
            Poll::Ready(Err(_)) => return Heard::NoRuntime,
        };
        let mut bytes = [0; 64];
        match rustix::net::recv(&*end.get_ref().0, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Heard::End,
            Ok((_, len)) if len == bytes.len() => {}
            // Less than there was room for: it is empty. What comes after this is another event to the driver.
            Ok(_) | Err(Errno::AGAIN) => guard.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => return Heard::End,
        }
    }
}
