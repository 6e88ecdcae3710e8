//! `result-cleaner list`: lists the results by expiry.

use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use console::{Term, measure_text_width, style};
use indicatif::BinaryBytes;
use os_display::Quotable;
use result_cleaner::text::display_path;
use result_cleaner::{Config, ListedOrphan, ListedPair, OrphanKind, list, list_orphans};
use serde::Serialize;

use crate::cli::output::counted;
use crate::cli::{CommandError, DirectoryArg, DiskBudgetArgs, block_on, log, output, switch};

/// The least of a path that is shown, however narrow the terminal is.
const MIN_PATH: usize = 20;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  result-cleaner list --limit 10
  result-cleaner list --expired --invalid              what needs attention
  result-cleaner list --max-size 20G                   what exceeds that budget
  result-cleaner list --json | jq 'select(.reason)'    what is invalid, and why")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    directory: DirectoryArg,
    /// Show only the first N
    #[arg(long, value_name = "N", env = "RESULT_CLEANER_LIMIT")]
    limit: Option<usize>,
    /// Print one JSON object per line
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_JSON")]
    json: bool,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    budget: DiskBudgetArgs,
}

/// What is listed; all pairs if nothing is chosen, and the union if several are.
#[derive(Debug, Args)]
#[command(next_help_heading = "Show only")]
struct Filters {
    /// Results that have expired
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_EXPIRED")]
    expired: bool,
    /// Results with invalid metadata
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_INVALID")]
    invalid: bool,
    /// Results without metadata, metadata without a result, and .tmp files of the two names
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_ORPHANS")]
    orphans: bool,
}

impl Filters {
    fn selects(&self, pair: &ListedPair, now: DateTime<Utc>) -> bool {
        let all = !(self.expired || self.invalid || self.orphans);
        all || match &pair.expires_at {
            Ok(at) => self.expired && *at <= now,
            Err(_) => self.invalid,
        }
    }
}

pub(crate) fn execute(args: ListArgs) -> Result<(), CommandError> {
    log::start_quietly();
    let mut config = args.directory.config();
    args.budget.apply(&mut config);
    let has_budget = config.max_size.is_some() || config.min_free.is_some();
    let mut pairs = block_on(async { Ok(list(&config).await?) })?;
    let orphans = match args.filters.orphans {
        true => block_on(async { Ok(list_orphans(&config).await?) })?,
        false => Vec::new(),
    };
    let now = output::now();
    pairs.retain(|pair| args.filters.selects(pair, now));
    let rows = pairs.iter().map(Row::Pair).chain(orphans.iter().map(Row::Orphan));
    let rows: Vec<Row<'_>> = rows.collect();
    let shown = &rows[..rows.len().min(args.limit.unwrap_or(usize::MAX))];
    output::print(|out| {
        if args.json {
            for row in shown {
                writeln!(out, "{}", output::json(&ListLine::new(row, has_budget, now))?)?;
            }
            return Ok(());
        }
        if rows.is_empty() {
            return writeln!(out, "no results");
        }
        show(out, shown, &base(&config), now)?;
        let hidden = rows.len() - shown.len();
        writeln!(out, "{}", style(totals(&pairs, &orphans, hidden, now)).bold())
    })?;
    Ok(())
}

/// What a line is about.
enum Row<'a> {
    Pair(&'a ListedPair),
    Orphan(&'a ListedOrphan),
}

impl Row<'_> {
    fn path(&self) -> &Path {
        match self {
            Self::Pair(pair) => &pair.result,
            Self::Orphan(orphan) => &orphan.path,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Pair(pair) => pair.bytes,
            Self::Orphan(orphan) => orphan.bytes,
        }
    }

    /// What is to be said behind the path.
    fn remark(&self) -> String {
        match self {
            Self::Pair(ListedPair { expires_at: Err(reason), .. }) => format!(": {reason}"),
            Self::Pair(pair) if pair.is_beyond_budget => "  (beyond the disk budget)".to_owned(),
            Self::Pair(_) => String::new(),
            Self::Orphan(orphan) => match orphan.kind {
                OrphanKind::Result => ": a result without metadata".to_owned(),
                OrphanKind::Metadata => ": metadata without a result".to_owned(),
                _ => ": a file that was not renamed yet".to_owned(),
            },
        }
    }

    fn cells(&self, now: DateTime<Utc>) -> [String; 3] {
        let [expires, left] = match self {
            Self::Pair(ListedPair { expires_at: Ok(at), .. }) => {
                [output::local(*at), output::time_left(*at, now)]
            }
            Self::Pair(_) => ["never", "invalid"].map(str::to_owned),
            Self::Orphan(_) => ["never", "orphan"].map(str::to_owned),
        };
        [expires, left, BinaryBytes(self.bytes()).to_string()]
    }
}

/// The resolved cache directory, which the listed paths begin with.
fn base(config: &Config) -> PathBuf {
    let expanded = config.expanded_cache_dir().unwrap_or_else(|_| config.cache_dir.clone());
    expanded.canonicalize().unwrap_or(expanded)
}

fn show(
    out: &mut dyn io::Write,
    rows: &[Row<'_>],
    base: &Path,
    now: DateTime<Utc>,
) -> io::Result<()> {
    let terminal = Term::stdout();
    let columns = terminal.is_term().then(|| terminal.size_checked()).flatten();
    let table = table(rows, now).to_string();
    let mut lines = table.lines();
    if let Some(head) = lines.next() {
        writeln!(out, "{} {}", style(head).bold(), style("RESULT").bold())?;
    }
    // Paths are not part of the table: it would pad each line to the length of the longest one.
    for (line, row) in lines.zip(rows) {
        let path = quoted(row.path().strip_prefix(base).unwrap_or(row.path()));
        let remark = row.remark();
        let path = match columns {
            Some((_, columns)) => {
                let others = measure_text_width(line) + 1 + measure_text_width(&remark);
                shortened(&path, usize::from(columns).saturating_sub(others).max(MIN_PATH))
            }
            None => path,
        };
        // Styles are applied to whole lines, because the table would count their invisible characters.
        let line = match row {
            Row::Pair(ListedPair { expires_at: Ok(at), .. }) if *at > now => style(line),
            Row::Pair(ListedPair { expires_at: Err(_), .. }) => style(line).red(),
            Row::Pair(_) | Row::Orphan(_) => style(line).yellow(),
        };
        writeln!(out, "{line} {path}{remark}")?;
    }
    Ok(())
}

/// Returns a path so that a shell takes it back, if it has characters that a terminal must not see.
fn quoted(path: &Path) -> String {
    let shown = display_path(path);
    match path.to_str() {
        Some(text) if text == shown => shown,
        _ => path.quote().to_string(),
    }
}

/// Cuts the middle out of a text that takes more than `width` columns.
fn shortened(text: &str, width: usize) -> String {
    if measure_text_width(text) <= width {
        return text.to_owned();
    }
    let take = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut taken = String::new();
        for c in chars {
            if measure_text_width(&taken) + measure_text_width(c.encode_utf8(&mut [0; 4])) > room {
                break;
            }
            taken.push(c);
        }
        taken
    };
    let room = width.saturating_sub(1);
    let head = take(&mut text.chars(), room / 2);
    let tail = take(&mut text.chars().rev(), room - measure_text_width(&head));
    format!("{head}…{}", tail.chars().rev().collect::<String>())
}

fn table(rows: &[Row<'_>], now: DateTime<Utc>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["EXPIRES", "LEFT", "SIZE"]);
    for row in rows {
        table.add_row(row.cells(now));
    }
    if let Some(size) = table.column_mut(2) {
        size.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Returns the sums of all that the filters let through; `hidden` is how many rows are not shown.
fn totals(
    pairs: &[ListedPair],
    orphans: &[ListedOrphan],
    hidden: usize,
    now: DateTime<Utc>,
) -> String {
    let bytes = BinaryBytes(pairs.iter().map(|pair| pair.bytes).sum());
    let valid = || pairs.iter().filter_map(|pair| pair.expires_at.as_ref().ok());
    let expired = valid().filter(|at| **at <= now).count();
    let mut text = format!("{}, {bytes}, {expired} expired", counted(pairs.len() as u64, "result"));
    let invalid = pairs.len() - valid().count();
    if invalid > 0 {
        text += &format!(", {invalid} invalid");
    }
    if let Some(next) = valid().find(|at| **at > now) {
        text += &format!(", next in {}", output::time_left(*next, now));
    }
    if !orphans.is_empty() {
        let bytes = BinaryBytes(orphans.iter().map(|orphan| orphan.bytes).sum());
        text += &format!("; {}, {bytes}", counted(orphans.len() as u64, "orphan"));
    }
    if hidden > 0 {
        text += &format!(" ({hidden} not shown)");
    }
    text
}

/// One pair or orphan as JSON.
#[derive(Serialize)]
struct ListLine {
    expires_at: Option<String>,
    expires_in_seconds: Option<f64>,
    bytes: u64,
    result: String,
    /// The path's bytes in hex, if the path is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orphan: Option<&'static str>,
    /// What it takes on disk, and whether it would be evicted now, with a disk budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beyond_budget: Option<bool>,
}

impl ListLine {
    fn new(row: &Row<'_>, has_budget: bool, now: DateTime<Utc>) -> Self {
        let path = row.path();
        let line = Self {
            expires_at: None,
            expires_in_seconds: None,
            bytes: row.bytes(),
            result: path.to_string_lossy().into_owned(),
            result_bytes: path.to_str().is_none().then(|| hex(path.as_os_str().as_bytes())),
            reason: None,
            orphan: None,
            disk_bytes: None,
            beyond_budget: None,
        };
        match row {
            Row::Pair(pair) => {
                let expires_at = pair.expires_at.as_ref().ok();
                Self {
                    expires_at: expires_at.map(|at| output::rfc3339(*at)),
                    expires_in_seconds: expires_at.map(|at| (*at - now).as_seconds_f64()),
                    reason: pair.expires_at.as_ref().err().cloned(),
                    disk_bytes: pair.disk_bytes,
                    beyond_budget: has_budget.then_some(pair.is_beyond_budget),
                    ..line
                }
            }
            Row::Orphan(orphan) => {
                let kind = match orphan.kind {
                    OrphanKind::Result => "result",
                    OrphanKind::Metadata => "metadata",
                    _ => "tmp",
                };
                Self { orphan: Some(kind), ..line }
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_long_path_is_cut_out() {
        assert_eq!(shortened("session/a.result.json.lz4", 25), "session/a.result.json.lz4");
        assert_eq!(shortened("session/a.result.json.lz4", 20), "session/a…t.json.lz4");
        // A wide character takes two columns.
        let wide = shortened("結果結果結果結果結果", 10);
        assert!(measure_text_width(&wide) <= 10 && wide.contains('…'), "{wide}");
    }
}
