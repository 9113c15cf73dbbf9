//! What an item of a stream costs, as ratios in the same rounds.
//!
//! The owner is this binary again, pinned to the placement's other processor. Rows: small items against an exchange of cache
//! lines; large blobs, each written whole by the owner, against writing as many bytes to plain memory.

mod support;

use std::hint::black_box;

use objbus::futures_core::Stream;
use objbus::{Blob, Bus, stream_of};
use support::floor::{self, Floor, Floors};
use support::frame::fill;
use support::owner::{self, Owner};
use support::peer::Role;
use support::placement::Placement;
use support::side::{Batch, Pace};
use support::suite::Suite;

/// Small items taken between two readings of the clock.
const ITEMS: u32 = 4096;
/// Large ones: many more than may be under way, which the sender has ready when a round begins.
const BLOBS: u32 = 32;
const LARGE: usize = 1 << 20;
/// What a small item may take, in exchanges of cache lines.
const BAR_ITEM: f64 = 0.5;
/// What a large blob may take, in writes of as many bytes.
const BAR_BLOB: f64 = 1.1;

struct Source(Bus);

#[objbus::object]
impl Source {
    /// Small items without an end.
    pub fn numbers(&self) -> impl Stream<Item = u64> + use<> {
        stream_of(0..)
    }

    /// Large ones, every byte of each written.
    pub fn blobs(&self) -> impl Stream<Item = Blob> {
        stream_of((0_u8..=u8::MAX).cycle().map(|seed| {
            let mut blob = self.0.alloc(LARGE).expect("the bus may allocate this much");
            fill(&mut blob, seed);
            blob.freeze()
        }))
    }
}

fn main() {
    match Role::of_this_process() {
        Some(role) if role.name == floor::ROLE => floor::serve(&role),
        Some(role) => {
            return owner::own(&role, |bus, _| {
                bus.publish("source", Source(bus.clone())).expect("the name is free")
            });
        }
        None => {}
    }
    let mut suite = Suite::from_args("stream");
    for placement in Placement::available() {
        let floors = Floors::start(placement);
        let owner = Owner::start(placement, &[]);
        placement.pin_caller();
        let source: SourceProxy = owner.bus().proxy("source").wait().expect("the owner is ready");
        let floor = if placement == Placement::TwoCpus { Floor::Line } else { Floor::TimedFutex };
        let mut numbers = source.numbers().wait().expect("the owner answers");
        let take = |items: u32| {
            for number in numbers.iter().take(items as usize) {
                black_box(number.expect("the owner sends"));
            }
        };
        let sides = (&mut Batch { size: ITEMS, run: take }, &mut floors.side(floor));
        suite.hold("small item", (placement, floor.name()), BAR_ITEM, Pace::HOT, sides);
        drop(numbers);

        let mut blobs = source.blobs().wait().expect("the owner answers");
        let take = |blobs_wanted: u32| {
            for blob in blobs.iter().take(blobs_wanted as usize) {
                drop(black_box(blob.expect("the owner sends")));
            }
        };
        let mut plain = vec![0; LARGE];
        let write = |times: u32| (0..times).for_each(|time| fill(black_box(&mut plain), time as u8));
        let mut take = Batch { size: BLOBS, run: take };
        let mut write = Batch { size: BLOBS, run: write };
        let against = (placement, "plain writes");
        suite.hold("blob of 1 MiB, written", against, BAR_BLOB, Pace::HOT, (&mut take, &mut write));
    }
    suite.finish();
}
