//! What channels need of the lane they are on: its socket, and that it stays.

use std::os::fd::AsFd;
use std::sync::Weak;

use rustix::io::Errno;

use super::{ACCEPT, CHANNEL_END, CHANNEL_WAKE, OFFER, PackError, Parcels, REST_NS};
use crate::channel::{Channels, Half};
use crate::engine::Engine;
use crate::sys::fd::Fd;
use crate::sys::{clock, fork, socket};

/// Messages that wait for room in the socket: more than all channels of a lane have to say of one that reads it.
const UNSENT_MAX: usize = 16_384;

impl Parcels {
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    pub fn engine(&self) -> &'static Engine {
        self.engine
    }

    /// Counts one more thing held on the lane; `false`: too late.
    pub fn hold(&self) -> bool {
        self.held.hold()
    }

    /// Counts it off.
    pub fn release(&self) {
        if !self.is_inherited() && self.held.release() {
            self.settle();
        }
    }

    /// Whether this process was forked from the one whose lane it is.
    pub fn is_inherited(&self) -> bool {
        fork::forked_since(self.generation)
    }

    /// The peer wrote what no honest one does.
    #[cold]
    pub fn violated(&self) {
        if let Some(resident) = self.resident() {
            resident.violated();
        }
    }

    /// Offers our half of a channel to the owner.
    pub fn offer(&self, id: u32, half: Half, memory: &Fd) -> Result<(), PackError> {
        let [a, b, c, d] = id.to_le_bytes();
        self.send_half(&[OFFER, a, b, c, d, half as u8], memory)
    }

    /// Sends our half of a channel that the caller offered.
    pub fn accept(&self, id: u32, memory: &Fd) -> Result<(), PackError> {
        self.send_half(&about(ACCEPT, id), memory)
    }

    fn send_half(&self, message: &[u8], memory: &Fd) -> Result<(), PackError> {
        socket::send(&self.socket, message, &[memory.as_fd()]).map_err(|errno| match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => PackError::Ended,
            _ => PackError::NoMemory,
        })
    }

    /// Wakes who waits at the other end of a channel.
    #[cold]
    pub fn send_channel_wake(&self, id: u32) {
        self.send_or_later(about(CHANNEL_WAKE, id));
    }

    /// Tells the peer that we have let go of our end.
    #[cold]
    pub fn send_channel_end(&self, id: u32) {
        self.send_or_later(about(CHANNEL_END, id));
    }

    /// Sends a message that must not get lost: where the socket is full, in a while. An honest peer, stopped though it may be, lets
    /// there be two for each channel at most.
    pub(super) fn send_or_later(&self, message: [u8; 5]) {
        let mut unsent = self.unsent.lock();
        let is_first = unsent.is_empty();
        if is_first && self.has_sent(&message) {
            return;
        }
        if unsent.len() >= UNSENT_MAX {
            drop(unsent);
            return self.violated();
        }
        unsent.push_back(message);
        drop(unsent);
        if is_first {
            self.send_later();
        }
    }

    /// Whether nothing is left to be done about a message: it is sent, or nobody will ever read it.
    fn has_sent(&self, message: &[u8]) -> bool {
        !matches!(socket::send(&self.socket, message, &[]), Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM))
    }

    fn send_later(&self) {
        let this = Weak::clone(&self.this);
        self.engine.alarm(clock::now_ns() + REST_NS, move |_| {
            let Some(this) = this.upgrade() else { return };
            let mut unsent = this.unsent.lock();
            while let Some(message) = unsent.front() {
                if !this.has_sent(message) {
                    drop(unsent);
                    return this.send_later();
                }
                unsent.pop_front();
            }
        });
    }
}

fn about(message: u8, id: u32) -> [u8; 5] {
    let [a, b, c, d] = id.to_le_bytes();
    [message, a, b, c, d]
}
