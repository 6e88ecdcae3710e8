//! `result-cleaner sweep`: deletes expired results once.

use std::io::{self, Write};
use std::sync::Arc;

use clap::Args;
use indicatif::BinaryBytes;
use result_cleaner::{Progress, SweepOptions, SweepReport, sweep_with};
use serde::Serialize;

use crate::cli::output::counted;
use crate::cli::progress::ProgressLine;
use crate::cli::{
    CommandError, DeletionArgs, DirectoryArg, block_on, log, output, switch, verbosity,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  result-cleaner sweep --dry-run         count what would be deleted
  result-cleaner sweep ~/cache --json    for scripts
  result-cleaner sweep --remove-orphans 1d --prune-empty-dirs 7d
  result-cleaner sweep --max-size 1G --dry-run -v    list what would be evicted

Exit status: 0 even if single files had errors, which are counted and logged.")]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    directory: DirectoryArg,
    /// Delete nothing, count what would be deleted
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_DRY_RUN")]
    dry_run: bool,
    #[command(flatten)]
    deletions: DeletionArgs,
    /// Log each result that is deleted or evicted, or would be
    #[arg(short, long, action = clap::ArgAction::Count, value_parser = verbosity, env = "RESULT_CLEANER_VERBOSE")]
    verbose: u8,
    /// Print one JSON object
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_JSON")]
    json: bool,
}

/// The report as JSON.
#[derive(Serialize)]
struct SweepLine<'a> {
    #[serde(flatten)]
    report: &'a SweepReport,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

pub(crate) fn execute(args: SweepArgs) -> Result<(), CommandError> {
    let line = ProgressLine::new(args.dry_run);
    log::start_with_progress(line.clone(), args.verbose > 0);
    let mut config = args.directory.config();
    args.deletions.apply(&mut config);
    let progress = Arc::new(Progress::default());
    let options = SweepOptions::default().with_dry_run(args.dry_run);
    let sweep = sweep_with(&config, options.with_progress(Arc::clone(&progress)));
    let report = block_on(async { Ok(line.show_while(progress, sweep).await?) })?;
    output::print(|out| {
        if args.json {
            let line = SweepLine { report: &report, dry_run: args.dry_run };
            return writeln!(out, "{}", serde_json::to_string(&line)?);
        }
        print_report(out, &report, args.dry_run)
    })?;
    Ok(())
}

fn print_report(out: &mut dyn Write, report: &SweepReport, dry_run: bool) -> io::Result<()> {
    writeln!(
        out,
        "{} {} of {} results, {} {}, {}, in {:.3} s",
        if dry_run { "would delete" } else { "deleted" },
        report.deleted_count,
        report.checked_count,
        BinaryBytes(report.freed_bytes),
        if dry_run { "to free" } else { "freed" },
        counted(report.errors, "error"),
        report.duration.as_secs_f64(),
    )?;
    if let Some(evictions) = report.evictions {
        writeln!(
            out,
            "{} {}, {} on disk",
            if dry_run { "would evict" } else { "evicted" },
            match evictions.evicted_count {
                1 => "1 result before it expires".to_owned(),
                count => format!("{count} results before they expire"),
            },
            BinaryBytes(evictions.evicted_bytes),
        )?;
    }
    let Some(orphans) = report.orphans else { return Ok(()) };
    writeln!(
        out,
        "{} {}, {} {}, and {}",
        if dry_run { "would remove" } else { "removed" },
        counted(orphans.orphans_removed, "orphan"),
        BinaryBytes(orphans.orphan_bytes_freed),
        if dry_run { "to free" } else { "freed" },
        match orphans.directories_pruned {
            1 => "1 empty directory".to_owned(),
            count => format!("{count} empty directories"),
        },
    )
}
