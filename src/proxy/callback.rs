//! Objects that go along with a call, to be called back: [`Exported`] gives one, [`CalledBack`] is what the owner's method gets.
//!
//! The other way round is a lane as any, with the same waits, deadlines and deaths; [`WayBack`] is the owner's end of it. It is
//! made when the first object is asked for and lives as long as the connection that it came over.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::call::Style;
use super::extras::Extra;
use super::lane::{Fate, Lane};
use super::link::Link;
use super::{Absent, Handle};
use crate::error::{BusError, CallError, Executed};
use crate::object::{MethodTable, Proxy};
use crate::owner::context;
use crate::owner::exports::Export;
use crate::owner::lane::OwnerLane;
use crate::parcels::Parcels;
use crate::sys::closer::Foreign;
use crate::sys::{clock, fork, socket};

/// An object of the caller's, for as long as the call that it goes along with.
pub(super) struct Exported {
    number: u32,
    /// Until it is an export.
    table: Option<MethodTable>,
    export: Option<Arc<Export>>,
    /// Where the owner was told of it.
    lane: Weak<Lane>,
}

impl Exported {
    pub fn new(table: MethodTable) -> Exported {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Exported { number, table: Some(table), export: None, lane: Weak::new() }
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    fn withdraw(&mut self) {
        let lane = std::mem::take(&mut self.lane).upgrade();
        let Some(lane) = lane.filter(|lane| !lane.engine.is_foreign()) else { return };
        if let Some(home) = lane.exports.present() {
            // The owner said before the answer if it keeps it.
            lane.parcels.hear();
            home.exports.iter().for_each(|exports| exports.call_ended(self.number));
        }
    }
}

impl Extra for Exported {
    fn attach(&mut self, lane: &Arc<Lane>) -> Result<(), BusError> {
        self.withdraw();
        let Some(bus) = lane.bus() else { return Ok(()) };
        // Of a lane that is ending the call hears as every call does.
        let Some(home) = lane.exports.home(&bus, &lane.parcels, lane.owner_ahead_ms)? else { return Ok(()) };
        // Not before the call is sent, which may be in another runtime than it was made in.
        if let Some(table) = self.table.take() {
            self.export = Some(Arc::new(Export::new(table)));
        }
        let given = home.exports.as_ref().zip(self.export.as_ref());
        if given.is_some_and(|(exports, export)| !exports.insert(self.number, export)) {
            return Err(CallError::Overloaded { executed: Executed::No });
        }
        self.lane = Arc::downgrade(lane);
        Ok(())
    }

    fn ends_with_answer(&self) -> bool {
        true
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// Where an owner calls its caller's objects.
#[derive(Default)]
pub(crate) struct WayBack(Mutex<Way>);

#[derive(Default)]
enum Way {
    /// The caller has given none yet.
    #[default]
    None,
    /// One end of a socket, in which the caller's part of the lane lies.
    Offered(Foreign),
    Open(Arc<Link>, Weak<Lane>),
    Ended,
}

impl WayBack {
    /// The caller offers it. `false`: no honest one does so twice, or sends something else than a socket.
    pub fn offer(&self, end: Foreign) -> bool {
        let mut way = self.0.lock();
        if matches!(*way, Way::Ended) {
            return true;
        }
        let is_honest = matches!(*way, Way::None) && socket::is_local(&end);
        if is_honest {
            *way = Way::Offered(end);
        }
        is_honest
    }

    /// The link that the caller's objects are called through, made with the first; or why there is none.
    fn link(&self, lane: &OwnerLane) -> Result<Arc<Link>, String> {
        let is_unheard_of = matches!(*self.0.lock(), Way::None);
        if is_unheard_of {
            // Its message was sent before the request, and may not have been read.
            lane.parcels.hear();
        }
        let mut way = self.0.lock();
        let end = match std::mem::replace(&mut *way, Way::Ended) {
            Way::Open(link, lane) => {
                *way = Way::Open(Arc::clone(&link), lane);
                return Ok(link);
            }
            Way::None => {
                *way = Way::None;
                return Err("the caller has given no object to call back".to_owned());
            }
            Way::Ended => return Err("the caller's connection has ended".to_owned()),
            Way::Offered(end) => end,
        };
        let bus = lane.object.bus.upgrade().ok_or("the object's bus is gone")?;
        let link = Arc::new(Link::back(bus, &lane.peer));
        let back = link.bus.meet_back(&link, end, &lane.peer).map_err(|error| error.to_string())?;
        *way = Way::Open(Arc::clone(&link), Arc::downgrade(&back));
        // Before anybody else can have the link: nobody looks for another lane.
        link.install(back);
        Ok(link)
    }

    /// The connection that the objects came over has ended.
    pub fn end(&self) {
        let former = std::mem::replace(&mut *self.0.lock(), Way::Ended);
        if let Way::Open(_, lane) = former
            && let Some(lane) = lane.upgrade()
        {
            lane.end(Fate::Closed);
        }
    }
}

/// An owner's right to call an object of the caller's, shared by all proxies of it.
pub(super) struct Claim {
    pub number: u32,
    parcels: Weak<Parcels>,
    generation: u32,
    /// The caller was told that it is kept.
    is_kept: AtomicBool,
}

impl Claim {
    fn keep(&self) {
        if !self.is_kept.swap(true, Ordering::AcqRel) {
            self.tell(true);
        }
    }

    fn tell(&self, is_kept: bool) {
        if let Some(parcels) = self.parcels.upgrade()
            && !fork::forked_since(self.generation)
        {
            parcels.tell_callback(self.number, is_kept);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if *self.is_kept.get_mut() {
            self.tell(false);
        }
    }
}

/// An object of the caller's, as an argument that an owner's method gets; for generated code.
///
/// It goes before the call is answered: what is kept of it beyond that, the caller hears of.
pub struct CalledBack<P> {
    proxy: P,
    claim: Arc<Claim>,
}

impl<P: Proxy> CalledBack<P> {
    fn claim(number: u32) -> Result<CalledBack<P>, String> {
        let lane = context::current_lane().ok_or("it is decoded outside of a call")?;
        let link = lane.way_back.link(&lane)?;
        let claim = Arc::new(Claim {
            number,
            parcels: Arc::downgrade(&lane.parcels),
            generation: fork::generation(),
            is_kept: AtomicBool::new(false),
        });
        let style = Style { timeout_ns: clock::span_ns(link.bus.timeout()), absent: Absent::Fail };
        let handle = Handle::back(link, &P::interface(), style, Arc::clone(&claim));
        Ok(CalledBack { proxy: P::from_handle(handle), claim })
    }

    /// The object, to be called while the method runs.
    pub fn proxy(&self) -> &P {
        &self.proxy
    }

    /// Has the caller keep it beyond the answer: the stream that the method returned may call it until it ends.
    pub fn keep(&self) {
        self.claim.keep();
    }

    /// A proxy of one's own, to be kept.
    pub fn to_owned(&self) -> P {
        P::from_handle(self.proxy.handle().clone())
    }
}

impl<'de, P: Proxy> Deserialize<'de> for CalledBack<P> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<CalledBack<P>, D::Error> {
        CalledBack::claim(u32::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl<P> Drop for CalledBack<P> {
    fn drop(&mut self) {
        // Ours and that of the proxy beside it; who has no other cannot make one now.
        if Arc::strong_count(&self.claim) > 2 {
            self.claim.keep();
        }
    }
}

impl<P> fmt::Debug for CalledBack<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CalledBack({})", self.claim.number)
    }
}
