//! `result-cleaner explain`: why a result is deleted or kept.

use std::io::{self, Write};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, ValueHint};
use console::style;
use result_cleaner::{Config, DEFAULT_CACHE_DIR, Explanation, Fate, display_path, explain};
use serde::Serialize;

use super::{DiskBudget, Failure, block_on, log, output, switch};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  result-cleaner explain ~/.omnimemory/cached_results/a.result.json.lz4
  result-cleaner explain --cache-dir /cache --json /cache/*.metadata.json

Exit status: 1 where a file is not there, else 0.")]
pub(crate) struct ExplainArgs {
    /// Results or their metadata
    #[arg(value_name = "FILE", required = true, value_hint = ValueHint::FilePath)]
    files: Vec<PathBuf>,
    /// The cache directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CACHE_DIR, value_hint = ValueHint::DirPath, env = "RESULT_CLEANER_CACHE_DIR")]
    cache_dir: PathBuf,
    #[command(flatten)]
    budget: DiskBudget,
    /// Print one JSON object per line
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_JSON")]
    json: bool,
}

pub(crate) fn execute(args: ExplainArgs) -> Result<(), Failure> {
    log::start_quietly();
    let mut config = Config::new(args.cache_dir);
    args.budget.apply(&mut config);
    let explanations = block_on(async {
        let mut explanations = Vec::new();
        for file in &args.files {
            explanations.push(explain(&config, &result_cleaner::expand_home(file)?).await?);
        }
        Ok(explanations)
    })?;
    let now = output::now();
    output::print(|out| {
        for (number, explanation) in explanations.iter().enumerate() {
            if args.json {
                writeln!(out, "{}", output::json(&Line::new(explanation, now))?)?;
                continue;
            }
            if number > 0 {
                writeln!(out)?;
            }
            show(out, explanation, now)?;
        }
        Ok(())
    })?;
    let gone = explanations.iter().filter(|explanation| explanation.fate == Fate::Gone);
    let gone: Vec<_> = gone.map(|explanation| display_path(&explanation.file)).collect();
    if gone.is_empty() { Ok(()) } else { Err(format!("not there: {}", gone.join(", ")).into()) }
}

fn show(out: &mut dyn Write, explanation: &Explanation, now: DateTime<Utc>) -> io::Result<()> {
    writeln!(out, "{}", style(display_path(&explanation.file)).bold())?;
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
struct Line<'a> {
    file: String,
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

impl<'a> Line<'a> {
    fn new(explanation: &'a Explanation, now: DateTime<Utc>) -> Self {
        let conditions = explanation.conditions.iter().enumerate();
        Self {
            file: explanation.file.to_string_lossy().into_owned(),
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
