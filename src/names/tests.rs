//! Names between real processes: who gets one, who loses it, and what is left behind.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::error::{ConnectError, PublishError};
use crate::sys::testing::{child_status, fork, raw_clone, rerun_without};
use crate::sys::{clock, features, socket};

const DIR: &str = "OBJBUS_TEST_NAMES_DIR";

/// A directory of this test's own, removed with all in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("objbus-names-{}-{n}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Scratch(path)
    }

    fn directory(&self) -> Directory {
        Directory::private(&self.0).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(&self.0).unwrap().map(name).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn name() -> Address {
    Address::from(Name::new("processInfo").unwrap())
}

fn instance(tag: Option<&str>) -> Address {
    Address::of_new_instance(name().name().clone(), tag.map(|tag| Tag::new(tag).unwrap()))
}

fn soon() -> u64 {
    clock::now_ns() + 5_000_000_000
}

/// A process that publishes `processInfo` when told to, and holds it until killed or dropped.
struct Starter {
    process: Child,
    says: BufReader<ChildStdout>,
}

impl Starter {
    fn new(directory: &Path) -> Starter {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "names::tests::as_a_starter", "--nocapture", "--test-threads=1"])
            .env(DIR, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        let mut starter = Starter { process, says };
        assert_eq!(starter.answer(), "ready");
        starter
    }

    /// Lets it publish.
    fn go(&mut self) {
        self.process.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.says.read_line(&mut line).unwrap(), 0, "the starter ended");
            if let Some((_, answer)) = line.split_once("starter: ") {
                return answer.trim_end().to_owned();
            }
        }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// What a [`Starter`] runs; nothing when the whole binary is run.
#[test]
fn as_a_starter() {
    let Some(path) = std::env::var_os(DIR) else { return };
    let directory = Directory::private(Path::new(&path)).unwrap();
    println!("\nstarter: ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let bound = directory.bind(&name());
    match &bound {
        Ok(_) => println!("starter: bound"),
        Err(PublishError::AlreadyPublished { pid }) => println!("starter: taken by {pid}"),
        Err(error) => println!("starter: {error}"),
    }
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn of_a_hundred_that_start_at_once_exactly_one_wins() {
    let scratch = Scratch::new();
    let mut starters: Vec<_> = (0..100).map(|_| Starter::new(&scratch.0)).collect();
    starters.iter_mut().for_each(Starter::go);
    let answers: Vec<_> = starters.iter_mut().map(Starter::answer).collect();
    let winner = answers.iter().position(|answer| answer == "bound").expect("a winner");
    let taken = format!("taken by {}", starters[winner].process.id());
    assert_eq!(answers.iter().filter(|answer| **answer == taken).count(), 99, "{answers:?}");
    assert_eq!(scratch.files(), ["processInfo"]);
    drop(starters);
    assert_eq!(scratch.files(), [""; 0]);
}

#[test]
fn a_killed_owners_name_is_free_and_leaves_one_dead_socket() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    for _ in 0..3 {
        let mut owner = Starter::new(&scratch.0);
        owner.go();
        assert_eq!(owner.answer(), "bound");
        assert_eq!(directory.list(), [(name().name().clone(), owner.process.id())]);
        owner.kill();
        assert_eq!(scratch.files(), ["processInfo"]);
        let error = directory.connect(&name(), soon()).unwrap_err();
        assert_eq!(error, ConnectError::NotFound { name: "processInfo".into(), waited: Duration::ZERO });
    }
    let ours = directory.bind(&name()).unwrap();
    directory.connect(&name(), soon()).unwrap();
    ours.withdraw();
    assert_eq!(scratch.files(), [""; 0]);
}

#[test]
fn a_lister_removes_dead_sockets_and_nothing_else() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let mut owner = Starter::new(&scratch.0);
    owner.go();
    assert_eq!(owner.answer(), "bound");
    owner.kill();
    fs::write(scratch.0.join("a-file"), "").unwrap();
    assert_eq!(directory.list(), []);
    assert_eq!(scratch.files(), ["a-file"]);
}

#[test]
fn a_name_taken_is_refused_quickly() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let bound = directory.bind(&name()).unwrap();
    let refused_after = || {
        let start = Instant::now();
        let error = directory.bind(&name()).unwrap_err();
        assert_eq!(error, PublishError::AlreadyPublished { pid: std::process::id() });
        start.elapsed()
    };
    // The quickest of ten: other tests keep the processors busy.
    let quickest = (0..10).map(|_| refused_after()).min().unwrap();
    assert!(quickest < Duration::from_millis(10), "after {quickest:?}");
    assert!(bound.still_ours());
}

#[test]
fn a_full_backlog_means_alive() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let listener = socket::listen_at(&scratch.0.join("processInfo"), 0).unwrap();
    let _waiting = directory.connect(&name(), soon()).unwrap();
    assert_eq!(directory.bind(&name()).unwrap_err(), PublishError::AlreadyPublished { pid: 0 });
    let error = directory.connect(&name(), clock::now_ns() + 2_000_000).unwrap_err();
    assert!(matches!(error, ConnectError::HandshakeTimeout { .. }), "{error}");
    socket::shutdown(&listener);
    directory.bind(&name()).unwrap();
}

#[test]
fn a_child_that_holds_the_listener_does_not_hold_the_name() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    // The owner leaves behind a raw clone, in which no handler has closed the listener.
    let owner = fork(|| {
        let ours = Directory::private(&scratch.0).unwrap();
        let bound = ours.bind(&name()).unwrap();
        let orphan = raw_clone(|| {
            // SAFETY: it sleeps until the signal that ends it.
            unsafe { libc::pause() }
        });
        std::mem::forget(bound);
        fs::write(scratch.0.join("orphan.pid"), orphan.to_string()).unwrap();
        0
    });
    assert_eq!(child_status(owner), 0);
    let orphan: i32 = fs::read_to_string(scratch.0.join("orphan.pid")).unwrap().parse().unwrap();
    assert!(socket::connect(&scratch.0.join("processInfo")).is_ok(), "the orphan does not hold the listener");
    assert!(matches!(directory.connect(&name(), soon()), Err(ConnectError::NotFound { .. })));
    let bound = directory.bind(&name()).unwrap();
    directory.connect(&name(), soon()).unwrap();
    assert!(bound.still_ours());
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(orphan).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn a_forked_child_closes_the_listener_and_leaves_the_name_alone() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let mut bound = Some(directory.bind(&name()).unwrap());
    let child = fork(|| {
        let refused = directory.connect(&name(), 0).err() == Some(ConnectError::ForkedHandle)
            && directory.bind(&name()).err() == Some(PublishError::ForkedHandle)
            && directory.list().is_empty();
        let bound = bound.take().unwrap();
        let listener = bound.listener.as_raw_fd();
        // SAFETY: F_GETFD reads the flags of any number and changes nothing.
        let closed = unsafe { libc::fcntl(listener, libc::F_GETFD) } == -1;
        drop(bound);
        i32::from(!(refused && closed))
    });
    assert_eq!(child_status(child), 0);
    assert!(bound.unwrap().still_ours(), "the child removed its parent's name");
}

#[test]
fn withdrawing_leaves_a_successors_socket() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let old = directory.bind(&name()).unwrap();
    let new = directory.replace(&name(), &[name()]).unwrap();
    assert!(!old.still_ours() && new.still_ours());
    old.withdraw();
    assert!(new.still_ours());
    directory.connect(&name(), soon()).unwrap();
    assert_eq!(new.address(), &name());
}

#[test]
fn a_file_that_was_removed_or_is_no_socket_does_not_hold_a_name() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let aged = directory.bind(&name()).unwrap();
    fs::remove_file(scratch.0.join("processInfo")).unwrap();
    assert!(!aged.still_ours());
    fs::write(scratch.0.join("processInfo"), "").unwrap();
    fs::write(scratch.0.join(".binding"), "").unwrap();
    assert!(matches!(directory.connect(&name(), soon()), Err(ConnectError::NotFound { .. })));
    let bound = directory.bind(&name()).unwrap();
    drop(aged);
    assert!(bound.still_ours());
    assert_eq!(scratch.files(), ["processInfo"]);
}

#[test]
fn a_symbolic_link_in_place_of_a_socket_is_not_followed() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let elsewhere = directory.bind(&Address::from(Name::new("elsewhere").unwrap())).unwrap();
    symlink("elsewhere", scratch.0.join("processInfo")).unwrap();
    assert!(matches!(directory.connect(&name(), soon()), Err(ConnectError::NotFound { .. })));
    drop(elsewhere);
}

#[test]
fn directories_that_others_can_write_or_swap_are_refused_with_a_sentence() {
    let scratch = Scratch::new();
    let open = scratch.0.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let link = scratch.0.join("link");
    symlink(&scratch.0, &link).unwrap();
    let file = scratch.0.join("file");
    fs::write(&file, "").unwrap();
    for (path, says) in [
        (open.as_path(), "is open to other users (mode 0755): run `chmod 700`"),
        (&link, "is a symbolic link"),
        (&file, "is a symbolic link or no directory"),
        (&scratch.0.join("no/parent"), "cannot be made"),
    ] {
        let sentence = Directory::private(path).unwrap_err();
        assert!(sentence.contains(says), "{sentence}");
        assert!(sentence.contains(path.to_str().unwrap()), "{sentence}");
    }
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Directory::shared(&open, None).unwrap_err().contains("is writable by other users"));
}

#[test]
fn directories_of_strangers_are_refused_unless_expected() {
    let scratch = Scratch::new();
    let theirs = scratch.0.join("theirs");
    fs::create_dir(&theirs).unwrap();
    if std::os::unix::fs::chown(&theirs, Some(12_345), None).is_err() {
        return; // Only root can give a directory away.
    }
    assert!(Directory::private(&theirs).unwrap_err().contains("belongs to user 12345"));
    assert!(Directory::shared(&theirs, None).unwrap_err().contains("belongs to user 12345"));
    assert!(Directory::shared(&theirs, Some(12_345)).is_ok());
    std::os::unix::fs::chown(&theirs, Some(socket::OVERFLOW_UID), None).unwrap();
    assert!(Directory::shared(&theirs, Some(socket::OVERFLOW_UID)).is_err());
}

#[test]
fn another_user_can_call_on_a_shared_bus_but_not_publish() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root can become another user.
    }
    let scratch = Scratch::new();
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o711)).unwrap();
    let path = scratch.0.join("shared");
    let bound = Directory::shared(&path, None).unwrap().bind(&name()).unwrap();
    let stranger = fork(|| {
        // SAFETY: this child has one thread; the system call changes its user alone.
        assert_eq!(unsafe { libc::setuid(12_345) }, 0);
        let directory = Directory::shared(&path, Some(0)).unwrap();
        let called = directory.connect(&name(), soon()).is_ok();
        let taken = matches!(directory.bind(&name()), Err(PublishError::AlreadyPublished { .. }));
        let other = Address::from(Name::new("other").unwrap());
        let refused = directory.bind(&other).err() == Some(PublishError::PermissionDenied);
        let blind = directory.list().is_empty() && NameWatch::new(&directory).is_none();
        i32::from(!(called && taken && refused && blind))
    });
    assert_eq!(child_status(stranger), 0);
    let callers = std::iter::from_fn(|| socket::accept(&bound.listener).ok());
    let uids: Vec<_> = callers.map(|fd| socket::peer_credentials(&fd).unwrap().uid).collect();
    assert_eq!(uids, [12_345, 12_345], "the call and the probe");
}

#[test]
fn modes_are_those_of_the_kind_of_bus() {
    let scratch = Scratch::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    for (kind, directory_mode, socket_mode) in [("private", 0o700, 0o600), ("shared", 0o711, 0o666)] {
        let path = scratch.0.join(kind);
        let directory =
            if kind == "shared" { Directory::shared(&path, None) } else { Directory::private(&path) };
        let _bound = directory.unwrap().bind(&name()).unwrap();
        assert_eq!(mode(&path), directory_mode);
        assert_eq!(mode(&path.join("processInfo")), socket_mode);
    }
}

#[test]
fn long_paths_and_long_names_work() {
    let scratch = Scratch::new();
    let long = scratch.0.join("d".repeat(150));
    let directory = Directory::private(&long).unwrap();
    let longest = Address::from(Name::new(&"n".repeat(100)).unwrap());
    let _bound = directory.bind(&longest).unwrap();
    directory.connect(&longest, soon()).unwrap();
}

#[test]
fn without_proc_short_paths_work_and_long_ones_say_why_not() {
    if !features::disabled(features::Feature::ProcFd) {
        return rerun_without(
            "procfd",
            "names::tests::without_proc_short_paths_work_and_long_ones_say_why_not",
        );
    }
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let _bound = directory.bind(&name()).unwrap();
    directory.connect(&name(), soon()).unwrap();
    let long = Directory::private(&scratch.0.join("d".repeat(150))).unwrap();
    let error = long.bind(&name()).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn older_kernels_see_a_killed_owner_too() {
    rerun_without("peerpidfd", "names::tests::a_killed_owners_name_is_free_and_leaves_one_dead_socket");
    rerun_without(
        "peerpidfd,pidfd_open",
        "names::tests::a_killed_owners_name_is_free_and_leaves_one_dead_socket",
    );
}

#[test]
fn a_removed_or_replaced_directory_is_reported() {
    let scratch = Scratch::new();
    let path = scratch.0.join("gone");
    let directory = Directory::private(&path).unwrap();
    assert!(directory.is_current());
    fs::remove_dir(&path).unwrap();
    assert!(!directory.is_current());
    let error = directory.bind(&name()).unwrap_err();
    assert!(error.to_string().contains("was removed: open the bus again"), "{error}");
    let _successor = Directory::private(&path).unwrap();
    assert!(!directory.is_current());
}

#[test]
fn a_watch_tells_of_names_that_come_and_go() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let watch = NameWatch::new(&directory).unwrap();
    let mut seen = Vec::new();
    let bound = directory.bind(&name()).unwrap();
    watch.drain(|change| seen.push(change));
    assert_eq!(std::mem::take(&mut seen), [Change::Name(name().name().clone())]);
    drop(bound);
    watch.drain(|change| seen.push(change));
    assert_eq!(seen, [Change::Name(name().name().clone())]);
}

#[test]
fn without_inotify_there_is_no_watch() {
    if !features::disabled(features::Feature::Inotify) {
        return rerun_without("inotify", "names::tests::without_inotify_there_is_no_watch");
    }
    assert!(NameWatch::new(&Scratch::new().directory()).is_none());
}

#[test]
fn instances_share_a_name_and_exclude_an_owner_of_it() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let us = std::process::id();
    let (first, second) = (instance(Some("a")), instance(None));
    let bound = [directory.bind(&first).unwrap(), directory.bind(&second).unwrap()];
    assert_eq!(scratch.files().len(), 2);
    for address in [&first, &second] {
        directory.connect(address, soon()).unwrap();
    }
    assert!(matches!(directory.connect(&name(), soon()), Err(ConnectError::NotFound { .. })));
    assert_eq!(directory.list(), [(name().name().clone(), us)], "a name is listed once");
    assert_eq!(directory.bind(&name()).unwrap_err(), PublishError::PublishedAsInstances { pid: us });
    drop(bound);
    assert_eq!(scratch.files(), [""; 0]);
    let _alone = directory.bind(&name()).unwrap();
    let refused = directory.bind(&instance(None)).unwrap_err();
    assert_eq!(refused, PublishError::AlreadyPublished { pid: us });
    assert_eq!(scratch.files(), ["processInfo"]);
}

#[test]
fn dead_instances_do_not_hold_a_name_and_the_next_publisher_removes_them() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let leave_behind = || {
        let child = fork(|| {
            let ours = Directory::private(&scratch.0).unwrap();
            std::mem::forget(ours.bind(&instance(Some("dead"))).unwrap());
            0
        });
        assert_eq!(child_status(child), 0);
    };
    leave_behind();
    leave_behind();
    assert_eq!(scratch.files().len(), 1, "one dead socket, whatever the number of deaths");
    let alive = directory.bind(&instance(None)).unwrap();
    assert_eq!(scratch.files().len(), 1);
    leave_behind();
    assert_eq!(directory.list().len(), 1, "a lister removes it, too");
    assert_eq!(scratch.files().len(), 1);
    drop(alive);
    leave_behind();
    let _alone = directory.bind(&name()).unwrap();
    assert_eq!(scratch.files(), ["processInfo"]);
}

#[test]
fn a_successor_takes_the_places_of_those_it_was_granted() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let alone = directory.bind(&name()).unwrap();
    let (first, second) = (instance(Some("a")), instance(Some("b")));
    let bound = directory.replace(&first, &[name()]).unwrap();
    assert!(!alone.still_ours() && bound.still_ours());
    let other = directory.bind(&second).unwrap();
    let refused = directory.replace(&name(), std::slice::from_ref(&first)).unwrap_err();
    assert!(matches!(refused, PublishError::PublishedAsInstances { .. }), "{refused}");
    let again = directory.replace(&name(), &[first, second]).unwrap();
    assert!(again.still_ours() && !bound.still_ours() && !other.still_ours());
    assert_eq!(scratch.files(), ["processInfo"]);
}
