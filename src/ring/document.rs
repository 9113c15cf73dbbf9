//! Holds every number in `docs/layout.md` against the code, in both directions.

use std::collections::BTreeMap;
use std::mem::offset_of;

use serde::Serialize;

use super::channel::*;
use super::layout::*;
use crate::error::Executed;
use crate::handshake::{self, Hello, Message, Refusal, Welcome};
use crate::parcels;
use crate::status::{Refused, Status};
use crate::wire::key::Token;

/// By section and name: offset and size, first and last bit, or a number alone.
type Facts = BTreeMap<(String, String), (u64, u64)>;

/// What the tables of the document say. A table's first column tells what it is about.
fn documented() -> Facts {
    let mut facts = Facts::new();
    let (mut section, mut kind) = (String::new(), String::new());
    for line in include_str!("../../docs/layout.md").lines() {
        if let Some(title) = line.strip_prefix("### ") {
            section = title.to_owned();
            kind.clear();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", head @ ("Offset" | "Number" | "Bits"), ..] => head.clone_into(&mut kind),
            ["", rule, ..] if rule.starts_with("---") => {}
            ["", first, second, third, ..] => {
                let (name, numbers) = match kind.as_str() {
                    "Offset" => (third, (number(first), number(second))),
                    "Number" => (second, (number(first), 0)),
                    "Bits" => {
                        let (low, high) = first.split_once("..").expect("bits are a range");
                        (second, (number(low), number(high)))
                    }
                    _ => panic!("a table in {section} is of no known kind: {line}"),
                };
                let before = facts.insert((section.clone(), name.trim_matches('`').to_owned()), numbers);
                assert_eq!(before, None, "{name} stands twice in {section}");
            }
            _ => {}
        }
    }
    facts
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no number"))
}

/// The number of an enum's variant, as it travels.
fn variant(value: &impl Serialize) -> u64 {
    u64::from(postcard::to_allocvec(value).expect("plain data encodes")[0])
}

/// What the code says.
#[derive(Default)]
struct Built(Facts);

impl Built {
    fn section(&mut self, section: &str, facts: &[(&str, (u64, u64))]) {
        for (name, numbers) in facts {
            let before = self.0.insert((section.to_owned(), (*name).to_owned()), *numbers);
            assert_eq!(before, None, "{name} is listed twice in {section}");
        }
    }

    fn numbers(&mut self, section: &str, facts: &[(&str, u64)]) {
        let facts: Vec<_> = facts.iter().map(|(name, number)| (*name, (*number, 0))).collect();
        self.section(section, &facts);
    }
}

/// Offset and size of each field, and the size of the whole as `end`.
macro_rules! fields {
    ($built:ident, $section:literal, $type:ty, $($field:ident),*) => {
        $built.section($section, &[
            $((stringify!($field), (offset_of!($type, $field) as u64, size_of_field!($type, $field))),)*
            ("end", (size_of::<$type>() as u64, 0)),
        ])
    };
}

macro_rules! size_of_field {
    ($type:ty, $field:ident) => {{
        fn size<T, F>(_: impl Fn(&T) -> &F) -> u64 {
            size_of::<F>() as u64
        }
        size(|value: &$type| &value.$field)
    }};
}

fn memories(built: &mut Built) {
    fields!(built, "Request memory words", RequestMemory, control, cells, returns);
    fields!(built, "Slot control", SlotControl, sleep, withdrawn, hint);
    fields!(built, "Cell", RequestCell, number, meta, key, deadline_ms, len, lent, returned, body);
    fields!(built, "Response memory words", ResponseMemory, polled, closing, started, slots, returns);
    fields!(built, "Slot", ResponseSlot, count, meta, len, lent, body);
    fields!(built, "Returns", Returns, count, wanted, bits);
    fields!(built, "Sender memory words", SenderMemory, sleep, cpu, ring);
    fields!(built, "Receiver memory words", ReceiverMemory, sleep, closed, cpu, taken);
    let words = [("CHANNEL_WORDS", CHANNEL_WORDS as u64), ("ITEM_WORDS", ITEM_WORDS as u64)];
    built.numbers("Channel sizes", &words);
    let loan =
        [("lease", (0, 4)), ("segment", (4, 4)), ("offset", (8, 8)), ("len", (16, 8)), ("end", (24, 0))];
    built.section("Loan", &loan);
    built.numbers(
        "Sizes",
        &[
            ("SLOTS", SLOTS as u64),
            ("REQUEST_BODY", REQUEST_BODY as u64),
            ("RESPONSE_BODY", RESPONSE_BODY as u64),
            ("CHAIN_WORDS", CHAIN_WORDS as u64),
            ("CHAIN_AT", CHAIN_AT as u64),
            ("LOAN_LEN", LOAN_LEN as u64),
            ("LEASES", LEASES as u64),
        ],
    );
    built.numbers(
        "Values of words",
        &[
            ("AWAKE", AWAKE.into()),
            ("ON_FUTEX", ON_FUTEX.into()),
            ("FIRST_ARM", FIRST_ARM.into()),
            ("BY_NOTIFY", BY_NOTIFY.into()),
            ("COLD", COLD.into()),
            ("HOT", HOT.into()),
            ("POLLED", POLLED.into()),
            ("OPEN", OPEN.into()),
            ("CLOSING", CLOSING.into()),
            ("REPLACED", REPLACED.into()),
            ("BROKEN", BROKEN.into()),
            ("NO_CPU", NO_CPU.into()),
            ("DESCRIBE_KEY", crate::owner::dispatch::DESCRIBE_KEY),
        ],
    );
}

/// The bits that a field of a packed word takes.
fn bits(word: u32) -> (u64, u64) {
    (word.trailing_zeros().into(), (31 - word.leading_zeros()).into())
}

fn meta_words(built: &mut Built) {
    let zero = RequestMeta { slot: 0, flags: 0, cpu: 0 };
    built.section(
        "Request meta word",
        &[
            ("slot", bits(RequestMeta { slot: 0xff, ..zero }.pack())),
            ("flags", bits(RequestMeta { flags: 0xff, ..zero }.pack())),
            ("cpu", bits(RequestMeta { cpu: 0xffff, ..zero }.pack())),
        ],
    );
    let zero = ResponseMeta { status: 0, flags: 0, cpu: 0 };
    built.section(
        "Response meta word",
        &[
            ("status", bits(ResponseMeta { status: 0xff, ..zero }.pack())),
            ("flags", bits(ResponseMeta { flags: 0xff, ..zero }.pack())),
            ("cpu", bits(ResponseMeta { cpu: 0xffff, ..zero }.pack())),
        ],
    );
    built.numbers(
        "Request flags",
        &[
            ("SPILLED", RequestMeta::SPILLED.into()),
            ("ONE_WAY", RequestMeta::ONE_WAY.into()),
            ("CHAIN", RequestMeta::CHAIN.into()),
        ],
    );
    let zero = ItemHeader { len: 0, lent: 0, flags: 0 };
    let bits = |header: ItemHeader| {
        let word = header.pack() ^ if header.flags == 0 { zero.pack() } else { 0 };
        (u64::from(word.trailing_zeros()), u64::from(63 - word.leading_zeros()))
    };
    built.section(
        "Item header",
        &[
            ("len", bits(ItemHeader { len: u32::MAX, ..zero })),
            ("lent", bits(ItemHeader { lent: u16::MAX, ..zero })),
            ("flags", bits(ItemHeader { flags: u16::MAX, ..zero })),
        ],
    );
    built.numbers(
        "Item flags",
        &[
            ("PRESENT", ItemHeader::PRESENT.into()),
            ("SPILLED", ItemHeader::SPILLED.into()),
            ("MISSED", ItemHeader::MISSED.into()),
            ("END", ItemHeader::END.into()),
            ("CUT", ItemHeader::CUT.into()),
        ],
    );
    built.numbers("Response flags", &[("SPILLED", ResponseMeta::SPILLED.into())]);
    let statuses = [Status::Returned, Status::Failed, Status::Refused, Status::Taken];
    for status in statuses {
        built.numbers("Status", &[(&format!("{status:?}"), status as u64)]);
    }
}

/// The name of a variant.
fn name(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn enums(built: &mut Built) {
    let (text, executed) = (String::new(), Executed::No);
    let refused = [
        Refused::BadRequest(text.clone()),
        Refused::BadResponse(text.clone()),
        Refused::TooLargeRequest { limit: 0, size: 0 },
        Refused::TooLargeResponse { limit: 0, size: 0 },
        Refused::UnknownKey,
        Refused::Panicked(text.clone()),
        Refused::Poisoned(text),
        Refused::WouldDeadlock,
        Refused::Unpublished,
        Refused::DeadlineExceeded,
        Refused::Cancelled { executed },
        Refused::Overloaded,
        Refused::PermissionDenied,
        Refused::NoMemory { executed },
    ];
    assert!(Refused::decode(&[refused.len() as u8, 0, 0]).is_none(), "a refusal is missing here");
    for refused in &refused {
        built.numbers("Refusals of calls", &[(&name(refused), variant(refused))]);
    }
    for executed in [Executed::No, Executed::Unknown, Executed::Yes] {
        built.numbers("Executed", &[(&name(&executed), variant(&executed))]);
    }
    for refusal in Refusal::ALL {
        built.numbers("Refusals", &[(&name(&refusal), variant(&refusal))]);
    }
    let messages = [
        Message::Hello(Hello { layout: 0, features: 0, clock_ns: 0 }),
        Message::Welcome(Welcome { features: 0, owner_ahead_ms: 0, keys: Vec::new() }),
        Message::Refused(Refusal::NoFds),
        Message::Replace,
        Message::Granted,
    ];
    let beyond = [&Message::Granted.encode()[..8], &[messages.len() as u8]].concat();
    assert!(Message::decode(&beyond).is_err(), "a message is missing here");
    let beyond = [&Message::Granted.encode()[..8], &[2, Refusal::ALL.len() as u8]].concat();
    assert!(Message::decode(&beyond).is_err(), "a refusal is missing here");
    for message in &messages {
        built.numbers("Handshake messages", &[(&name(message), variant(message))]);
    }
}

fn sockets(built: &mut Built) {
    let prefix = &Message::Granted.encode()[..8];
    assert_eq!(prefix, [*b"objb", handshake::VERSION.to_le_bytes()].concat());
    built.section("Handshake prefix", &[("magic", (0, 4)), ("version", (4, 4))]);
    built.numbers(
        "Handshake numbers",
        &[
            ("VERSION", handshake::VERSION.into()),
            ("HANDSHAKE_MAX", handshake::MESSAGE_MAX as u64),
            ("METHODS_MAX", handshake::METHODS_MAX as u64),
            ("OVERFLOW_UID", crate::sys::socket::OVERFLOW_UID.into()),
        ],
    );
    built.section(
        "Layout number",
        &[
            ("request", (32, 63)),
            ("response", (8, 31)),
            ("slots", (2, 7)),
            ("big_endian", (1, 1)),
            ("wide", (0, 0)),
        ],
    );
    built.numbers(
        "Lane messages",
        &[
            ("WAKE", parcels::WAKE.into()),
            ("SEGMENT", parcels::SEGMENT.into()),
            ("DROPPED", parcels::DROPPED.into()),
            ("LEFT", parcels::LEFT.into()),
            ("OFFER", parcels::OFFER.into()),
            ("ACCEPT", parcels::ACCEPT.into()),
            ("CHANNEL_WAKE", parcels::CHANNEL_WAKE.into()),
            ("CHANNEL_END", parcels::CHANNEL_END.into()),
            ("CALLBACKS", parcels::CALLBACKS.into()),
            ("CALLBACK_DROPPED", parcels::CALLBACK_DROPPED.into()),
            ("CALLBACK_KEPT", parcels::CALLBACK_KEPT.into()),
            ("NOTIFY", parcels::NOTIFY.into()),
        ],
    );
    built.section(
        "Lane message words",
        &[
            ("number", (0, 1)),
            ("id", (1, 4)),
            ("len", (5, 8)),
            ("half", (5, 1)),
            ("end", (parcels::MESSAGE_MAX as u64, 0)),
        ],
    );
}

fn schemas(built: &mut Built) {
    let tokens = [
        Token::Primitive,
        Token::Option,
        Token::Seq,
        Token::Map,
        Token::Tuple,
        Token::Array,
        Token::Named,
        Token::Again,
        Token::Opaque,
        Token::Stream,
        Token::Event,
        Token::Watched,
        Token::UnitShape,
        Token::NewtypeShape,
        Token::TupleShape,
        Token::StructShape,
        Token::EnumShape,
        Token::InterfaceShape,
    ];
    for token in tokens {
        built.numbers("Schema bytes", &[(&name(&token), token as u64)]);
    }
}

#[test]
fn the_document_says_what_the_code_does() {
    let mut built = Built::default();
    memories(&mut built);
    meta_words(&mut built);
    enums(&mut built);
    sockets(&mut built);
    schemas(&mut built);
    let documented = documented();
    for (fact, numbers) in &built.0 {
        assert_eq!(documented.get(fact), Some(numbers), "{fact:?} in docs/layout.md");
    }
    for fact in documented.keys() {
        assert!(built.0.contains_key(fact), "{fact:?} stands in docs/layout.md only");
    }
}

#[test]
fn the_layout_number_is_made_as_documented() {
    let expected = 21760 << 32 | 18176 << 8 | u64::from(cfg!(target_endian = "big")) << 1;
    assert_eq!(handshake::LAYOUT, expected | u64::from(cfg!(target_pointer_width = "64")));
}

#[test]
fn a_loan_is_three_words_as_documented() {
    assert_eq!(Loan { lease: 4, segment: 1, offset: 2, len: 3 }.to_words(), [1 << 32 | 4, 2, 3]);
}
