//! The free space that counts for the disk budget: what the file system shows, and what is about to show.
//!
//! Some file systems free space late, and never while a deleted file is open. So what was evicted and does not show as
//! free counts as free for [`CREDIT_LIFETIME`]. If most of it does not show after that, further evictions would only
//! lose results.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::command::EvictionStart;
use super::free_space::BUDGET_INTERVAL;
use super::input::EvictedBatch;
use crate::pair::disk_budget::FreeSpace;

/// How long evicted bytes that the file system does not show count as free: a commit interval of 30 s, and 5 s for the
/// commit.
const CREDIT_LIFETIME: Duration = Duration::from_secs(35);

/// What is free, and what counts as free.
#[derive(Debug, Default)]
pub(super) struct CountedSpace {
    /// The free space when it was last read; `None` if it is unknown.
    reading: Option<FreeSpace>,
    /// What was deleted since the space was last read.
    freed: u64,
    /// What was deleted since the last request for a reading.
    freed_since_request: u64,
    /// What all pairs took at the last request for a reading.
    size_at_request: u64,
    /// How many batches of evictions run.
    batches: usize,
    /// How many batches have ended.
    batches_ended: u64,
    /// What the running batches have evicted so far.
    evicted_in_batches: u64,
    /// Evictions, the oldest first. What they hide counts as free.
    credits: VecDeque<Credit>,
    /// Evictions whose credit has ended, kept for as long again.
    ended: VecDeque<Credit>,
    /// The highest level so far, less what was evicted since. Only what exceeds it was freed late.
    high_water: Option<i128>,
}

/// Evictions within a second.
#[derive(Debug, Clone, Copy)]
struct Credit {
    at: Instant,
    evicted: u64,
    /// What the file system does not show as free yet.
    hidden: u64,
}

impl CountedSpace {
    /// Returns the free space when it was last read; `None` if it is unknown.
    pub(super) fn reading(&self) -> Option<FreeSpace> {
        self.reading
    }

    /// Records that the free space is unknown until the next reading.
    pub(super) fn forget_reading(&mut self) {
        self.reading = None;
    }

    /// Returns the free space that counts, `more` bytes included; `None` if it is unknown.
    pub(super) fn counted(&self, more: u64) -> Option<FreeSpace> {
        let space = self.reading?;
        let freed = [self.freed, self.evicted_in_batches, self.hidden(), more];
        let free = freed.into_iter().fold(space.free, u64::saturating_add);
        Some(FreeSpace { free, ..space })
    }

    /// Returns what was evicted and does not show as free yet.
    fn hidden(&self) -> u64 {
        self.credits.iter().map(|credit| credit.hidden).sum()
    }

    /// Records that a reading of the space is requested while all pairs take `size`.
    pub(super) fn requested(&mut self, size: u64) {
        (self.freed_since_request, self.size_at_request) = (0, size);
    }

    /// Takes in the requested reading. All pairs take `size` now, of which `leaving` may be freed already.
    pub(super) fn answered(&mut self, space: FreeSpace, (size, leaving): (u64, u64)) {
        self.read(space, size.min(self.size_at_request).saturating_sub(leaving));
        self.freed = self.freed_since_request;
    }

    /// Takes in a reading of the space. All pairs took `size` then at least: with more than they took, the level would
    /// be too high, and what is freed later would count as hidden.
    fn read(&mut self, space: FreeSpace, size: u64) {
        // What writers add to the pairs takes as much space as it adds.
        let level = level(space, size);
        let is_quiet = self.batches == 0 && self.hidden() == 0;
        self.high_water = Some(match self.high_water.filter(|_| !is_quiet) {
            Some(high_water) => {
                self.show(u64::try_from(level - high_water).unwrap_or(0));
                level.max(high_water)
            }
            None => level,
        });
        self.reading = Some(space);
    }

    /// Records that evicted bytes show as free: those of the oldest evictions first.
    fn show(&mut self, mut bytes: u64) {
        for credit in &mut self.credits {
            let shown = bytes.min(credit.hidden);
            credit.hidden -= shown;
            bytes -= shown;
        }
    }

    /// Records a deletion, which counts as free until the next reading.
    pub(super) fn add_deleted(&mut self, bytes: u64) {
        self.freed = self.freed.saturating_add(bytes);
        self.freed_since_request = self.freed_since_request.saturating_add(bytes);
    }

    /// Records an eviction, which counts as free until its batch ends.
    pub(super) fn add_evicted(&mut self, bytes: u64) {
        self.evicted_in_batches = self.evicted_in_batches.saturating_add(bytes);
    }

    /// Returns how many batches of evictions run.
    pub(super) fn batches(&self) -> usize {
        self.batches
    }

    /// Records that a batch of evictions starts. All pairs take `size`, of which `leaving` is about to be freed.
    pub(super) fn start_batch(&mut self, (size, leaving): (u64, u64)) -> EvictionStart {
        let is_quiet = self.batches == 0 && self.hidden() == 0 && leaving == 0;
        self.batches += 1;
        EvictionStart { size: is_quiet.then_some(size), batches_ended: self.batches_ended }
    }

    /// Records that a batch has ended whose outcomes were applied. All pairs take `size` now, of which other batches and
    /// jobs free `leaving`, or have freed it already.
    pub(super) fn end_batch(
        &mut self,
        batch: EvictedBatch,
        (size, leaving): (u64, u64),
        now: Instant,
    ) {
        let EvictedBatch { start, space, bytes } = batch;
        let ended_before = self.batches_ended;
        self.batches_ended += 1;
        self.batches = self.batches.saturating_sub(1);
        self.evicted_in_batches = self.evicted_in_batches.saturating_sub(bytes);
        let Some([before, after]) = space else { return };
        let mut certain = size;
        if let Some(at_start) = start.size {
            // Batches may end in another order than they started: the space before this one then shows what another one
            // has freed.
            if start.batches_ended == ended_before {
                self.high_water = Some(level(before, at_start));
            }
            certain = size.min(at_start.saturating_sub(bytes));
        }
        self.add_credit(bytes, now);
        self.read(after, certain.saturating_sub(leaving));
        self.freed = 0;
    }

    /// Records that the space could not be read after an eviction of so many bytes: nothing of it shows yet.
    pub(super) fn reading_failed(&mut self, evicted: u64, now: Instant) {
        self.add_credit(evicted, now);
        self.forget_reading();
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

    /// Ends credits. Returns true if most of what was evicted does not show as free; then all credits are gone.
    pub(super) fn end_credits(&mut self, now: Instant) -> bool {
        let count =
            self.credits.iter().take_while(|credit| credit.at + CREDIT_LIFETIME <= now).count();
        self.ended.extend(self.credits.drain(..count));
        while self.ended.front().is_some_and(|credit| credit.at + 2 * CREDIT_LIFETIME <= now) {
            self.ended.pop_front();
        }
        let sum = |of: fn(&Credit) -> u64| self.ended.iter().map(of).sum::<u64>();
        let is_in_vain =
            count > 0 && sum(|credit| credit.hidden) * 2 > sum(|credit| credit.evicted);
        if is_in_vain {
            self.credits.clear();
            self.ended.clear();
            self.high_water = None;
        }
        is_in_vain
    }
}

/// What would be free without the pairs.
fn level(space: FreeSpace, size: u64) -> i128 {
    i128::from(space.free) + i128::from(size)
}
