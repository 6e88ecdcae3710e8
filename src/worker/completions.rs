//! Processes the completions that the executor's threads send.

use std::time::{Duration, Instant};

use super::{ActiveSweep, MAX_CHANGES_PAUSE, MIN_CHANGES_PAUSE, Worker};
use crate::display::path_field;
use crate::pair::change::WatchError;
use crate::pair::name::Half;
use crate::pair::outcome::JobResult;
use crate::pair::outcome::OrphanPass;
use crate::pair::outcome::Summary;
use crate::pair::tally::Tally;
use crate::schedule::orphans::Due;
use crate::schedule::{ErrorNotice, ScanId, Source};
use crate::sys::clock::Now;
use crate::worker::executor::{Completion, Generation};

impl Worker {
    pub(super) fn complete(&mut self, event: Completion) -> Result<(), String> {
        match event {
            Completion::Jobs { generation, found, took, holds } => {
                self.executor.attended(holds);
                self.complete_jobs(found, generation, took);
            }
            Completion::Claims { generation, found, took } => {
                self.executor.finished();
                self.complete_jobs(found, generation, took);
            }
            Completion::ScanBatch { generation, id, found } => {
                let tally =
                    Tally { checked: 0, ..self.settle(found, generation, Source::Scan(id)) };
                self.recorder.count(tally, self.clock.now());
                match self.run_of(generation, id) {
                    Some(run) => run.tally += tally,
                    // The result of this scan is obsolete, but its deletions still count.
                    None => self.recorder.between(tally),
                }
            }
            Completion::ScanEnded { generation, id, summary, took } => {
                self.scan_ended(generation, id, summary, took);
            }
            Completion::Orphans { generation, pass, took } => {
                self.tidying = false;
                self.pass(generation, pass, took);
            }
            Completion::RootProbed(cache_root) => self.probed(cache_root),
            Completion::Panicked(message) => return Err(message),
        }
        Ok(())
    }

    fn complete_jobs(&mut self, found: Vec<JobResult>, generation: Generation, took: Duration) {
        let tally = Tally { duration: took, ..self.settle(found, generation, Source::Job) };
        self.recorder.count(tally, self.clock.now());
        self.recorder.between(tally);
    }

    fn settle(&mut self, found: Vec<JobResult>, generation: Generation, source: Source) -> Tally {
        let now = self.clock.now();
        let mut tally = Tally::default();
        for found in found {
            let result = || self.root().join(found.key.path(Half::Result));
            self.recorder.found(&found.outcome, result);
            tally += if generation == self.executor.generation() {
                self.schedule.complete(found, source, now)
            } else {
                crate::schedule::figures_alone(&found.outcome)
            };
        }
        self.report_errors(now);
        tally
    }

    /// Records the errors that were counted.
    fn report_errors(&mut self, now: Now) {
        for ErrorNotice { path, reason } in self.schedule.take_errors() {
            self.recorder.error(&self.root().join(path), reason, now);
        }
    }

    fn run_of(&mut self, generation: Generation, id: ScanId) -> Option<&mut ActiveSweep> {
        let current = generation == self.executor.generation();
        [&mut self.full, &mut self.trees].into_iter().flatten().find(|run| current && run.id == id)
    }

    pub(super) fn scan_ended(
        &mut self,
        generation: Generation,
        id: ScanId,
        mut summary: Summary,
        took: Duration,
    ) {
        let cancelled = generation != self.executor.generation() || self.executor.is_cancelled();
        let results = summary.results;
        let refused = summary.refused.take();
        let astray = summary.astray;
        let worked = took.saturating_sub(summary.waited);
        let now = self.clock.now();
        if generation == self.executor.generation() {
            self.orphans.note(std::mem::take(&mut summary.orphans), now);
        }
        let end = if cancelled {
            Tally { deleted: summary.finished, freed_bytes: summary.freed, ..Tally::default() }
        } else {
            self.schedule.end_scan(id, summary, now)
        };
        self.report_errors(now);
        self.recorder.count(end, now);
        if generation != self.executor.generation() {
            return self.recorder.between(end);
        }
        let full = self.full.take_if(|run| run.id == id);
        let is_full = full.is_some();
        let Some(mut run) = full.or_else(|| self.trees.take_if(|run| run.id == id)) else { return };
        run.tally += end;
        run.tally.checked = results;
        run.tally.duration = took;
        if astray {
            self.on_events_lost();
        }
        if !is_full {
            self.next_trees = Instant::now() + took.clamp(MIN_CHANGES_PAUSE, MAX_CHANGES_PAUSE);
            // A flooded directory may be so large that it can't be listed every second.
            self.next_flood_list = self.next_flood_list.max(Instant::now() + worked);
        }
        if cancelled || !is_full {
            self.recorder.between(run.tally);
            if let Some(refused) = refused.filter(|_| !cancelled) {
                if let Some(full) = &mut self.full {
                    full.refused_meanwhile = true;
                }
                self.refused_by(Some(refused));
            }
            return;
        }
        if refused.is_some() || !run.refused_meanwhile {
            self.refused_by(refused);
        }
        self.sweeps.ended(now.mono, worked, self.sweep_interval());
        let report = self.recorder.swept(run.tally, now);
        tracing::info!(
            deleted = report.deleted_count,
            freed_bytes = report.freed_bytes,
            checked = report.checked_count,
            errors = report.errors,
            duration_ms = report.duration_ms,
            "Cleanup completed"
        );
        for waiter in run.waiters {
            let _ = waiter.send(Ok(report));
        }
    }

    fn refused_by(&mut self, refused: Option<(u64, WatchError)>) {
        match refused {
            Some((count, refusal)) if self.refused.as_ref() < Some(&refusal) => {
                self.executor.log_unwatched(self.root(), count, self.fallback_interval, &refusal);
                self.refused = Some(refusal);
            }
            None if self.refused.is_some() => {
                tracing::info!("all directories are watched again");
                self.refused = None;
            }
            _ => {}
        }
        self.sweeps.at_the_latest(Instant::now(), self.sweep_interval());
    }

    fn pass(&mut self, generation: Generation, pass: Vec<(Due, OrphanPass)>, took: Duration) {
        let now = self.clock.now();
        self.orphans.ended(took, now);
        let mut tally = Tally { duration: took, ..Tally::default() };
        for (due, mut pass) in pass {
            tally.orphans += pass.removed;
            tally.errors += pass.failures.len() as u64;
            if generation != self.executor.generation() {
                continue;
            }
            let is_first = self.orphans.settle(due, &mut pass, now);
            for (path, failure) in &pass.failures {
                let path = self.root().join(path);
                if is_first {
                    tracing::warn!(path = path_field(&path), "{failure}");
                } else {
                    tracing::debug!(path = path_field(&path), reason = %failure, "still failing");
                }
                self.recorder.error(&path, failure.to_string(), now);
            }
        }
        self.recorder.count(tally, now);
        self.recorder.between(tally);
    }
}
