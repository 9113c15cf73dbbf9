//! The instances of a name one by one: who they are, a proxy of each, and a call to all of them.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use serde::de::DeserializeOwned;

use super::Handle;
use super::call::Call;
use super::group::{Choice, Group, Waiting};
use crate::error::CallError;
use crate::names::Address;
use crate::object::Proxy;
use crate::park::Parker;
use crate::sys::clock;
use crate::sys::socket::Credentials;
use crate::wire::errors::OwnError;

/// One of the instances that share a name, with a proxy of it alone; or who has the name for itself.
#[derive(Clone)]
pub struct Member<P> {
    address: Address,
    owner: Credentials,
    proxy: P,
}

impl<P> Member<P> {
    /// Its process id; 0 if it lies outside this pid namespace.
    pub fn pid(&self) -> u32 {
        self.owner.pid
    }

    /// The user that its process runs as.
    pub fn uid(&self) -> u32 {
        self.owner.uid
    }

    /// Its tag, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.address.tag()
    }

    /// A proxy whose calls go to this instance and to no other: once it is gone, they get `NotFound`.
    pub fn proxy(&self) -> &P {
        &self.proxy
    }
}

impl<P> fmt::Debug for Member<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Member");
        shown.field("pid", &self.pid()).field("uid", &self.uid()).field("tag", &self.tag()).finish()
    }
}

/// The instances of a proxy's name, about to be found out; see [`Proxy::instances`].
#[must_use = "it looks for instances when it is waited for or awaited"]
pub struct Instances<P> {
    handle: Handle,
    /// Since when it looks; 0: not yet.
    since_ns: u64,
    waiting: Option<Waiting>,
    makes: PhantomData<fn() -> P>,
}

impl<P: Proxy> Instances<P> {
    pub(crate) fn new(handle: &Handle) -> Instances<P> {
        Instances { handle: handle.clone(), since_ns: 0, waiting: None, makes: PhantomData }
    }

    /// Looks who is there. Blocks while connections with new ones are being made: no longer than a second, and not at all where
    /// that has been done.
    pub fn wait(mut self) -> Vec<Member<P>> {
        let parker = Parker::new();
        loop {
            if let Poll::Ready(members) = self.step(parker.waker()) {
                return members;
            }
            parker.park(u64::MAX);
        }
    }

    fn step(&mut self, waker: &Waker) -> Poll<Vec<Member<P>>> {
        let link = Arc::clone(&self.handle.link);
        if link.is_foreign() {
            std::mem::forget(self.waiting.take());
            return Poll::Ready(Vec::new());
        }
        // What came along with a call has no name to have instances of.
        if link.is_bound() {
            return Poll::Ready(Vec::new());
        }
        let (group, choice): (&Arc<Group>, &Choice) = (link.found_group(), &link.choice);
        if self.since_ns == 0 {
            self.since_ns = clock::now_ns();
            group.list(false);
        }
        self.waiting = None;
        self.waiting = Some(group.wait(choice, waker, self.since_ns));
        if group.is_meeting(choice, self.since_ns) {
            return Poll::Pending;
        }
        self.waiting = None;
        let Handle { keys, style, .. } = &self.handle;
        let members = group.present(choice).into_iter().map(|(address, link, owner)| {
            let handle = Handle { link, keys: Arc::clone(keys), style: *style, claim: None };
            Member { address, owner, proxy: P::from_handle(handle) }
        });
        Poll::Ready(members.collect())
    }
}

impl<P: Proxy> Future for Instances<P> {
    type Output = Vec<Member<P>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().step(cx.waker())
    }
}

impl<P> fmt::Debug for Instances<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instances").field("of", &self.handle).finish()
    }
}

/// What came of a call to one instance.
type Outcome<T, E> = Result<T, CallError<E>>;

/// A call to all instances of a name, about to be made; see [`Proxy::call_all`].
#[must_use = "it calls nobody until it is waited for or awaited"]
pub struct CallAll<P, T, E, F> {
    instances: Instances<P>,
    make: F,
    /// Once it is known whom to call.
    calls: Option<Vec<Pending<P, T, E>>>,
}

enum Progress<T, E> {
    Called(Call<T, E>),
    Done(Outcome<T, E>),
}

/// A call to one instance, or what came of it.
struct Pending<P, T, E> {
    member: Member<P>,
    call: Progress<T, E>,
}

impl<P: Proxy, T, E, F> CallAll<P, T, E, F>
where
    T: DeserializeOwned + 'static,
    E: OwnError,
    F: Fn(&P) -> Call<T, E>,
{
    pub(crate) fn new(handle: &Handle, make: F) -> CallAll<P, T, E, F> {
        CallAll { instances: Instances::new(handle), make, calls: None }
    }

    /// Calls all instances at once, and blocks until each has answered, or failed to in time.
    pub fn wait(self) -> Vec<(Member<P>, Outcome<T, E>)> {
        let CallAll { instances, make, .. } = self;
        let call = |member: Member<P>| {
            let call = make(&member.proxy).started();
            (member, call)
        };
        // All are sent before the first is waited for.
        let calls: Vec<_> = instances.wait().into_iter().map(call).collect();
        calls.into_iter().map(|(member, call)| (member, call.wait())).collect()
    }
}

impl<P, T, E, F> Future for CallAll<P, T, E, F>
where
    P: Proxy + Unpin,
    T: DeserializeOwned + Unpin + 'static,
    E: OwnError + Unpin,
    F: Fn(&P) -> Call<T, E> + Unpin,
{
    type Output = Vec<(Member<P>, Outcome<T, E>)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut calls = match this.calls.take() {
            Some(calls) => calls,
            None => {
                let Poll::Ready(members) = this.instances.step(cx.waker()) else { return Poll::Pending };
                let call = |member: Member<P>| Pending {
                    call: Progress::Called((this.make)(&member.proxy)),
                    member,
                };
                members.into_iter().map(call).collect()
            }
        };
        let mut is_done = true;
        // The first poll of each sends it.
        for Pending { call, .. } in &mut calls {
            if let Progress::Called(running) = call {
                match Pin::new(running).poll(cx) {
                    Poll::Ready(outcome) => *call = Progress::Done(outcome),
                    Poll::Pending => is_done = false,
                }
            }
        }
        if !is_done {
            this.calls = Some(calls);
            return Poll::Pending;
        }
        let outcome = |Pending { member, call }: Pending<P, T, E>| match call {
            Progress::Done(outcome) => Some((member, outcome)),
            Progress::Called(_) => None,
        };
        Poll::Ready(calls.into_iter().filter_map(outcome).collect())
    }
}

impl<P, T, E, F> fmt::Debug for CallAll<P, T, E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallAll").field("of", &self.instances.handle).finish()
    }
}
