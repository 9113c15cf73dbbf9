//! What is said once, when a caller and an owner meet: who speaks which version, and the memory and descriptors that
//! make the lane.
//!
//! ```text
//! caller                                   owner
//!   HELLO   version, layout, features, clock  ---->    checks the caller's uid before, maps nothing before all is checked
//!           + request memfd
//!           <----  WELCOME version, features, offset of the clocks, keys of the object's methods
//!                  + response memfd, doorbell
//!   or      <----  REFUSED why
//! ```
//!
//! An owner that is to be replaced gets REPLACE instead, answers GRANTED, and looks after the end of that connection
//! whether its name is still its own. Every message begins with four bytes of magic and the version, which no version
//! will move; what follows belongs to the version.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::ConnectError;
use crate::ring::layout::{RequestMemory, ResponseMemory, SLOTS};
use crate::wire::budget::{Budget, decode};

/// The protocol's version. Different ones do not talk to each other.
pub(crate) const VERSION: u32 = 1;
const MAGIC: [u8; 4] = *b"objb";
/// The longest message: the keys of [`METHODS_MAX`] methods and a little more.
pub(crate) const MESSAGE_MAX: usize = 96 << 10;
/// An object's methods must fit one message.
pub(crate) const METHODS_MAX: usize = 4096;

/// Bits of [`Hello::features`] and [`Welcome::features`] that this version knows; both sides use those that both have.
pub(crate) const FEATURES: u64 = 0;

/// A number that differs where the two sides would read the shared bytes differently.
pub(crate) const LAYOUT: u64 = (size_of::<RequestMemory>() as u64) << 32
    | (size_of::<ResponseMemory>() as u64) << 8
    | (SLOTS as u64 & 0x3f) << 2
    | (cfg!(target_endian = "big") as u64) << 1
    | (size_of::<usize>() == 8) as u64;

/// What a caller says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub layout: u64,
    pub features: u64,
    /// The caller's CLOCK_MONOTONIC, which another time namespace shifts.
    pub clock_ns: u64,
}

/// What an owner says to a caller that it admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub features: u64,
    /// What to add to the caller's milliseconds for the owner's.
    pub owner_ahead_ms: u32,
    /// Hash of the name and key of each method.
    pub keys: Vec<(u64, u64)>,
}

/// Why an owner does not admit a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    PermissionDenied,
    TooManyCallers,
    BadSegment,
    NoFds,
    NoMemory,
    /// The object is being withdrawn.
    Closing,
    /// The two sides would read the shared bytes differently.
    OtherLayout,
}

/// A message of the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Refused(Refusal),
    Replace,
    Granted,
}

/// Why a message is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The peer speaks another version.
    Version(u32),
    /// It is not of this protocol.
    Garbage,
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        // Writing plain data into a vector cannot fail.
        postcard::to_extend(self, bytes).unwrap_or_default()
    }

    pub fn decode(bytes: &[u8]) -> Result<Message, Unreadable> {
        let (magic, rest) = bytes.split_at_checked(4).ok_or(Unreadable::Garbage)?;
        let (version, body) = rest.split_at_checked(4).ok_or(Unreadable::Garbage)?;
        if magic != MAGIC {
            return Err(Unreadable::Garbage);
        }
        let version = u32::from_le_bytes([version[0], version[1], version[2], version[3]]);
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        let budget = Budget { heap: MESSAGE_MAX as u64, heap_per_byte: 64, ..Budget::default() };
        decode(body, &budget).map_err(|_| Unreadable::Garbage)
    }
}

impl Refusal {
    #[cfg(test)]
    pub const ALL: [Refusal; 7] = {
        use Refusal::*;
        [PermissionDenied, TooManyCallers, BadSegment, NoFds, NoMemory, Closing, OtherLayout]
    };

    pub fn into_error(self, name: &str) -> ConnectError {
        match self {
            Refusal::PermissionDenied => ConnectError::PermissionDenied,
            Refusal::TooManyCallers => ConnectError::TooManyCallers,
            Refusal::BadSegment => {
                ConnectError::BadSegment { reason: "the owner refused this process' segment" }
            }
            Refusal::NoFds => ConnectError::NoFds,
            Refusal::NoMemory => ConnectError::NoMemory,
            Refusal::Closing => ConnectError::NotFound { name: name.to_owned(), waited: Duration::ZERO },
            Refusal::OtherLayout => ConnectError::VersionMismatch { ours: VERSION, theirs: VERSION },
        }
    }
}

/// Clocks further apart than this lie in different time namespaces; nearer ones are the same, with a handshake between.
const SAME_CLOCK_NS: u64 = 2_000_000_000;

/// How far `ours_ns` is ahead of `theirs_ns`, in milliseconds modulo 2^32; 0 for one clock.
pub(crate) fn ahead_ms(ours_ns: u64, theirs_ns: u64) -> u32 {
    if ours_ns.abs_diff(theirs_ns) < SAME_CLOCK_NS {
        return 0;
    }
    ((ours_ns / 1_000_000) as u32).wrapping_sub((theirs_ns / 1_000_000) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_and_fit() {
        let keys = (0..METHODS_MAX as u64).map(|i| (u64::MAX - i, u64::MAX - i)).collect();
        let welcome = Message::Welcome(Welcome { features: 0, owner_ahead_ms: 7, keys });
        let bytes = welcome.encode();
        assert!(bytes.len() <= MESSAGE_MAX, "{} bytes", bytes.len());
        assert_eq!(Message::decode(&bytes), Ok(welcome));
    }

    #[test]
    fn another_version_is_told_from_garbage() {
        let mut bytes = Message::Granted.encode();
        bytes[4] = 9;
        assert_eq!(Message::decode(&bytes), Err(Unreadable::Version(9)));
        bytes[0] = b'x';
        assert_eq!(Message::decode(&bytes), Err(Unreadable::Garbage));
        assert_eq!(Message::decode(b"objb"), Err(Unreadable::Garbage));
        let mut trailing = Message::Granted.encode();
        trailing.push(0);
        assert_eq!(Message::decode(&trailing), Err(Unreadable::Garbage));
    }

    #[test]
    fn clocks_of_another_namespace_are_shifted() {
        assert_eq!(ahead_ms(10_000_000_000, 9_000_000_000), 0, "a slow handshake is no other clock");
        assert_eq!(ahead_ms(10_000_000_000, 1_000_000_000), 9_000);
        assert_eq!(ahead_ms(1_000_000_000, 10_000_000_000), 9_000_u32.wrapping_neg());
    }
}
