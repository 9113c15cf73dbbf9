//! The other ways in which a frame can come from another process: each asked for one by a byte, each with a peer of its own that
//! sleeps until it is.
//!
//! Every way is written as well as it can be without becoming another: buffers are used again, texts and bytes are decoded
//! where they lie, no message is copied but by what the way itself is.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use raw_sync::Timeout;
use raw_sync::events::{Event, EventImpl, EventInit, EventState};
use serde::{Deserialize, Serialize};
use shared_memory::{Shmem, ShmemConf};

use super::frame::{self, fill, fold};
use super::peer::{Peer, Role, fd_argument, ready};
use super::placement::Placement;

/// A way that is no bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The bytes themselves through a pipe.
    Pipe,
    /// postcard's bytes over a Unix stream socket.
    Postcard,
    /// Base64 in a JSON message over a Unix stream socket.
    Json,
    /// One mapping of `shared_memory`, handed over by two events of `raw_sync`.
    SharedMemory,
}

impl Way {
    /// Every way.
    pub const ALL: [Way; 4] = [Way::SharedMemory, Way::Pipe, Way::Postcard, Way::Json];

    /// As the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Way::Pipe => "pipe, bare bytes",
            Way::Postcard => "unix socket, postcard",
            Way::Json => "unix socket, base64 JSON",
            Way::SharedMemory => "shared_memory + raw_sync",
        }
    }

    /// The peer's role.
    fn role(self) -> &'static str {
        match self {
            Way::Pipe => "rival-pipe",
            Way::Postcard => "rival-postcard",
            Way::Json => "rival-json",
            Way::SharedMemory => "rival-shared-memory",
        }
    }

    /// The way that a peer with this role serves.
    pub fn of_role(role: &Role) -> Option<Way> {
        Way::ALL.into_iter().find(|way| way.role() == role.name)
    }
}

/// The caller's side of one way.
pub struct Rival {
    // Ended before the link is, on which it waits.
    _peer: Peer,
    link: Link,
}

enum Link {
    Stream(Stream),
    Mapping(Mapping),
}

impl Rival {
    /// Starts the peer at `placement`, and has a frame come once to see that it is whole; the caller pins itself.
    pub fn start(way: Way, placement: Placement) -> Rival {
        let mut rival = match way {
            Way::Pipe => {
                let (asked, to) = std::io::pipe().expect("a pipe");
                let (from, frames) = std::io::pipe().expect("a pipe");
                Rival::by_stream(way, placement, [from.into(), to.into()], [asked.into(), frames.into()])
            }
            Way::Postcard | Way::Json => {
                let (ours, theirs) = UnixStream::pair().expect("a pair of connected sockets");
                let twice =
                    |end: UnixStream| [end.try_clone().expect("a descriptor is free").into(), end.into()];
                Rival::by_stream(way, placement, twice(ours), twice(theirs))
            }
            Way::SharedMemory => {
                let mapping = Mapping::create();
                let peer = Peer::start(placement, way.role(), &[mapping.memory.get_os_id().to_owned()], &[]);
                Rival { _peer: peer, link: Link::Mapping(mapping) }
            }
        };
        assert_eq!(
            rival.fetch(7),
            frame::folded(frame::LEN, 7),
            "{}: not the frame that was written",
            way.name()
        );
        rival
    }

    fn by_stream(way: Way, placement: Placement, ours: [OwnedFd; 2], theirs: [OwnedFd; 2]) -> Rival {
        let peer =
            Peer::start(placement, way.role(), &theirs.each_ref().map(fd_argument), &theirs.each_ref());
        Rival { _peer: peer, link: Link::Stream(Stream::new(way, ours)) }
    }

    /// Has the peer write a frame, reads every byte of it, and gives their sum.
    pub fn fetch(&mut self, seed: u8) -> u64 {
        match &mut self.link {
            Link::Stream(stream) => stream.fetch(seed),
            Link::Mapping(mapping) => mapping.fetch(seed),
        }
    }
}

/// The peer's whole life: one frame after the other, until the parent ends it.
pub fn serve(way: Way, role: &Role) -> ! {
    match way {
        Way::SharedMemory => Mapping::open(&role.arguments[0]).serve(),
        Way::Pipe | Way::Postcard | Way::Json => {
            // SAFETY: `by_stream` lends these two, in this order, and they are taken here only.
            let ends = unsafe { [role.take_fd(0), role.take_fd(1)] };
            Stream::new(way, ends).serve()
        }
    }
}

/// One side of a way that moves bytes. A message is its length and its body.
struct Stream {
    way: Way,
    from: File,
    to: File,
    /// A message's body.
    body: Vec<u8>,
    /// A frame: where it is written, or what was decoded.
    pixels: Vec<u8>,
    /// A frame as text.
    text: String,
}

/// The message with a frame, in a serde format that knows bytes.
#[derive(Serialize)]
struct Binary<'a> {
    id: u32,
    #[serde(serialize_with = "as_bytes")]
    pixels: &'a [u8],
}

/// What is read of it: borrowed from the message.
#[derive(Deserialize)]
struct BinaryRead<'a> {
    #[serde(rename = "id")]
    _id: u32,
    pixels: &'a [u8],
}

/// The message with a frame in JSON.
#[derive(Serialize, Deserialize)]
struct Textual<'a> {
    id: u32,
    pixels: &'a str,
}

fn as_bytes<S: serde::Serializer>(pixels: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(pixels)
}

impl Stream {
    fn new(way: Way, [from, to]: [OwnedFd; 2]) -> Stream {
        let (from, to) = (from.into(), to.into());
        Stream { way, from, to, body: Vec::new(), pixels: vec![0; frame::LEN], text: String::new() }
    }

    fn fetch(&mut self, seed: u8) -> u64 {
        self.to.write_all(&[seed]).expect("the peer lives");
        let mut length = [0; size_of::<u64>()];
        self.from.read_exact(&mut length).expect("the peer lives");
        self.body.resize(u64::from_ne_bytes(length) as usize, 0);
        self.from.read_exact(&mut self.body).expect("the peer lives");
        match self.way {
            Way::Postcard => {
                let message: BinaryRead = postcard::from_bytes(&self.body).expect("postcard's bytes");
                fold(message.pixels)
            }
            Way::Json => {
                let message: Textual = serde_json::from_slice(&self.body).expect("JSON");
                self.pixels.clear();
                STANDARD.decode_vec(message.pixels, &mut self.pixels).expect("base64");
                fold(&self.pixels)
            }
            _ => fold(&self.body),
        }
    }

    fn serve(mut self) -> ! {
        ready();
        let mut seed = [0];
        loop {
            self.from.read_exact(&mut seed).expect("the caller ends this process before its descriptors");
            fill(&mut self.pixels, seed[0]);
            self.encode();
            let body = if self.way == Way::Pipe { &self.pixels } else { &self.body };
            self.to.write_all(&(body.len() as u64).to_ne_bytes()).expect("the caller lives");
            self.to.write_all(body).expect("the caller lives");
        }
    }

    /// Makes the body from the pixels, if they are not it.
    fn encode(&mut self) {
        let Stream { way, body, pixels, text, .. } = self;
        body.clear();
        match way {
            Way::Postcard => {
                let reused = std::mem::take(body);
                let message = Binary { id: 1, pixels };
                *body = postcard::to_extend(&message, reused).expect("memory is all it takes");
            }
            Way::Json => {
                text.clear();
                STANDARD.encode_string(pixels, text);
                let message = Textual { id: 1, pixels: text };
                serde_json::to_writer(body, &message).expect("memory is all it takes");
            }
            _ => {}
        }
    }
}

/// Where the second event and the frame lie in the mapping; each event takes less than this.
const EVENT_SPACE: usize = 2048;

/// One side of a frame in `shared_memory`, with a `raw_sync` event for each direction.
struct Mapping {
    // Before the memory that they lie in.
    asked: Box<dyn EventImpl>,
    answered: Box<dyn EventImpl>,
    memory: Shmem,
}

impl Mapping {
    fn create() -> Mapping {
        let memory = ShmemConf::new().size(2 * EVENT_SPACE + frame::LEN).create().expect("shared memory");
        // SAFETY: both places lie in the new mapping, apart from each other, and nobody else knows it yet.
        let (asked, answered) = unsafe {
            let at = memory.as_ptr();
            (Event::new(at, true), Event::new(at.add(EVENT_SPACE), true))
        };
        let (asked, answered) = (asked.expect("an event"), answered.expect("an event"));
        assert!(asked.1.max(answered.1) <= EVENT_SPACE, "an event takes more than it was given");
        Mapping { asked: asked.0, answered: answered.0, memory }
    }

    fn open(id: &str) -> Mapping {
        let memory = ShmemConf::new().os_id(id).open().expect("the parent's shared memory");
        // SAFETY: the parent has made both events before it started this process.
        let (asked, answered) = unsafe {
            let at = memory.as_ptr();
            (Event::from_existing(at), Event::from_existing(at.add(EVENT_SPACE)))
        };
        Mapping { asked: asked.expect("an event").0, answered: answered.expect("an event").0, memory }
    }

    /// The frame's bytes, with the seed in the first when a frame is asked for.
    ///
    /// # Safety
    ///
    /// It is this side's turn.
    unsafe fn frame(&mut self) -> &mut [u8] {
        // SAFETY: the range lies in the mapping, and the other side does not use it now, as the caller vouches.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().add(2 * EVENT_SPACE), frame::LEN) }
    }

    fn fetch(&mut self, seed: u8) -> u64 {
        // SAFETY: the peer waits until it is asked.
        unsafe { self.frame()[0] = seed };
        self.asked.set(EventState::Signaled).expect("the mapping lives");
        self.answered.wait(Timeout::Infinite).expect("the mapping lives");
        // SAFETY: the peer has answered, and waits until it is asked again.
        fold(unsafe { self.frame() })
    }

    fn serve(mut self) -> ! {
        ready();
        loop {
            self.asked.wait(Timeout::Infinite).expect("the mapping lives");
            // SAFETY: the caller has asked, and waits until it is answered.
            let frame = unsafe { self.frame() };
            let seed = black_box(frame[0]);
            fill(frame, seed);
            self.answered.set(EventState::Signaled).expect("the mapping lives");
        }
    }
}
