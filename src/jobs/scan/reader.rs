//! A thread of a scan that opens, watches and lists directories, and reads the metadata in them.
//!
//! Longer than other files: these steps share the buffers and the pace of the thread.

use std::ffi::CStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rustix::io::Errno;

use super::listing::Listing;
use super::pair_threads::{Batch, PairThreads};
use super::queue::{Part, Pending, Work};
use super::{ReaderPool, Scan};
use crate::disk::inspect::{read_listed, stat_file};
use crate::disk::root::{Dir, DirPlace, is_mounted_over, is_not_ours};
use crate::jobs::pairs::Hint;
use crate::pair::change::WatchError;
use crate::pair::disk_budget::DiskSize;
use crate::pair::metadata;
use crate::pair::name::{Half, Stem};
use crate::pair::outcome::{ScanFound, Summary, Waiting};
use crate::sys::clock::thread_time;
use crate::sys::descriptors::share_of_open_files;

/// How many directories a thread opens at once, so that notify is asked for their watches in one request.
const GROUP: usize = 16;
/// The same where no watches are set. The fewer, the more evenly the threads share them.
const UNWATCHED_GROUP: usize = 4;
/// The most pairs of one directory in a part. Two threads that work in one directory wait for each other, so
/// most directories should be one part.
const MAX_PART: usize = 512;
/// After how many pairs a thread reads the clock again, and checks whether it waits for the disk. A clock that is
/// late keeps a pair for longer, and never deletes one.
const CHECK: usize = 64;
/// From how many pairs on the findings are handed over at once.
const HAND_OVER: usize = 512;
/// Metadata that does not fit is read by the careful inspection. The store's has some 500 bytes.
const BUFFER: usize = 4096;
/// A thread that waits longer than this for each pair waits for the disk. Then more threads help, so that
/// the disk has more requests to choose from.
const SLOW: Duration = Duration::from_micros(40);

/// Directories that were opened, and whether what is below them is listed, too.
type Opened = Vec<(Arc<Path>, bool, io::Result<Arc<Dir>>)>;

/// Reserved names, by directory.
pub(super) type Claims = Vec<(Arc<Path>, Vec<Vec<u8>>)>;

pub(super) struct Reader<'a, 'scope, 'scan> {
    scan: &'scan Scan<'scan>,
    readers: &'a ReaderPool,
    pair_threads: &'a PairThreads<'scope, 'scan>,
    listing: Listing,
    buffer: Box<[u8]>,
    found: ScanFound,
    summary: Summary,
    claims: Claims,
    pace: Pace,
}

/// What a thread has done since it last checked whether it waits for the disk.
struct Pace {
    start: Instant,
    worked_before: Duration,
    /// How long it has waited for watches, for work, and for other threads to take what it found.
    rested: Duration,
    pairs: usize,
}

impl Pace {
    fn new() -> Self {
        let (start, worked_before) = (Instant::now(), thread_time());
        Self { start, worked_before, rested: Duration::ZERO, pairs: 0 }
    }

    /// How long the thread has waited for the disk, or for a processor.
    fn waited(&self) -> Duration {
        let worked = thread_time() - self.worked_before;
        self.start.elapsed().saturating_sub(worked + self.rested)
    }
}

impl<'a, 'scope, 'scan: 'scope> Reader<'a, 'scope, 'scan> {
    pub(super) fn new(
        scan: &'scan Scan<'scan>,
        readers: &'a ReaderPool,
        pair_threads: &'a PairThreads<'scope, 'scan>,
    ) -> Self {
        Self {
            scan,
            readers,
            pair_threads,
            listing: Listing::default(),
            buffer: vec![0; BUFFER].into(),
            found: ScanFound::default(),
            summary: Summary::default(),
            claims: Claims::new(),
            pace: Pace::new(),
        }
    }

    /// Works until there is no more work. Calls `start_reader` when another thread could help.
    pub(super) fn run(mut self, start_reader: &dyn Fn()) -> (Summary, Claims) {
        let group = if self.scan.watcher.is_some() { GROUP } else { UNWATCHED_GROUP };
        let group = share_of_open_files(512, group);
        loop {
            let idle_since = Instant::now();
            let Some(turn) = self.readers.queue.next(group) else { break };
            self.pace.rested += idle_since.elapsed();
            if turn.has_more {
                start_reader();
            }
            match &turn.work {
                Work::Directories(dirs) => self.read_directories(dirs, start_reader),
                Work::Part(part) => self.read_part(part, start_reader),
            }
            // The next work may take long to come.
            self.hand_over();
            drop(turn);
            if self.scan.cancelled() {
                break;
            }
        }
        (self.summary, self.claims)
    }

    /// Calls for more threads if this one waits for the disk. `pairs` is how many it has read since the last call.
    fn check_pace(&mut self, pairs: usize, start_reader: &dyn Fn()) {
        self.pace.pairs += pairs;
        if self.pace.pairs < CHECK || self.scan.context.throttle().is_bounded() {
            return;
        }
        let is_slow = self.pace.waited() > SLOW * self.pace.pairs as u32;
        self.readers.note_speed(is_slow);
        if is_slow {
            start_reader();
        }
        self.pace = Pace::new();
    }

    fn read_directories(&mut self, dirs: &Pending, start_reader: &dyn Fn()) {
        for (rel, descends, dir) in self.open(dirs) {
            // Otherwise, the names of many huge directories could fill memory.
            while let Some(part) = self.readers.queue.take_part() {
                self.read_part(&part, start_reader);
            }
            self.rest();
            if self.scan.cancelled() {
                return;
            }
            match dir.and_then(|dir| self.read(&dir, descends, start_reader)) {
                Ok(pairs) => self.check_pace(pairs, start_reader),
                Err(error) => self.unread(rel, descends, error),
            }
        }
    }

    fn read_part(&mut self, part: &Part, start_reader: &dyn Fn()) {
        let Part { dir, listing, from, to } = part;
        self.read_pairs(dir, listing, *from, *to);
        self.check_pace(to - from, start_reader);
    }

    /// Waits until the throttle allows more.
    fn rest(&mut self) {
        if self.scan.context.throttle().is_bounded() {
            self.hand_over();
            self.scan.context.throttle().rest(self.scan.cancel);
        }
    }

    fn unread(&mut self, rel: Arc<Path>, descends: bool, error: io::Error) {
        let watcher = self.scan.watcher;
        if is_not_ours(&error) {
            if let Some(watcher) = watcher {
                watcher.forget(&rel);
                if is_mounted_over(&error) {
                    watcher.mount_points.track(&rel);
                }
            }
            if !descends {
                // All that was below it is gone, too.
                self.summary.scan_next.push(rel);
            }
            return;
        }
        if let Some(watcher) = watcher {
            watcher.expect(&rel);
        }
        self.summary.scan_again(&rel, &error);
        self.summary.unreadable.push((rel, error));
    }

    /// Opens directories, and waits until they are watched.
    fn open(&mut self, dirs: &Pending) -> Opened {
        let spending = self.scan.context.throttle().spend();
        let open = |(rel, descends): &(Arc<Path>, bool)| {
            (Arc::clone(rel), *descends, self.open_expected(rel).map(Arc::new))
        };
        let mut dirs: Opened = dirs.iter().map(open).collect();
        drop(spending);
        let Some(watcher) = self.scan.watcher else { return dirs };
        let there = dirs.iter().filter(|(.., dir)| dir.is_ok());
        let rels: Vec<_> = there.map(|(rel, ..)| Arc::clone(rel)).collect();
        let answers = watcher.begin_watch(&rels);
        let start = Instant::now();
        let is_new = answers.is_new.clone();
        let answers = watcher.finish_watch(&rels, answers, self.scan.cancel);
        let waited = start.elapsed();
        self.summary.waited += waited;
        self.pace.rested += waited;
        let there = dirs.iter_mut().filter(|(.., dir)| dir.is_ok());
        for (((.., opened), answer), is_new) in there.zip(answers).zip(is_new) {
            // A directory that was watched before was checked before.
            if !is_new && answer == Ok(true) {
                continue;
            }
            let checked = opened.as_ref().map(|dir| self.check_watch(dir, answer));
            if let Ok(Err(error)) = checked {
                *opened = Err(error);
            }
        }
        dirs
    }

    /// Opens a directory. If that fails, tries once more after the watcher expects the directory: only from then on do
    /// events report that it can be read again.
    fn open_expected(&self, rel: &Arc<Path>) -> io::Result<Dir> {
        let opened = self.scan.root.open_dir(rel);
        match (&opened, self.scan.watcher) {
            (Err(error), Some(watcher)) if !is_not_ours(error) => {
                watcher.expect(rel);
                self.scan.root.open_dir(rel)
            }
            _ => opened,
        }
    }

    /// Handles the answer to a request to watch an open directory by its path, which may lead elsewhere by now.
    fn check_watch(&mut self, dir: &Dir, watched: Result<bool, WatchError>) -> io::Result<()> {
        let root = self.scan.root;
        match watched {
            Ok(true) if root.path_leads_to(dir)? => {}
            Ok(true) => match root.place_of(dir)? {
                DirPlace::Same => self.summary.watched_wrong_path = true,
                // The watch is that of the file system that was mounted over it since it was opened.
                DirPlace::MountedOver => return Err(Errno::XDEV.into()),
                DirPlace::Moved => {}
            },
            // The directory, or one above it, was away for an instant.
            Ok(false) if root.still_contains(dir)? => {
                self.summary.scan_next.push(Arc::clone(&dir.rel));
            }
            // It was moved away since it was opened, and no event will report that.
            Ok(false) => return Err(Errno::NOENT.into()),
            // The worker knows that, and lists the directory or replaces the watcher.
            Err(WatchError::Flooded) => {}
            Err(refusal) => self.summary.refuse(1, refusal),
        }
        Ok(())
    }

    /// Lists a directory, and reads the metadata in it. Returns how many pairs it has read.
    fn read(
        &mut self,
        dir: &Arc<Dir>,
        descends: bool,
        start_reader: &dyn Fn(),
    ) -> io::Result<usize> {
        let mut listing = std::mem::take(&mut self.listing);
        let spending = self.scan.context.throttle().spend();
        let listed = listing.read(dir, || self.scan.cancelled());
        drop(spending);
        listed?;
        if self.scan.cancelled() {
            return Ok(0);
        }
        // Only now, since a file that is deleted during the listing may be listed or not.
        self.summary.results += listing.results() as u64;
        if self.scan.context.orphan_ages().any()
            && (listing.is_empty || listing.has_leftovers || listing.has_orphans())
        {
            self.summary.orphans.push(Arc::clone(&dir.rel));
        }
        if !listing.claims.is_empty() {
            self.claims.push((Arc::clone(&dir.rel), std::mem::take(&mut listing.claims)));
        }
        let below = listing.dirs.drain(..).map(|name| Arc::from(dir.rel.join(&*name)));
        let below: Vec<Arc<Path>> = below.collect();
        if listing.len() > MAX_PART {
            let parts = Arc::new(listing);
            let part = |from: usize| Part {
                dir: Arc::clone(dir),
                listing: Arc::clone(&parts),
                from,
                to: parts.len().min(from + MAX_PART),
            };
            let others = (MAX_PART..parts.len()).step_by(MAX_PART).map(part).collect();
            self.add(below, descends, others, start_reader);
            self.read_pairs(dir, &parts, 0, MAX_PART);
            return Ok(MAX_PART);
        }
        self.add(below, descends, Vec::new(), start_reader);
        let pairs = listing.len();
        self.read_pairs(dir, &listing, 0, pairs);
        self.listing = listing;
        Ok(pairs)
    }

    /// Adds work for all threads: directories that were found, and parts of this one.
    fn add(
        &mut self,
        below: Vec<Arc<Path>>,
        descends: bool,
        parts: Vec<Part>,
        start_reader: &dyn Fn(),
    ) {
        let mut listed = Vec::new();
        if descends {
            listed = below;
        } else {
            let is_new =
                |dir: &Arc<Path>| self.scan.watcher.is_none_or(|watcher| !watcher.knows(dir));
            self.summary.scan_next.extend(below.into_iter().filter(is_new));
        }
        let has_more = !listed.is_empty() || !parts.is_empty();
        if has_more && self.readers.queue.add(listed.into_iter(), parts) {
            start_reader();
        }
    }

    /// Reads the metadata of some listed pairs. Hands those that do not simply wait to the threads for pairs.
    fn read_pairs(&mut self, dir: &Arc<Dir>, listing: &Listing, from: usize, to: usize) {
        let context = self.scan.context;
        // Nearly all pairs wait, in most scans.
        let (mut waiting, mut others) = (Vec::with_capacity(to - from), Vec::new());
        // Without a disk budget, no size is looked at.
        let mut sizes = Vec::new();
        let step = if context.throttle().is_bounded() { 1 } else { CHECK };
        for start in (from..to).step_by(step) {
            self.rest();
            let _spending = context.throttle().spend();
            let now = context.clock().wall();
            for at in start..to.min(start + step) {
                if self.scan.cancelled() {
                    return;
                }
                let (name, stem) = listing.metadata(at);
                let is_pair = listing.has_result(stem);
                let read = || self.read_waiting(dir, name, stem, now);
                if let Some((expires_at, size)) = is_pair.then(read).flatten() {
                    waiting.push((Stem::new(stem), expires_at));
                    sizes.extend(size);
                } else {
                    let hint = if is_pair { Hint::Listed } else { Hint::Nothing };
                    others.push((Stem::new(stem), hint));
                }
            }
        }
        if !waiting.is_empty() {
            let dir = Arc::clone(&dir.rel);
            self.found.waiting.push(Waiting { dir, pairs: waiting, sizes });
        }
        if self.found.len() >= HAND_OVER {
            self.hand_over();
        }
        if !others.is_empty() {
            // The threads for pairs may be busy for long.
            self.hand_over();
            let start = Instant::now();
            self.pair_threads.process(Batch { dir: Arc::clone(dir), pairs: others });
            self.pace.rested += start.elapsed();
        }
    }

    /// Returns when a listed pair expires, and its size if there is a disk budget; `None` if it does not simply wait.
    fn read_waiting(
        &mut self,
        dir: &Dir,
        name: &CStr,
        stem: &[u8],
        now: DateTime<Utc>,
    ) -> Option<(DateTime<Utc>, Option<DiskSize>)> {
        let context = self.scan.context;
        if context.reports_sizes() {
            return None;
        }
        let mut blocks = context.budget().map(|_| 0);
        let content = read_listed(dir, name, &mut self.buffer, blocks.as_mut())?;
        let expires_at = metadata::expires_at(content).ok().filter(|at| *at > now)?;
        let size = match blocks {
            Some(blocks) => Some(result_size(dir, stem, blocks)?),
            None => None,
        };
        Some((expires_at, size))
    }

    fn hand_over(&mut self) {
        if !self.found.is_empty() {
            let start = Instant::now();
            (self.scan.found)(std::mem::take(&mut self.found));
            self.pace.rested += start.elapsed();
        }
    }
}

/// Returns the size of a pair whose metadata takes `metadata_blocks`; `None` if its result is no regular file, or can't
/// be inspected.
fn result_size(dir: &Dir, stem: &[u8], metadata_blocks: u32) -> Option<DiskSize> {
    let result = stat_file(dir, &Stem::new(stem).name(Half::Result)).ok()??;
    Some(DiskSize::of(&result, metadata_blocks))
}
