//! Whether a name is alive, and connecting to it.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::address::Address;
use super::directory::{Directory, by_descriptor};
use super::name::Name;
use crate::error::ConnectError;
use crate::sys::fd::Fd;
use crate::sys::{clock, pidfd, socket};

/// How long a probe waits for a full backlog, in nanoseconds: a publisher must answer within 10 ms.
const PROBE_PATIENCE_NS: u64 = 4_000_000;

/// What a look at a name found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// Nothing has the name.
    Absent,
    /// A file that is no socket, hence none of ours.
    Foreign,
    /// A socket whose process has ended or stopped listening.
    Dead,
    /// A socket that is listened to; 0 where the process's number cannot be known.
    Alive { pid: u32 },
}

/// One attempt's result.
enum Attempt {
    Connected(Fd),
    Full,
    Nobody(Probe),
}

impl Directory {
    /// Connects to whoever publishes at `address`, waiting for room in its backlog until `deadline_ns` (CLOCK_MONOTONIC).
    ///
    /// A socket whose process is dead counts as nobody, even if a forked child still holds it.
    pub(crate) fn connect(&self, address: &Address, deadline_ns: u64) -> Result<Fd, ConnectError> {
        if self.is_inherited() {
            return Err(ConnectError::ForkedHandle);
        }
        let start = clock::now_ns();
        // A second look finds the owner that may have taken the name from a dead one meanwhile.
        for _ in 0..2 {
            match self.knock(address, deadline_ns).map_err(|error| refused(address, error))? {
                Attempt::Connected(fd) if listener(&fd).is_some() => return Ok(fd),
                Attempt::Connected(_) | Attempt::Nobody(_) => {}
                Attempt::Full => {
                    let after = Duration::from_nanos(clock::now_ns() - start);
                    return Err(ConnectError::HandshakeTimeout { after });
                }
            }
        }
        Err(ConnectError::NotFound { name: address.name().to_string(), waited: Duration::ZERO })
    }

    /// The live names, with the number of each one's process (0 if unknown), of several instances that of one. Dead sockets are
    /// removed on the way.
    pub(crate) fn list(&self) -> Vec<(Name, u32)> {
        if self.is_inherited() {
            return Vec::new();
        }
        let mut live = BTreeMap::new();
        let mut dead = Vec::new();
        for address in self.addresses().unwrap_or_default() {
            match self.probe(&address) {
                Ok(Probe::Alive { pid }) => drop(live.entry(address.name().clone()).or_insert(pid)),
                Ok(Probe::Dead) => dead.push(address),
                Ok(Probe::Absent | Probe::Foreign) | Err(_) => {}
            }
        }
        if !dead.is_empty() {
            self.remove_dead(&dead);
        }
        live.into_iter().collect()
    }

    /// Looks again under the lock: a new owner may have come since.
    fn remove_dead(&self, addresses: &[Address]) {
        let Ok(_lock) = self.lock() else { return };
        for address in addresses {
            if self.probe(address) == Ok(Probe::Dead) {
                self.unlink(&address.file());
            }
        }
    }

    /// Whether `address` is alive. Errors: no descriptors or memory.
    pub(super) fn probe(&self, address: &Address) -> Result<Probe, Errno> {
        match self.knock(address, clock::now_ns() + PROBE_PATIENCE_NS) {
            Ok(Attempt::Connected(fd)) => Ok(listener(&fd).map_or(Probe::Dead, |pid| Probe::Alive { pid })),
            Ok(Attempt::Nobody(probe)) => Ok(probe),
            // A full backlog, another user's socket, or another kind of socket: somebody's.
            Ok(Attempt::Full) | Err(Errno::ACCESS | Errno::PERM | Errno::PROTOTYPE) => {
                Ok(Probe::Alive { pid: 0 })
            }
            Err(error) => Err(error),
        }
    }

    /// Connects, again and again while the backlog is full, until `deadline_ns`.
    fn knock(&self, address: &Address, deadline_ns: u64) -> Result<Attempt, Errno> {
        let file = address.file();
        let mut pause = Duration::from_micros(50);
        loop {
            match self.attempt(&file)? {
                Attempt::Full if clock::now_ns() < deadline_ns => thread::sleep(pause),
                done => return Ok(done),
            }
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }

    fn attempt(&self, file_name: &str) -> Result<Attempt, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(self.fd(), file_name, flags, Mode::empty()) {
            Ok(file) => Fd::from(file),
            Err(Errno::NOENT) => return Ok(Attempt::Nobody(Probe::Absent)),
            Err(error) => return Err(error),
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::Socket {
            return Ok(Attempt::Nobody(Probe::Foreign));
        }
        // Through the socket's own descriptor: a path through the directory's would not fit an address with a long name.
        let path = by_descriptor(&file).unwrap_or_else(|| self.path().join(file_name));
        match socket::connect(&path) {
            Ok(fd) => Ok(Attempt::Connected(fd)),
            Err(Errno::AGAIN) => Ok(Attempt::Full),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(Attempt::Nobody(Probe::Dead)),
            Err(error) => Err(error),
        }
    }
}

/// The number of the living process that listens behind a connection; `None` if it has ended.
fn listener(connected: &Fd) -> Option<u32> {
    match socket::peer_pidfd(connected) {
        Ok(Some(process)) if pidfd::is_dead(&process) => return None,
        Err(Errno::SRCH) => return None,
        // Where no pidfd can be had, that it accepts connections must do.
        Ok(_) | Err(_) => {}
    }
    Some(socket::peer_credentials(connected).map_or(0, |credentials| credentials.pid))
}

fn refused(address: &Address, error: Errno) -> ConnectError {
    match error {
        Errno::ACCESS | Errno::PERM => ConnectError::PermissionDenied,
        Errno::MFILE | Errno::NFILE => ConnectError::NoFds,
        Errno::NOMEM | Errno::NOBUFS => ConnectError::NoMemory,
        Errno::NAMETOOLONG => ConnectError::System {
            reason: format!(
                "without /proc the run-time directory's path is too long to reach `{address}` in it"
            ),
        },
        error => ConnectError::System { reason: format!("connecting to `{address}`: {error}") },
    }
}
