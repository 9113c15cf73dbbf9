//! What all proxies of one name in a process share: the lane to its present owner, and how to get the next one.
//!
//! Proxies that choose among instances have a link of their own without a lane, that leads to the name's.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::group::{Choice, Group};
use super::lane::{Fate, Lane};
use super::port::{Port, Queued, Reserved};
use crate::blob::arena::Arena;
use crate::bus::BusInner;
use crate::error::ConnectError;
use crate::names::{Address, Name};
use crate::park::{Parker, wake_all};
use crate::peer::Peer;
use crate::sys::socket::Credentials;
use crate::sys::{clock, fork};

/// How long one handshake may take.
pub(crate) const HANDSHAKE_NS: u64 = 1_000_000_000;

pub(crate) struct Link {
    pub bus: Arc<BusInner>,
    pub address: Address,
    /// For what is sent to the owner's user.
    pub arena: Arc<Arena>,
    /// There is one lane, which came with it, and no other is looked for.
    is_bound: bool,
    /// The link of the name, where this one only chooses among instances.
    home: Option<Arc<Link>>,
    /// Which instances its calls go to.
    pub choice: Choice,
    /// The instances of the name, once some were found there.
    group: OnceLock<Arc<Group>>,
    /// Who is, or was last, at the other end.
    owner: Mutex<Option<Credentials>>,
    /// The port of the present lane, null before the first; always one of `ports`.
    current: AtomicPtr<Port>,
    /// Never removed, so that `current` and calls can point at them.
    ports: Mutex<Vec<Arc<Port>>>,
    /// One attempt at a time; the rest wait for its outcome.
    connecting: Mutex<()>,
    /// Tasks that wait for attempts made for them on a thread, while there is such a thread.
    background: Mutex<Option<Background>>,
    /// The fork generation it was made in; nothing of it may be touched in another.
    generation: u32,
}

/// What came of an attempt to connect that a task waits for.
pub(crate) struct Attempt {
    waker: Mutex<Waker>,
    outcome: Mutex<Option<Result<(), ConnectError>>>,
    deadline_ns: u64,
    /// Waits for the name until the deadline.
    patient: bool,
}

#[derive(Default)]
struct Background {
    waiting: Vec<Arc<Attempt>>,
    /// Has the thread look at who is waiting.
    thread: Option<Waker>,
}

impl Attempt {
    /// Wakes another waker than the one it was made with.
    pub fn set_waker(&self, waker: &Waker) {
        self.waker.lock().clone_from(waker);
    }

    /// The outcome, once there is one.
    pub fn outcome(&self) -> Option<Result<(), ConnectError>> {
        self.outcome.lock().clone()
    }

    /// Tells the task `outcome`, if that is the last word for it; else gives it back, to wait on.
    fn settle(self: Arc<Self>, outcome: &Result<(), ConnectError>) -> Option<Arc<Attempt>> {
        let is_absent = matches!(outcome, Err(ConnectError::NotFound { .. }));
        if is_absent && self.patient && clock::now_ns() < self.deadline_ns {
            // Of a task that is gone this is the only holder.
            return (Arc::strong_count(&self) > 1).then_some(self);
        }
        *self.outcome.lock() = Some(outcome.clone());
        let waker = self.waker.lock().clone();
        wake_all([waker]);
        None
    }
}

/// Why no slot was had at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSlot {
    /// All are taken.
    Full,
    /// There is no lane to a living owner.
    NoLane,
}

impl Link {
    pub fn new(bus: Arc<BusInner>, address: Address) -> Link {
        let arena = Arc::clone(&bus.owners_arena);
        Link::with(bus, address, arena)
    }

    /// To objects of the caller's, of an object of this process: a lane is to be [installed](Self::install), and no other is
    /// looked for once it has ended.
    pub fn back(bus: Arc<BusInner>, caller: &Peer) -> Link {
        let arena = bus.arena_for(caller.credentials.uid);
        let mut link = Link::with(bus, Name::callbacks().into(), arena);
        link.is_bound = true;
        link
    }

    fn with(bus: Arc<BusInner>, address: Address, arena: Arc<Arena>) -> Link {
        Link {
            bus,
            address,
            arena,
            is_bound: false,
            home: None,
            choice: Choice::default(),
            group: OnceLock::new(),
            owner: Mutex::new(None),
            current: AtomicPtr::new(std::ptr::null_mut()),
            ports: Mutex::default(),
            connecting: Mutex::new(()),
            background: Mutex::default(),
            generation: fork::generation(),
        }
    }

    /// For proxies that choose among the instances of a name.
    pub fn choosing(home: Arc<Link>, choice: Choice) -> Link {
        home.found_group();
        let mut link = Link::new(Arc::clone(&home.bus), home.address.clone());
        (link.home, link.choice) = (Some(home), choice);
        link
    }

    pub fn name(&self) -> &Name {
        self.address.name()
    }

    /// The instances of the name, if any have been met.
    pub fn group(&self) -> Option<&Arc<Group>> {
        self.home.as_deref().unwrap_or(self).group.get()
    }

    /// The same, looked for from here on if they were not before.
    pub fn found_group(self: &Arc<Self>) -> &Arc<Group> {
        let home = self.home.as_ref().unwrap_or(self);
        let mut is_new = false;
        let group = home.group.get_or_init(|| {
            is_new = true;
            Group::new(home)
        });
        // Not before it can be found: who is listed may be connected with at once.
        if is_new {
            group.list(true);
        }
        group
    }

    /// Whether there are instances, where nobody has the name for itself.
    fn has_instances(self: &Arc<Self>) -> bool {
        let is_found =
            self.group.get().is_some() || self.bus.addresses_of(self.name()).iter().any(Address::is_instance);
        is_found.then(|| self.found_group()).is_some()
    }

    /// How many calls of this process the present lane has; `None` if there is none.
    pub fn load(&self) -> Option<usize> {
        self.port().map(Port::in_flight)
    }

    /// Who is, or was last, at the other end.
    pub fn owner(&self) -> Option<Credentials> {
        *self.owner.lock()
    }

    /// Whether this process is a forked child of the one that made the link.
    #[inline(always)]
    pub fn is_foreign(&self) -> bool {
        fork::forked_since(self.generation)
    }

    /// Whether it leads to objects that came along with calls, over the connection of those.
    pub fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// The present port, if there is one.
    #[inline(always)]
    fn port(&self) -> Option<&Port> {
        // SAFETY: a pointer stored there is that of one in `ports`, which lives as long as the link.
        unsafe { self.current.load(Ordering::Acquire).as_ref() }
    }

    /// Takes a slot of the present lane.
    #[inline(always)]
    pub fn reserve(&self) -> Result<(&Port, usize), NoSlot> {
        if self.is_foreign() {
            return Err(NoSlot::NoLane);
        }
        let port = self.port().ok_or(NoSlot::NoLane)?;
        match port.reserve() {
            Some(slot) => self.hold(port, slot),
            None => self.reserve_again(port),
        }
    }

    /// As [`reserve`](Self::reserve), for who does not hold the link.
    pub fn reserve_and_keep(self: Arc<Self>) -> Result<Reserved, NoSlot> {
        let (port, slot) = self.reserve().map(|(port, slot)| (NonNull::from(port), slot))?;
        Ok(Reserved { link: self, port, slot })
    }

    /// Keeps a slot that was reserved if a new call may go to the lane behind it.
    #[inline(always)]
    fn hold<'a>(&self, port: &'a Port, slot: usize) -> Result<(&'a Port, usize), NoSlot> {
        // SAFETY: the slot is held.
        if unsafe { port.lane() }.takes_calls() {
            return Ok((port, slot));
        }
        self.give_back(port, slot);
        Err(NoSlot::NoLane)
    }

    /// All slots are taken: frees those whose calls nobody waits for.
    #[cold]
    fn reserve_again(&self, port: &Port) -> Result<(&Port, usize), NoSlot> {
        if port.reap() {
            self.vacate(port);
        }
        let Some(present) = self.port() else { return Err(NoSlot::NoLane) };
        present.reserve().map_or(Err(NoSlot::Full), |slot| self.hold(present, slot))
    }

    /// Gives a slot back to its port.
    #[inline(always)]
    pub fn give_back(&self, port: &Port, slot: usize) {
        if port.release(slot) {
            self.vacate(port);
        }
    }

    /// Leaves the slot of a call that nobody waits for to whoever comes by after its answer.
    ///
    /// # Safety
    ///
    /// As for [`Port::abandon`].
    pub unsafe fn abandon(&self, port: &Port, slot: usize) {
        // SAFETY: asked of the caller.
        if unsafe { port.abandon(slot) } {
            self.vacate(port);
        }
    }

    /// Registers `waker` for a slot that becomes free, as long as the result lives; then reserve once more.
    pub fn queue_for_slot(&self, waker: &Waker) -> Option<Queued> {
        loop {
            let current = self.current.load(Ordering::SeqCst).cast_const();
            let port = self.ports.lock().iter().find(|port| Arc::as_ptr(port) == current).cloned()?;
            let queued = Queued::new(port, waker);
            // A port that was retired before we were in its queue wakes nobody any more.
            if std::ptr::eq(self.current.load(Ordering::SeqCst), current) {
                return Some(queued);
            }
        }
    }

    /// The ports behind which `lane` is. Without the lock, which no waker may run under.
    fn ports_of(&self, lane: &Lane) -> SmallVec<[Arc<Port>; 2]> {
        self.ports.lock().iter().filter(|port| port.is_of(lane)).cloned().collect()
    }

    /// The slots of `lane` that calls hold, a bit each.
    pub fn taken(&self, lane: &Lane) -> u64 {
        self.ports_of(lane).iter().fold(0, |bits, port| bits | port.taken())
    }

    /// Frees the slots of abandoned calls on `lane` that are answered.
    pub fn reap(&self, lane: &Lane) {
        for port in self.ports_of(lane) {
            if port.reap() {
                self.vacate(&port);
            }
        }
    }

    /// The lane has ended: no new call goes there, and its memory goes with the last call on it.
    pub fn retire(&self, lane: &Lane) {
        let retired: Vec<_> = {
            // Under the lock that a new lane is installed under: it is this lane's port that is retired, not its next one's.
            let ports = self.ports.lock();
            let of_lane = ports.iter().filter(|port| port.is_of(lane)).cloned();
            of_lane.inspect(|port| self.retire_port(port)).collect()
        };
        for port in retired {
            port.reap();
            port.wake_all_waiting();
            self.vacate(&port);
        }
    }

    fn retire_port(&self, port: &Arc<Port>) {
        let (this, null) = (Arc::as_ptr(port).cast_mut(), std::ptr::null_mut());
        let _ = self.current.compare_exchange(this, null, Ordering::SeqCst, Ordering::Relaxed);
        port.retire();
    }

    #[cold]
    fn vacate(&self, port: &Port) {
        if let Some(lane) = port.vacate() {
            lane.disconnect();
        }
    }

    /// Makes a lane to the present owner unless there is one, waiting for one handshake at most. It has a
    /// [`group`](Self::group) instead where there are instances.
    ///
    /// Blocks for up to a second, or until `deadline_ns`.
    #[cold]
    pub fn connect(self: &Arc<Self>, deadline_ns: u64) -> Result<(), ConnectError> {
        self.try_connect(deadline_ns, self.has_no_group())
    }

    /// A group asks for the plain name only. Asked before whatever is waited for: another may find the instances meanwhile.
    fn has_no_group(&self) -> bool {
        !self.address.is_instance() && self.group.get().is_none()
    }

    fn try_connect(
        self: &Arc<Self>,
        deadline_ns: u64,
        looks_for_instances: bool,
    ) -> Result<(), ConnectError> {
        if self.is_foreign() {
            return Err(ConnectError::ForkedHandle);
        }
        let began_ns = clock::now_ns();
        let left = Duration::from_nanos(deadline_ns.saturating_sub(began_ns));
        // Others' handshakes may each take a second where the owner is stopped.
        let Some(_connecting) = self.connecting.try_lock_for(left) else {
            let after = Duration::from_nanos(clock::now_ns() - began_ns);
            return Err(ConnectError::HandshakeTimeout { after });
        };
        if self.has_lane() {
            return Ok(());
        }
        if self.is_bound {
            return Err(self.gone());
        }
        let handshake_ns = clock::now_ns().saturating_add(HANDSHAKE_NS).min(deadline_ns);
        match self.bus.connect(self, handshake_ns) {
            Ok(lane) => self.install(lane),
            // Calls go to them from here on.
            Err(ConnectError::NotFound { .. }) if looks_for_instances && self.has_instances() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Of a bound link: its lane has ended.
    #[cold]
    fn gone(&self) -> ConnectError {
        ConnectError::NotFound { name: self.name().to_string(), waited: Duration::ZERO }
    }

    /// As [`connect`](Self::connect), waiting for the name to appear until `deadline_ns`.
    #[cold]
    pub fn connect_patiently(self: &Arc<Self>, deadline_ns: u64) -> Result<(), ConnectError> {
        if self.is_foreign() {
            return Err(ConnectError::ForkedHandle);
        }
        let looks_for_instances = self.has_no_group();
        let parker = Parker::new();
        // Registered before the first attempt: a name that appears right after one wakes us.
        let mut watch = self.bus.watch_name(self.name(), parker.waker());
        loop {
            match self.try_connect(deadline_ns, looks_for_instances) {
                Err(ConnectError::NotFound { .. }) if clock::now_ns() < deadline_ns => {
                    parker.park(watch.next_look_ns().min(deadline_ns));
                }
                other => return other,
            }
        }
    }

    /// Blocks until calls can be sent: until `deadline_ns`, or, unless it is `patient`, until it is clear that none can.
    pub fn meet(self: &Arc<Self>, deadline_ns: u64, patient: bool) -> Result<(), ConnectError> {
        if self.group().is_none() {
            match patient {
                true => self.connect_patiently(deadline_ns)?,
                false => self.connect(deadline_ns)?,
            }
        }
        self.group().map_or(Ok(()), |group| group.meet(&self.choice, deadline_ns, patient))
    }

    /// Whether calls can be sent now.
    pub fn is_connected(&self) -> bool {
        let is_member_ready = || self.group().is_some_and(|group| !group.present(&self.choice).is_empty());
        self.has_lane() || !self.is_foreign() && is_member_ready()
    }

    pub fn has_lane(&self) -> bool {
        match self.reserve() {
            Ok((port, slot)) => {
                self.give_back(port, slot);
                true
            }
            Err(NoSlot::Full) => true,
            Err(NoSlot::NoLane) => false,
        }
    }

    /// Runs `f` with the present lane, or that of an instance, if there is one and a slot to hold it by.
    pub fn with_lane<R>(&self, f: impl FnOnce(&Arc<Lane>) -> R) -> Option<R> {
        match self.reserve() {
            Ok((port, slot)) => Some(self.with_slot(port, slot, f)),
            Err(_) if self.is_foreign() => None,
            Err(_) => {
                let (_, member, _) = self.group()?.present(&self.choice).into_iter().next()?;
                let (port, slot) = member.reserve().ok()?;
                Some(member.with_slot(port, slot, f))
            }
        }
    }

    fn with_slot<R>(&self, port: &Port, slot: usize, f: impl FnOnce(&Arc<Lane>) -> R) -> R {
        // SAFETY: the slot is held until after `f`.
        let result = f(unsafe { port.lane() });
        self.give_back(port, slot);
        result
    }

    pub fn install(&self, lane: Arc<Lane>) {
        *self.owner.lock() = Some(lane.peer.credentials);
        let mut ports = self.ports.lock();
        let vacant = ports.iter().find(|port| port.try_occupy(Arc::clone(&lane)).is_ok()).cloned();
        let port = vacant.unwrap_or_else(|| {
            let port = Arc::new(Port::vacant());
            let occupied = port.try_occupy(Arc::clone(&lane));
            debug_assert!(occupied.is_ok(), "a new port is vacant");
            ports.push(Arc::clone(&port));
            port
        });
        self.current.store(Arc::as_ptr(&port).cast_mut(), Ordering::Release);
        drop(ports);
        // It may have ended before it was installed; nobody would retire it then.
        if lane.fate().is_final() {
            self.retire(&lane);
        }
    }

    /// Connects on a thread of its own, for a task; one thread serves all tasks that come meanwhile, each by its own
    /// deadline and patience.
    pub fn connect_in_background(
        self: &Arc<Self>,
        waker: &Waker,
        deadline_ns: u64,
        patient: bool,
    ) -> Arc<Attempt> {
        let refused = match self.is_foreign() {
            true => Some(Err(ConnectError::ForkedHandle)),
            false => self.is_bound.then(|| Err(self.gone())),
        };
        let is_refused = refused.is_some();
        let (waker, outcome) = (Mutex::new(waker.clone()), Mutex::new(refused));
        let attempt = Arc::new(Attempt { waker, outcome, deadline_ns, patient });
        if is_refused {
            return attempt;
        }
        let mut background = self.background.lock();
        if let Some(present) = &mut *background {
            present.waiting.push(Arc::clone(&attempt));
            let thread = present.thread.clone();
            drop(background);
            thread.into_iter().for_each(Waker::wake);
            return attempt;
        }
        *background = Some(Background { waiting: vec![Arc::clone(&attempt)], thread: None });
        drop(background);
        let link = Arc::clone(self);
        if crate::sys::signals::spawn("objbus-connect", move || link.serve_background()).is_err() {
            let waiting =
                self.background.lock().take().map_or_else(Vec::new, |background| background.waiting);
            let reason = "no thread could be started to connect".to_owned();
            let outcome = Err(ConnectError::System { reason });
            waiting.into_iter().for_each(|attempt| drop(attempt.settle(&outcome)));
        }
        attempt
    }

    /// Connects again and again until every task that waits has its outcome.
    fn serve_background(self: &Arc<Self>) {
        let looks_for_instances = self.has_no_group();
        let parker = Parker::new();
        // Registered before the first attempt: a name that appears right after one wakes us.
        let mut watch = self.bus.watch_name(self.name(), parker.waker());
        loop {
            let asked = match &mut *self.background.lock() {
                Some(background) => {
                    background.thread = Some(parker.waker().clone());
                    std::mem::take(&mut background.waiting)
                }
                None => return,
            };
            let last_ns = asked.iter().map(|attempt| attempt.deadline_ns).max().unwrap_or(0);
            let outcome = self.try_connect(last_ns, looks_for_instances);
            let left: Vec<_> = asked.into_iter().filter_map(|attempt| attempt.settle(&outcome)).collect();
            let next_ns = left.iter().map(|attempt| attempt.deadline_ns).min();
            let mut background = self.background.lock();
            let Some(present) = &mut *background else { return };
            let has_new = !present.waiting.is_empty();
            present.waiting.extend(left);
            if present.waiting.is_empty() {
                *background = None;
                return;
            }
            drop(background);
            if !has_new {
                parker.park(watch.next_look_ns().min(next_ns.unwrap_or(0)));
            }
        }
    }

    /// Waits until all one-way calls are taken, those on instances among them; whether they were by `until`.
    pub fn flush(&self, until: Option<Instant>) -> bool {
        self.flush_own(until) && self.group.get().is_none_or(|group| group.flush(until))
    }

    fn flush_own(&self, until: Option<Instant>) -> bool {
        let until_ns = until.map_or(u64::MAX, |until| {
            let left = until.saturating_duration_since(Instant::now());
            clock::now_ns().saturating_add(clock::span_ns(left))
        });
        let parker = Parker::new();
        while self.in_flight_here() != 0 {
            if clock::now_ns() >= until_ns {
                return false;
            }
            let queued = self.queue_for_slot(parker.waker());
            if queued.is_some() && self.in_flight_here() != 0 {
                parker.park(until_ns);
            }
        }
        true
    }

    /// Ends the present lanes; a bus that is closed makes no others.
    pub fn close(&self) {
        if let Ok((port, slot)) = self.reserve() {
            self.with_slot(port, slot, Arc::clone).end(Fate::Closed);
        }
        self.group.get().into_iter().for_each(|group| group.close());
    }

    /// Calls in flight on the name, one-way ones that are not taken yet included.
    pub fn in_flight(&self) -> usize {
        let home = self.home.as_deref().unwrap_or(self);
        home.in_flight_here() + home.group.get().map_or(0, |group| group.in_flight())
    }

    /// Those on the present lane.
    fn in_flight_here(&self) -> usize {
        if self.is_foreign() {
            return 0;
        }
        self.port().map_or(0, |port| {
            port.reap();
            port.in_flight()
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.is_foreign() {
            return;
        }
        for port in self.ports.get_mut().iter() {
            port.reap();
            // No call is left but one-way and given-up ones: each other holds the link.
            if let Some((lane, unanswered)) = port.orphan() {
                lane.outlive_link(unanswered);
            }
        }
    }
}
