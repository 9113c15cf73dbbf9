//! The process that owns a bench's objects, on a bus of its own.

use std::sync::atomic::{AtomicU32, Ordering};

use objbus::Bus;

use super::peer::{self, Peer, Role};
use super::placement::Placement;

/// The owner's role, as [`Role::name`] reports it.
pub const ROLE: &str = "owner";

/// The caller's handle of the owner; dropping it ends the process and removes the bus's directory.
pub struct Owner {
    peer: Peer,
    directory: String,
}

impl Owner {
    /// Starts it at `placement`, and returns when it has published what it has; `arguments` are for [`own`]'s `publish`.
    pub fn start(placement: Placement, arguments: &[String]) -> Owner {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("objbus-bench-{}-{count}", std::process::id()));
        let directory = directory.to_str().expect("a text path").to_owned();
        let told = [std::slice::from_ref(&directory), arguments].concat();
        let peer = Peer::start(placement, ROLE, &told, &[]);
        Owner { peer, directory }
    }

    /// A bus on which the owner's objects are found.
    pub fn bus(&self) -> Bus {
        Bus::builder().directory(&self.directory).open().expect("the bench's own directory")
    }

    /// Its process id, for [`super::counters`].
    pub fn pid(&self) -> u32 {
        self.peer.pid()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The owner's whole life: what `publish` returns is kept until the parent ends.
pub fn own<T>(role: &Role, publish: impl FnOnce(&Bus, &[String]) -> T) {
    let (directory, arguments) = role.arguments.split_first().expect("`Owner::start` tells the directory");
    let bus = Bus::builder().directory(directory).open().expect("the bench's own directory");
    let _published = publish(&bus, arguments);
    peer::ready();
    peer::wait_for_parent();
}
