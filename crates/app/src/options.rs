//! The command line of an application.

use std::ffi::OsString;
use std::path::PathBuf;

/// How an application runs: what its command line says.
///
/// [`App::run`](crate::App::run) reads them from the arguments; a program with a command line of its own fills them in and calls
/// [`App::run_with`](crate::App::run_with).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// For development: processes with [`Scale::Auto`](crate::Scale::Auto) run once.
    pub dev: bool,
    /// Log lines as JSON.
    pub json: bool,
    /// The configuration file; `<app>.toml` in the working directory, if there is one, by default.
    pub config: Option<PathBuf>,
}

/// What the arguments ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Run(Options),
    Help,
}

/// Reads the arguments, without the program's name.
///
/// # Errors
///
/// A sentence that says what is wrong.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, String> {
    use lexopt::Arg::{Long, Short, Value};
    let mut options = Options::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(|error| hint(&error.to_string()))? {
        match argument {
            Long("dev") => options.dev = true,
            Long("json") => options.json = true,
            Long("config") => {
                let value = parser.value().map_err(|_| hint("`--config` needs a file: `--config FILE`"))?;
                options.config = Some(value.into());
            }
            Long("help") | Short('h') => return Ok(Asked::Help),
            Long(flag) => return Err(hint(&format!("there is no flag `--{flag}`"))),
            Short(flag) => return Err(hint(&format!("there is no flag `-{flag}`"))),
            Value(value) => {
                return Err(hint(&format!("the argument `{}` means nothing here", value.display())));
            }
        }
    }
    Ok(Asked::Run(options))
}

/// As [`parse`], in a process of the application: what it does not know belongs to the process and its services, see
/// [`ProcessBuilder::args`](crate::ProcessBuilder::args), and comes after what the guard has accepted.
pub(crate) fn parse_known(arguments: impl IntoIterator<Item = OsString>) -> Options {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let longest =
        (0..=arguments.len()).rev().find_map(|count| match parse(arguments[..count].iter().cloned()) {
            Ok(Asked::Run(options)) => Some(options),
            _ => None,
        });
    longest.unwrap_or_default()
}

fn hint(what: &str) -> String {
    format!("{what}; `--help` lists what there is")
}

/// What `--help` prints.
pub(crate) fn help(app: &str) -> String {
    format!(
        "\
Usage: {app} [--dev] [--json] [--config FILE]

  --dev          for development: processes that scale with the machine run once
  --json         log lines as JSON
  --config FILE  the configuration; {app}.toml in the working directory, if it is there, by default
  --help         this

A key of the configuration is also taken from the environment: {prefix}<SERVICE>__<KEY>=value.
RUST_LOG sets what is logged: a level, or target=level, with commas between.
",
        prefix = crate::config::prefix(app)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Asked, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_are_read() {
        let expected = Options { dev: true, json: true, config: Some("a.toml".into()) };
        assert_eq!(parsed("--dev --json --config a.toml"), Ok(Asked::Run(expected.clone())));
        assert_eq!(parsed("--config=a.toml --json --dev"), Ok(Asked::Run(expected)));
        assert_eq!(parsed(""), Ok(Asked::Run(Options::default())));
        assert_eq!(parsed("--dev --help"), Ok(Asked::Help));
        assert_eq!(parsed("-h"), Ok(Asked::Help));
    }

    #[test]
    fn a_wrong_argument_is_named_and_help_pointed_to() {
        let cases = [
            ("--deb", "`--deb`"),
            ("-x", "`-x`"),
            ("start", "`start`"),
            ("--config", "`--config FILE`"),
            ("--dev=1", "dev"),
            ("-- x", "`x`"),
        ];
        for (line, named) in cases {
            let error = parsed(line).expect_err(line);
            assert!(error.contains(named) && error.contains("--help"), "{line}: {error}");
        }
    }

    #[test]
    fn a_process_ignores_arguments_of_its_own() {
        let known = |line: &str| parse_known(line.split_whitespace().map(OsString::from));
        let json = Options { json: true, ..Options::default() };
        assert_eq!(known("--json --max-pages 3"), json);
        assert_eq!(known("--json"), json);
        assert_eq!(known("--json --help"), json);
        assert_eq!(known("x --json"), Options::default());
    }

    #[test]
    fn help_names_the_file_and_the_variables() {
        let text = help("page-snapshot");
        assert!(
            text.contains("page-snapshot.toml") && text.contains("PAGE_SNAPSHOT_<SERVICE>__<KEY>"),
            "{text}"
        );
    }
}
