//! `result-cleaner list`: lists the results by expiry.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use chrono::{DateTime, Utc};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use console::style;
use indicatif::BinaryBytes;
use result_cleaner::{ListedPair, display_path, list};
use serde::Serialize;

use super::{Directory, DiskBudget, Failure, block_on, log, output, switch};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  result-cleaner list | head
  result-cleaner list --max-size 20G                   what exceeds that budget
  result-cleaner list --json | jq 'select(.reason)'    what is invalid, and why")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    directory: Directory,
    #[command(flatten)]
    budget: DiskBudget,
    /// Print one JSON object per line
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_JSON")]
    json: bool,
}

pub(crate) fn execute(args: ListArgs) -> Result<(), Failure> {
    log::start_quietly();
    let mut config = args.directory.config();
    args.budget.apply(&mut config);
    let has_budget = config.max_size.is_some() || config.min_free.is_some();
    let pairs = block_on(async { Ok(list(&config).await?) })?;
    let now = output::now();
    output::print(|out| {
        if args.json {
            for pair in &pairs {
                writeln!(out, "{}", output::json(&Line::new(pair, has_budget, now))?)?;
            }
            return Ok(());
        }
        if pairs.is_empty() {
            return writeln!(out, "no results");
        }
        // Results are not part of the table: it would pad each line to the length of the longest path.
        let results = std::iter::once("RESULT".to_owned()).chain(pairs.iter().map(result));
        let lines = table(&pairs, now);
        for (number, (line, result)) in lines.lines().zip(results).enumerate() {
            // Styles are applied to whole lines, because the table would count their invisible
            // characters.
            let line = style(line);
            let line = match number.checked_sub(1).map(|pair| &pairs[pair].expires_at) {
                None => line.bold(),
                Some(Err(_)) => line.red(),
                Some(Ok(at)) if *at <= now => line.yellow(),
                Some(Ok(_)) => line,
            };
            writeln!(out, "{line} {result}")?;
        }
        Ok(())
    })?;
    Ok(())
}

/// One pair as JSON.
#[derive(Serialize)]
struct Line {
    expires_at: Option<String>,
    expires_in_seconds: Option<f64>,
    bytes: u64,
    result: String,
    /// The path's bytes in hex, if the path is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What it takes on disk, and whether it would be evicted now, with a disk budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beyond_budget: Option<bool>,
}

impl Line {
    fn new(pair: &ListedPair, has_budget: bool, now: DateTime<Utc>) -> Self {
        let expires_at = pair.expires_at.as_ref().ok();
        Self {
            expires_at: expires_at.map(|at| output::rfc3339(*at)),
            expires_in_seconds: expires_at.map(|at| (*at - now).as_seconds_f64()),
            bytes: pair.bytes,
            result: pair.result.to_string_lossy().into_owned(),
            result_bytes: pair
                .result
                .to_str()
                .is_none()
                .then(|| hex(pair.result.as_os_str().as_bytes())),
            reason: pair.expires_at.as_ref().err().cloned(),
            disk_bytes: pair.disk_bytes,
            beyond_budget: has_budget.then_some(pair.is_beyond_budget),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the path of a result, and what is wrong with its metadata.
fn result(pair: &ListedPair) -> String {
    let path = display_path(&pair.result);
    match &pair.expires_at {
        Ok(_) if pair.is_beyond_budget => format!("{path}  (beyond the disk budget)"),
        Ok(_) => path,
        Err(reason) => format!("{path}: {reason}"),
    }
}

fn table(pairs: &[ListedPair], now: DateTime<Utc>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["EXPIRES", "LEFT", "SIZE"]);
    for pair in pairs {
        let size = BinaryBytes(pair.bytes).to_string();
        match &pair.expires_at {
            Ok(at) => table.add_row([output::local(*at), output::time_left(*at, now), size]),
            Err(_) => table.add_row(["never".to_owned(), "invalid".to_owned(), size]),
        };
    }
    if let Some(size) = table.column_mut(2) {
        size.set_cell_alignment(CellAlignment::Right);
    }
    table
}
