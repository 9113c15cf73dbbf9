//! The examples as their readers run them: two processes each, and what they print.

mod support;
use support::*;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// Every example that has a side of its own to start, and the name that this side publishes.
const SERVED: [(&str, &str); 8] = [
    ("process_info", "processInfo"),
    ("math", "math"),
    ("interface", "scale"),
    ("one_way", "journal"),
    ("frames", "camera"),
    ("progress", "kitchen"),
    ("events", "player"),
    ("stream", "station"),
];

#[test]
fn process_info_crosses() {
    let (place, owner) = served("process_info");
    let said = said_by(&place, "process_info");
    assert!(said.contains(&format!("process {} has been running for ", owner.process.id())), "{said}");
}

#[test]
fn math_crosses() {
    let (place, _owner) = served("math");
    let said = said_by(&place, "math");
    assert!(said.contains("2 to the power of 10 is 1024\n"), "{said}");
    assert!(said.contains("the hypotenuse of 3 and 4 is 5\n"), "{said}");
    assert!(said.contains("pi is 3.14159"), "{said}");
}

#[test]
fn an_interface_gives_the_same_here_and_there() {
    let (place, _owner) = served("interface");
    let said = said_by(&place, "interface");
    let of = |side: &str| said.lines().find_map(|line| line.strip_prefix(side)).map(str::to_owned);
    assert_eq!(of("here: "), Some("Ok(30.0), Err(Overload { limit: 100 })".to_owned()));
    assert_eq!(of("there: "), of("here: "));
}

#[test]
fn a_one_way_call_outlives_its_sender() {
    let (place, owner) = served("one_way");
    let said = said_by(&place, "one_way");
    let sender = said.strip_prefix("process ").and_then(|rest| rest.split_once(' ')).map(|found| found.0);
    let sender = sender.unwrap_or_else(|| panic!("the sender did not say who it is: {said}"));
    assert_eq!(owner.hear(), format!("process {sender} noted: out of ink"));
}

#[test]
fn frames_are_lent_from_a_pool_of_four() {
    let (place, _owner) = served("frames");
    let said = said_by(&place, "frames");
    let [shown, refused, again] = &said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert!(shown.starts_with("100 frames of 1280x720, "), "{said}");
    assert!(
        refused.starts_with("with 4 frames held: ") && refused.contains("not enough came back"),
        "{said}"
    );
    assert_eq!(*again, "with none held: a frame of 3686400 bytes");
}

#[test]
fn progress_is_told_to_the_caller_which_says_when_to_stop() {
    let (place, _owner) = served("progress");
    let said = said_by(&place, "progress");
    let lines: Vec<_> = said.lines().map(|line| line.split(" hears of ").last().unwrap_or(line)).collect();
    assert_eq!(lines[..4], ["10 %", "20 %", "30 %", "stopped at 30 %"], "{said}");
    assert_eq!((lines.len(), lines.last()), (14, Some(&"done to 100 %")), "{said}");
}

#[test]
fn a_player_tells_what_it_plays() {
    let (place, _owner) = served("events");
    assert_eq!(said_by(&place, "events"), "played Blackbird\nthe volume is Some(Ok(40))\n");
}

#[test]
fn instances_share_the_work() {
    let place = place();
    let serve = |tag| serve_with(&place, "instances", &["serve", tag]);
    let owners = [serve("eu"), serve("us")];
    let said = said_by(&place, "instances");
    for (owner, tag) in owners.iter().zip(["eu", "us"]) {
        let line = format!("process {} sells tea from {tag}\n", owner.process.id());
        assert!(said.contains(&line), "{said}");
    }
    assert!(said.contains("of 100: {\"tea from eu\": 50, \"tea from us\": 50}\n"), "{said}");
    assert!(said.ends_with("by tag: coffee from us\n"), "{said}");
}

#[test]
fn a_stream_is_followed_and_another_sent() {
    let (place, _owner) = served("stream");
    let said = said_by(&place, "stream");
    assert_eq!(said, "3: rain\n6: rain\n9: rain\nthe mean of 1000 readings is 499.5\n");
}

#[test]
fn the_readme_has_process_info_whole() {
    let read =
        |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let (readme, example) = (read("README.md"), read("examples/process_info.rs"));
    let code = example.lines().skip_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n");
    assert!(
        readme.contains(&format!("```rust\n{}\n```", code.trim())),
        "README.md shows another process_info"
    );
}

/// There it is a doctest.
#[test]
fn the_readme_shows_blobs_as_the_crates_documentation_does() {
    let read =
        |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let readme = read("README.md");
    let section = readme.split("\n## Blobs\n").nth(1).expect("README.md has a section on blobs");
    let shown = section.split("```").nth(1).and_then(|block| block.strip_prefix("rust\n")).unwrap();
    let lib = read("src/lib.rs");
    let lines = lib
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line));
    let documented: String =
        lines.filter(|line| !line.starts_with("# ")).map(|line| format!("{line}\n")).collect();
    assert!(documented.contains(shown), "src/lib.rs shows another");
}

#[test]
fn the_readme_declares_the_page_snapshot_as_its_crate_does() {
    let read =
        |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let readme = read("README.md");
    let section =
        readme.split("\n## Applications\n").nth(1).expect("README.md has a section on applications");
    let shown = section.split("```").nth(1).and_then(|block| block.strip_prefix("rust\n")).unwrap();
    let lib = "examples/page-snapshot/src/lib.rs";
    assert!(read(lib).contains(shown), "{lib} declares another");
}

#[test]
fn latency_ends_with_a_figure() {
    let said = said_by(&place(), "latency");
    assert!(said.starts_with("a call ") && said.ends_with(" calls to one echo\n"), "{said}");
}

#[test]
fn a_wrong_argument_is_answered_with_a_sentence() {
    for name in SERVED.map(|(name, _)| name).into_iter().chain(["instances", "latency"]) {
        let place = place();
        let sentence = complaint(command(&place, name).arg("sevre"));
        assert!(sentence.contains("`sevre` is no role here: "), "{name}: {sentence}");
        assert!(place.files().is_empty(), "{name} did something before it refused");
    }
}

/// What a newcomer sees first when something is wrong is a sentence, and not an error as Rust prints it.
#[test]
fn nobody_there_and_a_taken_name_are_answered_with_a_sentence() {
    let (place, owner) = served("interface");
    let taken = complaint(command(&place, "interface").arg("serve"));
    let pid = owner.process.id();
    assert!(taken.starts_with(&format!("process {pid} publishes this name already: ")), "{taken}");
    drop(owner);
    let absent = complaint(&mut command(&place, "interface"));
    assert!(absent.starts_with("nobody publishes `scale`: start the process that does"), "{absent}");
}

/// The one line that an example which fails prints.
fn complaint(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let sentence = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), sentence.lines().count()), (Some(1), 1), "{sentence}");
    sentence
}

/// Ctrl-C while it serves: at most a dead socket is left, which the next publisher takes over.
#[test]
fn an_interrupted_publisher_is_succeeded() {
    for (name, published) in SERVED {
        let (place, mut owner) = served(name);
        // SAFETY: kill touches no memory; the child is not reaped, so its pid is its own.
        assert_eq!(unsafe { libc::kill(owner.process.id() as i32, libc::SIGINT) }, 0);
        let status = owner.process.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGINT), "{name} ended with {status}");
        assert!(place.files().iter().all(|file| file == published), "{name} left {:?}", place.files());
        let _successor = serve(&place, name);
        assert_eq!(place.files(), [published], "{name}");
        said_by(&place, name);
    }
}

/// The side of an example that publishes.
struct Owner {
    process: Child,
    lines: Receiver<String>,
}

impl Owner {
    /// The next line that it prints.
    fn hear(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("process {} says nothing: {error}", self.process.id()))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn served(name: &str) -> (Place, Owner) {
    let place = place();
    let owner = serve(&place, name);
    (place, owner)
}

/// Starts `name serve` and waits until it has published.
fn serve(place: &Place, name: &str) -> Owner {
    serve_with(place, name, &["serve"])
}

fn serve_with(place: &Place, name: &str, arguments: &[&str]) -> Owner {
    let mut process = command(place, name).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let output = process.stdout.take().expect("it was piped");
    let (to, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| to.send(line))
    });
    let owner = Owner { process, lines };
    let line = owner.hear();
    assert!(line.starts_with("published "), "{name} says {line}");
    owner
}

/// What the other side prints, which must succeed.
fn said_by(place: &Place, name: &str) -> String {
    let Output { status, stdout, stderr } = command(place, name).output().unwrap();
    let (said, errors) = (String::from_utf8(stdout).unwrap(), String::from_utf8_lossy(&stderr).into_owned());
    assert!(status.success(), "{name} ended with {status}: {said}{errors}");
    said
}

fn command(place: &Place, name: &str) -> Command {
    let mut command = Command::new(built(name));
    command.env("OBJBUS_DIR", place.path()).stdin(Stdio::null());
    command
}

/// The example's binary. `cargo test` and `cargo nextest run` build it before, unless told to build one test only.
fn built(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("the test binary has a path");
    let profile = this.parent().and_then(Path::parent).expect("it lies in <target>/<profile>/deps");
    let binary = profile.join("examples").join(name);
    assert!(binary.exists(), "{name} is not built: run `cargo build --examples` in this profile first");
    binary
}
