//! `result-cleaner explain`: why a result is deleted or kept.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, ValueHint};
use console::style;
use result_cleaner::text::{display_path, expand_home};
use result_cleaner::{Config, DEFAULT_CACHE_DIR, Error, Explanation, Fate, explain};
use serde::Serialize;

use crate::cli::{CommandError, DiskBudgetArgs, block_on, log, output, switch};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  result-cleaner explain ~/.omnimemory/cached_results/a.result.json.lz4
  result-cleaner explain --cache-dir /cache --json /cache/*.metadata.json

Exit status: 1 if a file does not exist or its cache directory can't be read,
else 0.")]
pub(crate) struct ExplainArgs {
    /// Results or their metadata
    #[arg(value_name = "FILE", required = true, value_hint = ValueHint::FilePath)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    cache_dir: CacheDir,
    #[command(flatten)]
    budget: DiskBudgetArgs,
    /// Print one JSON object per line
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_JSON")]
    json: bool,
}

/// The cache directory that was named, and how.
#[derive(Debug)]
struct CacheDir {
    dir: PathBuf,
    source: Option<ValueSource>,
}

#[derive(Debug, Args)]
struct CacheDirFlag {
    /// The cache directory, if it is neither the default nor that of the files
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CACHE_DIR, value_hint = ValueHint::DirPath, env = "RESULT_CLEANER_CACHE_DIR")]
    cache_dir: PathBuf,
}

impl Args for CacheDir {
    fn augment_args(command: Command) -> Command {
        CacheDirFlag::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        CacheDirFlag::augment_args_for_update(command)
    }
}

impl FromArgMatches for CacheDir {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let CacheDirFlag { cache_dir: dir } = CacheDirFlag::from_arg_matches(matches)?;
        Ok(Self { dir, source: matches.value_source("cache_dir") })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A file to explain, its cache directory, and why that one; `None` if the command line names it.
struct Subject {
    file: PathBuf,
    dir: PathBuf,
    origin: Option<&'static str>,
}

/// A cache directory, and why that one; `None` if the command line names it.
type KnownDir = (PathBuf, Option<&'static str>);

impl CacheDir {
    /// Finds the cache directory of `file`: the one that was named on the command line, else that of the variable or the
    /// default if the file lies in it, else the directory of the file. A file that does not exist may be relative to the
    /// cache directory, as `list` shows it.
    fn subject(&self, file: &Path) -> Result<Subject, Error> {
        let file = expand_home(file)?;
        let known = self.known_dirs()?;
        if let Some(subject) = Self::relative_to(&known, &file) {
            return Ok(subject);
        }
        let (dir, origin) = self.containing(&known, &file);
        Ok(Subject { file, dir, origin })
    }

    /// Returns the cache directories that are known without the files: that of the command line alone, or those of the
    /// variable and the default.
    fn known_dirs(&self) -> Result<Vec<KnownDir>, Error> {
        let named = |dir: &Path, origin| Ok::<_, Error>((expand_home(dir)?, origin));
        let default = named(Path::new(DEFAULT_CACHE_DIR), Some("the default"));
        Ok(match self.source {
            Some(ValueSource::CommandLine) => vec![named(&self.dir, None)?],
            Some(ValueSource::EnvVariable) => {
                let named = named(&self.dir, Some("named by RESULT_CLEANER_CACHE_DIR"))?;
                std::iter::once(named).chain(default.ok()).collect()
            }
            // Without a home directory there is no default.
            _ => default.into_iter().collect(),
        })
    }

    /// Returns the subject if there is no such `file`, but there is one relative to a known directory.
    fn relative_to(known: &[KnownDir], file: &Path) -> Option<Subject> {
        // An error that says nothing of the file does not mean that there is none.
        let is_missing = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        };
        let exists = |path: &Path| !path.symlink_metadata().is_err_and(|error| is_missing(&error));
        if file.is_absolute() || exists(file) {
            return None;
        }
        let (dir, origin) = known.iter().find(|(dir, _)| exists(&dir.join(file)))?;
        Some(Subject { file: dir.join(file), dir: dir.clone(), origin: *origin })
    }

    /// Returns the directory that the command line names, else the known one that contains `file`, else the directory of
    /// the file.
    fn containing(&self, known: &[KnownDir], file: &Path) -> KnownDir {
        let parent = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.canonicalize().ok(),
            _ => Path::new(".").canonicalize().ok(),
        };
        let contains = |dir: &Path| {
            let resolved = dir.canonicalize().ok();
            parent.as_ref().zip(resolved).is_some_and(|(parent, dir)| parent.starts_with(dir))
        };
        let is_fixed = self.source == Some(ValueSource::CommandLine) || parent.is_none();
        let fitting = known.iter().find(|(dir, _)| is_fixed || contains(dir));
        match fitting {
            Some((dir, origin)) => (dir.clone(), *origin),
            None => {
                let named = || file.parent().map(Path::to_owned);
                let dir = parent.or_else(named).unwrap_or_default();
                (dir, Some("the directory of the file"))
            }
        }
    }
}

pub(crate) fn execute(args: ExplainArgs) -> Result<(), CommandError> {
    log::start_quietly();
    let subjects = args.files.iter().map(|file| args.cache_dir.subject(file));
    let subjects = subjects.collect::<Result<Vec<_>, _>>()?;
    let (explained, failed) = block_on(async {
        let (mut explained, mut failed) = (Vec::new(), Vec::new());
        for subject in &subjects {
            let mut config = Config::new(&subject.dir);
            args.budget.apply(&mut config);
            match explain(&config, &subject.file).await {
                Ok(explanation) => explained.push((subject, explanation)),
                // The other files have other directories.
                Err(error @ (Error::Unreadable { .. } | Error::NotADirectory { .. })) => {
                    failed.push(format!("{}: {error}", display_path(&subject.file)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((explained, failed))
    })?;
    let now = output::now();
    output::print(|out| {
        for (number, (subject, explanation)) in explained.iter().enumerate() {
            if args.json {
                writeln!(out, "{}", output::json(&ExplainLine::new(subject, explanation, now))?)?;
                continue;
            }
            if number > 0 {
                writeln!(out)?;
            }
            show(out, subject, explanation, now)?;
        }
        Ok(())
    })?;
    if !failed.is_empty() {
        return Err(failed.join("; ").into());
    }
    let gone = explained.iter().filter(|(_, explanation)| explanation.fate == Fate::Gone);
    let gone: Vec<_> = gone.map(|(_, explanation)| display_path(&explanation.file)).collect();
    if gone.is_empty() { Ok(()) } else { Err(format!("not there: {}", gone.join(", ")).into()) }
}

fn show(
    out: &mut dyn Write,
    subject: &Subject,
    explanation: &Explanation,
    now: DateTime<Utc>,
) -> io::Result<()> {
    writeln!(out, "{}", style(display_path(&explanation.file)).bold())?;
    if let Some(origin) = subject.origin {
        writeln!(out, "  cache directory {}, {origin}", display_path(&subject.dir))?;
    }
    for (number, condition) in explanation.conditions.iter().enumerate() {
        let met = match condition.met {
            Some(true) => style("yes").green(),
            Some(false) => style("no ").red(),
            None => style("-  ").dim(),
        };
        let number = number + 1;
        writeln!(out, "  {number}. {met}  {:30}  {}", condition.what, condition.why)?;
    }
    if let Some(at) = explanation.expires_at {
        let left = output::time_left(at, now);
        let left = if at > now { format!("in {left}") } else { left };
        writeln!(out, "  expires {} ({left})", output::local(at))?;
    }
    writeln!(out, "  {}", explanation.verdict)
}

/// One explanation as JSON.
#[derive(Serialize)]
struct ExplainLine<'a> {
    file: String,
    cache_directory: String,
    result: Option<String>,
    conditions: Vec<ConditionLine<'a>>,
    expires_at: Option<String>,
    expires_in_seconds: Option<f64>,
    fate: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    evicted_after: Option<u64>,
    verdict: &'a str,
}

#[derive(Serialize)]
struct ConditionLine<'a> {
    condition: usize,
    what: &'a str,
    met: Option<bool>,
    why: &'a str,
}

impl<'a> ExplainLine<'a> {
    fn new(subject: &Subject, explanation: &'a Explanation, now: DateTime<Utc>) -> Self {
        let conditions = explanation.conditions.iter().enumerate();
        Self {
            file: explanation.file.to_string_lossy().into_owned(),
            cache_directory: subject.dir.to_string_lossy().into_owned(),
            result: explanation.result.as_ref().map(|path| path.to_string_lossy().into_owned()),
            conditions: conditions
                .map(|(number, condition)| ConditionLine {
                    condition: number + 1,
                    what: condition.what,
                    met: condition.met,
                    why: &condition.why,
                })
                .collect(),
            expires_at: explanation.expires_at.map(output::rfc3339),
            expires_in_seconds: explanation.expires_at.map(|at| (at - now).as_seconds_f64()),
            fate: match explanation.fate {
                Fate::Due => "due",
                Fate::Waits => "waits",
                Fate::Gone => "gone",
                _ => "stays",
            },
            evicted_after: explanation.evicted_after,
            verdict: &explanation.verdict,
        }
    }
}
