//! The names of an in-memory bus: what the run-time directory is to other buses.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::PublishError;
use crate::names::{Address, Name};
use crate::owner::listener::Listener;

/// Who listens at which address.
#[derive(Default)]
pub(super) struct Registry(Mutex<HashMap<Address, Weak<Listener>>>);

impl Registry {
    /// Enters a listener. Gives those whose place it takes, which are to be closed; without `replaces` it takes nobody's.
    pub fn enter(
        &self,
        address: &Address,
        listener: &Arc<Listener>,
        replaces: bool,
    ) -> Result<Vec<Arc<Listener>>, PublishError> {
        let mut listeners = self.0.lock();
        let alive = |weak: &Weak<Listener>| weak.upgrade().filter(|present| !present.hosted.is_closing());
        let in_the_way: Vec<_> = listeners
            .iter()
            .filter(|(other, _)| address.excludes(other) || replaces && address.succeeds(other))
            .filter_map(|(other, weak)| Some((other.clone(), alive(weak)?)))
            .collect();
        if let Some((other, _)) = in_the_way.first().filter(|_| !replaces) {
            let refused = other.taken_by(std::process::id());
            // Without the lock: with the last of a listener goes the user's object.
            drop(listeners);
            return Err(refused);
        }
        in_the_way.iter().for_each(|(other, _)| drop(listeners.remove(other)));
        listeners.insert(address.clone(), Arc::downgrade(listener));
        drop(listeners);
        Ok(in_the_way.into_iter().map(|(_, present)| present).collect())
    }

    pub fn find(&self, address: &Address) -> Option<Arc<Listener>> {
        self.0.lock().get(address).and_then(Weak::upgrade)
    }

    /// Takes a listener out; the name that it had.
    pub fn forget(&self, listener: &Listener) -> Option<Name> {
        let mut listeners = self.0.lock();
        let is_it = |weak: &Weak<Listener>| std::ptr::eq(weak.as_ptr(), listener);
        let address = listeners.iter().find(|(_, weak)| is_it(weak)).map(|(address, _)| address.clone())?;
        listeners.remove(&address);
        Some(address.name().clone())
    }

    /// The addresses of all listeners, those of one name beside each other.
    pub fn addresses(&self) -> Vec<Address> {
        let listeners = self.0.lock();
        let live = listeners.iter().filter(|(_, weak)| weak.strong_count() > 0);
        let mut addresses: Vec<_> = live.map(|(address, _)| address.clone()).collect();
        drop(listeners);
        addresses.sort();
        addresses
    }
}
