//! What a process runs beside the user's threads: one watcher thread, and the owner's pool of workers.
//!
//! The watcher sleeps in epoll over everything that happens rarely: listeners, handshakes, the ends of lanes, the
//! deaths of peer processes, names that appear, deadlines of awaited calls. It is on no call's path, and an idle process
//! never wakes it. Both start with the first use and live as long as the process; a forked child starts its own.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::event::epoll;
use rustix::io::Errno;

use crate::owner::pool::Pool;
use crate::panics::contain;
use crate::peer::Peers;
use crate::sys::eventfd::Doorbell;
use crate::sys::fd::Fd;
use crate::sys::{self, clock};

/// Something that the watcher waits for.
pub(crate) trait Source: Send + Sync {
    /// Called on the watcher thread with what epoll said. Must not block.
    fn ready(self: Arc<Self>, engine: &'static Engine, events: epoll::EventFlags);
}

/// What names a registered [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token(u64);

/// Runs on the watcher thread when its time has come.
type Alarm = Box<dyn FnOnce(&'static Engine) + Send>;

#[derive(Default)]
struct Alarms {
    by_time: BTreeMap<(u64, Token), Alarm>,
    /// When the watcher will look by itself (CLOCK_MONOTONIC, ns); `u64::MAX`: not before it is kicked.
    armed_ns: u64,
}

/// The machinery of one process.
pub(crate) struct Engine {
    /// The fork generation that started it; a child of a later one has no such threads.
    generation: u32,
    epoll: Fd,
    kick: Doorbell,
    sources: Mutex<HashMap<Token, Arc<dyn Source>>>,
    alarms: Mutex<Alarms>,
    next_token: AtomicU64,
    pub(crate) peers: Peers,
    pub(crate) pool: Pool,
}

/// The longest sleep of a watcher that has alarms: a time-out beyond what epoll takes in milliseconds, 24 days, asks for a system
/// call that came with Linux 5.11.
const LONGEST_SLEEP_NS: u64 = 86_400_000_000_000;

static CURRENT: AtomicPtr<Engine> = AtomicPtr::new(std::ptr::null_mut());
static STARTING: Mutex<()> = Mutex::new(());
const KICK: Token = Token(0);

/// This process' engine, started if need be.
pub(crate) fn engine() -> Result<&'static Engine, Errno> {
    let current = CURRENT.load(Ordering::Acquire);
    // SAFETY: a stored engine was leaked and is never freed.
    if let Some(engine) = unsafe { current.as_ref() }
        && !sys::fork::forked_since(engine.generation)
    {
        return Ok(engine);
    }
    start()
}

#[cold]
fn start() -> Result<&'static Engine, Errno> {
    let _starting = STARTING.lock();
    let current = CURRENT.load(Ordering::Acquire);
    // SAFETY: as above.
    if let Some(engine) = unsafe { current.as_ref() }
        && !sys::fork::forked_since(engine.generation)
    {
        return Ok(engine);
    }
    let epoll = Fd::from(epoll::create(epoll::CreateFlags::CLOEXEC)?);
    let kick = Doorbell::create()?;
    epoll::add(
        &epoll,
        &kick,
        epoll::EventData::new_u64(KICK.0),
        epoll::EventFlags::IN | epoll::EventFlags::ET,
    )?;
    let engine: &'static Engine = Box::leak(Box::new(Engine {
        generation: sys::fork::generation(),
        epoll,
        kick,
        sources: Mutex::default(),
        alarms: Mutex::new(Alarms { by_time: BTreeMap::new(), armed_ns: u64::MAX }),
        next_token: AtomicU64::new(1),
        peers: Peers::default(),
        pool: Pool::new()?,
    }));
    sys::signals::spawn("objbus-watcher", move || engine.watch()).map_err(|_| Errno::AGAIN)?;
    CURRENT.store(std::ptr::from_ref(engine).cast_mut(), Ordering::Release);
    Ok(engine)
}

impl Engine {
    /// Whether this process was forked from the one that started the engine.
    #[inline(always)]
    pub fn is_foreign(&self) -> bool {
        sys::fork::forked_since(self.generation)
    }

    fn token(&self) -> Token {
        Token(self.next_token.fetch_add(1, Ordering::Relaxed))
    }

    /// Watches `fd` (level-triggered) for `source` until [`remove`](Self::remove).
    pub fn add(
        &self,
        fd: &impl AsFd,
        events: epoll::EventFlags,
        source: Arc<dyn Source>,
    ) -> Result<Token, Errno> {
        let token = self.token();
        self.sources.lock().insert(token, source);
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.0), events).inspect_err(|_| {
            self.sources.lock().remove(&token);
        })?;
        Ok(token)
    }

    /// Stops watching; a call to the source that is under way may still end after this.
    pub fn remove(&self, token: Token, fd: &impl AsFd) {
        // The descriptor may be gone from the set by itself; that is what is wanted.
        let _ = epoll::delete(&self.epoll, fd);
        let removed = self.sources.lock().remove(&token);
        // Without the lock, as in `cancel_alarm`.
        drop(removed);
    }

    /// Stops watching for a while without forgetting the source: a level that stays high would spin.
    pub fn mute(&self, fd: &impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Watches a muted descriptor again.
    pub fn unmute(&self, token: Token, fd: &impl AsFd, events: epoll::EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.0), events)
    }

    /// Runs `alarm` on the watcher thread at `at_ns` (CLOCK_MONOTONIC) unless it is cancelled before.
    pub fn alarm(&self, at_ns: u64, alarm: impl FnOnce(&'static Engine) + Send + 'static) -> (u64, Token) {
        let id = (at_ns, self.token());
        let mut alarms = self.alarms.lock();
        alarms.by_time.insert(id, Box::new(alarm));
        let sooner = at_ns < alarms.armed_ns;
        drop(alarms);
        if sooner {
            self.kick.ring();
        }
        id
    }

    /// Forgets an alarm. The watcher may still wake once for it.
    pub fn cancel_alarm(&self, id: (u64, Token)) {
        let forgotten = self.alarms.lock().by_time.remove(&id);
        // Without the lock: with it may go the last of a task, whose own calls come here.
        drop(forgotten);
    }

    fn watch(&'static self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        loop {
            let timeout = self.ring_alarms();
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                // Nothing but a broken descriptor can be meant, and no caller is there to tell: end what depends on it.
                Err(errno) => panic!("the watcher's epoll failed: {errno}"),
            }
            for event in &events {
                let (flags, data) = (event.flags, event.data.u64());
                let source = self.sources.lock().get(&Token(data)).cloned();
                if let Some(source) = source {
                    // A waker of the user's may panic in here; the watcher goes on for everybody else.
                    contain(|| source.ready(self, flags));
                }
            }
        }
    }

    /// Runs the alarms that are due; how long the watcher may sleep then.
    fn ring_alarms(&'static self) -> Option<rustix::event::Timespec> {
        loop {
            let mut alarms = self.alarms.lock();
            let Some(entry) = alarms.by_time.first_entry() else {
                alarms.armed_ns = u64::MAX;
                return None;
            };
            let (at_ns, now_ns) = (entry.key().0, clock::now_ns());
            if at_ns > now_ns {
                alarms.armed_ns = at_ns;
                return Some(clock::timespec((at_ns - now_ns).min(LONGEST_SLEEP_NS)));
            }
            let alarm = entry.remove();
            drop(alarms);
            contain(|| alarm(self));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// What a waker can hold: a task whose calls have alarms of their own.
    struct Cancels(&'static Engine, (u64, Token));

    impl Drop for Cancels {
        fn drop(&mut self) {
            self.0.cancel_alarm(self.1);
        }
    }

    #[test]
    fn what_goes_with_a_cancelled_alarm_may_cancel_another() {
        let engine = engine().unwrap();
        let far_ns = clock::now_ns() + 3_600_000_000_000;
        let held = Cancels(engine, engine.alarm(far_ns, |_| {}));
        let alarm = engine.alarm(far_ns, move |_| drop(held));
        let (done, is_done) = channel();
        std::thread::spawn(move || {
            engine.cancel_alarm(alarm);
            let _ = done.send(());
        });
        is_done.recv_timeout(Duration::from_secs(30)).expect("the second cancelling waits for the first");
    }
}
