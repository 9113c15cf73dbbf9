//! Where callers come in: accepts connections, checks who they are, and makes lanes of them.
//!
//! All of it runs on the watcher thread and nothing in it blocks; a caller that connects and stalls holds one
//! descriptor for a second.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::hosted::Hosted;
use super::lane::{OwnerLane, Parts};
use crate::bus::BusInner;
use crate::engine::{Engine, Source, Token};
use crate::handshake::{
    FEATURES, Hello, LAYOUT, MESSAGE_MAX, Message, Refusal, Unreadable, Welcome, ahead_ms,
};
use crate::names::Bound;
use crate::parcels::Side;
use crate::peer::Peer;
use crate::ring::layout::{REPLACED, RequestMemory, ResponseMemory};
use crate::ring::owner::OwnerRing;
use crate::sys::closer::{self, Foreign};
use crate::sys::eventfd::Doorbell;
use crate::sys::fd::Fd;
use crate::sys::memfd::{self, BadSegment, Mapping};
use crate::sys::socket::Credentials;
use crate::sys::{clock, socket};

/// How long a caller may take for its part of the handshake.
const HANDSHAKE_NS: u64 = 1_000_000_000;
/// How long a successor may take to put its socket in our place.
const SUCCESSION_NS: u64 = 5_000_000_000;
/// Successors that may be at it at once; more are a mistake, or a siege.
const SUCCESSORS_MAX: usize = 4;
/// Connections of one user that may be in the middle of it.
const HALF_OPEN_MAX: usize = 64;
/// How long accepting pauses when no descriptors are left.
const PAUSE_NS: u64 = 50_000_000;
/// Connections accepted before the watcher looks after others.
const ACCEPTED_AT_ONCE: usize = 32;

/// A published name's listener.
pub(crate) struct Listener {
    pub hosted: Arc<Hosted>,
    /// `None` on an in-memory bus, or once withdrawn.
    bound: Mutex<Option<Bound>>,
    token: Mutex<Option<Token>>,
    /// Kept so that a caller can be refused when no other descriptor is left.
    spare: Mutex<Option<Fd>>,
    half_open: Mutex<HashMap<u32, usize>>,
    successors: AtomicUsize,
    is_paused: AtomicBool,
}

impl Listener {
    pub fn new(hosted: Arc<Hosted>, bound: Option<Bound>) -> Result<Arc<Listener>, Errno> {
        let listener = Arc::new(Listener {
            hosted,
            spare: Mutex::new(bound.as_ref().map(|bound| spare_fd(&bound.listener)).transpose()?),
            bound: Mutex::new(bound),
            token: Mutex::new(None),
            half_open: Mutex::default(),
            successors: AtomicUsize::new(0),
            is_paused: AtomicBool::new(false),
        });
        if let Some(bound) = &*listener.bound.lock() {
            let source = Arc::clone(&listener) as Arc<dyn Source>;
            *listener.token.lock() =
                Some(listener.hosted.engine.add(&bound.listener, EventFlags::IN, source)?);
        }
        Ok(listener)
    }

    /// Withdraws the name: nobody can connect any more.
    pub fn withdraw(&self) {
        let bound = self.bound.lock().take();
        if let Some(bound) = bound {
            if let Some(token) = self.token.lock().take() {
                self.hosted.engine.remove(token, &bound.listener);
            }
            bound.withdraw();
        }
    }

    /// Begins the handshake with whoever is at the other end of `socket`.
    pub fn admit(self: &Arc<Self>, engine: &'static Engine, socket: Fd) {
        if let Err(refusal) = self.try_admit(engine, &socket) {
            refuse(&socket, refusal);
            return;
        }
        let half_open = Arc::new(HalfOpen {
            listener: Arc::clone(self),
            uid: socket::peer_credentials(&socket).map_or(u32::MAX, |who| who.uid),
            socket: Mutex::new(Some(socket)),
            token: Mutex::new(None),
            alarm: Mutex::new(None),
            is_replacing: AtomicBool::new(false),
        });
        half_open.start(engine);
    }

    /// Checks the caller's user before anything is read from it.
    fn try_admit(&self, engine: &'static Engine, socket: &Fd) -> Result<(), Refusal> {
        let who = socket::peer_credentials(socket).map_err(|_| Refusal::PermissionDenied)?;
        let bus = self.hosted.bus.upgrade().ok_or(Refusal::Closing)?;
        if !bus.admits(who.uid) {
            return Err(Refusal::PermissionDenied);
        }
        if closer::is_full(who.uid) {
            return Err(Refusal::TooManyCallers);
        }
        // Who may be a successor is heard first: one is no caller, and no rule for callers holds for it.
        if !may_succeed(who.uid) {
            self.try_admit_caller(&who, socket)?;
        }
        if self.hosted.is_closing() {
            return Err(Refusal::Closing);
        }
        if engine.is_foreign() {
            return Err(Refusal::TooManyCallers);
        }
        let mut half_open = self.half_open.lock();
        let of_uid = half_open.entry(who.uid).or_default();
        if *of_uid >= HALF_OPEN_MAX {
            return Err(Refusal::TooManyCallers);
        }
        *of_uid += 1;
        Ok(())
    }

    /// Checks what the object asks of its callers.
    fn try_admit_caller(&self, who: &Credentials, socket: &Fd) -> Result<(), Refusal> {
        let groups = if self.hosted.asks_for_groups() {
            socket::peer_groups(socket).map_err(|_| Refusal::PermissionDenied)?
        } else {
            Vec::new()
        };
        if !self.hosted.rules.access.admits(who, &groups) {
            return Err(Refusal::PermissionDenied);
        }
        if self.hosted.has_room_for(who.pid) { Ok(()) } else { Err(Refusal::TooManyCallers) }
    }

    fn end_half_open(&self, uid: u32) {
        let mut half_open = self.half_open.lock();
        if let Some(of_uid) = half_open.get_mut(&uid) {
            *of_uid = of_uid.saturating_sub(1);
            if *of_uid == 0 {
                half_open.remove(&uid);
            }
        }
    }

    /// No descriptors are left: refuses the next caller with the spare one, and looks again a little later.
    #[cold]
    fn pause(self: &Arc<Self>, engine: &'static Engine) {
        let bound = self.bound.lock();
        let Some(listening) = bound.as_ref().map(|bound| &bound.listener) else { return };
        let spare = self.spare.lock().take();
        drop(spare);
        if let Ok(socket) = socket::accept(listening) {
            refuse(&socket, Refusal::NoFds);
        }
        *self.spare.lock() = spare_fd(listening).ok();
        engine.mute(listening);
        drop(bound);
        self.is_paused.store(true, Ordering::Relaxed);
        let listener = Arc::downgrade(self);
        engine.alarm(clock::now_ns() + PAUSE_NS, move |engine| {
            if let Some(listener) = listener.upgrade() {
                listener.go_on(engine);
            }
        });
    }

    fn go_on(&self, engine: &'static Engine) {
        let bound = self.bound.lock();
        let token = *self.token.lock();
        if let (Some(bound), Some(token)) = (&*bound, token) {
            self.is_paused.store(false, Ordering::Relaxed);
            let _ = engine.unmute(token, &bound.listener, EventFlags::IN);
        }
    }

    /// Another process has taken the name over if the path leads to its socket now.
    fn note_replaced(&self) {
        let is_ours = self.bound.lock().as_ref().is_some_and(Bound::still_ours);
        if !is_ours {
            self.withdraw();
            self.hosted.close(REPLACED);
        }
    }
}

/// Whether a process of this user may take the name over.
fn may_succeed(uid: u32) -> bool {
    uid == rustix::process::geteuid().as_raw() || uid == 0
}

fn spare_fd(any: impl AsFd) -> Result<Fd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(any, 3).map(Fd::from)
}

fn refuse(socket: &Fd, refusal: Refusal) {
    let _ = socket::send(socket, &Message::Refused(refusal).encode(), &[]);
}

impl Source for Listener {
    fn ready(self: Arc<Self>, engine: &'static Engine, _events: EventFlags) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let accepted = match &*self.bound.lock() {
                Some(bound) if !self.is_paused.load(Ordering::Relaxed) => socket::accept(&bound.listener),
                _ => return,
            };
            match accepted {
                Ok(socket) => self.admit(engine, socket),
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => return self.pause(engine),
                // A caller that is gone before it was accepted.
                Err(_) => {}
            }
        }
    }
}

/// A connection whose handshake is under way.
struct HalfOpen {
    listener: Arc<Listener>,
    uid: u32,
    socket: Mutex<Option<Fd>>,
    token: Mutex<Option<Token>>,
    /// Ends a handshake that takes too long.
    alarm: Mutex<Option<(u64, Token)>>,
    /// It is a successor, of which only the end is awaited.
    is_replacing: AtomicBool,
}

impl HalfOpen {
    fn start(self: &Arc<Self>, engine: &'static Engine) {
        let events = EventFlags::IN | EventFlags::RDHUP;
        let added = match &*self.socket.lock() {
            Some(socket) => engine.add(socket, events, Arc::clone(self) as Arc<dyn Source>),
            None => return,
        };
        let Ok(token) = added else { return self.end(engine) };
        *self.token.lock() = Some(token);
        let this: Weak<HalfOpen> = Arc::downgrade(self);
        let alarm = engine.alarm(clock::now_ns() + HANDSHAKE_NS, move |engine| {
            let Some(this) = this.upgrade() else { return };
            if !this.is_replacing.load(Ordering::Relaxed) {
                return this.end(engine);
            }
            let left_ns = SUCCESSION_NS - HANDSHAKE_NS;
            engine.alarm(clock::now_ns() + left_ns, move |engine| {
                this.end(engine);
                this.listener.note_replaced();
            });
        });
        *self.alarm.lock() = Some(alarm);
    }

    /// Takes the socket out of the watcher's hands; `None` if that has happened.
    fn detach(&self, engine: &'static Engine) -> Option<Fd> {
        let socket = self.socket.lock().take()?;
        if let Some(token) = self.token.lock().take() {
            engine.remove(token, &socket);
        }
        self.listener.end_half_open(self.uid);
        if let Some(alarm) = self.alarm.lock().take() {
            engine.cancel_alarm(alarm);
        }
        if self.is_replacing.load(Ordering::Relaxed) {
            self.listener.successors.fetch_sub(1, Ordering::Relaxed);
        }
        Some(socket)
    }

    fn end(&self, engine: &'static Engine) {
        if let Some(socket) = self.detach(engine) {
            socket::shutdown(&socket);
        }
    }

    fn greet(&self, engine: &'static Engine, bytes: &[u8], fds: Vec<Foreign>) {
        match Message::decode(bytes) {
            Ok(Message::Hello(hello)) if hello.layout == LAYOUT => {
                let Some(socket) = self.detach(engine) else { return };
                if let Err((socket, refusal)) = self.make_lane(engine, socket, &hello, fds) {
                    refuse(&socket, refusal);
                }
            }
            Ok(Message::Replace) => self.grant(engine),
            // To a peer of another version, any message of ours tells our version.
            Ok(Message::Hello(_)) | Err(Unreadable::Version(_)) => {
                if let Some(socket) = self.detach(engine) {
                    refuse(&socket, Refusal::OtherLayout);
                }
            }
            Ok(_) | Err(Unreadable::Garbage) => self.end(engine),
        }
    }

    /// A successor may take the name if it runs as the same user, or as root.
    fn grant(&self, engine: &'static Engine) {
        let admit = |n| (n < SUCCESSORS_MAX).then_some(n + 1);
        let refusal = if !may_succeed(self.uid) {
            Some(Refusal::PermissionDenied)
        } else if self.is_replacing.load(Ordering::Relaxed) {
            None
        } else {
            let admitted = self.listener.successors.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit);
            admitted.is_err().then_some(Refusal::TooManyCallers)
        };
        if let Some(refusal) = refusal {
            if let Some(socket) = self.detach(engine) {
                refuse(&socket, refusal);
            }
            return;
        }
        self.is_replacing.store(true, Ordering::Relaxed);
        if let Some(socket) = &*self.socket.lock() {
            let _ = socket::send(socket, &Message::Granted.encode(), &[]);
        }
    }

    /// All is checked but the memory: checks it, makes ours, and opens the lane.
    fn make_lane(
        &self,
        engine: &'static Engine,
        socket: Fd,
        hello: &Hello,
        fds: Vec<Foreign>,
    ) -> Result<(), (Fd, Refusal)> {
        let hosted = &self.listener.hosted;
        let made = (|| {
            // Here and not before only: many may have come at once, and this thread alone lets them in.
            let who = socket::peer_credentials(&socket).map_err(|_| Refusal::PermissionDenied)?;
            self.listener.try_admit_caller(&who, &socket)?;
            let bus = hosted.bus.upgrade().ok_or(Refusal::Closing)?;
            let request = receive_request(fds)?;
            let (response, response_fd) =
                memfd::create_sealed("objbus-response", size_of::<ResponseMemory>()).map_err(no_memory)?;
            let doorbell = Doorbell::create().map_err(no_memory)?;
            let peer = engine.peers.of_socket(engine, &socket).map_err(no_memory)?;
            Ok((bus, request, response, response_fd, doorbell, peer))
        })();
        let (bus, request, response, response_fd, doorbell, peer) = match made {
            Ok(made) => made,
            Err(refusal) => return Err((socket, refusal)),
        };
        let bell = doorbell.as_fd().try_clone_to_owned();
        let lane = assemble(hosted, &bus, socket, [request, response], doorbell, peer);
        let welcome = Message::Welcome(Welcome {
            features: FEATURES & hello.features,
            owner_ahead_ms: ahead_ms(clock::now_ns(), hello.clock_ns),
            keys: hosted.keys(),
        });
        // The object before the caller: once it has the lane, whoever withdraws it may end the lane, everywhere, at once. The
        // caller last, when its end is watched: once it is welcome it may be lent something, which nobody could keep for it.
        let opened = engine.pool.add_lane(&lane).is_ok()
            && hosted.add_lane(&lane)
            && lane.watch().is_ok()
            && bell.is_ok_and(|bell| {
                let fds = [response_fd.as_fd(), bell.as_fd()];
                socket::send(&lane.parcels.socket, &welcome.encode(), &fds).is_ok()
            });
        if !opened {
            refuse(&lane.parcels.socket, Refusal::Closing);
            hosted.lane_is_idle(&lane);
            // Where the object did not take it, nobody else does.
            lane.disconnect(engine);
        }
        Ok(())
    }
}

/// The lane with the caller at the other end of `socket`, over its memory and ours.
pub(super) fn assemble(
    hosted: &Arc<Hosted>,
    bus: &Arc<BusInner>,
    socket: Fd,
    [request, response]: [Mapping; 2],
    doorbell: Doorbell,
    peer: Arc<Peer>,
) -> Arc<OwnerLane> {
    let groups =
        if hosted.asks_for_groups() { socket::peer_groups(&socket).unwrap_or_default() } else { Vec::new() };
    // SAFETY: both mappings have the sizes of the types, are page-aligned and zeroed where nobody wrote, and the lane keeps
    // them as long as the ring.
    let ring = unsafe { OwnerRing::new(request.ptr().cast::<RequestMemory>(), response.ptr().cast()) };
    Arc::new(OwnerLane::new(Parts {
        ring,
        parcels: bus.parcels(Side::Owner, socket, &peer, [request, response]),
        object: Arc::clone(hosted),
        denied: hosted.denied_methods(&peer.credentials, &groups),
        peer,
        doorbell,
        bell_token: hosted.engine.pool.fresh_token(),
    }))
}

pub(super) fn receive_request(mut fds: Vec<Foreign>) -> Result<Mapping, Refusal> {
    let fd = fds.pop().filter(|_| fds.is_empty()).ok_or(Refusal::BadSegment)?;
    memfd::receive_sealed(fd, size_of::<RequestMemory>()).map_err(|error| match error {
        BadSegment::Untrusted(_) => Refusal::BadSegment,
        BadSegment::System(errno) => no_memory(errno),
    })
}

fn no_memory(errno: Errno) -> Refusal {
    if matches!(errno, Errno::MFILE | Errno::NFILE) { Refusal::NoFds } else { Refusal::NoMemory }
}

impl Source for HalfOpen {
    fn ready(self: Arc<Self>, engine: &'static Engine, events: EventFlags) {
        let mut message = vec![0; MESSAGE_MAX];
        let received = match &*self.socket.lock() {
            Some(socket) => socket::recv(socket, &mut message, 2),
            None => return,
        };
        match received {
            Err(Errno::AGAIN) if !events.intersects(EventFlags::HUP) => {}
            Ok(received) if received.no_fds => {
                if let Some(socket) = self.detach(engine) {
                    refuse(&socket, Refusal::NoFds);
                }
            }
            Ok(received) if received.len > 0 && !received.truncated => {
                self.greet(engine, &message[..received.len], received.fds);
            }
            // A probe of somebody who only wanted to know whether we live; or a successor that is done.
            _ => {
                self.end(engine);
                if self.is_replacing.load(Ordering::Relaxed) {
                    self.listener.note_replaced();
                }
            }
        }
    }
}
