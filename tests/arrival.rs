//! Where blobs are read: in place, or copied on arrival; between users; of every size; and straight from and to files.

#[path = "support/shelf.rs"]
mod shelf;
mod support;

use shelf::*;
use support::*;

use std::fs::File;
use std::os::unix::net::UnixListener;

use objbus::{Blob, Bus};

const LEN: u64 = 300_000;

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "shelf" => own_shelf(&arguments),
        "stranger" => {
            become_stranger();
            own_shelf(&arguments)
        }
        other => panic!("no role {other}"),
    }
}

/// Whether all of the bus' memory is free again. Asked once: what was copied on arrival is back when the call has returned.
fn has_all_back(bus: &Bus) -> bool {
    let memory = bus.memory();
    borrowers(&memory).is_empty() && memory.in_use() == 0
}

#[test]
fn the_own_users_blobs_are_read_in_place() {
    let place = place();
    let child = shelf(&place, "shelf", &[]);
    let bus = place.bus();
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    shelf.keep(1, pattern(&bus, LEN as usize, 1)).wait().unwrap();
    assert!(shelf.reads_in_place(1).wait().unwrap());
    assert!(shelf.holds_pattern(1, LEN, 1).wait().unwrap());
    assert_eq!(borrowers(&bus.memory()), [(child.pid(), own_uid(), 1, LEN)]);
    let made = shelf.make(LEN, 2).wait().unwrap();
    assert!(lies_in_arena(&made) && is_pattern(&made, LEN as usize, 2));
    // A small one, too: it is the blob that decides, not its size.
    shelf.keep(2, pattern(&bus, 1, 3)).wait().unwrap();
    assert!(shelf.reads_in_place(2).wait().unwrap());
    assert_eq!(bus.memory().copied.count, 0);
}

#[test]
fn a_copy_on_arrival_gives_the_memory_back_at_once() {
    let place = place();
    let _child = shelf(&place, "shelf", &["copies=always"]);
    let bus = builder(place.text(), ["copies=always"]).open().unwrap();
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    for seed in 0..20 {
        shelf.keep(1, pattern(&bus, LEN as usize, seed)).wait().unwrap();
        assert!(has_all_back(&bus), "{:?}", bus.memory());
        // The same memory again, with other bytes.
        drop(pattern(&bus, LEN as usize, !seed));
        assert!(!shelf.reads_in_place(1).wait().unwrap());
        assert!(shelf.holds_pattern(1, LEN, seed).wait().unwrap());

        let made = shelf.make(LEN, seed).wait().unwrap();
        assert!(!lies_in_arena(&made) && is_pattern(&made, LEN as usize, seed));
        let (copied, _, lent, _) = shelf.memory().wait().unwrap();
        assert_eq!((copied, lent), (0, 0), "it is the reader's copy, and no concern of the lender's");
    }
    assert_eq!(bus.memory().copied.count, 0);
}

/// A shelf of another user's that our bus may call, and the bus.
fn strangers_shelf(place: &Place, options: &[&str]) -> (Child, Bus) {
    std::fs::create_dir(place.path()).unwrap();
    std::os::unix::fs::chown(place.path(), Some(STRANGER), Some(STRANGER)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(place.path(), mode).unwrap();
    let child = start("stranger", &[&[place.text(), "shelf", "admit=0"], options].concat());
    child.expect("ready");
    let owner = format!("owner={STRANGER}");
    let bus = builder(place.text(), options.iter().copied().chain([&owner[..]])).open().unwrap();
    (child, bus)
}

#[test]
fn another_users_blobs_are_copied_on_arrival() {
    if !has_second_user() {
        return;
    }
    let place = place();
    let (_child, bus) = strangers_shelf(&place, &[]);
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    for seed in 0..10 {
        shelf.keep(1, pattern(&bus, LEN as usize, seed)).wait().unwrap();
        assert_eq!(borrowers(&bus.memory()), []);
        assert!(!shelf.reads_in_place(1).wait().unwrap());
        assert!(shelf.holds_pattern(1, LEN, seed).wait().unwrap());
        let made = shelf.make_for_caller(LEN, seed).wait().unwrap();
        assert!(!lies_in_arena(&made) && is_pattern(&made, LEN as usize, seed));
        let passed_on = shelf.kept(1).wait().unwrap().unwrap();
        assert!(is_pattern(&passed_on, LEN as usize, seed));
    }
}

#[test]
fn another_users_blobs_are_read_in_place_by_who_trusts_it() {
    if !has_second_user() {
        return;
    }
    let place = place();
    let (child, bus) = strangers_shelf(&place, &["copies=never"]);
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    shelf.keep(1, pattern(&bus, LEN as usize, 1)).wait().unwrap();
    assert!(shelf.reads_in_place(1).wait().unwrap());
    assert!(shelf.holds_pattern(1, LEN, 1).wait().unwrap());
    assert_eq!(borrowers(&bus.memory()), [(child.pid(), STRANGER, 1, LEN)]);
    let made = shelf.make_for_caller(LEN, 2).wait().unwrap();
    assert!(lies_in_arena(&made) && is_pattern(&made, LEN as usize, 2));
}

#[test]
fn memory_for_the_callers_user_is_lent_and_the_own_copied() {
    if !has_second_user() {
        return;
    }
    let place = place();
    let (_child, bus) = strangers_shelf(&place, &["copies=never"]);
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    let mut copied = (0, 0);
    for seed in 0..10_u8 {
        let len = LEN + u64::from(seed);
        let made = shelf.make_for_caller(len, seed).wait().unwrap();
        assert!(is_pattern(&made, len as usize, seed));
        let (count, bytes, lent, _) = shelf.memory().wait().unwrap();
        assert_eq!((count, bytes, lent), (copied.0, copied.1, len), "lent as it lies");
        drop(made);
        let made = shelf.make(len, !seed).wait().unwrap();
        assert!(is_pattern(&made, len as usize, !seed));
        copied = (copied.0 + 1, copied.1 + len);
        let (count, bytes, ..) = shelf.memory().wait().unwrap();
        assert_eq!((count, bytes), copied, "sent as a copy");
        // Ours for the own user is copied as well; there is no call that could say for whom it is.
        shelf.keep(1, pattern(&bus, len as usize, seed)).wait().unwrap();
        assert_eq!((bus.memory().copied.count, bus.memory().copied.bytes), copied);
        assert!(shelf.holds_pattern(1, len, seed).wait().unwrap());
    }
}

/// What is free on this machine.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or("0 kB");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

#[test]
fn five_gib_are_lent_there_and_back() {
    let len = 5 << 30;
    let limit = Bus::in_memory().memory().limit;
    if available() < 2 * len || limit < len {
        return println!("not run: {} bytes are available, the bus may have {limit}", available());
    }
    let place = place();
    let child = shelf(&place, "shelf", &[]);
    let bus = builder(place.text(), []).open().unwrap();
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    let mut blob = bus.alloc(len as usize).unwrap();
    // At both ends, in the middle, and across the last byte that 32 bits count.
    let places = [0, len / 2, (1 << 32) - 4, len - 8];
    let word = |at: u64| (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    places.iter().for_each(|&at| blob[at as usize..][..8].copy_from_slice(&word(at)));
    shelf.keep(1, blob.freeze()).wait().unwrap();
    assert_eq!(borrowers(&bus.memory()), [(child.pid(), own_uid(), 1, len)]);
    for at in places {
        assert_eq!(shelf.bytes_at(1, at, 8).wait().unwrap(), word(at), "at {at}");
    }
    assert!(shelf.reads_in_place(1).wait().unwrap());
    assert!(shelf.forget(1).wait().unwrap());
    assert_eq!(bus.memory().lent(), 0);
    drop(bus.alloc(len as usize).unwrap());
}

#[test]
fn no_bytes_are_lent_to_nobody() {
    let place = place();
    let _child = shelf(&place, "shelf", &[]);
    let bus = place.bus();
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    for empty in
        [Blob::empty(), bus.alloc(0).unwrap().freeze(), pattern(&bus, 9, 1).slice(4..4), Blob::from("")]
    {
        shelf.keep(1, empty).wait().unwrap();
        assert!(shelf.holds_pattern(1, 0, 1).wait().unwrap());
        assert_eq!(shelf.kept(1).wait().unwrap(), Some(Blob::empty()));
    }
    assert!(shelf.make(0, 1).wait().unwrap().is_empty());
    assert_eq!(bus.memory().lent(), 0);
}

/// Makes a pipe with a name.
fn make_fifo(path: &str) {
    let path = std::ffi::CString::new(path).unwrap();
    // SAFETY: a text that ends.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

#[test]
fn a_blob_is_filled_from_and_written_to_a_file_a_pipe_and_a_socket() {
    let place = place();
    let _child = shelf(&place, "shelf", &[]);
    let bus = place.bus();
    let shelf: ShelfProxy = bus.proxy("shelf").call_timeout(PATIENCE).wait().unwrap();
    let len = 3_000_001;
    let path = |kind: &str| place.path().join(format!("a {kind}")).to_str().unwrap().to_owned();
    for (seed, kind) in ["file", "pipe", "socket"].into_iter().enumerate() {
        let (seed, path) = (seed as u8, path(kind));
        let listener = (kind == "socket").then(|| UnixListener::bind(&path).unwrap());
        match kind {
            "file" => drop(File::create(&path).unwrap()),
            "pipe" => make_fifo(&path),
            _ => {}
        }
        // Theirs, which is ours and lent to them, goes through it to us.
        shelf.keep(1, pattern(&bus, len, seed)).wait().unwrap();
        let writing = shelf.write_to(1, kind, &path).started();
        let mut blob = bus.alloc(len + 10).unwrap();
        let read = match &listener {
            Some(listener) => blob.read_into(listener.accept().unwrap().0),
            None if kind == "pipe" => blob.read_into(File::open(&path).unwrap()),
            None => Ok(0),
        };
        writing.wait().unwrap();
        let read = if kind == "file" { blob.read_into(File::open(&path).unwrap()) } else { read }.unwrap();
        blob.truncate(read);
        assert!(is_pattern(&blob, len, seed), "{kind}: {read} bytes came");

        // And back.
        let ours = blob.freeze();
        if kind == "file" {
            ours.write_to(File::create(&path).unwrap()).unwrap();
        }
        let reading = shelf.read_from(2, kind, &path, len as u64 + 10).started();
        match &listener {
            Some(listener) => ours.write_to(listener.accept().unwrap().0).unwrap(),
            None if kind == "pipe" => {
                ours.write_to(File::options().write(true).open(&path).unwrap()).unwrap()
            }
            None => {}
        }
        assert_eq!(reading.wait().unwrap(), len as u64, "{kind}");
        assert!(shelf.holds_pattern(2, len as u64, seed).wait().unwrap(), "{kind}");
    }
}
