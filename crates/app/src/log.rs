//! The application's log: processes send events, the supervisor prints them and keeps the last ones.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub(crate) mod layer;
pub(crate) mod render;

/// The longest line of a process, in bytes: of what it writes, more is shown as several lines.
pub(crate) const LINE_MAX: usize = 64 * 1024;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// `TRACE` to `ERROR`.
    pub level: Level,
    pub pid: u32,
    /// `None`: the supervisor's own.
    pub process: Option<String>,
    pub service: Option<String>,
    /// The module that says it.
    pub target: String,
    pub text: String,
    /// The event's other fields.
    pub fields: Vec<(String, String)>,
}

impl Event {
    /// What this process itself has to say, now.
    pub fn new(level: Level, target: &str, text: impl Into<String>) -> Event {
        Event {
            time_ms: now_ms(),
            level,
            pid: std::process::id(),
            process: None,
            service: None,
            target: target.to_owned(),
            text: text.into(),
            fields: Vec::new(),
        }
    }
}

/// The text, as far as it has at most `max` bytes.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let end = (0..=max).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// How bad it is, as `tracing` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Trace => "TRACE",
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
        }
    }
}

impl From<tracing::Level> for Level {
    fn from(level: tracing::Level) -> Level {
        match level {
            tracing::Level::TRACE => Level::Trace,
            tracing::Level::DEBUG => Level::Debug,
            tracing::Level::INFO => Level::Info,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::ERROR => Level::Error,
        }
    }
}
