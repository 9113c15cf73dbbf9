//! An object that keeps and gives blobs, the process that publishes it, and what tests ask of shared memory.
#![allow(dead_code)] // each test binary uses its part

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;

use objbus::{AllocError, Blob, Bus, BusBuilder, CallContext, CopyOnArrival, Memory};
use parking_lot::Mutex;

use super::{Child, Place, say, start, stay};

/// Another user, whom only root can become.
pub const STRANGER: u32 = 12_345;

/// Byte `at` of a pattern.
pub fn byte(seed: u8, at: usize) -> u8 {
    (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ (at >> 16) as u8 ^ seed
}

/// Writes the pattern over all of it.
pub fn fill(bytes: &mut [u8], seed: u8) {
    bytes.iter_mut().enumerate().for_each(|(at, to)| *to = byte(seed, at));
}

/// A blob of the pattern.
pub fn pattern(bus: &Bus, len: usize, seed: u8) -> Blob {
    let mut blob = bus.alloc(len).expect("there is memory");
    fill(&mut blob, seed);
    blob.freeze()
}

/// Whether it is `len` bytes of the pattern.
pub fn is_pattern(bytes: &[u8], len: usize, seed: u8) -> bool {
    bytes.len() == len && bytes.iter().enumerate().all(|(at, is)| *is == byte(seed, at))
}

/// The arena's mappings in a process: where they lie.
pub fn arena_mappings(pid: u32) -> Vec<std::ops::Range<usize>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let range = |line: &str| {
        let (start, rest) = line.split_once('-')?;
        let (end, _) = rest.split_once(' ')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    maps.lines().filter(|line| line.contains("objbus-arena")).filter_map(range).collect()
}

/// Whether a blob is read in shared memory.
pub fn lies_in_arena(blob: &[u8]) -> bool {
    let at = blob.as_ptr() as usize;
    arena_mappings(std::process::id()).iter().any(|range| range.contains(&at))
}

pub struct Shelf {
    bus: Bus,
    kept: Mutex<HashMap<u64, Blob>>,
}

#[objbus::object]
impl Shelf {
    /// Of the memory for this process' own user.
    pub fn make(&self, len: u64, seed: u8) -> Result<Blob, AllocError> {
        let mut blob = self.bus.alloc(len as usize)?;
        fill(&mut blob, seed);
        Ok(blob.freeze())
    }

    /// Of the memory for the caller's user.
    pub fn make_for_caller(&self, len: u64, seed: u8) -> Result<Blob, AllocError> {
        let mut blob = CallContext::current().expect("a call is served").alloc(len as usize)?;
        fill(&mut blob, seed);
        Ok(blob.freeze())
    }

    /// The same with whatever lay there.
    pub fn unfilled_for_caller(&self, len: u64) -> Result<Blob, AllocError> {
        Ok(CallContext::current().expect("a call is served").alloc(len as usize)?.freeze())
    }

    /// Of ordinary memory.
    pub fn wrap(&self, len: u64, seed: u8) -> Blob {
        let mut bytes = vec![0; len as usize];
        fill(&mut bytes, seed);
        bytes.into()
    }

    /// A big result.
    pub fn bytes(&self, len: u64) -> Vec<u8> {
        vec![7; len as usize]
    }

    /// A big argument.
    pub fn count(&self, data: &[u8]) -> u64 {
        data.len() as u64
    }

    pub fn keep(&self, id: u64, blob: Blob) {
        self.kept.lock().insert(id, blob);
    }

    pub fn kept(&self, id: u64) -> Option<Blob> {
        self.kept.lock().get(&id).cloned()
    }

    pub fn forget(&self, id: u64) -> bool {
        self.kept.lock().remove(&id).is_some()
    }

    pub fn holds_pattern(&self, id: u64, len: u64, seed: u8) -> bool {
        self.kept.lock().get(&id).is_some_and(|blob| is_pattern(blob, len as usize, seed))
    }

    pub fn reads_in_place(&self, id: u64) -> bool {
        self.kept.lock().get(&id).is_some_and(|blob| lies_in_arena(blob))
    }

    pub fn bytes_at(&self, id: u64, at: u64, len: u64) -> Vec<u8> {
        self.kept.lock()[&id][at as usize..][..len as usize].to_vec()
    }

    /// Blobs copied instead of lent, their bytes, bytes lent, bytes of others that are mapped.
    pub fn memory(&self) -> (u64, u64, u64, u64) {
        let memory = self.bus.memory();
        (memory.copied.count, memory.copied.bytes, memory.lent(), memory.received)
    }

    /// Writes one that is kept to a file, a pipe or a socket.
    pub fn write_to(&self, id: u64, kind: &str, path: &str) -> io::Result<()> {
        let blob = self.kept.lock().get(&id).cloned().unwrap_or_default();
        match kind {
            "socket" => blob.write_to(UnixStream::connect(path)?),
            _ => blob.write_to(File::options().write(true).open(path)?),
        }
    }

    /// Keeps what it reads from there.
    pub fn read_from(&self, id: u64, kind: &str, path: &str, len: u64) -> io::Result<u64> {
        let mut blob = self.bus.alloc(len as usize).map_err(io::Error::other)?;
        let read = match kind {
            "socket" => blob.read_into(UnixStream::connect(path)?),
            _ => blob.read_into(File::open(path)?),
        }?;
        blob.truncate(read);
        self.kept.lock().insert(id, blob.freeze());
        Ok(read as u64)
    }
}

/// A bus in `directory`, as options say: `memory=4096`, `admit=1`, `copies=always`, ...
pub fn builder<'a>(directory: &str, options: impl IntoIterator<Item = &'a str>) -> BusBuilder {
    let mut builder = Bus::builder().directory(directory).timeout(super::PATIENCE);
    for option in options {
        let (name, value) = option.split_once('=').expect("a name and a value");
        let number = || value.parse::<u64>().expect("a number");
        builder = match name {
            "memory" => builder.memory(number()),
            "memory_per_user" => builder.memory_per_user(number()),
            "lent" => builder.lent(number()),
            "lent_per_user" => builder.lent_per_user(number()),
            "admit" => builder.admit(number() as u32),
            "owner" => builder.owner(number() as u32),
            "copies" if value == "always" => builder.copy_on_arrival(CopyOnArrival::Always),
            "copies" if value == "never" => builder.copy_on_arrival(CopyOnArrival::Never),
            _ => panic!("no option {option}"),
        };
    }
    builder
}

/// The role of an owner: publishes a shelf in a directory, with options of its bus, and drops what it is told to keep no more.
pub fn own_shelf(arguments: &[String]) -> ! {
    let options = arguments[2..].iter().map(String::as_str);
    let bus = builder(&arguments[0], options).open().expect("the bus opens");
    let _published = bus
        .publish(&arguments[1], Shelf { bus: bus.clone(), kept: Mutex::default() })
        .expect("the name is free");
    say("ready");
    stay()
}

/// Starts the role `shelf` under that name and waits until it has published.
pub fn shelf(place: &Place, name: &str, options: &[&str]) -> Child {
    let child = start("shelf", &[&[place.text(), name], options].concat());
    child.expect("ready");
    child
}

/// To whom how much is lent: process, user, leases, bytes.
pub fn borrowers(memory: &Memory) -> Vec<(u32, u32, u64, u64)> {
    memory.borrowers.iter().map(|who| (who.pid, who.uid, who.leases, who.bytes)).collect()
}

pub fn own_uid() -> u32 {
    // SAFETY: it only reads.
    unsafe { libc::geteuid() }
}

/// Becomes the stranger; nothing of the library's may have run by then.
pub fn become_stranger() {
    // SAFETY: no memory is touched; glibc changes the user of all threads.
    assert_eq!(unsafe { libc::setgid(STRANGER) | libc::setuid(STRANGER) }, 0);
}

/// Whether a second user can be had; says so if not.
pub fn has_second_user() -> bool {
    let is_root = own_uid() == 0;
    if !is_root {
        println!("not run: only root can become another user");
    }
    is_root
}
