//! Log lines for the systemd journal, with their level and fields.
//!
//! tracing-journald sends each line on the thread that logs, which waits while the journal does not read. So
//! the lines are written here in the journal's native format
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>), and the log's own thread sends them.

use std::fmt;
use std::io::{self, Write, stderr};
use std::os::unix::net::UnixDatagram;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

const SOCKET: &str = "/run/systemd/journal/socket";

/// Connects to the journal if standard error leads there.
pub(super) fn connect() -> Option<Journal> {
    // systemd sets the variable to the device and the inode of the stream.
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let (device, inode) = stream.split_once(':')?;
    let stderr = rustix::fs::fstat(stderr()).ok()?;
    let is_stderr = device.parse() == Ok(stderr.st_dev) && inode.parse() == Ok(stderr.st_ino);
    if !is_stderr {
        return None;
    }
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(SOCKET).ok()?;
    Some(Journal(socket))
}

/// The socket of the journal. Each write is one entry.
pub(super) struct Journal(UnixDatagram);

impl Write for Journal {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        // The journal may be restarting. Its socket is then another one.
        if self.0.send(entry).is_err() {
            self.0.connect(SOCKET)?;
            self.0.send(entry)?;
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Formats events as entries of the journal.
pub(super) struct JournalFormat;

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut entry: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // The numbers are those of syslog.
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        // journalctl shows the message alone, so it has the fields, too.
        let mut message = String::new();
        context.format_fields(Writer::new(&mut message), event)?;
        writeln!(entry, "PRIORITY={priority}\nSYSLOG_IDENTIFIER=result-cleaner")?;
        writeln!(entry, "MESSAGE={}", one_line(&message))?;
        let mut fields = JournalFields { entry, outcome: Ok(()) };
        event.record(&mut fields);
        fields.outcome
    }
}

/// Writes each field of an event as a field of the entry.
struct JournalFields<'a> {
    entry: Writer<'a>,
    outcome: fmt::Result,
}

impl JournalFields<'_> {
    fn field(&mut self, field: &Field, value: &str) {
        if field.name() == "message" || self.outcome.is_err() {
            return;
        }
        let name = field.name().to_ascii_uppercase();
        self.outcome = writeln!(self.entry, "RESULT_CLEANER_{name}={}", one_line(value));
    }
}

impl Visit for JournalFields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, &format!("{value:?}"));
    }
}

/// A line feed would end the field.
fn one_line(value: &str) -> String {
    value.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Entries(Arc<Mutex<Vec<u8>>>);

    impl Write for Entries {
        fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(entry);
            Ok(entry.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_entry_has_the_level_the_message_and_each_field_on_a_line_of_its_own() {
        let entries = Entries::default();
        let writer = entries.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .event_format(JournalFormat)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(path = "/a\nb", count = 7, "kept");
            tracing::debug!("plain");
        });
        let written = String::from_utf8(entries.0.lock().unwrap().clone()).unwrap();
        let expected = "PRIORITY=4\nSYSLOG_IDENTIFIER=result-cleaner\n\
            MESSAGE=kept path=\"/a\\nb\" count=7\n\
            RESULT_CLEANER_PATH=/a\\nb\nRESULT_CLEANER_COUNT=7\n\
            PRIORITY=7\nSYSLOG_IDENTIFIER=result-cleaner\nMESSAGE=plain\n";
        assert_eq!(written, expected);
    }
}
