//! Sweeps and listings that run once, without a service.
//!
//! Longer than other files: the public functions have examples.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::evict::{Candidates, evict};
use super::options::{Progress, SweepOptions};
use crate::config::Config;
use crate::disk::root::Root;
use crate::display::path_field;
use crate::error::Error;
use crate::jobs::context::JobContext;
use crate::jobs::orphans;
use crate::jobs::pairs::PairProcessor;
use crate::jobs::scan::Scan;
use crate::pair::name::{Half, PairKey};
use crate::pair::outcome::{
    Failure, Job, JobResult, OrphanCandidates, Outcome, ScanFound, Summary,
};
use crate::pair::reason::{DIRECTORY_UNREADABLE, INVALID_METADATA, NOT_RECOVERED, WOULD_DELETE};
use crate::pair::tally::{self, ErrorKind, Tally};
use crate::pair::version::{FileState, FileTime, SETTLE_TIME, Version};
use crate::sys::clock::Clock;
use crate::sys::runtime::joined;
use crate::telemetry::stats::{EvictionReport, OrphanReport, SweepReport};

/// Deletes the results that have expired now, without a running service.
///
/// If a result may be half published, or metadata may be half written, this function inspects it again
/// after a second, before it returns. If the cache directory does not exist, the report is all zeros.
/// Nothing is reported to the metrics service. With [`Config::dry_run`], this is [`sweep_dry_run`].
///
/// # Errors
/// [`Error::NotADirectory`] and [`Error::Unreadable`] for the cache directory, and the errors of an
/// invalid configuration. Failures of single files are counted in the report.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # std::fs::write(dir.path().join("a.result.json.lz4"), "data").unwrap();
/// # std::fs::write(dir.path().join("a.metadata.json"), r#"{"expires_at": 1.5}"#).unwrap();
/// let config = result_cleaner::Config::new(dir.path());
/// let report = result_cleaner::sweep_once(&config).await?;
/// assert_eq!((report.deleted_count, report.checked_count), (1, 1));
/// # Ok(())
/// # }
/// ```
pub async fn sweep_once(config: &Config) -> Result<SweepReport, Error> {
    sweep_with(config, SweepOptions::default()).await
}

/// Counts what [`sweep_once`] would delete, and deletes nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// let report = result_cleaner::sweep_dry_run(&result_cleaner::Config::new(dir.path())).await?;
/// println!("{} bytes could be freed", report.freed_bytes);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As for [`sweep_once`].
pub async fn sweep_dry_run(config: &Config) -> Result<SweepReport, Error> {
    sweep_with(config, SweepOptions::default().with_dry_run(true)).await
}

/// Sweeps like [`sweep_once`], with these options.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// use std::sync::Arc;
/// use result_cleaner::{Config, Progress, SweepOptions, sweep_with};
/// let progress = Arc::new(Progress::default());
/// let options = SweepOptions::default().with_dry_run(true).with_progress(Arc::clone(&progress));
/// let report = sweep_with(&Config::new(dir.path()), options).await?;
/// assert_eq!(progress.deleted(), report.deleted_count);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As for [`sweep_once`].
pub async fn sweep_with(config: &Config, options: SweepOptions) -> Result<SweepReport, Error> {
    let SweepOptions { dry_run, progress } = options;
    let clock = Arc::new(Clock::default());
    let context = if dry_run || config.dry_run {
        JobContext::inspecting(clock, config)
    } else {
        JobContext::deleting(clock, config)
    };
    let progress = progress.unwrap_or_default();
    on_thread(config, move |root| sweep(root, &context, &progress)).await
}

/// Runs `work` on the cache directory, on a thread that may block. Returns the default value if there is
/// no such directory.
pub(super) async fn on_thread<T: Default + Send + 'static>(
    config: &Config,
    work: impl FnOnce(&Root) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let runtime = crate::sys::runtime::current()?;
    config.validate()?;
    let path = config.expanded_cache_dir()?;
    let task = runtime.spawn_blocking(move || match Root::at(&path)? {
        Some(root) => work(&root),
        None => {
            tracing::warn!(
                path = path_field(&path),
                "the cache directory does not exist, nothing to do"
            );
            Ok(T::default())
        }
    });
    joined(task.await)
}

/// Scans the cache directory, and passes what it finds to `found`.
///
/// # Errors
/// [`Error::Unreadable`] if the cache directory itself could not be read.
pub(super) fn scan(
    root: &Root,
    context: &JobContext,
    found: &(dyn Fn(ScanFound) + Sync),
) -> Result<Summary, Error> {
    let cancel = AtomicBool::new(false);
    let scan = Scan { root, watcher: None, context, cancel: &cancel, found };
    let mut summary = scan.run(&[Path::new("").into()], &[]);
    let own = summary.unreadable.iter().position(|(dir, _)| dir.as_os_str().is_empty());
    match own.map(|at| summary.unreadable.swap_remove(at)) {
        Some((_, source)) => Err(Error::Unreadable { path: root.path().to_owned(), source }),
        None => Ok(summary),
    }
}

/// Scans the cache directory, and calls `add` to add what it finds to `into`.
///
/// # Errors
/// As for [`scan`].
pub(super) fn scan_into<T: Send>(
    root: &Root,
    context: &JobContext,
    into: T,
    add: impl Fn(&mut T, ScanFound) + Sync,
) -> Result<(Summary, T), Error> {
    let into = Mutex::new(into);
    let summary = scan(root, context, &|found| {
        add(&mut into.lock().unwrap_or_else(PoisonError::into_inner), found);
    })?;
    Ok((summary, into.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

fn sweep(root: &Root, context: &JobContext, progress: &Progress) -> Result<SweepReport, Error> {
    let start = Instant::now();
    let has_budget = context.budget().is_some();
    let state = SweepState { root: root.path().to_owned(), has_budget, ..SweepState::default() };
    let (summary, mut state) = scan_into(root, context, state, |state, found| {
        let checked = found.len();
        if state.has_budget {
            found.waiting.into_iter().for_each(|found| state.candidates.add_waiting(found));
        }
        found.others.into_iter().for_each(|found| state.add(found, None));
        progress.set(&state.tally, checked);
    })?;
    state.tally.checked = summary.results;
    for (path, error) in summary.unreadable {
        state.error(ErrorKind::Directory, &path, DIRECTORY_UNREADABLE, &error);
    }
    for (path, error) in summary.not_recovered {
        state.error(ErrorKind::Recovery, &path, NOT_RECOVERED, &error);
    }
    let orphans = Orphans::find(root, context, summary.orphans);
    let removed = context.run(root, false, || finish_sweep(root, context, &orphans, &mut state));
    progress.set(&state.tally, 0);
    state.tally.duration = start.elapsed();
    let evictions = has_budget.then(|| EvictionReport::from(state.tally));
    Ok(SweepReport { orphans: removed, evictions, ..SweepReport::from(state.tally) })
}

/// Decides about the pairs that had to settle first, removes the orphans, and evicts pairs.
fn finish_sweep(
    root: &Root,
    context: &JobContext,
    orphans: &Orphans,
    state: &mut SweepState,
) -> Option<OrphanReport> {
    let rechecks = std::mem::take(&mut state.rechecks);
    if let Some(wait) = rechecks
        .iter()
        .map(|recheck| recheck.wait)
        .chain(orphans.wait().filter(|_| context.deletes()))
        .max()
    {
        thread::sleep(wait);
    }
    let job = |recheck: &Recheck| {
        let settled = match recheck.seen {
            Settling::Result(then) => Some(then),
            Settling::Metadata(..) => None,
        };
        Job { key: recheck.key.clone(), settled, evict: None }
    };
    let jobs: Vec<Job> = rechecks.iter().map(job).collect();
    let seen: HashMap<PairKey, Settling> =
        rechecks.into_iter().map(|recheck| (recheck.key, recheck.seen)).collect();
    let mut processor = PairProcessor::new(context, root);
    processor.process_jobs(&jobs, &AtomicBool::new(false));
    processor.finish();
    for found in processor.take_found() {
        let again = seen.get(&found.key).copied();
        state.add(found, again);
    }
    let removed = orphans.remove(root, context, state);
    // Whatever goes in any case has gone by now.
    if let Some(budget) = context.budget() {
        let mut candidates = std::mem::take(&mut state.candidates);
        for key in std::mem::take(&mut state.failed) {
            candidates.add_stuck(root, &key);
        }
        evict(root, context, budget, &candidates, state);
    }
    removed
}

/// The orphan candidates that a scan found.
struct Orphans {
    is_wanted: bool,
    /// Directories with candidates that are old enough, and these candidates.
    candidates: Vec<(Arc<Path>, OrphanCandidates)>,
    /// Files that could not be inspected, and why.
    failures: Vec<(PathBuf, Failure)>,
}

impl Orphans {
    /// Looks for orphan candidates in `dirs`.
    fn find(root: &Root, context: &JobContext, dirs: Vec<Arc<Path>>) -> Self {
        let inspecting = context.inspect_only();
        let is_wanted = context.orphan_ages().any();
        let mut orphans = Self { is_wanted, candidates: Vec::new(), failures: Vec::new() };
        for dir in dirs {
            let pass =
                orphans::search(root, &inspecting, &dir, &OrphanCandidates::default(), usize::MAX);
            if pass.candidates.is_empty() {
                orphans.failures.extend(pass.failures);
            } else {
                // Failed files are retried when the candidates are removed.
                orphans.candidates.push((dir, pass.candidates));
            }
        }
        orphans
    }

    /// Returns how long to wait before the removal: the other half of a candidate may be about to
    /// arrive.
    fn wait(&self) -> Option<Duration> {
        (!self.candidates.is_empty()).then_some(SETTLE_TIME)
    }

    /// Removes the candidates, unless the context only inspects. Returns `None` if the configuration
    /// does not ask for it.
    fn remove(
        &self,
        root: &Root,
        context: &JobContext,
        state: &mut SweepState,
    ) -> Option<OrphanReport> {
        let mut removed = tally::OrphanTally::default();
        for (path, failure) in &self.failures {
            state.fail(path, failure);
        }
        for (dir, candidates) in &self.candidates {
            if !context.deletes() {
                log_candidates(root, dir, candidates);
            }
            let pass = orphans::search(root, context, dir, candidates, 0);
            removed += pass.removed;
            for (path, failure) in pass.failures {
                state.fail(&path, &failure);
            }
        }
        self.is_wanted.then(|| OrphanReport::from(removed))
    }
}

/// Logs what a sweep would remove of the candidates in a directory, for those who want to see each.
fn log_candidates(root: &Root, dir: &Path, candidates: &OrphanCandidates) {
    let path = root.path().join(dir);
    for name in candidates.files.keys() {
        let path = path_field(&path.join(OsStr::from_bytes(name)));
        tracing::debug!(path, "would remove");
    }
    if candidates.directory.is_some() {
        tracing::debug!(path = path_field(&path), "would remove");
    }
}

/// The figures of a sweep, and the pairs that it has to inspect again before it can decide.
#[derive(Default)]
pub(super) struct SweepState {
    /// The cache directory, for the paths in log lines.
    root: PathBuf,
    has_budget: bool,
    pub(super) tally: Tally,
    rechecks: Vec<Recheck>,
    /// The pairs that could not be processed.
    failed: Vec<PairKey>,
    /// The pairs that have not expired, if there is a disk budget.
    candidates: Candidates,
}

/// A pair to inspect again after `wait`.
struct Recheck {
    key: PairKey,
    wait: Duration,
    seen: Settling,
}

/// The file that was given time to settle, in the state in which it was first seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Settling {
    Result(FileState),
    Metadata(Version, FileTime),
}

impl SweepState {
    /// Adds an outcome. `again` is the file that was seen before, if the pair is inspected again.
    pub(super) fn add(&mut self, found: JobResult, again: Option<Settling>) {
        let JobResult { key, outcome } = found;
        self.tally += Tally { checked: 0, ..outcome.tally() };
        match outcome {
            Outcome::NotDue { expires_at, size, .. } => self.candidates.add(key, expires_at, size),
            Outcome::Due { bytes, size, .. } => {
                let path = path_field(&self.root.join(key.path(Half::Result)));
                tracing::debug!(path, "{WOULD_DELETE}");
                self.tally.deleted += 1;
                self.tally.freed_bytes += bytes;
                self.candidates.add_due(size);
            }
            Outcome::Deleted { leftover: Some(failure), .. }
            | Outcome::Evicted { leftover: Some(failure), .. } => {
                self.log_failure(&key.path(Half::Metadata), &failure);
            }
            Outcome::Unsettled { result, wait, .. } => {
                // A result that keeps changing is not waited for again: it is being written.
                if again.is_none() {
                    self.rechecks.push(Recheck { key, wait, seen: Settling::Result(result) });
                }
            }
            Outcome::Broken { metadata, reason, wait, .. } => {
                let seen = seen_metadata(&metadata);
                if wait.is_zero() || again == Some(seen) {
                    let path = key.path(Half::Metadata);
                    self.error(ErrorKind::InvalidMetadata, &path, INVALID_METADATA, &reason);
                } else if again.is_none() {
                    self.rechecks.push(Recheck { key, wait, seen });
                }
            }
            Outcome::Failed(failure) | Outcome::RestoreFailed(failure) => {
                self.log_failure(&key.path(Half::Result), &failure);
                self.failed.push(key);
            }
            Outcome::Incomplete
            | Outcome::Changed
            | Outcome::ClaimedElsewhere
            | Outcome::Evictable { .. }
            | Outcome::Deleted { .. }
            | Outcome::Evicted { .. } => {}
        }
    }

    /// Counts and logs an error, with the fields that a running cleaner uses.
    pub(super) fn error(
        &mut self,
        kind: ErrorKind,
        path: &Path,
        message: &str,
        reason: &dyn Display,
    ) {
        self.tally.errors += kind;
        let path = path_field(&self.root.join(path));
        tracing::warn!(path, reason = reason.to_string(), "{message}");
    }

    /// Counts and logs a failure.
    fn fail(&mut self, path: &Path, failure: &Failure) {
        self.tally.errors += failure.kind();
        self.log_failure(path, failure);
    }

    /// Logs a failure as a running cleaner logs its first occurrence.
    fn log_failure(&self, path: &Path, failure: &Failure) {
        tracing::warn!(path = path_field(&self.root.join(path)), "{failure}");
    }
}

fn seen_metadata(metadata: &FileState) -> Settling {
    Settling::Metadata(metadata.version, metadata.ctime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_can_not_be_searched_for_orphans_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path()).unwrap().unwrap();
        let mut config = Config::new("x");
        config.remove_orphans = Some(Duration::from_secs(3600));
        let context = JobContext::deleting(Arc::new(Clock::default()), &config);
        let too_long: Arc<Path> = Path::new(&"x".repeat(300)).into();
        let orphans = Orphans::find(&root, &context, vec![too_long, Path::new("gone").into()]);
        let mut state = SweepState::default();
        assert!(orphans.remove(&root, &context, &mut state).is_some());
        assert_eq!(state.tally.errors.total(), 1);
    }
}
