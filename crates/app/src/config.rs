//! Configuration: what the code says, then the file, then the environment.
//!
//! The file is TOML, with a table `[services.<name>]` for each service that it has something to say to and `[processes.<name>]` for
//! processes. [`layers`] puts the three together for one service.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

use crate::options::Options;
use crate::plan::check::{DeclaredProcess, list};
use crate::plan::{MemoryLimit, Scale};

mod layers;

/// What was read of the file and of the environment.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// What the file is called in errors.
    file_name: String,
    file: File,
    /// What every variable for the application begins with.
    prefix: String,
    /// The variables that begin so.
    environment: BTreeMap<String, OsString>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    services: BTreeMap<String, toml::Table>,
    processes: BTreeMap<String, ProcessSettings>,
}

/// What the file can say about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ProcessSettings {
    scale: Option<Scale>,
    memory: Option<MemorySettings>,
}

/// `memory = "512 MiB"`, or a table with more to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MemorySettings {
    limit: u64,
    shared: Option<bool>,
    children: Option<bool>,
}

impl Settings {
    /// Reads the file that `options` name, or the application's own if it is there, and the environment.
    ///
    /// # Errors
    ///
    /// A sentence that names the file and the place in it.
    pub fn load(app: &str, options: &Options) -> Result<Settings, String> {
        let own = format!("{app}.toml");
        let path = options.config.as_deref().unwrap_or(Path::new(&own));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && options.config.is_none() => {
                String::new()
            }
            Err(error) => {
                return Err(format!("the configuration {} cannot be read: {error}", path.display()));
            }
        };
        Settings::new(app, &path.display().to_string(), &text, std::env::vars_os())
    }

    fn new(
        app: &str,
        file_name: &str,
        text: &str,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Settings, String> {
        let file = toml::from_str(text).map_err(|error| format!("{file_name}: {error}"))?;
        let prefix = prefix(app);
        let named = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let environment = named.filter(|(name, _)| name.starts_with(&prefix)).collect();
        Ok(Settings { file_name: file_name.to_owned(), file, prefix, environment })
    }

    /// What the file says about processes.
    pub fn processes(&self) -> &BTreeMap<String, ProcessSettings> {
        &self.file.processes
    }

    /// The services and processes in the file that are not there, a sentence each.
    pub fn unknown(&self, services: &[&str], processes: &[&str]) -> Vec<String> {
        let file = &self.file_name;
        let complain = |table: &str, kind: &str, name: &String, known: &[&str]| {
            let is_known = known.contains(&name.as_str());
            let there = list(known);
            (!is_known)
                .then(|| format!("{file}: [{table}.{name}]: there is no {kind} `{name}`; there are {there}"))
        };
        let File { services: of_services, processes: of_processes } = &self.file;
        let services = of_services.keys().filter_map(|name| complain("services", "service", name, services));
        let processes =
            of_processes.keys().filter_map(|name| complain("processes", "process", name, processes));
        services.chain(processes).collect()
    }
}

/// What the name of each variable of an application begins with: `PAGE_SNAPSHOT_` for `page-snapshot`.
pub(crate) fn prefix(app: &str) -> String {
    format!("{}_", variable(app))
}

/// A name as a part of a variable's: upper case, with `_` for what is neither letter nor digit.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

impl ProcessSettings {
    /// Overrides what the code says.
    pub fn apply(&self, process: &mut DeclaredProcess) {
        if let Some(scale) = self.scale {
            process.scale = scale;
        }
        if let Some(MemorySettings { limit, shared, children }) = self.memory {
            let code = process.memory_limit.unwrap_or(MemoryLimit::from(limit));
            process.memory_limit = Some(MemoryLimit {
                bytes: limit,
                counts_shared: shared.unwrap_or(code.counts_shared),
                counts_children: children.unwrap_or(code.counts_children),
            });
        }
    }
}

impl<'de> Deserialize<'de> for Scale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scale, D::Error> {
        struct Scales;

        impl Visitor<'_> for Scales {
            type Value = Scale;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of processes, at least 1, or \"auto\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Scale, E> {
                let wrong = || E::invalid_value(de::Unexpected::Signed(value), &self);
                let count = u32::try_from(value).ok().filter(|&count| count > 0).ok_or_else(wrong)?;
                Ok(Scale::Fixed(count))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Scale, E> {
                let wrong = || E::invalid_value(de::Unexpected::Str(value), &self);
                (value == "auto").then_some(Scale::Auto).ok_or_else(wrong)
            }
        }

        deserializer.deserialize_any(Scales)
    }
}

impl<'de> Deserialize<'de> for MemorySettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MemorySettings, D::Error> {
        /// A size alone, or with what counts.
        struct Memory;

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            limit: MemorySettings,
            shared: Option<bool>,
            children: Option<bool>,
        }

        impl<'de> Visitor<'de> for Memory {
            type Value = MemorySettings;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(
                    "a size such as \"512 MiB\" or a number of bytes, or a table with `limit`, `shared`, `children`",
                )
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<MemorySettings, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Signed(value), &self);
                let limit = u64::try_from(value).map_err(wrong)?;
                Ok(MemorySettings { limit, shared: None, children: None })
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<MemorySettings, E> {
                let wrong = || E::invalid_value(de::Unexpected::Str(value), &self);
                let limit = bytes(value).ok_or_else(wrong)?;
                Ok(MemorySettings { limit, shared: None, children: None })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<MemorySettings, A::Error> {
                let table = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(MemorySettings {
                    limit: table.limit.limit,
                    shared: table.shared,
                    children: table.children,
                })
            }
        }

        deserializer.deserialize_any(Memory)
    }
}

/// `512 MiB`, `512MiB`, `1 GiB`, `100 KiB` or `1000` in bytes.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match text[end..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    text[..end].parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        Settings::new("page-snapshot", "page-snapshot.toml", text, std::iter::empty())
    }

    #[test]
    fn a_process_has_scale_and_memory() {
        let cases = [
            ("scale = 3", Some(Scale::Fixed(3)), None),
            ("scale = \"auto\"", Some(Scale::Auto), None),
            ("memory = \"512 MiB\"", None, Some((512 << 20, None, None))),
            ("memory = \"1GiB\"", None, Some((1 << 30, None, None))),
            ("memory = 4096", None, Some((4096, None, None))),
            ("memory = { limit = \"8 KiB\", shared = true }", None, Some((8192, Some(true), None))),
        ];
        for (line, scale, memory) in cases {
            let settings = read(&format!("[processes.worker]\n{line}")).expect(line);
            let memory = memory.map(|(limit, shared, children)| MemorySettings { limit, shared, children });
            assert_eq!(settings.processes()["worker"], ProcessSettings { scale, memory }, "{line}");
        }
    }

    #[test]
    fn a_file_that_is_wrong_is_told_with_its_place() {
        let cases: [(&str, &[&str]); 8] = [
            ("[processes.worker]\nscale = 0", &["line 2", "at least 1"]),
            ("[processes.worker]\nscale = \"many\"", &["line 2", "\"auto\""]),
            ("[processes.worker]\nmemory = \"512 MB\"", &["line 2", "\"512 MiB\""]),
            ("[processes.worker]\nmemory = { shared = true }", &["limit"]),
            ("[processes.worker]\nmemory = -1", &["line 2", "number of bytes"]),
            ("[processes.worker]\nsclae = 1", &["line 2", "sclae", "scale"]),
            ("[service.web]\nport = 1", &["line 1", "service", "services"]),
            ("[services.web]\nport = ", &["line 2"]),
        ];
        for (text, parts) in cases {
            let error = read(text).expect_err(text);
            let named = error.starts_with("page-snapshot.toml: ");
            assert!(named && parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_was_asked_for_and_is_not_there_is_an_error_and_the_own_one_is_not() {
        let options = Options { config: Some("not/there.toml".into()), ..Options::default() };
        let error = Settings::load("no-such-app", &options).unwrap_err();
        assert!(error.contains("not/there.toml cannot be read"), "{error}");
        assert!(Settings::load("no-such-app", &Options::default()).is_ok());
    }

    #[test]
    fn unknown_services_and_processes_are_named_with_what_there_is() {
        let settings = read("[services.wbe]\n[services.web]\n[processes.mail]\n[processes.worker]").unwrap();
        let errors = settings.unknown(&["web", "shots"], &["worker"]);
        assert_eq!(
            errors,
            [
                "page-snapshot.toml: [services.wbe]: there is no service `wbe`; there are `web`, `shots`",
                "page-snapshot.toml: [processes.mail]: there is no process `mail`; there are `worker`",
            ]
        );
    }
}
