//! Attending to pairs: look at one, and delete it if it may go. Blocking; runs on threads for it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::clock::Clock;
use crate::config::{Config, ResultStore};
use crate::entry::{Half, Key, Stem};
use crate::error::path_field;
use crate::look::{Broken, Pair, Seen, Sight, look};
use crate::remove::{Held, Removal, remove, restore};
use crate::root::{Dir, Root, is_mounted_over, leads_nowhere};
use crate::sandbox::confined;

/// For how long a file may be empty before its times tell that it was truncated.
const TRUNCATION: Duration = Duration::from_millis(50);
/// How many pairs a thread holds at the most.
const MAX_HELD: usize = 2048;

/// What was found of a pair, and what became of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// There is no complete pair.
    Incomplete,
    /// It may not go yet.
    Waiting { expires_at: DateTime<Utc>, bytes: u64 },
    /// It may go, but this attendant only looks.
    Due { expires_at: DateTime<Utc>, bytes: u64 },
    /// It is due, but its result may be half published: to be looked at again in a while, with
    /// what was seen in hand.
    Unsettled { result: Seen, wait: Duration, expires_at: DateTime<Utc>, bytes: u64 },
    /// Its metadata can't be used; `wait` tells for how long it may still be half written.
    Broken { metadata: Seen, reason: Broken, wait: Duration, bytes: u64 },
    /// It was deleted; `leftover` tells why its metadata could not be.
    Removed { freed: u64, leftover: Option<Failure> },
    /// It changed just when it was about to be deleted, or a file system is mounted over it.
    Changed,
    /// Another cleaner has taken it, or a dead one had.
    Taken,
    /// It could not be looked at, or not be deleted.
    Failed(Failure),
    /// A file of it is still under a reserved name, and could not be given its own name back.
    Stranded(Failure),
}

/// Why something could not be done to a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    doing: &'static str,
    /// `None` where the system did not refuse, but a lock is held.
    errno: Option<i32>,
}

impl Failure {
    pub fn new(doing: &'static str, error: &io::Error) -> Self {
        Self { doing, errno: error.raw_os_error() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            // Only a claim asks for a name that is free.
            Some(errno) if errno == Errno::EXIST.raw_os_error() => {
                write!(
                    f,
                    "can't {}: something bears the reserved name that no cleaner has put there",
                    self.doing
                )
            }
            Some(errno) => {
                write!(f, "can't {}: {}", self.doing, io::Error::from_raw_os_error(errno))
            }
            None => {
                write!(f, "can't {}: another program holds a lock on its directory", self.doing)
            }
        }
    }
}

/// A pair to attend to.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub key: Key,
    /// The result as it was when it was given time to settle, which has passed.
    pub settled: Option<Seen>,
}

/// An outcome and the pair that it is about.
#[derive(Debug)]
pub(crate) struct Found {
    pub key: Key,
    pub outcome: Outcome,
}

type Strays = Arc<Mutex<Vec<(Arc<Dir>, Stem)>>>;

/// How the pairs of one cleaner are attended to.
#[derive(Clone)]
pub(crate) struct Attendant {
    clock: Arc<Clock>,
    store: Option<Arc<dyn ResultStore>>,
    /// Whether it deletes, or only looks.
    deletes: bool,
    /// Whether it works on threads that are confined to the cache directory.
    confined: bool,
    /// Pairs that were moved out of the cache directory while they were being deleted.
    strays: Strays,
}

impl Attendant {
    /// One that deletes what may go.
    pub fn deleting(clock: Arc<Clock>, config: &Config) -> Self {
        let store = config.result_store.clone();
        Self { clock, store, deletes: true, confined: config.sandbox, strays: Arc::default() }
    }

    /// One that only looks.
    pub fn looking(clock: Arc<Clock>) -> Self {
        Self { clock, store: None, deletes: false, confined: false, strays: Arc::default() }
    }

    /// Runs work in `root` that may delete: on a confined thread where that is wanted.
    pub fn run<T: Send>(&self, root: &Root, work: impl FnOnce() -> T + Send) -> T {
        let done = if self.confined { confined(root, work) } else { work() };
        // What was confined could not reach them any more.
        for (dir, stem) in std::mem::take(&mut *self.strays()) {
            restore(&dir, &stem);
        }
        done
    }

    fn strays(&self) -> MutexGuard<'_, Vec<(Arc<Dir>, Stem)>> {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it deletes, or only looks.
    pub fn deletes(&self) -> bool {
        self.deletes
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Tells the result store, if there is one, that a result was removed.
    pub fn tell_removed(&self, root: &Root, rel: &Path, stem: &Stem) {
        if let Some(store) = &self.store {
            let path = result_path(root, rel, stem);
            if catch_unwind(AssertUnwindSafe(|| store.removed(&path))).is_err() {
                tracing::error!(
                    path = path_field(&path),
                    "the result store panicked when told of a removal"
                );
            }
        }
    }
}

/// Attends to pairs one after the other, on one thread.
///
/// What is deleted is held for an instant, while the next pairs are attended to, so that its
/// outcome comes later than theirs.
pub(crate) struct Attending<'a> {
    attendant: &'a Attendant,
    root: &'a Root,
    buffer: Vec<u8>,
    found: Vec<Found>,
    held: VecDeque<(Held, TimeDelta)>,
    /// In how many directories these are, each of which is open.
    held_dirs: usize,
    max_held_dirs: usize,
}

impl<'a> Attending<'a> {
    pub fn new(attendant: &'a Attendant, root: &'a Root) -> Self {
        Self {
            attendant,
            root,
            buffer: Vec::new(),
            found: Vec::new(),
            held: VecDeque::new(),
            held_dirs: 0,
            max_held_dirs: max_held_dirs(),
        }
    }

    /// Attends to jobs of any directories, opening each directory once for those that follow each
    /// other, until `cancel` is set.
    pub fn attend_all(&mut self, jobs: &[Job], cancel: &AtomicBool) {
        for group in jobs.chunk_by(|a, b| a.key.dir == b.key.dir) {
            let dir = self.root.open_dir(&group[0].key.dir).map(Arc::new);
            for Job { key, settled } in group {
                if cancel.load(Ordering::Relaxed) {
                    return;
                }
                let outcome = match &dir {
                    Ok(dir) => {
                        self.attend(dir, &key.stem, *settled);
                        continue;
                    }
                    // What is mounted over it may be unmounted again.
                    Err(error) if is_mounted_over(error) => Outcome::Changed,
                    Err(error) if leads_nowhere(error) => Outcome::Incomplete,
                    Err(error) => Outcome::Failed(Failure::new("open its directory", error)),
                };
                self.found.push(Found { key: key.clone(), outcome });
            }
        }
    }

    /// Attends to one pair.
    pub fn attend(&mut self, dir: &Arc<Dir>, stem: &Stem, settled: Option<Seen>) {
        self.finish_ripe();
        let outcome = match self.judge(dir, stem, settled) {
            Verdict::Stays(outcome) => Some(outcome),
            Verdict::Goes(pair) => self.delete(dir, stem, pair),
        };
        if let Some(outcome) = outcome {
            let key = Key { dir: Arc::clone(&dir.rel), stem: stem.clone() };
            self.found.push(Found { key, outcome });
        }
    }

    /// When the next of what is held is to be finished.
    pub fn next(&self) -> Option<Instant> {
        self.held.front().map(|(held, _)| held.until())
    }

    /// Whether the outcome of anything is still to come.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// What was found since this was last asked.
    pub fn take_found(&mut self) -> Vec<Found> {
        std::mem::take(&mut self.found)
    }

    /// Finishes what was held for long enough; waits where too much is held.
    pub fn finish_ripe(&mut self) {
        while let Some(until) = self.next() {
            let too_much = self.held.len() >= MAX_HELD || self.held_dirs >= self.max_held_dirs;
            if !too_much && until > Instant::now() {
                return;
            }
            self.finish_next();
        }
    }

    /// Finishes all that is held.
    pub fn finish(&mut self) {
        while self.holds() {
            self.finish_next();
        }
    }

    fn finish_next(&mut self) {
        let Some((held, late)) = self.held.pop_front() else { return };
        thread::sleep(held.until().saturating_duration_since(Instant::now()));
        let (dir, stem) = (Arc::clone(&held.dir), held.stem.clone());
        if self.held.front().is_none_or(|(next, _)| !Arc::ptr_eq(&next.dir, &dir)) {
            self.held_dirs -= 1;
        }
        let clock = &self.attendant.clock;
        let removal = held.finish(&|| clock.wall(), &mut self.buffer);
        if let Some(outcome) = self.outcome_of(removal, &dir, &stem, late) {
            let key = Key { dir: Arc::clone(&dir.rel), stem };
            self.found.push(Found { key, outcome });
        }
    }

    fn judge(&mut self, dir: &Dir, stem: &Stem, settled: Option<Seen>) -> Verdict {
        let clock = &self.attendant.clock;
        let pair = match look(dir, stem, &mut self.buffer) {
            Ok(Sight::Incomplete) => return Verdict::Stays(Outcome::Incomplete),
            Ok(Sight::Broken { result, metadata, reason }) => {
                let wait = metadata.settles_in(clock.wall()).max(least_wait(&metadata));
                let bytes = result.version.size + metadata.version.size;
                return Verdict::Stays(Outcome::Broken { metadata, reason, wait, bytes });
            }
            Ok(Sight::Whole(pair)) => pair,
            Err(error) => {
                return Verdict::Stays(Outcome::Failed(Failure::new("look at it", &error)));
            }
        };
        let now = clock.wall();
        let (expires_at, bytes) = (pair.expires_at, pair.bytes());
        if now < expires_at {
            return Verdict::Stays(Outcome::Waiting { expires_at, bytes });
        }
        let settled = settled.is_some_and(|then| pair.result.is_unchanged_since(&then));
        if pair.may_be_half_published() && !settled {
            let wait = pair.result.settles_in(now);
            if !wait.is_zero() {
                return Verdict::Stays(Outcome::Unsettled {
                    result: pair.result,
                    wait,
                    expires_at,
                    bytes,
                });
            }
        }
        if !self.attendant.deletes {
            return Verdict::Stays(Outcome::Due { expires_at, bytes });
        }
        Verdict::Goes(pair)
    }

    fn delete(&mut self, dir: &Arc<Dir>, stem: &Stem, pair: Pair) -> Option<Outcome> {
        let clock = &self.attendant.clock;
        let (wall, expires_at) = (|| clock.wall(), pair.expires_at);
        let removal = remove(self.root, dir, stem, pair, &wall, &mut self.buffer);
        let late = clock.wall() - expires_at;
        self.outcome_of(removal, dir, stem, late)
    }

    /// The outcome of a removal, if it has one already; `late` is by how much it came too late.
    fn outcome_of(
        &mut self,
        removal: Removal,
        dir: &Arc<Dir>,
        stem: &Stem,
        late: TimeDelta,
    ) -> Option<Outcome> {
        Some(match self.unless_moved_away(removal, dir, stem) {
            Removal::Held(held) => {
                if self.held.back().is_none_or(|(last, _)| !Arc::ptr_eq(&last.dir, dir)) {
                    self.held_dirs += 1;
                }
                self.held.push_back((held, late));
                return None;
            }
            Removal::Removed { freed, leftover } => {
                tracing::debug!(
                    path = path_field(&result_path(self.root, &dir.rel, stem)),
                    late_ms = late.num_milliseconds(),
                    "deleted an expired result"
                );
                self.attendant.tell_removed(self.root, &dir.rel, stem);
                let leftover = leftover.map(|error| Failure::new("delete its metadata", &error));
                Outcome::Removed { freed, leftover }
            }
            Removal::Changed => Outcome::Changed,
            Removal::Gone => Outcome::Incomplete,
            Removal::Taken => Outcome::Taken,
            Removal::Failed(error) => Outcome::Failed(Failure::new("delete it", &error)),
            Removal::Stranded(error) => {
                Outcome::Stranded(Failure::new("give it its name back", &error))
            }
        })
    }

    /// Where a pair was moved out of the cache directory with its directory while it was being
    /// deleted, it is out of reach, and that is no failure.
    fn unless_moved_away(&self, removal: Removal, dir: &Arc<Dir>, stem: &Stem) -> Removal {
        let out_of_reach = match &removal {
            Removal::Failed(_) | Removal::Stranded(_) => true,
            Removal::Removed { leftover, .. } => leftover.is_some(),
            _ => false,
        };
        if !out_of_reach || self.root.still_holds(dir) {
            return removal;
        }
        self.attendant.strays().push((Arc::clone(dir), stem.clone()));
        match removal {
            Removal::Removed { freed, .. } => Removal::Removed { freed, leftover: None },
            _ => Removal::Gone,
        }
    }
}

/// What is to become of a pair.
enum Verdict {
    Stays(Outcome),
    Goes(Pair),
}

impl Drop for Attending<'_> {
    /// What is held must not stay under its reserved names, even if a panic ended the work.
    fn drop(&mut self) {
        self.finish();
    }
}

/// How many directories a thread may keep open for what it holds. There are some two dozen such
/// threads at the most, and the limit of open files is for all.
fn max_held_dirs() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 64).unwrap_or(usize::MAX).clamp(1, 32)
}

pub(crate) fn result_path(root: &Root, rel: &Path, stem: &Stem) -> PathBuf {
    let name = stem.name(Half::Result);
    root.path().join(rel).join(OsStr::from_bytes(&name))
}

/// A file that is being truncated is empty for an instant before its times tell that it changed.
fn least_wait(metadata: &Seen) -> Duration {
    if metadata.version.size == 0 { TRUNCATION } else { Duration::ZERO }
}
