//! The instances that share a name, as one process sees them: who they are, and which of them a call goes to.
//!
//! Each is met over a [`Link`] of its own. A group hangs off the link of the name, from when the first instance is found
//! there, and is looked at only where that link has no lane: whoever has a name for itself costs its callers nothing of this. That
//! owner, where there is one, is a member like the others, whose link is the name's own.
//!
//! Who comes and goes is told by the watch on the directory, and by the ends of lanes. Connecting happens on threads of its own,
//! for all members at once and before a call needs it, so that one that is stopped holds up nobody.

mod choice;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

pub use choice::Balance;
pub(crate) use choice::Choice;

use super::link::{Attempt, Link, NoSlot};
use super::port::{Queued, Reserved};
use crate::bus::{BusInner, NameWait};
use crate::error::ConnectError;
use crate::names::{Address, Name};
use crate::park::{Parker, wake_all};
use crate::sys::clock;
use crate::sys::socket::Credentials;

/// How long a member that could not be reached is left alone while others take the calls; and how often the directory is looked
/// at by whoever calls, where it cannot be watched.
const LEFT_ALONE_NS: u64 = 1_000_000_000;

pub(crate) struct Group {
    bus: Arc<BusInner>,
    name: Name,
    /// The link of the name itself, which holds the group.
    home: Weak<Link>,
    members: Mutex<Arc<[Arc<Member>]>>,
    /// One listing at a time, so that an older one never overwrites a newer.
    listing: Mutex<()>,
    listed_ns: AtomicU64,
    waiters: Mutex<Waiters>,
    /// Keeps the directory watched.
    watch: Mutex<NameWait>,
    /// Used when an attempt to connect has come to its end.
    met: Waker,
}

/// One instance, or who has the name for itself.
struct Member {
    address: Address,
    /// `None`: it is met over the group's home.
    link: Option<Arc<Link>>,
    attempt: Mutex<Meeting>,
}

/// How far a member without a lane is from having one.
enum Meeting {
    /// Nobody has tried since there was one.
    Idle,
    /// The attempt, once it has been made.
    Trying(Option<Arc<Attempt>>),
    /// What came of it, and when.
    Failed(u64, ConnectError),
}

#[derive(Default)]
struct Waiters {
    wakers: Vec<(u64, Waker)>,
    next_id: u64,
    /// An alarm is set that has all of them look again.
    is_alarm_set: bool,
}

/// What a call waits for that no member takes.
#[derive(Debug)]
pub(crate) enum Lacking {
    /// All slots are taken.
    Slot,
    /// A connection is being made.
    Connection,
    /// Nobody publishes what is wanted.
    Instance,
    /// Nobody can be reached.
    Reachable(ConnectError),
}

/// Why a group's waker is used.
struct News {
    group: Weak<Group>,
    /// The directory has changed; else an attempt has ended.
    has_changed: bool,
}

impl Wake for News {
    fn wake(self: Arc<Self>) {
        let Some(group) = self.group.upgrade() else { return };
        if self.has_changed {
            group.list(true);
        }
        group.tell();
    }
}

/// Somebody who waits for a group; ends with its drop.
pub(crate) struct Waiting {
    group: Arc<Group>,
    id: u64,
    /// Since when, as [`Group::reserve`] is told.
    pub since_ns: u64,
    _queued: Vec<Queued>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiters = self.group.waiters.lock();
        let position = waiters.wakers.iter().position(|(id, _)| *id == self.id);
        let removed = position.map(|position| waiters.wakers.swap_remove(position));
        // Without the lock: with it may go the last of a task.
        drop(waiters);
        drop(removed);
    }
}

impl Member {
    fn new(address: Address, bus: &Arc<BusInner>) -> Arc<Member> {
        let link = address.is_instance().then(|| Arc::new(Link::new(Arc::clone(bus), address.clone())));
        Arc::new(Member { address, link, attempt: Mutex::new(Meeting::Idle) })
    }

    /// Begins to connect unless that is being tried.
    fn begin(&self, link: &Arc<Link>, group: &Group) {
        {
            let mut attempt = self.attempt.lock();
            if matches!(*attempt, Meeting::Trying(_)) {
                return;
            }
            *attempt = Meeting::Trying(None);
        }
        // Without the lock: where no thread can be started the waker is used in here.
        let begun = link.connect_in_background(&group.met, u64::MAX, false);
        *self.attempt.lock() = Meeting::Trying(Some(begun));
        // The outcome may have come before it could be found.
        self.settle();
    }

    /// Notes the outcome of an attempt that has ended.
    fn settle(&self) {
        let mut attempt = self.attempt.lock();
        let Meeting::Trying(Some(begun)) = &*attempt else { return };
        match begun.outcome() {
            Some(Ok(())) => *attempt = Meeting::Idle,
            Some(Err(error)) => *attempt = Meeting::Failed(clock::now_ns(), error),
            None => {}
        }
    }

    /// What a call that waits since `since_ns` lacks of a member without a lane. Begins to connect unless that has been tried since
    /// then, or can come to nothing.
    fn lacks(&self, link: &Arc<Link>, group: &Group, since_ns: u64) -> Lacking {
        match &*self.attempt.lock() {
            Meeting::Trying(_) => return Lacking::Connection,
            // The socket of an instance that is gone never is another's.
            Meeting::Failed(at_ns, ConnectError::NotFound { .. })
                if self.address.is_instance() || *at_ns >= since_ns =>
            {
                return Lacking::Instance;
            }
            Meeting::Failed(at_ns, error) if *at_ns >= since_ns => return Lacking::Reachable(error.clone()),
            Meeting::Failed(..) | Meeting::Idle => {}
        }
        self.begin(link, group);
        Lacking::Connection
    }
}

impl Group {
    pub fn new(home: &Arc<Link>) -> Arc<Group> {
        let (bus, name) = (Arc::clone(&home.bus), home.name().clone());
        Arc::new_cyclic(|group| {
            let news = |has_changed| Waker::from(Arc::new(News { group: Weak::clone(group), has_changed }));
            let watch = bus.watch_name(&name, &news(true));
            Group {
                bus,
                name,
                home: Arc::downgrade(home),
                members: Mutex::new(Arc::new([])),
                listing: Mutex::new(()),
                listed_ns: AtomicU64::new(0),
                waiters: Mutex::default(),
                watch: Mutex::new(watch),
                met: news(false),
            }
        })
    }

    fn members(&self) -> Arc<[Arc<Member>]> {
        Arc::clone(&self.members.lock())
    }

    fn link_of(&self, member: &Member) -> Option<Arc<Link>> {
        member.link.clone().or_else(|| self.home.upgrade())
    }

    /// Looks who is there, and begins to connect with who is new. `is_news`: something has changed, so that behind the name's own
    /// socket there may be another owner.
    pub fn list(&self, is_news: bool) {
        let members = self.listed(is_news);
        for member in members.iter().filter(|member| matches!(*member.attempt.lock(), Meeting::Idle)) {
            if let Some(link) = self.link_of(member)
                && link.load().is_none()
            {
                member.begin(&link, self);
            }
        }
    }

    fn listed(&self, is_news: bool) -> Arc<[Arc<Member>]> {
        let _listing = self.listing.lock();
        self.listed_ns.store(clock::coarse_ns(), Ordering::Relaxed);
        let before = self.members();
        let known = |address: &Address| before.iter().find(|member| member.address == *address);
        let addresses = self.bus.addresses_of(&self.name).into_iter();
        let members: Arc<[_]> = addresses
            .map(|address| match known(&address) {
                Some(member) if address.is_instance() || !is_news => Arc::clone(member),
                _ => Member::new(address, &self.bus),
            })
            .collect();
        let former = std::mem::replace(&mut *self.members.lock(), Arc::clone(&members));
        // Without the lock: with the last of a link goes its lane.
        drop(former);
        members
    }

    /// Notes which attempts have ended, and wakes who waits.
    fn tell(&self) {
        self.members().iter().for_each(|member| member.settle());
        let wakers: Vec<_> = self.waiters.lock().wakers.iter().map(|(_, waker)| waker.clone()).collect();
        wake_all(wakers);
    }

    /// A slot of the member that `choice` prefers. `since_ns`: when whoever asks began to; what failed before then is tried
    /// once more.
    pub fn reserve(&self, choice: &Choice, since_ns: u64) -> Result<Reserved, Lacking> {
        let is_old = |group: &Group| {
            let listed_ns = group.listed_ns.load(Ordering::Relaxed);
            clock::coarse_ns().saturating_sub(listed_ns) > LEFT_ALONE_NS
        };
        if is_old(self) && !self.watch.lock().is_told() {
            self.list(true);
        }
        match self.try_reserve(choice, since_ns) {
            Err(Lacking::Instance) => {
                // The news of who has just come may still be on its way.
                self.list(false);
                self.try_reserve(choice, since_ns)
            }
            tried => tried,
        }
    }

    fn try_reserve(&self, choice: &Choice, since_ns: u64) -> Result<Reserved, Lacking> {
        let members = self.members();
        let mut loads: SmallVec<[Option<usize>; 16]> = SmallVec::with_capacity(members.len());
        loads.extend(members.iter().map(|member| self.load(member, choice)));
        let has_absent = loads.contains(&None);
        let held = members.iter().position(|member| choice.holds(&member.address));
        let (turn, mut is_full) = (choice.next_turn(), false);
        while let Some(index) = choice::choose(choice.balance, &loads, turn, held) {
            let member = &members[index];
            let Some(link) = self.link_of(member) else { break };
            match link.reserve_and_keep() {
                Ok(reserved) => {
                    choice.hold(&member.address);
                    if has_absent {
                        let _later = self.lacks(&members, choice, since_ns.saturating_sub(LEFT_ALONE_NS));
                    }
                    return Ok(reserved);
                }
                Err(NoSlot::Full) => is_full = true,
                Err(NoSlot::NoLane) => {}
            }
            if is_full && held == Some(index) {
                break;
            }
            loads[index] = None;
        }
        let lacking = self.lacks(&members, choice, since_ns);
        Err(if is_full { Lacking::Slot } else { lacking })
    }

    /// How many calls a member has, if it is one that `choice` admits and that takes calls.
    fn load(&self, member: &Member, choice: &Choice) -> Option<usize> {
        let link = self.link_of(member)?;
        let load = link.load()?;
        choice.admits(&member.address, link.owner().map(|owner| owner.pid)).then_some(load)
    }

    /// What is lacking of the members without a lane; who can be connected with is, from here on.
    fn lacks(&self, members: &[Arc<Member>], choice: &Choice, since_ns: u64) -> Lacking {
        let mut lacking = Lacking::Instance;
        for member in members {
            let Some(link) = self.link_of(member) else { continue };
            if link.load().is_some() || !choice.admits(&member.address, member.pid(&link)) {
                continue;
            }
            match (member.lacks(&link, self, since_ns), &lacking) {
                (Lacking::Connection, _) => lacking = Lacking::Connection,
                (Lacking::Reachable(error), Lacking::Instance) => lacking = Lacking::Reachable(error),
                _ => {}
            }
        }
        lacking
    }

    /// Has `waker` used when there is something new, or a slot, for as long as the result lives; then look again. One result at a
    /// time for one waker.
    pub fn wait(self: &Arc<Self>, choice: &Choice, waker: &Waker, since_ns: u64) -> Waiting {
        let id = {
            let mut waiters = self.waiters.lock();
            waiters.next_id += 1;
            let id = waiters.next_id;
            waiters.wakers.push((id, waker.clone()));
            id
        };
        self.look_later();
        let links = self
            .members()
            .iter()
            .filter(|member| self.load(member, choice).is_some())
            .cloned()
            .collect::<Vec<_>>();
        let links = links.iter().filter_map(|member| self.link_of(member));
        let queued = links.filter_map(|link| link.queue_for_slot(waker)).collect();
        Waiting { group: Arc::clone(self), id, since_ns, _queued: queued }
    }

    /// Has everybody who waits look again in a while: nobody may tell, and not everything is told.
    fn look_later(self: &Arc<Self>) {
        {
            let mut waiters = self.waiters.lock();
            if waiters.is_alarm_set || waiters.wakers.is_empty() {
                return;
            }
            waiters.is_alarm_set = true;
        }
        let (at_ns, group) = (self.watch.lock().next_look_ns(), Arc::downgrade(self));
        self.bus.engine.alarm(at_ns, move |_| {
            let Some(group) = group.upgrade() else { return };
            group.waiters.lock().is_alarm_set = false;
            if !group.waiters.lock().wakers.is_empty() {
                group.list(true);
                group.tell();
                group.look_later();
            }
        });
    }

    /// Blocks until a member takes calls: until `deadline_ns`, or, unless it is `patient`, until it is clear that none does.
    pub fn meet(
        self: &Arc<Self>,
        choice: &Choice,
        deadline_ns: u64,
        patient: bool,
    ) -> Result<(), ConnectError> {
        let (parker, since_ns) = (Parker::new(), clock::now_ns());
        loop {
            let _waiting = self.wait(choice, parker.waker(), since_ns);
            if let Some(outcome) = self.outcome(choice, since_ns, deadline_ns, patient) {
                return outcome;
            }
            parker.park(deadline_ns);
        }
    }

    /// Whether a member takes calls, once that is clear; if `patient`, that none is there is not the last word before `deadline_ns`.
    pub fn outcome(
        &self,
        choice: &Choice,
        since_ns: u64,
        deadline_ns: u64,
        patient: bool,
    ) -> Option<Result<(), ConnectError>> {
        let now_ns = clock::now_ns();
        let is_late = now_ns >= deadline_ns;
        let failed = match self.reserve(choice, since_ns) {
            Ok(reserved) => {
                reserved.give_back();
                return Some(Ok(()));
            }
            Err(Lacking::Slot) => return Some(Ok(())),
            Err(Lacking::Instance) if is_late || !patient => {
                ConnectError::NotFound { name: choice.label(&self.name), waited: Duration::ZERO }
            }
            Err(Lacking::Connection) if is_late => {
                ConnectError::HandshakeTimeout { after: Duration::from_nanos(now_ns - since_ns) }
            }
            Err(Lacking::Reachable(error)) => error,
            Err(Lacking::Instance | Lacking::Connection) => return None,
        };
        Some(Err(failed))
    }

    /// The members that take calls, as far as `choice` admits them.
    pub fn present(&self, choice: &Choice) -> Vec<(Address, Arc<Link>, Credentials)> {
        let members = self.members();
        let present = members.iter().filter(|member| self.load(member, choice).is_some());
        let with_link = present.filter_map(|member| {
            // Who has just died has ended its calls, and may have its lane for a moment more.
            let link = self.link_of(member).filter(|link| link.has_lane())?;
            let owner = link.owner()?;
            Some((member.address.clone(), link, owner))
        });
        with_link.collect()
    }

    /// Whether members that `choice` may admit are being connected with, as they are from here on if they were not.
    pub fn is_meeting(&self, choice: &Choice, since_ns: u64) -> bool {
        matches!(self.lacks(&self.members(), choice, since_ns), Lacking::Connection)
    }

    /// The links of the members beside the home.
    fn links(&self) -> Vec<Arc<Link>> {
        self.members().iter().filter_map(|member| member.link.clone()).collect()
    }

    /// Calls in flight on the instances.
    pub fn in_flight(&self) -> usize {
        self.links().iter().map(|link| link.in_flight()).sum()
    }

    /// As [`Link::flush`], of the instances.
    pub fn flush(&self, until: Option<Instant>) -> bool {
        self.links().iter().all(|link| link.flush(until))
    }

    /// Ends the connections with the instances.
    pub fn close(&self) {
        self.links().iter().for_each(|link| link.close());
    }
}

impl Member {
    /// The process, as far as it is known.
    fn pid(&self, link: &Link) -> Option<u32> {
        // Another may have the name for itself by now; an instance is always the same process.
        link.owner().filter(|_| self.address.is_instance()).map(|owner| owner.pid)
    }
}
