//! The processes at the other ends of our lanes, and what happens when one dies.
//!
//! One pidfd per peer process, watched by the engine. When it becomes readable, no user code of that process runs any
//! more, so what it wrote into shared memory is final; then every lane with it hears of it. A socket's end is not enough:
//! a forked child can hold it open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::blob::limit::Holdings;
use crate::engine::{Engine, Source, Token};
use crate::sys::fd::Fd;
use crate::sys::pidfd;
use crate::sys::socket::{self, Credentials};

/// A lane that wants to hear of its peer's death.
pub(crate) trait Mourner: Send + Sync {
    /// The peer process is dead. Called once, on the watcher thread or by who finds it out.
    fn peer_died(self: Arc<Self>, engine: &'static Engine);
}

/// A peer process.
pub(crate) struct Peer {
    pub credentials: Credentials,
    /// What it has us hold. A process outside our pid namespace is counted once for each of its lanes.
    pub holdings: Holdings,
    /// `None` where the kernel gives none (it lies outside our pid namespace); then a socket's end is its death.
    pidfd: Option<Fd>,
    dead: AtomicBool,
    mourners: Mutex<Vec<Weak<dyn Mourner>>>,
    watched: Mutex<Option<(&'static Engine, Token)>>,
}

impl Peer {
    /// Whether the process is known, or found now, to be dead. `None`: nobody can tell.
    pub fn is_dead(&self) -> Option<bool> {
        if self.dead.load(Ordering::Acquire) {
            return Some(true);
        }
        self.pidfd.as_ref().map(pidfd::is_dead)
    }

    /// Tells `mourner` when the process dies; at once if it has.
    pub fn on_death<M: Mourner + 'static>(&self, engine: &'static Engine, mourner: &Arc<M>) {
        let weak: Weak<dyn Mourner> = Arc::downgrade(&(Arc::clone(mourner) as Arc<dyn Mourner>));
        let mut mourners = self.mourners.lock();
        if self.dead.load(Ordering::Acquire) {
            drop(mourners);
            return Arc::clone(mourner).peer_died(engine);
        }
        // The ended lanes leave room behind: swept when the list would grow.
        if mourners.len() == mourners.capacity() {
            mourners.retain(|weak| weak.strong_count() > 0);
        }
        mourners.push(weak);
    }
}

/// What the watcher holds of a peer, so that the last lane's end frees it.
struct Watch(Weak<Peer>);

impl Source for Watch {
    fn ready(self: Arc<Self>, engine: &'static Engine, _events: EventFlags) {
        let Some(peer) = self.0.upgrade() else { return };
        peer.unwatch();
        engine.peers.forget(&peer);
        let mourners = {
            let mut mourners = peer.mourners.lock();
            peer.dead.store(true, Ordering::Release);
            std::mem::take(&mut *mourners)
        };
        for mourner in mourners.iter().filter_map(Weak::upgrade) {
            mourner.peer_died(engine);
        }
    }
}

impl Peer {
    fn unwatch(&self) {
        if let (Some((engine, token)), Some(pidfd)) = (self.watched.lock().take(), &self.pidfd) {
            engine.remove(token, pidfd);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some((engine, _)) = *self.watched.get_mut() {
            if engine.is_foreign() {
                return;
            }
            engine.peers.forget(self);
        }
        self.unwatch();
    }
}

/// The live peer processes, so that a thousand lanes with one process cost one pidfd.
#[derive(Default)]
pub(crate) struct Peers(Mutex<HashMap<u32, Weak<Peer>>>);

impl Peers {
    /// The process at the other end of `socket`.
    pub fn of_socket(&self, engine: &'static Engine, socket: &Fd) -> Result<Arc<Peer>, Errno> {
        let credentials = socket::peer_credentials(socket)?;
        if let Some(peer) = self.find(&credentials) {
            return Ok(peer);
        }
        let pidfd = socket::peer_pidfd(socket)?;
        let peer = Arc::new(Peer {
            credentials,
            holdings: Holdings::none(),
            pidfd,
            dead: AtomicBool::new(false),
            mourners: Mutex::default(),
            watched: Mutex::new(None),
        });
        if let Some(pidfd) = &peer.pidfd {
            let watch = Arc::new(Watch(Arc::downgrade(&peer)));
            *peer.watched.lock() = Some((engine, engine.add(pidfd, EventFlags::IN, watch)?));
            if credentials.pid != 0 {
                self.0.lock().insert(credentials.pid, Arc::downgrade(&peer));
            }
        }
        Ok(peer)
    }

    /// A known peer of the same pid that is not dead is the same process: a pid is free again only after its death.
    fn find(&self, credentials: &Credentials) -> Option<Arc<Peer>> {
        let peer = self.0.lock().get(&credentials.pid)?.upgrade()?;
        // The same process may have changed its uid between two connections; each lane keeps what was attested for it.
        (peer.is_dead() == Some(false) && peer.credentials == *credentials).then_some(peer)
    }

    fn forget(&self, peer: &Peer) {
        let mut peers = self.0.lock();
        if peers.get(&peer.credentials.pid).is_some_and(|weak| std::ptr::eq(weak.as_ptr(), peer)) {
            peers.remove(&peer.credentials.pid);
        }
    }
}
