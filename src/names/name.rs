//! Names under which objects are published.

use std::fmt;

use crate::owner::exports::NAME;

/// The longest name, in bytes.
const MAX_LEN: usize = 100;

/// A valid name: letters, digits, `.`, `_` and `-`, not starting with a dot. So it is a file name, and never a hidden one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(Box<str>);

impl Name {
    /// Checks `name`; the error is a sentence for the user.
    pub(crate) fn new(name: &str) -> Result<Name, &'static str> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() {
            return Err("it is empty; a name has 1 to 100 bytes");
        }
        if name.len() > MAX_LEN {
            return Err("it is too long; a name has 1 to 100 bytes");
        }
        if !name.bytes().all(allowed) {
            return Err("it has other characters than letters, digits, '.', '_' and '-'");
        }
        if name.starts_with('.') {
            return Err("it starts with a dot");
        }
        Ok(Name(name.into()))
    }

    /// What the objects that come along with calls have instead of a name.
    pub(crate) fn callbacks() -> Name {
        Name(NAME.into())
    }

    /// The name as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_names_are_kept() {
        for name in ["a", "processInfo", "com.example.v1_2-x", &"x".repeat(100)] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn invalid_names_are_refused_with_a_reason() {
        for (name, reason) in [
            ("", "empty"),
            (&*"x".repeat(101), "too long"),
            ("a/b", "characters"),
            ("a\0b", "characters"),
            ("\u{e4}", "characters"),
            ("a b", "characters"),
            (".hidden", "dot"),
            ("..", "dot"),
        ] {
            assert!(Name::new(name).unwrap_err().contains(reason), "{name:?}");
        }
    }
}
