//! The disk budget: when to ask for the free space, when to evict, and how much.
//!
//! Some file systems free space late, and never while a deleted file is open. So what was evicted and does not show as
//! free counts as free for [`CREDIT_HOLDS`]. If most of it does not show after that, further evictions would only
//! lose results.
//!
//! Longer than other files: the accounting and what the core decides by it are one state.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

#[cfg(any(fuzzing, test))]
use chrono::{DateTime, Utc};

use super::command::{Command, Notice};
use super::core::Core;
use super::free_space::BUDGET_INTERVAL;
use super::input::EvictedBatch;
use crate::pair::budget::{Budget, Evicting, Excess, FreeSpace, Shortfall};
#[cfg(any(fuzzing, test))]
use crate::pair::name::PairKey;
use crate::pair::outcome::{JobResult, Outcome};
use crate::sys::clock::Now;

/// For how long evicted bytes count as free that the file system does not show as free: 30 s, and as much longer as a
/// file system that commits every 30 s may take to do so.
const CREDIT_HOLDS: Duration = Duration::from_secs(35);
/// How long evictions for `min_free` pause if the file system does not show what they free.
const PAUSE: Duration = Duration::from_secs(600);
/// How many batches of evictions run at once: one is chosen while the claims of another one are held.
const MAX_BATCHES: usize = 2;
/// How long a limit has to be kept until its next excess is reported again; at least the age from which pairs can
/// be evicted.
const MIN_CALM: Duration = Duration::from_secs(60);
/// How long evictions may go on without reaching the limit before that is reported.
const SLOW: Duration = Duration::from_secs(10);

/// The disk budget, and how far it is kept.
#[derive(Debug)]
pub(super) struct BudgetState {
    pub budget: Budget,
    /// The free space when it was last read.
    space: Option<FreeSpace>,
    /// What a dry run would have freed.
    pub freed_in_dry_run: u64,
    /// What was deleted since the space was last read, and since the last request for it.
    freed: u64,
    freed_since_ask: u64,
    /// What all pairs took when the space was last asked for.
    size_at_ask: u64,
    /// Whether a full scan has ended: before that, pairs that expire sooner may not be known yet.
    is_scanned: bool,
    evicting: Evicting,
    /// The batches that run, the oldest first. What all pairs took at its start, if nothing was about to be freed then.
    batches: VecDeque<Option<u64>>,
    /// What these batches have evicted so far.
    evicted_in_batches: u64,
    credits: VecDeque<Credit>,
    /// What would be free without the pairs: the highest level so far. Evictions lower it by as much as they may hide.
    /// Only more than that was freed late.
    high_water: Option<i128>,
    /// Credits that have ended, kept for as long again.
    ended: VecDeque<Credit>,
    paused_until: Option<Instant>,
    reported: Reported,
}

/// Evictions within a second.
#[derive(Debug, Clone, Copy)]
struct Credit {
    at: Instant,
    evicted: u64,
    /// What the file system does not show as free yet.
    hidden: u64,
}

/// What was reported. Each is reported once until the directory is opened again, or once per episode.
#[derive(Debug, Default)]
struct Reported {
    /// That the space is unknown, and whether the file system can keep enough free.
    unknown_space: bool,
    checked_space: bool,
    /// In this episode: that nothing can be evicted, and that evictions are too slow.
    nothing_to_evict: bool,
    too_slow: bool,
    /// Since when the limits are kept, and since when evictions go on without reaching the limit.
    calm_since: Option<Instant>,
    over_since: Option<Instant>,
}

impl Reported {
    /// Ends an episode once the limits were kept for as long as `calm`.
    fn note(&mut self, is_exceeded: bool, calm: Duration, now: Instant) {
        if is_exceeded {
            let since = self.calm_since.take();
            if since.is_some_and(|since| since + calm <= now) {
                (self.nothing_to_evict, self.too_slow) = (false, false);
            }
        } else {
            self.calm_since.get_or_insert(now);
        }
    }
}

impl BudgetState {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            budget,
            space: None,
            freed_in_dry_run: 0,
            freed: 0,
            freed_since_ask: 0,
            size_at_ask: 0,
            is_scanned: false,
            evicting: Evicting::default(),
            batches: VecDeque::new(),
            evicted_in_batches: 0,
            credits: VecDeque::new(),
            high_water: None,
            ended: VecDeque::new(),
            paused_until: None,
            reported: Reported::default(),
        }
    }

    /// Records that the free space is about to be read, while all pairs take `size`.
    pub(super) fn asks(&mut self, size: u64) {
        (self.freed_since_ask, self.size_at_ask) = (0, size);
    }

    /// Returns the space when last read.
    pub(super) fn space(&self) -> Option<FreeSpace> {
        self.space
    }

    /// Returns the free space that counts: with what is about to be freed, and what was evicted and does not show yet.
    fn counted_space(&self, leaving: u64) -> Option<FreeSpace> {
        let space = self.space.filter(|_| self.paused_until.is_none())?;
        let evicted = self.evicted_in_batches;
        let freed = [self.freed, self.freed_in_dry_run, evicted, self.hidden(), leaving];
        let free = freed.into_iter().fold(space.free, u64::saturating_add);
        Some(FreeSpace { free, ..space })
    }

    /// Returns by how much each limit is exceeded. `size` is what all pairs take, of which `leaving` is about to be freed.
    fn excesses(&self, size: u64, leaving: u64) -> [Excess; 2] {
        let by_space = self.counted_space(leaving).map(|space| self.budget.free_excess(space));
        [self.budget.size_excess(size.saturating_sub(leaving)), by_space.unwrap_or_default()]
    }

    fn is_exceeded(&self, size: u64, leaving: u64) -> bool {
        self.excesses(size, leaving).iter().any(|excess| excess.is_over)
    }

    /// Returns what was evicted and does not show as free yet.
    fn hidden(&self) -> u64 {
        self.credits.iter().map(|credit| credit.hidden).sum()
    }

    /// Takes in a new reading of the space, at which all pairs took `size` at least. That must not be more than they
    /// took: the level would seem higher than it was, and what is free later would seem to be hidden.
    fn read(&mut self, space: FreeSpace, size: u64) {
        // What writers add to the pairs takes as much space as it adds.
        let level = level(space, size);
        let is_quiet = self.batches.is_empty() && self.hidden() == 0;
        self.high_water = Some(match self.high_water.filter(|_| !is_quiet) {
            Some(high_water) => {
                self.show(u64::try_from(level - high_water).unwrap_or(0));
                level.max(high_water)
            }
            None => level,
        });
        self.space = Some(space);
    }

    /// Records that evicted bytes show as free: those of the oldest evictions first.
    fn show(&mut self, mut bytes: u64) {
        for credit in &mut self.credits {
            let shown = bytes.min(credit.hidden);
            credit.hidden -= shown;
            bytes -= shown;
        }
    }

    /// Records that so many bytes were evicted. The next reading shows how many of them are free.
    fn add_credit(&mut self, evicted: u64, now: Instant) {
        match self.credits.back_mut() {
            Some(last) if last.at + BUDGET_INTERVAL > now => {
                last.evicted += evicted;
                last.hidden += evicted;
            }
            _ => self.credits.push_back(Credit { at: now, evicted, hidden: evicted }),
        }
        if let Some(high_water) = &mut self.high_water {
            *high_water -= i128::from(evicted);
        }
    }

    /// Records that a batch has evicted so many bytes, and the space before and after it. `size` is what all pairs take
    /// now, of which other batches and jobs free `leaving`, or have freed it already.
    fn end_batch(
        &mut self,
        [before, after]: [FreeSpace; 2],
        evicted: u64,
        (size, leaving): (u64, u64),
        now: Instant,
    ) {
        let mut certain = size;
        if let Some(at_start) = self.batches.pop_front().flatten() {
            self.high_water = Some(level(before, at_start));
            certain = size.min(at_start.saturating_sub(evicted));
        }
        self.add_credit(evicted, now);
        self.read(after, certain.saturating_sub(leaving));
        self.freed = 0;
    }

    /// Ends credits. Returns true if most of what was evicted does not show as free.
    fn end_credits(&mut self, now: Instant) -> bool {
        let count =
            self.credits.iter().take_while(|credit| credit.at + CREDIT_HOLDS <= now).count();
        self.ended.extend(self.credits.drain(..count));
        while self.ended.front().is_some_and(|credit| credit.at + 2 * CREDIT_HOLDS <= now) {
            self.ended.pop_front();
        }
        let sum = |of: fn(&Credit) -> u64| self.ended.iter().map(of).sum::<u64>();
        count > 0 && sum(|credit| credit.hidden) * 2 > sum(|credit| credit.evicted)
    }
}

/// What would be free without the pairs.
fn level(space: FreeSpace, size: u64) -> i128 {
    i128::from(space.free) + i128::from(size)
}

impl Core {
    /// Takes in the free space of the file system, or why it is unknown.
    pub(super) fn free_space_read(&mut self, space: Result<FreeSpace, String>, now: Now) {
        let (size, leaving) = self.schedule.disk_size();
        self.space.answered(space.as_ref().ok().copied());
        let Some(state) = &mut self.budget else { return };
        let space = match space {
            Ok(space) => space,
            Err(reason) => {
                state.space = None;
                if !std::mem::replace(&mut state.reported.unknown_space, true) {
                    self.report(Notice::SpaceUnknown(reason));
                }
                return;
            }
        };
        let is_first = !std::mem::replace(&mut state.reported.checked_space, true);
        state.read(space, size.min(state.size_at_ask).saturating_sub(leaving));
        state.freed = state.freed_since_ask;
        if state.paused_until.is_some_and(|until| until <= now.mono) {
            state.paused_until = None;
        }
        let notice = if !is_first || state.budget.min_free.is_none() {
            None
        } else if space.total == 0 {
            Some(Notice::NoFileSystemSize)
        } else {
            let is_too_large = state.budget.is_too_large_for(space);
            is_too_large.then_some(Notice::MinFreeTooLarge(space.total))
        };
        let is_in_vain = state.end_credits(now.mono);
        if is_in_vain {
            state.paused_until = Some(now.mono + PAUSE);
            state.credits.clear();
            state.ended.clear();
            state.high_water = None;
        }
        notice.into_iter().for_each(|notice| self.report(notice));
        self.report_slow_evictions(now);
        if is_in_vain {
            self.report(Notice::EvictionsPaused(PAUSE));
        }
    }

    /// Records that a full scan has ended.
    pub(super) fn scanned(&mut self, now: Now) {
        if let Some(state) = &mut self.budget
            && !std::mem::replace(&mut state.is_scanned, true)
        {
            // The scan may have freed space of pairs whose size was not known.
            state.space = None;
            self.space.ask_at(now.mono);
        }
    }

    /// Records what was deleted, before its outcomes are applied, so that it counts as free until the space is read again;
    /// what was evicted, until its batch ends.
    pub(super) fn note_freed(&mut self, found: &[JobResult]) {
        let Some(state) = &mut self.budget else { return };
        for JobResult { key, outcome } in found {
            match *outcome {
                Outcome::Deleted { freed, .. } => {
                    let freed = self.schedule.known_size(key).unwrap_or(freed);
                    state.freed = state.freed.saturating_add(freed);
                    state.freed_since_ask = state.freed_since_ask.saturating_add(freed);
                }
                Outcome::Evicted { freed, .. } => state.evicted_in_batches += freed,
                _ => {}
            }
        }
    }

    /// Records that a batch of evictions has ended, all of whose outcomes were applied.
    pub(super) fn batch_evicted(&mut self, batch: EvictedBatch, now: Now) {
        let sizes = self.schedule.disk_size();
        let Some(state) = &mut self.budget else { return };
        state.evicted_in_batches = state.evicted_in_batches.saturating_sub(batch.bytes);
        match batch {
            EvictedBatch { space: Some(space), bytes } => {
                state.end_batch(space, bytes, sizes, now.mono);
            }
            EvictedBatch { space: None, bytes } => {
                state.batches.pop_front();
                if state.budget.min_free.is_some() {
                    // Whether it shows is seen once the space can be read again. Until then, nothing more is evicted for
                    // it.
                    state.add_credit(bytes, now.mono);
                    state.space = None;
                    self.space.ask_at(now.mono);
                }
            }
        }
    }

    /// Starts batches of evictions, up to `limit` at once, if a limit is exceeded.
    pub(super) fn evict(&mut self, limit: usize, now: Now) {
        while self.slots.free() > 0 {
            let needed = self.needed_now(now);
            let Some(state) = &self.budget else { return };
            if needed == 0 || state.batches.len() >= limit.min(MAX_BATCHES) {
                return;
            }
            let (size, leaving) = self.schedule.disk_size();
            let jobs = self.schedule.take_evictions(needed, now);
            if jobs.is_empty() {
                return self.nothing_to_evict(now);
            }
            if let Some(state) = &mut self.budget {
                let is_quiet = state.batches.is_empty() && state.hidden() == 0 && leaving == 0;
                state.batches.push_back(is_quiet.then_some(size));
            }
            self.slots.batch_started();
            self.command(Command::Process(jobs));
        }
    }

    /// Returns how many bytes have to be evicted now. What has expired is deleted before.
    fn needed_now(&mut self, now: Now) -> u64 {
        let is_due = self.has_due(now);
        let (size, leaving) = self.schedule.disk_size();
        let freed_in_dry_run = self.schedule.freed_in_dry_run();
        let Some(state) = self.budget.as_mut().filter(|state| state.is_scanned) else { return 0 };
        state.freed_in_dry_run = freed_in_dry_run;
        let needed = state.evicting.needed(state.excesses(size, leaving), leaving > 0);
        let calm = state.budget.min_age.max(MIN_CALM);
        state.reported.note(state.is_exceeded(size, leaving), calm, now.mono);
        if needed == 0 {
            state.reported.over_since = None;
        }
        if is_due { 0 } else { needed }
    }

    /// Returns when to evict again, if nothing happens before.
    pub(super) fn next_eviction(&self, now: Now) -> Option<Instant> {
        let state = self.budget.as_ref().filter(|state| state.is_scanned)?;
        let (size, leaving) = self.schedule.disk_size();
        let excesses = state.excesses(size, leaving);
        let is_needed = state.evicting.is_needed(excesses);
        let can_start =
            self.slots.free() > 0 && state.batches.len() < MAX_BATCHES && !self.has_due(now);
        if is_needed && can_start { self.schedule.next_eviction(now) } else { None }
    }

    /// Reports that a limit is exceeded and nothing can be evicted: once per episode.
    fn nothing_to_evict(&mut self, now: Now) {
        let (size, leaving) = self.schedule.disk_size();
        let young = self.schedule.too_young(now);
        let Some(state) = &mut self.budget else { return };
        let (Some(young), false) = (young, state.reported.nothing_to_evict) else { return };
        if leaving == 0 && state.is_exceeded(size, leaving) {
            state.reported.nothing_to_evict = true;
            let space = state.space;
            let shortfall = Shortfall { size, space, young, min_age: state.budget.min_age };
            self.command(Command::MeasureOccupancy(shortfall));
        }
    }

    /// Reports that results arrive faster than they are evicted: once per episode.
    fn report_slow_evictions(&mut self, now: Now) {
        let (size, _) = self.schedule.disk_size();
        let Some(state) = &mut self.budget else { return };
        if !state.is_exceeded(size, 0) || state.reported.nothing_to_evict {
            return;
        }
        let since = *state.reported.over_since.get_or_insert(now.mono);
        if since + SLOW <= now.mono && !std::mem::replace(&mut state.reported.too_slow, true) {
            let space = state.space;
            self.report(Notice::EvictionsTooSlow { size, space });
        }
    }

    /// Returns what all complete, valid pairs take on disk, in bytes; `None` without a disk budget.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.budget.as_ref().map(|_| self.schedule.disk_size().0)
    }

    /// Returns whether no eviction is due for this free space: another one was read last, something counts as free that
    /// does not show, or evictions are paused.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn waits_for_space(&self, space: FreeSpace) -> bool {
        self.budget.as_ref().is_none_or(|state| {
            state.space.is_none_or(|read| read != space) || state.counted_space(0) != Some(space)
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
