//! Arguments, and one module for each subcommand.

mod doctor;
mod explain;
mod generate;
mod list;
mod log;
mod metrics;
mod output;
mod progress;
mod run;
mod status;
mod sweep;
mod systemd;

use std::io::stdout;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand};
use result_cleaner::{Config, DEFAULT_CACHE_DIR, Error, MIN_ORPHAN_AGE};

/// Why a command failed: one line for the person who called it.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Deletes expired cached results the moment they expire.
///
/// A result X.result.json.lz4 and its metadata X.metadata.json are deleted once the metadata's
/// `expires_at` has passed. Nothing else is deleted unless a flag asks for it.
#[derive(Debug, Parser)]
#[command(name = "result-cleaner", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  result-cleaner sweep --dry-run                  what would go now
  result-cleaner run --listen 127.0.0.1:8004      the service, with its stats over HTTP
  result-cleaner status --watch                   what that service is doing
  result-cleaner list --json ~/cache              what expires when, for programs
  result-cleaner explain ~/cache/a.metadata.json  why that result goes or stays, and when
  result-cleaner doctor                           whether all is here that the service needs

Durations read like 6h, 90s, 250ms, 30d or 1h30m; a bare number is seconds.
Every flag has an environment variable: --check-interval is RESULT_CLEANER_CHECK_INTERVAL.
DIR is RESULT_CLEANER_CACHE_DIR for every command.
Exit status: 0 if it was done, 1 if it could not be done, 2 on wrong usage.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch a directory and delete each result as it expires, until SIGTERM or SIGINT
    Run(run::RunArgs),
    /// Delete expired results once and exit
    Sweep(sweep::SweepArgs),
    /// List the results by expiry
    List(list::ListArgs),
    /// Explain whether and when a result is deleted
    Explain(explain::ExplainArgs),
    /// Show the state of a running service
    Status(status::StatusArgs),
    /// Check the environment: permissions, inotify limits, clock and more
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completions(generate::CompletionsArgs),
    /// Print the manual page, as roff
    Man,
}

/// What is removed besides expired results.
#[derive(Debug, Args)]
struct OptIns {
    /// Also remove orphans: results without metadata, expired metadata without a result, and
    /// abandoned .tmp files, once unchanged for this long (at least 1h)
    #[arg(long, value_name = "AGE", value_parser = age, env = "RESULT_CLEANER_REMOVE_ORPHANS")]
    remove_orphans: Option<Duration>,
    /// Also remove directories below the cache directory that are empty and unchanged for this long (at least 1h)
    #[arg(long, value_name = "AGE", value_parser = age, env = "RESULT_CLEANER_PRUNE_EMPTY_DIRS")]
    prune_empty_dirs: Option<Duration>,
}

impl OptIns {
    fn apply(&self, config: &mut Config) {
        config.remove_orphans = self.remove_orphans;
        config.prune_empty_dirs = self.prune_empty_dirs;
    }
}

fn age(text: &str) -> Result<Duration, String> {
    let age = duration(text)?;
    if age < MIN_ORPHAN_AGE {
        return Err(
            "it must be at least 1h: what is younger may still be about to be completed".to_owned()
        );
    }
    Ok(age)
}

/// What the work on files may cost.
#[derive(Debug, Args)]
struct Bounds {
    /// Limit file I/O to this much time per second, such as 100ms; results may then be deleted late
    #[arg(long, value_name = "TIME", value_parser = disk_time, env = "RESULT_CLEANER_MAX_DISK_TIME")]
    max_disk_time: Option<Duration>,
}

fn disk_time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time < Duration::from_millis(1) {
        return Err("it must be at least 1ms".to_owned());
    }
    Ok(time)
}

/// Where the results are.
#[derive(Debug, Args)]
struct Directory {
    /// The cache directory
    #[arg(value_name = "DIR", default_value = DEFAULT_CACHE_DIR, env = "RESULT_CLEANER_CACHE_DIR")]
    dir: PathBuf,
}

impl Directory {
    fn config(self) -> Config {
        let mut config = Config::new(self.dir);
        config.sandbox = true;
        config
    }
}

pub(crate) fn execute(cli: Cli) -> Result<(), Failure> {
    console::set_colors_enabled(output::has_colour(&stdout()));
    match cli.command {
        Command::Run(args) => run::execute(args),
        Command::Sweep(args) => sweep::execute(args),
        Command::List(args) => list::execute(args),
        Command::Explain(args) => explain::execute(args),
        Command::Status(args) => status::execute(args),
        Command::Doctor(args) => doctor::execute(args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man => generate::man(),
    }
}

/// Returns 2 for wrong usage that only the library has detected, else 1.
pub(crate) fn exit_status(error: &Failure) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::MetricsUrl { .. } | Error::Address { .. } | Error::TooShort { .. }) => 2,
        _ => 1,
    }
}

/// Runs `work` on a runtime, for the commands that do one thing and exit.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Parses the variable of a switch: on with `1`, `true`, `yes`; off with `0`, `false`, `no` or nothing.
fn switch() -> FalseyValueParser {
    FalseyValueParser::new()
}

/// Returns which of two mutually exclusive flags are on. A flag on the command line overrides the
/// variable of the other.
///
/// # Errors
/// Wrong usage, if both are on the command line.
fn exclusive(matches: &ArgMatches, ids: [&str; 2]) -> Result<[bool; 2], clap::Error> {
    match ids.map(|id| matches.value_source(id) == Some(ValueSource::CommandLine)) {
        [true, true] => {
            let [one, other] = ids.map(|id| id.replace('_', "-"));
            let message = format!("--{one} and --{other} exclude each other: leave one out");
            Err(clap::Error::raw(ErrorKind::ArgumentConflict, message))
        }
        [one, other] => Ok([!other, !one]),
    }
}

/// Reads a duration such as `6h`, `1h30m` or `250ms`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text)
            .map_err(|_| "write it like 6h, 90s, 250ms, 30d or 1h30m".to_owned())?,
    };
    if parsed.is_zero() {
        return Err("it must be more than zero".to_owned());
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let Some(long) = arg.get_long() else { panic!("{arg} has no long form") };
                let expected = format!("RESULT_CLEANER_{}", long.to_uppercase().replace('-', "_"));
                let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
                assert_eq!(variable, Some(expected), "{} --{long}", command.get_name());
            }
        }
    }

    #[test]
    fn the_cache_directory_has_one_variable_for_all_commands() {
        for command in Cli::command().get_subcommands() {
            let named = |arg: &&clap::Arg| arg.get_id() == "dir" || arg.get_id() == "cache_dir";
            for arg in command.get_arguments().filter(named) {
                let variable = arg.get_env();
                let expected = Some("RESULT_CLEANER_CACHE_DIR".as_ref());
                assert_eq!(variable, expected, "{} {arg}", command.get_name());
            }
        }
    }

    #[test]
    fn durations_read_as_documented() {
        let seconds = Duration::from_secs;
        for (text, expected) in [
            ("6h", seconds(6 * 3600)),
            ("90s", seconds(90)),
            ("250ms", Duration::from_millis(250)),
            ("30d", seconds(30 * 86_400)),
            ("2w", seconds(14 * 86_400)),
            ("1h30m", seconds(5400)),
            ("1h 30m", seconds(5400)),
            ("7", seconds(7)),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for wrong in
            ["", "0", "0s", "0ms", "-1s", "6x", "h", "1.5", "six hours", "99999999999999999999"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
