//! Logging of the commands, on standard error or in the journal.

use std::io::{self, Write, stderr};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use tracing::Level;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::time::ChronoUtc;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::journal::{self, JournalFormat};
use super::progress::ProgressLine;
use super::{exclusive, output, switch, verbosity};

/// How many lines may wait for a reader; later lines are dropped.
const MAX_LINES: usize = 10_000;
/// The minimum time for writing the last lines, and the maximum time after the signal to stop. The
/// latter leaves enough of the second that is promised for the process to end.
const MIN_LAST_LINES: Duration = Duration::from_millis(200);
const MAX_STOP: Duration = Duration::from_millis(900);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// The format and level of the log.
#[derive(Debug)]
pub(crate) struct LogArgs {
    pub format: LogFormat,
    /// Whether the format was chosen, and not left to the default.
    is_explicit: bool,
    level: Level,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
struct LogFlags {
    /// Format of log lines; without this flag, lines for the systemd journal keep their level and fields
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "RESULT_CLEANER_LOG_FORMAT")]
    log_format: LogFormat,
    /// Log more: each deletion, each repeated failure
    #[arg(short, long, action = clap::ArgAction::Count, value_parser = verbosity, env = "RESULT_CLEANER_VERBOSE")]
    verbose: u8,
    /// Log warnings and errors only
    #[arg(short, long, value_parser = switch(), env = "RESULT_CLEANER_QUIET")]
    quiet: bool,
}

impl Args for LogArgs {
    fn augment_args(command: Command) -> Command {
        LogFlags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        LogFlags::augment_args_for_update(command)
    }
}

impl FromArgMatches for LogArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let LogFlags { log_format, verbose, quiet } = LogFlags::from_arg_matches(matches)?;
        let [verbose_counts, quiet_counts] = exclusive(matches, ["verbose", "quiet"])?;
        let level = match verbose {
            _ if quiet && quiet_counts => Level::WARN,
            1 if verbose_counts => Level::DEBUG,
            2.. if verbose_counts => Level::TRACE,
            _ => Level::INFO,
        };
        let is_explicit = matches.value_source("log_format") != Some(ValueSource::DefaultValue);
        Ok(Self { format: log_format, is_explicit, level })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl LogArgs {
    /// Starts the log of a service, which never waits for its reader.
    pub(super) fn start(&self) -> ServiceLog {
        let builder = NonBlockingBuilder::default();
        let builder = builder.buffered_lines_limit(MAX_LINES).thread_name("log");
        let journal = if self.is_explicit { None } else { journal::connect() };
        let (writer, guard) = match journal {
            Some(journal) => {
                let (writer, guard) = builder.finish(journal);
                start_journal(self.level, writer.clone());
                (writer, guard)
            }
            None => {
                let (writer, guard) = builder.finish(stderr());
                start(self.level, self.format, writer.clone());
                (writer, guard)
            }
        };
        ServiceLog { writer, guard, deadline: None }
    }
}

/// The log of a service.
pub(crate) struct ServiceLog {
    writer: NonBlocking,
    guard: WorkerGuard,
    /// The deadline for the last lines, once the service stops.
    deadline: Option<Instant>,
}

impl ServiceLog {
    /// Writes a line unchanged.
    pub(super) fn line(&mut self, line: &str) {
        // If the log can't be written, there is nowhere to report it.
        let _ = self.writer.write_all(format!("{line}\n").as_bytes());
    }

    /// Records that the service begins to stop.
    pub(super) fn stopping(&mut self) {
        self.deadline = Some(Instant::now() + MAX_STOP);
    }

    /// Writes the pending lines. Gives up at the deadline if nothing reads them.
    pub(super) fn finish(self) {
        let minimum = Instant::now() + MIN_LAST_LINES;
        let deadline = self.deadline.map_or(minimum, |deadline| deadline.max(minimum));
        let (written, is_written) = mpsc::channel();
        let write = move || {
            drop(self.guard);
            let _ = written.send(());
        };
        // If the thread can't start, the guard is dropped here, which waits for about a second at most.
        let _ = thread::Builder::new().spawn(write);
        let _ = is_written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Starts logging for a command that does one thing: warnings and errors only.
pub(crate) fn start_quietly() {
    start(Level::WARN, LogFormat::Text, stderr);
}

/// Does the same, and keeps the progress line intact. If it is `verbose`, also logs each deletion.
pub(crate) fn start_with_progress(line: ProgressLine, verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::WARN };
    start(level, LogFormat::Text, line);
}

fn levels(level: Level) -> Targets {
    Targets::new().with_default(Level::WARN).with_target("result_cleaner", level)
}

/// Starts logging to the journal, which adds the times.
fn start_journal(level: Level, writer: NonBlocking) {
    let entries = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .event_format(JournalFormat);
    // A second start would change nothing, and does not happen.
    let _ = tracing_subscriber::registry().with(levels(level)).with(entries).try_init();
}

fn start(
    level: Level,
    format: LogFormat,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_timer(ChronoUtc::new("%Y-%m-%dT%H:%M:%S%.3fZ".to_owned()))
        .with_target(false)
        .with_ansi(output::has_colour(&stderr()));
    let registry = tracing_subscriber::registry().with(levels(level));
    // A second start would change nothing, and does not happen.
    let _ = match format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => {
            let lines = lines.map_writer(Escaping).json().flatten_event(true);
            registry.with(lines).try_init()
        }
    };
}

/// Writes lines of JSON without control characters.
struct Escaping<W>(W);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Escaping<M> {
    type Writer = Escaping<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Escaping(self.0.make_writer())
    }
}

impl<W: Write> Write for Escaping<W> {
    /// Takes a whole line, as the log's formatter writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match str::from_utf8(line) {
            Ok(text) => self.0.write_all(output::escape_controls(text).as_bytes())?,
            Err(_) => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
