//! The simulated disk: what writers, the clock and other cleaners do there.
//!
//! Longer than other files: it has a function for each thing that can happen to a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use notify::EventKind::{self, Access, Create, Modify, Remove};
use notify::event::{
    AccessKind, AccessMode, CreateKind, DataChange, MetadataKind, ModifyKind, RemoveKind,
    RenameMode,
};

use super::Chance;
use super::kernel::Kernel;
use crate::pair::disk_budget::{BLOCK, DiskSize, FreeSpace};
use crate::pair::name::{Half, PairKey, Stem};
use crate::pair::version::{Broken, FileTime};
use crate::sys::clock::Now;

pub(super) type DirId = usize;
/// The cache directory, and the place outside where trees are moved to.
pub(super) const CACHE: DirId = 0;
pub(super) const OUTSIDE: DirId = 1;

pub(super) const REASON: Broken = Broken::Unreadable(5);
// Few names, so that the same ones come again soon.
pub(super) const DIR_NAMES: [&str; 2] = ["a", "b"];
pub(super) const MAX_DEPTH: usize = 3;
const STEMS: u8 = 3;
/// The blocks of the file system.
pub(super) const CAPACITY: u64 = 2000;

const CREATED: EventKind = Create(CreateKind::File);
const WRITTEN: EventKind = Modify(ModifyKind::Data(DataChange::Any));
const CLOSED: EventKind = Access(AccessKind::Close(AccessMode::Write));
pub(super) const FROM: EventKind = Modify(ModifyKind::Name(RenameMode::From));
pub(super) const TO: EventKind = Modify(ModifyKind::Name(RenameMode::To));
pub(super) const PERMISSIONS: EventKind = Modify(ModifyKind::Metadata(MetadataKind::Any));

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Metadata {
    Valid(DateTime<Utc>),
    /// A broken file, and its version.
    Broken(u64),
    /// A file that is still being written, and its version.
    HalfWritten(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ResultFile {
    pub version: u64,
    pub changed: Instant,
    pub ctime: FileTime,
    /// True if the result is newer than its metadata.
    pub is_newer: bool,
}

/// What metadata takes on disk, in blocks.
pub(super) const METADATA_BLOCKS: u64 = 8;

impl ResultFile {
    /// What the result takes on disk, in blocks.
    pub fn blocks(&self) -> u64 {
        8 + 8 * (self.version % 4)
    }

    /// The size of its pair. One of five results has another link.
    pub fn disk_size(&self) -> DiskSize {
        let is_linked = self.version.is_multiple_of(5);
        let blocks = if is_linked { 0 } else { self.blocks() + METADATA_BLOCKS };
        DiskSize { blocks: blocks as u32, ctime: self.ctime }
    }
}

/// The two halves of a pair, and the claimed halves under their reserved names.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Halves {
    pub result: Option<ResultFile>,
    pub metadata: Option<Metadata>,
    pub claimed: (Option<ResultFile>, Option<Metadata>),
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub parent: Option<(DirId, String)>,
    pub dirs: BTreeMap<String, DirId>,
    pub pairs: BTreeMap<u8, Halves>,
    pub is_unreadable: bool,
    /// Whether another cleaner works here.
    pub is_locked: bool,
}

/// What is at the path of the cache directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RootIs {
    There,
    Absent,
    Unreadable,
}

pub(super) struct Disk {
    pub now: Now,
    pub kernel: Kernel,
    /// How many watchers there were.
    pub watchers: u64,
    pub dirs: BTreeMap<DirId, Directory>,
    pub last_dir: DirId,
    /// How often a directory came, went, or changed its name.
    pub dir_changes: u64,
    pub root: RootIs,
    /// Incremented whenever the cache directory is made again.
    pub epoch: u64,
    /// Whether the system refuses anything, now and then; whether it has no instance of inotify, and no watch, to spare.
    pub has_refusals: bool,
    pub refuses_instances: bool,
    pub refuses_watches: bool,
    /// Whether the cleaner has a disk budget.
    pub has_budget: bool,
    /// Whether the file system frees space late; what it has not freed yet, in blocks, and until when.
    pub frees_late: bool,
    pub hidden: Vec<(Instant, u64)>,
    favourite: (DirId, u8),
    /// Files that are being written.
    writers: Vec<u64>,
    versions: u64,
}

pub(super) fn key(rel: &Path, stem: u8) -> PairKey {
    PairKey { dir: rel.into(), stem: Stem::new(&[b'p', stem + b'0']) }
}

fn file(stem: u8, half: Half) -> String {
    String::from_utf8(key(Path::new(""), stem).stem.name(half)).unwrap()
}

pub(super) fn stem_of(key: &PairKey) -> u8 {
    key.stem.bytes()[1] - b'0'
}

impl Disk {
    pub fn new() -> Self {
        let wall = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        Self {
            now: Now { wall, mono: Instant::now() },
            kernel: Kernel::new(0),
            watchers: 0,
            dirs: [(CACHE, Directory::default()), (OUTSIDE, Directory::default())].into(),
            last_dir: OUTSIDE,
            dir_changes: 0,
            root: RootIs::There,
            epoch: 0,
            has_refusals: false,
            refuses_instances: false,
            refuses_watches: false,
            has_budget: false,
            frees_late: false,
            hidden: Vec::new(),
            favourite: (CACHE, 0),
            writers: Vec::new(),
            versions: 0,
        }
    }

    /// Where a directory is, relative to the cache directory; `None` outside.
    pub fn rel(&self, mut dir: DirId) -> Option<PathBuf> {
        let mut names = Vec::new();
        while let Some((parent, name)) = &self.dirs.get(&dir)?.parent {
            names.push(name.as_str());
            dir = *parent;
        }
        (dir == CACHE).then(|| names.iter().rev().collect())
    }

    pub fn resolve(&self, rel: &Path) -> Option<DirId> {
        if self.root == RootIs::Absent {
            return None;
        }
        rel.iter()
            .try_fold(CACHE, |dir, name| self.dirs[&dir].dirs.get(name.to_str().unwrap()).copied())
    }

    /// Whether a directory, and each one above it, can be read.
    pub fn can_read(&self, mut dir: DirId) -> bool {
        while let Some(Directory { parent, is_unreadable: false, .. }) = self.dirs.get(&dir) {
            match parent {
                Some((parent, _)) => dir = *parent,
                None => return dir != CACHE || self.root != RootIs::Unreadable,
            }
        }
        false
    }

    pub(super) fn below(&self, dir: DirId) -> Vec<DirId> {
        let mut all = vec![dir];
        let mut at = 0;
        while at < all.len() {
            all.extend(self.dirs[&all[at]].dirs.values());
            at += 1;
        }
        all
    }

    /// Every pair in the cache directory, and where it is.
    pub fn pairs(&self) -> Vec<(DirId, PathBuf, u8, Halves)> {
        let dirs = self.below(CACHE).into_iter();
        dirs.flat_map(|dir| {
            let rel = self.rel(dir).unwrap();
            let pairs = self.dirs[&dir].pairs.iter();
            pairs.map(|(stem, halves)| (dir, rel.clone(), *stem, *halves)).collect::<Vec<_>>()
        })
        .collect()
    }

    pub fn halves(&mut self, dir: DirId, stem: u8) -> &mut Halves {
        self.dirs.get_mut(&dir).unwrap().pairs.entry(stem).or_default()
    }

    pub fn emit(&mut self, dir: DirId, stem: u8, half: Half, kinds: &[EventKind]) {
        for kind in kinds {
            self.kernel.emit(dir, &file(stem, half), *kind);
        }
    }

    pub fn version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    pub(super) fn some_dir(&self, chance: &mut dyn Chance) -> DirId {
        let dirs = self.below(CACHE);
        dirs[chance.below(dirs.len())]
    }

    /// A name for a pair; often the same again, so that something happens to it while threads work on it.
    fn some_name(&mut self, chance: &mut dyn Chance) -> (DirId, u8) {
        let is_there = self.rel(self.favourite.0).is_some();
        if !is_there || chance.one_in(3) {
            let name = (self.some_dir(chance), chance.below(STEMS.into()) as u8);
            if chance.one_in(2) {
                self.favourite = name;
            }
            return name;
        }
        self.favourite
    }

    /// Performs one operation of a writer, of the clock, of another cleaner, or of the owner of the machine.
    pub fn operate(&mut self, chance: &mut dyn Chance) {
        if self.root == RootIs::Absent {
            return self.change_root(chance);
        }
        match chance.below(32) {
            0..=5 => {
                let (dir, stem) = self.some_name(chance);
                let metadata = self.some_metadata(chance);
                let kinds: &[_] =
                    if chance.one_in(2) { &[TO] } else { &[CREATED, WRITTEN, CLOSED] };
                self.put_metadata(dir, stem, metadata, kinds);
            }
            6..=8 => {
                let (dir, stem) = self.some_name(chance);
                let version = self.version();
                self.put_result(dir, stem, version, &[TO]);
            }
            9 => self.remove_half(chance, Half::Result),
            10 => self.remove_half(chance, Half::Metadata),
            11 | 12 => self.rename(chance),
            13 => self.begin_to_write(chance),
            14 => self.end_writing(chance),
            15..=17 => self.make_dir(chance),
            18 | 19 => self.move_dir(chance),
            20 => {
                let dir = self.some_dir(chance);
                self.move_out(dir);
            }
            21 | 22 => drop(self.move_in(chance)),
            23 => {
                let dir = self.some_dir(chance);
                if dir != CACHE {
                    self.remove_tree(dir);
                }
            }
            24 => {
                let dir = self.some_dir(chance);
                let is_unreadable = !self.dirs[&dir].is_unreadable && dir != CACHE;
                self.set_readable(dir, !is_unreadable);
            }
            25 => {
                let dir = self.some_dir(chance);
                let dir = self.dirs.get_mut(&dir).unwrap();
                dir.is_locked = !dir.is_locked;
            }
            26 if chance.one_in(6) => self.change_root(chance),
            27 if self.has_refusals && chance.one_in(8) => self.refuses_instances ^= true,
            28 if self.has_refusals && chance.one_in(4) => self.refuses_watches ^= true,
            _ => {
                let back = if chance.one_in(4) { 40 } else { 0 };
                self.now.wall += TimeDelta::seconds(chance.below(30) as i64 - back);
                self.now.mono += Duration::from_millis(chance.below(3000) as u64);
            }
        }
    }

    pub(super) fn some_metadata(&mut self, chance: &mut dyn Chance) -> Metadata {
        if chance.one_in(5) {
            return Metadata::Broken(self.version());
        }
        let seconds = chance.below(120) as i64 - 20;
        Metadata::Valid(self.now.wall + TimeDelta::seconds(seconds))
    }

    pub(super) fn put_metadata(
        &mut self,
        dir: DirId,
        stem: u8,
        metadata: Metadata,
        kinds: &[EventKind],
    ) {
        let halves = self.halves(dir, stem);
        halves.metadata = Some(metadata);
        if let Some(result) = &mut halves.result {
            result.is_newer = false;
        }
        self.emit(dir, stem, Half::Metadata, kinds);
    }

    pub(super) fn put_result(&mut self, dir: DirId, stem: u8, version: u64, kinds: &[EventKind]) {
        let result = self.changed_result(version);
        self.halves(dir, stem).result = Some(result);
        self.emit(dir, stem, Half::Result, kinds);
    }

    /// A result that has just been changed.
    pub(super) fn changed_result(&self, version: u64) -> ResultFile {
        let Now { wall, mono: changed } = self.now;
        let ctime = (wall.timestamp(), wall.timestamp_subsec_nanos());
        ResultFile { version, changed, ctime, is_newer: true }
    }

    /// The space on the file system.
    pub fn space(&mut self) -> FreeSpace {
        let now = self.now.mono;
        self.hidden.retain(|(until, _)| *until > now);
        let hidden: u64 = self.hidden.iter().map(|(_, blocks)| blocks).sum();
        let halves = self.dirs.values().flat_map(|dir| dir.pairs.values());
        let used: u64 = halves
            .map(|halves| {
                let results = [halves.result, halves.claimed.0].into_iter().flatten();
                let metadata = [halves.metadata, halves.claimed.1].into_iter().flatten();
                let results: u64 = results.map(|result| result.blocks()).sum();
                results + METADATA_BLOCKS * metadata.count() as u64
            })
            .sum();
        let free = CAPACITY.saturating_sub(used + hidden);
        FreeSpace { free: free * BLOCK, total: CAPACITY * BLOCK }
    }

    fn remove_half(&mut self, chance: &mut dyn Chance, half: Half) {
        let (dir, stem) = self.some_name(chance);
        let halves = self.halves(dir, stem);
        let was_there = match half {
            Half::Result => halves.result.take().is_some(),
            Half::Metadata => halves.metadata.take().is_some(),
        };
        if was_there {
            self.emit(dir, stem, half, &[Remove(RemoveKind::File)]);
        }
    }

    /// Renames a pair, or half of one.
    fn rename(&mut self, chance: &mut dyn Chance) {
        let (from, to) = (self.some_name(chance), self.some_name(chance));
        let which = chance.below(3);
        if from == to {
            return;
        }
        if let Some(result) = self.halves(from.0, from.1).result.take_if(|_| which != 0) {
            self.emit(from.0, from.1, Half::Result, &[FROM]);
            self.put_result(to.0, to.1, result.version, &[TO]);
        }
        if let Some(metadata) = self.halves(from.0, from.1).metadata.take_if(|_| which != 1) {
            self.emit(from.0, from.1, Half::Metadata, &[FROM]);
            self.put_metadata(to.0, to.1, metadata, &[TO]);
        }
    }

    fn begin_to_write(&mut self, chance: &mut dyn Chance) {
        let (dir, stem) = self.some_name(chance);
        let version = self.version();
        self.writers.push(version);
        self.put_metadata(dir, stem, Metadata::HalfWritten(version), &[CREATED, WRITTEN]);
    }

    /// Closes the file of a writer, whatever name the file has by now.
    fn end_writing(&mut self, chance: &mut dyn Chance) {
        if self.writers.is_empty() {
            return;
        }
        let at = chance.below(self.writers.len());
        let writer = Metadata::HalfWritten(self.writers.swap_remove(at));
        let metadata = self.some_metadata(chance);
        let is_it = |halves: &Halves| halves.metadata == Some(writer);
        let found = self.dirs.iter().find_map(|(dir, directory)| {
            let (stem, _) = directory.pairs.iter().find(|(_, halves)| is_it(halves))?;
            Some((*dir, *stem))
        });
        if let Some((dir, stem)) = found {
            self.put_metadata(dir, stem, metadata, &[WRITTEN, CLOSED]);
        }
        for halves in self.dirs.values_mut().flat_map(|dir| dir.pairs.values_mut()) {
            if halves.claimed.1 == Some(writer) {
                halves.claimed.1 = Some(metadata);
            }
        }
    }

    /// Lets all writers and other cleaners end their work, and gives the cleaner all that it needs.
    pub fn calm_down(&mut self, chance: &mut dyn Chance) {
        while !self.writers.is_empty() {
            self.end_writing(chance);
        }
        if self.root == RootIs::Absent {
            self.epoch += 1;
        }
        if self.root == RootIs::Unreadable {
            self.kernel.emit(CACHE, "", PERMISSIONS);
        }
        self.root = RootIs::There;
        (self.refuses_instances, self.refuses_watches) = (false, false);
        for dir in self.dirs.keys().copied().collect::<Vec<_>>() {
            self.dirs.get_mut(&dir).unwrap().is_locked = false;
            if self.dirs[&dir].is_unreadable {
                self.set_readable(dir, true);
            }
        }
    }
}
