//! `cargo xtask demo`: builds the page snapshot and shows it on real Chromium; with `--examples`, the small examples instead.

mod examples;

use std::os::unix::process::CommandExt;

use crate::Failure;
use crate::tools::{cargo, need_chromium};

/// What cargo is told about the application and the program that shows it, which lie in one package.
const PACKAGE: [&str; 4] = ["--release", "--quiet", "--package", "page-snapshot"];

/// What is to be shown.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    PageSnapshot { serve: bool },
    Examples,
}

pub fn run(words: &[&str]) -> Result<(), Failure> {
    match wanted(words).map_err(Failure::Usage)? {
        Wanted::PageSnapshot { serve } => page_snapshot(serve).map_err(Failure::Step),
        Wanted::Examples => examples::run().map_err(Failure::Step),
    }
}

fn wanted(words: &[&str]) -> Result<Wanted, String> {
    match words {
        [] => Ok(Wanted::PageSnapshot { serve: false }),
        ["--serve"] => Ok(Wanted::PageSnapshot { serve: true }),
        ["--examples"] => Ok(Wanted::Examples),
        [word] => Err(format!("`demo` takes `--serve` or `--examples`, and got `{word}`")),
        [..] => Err(format!("`demo` takes one of `--serve` and `--examples`, and got `{}`", words.join(" "))),
    }
}

/// Becomes the program that shows it, so that one process hears of Ctrl-C and cleans up; ends only in an error.
fn page_snapshot(serve: bool) -> Result<(), String> {
    need_chromium()?;
    println!("building the page snapshot, optimised; the first time this takes minutes");
    let built = cargo(&[&["build", "--bins"], &PACKAGE[..]].concat()).status();
    if !built.is_ok_and(|status| status.success()) {
        return Err(
            "the page snapshot does not build: `cargo build --release --package page-snapshot`".into()
        );
    }
    let mut demo = cargo(&[&["run", "--bin", "page-snapshot-demo"], &PACKAGE[..], &["--"]].concat());
    if serve {
        demo.arg("--serve");
    }
    let error = demo.exec();
    Err(format!("cargo could not be started: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood_or_answered_with_a_sentence() {
        assert_eq!(wanted(&[]), Ok(Wanted::PageSnapshot { serve: false }));
        assert_eq!(wanted(&["--serve"]), Ok(Wanted::PageSnapshot { serve: true }));
        assert_eq!(wanted(&["--examples"]), Ok(Wanted::Examples));
        for words in [&["--sevre"][..], &["--serve", "--examples"], &["--serve", "5511"]] {
            let sentence = wanted(words).unwrap_err();
            assert!(sentence.contains(&words.join(" ")) && sentence.contains("`--serve`"), "{sentence}");
        }
    }
}
