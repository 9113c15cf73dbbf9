//! Objects that a caller gives its owner along with a call, to be called back.
//!
//! The lane that the owner calls them through is made once for each connection, with the first such call, and bound to it: its
//! socket is one end of a pair, whose other end goes to the owner in a message, with the memory and the doorbell of this side
//! in it. So nobody waits for anybody, and a further object costs an entry in a table. Its methods are found by their keys,
//! each mixed with the object's number.
//!
//! An object is given for its call only. If the owner keeps it, it says so before the answer, and says when it has dropped it.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::dispatch::DESCRIBE_KEY;
use super::hosted::{self, Hosted, MethodState, Rules, Runnable, Runtime, present_runtime};
use super::listener;
use crate::bus::{self, BusInner};
use crate::engine::{Engine, Source, Token};
use crate::error::{BusError, CallError, Executed};
use crate::handshake::{FEATURES, LAYOUT, MESSAGE_MAX, Message, Welcome};
use crate::job::{self, Job};
use crate::object::MethodTable;
use crate::panics::contain;
use crate::parcels::{CALLBACKS, Parcels};
use crate::peer::Peer;
use crate::ring::layout::{CLOSING, ResponseMemory};
use crate::sys::closer::Foreign;
use crate::sys::eventfd::Doorbell;
use crate::sys::fd::Fd;
use crate::sys::memfd::{self, Mapping};
use crate::sys::socket;
use crate::wire::key::key_at;

/// What the objects of one connection are called, in errors and by [`CallContext`](crate::CallContext).
pub(crate) const NAME: &str = "callbacks";
/// Objects that one owner may have at a time, over one connection.
pub(crate) const EXPORTS_MAX: usize = 4096;

/// One object.
pub(crate) struct Export {
    table: MethodTable,
    states: Box<[MethodState]>,
    runtime: Option<Runtime>,
}

impl Export {
    /// Its async methods will run in the runtime that this is called in.
    pub fn new(table: MethodTable) -> Export {
        Export { states: MethodState::of(&table), table, runtime: present_runtime() }
    }

    pub fn table(&self) -> &MethodTable {
        &self.table
    }

    /// Its `index`th method.
    pub fn method(&self, index: usize) -> Runnable<'_> {
        Runnable {
            handler: &self.table.methods()[index].handler,
            state: &self.states[index],
            runtime: self.runtime.as_ref(),
        }
    }

    fn keys(&self) -> impl Iterator<Item = u64> {
        self.table.methods().iter().map(|method| method.signature.key)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let table = std::mem::replace(&mut self.table, MethodTable::named(""));
        // With it may go the object itself, on whichever thread held it last.
        contain(|| drop(table));
    }
}

/// What a request asks of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To run its method of this index.
    Method(usize),
    /// To describe itself.
    Description,
}

/// The objects that an owner has, found by their methods' keys.
#[derive(Default)]
pub(crate) struct ExportTable(Mutex<Present>);

#[derive(Default)]
struct Present {
    by_key: HashMap<u64, (Arc<Export>, Asked)>,
    by_number: HashMap<u32, Entry>,
    /// Taken out under a lock that no code of the user's may run under.
    dropped: Vec<Arc<Export>>,
}

struct Entry {
    export: Arc<Export>,
    /// The owner has it beyond the call.
    is_kept: bool,
}

impl ExportTable {
    pub fn find(&self, key: u64) -> Option<(Arc<Export>, Asked)> {
        self.0.lock().by_key.get(&key).cloned()
    }

    /// Gives the owner an object. `false`: it has too many.
    pub fn insert(&self, number: u32, export: &Arc<Export>) -> bool {
        let mut present = self.0.lock();
        if present.by_number.len() >= EXPORTS_MAX || present.by_number.contains_key(&number) {
            return false;
        }
        present.by_number.insert(number, Entry { export: Arc::clone(export), is_kept: false });
        for (index, key) in export.keys().enumerate() {
            present.by_key.insert(key_at(key, number), (Arc::clone(export), Asked::Method(index)));
        }
        let describe = (Arc::clone(export), Asked::Description);
        present.by_key.insert(key_at(DESCRIBE_KEY, number), describe);
        true
    }

    /// The call that the object was given for is over: it goes, unless the owner has said that it keeps it.
    pub fn call_ended(&self, number: u32) {
        let gone = {
            let mut present = self.0.lock();
            match present.by_number.get(&number) {
                Some(entry) if !entry.is_kept => present.remove(number),
                _ => None,
            }
        };
        drop(gone);
    }

    /// The owner keeps the object, or does no more. Of one that is gone, this comes late.
    pub fn told(&self, number: u32, is_kept: bool) {
        let mut present = self.0.lock();
        if is_kept {
            if let Some(entry) = present.by_number.get_mut(&number) {
                entry.is_kept = true;
            }
        } else if let Some(export) = present.remove(number) {
            present.dropped.push(export);
        }
    }

    /// Lets go of what the owner has dropped.
    pub fn sweep(&self, engine: &'static Engine) {
        let dropped = std::mem::take(&mut self.0.lock().dropped);
        if !dropped.is_empty() {
            let_go(engine, dropped);
        }
    }

    /// The connection has ended.
    fn clear(&self, engine: &'static Engine) {
        let present = std::mem::take(&mut *self.0.lock());
        if !present.by_number.is_empty() {
            let_go(engine, present);
        }
    }
}

/// Drops what may be the last of the user's objects where code of the user's may take its time: not on the watcher's thread.
fn let_go(engine: &'static Engine, objects: impl Send + 'static) {
    Job::new(engine, Box::pin(async move { drop(objects) })).start(&job::Runtime::default());
}

impl Present {
    fn remove(&mut self, number: u32) -> Option<Arc<Export>> {
        let Entry { export, .. } = self.by_number.remove(&number)?;
        for key in export.keys().chain([DESCRIBE_KEY]) {
            self.by_key.remove(&key_at(key, number));
        }
        Some(export)
    }
}

/// What serves them, and who waits for the owner to call.
type Home = (Arc<Hosted>, Arc<Greeter>);

/// The caller's objects on one of its connections.
#[derive(Default)]
pub(crate) struct Exports(Mutex<State>);

#[derive(Default)]
enum State {
    /// None was given yet.
    #[default]
    Unused,
    Open(Home),
    Ended,
}

impl Exports {
    /// What serves them, made with the first. `None`: the connection has ended.
    pub fn home(
        &self,
        bus: &Arc<BusInner>,
        parcels: &Parcels,
        owner_ahead_ms: u32,
    ) -> Result<Option<Arc<Hosted>>, BusError> {
        let mut state = self.0.lock();
        match &*state {
            State::Open((home, _)) => Ok(Some(Arc::clone(home))),
            State::Ended => Ok(None),
            State::Unused => {
                let Some(made) = open(bus, parcels, owner_ahead_ms)? else { return Ok(None) };
                let home = Arc::clone(&made.0);
                *state = State::Open(made);
                Ok(Some(home))
            }
        }
    }

    /// What serves them, if there was any.
    pub fn present(&self) -> Option<Arc<Hosted>> {
        match &*self.0.lock() {
            State::Open((home, _)) => Some(Arc::clone(home)),
            State::Unused | State::Ended => None,
        }
    }

    /// The connection has ended, and with it every object's being there; methods that run end as they will.
    pub fn end(&self) {
        let former = std::mem::replace(&mut *self.0.lock(), State::Ended);
        if let State::Open((home, greeter)) = former {
            greeter.end();
            home.close(CLOSING);
            if let Some(exports) = &home.exports {
                exports.clear(home.engine);
            }
        }
    }
}

/// Makes the lane to be called back through, as far as that is up to this side. `None`: the connection is ending.
fn open(bus: &Arc<BusInner>, parcels: &Parcels, owner_ahead_ms: u32) -> Result<Option<Home>, BusError> {
    let hosted = Arc::new(Hosted::new(hosted::Parts {
        name: NAME.to_owned(),
        table: MethodTable::named(NAME),
        rules: Rules::plain(bus.limits().clone()),
        bus: Arc::downgrade(bus),
        engine: bus.engine,
        exports: Some(ExportTable::default()),
    }));
    let made = (|| {
        let (ours, theirs) = socket::pair()?;
        let (response, response_fd) = memfd::create_sealed("objbus-response", size_of::<ResponseMemory>())?;
        let doorbell = Doorbell::create()?;
        // The clock of this side, on which deadlines come, is the owner's less what that is ahead.
        let owner_ahead_ms = owner_ahead_ms.wrapping_neg();
        let welcome = Message::Welcome(Welcome { features: FEATURES, owner_ahead_ms, keys: Vec::new() });
        socket::send(&ours, &welcome.encode(), &[response_fd.as_fd(), doorbell.as_fd()])?;
        let greeter = Arc::new(Greeter {
            hosted: Arc::clone(&hosted),
            peer: Arc::clone(&parcels.peer),
            prepared: Mutex::new(Some(Prepared { socket: ours, response, doorbell })),
            token: Mutex::new(None),
        });
        greeter.start(bus.engine)?;
        socket::send(&parcels.socket, &[CALLBACKS], &[theirs.as_fd()]).inspect_err(|_| greeter.end())?;
        Ok(greeter)
    })();
    let executed = Executed::No;
    match made {
        Ok(greeter) => Ok(Some((hosted, greeter))),
        Err(Errno::PIPE | Errno::CONNRESET) => Ok(None),
        // The owner does not read its socket.
        Err(Errno::AGAIN) => Err(CallError::Overloaded { executed }),
        Err(errno) => {
            let reason = Box::new(bus::system("making the lane for callbacks")(errno));
            Err(CallError::Unreachable { reason, executed })
        }
    }
}

/// Waits for the owner's memory, which comes when that first calls back, if ever.
struct Greeter {
    hosted: Arc<Hosted>,
    /// The owner, as the connection that the objects were given over attests it; the pair would say that it is us.
    peer: Arc<Peer>,
    /// `None` once the lane is made or will never be.
    prepared: Mutex<Option<Prepared>>,
    token: Mutex<Option<Token>>,
}

/// This side's part of the lane.
struct Prepared {
    socket: Fd,
    response: Mapping,
    doorbell: Doorbell,
}

impl Greeter {
    fn start(self: &Arc<Self>, engine: &'static Engine) -> Result<(), Errno> {
        let events = EventFlags::IN | EventFlags::RDHUP;
        let prepared = self.prepared.lock();
        let Some(Prepared { socket, .. }) = &*prepared else { return Ok(()) };
        *self.token.lock() = Some(engine.add(socket, events, Arc::clone(self) as Arc<dyn Source>)?);
        Ok(())
    }

    fn take(&self) -> Option<Prepared> {
        let prepared = self.prepared.lock().take()?;
        if let Some(token) = self.token.lock().take() {
            self.hosted.engine.remove(token, &prepared.socket);
        }
        Some(prepared)
    }

    fn end(&self) {
        if let Some(prepared) = self.take() {
            socket::shutdown(&prepared.socket);
        }
    }

    /// Opens the lane, unless what came is none of an honest owner's hello.
    fn greet(&self, engine: &'static Engine, message: &[u8], fds: Vec<Foreign>) -> Option<()> {
        let is_hello =
            matches!(Message::decode(message), Ok(Message::Hello(hello)) if hello.layout == LAYOUT);
        let request = listener::receive_request(fds).ok().filter(|_| is_hello)?;
        let bus = self.hosted.bus.upgrade()?;
        let Prepared { socket, response, doorbell } = self.take()?;
        let memories = [request, response];
        let lane = listener::assemble(&self.hosted, &bus, socket, memories, doorbell, Arc::clone(&self.peer));
        let opened =
            engine.pool.add_lane(&lane).is_ok() && self.hosted.add_lane(&lane) && lane.watch().is_ok();
        if !opened {
            self.hosted.lane_is_idle(&lane);
            // Where the object did not take it, nobody else does.
            lane.disconnect(engine);
        }
        Some(())
    }
}

impl Source for Greeter {
    fn ready(self: Arc<Self>, engine: &'static Engine, _events: EventFlags) {
        let mut message = vec![0; MESSAGE_MAX];
        let received = match &*self.prepared.lock() {
            Some(prepared) => socket::recv(&prepared.socket, &mut message, 1),
            None => return,
        };
        let greeted = match received {
            Err(Errno::AGAIN) => Some(()),
            Ok(received) if received.len > 0 && !received.truncated => {
                self.greet(engine, &message[..received.len], received.fds)
            }
            _ => None,
        };
        if greeted.is_none() {
            self.end();
        }
    }
}
