//! Which memory of an arena is free, and which of its segments could go. No system call is made here.
//!
//! Free memory lies in three places, looked through in this order:
//! - *parked* chunks: taken as they were given, last in first out, for the same class only; this is the warm path;
//! - *divided* segments: a buddy allocator each, the oldest tried first, so that the younger ones empty;
//! - *idle* segments: wholly free ones. What they were before does not matter; they are divided anew, or serve one
//!   large chunk whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::buddy::{Buddy, GRANULE, GRANULES_MAX, Size};
use super::segment::Segment;

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

/// All parked chunks together, in bytes: one divided segment's worth, a bound on what lies in wrong sizes.
const PARKED_BYTES: usize = DIVIDED_MAX;

/// The classes below [`WHOLE`], that of exactly its size included.
const CLASSES: usize = 80;

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

/// A range of a segment that belongs to one chunk.
pub(super) struct Piece {
    pub(super) segment: Arc<Segment>,
    place: Place,
}

enum Place {
    Whole,
    Part { start: usize, size: Size },
}

impl Piece {
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

#[cfg(test)]
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
    parked: [Vec<Piece>; CLASSES],
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
    in_use: usize,
    peak: usize,
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
            closed: false,
        }
    }

    pub(super) fn take(&mut self, need: Need) -> Option<Piece> {
        let piece = match need {
            Need::Part(size) => self.take_parked(size).or_else(|| self.take_part(size)),
            Need::Whole(bytes) => self.take_whole(bytes),
        }?;
        self.in_use += piece.bytes();
        self.peak = self.peak.max(self.in_use);
        Some(piece)
    }

    pub(super) fn give(&mut self, piece: Piece) -> Evicted {
        self.in_use -= piece.bytes();
        match piece.place {
            Place::Part { size, .. } if self.may_park(size) => {
                self.parked_bytes += size.bytes();
                self.parked[size.class].push(piece);
                return Evicted::new();
            }
            Place::Part { start, size } => self.give_part(piece.segment, start, size),
            Place::Whole => self.idle(piece.segment),
        }
        self.evict()
    }

    /// Takes in a segment made for `need`, and takes what was needed.
    pub(super) fn adopt(&mut self, segment: Arc<Segment>, need: Need) -> Piece {
        self.allocated += segment.len();
        self.live.insert(segment.id());
        self.idle(segment);
        self.take(need).expect("an idle segment fits the need that it was made for")
    }

    /// Lets go of all that is idle, and of nothing else.
    pub(super) fn trim(&mut self) -> Evicted {
        self.unpark();
        self.peak = self.in_use;
        self.evict_to(0, 0)
    }

    /// As [`trim`](Pool::trim), for now and for all that comes back later.
    pub(super) fn close(&mut self) -> Evicted {
        self.closed = true;
        self.trim()
    }

    pub(super) fn is_live(&self, id: u32) -> bool {
        self.live.contains(&id)
    }

    /// The length of all divided segments: the next is as long, so that their number grows with the logarithm.
    pub(super) fn divided_bytes(&self) -> usize {
        self.divided.values().map(|divided| divided.segment.len()).sum()
    }

    #[cfg(test)]
    pub(super) fn stats(&self) -> ArenaStats {
        ArenaStats {
            allocated: self.allocated as u64,
            in_use: self.in_use as u64,
            cached: (self.allocated - self.in_use) as u64,
            peak: self.peak as u64,
            segments: self.live.len(),
        }
    }

    #[inline]
    fn take_parked(&mut self, size: Size) -> Option<Piece> {
        let piece = self.parked[size.class].pop()?;
        self.parked_bytes -= size.bytes();
        Some(piece)
    }

    #[cold]
    fn take_part(&mut self, size: Size) -> Option<Piece> {
        if let Some(piece) = self.take_divided(size) {
            return Some(piece);
        }
        // Before another segment is used up, let what is parked grow together.
        self.unpark();
        self.take_divided(size).or_else(|| {
            self.divide_idle(size)?;
            self.take_divided(size)
        })
    }

    fn take_divided(&mut self, size: Size) -> Option<Piece> {
        self.divided.values_mut().find_map(|Divided { segment, buddy }| {
            let start = buddy.take(size.granules)?;
            Some(Piece { segment: Arc::clone(segment), place: Place::Part { start, size } })
        })
    }

    fn divide_idle(&mut self, size: Size) -> Option<()> {
        let least = size.bytes().next_power_of_two();
        let fits = |segment: &Arc<Segment>| (least..=DIVIDED_MAX).contains(&segment.len());
        let index = self.idle.iter().rposition(fits)?;
        let segment = self.take_idle(index);
        let buddy = Buddy::new(segment.len() / GRANULE);
        self.divided.insert(segment.id(), Divided { segment, buddy });
        Some(())
    }

    /// The best fit; of equals the one freed last. One more than twice as long is left for a chunk that needs it.
    fn take_whole(&mut self, bytes: usize) -> Option<Piece> {
        let fitting = bytes..=bytes.saturating_mul(2);
        let candidates = self.idle.iter().enumerate().rev();
        let (index, _) = candidates
            .filter(|(_, segment)| fitting.contains(&segment.len()))
            .min_by_key(|(_, segment)| segment.len())?;
        Some(Piece { segment: self.take_idle(index), place: Place::Whole })
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
            while let Some(Piece { segment, place }) = self.parked[class].pop() {
                if let Place::Part { start, size } = place {
                    self.give_part(segment, start, size);
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

    fn evict(&mut self) -> Evicted {
        if self.closed {
            return self.evict_to(0, 0);
        }
        self.evict_to(IDLE_BYTES.max(self.peak / 4), IDLE_SEGMENTS)
    }

    /// Lets go of idle segments, those freed longest ago first, until at most so many bytes and segments are idle.
    fn evict_to(&mut self, bytes: usize, segments: usize) -> Evicted {
        let mut evicted = Evicted::new();
        while self.idle_bytes > bytes || self.idle.len() > segments {
            let segment = self.take_idle(0);
            self.allocated -= segment.len();
            self.live.remove(&segment.id());
            evicted.push(segment);
        }
        evicted
    }
}

#[cfg(test)]
impl Pool {
    pub(super) fn assert_invariants(&self) {
        let bytes =
            |segments: &mut dyn Iterator<Item = &Arc<Segment>>| segments.map(|s| s.len()).sum::<usize>();
        assert_eq!(self.idle_bytes, bytes(&mut self.idle.iter()));
        assert!(self.idle.len() <= IDLE_SEGMENTS && self.idle_bytes <= IDLE_BYTES.max(self.peak / 4));
        assert_eq!(self.parked_bytes, self.parked.iter().flatten().map(Piece::bytes).sum::<usize>());
        assert!(self.parked_bytes <= PARKED_BYTES);
        assert!(self.parked.iter().all(|class| class.len() <= PARKED_OF_CLASS));
        assert!(self.divided.values().all(|divided| !divided.buddy.is_unused()));
        let known = self.idle_bytes + bytes(&mut self.divided.values().map(|divided| &divided.segment));
        assert!(known <= self.allocated && self.in_use <= self.allocated - self.idle_bytes);
    }
}
