//! The bus's shared memory: what is lent from it, and how it comes back.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Bus, BusInner, own_uid};
use crate::blob::arena::{Arena, WaitError};
use crate::blob::error::AllocError;
use crate::blob::exclusive::BlobMut;
use crate::blob::memory::{Borrower, Copied, Memory};
use crate::blob::segments::{LaneLimits, Segments};
use crate::blob::supply::{Reclaim, User};
use crate::owner::context;
use crate::parcels::{self, Parcels, Side};
use crate::peer::Peer;
use crate::sys::clock;
use crate::sys::fd::Fd;
use crate::sys::memfd::Mapping;

/// Segments that are announced on one lane.
const LANE_LIMITS: LaneLimits = LaneLimits { segments: 4096, bytes: 64 << 30 };

/// The connections of all lanes, for what is lent through them.
#[derive(Default)]
pub(super) struct Connections {
    all: Vec<Weak<Parcels>>,
    /// Somebody waits for memory.
    is_wanted: bool,
}

impl Bus {
    /// Shared memory of `len` bytes for a blob, aligned to at least 64 bytes, of unspecified contents. Memory that came back is
    /// used again, without a system call; if there is none, fresh memory is made, which takes the kernel about a millisecond
    /// per MiB. Waits for nobody.
    ///
    /// It is lent to processes of this user; what goes to another's is copied. In a method that serves other users,
    /// [`CallContext::alloc`](crate::CallContext::alloc) gives memory that can be lent to the caller.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bus = objbus::Bus::in_memory();
    /// let mut picture = bus.alloc(640 * 480)?;
    /// picture.fill(0x80);
    /// let picture: objbus::Blob = picture.freeze();
    /// assert_eq!(picture.len(), 640 * 480);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`AllocError::NoMemory`] when the bus's memory limit or the system leaves no room, [`AllocError::ForkedHandle`] in a
    /// forked child.
    #[inline]
    pub fn alloc(&self, len: usize) -> Result<BlobMut, AllocError> {
        self.alloc_aligned(len, 1)
    }

    /// As [`alloc`](Bus::alloc), aligned to `align` bytes or more, here and wherever it is read in place: a page for `O_DIRECT`
    /// or a graphics card.
    ///
    /// # Errors
    ///
    /// As [`alloc`](Bus::alloc), and [`AllocError::BadAlignment`] unless `align` is a power of two of at most 4096.
    #[inline]
    pub fn alloc_aligned(&self, len: usize, align: usize) -> Result<BlobMut, AllocError> {
        self.0.alloc(&self.0.own_arena, len, align)
    }

    /// As [`alloc`](Bus::alloc), but where the limits leave no room it waits until memory comes back: until a blob is dropped,
    /// here or by the last process that it was lent to. So a camera that may have eight frames asks for the ninth with this, and
    /// needs no list of free ones. Blocks for up to `timeout`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bus = objbus::Bus::in_memory();
    /// let frame = bus.alloc_wait(1 << 20, Duration::from_secs(1))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`AllocError::TimedOut`]; [`AllocError::NoMemory`], at once, for more than could ever be had;
    /// [`AllocError::ForkedHandle`] in a forked child.
    pub fn alloc_wait(&self, len: usize, timeout: Duration) -> Result<BlobMut, AllocError> {
        if self.0.is_foreign() {
            return Err(AllocError::ForkedHandle);
        }
        context::take_back_returned();
        let deadline_ns = clock::now_ns().saturating_add(clock::span_ns(timeout));
        BlobMut::alloc_until(&self.0.own_arena, len, deadline_ns).map_err(|error| match error {
            WaitError::NoMemory => AllocError::NoMemory,
            WaitError::TimedOut => AllocError::TimedOut,
        })
    }

    /// How much shared memory the bus has, for whom and lent to whom, and how much of other processes' is mapped. Empty in a
    /// forked child.
    ///
    /// ```
    /// let bus = objbus::Bus::in_memory();
    /// let memory = bus.memory();
    /// assert_eq!(memory.allocated(), memory.in_use() + memory.cached());
    /// assert!(memory.allocated() <= memory.limit);
    /// ```
    pub fn memory(&self) -> Memory {
        if self.0.is_foreign() {
            // The locks may be held for ever.
            return Memory::default();
        }
        let borrowers = self.0.borrowers();
        let arenas: Vec<_> =
            self.0.arenas.lock().iter().map(|(&uid, arena)| (uid, Arc::clone(arena))).collect();
        let lent = |uid| borrowers.iter().filter(|who| who.uid == uid).map(|who| who.bytes).sum();
        let mut users: Vec<_> = arenas.iter().map(|(uid, arena)| arena.memory(*uid, lent(*uid))).collect();
        users.sort_by_key(|user| user.uid);
        let copied = Copied {
            count: self.0.copied.blobs.load(Ordering::Relaxed),
            bytes: self.0.copied.bytes.load(Ordering::Relaxed),
        };
        let (limit, received) = (self.0.supply.limit(), self.0.mappings.mapped_bytes());
        Memory { limit, users, borrowers, copied, received }
    }
}

impl BusInner {
    /// The arena for what is sent to processes of this user.
    pub fn arena_for(&self, uid: u32) -> Arc<Arena> {
        let mut arenas = self.arenas.lock();
        let user = if uid == own_uid() { User::Own } else { User::Other };
        Arc::clone(arenas.entry(uid).or_insert_with(|| Arc::new(Arena::of(Arc::clone(&self.supply), user))))
    }

    /// One end of a lane's connection, over its two memories.
    pub fn parcels(
        &self,
        side: Side,
        socket: Fd,
        peer: &Arc<Peer>,
        [request, response]: [Mapping; 2],
    ) -> Arc<Parcels> {
        let uid = peer.credentials.uid;
        let parcels = Parcels::new(parcels::Parts {
            socket,
            peer: Arc::clone(peer),
            engine: self.engine,
            side,
            request,
            response,
            incoming: Segments::new(LANE_LIMITS, Arc::clone(&self.mappings), peer.holdings.clone()),
            copies: self.copies.applies_to(uid),
            arena: self.arena_for(uid),
            copied: Arc::clone(&self.copied),
        });
        let mut connections = self.connections.lock();
        // Those that are over are swept when the list would grow.
        if connections.all.len() == connections.all.capacity() {
            connections.all.retain(|weak| weak.strong_count() > 0);
        }
        connections.all.push(Arc::downgrade(&parcels));
        if connections.is_wanted {
            parcels.want(true);
        }
        parcels
    }

    /// Memory of one of this bus's arenas, for a blob.
    #[inline]
    pub fn alloc(&self, arena: &Arena, len: usize, align: usize) -> Result<BlobMut, AllocError> {
        if self.is_foreign() {
            return Err(AllocError::ForkedHandle);
        }
        // What the call being served gave back is used first: it is warm.
        context::take_back_returned();
        BlobMut::alloc(arena, len, align)
    }

    /// Memory for a blob that is lent to processes of this user.
    pub fn alloc_for(&self, uid: u32, len: usize) -> Result<BlobMut, AllocError> {
        // In a forked child the arenas' lock may be held for ever.
        if self.is_foreign() {
            Err(AllocError::ForkedHandle)
        } else {
            self.alloc(&self.arena_for(uid), len, 1)
        }
    }

    fn connections(&self) -> Vec<Arc<Parcels>> {
        self.connections.lock().all.iter().filter_map(Weak::upgrade).collect()
    }

    /// To whom something is lent, each process once.
    fn borrowers(&self) -> Vec<Borrower> {
        let mut borrowers = BTreeMap::new();
        for parcels in self.connections() {
            parcels.collect();
            let who = parcels.peer.credentials;
            let (leases, bytes) = parcels.lent();
            if leases != 0 {
                let sums: &mut (u64, u64) = borrowers.entry((who.pid, who.uid)).or_default();
                *sums = (sums.0 + leases, sums.1 + bytes);
            }
        }
        let borrower = |((pid, uid), (leases, bytes))| Borrower { pid, uid, leases, bytes };
        borrowers.into_iter().map(borrower).collect()
    }
}

impl Reclaim for BusInner {
    fn collect(&self) {
        context::take_back_returned();
        self.connections().iter().for_each(|parcels| parcels.collect());
    }

    fn reclaim(&self) {
        self.collect();
        let arenas: Vec<_> = self.arenas.lock().values().cloned().collect();
        arenas.iter().for_each(|arena| arena.trim());
    }

    fn want(&self, is_wanted: bool) {
        let mut connections = self.connections.lock();
        connections.is_wanted = is_wanted;
        let all: Vec<_> = connections.all.iter().filter_map(Weak::upgrade).collect();
        drop(connections);
        // What was given back before the word was seen is found by who waits, who looks for memory after this. Not here: what is
        // found there may wake the user's tasks, and this is called under a lock.
        all.iter().for_each(|parcels| parcels.want(is_wanted));
    }
}
