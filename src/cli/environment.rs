//! The environment variables of the flags.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{Write, stderr};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command};

/// What each variable begins with.
const PREFIX: &str = "RESULT_CLEANER_";
/// From which similarity on a known name is suggested for an unknown one.
const SIMILAR: f64 = 0.8;

/// How flags and variables relate.
pub(super) const RULES: &str = "\
Each flag has an environment variable. A flag on the command line overrides its
variable. An empty variable counts as not set. Switches are on with 1, true or
yes, and off with 0, false or no.";

/// Returns the argument without its variable if that is empty: an empty variable counts as not set.
pub(super) fn without_empty(arg: Arg) -> Arg {
    match arg.get_env().and_then(std::env::var_os) {
        Some(value) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    }
}

/// Adds the name of the variable to an error about the value of a flag that is not on the command line.
pub(super) fn with_variable(mut error: clap::Error, command: &Command) -> clap::Error {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = shown.split(' ').next().unwrap_or_default();
    let is_given = |arg: String| arg == flag || arg.starts_with(&format!("{flag}="));
    let mut args = command.get_subcommands().flat_map(Command::get_arguments);
    let arg = args.find(|arg| arg.get_long().is_some_and(|long| flag == format!("--{long}")));
    let variable = arg.and_then(Arg::get_env).filter(|name| std::env::var_os(name).is_some());
    if let Some(variable) = variable
        && !std::env::args_os().any(|arg| is_given(arg.to_string_lossy().into_owned()))
    {
        let tip = format!("the value is that of the variable {}", variable.display());
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// Writes a warning for each variable that begins as ours do and that no flag of any command has.
pub(super) fn warn_of_unknown(command: &Command) {
    let known: BTreeSet<&str> = command
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .filter_map(|arg| arg.get_env().and_then(OsStr::to_str))
        .collect();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        if known.contains(name) || value.is_empty() {
            continue;
        }
        let hint = match nearest(name, &known) {
            Some(nearest) => format!("did you mean {nearest}?"),
            None => "see `result-cleaner help environment`".to_owned(),
        };
        // If standard error can't be written, there is nowhere to report it.
        let _ = writeln!(stderr(), "warning: no flag has the variable {name}; {hint}");
    }
}

/// Returns the known name that is most similar, or that only has more words in front.
fn nearest<'a>(name: &str, known: &BTreeSet<&'a str>) -> Option<&'a str> {
    let own = &name[PREFIX.len()..];
    let similarity = |known: &str| match known.strip_suffix(own) {
        Some(front) if front.ends_with('_') => 1.0,
        _ => strsim::jaro_winkler(own, known),
    };
    let rated = known.iter().map(|known| (similarity(&known[PREFIX.len()..]), *known));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|best| best.0 > SIMILAR).map(|best| best.1)
}

/// The flag that a variable sets, and the commands that have the flag.
pub(super) struct Variable<'a> {
    flag: String,
    commands: Vec<&'a str>,
}

impl Variable<'_> {
    pub(super) fn meaning(&self) -> String {
        format!("{} ({})", self.flag, self.commands.join(", "))
    }
}

/// Returns the variables of some commands, sorted by name.
pub(super) fn variables<'a>(
    commands: impl Iterator<Item = &'a Command>,
) -> BTreeMap<&'a str, Variable<'a>> {
    let mut variables = BTreeMap::new();
    for command in commands {
        for arg in command.get_arguments() {
            let Some(name) = arg.get_env().and_then(OsStr::to_str) else { continue };
            let flag = arg.get_long().map_or("DIR".to_owned(), |long| format!("--{long}"));
            let variable = Variable { flag, commands: Vec::new() };
            variables.entry(name).or_insert(variable).commands.push(command.get_name());
        }
    }
    variables
}

/// Returns the help about the variables.
pub(super) fn table(command: &Command) -> String {
    let variables = variables(command.get_subcommands());
    let width = variables.keys().map(|name| name.len()).max().unwrap_or(0);
    let line = |(name, variable): (&&str, &Variable<'_>)| {
        format!("  {name:width$}  {}", variable.meaning())
    };
    let lines: Vec<String> = variables.iter().map(line).collect();
    format!("{RULES}\n\n{}", lines.join("\n"))
}
