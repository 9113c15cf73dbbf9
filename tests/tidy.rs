//! Rules of this project that a program can check. Each test names every place that breaks its rule.
//!
//! `tidy/lexer.rs` blanks out comments and literals, so that a rule about code is not upset by words.

#[path = "tidy/lexer.rs"]
mod lexer;

use std::fs;
use std::path::{Path, PathBuf};

use lexer::{Function, code_only, functions, words};

/// A file longer than this holds more than one concept.
const FILE_LINES_MAX: usize = 600;
/// A function longer than this cannot be seen whole.
const FUNCTION_LINES_MAX: usize = 70;

/// Where `unsafe` may stand in the library: the kernel, the ring, the arena, and two places that write where a peer will read.
/// Everything else is safe code on top of these.
const UNSAFE_ALLOWED: [&str; 26] = [
    "src/sys",
    "src/ring",
    "src/sync.rs",
    "src/blob",
    // The bytes of a body that is encoded in place or not yet decoded.
    "src/object/invocation.rs",
    "src/object/allocations.rs",
    "src/names/tests.rs",
    "src/wire/output.rs",
    "src/wire/output",
    // A type is known by its id.
    "src/wire/blob.rs",
    "src/wire/blob_tests.rs",
    // Slots and lanes are held by number instead of by reference count, which a hot call could not afford.
    "src/proxy/port.rs",
    "src/proxy/link.rs",
    "src/proxy/flight.rs",
    "src/proxy/flight",
    "src/proxy/call.rs",
    "src/proxy/answer.rs",
    // A runtime watches a descriptor by its number.
    "src/proxy/lane/notify.rs",
    // Rings are made over fresh mappings.
    "src/bus/connect.rs",
    "src/owner/listener.rs",
    "src/channel",
    // What is borrowed is given back by its drop, except in a forked child.
    "src/parcels",
    // The slot a method answers into, the call a thread serves, and the engine of a process.
    "src/owner/dispatch.rs",
    "src/owner/respond.rs",
    "src/owner/context.rs",
    "src/engine.rs",
];

/// Tests that sleep, each with the reason why no state could be waited for instead.
const SLEEP_ALLOWED: [(&str, &str); 0] = [];

/// Directories of things that are built or fetched.
const NOT_OURS: [&str; 4] = ["target", ".git", "node_modules", ".venv"];

#[test]
fn no_source_file_is_too_long() {
    check(&sources(), |file| {
        let lines = file.text.lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{lines} lines; split it by concept")).into_iter().collect()
    });
}

#[test]
fn no_function_is_too_long() {
    check(&sources(), |file| {
        let long = |function: &Function| function.lines() > FUNCTION_LINES_MAX;
        let complaint = |f: Function| format!("line {}: `{}` has {} lines", f.first, f.name, f.lines());
        functions(&file.text).into_iter().filter(long).map(complaint).collect()
    });
}

#[test]
fn every_library_file_says_what_it_is() {
    check(&sources_below(&["src", "crates", "benches", "xtask", "tests"]), |file| {
        let opens = file.text.trim_start().starts_with("//!") || !file.is_of_rust_we_wrote();
        (!opens).then(|| "does not open with a `//!` comment".to_owned()).into_iter().collect()
    });
}

#[test]
fn unsafe_stands_only_where_it_is_allowed() {
    check(&sources_below(&["src", "crates/macros"]), |file| {
        if UNSAFE_ALLOWED.iter().any(|place| file.name.starts_with(place)) {
            return Vec::new();
        }
        lines_with(&file.text, |code| words(code).any(|word| word == "unsafe"))
    });
}

#[test]
fn tests_wait_for_states_and_never_sleep() {
    let tests = sources()
        .into_iter()
        .filter(|file| file.name.split('/').any(|part| part == "tests"))
        .collect::<Vec<_>>();
    let sleeper = "thread::sleep";
    check(&tests, |file| match SLEEP_ALLOWED.iter().any(|(name, _)| *name == file.name) {
        true => Vec::new(),
        false => lines_with(&file.text, |code| code.contains(sleeper)),
    });
}

#[test]
fn no_file_names_a_place_on_one_machine() {
    let checkout = env!("CARGO_MANIFEST_DIR");
    let homes = ["home", "Users", "root"].map(|directory| format!("/{directory}/"));
    let private = |line: &str| {
        line.contains(checkout)
            || homes.iter().any(|home| line.contains(home))
            || names_a_temporary_file(line)
    };
    check(&all_files(), |file| {
        let broken = file.text.lines().enumerate().filter(|(_, line)| private(line));
        broken.map(|(index, line)| format!("line {}: {}", index + 1, line.trim())).collect()
    });
}

/// `/tmp/` itself and the bus's own directory in it are part of the design; other names in it are somebody's scratch files.
fn names_a_temporary_file(line: &str) -> bool {
    let after = |at: usize| &line[at + "/tmp/".len()..];
    let starts: Vec<usize> = line.match_indices("/tmp/").map(|found| found.0).collect();
    starts.into_iter().map(after).any(|rest| {
        !rest.starts_with("objbus") && rest.starts_with(|letter: char| letter.is_ascii_alphanumeric())
    })
}

#[test]
fn every_link_to_a_file_resolves() {
    let documents: Vec<File> = all_files().into_iter().filter(|file| file.name.ends_with(".md")).collect();
    check(&documents, |file| {
        let directory = root().join(&file.name).parent().expect("a file lies in a directory").to_owned();
        let broken = |target: &String| !directory.join(target).exists();
        let links = local_links(&file.text);
        links
            .into_iter()
            .filter(broken)
            .map(|target| format!("links to `{target}`, which is not there"))
            .collect()
    });
}

/// The targets of the links in a Markdown text that name a file, without their anchors; code blocks are left out.
fn local_links(text: &str) -> Vec<String> {
    let prose = text.split("```").step_by(2).collect::<String>();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|found| found.0);
    let files = targets.filter(|target| !target.contains("://") && !target.starts_with(['#', '<']));
    let plain = files.map(|target| target.split('#').next().unwrap_or_default().to_owned());
    plain.filter(|target| !target.is_empty() && !target.starts_with("mailto:")).collect()
}

/// One text file of the repository.
struct File {
    /// Its path from the root, with `/` between the parts.
    name: String,
    text: String,
}

impl File {
    /// Compile-fail cases are what a user might write: no rule of style holds for them.
    fn is_of_rust_we_wrote(&self) -> bool {
        let case = ["/ui/", "/compile_fail/", "/compile_pass/"];
        !case.iter().any(|directory| self.name.contains(directory))
    }
}

/// Fails with every complaint about every file, if there is any.
fn check(files: &[File], rule: impl Fn(&File) -> Vec<String>) {
    let complaints: Vec<String> = files
        .iter()
        .flat_map(|file| rule(file).into_iter().map(|what| format!("{}: {what}", file.name)))
        .collect();
    assert!(complaints.is_empty(), "{} places break this rule:\n{}", complaints.len(), complaints.join("\n"));
}

/// The lines whose code, without comments and literals, is `bad`.
fn lines_with(text: &str, bad: impl Fn(&str) -> bool) -> Vec<String> {
    let code = code_only(text);
    let found = code.lines().enumerate().filter(|(_, line)| bad(line));
    found.map(|(index, line)| format!("line {}: {}", index + 1, line.trim())).collect()
}

/// Every Rust file.
fn sources() -> Vec<File> {
    all_files().into_iter().filter(|file| file.name.ends_with(".rs")).collect()
}

/// The Rust files below the given directories.
fn sources_below(directories: &[&str]) -> Vec<File> {
    let below =
        |file: &File| directories.iter().any(|directory| file.name.starts_with(&format!("{directory}/")));
    sources().into_iter().filter(below).collect()
}

/// Every text file of the repository that is not built or fetched; what is not UTF-8 is no text.
fn all_files() -> Vec<File> {
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    paths.sort();
    let named = |path: &PathBuf| {
        let name =
            path.strip_prefix(root()).expect("walked from the root").to_string_lossy().replace('\\', "/");
        Some(File { name, text: fs::read_to_string(path).ok()? })
    };
    paths.iter().filter_map(named).collect()
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of the repository can be read") {
        let path = entry.expect("a directory of the repository can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match path.symlink_metadata() {
            Ok(kind) if kind.is_dir() && !NOT_OURS.contains(&name.as_str()) => walk(&path, found),
            // In a linked work tree `.git` is a file that names a place on this machine.
            Ok(kind) if kind.is_file() && name != ".git" => found.push(path),
            _ => {}
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
