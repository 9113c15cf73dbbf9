//! Rows 21, 38 and 47: shared memory that runs out, that is used again, and that no core dump has; and what a bus tells of it.

#[path = "support/shelf.rs"]
mod shelf;
mod support;

use shelf::*;
use support::*;

use std::os::unix::process::CommandExt;

use objbus::{AllocError, Blob, BlobMut, Bus, CallError, Executed, Memory};

const MIB: usize = 1 << 20;
/// What no other memory has in it.
const SECRET: [u8; 16] = *b"\x9c\x13secret\xf7of\x00one\xee";

#[test]
fn role() {
    let Some((name, arguments)) = support::role() else { return };
    match name.as_str() {
        "shelf" => own_shelf(&arguments),
        "without shm" => {
            assert!(std::fs::write("/dev/shm/objbus-test", [0; 8192]).is_err(), "it is full");
            own_shelf(&arguments)
        }
        "short of address space" => short_of_address_space(),
        "stranger" => stranger(&arguments[0]),
        "greedy" => greedy(&arguments[0]),
        "crash" => crash(&arguments[0]),
        other => panic!("no role {other}"),
    }
}

/// In a mount namespace of its own, where /dev/shm has a single page.
fn without_shm(command: &mut std::process::Command) {
    let private = || {
        let (none, shm) = (std::ptr::null(), c"/dev/shm".as_ptr());
        let tiny = c"size=4k".as_ptr().cast();
        // SAFETY: texts that end, and system calls only, as must be between fork and exec.
        let done = unsafe {
            libc::unshare(libc::CLONE_NEWNS)
                | libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast())
                | libc::mount(c"tmpfs".as_ptr(), shm, c"tmpfs".as_ptr(), 0, tiny)
        };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: `private` makes system calls and nothing else.
    unsafe { command.pre_exec(private) };
}

/// A shelf whose bus has 8 MiB, and no /dev/shm where that can be had.
fn small_shelf(place: &Place) -> Child {
    let arguments = [place.text(), "shelf", "memory=8388608"];
    if own_uid() != 0 {
        println!("with the machine's /dev/shm: only root can hide it");
        return shelf(place, "shelf", &arguments[2..]);
    }
    let child = start_with("without shm", &arguments, without_shm);
    child.expect("ready");
    child
}

/// What the bus itself says of a call.
#[track_caller]
fn bus_error<T, E>(result: Result<T, CallError<E>>) -> CallError {
    match result {
        Err(CallError::NoMemory { executed }) => CallError::NoMemory { executed },
        Err(error) => panic!("another error: {}", std::any::type_name_of_val(&error)),
        Ok(_) => panic!("there is memory"),
    }
}

const UNSENT: CallError = CallError::NoMemory { executed: Executed::No };
const RAN: CallError = CallError::NoMemory { executed: Executed::Yes };

#[test]
fn row_21_memory_that_runs_out_is_an_error_at_once_and_nothing_worse() {
    let place = place();
    let mut owner = small_shelf(&place);
    let bus = builder(place.text(), ["memory=4194304"]).open().unwrap();
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    let big = vec![7; 16 * MIB];
    for _ in 0..3 {
        // Ours: an argument, and a blob that must be copied.
        assert_eq!(bus_error(shelf.count(&big).wait()), UNSENT);
        assert_eq!(bus_error(shelf.keep(1, Blob::copy_of(&big)).wait()), UNSENT);
        assert_eq!(bus.alloc(16 * MIB).unwrap_err(), AllocError::NoMemory);
        // The owner's: a result, a blob that must be copied, and one that its method wants to make.
        assert_eq!(bus_error(shelf.bytes(16 << 20).wait()), RAN);
        assert_eq!(bus_error(shelf.wrap(16 << 20, 1).wait()), RAN);
        let error = shelf.make(16 << 20, 1).wait().unwrap_err().into_app().unwrap();
        assert_eq!(error.kind, "objbus::AllocError");

        // What there is can be used up to the last byte.
        let ours: Vec<Blob> = all_of(&bus);
        assert!(ours.len() >= 3, "{} MiB of 4", ours.len());
        assert_eq!(bus_error(shelf.count(&big[..MIB]).wait()), UNSENT);
        let theirs: Vec<Blob> =
            std::iter::from_fn(|| shelf.make(1 << 20, 3).wait().ok().filter(|blob| blob.len() == MIB))
                .collect();
        assert!(theirs.len() >= 6, "{} MiB of 8", theirs.len());
        assert_eq!(bus_error(shelf.bytes(1 << 20).wait()), RAN);
        assert!(ours.iter().all(|blob| is_pattern(blob, MIB, 9)));
        assert!(theirs.iter().all(|blob| is_pattern(blob, MIB, 3)));
        drop((ours, theirs));

        // And after that all is as before.
        assert_eq!(shelf.count(&big[..MIB]).wait(), Ok(MIB as u64));
        assert_eq!(shelf.bytes(1 << 20).wait().map(|bytes| bytes.len()), Ok(MIB));
        assert!(is_pattern(&shelf.wrap(1 << 20, 5).wait().unwrap(), MIB, 5));
        assert!(is_pattern(&shelf.make(1 << 20, 6).wait().unwrap(), MIB, 6));
    }
    owner.kill();
}

/// Takes all the memory in blobs of a MiB, each written whole.
fn all_of(bus: &Bus) -> Vec<Blob> {
    let fill_it = |mut blob: BlobMut| {
        fill(&mut blob, 9);
        blob.freeze()
    };
    std::iter::from_fn(|| bus.alloc(MIB).ok().map(fill_it)).collect()
}

/// Where the kernel refuses before our limit does.
fn short_of_address_space() {
    let bus = Bus::in_memory();
    drop(bus.alloc(MIB).unwrap());
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let used = text.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 4096;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let set = |limit: &libc::rlimit| {
        // SAFETY: a whole rlimit that outlives the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, limit) }, 0);
    };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) }, 0);
    let free = limit.rlim_cur;
    limit.rlim_cur = used + (32 << 20);
    set(&limit);
    let refused = bus.alloc(64 * MIB).map(drop);
    limit.rlim_cur = free;
    set(&limit);
    say(format!("{refused:?} {:?}", bus.alloc(64 * MIB).map(drop)));
    stay();
}

#[test]
fn row_21_what_the_system_refuses_is_no_memory_too() {
    let child = start("short of address space", &[]);
    child.expect("Err(NoMemory) Ok(())");
}

/// Whether any of this process' mappings of arenas has the secret in it; what was looked through, in bytes.
fn find_secret() -> (bool, usize) {
    let mut bytes = Vec::new();
    let mut found = false;
    let mut total = 0;
    for range in arena_mappings(std::process::id()) {
        bytes.resize(range.len(), 0);
        let to = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let from = libc::iovec { iov_base: range.start as *mut _, iov_len: range.len() };
        // SAFETY: `to` is the vector's; the kernel copies from a mapping of this process, or fails.
        let read = unsafe { libc::process_vm_readv(libc::getpid(), &raw const to, 1, &raw const from, 1, 0) };
        assert_eq!(read, range.len() as isize, "{}", std::io::Error::last_os_error());
        found |= bytes.windows(SECRET.len()).any(|window| window == SECRET);
        total += range.len();
    }
    (found, total)
}

fn secret(mut blob: BlobMut) -> Blob {
    blob.chunks_exact_mut(SECRET.len()).for_each(|part| part.copy_from_slice(&SECRET));
    blob.freeze()
}

/// Another user's caller: gets memory of all sizes, unfilled, and looks through all that is mapped for it.
fn stranger(directory: &str) {
    become_stranger();
    let bus = builder(directory, ["owner=0", "copies=never"]).open().unwrap();
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    let sizes = (8..=21).map(|power| 1_u64 << power);
    let held: Vec<Blob> = sizes.map(|len| shelf.unfilled_for_caller(len).wait().unwrap()).collect();
    let bytes = shelf.bytes(100_000).wait().unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
    assert!(held.iter().all(|blob| lies_in_arena(blob)));
    let (found, looked_at) = find_secret();
    say(format!("{} after {} MiB", if found { "found" } else { "nothing" }, looked_at / MIB));
    stay();
}

#[test]
fn row_38_a_process_of_another_user_sees_nothing_of_the_others_bytes() {
    if !has_second_user() {
        return;
    }
    let place = place();
    let admit = format!("admit={STRANGER}");
    let bus = builder(place.text(), [&admit[..], "owner=0"]).open().unwrap();
    let owner = shelf(&place, "shelf", &[&admit, "owner=0"]);
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    // The secret goes through both processes' memory for their own user, and is dropped.
    for power in 8..=21 {
        shelf.keep(power, secret(bus.alloc(1 << power).unwrap())).wait().unwrap();
        let copy = shelf.kept(power).wait().unwrap().unwrap();
        assert_eq!(copy.len(), 1 << power);
        assert!(lies_in_arena(&copy));
        shelf.forget(power).wait().unwrap();
    }
    let (found, looked_at) = find_secret();
    assert!(found, "own user's processes may see it, or this test looks in the wrong place");
    println!("our own mappings have it, in {} MiB", looked_at / MIB);
    let stranger = start("stranger", &[place.text()]);
    let said = stranger.hear();
    println!("the stranger: {said}");
    assert!(said.starts_with("nothing after "), "{said}");
    assert!(!said.ends_with(" 0 MiB"), "it looked at something");
    drop((stranger, owner));
}

/// The flags of each mapping of an arena in a process.
fn arena_flags(pid: u32) -> Vec<String> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the process lives");
    let mut is_arena = false;
    let mut all = Vec::new();
    for line in smaps.lines() {
        match line.strip_prefix("VmFlags:") {
            Some(flags) if is_arena => all.push(flags.to_owned()),
            None if line.split(' ').next().is_some_and(|range| range.contains('-')) => {
                is_arena = line.contains("objbus-arena");
            }
            _ => {}
        }
    }
    all
}

#[test]
fn row_47_neither_lender_nor_reader_dumps_segments() {
    let place = place();
    let owner = shelf(&place, "shelf", &[]);
    let bus = place.bus();
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    shelf.keep(1, pattern(&bus, 3 * MIB, 1)).wait().unwrap();
    let theirs = shelf.make(3 << 20, 2).wait().unwrap();
    for pid in [std::process::id(), owner.pid()] {
        let flags = arena_flags(pid);
        // Each has a segment of its own and one of the other's.
        assert!(flags.len() >= 2, "process {pid}: {flags:?}");
        assert!(flags.iter().all(|flags| flags.split(' ').any(|flag| flag == "dd")), "{pid}: {flags:?}");
    }
    assert!(is_pattern(&theirs, 3 * MIB, 2));
}

/// Fills 256 MiB of arena and dies of it, where it was told to.
fn crash(directory: &str) {
    std::env::set_current_dir(directory).unwrap();
    let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a whole rlimit that outlives the call.
    let may = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const all) } == 0;
    let bus = Bus::in_memory();
    let _held: Vec<Blob> = (0..4).map(|_| secret(bus.alloc(64 * MIB).unwrap())).collect();
    say(if may { "ready" } else { "may not" });
    hear();
    std::process::abort();
}

#[test]
fn row_47_a_core_of_a_process_with_256_mib_of_arena_is_small() {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.starts_with('|') || pattern.contains('/') || pattern.trim().is_empty() {
        return println!("not run: cores go to `{}`, not to the working directory", pattern.trim());
    }
    let place = place();
    std::fs::create_dir(place.path()).unwrap();
    let mut child = start("crash", &[place.text()]);
    if child.hear() == "may not" {
        return println!("not run: this user may make no cores");
    }
    let resident = support::system::resident_kb(child.pid());
    child.tell("go");
    let status = child.finish();
    let cores: Vec<_> = std::fs::read_dir(place.path()).unwrap().flatten().map(|file| file.path()).collect();
    let [core] = &cores[..] else { return println!("not run: {status} left {cores:?} instead of a core") };
    let len = std::fs::metadata(core).unwrap().len();
    println!("{status}; a core of {len} bytes, of a process with {resident} KiB in memory");
    assert!(resident > 256 << 10, "{resident} KiB were in memory");
    assert!(len < 64 << 20, "a core of {len} bytes");
    assert!(len > 64 << 10, "that is no core: {len} bytes");
}

/// What must hold at any moment.
#[track_caller]
fn told(bus: &Bus) -> Memory {
    let memory = bus.memory();
    for user in &memory.users {
        assert_eq!(user.allocated, user.in_use + user.cached, "{memory:?}");
        assert!(user.peak >= user.in_use && user.limit <= memory.limit, "{memory:?}");
        assert_eq!(user.allocated == 0, user.segments == 0, "{memory:?}");
    }
    assert!(memory.allocated() <= memory.limit, "{memory:?}");
    memory
}

/// So many bytes, rounded up as the arena does.
#[track_caller]
fn assert_in_use(memory: &Memory, least: usize) {
    let least = least as u64;
    assert!((least..=least + least / 8).contains(&memory.in_use()), "{least} bytes: {memory:?}");
}

#[test]
fn a_bus_tells_where_its_memory_is() {
    let place = place();
    let (one, mut other) = (shelf(&place, "one", &[]), shelf(&place, "other", &[]));
    let bus = builder(place.text(), ["memory=67108864"]).open().unwrap();
    let fresh = told(&bus);
    assert_eq!((fresh.limit, fresh.allocated(), fresh.received), (64 << 20, 0, 0));
    assert_eq!(fresh.users.iter().map(|user| user.uid).collect::<Vec<_>>(), [own_uid()]);
    let [first, second]: [ShelfProxy; 2] = ["one", "other"].map(|name| bus.proxy(name).wait().unwrap());

    let blob = pattern(&bus, 3 * MIB, 1);
    assert_in_use(&told(&bus), 3 * MIB);
    assert_eq!(borrowers(&told(&bus)), []);
    first.keep(1, blob.clone()).wait().unwrap();
    let (uid, bytes) = (own_uid(), 3 << 20);
    assert_eq!(borrowers(&told(&bus)), [(one.pid(), uid, 1, bytes)]);
    second.keep(1, blob.slice(10..110)).wait().unwrap();
    first.keep(2, blob.clone()).wait().unwrap();
    let mut expected = [(one.pid(), uid, 2, 2 * bytes), (other.pid(), uid, 1, 100)];
    expected.sort_unstable();
    assert_eq!(borrowers(&told(&bus)), expected);
    assert_eq!(told(&bus).lent(), 2 * bytes + 100);
    drop(blob);
    assert_in_use(&told(&bus), 3 * MIB);
    // A blob of no bytes is lent to nobody.
    first.keep(3, Blob::empty()).wait().unwrap();
    assert_eq!(told(&bus).lent(), 2 * bytes + 100);

    assert!(first.forget(1).wait().unwrap());
    wait_until("one of two is back", || told(&bus).lent() == bytes + 100);
    assert!(second.forget(1).wait().unwrap());
    wait_until("the slice is back", || borrowers(&told(&bus)) == [(one.pid(), uid, 1, bytes)]);
    assert_eq!((told(&bus).copied.count, told(&bus).copied.bytes), (0, 0));

    // Of ordinary memory: copied once, and the copy lent.
    second.keep(1, Blob::from(vec![1; 5000])).wait().unwrap();
    assert_eq!((told(&bus).copied.count, told(&bus).copied.bytes), (1, 5000));
    // Passed on: the other copies it, and tells so.
    assert!(is_pattern(&first.kept(2).wait().unwrap().unwrap(), 3 * MIB, 1));
    let (count, copied, ..) = first.memory().wait().unwrap();
    assert_eq!((count, copied), (1, bytes));
    let received = told(&bus).received;
    assert!((bytes..2 * bytes).contains(&received), "{received}");

    // The dead hold nothing, and what was theirs is unmapped.
    let theirs = second.make(3 << 20, 2).wait().unwrap();
    assert!(told(&bus).received > received);
    other.kill();
    wait_until("the dead hold nothing", || borrowers(&told(&bus)) == [(one.pid(), uid, 1, bytes)]);
    assert!(is_pattern(&theirs, 3 * MIB, 2), "what it lent stays");
    drop(theirs);
    wait_until("it is unmapped", || told(&bus).received == received);
    drop(one);
    wait_until("nothing is lent", || told(&bus).lent() == 0 && told(&bus).received == 0);
    wait_until("nothing is in use", || told(&bus).in_use() == 0);
    assert_eq!(told(&bus).cached(), told(&bus).allocated());
    assert_eq!(borrowers(&told(&bus)), []);
}

#[test]
fn memory_is_limited_and_comes_back() {
    let bus = |options: &[&str]| {
        let place = place();
        let bus = builder(place.text(), options.iter().copied()).open().unwrap();
        (place, bus)
    };
    for options in [&["memory=8388608"][..], &["memory=67108864", "memory_per_user=8388608"]] {
        let (_place, bus) = bus(options);
        for _ in 0..3 {
            let mut all = all_of(&bus);
            assert_eq!(all.len(), 8, "{options:?}");
            assert_eq!(bus.alloc(1).unwrap_err(), AllocError::NoMemory);
            drop(all.pop());
            assert_eq!(bus.alloc(2 * MIB).unwrap_err(), AllocError::NoMemory);
            all.push(bus.alloc(MIB).unwrap().freeze());
            drop(all);
            drop(bus.alloc(8 * MIB).unwrap());
            assert_eq!(bus.alloc(8 * MIB + 1).unwrap_err(), AllocError::NoMemory);
        }
        assert_eq!(told(&bus).users[0].limit, 8 << 20);
    }
}

#[test]
fn what_is_lent_is_limited_and_may_be_lent_again_at_once() {
    for limit in ["lent=2097152", "lent_per_user=2097152"] {
        let place = place();
        let owners = ["one", "other"].map(|name| shelf(&place, name, &[limit]));
        let bus = builder(place.text(), [limit]).open().unwrap();
        let [one, other]: [ShelfProxy; 2] = ["one", "other"].map(|name| bus.proxy(name).wait().unwrap());
        let blobs: Vec<Blob> = (0..3).map(|seed| pattern(&bus, MIB, seed)).collect();
        for _ in 0..5 {
            one.keep(1, blobs[0].clone()).wait().unwrap();
            other.keep(2, blobs[1].clone()).wait().unwrap();
            assert_eq!(told(&bus).lent(), 2 << 20);
            for shelf in [&one, &other] {
                assert_eq!(bus_error(shelf.keep(3, blobs[2].clone()).wait()), UNSENT, "{limit}");
            }
            assert_eq!(told(&bus).lent(), 2 << 20, "a refusal takes nothing");
            // Once the call has returned it may be lent again, and not only to the same process.
            assert!(one.forget(1).wait().unwrap());
            other.keep(3, blobs[2].clone()).wait().unwrap();
            assert!(other.holds_pattern(3, 1 << 20, 2).wait().unwrap());
            assert!(other.forget(2).wait().unwrap() && other.forget(3).wait().unwrap());
        }
        // The owner's.
        let held = one.make(2 << 20, 4).wait().unwrap();
        assert_eq!(bus_error(one.make(1, 4).wait()), RAN, "{limit}");
        assert!(is_pattern(&held, 2 * MIB, 4));
        drop(held);
        assert!(is_pattern(&one.make(2 << 20, 5).wait().unwrap(), 2 * MIB, 5), "{limit}");
        drop(owners);
    }
}

/// Another user's caller that takes and holds all it can get.
fn greedy(directory: &str) {
    become_stranger();
    let bus = builder(directory, ["owner=0", "copies=never"]).open().unwrap();
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    let held: Vec<Blob> = std::iter::from_fn(|| shelf.make_for_caller(1 << 20, 1).wait().ok()).collect();
    say(format!("{} MiB", held.len()));
    stay();
}

#[test]
fn another_user_has_a_share_and_leaves_the_rest() {
    if !has_second_user() {
        return;
    }
    let place = place();
    let admit = format!("admit={STRANGER}");
    let _owner = shelf(&place, "shelf", &[&admit, "owner=0", "memory=33554432", "memory_per_user=8388608"]);
    let greedy = start("greedy", &[place.text()]);
    assert_eq!(greedy.hear(), "8 MiB");
    let bus = builder(place.text(), [&admit[..], "owner=0"]).open().unwrap();
    let shelf: ShelfProxy = bus.proxy("shelf").wait().unwrap();
    assert!(is_pattern(&shelf.make(8 << 20, 1).wait().unwrap(), 8 * MIB, 1));
}
