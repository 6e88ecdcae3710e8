//! What the schedule makes of the outcomes of jobs and scans.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::backoff::{backoff, changed_pause};
use super::command::{CountedError, Notice};
use super::half_written::confirm_at;
use super::waiting::WaitingSize;
use super::{Attempts, InFlight, ScanId, Schedule, Source};
use crate::pair::change::Trigger;
use crate::pair::name::{Half, PairKey};
use crate::pair::outcome::{Failure, JobResult, Outcome};
use crate::pair::tally::{ErrorKind, Errors, Tally};
use crate::pair::version::{Broken, FileState};
use crate::sys::clock::Now;

/// How often a pair may be found claimed by another cleaner before its directory is scanned. The scan
/// recovers the claims of cleaners that died.
const CLAIMS_BEFORE_RECOVERY: u32 = 2;
/// How often a pair may be found claimed by another cleaner before that counts as an error. The pauses
/// between these attempts take some 30 s: other cleaners that delete in the directory delay a recovery.
const CLAIMS_BEFORE_ERROR: u32 = 7;

impl Schedule {
    /// Applies an outcome and returns what it adds to the tally.
    pub(crate) fn complete(&mut self, found: JobResult, source: Source, now: Now) -> Tally {
        let JobResult { key, outcome } = found;
        let in_flight_pair = match source {
            Source::Job => self.in_flight.remove(&key).unwrap_or_default(),
            Source::Scan(id) => {
                if let Some(inspection) = self.inspection_if_contested(&key, id, &outcome) {
                    // It is unknown which of the two was read last: inspect the pair once more.
                    inspection.merge(Trigger::UNREPORTED);
                    self.apply_contested(&key, &outcome, now);
                    return outcome.tally();
                }
                InFlight { attempts: self.pending_attempts(&key), ..InFlight::default() }
            }
        };
        for scan in &mut self.scans {
            if source != Source::Scan(scan.id) && scan.scope.covers(&key.dir) {
                scan.note_changed(&key);
            }
        }
        let tally = self.apply(key.clone(), outcome, source, &in_flight_pair, now);
        if let Some(changes) = in_flight_pair.changes {
            self.apply_change(key, changes);
        }
        tally
    }

    /// Returns the trigger for another inspection if what scan `id` read of a pair may be outdated. This
    /// is so if the pair is in flight or vanished, or if another source updated it.
    fn inspection_if_contested(
        &mut self,
        key: &PairKey,
        id: ScanId,
        outcome: &Outcome,
    ) -> Option<&mut Trigger> {
        if let Some(in_flight_pair) = self.in_flight.get_mut(key) {
            return Some(in_flight_pair.changes.get_or_insert_default());
        }
        let scan = self.scans.iter_mut().find(|scan| scan.id == id)?;
        let still_exists = !matches!(
            outcome,
            Outcome::Deleted { .. } | Outcome::Evicted { .. } | Outcome::Incomplete
        );
        let has_vanished = scan.vanished.remove(key) && still_exists;
        (has_vanished || scan.may_be_outdated_on(key))
            .then(|| self.inspections.entry(key.clone()).or_default())
    }

    /// Reports what failed when a scan processed a pair that is inspected again in any case.
    fn apply_contested(&mut self, key: &PairKey, outcome: &Outcome, now: Now) {
        match outcome {
            Outcome::Failed(failure) => self.record_contested_failure(key, failure, now),
            Outcome::RestoreFailed(failure) => {
                self.record_contested_failure(key, failure, now);
                self.scan_later(&key.dir, now);
            }
            Outcome::Deleted { leftover: Some(failure), .. }
            | Outcome::Evicted { leftover: Some(failure), .. } => {
                self.record_leftover(key, *failure, now)
            }
            _ => {}
        }
    }

    /// Records that the result of a pair was deleted, but its metadata was not.
    fn record_leftover(&mut self, key: &PairKey, failure: Failure, now: Now) {
        self.count_error(key, Half::Metadata, CountedError::first(failure));
        // The metadata may still have its reserved name.
        self.scan_later(&key.dir, now);
    }

    fn apply(
        &mut self,
        key: PairKey,
        outcome: Outcome,
        source: Source,
        in_flight_pair: &InFlight,
        now: Now,
    ) -> Tally {
        let mut tally = outcome.tally();
        if !matches!(outcome, Outcome::Broken { .. } | Outcome::Incomplete) {
            self.half_written.forget_writer(&key);
        }
        let pause = self.retries.remove(&key);
        // A scan may have failed to process the pair meanwhile.
        let mut attempts = in_flight_pair.attempts;
        if let Some((_, known)) = pause.filter(|(_, known)| known.failures > attempts.failures) {
            (attempts.failures, attempts.failed) = (known.failures, known.failed);
        }
        let chosen = in_flight_pair.evicted;
        let Some(size) = self.update_wait(&key, &outcome, chosen.is_some(), now) else {
            return tally;
        };
        if let (Outcome::Failed(failure), Some(chosen)) = (&outcome, chosen) {
            self.eviction_failed(key, *failure, (chosen, in_flight_pair.trigger), size, now);
            return tally;
        }
        if let (Some(evictions), Some(is_leaving)) = (&mut self.evictions, is_leaving(&outcome)) {
            evictions.track_unqueued(key.clone(), size, is_leaving);
        }
        match outcome {
            Outcome::NotDue { .. } | Outcome::Incomplete => {}
            Outcome::Due { expires_at, .. } => {
                tally.would_delete = self.report_would_delete(&key, expires_at, size, false).into();
            }
            Outcome::Evictable { expires_at } => {
                tally.would_evict = self.report_would_delete(&key, expires_at, size, true).into();
            }
            Outcome::Unsettled { result, wait, .. } => {
                self.unsettled(key, result, wait, attempts, pause, now);
            }
            Outcome::Broken { metadata, reason, wait, .. } => {
                let writer =
                    self.half_written.writer(&key).unwrap_or(in_flight_pair.trigger.writer);
                let confirm_at = confirm_at(&metadata, wait, writer, attempts, pause, now);
                if self.broken(key, &metadata, reason, confirm_at, attempts, now) {
                    tally.errors += ErrorKind::InvalidMetadata;
                }
            }
            Outcome::Deleted { leftover, .. } | Outcome::Evicted { leftover, .. } => {
                leftover.into_iter().for_each(|failure| self.record_leftover(&key, failure, now));
            }
            Outcome::Changed => self.changed(key, attempts, now),
            Outcome::ClaimedElsewhere => {
                if self.claimed_elsewhere(key, attempts, pause, now) {
                    tally.errors += ErrorKind::Deletion;
                }
            }
            Outcome::Failed(failure) => {
                let early = pause.filter(|_| source == Source::Job);
                if !self.record_failure_unless_repeated(key, &failure, attempts, early, now) {
                    tally.errors = Errors::default();
                }
            }
            Outcome::RestoreFailed(failure) => {
                self.scan_later(&key.dir, now);
                self.record_failure(key, &failure, attempts, now);
            }
        }
        tally
    }

    /// Returns the size of a pair that waits no longer. A pair that is not due waits again, or counts as deleted in a dry
    /// run, and the result is `None`.
    fn update_wait(
        &mut self,
        key: &PairKey,
        outcome: &Outcome,
        was_chosen: bool,
        now: Now,
    ) -> Option<WaitingSize> {
        let unqueued = self.evictions.as_mut().and_then(|known| known.forget_unqueued(key));
        if let Some(dry_run) = &mut self.dry_run {
            match outcome {
                Outcome::NotDue { expires_at, .. }
                    if dry_run.see(key, *expires_at, self.last_scan) =>
                {
                    self.expiries.remove(key);
                    return None;
                }
                Outcome::Due { .. } | Outcome::Evictable { .. } => {}
                _ => dry_run.forget(key),
            }
        }
        let Outcome::NotDue { expires_at, size, .. } = outcome else {
            return Some(self.expiries.remove(key).or(unqueued).unwrap_or_default());
        };
        if was_chosen {
            self.eviction_refused(key, now);
        }
        self.wait(key.clone(), *expires_at, *size, unqueued.unwrap_or_default(), now);
        None
    }

    /// Reports that a pair would be deleted, unless it was reported before. Returns whether it reported it now.
    fn report_would_delete(
        &mut self,
        key: &PairKey,
        expires_at: DateTime<Utc>,
        size: WaitingSize,
        evicts: bool,
    ) -> bool {
        let Some(dry_run) = &mut self.dry_run else { return false };
        let is_new = dry_run.report(key, expires_at, size, self.last_scan);
        if is_new {
            self.notices.push(Notice::WouldDelete {
                result: key.path(Half::Result),
                expires_at,
                evicts,
            });
        }
        is_new
    }

    /// Waits until the result of a due pair has settled.
    fn unsettled(
        &mut self,
        key: PairKey,
        result: FileState,
        wait: Duration,
        attempts: Attempts,
        pause: Option<(Instant, Attempts)>,
        now: Now,
    ) {
        let until = match pause {
            // The schedule is waiting for this version of the result already.
            Some((until, Attempts { settled: Some(then), .. }))
                if result.is_unchanged_since(&then) =>
            {
                until
            }
            // A restored result that can't be deleted is not a new result.
            Some((until, Attempts { failures: 1.., failed, .. }))
                if failed == Some(result.version) =>
            {
                until.max(now.mono + wait)
            }
            _ => now.mono + wait,
        };
        let is_new = attempts.failed.is_some_and(|failed| failed != result.version);
        let failures = if is_new { 0 } else { attempts.failures };
        self.pause(key, until, Attempts { failures, settled: Some(result), ..attempts });
    }

    /// Waits until the other cleaner has deleted or restored a pair. Returns true if the pair has been
    /// claimed for so long that this counts as an error.
    fn claimed_elsewhere(
        &mut self,
        key: PairKey,
        attempts: Attempts,
        pause: Option<(Instant, Attempts)>,
        now: Now,
    ) -> bool {
        if let Some((until, Attempts { claims: 1.., .. })) = pause {
            // An event or a scan came before the next attempt, and is no attempt of its own.
            self.pause(key, until, attempts);
            return false;
        }
        let wait = match attempts.claims.checked_sub(CLAIMS_BEFORE_RECOVERY) {
            None => changed_pause(attempts.claims),
            Some(tries) => {
                // The owner of the claim may be dead.
                self.scan_later(&key.dir, now);
                backoff(tries)
            }
        };
        let soon = now.mono + wait;
        // Another cleaner's attempt at a pair that can't be deleted is no reason for an earlier retry
        // here.
        let until = match pause {
            Some((until, Attempts { failures: 1.., .. })) => until.max(soon),
            _ => soon,
        };
        let is_error = attempts.claims == CLAIMS_BEFORE_ERROR;
        if is_error {
            self.count_error(&key, Half::Result, CountedError::ReservedNameInUse);
        }
        let claims = attempts.claims.saturating_add(1);
        self.pause(key, until, Attempts { claims, ..attempts });
        is_error
    }

    /// Records broken metadata, which is confirmed at `confirm_at` (`None`: an event of its writer
    /// decides). Returns true if the metadata counts as an error now.
    fn broken(
        &mut self,
        key: PairKey,
        metadata: &FileState,
        reason: Broken,
        confirm_at: Option<Instant>,
        attempts: Attempts,
        now: Now,
    ) -> bool {
        let version = metadata.version;
        if self.half_written.was_counted(version, &reason, self.last_scan) {
            return false;
        }
        let Some(confirm_at) = confirm_at else {
            return false;
        };
        if confirm_at > now.mono {
            let attempts = Attempts { suspect: Some((version, metadata.ctime)), ..attempts };
            self.pause(key, confirm_at, attempts);
            return false;
        }
        self.count_error(&key, Half::Metadata, CountedError::InvalidMetadata(reason.clone()));
        self.half_written.count(version, reason, self.last_scan);
        true
    }

    fn changed(&mut self, key: PairKey, attempts: Attempts, now: Now) {
        let until = now.mono + changed_pause(attempts.changes);
        let changes = attempts.changes.saturating_add(1);
        self.pause(key, until, Attempts { changes, claims: 0, ..attempts });
    }

    /// Records a failure, unless an event caused this attempt before the end of the `pause`, and it failed as the one
    /// before. Returns whether it was recorded.
    fn record_failure_unless_repeated(
        &mut self,
        key: PairKey,
        failure: &Failure,
        attempts: Attempts,
        pause: Option<(Instant, Attempts)>,
        now: Now,
    ) -> bool {
        match pause {
            Some((until, Attempts { failures: 1.., failed, .. }))
                if until > now.mono && failed == failure.result() =>
            {
                self.pause(key, until, attempts);
                false
            }
            _ => {
                self.record_failure(key, failure, attempts, now);
                true
            }
        }
    }

    /// Records a failure to process a pair, and retries it after a pause that grows with the failures.
    pub(super) fn record_failure(
        &mut self,
        key: PairKey,
        failure: &Failure,
        attempts: Attempts,
        now: Now,
    ) {
        let pause = backoff(attempts.failures);
        let (failure, is_first) = (*failure, attempts.failures == 0);
        let error = CountedError::Failed { failure, is_first, retry_in: Some(pause) };
        self.count_error(&key, Half::Result, error);
        let attempts = Attempts {
            failures: attempts.failures.saturating_add(1),
            failed: failure.result(),
            changes: 0,
            claims: 0,
            ..attempts
        };
        self.pause(key, now.mono + pause, attempts);
    }

    /// Records that a scan failed to process a pair that is inspected again in any case.
    fn record_contested_failure(&mut self, key: &PairKey, failure: &Failure, now: Now) {
        let Some(in_flight_pair) = self.in_flight.get_mut(key) else {
            let attempts = self.pending_attempts(key);
            return self.record_failure(key.clone(), failure, attempts, now);
        };
        let is_first = in_flight_pair.attempts.failures == 0;
        in_flight_pair.attempts.failures = in_flight_pair.attempts.failures.saturating_add(1);
        in_flight_pair.attempts.failed = failure.result();
        let error = CountedError::Failed { failure: *failure, is_first, retry_in: None };
        self.count_error(key, Half::Result, error);
    }

    pub(super) fn count_error(&mut self, key: &PairKey, half: Half, error: CountedError) {
        self.notices.push(Notice::Error(key.path(half), error));
    }

    pub(super) fn pause(&mut self, key: PairKey, until: Instant, attempts: Attempts) {
        self.retries.insert(key, until, attempts);
    }
}

/// Returns whether a complete pair that does not wait is about to be freed; `None` if it is not tracked as such.
fn is_leaving(outcome: &Outcome) -> Option<bool> {
    match outcome {
        Outcome::Unsettled { .. } | Outcome::ClaimedElsewhere => Some(true),
        Outcome::Changed | Outcome::Failed(_) | Outcome::RestoreFailed(_) => Some(false),
        _ => None,
    }
}
