//! The agenda against a polling oracle: random operations on a pretended disk, with events that are
//! dropped, doubled and reordered, and with work that is read at one time and settled at another.
//!
//! `RESULT_CLEANER_TEST_OPERATIONS` sets how many operations.

use std::collections::BTreeMap;

#[path = "../../tests/common/trial.rs"]
mod trial;

use self::trial::{Random, extent, figure, seed};
use super::*;
use crate::look::Seen;

#[derive(Debug, Clone, PartialEq)]
enum Metadata {
    Valid(DateTime<Utc>),
    /// Which version of a broken file it is.
    Broken(u64),
}

/// The two halves of a pair.
#[derive(Debug, Clone, Default, PartialEq)]
struct Halves {
    result: bool,
    metadata: Option<Metadata>,
}

type Name = (String, u8);

struct World {
    random: Random,
    disk: BTreeMap<Name, Halves>,
    wall: DateTime<Utc>,
    mono: Instant,
    agenda: Agenda,
    /// Events that were not delivered yet.
    events: Vec<crate::change::Change>,
    missed: bool,
    /// Jobs that were not begun, and outcomes that were not settled.
    jobs: Vec<Job>,
    outcomes: Vec<Found>,
    scans: Vec<Pass>,
    versions: u64,
    deleted: u64,
    errors: u64,
    broken_seen: HashSet<u64>,
}

/// A scan that is under way.
struct Pass {
    id: ScanId,
    to_read: Vec<Name>,
    read: Vec<Found>,
}

const DIRS: [&str; 5] = ["", "a", "a/b", "c", "c/d/e"];

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            disk: BTreeMap::new(),
            wall: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
            mono: Instant::now(),
            agenda: Agenda::default(),
            events: Vec::new(),
            missed: false,
            jobs: Vec::new(),
            outcomes: Vec::new(),
            scans: Vec::new(),
            versions: 0,
            deleted: 0,
            errors: 0,
            broken_seen: HashSet::new(),
        }
    }

    fn now(&self) -> Now {
        Now { wall: self.wall, mono: self.mono }
    }

    fn key((dir, stem): &Name) -> Key {
        Key { dir: Path::new(dir).into(), stem: crate::entry::Stem::new(&[b'p', *stem]) }
    }

    fn name(key: &Key) -> Name {
        (key.dir.to_str().unwrap().to_owned(), key.stem.bytes()[1])
    }

    fn emit(&mut self, change: crate::change::Change) {
        if self.random.one_in(200) {
            // The queue overflows: this is lost, and what is left says so.
            self.missed = true;
            return;
        }
        if self.random.one_in(20) {
            self.events.push(change.clone());
        }
        self.events.push(change);
    }

    fn told(&mut self, name: &Name, appeared: bool, writer: Writer) {
        let trigger = Trigger { appeared, writer };
        self.emit(crate::change::Change::Pair(Self::key(name), trigger));
    }

    /// One operation of a writer, the clock, the kernel or the worker.
    fn step(&mut self) {
        let dir = DIRS[self.random.below(DIRS.len())].to_owned();
        let name = (dir, self.random.below(12) as u8);
        match self.random.below(20) {
            0..=3 => self.write_metadata(name),
            4 | 5 => {
                self.disk.entry(name.clone()).or_default().result = true;
                self.told(&name, true, Writer::Unknown);
            }
            6 => {
                self.disk.entry(name.clone()).or_default().metadata = None;
                self.told(&name, false, Writer::Unknown);
            }
            7 => {
                self.disk.entry(name.clone()).or_default().result = false;
                self.told(&name, false, Writer::Unknown);
            }
            8 => self.move_tree(),
            9 => {
                let seconds =
                    self.random.below(30) as i64 - if self.random.one_in(4) { 40 } else { 0 };
                self.wall += chrono::TimeDelta::seconds(seconds);
                self.mono += Duration::from_secs(self.random.below(5) as u64);
            }
            10 | 11 => self.deliver_events(),
            12 | 13 => self.take_jobs(),
            14 | 15 => self.read_a_job(),
            16 => self.settle_an_outcome(),
            17 => self.begin_scans(self.random.0.is_multiple_of(16)),
            _ => self.go_on_with_a_scan(),
        }
    }

    fn write_metadata(&mut self, name: Name) {
        let metadata = if self.random.one_in(5) {
            self.versions += 1;
            Metadata::Broken(self.versions)
        } else {
            let seconds = self.random.below(120) as i64 - 20;
            Metadata::Valid(self.wall + chrono::TimeDelta::seconds(seconds))
        };
        self.disk.entry(name.clone()).or_default().metadata = Some(metadata);
        self.told(&name, true, Writer::Done);
    }

    /// Renames a directory with all below it over another one that is empty, or away.
    fn move_tree(&mut self) {
        let from = DIRS[1 + self.random.below(DIRS.len() - 1)];
        let to = DIRS[1 + self.random.below(DIRS.len() - 1)];
        let below = |dir: &str, tree: &str| Path::new(dir).starts_with(tree);
        if from != to && (below(to, from) || below(from, to)) {
            return;
        }
        let moved: Vec<Name> =
            self.disk.keys().filter(|(dir, _)| below(dir, from)).cloned().collect();
        self.disk.retain(|(dir, _), _| from == to || !below(dir, to));
        for name in moved {
            let halves = self.disk.remove(&name).unwrap();
            let rest = Path::new(&name.0).strip_prefix(from).unwrap().to_str().unwrap();
            if from != to && rest.is_empty() {
                self.disk.insert((to.to_owned(), name.1), halves);
            }
        }
        for tree in [from, to] {
            self.emit(crate::change::Change::Tree(Path::new(tree).into()));
        }
    }

    fn deliver_events(&mut self) {
        for _ in 0..self.random.below(self.events.len() + 1) {
            let at = self.random.below(self.events.len());
            let mut news = News::default();
            match self.events.swap_remove(at) {
                crate::change::Change::Pair(key, trigger) => {
                    news.pairs.insert(key, trigger);
                }
                crate::change::Change::Tree(tree) => {
                    news.trees.insert(tree);
                }
                crate::change::Change::Missed => self.missed = true,
            }
            self.agenda.note(news);
        }
    }

    fn take_jobs(&mut self) {
        if self.jobs.len() < 8 {
            let limit = 1 + self.random.below(16);
            let mut jobs = self.agenda.take_jobs(self.now(), limit);
            jobs.sort_by_key(|job| Self::name(&job.key));
            self.jobs.extend(jobs);
        }
    }

    fn read_a_job(&mut self) {
        if !self.jobs.is_empty() {
            let at = self.random.below(self.jobs.len());
            let job = self.jobs.swap_remove(at);
            let found = self.attend(job.key);
            self.outcomes.push(found);
        }
    }

    fn settle_an_outcome(&mut self) {
        if !self.outcomes.is_empty() {
            let at = self.random.below(self.outcomes.len());
            let found = self.outcomes.swap_remove(at);
            self.settle(found, Source::Job);
        }
    }

    fn settle(&mut self, found: Found, source: Source) {
        let activity = self.agenda.settle(found, source, self.now());
        self.deleted += activity.deleted;
        self.errors += activity.errors;
    }

    /// What the disk has of a pair now; deletes it if it may go.
    fn attend(&mut self, key: Key) -> Found {
        let halves = self.disk.get(&Self::name(&key)).cloned().unwrap_or_default();
        let outcome = match halves {
            Halves { result: true, metadata: Some(Metadata::Broken(version)) } => {
                self.broken_seen.insert(version);
                Outcome::Broken {
                    metadata: Seen::pretended(version),
                    reason: Broken::Unreadable(5),
                    wait: Duration::from_secs(self.random.below(2) as u64),
                    bytes: 1,
                }
            }
            Halves { result: true, metadata: Some(Metadata::Valid(expires_at)) } => {
                if self.random.one_in(50) {
                    Outcome::Changed
                } else if expires_at > self.wall {
                    Outcome::Waiting { expires_at, bytes: 1 }
                } else {
                    let name = Self::name(&key);
                    self.disk.insert(name.clone(), Halves::default());
                    self.told(&name, false, Writer::Unknown);
                    Outcome::Removed { freed: 1, leftover: None }
                }
            }
            _ => Outcome::Incomplete,
        };
        Found { key, outcome }
    }

    fn begin_scans(&mut self, full: bool) {
        let trees = self.agenda.take_trees(self.now());
        if !trees.is_empty() {
            self.begin_scan(Scope::Trees(trees));
        }
        let full_runs = self.agenda.scans.iter().any(|scan| scan.scope == Scope::Everything);
        if (full || self.missed) && !full_runs {
            self.missed = false;
            self.begin_scan(Scope::Everything);
        }
    }

    fn begin_scan(&mut self, scope: Scope) {
        let covered = |name: &&Name| scope.covers(Path::new(&name.0));
        let to_read = self.disk.keys().filter(covered).cloned().collect();
        let id = self.agenda.begin_scan(scope);
        self.scans.push(Pass { id, to_read, read: Vec::new() });
    }

    fn go_on_with_a_scan(&mut self) {
        if self.scans.is_empty() {
            return;
        }
        let at = self.random.below(self.scans.len());
        for _ in 0..self.random.below(20) {
            let scan = &mut self.scans[at];
            let id = scan.id;
            if let Some(name) = scan.to_read.pop() {
                let found = self.attend(Self::key(&name));
                self.scans[at].read.push(found);
            }
            if self.random.one_in(2)
                && let Some(found) = self.scans[at].read.pop()
            {
                self.settle(found, Source::Scan(id));
            }
        }
        let scan = &self.scans[at];
        if scan.to_read.is_empty() && scan.read.is_empty() {
            let id = self.scans.swap_remove(at).id;
            let activity = self.agenda.end_scan(id, Summary::default(), self.now());
            assert_eq!(activity, Activity::default());
        }
    }

    /// Lets all that is under way end, without a sweep unless events were lost.
    fn come_to_rest(&mut self) {
        for _ in 0..10_000 {
            self.deliver_events();
            self.begin_scans(false);
            self.take_jobs();
            while !self.jobs.is_empty() {
                self.read_a_job();
            }
            while !self.outcomes.is_empty() {
                self.settle_an_outcome();
            }
            self.go_on_with_a_scan();
            // Pauses end; what waits for the wall clock does not.
            self.mono += Duration::from_secs(1);
            let at_rest = self.events.is_empty()
                && self.scans.is_empty()
                && !self.missed
                && self.agenda.next_pair(self.now()).is_none_or(|at| at > self.mono)
                && self.agenda.later.len() == 0
                && self.agenda.trees.is_empty();
            if at_rest {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// What a program that polls would know after its sweep.
    fn assert_equals_polling(&mut self) {
        let mut expected = BTreeMap::new();
        for (name, halves) in &self.disk {
            if let Halves { result: true, metadata: Some(Metadata::Valid(at)) } = halves {
                assert!(*at > self.wall, "{name:?} should have been deleted");
                expected.insert(name.clone(), *at);
            }
        }
        let heap: BTreeMap<Name, DateTime<Utc>> =
            self.agenda.waiting.iter().map(|(key, at)| (Self::name(key), at)).collect();
        assert_eq!(heap, expected);
        assert!(self.agenda.in_flight.is_empty() && self.agenda.looks.is_empty());
        assert!(self.errors <= self.broken_seen.len() as u64, "a broken version was counted twice");
        for (name, halves) in &self.disk {
            if let Halves { result: true, metadata: Some(Metadata::Broken(version)) } = halves {
                let broken = (Seen::pretended(*version).version, Broken::Unreadable(5));
                let told = self.agenda.suspects.was_told(broken.0, &broken.1, 0);
                assert!(told, "{name:?} was not told");
            }
        }
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
