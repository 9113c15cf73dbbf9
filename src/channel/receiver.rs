//! The end that takes.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use serde::de::DeserializeOwned;

use super::table::NoHalf;
use super::{Core, Ending, Half, Home};
use crate::error::{BusError, CallError, Executed};
use crate::parcels::{Back, Opened, PackError, Parcels, UnpackError};
use crate::park::Parker;
use crate::ring::channel::{ITEM_WORDS, Impossible, ItemHeader, TakeEnd};
use crate::ring::layout::{LOAN_WORDS, Loan};
use crate::status::Refused;
use crate::sync::spin_hint;
use crate::sys::fd::Fd;
use crate::sys::memfd::Mapping;
use crate::sys::{clock, cpu};
use crate::wire::budget::decode_with;

/// Looks of a task for an item before it waits to be woken: about a round trip between two processors.
const LOOKS: u32 = 64;
/// How long a thread looks before it sleeps: twice what it waited for the last item, but no less than this...
const SPIN_NS: u64 = 50_000;
/// ... and this at most. Items that come less often are worth a wake.
const SPIN_MAX_NS: u64 = 400_000;
/// Looks between two readings of the clock.
const LOOKS_PER_CLOCK: u32 = 16;

/// An item that was taken.
pub(crate) struct Item {
    /// How many were left out before it.
    pub missed: u64,
    /// Where the body stands in the receiver's words, and how long it is; elsewhere, where it is opened.
    start: usize,
    len: usize,
    opened: Option<Opened>,
}

/// The end that takes. Dropped, it tells the sender to stop.
pub(crate) struct ItemReceiver {
    core: Arc<Core>,
    /// `None` until the sender has sent its memory.
    end: Option<TakeEnd>,
    /// The words behind the header of the item taken last.
    words: Box<[u64; ITEM_WORDS]>,
    /// Nothing more comes: the channel's end was told.
    has_ended: bool,
    is_armed: bool,
    cpu: u16,
    /// How long a thread waited for the last item that was not there.
    waited_ns: u64,
}

impl ItemReceiver {
    /// The receiver's half of channel `id`, of this side's making; its memory is to be sent to the peer. `theirs` is the
    /// sender's, where it is there already.
    pub fn new(
        parcels: &Arc<Parcels>,
        id: u32,
        mine: Mapping,
        theirs: Option<Mapping>,
    ) -> Result<Self, NoHalf> {
        let core = Arc::new(Core::new(parcels, id, mine, theirs).ok_or(NoHalf::Gone)?);
        parcels.channels().enter(&core, Half::Receiver)?;
        Ok(ItemReceiver {
            core,
            end: None,
            words: Box::new([0; ITEM_WORDS]),
            has_ended: false,
            is_armed: false,
            cpu: u16::MAX,
            waited_ns: 0,
        })
    }

    /// Offers it to the owner, with its memory.
    pub fn offer(&self, memory: &Fd) -> Result<(), PackError> {
        self.core.offer(Half::Receiver, memory)
    }

    /// Whether this process was forked from the one that takes: nothing of the memories is to be touched.
    #[inline(always)]
    pub fn is_inherited(&self) -> bool {
        self.core.mine.is_inherited()
    }

    /// Whether the sender's half is there; what was sent by now is read.
    pub fn is_accepted(&self) -> bool {
        if self.core.theirs.get().is_none() {
            self.core.parcels.hear();
        }
        self.core.theirs.get().is_some()
    }

    #[inline(always)]
    fn end<'a>(end: &'a mut Option<TakeEnd>, core: &Core) -> Option<&'a mut TakeEnd> {
        if end.is_none() {
            let theirs = core.theirs.get()?;
            // SAFETY: both have the sizes of their types and are mapped as long as the core, which whoever has the end keeps.
            *end = Some(unsafe { TakeEnd::new(core.mine.ptr().cast(), theirs.ptr().cast()) });
        }
        end.as_mut()
    }

    /// The next item, if there is one now; `Some(None)` at the end.
    #[inline]
    fn take(&mut self, home: &dyn Home) -> Option<Option<Result<Item, BusError>>> {
        let end = ItemReceiver::end(&mut self.end, &self.core)?;
        let header = match end.look() {
            Ok(None) => return None,
            Ok(Some(header)) => header,
            Err(Impossible) => return Some(self.violated()),
        };
        end.read(header, &mut self.words);
        end.advance(header);
        if header.flags != ItemHeader::PRESENT || header.lent != 0 {
            return Some(self.take_other(home, header));
        }
        if end.owes() && end.tell() {
            self.core.wake_peer();
        }
        Some(Some(Ok(Item { missed: 0, start: 0, len: header.len as usize, opened: None })))
    }

    /// Whatever is not a short item that lends nothing.
    #[cold]
    #[inline(never)]
    fn take_other(&mut self, home: &dyn Home, header: ItemHeader) -> Option<Result<Item, BusError>> {
        if header.has(ItemHeader::END) {
            return self.take_end(header);
        }
        let start = usize::from(header.has(ItemHeader::MISSED));
        let missed = if start == 1 { self.words[0] } else { 0 };
        let (len, lent) = (u64::from(header.len), u32::from(header.lent));
        let loan = |at: usize| {
            let words: [u64; LOAN_WORDS] = std::array::from_fn(|word| self.words[at + word]);
            Loan::from_words(words)
        };
        let spilled = header.has(ItemHeader::SPILLED).then(|| loan(start));
        let first = start + len.div_ceil(8) as usize;
        let inline = (0..lent as usize).map(|index| loan(first + index * LOAN_WORDS));
        let parcels = &self.core.parcels;
        let limit = home.body_limit();
        let opened = if len > limit {
            parcels.discard(spilled, len, lent, inline);
            Err(CallError::TooLarge { limit, size: len, executed: Executed::Yes })
        } else {
            let opened = parcels.open(spilled, len, lent, inline, Back::AtOnce, |bytes| home.charge(bytes));
            opened.map_err(|error| match error {
                UnpackError::Violation => CallError::ProtocolViolation { executed: Executed::Unknown },
                UnpackError::NoMemory | UnpackError::Limit => CallError::NoMemory { executed: Executed::Yes },
            })
        };
        // At once: the sender lends no more before it knows.
        if let Some(end) = &mut self.end
            && end.tell()
        {
            self.core.wake_peer();
        }
        match opened {
            Ok(opened) => Some(Ok(Item { missed, start, len: len as usize, opened: Some(opened) })),
            Err(error) => {
                if matches!(error, CallError::ProtocolViolation { .. }) {
                    self.core.parcels.violated();
                }
                self.has_ended = true;
                Some(Err(error))
            }
        }
    }

    fn take_end(&mut self, header: ItemHeader) -> Option<Result<Item, BusError>> {
        self.has_ended = true;
        if header.len == 0 && !header.has(ItemHeader::CUT) {
            return None;
        }
        let item = Item { missed: 0, start: 0, len: header.len as usize, opened: None };
        let refused =
            Refused::decode(self.body(&item)).unwrap_or(Refused::Cancelled { executed: Executed::Unknown });
        Some(Err(refused.into_error(|| Ending::PeerClosed.error())))
    }

    #[cold]
    fn violated(&mut self) -> Option<Result<Item, BusError>> {
        self.has_ended = true;
        self.core.parcels.violated();
        Some(Err(Ending::Broken.error()))
    }

    fn body<'a>(&'a self, item: &'a Item) -> &'a [u8] {
        match item.opened.as_ref().and_then(|opened| opened.body.as_ref()) {
            Some(body) => body,
            None => {
                let words = &self.words[item.start..item.start + item.len.div_ceil(8)];
                // SAFETY: the words are initialised and hold at least as many bytes, for which any bits are values.
                unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), item.len) }
            }
        }
    }

    /// The value of the item taken last. Where it is none, nothing more is taken.
    #[inline]
    pub fn decode<T: DeserializeOwned>(&mut self, home: &dyn Home, item: &Item) -> Result<T, BusError> {
        let lent = item.opened.as_ref().map(Opened::lent).unwrap_or_default();
        decode_with(self.body(item), lent, home.budget()).map_err(|error| {
            self.has_ended = true;
            CallError::BadResponse { reason: error.to_string(), executed: Executed::Yes }
        })
    }

    /// The next item, if there is one now or something ended; `None`: nothing yet.
    #[inline]
    pub fn try_take(&mut self, home: &dyn Home) -> Option<Option<Result<Item, BusError>>> {
        if self.has_ended {
            return Some(None);
        }
        if let Some(taken) = self.take(home) {
            return Some(taken);
        }
        self.tell_taken();
        let ending = self.core.ending();
        if ending == Ending::Open {
            return None;
        }
        // What was sent before the end comes first.
        Some(self.take(home).unwrap_or_else(|| {
            self.has_ended = true;
            Some(Err(ending.error()))
        }))
    }

    /// Tells the sender what was taken; else it hears once that is much, or nothing is left to take.
    #[inline]
    pub fn tell_taken(&mut self) {
        let Some(end) = &mut self.end else { return };
        let cpu = cpu::current();
        if self.cpu != cpu {
            self.cpu = cpu;
            end.note_cpu(cpu);
        }
        if end.tell() {
            self.core.wake_peer();
        }
    }

    /// The next item; `None` at the end. Looks a few times before it has itself woken.
    #[inline]
    pub fn poll(&mut self, home: &dyn Home, cx: &mut Context<'_>) -> Poll<Option<Result<Item, BusError>>> {
        match self.try_take(home) {
            Some(taken) => {
                self.disarm();
                Poll::Ready(taken)
            }
            None => self.poll_longer(home, cx.waker()),
        }
    }

    #[cold]
    fn poll_longer(&mut self, home: &dyn Home, waker: &Waker) -> Poll<Option<Result<Item, BusError>>> {
        if self.may_spin(home)
            && self.spin(|looks| looks < LOOKS)
            && let Some(taken) = self.try_take(home)
        {
            return Poll::Ready(taken);
        }
        self.arm(waker);
        match self.try_take(home) {
            Some(taken) => {
                self.disarm();
                Poll::Ready(taken)
            }
            None => Poll::Pending,
        }
    }

    /// Waits for the next item on this thread, until `deadline_ns`: `Err` then.
    pub fn wait(
        &mut self,
        home: &dyn Home,
        deadline_ns: u64,
    ) -> Result<Option<Result<Item, BusError>>, TimedOut> {
        if let Some(taken) = self.try_take(home) {
            return Ok(taken);
        }
        let since_ns = clock::now_ns();
        if self.may_spin(home) {
            let until_ns = (since_ns + looking_ns(self.waited_ns)).min(deadline_ns);
            self.spin(|looks| !looks.is_multiple_of(LOOKS_PER_CLOCK) || clock::now_ns() < until_ns);
        }
        let taken = match self.try_take(home) {
            Some(taken) => Ok(taken),
            None => self.park(home, deadline_ns),
        };
        self.waited_ns = clock::now_ns() - since_ns;
        taken
    }

    #[cold]
    fn park(
        &mut self,
        home: &dyn Home,
        deadline_ns: u64,
    ) -> Result<Option<Result<Item, BusError>>, TimedOut> {
        let parker = Parker::new();
        loop {
            self.arm(parker.waker());
            if let Some(taken) = self.try_take(home) {
                self.disarm();
                return Ok(taken);
            }
            if clock::now_ns() >= deadline_ns {
                return Err(TimedOut);
            }
            parker.park(deadline_ns);
        }
    }

    /// Whether looking may be quicker than sleeping: the sender runs on another processor.
    fn may_spin(&self, home: &dyn Home) -> bool {
        let peer = self.end.as_ref().and_then(TakeEnd::peer_cpu);
        home.spins() && peer.is_some_and(|peer| peer != cpu::current())
    }

    /// Looks as long as `goes_on`, after so many looks; whether there is an item.
    fn spin(&self, mut goes_on: impl FnMut(u32) -> bool) -> bool {
        let Some(end) = &self.end else { return false };
        for looks in 1.. {
            if end.has_item() {
                return true;
            }
            if !goes_on(looks) || self.core.ending() != Ending::Open {
                return false;
            }
            spin_hint();
        }
        false
    }

    fn arm(&mut self, waker: &Waker) {
        self.core.set_waker(waker);
        if let Some(end) = &self.end {
            end.arm(self.core.next_arm());
            self.is_armed = true;
        }
    }

    #[inline(always)]
    fn disarm(&mut self) {
        if self.is_armed {
            self.is_armed = false;
            if let Some(end) = &self.end {
                end.disarm();
            }
        }
    }
}

/// How long to look, after so long a wait for the last item: as long as items come regularly, past the next.
fn looking_ns(waited_ns: u64) -> u64 {
    if waited_ns > SPIN_MAX_NS { SPIN_NS } else { (waited_ns * 2).clamp(SPIN_NS, SPIN_MAX_NS) }
}

/// Nothing came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimedOut;

impl Drop for ItemReceiver {
    fn drop(&mut self) {
        let core = &self.core;
        if core.parcels.is_inherited() {
            return;
        }
        core.clear_wakers();
        if let Some(end) = ItemReceiver::end(&mut self.end, core) {
            end.close();
        }
        // The sender may keep what was not taken until it hears of this.
        core.tell_end();
        core.parcels.channels().leave(core.id);
    }
}
