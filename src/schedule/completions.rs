//! What the core makes of the completions that threads report.

use std::time::Duration;

use super::command::{Command, CountedError, Notice};
use super::core::{Core, FullScan};
use super::input::{Completion, Generation, orphans_tally};
use super::orphans::Due;
use super::{ScanId, Source};
use crate::pair::change::WatchError;
use crate::pair::outcome::{JobResult, OrphanPass, Summary};
use crate::pair::tally::Tally;
use crate::sys::clock::Now;

impl Core {
    pub(super) fn completed(&mut self, generation: Generation, completion: Completion, now: Now) {
        if generation != self.generation {
            // It is about another cache directory, but what was deleted there still counts.
            return self.count_outside_sweeps(completion.tally());
        }
        self.release(&completion, now);
        self.count_freed(completion.outcomes());
        match completion {
            Completion::Jobs { found, took, evicted, .. }
            | Completion::Claims { found, took, evicted } => {
                let tally = self.apply_outcomes(found, Source::Job, now);
                self.count_outside_sweeps(Tally { duration: took, ..tally });
                if let Some(batch) = evicted {
                    self.batch_evicted(batch, now);
                }
            }
            Completion::ScanBatch { id, found } => {
                for waiting in found.waiting {
                    self.schedule.scan_found_waiting(id, waiting, now);
                }
                let tally = Tally {
                    checked: 0,
                    ..self.apply_outcomes(found.others, Source::Scan(id), now)
                };
                self.command(Command::Count(tally));
                match &mut self.full_scan {
                    Some(full) if full.id == id && !self.is_stopping => full.tally += tally,
                    _ => self.command(Command::CountOutsideSweeps(tally)),
                }
            }
            Completion::ScanEnded { id, summary, took } => self.scan_ended(id, *summary, took, now),
            Completion::Orphans { pass, took } => {
                self.count_outside_sweeps(orphans_tally(&pass, took));
                self.orphans_removed(pass, now);
            }
        }
    }

    /// Frees the slot of the work that has ended.
    fn release(&mut self, completion: &Completion, now: Now) {
        match completion {
            Completion::Jobs { holds, .. } => self.slots.jobs_done(*holds),
            Completion::Claims { .. } => self.slots.claims_done(),
            Completion::Orphans { took, .. } => {
                self.is_searching_orphans = false;
                self.orphans.ended(*took, now);
            }
            Completion::ScanBatch { .. } | Completion::ScanEnded { .. } => {}
        }
    }

    fn apply_outcomes(&mut self, found: Vec<JobResult>, source: Source, now: Now) -> Tally {
        let mut tally = Tally::default();
        for found in found {
            tally += self.schedule.complete(found, source, now);
        }
        tally
    }

    fn scan_ended(&mut self, id: ScanId, mut summary: Summary, took: Duration, now: Now) {
        let refused = summary.refused.take();
        let (watched_wrong_path, results) = (summary.watched_wrong_path, summary.results);
        let worked = took.saturating_sub(summary.waited);
        self.orphans.note(std::mem::take(&mut summary.orphans), now);
        // A scan that was cancelled did not see everything.
        let end = if self.is_stopping {
            Tally::default()
        } else {
            self.schedule.end_scan(id, summary, now)
        };
        self.command(Command::Count(end));
        let end = Tally { checked: results, duration: took, ..end };
        if watched_wrong_path {
            self.events_lost();
        }
        match self.full_scan.take_if(|full| full.id == id) {
            Some(full) if !self.is_stopping => self.sweep_ended(full, end, refused, worked, now),
            Some(_) => self.command(Command::CountOutsideSweeps(end)),
            None => {
                self.flooded.rest_until(now.mono + worked);
                self.subtree_scan_ended(end, refused, now);
            }
        }
    }

    fn subtree_scan_ended(&mut self, end: Tally, refused: Option<(u64, WatchError)>, now: Now) {
        self.subtree_scan = None;
        self.pause_rescans(end.duration, now);
        self.command(Command::CountOutsideSweeps(end));
        if refused.is_some() {
            if let Some(full) = &mut self.full_scan {
                full.refused_meanwhile = true;
            }
            self.refused_by(refused, now);
        }
    }

    fn sweep_ended(
        &mut self,
        full: FullScan,
        end: Tally,
        refused: Option<(u64, WatchError)>,
        worked: Duration,
        now: Now,
    ) {
        let FullScan { mut tally, requests, refused_meanwhile, .. } = full;
        tally += end;
        if refused.is_some() || !refused_meanwhile {
            self.refused_by(refused, now);
        }
        self.sweeps.ended(now.mono, worked, self.sweep_interval());
        self.scanned(now);
        self.command(Command::SweepDone(tally, requests));
    }

    /// Records how many directories the kernel refused to watch, and why.
    fn refused_by(&mut self, refused: Option<(u64, WatchError)>, now: Now) {
        match refused {
            Some((count, refusal)) if self.refused.as_ref() < Some(&refusal) => {
                self.report(Notice::Unwatched(count, refusal.clone()));
                self.refused = Some(refusal);
            }
            None if self.refused.is_some() => {
                self.report(Notice::WatchedAgain);
                self.refused = None;
            }
            _ => {}
        }
        self.sweeps.at_the_latest(now.mono, self.sweep_interval());
    }

    fn orphans_removed(&mut self, pass: Vec<(Due, OrphanPass)>, now: Now) {
        for (due, mut pass) in pass {
            let is_first = self.orphans.complete(due, &mut pass, now);
            for (path, failure) in pass.failures {
                let error = CountedError::Failed { failure, is_first, retry_in: None };
                self.report(Notice::Error(path, error));
            }
        }
    }
}
