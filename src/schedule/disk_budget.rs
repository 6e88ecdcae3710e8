//! The disk budget: when to evict, how much, and what to report of it.

use std::time::{Duration, Instant};

#[cfg(any(fuzzing, test))]
use chrono::{DateTime, Utc};

use super::command::{Command, Notice};
use super::core::Core;
use super::counted_space::CountedSpace;
use super::input::EvictedBatch;
use crate::pair::disk_budget::{Budget, Evicting, Excess, FreeSpace, Shortfall};
#[cfg(any(fuzzing, test))]
use crate::pair::name::PairKey;
use crate::pair::outcome::{JobResult, Outcome};
use crate::sys::clock::Now;

/// How long evictions for `min_free` pause if the file system does not show what they free.
const PAUSE: Duration = Duration::from_secs(600);
/// How many batches of evictions run at once: one is chosen while the claims of another one are held.
const MAX_BATCHES: usize = 2;
/// The shortest time for which the limits have to be kept before a new excess is reported. It is never shorter than
/// the age from which pairs can be evicted.
const MIN_CALM: Duration = Duration::from_secs(60);
/// How long evictions may go on without reaching the limit before that is reported.
const SLOW: Duration = Duration::from_secs(10);

/// The disk budget, and how far it is kept.
#[derive(Debug)]
pub(super) struct DiskBudget {
    pub limits: Budget,
    pub space: CountedSpace,
    /// What a dry run would have freed.
    freed_in_dry_run: u64,
    /// Whether a full scan has ended: before that, pairs that expire sooner may not be known yet.
    is_scanned: bool,
    evicting: Evicting,
    /// Until when nothing is evicted for `min_free`, because evictions do not free space.
    paused_until: Option<Instant>,
    reports: BudgetReports,
}

/// What was reported. Each is reported once until the directory is opened again, or once per episode.
#[derive(Debug, Default)]
struct BudgetReports {
    /// That the space is unknown.
    unknown_space: bool,
    /// Whether the file system can keep enough free.
    checked_space: bool,
    /// In this episode: that nothing can be evicted.
    nothing_to_evict: bool,
    /// In this episode: that evictions are too slow.
    too_slow: bool,
    /// Since when the limits are kept.
    calm_since: Option<Instant>,
    /// Since when evictions go on without reaching the limit.
    over_since: Option<Instant>,
}

impl BudgetReports {
    /// Ends an episode once the limits were kept for as long as `calm`.
    fn update(&mut self, is_exceeded: bool, calm: Duration, now: Instant) {
        if is_exceeded {
            let since = self.calm_since.take();
            if since.is_some_and(|since| now.saturating_duration_since(since) >= calm) {
                (self.nothing_to_evict, self.too_slow) = (false, false);
            }
        } else {
            self.calm_since.get_or_insert(now);
        }
    }
}

impl DiskBudget {
    pub(super) fn new(limits: Budget) -> Self {
        Self {
            limits,
            space: CountedSpace::default(),
            freed_in_dry_run: 0,
            is_scanned: false,
            evicting: Evicting::default(),
            paused_until: None,
            reports: BudgetReports::default(),
        }
    }

    /// Returns the free space that counts, with `leaving`, which is about to be freed; `None` if it is unknown, or while
    /// evictions for it pause.
    fn counted_space(&self, leaving: u64) -> Option<FreeSpace> {
        let more = self.freed_in_dry_run.saturating_add(leaving);
        self.space.counted(more).filter(|_| self.paused_until.is_none())
    }

    /// Returns by how much each limit is exceeded. `size` is what all pairs take, of which `leaving` is about to be freed.
    fn excesses(&self, size: u64, leaving: u64) -> [Excess; 2] {
        let by_space = self.counted_space(leaving).map(|space| self.limits.free_excess(space));
        [self.limits.size_excess(size.saturating_sub(leaving)), by_space.unwrap_or_default()]
    }

    fn is_exceeded(&self, size: u64, leaving: u64) -> bool {
        self.excesses(size, leaving).iter().any(|excess| excess.is_over)
    }

    /// Returns what to report of the first reading of the space.
    fn check_file_system(&mut self, space: FreeSpace) -> Option<Notice> {
        let is_first = !std::mem::replace(&mut self.reports.checked_space, true);
        if !is_first || self.limits.min_free.is_none() {
            None
        } else if space.total == 0 {
            Some(Notice::NoFileSystemSize)
        } else {
            let is_too_large = self.limits.is_too_large_for(space);
            is_too_large.then_some(Notice::MinFreeTooLarge(space.total))
        }
    }
}

impl Core {
    /// Takes in the free space of the file system, or why it is unknown.
    pub(super) fn free_space_read(&mut self, space: Result<FreeSpace, String>, now: Now) {
        let sizes = self.schedule.disk_size();
        self.space_readings.answered(space.as_ref().ok().copied());
        let Some(state) = &mut self.disk_budget else { return };
        let space = match space {
            Ok(space) => space,
            Err(reason) => {
                state.space.forget_reading();
                if !std::mem::replace(&mut state.reports.unknown_space, true) {
                    self.report(Notice::SpaceUnknown(reason));
                }
                return;
            }
        };
        state.space.answered(space, sizes);
        if state.paused_until.is_some_and(|until| until <= now.mono) {
            state.paused_until = None;
        }
        let notice = state.check_file_system(space);
        let is_in_vain = state.space.end_credits(now.mono);
        if is_in_vain {
            state.paused_until = Some(now.mono + PAUSE);
        }
        notice.into_iter().for_each(|notice| self.report(notice));
        self.report_slow_evictions(now);
        if is_in_vain {
            self.report(Notice::EvictionsPaused(PAUSE));
        }
    }

    /// Records that a full scan has ended.
    pub(super) fn scanned(&mut self, now: Now) {
        if let Some(state) = &mut self.disk_budget
            && !std::mem::replace(&mut state.is_scanned, true)
        {
            // The scan may have freed space of pairs whose size was not known.
            state.space.forget_reading();
            self.space_readings.request_at(now.mono);
        }
    }

    /// Counts deletions as free until the next reading of the space, and evictions until their batch ends. Called before
    /// the outcomes are applied.
    pub(super) fn count_freed(&mut self, found: &[JobResult]) {
        let Some(state) = &mut self.disk_budget else { return };
        for JobResult { key, outcome } in found {
            match *outcome {
                Outcome::Deleted { freed, .. } => {
                    state.space.add_deleted(self.schedule.known_size(key).unwrap_or(freed));
                }
                Outcome::Evicted { freed, .. } => state.space.add_evicted(freed),
                _ => {}
            }
        }
    }

    /// Records that a batch of evictions has ended, all of whose outcomes were applied.
    pub(super) fn batch_evicted(&mut self, batch: EvictedBatch, now: Now) {
        let sizes = self.schedule.disk_size();
        let Some(state) = &mut self.disk_budget else { return };
        state.space.end_batch(batch, sizes, now.mono);
        if batch.space.is_none() && state.limits.min_free.is_some() {
            // Until the space can be read again, nothing more is evicted for it.
            state.space.reading_failed(batch.bytes, now.mono);
            self.space_readings.request_at(now.mono);
        }
    }

    /// Starts batches of evictions, up to `limit` at once, if a limit is exceeded.
    pub(super) fn evict(&mut self, limit: usize, now: Now) {
        while self.slots.free() > 0 {
            let needed = self.update_evicting(now);
            let Some(state) = &self.disk_budget else { return };
            if needed == 0 || state.space.batches() >= limit.min(MAX_BATCHES) {
                return;
            }
            let sizes = self.schedule.disk_size();
            let jobs = self.schedule.take_evictions(needed, now);
            if jobs.is_empty() {
                return self.nothing_to_evict(now);
            }
            let Some(state) = &mut self.disk_budget else { return };
            let start = state.space.start_batch(sizes);
            self.slots.batch_started();
            self.command(Command::Evict(jobs, start));
        }
    }

    /// Begins and ends evictions and episodes, and returns how many bytes to evict now. What has expired is deleted before.
    fn update_evicting(&mut self, now: Now) -> u64 {
        let is_due = self.has_due(now);
        let (size, leaving) = self.schedule.disk_size();
        let freed_in_dry_run = self.schedule.freed_in_dry_run();
        let state = self.disk_budget.as_mut().filter(|state| state.is_scanned);
        let Some(state) = state else { return 0 };
        state.freed_in_dry_run = freed_in_dry_run;
        let needed = state.evicting.needed(state.excesses(size, leaving), leaving > 0);
        let calm = state.limits.min_age.max(MIN_CALM);
        state.reports.update(state.is_exceeded(size, leaving), calm, now.mono);
        if needed == 0 {
            state.reports.over_since = None;
        }
        if is_due { 0 } else { needed }
    }

    /// Returns when to evict again, if nothing happens before.
    pub(super) fn next_eviction(&self, now: Now) -> Option<Instant> {
        let state = self.disk_budget.as_ref().filter(|state| state.is_scanned)?;
        let (size, leaving) = self.schedule.disk_size();
        let excesses = state.excesses(size, leaving);
        let is_needed = state.evicting.is_needed(excesses);
        let can_start =
            self.slots.free() > 0 && state.space.batches() < MAX_BATCHES && !self.has_due(now);
        if is_needed && can_start { self.schedule.next_eviction(now) } else { None }
    }

    /// Reports that a limit is exceeded and nothing can be evicted: once per episode.
    fn nothing_to_evict(&mut self, now: Now) {
        let (size, leaving) = self.schedule.disk_size();
        let young = self.schedule.too_young(now);
        let Some(state) = &mut self.disk_budget else { return };
        let (Some(young), false) = (young, state.reports.nothing_to_evict) else { return };
        if leaving == 0 && state.is_exceeded(size, leaving) {
            state.reports.nothing_to_evict = true;
            let (space, min_age) = (state.space.reading(), state.limits.min_age);
            self.command(Command::MeasureOccupancy(Shortfall { size, space, young, min_age }));
        }
    }

    /// Reports that results arrive faster than they are evicted: once per episode.
    fn report_slow_evictions(&mut self, now: Now) {
        let (size, _) = self.schedule.disk_size();
        let Some(state) = &mut self.disk_budget else { return };
        if !state.is_exceeded(size, 0) || state.reports.nothing_to_evict {
            return;
        }
        let since = *state.reports.over_since.get_or_insert(now.mono);
        if since + SLOW <= now.mono && !std::mem::replace(&mut state.reports.too_slow, true) {
            let space = state.space.reading();
            self.report(Notice::EvictionsTooSlow { size, space });
        }
    }

    /// Returns what all complete, valid pairs take on disk, in bytes; `None` without a disk budget.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.disk_budget.as_ref().map(|_| self.schedule.disk_size().0)
    }

    /// Returns whether no eviction is due for this free space: another one was read last, something counts as free that
    /// does not show, or evictions are paused.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn waits_for_space(&self, space: FreeSpace) -> bool {
        self.disk_budget.as_ref().is_none_or(|state| {
            state.space.reading() != Some(space) || state.counted_space(0) != Some(space)
        })
    }

    /// Returns whether the next eviction is due within the second for which a choice of pairs holds.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn evicts_soon(&self, now: Now) -> bool {
        self.next_eviction(now).is_some_and(|at| at <= now.mono + Duration::from_secs(1))
    }

    /// Returns the waiting pairs that can be evicted and expire before `at`.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn evictable_before(&self, at: DateTime<Utc>, now: Now) -> Vec<PairKey> {
        self.schedule.evictable_before(at, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_ends_once_the_limits_were_kept_for_long() {
        const SECOND: Duration = Duration::from_secs(1);
        let start = Instant::now();
        let reports_after = |calm: Duration| {
            let mut reports = BudgetReports { nothing_to_evict: true, ..Default::default() };
            [(0, true), (1, false), (60, true), (61, false), (90, false), (121, true)].map(
                |(second, is_exceeded)| {
                    reports.update(is_exceeded, calm, start + second * SECOND);
                    reports.nothing_to_evict
                },
            )
        };
        assert_eq!(reports_after(60 * SECOND), [true, true, true, true, true, false]);
        assert_eq!(reports_after(Duration::MAX), [true; 6]);
    }
}
