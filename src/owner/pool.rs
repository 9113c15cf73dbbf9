//! Which thread looks where: one pool of workers serves all objects of a process.
//!
//! A sleeping worker waits in epoll for the doorbells of all lanes, edge-triggered: the kernel's ready list is the set of
//! lanes to serve, so the work is O(lanes that ring), not O(lanes). A lane that was rung is adopted by the worker that
//! woke, which then looks at it by itself for a while (it *polls*), and says so in the lane, so that a caller in a hurry
//! makes no system call.
//!
//! **No slow method hides a lane while a worker is idle.** What ensures it: a caller that is about to sleep, or to stop
//! looking, with its call not begun rings whatever `polled` says; and a ring reaches a worker that sleeps, if there is
//! one, or after 1 ms where a burst of requests had one ring. The rest are shortcuts: a worker hands its lanes over before a
//! method not known to be short, and sees to it that another stands by.
//!
//! **One wake for a burst.** Requests that come together are rung for once, and the tasks that wait for them woken once, behind the
//! last answer; threads, which sleep on a word each, at once.
//!
//! **Never spin blindly.** A worker lingers on a lane only if the caller said that it calls again at once, runs on another
//! processor, and not for longer than [`LINGER_NS`] after the last request.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use crossbeam_queue::SegQueue;
use parking_lot::Mutex;
use rustix::event::epoll;
use rustix::io::Errno;

use super::dispatch;
use super::lane::OwnerLane;
use super::permits::Queued;
use crate::engine::Engine;
use crate::job::Work;
use crate::ring::layout::{NO_CPU, SLOTS};
use crate::ring::owner::{Request, Take};
use crate::sync::spin_hint;
use crate::sys::eventfd::Doorbell;
use crate::sys::fd::Fd;
use crate::sys::{clock, cpu, signals};

/// How long a worker looks at a lane after its last request; between 30 and 100 us made no difference.
const LINGER_NS: u64 = 50_000;
/// The same where the caller had to be woken for its last answer: waking alone may take longer than a linger here, and two
/// sides that are each asleep whenever the other comes would never find together.
const LINGER_AFTER_WAKE_NS: u64 = 200_000;
/// Looks before the first reading of the clock: a hot caller is back before.
const LOOKS_WITHOUT_CLOCK: u32 = 32;
/// Looks between two readings.
const LOOKS_PER_CLOCK: u32 = 8;
/// Requests served of one lane before the others have their turn; where there are no others, what fits the ring.
const TURN: usize = 16;
/// Rounds of a polling worker between two looks at the doorbells, where no other worker sleeps at them.
const ROUNDS_PER_BELLS: u32 = 64;
/// Rings in a row without a request, after which a lane's doorbell is muted for [`MUTED_NS`].
const EMPTY_RINGS_MAX: u32 = 64;
const MUTED_NS: u64 = 10_000_000;
/// The epoll token of the pool's own doorbell.
const KICK: u64 = 0;

/// The workers of a process and what they share.
pub(crate) struct Pool {
    epoll: Fd,
    kick: Doorbell,
    lanes: Mutex<HashMap<u64, Arc<OwnerLane>>>,
    next_token: AtomicU64,
    /// Lanes for any worker to adopt.
    ready: SegQueue<Arc<OwnerLane>>,
    /// Lanes for a worker that lingers anyway, from one that may not.
    hot: SegQueue<Arc<OwnerLane>>,
    /// Requests whose turn has come.
    queued: SegQueue<Queued>,
    /// Async methods and jobs to poll.
    tasks: SegQueue<Arc<dyn Work>>,
    sleeping: AtomicUsize,
    /// Workers that linger on lanes.
    polling: AtomicUsize,
    workers: AtomicU32,
    workers_max: u32,
    polling_max: usize,
}

impl Pool {
    pub fn new() -> Result<Pool, Errno> {
        let epoll = Fd::from(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let kick = Doorbell::create()?;
        epoll::add(
            &epoll,
            &kick,
            epoll::EventData::new_u64(KICK),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        let cpus = cpu::usable();
        Ok(Pool {
            epoll,
            kick,
            lanes: Mutex::default(),
            next_token: AtomicU64::new(KICK + 1),
            ready: SegQueue::new(),
            hot: SegQueue::new(),
            queued: SegQueue::new(),
            tasks: SegQueue::new(),
            sleeping: AtomicUsize::new(0),
            polling: AtomicUsize::new(0),
            workers: AtomicU32::new(0),
            // Methods may block, so there are more than processors; idle ones cost a stack.
            workers_max: (4 * cpus as u32).max(32),
            // A lingering worker takes a processor from somebody, so half of them at most linger.
            polling_max: if cpu::can_spin() { (cpus / 2).max(1) } else { 0 },
        })
    }

    /// A name for a new lane's doorbell.
    pub fn fresh_token(&self) -> u64 {
        self.next_token.fetch_add(1, Ordering::Relaxed)
    }

    /// Listens to the lane's doorbell from now on.
    pub fn add_lane(&'static self, lane: &Arc<OwnerLane>) -> Result<(), Errno> {
        self.lanes.lock().insert(lane.bell_token, Arc::clone(lane));
        self.listen(lane).inspect_err(|_| {
            self.lanes.lock().remove(&lane.bell_token);
        })?;
        self.ensure_standby();
        Ok(())
    }

    fn listen(&self, lane: &OwnerLane) -> Result<(), Errno> {
        let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &lane.doorbell, epoll::EventData::new_u64(lane.bell_token), events)
    }

    /// Listens no more. A doorbell left in the set would stay there as long as its caller holds it, and ring.
    pub fn remove_lane(&self, lane: &OwnerLane) {
        self.lanes.lock().remove(&lane.bell_token);
        let _ = epoll::delete(&self.epoll, &lane.doorbell);
    }

    /// Stops listening to a lane that rings for nothing, for a while. What it rings meanwhile is seen after it.
    #[cold]
    fn mute(&self, engine: &'static Engine, lane: &Arc<OwnerLane>) {
        let _ = epoll::delete(&self.epoll, &lane.doorbell);
        let lane = Arc::downgrade(lane);
        engine.alarm(clock::now_ns() + MUTED_NS, move |engine| {
            let Some(lane) = lane.upgrade() else { return };
            // Locked until it is listened to: a removal comes before, and is seen, or after, and ends the listening.
            let lanes = engine.pool.lanes.lock();
            if lanes.contains_key(&lane.bell_token) {
                // A doorbell that was rung at any time is readable for ever, so adding it makes an edge at once.
                let _ = engine.pool.listen(&lane);
            }
        });
    }

    /// Has a worker look at the lane.
    pub fn enqueue(&'static self, lane: Arc<OwnerLane>) {
        self.ready.push(lane);
        self.wake_one();
    }

    /// Has a worker run a request for which a right to run was taken.
    pub fn enqueue_queued(&'static self, queued: Queued) {
        self.queued.push(queued);
        self.wake_one();
    }

    /// Has a worker poll the task.
    pub fn enqueue_task(&'static self, task: Arc<dyn Work>) {
        self.tasks.push(task);
        self.wake_one();
    }

    /// Wakes a sleeping worker, if any, after something was queued; starts the first one, or one more if all are busy.
    fn wake_one(&'static self) {
        // Pairs with the fence in `Worker::sleep`: either we see the sleeper, or it sees what we queued.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) > 0 {
            self.kick.ring();
        } else if self.polling.load(Ordering::Relaxed) == 0 {
            self.ensure_standby();
        }
    }

    /// Sees to it that some worker sleeps at the doorbells, or is about to.
    #[inline]
    pub fn ensure_standby(&'static self) {
        if self.sleeping.load(Ordering::Relaxed) == 0 {
            self.start_worker();
        }
    }

    #[cold]
    fn start_worker(&'static self) {
        let admit = |n: u32| (n < self.workers_max).then_some(n + 1);
        let Ok(before) = self.workers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit) else {
            return;
        };
        let worker = move || Worker::new(self, before + 1).run();
        if signals::spawn("objbus-worker", worker).is_err() {
            // No thread is to be had now; those that run take the work up when they are done.
            self.workers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn has_work(&self) -> bool {
        !(self.ready.is_empty() && self.queued.is_empty() && self.tasks.is_empty())
    }
}

/// A lane that a worker looks at by itself.
struct Polled {
    lane: Arc<OwnerLane>,
    /// Where its caller ran last.
    caller_cpu: u16,
    /// Empty looks since its last request.
    looks: u32,
    idle_since_ns: u64,
    /// It was just rung or handed over: what is in it may have waited.
    is_new: bool,
}

/// What a turn on a lane gave.
enum Turn {
    Served,
    Empty,
    /// Another worker is taking from it.
    Contended,
    /// Another worker has it.
    Lost,
}

/// Whether to go on looking at an empty lane.
enum Linger {
    Yes,
    No,
    /// It is worth it, but enough workers linger already: one of them should.
    Elsewhere,
}

/// One thread of the pool.
pub(crate) struct Worker {
    pool: &'static Pool,
    id: u32,
    lanes: VecDeque<Polled>,
    /// Slots of the present lane answered since its last fence.
    answered: u64,
    /// Those of them whose tasks are left to be woken together.
    untold: u64,
    runs: u32,
    rounds: u32,
    /// The requests of this turn may have lain for a while.
    pub came_late: bool,
    is_polling: bool,
}

impl Worker {
    fn new(pool: &'static Pool, id: u32) -> Worker {
        let lanes = VecDeque::with_capacity(16);
        Worker {
            pool,
            id,
            lanes,
            answered: 0,
            untold: 0,
            runs: 0,
            rounds: 0,
            came_late: false,
            is_polling: false,
        }
    }

    fn run(mut self) {
        loop {
            if let Some(mut polled) = self.lanes.pop_front()
                && self.attend(&mut polled)
            {
                self.lanes.push_back(polled);
            }
            if self.is_wanted() {
                self.work();
            } else if self.lanes.is_empty() {
                self.stop_lingering();
                self.sleep();
            }
        }
    }

    /// Serves a lane, and goes on looking at it as long as that is worth it and nothing else is to be done; whether to
    /// come back to it.
    fn attend(&mut self, polled: &mut Polled) -> bool {
        loop {
            match self.turn(polled) {
                Turn::Served => {}
                Turn::Empty => match self.lingers_on(polled) {
                    Linger::Yes => spin_hint(),
                    Linger::No => return !self.let_go(polled),
                    Linger::Elsewhere => {
                        self.hand_to_polling(polled);
                        return false;
                    }
                },
                // It has the lock for a moment, or lost its processor to this very thread, and under a real-time policy gets it
                // back only if this one gives way.
                Turn::Contended => std::thread::yield_now(),
                Turn::Lost => return !self.let_go(polled),
            }
            self.look_at_bells();
            if !self.lanes.is_empty() || self.is_wanted() {
                return true;
            }
        }
    }

    /// Whether something waits for any worker, or for one that lingers.
    #[inline(always)]
    fn is_wanted(&self) -> bool {
        self.pool.has_work() || self.is_polling && !self.pool.hot.is_empty()
    }

    /// Serves what is in the lane, up to a turn's worth.
    #[inline(always)]
    fn turn(&mut self, polled: &mut Polled) -> Turn {
        let lane = &polled.lane;
        if !lane.ring.is_polled_by(self.id) {
            return Turn::Lost;
        }
        if !lane.ring.has_request() {
            return Turn::Empty;
        }
        let mut request = Request::blank();
        let mut served = 0;
        self.came_late = polled.is_new;
        if lane.woke_caller.load(Ordering::Relaxed) {
            lane.woke_caller.store(false, Ordering::Relaxed);
        }
        while served < TURN || served < SLOTS && self.is_alone() {
            let Some(mut taker) = lane.ring.try_lock() else {
                if served == 0 {
                    return Turn::Contended;
                }
                break;
            };
            let take = if lane.is_open() { taker.take(&mut request) } else { Take::Empty };
            let in_flight = lane.object.rules.limits.in_flight;
            request.is_excess = in_flight < SLOTS as u32 && taker.busy() > in_flight;
            drop(taker);
            match take {
                Take::Empty => break,
                Take::Violation => {
                    lane.violate();
                    break;
                }
                Take::Taken => {}
            }
            if polled.is_new {
                polled.is_new = false;
                if lane.ring.has_request() {
                    lane.watch_burst();
                }
            }
            polled.caller_cpu = request.meta.cpu;
            dispatch::serve(self, lane, &request);
            served += 1;
        }
        lane.after_answers(self.take_answered());
        if served == 0 {
            return Turn::Empty;
        }
        if lane.empty_rings.load(Ordering::Relaxed) != 0 {
            lane.empty_rings.store(0, Ordering::Relaxed);
        }
        polled.looks = 0;
        // It was let go of before a long method; its caller is likely to come back to where it was served.
        if lane.ring.is_unpolled() {
            lane.ring.take_over(self.id);
        }
        Turn::Served
    }

    /// Whether this worker has nothing to do but the lane that it serves.
    fn is_alone(&self) -> bool {
        self.lanes.is_empty() && !self.is_wanted()
    }

    /// Whether to go on looking at a lane that was found empty.
    #[inline(always)]
    fn lingers_on(&mut self, polled: &mut Polled) -> Linger {
        polled.looks += 1;
        if polled.looks == 1 {
            let lane = &polled.lane;
            if polled.caller_cpu == cpu::current() || !lane.ring.hint_is_hot() || lane.is_ending() {
                return Linger::No;
            }
            return if self.start_lingering() { Linger::Yes } else { Linger::Elsewhere };
        }
        if polled.looks < LOOKS_WITHOUT_CLOCK || !polled.looks.is_multiple_of(LOOKS_PER_CLOCK) {
            return Linger::Yes;
        }
        let now_ns = clock::now_ns();
        if polled.looks == LOOKS_WITHOUT_CLOCK {
            polled.idle_since_ns = now_ns;
        }
        let woke_caller = polled.lane.woke_caller.load(Ordering::Relaxed);
        let linger_ns = if woke_caller { LINGER_AFTER_WAKE_NS } else { LINGER_NS };
        let is_over = now_ns - polled.idle_since_ns >= linger_ns || polled.lane.is_ending();
        if is_over { Linger::No } else { Linger::Yes }
    }

    /// Counts this worker among those that linger; `false` if there are enough of them without it.
    #[inline(always)]
    fn start_lingering(&mut self) -> bool {
        if !self.is_polling {
            let max = self.pool.polling_max;
            let admit = |n| (n < max).then_some(n + 1);
            self.is_polling =
                self.pool.polling.fetch_update(Ordering::SeqCst, Ordering::Relaxed, admit).is_ok();
        }
        self.is_polling
    }

    /// Counts it no more; the lanes that others meant for it go to any worker.
    fn stop_lingering(&mut self) {
        if !std::mem::take(&mut self.is_polling) {
            return;
        }
        self.pool.polling.fetch_sub(1, Ordering::SeqCst);
        while let Some(lane) = self.pool.hot.pop() {
            self.pool.enqueue(lane);
        }
    }

    /// Gives the lane to a worker that lingers, or to any if none does any more.
    #[cold]
    fn hand_to_polling(&self, polled: &Polled) {
        self.pool.hot.push(Arc::clone(&polled.lane));
        // SeqCst, with the two of `stop_lingering`: either we see that nobody lingers, or who stops sees the lane.
        fence(Ordering::SeqCst);
        if self.pool.polling.load(Ordering::SeqCst) == 0
            && let Some(lane) = self.pool.hot.pop()
        {
            self.pool.enqueue(lane);
        }
    }

    /// Stops looking at a lane by itself; `false` if a request came meanwhile, so that it must be kept.
    fn let_go(&self, polled: &Polled) -> bool {
        let lane = &polled.lane;
        if !lane.ring.let_go(self.id) && lane.is_open() {
            lane.ring.take_over(self.id);
            return false;
        }
        lane.parcels.collect_if_lent();
        if lane.is_ending() {
            lane.settle();
        }
        true
    }

    /// Looks at the lane by itself from now on.
    fn adopt(&mut self, lane: Arc<OwnerLane>) {
        lane.ring.take_over(self.id);
        if lane.object.has_tasks() {
            lane.object.cancel_withdrawn(&lane);
        }
        lane.parcels.collect_if_lent();
        if !self.lanes.iter().any(|polled| Arc::ptr_eq(&polled.lane, &lane)) {
            let polled = Polled { lane, caller_cpu: NO_CPU, looks: 0, idle_since_ns: 0, is_new: true };
            self.lanes.push_front(polled);
        }
    }

    /// Takes up one thing of each kind that waits for any worker, lanes last: what runs before them may take long, and
    /// would hide them.
    #[cold]
    fn work(&mut self) {
        if let Some(queued) = self.pool.queued.pop() {
            self.leave_rest_to_others();
            dispatch::serve_queued(self, queued);
        }
        if let Some(task) = self.pool.tasks.pop() {
            self.leave_rest_to_others();
            self.hand_over_lanes();
            self.pool.ensure_standby();
            task.run();
        }
        let hot = if self.is_polling { self.pool.hot.pop() } else { None };
        if let Some(lane) = hot.or_else(|| self.pool.ready.pop()) {
            self.adopt(lane);
        }
    }

    /// Several rings of the pool's doorbell can wake one worker only; it passes the ring on.
    fn leave_rest_to_others(&self) {
        if self.pool.has_work() {
            self.pool.wake_one();
        }
    }

    /// Sleeps until a doorbell rings.
    #[cold]
    fn sleep(&mut self) {
        self.pool.sleeping.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence of `Pool::wake_one`.
        fence(Ordering::SeqCst);
        let rung = if self.pool.has_work() { None } else { self.wait_for_bell(None) };
        if self.pool.sleeping.fetch_sub(1, Ordering::SeqCst) == 1 {
            // What this worker runs next may take long, known to be short or not: another is to hear the bells then.
            self.pool.ensure_standby();
        }
        if let Some(token) = rung {
            self.answer_bell(token);
        }
    }

    /// Looks at the doorbells between its lanes, where nobody else does.
    #[inline(always)]
    fn look_at_bells(&mut self) {
        self.rounds = self.rounds.wrapping_add(1);
        if self.rounds.is_multiple_of(ROUNDS_PER_BELLS) && self.pool.sleeping.load(Ordering::Relaxed) == 0 {
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if let Some(token) = self.wait_for_bell(Some(now)) {
                self.answer_bell(token);
            }
        }
    }

    /// One event at a time: the kernel wakes the next worker for the next lane.
    fn wait_for_bell(&self, timeout: Option<rustix::event::Timespec>) -> Option<u64> {
        let mut event =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(KICK) }];
        match epoll::wait(&self.pool.epoll, &mut event[..], timeout.as_ref()) {
            Ok(1) => Some(event[0].data.u64()),
            Ok(_) | Err(Errno::INTR) => None,
            Err(errno) => panic!("the pool's epoll failed: {errno}"),
        }
    }

    fn answer_bell(&mut self, token: u64) {
        if token == KICK {
            return;
        }
        let lane = self.pool.lanes.lock().get(&token).cloned();
        let Some(lane) = lane else { return };
        if !lane.ring.has_request() && lane.empty_rings.fetch_add(1, Ordering::Relaxed) >= EMPTY_RINGS_MAX {
            lane.empty_rings.store(0, Ordering::Relaxed);
            self.pool.mute(lane.object.engine, &lane);
        }
        self.adopt(lane);
    }

    /// Notes that the call in `slot` of the present lane was answered without a fence.
    #[inline(always)]
    pub fn note_answer(&mut self, slot: usize) {
        self.answered |= 1 << slot;
    }

    /// The slots noted since the last time, and those whose tasks were left.
    #[inline(always)]
    pub fn take_answered(&mut self) -> u64 {
        std::mem::take(&mut self.answered) | std::mem::take(&mut self.untold)
    }

    /// Wakes who waits for the answers noted, by the fence of a call's beginning; tasks only if there are no more requests.
    #[inline(always)]
    pub fn tell_answered(&mut self, lane: &Arc<OwnerLane>) {
        let left = lane.after_beginning(std::mem::take(&mut self.answered));
        if left != 0 {
            self.untold |= left;
            lane.watch_burst();
        }
    }

    /// Whether this run is one in `n`.
    #[inline(always)]
    pub fn is_nth_run(&mut self, n: u32) -> bool {
        self.runs = self.runs.wrapping_add(1);
        self.runs.is_multiple_of(n)
    }

    /// A method that may take long is about to run on this thread: what it would hide goes to others.
    #[cold]
    pub fn before_long_method(&mut self, lane: &Arc<OwnerLane>) {
        lane.after_answers(self.take_answered());
        self.hand_over_lanes();
        // Whoever looks at it by the mark: another may have let go of it, and our POLLED have come after.
        if !lane.ring.let_go(self.id) {
            self.pool.enqueue(Arc::clone(lane));
        }
        self.stop_lingering();
        self.pool.ensure_standby();
        self.came_late = true;
    }

    fn hand_over_lanes(&mut self) {
        while let Some(polled) = self.lanes.pop_front() {
            if !self.let_go(&polled) {
                self.pool.enqueue(polled.lane);
            }
        }
    }
}
