//! Who is subscribed to one event, and how each of them gets what is emitted.
//!
//! An item is encoded once and offered to all of them under one lock, so that each sees the same order. Whoever has no room for it
//! takes it later, when its channel says that there is some: on the watcher's thread, which hands over what is encoded and runs no
//! code of the user's.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Weak};
use std::task::{Poll, Wake, Waker};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use super::queue::{Left, Queue};
use super::{EmitError, Lag};
use crate::channel::{EncodedItem, ItemSender, Push};
use crate::error::Executed;
use crate::park::{Parker, wake_all};
use crate::status::Refused;
use crate::sys::fork;

/// The subscribers of one event.
pub(crate) struct Subscribers {
    /// In a forked child it has none: they are the parent's, and nothing of them is touched.
    generation: u32,
    all: Mutex<Vec<Arc<Subscriber>>>,
    /// Those that are not gone; read without the lock.
    count: AtomicUsize,
    /// Emitters that wait for room at one that blocks them.
    blocked: Mutex<Vec<Waker>>,
    /// Used again for the next small item.
    spare: Mutex<Option<Arc<EncodedItem>>>,
}

/// One that blocks emitters has not taken what came before.
struct Blocked;

impl Default for Subscribers {
    fn default() -> Subscribers {
        Subscribers {
            generation: fork::generation(),
            all: Mutex::default(),
            count: AtomicUsize::new(0),
            blocked: Mutex::default(),
            spare: Mutex::default(),
        }
    }
}

impl Subscribers {
    /// Whether there is nobody to tell.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    pub fn len(&self) -> usize {
        match self.count.load(Ordering::Acquire) {
            0 => 0,
            _ if fork::forked_since(self.generation) => 0,
            count => count,
        }
    }

    /// One more, told `first` before anything else.
    pub fn add(self: &Arc<Self>, arrival: Arrival, first: Option<Arc<EncodedItem>>) {
        let subscriber = Subscriber::new(arrival, Arc::downgrade(self));
        {
            let mut all = self.all.lock();
            all.retain(|subscriber| !subscriber.is_gone());
            all.push(Arc::clone(&subscriber));
            self.count.fetch_add(1, Ordering::Release);
            if let Some(first) = first {
                let _pumped_below = subscriber.offer(&first);
            }
        }
        subscriber.arrival.sender.register_end(&subscriber.waker);
        // One that ended before that was not heard.
        subscriber.wake();
    }

    /// The one encoding that all get, in memory of the first one's user if it is large; `None` where there is nobody.
    pub fn encode(&self, value: &impl Serialize) -> Result<Option<Arc<EncodedItem>>, EmitError> {
        let first = self.all.lock().first().cloned();
        let Some(first) = first else { return Ok(None) };
        // Without a lock: the value's `Serialize` may emit as well.
        let spare = self.spare.lock().take();
        first.arrival.encode(value, spare).map(Some)
    }

    /// Done with an item.
    pub fn reuse(&self, mut item: Arc<EncodedItem>) {
        // Of one that waits for somebody there are others; and what one lends is to be free soon.
        if !item.lends() && Arc::get_mut(&mut item).is_some() {
            *self.spare.lock() = Some(item);
        }
    }

    /// Tells a value to all, in the order of the calls; waits before that for those that block.
    pub fn tell(&self, value: &impl Serialize) -> Result<(), EmitError> {
        if self.is_empty() {
            return Ok(());
        }
        let Some(item) = self.encode(value)? else { return Ok(()) };
        let mut parker = None;
        while let Err(Blocked) = self.try_emit(&item) {
            let parker = parker.get_or_insert_with(Parker::new);
            if self.emit_or_register(&item, parker.waker()).is_ready() {
                break;
            }
            parker.park(u64::MAX);
        }
        self.reuse(item);
        Ok(())
    }

    /// Offers an item to all, for a task that may have to wait before that.
    pub fn poll_emit(&self, item: &Arc<EncodedItem>, waker: &Waker) -> Poll<()> {
        match self.try_emit(item) {
            Ok(()) => Poll::Ready(()),
            Err(Blocked) => self.emit_or_register(item, waker),
        }
    }

    fn emit_or_register(&self, item: &Arc<EncodedItem>, waker: &Waker) -> Poll<()> {
        {
            let mut blocked = self.blocked.lock();
            if !blocked.iter().any(|other| other.will_wake(waker)) {
                blocked.push(waker.clone());
            }
        }
        // Room that was made before the registration woke nobody.
        match self.try_emit(item) {
            Ok(()) => Poll::Ready(()),
            Err(Blocked) => Poll::Pending,
        }
    }

    fn try_emit(&self, item: &Arc<EncodedItem>) -> Result<(), Blocked> {
        let mut all = self.all.lock();
        if all.iter().any(|subscriber| subscriber.blocks.load(Ordering::Acquire)) {
            return Err(Blocked);
        }
        let woken: Vec<_> = all.iter().filter(|subscriber| subscriber.offer(item)).cloned().collect();
        all.retain(|subscriber| !subscriber.is_gone());
        drop(all);
        // Without the lock: that may wake others who emit.
        woken.iter().for_each(|subscriber| subscriber.pump_if_woken());
        Ok(())
    }

    /// One is gone, and was counted until now.
    fn forget(&self) {
        self.count.fetch_sub(1, Ordering::Release);
        // An emitter that is at work sweeps by itself, and is not waited for here, on the watcher's thread.
        if let Some(mut all) = self.all.try_lock() {
            all.retain(|subscriber| !subscriber.is_gone());
        }
    }

    fn wake_blocked(&self) {
        let blocked = std::mem::take(&mut *self.blocked.lock());
        wake_all(blocked);
    }
}

/// What it takes to tell one subscriber.
pub(crate) struct Arrival {
    pub sender: ItemSender,
    pub lag: Lag,
    /// The most bytes of an item.
    pub limit: u64,
}

impl Arrival {
    /// Encodes a value, in place of what `spare` holds.
    pub fn encode(
        &self,
        value: &impl Serialize,
        spare: Option<Arc<EncodedItem>>,
    ) -> Result<Arc<EncodedItem>, EmitError> {
        let mut item = spare.unwrap_or_else(|| Arc::new(EncodedItem::blank()));
        let Some(place) = Arc::get_mut(&mut item) else { unreachable!("nobody else has a spare item") };
        self.sender.encode_into(place, value, self.limit)?;
        Ok(item)
    }
}

/// One subscriber.
struct Subscriber {
    arrival: Arrival,
    waiting: Mutex<Waiting>,
    /// To be pumped by whoever has the lock: it was woken meanwhile. That may be the same thread, since a subscriber whose numbers are
    /// impossible is cut off, and so woken, by the very push that finds out.
    is_woken: AtomicBool,
    /// Emitters have to wait for it. Stored under the lock; read without it, since who has the lock also has to pump.
    blocks: AtomicBool,
    is_gone: AtomicBool,
    /// Pumps it.
    waker: Waker,
    of: Weak<Subscribers>,
}

struct Waiting {
    queue: Queue<Arc<EncodedItem>>,
    /// The channel will wake it when there is room.
    is_armed: bool,
}

/// Wakes a subscriber without keeping it.
struct Pump(Weak<Subscriber>);

impl Wake for Pump {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(subscriber) = self.0.upgrade() {
            subscriber.wake();
        }
    }
}

impl Subscriber {
    fn new(arrival: Arrival, of: Weak<Subscribers>) -> Arc<Subscriber> {
        Arc::new_cyclic(|this| Subscriber {
            waiting: Mutex::new(Waiting { queue: Queue::new(arrival.lag), is_armed: false }),
            arrival,
            is_woken: AtomicBool::new(false),
            blocks: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            waker: Waker::from(Arc::new(Pump(Weak::clone(this)))),
            of,
        })
    }

    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    fn push(&self, item: &EncodedItem, missed: u64) -> Push {
        let Arrival { sender, lag, .. } = &self.arrival;
        let pushed = match lag {
            Lag::Latest => sender.try_push_alone(item),
            Lag::Block | Lag::DropOldest { .. } => sender.try_push(item, missed),
        };
        if pushed == Push::NoMemory {
            // There is no telling when some will be free. It hears why, and comes again.
            sender.fail(Refused::NoMemory { executed: Executed::Yes });
        }
        pushed
    }

    /// One more item for it; whether it was woken meanwhile, and is to be pumped.
    fn offer(&self, item: &Arc<EncodedItem>) -> bool {
        let mut waiting = self.waiting.lock();
        let size = item.len().into();
        let left = waiting.queue.offer(Arc::clone(item), size, |item, missed| self.push(item, missed));
        let left = self.wait_for_room(&mut waiting, left);
        self.blocks.store(waiting.queue.blocks(), Ordering::Release);
        drop(waiting);
        self.conclude(left);
        self.is_woken()
    }

    /// There is room, or nobody takes anything any more.
    fn wake(&self) {
        self.is_woken.store(true, Ordering::Relaxed);
        self.pump_if_woken();
    }

    /// Asked before the lock is taken, and after it is let go.
    fn is_woken(&self) -> bool {
        // Either who wakes gets the lock, or who has it sees, once it has let go, that this was woken.
        fence(Ordering::SeqCst);
        self.is_woken.load(Ordering::Relaxed)
    }

    fn pump_if_woken(&self) {
        while self.is_woken() {
            let Some(waiting) = self.waiting.try_lock() else { return };
            self.is_woken.store(false, Ordering::Relaxed);
            self.pump(waiting);
        }
    }

    /// Hands over what there is room for.
    fn pump(&self, mut waiting: MutexGuard<'_, Waiting>) {
        waiting.is_armed = false;
        let left = waiting.queue.pump(|item, missed| self.push(item, missed));
        let left = match self.wait_for_room(&mut waiting, left) {
            Left::Nothing if self.arrival.sender.is_closed() => Left::Gone,
            left => left,
        };
        let blocks = waiting.queue.blocks();
        let did_block = self.blocks.swap(blocks, Ordering::AcqRel);
        drop(waiting);
        self.conclude(left);
        if did_block && !blocks {
            self.of.upgrade().inspect(|of| of.wake_blocked());
        }
    }

    /// Has the channel wake this once there is room, if anything waits for that.
    fn wait_for_room(&self, waiting: &mut Waiting, left: Left) -> Left {
        if left != Left::Waiting || waiting.is_armed {
            return left;
        }
        waiting.is_armed = true;
        self.arrival.sender.register(&self.waker);
        // Room that was made before the registration is not told.
        waiting.queue.pump(|item, missed| self.push(item, missed))
    }

    fn conclude(&self, left: Left) {
        if left == Left::Gone && !self.is_gone.swap(true, Ordering::Relaxed) {
            self.of.upgrade().inspect(|of| of.forget());
        }
    }
}
