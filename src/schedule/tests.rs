//! The schedule against a polling oracle: random operations on a simulated disk. Events are dropped,
//! duplicated and reordered. Work is read at one time and applied at another; it fails, or another
//! cleaner claims it. The cleaner restarts.
//!
//! `RESULT_CLEANER_TEST_OPERATIONS` sets the number of operations.

use std::collections::BTreeMap;

mod disk;

use self::disk::{Disk, Halves, Metadata, Name, REASON, name};
use super::*;
use crate::pair::change::Change;
use crate::pair::outcome::{JobResult, Outcome};
use crate::trial::{extent, figure, seed};

struct World {
    disk: Disk,
    schedule: Schedule,
    /// True if changes were lost, so that a sweep has to start.
    events_lost: bool,
    /// Jobs that were not started, and outcomes that were not applied.
    jobs: Vec<Job>,
    outcomes: Vec<JobResult>,
    scans: Vec<Pass>,
    deleted: u64,
    /// How many errors the schedule has counted since it started, and how many of these were failures.
    errors: u64,
    failures: u64,
    /// How often a pair was found claimed by another cleaner, which may count as an error.
    taken: u64,
    /// Versions of broken metadata that were seen, and those that existed at rest.
    broken_seen: HashSet<u64>,
    broken_at_rest: HashSet<u64>,
}

/// A running scan.
struct Pass {
    id: ScanId,
    scope: Scope,
    marks: Marks,
    to_read: Vec<Name>,
    read: Vec<JobResult>,
    summary: Summary,
    has_recovered: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            disk: Disk::new(seed),
            schedule: Schedule::default(),
            events_lost: true,
            jobs: Vec::new(),
            outcomes: Vec::new(),
            scans: Vec::new(),
            deleted: 0,
            errors: 0,
            failures: 0,
            taken: 0,
            broken_seen: HashSet::new(),
            broken_at_rest: HashSet::new(),
        }
    }

    /// Kills the cleaner and starts it again.
    fn restart(&mut self) {
        self.disk.crash();
        let disk = std::mem::replace(&mut self.disk, Disk::new(0));
        *self = Self { disk, deleted: self.deleted, ..Self::new(0) };
    }

    /// Performs one operation on the disk, of the kernel or of the worker.
    fn step(&mut self) {
        match self.disk.random.below(20) {
            0..=9 => self.disk.operate(),
            10 | 11 => self.deliver_events(),
            12 | 13 => self.take_jobs(),
            14 | 15 => self.read_a_job(),
            16 => self.settle_an_outcome(),
            17 => {
                let sweep = self.disk.random.one_in(16);
                self.begin_scans(sweep);
            }
            18 if self.disk.random.one_in(40) => self.restart(),
            _ => self.go_on_with_a_scan(),
        }
    }

    fn deliver_events(&mut self) {
        for _ in 0..self.disk.random.below(self.disk.events.len() + 1) {
            let mut changes = Changes::default();
            match self.disk.next_event() {
                Some(Change::Pair(key, trigger)) => drop(changes.pairs.insert(key, trigger)),
                Some(Change::Subtree(tree)) => drop(changes.trees.insert(tree)),
                Some(Change::Directory(dir)) => drop(changes.dirs.insert(dir)),
                Some(Change::Orphans(_)) => unreachable!("nobody asked for it"),
                Some(Change::EventsLost) => self.events_lost = true,
                None => {}
            }
            self.schedule.apply_changes(changes);
        }
    }

    fn take_jobs(&mut self) {
        if self.jobs.len() < 8 {
            let limit = 1 + self.disk.random.below(16);
            let mut jobs = self.schedule.take_inspections(limit);
            jobs.extend(self.schedule.take_due(self.disk.now, limit));
            jobs.sort_by_key(|job| name(&job.key));
            self.jobs.extend(jobs);
        }
    }

    fn read_a_job(&mut self) {
        if !self.jobs.is_empty() {
            let at = self.disk.random.below(self.jobs.len());
            let job = self.jobs.swap_remove(at);
            self.outcomes.push(self.disk.attend(job));
        }
    }

    fn settle_an_outcome(&mut self) {
        if !self.outcomes.is_empty() {
            let at = self.disk.random.below(self.outcomes.len());
            let found = self.outcomes.swap_remove(at);
            self.settle(found, Source::Job);
        }
    }

    fn settle(&mut self, found: JobResult, source: Source) {
        match &found.outcome {
            Outcome::Failed(_)
            | Outcome::RestoreFailed(_)
            | Outcome::Deleted { leftover: Some(_), .. } => self.failures += 1,
            Outcome::ClaimedElsewhere => self.taken += 1,
            Outcome::Broken { metadata, .. } => drop(self.broken_seen.insert(metadata.version.ino)),
            _ => {}
        }
        let tally = self.schedule.complete(found, source, self.disk.now);
        self.deleted += tally.deleted;
        self.errors += tally.errors;
    }

    fn begin_scans(&mut self, sweep: bool) {
        let trees = self.schedule.take_trees(self.disk.now);
        if !trees.is_empty() {
            self.begin_scan(Scope::Subtrees(trees));
        }
        let sweeping = self.scans.iter().any(|scan| scan.scope == Scope::Everything);
        if (sweep || self.events_lost) && !sweeping {
            self.events_lost = false;
            self.begin_scan(Scope::Everything);
        }
    }

    fn begin_scan(&mut self, scope: Scope) {
        let (to_read, summary) = self.disk.list(&scope);
        let marks = self.schedule.marks();
        let id = self.schedule.begin_scan(scope.clone());
        let read = Vec::new();
        self.scans.push(Pass { id, scope, marks, to_read, read, summary, has_recovered: false });
    }

    fn go_on_with_a_scan(&mut self) {
        if self.scans.is_empty() {
            return;
        }
        let at = self.disk.random.below(self.scans.len());
        for _ in 0..self.disk.random.below(20) {
            let scan = &mut self.scans[at];
            if let Some(name) = scan.to_read.pop() {
                scan.read.push(self.disk.attend_listed(&name, &scan.marks));
            }
            if self.disk.random.one_in(2)
                && let Some(found) = scan.read.pop()
            {
                let id = scan.id;
                self.settle(found, Source::Scan(id));
            }
        }
        let scan = &mut self.scans[at];
        if scan.to_read.is_empty() && scan.read.is_empty() {
            if !scan.has_recovered {
                scan.has_recovered = true;
                scan.to_read = self.disk.recover(&scan.scope, &mut scan.summary);
                return;
            }
            let Pass { id, summary, .. } = self.scans.swap_remove(at);
            let (stranded, unreadable) = (summary.stranded.len(), summary.unreadable.len());
            let deleted = summary.finished;
            let tally = self.schedule.end_scan(id, summary, self.disk.now);
            let errors = tally.errors;
            assert_eq!(tally, Tally { deleted, errors, ..Tally::default() });
            // A directory that can't be read counts once.
            assert!((stranded as u64..=(stranded + unreadable) as u64).contains(&errors));
            self.errors += errors;
            self.failures += errors;
            self.deleted += deleted;
        }
    }

    /// Lets all running work end, without a sweep unless events were lost.
    fn come_to_rest(&mut self) {
        self.disk.calm_down();
        for _ in 0..20_000 {
            self.deliver_events();
            if self.disk.events.is_empty() {
                self.events_lost |= std::mem::take(&mut self.disk.needs_sweep);
            }
            self.begin_scans(false);
            self.take_jobs();
            while !self.jobs.is_empty() {
                self.read_a_job();
            }
            while !self.outcomes.is_empty() {
                self.settle_an_outcome();
            }
            self.go_on_with_a_scan();
            // The monotonic clock advances, so pauses end; the wall clock does not, so nothing expires.
            self.disk.now.mono += Duration::from_secs(1);
            let now = self.disk.now;
            let at_rest = self.disk.events.is_empty()
                && self.scans.is_empty()
                && !self.events_lost
                && !self.disk.needs_sweep
                && self.schedule.next_pair(now).is_none_or(|at| at > now.mono)
                && self.schedule.retries.len() == 0
                && self.schedule.next_tree(now).is_none();
            if at_rest {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Checks that the schedule has the state that a polling program would have after its sweep.
    fn assert_equals_polling(&mut self) {
        let mut expected = BTreeMap::new();
        for (name, Halves { result, metadata, taken }) in &self.disk.names {
            assert_eq!(*taken, (None, None), "{name:?} was not taken up");
            match metadata.filter(|_| result.is_some()) {
                Some(Metadata::Valid(at)) => {
                    assert!(at > self.disk.now.wall, "{name:?} should have been deleted");
                    expected.insert(name.clone(), at);
                }
                Some(Metadata::Broken(version)) => {
                    let seen = crate::pair::version::FileState::pretended(version).version;
                    let told =
                        self.schedule.half_written.was_told(seen, &REASON, self.schedule.last_scan);
                    assert!(told, "{name:?} was not told");
                    self.broken_at_rest.insert(version);
                }
                Some(Metadata::HalfWritten(_)) => panic!("nobody writes any more"),
                None => {}
            }
        }
        let heap: BTreeMap<Name, DateTime<Utc>> =
            self.schedule.expiries.iter().map(|(key, at)| (name(&key), at)).collect();
        assert_eq!(heap, expected);
        assert_eq!(self.schedule.next_expiry(), expected.values().min().copied());
        assert!(self.schedule.in_flight.is_empty() && self.schedule.inspections.is_empty());
        assert!(self.schedule.retried.is_empty());
        assert_eq!(self.schedule.unreadable, HashSet::new());
        let counted = self.errors - self.failures;
        let (least, most) = (self.broken_at_rest.len() as u64, self.broken_seen.len() as u64);
        assert!(counted >= least, "{counted} of {least} broken versions were counted");
        assert!(counted <= most + self.taken, "{counted} counted of {most} broken versions");
    }
}

#[test]
fn whatever_happens_it_ends_as_a_polling_cleaner_would() {
    let operations = extent("RESULT_CLEANER_TEST_OPERATIONS", 30_000, 1_000_000);
    let mut seed = seed();
    let mut deleted = 0;
    for _ in 0..operations.div_ceil(1000) {
        println!("from seed {seed}");
        let mut world = World::new(seed);
        for round in 1..=1000 {
            world.step();
            if round % 250 == 0 {
                world.come_to_rest();
                world.assert_equals_polling();
            }
        }
        deleted += world.deleted;
        seed = seed.wrapping_add(1);
    }
    assert!(deleted > 0, "nothing was ever deleted, so that little was tested");
    figure("model against polling oracle", format!("{operations} operations, 0 divergences"));
}

#[test]
fn what_a_job_reads_during_a_scan_that_does_not_find_it_is_inspected_again() {
    let now =
        Now { wall: DateTime::from_timestamp(1_800_000_000, 0).unwrap(), mono: Instant::now() };
    let mut schedule = Schedule::default();
    let keys = [1, 2].map(|stem| disk::key(&("a".to_owned(), stem)));
    let appeared = |key: &PairKey| (key.clone(), Trigger { appeared: true, ..Trigger::default() });
    let waits = |key: &PairKey| JobResult {
        key: key.clone(),
        outcome: Outcome::NotDue {
            expires_at: now.wall + chrono::TimeDelta::hours(1),
            bytes: None,
            mark: None,
        },
    };
    let tree: SubtreeSet = [Arc::clone(&keys[0].dir)].into_iter().collect();
    let scan = schedule.begin_scan(Scope::Subtrees(tree));
    schedule.apply_changes(Changes {
        pairs: keys.iter().map(appeared).collect(),
        ..Changes::default()
    });
    assert_eq!(schedule.take_inspections(2).len(), 2);
    // The directory has no watch yet. It is moved away before the scan gets there, but after these jobs.
    schedule.complete(waits(&keys[0]), Source::Job, now);
    schedule.end_scan(scan, Summary::default(), now);
    schedule.complete(waits(&keys[1]), Source::Job, now);
    let mut again = schedule.take_inspections(3);
    again.sort_by_key(|job| name(&job.key));
    assert_eq!(again.into_iter().map(|job| job.key).collect::<Vec<_>>(), keys);
}
