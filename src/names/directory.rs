//! The directory that holds the sockets of a bus: found, checked once, then used by descriptor only, so that nobody can
//! put another in its place.

use std::env;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::address::Address;
use super::name::Name;
use crate::sys::clock;
use crate::sys::fd::Fd;
use crate::sys::features::{self, Feature};
use crate::sys::socket::OVERFLOW_UID;

/// How long to wait for the directory's lock, in nanoseconds. It is held for some 100 us at a time; a stopped holder must
/// not hang a publisher for ever.
const LOCK_PATIENCE_NS: u64 = 2_000_000_000;

/// A directory of sockets. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Directory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Opened with O_PATH, which others' directories of mode 0711 allow too.
    fd: Fd,
    /// As it was opened; for sentences, and for reaching sockets where there is no /proc.
    path: PathBuf,
    shared: bool,
}

impl Directory {
    /// This user's directory: `$OBJBUS_DIR`, else `/run/user/<uid>/objbus` if that place is ours, else `/tmp/objbus-<uid>`.
    ///
    /// Made if missing. The error is a sentence that names the directory and what to do.
    pub(crate) fn default_for_user() -> Result<Directory, String> {
        Directory::private(&default_path(env::var_os("OBJBUS_DIR")))
    }

    /// A directory for this user alone: mode 0700, made if missing.
    pub(crate) fn private(path: &Path) -> Result<Directory, String> {
        Directory::open(path, false, |stat| {
            let us = geteuid().as_raw();
            // Who has no number in this user namespace shares one with all others that have none.
            if stat.st_uid != us || us == OVERFLOW_UID {
                return Err(format!(
                    "belongs to user {}, not to this one ({us}): remove it, or set OBJBUS_DIR to a directory of your own",
                    stat.st_uid
                ));
            }
            if stat.st_mode & 0o077 != 0 {
                return Err(format!(
                    "is open to other users (mode {:04o}): run `chmod 700` on it, or set OBJBUS_DIR to a private one",
                    stat.st_mode & 0o7777
                ));
            }
            Ok(())
        })
    }

    /// A directory that other users may reach: made with mode 0711 if missing; writable by its owner alone, who is root, this
    /// user or `owner_uid`.
    pub(crate) fn shared(path: &Path, owner_uid: Option<u32>) -> Result<Directory, String> {
        Directory::open(path, true, |stat| {
            let trusted = [Some(0), Some(geteuid().as_raw()), owner_uid];
            if stat.st_uid == OVERFLOW_UID || !trusted.contains(&Some(stat.st_uid)) {
                return Err(format!(
                    "belongs to user {}: it must belong to root, to this user, or to the user expected to publish in it",
                    stat.st_uid
                ));
            }
            if stat.st_mode & 0o022 != 0 {
                return Err(format!(
                    "is writable by other users (mode {:04o}): run `chmod 711` on it",
                    stat.st_mode & 0o7777
                ));
            }
            Ok(())
        })
    }

    fn open(
        path: &Path,
        shared: bool,
        check: impl FnOnce(&Stat) -> Result<(), String>,
    ) -> Result<Directory, String> {
        let path =
            std::path::absolute(path).map_err(|_| "the run-time directory has an empty path".to_owned())?;
        let sentence = |what: String| format!("the run-time directory {} {what}", path.display());
        make(&path, shared)
            .map_err(|e| sentence(format!("cannot be made ({e}): make it, or set OBJBUS_DIR")))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, &path, flags, Mode::empty()).map_err(|error| {
            sentence(match error {
                Errno::NOTDIR | Errno::LOOP => {
                    "is a symbolic link or no directory: remove it, or set OBJBUS_DIR to a real one"
                        .to_owned()
                }
                error => format!("cannot be opened ({error}): set OBJBUS_DIR to a directory of your own"),
            })
        })?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| sentence(format!("cannot be examined ({e})")))?;
        check(&stat).map_err(sentence)?;
        Ok(Directory(Arc::new(Inner { fd: Fd::from(fd), path, shared })))
    }

    /// The path it was opened by, absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether this process was forked from the one that opened it; then nothing else here may be used.
    pub(crate) fn is_inherited(&self) -> bool {
        self.0.fd.is_inherited()
    }

    #[cfg(test)]
    /// Whether its path still leads to it: not removed, moved or replaced, as by who cleans /tmp. If not, others meet
    /// elsewhere, and the bus must be opened again.
    pub(crate) fn is_current(&self) -> bool {
        let here = rustix::fs::fstat(&self.0.fd);
        let there = rustix::fs::lstat(&self.0.path);
        matches!((here, there), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    pub(super) fn fd(&self) -> &Fd {
        &self.0.fd
    }

    /// The mode of a socket in it: whom a shared bus admits is decided at the handshake.
    pub(super) fn socket_mode(&self) -> Mode {
        Mode::from_raw_mode(if self.0.shared { 0o666 } else { 0o600 })
    }

    /// A path to bind at or to watch, that leads through the descriptor where /proc allows it.
    pub(super) fn path_of(&self, file: &str) -> PathBuf {
        by_descriptor(&self.0.fd).unwrap_or_else(|| self.0.path.clone()).join(file)
    }

    /// What has this file name now, without following a link. `None` if there is nothing.
    pub(super) fn stat(&self, file: &str) -> Result<Option<Stat>, Errno> {
        match rustix::fs::statat(&self.0.fd, file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a file; that there is none, or that we may not, is left for the caller to find.
    pub(super) fn unlink(&self, file: &str) {
        let _ = rustix::fs::unlinkat(&self.0.fd, file, AtFlags::empty());
    }

    /// Locks the directory against other publishers and listers. Errors: `TIMEDOUT` after two seconds, `ACCES`, `MFILE`.
    pub(super) fn lock(&self) -> Result<Lock, Errno> {
        let lock = Lock(self.readable()?);
        let end = clock::now_ns() + LOCK_PATIENCE_NS;
        let mut pause = Duration::from_micros(50);
        loop {
            match rustix::fs::flock(&lock.0, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(Errno::AGAIN | Errno::INTR) if clock::now_ns() < end => thread::sleep(pause),
                Err(Errno::AGAIN | Errno::INTR) => return Err(Errno::TIMEDOUT),
                Err(error) => return Err(error),
            }
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }

    /// The addresses of all files in it, in no order; some may be no sockets.
    pub(super) fn addresses(&self) -> Result<Vec<Address>, Errno> {
        let entries = rustix::fs::Dir::new(rustix::fs::openat(&self.0.fd, ".", READ, Mode::empty())?)?;
        let valid = |entry: rustix::fs::DirEntry| Address::of_file(entry.file_name().to_str().ok()?);
        Ok(entries.filter_map(Result::ok).filter_map(valid).collect())
    }

    /// Those of one name.
    pub(crate) fn addresses_of(&self, name: &Name) -> Result<Vec<Address>, Errno> {
        let mut addresses = self.addresses()?;
        addresses.retain(|address| address.name() == name);
        Ok(addresses)
    }

    /// A fresh open file, so that a lock on it is nobody else's.
    fn readable(&self) -> Result<Fd, Errno> {
        rustix::fs::openat(&self.0.fd, ".", READ, Mode::empty()).map(Fd::from)
    }
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The directory's lock. Unlocked explicitly: a forked child may hold the same open file.
#[derive(Debug)]
pub(super) struct Lock(Fd);

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.0.is_inherited() {
            let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
        }
    }
}

/// The path by which the kernel reaches what a descriptor stands for; `None` where there is no /proc.
pub(super) fn by_descriptor(fd: &Fd) -> Option<PathBuf> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()));
    let works =
        !features::disabled(Feature::ProcFd) && rustix::fs::readlinkat(CWD, &path, Vec::new()).is_ok();
    works.then_some(path)
}

fn default_path(configured: Option<OsString>) -> PathBuf {
    if let Some(path) = configured.filter(|path| !path.is_empty()) {
        return path.into();
    }
    let uid = geteuid().as_raw();
    let run = PathBuf::from(format!("/run/user/{uid}"));
    let ours =
        |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_uid == uid;
    if rustix::fs::lstat(&run).is_ok_and(ours) {
        return run.join("objbus");
    }
    PathBuf::from(format!("/tmp/objbus-{uid}"))
}

/// Makes the directory unless something is there already.
fn make(path: &Path, shared: bool) -> Result<(), Errno> {
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
        Ok(()) if shared => open_to_others(path),
        Err(Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// mkdir obeys the umask, so the mode is set on the directory just made, by descriptor.
fn open_to_others(path: &Path) -> Result<(), Errno> {
    let made = rustix::fs::openat(CWD, path, READ | OFlags::NOFOLLOW, Mode::empty())?;
    rustix::fs::fchmod(made, Mode::from_raw_mode(0o711))
}
