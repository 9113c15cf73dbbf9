//! Which memory of an arena is free, and which of its segments could go. No system call is made here.
//!
//! Free memory lies in four places, looked through in this order:
//! - [`Slots`]: the piece of each class that was freed last, taken without the pool's lock, and in use to the pool: before
//!   it looks further than the next place, and before it tells how much is in use, it takes all of them back;
//! - *parked* chunks: taken as they were given, last in first out, for the same class only;
//! - *divided* segments: a buddy allocator each, the oldest tried first, so that the younger ones empty;
//! - *idle* segments: wholly free ones. What they were before does not matter; they are divided anew, or serve one
//!   large chunk whole.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use super::arena::Shared;
use super::buddy::{Buddy, GRANULE, GRANULES_MAX, Size};
use super::segment::Segment;
use super::slots::{SlotIndex, Slots, WHOLE_BYTES, WHOLE_SLOTS};

/// A chunk of this many bytes or more has a segment of its own. A segment costs a descriptor and, beside its pages,
/// some 20 us (the pages of a megabyte: 400 us); a small chunk held for long then never keeps a large one's memory.
pub(super) const WHOLE: usize = 1 << 20;

/// The longest segment that is divided: one small chunk held keeps no more than this, and the call that has to wait
/// for fresh pages waits for those of 4 MiB: 1 to 6 ms, from one machine to another.
pub(super) const DIVIDED_MAX: usize = GRANULES_MAX * GRANULE;

/// The first segment: a process that sends one body of 10 KiB pays for this.
const DIVIDED_MIN: usize = 256 << 10;

/// Parked chunks of one class: a burst of that many comes and goes without the buddies.
const PARKED_OF_CLASS: usize = 32;

/// All parked chunks together, in bytes: one divided segment's worth, a bound on what lies in wrong sizes, beside one
/// chunk of each class in the slots.
const PARKED_BYTES: usize = DIVIDED_MAX;

/// The classes below [`WHOLE`], that of exactly its size included.
pub(super) const CLASSES: usize = 80;

/// Idle bytes kept warm however little was ever in use: eight frames of 8 MiB. Fresh pages cost twenty times a copy.
const IDLE_BYTES: usize = 64 << 20;

/// Idle segments kept, since each holds a descriptor and programs often have 1,024: a twentieth.
const IDLE_SEGMENTS: usize = 48;

/// What an allocation needs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    Part(Size),
    /// A segment of at least this many bytes.
    Whole(usize),
}

impl Need {
    #[inline]
    pub(super) fn of(bytes: usize) -> Need {
        if bytes < WHOLE { Need::Part(Size::of(bytes)) } else { Need::Whole(bytes) }
    }

    /// Lengths of a segment to make for it, the preferred one and the least that will do.
    pub(super) fn segment_lens(self, divided: usize, page: usize) -> [usize; 2] {
        let round = |bytes: usize| bytes.next_multiple_of(page);
        match self {
            Need::Part(size) => {
                let least = size.bytes().next_power_of_two();
                let doubling = divided.next_power_of_two().clamp(DIVIDED_MIN, DIVIDED_MAX);
                [round(least.max(doubling)), round(least)]
            }
            // A class, so that frames of about one size use each other's segments.
            Need::Whole(bytes) => [round(Size::of(bytes).bytes()), round(bytes)],
        }
    }
}

/// A range of a segment that belongs to one chunk. Boxed once, and then it goes from hand to hand.
pub(super) struct Piece {
    pub(super) segment: Arc<Segment>,
    place: Place,
    /// Where it is laid down; none for a large one of a length that is no class, or too long.
    pub(super) slot: Option<SlotIndex>,
    /// What it goes back to; none while the pool has it.
    pub(super) owner: Option<Arc<Shared>>,
}

enum Place {
    Whole,
    Part { start: usize, size: Size },
}

impl Piece {
    fn part(segment: Arc<Segment>, start: usize, size: Size) -> Box<Piece> {
        let slot = SlotIndex::of(Need::Part(size));
        Box::new(Piece { segment, place: Place::Part { start, size }, slot, owner: None })
    }

    fn whole(segment: Arc<Segment>) -> Box<Piece> {
        let len = segment.len();
        let slot = SlotIndex::of(Need::Whole(len)).filter(|_| Size::of(len).bytes() == len);
        Box::new(Piece { segment, place: Place::Whole, slot, owner: None })
    }

    /// Whether this piece, found in the slot for `need`, is of the very class needed.
    #[inline]
    pub(super) fn suits(&self, need: Need) -> bool {
        match need {
            Need::Part(_) => true,
            Need::Whole(bytes) => Size::of(bytes).bytes() == self.segment.len(),
        }
    }

    pub(super) fn offset(&self) -> usize {
        match self.place {
            Place::Whole => 0,
            Place::Part { start, .. } => start * GRANULE,
        }
    }

    fn bytes(&self) -> usize {
        match self.place {
            Place::Whole => self.segment.len(),
            Place::Part { size, .. } => size.bytes(),
        }
    }
}

struct Divided {
    segment: Arc<Segment>,
    buddy: Buddy,
}

/// How an arena's memory is used, in bytes unless it says otherwise. `allocated` = `in_use` + `cached`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ArenaStats {
    /// Of all segments.
    pub(crate) allocated: u64,
    /// Of all chunks, what their sizes are rounded up by included.
    pub(crate) in_use: u64,
    /// Of no chunk.
    pub(crate) cached: u64,
    /// The most that was in use since the last trim.
    pub(crate) peak: u64,
    /// How many segments there are.
    pub(crate) segments: usize,
}

/// Segments that the arena has let go. Dropping them makes system calls, so that is done after unlocking.
pub(super) type Evicted = Vec<Arc<Segment>>;

pub(super) struct Pool {
    /// By class; at most [`PARKED_OF_CLASS`] each.
    #[expect(
        clippy::vec_box,
        reason = "slots and chunks have the same boxes, so that a piece is moved but not made anew"
    )]
    parked: [Vec<Box<Piece>>; CLASSES],
    /// At most [`PARKED_BYTES`].
    parked_bytes: usize,
    /// By id, hence by age. Each has a part in use or parked.
    divided: BTreeMap<u32, Divided>,
    /// The one freed last is last.
    idle: Vec<Arc<Segment>>,
    idle_bytes: usize,
    /// The ids of all segments, in use or not.
    live: BTreeSet<u32>,
    allocated: usize,
    /// What chunks have, and what lies in the slots.
    in_use: usize,
    /// The most that chunks had.
    peak: usize,
    /// Let go, and still to be dropped.
    evicted: Evicted,
    /// Once set, nothing is kept warm.
    closed: bool,
}

impl Pool {
    pub(super) fn new() -> Pool {
        Pool {
            parked: [const { Vec::new() }; CLASSES],
            parked_bytes: 0,
            divided: BTreeMap::new(),
            idle: Vec::new(),
            idle_bytes: 0,
            live: BTreeSet::new(),
            allocated: 0,
            in_use: 0,
            peak: 0,
            evicted: Evicted::new(),
            closed: false,
        }
    }

    pub(super) fn take(&mut self, need: Need, slots: &Slots) -> Option<Box<Piece>> {
        let piece = self.take_parked_below_peak(need).or_else(|| {
            self.gather(slots);
            match need {
                Need::Part(size) => self.take_parked(size).or_else(|| self.take_part(size)),
                Need::Whole(bytes) => self.take_whole(bytes),
            }
        })?;
        Some(self.count_out(piece))
    }

    pub(super) fn give(&mut self, piece: Box<Piece>, slots: &Slots) {
        if self.take_back(piece) {
            return;
        }
        let (bytes, segments) = self.idle_max();
        if !self.closed && (self.idle_bytes + WHOLE_BYTES > bytes || self.idle.len() + WHOLE_SLOTS > segments)
        {
            // The piece freed last lies in a slot: it is not to be outlived by one freed before.
            self.gather(slots);
        }
        self.evict_to(bytes, segments);
    }

    /// Takes in a segment made for `need`, and takes what was needed.
    pub(super) fn adopt(&mut self, segment: Arc<Segment>, need: Need, slots: &Slots) -> Box<Piece> {
        self.gather(slots);
        self.allocated += segment.len();
        self.live.insert(segment.id());
        let piece = match need {
            Need::Part(size) => self.divide(segment, size),
            Need::Whole(_) => Piece::whole(segment),
        };
        self.count_out(piece)
    }

    /// Lets go of all that is idle, and of nothing else.
    pub(super) fn trim(&mut self, slots: &Slots) {
        self.gather(slots);
        self.unpark();
        self.peak = self.in_use;
        self.evict_to(0, 0);
    }

    /// As [`trim`](Pool::trim), for now and for all that comes back later.
    pub(super) fn close(&mut self, slots: &Slots) {
        self.closed = true;
        slots.close().for_each(|piece| _ = self.take_back(piece));
        self.unpark();
        self.evict_to(0, 0);
    }

    /// What was let go since the last call: to be dropped when the pool is unlocked.
    pub(super) fn take_evicted(&mut self) -> Evicted {
        mem::take(&mut self.evicted)
    }

    pub(super) fn is_live(&self, id: u32) -> bool {
        self.live.contains(&id)
    }

    /// The length of all divided segments: the next is as long, so that their number grows with the logarithm.
    pub(super) fn divided_bytes(&self) -> usize {
        self.divided.values().map(|divided| divided.segment.len()).sum()
    }

    pub(super) fn stats(&mut self, slots: &Slots) -> ArenaStats {
        self.gather(slots);
        ArenaStats {
            allocated: self.allocated as u64,
            in_use: self.in_use as u64,
            cached: (self.allocated - self.in_use) as u64,
            peak: self.peak as u64,
            segments: self.live.len(),
        }
    }

    fn count_out(&mut self, piece: Box<Piece>) -> Box<Piece> {
        self.in_use += piece.bytes();
        self.peak = self.peak.max(self.in_use);
        piece
    }

    /// Takes back what lies in the slots: it may be of use together, and what is in use is known then.
    fn gather(&mut self, slots: &Slots) {
        if self.closed {
            return;
        }
        for piece in slots.take_all() {
            self.take_back(piece);
        }
        let (bytes, segments) = self.idle_max();
        self.evict_to(bytes, segments);
    }

    /// Whether the piece is parked.
    fn take_back(&mut self, mut piece: Box<Piece>) -> bool {
        // Not the last reference to what the pool is a part of: whoever locked it has one.
        piece.owner = None;
        self.in_use -= piece.bytes();
        match piece.place {
            Place::Part { size, .. } if self.may_park(size) => {
                self.parked_bytes += size.bytes();
                self.parked[size.class].push(piece);
                return true;
            }
            Place::Part { start, size } => self.give_part(piece.segment, start, size),
            Place::Whole => self.idle(piece.segment),
        }
        false
    }

    /// While what is in use, with what lies in the slots, is below the peak, the peak stays true without a look at them.
    fn take_parked_below_peak(&mut self, need: Need) -> Option<Box<Piece>> {
        match need {
            Need::Part(size) if self.in_use + size.bytes() <= self.peak => self.take_parked(size),
            _ => None,
        }
    }

    fn take_parked(&mut self, size: Size) -> Option<Box<Piece>> {
        let piece = self.parked[size.class].pop()?;
        self.parked_bytes -= size.bytes();
        Some(piece)
    }

    #[cold]
    fn take_part(&mut self, size: Size) -> Option<Box<Piece>> {
        if let Some(piece) = self.take_divided(size) {
            return Some(piece);
        }
        // Before another segment is used up, let what is parked grow together.
        self.unpark();
        self.take_divided(size).or_else(|| self.divide_idle(size))
    }

    fn take_divided(&mut self, size: Size) -> Option<Box<Piece>> {
        self.divided.values_mut().find_map(|Divided { segment, buddy }| {
            let start = buddy.take(size.granules)?;
            Some(Piece::part(Arc::clone(segment), start, size))
        })
    }

    fn divide_idle(&mut self, size: Size) -> Option<Box<Piece>> {
        let least = size.bytes().next_power_of_two();
        let fits = |segment: &Arc<Segment>| (least..=DIVIDED_MAX).contains(&segment.len());
        let index = self.idle.iter().rposition(fits)?;
        let segment = self.take_idle(index);
        Some(self.divide(segment, size))
    }

    /// Cuts a first piece off a segment that is long enough for it.
    fn divide(&mut self, segment: Arc<Segment>, size: Size) -> Box<Piece> {
        let mut buddy = Buddy::new(segment.len() / GRANULE);
        let start = buddy.take(size.granules).expect("a segment chosen for a piece has room for it");
        let piece = Piece::part(Arc::clone(&segment), start, size);
        self.divided.insert(segment.id(), Divided { segment, buddy });
        piece
    }

    /// The best fit; of equals the one freed last. One more than twice as long is left for a chunk that needs it.
    fn take_whole(&mut self, bytes: usize) -> Option<Box<Piece>> {
        let fitting = bytes..=bytes.saturating_mul(2);
        let candidates = self.idle.iter().enumerate().rev();
        let (index, _) = candidates
            .filter(|(_, segment)| fitting.contains(&segment.len()))
            .min_by_key(|(_, segment)| segment.len())?;
        Some(Piece::whole(self.take_idle(index)))
    }

    fn may_park(&mut self, size: Size) -> bool {
        if self.closed || self.parked[size.class].len() >= PARKED_OF_CLASS {
            return false;
        }
        if self.parked_bytes + size.bytes() > PARKED_BYTES {
            // What lies there longest is of classes that are not used any more.
            self.unpark();
        }
        true
    }

    #[cold]
    fn unpark(&mut self) {
        for class in 0..CLASSES {
            while let Some(piece) = self.parked[class].pop() {
                if let Place::Part { start, size } = piece.place {
                    self.give_part(piece.segment, start, size);
                }
            }
        }
        self.parked_bytes = 0;
    }

    fn give_part(&mut self, segment: Arc<Segment>, start: usize, size: Size) {
        let divided =
            self.divided.get_mut(&segment.id()).expect("a segment stays divided while a part is out");
        divided.buddy.give(start, size.granules);
        if divided.buddy.is_unused() {
            self.divided.remove(&segment.id());
            self.idle(segment);
        }
    }

    fn idle(&mut self, segment: Arc<Segment>) {
        self.idle_bytes += segment.len();
        self.idle.push(segment);
    }

    fn take_idle(&mut self, index: usize) -> Arc<Segment> {
        let segment = self.idle.remove(index);
        self.idle_bytes -= segment.len();
        segment
    }

    /// How many bytes and segments may be idle.
    fn idle_max(&self) -> (usize, usize) {
        if self.closed { (0, 0) } else { (IDLE_BYTES.max(self.peak / 4), IDLE_SEGMENTS) }
    }

    /// Lets go of idle segments, those freed longest ago first, until at most so many bytes and segments are idle.
    fn evict_to(&mut self, bytes: usize, segments: usize) {
        while self.idle_bytes > bytes || self.idle.len() > segments {
            let segment = self.take_idle(0);
            self.allocated -= segment.len();
            self.live.remove(&segment.id());
            self.evicted.push(segment);
        }
    }
}

#[cfg(test)]
impl Pool {
    pub(super) fn assert_invariants(&self) {
        let bytes =
            |segments: &mut dyn Iterator<Item = &Arc<Segment>>| segments.map(|s| s.len()).sum::<usize>();
        assert_eq!(self.idle_bytes, bytes(&mut self.idle.iter()));
        assert!(self.idle.len() <= IDLE_SEGMENTS && self.idle_bytes <= IDLE_BYTES.max(self.peak / 4));
        assert_eq!(self.parked_bytes, self.parked.iter().flatten().map(|piece| piece.bytes()).sum::<usize>());
        assert!(self.parked_bytes <= PARKED_BYTES);
        assert!(self.parked.iter().all(|class| class.len() <= PARKED_OF_CLASS));
        assert!(self.parked.iter().flatten().all(|piece| piece.owner.is_none()) && self.evicted.is_empty());
        assert!(self.divided.values().all(|divided| !divided.buddy.is_unused()));
        let known = self.idle_bytes + bytes(&mut self.divided.values().map(|divided| &divided.segment));
        assert!(known <= self.allocated && self.in_use <= self.allocated - self.idle_bytes);
    }
}
