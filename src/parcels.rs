//! One end of a lane's connection: its socket, and all that is lent through it in either direction.
//!
//! It outlives the lane's calls as long as something is lent. Big bodies and blobs lie in chunks of the sender's arena; a
//! message says where ([`Loan`](crate::ring::layout::Loan)). A segment is announced on a lane before its first use there, so a
//! reader that meets an unknown number has only to read its socket: another thread may hold the announcement in its hands, so
//! it takes the socket's lock, reads to the end, looks again, and only then calls it a violation.
//!
//! A lease ends when the borrower gives it back, when it dies, or when it closes its direction of the socket, which it does
//! once it makes (or takes) no calls any more and holds nothing lent: never by a time-out, never under a living holder.
//! [`lend`] is the lender's side, [`borrow`] the borrower's.

mod borrow;
mod channels;
mod lend;

use std::collections::{BTreeSet, VecDeque};
#[cfg(feature = "tokio")]
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::blob::arena::Arena;
use crate::blob::segments::{BadSegment, Segments};
use crate::channel::{Channels, Ending};
use crate::engine::{Engine, Source, Token};
use crate::peer::{Mourner, Peer};
use crate::ring::layout::{RequestMemory, ResponseMemory, Returns};
use crate::ring::leases::{Held, Loans, Riding};
use crate::sys::closer::Foreign;
use crate::sys::fd::Fd;
use crate::sys::memfd::Mapping;
use crate::sys::notify::Notify;
use crate::sys::{clock, fork, memfd, socket};

use borrow::Views;
pub(crate) use borrow::{Back, Opened, Received, UnpackError};
use lend::Lent;
pub(crate) use lend::{Copied, LoanList, PackError};

/// First byte of a message on a lane's socket: answers wait for tasks of the receiver, or something of its is given back.
pub(crate) const WAKE: u8 = 1;
/// A segment: its number (u32) and length (u64), little-endian, and its descriptor.
pub(crate) const SEGMENT: u8 = 2;
/// A segment that is used no more: its number (u32).
pub(crate) const DROPPED: u8 = 3;
/// The sender makes (or takes) no calls any more, but still holds what the receiver lent.
pub(crate) const LEFT: u8 = 4;
/// A half of a channel: its number (u32), which half (u8), and the descriptor of its memory.
pub(crate) const OFFER: u8 = 5;
/// The other half of a channel that the receiver offered: its number (u32), and the descriptor.
pub(crate) const ACCEPT: u8 = 6;
/// There is something to take from a channel, or room in it: its number (u32).
pub(crate) const CHANNEL_WAKE: u8 = 7;
/// The sender has let go of its half of a channel: its number (u32).
pub(crate) const CHANNEL_END: u8 = 8;
/// The caller's objects can be called back: one end of a socket, whose other end is the caller's.
pub(crate) const CALLBACKS: u8 = 9;
/// An object of the caller's that the owner has dropped, having kept it: its number (u32).
pub(crate) const CALLBACK_DROPPED: u8 = 10;
/// Of a caller: one end of a pair of Unix stream sockets, over which its tasks are woken. Once at most.
pub(crate) const NOTIFY: u8 = 11;
/// An object of the caller's that the owner keeps beyond the call it was given for: its number (u32).
pub(crate) const CALLBACK_KEPT: u8 = 12;
/// The longest of them, in bytes.
pub(crate) const MESSAGE_MAX: usize = 13;
/// Messages read in one go. A peer that sends as fast as we read would keep its reader for ever.
const MESSAGES_PER_TURN: usize = 256;
/// Turns in one go, for who must have read everything: a socket holds fewer messages than these read.
const TURNS_MAX: usize = 64;
/// How long a socket rests after a turn that did not empty it.
const REST_NS: u64 = 10_000_000;
/// What is waited for at the socket.
const EVENTS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);

/// What reading the socket brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct News {
    /// Answers may wait for tasks, and leases be back: there was a message, and behind others a wake may have found no room.
    woken: bool,
    /// The peer makes (or takes) no calls any more.
    left: bool,
    /// The peer's direction is closed and all it sent is read.
    ended: bool,
    /// The peer sent what no honest one does.
    violated: bool,
    /// It may have sent more than was read.
    more: bool,
}

/// The lane at this end, for the news that concerns its calls.
pub(crate) trait Resident: Send + Sync {
    /// Answers may wait for tasks.
    fn woken(&self);
    /// The peer sent what no honest one does.
    fn violated(&self);
    /// The peer's own objects can be called back through `socket`. `false`: no honest peer says so. Must not run code of the
    /// user's.
    fn callbacks(&self, socket: Foreign) -> bool {
        drop(socket);
        false
    }
    /// The peer keeps an object of ours, or does no more. `false` and what must not be: as above.
    fn callback_told(&self, number: u32, is_kept: bool) -> bool {
        let _none_was_given = (number, is_kept);
        false
    }
    /// The peer makes (or takes) no calls any more.
    fn peer_left(self: Arc<Self>, engine: &'static Engine);
    /// The peer's process is dead, and all it sent is read.
    fn peer_died(self: Arc<Self>, engine: &'static Engine);
}

pub(crate) struct Parcels {
    pub(crate) socket: Fd,
    pub(crate) peer: Arc<Peer>,
    engine: &'static Engine,
    /// In a forked child nothing of this is touched.
    generation: u32,
    /// Under the lane's ring and the two pointers; the lane keeps this value as long as its ring.
    _memory: [Mapping; 2],
    /// What we say of the peer's leases.
    ours: NonNull<Returns>,
    /// What the peer says of ours.
    theirs: NonNull<Returns>,
    is_caller: bool,
    /// Where the peer's tasks want to be woken.
    notify: OnceLock<Notify>,

    /// Held while reading the socket, so that what a message says is acted on before the next reader looks.
    reading: Mutex<()>,
    token: Mutex<Option<Token>>,
    resident: OnceLock<Weak<dyn Resident>>,
    /// The peer broke the protocol: only its end is waited for.
    is_broken: AtomicBool,
    /// The peer will say nothing any more, and holds nothing.
    is_over: AtomicBool,

    incoming: Segments,
    /// Blobs are copied, not read in place.
    copies: bool,
    /// A segment was announced that we had no descriptor or room for: an unknown number is no proof of a lie then.
    lost: AtomicBool,
    views: RwLock<Views>,
    /// How many views there are, those of `views` included.
    held: Held,
    /// What the peer is to hear of that. Leases ride on the caller's requests only.
    riding: Riding,

    arena: Arc<Arena>,
    loans: Loans<Lent>,
    /// Something was lent at some time.
    has_lent: AtomicBool,
    announced: Mutex<BTreeSet<u32>>,
    /// The last announcement, if nothing was dropped since: its number, and the arena's count of dropped segments above it.
    last_announced: AtomicU64,
    /// The arena's count of dropped segments when `announced` was last compared with it.
    drops_seen: AtomicU64,
    copied: Arc<Copied>,

    channels: Channels,
    /// What found the socket full, in order, until an alarm tries again.
    unsent: Mutex<VecDeque<[u8; 5]>>,

    this: Weak<Parcels>,
}

// SAFETY: the two pointers lead to atomics in memory that is mapped as long as `_memory`; all else is Send by itself.
unsafe impl Send for Parcels {}
// SAFETY: as above.
unsafe impl Sync for Parcels {}

/// Which end of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Caller,
    Owner,
}

/// What it is made of, after the handshake.
pub(crate) struct Parts {
    pub socket: Fd,
    pub peer: Arc<Peer>,
    pub engine: &'static Engine,
    pub side: Side,
    /// The lane's two memories, of the sizes of their types.
    pub request: Mapping,
    pub response: Mapping,
    pub incoming: Segments,
    pub copies: bool,
    pub arena: Arc<Arena>,
    pub copied: Arc<Copied>,
}

impl Parcels {
    pub fn new(parts: Parts) -> Arc<Parcels> {
        assert!(parts.request.len() == size_of::<RequestMemory>());
        assert!(parts.response.len() == size_of::<ResponseMemory>());
        let request = parts.request.ptr().cast::<RequestMemory>();
        let response = parts.response.ptr().cast::<ResponseMemory>();
        // SAFETY: within the mappings, whose lengths were just seen to be those of the types; no reference is made.
        let [callers, owners] = unsafe {
            [
                NonNull::new_unchecked(&raw mut (*request.as_ptr()).returns),
                NonNull::new_unchecked(&raw mut (*response.as_ptr()).returns),
            ]
        };
        let is_caller = parts.side == Side::Caller;
        let (ours, theirs) = if is_caller { (callers, owners) } else { (owners, callers) };
        Arc::new_cyclic(|this| Parcels {
            socket: parts.socket,
            peer: parts.peer,
            engine: parts.engine,
            generation: fork::generation(),
            _memory: [parts.request, parts.response],
            ours,
            theirs,
            is_caller,
            notify: OnceLock::new(),
            reading: Mutex::new(()),
            token: Mutex::new(None),
            resident: OnceLock::new(),
            is_broken: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            incoming: parts.incoming,
            copies: parts.copies,
            lost: AtomicBool::new(false),
            views: RwLock::default(),
            held: Held::new(),
            riding: Riding::new(),
            arena: parts.arena,
            loans: Loans::new(),
            has_lent: AtomicBool::new(false),
            announced: Mutex::default(),
            last_announced: AtomicU64::new(0),
            drops_seen: AtomicU64::new(0),
            copied: parts.copied,
            channels: Channels::default(),
            unsent: Mutex::default(),
            this: Weak::clone(this),
        })
    }

    fn ours(&self) -> &Returns {
        // SAFETY: mapped as long as `self` in the process that made it, which alone comes here; atomics only.
        unsafe { self.ours.as_ref() }
    }

    fn theirs(&self) -> &Returns {
        // SAFETY: as in `ours`; nothing is stored there.
        unsafe { self.theirs.as_ref() }
    }

    /// Starts to watch the peer's end and its process, for `resident` and for what is lent.
    pub fn watch<R: Resident + 'static>(&self, resident: Weak<R>) -> Result<(), Errno> {
        let Some(this) = self.this.upgrade() else { return Ok(()) };
        let _first = self.resident.set(resident as Weak<dyn Resident>);
        *self.token.lock() = Some(self.engine.add(&self.socket, EVENTS, this.clone())?);
        self.peer.on_death(self.engine, &this);
        Ok(())
    }

    fn resident(&self) -> Option<Arc<dyn Resident>> {
        self.resident.get()?.upgrade()
    }

    fn unwatch(&self) {
        let token = self.token.lock().take();
        if let Some(token) = token {
            self.engine.remove(token, &self.socket);
        }
    }

    /// Wakes the peer's tasks, and tells it that something was given back. A full socket means that there is something to
    /// read, and whatever is read wakes it.
    pub fn send_wake(&self) {
        let _ = socket::send(&self.socket, &[WAKE], &[]);
    }

    /// Wakes the peer's tasks that wait for it where they asked for it, if that is known by now.
    pub fn send_notified_wake(&self) {
        if !self.notify.get().is_some_and(|notify| notify.ring(WAKE)) {
            self.send_wake();
        }
    }

    /// Tells the owner where tasks are woken.
    #[cfg(feature = "tokio")]
    pub fn send_notify(&self, end: &Fd) -> Result<(), Errno> {
        socket::send(&self.socket, &[NOTIFY], &[end.as_fd()])
    }

    /// This side makes (or takes) no calls any more. What is lent stays so, either way.
    pub fn end_calls(&self) {
        self.channels.end(Ending::Closed);
        self.close_views();
        if let Some(held) = self.held.leave() {
            if held != 0 {
                self.tell_left();
            }
            self.settle();
        }
    }

    /// Whether nothing is lent any more, either way, and never will be.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst) && self.held.is_over()
    }

    fn tell_left(&self) {
        let is_over = self.is_over.load(Ordering::SeqCst);
        if !is_over && socket::send(&self.socket, &[LEFT], &[]) == Err(Errno::AGAIN) {
            let this = Weak::clone(&self.this);
            self.engine.alarm(clock::now_ns() + REST_NS, move |_| {
                if let Some(this) = this.upgrade() {
                    this.tell_left();
                }
            });
        }
    }

    /// Closes our direction once nothing of the peer's is held, and all of it once nothing of ours is either.
    #[cold]
    fn settle(&self) {
        if !self.held.is_over() {
            return;
        }
        socket::shutdown_sending(&self.socket);
        if self.is_over.load(Ordering::SeqCst) || self.loans.end_if_empty() {
            self.is_over.store(true, Ordering::SeqCst);
            self.unwatch();
            socket::shutdown(&self.socket);
        }
    }

    /// The peer has closed its direction, or is dead: it holds nothing any more, and says nothing.
    fn peer_ended(&self) {
        // A caller's lane tells what the end means, which may take it a while to find out.
        if !self.is_caller {
            self.channels.end(Ending::Lost);
        }
        self.is_over.store(true, Ordering::SeqCst);
        self.unwatch();
        self.regain_all();
        self.settle();
    }

    fn regain_all(&self) {
        self.loans.end().into_iter().for_each(|lent| self.regain(lent));
    }

    /// Tells the caller what becomes of an object of its. That one is dropped, it learns some time.
    pub fn tell_callback(&self, number: u32, is_kept: bool) {
        let mut message = [if is_kept { CALLBACK_KEPT } else { CALLBACK_DROPPED }; 5];
        message[1..].copy_from_slice(&number.to_le_bytes());
        match is_kept {
            true => _ = socket::send(&self.socket, &message, &[]),
            false => self.send_or_later(message),
        }
    }

    /// Reads what the peer has said by now, and acts on it.
    #[cold]
    pub fn hear(&self) {
        // What is not found by then was sent too late, if at all.
        for _ in 0..TURNS_MAX {
            let news = self.read_socket();
            self.act(news);
            if !news.more {
                break;
            }
        }
    }

    /// Reads what the peer has sent: everything, unless it is more than a turn's worth.
    fn read_socket(&self) -> News {
        let _reading = self.reading.lock();
        let mut news = News::default();
        let mut was_reset = false;
        for _ in 0..MESSAGES_PER_TURN {
            if news.ended || news.violated {
                return news;
            }
            let mut message = [0; MESSAGE_MAX + 1];
            match socket::recv(&self.socket, &mut message, 1) {
                Err(Errno::AGAIN) => return news,
                // A peer that closes with our messages unread gives this once, before what it had sent.
                Err(Errno::CONNRESET) if !was_reset => was_reset = true,
                Err(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN | Errno::BADF | Errno::NOTSOCK) => {
                    news.ended = true;
                }
                // The system is short of something: nothing was read, and what there is to read may be gone unheard.
                Err(_) => {
                    self.lost.store(true, Ordering::Relaxed);
                    news.more = true;
                    return news;
                }
                Ok(received) if received.len == 0 => news.ended = true,
                Ok(received) if received.no_fds => self.lost.store(true, Ordering::Relaxed),
                Ok(received) if received.truncated => news.violated = true,
                Ok(received) => {
                    news.violated |= !self.receive(&message[..received.len], received.fds);
                    news.left |= message[0] == LEFT;
                    news.woken = true;
                }
            }
        }
        news.more = true;
        news
    }

    /// Acts on a message; `false`: no honest peer sends it.
    fn receive(&self, message: &[u8], fds: Vec<Foreign>) -> bool {
        let number = |range: std::ops::Range<usize>| -> Option<u32> {
            Some(u32::from_le_bytes(message.get(range)?.try_into().ok()?))
        };
        let mut fds = fds.into_iter();
        let understood = match (message.first(), message.len(), fds.next()) {
            (Some(&(WAKE | LEFT)), 1, None) => Some(()),
            (Some(&SEGMENT), MESSAGE_MAX, Some(fd)) => number(1..5)
                .zip(number(5..9))
                .zip(number(9..13))
                .and_then(|((id, low), high)| self.insert(id, u64::from(low) | u64::from(high) << 32, fd)),
            (Some(&OFFER), 6, Some(fd)) if !self.is_caller => {
                number(1..5).and_then(|id| self.channels.offered(id, message[5], fd))
            }
            (Some(&ACCEPT), 5, Some(fd)) if self.is_caller => {
                number(1..5).and_then(|id| self.channels.accepted(id, fd))
            }
            (Some(&CHANNEL_WAKE), 5, None) => number(1..5).map(|id| self.channels.woken(id)),
            (Some(&CHANNEL_END), 5, None) => number(1..5).map(|id| self.channels.peer_ended(id)),
            (Some(&NOTIFY), 1, Some(fd)) if !self.is_caller => self.take_notify(fd),
            (Some(&DROPPED), 5, None) => number(1..5)
                .filter(|&id| self.incoming.remove(id) || self.lost.load(Ordering::Relaxed))
                .map(|id| self.close_view(id)),
            (Some(&CALLBACKS), 1, Some(socket)) => {
                self.resident().is_none_or(|resident| resident.callbacks(socket)).then_some(())
            }
            (Some(what @ &(CALLBACK_KEPT | CALLBACK_DROPPED)), 5, None) => number(1..5)
                .filter(|&number| {
                    let is_kept = *what == CALLBACK_KEPT;
                    self.resident().is_none_or(|resident| resident.callback_told(number, is_kept))
                })
                .map(drop),
            _ => None,
        };
        understood.is_some()
    }

    /// `None`: the peer broke the protocol.
    fn take_notify(&self, fd: Foreign) -> Option<()> {
        match Notify::receive(fd, self.peer.credentials).ok()? {
            Some(notify) => self.notify.set(notify).ok(),
            None => Some(()),
        }
    }

    /// `None`: the peer broke the protocol.
    fn insert(&self, id: u32, len: u64, fd: Foreign) -> Option<()> {
        // Before any limit: one who sends something else is not to send it again.
        if !fd.is_memory() {
            return None;
        }
        match self.incoming.insert(id, fd, len) {
            Ok(()) => Some(()),
            Err(BadSegment::Limit | BadSegment::Refused(memfd::BadSegment::System(_))) => {
                self.lost.store(true, Ordering::Relaxed);
                Some(())
            }
            Err(_) => None,
        }
    }

    /// Acts on what the socket brought, but for its end, which the watcher sees again.
    fn act(&self, news: News) {
        if news.woken {
            self.collect();
            self.channels.wake();
        }
        let Some(resident) = self.resident() else { return };
        if news.violated {
            self.is_broken.store(true, Ordering::Relaxed);
            resident.violated();
        } else if news.woken {
            resident.woken();
        }
        if news.left {
            resident.peer_left(self.engine);
        }
    }

    /// Does not listen for a while, or, to one that broke the protocol, to anything but its end. The peer's death is heard all
    /// the same.
    #[cold]
    fn rest(&self, for_ns: u64, events: EventFlags) {
        self.engine.mute(&self.socket);
        self.listen_again(for_ns, events);
    }

    fn listen_again(&self, in_ns: u64, events: EventFlags) {
        let this = Weak::clone(&self.this);
        self.engine.alarm(clock::now_ns() + in_ns, move |engine| {
            let Some(this) = this.upgrade() else { return };
            // Locked, so that an end comes before or after, not between.
            let token = this.token.lock();
            let unmuted = token.map_or(Ok(()), |token| engine.unmute(token, &this.socket, events));
            drop(token);
            // The user's watches, or the kernel's memory, have run out for now.
            if matches!(unmuted, Err(Errno::NOSPC | Errno::NOMEM)) {
                this.listen_again(REST_NS, events);
            }
        });
    }
}

impl Drop for Parcels {
    fn drop(&mut self) {
        if !fork::forked_since(self.generation) {
            self.regain_all();
        }
    }
}

impl Source for Parcels {
    fn ready(self: Arc<Self>, engine: &'static Engine, events: EventFlags) {
        let has_ended = events.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP);
        let was_broken = self.is_broken.load(Ordering::Relaxed);
        let news = if was_broken { News { ended: has_ended, ..News::default() } } else { self.read_socket() };
        self.act(news);
        let is_closed = events.intersects(EventFlags::HUP | EventFlags::ERR);
        if news.ended || is_closed && !news.more {
            if let Some(resident) = self.resident() {
                resident.peer_left(engine);
            }
            self.peer_ended();
        } else if was_broken || news.violated {
            self.rest(0, EventFlags::RDHUP);
        } else if news.more {
            self.rest(REST_NS, EVENTS);
        }
    }
}

impl Mourner for Parcels {
    fn peer_died(self: Arc<Self>, engine: &'static Engine) {
        // What it sent before it died is read first: a response may refer to it. No more than a socket holds: a forked child
        // of a hostile one goes on sending.
        self.hear();
        if let Some(resident) = self.resident() {
            resident.peer_died(engine);
        }
        self.peer_ended();
    }
}

#[cfg(test)]
pub(crate) mod tests;
