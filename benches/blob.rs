//! What it costs to have large bytes from another process, as ratios in the same rounds.
//!
//! The owner is this binary again, pinned to the placement's other processor, with an object for each length of a blob. Rows:
//! a call that lends a blob that is there already, against the same call with nothing; frames of 8 MiB, written whole by one
//! process and read whole by the other, against a bare mapping and against the other ways in which they could travel; what many
//! screenshots in a row leave behind; and what allocating costs.

mod support;

use std::hint::black_box;
use std::time::Duration;

use objbus::{Blob, Bus, Published};
use support::counters::{Counters, Resident, available, page_size};
use support::floor::{self, Floor, Floors, Load};
use support::frame::{self, fill, fold, folded};
use support::owner::{self, Owner};
use support::peer::Role;
use support::placement::Placement;
use support::report::verdict;
use support::rivals::{self, Rival, Way};
use support::side::{Batch, Each, Pace};
use support::suite::Suite;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
/// The blobs that are lent as they are. A run that is no measurement stops at a frame's length.
const EXISTING: [usize; 6] = [4 * KIB, 64 * KIB, MIB, frame::LEN, 64 * MIB, GIB];
/// What is allocated and dropped.
const ALLOCATED: [usize; 6] = [300, 4 * KIB, 64 * KIB, SCREENSHOT, MIB, frame::LEN];
/// The length of a screenshot.
const SCREENSHOT: usize = 300 * KIB;
/// How many are taken in a row, and how many of them may still find cold memory.
const SCREENSHOTS: usize = 10_000;
const COLD_SCREENSHOTS: usize = 100;
/// Allocations of a batch: one takes no longer than reading the clock twice.
const BATCH: u32 = 64;
/// Frames one after the other: milliseconds each.
const FRAMES: Pace = Pace { time: Duration::from_millis(20), at_least: 4, gap: None };
const ANSWERS: &str = "the owner answers";
const ENOUGH: &str = "the bus may allocate this much";

/// What a call that lends may take, in calls that do not.
const BAR_EXISTING: f64 = 1.3;
/// What a frame by blob may take, in frames over a bare mapping.
const BAR_FRAME: f64 = 1.15;
/// What allocating and dropping may take, in `malloc` and `free`.
const BAR_ALLOC: f64 = 1.5;
/// How many of the pages touched may be page faults.
const BAR_FAULTS: f64 = 0.01;

/// Lends blobs of one length.
struct Lender {
    bus: Bus,
    blob: Blob,
}

#[objbus::object]
impl Lender {
    /// Nothing.
    pub fn unit(&self) {}

    /// A blob that is there already.
    pub fn existing(&self) -> Blob {
        self.blob.clone()
    }

    /// A new blob, every byte of it written.
    pub fn produce(&self, seed: u8) -> Blob {
        let mut blob = self.bus.alloc(self.blob.len()).expect(ENOUGH);
        fill(&mut blob, seed);
        blob.freeze()
    }

    /// Reads every byte.
    pub fn consume(&self, blob: Blob) -> u64 {
        fold(&blob)
    }
}

fn main() {
    if let Some(role) = Role::of_this_process() {
        return match Way::of_role(&role) {
            Some(way) => rivals::serve(way, &role),
            None if role.name == floor::ROLE => floor::serve(&role),
            None => owner::own(&role, publish),
        };
    }
    let mut suite = Suite::from_args("blob");
    for placement in Placement::available() {
        let lent = lent(&suite, placement);
        let floors = Floors::start(placement);
        let lengths = lent.iter().chain([&SCREENSHOT]).map(usize::to_string).collect::<Vec<_>>();
        let owner = Owner::start(placement, &lengths);
        placement.pin_caller();
        let bus = owner.bus();
        lent.iter().for_each(|len| existing_row(&mut suite, placement, &bus, *len));
        frame_rows(&mut suite, placement, &floors, &bus);
        if placement == Placement::available()[0] {
            rival_rows(&mut suite, placement, &floors, &bus);
            note_screenshots(&suite, &owner, &bus);
            alloc_rows(&mut suite, placement, &bus);
        }
    }
    suite.finish();
}

/// The lengths of blobs that are lent in this run: those for which there is memory several times over.
fn lent(suite: &Suite, placement: Placement) -> Vec<usize> {
    let most = if suite.is_measuring("existing blob") { usize::MAX } else { frame::LEN };
    let mut lent: Vec<usize> = EXISTING.into_iter().filter(|len| *len <= most).collect();
    while let Some(longest) = lent.pop_if(|longest| (available() as usize) < 3 * *longest / KIB) {
        suite.note(&format!("existing blob, {}, {placement}: skipped, memory is short", size(longest)));
    }
    lent
}

/// The owner: an object for each length in `lengths` of which the bus may have a blob.
fn publish(bus: &Bus, lengths: &[String]) -> Vec<Published> {
    let lender = |length: &String| {
        let mut blob = bus.alloc(length.parse().expect("a length")).ok()?;
        fill(&mut blob, 0);
        let lender = Lender { bus: bus.clone(), blob: blob.freeze() };
        Some(bus.publish(&name(length), lender).expect("the name is free"))
    };
    lengths.iter().filter_map(lender).collect()
}

fn name(length: impl std::fmt::Display) -> String {
    format!("lender-{length}")
}

fn connect(bus: &Bus, length: usize) -> LenderProxy {
    bus.proxy(&name(length)).wait().expect("the bus may have a blob of this length")
}

/// A length for the reader.
fn size(len: usize) -> String {
    match len {
        0..KIB => format!("{len} B"),
        KIB..MIB => format!("{} KiB", len / KIB),
        MIB..GIB => format!("{} MiB", len / MIB),
        _ => format!("{} GiB", len / GIB),
    }
}

/// A blob that is there already, given back at once. The next call takes the lease with it.
fn existing_row(suite: &mut Suite, placement: Placement, bus: &Bus, len: usize) {
    let row = format!("existing blob, {}", size(len));
    let Ok(lender) = bus.proxy::<LenderProxy>(&name(len)).wait() else {
        return suite.note(&format!("{row}, {placement}: skipped, the bus may not have that much"));
    };
    let existing = || drop(black_box(lender.existing().wait().expect(ANSWERS)));
    let unit = || lender.unit().wait().expect(ANSWERS);
    let sides = (&mut Each(existing), &mut Each(unit));
    suite.hold(&row, (placement, "the same call, ()"), BAR_EXISTING, Pace::HOT, sides);
}

/// Has the owner write a frame and reads it, or the other way round.
fn hand_over(bus: &Bus, lender: &LenderProxy, load: Load, seed: u8) -> u64 {
    match load {
        Load::ToPeer => {
            let mut blob = bus.alloc(frame::LEN).expect(ENOUGH);
            fill(&mut blob, seed);
            lender.consume(blob.freeze()).wait().expect(ANSWERS)
        }
        Load::FromPeer | Load::Nothing => fold(&lender.produce(seed).wait().expect(ANSWERS)),
    }
}

/// `work` as a side, with another seed each time.
fn seeded(mut work: impl FnMut(u8) -> u64) -> Each<impl FnMut()> {
    let mut seed = 0_u8;
    Each(move || {
        seed = seed.wrapping_add(1);
        black_box(work(black_box(seed)));
    })
}

/// Frames by blob, against frames over one mapping that two bare processes have.
fn frame_rows(suite: &mut Suite, placement: Placement, floors: &Floors, bus: &Bus) {
    let lender = connect(bus, frame::LEN);
    for (row, load) in [("8 MiB from the owner", Load::FromPeer), ("8 MiB to the owner", Load::ToPeer)] {
        let work = |seed| hand_over(bus, &lender, load, seed);
        assert_eq!(work(7), folded(frame::LEN, 7), "not the frame that was written");
        for (floor, name) in mappings(placement) {
            let sides = (&mut seeded(work), &mut floors.frame_side(*floor, load));
            suite.hold(row, (placement, name), BAR_FRAME, FRAMES, sides);
        }
        suite.record(row, placement, &mut seeded(work));
    }
}

/// How a bare mapping can be handed over at `placement`.
fn mappings(placement: Placement) -> &'static [(Floor, &'static str)] {
    match placement {
        Placement::TwoCpus => &[(Floor::Line, "mapping, spinning"), (Floor::TimedFutex, "mapping, futex")],
        Placement::OneCpu => &[(Floor::TimedFutex, "mapping, futex")],
    }
}

/// The other ways in which a frame could come: how much longer each takes than by blob.
fn rival_rows(suite: &mut Suite, placement: Placement, floors: &Floors, bus: &Bus) {
    let lender = connect(bus, frame::LEN);
    let ours = |seed| hand_over(bus, &lender, Load::FromPeer, seed);
    let at = (placement, "8 MiB from the owner");
    let mut bars = Vec::new();
    for (floor, name) in mappings(placement) {
        let row = format!("8 MiB by {name}");
        let sides = (&mut floors.frame_side(*floor, Load::FromPeer), &mut seeded(ours));
        bars.push((name.to_string(), suite.row(&row, at, None, FRAMES, sides)));
    }
    for way in Way::ALL {
        let row = format!("8 MiB by {}", way.name());
        let mut rival = Rival::start(way, placement);
        let mut theirs = seeded(|seed| rival.fetch(seed));
        bars.push((
            way.name().to_owned(),
            suite.row(&row, at, None, FRAMES, (&mut theirs, &mut seeded(ours))),
        ));
        suite.record(&row, placement, &mut theirs);
    }
    let measured = bars.into_iter().filter_map(|(name, ratio)| Some((name, ratio?)));
    suite.plot("8 MiB from another process: times as long as by blob", &measured.collect::<Vec<_>>());
}

/// What a screenshot after the other leaves behind, and how many pages they have to be given anew.
fn note_screenshots(suite: &Suite, owner: &Owner, bus: &Bus) {
    if !suite.is_measuring("screenshots") {
        return;
    }
    let lender = connect(bus, SCREENSHOT);
    let pids = [std::process::id(), owner.pid()];
    let take = |count| {
        (0..count).for_each(|seed| _ = black_box(fold(&lender.produce(seed as u8).wait().expect(ANSWERS))))
    };
    let look = || {
        (Resident::of(&pids).expect("both live"), pids.map(|pid| Counters::of(pid).expect("it lives").faults))
    };
    // What looking itself takes is taken by then.
    look();
    take(COLD_SCREENSHOTS);
    let (cold, cold_faults) = look();
    take(SCREENSHOTS - COLD_SCREENSHOTS);
    let (warm, warm_faults) = look();
    let grown = |late: u64, early: u64| late as i64 - early as i64;
    let (mapped, memfds) = (grown(warm.mapped, cold.mapped), grown(warm.memfds, cold.memfds));
    let is_flat = mapped.max(memfds) < (SCREENSHOT / KIB) as i64;
    suite.note(&format!(
        "{SCREENSHOTS} screenshots of {}: {} KiB mapped by both and {} KiB of memfds after {COLD_SCREENSHOTS}",
        size(SCREENSHOT),
        cold.mapped,
        cold.memfds
    ));
    suite.note(&format!(
        "growth from then on: {mapped:+} KiB mapped, {memfds:+} KiB of memfds  bar: less than one screenshot {}",
        verdict(is_flat)
    ));
    let faults: u64 = warm_faults.iter().sum::<u64>() - cold_faults.iter().sum::<u64>();
    let touched = (SCREENSHOTS - COLD_SCREENSHOTS) * SCREENSHOT.div_ceil(page_size()) * pids.len();
    let part = faults as f64 / touched as f64;
    suite.note(&format!(
        "page faults from then on: {faults}, {:.3} % of {touched} pages touched by both  bar {} % {}",
        part * 100.0,
        BAR_FAULTS * 100.0,
        verdict(part < BAR_FAULTS)
    ));
}

/// Memory to lend, against memory of one's own; neither is touched.
fn alloc_rows(suite: &mut Suite, placement: Placement, bus: &Bus) {
    for len in ALLOCATED {
        let alloc = || drop(black_box(bus.alloc(black_box(len)).expect(ENOUGH)));
        let malloc = || {
            // SAFETY: `free` gets what `malloc` gave, which is never looked into.
            unsafe { libc::free(black_box(libc::malloc(black_box(len)))) }
        };
        let mut ours = Batch { size: BATCH, run: |count| (0..count).for_each(|_| alloc()) };
        let mut theirs = Batch { size: BATCH, run: |count| (0..count).for_each(|_| malloc()) };
        let row = format!("alloc + drop, {}", size(len));
        suite.hold(&row, (placement, "malloc + free"), BAR_ALLOC, Pace::HOT, (&mut ours, &mut theirs));
    }
}
