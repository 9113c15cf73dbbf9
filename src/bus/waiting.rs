//! Who waits for a name to appear.
//!
//! On a directory an inotify watch tells, made when somebody first waits; where none is to be had, who waits looks again
//! after a while, with growing pauses. An in-memory bus tells by itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;

use super::{BusInner, Place};
use crate::engine::{Engine, Source, Token};
use crate::names::{Change, Name, NameWatch};
use crate::sys::{clock, signals};

/// The first pause between two looks where nobody tells, and the longest.
const PAUSES_NS: (u64, u64) = (1_000_000, 64_000_000);
/// How often even who is told looks by itself: a directory that was removed and made anew tells nobody.
const LOOK_ANYWAY_NS: u64 = 1_000_000_000;

/// The waiters of one bus.
#[derive(Default)]
pub(super) struct Waiting {
    wakers: Mutex<HashMap<Name, Vec<(u64, Waker)>>>,
    next_id: AtomicU64,
    watch: Mutex<Option<Watch>>,
}

struct Watch {
    source: Arc<WatchSource>,
    token: Token,
    engine: &'static Engine,
}

/// What the engine calls when the directory changes.
struct WatchSource {
    watch: NameWatch,
    bus: Weak<BusInner>,
}

impl Source for WatchSource {
    fn ready(self: Arc<Self>, _engine: &'static Engine, _events: EventFlags) {
        let Some(bus) = self.bus.upgrade() else { return };
        self.watch.drain(|change| match change {
            Change::Name(name) => bus.waiting.wake(&name),
            Change::Everything => bus.waiting.wake_all(),
        });
    }
}

impl Waiting {
    /// Wakes who waits for `name`.
    pub fn wake(&self, name: &Name) {
        let wakers: Vec<_> =
            self.wakers.lock().get(name).into_iter().flatten().map(|(_, waker)| waker.clone()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn wake_all(&self) {
        let wakers: Vec<_> = self.wakers.lock().values().flatten().map(|(_, waker)| waker.clone()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Has the directory watched; `false` where that is not possible.
    fn ensure_watch(&self, bus: &Arc<BusInner>) -> bool {
        let Place::Directory(directory) = &bus.place else { return true };
        let mut present = self.watch.lock();
        if present.is_some() {
            return true;
        }
        let Some(watch) = NameWatch::new(directory) else { return false };
        let source = Arc::new(WatchSource { watch, bus: Arc::downgrade(bus) });
        let added =
            bus.engine.add(&source.watch.fd(), EventFlags::IN, Arc::clone(&source) as Arc<dyn Source>);
        let Ok(token) = added else { return false };
        *present = Some(Watch { source, token, engine: bus.engine });
        true
    }

    /// Stops watching once nobody waits.
    fn release_watch(&self) {
        let watch = {
            // Locked until it is taken: who comes to wait after that finds none, and makes another.
            let wakers = self.wakers.lock();
            if wakers.is_empty() { self.watch.lock().take() } else { None }
        };
        if let Some(watch) = watch {
            watch.engine.remove(watch.token, &watch.source.watch.fd());
            // The kernel takes tens of milliseconds to close one: who has just found its name is not to wait for that.
            let _ = signals::spawn("objbus-unwatch", move || drop(watch));
        }
    }
}

/// One who waits for one name; ends with its drop.
pub(crate) struct NameWait {
    bus: Arc<BusInner>,
    name: Name,
    id: u64,
    is_told: bool,
    pause_ns: u64,
}

impl BusInner {
    /// Wakes `waker` whenever `name` may have appeared, as long as the result lives.
    pub fn watch_name(self: &Arc<Self>, name: &Name, waker: &Waker) -> NameWait {
        let id = self.waiting.next_id.fetch_add(1, Ordering::Relaxed);
        self.waiting.wakers.lock().entry(name.clone()).or_default().push((id, waker.clone()));
        let is_told = self.waiting.ensure_watch(self);
        NameWait { bus: Arc::clone(self), name: name.clone(), id, is_told, pause_ns: PAUSES_NS.0 }
    }
}

impl NameWait {
    /// Whether changes are told; else who waits must look.
    pub fn is_told(&self) -> bool {
        self.is_told
    }

    /// When to look again without having been woken (CLOCK_MONOTONIC, ns).
    pub fn next_look_ns(&mut self) -> u64 {
        if self.is_told {
            return clock::now_ns() + LOOK_ANYWAY_NS;
        }
        let pause_ns = self.pause_ns;
        self.pause_ns = (pause_ns * 2).min(PAUSES_NS.1);
        clock::now_ns() + pause_ns
    }
}

impl Drop for NameWait {
    fn drop(&mut self) {
        // In a forked child the locks may be held for ever.
        if self.bus.is_foreign() {
            return;
        }
        let mut wakers = self.bus.waiting.wakers.lock();
        if let Some(waiting) = wakers.get_mut(&self.name) {
            waiting.retain(|(id, _)| *id != self.id);
            if waiting.is_empty() {
                wakers.remove(&self.name);
            }
        }
        drop(wakers);
        self.bus.waiting.release_watch();
    }
}
