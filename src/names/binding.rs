//! Taking a name, and giving it back.
//!
//! A socket is bound and made ready under a hidden file name, then renamed over the name: callers see the old socket, none,
//! or one that is listened to. All of it happens under the directory's lock, so one hidden name is enough, and what a killed
//! publisher left under it is removed by the next.

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::address::Address;
use super::directory::Directory;
use super::probe::Probe;
use crate::error::PublishError;
use crate::sys::fd::Fd;
use crate::sys::socket;

/// Where a socket is made ready. No valid name starts with a dot.
const HIDDEN: &str = ".binding";

/// Room for callers that connect while the owner is busy; the kernel caps it (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// A name that this process holds: given back on drop, unless another has taken it over.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Connections come here, probes among them: those close at once without a word.
    pub(crate) listener: Fd,
    directory: Directory,
    address: Address,
    /// Device and inode of the socket's file; not reused while `listener` is open.
    file: (u64, u64),
}

impl Directory {
    /// Takes `address`, unless a living process has it, or one that it excludes.
    pub(crate) fn bind(&self, address: &Address) -> Result<Bound, PublishError> {
        if self.is_inherited() {
            return Err(PublishError::ForkedHandle);
        }
        // First without the lock, so that of many who start at once the late ones need not queue.
        let alone = Address::from(address.name().clone());
        if let Probe::Alive { pid } = self.probe(&alone).map_err(|error| self.failure(error))? {
            return Err(alone.taken_by(pid));
        }
        let _lock = self.lock().map_err(|error| self.failure(error))?;
        self.make_way(address, &[])?;
        self.place(address).map_err(|error| self.failure(error))
    }

    /// Takes `address` in place of `predecessors`. They, if alive, serve their old connections on; the caller has agreed with them.
    pub(crate) fn replace(&self, address: &Address, predecessors: &[Address]) -> Result<Bound, PublishError> {
        if self.is_inherited() {
            return Err(PublishError::ForkedHandle);
        }
        let _lock = self.lock().map_err(|error| self.failure(error))?;
        self.make_way(address, predecessors)?;
        let bound = self.place(address).map_err(|error| self.failure(error))?;
        // After it, so that the name always leads to somebody.
        let others = predecessors.iter().filter(|other| *other != address);
        others.for_each(|other| self.unlink(&other.file()));
        Ok(bound)
    }

    /// Refuses where a living process has what `address` excludes, beside `predecessors`, and removes the dead instances of the
    /// name. Only under the lock.
    fn make_way(&self, address: &Address, predecessors: &[Address]) -> Result<(), PublishError> {
        for other in self.addresses_of(address.name()).map_err(|error| self.failure(error))? {
            if predecessors.contains(&other) {
                continue;
            }
            match self.probe(&other).map_err(|error| self.failure(error))? {
                Probe::Alive { pid } if address.excludes(&other) => return Err(other.taken_by(pid)),
                Probe::Dead if other.is_instance() => self.unlink(&other.file()),
                Probe::Alive { .. } | Probe::Dead | Probe::Absent | Probe::Foreign => {}
            }
        }
        Ok(())
    }

    /// Binds, listens and renames; only under the lock.
    fn place(&self, address: &Address) -> Result<Bound, Errno> {
        self.unlink(HIDDEN);
        let placed = self.place_hidden(address);
        if placed.is_err() {
            self.unlink(HIDDEN);
        }
        placed
    }

    fn place_hidden(&self, address: &Address) -> Result<Bound, Errno> {
        let listener = socket::listen_at(&self.path_of(HIDDEN), BACKLOG)?;
        rustix::fs::chmodat(self.fd(), HIDDEN, self.socket_mode(), AtFlags::empty())?;
        let file = self.identity(HIDDEN)?.ok_or(Errno::NOENT)?;
        rustix::fs::renameat(self.fd(), HIDDEN, self.fd(), &*address.file())?;
        Ok(Bound { listener, directory: self.clone(), address: address.clone(), file })
    }

    fn identity(&self, file: &str) -> Result<Option<(u64, u64)>, Errno> {
        Ok(self.stat(file)?.map(|stat| (stat.st_dev, stat.st_ino)))
    }

    fn failure(&self, error: Errno) -> PublishError {
        let path = self.path().display();
        match error {
            Errno::ACCESS | Errno::PERM => PublishError::PermissionDenied,
            Errno::MFILE | Errno::NFILE => PublishError::NoFds,
            Errno::NOMEM | Errno::NOBUFS => PublishError::NoMemory,
            Errno::NOENT => PublishError::RuntimeDirUnsafe {
                reason: format!("the run-time directory {path} was removed: open the bus again"),
            },
            Errno::NAMETOOLONG => PublishError::System {
                reason: format!(
                    "without /proc the path of the run-time directory {path} is too long for a socket"
                ),
            },
            Errno::TIMEDOUT => PublishError::System {
                reason: format!("another process holds the lock of {path}; it may be stopped"),
            },
            error => PublishError::System { reason: format!("publishing in {path}: {error}") },
        }
    }
}

impl Bound {
    #[cfg(test)]
    /// Where it is met.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the name still leads here: not taken over, and the file not removed.
    pub(crate) fn still_ours(&self) -> bool {
        self.directory.identity(&self.address.file()) == Ok(Some(self.file))
    }

    /// Gives the name back and ends listening; a successor's socket stays. The same as dropping it, but said aloud.
    pub(crate) fn withdraw(self) {}

    /// Without the lock the file stays, as a dead socket for the next publisher: better than removing a successor's.
    fn remove_file(&self) {
        if let Ok(_lock) = self.directory.lock()
            && self.still_ours()
        {
            self.directory.unlink(&self.address.file());
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // In a forked child the name is the parent's, and so is the socket that shutdown would end.
        if self.listener.is_inherited() {
            return;
        }
        if self.still_ours() {
            self.remove_file();
        }
        // Ends listening also for a raw clone that holds the socket.
        socket::shutdown(&self.listener);
    }
}
