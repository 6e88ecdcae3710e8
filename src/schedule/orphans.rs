//! The schedule of searches for orphans: which directories to search, and when. Pure.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use super::backoff::backoff;
use crate::pair::outcome::{OrphanCandidates, OrphanPass};
use crate::schedule::queue::Queue;
use crate::sys::clock::Now;

/// How long after its first change a directory is searched. Further changes do not delay the search. This is long
/// enough for the other half to arrive, or for a file to be written again.
const PAUSE: TimeDelta = TimeDelta::seconds(2);
/// How many directories are searched in one batch.
const MAX_BATCH: usize = 64;
/// How long searches rest after a batch, as a multiple of the duration of the batch. Searches therefore
/// take at most a twentieth of the time.
const REST: u32 = 19;
/// How many candidates are kept, of all directories. Beyond that, only directories with candidates are searched.
const MAX_CANDIDATES: usize = 65_536;
/// The highest number of candidates that one search may add. The searches of a batch share the room that is left.
const MAX_NEW: usize = 4096;
/// The lowest number of candidates that one search may add, even if there is no room.
const MIN_NEW: usize = 64;

/// A directory to search, and the results of earlier searches.
pub(crate) type Due = (Arc<Path>, OrphanAttempts);

/// The results of earlier searches of a directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct OrphanAttempts {
    pub candidates: OrphanCandidates,
    /// How often in a row a search has failed.
    failures: u32,
}

/// The directories that wait for a search.
#[derive(Debug, Default)]
pub(crate) struct OrphanSchedule {
    /// Those without candidates.
    without_candidates: Queue<Arc<Path>, DateTime<Utc>, OrphanAttempts>,
    /// Those with candidates, which are searched again.
    with_candidates: Queue<Arc<Path>, DateTime<Utc>, OrphanAttempts>,
    /// How many candidates all directories have.
    candidates: usize,
    rest_until: Option<Instant>,
}

impl OrphanSchedule {
    /// Records that something has changed in these directories.
    pub(crate) fn note(&mut self, dirs: impl IntoIterator<Item = Arc<Path>>, now: Now) {
        for dir in dirs {
            self.at_the_latest(dir, now.wall + PAUSE);
        }
    }

    fn at_the_latest(&mut self, dir: Arc<Path>, at: DateTime<Utc>) {
        let (at, past) = match self.remove(&dir) {
            // A directory whose search failed keeps its pause, because attempts cause changes as well.
            Some((known, past)) if past.failures > 0 => (known, past),
            Some((known, past)) => (known.min(at), past),
            None => (at, OrphanAttempts::default()),
        };
        self.insert(dir, at, past);
    }

    /// Adds a directory, or replaces what is known of it.
    fn insert(&mut self, dir: Arc<Path>, at: DateTime<Utc>, past: OrphanAttempts) {
        self.remove(&dir);
        let count = past.candidates.len();
        self.candidates += count;
        let queue =
            if count == 0 { &mut self.without_candidates } else { &mut self.with_candidates };
        queue.insert(dir, at, past);
    }

    fn remove(&mut self, dir: &Arc<Path>) -> Option<(DateTime<Utc>, OrphanAttempts)> {
        let removed =
            self.without_candidates.remove(dir).or_else(|| self.with_candidates.remove(dir))?;
        self.candidates -= removed.1.candidates.len();
        Some(removed)
    }

    fn has_room(&self) -> bool {
        self.candidates < MAX_CANDIDATES
    }

    /// Returns some of the directories that are due, and how many candidates the search of each may add.
    pub(crate) fn take_due(&mut self, now: Now) -> (Vec<Due>, usize) {
        let mut due = Vec::new();
        if self.rest_until.is_some_and(|until| now.mono < until) {
            return (due, 0);
        }
        due.extend(std::iter::from_fn(|| self.with_candidates.pop_due(now.wall)).take(MAX_BATCH));
        self.candidates -= due.iter().map(|(_, past)| past.candidates.len()).sum::<usize>();
        if self.has_room() {
            let more = MAX_BATCH - due.len();
            due.extend(std::iter::from_fn(|| self.without_candidates.pop_due(now.wall)).take(more));
        }
        let room = MAX_CANDIDATES.saturating_sub(self.candidates) / due.len().max(1);
        (due, room.clamp(MIN_NEW, MAX_NEW))
    }

    /// Returns when to call [`OrphanSchedule::take_due`] again, if no change arrives before.
    pub(crate) fn next(&self, now: Now) -> Option<Instant> {
        let first = self.without_candidates.next().filter(|_| self.has_room());
        let next = [first, self.with_candidates.next()].into_iter().flatten().min()?;
        let left = (next - now.wall).to_std().unwrap_or(Duration::ZERO);
        let next = now.mono.checked_add(left)?;
        Some(self.rest_until.map_or(next, |until| next.max(until)))
    }

    /// Records that a batch has ended and how long it took.
    pub(crate) fn ended(&mut self, took: Duration, now: Now) {
        self.rest_until = now.mono.checked_add(took.saturating_mul(REST));
    }

    /// Records the outcome of one directory; returns whether it has failed for the first time.
    pub(crate) fn complete(&mut self, (dir, past): Due, pass: &mut OrphanPass, now: Now) -> bool {
        let OrphanAttempts { candidates: known, failures } = past;
        let mut candidates = std::mem::take(&mut pass.candidates);
        if pass.removed.pruned > 0 {
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            self.note(parent.map(Arc::from), now);
        }
        if !pass.failures.is_empty() {
            let pause = TimeDelta::from_std(backoff(failures)).unwrap_or(PAUSE);
            // The files that could not be removed were candidates before. If there are too many, they are found anew:
            // they must not take the room of those that can be removed.
            candidates.add_older(known);
            let total = self.candidates + candidates.len();
            if candidates.len() > MAX_NEW || total > MAX_CANDIDATES / 2 {
                candidates = OrphanCandidates::default();
            }
            let past = OrphanAttempts { candidates, failures: failures.saturating_add(1) };
            self.insert(dir, now.wall + pause, past);
            return failures == 0;
        }
        if !candidates.is_empty() {
            // Changes that arrived meanwhile do not matter: the candidates have to stay unchanged for
            // this long.
            self.insert(dir, now.wall + PAUSE, OrphanAttempts { candidates, failures: 0 });
        } else if let Some(next) = pass.next {
            self.at_the_latest(dir, next.max(now.wall + PAUSE));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::outcome::Failure;
    use crate::pair::tally::ErrorKind;
    use crate::pair::tally::OrphanTally;
    use crate::pair::version::FileState;

    fn at(seconds: u64, start: Instant) -> Now {
        Now {
            wall: DateTime::UNIX_EPOCH + Duration::from_secs(seconds),
            mono: start + Duration::from_secs(seconds),
        }
    }

    fn dir(name: &str) -> Arc<Path> {
        Path::new(name).into()
    }

    fn due(name: &str, failures: u32) -> Due {
        (dir(name), OrphanAttempts { failures, ..OrphanAttempts::default() })
    }

    #[test]
    fn a_directory_is_searched_once_for_all_that_happens_in_it() {
        let (start, mut schedule) = (Instant::now(), OrphanSchedule::default());
        for seconds in 0..2 {
            schedule.note([dir("a")], at(seconds, start));
        }
        assert_eq!(schedule.take_due(at(1, start)).0, []);
        assert_eq!(schedule.take_due(at(2, start)).0, [due("a", 0)]);
        assert_eq!(schedule.next(at(2, start)), None);

        let later = DateTime::UNIX_EPOCH + Duration::from_secs(3600);
        let mut pass = OrphanPass { next: Some(later), ..OrphanPass::default() };
        schedule.complete(due("a", 0), &mut pass, at(2, start));
        assert_eq!(schedule.next(at(2, start)), Some(at(3600, start).mono));
    }

    #[test]
    fn what_fails_waits_longer_each_time_whatever_changes_arrive() {
        let (start, mut schedule) = (Instant::now(), OrphanSchedule::default());
        let failure = Failure::new(ErrorKind::Orphan, "x", &std::io::ErrorKind::NotFound.into());
        let mut pass =
            OrphanPass { failures: vec![("a/x".into(), failure)], ..OrphanPass::default() };
        assert!(schedule.complete(due("a", 0), &mut pass, at(0, start)));
        schedule.note([dir("a")], at(0, start));
        assert_eq!(schedule.take_due(at(1, start)).0, [due("a", 1)]);
        schedule.note([dir("a")], at(1, start));
        assert!(!schedule.complete(due("a", 1), &mut pass, at(1, start)));
        assert_eq!(schedule.take_due(at(2, start)).0, []);
        assert_eq!(schedule.take_due(at(3, start)).0, [due("a", 2)]);
    }

    #[test]
    fn beside_what_fails_the_state_that_the_last_search_saw_counts() {
        let (start, mut schedule) = (Instant::now(), OrphanSchedule::default());
        let candidates = |states: &[(&[u8], u64)]| {
            let one = |(name, state): &(&[u8], u64)| (name.to_vec(), FileState::pretended(*state));
            OrphanCandidates { files: states.iter().map(one).collect(), directory: None }
        };
        // The first file was removed and left there again; the second one can't be removed.
        let before =
            OrphanAttempts { candidates: candidates(&[(b"x", 1), (b"y", 2)]), failures: 1 };
        let failure = Failure::new(ErrorKind::Orphan, "x", &std::io::ErrorKind::NotFound.into());
        let mut pass = OrphanPass {
            failures: vec![("a/y".into(), failure)],
            candidates: candidates(&[(b"x", 3)]),
            ..OrphanPass::default()
        };
        schedule.complete((dir("a"), before), &mut pass, at(0, start));
        let (due, _) = schedule.take_due(at(3600, start));
        assert_eq!(due[0].1.candidates, candidates(&[(b"x", 3), (b"y", 2)]));
    }

    #[test]
    fn searches_take_a_twentieth_of_the_time_at_most() {
        let (start, mut schedule) = (Instant::now(), OrphanSchedule::default());
        schedule.note((0..100).map(|number| dir(&number.to_string())), at(0, start));
        assert_eq!(schedule.take_due(at(10, start)).0.len(), MAX_BATCH);
        schedule.ended(Duration::from_secs(1), at(11, start));
        assert_eq!(schedule.take_due(at(29, start)).0, []);
        assert_eq!(schedule.next(at(29, start)), Some(at(30, start).mono));
        assert_eq!(schedule.take_due(at(30, start)).0.len(), 100 - MAX_BATCH);
    }

    #[test]
    fn the_parent_of_what_was_pruned_may_be_next_but_never_the_cache_directory() {
        let (start, mut schedule) = (Instant::now(), OrphanSchedule::default());
        let mut pass = OrphanPass {
            removed: OrphanTally { pruned: 1, ..OrphanTally::default() },
            ..OrphanPass::default()
        };
        schedule.complete(due("a/b", 0), &mut pass, at(0, start));
        schedule.complete(due("c", 0), &mut pass, at(0, start));
        assert_eq!(schedule.take_due(at(5, start)).0, [due("a", 0)]);
    }

    #[test]
    fn beyond_a_bound_no_search_adds_candidates_before_others_are_gone() {
        let (start, mut schedule) = (Instant::now(), OrphanSchedule::default());
        let count = MAX_CANDIDATES / MAX_NEW;
        let pass = || {
            let one = |number: usize| (number.to_string().into_bytes(), FileState::pretended(1));
            let candidates = OrphanCandidates {
                files: (0..MAX_NEW).map(one).collect(),
                ..OrphanCandidates::default()
            };
            OrphanPass { candidates, ..OrphanPass::default() }
        };
        for number in 0..count {
            schedule.complete(due(&number.to_string(), 0), &mut pass(), at(0, start));
        }
        schedule.note([dir("new")], at(0, start));
        let (known, limit) = schedule.take_due(at(2, start));
        assert_eq!((known.len(), limit), (count + 1, MAX_CANDIDATES / (count + 1)));
        schedule.note([dir("new")], at(2, start));
        for due in known {
            schedule.complete(due, &mut pass(), at(2, start));
        }
        assert!(!schedule.has_room());
        let (known, limit) = schedule.take_due(at(4, start));
        assert_eq!((known.len(), limit), (count + 1, MAX_CANDIDATES / (count + 1)));

        // What can't be removed does not keep others from being found.
        let failure = Failure::new(ErrorKind::Orphan, "x", &std::io::ErrorKind::NotFound.into());
        for due in known {
            let failures = vec![("x".into(), failure)];
            schedule.complete(due, &mut OrphanPass { failures, ..pass() }, at(4, start));
        }
        assert!(schedule.has_room());
    }
}
