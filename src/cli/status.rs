//! `result-cleaner status`: what a running service is doing.

use std::io::{self, Write};
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use console::Term;
use indicatif::BinaryBytes;
use result_cleaner::{Error, ExpiryBucket, Stats, WatchState, display_path, fetch_stats};

use super::{Failure, block_on, output, switch};

/// How often `--watch` draws.
const REDRAW: Duration = Duration::from_secs(1);
const BAR_WIDTH: u64 = 40;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Where the service listens
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
    /// Keep drawing, until interrupted
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_WATCH")]
    watch: bool,
}

pub(crate) fn execute(args: StatusArgs) -> Result<(), Failure> {
    block_on(show(args))
}

async fn show(args: StatusArgs) -> Result<(), Failure> {
    let terminal = Term::stdout();
    loop {
        let stats = fetch_stats(&args.url).await.map_err(|error| match error {
            Error::NoAnswer { .. } => Failure::from(format!(
                "{error}; start one with `result-cleaner run --listen 127.0.0.1:8004`"
            )),
            error => error.into(),
        })?;
        if args.watch && terminal.is_term() && !args.json {
            terminal.clear_screen()?;
        }
        let is_read = output::print(|out| {
            if args.json {
                return writeln!(out, "{}", output::json(&stats)?);
            }
            draw(out, &stats, Utc::now())
        })?;
        if !args.watch || !is_read {
            return Ok(());
        }
        tokio::time::sleep(REDRAW).await;
    }
}

fn draw(out: &mut dyn Write, stats: &Stats, now: DateTime<Utc>) -> io::Result<()> {
    let watch = match stats.watch {
        WatchState::Active => "every change is told by the kernel",
        WatchState::Degraded => "degraded: some directories are swept instead of watched",
        WatchState::Polling => "polling: the file system does not tell of changes",
        WatchState::Absent => "absent: the cache directory does not exist yet",
        _ => "unknown",
    };
    let next = stats.next_expiry.map_or("none".to_owned(), |at| {
        format!("in {} ({})", output::time_left(at, now), output::local(at))
    });
    writeln!(out, "cache        {}", display_path(&stats.cache_directory))?;
    writeln!(out, "running      {}", if stats.running { "yes" } else { "no" })?;
    writeln!(out, "watch        {watch}")?;
    writeln!(out, "next expiry  {next}")?;
    writeln!(out, "waiting      {}", stats.heap_size)?;
    writeln!(out, "deleted      {}", stats.total_deleted)?;
    writeln!(out, "freed        {}", BinaryBytes(stats.total_freed_bytes))?;
    writeln!(out, "errors       {}", stats.total_errors)?;
    writeln!(out, "sweeps       {}, every {} h", stats.total_cleanups, stats.check_interval_hours)?;
    match &stats.expiring {
        Some(buckets) => draw_bars(out, buckets),
        None => Ok(()),
    }
}

fn draw_bars(out: &mut dyn Write, buckets: &[ExpiryBucket]) -> io::Result<()> {
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(0).max(1);
    writeln!(out, "\nexpires within")?;
    for bucket in buckets {
        let span = bucket.within_seconds.map_or("later".to_owned(), |end| {
            humantime::format_duration(Duration::from_secs(end)).to_string()
        });
        // Whatever is there at all shows.
        let width = (bucket.count * BAR_WIDTH / most).max(u64::from(bucket.count > 0));
        let bar = "█".repeat(usize::try_from(width).unwrap_or(0));
        writeln!(out, "{span:>12}  {bar} {}", bucket.count)?;
    }
    Ok(())
}
