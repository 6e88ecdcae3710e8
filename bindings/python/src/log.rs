//! The engine's log lines, on their way to Python's `logging`.

use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU8, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::hub;

/// Lines below this level of Python's `logging` are not made.
static LEVEL: AtomicU8 = AtomicU8::new(20);

pub(crate) fn set_level(level: u8) {
    LEVEL.store(level, Ordering::Relaxed);
}

/// A line for Python's `logging`.
#[derive(Debug)]
pub(crate) struct LogLine {
    pub level: u8,
    pub text: String,
}

impl LogLine {
    pub(crate) fn dropped(count: u64) -> Self {
        let text =
            format!("{count} log lines were dropped: the event loop did not take them in time");
        Self { level: 30, text }
    }
}

/// Sends the log lines of this extension module to Python, whichever thread writes them. The module has
/// a `tracing` of its own, so that it takes nothing from others.
pub(crate) fn install() {
    // In a forked child it is installed already.
    let _ = tracing::subscriber::set_global_default(ToPython);
}

fn python_level(level: Level) -> u8 {
    match level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

struct ToPython;

impl Subscriber for ToPython {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let is_own = metadata.is_event() && metadata.target().starts_with("result_cleaner");
        if is_own { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        python_level(*metadata.level()) >= LEVEL.load(Ordering::Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = LogLine { level: python_level(*event.metadata().level()), text: text.line() };
        hub::lock().log(line);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// What the fields of an event are in text.
#[derive(Default)]
struct Text {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.push((field.name(), format!("{value:?}")));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.push((field.name(), format!("{value:.1}")));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a String does not fail.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.fields.push((field.name(), format!("{value:?}")));
        }
    }
}

impl Text {
    fn line(self) -> String {
        if self.message == "Cleanup completed" {
            let value = |name| {
                let found = self.fields.iter().find(|(field, _)| *field == name);
                found.map_or("?", |(_, value)| value.as_str())
            };
            // As the polling daemon writes it, for those who search its log.
            return format!(
                "Cleanup completed: deleted={}, freed={} bytes, errors={}, duration={}ms",
                value("deleted"),
                value("freed_bytes"),
                value("errors"),
                value("duration_ms")
            );
        }
        let fields: Vec<_> =
            self.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if fields.is_empty() {
            return self.message;
        }
        format!("{}: {}", self.message, fields.join(", "))
    }
}
