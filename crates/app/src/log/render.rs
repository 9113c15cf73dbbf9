//! An event as a line: in the shape that a person reads, in colour or not, or as JSON.

use std::fmt::Write as _;
use std::io::IsTerminal;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::{Event, Level};

const RESET: &str = "\x1b[0m";
const DIM: &str = "\x1b[2m";
const CYAN: &str = "\x1b[36m";

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Colour,
    Json,
}

/// Makes lines of events.
#[derive(Clone, Debug)]
pub(crate) struct Renderer {
    form: Form,
    zone: TimeZone,
}

impl Renderer {
    /// For what is written to `to`: coloured if that is a terminal and the user has not set `NO_COLOR`, JSON if asked for. Times
    /// are local ones in text, and UTC in JSON.
    pub fn new(to: &impl IsTerminal, json: bool) -> Renderer {
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let form = match json {
            true => Form::Json,
            false if to.is_terminal() && !wants_none => Form::Colour,
            false => Form::Text,
        };
        Renderer { form, zone: TimeZone::system() }
    }

    /// The event's line, without the line break at its end.
    pub fn line(&self, event: &Event) -> String {
        match self.form {
            Form::Json => json(event),
            Form::Text => self.text(event, &Colours::NONE),
            Form::Colour => self.text(event, &Colours::of(event.level)),
        }
    }

    /// `2026-11-22 22:31:42.123 INFO 4711 [serviceName: web, processName: worker] text key=value`
    fn text(&self, event: &Event, colours: &Colours) -> String {
        let Colours { level, dim, names, reset } = colours;
        let time = timestamp(event).to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f");
        let mut line =
            format!("{dim}{time}{reset} {level}{}{reset} {dim}{}{reset}", event.level.as_str(), event.pid);
        if let Some(origin) = origin(event) {
            let _ = write!(line, " {names}[{}]{reset}", plain(&origin));
        }
        let _ = write!(line, " {}", plain(&event.text));
        for (key, value) in &event.fields {
            let _ = write!(line, " {dim}{}={reset}{}", plain(key), plain(&quoted(value)));
        }
        line
    }
}

/// Control sequences for the parts of a line.
struct Colours {
    level: &'static str,
    dim: &'static str,
    names: &'static str,
    reset: &'static str,
}

impl Colours {
    const NONE: Colours = Colours { level: "", dim: "", names: "", reset: "" };

    fn of(level: Level) -> Colours {
        let level = match level {
            Level::Trace => DIM,
            Level::Debug => "\x1b[34m",
            Level::Info => "\x1b[32m",
            Level::Warn => "\x1b[33m",
            Level::Error => "\x1b[31m",
        };
        Colours { level, dim: DIM, names: CYAN, reset: RESET }
    }
}

/// Which service in which process has said it; `None` for the supervisor.
fn origin(event: &Event) -> Option<String> {
    let service = event.service.as_ref().map(|name| format!("serviceName: {name}"));
    let process = event.process.as_ref().map(|name| format!("processName: {name}"));
    let parts: Vec<String> = service.into_iter().chain(process).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// A value with spaces in quotes, so that it is seen where it ends.
fn quoted(value: &str) -> String {
    let bare = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '"');
    if bare { value.to_owned() } else { format!("{value:?}") }
}

/// The text with what would upset a terminal or pass for a line of its own made visible: lines after the first are
/// indented, other control characters escaped.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\n' => out.push_str("\n    "),
            '\t' => out.push(c),
            _ if c.is_control() => out.extend(c.escape_default()),
            _ => out.push(c),
        }
    }
    out
}

fn timestamp(event: &Event) -> Timestamp {
    let ms = i64::try_from(event.time_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}

fn json(event: &Event) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        time: String,
        level: Level,
        pid: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        service: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        process: Option<&'a str>,
        target: &'a str,
        text: &'a str,
        #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
        fields: serde_json::Map<String, serde_json::Value>,
    }
    let fields = event.fields.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    let line = Line {
        time: timestamp(event).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        level: event.level,
        pid: event.pid,
        service: event.service.as_deref(),
        process: event.process.as_deref(),
        target: &event.target,
        text: &event.text,
        fields,
    };
    serde_json::to_string(&line).expect("strings and numbers are always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            time_ms: 1_795_386_702_123,
            level: Level::Info,
            pid: 4711,
            process: Some("worker".into()),
            service: Some("web".into()),
            target: "web".into(),
            text: "taken".into(),
            fields: vec![("url".into(), "http://a/".into()), ("took".into(), "3 ms".into())],
        }
    }

    fn rendered(form: Form, event: &Event) -> String {
        Renderer { form, zone: TimeZone::UTC }.line(event)
    }

    #[test]
    fn a_line_has_the_shape_of_the_original() {
        assert_eq!(
            rendered(Form::Text, &event()),
            "2026-11-22 22:31:42.123 INFO 4711 [serviceName: web, processName: worker] taken url=http://a/ took=\"3 ms\""
        );
    }

    #[test]
    fn the_supervisor_has_no_brackets_and_a_process_without_service_one_part() {
        let own = Event { process: None, service: None, fields: Vec::new(), ..event() };
        assert_eq!(rendered(Form::Text, &own), "2026-11-22 22:31:42.123 INFO 4711 taken");
        let of_process = Event { service: None, fields: Vec::new(), ..event() };
        assert!(rendered(Form::Text, &of_process).ends_with(" 4711 [processName: worker] taken"));
    }

    #[test]
    fn times_are_local() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let line = Renderer { form: Form::Text, zone }.line(&event());
        assert!(line.starts_with("2026-11-23 00:31:42.123 "), "{line}");
    }

    #[test]
    fn colour_is_around_the_parts_and_nothing_else_differs() {
        for (level, code) in [(Level::Error, "31"), (Level::Warn, "33"), (Level::Info, "32")] {
            let event = Event { level, ..event() };
            let mut coloured = rendered(Form::Colour, &event);
            assert!(coloured.contains(&format!("\x1b[{code}m{}\x1b[0m", level.as_str())), "{coloured:?}");
            for sequence in [RESET, DIM, CYAN, "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
                coloured = coloured.replace(sequence, "");
            }
            assert_eq!(coloured, rendered(Form::Text, &event));
        }
    }

    #[test]
    fn what_a_stranger_writes_makes_no_line_and_no_colour_of_its_own() {
        let forged = "a\n2026-11-22 22:31:42.123 INFO 1 fine\r\x1b[2J";
        let event = Event { text: forged.into(), fields: vec![("k".into(), forged.into())], ..event() };
        let line = rendered(Form::Text, &event);
        assert!(line.lines().skip(1).all(|next| next.starts_with("    ")), "{line}");
        assert!(!line.contains(['\x1b', '\r']), "{line:?}");
        assert_eq!(rendered(Form::Json, &event).lines().count(), 1);
    }

    #[test]
    fn json_has_every_part() {
        let line: serde_json::Value = serde_json::from_str(&rendered(Form::Json, &event())).unwrap();
        let expected = serde_json::json!({
            "time": "2026-11-22T22:31:42.123Z", "level": "INFO", "pid": 4711, "service": "web", "process": "worker",
            "target": "web", "text": "taken", "fields": { "url": "http://a/", "took": "3 ms" },
        });
        assert_eq!(line, expected);
        let own = Event { process: None, service: None, fields: Vec::new(), ..event() };
        let line: serde_json::Value = serde_json::from_str(&rendered(Form::Json, &own)).unwrap();
        assert_eq!(line.as_object().unwrap().len(), 5);
    }

    #[test]
    fn a_time_beyond_the_calendar_is_its_end() {
        let event = Event { time_ms: u64::MAX, ..event() };
        assert!(rendered(Form::Text, &event).starts_with("9999-12-30"));
    }
}
