//! `result-cleaner status`: the state of a running service.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use console::{Term, measure_text_width, style, truncate_str};
use indicatif::BinaryBytes;
use result_cleaner::{Error, ExpiryBucket, Recent, Stats, WatchState, display_path, fetch_stats};

use super::{Failure, block_on, output, switch};

/// How often `--watch` redraws.
const REDRAW: Duration = Duration::from_secs(1);
const BAR_WIDTH: u64 = 40;
/// How many errors are shown.
const ERRORS: usize = 3;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  result-cleaner status --watch
  result-cleaner status --url http://[::1]:8004 --json

Exit status: 1 where no service answers.")]
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

pub(crate) fn execute(args: StatusArgs) -> Result<(), Failure> {
    block_on(show(args))
}

async fn show(args: StatusArgs) -> Result<(), Failure> {
    let terminal = Term::stdout();
    let redraws = args.watch && terminal.is_term() && !args.json;
    let mut has_answered = false;
    loop {
        let text = match fetch_stats(&args.url).await {
            Ok(stats) if args.json => output::json(&stats)? + "\n",
            Ok(stats) => draw(&stats, output::now())?,
            // The service may be about to restart.
            Err(error @ Error::NoAnswer { .. }) if redraws && has_answered => {
                format!("{}\n", style(error).red())
            }
            Err(error @ Error::NoAnswer { .. }) if args.watch && has_answered => {
                // If standard error can't be written, there is nowhere to report it.
                let _ = writeln!(io::stderr(), "{error}");
                String::new()
            }
            Err(error @ Error::NoAnswer { .. }) => {
                let advice = "start one with `result-cleaner run --listen 127.0.0.1:8004`";
                return Err(format!("{error}; {advice}").into());
            }
            Err(error) => return Err(error.into()),
        };
        has_answered = true;
        if redraws {
            terminal.clear_screen()?;
        }
        let columns = terminal.size_checked().map(|(_, columns)| usize::from(columns));
        let is_read = output::print(|out| {
            for line in text.lines() {
                match columns {
                    Some(columns) if !args.json && measure_text_width(line) > columns => {
                        writeln!(out, "{}", truncate_str(line, columns, "…"))?;
                    }
                    _ => writeln!(out, "{line}")?,
                }
            }
            Ok(())
        })?;
        if !args.watch || !is_read {
            return Ok(());
        }
        tokio::time::sleep(REDRAW).await;
    }
}

fn draw(stats: &Stats, now: DateTime<Utc>) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn fmt::Display| {
        writeln!(text, "{}  {value}", style(format!("{name:11}")).dim())
    };
    line("cache", &display_path(&stats.cache_directory))?;
    let running = if stats.running { style("yes").green() } else { style("no").red() };
    line("running", &running)?;
    line(
        "watch",
        &match stats.watch {
            WatchState::Active => style("active (inotify)").green(),
            WatchState::Degraded => {
                style("degraded: some directories are swept instead of watched").yellow()
            }
            WatchState::Polling => {
                style("polling: the file system does not report all changes").yellow()
            }
            WatchState::Absent => style("absent: the cache directory does not exist yet").yellow(),
            _ => style("unknown"),
        },
    )?;
    line(
        "next expiry",
        &stats.next_expiry.map_or("none".to_owned(), |at| {
            format!("in {} ({})", output::time_left(at, now), output::local(at))
        }),
    )?;
    line("waiting", &stats.heap_size)?;
    if stats.dry_run {
        let would = format!("{} deleted, {} evicted", stats.would_delete, stats.would_evict);
        line("dry run", &style(format!("nothing is deleted; would have: {would}")).yellow())?;
    }
    line("deleted", &stats.total_deleted)?;
    line("freed", &BinaryBytes(stats.total_freed_bytes))?;
    if let Some(size) = stats.size_bytes {
        line("on disk", &used(size, stats.max_size_bytes, "of"))?;
    }
    if let Some(free) = stats.free_bytes {
        line("disk free", &used(free, stats.min_free_bytes, "to stay free:"))?;
    }
    if stats.size_bytes.is_some() {
        let bytes = BinaryBytes(stats.total_evicted_bytes);
        line("evicted", &format!("{} before they expired, {bytes} on disk", stats.total_evicted))?;
    }
    if stats.total_orphans_removed > 0 || stats.total_directories_pruned > 0 {
        let freed = BinaryBytes(stats.total_orphan_bytes_freed);
        let (orphans, pruned) = (stats.total_orphans_removed, stats.total_directories_pruned);
        line("besides", &format!("{orphans} orphans, {freed}, and {pruned} empty directories"))?;
    }
    let errors = style(stats.total_errors);
    line("errors", &if stats.total_errors > 0 { errors.red() } else { errors })?;
    let interval =
        output::duration(Duration::from_secs_f64(stats.check_interval_hours.max(0.0) * 3600.0));
    line("sweeps", &format!("{}, every {interval}", stats.total_cleanups))?;
    if let Some(recent) = &stats.recent {
        draw_recent(&mut text, recent, &stats.cache_directory, now)?;
    }
    if let Some(buckets) = &stats.expiring {
        draw_bars(&mut text, buckets)?;
    }
    Ok(text)
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
        let took = last.report.duration_ms / 1000.0;
        writeln!(
            text,
            "{}  {ago} ago, deleted {deleted} of {checked} in {took:.3} s",
            style("last sweep ").dim()
        )?;
    }
    for error in recent.errors.iter().take(ERRORS) {
        let path = Path::new(&error.path);
        let path = display_path(path.strip_prefix(cache_dir).unwrap_or(path));
        writeln!(text, "{}  {path}: {}", style("error      ").red(), error.reason)?;
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
        writeln!(text, "{span:>12}  {} {}", style(bar).cyan(), bucket.count)?;
    }
    Ok(())
}
