//! The simulated threads. They progress in small steps, in any order and at any speed.
//!
//! Longer than other files: each kind of work is a small state machine.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use chrono::TimeDelta;

use super::Chance;
use super::cleaning::error;
use super::disk::{DirId, Disk, key, stem_of};
use super::probe::{Probe, Probed};
use crate::pair::change::{Change, WatchError};
use crate::pair::disk_budget::FreeSpace;
use crate::pair::outcome::{Job, JobResult, Outcome, ScanFound, Summary, Waiting};
use crate::schedule::command::EvictionStart;
use crate::schedule::input::{Completion, EvictedBatch, Generation};
use crate::schedule::{ScanId, SubtreeSet};
use crate::watch::inbox::Inbox;

/// A message to the worker.
pub(super) enum Message {
    Completed(Generation, Completion),
    Probed(Probed),
    Space(Generation, Result<FreeSpace, String>),
}

/// What the threads work on.
pub(super) struct Surroundings<'a> {
    pub disk: &'a mut Disk,
    pub inbox: &'a Inbox,
    pub chance: &'a mut dyn Chance,
    pub messages: &'a mut VecDeque<Message>,
    /// Whether nothing happens any more from outside.
    pub is_calm: bool,
    /// Whether the core waits for a new watcher, and whether a probe is running.
    pub is_rewatching: bool,
    pub is_probing: &'a mut bool,
    /// Set if only a sweep can recover a claim.
    pub needs_sweep: &'a mut bool,
}

pub(super) enum Task {
    Probe(Probe),
    /// Reads the free space, for a generation.
    Space(Generation),
    Jobs(Jobs),
    Scan(Box<Scan>),
}

impl Task {
    pub fn cancel(&mut self) {
        match self {
            Self::Jobs(jobs) => jobs.is_cancelled = true,
            Self::Scan(scan) => scan.is_cancelled = true,
            Self::Probe(_) | Self::Space(_) => {}
        }
    }

    /// Goes on by one step. Returns whether it has ended.
    pub fn step(&mut self, around: &mut Surroundings<'_>) -> bool {
        match self {
            Self::Probe(probe) => {
                let found = probe.run(around.disk);
                // Unless somebody waits for it, a probe that has found nothing new sends no message.
                if found == Probed::Unchanged && !around.is_rewatching {
                    *around.is_probing = false;
                } else {
                    around.messages.push_back(Message::Probed(found));
                }
                true
            }
            Self::Space(generation) => {
                let is_unknown = !around.is_calm && around.chance.one_in(20);
                let space = if is_unknown {
                    Err("it is broken".to_owned())
                } else {
                    Ok(around.disk.space())
                };
                around.messages.push_back(Message::Space(*generation, space));
                true
            }
            Self::Jobs(jobs) => jobs.step(around),
            Self::Scan(scan) => scan.step(around),
        }
    }
}

pub(super) struct Jobs {
    pub generation: Generation,
    pub is_cancelled: bool,
    pub jobs: VecDeque<Job>,
    /// The directories that were opened, and those that did not exist then.
    pub opened: BTreeMap<PathBuf, Option<DirId>>,
    pub found: Vec<JobResult>,
    pub start: Instant,
    /// Whether only its claims have to be finished.
    pub holds: bool,
    /// The space before a batch of evictions.
    pub before: Option<FreeSpace>,
    pub eviction: Option<EvictionStart>,
    pub evicted: u64,
}

impl Jobs {
    fn step(&mut self, around: &mut Surroundings<'_>) -> bool {
        if let Some(Job { key, settled, evict }) =
            self.jobs.pop_front().filter(|_| !self.is_cancelled)
        {
            let disk = &mut *around.disk;
            self.before = self.before.or_else(|| Some(disk.space()));
            let dir =
                *self.opened.entry(key.dir.to_path_buf()).or_insert_with(|| disk.resolve(&key.dir));
            let outcome = dir.map_or(Outcome::Incomplete, |dir| {
                disk.process(dir, &key.dir, stem_of(&key), (settled, evict), around.chance)
            });
            if let Outcome::Evicted { freed, .. } = outcome {
                self.evicted += freed;
            }
            self.found.push(JobResult { key, outcome });
            return false;
        }
        let took = around.disk.now.mono - self.start;
        let found = std::mem::take(&mut self.found);
        let after = around.disk.space();
        let space = self.before.map(|before| [before, after]);
        let evicted = self.eviction.map(|start| EvictedBatch { start, space, bytes: self.evicted });
        if self.holds {
            around.send(self.generation, Completion::Claims { found, took, evicted });
            return true;
        }
        let is_held = |found: &JobResult| {
            matches!(found.outcome, Outcome::Deleted { .. } | Outcome::Evicted { .. })
        };
        let (held, found): (Vec<_>, Vec<_>) = found.into_iter().partition(is_held);
        self.holds = !held.is_empty();
        self.found = held;
        let (holds, evicted) = (self.holds, evicted.filter(|_| !self.holds));
        around.send(self.generation, Completion::Jobs { found, took, holds, evicted });
        !self.holds
    }
}

pub(super) struct Scan {
    pub id: ScanId,
    pub generation: Generation,
    pub is_cancelled: bool,
    /// The watcher that the scan began with.
    watcher: Option<u64>,
    trees: Vec<Arc<Path>>,
    alone: Vec<Arc<Path>>,
    start: Instant,
    has_begun: bool,
    has_recovered: bool,
    /// The directories to visit, and whether with those below them.
    pending: Vec<(PathBuf, bool)>,
    visit: Option<Visit>,
    visited: Vec<(DirId, PathBuf)>,
    to_read: Vec<(DirId, PathBuf, u8)>,
    read: Vec<JobResult>,
    summary: Summary,
}

/// A directory that is being visited.
struct Visit {
    dir: DirId,
    rel: Arc<Path>,
    descends: bool,
    /// Whether its watch was requested.
    is_asked: bool,
    is_watched: bool,
}

impl Scan {
    pub fn new(
        id: ScanId,
        generation: Generation,
        watcher: Option<u64>,
        trees: &SubtreeSet,
        start: Instant,
    ) -> Self {
        let alone: Vec<_> = trees.alone().cloned().collect();
        let below = trees.trees().map(|tree| (tree.to_path_buf(), true));
        Self {
            id,
            generation,
            is_cancelled: false,
            watcher,
            trees: trees.trees().cloned().collect(),
            start,
            has_begun: false,
            has_recovered: false,
            pending: below.chain(alone.iter().map(|dir| (dir.to_path_buf(), false))).collect(),
            alone,
            visit: None,
            visited: Vec::new(),
            to_read: Vec::new(),
            read: Vec::new(),
            summary: Summary::default(),
        }
    }

    fn step(&mut self, around: &mut Surroundings<'_>) -> bool {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.begin(around);
        } else if self.is_cancelled {
            return self.end(around);
        } else if !self.to_read.is_empty() && around.chance.one_in(2) {
            self.read_one(around);
        } else if let Some(visit) = self.visit.take() {
            self.go_on(visit, around);
        } else if let Some((rel, descends)) = self.pending.pop() {
            self.open(rel.into(), descends, around);
        } else if !self.to_read.is_empty() {
            self.read_one(around);
        } else if !std::mem::replace(&mut self.has_recovered, true) {
            self.recover(around);
        } else {
            return self.end(around);
        }
        if around.chance.one_in(3) {
            self.hand_over(around);
        }
        false
    }

    /// Whether its watcher is still in place.
    fn has_watcher(&self, around: &Surroundings<'_>) -> bool {
        self.watcher == Some(around.disk.kernel.instance)
    }

    fn begin(&self, around: &mut Surroundings<'_>) {
        if self.watcher.is_none() {
            return;
        }
        if self.has_watcher(around) {
            around.disk.kernel.drop_stale();
            self.trees.iter().for_each(|tree| around.disk.kernel.forget_unwatched(tree));
        }
        for rel in self.alone.iter().filter(|rel| around.inbox.floods.contains(rel)) {
            if around.is_calm || around.chance.one_in(3) {
                around.inbox.floods.end(rel);
            }
        }
    }

    fn open(&mut self, rel: Arc<Path>, descends: bool, around: &mut Surroundings<'_>) {
        let Some(dir) = around.disk.resolve(&rel) else {
            return self.gone(&rel, descends, around);
        };
        if around.disk.can_read(dir) {
            let visit =
                Visit { dir, rel, descends, is_asked: false, is_watched: self.watcher.is_none() };
            self.visit = Some(visit);
        } else {
            self.unreadable(rel, around);
        }
    }

    fn gone(&mut self, rel: &Arc<Path>, descends: bool, around: &mut Surroundings<'_>) {
        if self.has_watcher(around) && around.disk.kernel.forget(rel) {
            around.inbox.push(Change::Subtree(Arc::clone(rel)));
        }
        if self.watcher.is_some() {
            around.inbox.floods.end(rel);
        }
        if !descends {
            self.summary.scan_next.push(Arc::clone(rel));
        }
    }

    fn unreadable(&mut self, rel: Arc<Path>, around: &mut Surroundings<'_>) {
        if self.has_watcher(around) {
            around.disk.kernel.watched.expect(&rel);
        }
        self.summary.unreadable.push((rel, error()));
    }

    /// Requests the watch of the directory, sets it, or lists the directory.
    fn go_on(&mut self, mut visit: Visit, around: &mut Surroundings<'_>) {
        if visit.is_watched {
            return self.list(&visit, around);
        }
        let has_watcher = self.has_watcher(around);
        let kernel = &mut around.disk.kernel;
        if !visit.is_asked {
            visit.is_asked = true;
            if !has_watcher || kernel.watched.has_current_watch(&visit.rel) {
                visit.is_watched = true;
            } else if kernel.is_overrun || around.inbox.floods.contains(&visit.rel) {
                kernel.watched.expect(&visit.rel);
                visit.is_watched = true;
            } else {
                // Recorded before its first event can arrive.
                kernel.insert(&visit.rel);
            }
        } else {
            visit.is_watched = true;
            if self.has_watcher(around) && !self.set_watch(&visit, around) {
                return self.gone(&visit.rel, visit.descends, around);
            }
        }
        self.visit = Some(visit);
    }

    /// Sets the watch of a directory by its path. Returns false if the directory was moved away since it was
    /// opened.
    fn set_watch(&mut self, visit: &Visit, around: &mut Surroundings<'_>) -> bool {
        let rel = &visit.rel;
        let Some(dir) = around.disk.resolve(rel) else {
            if around.disk.kernel.forget(rel) {
                around.inbox.push(Change::Subtree(Arc::clone(rel)));
            }
            return false;
        };
        if around.disk.refuses_watches && around.chance.one_in(2) {
            around.disk.kernel.watched.refuse(rel);
            let count = self.summary.refused.as_ref().map_or(0, |(count, _)| *count);
            self.summary.refused = Some((count + 1, WatchError::TooManyWatches));
            return true;
        }
        around.disk.kernel.watch(dir, rel);
        if around.disk.kernel.watched.confirm(rel) {
            around.inbox.push(Change::Subtree(Arc::clone(rel)));
        }
        true
    }

    fn list(&mut self, visit: &Visit, around: &mut Surroundings<'_>) {
        let (disk, dir) = (&*around.disk, visit.dir);
        let Some(directory) = disk.dirs.get(&dir) else {
            return self.gone(&visit.rel, visit.descends, around);
        };
        if !disk.can_read(dir) {
            return self.unreadable(Arc::clone(&visit.rel), around);
        }
        for name in directory.dirs.keys() {
            let below = visit.rel.join(name);
            if visit.descends {
                self.pending.push((below, true));
            } else if !self.has_watcher(around) || !disk.kernel.watched.is_known(&below) {
                self.summary.scan_next.push(below.into());
            }
        }
        let pairs = directory.pairs.iter().filter(|(_, halves)| halves.metadata.is_some());
        self.to_read.extend(pairs.map(|(stem, _)| (dir, visit.rel.to_path_buf(), *stem)));
        self.visited.push((dir, visit.rel.to_path_buf()));
    }

    fn read_one(&mut self, around: &mut Surroundings<'_>) {
        let at = around.chance.below(self.to_read.len());
        let (dir, rel, stem) = self.to_read.swap_remove(at);
        let outcome = around.disk.process(dir, &rel, stem, (None, None), around.chance);
        self.read.push(JobResult { key: key(&rel, stem), outcome });
    }

    /// Recovers the claims in the directories that were visited.
    fn recover(&mut self, around: &mut Surroundings<'_>) {
        for (dir, rel) in std::mem::take(&mut self.visited) {
            let disk = &mut *around.disk;
            let has_claims = disk.dirs.get(&dir).is_some_and(|directory| {
                directory.pairs.values().any(|halves| halves.claimed != (None, None))
            });
            if !has_claims || disk.resolve(&rel) != Some(dir) || !disk.can_read(dir) {
                continue;
            }
            if disk.has_refusals && around.chance.one_in(10) {
                self.summary.not_recovered.push((rel, error()));
                *around.needs_sweep = true;
                continue;
            }
            match disk.recover(dir) {
                Some((stems, finished)) => {
                    let deleted = |stem| {
                        let late = TimeDelta::zero();
                        let outcome = Outcome::Deleted { freed: 1, leftover: None, late };
                        JobResult { key: key(&rel, stem), outcome }
                    };
                    self.read.extend(finished.into_iter().map(deleted));
                    self.to_read.extend(stems.into_iter().map(|stem| (dir, rel.clone(), stem)));
                }
                None => self.summary.recoveries.push(rel.into()),
            }
        }
    }

    fn hand_over(&mut self, around: &mut Surroundings<'_>) {
        if !self.read.is_empty() {
            let mut found = ScanFound::default();
            for JobResult { key, outcome } in std::mem::take(&mut self.read) {
                match outcome {
                    Outcome::NotDue { expires_at, size, .. } if around.chance.one_in(2) => {
                        let pairs = vec![(key.stem, expires_at)];
                        let sizes = size.into_iter().collect();
                        found.waiting.push(Waiting { dir: key.dir, pairs, sizes });
                    }
                    outcome => found.others.push(JobResult { key, outcome }),
                }
            }
            around.send(self.generation, Completion::ScanBatch { id: self.id, found });
        }
    }

    fn end(&mut self, around: &mut Surroundings<'_>) -> bool {
        self.hand_over(around);
        let summary = Box::new(std::mem::take(&mut self.summary));
        let took = around.disk.now.mono - self.start;
        around.send(self.generation, Completion::ScanEnded { id: self.id, summary, took });
        true
    }
}

impl Surroundings<'_> {
    fn send(&mut self, generation: Generation, completion: Completion) {
        self.messages.push_back(Message::Completed(generation, completion));
    }
}
