//! The command line: the arguments that several subcommands share, and what runs the subcommands.

mod commands;
mod environment;
mod journal;
mod log;
mod metrics;
mod output;
mod progress;
mod systemd;

use std::io::stdout;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint};
use result_cleaner::text::{parse_duration, parse_size};
use result_cleaner::{Config, DEFAULT_CACHE_DIR, Error, MIN_ORPHAN_AGE, MinFree};

use self::commands::{doctor, explain, generate, list, run, status, sweep};

/// Why a command failed: one line for the person who called it.
pub(crate) type CommandError = Box<dyn std::error::Error + Send + Sync>;

/// Deletes expired cached results the moment they expire.
///
/// A result X.result.json.lz4 and its metadata X.metadata.json are deleted once the metadata's
/// `expires_at` has passed. Nothing else is deleted unless a flag asks for it.
#[derive(Debug, Parser)]
#[command(name = "result-cleaner", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    subcommand: Subcommands,
}

// No line is longer than 80 columns, so that none is wrapped.
const EXAMPLES: &str = "\
Examples:
  result-cleaner sweep --dry-run      count what would be deleted now
  result-cleaner run --listen :8004   run the service, with a page on that port
  result-cleaner status --watch       show what that service is doing
  result-cleaner list --json ~/cache  list what expires when, for programs
  result-cleaner explain FILE         explain why and when a result is deleted
  result-cleaner doctor               check what the service needs

Durations read like 6h, 90s, 250ms, 30d or 1h30m; a bare number is seconds.
Every flag has an environment variable; `result-cleaner help environment` lists
them.
Exit status: 0 on success, 1 on failure, 2 on wrong usage.";

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Watch a directory and delete each result as it expires, until a signal
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
    /// Print the manual page as roff, or write a set of pages
    Man(generate::ManArgs),
    /// List the environment variables
    #[command(hide = true)]
    Environment,
}

/// What is removed besides expired results.
#[derive(Debug, Args)]
#[command(next_help_heading = "Opt-in deletions")]
struct OptIns {
    /// Also remove orphans: results without metadata, expired metadata without a result, and
    /// abandoned .tmp files, once unchanged for this long (at least 1h)
    #[arg(long, value_name = "AGE", value_parser = age, env = "RESULT_CLEANER_REMOVE_ORPHANS")]
    remove_orphans: Option<Duration>,
    /// Also remove directories below the cache directory that are empty and unchanged for this long (at least 1h)
    #[arg(long, value_name = "AGE", value_parser = age, env = "RESULT_CLEANER_PRUNE_EMPTY_DIRS")]
    prune_empty_dirs: Option<Duration>,
}

fn age(text: &str) -> Result<Duration, String> {
    at_least(text, MIN_ORPHAN_AGE, ": what is younger may still be about to be completed")
}

/// What the work on files may cost.
#[derive(Debug, Args)]
#[command(next_help_heading = "Deleting")]
struct ThrottleArgs {
    /// Limit file I/O to this much time per second, such as 100ms; results may then be deleted late
    #[arg(long, value_name = "TIME", value_parser = disk_time, env = "RESULT_CLEANER_MAX_DISK_TIME")]
    max_disk_time: Option<Duration>,
}

fn disk_time(text: &str) -> Result<Duration, String> {
    at_least(text, Duration::from_millis(1), "")
}

/// What the results may take on disk.
#[derive(Debug, Args)]
#[command(next_help_heading = "Disk budget")]
struct DiskBudgetArgs {
    /// Evict results before they expire, the soonest first, once all take more than this on disk, such as 500M or
    /// 20GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, env = "RESULT_CLEANER_MAX_SIZE")]
    max_size: Option<u64>,
    /// Evict results likewise once less than this is free on their file system, such as 2GiB or 10%
    #[arg(long, value_name = "SIZE|N%", env = "RESULT_CLEANER_MIN_FREE")]
    min_free: Option<MinFree>,
    /// Never evict a result that has been unchanged for less than this
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s", env = "RESULT_CLEANER_EVICT_MIN_AGE")]
    evict_min_age: Duration,
}

impl DiskBudgetArgs {
    fn apply(&self, config: &mut Config) {
        config.max_size = self.max_size;
        config.min_free = self.min_free;
        config.evict_min_age = self.evict_min_age;
    }
}

/// What a command that deletes may delete, and at what cost.
#[derive(Debug, Args)]
struct DeletionArgs {
    #[command(flatten)]
    opt_ins: OptIns,
    #[command(flatten)]
    budget: DiskBudgetArgs,
    #[command(flatten)]
    throttle: ThrottleArgs,
}

impl DeletionArgs {
    fn apply(&self, config: &mut Config) {
        config.remove_orphans = self.opt_ins.remove_orphans;
        config.prune_empty_dirs = self.opt_ins.prune_empty_dirs;
        config.max_disk_time = self.throttle.max_disk_time;
        self.budget.apply(config);
    }
}

/// Where the results are.
#[derive(Debug, Args)]
struct DirectoryArg {
    /// The cache directory
    #[arg(value_name = "DIR", default_value = DEFAULT_CACHE_DIR, value_hint = ValueHint::DirPath, env = "RESULT_CLEANER_CACHE_DIR")]
    dir: PathBuf,
}

impl DirectoryArg {
    fn config(self) -> Config {
        let mut config = Config::new(self.dir);
        config.sandbox = true;
        config
    }
}

/// The definition of the command line, as this process uses it.
fn command() -> clap::Command {
    let command = Cli::command();
    let variables = environment::table(&command);
    // The variables are listed in one place, and not on each line of the help.
    let command = command.mut_subcommands(|command| command.mut_args(|arg| arg.hide_env(true)));
    let command = ["list", "explain"].into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |command| command.mut_args(only_shown))
    });
    command.mut_subcommand("environment", |topic| {
        topic.override_help(variables).disable_help_flag(true)
    })
}

/// Says of the flags of a disk budget what they do where nothing is evicted.
fn only_shown(arg: clap::Arg) -> clap::Arg {
    let help = match arg.get_id().as_str() {
        "max_size" => {
            "Show what would be evicted if all results may take no more than this on disk"
        }
        "min_free" => "Show what would be evicted to keep this free on their file system",
        "evict_min_age" => "The age below which no result would be evicted",
        _ => return arg,
    };
    arg.help(help)
}

/// Executes the command line of this process.
///
/// # Errors
/// Ends the process with status 2 on wrong usage, and with status 0 after `--help` and `--version`.
pub(crate) fn execute() -> Result<(), CommandError> {
    let defined = command();
    let mut command =
        defined.clone().mut_subcommands(|command| command.mut_args(environment::without_empty));
    let parsed = parse(&mut command);
    let parsed = parsed.map_err(|error| environment::with_variable(error, &defined));
    let (cli, name) = parsed.unwrap_or_else(|error| error.exit());
    environment::warn_of_unknown(&defined);
    console::set_colors_enabled(output::has_colour(&stdout()));
    dispatch(cli.subcommand, &defined).inspect_err(|error| {
        if is_wrong_usage(error) {
            let error = clap::Error::raw(ErrorKind::ValueValidation, error);
            with_usage(error, &mut command, &name).exit();
        }
    })
}

/// Parses the command line of this process. Also returns the name of the subcommand.
fn parse(command: &mut clap::Command) -> Result<(Cli, String), clap::Error> {
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    let name = matches.subcommand_name().unwrap_or_default().to_owned();
    match Cli::from_arg_matches(&matches) {
        Ok(cli) => Ok((cli, name)),
        Err(error) => Err(with_usage(error, command, &name)),
    }
}

/// Executes a subcommand of the command line `defined`.
fn dispatch(subcommand: Subcommands, defined: &clap::Command) -> Result<(), CommandError> {
    match subcommand {
        Subcommands::Run(args) => run::execute(args),
        Subcommands::Sweep(args) => sweep::execute(args),
        Subcommands::List(args) => list::execute(args),
        Subcommands::Explain(args) => explain::execute(args),
        Subcommands::Status(args) => status::execute(args),
        Subcommands::Doctor(args) => doctor::execute(args),
        Subcommands::Completions(args) => generate::completions(&args),
        Subcommands::Man(args) => generate::man(&args),
        Subcommands::Environment => {
            output::print(|out| writeln!(out, "{}", environment::table(defined))).map(drop)
        }
    }
}

/// Adds the usage of the subcommand `name` to an error.
fn with_usage(error: clap::Error, command: &mut clap::Command, name: &str) -> clap::Error {
    match command.find_subcommand_mut(name) {
        Some(subcommand) => error.format(subcommand),
        None => error.format(command),
    }
}

/// Whether only the library has detected that the usage is wrong.
fn is_wrong_usage(error: &CommandError) -> bool {
    matches!(
        error.downcast_ref::<Error>(),
        Some(
            Error::MetricsUrl { .. }
                | Error::Address { .. }
                | Error::TooShort { .. }
                | Error::Limit { .. }
        )
    )
}

/// Runs `work` on a runtime, for the commands that do one thing and exit.
fn block_on<T>(work: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Parses a duration of at least `minimum`; `why` is appended to the error about a shorter one.
fn at_least(text: &str, minimum: Duration, why: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration >= minimum {
        return Ok(duration);
    }
    Err(format!("it must be at least {}{why}", humantime::format_duration(minimum)))
}

/// Parses the variable of a switch: on with `1`, `true` or `yes`, off with `0`, `false` or `no`.
fn switch() -> BoolishValueParser {
    BoolishValueParser::new()
}

/// Parses how often `--verbose` is given, or its variable: a number, or a switch.
fn verbosity(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" => Ok(1),
        "false" | "f" | "no" | "n" | "off" => Ok(0),
        number => number.parse().map_err(|_| "it must be 0, 1 or 2".to_owned()),
    }
}

/// Returns for each of two mutually exclusive flags whether its value counts. A flag on the command line overrides the
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
                if (command.get_name(), long) == ("man", "dir") {
                    continue;
                }
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
}
