//! The floors: what a round trip between two processes costs on this machine when nothing at all is done in it.
//!
//! One peer answers every kind of floor. It sleeps between its turns, so it may live on while another side is measured:
//!
//! 1. the caller writes the kind and zeroes both numbers, raises `turn` and wakes the peer;
//! 2. the peer echoes each number it finds in `asked` into `answered` (or over the socket), in the way of that kind, and with a
//!    [`Load`] writes or reads a whole frame before;
//! 3. the caller writes [`END`] as the last number; the peer raises `done` to `turn` and sleeps on `turn` again.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use rustix::fs::Timespec;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::thread::futex;

use super::frame::Frame;
use super::peer::{Peer, Role, fd_argument, ready};
use super::placement::Placement;
use super::shared::{Plain, Shared};
use super::side::{Pace, Side, sample, time};

/// The peer's role, as [`Role::name`] reports it.
pub const ROLE: &str = "floor";
/// The number that ends a turn; a round is far shorter than four thousand million calls.
const END: u32 = u32::MAX;
/// The time-out of a timed wait. It never elapses; what costs is arming it.
const TIMEOUT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// A way of exchanging a number and an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Floor {
    /// One cache line each way, both sides spinning in the tightest loop.
    Line = 1,
    /// The same with a `pause` in both loops: 0.75 to 0.98 of the time, as the host has it. Say which of the two a ratio is to.
    LinePause,
    /// Both sides sleep on a futex; the caller's wait has no time-out.
    Futex,
    /// The same, the caller's wait having a time-out of 5 s, as every call of a bus must.
    TimedFutex,
    /// Sixteen bytes over a Unix SOCK_SEQPACKET pair and eight bytes back.
    Socket,
}

impl Floor {
    /// Every floor.
    pub const ALL: [Floor; 5] =
        [Floor::Line, Floor::LinePause, Floor::Futex, Floor::TimedFutex, Floor::Socket];

    /// As the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Floor::Line => "cache line",
            Floor::LinePause => "cache line, pause",
            Floor::Futex => "futex",
            Floor::TimedFutex => "futex, 5 s time-out",
            Floor::Socket => "unix socket",
        }
    }

    /// Whether it spins: two spinners on one CPU would measure the scheduler's time slice.
    pub fn spins(self) -> bool {
        matches!(self, Floor::Line | Floor::LinePause)
    }

    fn from_word(word: u32) -> Floor {
        let known = Floor::ALL.into_iter().find(|floor| *floor as u32 == word);
        known.expect("caller and peer are the same binary")
    }
}

/// What goes with each number: nothing, or a frame over one mapping that both processes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Load {
    /// The number alone.
    Nothing,
    /// The peer writes every byte before it answers; the caller reads every byte after.
    FromPeer,
    /// The caller writes every byte before it asks; the peer reads every byte before it answers.
    ToPeer,
}

impl Load {
    fn from_word(word: u32) -> Load {
        let known =
            [Load::Nothing, Load::FromPeer, Load::ToPeer].into_iter().find(|load| *load as u32 == word);
        known.expect("caller and peer are the same binary")
    }
}

/// What both sides share. Each word has one writer and a line of its own.
#[repr(C)]
pub struct Page {
    /// Raised by the caller for each turn; the peer sleeps on it.
    turn: CachePadded<AtomicU32>,
    /// The kind of this turn, a [`Floor`]; written by the caller before `turn`.
    kind: CachePadded<AtomicU32>,
    /// What goes with the numbers of this turn, a [`Load`]; written by the caller before `turn`.
    load: CachePadded<AtomicU32>,
    /// The last turn that has ended; written by the peer; the caller sleeps on it.
    done: CachePadded<AtomicU32>,
    /// The number asked, from 1; written by the caller.
    asked: CachePadded<AtomicU32>,
    /// The number answered; written by the peer during a turn, zeroed by the caller before it.
    answered: CachePadded<AtomicU32>,
}

// SAFETY: six atomics, all of them zero in fresh memory.
unsafe impl Plain for Page {}

/// The caller's handle of the floors' peer.
pub struct Floors {
    placement: Placement,
    page: Shared<Page>,
    frame: Shared<Frame>,
    socket: OwnedFd,
    peer: Peer,
}

impl Floors {
    /// Starts the peer at `placement`; the caller pins itself.
    pub fn start(placement: Placement) -> Floors {
        let (page, frame) = (Shared::<Page>::new(), Shared::<Frame>::new());
        let kind = SocketType::SEQPACKET;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .expect("a pair of connected sockets");
        let lent = [page.fd(), frame.fd(), &theirs];
        let peer = Peer::start(placement, ROLE, &lent.map(fd_argument), &lent);
        Floors { placement, page, frame, socket, peer }
    }

    /// The side that measures `floor`.
    pub fn side(&self, floor: Floor) -> FloorSide<'_> {
        let sensible = self.placement == Placement::TwoCpus || !floor.spins();
        assert!(sensible, "two spinning processes on one CPU measure the scheduler, not the machine");
        FloorSide { floors: self, floor, load: Load::Nothing }
    }

    /// The side that hands a frame over between two bare processes in the way of `floor`.
    pub fn frame_side(&self, floor: Floor, load: Load) -> FloorSide<'_> {
        FloorSide { load, ..self.side(floor) }
    }

    /// The peer's process id.
    pub fn peer_pid(&self) -> u32 {
        self.peer.pid()
    }

    /// One turn of the peer around `work`.
    fn turn<T>(&self, floor: Floor, load: Load, work: impl FnOnce() -> T) -> T {
        let page = &*self.page;
        page.kind.store(floor as u32, Relaxed);
        page.load.store(load as u32, Relaxed);
        page.asked.store(0, Relaxed);
        page.answered.store(0, Relaxed);
        let turn = page.turn.load(Relaxed).wrapping_add(1);
        page.turn.store(turn, Release);
        wake(&page.turn);
        let result = work();
        page.asked.store(END, Release);
        match floor {
            Floor::Line | Floor::LinePause => {}
            Floor::Futex | Floor::TimedFutex => wake(&page.asked),
            Floor::Socket => send_message(&self.socket, &END.to_ne_bytes()),
        }
        await_word(&page.done, turn, None);
        result
    }

    /// Hands one call in the way of `floor` to `work`; a closure type each, so that its loop is compiled for it.
    fn with_call<T>(&self, floor: Floor, load: Load, work: impl Work<T>) -> T {
        let page = &*self.page;
        match floor {
            Floor::Line => self.with_load(load, work, |number| ask_line(page, number, || {})),
            Floor::LinePause => {
                self.with_load(load, work, |number| ask_line(page, number, std::hint::spin_loop))
            }
            Floor::Futex => self.with_load(load, work, |number| ask_futex(page, number, None)),
            Floor::TimedFutex => self.with_load(load, work, |number| ask_futex(page, number, Some(&TIMEOUT))),
            Floor::Socket => self.with_load(load, work, |_| {
                send_message(&self.socket, &[1; 16]);
                receive_message(&self.socket);
            }),
        }
    }

    /// The same, with what goes with `ask`.
    fn with_load<T>(&self, load: Load, work: impl Work<T>, ask: impl Fn(u32)) -> T {
        let mut number = 0;
        let mut next = || {
            number += 1;
            number
        };
        match load {
            Load::Nothing => work.run(|| ask(next())),
            Load::FromPeer => work.run(|| {
                ask(next());
                // SAFETY: the peer has answered, and touches the frame again when it is asked again.
                black_box(unsafe { self.frame.fold() });
            }),
            Load::ToPeer => work.run(|| {
                let number = next();
                // SAFETY: as above.
                unsafe { self.frame.fill(number as u8) };
                ask(number);
            }),
        }
    }
}

/// One floor as a side of a comparison.
pub struct FloorSide<'a> {
    floors: &'a Floors,
    floor: Floor,
    load: Load,
}

impl Side for FloorSide<'_> {
    fn round(&mut self, pace: Pace, samples: &mut Vec<f64>) {
        let FloorSide { floors, floor, load } = *self;
        floors.turn(floor, load, || floors.with_call(floor, load, Round(pace, samples)));
    }

    fn time(&mut self, calls: u64) -> Duration {
        let FloorSide { floors, floor, load } = *self;
        floors.turn(floor, load, || floors.with_call(floor, load, Time(calls)))
    }
}

/// What is done with a call: a closure that is generic over the call's own closure.
trait Work<T> {
    fn run(self, call: impl FnMut()) -> T;
}

/// Samples one round.
struct Round<'a>(Pace, &'a mut Vec<f64>);

impl Work<()> for Round<'_> {
    fn run(self, call: impl FnMut()) {
        sample(self.0, self.1, 1, call);
    }
}

/// Times so many calls.
struct Time(u64);

impl Work<Duration> for Time {
    fn run(self, call: impl FnMut()) -> Duration {
        time(self.0, call)
    }
}

/// The peer's whole life: one turn after the other, asleep in between, until the parent ends it.
pub fn serve(role: &Role) -> ! {
    // SAFETY: `Floors::start` lends these three, in this order, and they are taken here only.
    let (page, frame, socket) = unsafe {
        (Shared::<Page>::map(role.take_fd(0)), Shared::<Frame>::map(role.take_fd(1)), role.take_fd(2))
    };
    ready();
    let mut turn = 0;
    loop {
        turn += 1;
        await_word(&page.turn, turn, None);
        let floor = Floor::from_word(page.kind.load(Relaxed));
        match Load::from_word(page.load.load(Relaxed)) {
            Load::Nothing => answer(floor, &page, &socket, |_| {}),
            // SAFETY: the caller has asked, and touches the frame again when it is answered.
            Load::FromPeer => answer(floor, &page, &socket, |number| unsafe { frame.fill(number as u8) }),
            // SAFETY: as above.
            Load::ToPeer => answer(floor, &page, &socket, |_| _ = black_box(unsafe { frame.fold() })),
        }
        page.done.store(turn, Release);
        wake(&page.done);
    }
}

/// Answers one turn, doing `work` before each answer.
fn answer(floor: Floor, page: &Page, socket: &OwnedFd, work: impl Fn(u32)) {
    match floor {
        Floor::Line => answer_line(page, work, || {}),
        Floor::LinePause => answer_line(page, work, std::hint::spin_loop),
        Floor::Futex | Floor::TimedFutex => answer_futex(page, work),
        Floor::Socket => answer_socket(socket, work),
    }
}

#[inline(always)]
fn ask_line(page: &Page, number: u32, relax: impl Fn()) {
    page.asked.store(number, Release);
    while page.answered.load(Acquire) != number {
        relax();
    }
}

fn answer_line(page: &Page, work: impl Fn(u32), relax: impl Fn()) {
    let mut number = 1;
    loop {
        match page.asked.load(Acquire) {
            END => return,
            asked if asked == number => {
                work(number);
                page.answered.store(number, Release);
                number += 1;
            }
            _ => relax(),
        }
    }
}

#[inline(always)]
fn ask_futex(page: &Page, number: u32, timeout: Option<&Timespec>) {
    page.asked.store(number, Release);
    wake(&page.asked);
    await_word(&page.answered, number, timeout);
}

fn answer_futex(page: &Page, work: impl Fn(u32)) {
    let mut last = 0;
    loop {
        let asked = page.asked.load(Acquire);
        match asked {
            END => return,
            // Interrupted, or woken for an earlier number: every return from a wait means "look again".
            _ if asked == last => drop(futex::wait(&page.asked, futex::Flags::empty(), last, None)),
            _ => {
                work(asked);
                page.answered.store(asked, Release);
                wake(&page.answered);
                last = asked;
            }
        }
    }
}

fn answer_socket(socket: &OwnedFd, work: impl Fn(u32)) {
    let mut number = 0;
    while receive_message(socket) != size_of_val(&END) {
        number += 1;
        work(number);
        send_message(socket, &[1; 8]);
    }
}

/// Sleeps until `word` holds `wanted`.
#[inline(always)]
fn await_word(word: &AtomicU32, wanted: u32, timeout: Option<&Timespec>) {
    loop {
        let seen = word.load(Acquire);
        if seen == wanted {
            return;
        }
        let _ = futex::wait(word, futex::Flags::empty(), seen, timeout);
    }
}

#[inline(always)]
fn wake(word: &AtomicU32) {
    let _ = futex::wake(word, futex::Flags::empty(), 1);
}

fn send_message(socket: &OwnedFd, bytes: &[u8]) {
    let sent = send(socket, bytes, SendFlags::NOSIGNAL).expect("the other side lives");
    assert_eq!(sent, bytes.len(), "a SEQPACKET message goes whole");
}

/// Receives one message and gives its length.
fn receive_message(socket: &OwnedFd) -> usize {
    let mut bytes = [0_u8; 32];
    recv(socket, &mut bytes, RecvFlags::empty()).expect("the other side lives").1
}
