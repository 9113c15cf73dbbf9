//! The supervisor's log: prints every event, and keeps the last ones for who asks on the bus.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::object::{LogLine, LogPage};
use crate::log::render::Renderer;
use crate::log::{Event, Level};

/// How many events are kept.
const KEPT: usize = 1_000;
/// How many events may wait to be printed. A terminal that is held, or a pipe that nobody reads, must not hold the supervisor.
const UNPRINTED_MAX: usize = 10_000;
/// How long the end of the application waits for them.
const PRINT_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct Journal {
    printer: SyncSender<Event>,
    thread: JoinHandle<()>,
    kept: VecDeque<Event>,
    /// The number of the next event, from 1.
    next: u64,
    /// Events that found no room at the printer, since the last that did.
    unprinted: u64,
}

impl Journal {
    /// Prints to standard output, in text or JSON.
    pub fn new(json: bool) -> io::Result<Journal> {
        let (printer, events) = sync_channel(UNPRINTED_MAX);
        let renderer = Renderer::new(&io::stdout(), json);
        let thread =
            std::thread::Builder::new().name("log".to_owned()).spawn(move || print(&events, &renderer))?;
        Ok(Journal { printer, thread, kept: VecDeque::new(), next: 1, unprinted: 0 })
    }

    /// The supervisor's own words.
    pub fn say(&mut self, level: Level, text: impl Into<String>) {
        self.add(Event::new(level, "objbus_app", text));
    }

    pub fn add(&mut self, event: Event) {
        if self.unprinted > 0 {
            let text = format!("{} lines are not shown: nobody reads them fast enough", self.unprinted);
            if self.printer.try_send(Event::new(Level::Warn, "objbus_app", text)).is_ok() {
                self.unprinted = 0;
            }
        }
        // Gone is the printer only with the application's end.
        if let Err(TrySendError::Full(_)) = self.printer.try_send(event.clone()) {
            self.unprinted += 1;
        }
        self.kept.push_back(event);
        self.next += 1;
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// At most `max` events behind the one with the number `after`.
    pub fn page(&self, after: u64, max: u32) -> LogPage {
        let first = self.next - self.kept.len() as u64;
        let start = after.saturating_add(1).clamp(first, self.next);
        let events = self.kept.iter().skip((start - first) as usize).take(max as usize);
        let lines: Vec<LogLine> = (start..).zip(events).map(|(number, event)| line(number, event)).collect();
        LogPage { lost: start.saturating_sub(after.saturating_add(1)), lines }
    }

    /// Waits until everything is printed, but not for ever.
    pub fn finish(self) {
        drop(self.printer);
        let deadline = Instant::now() + PRINT_PATIENCE;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

fn print(events: &Receiver<Event>, renderer: &Renderer) {
    let mut out = io::stdout().lock();
    while let Ok(event) = events.recv() {
        // Whom should an error be told?
        let _ = writeln!(out, "{}", renderer.line(&event));
    }
}

fn line(number: u64, event: &Event) -> LogLine {
    LogLine {
        number,
        time_ms: event.time_ms,
        level: event.level.as_str().to_owned(),
        pid: event.pid,
        process: event.process.clone(),
        service: event.service.clone(),
        target: event.target.clone(),
        text: event.text.clone(),
        fields: event.fields.clone(),
    }
}
