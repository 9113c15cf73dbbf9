//! The bus as a process sees it: where names live, and the limits and defaults of everything done through it.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::blob::arena::{Arena, MemoryLimit};
use crate::blob::segments::Mappings;
use crate::blob::supply::{Reclaim, Supply, SupplyLimits, User};
use crate::engine::{Engine, engine};
use crate::error::{OpenError, PublishError};
use crate::names::{Address, Directory, Name};
use crate::object::{Object, Proxy};
use crate::owner::hosted::Limits;
use crate::owner::listener::Listener;
use crate::parcels::Copied;
use crate::proxy::{Connect, Link};
use crate::publish::{Instance, Publication, Published};
use crate::ring::layout::{CLOSING, REPLACED};
use crate::sys::socket::OVERFLOW_UID;
use crate::sys::{self, cpu};
use crate::wire::budget::Budget;

mod connect;
mod memory;
mod registry;
mod waiting;

pub(crate) use connect::system;
pub(crate) use waiting::NameWait;

use registry::Registry;
use waiting::Waiting;

/// How long a call may take unless its proxy or the call itself says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Segments of other processes that a bus knows at once, once for each lane: a quarter of the mappings that the kernel
/// gives a process unless told otherwise. One peer has half of them at most.
const FOREIGN_SEGMENTS: u64 = 16_384;

/// A connection to the names of a machine.
///
/// Cheap to clone; all clones are one bus. What was published through it stays published, and its proxies go on working,
/// when it is dropped.
///
/// ```no_run
/// # struct Clock;
/// # #[objbus::object] impl Clock { pub fn ticks(&self) -> u64 { 0 } }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = objbus::Bus::open()?;
/// let clock: ClockProxy = bus.proxy("clock").wait()?;
/// println!("{}", clock.ticks().wait()?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Bus(pub(crate) Arc<BusInner>);

/// Whether callers and owners may look for each other for some microseconds before they sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spin {
    /// Where it pays: both sides busy, on different processors, at least two of them usable.
    #[default]
    Auto,
    /// Never: every wait sleeps at once. Saves processor time, costs a wake-up per call.
    Never,
}

/// Whether blobs and big bodies that come from other processes are read where they lie, in memory that their lender can
/// still write, or copied first.
///
/// An honest lender does not touch what it has lent until it is given back. A hostile one can: what was checked may then
/// not be what is used. A copy is one's own, for the price of a memcpy.
///
/// Copies of blobs are limited for as long as they are held: those of a request count as
/// [`in_flight_bytes`](crate::Limits::in_flight_bytes) of its caller, those of answers may be as much as the bus' shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyOnArrival {
    /// What comes from processes of other users is copied, the own user's read in place.
    #[default]
    OtherUsers,
    /// Everything is copied.
    Always,
    /// Nothing is: every process that is admitted is trusted not to write what it has lent.
    Never,
}

impl CopyOnArrival {
    fn applies_to(self, uid: u32) -> bool {
        match self {
            CopyOnArrival::OtherUsers => uid != own_uid(),
            CopyOnArrival::Always => true,
            CopyOnArrival::Never => false,
        }
    }
}

/// Where the names of a bus live.
enum Place {
    Directory(Directory),
    /// Inside this process.
    Memory(Registry),
}

pub(crate) struct BusInner {
    pub engine: &'static Engine,
    generation: u32,
    place: Place,
    /// Users admitted beside our own.
    admitted: Vec<u32>,
    /// Whose objects are called: any other owner of a name is refused.
    owner_uid: u32,
    timeout: Duration,
    limits: Limits,
    budget: Budget,
    spins: bool,
    /// What the arenas share.
    supply: Arc<Supply>,
    mappings: Arc<Mappings>,
    /// One outgoing arena per user at the other end.
    arenas: Mutex<HashMap<u32, Arc<Arena>>>,
    connections: Mutex<memory::Connections>,
    /// What was copied instead of lent.
    copied: Arc<Copied>,
    copies: CopyOnArrival,
    /// What callers may have at a time of copies made on arrival.
    pub copies_held: MemoryLimit,
    /// That of the user who opened the bus, to be had without a lock and without asking the system who that is.
    own_arena: Arc<Arena>,
    /// The one for the user whose objects are called, found without a lock.
    pub owners_arena: Arc<Arena>,
    links: Mutex<HashMap<Name, Weak<Link>>>,
    listeners: Mutex<Vec<Weak<Listener>>>,
    waiting: Waiting,
    is_closed: AtomicBool,
}

impl Bus {
    /// Opens this user's bus: `$OBJBUS_DIR`, else `/run/user/<uid>/objbus`, else `/tmp/objbus-<uid>`.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the directory cannot be used safely: it belongs to somebody else, or others may write to it.
    pub fn open() -> Result<Bus, OpenError> {
        Bus::builder().open()
    }

    /// A bus with other settings than the default.
    pub fn builder() -> BusBuilder {
        BusBuilder {
            directory: None,
            admitted: Vec::new(),
            owner_uid: None,
            timeout: DEFAULT_TIMEOUT,
            limits: Limits::default(),
            spin: Spin::Auto,
            memory: None,
            copies: CopyOnArrival::default(),
            memory_per_user: None,
            lent: None,
            lent_per_user: None,
        }
    }

    /// A bus inside this process: for unit tests of objects and proxies. Nothing of it is seen outside, and each is a
    /// world of its own. Calls take the same way as between processes.
    ///
    /// # Panics
    ///
    /// If the system has no descriptors or threads left.
    pub fn in_memory() -> Bus {
        let place = Place::Memory(Registry::default());
        Bus::builder().build(place).expect("an in-memory bus needs a few descriptors and a thread")
    }

    /// Publishes `object` under `name`, for as long as the guard lives. Binds the name and returns; does not block beyond
    /// a probe of a present holder of the name (at most milliseconds).
    ///
    /// # Errors
    ///
    /// [`PublishError::AlreadyPublished`] when somebody publishes the name; see [`Bus::publication`] for more choice.
    pub fn publish(&self, name: &str, object: impl Object) -> Result<Published, PublishError> {
        self.publication(name, object).publish()
    }

    /// Publishes `object` as one of the instances that share `name`, for as long as the guard lives: any number of processes may
    /// do so, and callers' proxies spread their calls over them. The page `docs/instances.md` of the repository tells how.
    ///
    /// ```
    /// # struct Counter(u64);
    /// # #[objbus::object] impl Counter { pub fn number(&self) -> u64 { self.0 } }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use objbus::{Bus, Instance};
    ///
    /// let bus = Bus::in_memory();
    /// let _one = bus.publish_as("counter", Counter(1), Instance::new().tag("eu"))?;
    /// let _two = bus.publish_as("counter", Counter(2), Instance::new().tag("us"))?;
    ///
    /// let in_us: CounterProxy = bus.proxy("counter").tag("us").wait()?;
    /// assert_eq!(in_us.number().wait()?, 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`PublishError::AlreadyPublished`] when somebody has the name for itself; see [`Bus::publication`] for more choice.
    pub fn publish_as(
        &self,
        name: &str,
        object: impl Object,
        instance: Instance,
    ) -> Result<Published, PublishError> {
        self.publication(name, object).instance(instance).publish()
    }

    /// As [`publish`](Bus::publish), with rules of its own: who may call, how many workers, taking the name over.
    pub fn publication(&self, name: &str, object: impl Object) -> Publication {
        Publication::new(self.clone(), name, Arc::new(object).table())
    }

    /// Connects to the object published under `name`. Does nothing yet: wait for the result, await it, or wait for the
    /// name to appear, with [`Connect::wait_for`].
    pub fn proxy<P: Proxy>(&self, name: &str) -> Connect<P> {
        Connect::new(self.clone(), name)
    }

    /// The names published at present, with the process id of each publisher (0 if outside this pid namespace), sorted. Of a
    /// name that has several [instances](Bus::publish_as) it is the process id of one of them.
    pub fn names(&self) -> Vec<(String, u32)> {
        let mut names: Vec<_> = match &self.0.place {
            Place::Directory(directory) => {
                directory.list().into_iter().map(|(name, pid)| (name.to_string(), pid)).collect()
            }
            Place::Memory(registry) => {
                let name = |address: Address| (address.name().to_string(), std::process::id());
                registry.addresses().into_iter().map(name).collect()
            }
        };
        names.sort();
        names.dedup_by(|one, other| one.0 == other.0);
        names
    }

    /// The directory of the bus; `None` for an in-memory one.
    pub fn directory(&self) -> Option<&Path> {
        match &self.0.place {
            Place::Directory(directory) => Some(directory.path()),
            Place::Memory(_) => None,
        }
    }

    /// Closes the bus in this process: withdraws all that was published through it, waits until one-way calls are taken
    /// and running methods have ended, then ends its connections. Blocks for up to `deadline`; whether all ended in time.
    ///
    /// Calls in flight elsewhere get their answers; calls made after this fail.
    pub fn close(&self, deadline: Duration) -> bool {
        if self.0.is_foreign() {
            return true;
        }
        let until = Instant::now().checked_add(deadline);
        self.0.is_closed.store(true, Ordering::Release);
        let listeners: Vec<_> = self.0.listeners.lock().drain(..).filter_map(|weak| weak.upgrade()).collect();
        for listener in &listeners {
            listener.withdraw();
            self.0.forget(listener);
            listener.hosted.close(CLOSING);
        }
        let idle = listeners.iter().all(|listener| {
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            crate::publish::wait_idle(&listener.hosted, left)
        });
        let flushed = self.0.flush(until);
        let links: Vec<_> = self.0.links.lock().drain().filter_map(|(_, weak)| weak.upgrade()).collect();
        links.iter().for_each(|link| link.close());
        idle && flushed
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("directory", &self.directory()).finish_non_exhaustive()
    }
}

/// Settings of a [`Bus`].
///
/// ```no_run
/// # fn main() -> Result<(), objbus::OpenError> {
/// use std::time::Duration;
///
/// let bus = objbus::Bus::builder()
///     .directory("/run/telescope") // shared with the users named here
///     .admit(1001)
///     .timeout(Duration::from_secs(1))
///     .open()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder opens nothing until `open`"]
pub struct BusBuilder {
    directory: Option<PathBuf>,
    admitted: Vec<u32>,
    owner_uid: Option<u32>,
    timeout: Duration,
    limits: Limits,
    spin: Spin,
    memory: Option<u64>,
    copies: CopyOnArrival,
    memory_per_user: Option<u64>,
    lent: Option<u64>,
    lent_per_user: Option<u64>,
}

impl BusBuilder {
    /// Another directory than this user's. It is made if it is missing: private (0700), or, for a bus that admits other
    /// users or calls another's objects, open for passage (0711).
    pub fn directory(mut self, path: impl Into<PathBuf>) -> BusBuilder {
        self.directory = Some(path.into());
        self
    }

    /// Admits callers of another user to what is published through this bus. Needs a [`directory`](Self::directory).
    pub fn admit(mut self, uid: u32) -> BusBuilder {
        self.admitted.push(uid);
        self
    }

    /// Calls objects of this user instead of our own. Needs a [`directory`](Self::directory).
    pub fn owner(mut self, uid: u32) -> BusBuilder {
        self.owner_uid = Some(uid);
        self
    }

    /// How long a call may take unless its proxy or the call says otherwise; 5 s by default, `Duration::MAX` for no limit.
    pub fn timeout(mut self, timeout: Duration) -> BusBuilder {
        self.timeout = timeout;
        self
    }

    /// What callers may use of objects published through this bus, unless an object has limits of its own; and how large
    /// the bodies of calls made through it may be.
    pub fn limits(mut self, limits: Limits) -> BusBuilder {
        self.limits = limits;
        self
    }

    /// Whether waiting may spin for some microseconds.
    pub fn spin(mut self, spin: Spin) -> BusBuilder {
        self.spin = spin;
        self
    }

    /// Bytes of shared memory for blobs, and for bodies that do not fit a ring's cell; half of what the system or the cgroup
    /// has by default. Beyond it, allocations and calls get `NoMemory`.
    ///
    /// Of it, this user's processes may have all, and those of another user as much as stays free for all others: half if
    /// they are alone, a third each if they are two. So whoever gives nothing back leaves something to the next.
    pub fn memory(mut self, bytes: u64) -> BusBuilder {
        self.memory = Some(bytes);
        self
    }

    /// Whether what other processes lend is copied before it is read; by default, what another user's lend.
    pub fn copy_on_arrival(mut self, copies: CopyOnArrival) -> BusBuilder {
        self.copies = copies;
        self
    }

    /// Bytes of shared memory for the processes of one user, this one included. Without it, what
    /// [`memory`](Self::memory) says.
    pub fn memory_per_user(mut self, bytes: u64) -> BusBuilder {
        self.memory_per_user = Some(bytes);
        self
    }

    /// Bytes lent at a time, what is lent to several processes counted for each. Beyond it, calls get `NoMemory`.
    ///
    /// Not limited by default: what is lent is allocated, so the limit on [`memory`](Self::memory) holds for it too.
    pub fn lent(mut self, bytes: u64) -> BusBuilder {
        self.lent = Some(bytes);
        self
    }

    /// Bytes lent to the processes of one user at a time, this one included, counted as in [`lent`](Self::lent). By default
    /// not limited for this user, and a quarter of the bus' [`memory`](Self::memory) for each other.
    pub fn lent_per_user(mut self, bytes: u64) -> BusBuilder {
        self.lent_per_user = Some(bytes);
        self
    }

    /// Opens the bus.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the directory cannot be used safely, or the system has no descriptors or threads left.
    pub fn open(self) -> Result<Bus, OpenError> {
        let is_shared = !self.admitted.is_empty() || self.owner_uid.is_some();
        let directory = match &self.directory {
            Some(path) if is_shared => Directory::shared(path, self.owner_uid),
            Some(path) => Directory::private(path),
            None if is_shared => {
                Err("a bus between users needs a directory of its own: name one in the builder".to_owned())
            }
            None => Directory::default_for_user(),
        };
        let directory = directory.map_err(|reason| OpenError::RuntimeDirUnsafe { reason })?;
        self.build(Place::Directory(directory))
    }

    fn build(self, place: Place) -> Result<Bus, OpenError> {
        let system = |errno| OpenError::System { reason: format!("starting the bus: {errno}") };
        let engine = engine().map_err(system)?;
        let limits = SupplyLimits {
            memory: self.memory.map_or_else(MemoryLimit::of_this_system, MemoryLimit::new),
            memory_per_user: self.memory_per_user,
            lent: self.lent,
            lent_per_user: self.lent_per_user,
        };
        let own_uid = own_uid();
        let owner_uid = self.owner_uid.unwrap_or(own_uid);
        let spins = self.spin == Spin::Auto && cpu::can_spin();
        Ok(Bus(Arc::new_cyclic(|bus: &Weak<BusInner>| {
            let supply = Arc::new(Supply::new(limits, Some(Weak::clone(bus) as Weak<dyn Reclaim>)));
            let own_arena = Arc::new(Arena::of(Arc::clone(&supply), User::Own));
            let owners_arena = match owner_uid == own_uid {
                true => Arc::clone(&own_arena),
                false => Arc::new(Arena::of(Arc::clone(&supply), User::Other)),
            };
            let arenas = [(own_uid, Arc::clone(&own_arena)), (owner_uid, Arc::clone(&owners_arena))];
            let copies_held = MemoryLimit::new(supply.limit());
            BusInner {
                engine,
                generation: sys::fork::generation(),
                place,
                admitted: self.admitted,
                owner_uid,
                timeout: self.timeout,
                budget: self.limits.budget(),
                limits: self.limits,
                spins,
                supply,
                mappings: Arc::new(Mappings::new(
                    MemoryLimit::new(FOREIGN_SEGMENTS),
                    // All of a segment is allocated, so honest peers cannot have more of them than there is memory.
                    MemoryLimit::of_this_machine(),
                )),
                connections: Mutex::default(),
                copied: Arc::default(),
                copies_held,
                copies: self.copies,
                arenas: Mutex::new(HashMap::from(arenas)),
                own_arena,
                owners_arena,
                links: Mutex::default(),
                listeners: Mutex::default(),
                waiting: Waiting::default(),
                is_closed: AtomicBool::new(false),
            }
        })))
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl BusInner {
    /// Whether a caller of this user may connect to what is published here. The overflow user stands for strangers of
    /// other user namespaces and is nobody.
    pub fn admits(&self, uid: u32) -> bool {
        uid != OVERFLOW_UID && (uid == own_uid() || self.admitted.contains(&uid))
    }

    /// Whether this bus was opened before a fork, in the parent.
    #[inline(always)]
    pub fn is_foreign(&self) -> bool {
        sys::fork::forked_since(self.generation)
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The largest body sent.
    #[inline(always)]
    pub fn body_limit(&self) -> u64 {
        self.limits.body_bytes
    }

    /// What decoding an answer may cost.
    #[inline(always)]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    pub fn spins(&self) -> bool {
        self.spins
    }

    /// What the proxies of `name` share.
    pub fn link(self: &Arc<Self>, name: &Name) -> Arc<Link> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(name).and_then(Weak::upgrade) {
            return link;
        }
        links.retain(|_, link| link.strong_count() > 0);
        let link = Arc::new(Link::new(Arc::clone(self), Address::from(name.clone())));
        links.insert(name.clone(), Arc::downgrade(&link));
        link
    }

    /// Enters a listener: for closing, and, on an in-memory bus, for being found.
    pub fn add_listener(
        &self,
        address: &Address,
        listener: &Arc<Listener>,
        replaces: bool,
    ) -> Result<(), PublishError> {
        if let Place::Memory(registry) = &self.place {
            let replaced = registry.enter(address, listener, replaces)?;
            // Their callers find the successor from here on.
            replaced.into_iter().for_each(|present| present.hosted.close(REPLACED));
            self.waiting.wake(address.name());
        }
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(listener));
        Ok(())
    }

    /// The directory, `None` for an in-memory bus.
    pub fn directory(&self) -> Option<&Directory> {
        match &self.place {
            Place::Directory(directory) => Some(directory),
            Place::Memory(_) => None,
        }
    }

    /// Who listens at `address` on an in-memory bus.
    pub fn local_listener(&self, address: &Address) -> Option<Arc<Listener>> {
        match &self.place {
            Place::Directory(_) => None,
            Place::Memory(registry) => registry.find(address),
        }
    }

    /// Where `name` may be met: its sockets, dead ones among them. None in a directory that we cannot read.
    pub fn addresses_of(&self, name: &Name) -> Vec<Address> {
        let mut addresses = match &self.place {
            Place::Directory(directory) => directory.addresses_of(name).unwrap_or_default(),
            Place::Memory(registry) => registry.addresses(),
        };
        addresses.retain(|address| address.name() == name);
        addresses.sort();
        addresses
    }

    /// Takes a withdrawn listener off an in-memory bus.
    pub fn forget(&self, listener: &Listener) {
        if let Place::Memory(registry) = &self.place
            && let Some(name) = registry.forget(listener)
        {
            self.waiting.wake(&name);
        }
    }

    /// Waits until all one-way calls are taken; whether they were in time.
    fn flush(&self, until: Option<Instant>) -> bool {
        let links: Vec<_> = self.links.lock().values().filter_map(Weak::upgrade).collect();
        links.iter().all(|link| link.flush(until))
    }
}
