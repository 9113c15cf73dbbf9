//! The end that sends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use serde::Serialize;

use super::table::NoHalf;
use super::{Core, EncodedItem, Ending, Half};
use crate::error::Executed;
use crate::parcels::{LoanList, PackError, Parcels};
use crate::ring::channel::{ITEM_WORDS, Impossible, ItemHeader, SendEnd, Wanted};
use crate::ring::layout::LOAN_WORDS;
use crate::status::Refused;
use crate::sys::cpu;
use crate::sys::fd::Fd;
use crate::sys::memfd::Mapping;
use crate::wire::output::EncodeError;

/// Items that lend something and may be sent before the first of them is taken: the receiver's speed bounds what is lent.
const LENT_AHEAD: usize = 4;

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Push {
    /// It is in the ring.
    Sent,
    /// There is no room; [register](ItemSender::register), push once more, and wait.
    Full,
    /// Nobody takes it any more.
    Closed,
    /// There is no memory to lend, or no lease.
    NoMemory,
}

/// The end that sends. Dropped without [`close`](ItemSender::close), it tells the receiver that the items were cut off.
pub(crate) struct ItemSender {
    pub(super) core: Arc<Core>,
    state: Mutex<State>,
}

struct State {
    /// `None` until the receiver has sent its memory.
    end: Option<SendEnd>,
    /// What was lent and may not be taken yet: where its items end, and the loans.
    lent: VecDeque<(u32, LoanList)>,
    /// For what the last item found no room.
    wanted: Wanted,
    /// The end was said.
    has_ended: bool,
    cpu: u16,
}

/// What a sender that is gone had sent, and lent, and what is known of its receiver.
pub(crate) struct Left {
    end: SendEnd,
    lent: VecDeque<(u32, LoanList)>,
}

impl Left {
    /// The receiver has closed: what it did not take is not lent any more.
    pub(super) fn settle(mut self, core: &Core) {
        let is_sound = self.end.look().is_ok();
        for (position, loans) in self.lent {
            if is_sound && !self.end.has_taken(position) {
                core.parcels.unlend(&loans);
            }
        }
    }
}

impl ItemSender {
    /// The sender's half of channel `id`, of this side's making; its memory is to be sent to the peer. `theirs` is the
    /// receiver's, where it is there already.
    pub fn new(
        parcels: &Arc<Parcels>,
        id: u32,
        mine: Mapping,
        theirs: Option<Mapping>,
    ) -> Result<ItemSender, NoHalf> {
        let core = Arc::new(Core::new(parcels, id, mine, theirs).ok_or(NoHalf::Gone)?);
        parcels.channels().enter(&core, Half::Sender)?;
        let state = State {
            end: None,
            lent: VecDeque::new(),
            wanted: Wanted::Room(0),
            has_ended: false,
            cpu: u16::MAX,
        };
        Ok(ItemSender { core, state: Mutex::new(state) })
    }

    /// Offers it to the owner, with its memory.
    pub fn offer(&self, memory: &Fd) -> Result<(), PackError> {
        self.core.offer(Half::Sender, memory)
    }

    /// Encodes an item for this receiver, in place of what `item` holds.
    #[inline]
    pub fn encode_into<T: Serialize + ?Sized>(
        &self,
        item: &mut EncodedItem,
        value: &T,
        limit: u64,
    ) -> Result<(), Box<EncodeError>> {
        item.encode(value, self.core.parcels.arena(), limit)
    }

    /// Sends an item if there is room for it, told that `missed` were left out before it.
    pub fn try_push(&self, item: &EncodedItem, missed: u64) -> Push {
        self.state.lock().push(&self.core, item, missed)
    }

    /// As [`try_push`](Self::try_push), once all that was sent is taken: there is room for one item only.
    pub fn try_push_alone(&self, item: &EncodedItem) -> Push {
        let mut state = self.state.lock();
        match state.is_drained(&self.core) {
            Ok(true) => state.push(&self.core, item, 0),
            Ok(false) => Push::Full,
            Err(Impossible) => {
                self.core.parcels.violated();
                Push::Closed
            }
        }
    }

    /// As [`try_push`](Self::try_push), for who has the sender to itself.
    #[inline]
    pub fn push_mut(&mut self, item: &EncodedItem) -> Push {
        self.state.get_mut().push(&self.core, item, 0)
    }

    /// Wakes `waker` when there is room again, or nobody takes anything any more. Then push once more before waiting.
    pub fn register(&self, waker: &Waker) {
        self.core.set_waker(waker);
        let state = self.state.lock();
        if let Some(end) = &state.end {
            end.arm(self.core.next_arm(), state.wanted);
        }
    }

    /// Wakes `waker` when the receiver is gone. Then look at [`is_closed`](Self::is_closed).
    pub fn register_end(&self, waker: &Waker) {
        self.core.set_at_end(waker);
    }

    /// Whether nobody takes anything any more.
    pub fn is_closed(&self) -> bool {
        self.core.ending() != Ending::Open || self.state.lock().end.as_ref().is_some_and(SendEnd::is_closed)
    }

    /// Whether the receiver has sent its memory.
    pub fn is_accepted(&self) -> bool {
        self.core.theirs.get().is_some()
    }

    /// Ends the channel behind what was sent.
    pub fn close(&self) {
        self.state.lock().finish(&self.core, None);
    }

    /// Ends the channel with an error behind what was sent.
    pub fn fail(&self, refused: Refused) {
        self.state.lock().finish(&self.core, Some(refused));
    }
}

impl Drop for ItemSender {
    fn drop(&mut self) {
        let core = &self.core;
        if core.parcels.is_inherited() {
            return;
        }
        let state = self.state.get_mut();
        state.finish(core, Some(Refused::Cancelled { executed: Executed::Unknown }));
        core.clear_wakers();
        let channels = core.parcels.channels();
        let Some(mut end) = state.end.take() else {
            // Nobody has claimed it, as far as is known here.
            core.tell_end();
            return channels.leave(core.id);
        };
        let _checked_later = end.look();
        let mut lent = std::mem::take(&mut state.lent);
        lent.retain(|(position, _)| !end.has_taken(*position));
        let left = Left { end, lent };
        // The receiver's word that it has closed comes before, and is seen here, or after, and finds what is left.
        let settled = channels.locked(|| match core.ending() {
            Ending::Open if !left.lent.is_empty() => {
                *core.left.lock() = Some(left);
                None
            }
            _ => Some(left),
        });
        if let Some(left) = settled {
            // At the lane's end leases end by other ways.
            if core.ending() == Ending::PeerClosed || left.end.is_closed() {
                left.settle(core);
            }
            channels.leave(core.id);
        }
    }
}

impl State {
    /// The end, once the receiver has sent its memory.
    #[inline(always)]
    fn end<'a>(end: &'a mut Option<SendEnd>, core: &Core) -> Option<&'a mut SendEnd> {
        if end.is_none() {
            let theirs = core.theirs.get()?;
            // SAFETY: both have the sizes of their types and are mapped as long as the core, which whoever has the end keeps.
            *end = Some(unsafe { SendEnd::new(core.mine.ptr().cast(), theirs.ptr().cast()) });
        }
        end.as_mut()
    }

    /// Whether nothing is under way that may still be taken.
    fn is_drained(&mut self, core: &Core) -> Result<bool, Impossible> {
        let Some(end) = State::end(&mut self.end, core) else { return Ok(true) };
        end.look()?;
        let position = end.position();
        if end.has_taken(position) || end.is_closed() || core.ending() != Ending::Open {
            return Ok(true);
        }
        self.wanted = Wanted::Taken(position);
        Ok(false)
    }

    #[inline]
    fn push(&mut self, core: &Core, item: &EncodedItem, missed: u64) -> Push {
        if self.has_ended || core.ending() != Ending::Open {
            return Push::Closed;
        }
        let Some(end) = State::end(&mut self.end, core) else { return Push::Full };
        if end.is_closed() {
            return Push::Closed;
        }
        let pushed = match item.words() {
            Some(words) if item.blobs.is_empty() => {
                let header = ItemHeader { len: item.len(), lent: 0, flags: missed_flag(missed) };
                match end.has_room(header.words() as usize) {
                    Ok(true) => {
                        end.push(header, [missed_word(&missed), words, &[]]);
                        Ok(Push::Sent)
                    }
                    Ok(false) => {
                        self.wanted = Wanted::Room(header.words() as usize);
                        Ok(Push::Full)
                    }
                    Err(Impossible) => Err(Impossible),
                }
            }
            _ => self.push_lending(core, item, missed),
        };
        match pushed {
            Ok(Push::Sent) => self.after_push(core),
            Ok(not_sent) => return not_sent,
            Err(Impossible) => {
                core.parcels.violated();
                return Push::Closed;
            }
        }
        Push::Sent
    }

    #[inline(always)]
    fn after_push(&mut self, core: &Core) {
        let Some(end) = &mut self.end else { return };
        let cpu = cpu::current();
        if self.cpu != cpu {
            self.cpu = cpu;
            end.note_cpu(cpu);
        }
        if end.must_wake() {
            core.wake_peer();
        }
    }

    #[cold]
    #[inline(never)]
    fn push_lending(&mut self, core: &Core, item: &EncodedItem, missed: u64) -> Result<Push, Impossible> {
        let Some(end) = &mut self.end else { return Ok(Push::Full) };
        end.look()?;
        while self.lent.front().is_some_and(|(position, _)| end.has_taken(*position)) {
            self.lent.pop_front();
        }
        if let Some((first, _)) = self.lent.front().filter(|_| self.lent.len() >= LENT_AHEAD) {
            self.wanted = Wanted::Taken(*first);
            return Ok(Push::Full);
        }
        let loan_words = item.blobs.len() * LOAN_WORDS;
        let inline = item.words().filter(|words| words.len() + loan_words + 2 <= ITEM_WORDS);
        let flags = missed_flag(missed) | if inline.is_some() { 0 } else { ItemHeader::SPILLED };
        let Ok(lent) = u16::try_from(item.blobs.len()) else { return Ok(Push::NoMemory) };
        let header = ItemHeader { len: item.len(), lent, flags };
        if !end.has_room(header.words() as usize)? {
            self.wanted = Wanted::Room(header.words() as usize);
            return Ok(Push::Full);
        }
        core.parcels.collect_if_lent();
        let (mut all, in_ring) = match lend(&core.parcels, item, inline.is_some()) {
            Ok(loans) => loans,
            Err(PackError::NoMemory) => return Ok(Push::NoMemory),
            Err(PackError::Ended) => return Ok(Push::Closed),
        };
        let words: Vec<u64> = in_ring.iter().flat_map(|loan| loan.to_words()).collect();
        end.push(header, [missed_word(&missed), inline.unwrap_or(&[]), &words]);
        all.shrink_to_fit();
        self.lent.push_back((end.position(), all));
        Ok(Push::Sent)
    }

    /// Says that the channel ends, once.
    fn finish(&mut self, core: &Core, refused: Option<Refused>) {
        if std::mem::replace(&mut self.has_ended, true) || core.ending() != Ending::Open {
            return;
        }
        let Some(end) = State::end(&mut self.end, core) else { return };
        let mut item = EncodedItem::blank();
        let said = refused.as_ref().map(|refused| item.encode(refused, core.parcels.arena(), 1 << 10));
        let flags = ItemHeader::END;
        let words = item.words().filter(|_| matches!(said, Some(Ok(())))).unwrap_or(&[]);
        let header = ItemHeader { len: if words.is_empty() { 0 } else { item.len() }, lent: 0, flags };
        if matches!(end.has_room(header.words() as usize), Ok(true)) {
            end.push(header, [&[], words, &[]]);
        } else {
            // There is always room for this; what the refusal says is left out.
            let cut = if refused.is_some() { ItemHeader::CUT } else { 0 };
            end.push(ItemHeader { len: 0, lent: 0, flags: flags | cut }, [&[], &[], &[]]);
        }
        if end.must_wake() {
            core.wake_peer();
        }
    }
}

fn missed_flag(missed: u64) -> u16 {
    if missed == 0 { 0 } else { ItemHeader::MISSED }
}

fn missed_word(missed: &u64) -> &[u64] {
    if *missed == 0 { &[] } else { std::slice::from_ref(missed) }
}

/// Lends what goes with an item: all loans, and those that stand in the ring.
fn lend(parcels: &Parcels, item: &EncodedItem, is_inline: bool) -> Result<(LoanList, LoanList), PackError> {
    let mut all = parcels.lend_all(item.blobs.iter().cloned())?;
    if is_inline {
        return Ok((all.clone(), all));
    }
    let body = item.body_in(parcels.arena()).map_err(|_| PackError::NoMemory);
    let body = body.and_then(|mut body| parcels.lend_body(&mut body, &all, None));
    let body = body.inspect_err(|_| parcels.unlend(&all))?;
    all.push(body);
    Ok((all, LoanList::from_buf([body])))
}
