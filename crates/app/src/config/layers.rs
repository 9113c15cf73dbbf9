//! The configuration of one service, from its layers: the code's value, the file's table over it, the environment over that.
//!
//! Tables are put together key by key; any other value takes the place of the one below. Everything that came from the file or
//! the environment is remembered with where it stood, so that an error can say so.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};
use serde_path_to_error::{Path as ErrorPath, Segment, Track};

use super::{Settings, variable};
use crate::plan::check::list;

/// The keys that lead to a value.
type Keys = Vec<String>;

/// Where a value comes from.
#[derive(Clone, Debug)]
enum Origin {
    File,
    Variable {
        name: String,
        /// Another way to read the variable's text, if there is one that was not tried.
        other: Option<Value>,
    },
}

/// Values of all layers, one on the other.
struct Layers<'a> {
    settings: &'a Settings,
    service: &'a str,
    tree: Value,
    origins: BTreeMap<Keys, Origin>,
}

impl Settings {
    /// The configuration of a service; `None` if the code's value is all there is to it.
    ///
    /// # Errors
    ///
    /// A sentence for each thing that is wrong, with the source, the key and what was expected.
    pub fn of_service<C>(&self, service: &str, code: &C) -> Result<Option<C>, Vec<String>>
    where
        C: Serialize + DeserializeOwned,
    {
        let begins = format!("{}{}__", self.prefix, variable(service));
        let variables = self.environment.iter().filter(|(name, _)| name.starts_with(&begins));
        let mut variables = variables.peekable();
        let table = self.file.services.get(service);
        if table.is_none() && variables.peek().is_none() {
            return Ok(None);
        }
        let tree = serde_json::to_value(code).map_err(|error| {
            vec![format!("service `{service}`: its configuration in the code cannot be overridden: {error}")]
        })?;
        let mut layers = Layers { settings: self, service, tree, origins: BTreeMap::new() };
        if let Some(table) = table {
            let Layers { tree, origins, .. } = &mut layers;
            lay(tree, &toml::Value::Table(table.clone()), &mut Vec::new(), origins);
        }
        for (name, text) in variables {
            let text =
                text.to_str().ok_or_else(|| vec![format!("{name} in the environment is not UTF-8")])?;
            layers.set(&name[begins.len()..], name, text);
        }
        layers.read().map(Some)
    }
}

/// Lays a part of the file over `below`.
fn lay(below: &mut Value, above: &toml::Value, keys: &mut Keys, origins: &mut BTreeMap<Keys, Origin>) {
    let toml::Value::Table(table) = above else {
        *below = value_of(above);
        origins.insert(keys.clone(), Origin::File);
        return;
    };
    if !below.is_object() {
        *below = Value::Object(Map::new());
    }
    origins.insert(keys.clone(), Origin::File);
    let Value::Object(object) = below else { return };
    for (key, value) in table {
        keys.push(key.clone());
        lay(object.entry(key.clone()).or_insert(Value::Null), value, keys, origins);
        keys.pop();
    }
}

fn value_of(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text.clone()),
        toml::Value::Integer(number) => Value::from(*number),
        // JSON has no infinity; as a text it is at least seen in the error.
        toml::Value::Float(number) => {
            Number::from_f64(*number).map_or_else(|| Value::String(number.to_string()), Value::Number)
        }
        toml::Value::Boolean(is) => Value::Bool(*is),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(values) => values.iter().map(value_of).collect(),
        toml::Value::Table(table) => {
            Value::Object(table.iter().map(|(key, value)| (key.clone(), value_of(value))).collect())
        }
    }
}

impl Layers<'_> {
    /// Lays a variable over what is there: `path` is its name behind the service's, its keys joined by `__`.
    fn set(&mut self, path: &str, name: &str, text: &str) {
        let mut keys = Keys::new();
        let mut place = &mut self.tree;
        for part in path.split("__") {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(object) = place else { return };
            let known = object.keys().find(|key| variable(key) == variable(part)).cloned();
            let key = known.unwrap_or_else(|| part.to_ascii_lowercase());
            keys.push(key.clone());
            place = object.entry(key).or_insert(Value::Null);
        }
        let as_text = Value::String(text.to_owned());
        let as_toml = toml::from_str::<toml::Table>(&format!("value = {text}"));
        let as_toml = as_toml.ok().filter(|table| table.len() == 1).map(|table| value_of(&table["value"]));
        // A text stays a text even if it looks like a number, where the code has a text.
        let (first, other) = match as_toml {
            Some(value) if place.is_string() => (as_text, Some(value)),
            Some(value) => (value, Some(as_text)),
            None => (as_text, None),
        };
        *place = first;
        self.origins.insert(keys, Origin::Variable { name: name.to_owned(), other });
    }

    /// The whole as the service's type. A variable whose text does not fit is tried the other way, once.
    fn read<C: DeserializeOwned>(mut self) -> Result<C, Vec<String>> {
        loop {
            let mut ignored = Vec::new();
            let mut track = Track::new();
            let tree = serde_path_to_error::Deserializer::new(self.tree.clone(), &mut track);
            match serde_ignored::deserialize::<_, _, C>(tree, |path| ignored.push(keys_ignored(&path))) {
                Ok(config) => return self.refuse_unknown(ignored).map(|()| config),
                Err(error) => {
                    let keys = keys_of(&track.path());
                    if !self.try_other(&keys) {
                        return Err(vec![self.complaint(&keys, &error.to_string())]);
                    }
                }
            }
        }
    }

    /// Reads the next variable at or below `keys` in its other way, if one has another.
    fn try_other(&mut self, keys: &[String]) -> bool {
        let near = |place: &Keys| place.starts_with(keys) || keys.starts_with(place);
        for (place, origin) in self.origins.iter_mut().filter(|(place, _)| near(place)) {
            let Origin::Variable { other, .. } = origin else { continue };
            if let Some(value) = other.take() {
                *place.iter().fold(&mut self.tree, |tree, key| &mut tree[key]) = value;
                return true;
            }
        }
        false
    }

    /// Keys of the file and the environment that the type has not looked at.
    fn refuse_unknown(&self, ignored: Vec<Keys>) -> Result<(), Vec<String>> {
        let told = ignored.iter().filter_map(|keys| {
            self.origins.get(keys)?;
            let parent = &keys[..keys.len().checked_sub(1)?];
            let siblings = parent.iter().try_fold(&self.tree, |tree, key| tree.get(key))?.as_object()?;
            let known = siblings.keys().map(String::as_str);
            let known: Vec<&str> =
                known.filter(|key| !ignored.contains(&[parent, &[(*key).to_owned()]].concat())).collect();
            Some(self.complaint(keys, &format!("there is no such key; there are {}", list(&known))))
        });
        let errors: Vec<String> = told.collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn complaint(&self, keys: &[String], what: &str) -> String {
        let settings = self.settings;
        let above = (0..=keys.len()).rev().find_map(|count| self.origins.get(&keys[..count]));
        let source = match above {
            Some(Origin::File) => settings.file_name.clone(),
            Some(Origin::Variable { name, .. }) => format!("{name} in the environment"),
            None => self.below(keys),
        };
        let service = self.service;
        match keys {
            [] => format!("{source}: service `{service}`: {what}"),
            _ => format!("{source}: service `{service}`, key `{}`: {what}", keys.join(".")),
        }
    }

    /// Who has to do with a value that nobody has set as a whole.
    fn below(&self, keys: &[String]) -> String {
        let below = self.origins.iter().filter(|(place, _)| place.starts_with(keys));
        let names: Vec<&str> = below
            .map(|(_, origin)| match origin {
                Origin::File => &*self.settings.file_name,
                Origin::Variable { name, .. } => name,
            })
            .collect();
        if names.is_empty() { "the code".to_owned() } else { names.join(", ") }
    }
}

/// As far as the path is known.
fn keys_of(path: &ErrorPath) -> Keys {
    let key = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { variant } => Some(variant.clone()),
        Segment::Unknown => None,
    };
    path.iter().map_while(key).collect()
}

fn keys_ignored(path: &serde_ignored::Path<'_>) -> Keys {
    use serde_ignored::Path;
    let (parent, key) = match path {
        Path::Root => return Keys::new(),
        Path::Seq { parent, index } => (parent, index.to_string()),
        Path::Map { parent, key } => (parent, key.clone()),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            return keys_ignored(parent);
        }
    };
    let mut keys = keys_ignored(parent);
    keys.push(key);
    keys
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use serde::Deserialize;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Web {
        port: u16,
        host: String,
        root_dir: Option<String>,
        rate: f64,
        allowed: Vec<String>,
        limits: Limits,
        mode: Mode,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Limits {
        open: u32,
        idle: Option<u32>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Mode {
        Count(u32),
        Named(String),
    }

    fn code() -> Web {
        Web {
            port: 1,
            host: "code".into(),
            root_dir: None,
            rate: 0.5,
            allowed: vec!["a".into()],
            limits: Limits { open: 1, idle: None },
            mode: Mode::Named("all".into()),
        }
    }

    fn read(file: &str, environment: &[(&str, &str)]) -> Result<Option<Web>, Vec<String>> {
        let variables = environment.iter().map(|(name, value)| (name.into(), value.into()));
        Settings::new("page-snapshot", "the.toml", file, variables).unwrap().of_service("web", &code())
    }

    #[test]
    fn the_environment_is_above_the_file_and_that_above_the_code() {
        let port = |file: &str, environment: &[(&str, &str)]| {
            read(file, environment).unwrap().unwrap_or(code()).port
        };
        let variable = [("PAGE_SNAPSHOT_WEB__PORT", "3")];
        assert_eq!(port("", &[]), 1);
        assert_eq!(port("[services.web]\nport = 2", &[]), 2);
        assert_eq!(port("[services.web]\nport = 2", &variable), 3);
        assert_eq!(port("", &variable), 3);
    }

    #[test]
    fn what_nobody_overrides_is_not_even_copied() {
        let others = [("PAGE_SNAPSHOT_WEBB__PORT", "3"), ("PAGE_SNAPSHOT_WEB_PORT", "3"), ("WEB__PORT", "3")];
        assert_eq!(read("[services.shots]\nport = 2", &others), Ok(None));
    }

    #[test]
    fn tables_are_merged_and_other_values_replaced() {
        let file = "[services.web]\nallowed = [\"b\", \"c\"]\nlimits.idle = 7\nrate = 2";
        let expected = Web {
            allowed: vec!["b".into(), "c".into()],
            limits: Limits { open: 1, idle: Some(7) },
            rate: 2.0,
            ..code()
        };
        assert_eq!(read(file, &[]), Ok(Some(expected)));
    }

    #[test]
    fn a_variable_is_read_as_what_the_service_wants() {
        let of = |key: &str, text: &str| {
            read("", &[(&format!("PAGE_SNAPSHOT_WEB__{key}"), text)]).map(Option::unwrap)
        };
        let cases: [(&str, &str, Web); 11] = [
            ("HOST", "example.org", Web { host: "example.org".into(), ..code() }),
            ("HOST", "123", Web { host: "123".into(), ..code() }),
            ("HOST", "", Web { host: String::new(), ..code() }),
            ("HOST", "\"quoted\"", Web { host: "\"quoted\"".into(), ..code() }),
            ("ROOT_DIR", "2026", Web { root_dir: Some("2026".into()), ..code() }),
            ("ROOT_DIR", "a b", Web { root_dir: Some("a b".into()), ..code() }),
            ("RATE", "3", Web { rate: 3.0, ..code() }),
            ("ALLOWED", "[\"x\", \"y\"]", Web { allowed: vec!["x".into(), "y".into()], ..code() }),
            ("LIMITS__IDLE", "9", Web { limits: Limits { open: 1, idle: Some(9) }, ..code() }),
            ("MODE", "4", Web { mode: Mode::Named("4".into()), ..code() }),
            ("port", "5", Web { port: 5, ..code() }),
        ];
        for (key, text, expected) in cases {
            assert_eq!(of(key, text), Ok(expected), "{key}={text}");
        }
    }

    #[test]
    fn faults_name_source_key_and_what_was_expected() {
        let variable = |key: &'static str, text: &'static str| vec![(key, text)];
        type Case = (&'static str, Vec<(&'static str, &'static str)>, &'static [&'static str]);
        let cases: [Case; 9] = [
            ("port = \"x\"", vec![], &["the.toml: service `web`, key `port`", "\"x\"", "expected u16"]),
            ("port = 70000", vec![], &["the.toml", "`port`", "70000", "u16"]),
            ("limits = 3", vec![], &["the.toml", "`limits`", "expected struct Limits"]),
            ("allowed = [\"a\", 1]", vec![], &["the.toml", "`allowed.1`", "expected a string"]),
            ("prot = 1", vec![], &["the.toml", "key `prot`", "no such key", "`port`"]),
            ("limits.opne = 1", vec![], &["the.toml", "key `limits.opne`", "`open`"]),
            (
                "port = 2",
                variable("PAGE_SNAPSHOT_WEB__PORT", "x"),
                &["PAGE_SNAPSHOT_WEB__PORT in", "`port`", "u16"],
            ),
            ("port = 2", variable("PAGE_SNAPSHOT_WEB__PROT", "1"), &["PAGE_SNAPSHOT_WEB__PROT in", "`prot`"]),
            (
                "port = 2",
                variable("PAGE_SNAPSHOT_WEB__LIMITS__OPEN", "-1"),
                &["LIMITS__OPEN in", "`limits.open`", "u32"],
            ),
        ];
        for (line, environment, parts) in cases {
            let errors = read(&format!("[services.web]\n{line}"), &environment).unwrap_err();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(parts.iter().all(|part| errors[0].contains(part)), "{line} {environment:?}: {errors:?}");
        }
    }

    #[test]
    fn a_service_without_configuration_takes_none() {
        let settings =
            Settings::new("a", "the.toml", "[services.web]\nport = 1", std::iter::empty()).unwrap();
        let errors = settings.of_service("web", &()).unwrap_err();
        assert!(errors[0].contains("the.toml: service `web`") && errors[0].contains("unit"), "{errors:?}");
    }

    #[test]
    fn a_variable_that_is_no_text_is_named() {
        let variable = ("A_WEB__PORT".into(), OsString::from_vec(vec![0xff]));
        let settings = Settings::new("a", "the.toml", "", [variable].into_iter()).unwrap();
        let errors = settings.of_service("web", &code()).unwrap_err();
        assert_eq!(errors, ["A_WEB__PORT in the environment is not UTF-8"]);
    }

    #[test]
    fn a_name_that_is_no_variable_is_written_as_one() {
        let variables = [("MY_APP_PAGE_SHOTS__PORT".into(), "9".into())].into_iter();
        let settings = Settings::new("my-app", "", "", variables).unwrap();
        assert_eq!(settings.of_service("page.shots", &code()).unwrap().unwrap().port, 9);
    }
}
