//! What `cargo xtask demo` runs, as its users run it: to its end, with Ctrl-C in the middle, killed, and with a wrong argument.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Signal, kill_process};
use support::{PATIENCE, Picture, has_chromium, wait_for};

#[test]
fn it_shows_pictures_processes_bytes_and_times_and_leaves_only_the_pictures() {
    if !has_chromium() {
        return;
    }
    let mut demo = Demo::start();
    let said: Vec<String> = demo.lines.iter().collect();
    assert_eq!(demo.wait().code(), Some(0), "{said:#?}");
    for beginning in ["  guard  ", "  supervisor  ", "  worker 1  ", "  background 0  ", "  demo  "] {
        let line = said.iter().find(|line| line.starts_with(beginning));
        let pid =
            line.and_then(|line| line[beginning.len()..].split_whitespace().next()?.parse::<u32>().ok());
        assert!(pid.is_some(), "no line with a pid begins with `{beginning}`: {said:#?}");
    }
    let pictures = [("tall", 1280), ("small", 480), ("poster", 2400)].map(|(name, width)| {
        let jpeg = fs::read(demo.place.join("pictures").join(name).with_extension("jpg")).unwrap();
        let picture = Picture::decode(&jpeg);
        assert_eq!(picture.width, width, "{name}");
        assert_eq!(said.iter().filter(|line| line.starts_with(&format!("  {name}"))).count(), 3, "{said:#?}");
        picture
    });
    let [tall, small, _] = &pictures;
    assert!(tall.height > 3_000, "{}", tall.height);
    tall.assert_shows((20, tall.height - 20), [0x12, 0x23, 0x3f]); // the footer
    small.assert_shows((411, 67), [0xf7, 0xd0, 0x46]); // the sun
    demo.expect_nothing_left();
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing() {
    if !has_chromium() {
        return;
    }
    for moment in ["starting the application", "processes", "pictures, by HTTP"] {
        let mut demo = Demo::start();
        demo.hear(moment);
        demo.signal(Signal::INT);
        assert_eq!(demo.wait().code(), Some(130), "after `{moment}`");
        demo.expect_nothing_left();
    }
}

/// Its directory stays, since nobody is there to remove it.
#[test]
fn no_process_outlives_a_killed_demo() {
    if !has_chromium() {
        return;
    }
    let mut demo = Demo::start();
    demo.hear("pictures, by HTTP");
    demo.signal(Signal::KILL);
    assert_eq!(demo.wait().signal(), Some(Signal::KILL.as_raw()));
    demo.expect_no_process();
}

#[test]
fn a_wrong_argument_is_answered_with_a_sentence() {
    for (words, named) in [(&["--sevre"][..], "`--sevre`"), (&["5511"], "`5511`"), (&["--to"], "directory")] {
        let output = Command::new(PROGRAM).args(words).output().unwrap();
        let sentence = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), sentence.lines().count()), (Some(2), 1), "{sentence}");
        assert!(sentence.contains(named) && sentence.contains("--help"), "{sentence}");
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_page-snapshot-demo");

/// The demo, with a directory of its own for temporary files.
struct Demo {
    process: Child,
    lines: Receiver<String>,
    place: PathBuf,
}

impl Demo {
    fn start() -> Demo {
        // Short: it must have room for the demo's own.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("objt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let place = std::env::temp_dir().join(name);
        fs::create_dir(&place).expect("there is room for a directory");
        let mut command = Command::new(PROGRAM);
        command.arg("--to").arg(place.join("pictures")).env("TMPDIR", &place);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = process.stdout.take().expect("its output is piped");
        let (to, lines) = channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.try_for_each(|line| {
                println!("{line}");
                to.send(line)
            })
        });
        Demo { process, lines, place }
    }

    /// Waits for a line that begins so.
    fn hear(&self, beginning: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("it does not say `{beginning}`"));
            if line.starts_with(beginning) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it runs");
    }

    fn wait(&mut self) -> ExitStatus {
        wait_for("the demo to end", || self.process.try_wait().expect("it is our child"))
    }

    fn expect_nothing_left(&self) {
        let pictures = Path::new("pictures").as_os_str();
        let left: Vec<_> =
            fs::read_dir(&self.place).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| name == pictures), "{left:?}");
        assert_eq!(self.processes(), Vec::<String>::new());
    }

    fn expect_no_process(&self) {
        wait_for("every process to end", || self.processes().is_empty().then_some(()));
    }

    /// Those that have the directory for temporary files, or one in it.
    fn processes(&self) -> Vec<String> {
        let ours = format!("TMPDIR={}", self.place.display());
        let entries = fs::read_dir("/proc").expect("there is a /proc").flatten();
        let found = entries.filter_map(|entry| {
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let variables = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
            let words = || fs::read(entry.path().join("cmdline")).unwrap_or_default();
            variables
                .into_iter()
                .any(|variable| variable.starts_with(&ours))
                .then(|| String::from_utf8_lossy(&words()).replace('\0', " "))
        });
        found.collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _ended = self.process.wait();
        if !std::thread::panicking() {
            let _gone = fs::remove_dir_all(&self.place);
        }
    }
}
