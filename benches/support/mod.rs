//! The measuring kit: two pinned processes, the machine's own floors, and paired rounds between ours and a floor.
//!
//! - [`placement`]: which CPU each side runs on, and what machine this is.
//! - [`peer`]: the second process, a re-execution of the bench binary.
//! - [`owner`]: the same as the owner of objects.
//! - [`shared`]: plain shared memory for the floors.
//! - [`clock`]: time stamps that cost a few nanoseconds.
//! - [`side`]: one side of a comparison, timed one call at a time or in batches.
//! - [`floor`]: what the machine itself takes for a round trip: cache line, futex, socket.
//! - `notified`: the least that an awaited answer costs.
//! - [`frame`]: 8 MiB, written and read whole.
//! - [`rivals`]: the other ways in which a frame can come from another process.
//! - [`paired`]: many short rounds, both sides in each, and the ratio of every round.
//! - [`report`]: one table for the reader, one JSON line per row for programs.
//! - [`plot`]: ratios as a picture.
//! - [`counters`]: context switches, faults, CPU time and memory of a process, from `/proc`.
//! - [`suite`]: what the command line asks for, and the loop over a bench's rows.
#![allow(dead_code, reason = "each bench binary includes the whole kit and uses a part of it")]

pub mod clock;
pub mod counters;
pub mod floor;
pub mod frame;
#[cfg(feature = "tokio")]
pub mod notified;
pub mod owner;
pub mod paired;
pub mod peer;
pub mod placement;
pub mod plot;
pub mod report;
pub mod rivals;
pub mod shared;
pub mod side;
pub mod suite;
