//! Memories that would hurt their reader: faults 8, 9 and 35.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use crate::caller::*;
use crate::raw::*;
use crate::support::*;
use crate::victim::{Victim, victim};

#[track_caller]
fn expect_refused(victim: &Victim, what: &str, memory: &OwnedFd) {
    let refused = shake(&victim.path(), &message(1, &hello(LAYOUT)), &[memory]).map(drop);
    assert_eq!(refused, Err(BAD_SEGMENT), "{what}");
    victim.expect_unharmed();
}

#[test]
fn fault_08_short_sparse_and_huge_memories_are_refused() {
    let victim = victim();
    let honest = Recipe::honest(REQUEST_SIZE);
    let page = 4096;
    let bad = [
        ("empty", Recipe { size: 0, allocated: 0, ..honest }),
        ("a byte short", Recipe { size: REQUEST_SIZE - 1, ..honest }),
        ("a byte long", Recipe { size: REQUEST_SIZE + 1, ..honest }),
        ("sparse", Recipe { allocated: 0, ..honest }),
        ("sparse at its end", Recipe { allocated: REQUEST_SIZE - page, ..honest }),
    ];
    for (what, recipe) in bad {
        // Allocating beyond the end would make it longer.
        let (memory, _map) =
            Recipe { allocated: recipe.allocated.min(recipe.size), ..recipe }.make().unwrap();
        expect_refused(&victim, what, &memory);
    }
    let huge = Recipe { flags: honest.flags | libc::MFD_HUGETLB, size: 2 << 20, allocated: 0, ..honest };
    match huge.make() {
        Ok((memory, _map)) => expect_refused(&victim, "hugetlb", &memory),
        Err(error) => println!("SKIPPED: this machine has no hugetlb memfds ({error})"),
    }
}

#[test]
fn fault_09_a_memory_without_every_seal_is_refused() {
    let victim = victim();
    for missing in [libc::F_SEAL_SHRINK, libc::F_SEAL_GROW, libc::F_SEAL_FUTURE_WRITE, libc::F_SEAL_SEAL] {
        let recipe = Recipe { seals: SEALS & !missing, ..Recipe::honest(REQUEST_SIZE) };
        let (memory, _map) = recipe.make().unwrap();
        expect_refused(&victim, &format!("without seal {missing}"), &memory);
    }
}

#[test]
fn fault_09_a_sealed_memory_is_neither_punched_nor_resized_nor_mapped_writable() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    let fd = caller.request_fd.as_raw_fd();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: none of these calls touches memory of this program but the request memory, which nobody reads here.
    unsafe {
        let eperm = |what: &str, result: i64| {
            let error = std::io::Error::last_os_error().raw_os_error();
            assert_eq!((result, error), (-1, Some(libc::EPERM)), "{what}");
        };
        eperm("punching a hole", libc::fallocate(fd, punch, 0, 4096).into());
        eperm("shrinking", libc::ftruncate(fd, 0).into());
        eperm("growing", libc::ftruncate(fd, 1 << 20).into());
        eperm("taking seals back", libc::fcntl(fd, libc::F_ADD_SEALS, 0).into());
        eperm("writing", libc::pwrite(fd, (&raw const punch).cast(), 4, 0) as i64);
        let start = caller.request.start();
        let removed = libc::madvise(start.cast(), 4096, libc::MADV_REMOVE);
        assert_eq!(removed, -1, "MADV_REMOVE punches a hole as well");
    }
    assert!(Map::of(&caller.request_fd, REQUEST_SIZE, true).is_err(), "a second writable mapping");
    let add = caller.request("add", 0, &[1, 2]);
    assert_eq!(caller.call(&add).number(), 3);
    victim.expect_unharmed();
}

#[test]
fn fault_08_a_spilled_body_in_a_bad_segment_closes_the_lane() {
    let victim = victim();
    let size = 1 << 16;
    let honest = Recipe::honest(size);
    let bad = [
        ("sparse", Recipe { allocated: 0, ..honest }),
        ("unsealed", Recipe { seals: 0, ..honest }),
        ("short", Recipe { size: size - 1, allocated: size - 1, ..honest }),
    ];
    for (what, recipe) in bad {
        let caller = Caller::connect(&victim.path());
        let (segment, _map) = recipe.make().unwrap();
        caller.announce(0, &segment, size as u64);
        caller.expect_broken(what);
    }
    victim.expect_unharmed();
}

fn open(path: &str, flags: i32) -> OwnedFd {
    let path = CString::new(path).unwrap();
    // SAFETY: the path ends; the descriptor is fresh.
    unsafe {
        let fd = libc::open(path.as_ptr(), flags | libc::O_CLOEXEC);
        assert!(fd >= 0, "{path:?}: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

#[test]
fn fault_35_what_is_no_memfd_is_refused() {
    let victim = victim();
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let on_tmpfs = place();
    std::fs::create_dir(on_tmpfs.path()).unwrap();
    let path = on_tmpfs.path().join("file");
    File::create(&path).unwrap().set_len(REQUEST_SIZE as u64).unwrap();
    let strangers = [
        ("a pipe", pipe),
        ("/dev/zero", open("/dev/zero", libc::O_RDWR)),
        ("a file", File::open(&path).unwrap().into()),
        ("a directory", open("/proc/self", libc::O_RDONLY)),
        ("an O_PATH descriptor", open("/proc/self", libc::O_PATH)),
        ("a socket", socket()),
    ];
    for (what, fd) in strangers {
        expect_refused(&victim, what, &fd);
    }
    let none = shake(&victim.path(), &message(1, &hello(LAYOUT)), &[]).map(drop);
    assert_eq!(none, Err(BAD_SEGMENT), "no descriptor at all");
    let (memory, _map) = memory(REQUEST_SIZE);
    let two = shake(&victim.path(), &message(1, &hello(LAYOUT)), &[&memory, &memory]).map(drop);
    assert_eq!(two, Err(BAD_SEGMENT), "two");
}

/// Mounts a FUSE file system whose server answers nothing but the first greeting; an open file would be the worst that a
/// peer can pass. Where the kernel or this user cannot, the test says so.
fn silent_fuse(at: &std::path::Path) -> Result<OwnedFd, String> {
    let fd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let fd = OwnedFd::from(fd.map_err(|error| format!("/dev/fuse: {error}"))?);
    let options = format!("fd={},rootmode=100000,user_id=0,group_id=0", fd.as_raw_fd());
    let (at, options) = (CString::new(at.to_str().unwrap()).unwrap(), CString::new(options).unwrap());
    // SAFETY: all texts end.
    let mounted =
        unsafe { libc::mount(c"objbus".as_ptr(), at.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast()) };
    if mounted == 0 { Ok(fd) } else { Err(format!("mounting: {}", std::io::Error::last_os_error())) }
}

/// Unmounts on drop, or the test's directory could not be removed.
struct Mounted(CString);

impl Drop for Mounted {
    fn drop(&mut self) {
        // SAFETY: the path ends.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}

#[test]
fn fault_35_a_file_of_a_file_server_that_never_answers_is_refused_without_asking_it() {
    let victim = victim();
    let on = place();
    std::fs::create_dir(on.path()).unwrap();
    let file = on.path().join("mounted");
    File::create(&file).unwrap();
    let server = match silent_fuse(&file) {
        Ok(server) => server,
        Err(why) => return println!("SKIPPED: no FUSE to be had here ({why})"),
    };
    let _mounted = Mounted(CString::new(file.to_str().unwrap()).unwrap());
    // O_PATH opens without asking the server, and is as bad for whoever asks it with fstat.
    let fd = open(file.to_str().unwrap(), libc::O_PATH);
    expect_refused(&victim, "a file of a silent server", &fd);
    drop(server);
}

#[test]
fn fault_35_segments_that_are_no_memfds_close_the_lane() {
    let victim = victim();
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    for (what, fd) in [("a pipe", pipe), ("/dev/zero", open("/dev/zero", libc::O_RDWR))] {
        let caller = Caller::connect(&victim.path());
        caller.announce(1, &fd, 4096);
        caller.expect_broken(what);
    }
    victim.expect_unharmed();
}

#[test]
fn fault_35_a_doorbell_made_blocking_and_filled_blocks_nobody_at_the_owner() {
    let victim = victim();
    let mut caller = Caller::connect(&victim.path());
    rustix::fs::fcntl_setfl(&caller.bell, rustix::fs::OFlags::empty()).unwrap();
    rustix::io::write(&caller.bell, &(u64::MAX - 2).to_ne_bytes()).unwrap();
    // What it writes would block now, so it rings with nothing; the owner polls or sees the edge of the filling.
    let add = caller.request("add", 3, &[4, 5]);
    caller.write(&add);
    caller.request.word(caller.cell(0)).store(1, Ordering::Release);
    rustix::io::write(&caller.bell, &1_u64.to_ne_bytes()).unwrap();
    caller.position = 1;
    assert_eq!(caller.answer(3, 1).number(), 9);
    victim.expect_unharmed();
    drop(caller);
    victim.expect_unharmed();
}
