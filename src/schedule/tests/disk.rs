//! A simulated disk: what writers, the clock and other cleaners do there, which events report it, and
//! the outcome of an attempt at a pair.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use crate::pair::change::{Change, Trigger, WriteState};
use crate::pair::mark::{Mark, Marks};
use crate::pair::name::{Half, PairKey, Stem};
use crate::pair::outcome::Summary;
use crate::pair::outcome::{Failure, Job, JobResult, Outcome};
use crate::pair::version::{Broken, FileState, SETTLE_TIME};
use crate::schedule::Scope;
use crate::sys::clock::Now;
use crate::trial::Random;

/// A pair's directory and the last byte of its stem.
pub(super) type Name = (String, u8);

const DIRS: [&str; 5] = ["", "a", "a/b", "c", "c/d/e"];
/// The greatest depth of a directory; what is moved deeper than this is dropped.
const DEPTH: usize = 6;
pub(super) const REASON: Broken = Broken::Unreadable(5);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Metadata {
    Valid(DateTime<Utc>),
    /// A broken file, and its version.
    Broken(u64),
    /// A file that is still being written, and its version.
    HalfWritten(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Result {
    version: u64,
    changed: Instant,
    /// True if the result is newer than its metadata.
    newer: bool,
}

/// The two halves of a pair, and the claimed halves under their reserved names.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Halves {
    pub result: Option<Result>,
    pub metadata: Option<Metadata>,
    pub taken: (Option<Result>, Option<Metadata>),
}

pub(super) struct Disk {
    pub random: Random,
    pub now: Now,
    pub names: BTreeMap<Name, Halves>,
    /// Trees that were moved out of the cache directory.
    outside: Vec<Vec<(PathBuf, u8, Halves)>>,
    unreadable: BTreeSet<String>,
    /// Directories in which another cleaner is working.
    recoveries: BTreeSet<String>,
    /// Files that are being written.
    writers: Vec<u64>,
    versions: u64,
    /// Events that have not been delivered yet.
    pub events: Vec<Change>,
    /// True if only a sweep can detect what has happened.
    pub needs_sweep: bool,
}

pub(super) fn key((dir, stem): &Name) -> PairKey {
    PairKey { dir: Path::new(dir).into(), stem: Stem::new(&[b'p', *stem]) }
}

pub(super) fn name(key: &PairKey) -> Name {
    (key.dir.to_str().unwrap().to_owned(), key.stem.bytes()[1])
}

/// Returns the mark of metadata. Here, metadata with the same expiry has the same version.
fn mark(name: &Name, expires_at: DateTime<Utc>) -> Mark {
    let mut hasher = DefaultHasher::new();
    (name, expires_at).hash(&mut hasher);
    Mark::of_hash(hasher.finish())
}

fn is_below(dir: &str, tree: &str) -> bool {
    Path::new(dir).starts_with(tree)
}

fn failure() -> Failure {
    Failure::new("do it", &io::Error::from_raw_os_error(13))
}

impl Disk {
    pub fn new(seed: u64) -> Self {
        let wall = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        Self {
            random: Random(seed),
            now: Now { wall, mono: Instant::now() },
            names: BTreeMap::new(),
            outside: Vec::new(),
            unreadable: BTreeSet::new(),
            recoveries: BTreeSet::new(),
            writers: Vec::new(),
            versions: 0,
            events: Vec::new(),
            needs_sweep: false,
        }
    }

    fn emit(&mut self, change: Change) {
        match self.random.below(400) {
            // The queue overflows: the kernel drops the event and reports the overflow.
            0 | 1 => self.events.push(Change::EventsLost),
            // The directory has no watch.
            2 => self.needs_sweep = true,
            3..20 => self.events.extend([change.clone(), change]),
            _ => self.events.push(change),
        }
    }

    fn tell(&mut self, name: &Name, appeared: bool, writer: WriteState) {
        self.emit(Change::Pair(key(name), Trigger { appeared, writer }));
    }

    fn tell_of_tree(&mut self, dir: &str) {
        self.emit(Change::Subtree(Path::new(dir).into()));
    }

    /// Returns the next event to deliver. Hints arrive in any order. All other events, which report a
    /// writer or a directory, keep their order among themselves.
    pub fn next_event(&mut self) -> Option<Change> {
        if self.events.is_empty() {
            return None;
        }
        let is_hint = |event: &Change| matches!(event, Change::Pair(_, trigger) if trigger.writer == WriteState::Unknown);
        let any = self.random.below(self.events.len());
        let at = if is_hint(&self.events[any]) {
            any
        } else {
            self.events.iter().position(|event| !is_hint(event)).unwrap_or(any)
        };
        Some(self.events.remove(at))
    }

    fn halves(&mut self, name: &Name) -> &mut Halves {
        self.names.entry(name.clone()).or_default()
    }

    fn version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    fn name(&mut self) -> Name {
        (DIRS[self.random.below(DIRS.len())].to_owned(), self.random.below(12) as u8)
    }

    fn tree(&mut self) -> &'static str {
        DIRS[1 + self.random.below(DIRS.len() - 1)]
    }

    /// Performs one operation of a writer, of the clock, or of the owner of the machine.
    pub fn operate(&mut self) {
        match self.random.below(24) {
            0..=5 => self.write_metadata(),
            6 | 7 => self.write_result(),
            8 => self.remove(Half::Result),
            9 => self.remove(Half::Metadata),
            10 | 11 => self.rename(),
            12 => self.link(),
            13 => self.begin_to_write(),
            14 => self.end_writing(),
            15 => self.move_tree(),
            16 => self.move_out(),
            17 => self.move_in(),
            18 => self.change_permissions(),
            19 => self.change_owner(),
            _ => self.let_time_pass(),
        }
    }

    fn write_metadata(&mut self) {
        let name = self.name();
        let metadata = self.metadata();
        self.put_metadata(&name, metadata, WriteState::Closed);
    }

    fn metadata(&mut self) -> Metadata {
        if self.random.one_in(5) {
            return Metadata::Broken(self.version());
        }
        let seconds = self.random.below(120) as i64 - 20;
        Metadata::Valid(self.now.wall + TimeDelta::seconds(seconds))
    }

    fn put_metadata(&mut self, name: &Name, metadata: Metadata, writer: WriteState) {
        let halves = self.halves(name);
        halves.metadata = Some(metadata);
        if let Some(result) = &mut halves.result {
            result.newer = false;
        }
        self.tell(name, true, writer);
    }

    fn write_result(&mut self) {
        let name = self.name();
        let version = self.version();
        self.put_result(&name, version);
    }

    fn put_result(&mut self, name: &Name, version: u64) {
        let changed = self.now.mono;
        self.halves(name).result = Some(Result { version, changed, newer: true });
        self.tell(name, true, WriteState::Unknown);
    }

    fn remove(&mut self, half: Half) {
        let name = self.name();
        match half {
            Half::Result => self.halves(&name).result = None,
            Half::Metadata => self.halves(&name).metadata = None,
        }
        self.tell(&name, false, WriteState::Unknown);
    }

    /// Renames a pair, or half of one.
    fn rename(&mut self) {
        let (from, to) = (self.name(), self.name());
        let which = self.random.below(3);
        if let Some(result) = self.halves(&from).result.take_if(|_| which != 0 && from != to) {
            self.tell(&from, false, WriteState::Unknown);
            self.put_result(&to, result.version);
        }
        if let Some(metadata) = self.halves(&from).metadata.take_if(|_| which != 1 && from != to) {
            self.tell(&from, false, WriteState::Unknown);
            self.put_metadata(&to, metadata, WriteState::Closed);
        }
    }

    fn link(&mut self) {
        let (from, to) = (self.name(), self.name());
        if let Halves { result: Some(result), metadata: Some(metadata), .. } = *self.halves(&from)
            && !matches!(metadata, Metadata::HalfWritten(_))
            && self.halves(&to).result.is_none()
            && self.halves(&to).metadata.is_none()
        {
            self.put_result(&to, result.version);
            self.put_metadata(&to, metadata, WriteState::Created);
        }
    }

    fn begin_to_write(&mut self) {
        let name = self.name();
        let version = self.version();
        self.writers.push(version);
        self.put_metadata(&name, Metadata::HalfWritten(version), WriteState::Writing);
    }

    /// Closes the file of a writer, whatever name the file has by now.
    fn end_writing(&mut self) {
        if self.writers.is_empty() {
            return;
        }
        let at = self.random.below(self.writers.len());
        let writer = Metadata::HalfWritten(self.writers.swap_remove(at));
        let metadata = self.metadata();
        let name = self.names.iter().find(|(_, halves)| halves.metadata == Some(writer));
        if let Some(name) = name.map(|(name, _)| name.clone()) {
            self.put_metadata(&name, metadata, WriteState::Closed);
        }
        for (_, _, halves) in self.outside.iter_mut().flatten() {
            halves.metadata = halves.metadata.map(|is| if is == writer { metadata } else { is });
        }
    }

    /// Removes a tree and returns its pairs.
    fn cut(&mut self, tree: &str) -> Vec<(PathBuf, u8, Halves)> {
        let names: Vec<Name> =
            self.names.keys().filter(|(dir, _)| is_below(dir, tree)).cloned().collect();
        self.unreadable.retain(|dir| !is_below(dir, tree));
        let cut = names.into_iter().map(|name| {
            let halves = self.names.remove(&name).unwrap();
            (Path::new(&name.0).strip_prefix(tree).unwrap().to_owned(), name.1, halves)
        });
        cut.collect()
    }

    fn paste(&mut self, tree: &str, names: Vec<(PathBuf, u8, Halves)>) {
        for (rest, stem, halves) in names {
            let dir = Path::new(tree).join(rest).to_str().unwrap().trim_end_matches('/').to_owned();
            if Path::new(&dir).components().count() <= DEPTH {
                self.names.insert((dir, stem), halves);
            }
        }
        self.tell_of_tree(tree);
    }

    /// Renames a directory with all below it; a tree that was at the target before is moved away.
    fn move_tree(&mut self) {
        let (from, to) = (self.tree(), self.tree());
        if !is_below(from, to) && !is_below(to, from) {
            self.cut(to);
            self.tell_of_tree(to);
            let names = self.cut(from);
            self.tell_of_tree(from);
            self.paste(to, names);
        }
    }

    fn move_out(&mut self) {
        let from = self.tree();
        let names = self.cut(from);
        self.tell_of_tree(from);
        self.outside.push(names);
    }

    fn move_in(&mut self) {
        if !self.outside.is_empty() {
            let at = self.random.below(self.outside.len());
            let (names, to) = (self.outside.swap_remove(at), self.tree());
            self.cut(to);
            self.tell_of_tree(to);
            self.paste(to, names);
        }
    }

    fn change_permissions(&mut self) {
        let dir = self.tree().to_owned();
        if self.unreadable.remove(&dir) || self.random.one_in(2) {
            self.tell_of_tree(&dir);
        } else {
            self.unreadable.insert(dir);
        }
    }

    /// Another cleaner starts or stops working in a directory.
    fn change_owner(&mut self) {
        let (dir, _) = self.name();
        if !self.recoveries.remove(&dir) {
            self.recoveries.insert(dir);
        }
    }

    fn let_time_pass(&mut self) {
        let back = if self.random.one_in(4) { 40 } else { 0 };
        self.now.wall += TimeDelta::seconds(self.random.below(30) as i64 - back);
        self.now.mono += Duration::from_millis(self.random.below(5000) as u64);
    }

    /// Lets all writers and other cleaners end their work, and makes all directories readable.
    pub fn calm_down(&mut self) {
        while !self.writers.is_empty() {
            self.end_writing();
        }
        self.recoveries.clear();
        for dir in std::mem::take(&mut self.unreadable) {
            self.tell_of_tree(&dir);
        }
    }

    /// Kills the cleaner: some of the pairs that it was deleting keep reserved names.
    pub fn crash(&mut self) {
        self.events.clear();
        for halves in self.names.values_mut() {
            let due = matches!(halves.metadata, Some(Metadata::Valid(at)) if at <= self.now.wall);
            if due && halves.taken == (None, None) && self.random.one_in(2) {
                halves.taken.0 = halves.result.take();
                if halves.taken.0.is_some() && self.random.one_in(2) {
                    halves.taken.1 = halves.metadata.take();
                }
            }
        }
    }

    fn can_read(&self, dir: &str) -> bool {
        !self.unreadable.iter().any(|closed| is_below(dir, closed))
    }

    /// Returns the names that a scan lists, and the directories that it can't read.
    pub fn list(&self, scope: &Scope) -> (Vec<Name>, Summary) {
        let covered = |dir: &str| scope.covers(Path::new(dir));
        let names = self.names.keys().filter(|(dir, _)| covered(dir) && self.can_read(dir));
        let above = |dir: &str| {
            Path::new(dir).parent().is_none_or(|up| self.can_read(up.to_str().unwrap()))
        };
        let closed = self.unreadable.iter().filter(|dir| covered(dir) && above(dir));
        let error = || io::Error::from_raw_os_error(13);
        let unreadable = closed.map(|dir| (Path::new(dir).into(), error())).collect();
        (names.cloned().collect(), Summary { unreadable, ..Summary::default() })
    }

    /// Recovers the files with reserved names in directories that a scan has covered; returns the pairs
    /// that this changed.
    pub fn recover(&mut self, scope: &Scope, summary: &mut Summary) -> Vec<Name> {
        let mut changed_since = Vec::new();
        for name in self.names.keys().cloned().collect::<Vec<_>>() {
            let halves = self.names[&name];
            let dir: std::sync::Arc<Path> = Path::new(&name.0).into();
            if halves.taken == (None, None) || !scope.covers(&dir) || !self.can_read(&name.0) {
                continue;
            }
            if self.recoveries.contains(&name.0) {
                if !summary.recoveries.contains(&dir) {
                    summary.recoveries.push(dir);
                }
                continue;
            }
            if self.random.one_in(10) {
                summary.stranded.push((dir.to_path_buf(), io::Error::from_raw_os_error(5)));
                self.needs_sweep = true;
                continue;
            }
            changed_since.push(name.clone());
            let (version, now) = (self.version(), self.now);
            let halves = self.halves(&name);
            let (result, metadata) = std::mem::take(&mut halves.taken);
            let due = matches!(metadata, Some(Metadata::Valid(at)) if at <= now.wall);
            if due && halves.result.is_none() && halves.metadata.is_none() {
                summary.finished += u64::from(result.is_some());
                continue;
            }
            halves.metadata = halves.metadata.or(metadata);
            let given_back = result.map(|_| Result { version, changed: now.mono, newer: true });
            halves.result = halves.result.or(given_back);
            self.tell(&name, true, WriteState::Closed);
        }
        changed_since
    }

    /// Returns what a scan finds of a pair. The scan does not read metadata again that has one of
    /// `marks`.
    pub fn attend_listed(&mut self, name: &Name, marks: &Marks) -> JobResult {
        let is_unchanged = match self.names.get(name) {
            Some(Halves { result: Some(_), metadata: Some(Metadata::Valid(at)), .. }) => {
                self.can_read(&name.0) && marks.contains(&mark(name, *at))
            }
            _ => false,
        };
        if is_unchanged {
            return JobResult { key: key(name), outcome: Outcome::Unchanged };
        }
        self.attend(Job { key: key(name), settled: None })
    }

    /// Returns the current state of a pair on the disk; deletes the pair if it is due.
    pub fn attend(&mut self, Job { key, settled }: Job) -> JobResult {
        let name = name(&key);
        let outcome = self.outcome(&name, settled);
        JobResult { key, outcome }
    }

    fn outcome(&mut self, name: &Name, settled: Option<FileState>) -> Outcome {
        if !self.can_read(&name.0) || self.random.one_in(80) {
            return Outcome::Failed(failure());
        }
        let (result, metadata, taken) = match *self.halves(name) {
            Halves { result: Some(result), metadata: Some(metadata), taken } => {
                (result, metadata, taken)
            }
            Halves { result: None, taken: (Some(_), _), .. } => return Outcome::ClaimedElsewhere,
            _ => return Outcome::Incomplete,
        };
        let expires_at = match metadata {
            Metadata::Valid(at) => at,
            Metadata::Broken(version) | Metadata::HalfWritten(version) => {
                let wait = Duration::from_secs(self.random.below(2) as u64);
                let metadata = FileState::pretended(version);
                return Outcome::Broken { metadata, reason: REASON, wait, bytes: 1 };
            }
        };
        if expires_at > self.now.wall {
            let mark = self.random.one_in(2).then(|| mark(name, expires_at));
            return Outcome::NotDue { expires_at, bytes: None, mark };
        }
        let seen = FileState::pretended(result.version);
        let wait = SETTLE_TIME.saturating_sub(self.now.mono - result.changed);
        if result.newer && !wait.is_zero() && settled != Some(seen) {
            return Outcome::Unsettled { result: seen, wait, expires_at, bytes: 1 };
        }
        if taken.0.is_some() {
            return Outcome::ClaimedElsewhere;
        }
        match self.random.below(60) {
            0..3 => return Outcome::Changed,
            3..5 => return Outcome::Failed(failure()),
            5 | 6 => {
                self.halves(name).taken.0 = self.halves(name).result.take();
                self.tell(name, false, WriteState::Unknown);
                return Outcome::RestoreFailed(failure());
            }
            7 | 8 => {
                // Another cleaner was faster.
                self.delete(name);
                return Outcome::ClaimedElsewhere;
            }
            9 => {
                self.halves(name).result = None;
                self.tell(name, false, WriteState::Unknown);
                return Outcome::Deleted {
                    freed: 1,
                    leftover: Some(failure()),
                    late: TimeDelta::zero(),
                };
            }
            _ => self.delete(name),
        }
        Outcome::Deleted { freed: 1, leftover: None, late: TimeDelta::zero() }
    }

    fn delete(&mut self, name: &Name) {
        let halves = self.halves(name);
        (halves.result, halves.metadata) = (None, None);
        self.tell(name, false, WriteState::Unknown);
    }
}
