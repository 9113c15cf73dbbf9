//! Where objects are met: what the sockets of names are called.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::name::Name;
use crate::error::PublishError;
use crate::sys::clock;

/// The longest tag, in bytes: with the longest name and a number it fits a file name.
const TAG_MAX: usize = 64;
/// Between the parts of an instance's file name. No name and no tag contains it.
const SEPARATOR: char = '@';

/// What an instance's publisher calls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Tag(Box<str>);

impl Tag {
    /// Checks `tag`; the error is a sentence for the user.
    pub(crate) fn new(tag: &str) -> Result<Tag, &'static str> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if tag.is_empty() || tag.len() > TAG_MAX || !tag.bytes().all(allowed) {
            return Err("a tag has 1 to 64 letters, digits, '.', '_' and '-'");
        }
        Ok(Tag(tag.into()))
    }

    /// The tag as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// One of the instances that share a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Instance {
    tag: Option<Tag>,
    /// No other instance has it, nor will.
    number: u64,
}

/// Where an object is met: at a name that one owner has for itself, whose socket has that file name, or at one of the instances
/// that share a name, whose socket's file is called `<name>@<tag>@<number>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Address {
    name: Name,
    instance: Option<Instance>,
}

impl Address {
    /// That of an instance to be.
    pub(crate) fn of_new_instance(name: Name, tag: Option<Tag>) -> Address {
        // A forked child has its parent's random keys, but another process id.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u64(clock::now_ns());
        hasher.write_u32(std::process::id());
        Address { name, instance: Some(Instance { tag, number: hasher.finish() }) }
    }

    /// The address of the socket with this file name; `None` if it is no such socket's.
    pub(super) fn of_file(file: &str) -> Option<Address> {
        let mut parts = file.split(SEPARATOR);
        let name = Name::new(parts.next()?).ok()?;
        let Some(tag) = parts.next() else { return Some(Address::from(name)) };
        let tag = if tag.is_empty() { None } else { Some(Tag::new(tag).ok()?) };
        let number = u64::from_str_radix(parts.next()?, 16).ok()?;
        let address = Address { name, instance: Some(Instance { tag, number }) };
        // As it is written here and no other way: the file is to be found again.
        (address.file() == file).then_some(address)
    }

    /// The file name of its socket.
    pub(super) fn file(&self) -> Cow<'_, str> {
        match &self.instance {
            None => Cow::Borrowed(self.name.as_str()),
            Some(Instance { tag, number }) => {
                let tag = tag.as_ref().map_or("", Tag::as_str);
                Cow::Owned(format!("{}{SEPARATOR}{tag}{SEPARATOR}{number:016x}", self.name))
            }
        }
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.instance.as_ref()?.tag.as_ref().map(Tag::as_str)
    }

    /// The number of the instance; `None` for a name that is one owner's.
    pub(crate) fn number(&self) -> Option<u64> {
        self.instance.as_ref().map(|instance| instance.number)
    }

    pub(crate) fn is_instance(&self) -> bool {
        self.instance.is_some()
    }

    /// Whether the two cannot be published at once: of one name, and not both instances.
    pub(crate) fn excludes(&self, other: &Address) -> bool {
        self.name == other.name && !(self.is_instance() && other.is_instance())
    }

    /// Whether who publishes here with `replace` takes over from who publishes at `other`: from all that it excludes, and from
    /// instances with its tag.
    pub(crate) fn succeeds(&self, other: &Address) -> bool {
        let is_namesake = self.name == other.name && self.tag().is_some() && self.tag() == other.tag();
        self.excludes(other) || is_namesake
    }

    /// Why another that it excludes cannot be published.
    pub(crate) fn taken_by(&self, pid: u32) -> PublishError {
        match self.is_instance() {
            true => PublishError::PublishedAsInstances { pid },
            false => PublishError::AlreadyPublished { pid },
        }
    }
}

impl From<Name> for Address {
    fn from(name: Name) -> Address {
        Address { name, instance: None }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name::new("math").unwrap()
    }

    #[test]
    fn an_address_is_its_file_name_and_back() {
        for tag in [None, Some("eu"), Some(&*"t".repeat(64))] {
            let tag = tag.map(|tag| Tag::new(tag).unwrap());
            let address = Address::of_new_instance(name(), tag.clone());
            let file = address.file().into_owned();
            assert!(file.starts_with("math@"), "{file}");
            assert_eq!(Address::of_file(&file), Some(address.clone()));
            assert_eq!(address.tag(), tag.as_ref().map(Tag::as_str));
            let longest = Address::of_new_instance(Name::new(&"n".repeat(100)).unwrap(), tag);
            assert!(longest.file().len() <= 255, "{longest}");
        }
        assert_eq!(Address::of_file("math"), Some(Address::from(name())));
        assert_ne!(Address::of_new_instance(name(), None), Address::of_new_instance(name(), None));
    }

    #[test]
    fn other_files_are_no_addresses() {
        let number = "0123456789abcdef";
        for file in [
            ".binding",
            "",
            "@",
            "math@",
            "math@eu",
            "math@eu@",
            "math@eu@12",
            "math@eu@0123456789ABCDEF",
            "math@e u@0123456789abcdef",
            &format!("@eu@{number}"),
            &format!("math@eu@{number}@"),
            &format!("math@eu@+{number}"),
            &format!("math@{}@{number}", "t".repeat(65)),
        ] {
            assert_eq!(Address::of_file(file), None, "{file:?}");
        }
    }

    #[test]
    fn invalid_tags_are_refused_with_a_reason() {
        for tag in ["", "a@b", "a/b", "a b", &"t".repeat(65)] {
            assert!(Tag::new(tag).unwrap_err().contains("letters"), "{tag:?}");
        }
    }

    #[test]
    fn one_owner_and_instances_exclude_each_other() {
        let tagged = |tag| Address::of_new_instance(name(), Some(Tag::new(tag).unwrap()));
        let plain = || Address::of_new_instance(name(), None);
        let alone = || Address::from(name());
        let elsewhere = Address::from(Name::new("other").unwrap());
        for (a, b, excludes, succeeds) in [
            (alone(), alone(), true, true),
            (alone(), tagged("a"), true, true),
            (tagged("a"), alone(), true, true),
            (tagged("a"), tagged("a"), false, true),
            (tagged("a"), tagged("b"), false, false),
            (plain(), plain(), false, false),
            (plain(), tagged("a"), false, false),
            (alone(), elsewhere, false, false),
        ] {
            assert_eq!((a.excludes(&b), a.succeeds(&b)), (excludes, succeeds), "{a}, {b}");
        }
    }
}
