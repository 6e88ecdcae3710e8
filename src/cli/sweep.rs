//! `result-cleaner sweep`: one cleanup now.

use std::time::Duration;

use clap::Args;
use indicatif::BinaryBytes;
use result_cleaner::{sweep_dry_run, sweep_once};

use super::{Bounds, Directory, Failure, block_on, log, output, switch};

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    directory: Directory,
    /// Delete nothing, but count what would go
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_DRY_RUN")]
    dry_run: bool,
    #[command(flatten)]
    bounds: Bounds,
    /// Print one JSON object
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_JSON")]
    json: bool,
}

pub(crate) fn execute(args: SweepArgs) -> Result<(), Failure> {
    log::start_quietly();
    let mut config = args.directory.config();
    config.max_disk_time = args.bounds.max_disk_time;
    let report = block_on(async {
        let sweep =
            if args.dry_run { sweep_dry_run(&config).await } else { sweep_once(&config).await };
        Ok(sweep?)
    })?;
    output::print(|out| {
        if args.json {
            return writeln!(out, "{}", serde_json::to_string(&report)?);
        }
        let took = Duration::from_secs_f64(report.duration_ms / 1000.0);
        writeln!(
            out,
            "{} {} of {} results, {} {}, {} errors, in {:.3} s",
            if args.dry_run { "would delete" } else { "deleted" },
            report.deleted_count,
            report.checked_count,
            BinaryBytes(report.freed_bytes),
            if args.dry_run { "to free" } else { "freed" },
            report.errors,
            took.as_secs_f64(),
        )
    })?;
    Ok(())
}
