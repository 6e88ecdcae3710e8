//! Kernel events, from the watcher's translation to their effect on the schedule.
//!
//! The events come in any order, duplicated, with names that are relevant and names that are not. Three
//! rules have to hold. A change is about a path of its event and is within the root. A pair of which
//! something appeared is inspected afterwards. The pairs that wait in the end match the last outcome of
//! each pair.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use notify::event::{
    AccessKind, AccessMode, CreateKind, DataChange, Flag, MetadataKind, ModifyKind, RemoveKind,
    RenameMode,
};
use notify::{Event, EventKind};

use super::Input;
use crate::pair::change::{Change, Trigger};
use crate::pair::name::{Half, PairKey};
use crate::pair::outcome::Summary;
use crate::pair::outcome::{Failure, Job, JobResult, Outcome};
use crate::pair::version::{Broken, FileState};
use crate::schedule::{Schedule, Scope, Source};
use crate::sys::clock::Now;
use crate::watch::inbox::Inbox;
use crate::watch::{Translator, Watched};

/// Does not exist, so that the disk does not show what an event is about.
const ROOT: &str = "/nonexistent/cache";

/// Interprets `bytes` as events and as what happens between them.
pub fn events(bytes: &[u8]) {
    let mut world = World::new(Input(bytes));
    while !world.input.is_empty() {
        world.step();
    }
    world.come_to_rest();
}

struct World<'a> {
    input: Input<'a>,
    watched: Watched,
    translator: Translator,
    inbox: Inbox,
    schedule: Schedule,
    now: Now,
    in_flight: Vec<Job>,
    /// Every pair that any change was about.
    named: Vec<PairKey>,
    /// Pairs with changes in the inbox, and whether something appeared.
    told: HashMap<PairKey, bool>,
    /// Whether changes were lost: as the inbox knows, and as the schedule's owner knows.
    lost: bool,
    events_lost: bool,
    /// Pairs that have to be inspected, and those that may be.
    owed: HashSet<PairKey>,
    hinted: HashSet<PairKey>,
    /// The last known expiry of pairs that expire later.
    waiting: HashMap<PairKey, DateTime<Utc>>,
}

/// What an event means for a path.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    Appeared,
    Written,
    Vanished,
    /// Something that is not a directory has vanished.
    FileVanished,
    Directory,
    Nothing,
}

impl<'a> World<'a> {
    fn new(input: Input<'a>) -> Self {
        let watched = Watched::default();
        Self {
            input,
            translator: Translator::new(Path::new(ROOT), watched.clone()),
            watched,
            inbox: Inbox::default(),
            schedule: Schedule::default(),
            now: Now {
                wall: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
                mono: Instant::now(),
            },
            in_flight: Vec::new(),
            named: Vec::new(),
            told: HashMap::new(),
            lost: false,
            events_lost: false,
            owed: HashSet::new(),
            hinted: HashSet::new(),
            waiting: HashMap::new(),
        }
    }

    fn step(&mut self) {
        match self.input.below(16) {
            0..6 => self.event(),
            6 | 7 => self.deliver(),
            8 | 9 => self.take_jobs(),
            10 | 11 => {
                if !self.in_flight.is_empty() {
                    let at = self.input.below(self.in_flight.len());
                    let key = self.in_flight.swap_remove(at).key;
                    let outcome = self.outcome();
                    self.settle(key, outcome, Source::Job);
                }
            }
            12 => {
                let seconds = i64::from(self.input.byte()) - 64;
                self.now.wall += TimeDelta::seconds(seconds);
                self.now.mono += Duration::from_secs(self.input.byte().into());
            }
            13 | 14 => self.scan(),
            _ => {
                let rel = self.directory();
                self.watched.insert(&rel.into());
            }
        }
    }

    fn event(&mut self) {
        let (kind, says) = self.kind();
        let mut event = Event::new(kind);
        for _ in 0..self.input.pick(&[1, 1, 1, 1, 2, 0]) {
            event = event.add_path(self.path());
        }
        let mut rescan = false;
        if self.input.below(32) == 31 {
            event = event.set_flag(Flag::Rescan);
            rescan = true;
        }
        let shown = format!("{event:?}");
        let paths: Vec<PathBuf> = event.paths.iter().filter_map(|path| below_root(path)).collect();
        let is_error = self.input.below(64) == 63;
        let event = if is_error { Err(notify::Error::generic("x")) } else { Ok(event) };

        let mut changes = Vec::new();
        self.translator.translate(event, &mut |change| changes.push(change));
        if rescan || is_error {
            assert_eq!(changes, [Change::EventsLost], "{shown}");
        } else {
            for path in &paths {
                self.assert_told(path, says, &changes, &shown);
            }
            for change in &changes {
                assert_justified(change, &paths, &shown);
            }
        }
        for change in changes {
            match &change {
                Change::Pair(key, Trigger { appeared, .. }) => {
                    if !self.named.contains(key) {
                        self.named.push(key.clone());
                    }
                    *self.told.entry(key.clone()).or_default() |= appeared;
                }
                Change::Subtree(_) | Change::Directory(_) | Change::Orphans(_) => {}
                Change::EventsLost => self.lost = true,
            }
            self.inbox.push(change);
        }
    }

    fn kind(&mut self) -> (EventKind, Says) {
        use EventKind::{Access, Create, Modify, Remove};
        self.input.pick(&[
            (Create(CreateKind::File), Says::Appeared),
            (Access(AccessKind::Close(AccessMode::Write)), Says::Appeared),
            (Modify(ModifyKind::Name(RenameMode::To)), Says::Appeared),
            (Modify(ModifyKind::Metadata(MetadataKind::Any)), Says::Appeared),
            (Modify(ModifyKind::Data(DataChange::Any)), Says::Written),
            (Modify(ModifyKind::Name(RenameMode::From)), Says::Vanished),
            (Remove(RemoveKind::File), Says::FileVanished),
            (Remove(RemoveKind::Other), Says::Vanished),
            (Create(CreateKind::Folder), Says::Directory),
            (Remove(RemoveKind::Folder), Says::Directory),
            (Modify(ModifyKind::Name(RenameMode::Both)), Says::Nothing),
            (Access(AccessKind::Open(AccessMode::Any)), Says::Nothing),
            (Access(AccessKind::Close(AccessMode::Read)), Says::Nothing),
            (EventKind::Other, Says::Nothing),
        ])
    }

    fn path(&mut self) -> PathBuf {
        match self.input.below(16) {
            0 => ROOT.into(),
            1 => self.input.pick(&["", "/", "/nonexistent", "a.metadata.json"]).into(),
            2 => Path::new("/nonexistent/cachex").join(self.name()),
            3 => Path::new(ROOT).join(self.directory()),
            _ => Path::new(ROOT).join(self.directory()).join(self.name()),
        }
    }

    fn directory(&mut self) -> PathBuf {
        let dirs: &[&[u8]] =
            &[b"", b"s", b"s/t", b"\xff", b"d.metadata.json", b".result-cleaner-d.r"];
        OsStr::from_bytes(self.input.pick(dirs)).into()
    }

    /// Returns a name that the kernel may report.
    fn name(&mut self) -> PathBuf {
        const UUID: &[u8] = b"b9cae70a-aead-4aa8-9037-cd243541f7b3";
        let mut name = Vec::new();
        if self.input.below(8) == 7 {
            name.extend(b".result-cleaner-");
        }
        if self.input.below(8) == 7 {
            let raw = (0..self.input.below(40)).map(|_| self.input.byte());
            name.extend(raw.filter(|byte| !b"\0/".contains(byte)));
        } else {
            name.extend(self.input.pick(&[
                &b"x"[..],
                b"y",
                UUID,
                b"",
                b"\xff\n",
                b"z.metadata.json",
            ]));
        }
        let ends: &[&[u8]] = &[
            b".metadata.json",
            b".result.json.lz4",
            b".metadata.json",
            b".result.json.lz4",
            b".metadata.json.tmp",
            b".r",
            b".m",
            b"",
        ];
        name.extend(self.input.pick(ends));
        if [&b""[..], b".", b".."].contains(&name.as_slice()) {
            name = b"x".to_vec();
        }
        OsStr::from_bytes(&name).into()
    }

    /// Asserts that the changes contain everything that they must about a path below the root.
    fn assert_told(&self, rel: &Path, says: Says, changes: &[Change], shown: &str) {
        let is_watched = self.watched.has_below(rel);
        let tree = changes.contains(&Change::Subtree(rel.into()));
        let pair = half(rel).and_then(|half| {
            let told = changes.iter().filter_map(|change| match change {
                Change::Pair(key, trigger) if key.path(half) == rel => Some(trigger.appeared),
                _ => None,
            });
            told.reduce(|one, other| one || other)
        });
        match (says, half(rel)) {
            (Says::Directory, _) => assert!(tree, "{shown}"),
            (Says::Appeared, Some(_)) => assert_eq!(pair, Some(true), "{shown}"),
            (Says::Written, Some(Half::Metadata)) => assert_eq!(pair, Some(true), "{shown}"),
            (Says::Vanished, _) if is_watched => assert!(tree, "{shown}"),
            (Says::Vanished | Says::FileVanished, Some(_)) => assert!(pair.is_some(), "{shown}"),
            (Says::Nothing, _) => assert!(changes.is_empty(), "{shown}: {changes:?}"),
            _ => {}
        }
    }

    fn deliver(&mut self) {
        let news = self.inbox.drain();
        assert_eq!(news.events_lost, self.lost);
        self.events_lost |= std::mem::take(&mut self.lost);
        for (key, appeared) in self.told.drain() {
            // The outcome of a running inspection will show what has vanished.
            let in_flight = self.in_flight.iter().any(|job| job.key == key);
            if appeared || !in_flight && self.waiting.contains_key(&key) {
                self.owed.insert(key.clone());
            }
            self.hinted.insert(key);
        }
        self.schedule.apply_changes(news);
    }

    fn take_jobs(&mut self) {
        // Takes all of them, and sorts them, so that the order of a hash map changes nothing.
        let mut jobs = self.schedule.take_inspections(usize::MAX);
        jobs.extend(self.schedule.take_due(self.now, usize::MAX));
        jobs.sort_by_key(|job| job.key.path(Half::Result));
        for job in jobs {
            assert!(self.named.contains(&job.key), "nobody has told of {:?}", job.key);
            let twice = self.in_flight.iter().any(|other| other.key == job.key);
            assert!(!twice, "{:?} is in in_flight_pair", job.key);
            self.owed.remove(&job.key);
            if let Some(at) = self.waiting.get(&job.key) {
                let early = *at > self.now.wall && !self.hinted.contains(&job.key);
                assert!(!early, "{:?} waits for {at}", job.key);
            }
            self.hinted.remove(&job.key);
            self.in_flight.push(job);
        }
    }

    fn outcome(&mut self) -> Outcome {
        let failure = Failure::new("x", &std::io::Error::from_raw_os_error(13));
        let seen = FileState::pretended(self.input.below(4) as u64);
        let wait = Duration::from_millis(u64::from(self.input.byte()) * 4);
        let seconds = i64::from(self.input.byte()) - 64;
        let expires_at = self.now.wall + TimeDelta::seconds(seconds);
        match self.input.below(12) {
            0..4 => Outcome::NotDue { expires_at, bytes: None, mark: None },
            4 => Outcome::Incomplete,
            5 => Outcome::Unsettled { result: seen, wait, expires_at, bytes: 1 },
            6 => Outcome::Broken { metadata: seen, reason: Broken::Unreadable(5), wait, bytes: 1 },
            7 => Outcome::Deleted {
                freed: 7,
                leftover: (seconds > 0).then_some(failure),
                late: TimeDelta::zero(),
            },
            8 => Outcome::Changed,
            9 => Outcome::ClaimedElsewhere,
            10 => Outcome::Failed(failure),
            _ => Outcome::RestoreFailed(failure),
        }
    }

    fn settle(&mut self, key: PairKey, outcome: Outcome, source: Source) {
        let deleted = u64::from(matches!(outcome, Outcome::Deleted { .. }));
        let fails = match &outcome {
            Outcome::Failed(_) | Outcome::RestoreFailed(_) => true,
            Outcome::Deleted { leftover, .. } => leftover.is_some(),
            _ => false,
        };
        let may_fail =
            fails || matches!(outcome, Outcome::Broken { .. } | Outcome::ClaimedElsewhere);
        let contested = source != Source::Job && self.in_flight.iter().any(|job| job.key == key);
        if contested {
            // The pair is read again, because it is unknown which of the two reads was the last.
            self.owed.insert(key.clone());
            self.hinted.insert(key.clone());
        } else {
            self.waiting.remove(&key);
            if let Outcome::NotDue { expires_at, .. } = outcome {
                self.waiting.insert(key.clone(), expires_at);
            }
        }
        let tally = self.schedule.complete(JobResult { key, outcome }, source, self.now);
        assert_eq!((tally.deleted, tally.freed_bytes), (deleted, 7 * deleted));
        assert!(u64::from(fails) <= tally.errors && tally.errors <= u64::from(may_fail));
    }

    /// Scans the subtrees that are due, or everything, and finds some of the pairs there.
    fn scan(&mut self) {
        let trees = self.schedule.take_trees(self.now);
        let missed = std::mem::take(&mut self.events_lost);
        if !missed && trees.is_empty() {
            return;
        }
        let scope = if missed { Scope::Everything } else { Scope::Subtrees(trees.clone()) };
        let covers = |dir: &Path| scope == Scope::Everything || trees.cover(dir);
        let id = self.schedule.begin_scan(scope.clone());
        for job in &self.in_flight {
            if covers(&job.key.dir) {
                self.owed.insert(job.key.clone());
                self.hinted.insert(job.key.clone());
            }
        }
        let mut found = HashSet::new();
        let there: Vec<PairKey> =
            self.named.iter().filter(|key| covers(&key.dir)).cloned().collect();
        for key in there {
            if self.input.below(3) == 2 {
                let outcome = self.outcome();
                found.insert(key.clone());
                self.settle(key, outcome, Source::Scan(id));
            }
        }
        let tally = self.schedule.end_scan(id, Summary::default(), self.now);
        assert_eq!(tally, Default::default());
        self.waiting.retain(|key, _| !covers(&key.dir) || found.contains(key));
    }

    /// Adds no more events, and runs until all work is done.
    fn come_to_rest(&mut self) {
        for _ in 0..1000 {
            self.deliver();
            self.scan();
            self.take_jobs();
            while let Some(job) = self.in_flight.pop() {
                self.settle(job.key, Outcome::Incomplete, Source::Job);
            }
            self.now.mono += Duration::from_secs(600);
            let rests = self.schedule.next_tree(self.now).is_none()
                && self.schedule.next_pair(self.now).is_none_or(|at| at > self.now.mono);
            if rests && !self.events_lost {
                assert!(self.owed.is_empty(), "never looked at: {:?}", self.owed);
                let due = self.waiting.values().filter(|at| **at <= self.now.wall).count();
                assert_eq!(due, 0, "{:?}", self.waiting);
                assert_eq!(self.schedule.heap_size(), self.waiting.len());
                assert_eq!(self.schedule.next_expiry(), self.waiting.values().min().copied());
                return;
            }
        }
        panic!("it never comes to rest");
    }
}

/// Returns the path relative to the root; `None` outside of it.
fn below_root(path: &Path) -> Option<PathBuf> {
    let path = path.as_os_str().as_bytes();
    let rel = path.strip_prefix(ROOT.as_bytes())?;
    let rel = if rel.is_empty() { rel } else { rel.strip_prefix(b"/")? };
    Some(OsStr::from_bytes(rel).into())
}

fn half(rel: &Path) -> Option<Half> {
    let name = rel.file_name()?.as_bytes();
    if name.ends_with(b".metadata.json") {
        return Some(Half::Metadata);
    }
    name.ends_with(b".result.json.lz4").then_some(Half::Result)
}

/// Asserts that a change is about one of the paths below the root, and so within it.
fn assert_justified(change: &Change, paths: &[PathBuf], shown: &str) {
    match change {
        Change::Pair(key, _) => {
            let halves = [Half::Result, Half::Metadata].map(|half| key.path(half));
            assert!(halves.iter().any(|half| paths.contains(half)), "{shown}: {key:?}");
            assert_within(&key.dir, shown);
        }
        Change::Subtree(tree) => {
            assert!(paths.iter().any(|path| **path == **tree), "{shown}: {tree:?}");
            assert_within(tree, shown);
        }
        Change::Directory(dir) => panic!("{shown}: {dir:?}"),
        Change::Orphans(_) => panic!("nobody asked for it: {shown}"),
        Change::EventsLost => panic!("nothing was missed: {shown}"),
    }
}

fn assert_within(rel: &Arc<Path>, shown: &str) {
    let plain = |component| matches!(component, Component::Normal(_));
    assert!(rel.components().all(plain), "{shown}: {rel:?}");
}
