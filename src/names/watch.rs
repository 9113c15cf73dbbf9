//! Tells when names come and go, so that waiting for a name needs no polling.
//!
//! It cannot tell that the directory was removed: the kernel says so only when nobody holds the directory open, as
//! [`Directory`] does. [`Directory::is_current`] is the question to ask.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::inotify::{self, CreateFlags, Event, ReadFlags, WatchFlags};

use super::address::Address;
use super::directory::Directory;
use super::name::Name;
use crate::sys::fd::Fd;
use crate::sys::features::{self, Feature};

/// What happened in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// This name was taken, taken over or given back, or an instance of it came or went.
    Name(Name),
    /// More happened than the kernel kept: look at every name of interest.
    Everything,
}

/// A watch on a directory of names; its descriptor is readable when there is something to drain.
#[derive(Debug)]
pub(crate) struct NameWatch(Fd);

impl NameWatch {
    /// `None` where the directory cannot be watched: no inotify instances left, or a shared directory that we cannot read.
    pub(crate) fn new(directory: &Directory) -> Option<NameWatch> {
        if features::disabled(Feature::Inotify) {
            return None;
        }
        let fd = Fd::from(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?);
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, directory.path_of("."), flags).ok()?;
        Some(NameWatch(fd))
    }

    /// The descriptor to wait on, level- or edge-triggered.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Hands every change since the last call to `on_change`; never blocks.
    pub(crate) fn drain(&self, mut on_change: impl FnMut(Change)) {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut space);
        // Ends with EAGAIN.
        while let Ok(event) = reader.next() {
            if let Some(change) = change(&event) {
                on_change(change);
            }
        }
    }
}

/// Files that are no names, like the one under which sockets are made ready, say nothing.
fn change(event: &Event<'_>) -> Option<Change> {
    if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
        return Some(Change::Everything);
    }
    let address = Address::of_file(event.file_name()?.to_str().ok()?)?;
    Some(Change::Name(address.name().clone()))
}
