//! From `tracing` to [`Event`]s: what a process of the application does with everything that is logged in it.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Span, Subscriber};
use tracing_log::{AsLog as _, LogTracer, NormalizeEvent as _};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use super::{Event, LINE_MAX, cut};
use crate::service::chain;

/// The target of the spans that services run in.
const SPAN_TARGET: &str = "objbus_app::service";
/// What is shown of the text of an event that is too long, in bytes: each may take six in JSON.
const TEXT_MAX: usize = LINE_MAX / 8;
/// The variable that says what is logged.
const FILTER_VARIABLE: &str = "RUST_LOG";

/// A span whose events are the service's.
pub(crate) fn service_span(name: &str) -> Span {
    // The least that a filter leaves, so that what an error comes from is always known.
    tracing::error_span!(target: SPAN_TARGET, "service", service = name)
}

/// Where a process' events go.
pub(crate) trait Sink: Send + Sync + 'static {
    fn take(&self, event: &Event);
}

impl<F: Fn(&Event) + Send + Sync + 'static> Sink for F {
    fn take(&self, event: &Event) {
        self(event);
    }
}

/// The supervisor's pipe: a line of JSON for each event.
pub(crate) struct Pipe(Mutex<File>);

impl Pipe {
    pub fn new(pipe: OwnedFd) -> Pipe {
        Pipe(Mutex::new(File::from(pipe)))
    }
}

impl Sink for Pipe {
    fn take(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        if line.len() >= LINE_MAX {
            let text = cut(event.text.clone(), TEXT_MAX);
            let Ok(cut) = serde_json::to_vec(&Event { text, fields: Vec::new(), ..event.clone() }) else {
                return;
            };
            line = cut;
        }
        line.push(b'\n');
        // Nobody reads when the supervisor is gone, and then this process ends too.
        let _ = self.0.lock().write_all(&line);
    }
}

/// Makes events of everything that is logged in this process, with `tracing` or with `log`, from now on. A subscriber that the
/// program has set itself is left in place.
pub(crate) fn install(process: &str, sink: impl Sink) {
    let text = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    let (filter, wrong) = filter(&text);
    let layer = EventLayer { process: Some(process.to_owned()), sink }.with_filter(filter);
    let subscriber = tracing_subscriber::registry().with(layer);
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        return;
    }
    // It fails where the program has a logger of its own.
    let _ = LogTracer::builder().with_max_level(LevelFilter::current().as_log()).init();
    if let Some(wrong) = wrong {
        tracing::warn!("{FILTER_VARIABLE}={text} is not understood: {wrong}");
    }
}

/// What `text` lets through, and what is wrong with it. Services' spans always pass: they are what names come from.
fn filter(text: &str) -> (Targets, Option<String>) {
    let default = || Targets::new().with_default(LevelFilter::INFO);
    let (targets, wrong) = match text.trim() {
        "" => (default(), None),
        text => match text.parse::<Targets>() {
            Ok(targets) => (targets, None),
            Err(error) => (default(), Some(error.to_string())),
        },
    };
    (targets.with_target(SPAN_TARGET, LevelFilter::ERROR), wrong)
}

/// Turns `tracing`'s events into ours.
pub(crate) struct EventLayer<S> {
    process: Option<String>,
    sink: S,
}

/// What a span has to say about the events in it.
#[derive(Default)]
struct SpanFields(Vec<(String, String)>);

/// The span's service.
struct OfService(String);

impl<S, R> Layer<R> for EventLayer<S>
where
    S: Sink,
    R: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, R>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if attributes.metadata().target() == SPAN_TARGET {
            let service = fields.rest.into_iter().find(|(key, _)| key == "service");
            span.extensions_mut().insert(OfService(service.map(|(_, name)| name).unwrap_or_default()));
        } else {
            span.extensions_mut().insert(SpanFields(fields.rest));
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, ctx: Context<'_, R>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = Fields::default();
        record.record(&mut fields);
        if let Some(SpanFields(known)) = span.extensions_mut().get_mut() {
            known.retain(|(key, _)| !fields.rest.iter().any(|(newer, _)| newer == key));
            known.append(&mut fields.rest);
        }
    }

    fn on_event(&self, traced: &tracing::Event<'_>, ctx: Context<'_, R>) {
        let of_log = traced.normalized_metadata();
        let metadata = of_log.as_ref().unwrap_or_else(|| traced.metadata());
        let mut fields = Fields::default();
        traced.record(&mut fields);
        let mut event = Event::new((*metadata.level()).into(), metadata.target(), fields.message);
        event.process.clone_from(&self.process);
        event.fields = fields.rest;
        for span in ctx.event_scope(traced).into_iter().flatten() {
            let extensions = span.extensions();
            if event.service.is_none() {
                event.service = extensions.get().map(|OfService(name)| name.clone());
            }
            if let Some(SpanFields(fields)) = extensions.get() {
                event.fields.extend(fields.iter().cloned());
            }
        }
        self.sink.take(&event);
    }
}

/// The fields of an event or a span.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(String, String)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            // Where `log` says its records come from; the event has it elsewhere.
            name if name.starts_with("log.") => {}
            name => self.rest.push((name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field, chain(value));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::sync::Arc;

    use super::*;
    use crate::log::Level;

    /// The events of `work`, under the filter.
    fn events(filter_text: &str, work: impl FnOnce()) -> Vec<Event> {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let taken = Arc::clone(&taken);
            move |event: &Event| taken.lock().push(event.clone())
        };
        let layer = EventLayer { process: Some("worker".into()), sink }.with_filter(filter(filter_text).0);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        taken.lock().clone()
    }

    fn pairs(event: &Event) -> Vec<(&str, &str)> {
        event.fields.iter().map(|(key, value)| (&**key, &**value)).collect()
    }

    #[test]
    fn an_event_has_text_fields_level_target_and_process() {
        let events = events("", || {
            let error = std::io::Error::other("why");
            let error: &(dyn Error + 'static) = &error;
            tracing::warn!(target: "here", count = 3, name = "a b", list = ?[1], error, "{} taken", 2);
        });
        let [event] = &events[..] else { panic!("{events:?}") };
        assert_eq!((event.level, &*event.target, &*event.text), (Level::Warn, "here", "2 taken"));
        assert_eq!(pairs(event), [("count", "3"), ("name", "a b"), ("list", "[1]"), ("error", "why")]);
        assert_eq!((event.process.as_deref(), event.service.as_deref()), (Some("worker"), None));
        assert_eq!(event.pid, std::process::id());
    }

    #[test]
    fn an_event_is_the_service_s_whose_span_it_is_in_and_has_the_fields_of_the_others() {
        let events = events("", || {
            let _outer = service_span("web").entered();
            let request = tracing::info_span!("request", id = 1, status = tracing::field::Empty).entered();
            tracing::info!(path = "/", "first");
            request.record("status", 200);
            tracing::info!("second");
            let _inner = service_span("shots").entered();
            tracing::info!("third");
        });
        let told: Vec<_> =
            events.iter().map(|e| (e.service.as_deref().unwrap(), &*e.text, pairs(e))).collect();
        assert_eq!(
            told,
            [
                ("web", "first", vec![("path", "/"), ("id", "1")]),
                ("web", "second", vec![("id", "1"), ("status", "200")]),
                ("shots", "third", vec![("id", "1"), ("status", "200")]),
            ]
        );
    }

    #[test]
    fn a_filter_takes_events_away_and_never_the_service() {
        let work = || {
            let _span = service_span("web").entered();
            tracing::error!(target: "mine", "error");
            tracing::info!(target: "mine", "info");
            tracing::debug!(target: "mine", "debug");
        };
        let cases = [
            ("", 2),
            ("warn", 1),
            ("mine=debug", 3),
            ("other=debug", 0),
            ("off", 0),
            ("debug,mine=error", 1),
        ];
        for (text, count) in cases {
            let events = events(text, work);
            assert_eq!(events.len(), count, "{text}");
            assert!(events.iter().all(|event| event.service.as_deref() == Some("web")), "{text}: {events:?}");
        }
    }

    #[test]
    fn a_filter_that_is_wrong_is_told_and_the_default_stays() {
        let (targets, wrong) = filter("mine=loud");
        assert!(wrong.is_some());
        assert!(targets.would_enable("mine", &tracing::Level::INFO));
        assert!(!targets.would_enable("mine", &tracing::Level::DEBUG));
    }

    #[test]
    fn an_event_that_is_too_long_for_a_line_is_cut_and_says_so() {
        let (reader, writer) = std::io::pipe().unwrap();
        let pipe = Pipe::new(writer.into());
        // Each of its characters takes six bytes in JSON.
        let mut event = Event::new(Level::Warn, "a", "\u{1}".repeat(LINE_MAX));
        event.service = Some("web".to_owned());
        event.fields = vec![("long".to_owned(), "é".repeat(LINE_MAX)), ("short".to_owned(), "b".to_owned())];
        let sends = std::thread::spawn(move || pipe.take(&event));
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        sends.join().unwrap();
        let [line] = &lines[..] else { panic!("{} lines", lines.len()) };
        assert!(line.len() < LINE_MAX);
        let received: Event = serde_json::from_str(line).unwrap();
        assert_eq!((received.level, received.service.as_deref()), (Level::Warn, Some("web")));
        assert!(received.text.starts_with('\u{1}') && received.text.ends_with('…'));
        assert_eq!(received.fields, []);
    }

    #[test]
    fn a_pipe_carries_a_line_for_each_event() {
        let (reader, writer) = std::io::pipe().unwrap();
        let pipe = Pipe::new(writer.into());
        let sent = [Event::new(Level::Info, "a", "one\ntwo"), Event::new(Level::Error, "b", "three")];
        sent.iter().for_each(|event| pipe.take(event));
        drop(pipe);
        let lines = BufReader::new(reader).lines();
        let received: Vec<Event> = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        assert_eq!(received, sent);
    }
}
