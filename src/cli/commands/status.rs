//! `result-cleaner status`: the state of a running service.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use console::{Term, measure_text_width, style, truncate_str};
use indicatif::BinaryBytes;
use result_cleaner::text::display_path;
use result_cleaner::{Error, ExpiryBucket, Recent, RecentError, Stats, WatchState, fetch_stats};

use crate::cli::{CommandError, block_on, output, switch};

/// How often `--watch` redraws.
const REDRAW: Duration = Duration::from_secs(1);
const BAR_WIDTH: u64 = 40;
/// How many reasons for errors are shown.
const ERRORS: usize = 3;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  result-cleaner status --watch
  result-cleaner status --url http://[::1]:8004 --json

Exit status: 1 if no service answers.")]
pub(crate) struct StatusArgs {
    /// Address of the service
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8004",
        env = "RESULT_CLEANER_URL"
    )]
    url: String,
    /// Print the stats as JSON
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_JSON")]
    json: bool,
    /// Refresh until interrupted
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_WATCH")]
    watch: bool,
}

pub(crate) fn execute(args: StatusArgs) -> Result<(), CommandError> {
    block_on(show(args))
}

async fn show(args: StatusArgs) -> Result<(), CommandError> {
    let terminal = Term::stdout();
    let redraws = args.watch && terminal.is_term() && !args.json;
    // The last answer, drawn, and when it came.
    let mut last_answer: Option<(String, DateTime<Utc>)> = None;
    loop {
        let text = match fetch_stats(&args.url).await {
            Ok(stats) => {
                let now = output::now();
                let text =
                    if args.json { output::json(&stats)? + "\n" } else { draw(&stats, now)? };
                last_answer = Some((text.clone(), now));
                if redraws { format!("{text}\n{}\n", as_of(now)) } else { text }
            }
            // The service may be about to restart.
            Err(error @ Error::NoAnswer { .. }) if args.watch && last_answer.is_some() => {
                if let Some((last, at)) = last_answer.as_ref().filter(|_| redraws) {
                    format!("{last}\n{}\n{}\n", style(&error).red(), as_of(*at))
                } else {
                    // If standard error can't be written, there is nowhere to report it.
                    let _ = writeln!(io::stderr(), "{error}");
                    String::new()
                }
            }
            Err(error @ Error::NoAnswer { .. }) => return Err(advised(&error, &args.url)),
            Err(error) => return Err(error.into()),
        };
        if redraws {
            terminal.clear_screen()?;
        }
        if !print(&text, &terminal, args.json)? || !args.watch {
            return Ok(());
        }
        tokio::time::sleep(REDRAW).await;
    }
}

/// Says when the service last answered, and how to quit.
fn as_of(at: DateTime<Utc>) -> String {
    style(format!("as of {}; Ctrl-C quits", output::local(at))).dim().to_string()
}

/// Adds to an error what to do about it.
fn advised(error: &Error, url: &str) -> CommandError {
    let message = error.to_string();
    let address = url.split_once("://").map_or(url, |(_, rest)| rest);
    let address = address.split('/').next().unwrap_or_default();
    let host = address.split(':').next().unwrap_or_default();
    let can_listen = address.parse::<SocketAddr>().is_ok()
        || address.strip_prefix("localhost:").is_some_and(|port| port.parse::<u16>().is_ok());
    let advice = if message.contains("HTTP 421") {
        format!("start it with `--allow-host {host}`, or use its address")
    } else if message.contains("HTTP ") {
        "another program answers there: correct --url".to_owned()
    } else if url.starts_with("https:") {
        "a cleaner speaks http: correct --url".to_owned()
    } else if can_listen {
        format!("start one with `result-cleaner run --listen {address}`")
    } else {
        "start one with `result-cleaner run --listen IP:PORT`".to_owned()
    };
    format!("{message}; {advice}").into()
}

/// Prints `text`; on a terminal, lines that are too long are cut. Returns whether the output still has a reader.
fn print(text: &str, terminal: &Term, is_json: bool) -> Result<bool, CommandError> {
    let columns = terminal.size_checked().map(|(_, columns)| usize::from(columns));
    output::print(|out| {
        for line in text.lines() {
            match columns {
                Some(columns) if !is_json && measure_text_width(line) > columns => {
                    writeln!(out, "{}", truncate_str(line, columns, "…"))?;
                }
                _ => writeln!(out, "{line}")?,
            }
        }
        Ok(())
    })
}

fn draw(stats: &Stats, now: DateTime<Utc>) -> Result<String, fmt::Error> {
    let mut text = String::new();
    draw_state(&mut text, stats, now)?;
    draw_totals(&mut text, stats)?;
    if let Some(recent) = &stats.recent {
        draw_recent(&mut text, recent, &stats.cache_directory, now)?;
    }
    if let Some(buckets) = &stats.expiring {
        draw_bars(&mut text, buckets)?;
    }
    Ok(text)
}

fn line(text: &mut String, name: &str, value: &dyn fmt::Display) -> fmt::Result {
    writeln!(text, "{}  {value}", style(format!("{name:11}")).dim())
}

/// Draws what is the case now.
fn draw_state(text: &mut String, stats: &Stats, now: DateTime<Utc>) -> fmt::Result {
    line(text, "cache", &display_path(&stats.cache_directory))?;
    let running = if stats.running { style("yes").green() } else { style("no").red() };
    line(text, "running", &format!("{running}{}", origin(stats, now)))?;
    let watch = match stats.watch {
        WatchState::Active => style("active (inotify)").green(),
        WatchState::Degraded => {
            style("degraded: some directories are swept instead of watched").yellow()
        }
        WatchState::Polling => {
            style("polling: the file system does not report all changes").yellow()
        }
        WatchState::Absent => style("absent: the cache directory does not exist yet").yellow(),
        _ => style("unknown"),
    };
    line(text, "watch", &watch)?;
    let next = stats.next_expiry.map_or("none".to_owned(), |at| {
        format!("in {} ({})", output::time_left(at, now), output::local(at))
    });
    line(text, "next expiry", &next)?;
    line(text, "waiting", &stats.heap_size)?;
    if let Some(size) = stats.size_bytes {
        line(text, "on disk", &used(size, stats.max_size_bytes, "of"))?;
    }
    // The free space matters only with a disk budget.
    if let (Some(free), Some(_)) = (stats.free_bytes, stats.size_bytes) {
        line(text, "disk free", &used(free, stats.min_free_bytes, "of at least"))?;
    }
    Ok(())
}

/// Says which version runs where, and for how long.
fn origin(stats: &Stats, now: DateTime<Utc>) -> String {
    let mut words = String::new();
    if let Some(started_at) = stats.started_at {
        let uptime = output::duration((now - started_at).to_std().unwrap_or_default());
        words += &format!(", for {uptime}");
    }
    if !stats.host.is_empty() {
        words += &format!(", on {}", stats.host);
    }
    if !stats.version.is_empty() {
        words += &format!(", version {}", stats.version);
    }
    words
}

/// Draws what was done since the start.
fn draw_totals(text: &mut String, stats: &Stats) -> fmt::Result {
    if stats.dry_run {
        let would = format!("{} deleted, {} evicted", stats.would_delete, stats.would_evict);
        let words = style(format!("nothing is deleted; would have: {would}")).yellow();
        line(text, "dry run", &words)?;
    }
    line(text, "deleted", &stats.total_deleted)?;
    line(text, "freed", &BinaryBytes(stats.total_freed_bytes))?;
    if stats.size_bytes.is_some() {
        let bytes = BinaryBytes(stats.total_evicted_bytes);
        let evicted = format!("{} before they expired, {bytes} on disk", stats.total_evicted);
        line(text, "evicted", &evicted)?;
    }
    if stats.total_orphans_removed > 0 || stats.total_directories_pruned > 0 {
        let freed = BinaryBytes(stats.total_orphan_bytes_freed);
        let (orphans, pruned) = (stats.total_orphans_removed, stats.total_directories_pruned);
        let removed = format!("{orphans} orphans, {freed}, and {pruned} empty directories");
        line(text, "removed", &removed)?;
    }
    let errors = style(stats.total_errors);
    line(text, "errors", &if stats.total_errors > 0 { errors.red() } else { errors })?;
    let interval = output::duration(stats.check_interval);
    line(text, "sweeps", &format!("{}, every {interval}", stats.total_cleanups))
}

/// Returns what is used of a limit, with a bar.
fn used(bytes: u64, limit: Option<u64>, word: &str) -> String {
    let Some(limit) = limit.filter(|limit| *limit > 0) else {
        return BinaryBytes(bytes).to_string();
    };
    let width = (u128::from(bytes) * u128::from(BAR_WIDTH) / u128::from(limit)) as usize;
    let (width, full) = (width.min(BAR_WIDTH as usize), BAR_WIDTH as usize);
    let bar = style("█".repeat(width)).cyan();
    let rest = style("░".repeat(full - width)).dim();
    format!("{bar}{rest} {} {word} {}", BinaryBytes(bytes), BinaryBytes(limit))
}

fn draw_recent(
    text: &mut String,
    recent: &Recent,
    cache_dir: &Path,
    now: DateTime<Utc>,
) -> fmt::Result {
    if let Some(last) = &recent.last_sweep {
        let ago = output::duration((now - last.ended_at).to_std().unwrap_or_default());
        let (deleted, checked) = (last.report.deleted_count, last.report.checked_count);
        let took = last.report.duration.as_secs_f64();
        let sweep = format!("{ago} ago, deleted {deleted} of {checked} in {took:.3} s");
        line(text, "last sweep", &sweep)?;
    }
    // The newest of each reason, and how many have the same.
    let mut reasons: Vec<(&RecentError, usize)> = Vec::new();
    for error in &recent.errors {
        match reasons.iter_mut().find(|(known, _)| known.reason == error.reason) {
            Some((_, count)) => *count += 1,
            None => reasons.push((error, 1)),
        }
    }
    for (error, count) in reasons.into_iter().take(ERRORS) {
        let path = Path::new(&error.path);
        let path = display_path(path.strip_prefix(cache_dir).unwrap_or(path));
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        writeln!(text, "{}  {}: {path}{more}", style("error      ").red(), error.reason)?;
    }
    Ok(())
}

fn draw_bars(text: &mut String, buckets: &[ExpiryBucket]) -> fmt::Result {
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(0).max(1);
    writeln!(text, "\n{}", style("expires within").dim())?;
    for bucket in buckets {
        let span = bucket
            .within_seconds
            .map_or("later".to_owned(), |end| output::duration(Duration::from_secs(end)));
        // A bucket that is not empty shows at least one block.
        let width = (bucket.count * BAR_WIDTH / most).max(u64::from(bucket.count > 0));
        let bar = "█".repeat(usize::try_from(width).unwrap_or(0));
        let bytes = bucket.bytes.filter(|_| bucket.count > 0);
        let bytes = bytes.map_or(String::new(), |bytes| format!(", {}", BinaryBytes(bytes)));
        writeln!(text, "{span:>12}  {} {}{bytes}", style(bar).cyan(), bucket.count)?;
    }
    Ok(())
}
