//! Logging of the commands, on standard error.

use std::io::{IsTerminal, stderr};

use clap::{Args, ValueEnum};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::time::ChronoUtc;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// How log lines are written
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "RESULT_CLEANER_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Log more: each deletion, each repeated failure
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "quiet", env = "RESULT_CLEANER_VERBOSE")]
    pub verbose: u8,
    /// Log warnings and errors only
    #[arg(short, long, env = "RESULT_CLEANER_QUIET")]
    pub quiet: bool,
}

impl LogArgs {
    /// Starts logging.
    pub fn start(&self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => Level::WARN,
            (false, 0) => Level::INFO,
            (false, 1) => Level::DEBUG,
            (false, _) => Level::TRACE,
        };
        start(level, self.log_format);
    }
}

/// Starts logging for a command that does one thing: only what is wrong.
pub(crate) fn start_quietly() {
    start(Level::WARN, LogFormat::Text);
}

fn start(level: Level, format: LogFormat) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(stderr)
        .with_timer(ChronoUtc::rfc_3339())
        .with_target(false)
        .with_ansi(colour());
    let levels = Targets::new().with_default(Level::WARN).with_target("result_cleaner", level);
    let registry = tracing_subscriber::registry().with(levels);
    // A second start, which does not happen, would change nothing.
    let _ = match format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
}

/// No colour into a pipe, or where <https://no-color.org> forbids it.
fn colour() -> bool {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !forbidden && stderr().is_terminal()
}
