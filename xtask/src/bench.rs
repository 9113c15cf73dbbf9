//! `cargo xtask bench`: runs the benches, all or one, with the arguments that each of them understands.

use std::fs;

use crate::Failure;
use crate::tools::cargo;

/// Runs the bench that `words` name, or all of them one after the other.
pub fn run(words: &[&str]) -> Result<(), Failure> {
    let benches = all().map_err(|error| Failure::Step(format!("cannot list benches/: {error}")))?;
    let mut quick = false;
    let mut chosen = Vec::new();
    for word in words {
        match *word {
            "--quick" => quick = true,
            name if benches.iter().any(|bench| bench == name) => chosen.push(name),
            other => {
                let known = benches.join(", ");
                return Err(Failure::Usage(format!(
                    "there is no bench or option `{other}`; benches: {known}"
                )));
            }
        }
    }
    if chosen.is_empty() {
        chosen.extend(benches.iter().map(String::as_str));
    }
    chosen.into_iter().try_for_each(|name| run_one(name, quick))
}

/// The names of the benches: the files in `benches/`.
fn all() -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("benches")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn run_one(name: &str, quick: bool) -> Result<(), Failure> {
    let arguments: &[&str] = if quick { &["--", "--quick"] } else { &[] };
    let status = cargo(&[&["bench", "--bench", name], arguments].concat()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Step(format!("bench `{name}` ended with {status}"))),
        Err(error) => Err(Failure::Step(format!("cargo could not be started: {error}"))),
    }
}
