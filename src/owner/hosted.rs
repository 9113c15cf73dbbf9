//! One published object: its methods, its rules, and the lanes of its callers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;

use parking_lot::Mutex;

use super::dispatch;
use super::exports::ExportTable;
use super::lane::OwnerLane;
use super::permits::Permits;
use super::task::Task;
use crate::access::Access;
use crate::bus::BusInner;
use crate::engine::Engine;
use crate::object::{Handler, MethodTable};
use crate::panics::contain;
use crate::parcels::Parcels;
use crate::park::wake_all;
use crate::ring::layout::{CLOSING, OPEN, REPLACED};
use crate::sys::socket::Credentials;
use crate::wire::budget::Budget;
use crate::wire::key::name_hash;

/// What a caller may use of an object's process. Beyond a limit it gets an error of its own; nobody else notices.
///
/// ```
/// use objbus::{Bus, CallError, Limits, MethodTable, Untyped};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limits = Limits { in_flight: 8, in_flight_bytes: 1 << 20, ..Limits::default() };
/// let table = MethodTable::named("Texts").method("len", |text: String| text.len() as u64);
/// let bus = Bus::in_memory();
/// let _published = bus.publication("texts", table).limits(limits).publish()?;
///
/// let texts: Untyped = bus.proxy("texts").wait()?;
/// assert_eq!(texts.call::<_, u64>("len", &("short",)).wait()?, 5);
/// let long = "long".repeat(1 << 20);
/// let refused = texts.call::<_, u64>("len", &(long,)).wait();
/// assert!(matches!(refused, Err(CallError::TooLarge { limit, .. }) if limit == 1 << 20));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Callers (processes times buses opened in them) that an object serves at once; beyond: `TooManyCallers`. One that is
    /// gone counts as long as it holds a blob that it was lent, or this process one of its.
    pub lanes: usize,
    /// Of these, how many one process may hold.
    pub lanes_per_process: usize,
    /// Calls of one caller taken and not answered; beyond: `Overloaded`. At most 64 can be.
    pub in_flight: u32,
    /// Bytes of one request or one response, encoded; beyond: `TooLarge`.
    pub body_bytes: u64,
    /// Bytes of all requests of one process that run, and of all responses to it that it has not taken, over all its lanes
    /// and all objects of this process; beyond: `Overloaded` before the method runs, `NoMemory` for a result. Bodies that
    /// fit a ring's cell do not count; blobs of requests do where they are [copied on arrival](crate::CopyOnArrival), for as long
    /// as a copy is held. No single body can be larger than this.
    pub in_flight_bytes: u64,
    /// Bytes that decoding any request may allocate; beyond: `BadRequest`.
    pub decode_bytes: u64,
    /// Further bytes for each byte of the request.
    pub decode_bytes_per_byte: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            lanes: 16_384,
            lanes_per_process: 4_096,
            in_flight: 64,
            body_bytes: 256 << 20,
            in_flight_bytes: 1 << 30,
            decode_bytes: 16 << 20,
            decode_bytes_per_byte: 64,
        }
    }
}

impl Limits {
    pub(crate) fn budget(&self) -> Budget {
        Budget { heap: self.decode_bytes, heap_per_byte: self.decode_bytes_per_byte, ..Budget::default() }
    }
}

/// What happens to an object one of whose methods panicked.
///
/// In a program built with `panic = "abort"` neither can be had: a panic is the end of the process, and its callers get
/// `OwnerDied`. The first object published there says so, as a warning through `tracing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanicPolicy {
    /// The call gets `MethodPanicked`; the object goes on serving.
    #[default]
    Continue,
    /// The same, and all later calls get `MethodPanicked { executed: No }`: its state may be half-changed.
    Poison,
}

/// How an object is published.
pub(crate) struct Rules {
    pub workers: usize,
    pub access: Access,
    pub method_access: HashMap<String, Access>,
    pub limits: Limits,
    pub on_panic: PanicPolicy,
}

impl Rules {
    /// For everyone, within `limits`.
    pub fn plain(limits: Limits) -> Rules {
        Rules {
            workers: usize::MAX,
            access: Access::everyone(),
            method_access: HashMap::new(),
            limits,
            on_panic: PanicPolicy::Continue,
        }
    }
}

/// Facts about one method that change while it serves.
pub(crate) struct MethodState {
    /// Its last measured run took no longer than a few microseconds, so it may run without handing lanes over.
    pub short: AtomicBool,
    /// Its last result lent something, so the next is encoded aside: see [`Stage`](super::respond::Stage).
    pub lends: AtomicBool,
}

impl MethodState {
    /// Of each method, before its first run.
    pub fn of(table: &MethodTable) -> Box<[MethodState]> {
        let fresh = || MethodState { short: AtomicBool::new(false), lends: AtomicBool::new(false) };
        table.methods().iter().map(|_| fresh()).collect()
    }
}

/// A method that is about to run.
#[derive(Clone, Copy)]
pub(crate) struct Runnable<'a> {
    pub handler: &'a Handler,
    pub state: &'a MethodState,
    /// Where it goes on if it is async and pending; `None`: on the pool.
    pub runtime: Option<&'a Runtime>,
}

#[cfg(feature = "tokio")]
pub(crate) type Runtime = tokio::runtime::Handle;
#[cfg(not(feature = "tokio"))]
pub(crate) enum Runtime {}

/// The runtime that this thread is in.
pub(crate) fn present_runtime() -> Option<Runtime> {
    #[cfg(feature = "tokio")]
    return tokio::runtime::Handle::try_current().ok();
    #[cfg(not(feature = "tokio"))]
    None
}

pub(crate) struct Hosted {
    /// Names the object in call chains; never 0, not used again.
    pub id: u64,
    pub name: String,
    pub table: MethodTable,
    pub methods: Box<[MethodState]>,
    pub rules: Rules,
    pub budget: Budget,
    pub permits: Permits,
    pub bus: Weak<BusInner>,
    pub runtime: Option<Runtime>,
    pub engine: &'static Engine,
    /// What callers' objects have instead of a table of their own.
    pub exports: Option<ExportTable>,
    closing: AtomicU32,
    poison: OnceLock<String>,
    lanes: Mutex<HashMap<u64, Arc<OwnerLane>>>,
    /// Connections of former lanes that what is lent, either way, may still hold open.
    lent: Mutex<Vec<Weak<Parcels>>>,
    /// Async methods under way, so that a withdrawn caller's can be polled again to see it.
    pub tasks: Mutex<HashMap<u64, Weak<Task>>>,
    /// One-way calls being run: they are answered already, so no slot shows them.
    background: AtomicUsize,
    /// Who waits until nothing runs any more, by a number of its own.
    idle: Mutex<HashMap<u64, Waker>>,
    violations: AtomicU64,
}

/// What [`Hosted::new`] needs.
pub(crate) struct Parts {
    pub name: String,
    pub table: MethodTable,
    pub rules: Rules,
    pub bus: Weak<BusInner>,
    pub engine: &'static Engine,
    pub exports: Option<ExportTable>,
}

impl Hosted {
    pub fn new(mut parts: Parts) -> Hosted {
        // A body beyond what a caller may have in flight would be told to come again later, for ever.
        let limits = &mut parts.rules.limits;
        limits.body_bytes = limits.body_bytes.min(limits.in_flight_bytes);
        Hosted {
            id: fresh_id(),
            name: parts.name,
            methods: MethodState::of(&parts.table),
            table: parts.table,
            budget: parts.rules.limits.budget(),
            permits: Permits::new(parts.rules.workers),
            rules: parts.rules,
            bus: parts.bus,
            runtime: present_runtime(),
            engine: parts.engine,
            exports: parts.exports,
            closing: AtomicU32::new(OPEN),
            poison: OnceLock::new(),
            lanes: Mutex::default(),
            lent: Mutex::default(),
            tasks: Mutex::default(),
            background: AtomicUsize::new(0),
            idle: Mutex::default(),
            violations: AtomicU64::new(0),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `index`th method of the table.
    #[inline(always)]
    pub fn method(&self, index: usize) -> Runnable<'_> {
        Runnable {
            handler: &self.table.methods()[index].handler,
            state: &self.methods[index],
            runtime: self.runtime.as_ref(),
        }
    }

    /// Whether the object is being withdrawn or was taken over.
    #[inline(always)]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed) != OPEN
    }

    /// Whether calls in the rings are to be refused instead of run.
    #[inline(always)]
    pub fn is_withdrawn(&self) -> bool {
        self.closing.load(Ordering::Relaxed) == CLOSING
    }

    /// The message of the panic that poisoned the object.
    #[inline(always)]
    pub fn poison(&self) -> Option<&str> {
        self.poison.get().map(String::as_str)
    }

    /// A method panicked.
    pub fn note_panic(&self, message: &str) {
        if self.rules.on_panic == PanicPolicy::Poison {
            let _ = self.poison.set(message.to_owned());
        }
    }

    pub fn count_violation(&self) {
        self.violations.fetch_add(1, Ordering::Relaxed);
    }

    /// Callers that broke the protocol so far.
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// Hash of the name and key of each method, as a caller is told.
    pub fn keys(&self) -> Vec<(u64, u64)> {
        self.table
            .methods()
            .iter()
            .map(|method| (name_hash(&method.signature.name), method.signature.key))
            .collect()
    }

    /// Per method whether this caller is excluded from it; `None` if from none.
    pub fn denied_methods(&self, who: &Credentials, groups: &[u32]) -> Option<Box<[bool]>> {
        let rules = &self.rules.method_access;
        let denied = |name: &str| rules.get(name).is_some_and(|access| !access.admits(who, groups));
        let denied: Box<[bool]> =
            self.table.methods().iter().map(|method| denied(&method.signature.name)).collect();
        denied.contains(&true).then_some(denied)
    }

    /// Whether any rule asks for the caller's supplementary groups.
    pub fn asks_for_groups(&self) -> bool {
        self.rules.access.names_groups() || self.rules.method_access.values().any(Access::names_groups)
    }

    /// Whether one more lane with this process may be made. One that ended counts as long as its connection is open: a
    /// process that ends its calls, but gives nothing back, could make connections without end.
    pub fn has_room_for(&self, pid: u32) -> bool {
        let is_open = |weak: &Weak<Parcels>| weak.upgrade().filter(|parcels| !parcels.is_over());
        let lent: Vec<_> = {
            let mut lent = self.lent.lock();
            lent.retain(|weak| weak.strong_count() > 0);
            lent.iter().filter_map(is_open).collect()
        };
        let lanes = self.lanes.lock();
        let peers = lanes.values().map(|lane| &lane.peer).chain(lent.iter().map(|parcels| &parcels.peer));
        let of_process = peers.filter(|peer| peer.credentials.pid == pid).count();
        lanes.len() + lent.len() < self.rules.limits.lanes && of_process < self.rules.limits.lanes_per_process
    }

    /// Enters a lane; `false` if the object was withdrawn meanwhile.
    pub fn add_lane(&self, lane: &Arc<OwnerLane>) -> bool {
        let mut lanes = self.lanes.lock();
        if self.is_closing() {
            return false;
        }
        lanes.insert(lane.bell_token, Arc::clone(lane));
        true
    }

    /// Nothing runs on the lane any more and nothing new will.
    pub fn lane_is_idle(&self, lane: &OwnerLane) {
        let removed = self.lanes.lock().remove(&lane.bell_token);
        if let Some(lane) = removed {
            lane.disconnect(self.engine);
            if !lane.parcels.is_over() {
                self.lent.lock().push(Arc::downgrade(&lane.parcels));
            }
        }
        self.wake_if_idle();
    }

    /// Callers connected at present.
    pub fn callers(&self) -> usize {
        self.lanes.lock().len()
    }

    /// Counts what begins to run and is no call that is answered at its end: a one-way call, or a stream.
    pub fn begin_background(&self) {
        self.background.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one that has ended.
    pub fn end_background(&self) {
        // SeqCst on both sides: either who closes the object sees that this has ended, or we see that it closes.
        self.background.fetch_sub(1, Ordering::SeqCst);
        if self.closing.load(Ordering::SeqCst) != OPEN {
            self.wake_if_idle();
        }
    }

    /// Whether the object is withdrawn and nothing of it runs any more.
    pub fn is_idle(&self) -> bool {
        self.is_closing() && self.background.load(Ordering::SeqCst) == 0 && self.lanes.lock().is_empty()
    }

    /// Wakes `waker`, and no former one of `waiter`'s, once the object is idle; look at [`is_idle`](Self::is_idle) after this
    /// call. Undone by [`forget_waiter`](Self::forget_waiter).
    pub fn on_idle(&self, waiter: u64, waker: &Waker) {
        let former = self.idle.lock().insert(waiter, waker.clone());
        // Without the lock: with it may go the last of a task.
        drop(former);
    }

    pub fn forget_waiter(&self, waiter: u64) {
        let forgotten = self.idle.lock().remove(&waiter);
        drop(forgotten);
    }

    /// Wakers held for who waits until the object is idle.
    #[cfg(test)]
    pub fn waiters(&self) -> usize {
        self.idle.lock().len()
    }

    fn wake_if_idle(&self) {
        if self.is_idle() {
            let waiting = std::mem::take(&mut *self.idle.lock());
            wake_all(waiting.into_values());
        }
    }

    /// Takes no new calls from now on. Those in the rings are refused when `how` is [`CLOSING`], still run when it is
    /// [`REPLACED`]; those being run end as they will.
    pub fn close(&self, how: u32) {
        debug_assert!(how == CLOSING || how == REPLACED);
        let lanes: Vec<_> = {
            let lanes = self.lanes.lock();
            if self.closing.compare_exchange(OPEN, how, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                return;
            }
            // Under the lock that a lane's end takes before its socket's: a caller that finds the socket ended finds why, though
            // a worker may have seen above that the object closes, and settled the lane, before this loop comes to it.
            lanes.values().for_each(|lane| lane.announce_closing(how));
            lanes.values().cloned().collect()
        };
        if how == CLOSING {
            self.permits.drain().into_iter().for_each(dispatch::refuse_withdrawn);
        }
        // A worker empties each ring and settles its lane.
        lanes.into_iter().for_each(|lane| self.engine.pool.enqueue(lane));
        self.wake_if_idle();
    }

    /// Whether async methods are under way.
    pub fn has_tasks(&self) -> bool {
        !self.tasks.lock().is_empty()
    }

    /// Polls the async methods that `lane`'s caller has given up once more, so that they end.
    pub fn cancel_withdrawn(&self, lane: &OwnerLane) {
        self.tasks_of(lane).iter().filter(|task| task.is_withdrawn(lane)).for_each(Task::schedule);
    }

    /// Lets the async methods of `lane`, which is abandoned, run until their deadlines only.
    pub fn end_abandoned(&self, lane: &OwnerLane) {
        self.tasks_of(lane).iter().for_each(Task::end_at_deadline);
    }

    /// The async methods under way for `lane`'s caller. Without the lock, under which none of them may be dropped.
    fn tasks_of(&self, lane: &OwnerLane) -> Vec<Arc<Task>> {
        let tasks: Vec<_> = self.tasks.lock().values().filter_map(Weak::upgrade).collect();
        tasks.into_iter().filter(|task| task.is_of(lane)).collect()
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        let table = std::mem::replace(&mut self.table, MethodTable::named(""));
        // With it may go the object itself, on whichever thread held it last, a worker's or the watcher's.
        contain(|| drop(table));
    }
}

/// An id that no other object of this machine's present boot is likely to have.
fn fresh_id() -> u64 {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let pid = u64::from(std::process::id());
    let mixed = (crate::sys::clock::now_ns() ^ pid << 40)
        .wrapping_add(count << 20)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32 | 1
}
