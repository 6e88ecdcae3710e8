//! Taking in what the threads tell.

use std::time::{Duration, Instant};

use super::{MAX_NEWS_PAUSE, NEWS_PAUSE, Run, Worker};
use crate::display::path_field;
use crate::pair::change::WatchError;
use crate::pair::name::Half;
use crate::pair::outcome::JobResult;
use crate::pair::outcome::OrphanPass;
use crate::pair::outcome::Summary;
use crate::pair::tally::Tally;
use crate::schedule::orphans::Due;
use crate::schedule::{Notice, ScanId, Source};
use crate::sys::clock::Now;
use crate::telemetry::reports::Reports;
use crate::worker::executor::{Epoch, Event};

impl<R: Reports> Worker<R> {
    pub(super) fn take_in(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Attended { epoch, found, took, holds } => {
                self.crew.attended(holds);
                self.jobs_done(found, epoch, took);
            }
            Event::Finished { epoch, found, took } => {
                self.crew.finished();
                self.jobs_done(found, epoch, took);
            }
            Event::Scanned { epoch, id, found } => {
                let activity = Tally { checked: 0, ..self.settle(found, epoch, Source::Scan(id)) };
                self.accounts.count(activity, self.clock.now());
                match self.run_of(epoch, id) {
                    Some(run) => run.activity += activity,
                    // Its scan is of no interest any more, but what it did is.
                    None => self.accounts.between(activity),
                }
            }
            Event::ScanEnded { epoch, id, summary, took } => {
                self.scan_ended(epoch, id, summary, took);
            }
            Event::OrphanPass { epoch, pass, took } => {
                self.tidying = false;
                self.pass(epoch, pass, took);
            }
            Event::Probed(place) => self.probed(place),
            Event::Died(message) => return Err(message),
        }
        Ok(())
    }

    fn jobs_done(&mut self, found: Vec<JobResult>, epoch: Epoch, took: Duration) {
        let activity = Tally { duration: took, ..self.settle(found, epoch, Source::Job) };
        self.accounts.count(activity, self.clock.now());
        self.accounts.between(activity);
    }

    fn settle(&mut self, found: Vec<JobResult>, epoch: Epoch, source: Source) -> Tally {
        let now = self.clock.now();
        let mut activity = Tally::default();
        for found in found {
            let result = || self.root().join(found.key.path(Half::Result));
            self.accounts.found(&found.outcome, result);
            activity += if epoch == self.crew.epoch() {
                self.agenda.settle(found, source, now)
            } else {
                crate::schedule::figures_alone(&found.outcome)
            };
        }
        self.tell_notices(now);
        activity
    }

    /// Tells of the errors that were counted.
    fn tell_notices(&mut self, now: Now) {
        for Notice { path, reason } in self.agenda.take_notices() {
            self.accounts.error(&self.root().join(path), reason, now);
        }
    }

    fn run_of(&mut self, epoch: Epoch, id: ScanId) -> Option<&mut Run> {
        let current = epoch == self.crew.epoch();
        [&mut self.full, &mut self.trees].into_iter().flatten().find(|run| current && run.id == id)
    }

    pub(super) fn scan_ended(
        &mut self,
        epoch: Epoch,
        id: ScanId,
        mut summary: Summary,
        took: Duration,
    ) {
        let cancelled = epoch != self.crew.epoch() || self.crew.is_cancelled();
        let results = summary.results;
        let refused = summary.refused.take();
        let astray = summary.astray;
        let worked = took.saturating_sub(summary.waited);
        let now = self.clock.now();
        if epoch == self.crew.epoch() {
            self.litter.note(std::mem::take(&mut summary.litter), now);
        }
        let end = if cancelled {
            Tally { deleted: summary.finished, freed_bytes: summary.freed, ..Tally::default() }
        } else {
            self.agenda.end_scan(id, summary, now)
        };
        self.tell_notices(now);
        self.accounts.count(end, now);
        if epoch != self.crew.epoch() {
            return self.accounts.between(end);
        }
        let full = self.full.take_if(|run| run.id == id);
        let is_full = full.is_some();
        let Some(mut run) = full.or_else(|| self.trees.take_if(|run| run.id == id)) else { return };
        run.activity += end;
        run.activity.checked = results;
        run.activity.duration = took;
        if astray {
            self.lost_track();
        }
        if !is_full {
            self.next_trees = Instant::now() + took.clamp(NEWS_PAUSE, MAX_NEWS_PAUSE);
            // A flooded directory may be so large that it can't be listed every second.
            self.next_flood_list = self.next_flood_list.max(Instant::now() + worked);
        }
        if cancelled || !is_full {
            self.accounts.between(run.activity);
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
        let report = self.accounts.swept(run.activity, now);
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
                self.crew.tell_refused(self.root(), count, self.fallback_interval, &refusal);
                self.refused = Some(refusal);
            }
            None if self.refused.is_some() => {
                tracing::info!("every directory is watched again");
                self.refused = None;
            }
            _ => {}
        }
        self.sweeps.at_the_latest(Instant::now(), self.sweep_interval());
    }

    fn pass(&mut self, epoch: Epoch, pass: Vec<(Due, OrphanPass)>, took: Duration) {
        let now = self.clock.now();
        self.litter.ended(took, now);
        let mut activity = Tally { duration: took, ..Tally::default() };
        for (due, mut pass) in pass {
            activity.litter += pass.removed;
            activity.errors += pass.failures.len() as u64;
            if epoch != self.crew.epoch() {
                continue;
            }
            let is_first = self.litter.settle(due, &mut pass, now);
            for (path, failure) in &pass.failures {
                let path = self.root().join(path);
                if is_first {
                    tracing::warn!(path = path_field(&path), "{failure}");
                } else {
                    tracing::debug!(path = path_field(&path), reason = %failure, "still failing");
                }
                self.accounts.error(&path, failure.to_string(), now);
            }
        }
        self.accounts.count(activity, now);
        self.accounts.between(activity);
    }
}
