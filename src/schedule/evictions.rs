//! Which pairs can be evicted, and which are next. Exists only with a disk budget.
//!
//! Longer than other files: sizes, choices and failures of pairs belong together.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::backoff::backoff;
use super::command::CountedError;
use super::expiries::Expiries;
use super::soonest::{EvictablePair, FirstToEvict};
use super::waiting::{SizedEntry, WaitingPairs, WaitingSize};
use super::{Attempts, InFlight, Schedule};
use crate::pair::change::Trigger;
use crate::pair::disk_budget::{BLOCK, Chosen, DiskSize, EVICTION_BATCH, Young, evictable_from};
use crate::pair::name::{Half, PairKey, Stem};
use crate::pair::outcome::{Failure, Job, sort_by_directory};
use crate::pair::version::FileTime;
use crate::sys::clock::Now;

/// How long a choice of pairs holds. A pair that appears meanwhile, or gets old enough, has to wait for the next choice.
const CHOICE_LIFETIME: Duration = Duration::from_secs(1);
/// How many results with a ctime in the future are tracked. Others are young whenever they are seen.
const MAX_FIRST_SEEN: usize = 65_536;
/// How long a pair is held back after its eviction found that it can't be evicted yet.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How long after a pair's last pause its earlier failures still lengthen the next pause.
const FAILURE_MEMORY: Duration = Duration::from_secs(1200);

/// What the schedule tracks for evictions.
#[derive(Debug)]
pub(super) struct Evictions {
    min_age: Duration,
    /// Complete pairs that do not wait for their expiry: they are being deleted or evicted, or could not be deleted.
    unqueued: HashMap<PairKey, Unqueued>,
    /// What these take on disk, in blocks.
    unqueued_blocks: u64,
    /// How much of that is about to be freed.
    leaving_blocks: u64,
    /// Results whose ctime lies in the future: their ctime, and when they were first seen with it.
    first_seen: HashMap<PairKey, (FileTime, u32)>,
    /// Pairs that could not be evicted, by directory.
    held_back: HashMap<Arc<Path>, HashMap<Stem, HeldBack>>,
    choice: Choice,
    /// What the last complete choice left out because it is too young.
    pub young: Young,
}

#[derive(Debug, Clone, Copy)]
struct Unqueued {
    size: WaitingSize,
    /// Whether it is about to be deleted or evicted, by this cleaner or another one.
    is_leaving: bool,
}

#[derive(Debug, Clone, Copy)]
struct HeldBack {
    failures: u32,
    until: Instant,
}

/// The pairs that are evicted next, in the order of their `expires_at`.
#[derive(Debug)]
struct Choice {
    pairs: VecDeque<(PairKey, DateTime<Utc>)>,
    valid_until: Instant,
    /// Whether all pairs that could be evicted were chosen.
    is_complete: bool,
    /// When another pair gets old enough after a complete choice.
    more_from: Option<DateTime<Utc>>,
    /// When another pair is no longer held back after a complete choice.
    retry_from: Option<Instant>,
}

impl Evictions {
    pub(super) fn new(min_age: Duration, now: Instant) -> Self {
        Self {
            min_age,
            unqueued: HashMap::new(),
            unqueued_blocks: 0,
            leaving_blocks: 0,
            first_seen: HashMap::new(),
            held_back: HashMap::new(),
            choice: Choice {
                pairs: VecDeque::new(),
                valid_until: now,
                is_complete: false,
                more_from: None,
                retry_from: None,
            },
            young: Young::default(),
        }
    }

    /// Returns what is kept of the size of a pair that waits from now on.
    pub(super) fn waits(&mut self, key: &PairKey, size: DiskSize, now: Now) -> WaitingSize {
        let wall = seconds(now.wall.timestamp());
        let in_future = size.ctime > (now.wall.timestamp(), now.wall.timestamp_subsec_nanos());
        let since = if in_future {
            self.first_seen(key, size.ctime, wall)
        } else {
            self.forget(key);
            seconds(size.ctime.0)
        };
        let size = WaitingSize { blocks: size.blocks, since };
        if size.blocks > 0
            && let Some(from) = evictable_from(since, self.min_age)
        {
            let more_from = &mut self.choice.more_from;
            *more_from = Some(more_from.map_or(from, |before| before.min(from)));
        }
        size
    }

    /// Returns when a result was first seen with this ctime, which lies in the future.
    fn first_seen(&mut self, key: &PairKey, ctime: FileTime, now: u32) -> u32 {
        if let Some((known, since)) = self.first_seen.get(key)
            && *known == ctime
        {
            return *since;
        }
        if self.first_seen.len() < MAX_FIRST_SEEN || self.first_seen.contains_key(key) {
            self.first_seen.insert(key.clone(), (ctime, now));
        }
        now
    }

    /// Forgets when a result was first seen.
    fn forget(&mut self, key: &PairKey) {
        if !self.first_seen.is_empty() {
            self.first_seen.remove(key);
        }
    }

    /// Records a complete pair that does not wait.
    pub(super) fn track_unqueued(&mut self, key: PairKey, size: WaitingSize, is_leaving: bool) {
        self.forget_unqueued(&key);
        let blocks = u64::from(size.blocks);
        self.unqueued_blocks += blocks;
        self.leaving_blocks += if is_leaving { blocks } else { 0 };
        self.unqueued.insert(key, Unqueued { size, is_leaving });
    }

    /// Forgets a pair that does not wait; returns its size.
    pub(super) fn forget_unqueued(&mut self, key: &PairKey) -> Option<WaitingSize> {
        let Unqueued { size, is_leaving } = self.unqueued.remove(key)?;
        let blocks = u64::from(size.blocks);
        self.unqueued_blocks -= blocks;
        self.leaving_blocks -= if is_leaving { blocks } else { 0 };
        Some(size)
    }

    /// Holds back a pair that an eviction has left as it was.
    fn hold_back(&mut self, key: &PairKey, now: Now) {
        self.hold_back_for(key, REFUSED_PAUSE, 0, now);
    }

    fn hold_back_for(&mut self, key: &PairKey, pause: Duration, more_failures: u32, now: Now) {
        let pairs = self.held_back.entry(Arc::clone(&key.dir)).or_default();
        let failures = pairs.get(&key.stem).map_or(0, |known| known.failures);
        let failures = failures.saturating_add(more_failures);
        let until = now.mono + pause;
        pairs.insert(key.stem.clone(), HeldBack { failures, until });
        let retry_from = &mut self.choice.retry_from;
        *retry_from = Some(retry_from.map_or(until, |before| before.min(until)));
    }

    fn failures(&self, key: &PairKey) -> u32 {
        let pairs = self.held_back.get(&key.dir);
        pairs.and_then(|pairs| pairs.get(&key.stem)).map_or(0, |known| known.failures)
    }

    fn is_held_back(&self, key: &PairKey, now: Now) -> bool {
        let held = self.held_back.get(&key.dir).and_then(|pairs| pairs.get(&key.stem));
        held.is_some_and(|held| held.until > now.mono)
    }

    fn is_old_enough(&self, size: WaitingSize, now: Now) -> bool {
        evictable_from(size.since, self.min_age).is_some_and(|from| from <= now.wall)
    }

    /// Returns the last second in which a result may have been changed that is old enough now; `None` if all are too young.
    fn last_old_enough(&self, now: Now) -> Option<u32> {
        let is_old_enough =
            |since: &u32| self.is_old_enough(WaitingSize { blocks: 0, since: *since }, now);
        let age = i64::try_from(self.min_age.as_secs()).unwrap_or(i64::MAX);
        let about = seconds(now.wall.timestamp().saturating_sub(age));
        (0..=3).map(|back| about.saturating_sub(back)).find(is_old_enough)
    }

    /// Returns when a pair can be evicted, if there may be one.
    fn next(&self, now: Now) -> Option<Instant> {
        let choice = &self.choice;
        if !choice.pairs.is_empty() || !choice.is_complete {
            return Some(now.mono);
        }
        let more = choice.more_from.and_then(|at| {
            let left = (at - now.wall).to_std().unwrap_or(Duration::ZERO);
            now.mono.checked_add(left)
        });
        let at = [more, choice.retry_from].into_iter().flatten().min()?;
        Some(at.max(choice.valid_until))
    }

    /// Chooses the pairs that expire first among those that can be evicted, until they take `blocks`. Pairs `in_flight`
    /// can't.
    fn choose(
        &mut self,
        waiting: &Expiries<SizedEntry>,
        in_flight: &HashMap<PairKey, InFlight>,
        blocks: u64,
        now: Now,
    ) {
        let mut busy: HashMap<&Path, HashSet<&Stem>> = HashMap::new();
        for PairKey { dir, stem } in in_flight.keys() {
            busy.entry(dir).or_default().insert(stem);
        }
        self.held_back.retain(|_, pairs| {
            pairs.retain(|_, held| held.until + FAILURE_MEMORY > now.mono);
            !pairs.is_empty()
        });
        if self.first_seen.len() >= MAX_FIRST_SEEN {
            self.first_seen.retain(|key, _| waiting.contains(key));
        }
        let (mut young, mut oldest, mut retry_from) = (Young::default(), None, None);
        let mut chosen = FirstToEvict::new(blocks);
        let last = self.last_old_enough(now);
        for (dir, pairs) in waiting.entries() {
            let (held_back, busy) = (self.held_back.get(dir), busy.get(&**dir));
            for (stem, at, SizedEntry { size, .. }) in pairs {
                if size.blocks == 0 {
                    continue;
                }
                if last.is_none_or(|last| size.since > last) {
                    young.pairs += 1;
                    young.bytes += u64::from(size.blocks) * BLOCK;
                    oldest = Some(oldest.map_or(size.since, |before: u32| before.min(size.since)));
                    continue;
                }
                let until = held_back.and_then(|pairs| pairs.get(stem)).map(|held| held.until);
                if let Some(until) = until.filter(|until| *until > now.mono) {
                    retry_from =
                        Some(retry_from.map_or(until, |before: Instant| before.min(until)));
                } else if busy.is_none_or(|busy| !busy.contains(stem)) {
                    chosen.add(EvictablePair { at, dir, stem, blocks: size.blocks });
                }
            }
        }
        let more_from = oldest.and_then(|since| evictable_from(since, self.min_age));
        let (is_complete, valid_until) = (!chosen.has_more, now.mono + CHOICE_LIFETIME);
        let pairs = chosen.into_pairs();
        self.young = young;
        self.choice = Choice { pairs, valid_until, is_complete, more_from, retry_from };
    }

    /// Returns whether another choice may find pairs.
    fn can_choose(&self, now: Now) -> bool {
        self.choice.pairs.is_empty() && self.next(now).is_some_and(|at| at <= now.mono)
    }

    /// Drops a choice that no longer holds.
    fn drop_stale(&mut self, now: Now) {
        if !self.choice.pairs.is_empty() && self.choice.valid_until <= now.mono {
            self.choice.pairs.clear();
            self.choice.is_complete = false;
        }
    }
}

fn seconds(at: i64) -> u32 {
    u32::try_from(at.max(0)).unwrap_or(u32::MAX)
}

impl Schedule {
    /// Returns what all complete, valid pairs take on disk, and how much of it is about to be freed, in bytes.
    pub(crate) fn disk_size(&self) -> (u64, u64) {
        let Some(evictions) = &self.evictions else { return (0, 0) };
        let blocks = self.expiries.blocks() + evictions.unqueued_blocks;
        (blocks * BLOCK, evictions.leaving_blocks * BLOCK)
    }

    /// Returns what a complete pair takes on disk, in bytes, if that is known.
    pub(super) fn known_size(&self, key: &PairKey) -> Option<u64> {
        let unqueued = self.evictions.as_ref()?.unqueued.get(key).map(|known| known.size);
        let WaitingPairs::Sized(waiting) = &self.expiries else { return None };
        let size = unqueued.or_else(|| waiting.get(key).map(|(_, entry)| entry.size))?;
        Some(u64::from(size.blocks) * BLOCK)
    }

    /// Returns when a pair can be evicted, if there may be one.
    pub(super) fn next_eviction(&self, now: Now) -> Option<Instant> {
        self.evictions.as_ref()?.next(now)
    }

    /// Returns the pairs that are too young to be evicted, if no pair can be evicted now.
    pub(super) fn too_young(&self, now: Now) -> Option<Young> {
        let Evictions { choice, young, .. } = self.evictions.as_ref()?;
        let has_more = !choice.pairs.is_empty() || !choice.is_complete;
        let has_old_enough = choice.more_from.is_some_and(|from| from <= now.wall);
        (!has_more && !has_old_enough).then_some(*young)
    }

    /// Returns jobs that evict the pairs that expire first, until these take `bytes`, but at most a batch. Each job
    /// has to be completed by [`Schedule::complete`].
    pub(super) fn take_evictions(&mut self, bytes: u64, now: Now) -> Vec<Job> {
        let (mut jobs, mut blocks) = (Vec::new(), bytes.div_ceil(BLOCK));
        let Some(evictions) = &mut self.evictions else { return jobs };
        evictions.drop_stale(now);
        while blocks > 0 && jobs.len() < EVICTION_BATCH {
            let WaitingPairs::Sized(waiting) = &self.expiries else { break };
            let Some(evictions) = &mut self.evictions else { break };
            let Some((key, at)) = evictions.choice.pairs.pop_front() else {
                if !evictions.can_choose(now) {
                    break;
                }
                // Half as much again, in case that some can't be evicted.
                let wanted = blocks.saturating_mul(3) / 2;
                evictions.choose(waiting, &self.in_flight, wanted, now);
                if evictions.choice.pairs.is_empty() {
                    break;
                }
                continue;
            };
            let size =
                waiting.get(&key).filter(|(known, _)| *known == at).map(|(_, entry)| entry.size);
            let Some(size) = size else { continue };
            if !evictions.is_old_enough(size, now) {
                // The clock was set back.
                evictions.choice.pairs.clear();
                evictions.choice.is_complete = false;
                continue;
            }
            if evictions.is_held_back(&key, now) || self.in_flight.contains_key(&key) {
                continue;
            }
            blocks = blocks.saturating_sub(size.blocks.into());
            jobs.extend(self.begin_eviction(key, at, size));
        }
        sort_by_directory(&mut jobs);
        jobs
    }

    fn begin_eviction(
        &mut self,
        key: PairKey,
        expires_at: DateTime<Utc>,
        size: WaitingSize,
    ) -> Option<Job> {
        self.expiries.remove(&key);
        let evictions = self.evictions.as_mut()?;
        let future = evictions.first_seen.get(&key).map(|(ctime, _)| *ctime);
        let chosen = Chosen { expires_at, min_age: evictions.min_age, future };
        evictions.track_unqueued(key.clone(), size, true);
        // The eviction inspects the pair, too.
        let pending = self.inspections.shift_remove(&key);
        let trigger = pending.map(|pending| Trigger { appeared: true, ..pending });
        let trigger = trigger.unwrap_or_default();
        let mut job = self.begin(key, Attempts::default(), trigger)?;
        if let Some(in_flight_pair) = self.in_flight.get_mut(&job.key) {
            in_flight_pair.evicted = Some(chosen);
        }
        job.evict = Some(chosen);
        Some(job)
    }

    /// Records that an eviction has failed. The pair waits for its expiry again, and is held back. If the eviction took
    /// the place of an inspection, that is due again: the eviction may have failed before it read the metadata.
    pub(super) fn eviction_failed(
        &mut self,
        key: PairKey,
        failure: Failure,
        (chosen, trigger): (Chosen, Trigger),
        size: WaitingSize,
        now: Now,
    ) {
        let Some(evictions) = &mut self.evictions else { return };
        let failures = evictions.failures(&key);
        let pause = backoff(failures);
        evictions.hold_back_for(&key, pause, 1, now);
        let error =
            CountedError::Failed { failure, is_first: failures == 0, retry_in: Some(pause) };
        self.count_error(&key, Half::Result, error);
        if trigger.appeared {
            self.inspections.entry(key.clone()).or_default().merge(trigger);
        }
        self.expiries.insert(key, chosen.expires_at, self.last_scan, size);
    }

    /// Records that an eviction has left a pair as it was.
    pub(super) fn eviction_refused(&mut self, key: &PairKey, now: Now) {
        if let Some(evictions) = &mut self.evictions {
            evictions.hold_back(key, now);
        }
    }

    /// Returns the waiting pairs that can be evicted and expire before `at`.
    #[cfg(any(fuzzing, test))]
    pub(super) fn evictable_before(&self, at: DateTime<Utc>, now: Now) -> Vec<PairKey> {
        let (Some(evictions), WaitingPairs::Sized(waiting)) = (&self.evictions, &self.expiries)
        else {
            return Vec::new();
        };
        let is_evictable = |key: &PairKey, size: WaitingSize| {
            size.blocks > 0
                && evictions.is_old_enough(size, now)
                && !evictions.is_held_back(key, now)
                && !self.in_flight.contains_key(key)
        };
        let pairs = waiting.iter().filter(|(_, expires_at)| *expires_at < at);
        pairs
            .filter(|(key, _)| {
                waiting.get(key).is_some_and(|(_, entry)| is_evictable(key, entry.size))
            })
            .map(|(key, _)| key)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ctime_in_the_future_counts_from_when_it_was_first_seen() {
        let start = Instant::now();
        let mut evictions = Evictions::new(Duration::from_secs(60), start);
        let key = PairKey { dir: Path::new("a").into(), stem: Stem::new(b"x") };
        let at = |seconds: u64| Now {
            wall: DateTime::from_timestamp(1_800_000_000 + seconds as i64, 5).unwrap(),
            mono: start + Duration::from_secs(seconds),
        };
        let mut seen = |ctime: i64, seconds: u64| {
            let size = DiskSize { blocks: 8, ctime: (1_800_000_000 + ctime, 0) };
            let size = evictions.waits(&key, size, at(seconds));
            (size.since - 1_800_000_000, evictions.is_old_enough(size, at(seconds)))
        };
        assert_eq!(seen(5000, 10), (10, false));
        assert_eq!(seen(5000, 50), (10, false), "it is the same file");
        assert_eq!(seen(5000, 80), (10, true));
        assert_eq!(seen(6000, 90), (90, false), "it was published anew");
        assert_eq!(seen(20, 100), (20, true), "its ctime is in the past");
        assert_eq!(seen(6000, 110), (110, false), "what was known of it is forgotten");
    }

    #[test]
    fn the_last_second_that_is_old_enough_is_exact() {
        let mono = Instant::now();
        for min_age in [1, 999, 1000, 1001, 2500, 60_000, u64::MAX] {
            let evictions = Evictions::new(Duration::from_millis(min_age), mono);
            for ms in [0, 1, 499, 500, 501, 999] {
                let wall = DateTime::from_timestamp_millis(1_800_000_000_000 + ms).unwrap();
                let now = Now { wall, mono };
                let expected = (1_799_999_900..1_800_000_010).rfind(|since| {
                    evictions.is_old_enough(WaitingSize { blocks: 1, since: *since }, now)
                });
                assert_eq!(evictions.last_old_enough(now), expected, "{min_age} ms, {ms}");
            }
        }
    }
}
