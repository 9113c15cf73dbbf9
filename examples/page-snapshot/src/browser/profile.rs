//! The directory of one run of Chromium: its profile, its temporary files, what it takes for its home.
//!
//! It is locked by the process that made it. A process that is killed loses the lock and leaves the directory, which the next one to make
//! its own then removes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};

/// Short, because Chromium makes a socket below, whose path has room for 107 bytes.
const PREFIX: &str = "page-snapshot-";
/// How often and how long apart it is tried to remove a directory in which dying processes may still make files.
const REMOVALS: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// A directory, and the right to it.
pub(super) struct Profile {
    path: PathBuf,
    _lock: File,
}

impl Profile {
    /// A new, empty one in `place`, which only this user can enter. What killed processes have left there is removed first.
    pub fn create(place: &Path) -> io::Result<Profile> {
        sweep(place);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = place.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                // Another process may have taken it for a left one before it was locked, and removes it.
                Ok(()) => match lock(&path).filter(|_| path.exists()) {
                    Some(lock) => return Ok(Profile { path, _lock: lock }),
                    None => continue,
                },
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, once the processes that used it have been killed.
    pub async fn remove(self) {
        for _ in 0..REMOVALS {
            if self.try_remove() {
                return;
            }
            tokio::time::sleep(REMOVAL_PAUSE).await;
        }
        tracing::warn!("{} could not be removed; the next start tries it again", self.path.display());
    }

    fn try_remove(&self) -> bool {
        fs::remove_dir_all(&self.path).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
    }
}

/// Where nobody could wait: no browser was started in it, or the process ends.
impl Drop for Profile {
    fn drop(&mut self) {
        self.try_remove();
    }
}

/// Removes what killed processes of this user have left.
fn sweep(place: &Path) {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let path = entry.path();
        let ours = |lock: &File| {
            lock.metadata().is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
        };
        if lock(&path).filter(ours).is_some() && fs::remove_dir_all(&path).is_ok() {
            tracing::info!("removed {}, which a killed process has left", path.display());
        }
    }
}

/// The lock of a directory, unless another process has it. No link is followed.
fn lock(path: &Path) -> Option<File> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits();
    let directory = OpenOptions::new().read(true).custom_flags(flags as i32).open(path).ok()?;
    flock(&directory, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place of the test's own.
    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("objbus-profile-{name}-{}", std::process::id()));
        fs::create_dir_all(&place).expect("there is room for a directory");
        place
    }

    #[tokio::test]
    async fn what_a_killed_process_left_goes_and_what_is_in_use_stays() {
        let place = place("sweep");
        let left = place.join("page-snapshot-1-0");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "left").unwrap();
        let other = place.join("somebody-elses");
        fs::create_dir(&other).unwrap();

        let first = Profile::create(&place).unwrap();
        let second = Profile::create(&place).unwrap();
        assert!(!left.exists() && other.exists());
        assert!(first.path().exists() && second.path().exists());
        first.remove().await;
        second.remove().await;
        fs::remove_dir(&other).unwrap();
        fs::remove_dir(&place).expect("nothing is left");
    }
}
