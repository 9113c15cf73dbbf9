//! Taking a name, and giving it back.
//!
//! A socket is bound and made ready under a hidden file name, then renamed over the name: callers see the old socket, none,
//! or one that is listened to. All of it happens under the directory's lock, so one hidden name is enough, and what a killed
//! publisher left under it is removed by the next.

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::directory::Directory;
use super::name::Name;
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
    name: Name,
    /// Device and inode of the socket's file; not reused while `listener` is open.
    file: (u64, u64),
}

impl Directory {
    /// Takes `name`, unless a living process has it.
    pub(crate) fn bind(&self, name: &Name) -> Result<Bound, PublishError> {
        if self.is_inherited() {
            return Err(PublishError::ForkedHandle);
        }
        // First without the lock, so that of many who start at once the late ones need not queue.
        self.must_be_free(name)?;
        let _lock = self.lock().map_err(|error| self.failure(error))?;
        self.must_be_free(name)?;
        self.place(name).map_err(|error| self.failure(error))
    }

    /// Takes `name` from whoever has it. That owner, if alive, serves its old connections on; the caller has agreed with it.
    pub(crate) fn replace(&self, name: &Name) -> Result<Bound, PublishError> {
        if self.is_inherited() {
            return Err(PublishError::ForkedHandle);
        }
        let _lock = self.lock().map_err(|error| self.failure(error))?;
        self.place(name).map_err(|error| self.failure(error))
    }

    fn must_be_free(&self, name: &Name) -> Result<(), PublishError> {
        match self.probe(name).map_err(|error| self.failure(error))? {
            Probe::Alive { pid } => Err(PublishError::AlreadyPublished { pid }),
            Probe::Absent | Probe::Foreign | Probe::Dead => Ok(()),
        }
    }

    /// Binds, listens and renames; only under the lock.
    fn place(&self, name: &Name) -> Result<Bound, Errno> {
        self.unlink(HIDDEN);
        let placed = self.place_hidden(name);
        if placed.is_err() {
            self.unlink(HIDDEN);
        }
        placed
    }

    fn place_hidden(&self, name: &Name) -> Result<Bound, Errno> {
        let listener = socket::listen_at(&self.path_of(HIDDEN), BACKLOG)?;
        rustix::fs::chmodat(self.fd(), HIDDEN, self.socket_mode(), AtFlags::empty())?;
        let file = self.identity(HIDDEN)?.ok_or(Errno::NOENT)?;
        rustix::fs::renameat(self.fd(), HIDDEN, self.fd(), name.as_str())?;
        Ok(Bound { listener, directory: self.clone(), name: name.clone(), file })
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
    /// The name.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Whether the name still leads here: not taken over, and the file not removed.
    pub(crate) fn still_ours(&self) -> bool {
        self.directory.identity(self.name.as_str()) == Ok(Some(self.file))
    }

    /// Gives the name back and ends listening; a successor's socket stays. The same as dropping it, but said aloud.
    pub(crate) fn withdraw(self) {}

    /// Without the lock the file stays, as a dead socket for the next publisher: better than removing a successor's.
    fn remove_file(&self) {
        if let Ok(_lock) = self.directory.lock()
            && self.still_ours()
        {
            self.directory.unlink(self.name.as_str());
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
