//! Decisions of the core that are worth a name. The simulation in `fuzzing` drives the core as a whole.

use std::collections::HashMap;

use chrono::TimeDelta;

use super::command::{Command, EvictionStart};
use super::input::{Completion, EvictedBatch, Input, RootSeen, Watching};
use super::*;
use crate::pair::change::{WatchError, WatchState};
use crate::pair::disk_budget::{DiskSize, FreeSpace, MinFree};
use crate::pair::name::Stem;
use crate::pair::outcome::{Failure, JobResult, Outcome, ScanFound, Summary, Waiting};
use crate::pair::tally::ErrorKind;

const FALLBACK: Duration = Duration::from_secs(60);

/// A core, and a clock that only a test advances.
struct Trial {
    core: Core,
    now: Now,
}

impl Trial {
    /// A core whose cache directory has just been found.
    fn new(refusal: Option<WatchError>) -> Self {
        Self::start(refusal, None)
    }

    fn with_budget(budget: Budget) -> Self {
        Self::start(None, Some(budget))
    }

    fn start(refusal: Option<WatchError>, budget: Option<Budget>) -> Self {
        let wall = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let now = Now { wall, mono: Instant::now() };
        let intervals = Intervals { check: Duration::from_secs(6 * 3600), fallback: FALLBACK };
        let mut trial = Self { core: Core::new(intervals, budget, false, now.mono), now };
        let watching = Watching { refusal, reports_all_changes: true };
        trial.poll([Input::RootProbed(RootSeen::Replaced(watching))]);
        trial
    }

    /// Polls, and returns the scans that begin: the number of each, and the directories listed alone.
    fn poll(&mut self, inputs: impl IntoIterator<Item = Input>) -> Vec<(ScanId, Vec<Arc<Path>>)> {
        let commands = self.core.poll(self.now, inputs);
        let scan = |command| match command {
            Command::Scan(id, dirs) => Some((id, dirs.alone().cloned().collect())),
            _ => None,
        };
        commands.into_iter().filter_map(scan).collect()
    }

    /// Polls, and returns the pairs whose eviction begins. At most one batch runs at once.
    fn evicted(&mut self, inputs: impl IntoIterator<Item = Input>) -> Vec<PairKey> {
        let commands = self.core.poll(self.now, inputs);
        let jobs = commands.into_iter().filter_map(|command| match command {
            Command::Evict(jobs, _) => Some(jobs),
            _ => None,
        });
        jobs.flatten().map(|job| job.key).collect()
    }

    fn end_scan(&mut self, id: ScanId, summary: Summary) -> Vec<(ScanId, Vec<Arc<Path>>)> {
        let summary = Box::new(summary);
        let ended = Completion::ScanEnded { id, summary, took: Duration::ZERO };
        self.poll([Input::Completed(1, ended)])
    }

    fn pass(&mut self, time: Duration) -> Vec<(ScanId, Vec<Arc<Path>>)> {
        self.now.mono += time;
        self.poll([])
    }
}

fn tree(name: &str) -> Input {
    let subtrees = [Path::new(name).into()].into();
    Input::Changes(Changes { subtrees, ..Changes::default() })
}

#[test]
fn a_directory_that_is_refused_amid_a_sweep_which_has_passed_it_is_not_forgotten() {
    let mut trial = Trial::new(None);
    assert_eq!(trial.poll([tree("a")]), [(2, vec![])]);
    let refused = Some((1, WatchError::TooManyWatches));
    trial.end_scan(2, Summary { refused, ..Summary::default() });
    trial.end_scan(1, Summary::default());
    assert_eq!(trial.core.watch_state(), WatchState::Degraded);
    assert_eq!(trial.pass(FALLBACK), [(3, vec![])]);

    trial.end_scan(3, Summary::default());
    assert_eq!(trial.core.watch_state(), WatchState::Active);
    assert_eq!(trial.pass(FALLBACK), []);
}

#[test]
fn a_watcher_that_can_be_had_again_amid_a_sweep_without_it_is_used_by_another() {
    let mut trial = Trial::new(Some(WatchError::TooManyInstances));
    assert_eq!(trial.core.watch_state(), WatchState::Degraded);
    let watching = Watching { refusal: None, reports_all_changes: true };
    assert_eq!(trial.poll([Input::RootProbed(RootSeen::Rewatched(watching))]), []);
    assert_eq!(trial.core.watch_state(), WatchState::Active);
    trial.end_scan(1, Summary::default());
    assert_eq!(trial.pass(Duration::from_secs(2)), [(2, vec![])], "nothing is watched");
}

#[test]
fn a_directory_that_has_calmed_down_is_listed_at_once() {
    let mut trial = Trial::new(None);
    trial.end_scan(1, Summary::default());
    let dir: Arc<Path> = Path::new("a").into();
    let floods = |flooded: &[_], calm: &[_]| Input::Floods {
        flooded: flooded.to_vec(),
        calm: calm.iter().cloned().collect(),
    };
    assert_eq!(trial.poll([floods(&[Arc::clone(&dir)], &[])]), []);
    assert_eq!(trial.core.watch_state(), WatchState::Degraded);
    // A listing that an earlier watcher still watches for finds the end of the flood.
    assert_eq!(trial.poll([floods(&[], &[Arc::clone(&dir)])]), [(2, vec![dir])]);
    assert_eq!(trial.core.watch_state(), WatchState::Active);
}

#[test]
fn claims_of_several_pairs_do_not_delay_the_recovery_of_their_directory_for_each_other() {
    let mut trial = Trial::new(None);
    trial.end_scan(1, Summary::default());
    let key = |stem: &[u8]| PairKey { dir: Path::new("a").into(), stem: Stem::new(stem) };
    let appeared = Trigger { appeared: true, ..Trigger::default() };
    let pairs: HashMap<_, _> = [(key(b"x"), appeared), (key(b"y"), appeared)].into();
    let mut inputs = vec![Input::Changes(Changes { pairs, ..Changes::default() })];
    let deadline = trial.now.mono + Duration::from_secs(10);
    // The two are retried in turns.
    loop {
        let commands = trial.core.poll(trial.now, std::mem::take(&mut inputs));
        if commands.iter().any(|command| matches!(command, Command::Scan(..))) {
            break;
        }
        let jobs = commands.into_iter().flat_map(|command| match command {
            Command::Process(jobs) => jobs,
            _ => Vec::new(),
        });
        let outcome = |job: Job| JobResult { key: job.key, outcome: Outcome::ClaimedElsewhere };
        let found: Vec<_> = jobs.map(outcome).collect();
        if found.is_empty() {
            trial.now.mono = trial.core.next_wake(trial.now) + Duration::from_millis(1);
            assert!(trial.now.mono < deadline, "nobody recovers the claims");
            continue;
        }
        let done = Completion::Jobs { found, took: Duration::ZERO, holds: false, evicted: None };
        inputs.push(Input::Completed(1, done));
    }
}

#[test]
fn a_scan_that_finds_a_pair_claimed_is_no_attempt_of_its_own() {
    let now =
        Now { wall: DateTime::from_timestamp(1_800_000_000, 0).unwrap(), mono: Instant::now() };
    let mut schedule = Schedule::new(None, false, Instant::now());
    let key = PairKey { dir: Path::new("a").into(), stem: Stem::new(b"x") };
    let claimed = || JobResult { key: key.clone(), outcome: Outcome::ClaimedElsewhere };
    let appeared = Trigger { appeared: true, ..Trigger::default() };
    let pairs = [(key.clone(), appeared)].into();
    schedule.apply_changes(Changes { pairs, ..Changes::default() });
    assert_eq!(schedule.take_inspections(1).len(), 1);
    schedule.complete(claimed(), Source::Job, now);
    let wake = schedule.next_pair(now);
    for _ in 0..20 {
        let scan = schedule.begin_scan(Scope::Everything);
        let tally = schedule.complete(claimed(), Source::Scan(scan), now);
        assert_eq!(tally.errors.total(), 0);
        schedule.end_scan(scan, Summary::default(), now);
    }
    assert!(schedule.take_notices().is_empty());
    assert_eq!(schedule.next_pair(now), wake);
}

#[test]
fn what_a_job_reads_during_a_scan_that_does_not_find_it_is_inspected_again() {
    let now =
        Now { wall: DateTime::from_timestamp(1_800_000_000, 0).unwrap(), mono: Instant::now() };
    let mut schedule = Schedule::new(None, false, Instant::now());
    let key = |stem: &[u8]| PairKey { dir: Path::new("a").into(), stem: Stem::new(stem) };
    let keys = [key(b"x"), key(b"y")];
    let appeared = |key: &PairKey| (key.clone(), Trigger { appeared: true, ..Trigger::default() });
    let waits = |key: &PairKey| JobResult {
        key: key.clone(),
        outcome: Outcome::NotDue {
            expires_at: now.wall + chrono::TimeDelta::hours(1),
            bytes: None,
            size: None,
        },
    };
    let tree: SubtreeSet = [Arc::clone(&keys[0].dir)].into_iter().collect();
    let scan = schedule.begin_scan(Scope::Subtrees(tree));
    let pairs = keys.iter().map(appeared).collect();
    schedule.apply_changes(Changes { pairs, ..Changes::default() });
    assert_eq!(schedule.take_inspections(2).len(), 2);
    // The directory has no watch yet. It is moved away before the scan gets there, but after these jobs.
    schedule.complete(waits(&keys[0]), Source::Job, now);
    schedule.end_scan(scan, Summary::default(), now);
    schedule.complete(waits(&keys[1]), Source::Job, now);
    let mut again: Vec<_> = schedule.take_inspections(3).into_iter().map(|job| job.key).collect();
    again.sort_by(|a, b| a.stem.bytes().cmp(&b.stem.bytes()));
    assert_eq!(again, keys);
}

#[test]
fn nothing_is_evicted_for_a_free_space_that_can_not_be_read_any_more() {
    let min_free = Some(MinFree::Bytes(1 << 20));
    let budget = Budget { max_size: None, min_free, min_age: Duration::from_secs(1) };
    let mut trial = Trial::with_budget(budget);
    let pair = |number: u8| (Stem::new(&[number]), trial.now.wall + TimeDelta::days(1));
    let size = DiskSize { blocks: 8, ctime: (1_700_000_000, 0) };
    let waiting = Waiting {
        dir: Path::new("").into(),
        pairs: (0..200).map(pair).collect(),
        sizes: vec![size; 200],
    };
    let found = ScanFound { waiting: vec![waiting], others: Vec::new() };
    trial.poll([Input::Completed(1, Completion::ScanBatch { id: 1, found })]);
    trial.end_scan(1, Summary::default());
    let little = FreeSpace { free: 0, total: 1 << 30 };
    let evicted = trial.evicted([Input::FreeSpace(1, Ok(little))]);
    assert!(!evicted.is_empty());

    // From now on, the file system does not answer.
    let unknown = || Err("an error".to_owned());
    let outcome = |key| JobResult {
        key,
        outcome: Outcome::Evicted { freed: 4096, leftover: None, expires_at: trial.now.wall },
    };
    let bytes = evicted.len() as u64 * 4096;
    let done = Completion::Jobs {
        found: evicted.into_iter().map(outcome).collect(),
        took: Duration::ZERO,
        holds: false,
        evicted: Some(EvictedBatch {
            start: EvictionStart { size: None, batches_ended: 0 },
            space: None,
            bytes,
        }),
    };
    assert_eq!(trial.evicted([Input::Completed(1, done)]), []);
    for _ in 0..100 {
        trial.now.mono += Duration::from_secs(1);
        assert_eq!(trial.evicted([Input::FreeSpace(1, unknown())]), []);
    }
    assert!(!trial.evicted([Input::FreeSpace(1, Ok(little))]).is_empty());
}

#[test]
fn pairs_that_keep_changing_do_not_hold_up_the_others() {
    let mut schedule = Schedule::new(None, false, Instant::now());
    let key = |number: u32| PairKey {
        dir: Path::new("a").into(),
        stem: Stem::new(number.to_string().as_bytes()),
    };
    let appeared = Trigger { appeared: true, ..Trigger::default() };
    let change = |schedule: &mut Schedule, keys: &mut dyn Iterator<Item = PairKey>| {
        let pairs = keys.map(|key| (key, appeared)).collect();
        schedule.apply_changes(Changes { pairs, ..Changes::default() });
    };
    change(&mut schedule, &mut (0..100).map(key));
    let mut inspected = HashSet::new();
    for _ in 0..10 {
        let jobs = schedule.take_inspections(10);
        let again: Vec<_> = jobs.iter().map(|job| job.key.clone()).collect();
        inspected.extend(again.iter().cloned());
        for key in &again {
            schedule.in_flight.remove(key);
        }
        change(&mut schedule, &mut again.into_iter());
    }
    assert_eq!(inspected.len(), 100);
}

#[test]
fn a_change_that_an_eviction_overtakes_is_inspected_when_the_eviction_has_failed() {
    let budget = Budget { max_size: Some(BLOCK), min_free: None, min_age: Duration::ZERO };
    let mut trial = Trial::with_budget(budget);
    let key = PairKey { dir: Path::new("").into(), stem: Stem::new(b"a") };
    let size = DiskSize { blocks: 8, ctime: (0, 0) };
    let waiting = Waiting {
        dir: Arc::clone(&key.dir),
        pairs: vec![(key.stem.clone(), trial.now.wall + TimeDelta::hours(1))],
        sizes: vec![size],
    };
    let found = ScanFound { waiting: vec![waiting], others: Vec::new() };
    trial.poll([Input::Completed(1, Completion::ScanBatch { id: 1, found })]);
    let appeared = Trigger { appeared: true, ..Trigger::default() };
    let pairs: HashMap<_, _> = [(key.clone(), appeared)].into();
    let ended = Completion::ScanEnded { id: 1, summary: Box::default(), took: Duration::ZERO };
    let inputs =
        [Input::Changes(Changes { pairs, ..Changes::default() }), Input::Completed(1, ended)];
    assert_eq!(trial.evicted(inputs), std::slice::from_ref(&key));

    let failure = Failure::new(ErrorKind::Deletion, "open", &std::io::ErrorKind::NotFound.into());
    let done = Completion::Jobs {
        found: vec![JobResult { key: key.clone(), outcome: Outcome::Failed(failure) }],
        took: Duration::ZERO,
        holds: false,
        evicted: None,
    };
    let commands = trial.core.poll(trial.now, [Input::Completed(1, done)]);
    let is_inspected = |command: &Command| match command {
        Command::Process(jobs) => jobs.iter().any(|job| job.key == key),
        _ => false,
    };
    assert!(commands.iter().any(is_inspected), "{commands:?}");
}
