//! This program: as a library, as a service in this process, and as a command.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use result_cleaner::{Cleaner, Config, Stats, SweepReport, sweep_dry_run, sweep_once};
use tokio::runtime::{Builder, Runtime};

use crate::measure::{Outcome, check, wait_until};
use crate::tree::Tree;
use crate::usage::{Cost, Who, charged};

pub const BINARY: &str = env!("CARGO_BIN_EXE_result-cleaner");

/// A runtime as the command line has it.
pub fn runtime() -> Outcome<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Sweeps `tree`, in which nothing has expired, without deleting anything.
pub fn look(runtime: &Runtime, tree: &Tree) -> Outcome<Cost> {
    let config = Config::new(tree.path());
    let (cost, report) = charged(Who::Process, || runtime.block_on(sweep_dry_run(&config)))?;
    check_report(report, tree, 0)?;
    Ok(cost)
}

/// The same by the command.
pub fn look_by_command(binary: &Path, tree: &Tree) -> Outcome<Cost> {
    let (cost, report) = command(binary, tree.path(), &["--dry-run"])?;
    check_report(report, tree, 0)?;
    Ok(cost)
}

/// Sweeps `tree`, all of which has expired.
pub fn delete(runtime: &Runtime, tree: &Tree) -> Outcome<Cost> {
    let config = Config::new(tree.path());
    let (cost, report) = charged(Who::Process, || runtime.block_on(sweep_once(&config)))?;
    check_report(report, tree, tree.pairs())?;
    Ok(cost)
}

/// The same by the command.
pub fn delete_by_command(tree: &Tree) -> Outcome<Cost> {
    delete_by_command_with(tree, &[])
}

/// The same with flags.
pub fn delete_by_command_with(tree: &Tree, flags: &[&str]) -> Outcome<Cost> {
    delete_by(BINARY.as_ref(), tree, flags)
}

/// The same by another build of the command.
pub fn delete_by(binary: &Path, tree: &Tree, flags: &[&str]) -> Outcome<Cost> {
    let (cost, report) = command(binary, tree.path(), flags)?;
    check_report(report, tree, tree.pairs())?;
    Ok(cost)
}

fn command(binary: &Path, root: &Path, flags: &[&str]) -> Outcome<(Cost, SweepReport)> {
    let mut command = Command::new(binary);
    command.arg("sweep").arg(root).arg("--json").args(flags);
    let (cost, output) = charged(Who::Children, || command.output())?;
    check(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    Ok((cost, serde_json::from_slice(&output.stdout)?))
}

fn check_report(report: SweepReport, tree: &Tree, deleted: usize) -> Outcome {
    let counts = (report.checked_count, report.deleted_count, report.errors);
    let expected = (tree.pairs() as u64, deleted as u64, 0);
    check(counts == expected, format_args!("{report:?}, not {expected:?}"))
}

/// A cleaner that runs in this process.
pub struct Service {
    // Dropped first, so that it is stopped while its runtime is there.
    pub cleaner: Cleaner,
    pub runtime: Runtime,
}

impl Service {
    pub fn start(root: &Path) -> Outcome<Self> {
        let runtime = runtime()?;
        let config = Config::new(root).without_metrics();
        let cleaner = runtime.block_on(Cleaner::spawn(config))?;
        Ok(Self { cleaner, runtime })
    }

    pub fn stats(&self) -> Stats {
        self.cleaner.get_stats()
    }

    /// Waits until the first scan is done; when that was.
    pub fn wait_for_first_scan(&self) -> Outcome<Instant> {
        wait_until("the first scan", Duration::from_micros(200), || {
            self.stats().total_cleanups > 0
        })?;
        Ok(Instant::now())
    }

    /// A full sweep of `tree`, in which nothing has expired.
    pub fn sweep(&self, tree: &Tree) -> Outcome<Cost> {
        let (cost, report) = charged(Who::Process, || self.runtime.block_on(self.cleaner.sweep()))?;
        check_report(report, tree, 0)?;
        Ok(cost)
    }

    pub fn stop(self) -> Outcome {
        Ok(self.runtime.block_on(self.cleaner.stop())?)
    }
}
