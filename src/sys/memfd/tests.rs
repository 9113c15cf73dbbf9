//! What a peer may try on a sealed segment, and what it may pass in place of one.

use std::os::fd::OwnedFd;

use super::*;
use crate::sys::testing::{child_status, fork, rerun_without};

const LEN: usize = 64 << 10;

fn dup(fd: &Fd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).unwrap()
}

fn refusal(fd: impl Into<OwnedFd>) -> &'static str {
    match receive_sealed(fd.into(), LEN) {
        Err(BadSegment::Untrusted(reason)) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

fn memfd(flags: MemfdFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::memfd_create("test", flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
}

#[test]
fn what_is_written_on_one_side_is_read_on_the_other() {
    let (ours, fd) = create_sealed("test", LEN).unwrap();
    let theirs = receive_sealed(dup(&fd), LEN).unwrap();
    // SAFETY: both ranges are mapped, and only this thread touches them.
    unsafe {
        ours.ptr().add(LEN - 1).write_volatile(7);
        assert_eq!(theirs.ptr().add(LEN - 1).read_volatile(), 7);
    }
    assert_eq!(theirs.len(), LEN);
    assert_eq!(identity(&fd), identity(dup(&fd)));
    assert_ne!(identity(&fd), identity(create_sealed("test", LEN).unwrap().1));
}

#[test]
fn nobody_can_change_a_sealed_segment_but_through_the_first_mapping() {
    let (ours, fd) = create_sealed("test", LEN).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(&fd, punch, 0, 4096), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(&fd, 4096), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(&fd, 2 * LEN as u64), Err(Errno::PERM));
    assert_eq!(rustix::io::pwrite(&fd, b"x", 0), Err(Errno::PERM));
    assert_eq!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE), Err(Errno::PERM));
    assert_eq!(Mapping::new(&fd, LEN, ProtFlags::READ | ProtFlags::WRITE).unwrap_err(), Errno::PERM);
    let start = ours.ptr().as_ptr().cast();
    // SAFETY: the range is `ours`; a success would only replace zeros by zeros.
    let removed = unsafe { libc::madvise(start, 4096, libc::MADV_REMOVE) };
    assert_eq!(removed, -1, "the maker itself can punch a hole by madvise");
}

#[test]
fn a_received_mapping_cannot_be_made_writable() {
    let (_ours, fd) = create_sealed("test", LEN).unwrap();
    let theirs = receive_sealed(dup(&fd), LEN).unwrap();
    // SAFETY: the range is `theirs`; more rights on it harm nobody in this test.
    let changed = unsafe {
        rustix::mm::mprotect(
            theirs.ptr().as_ptr().cast(),
            LEN,
            rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE,
        )
    };
    assert_eq!(changed, Err(Errno::ACCESS));
}

#[test]
fn another_size_than_agreed_is_refused() {
    let (_ours, fd) = create_sealed("test", LEN / 2).unwrap();
    assert_eq!(refusal(dup(&fd)), "its size is not the size agreed on");
    assert!(matches!(receive_sealed(dup(&fd), 0), Err(BadSegment::Untrusted(_))));
}

#[test]
fn a_sparse_segment_is_refused() {
    let fd = memfd(MemfdFlags::empty()).unwrap();
    rustix::fs::ftruncate(&fd, LEN as u64).unwrap();
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, LEN as u64 - 4096).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SEALS).unwrap();
    assert_eq!(refusal(fd), "it is sparse");
}

#[test]
fn each_missing_seal_is_refused() {
    for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::FUTURE_WRITE, SealFlags::SEAL] {
        let fd = memfd(MemfdFlags::empty()).unwrap();
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, LEN as u64).unwrap();
        rustix::fs::fcntl_add_seals(&fd, SEALS.difference(missing)).unwrap();
        assert_eq!(refusal(fd), "it is not sealed against shrinking, growing and writing", "{missing:?}");
    }
}

#[test]
fn what_is_no_memfd_is_refused() {
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    assert_eq!(refusal(pipe), "it is not a memfd");
    let zero = std::fs::File::options().read(true).write(true).open("/dev/zero").unwrap();
    assert_eq!(refusal(zero), "it is not a memfd");
}

#[test]
fn a_plain_file_on_tmpfs_is_refused() {
    let path = format!("/dev/shm/objbus-test-{}", std::process::id());
    let Ok(file) = std::fs::File::options().create_new(true).read(true).write(true).open(&path) else {
        return;
    };
    std::fs::remove_file(&path).unwrap();
    file.set_len(LEN as u64).unwrap();
    refusal(file);
}

#[test]
fn a_hugetlb_segment_is_refused() {
    // Where no huge page can be had, there is nothing to test.
    let Ok(fd) = memfd(MemfdFlags::HUGETLB) else { return };
    if rustix::fs::ftruncate(&fd, 2 << 20).is_err() || rustix::fs::fcntl_add_seals(&fd, SEALS).is_err() {
        return;
    }
    assert_eq!(receive_sealed(fd, 2 << 20).unwrap_err(), BadSegment::Untrusted("it is not on tmpfs"));
}

#[test]
fn an_empty_segment_cannot_be_made() {
    assert_eq!(create_sealed("test", 0).unwrap_err(), Errno::INVAL);
}

#[test]
fn a_forked_child_neither_has_the_mapping_nor_unmaps_what_took_its_place() {
    let (ours, _fd) = create_sealed("test", LEN).unwrap();
    let child = fork(move || {
        let start = ours.ptr().as_ptr().cast();
        // SAFETY: a range that is not mapped in this child is asked for, without overwriting any other.
        let own = unsafe {
            rustix::mm::mmap_anonymous(
                start,
                LEN,
                ProtFlags::READ,
                MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE,
            )
        };
        drop(ours);
        // SAFETY: the range was just mapped here, and reading advice on it changes nothing.
        let still_there = unsafe { rustix::mm::madvise(start, LEN, Advice::Normal) };
        i32::from(own.is_err() || still_there.is_err())
    });
    assert_eq!(child_status(child), 0);
}

#[test]
fn older_kernels_without_noexec_seal_work() {
    rerun_without("noexec_seal", "sys::memfd::tests::what_is_written_on_one_side_is_read_on_the_other");
}
