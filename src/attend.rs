//! Attending to pairs: look at one, and delete it if it may go. Blocking; runs on threads for it.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::clock::Clock;
use crate::config::ResultStore;
use crate::entry::{Half, Key, Stem};
use crate::error::path_field;
use crate::look::{Broken, Pair, Seen, Sight, look};
use crate::remove::{Removal, remove};
use crate::root::{Dir, Root, is_mounted_over, leads_nowhere};

/// For how long a file may be empty before its times tell that it was truncated.
const TRUNCATION: Duration = Duration::from_millis(50);

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

/// Attends to pairs for one cleaner.
#[derive(Clone)]
pub(crate) struct Attendant {
    clock: Arc<Clock>,
    store: Option<Arc<dyn ResultStore>>,
    /// Whether it deletes, or only looks.
    deletes: bool,
}

impl Attendant {
    /// One that deletes what may go.
    pub fn deleting(clock: Arc<Clock>, store: Option<Arc<dyn ResultStore>>) -> Self {
        Self { clock, store, deletes: true }
    }

    /// One that only looks.
    pub fn looking(clock: Arc<Clock>) -> Self {
        Self { clock, store: None, deletes: false }
    }

    /// Whether it deletes, or only looks.
    pub fn deletes(&self) -> bool {
        self.deletes
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Attends to jobs of any directories, opening each directory once for those that follow each
    /// other, until `cancel` is set.
    pub fn attend_all(&self, root: &Root, jobs: &[Job], cancel: &AtomicBool) -> Vec<Found> {
        let mut buffer = Vec::new();
        let mut found = Vec::with_capacity(jobs.len());
        for group in jobs.chunk_by(|a, b| a.key.dir == b.key.dir) {
            let dir = root.open_dir(&group[0].key.dir);
            for Job { key, settled } in group {
                if cancel.load(Ordering::Relaxed) {
                    return found;
                }
                let outcome = match &dir {
                    Ok(dir) => self.attend(root, dir, &key.stem, *settled, &mut buffer),
                    // What is mounted over it may be unmounted again.
                    Err(error) if is_mounted_over(error) => Outcome::Changed,
                    Err(error) if leads_nowhere(error) => Outcome::Incomplete,
                    Err(error) => Outcome::Failed(Failure::new("open its directory", error)),
                };
                found.push(Found { key: key.clone(), outcome });
            }
        }
        found
    }

    /// Attends to one pair.
    pub fn attend(
        &self,
        root: &Root,
        dir: &Dir,
        stem: &Stem,
        settled: Option<Seen>,
        buffer: &mut Vec<u8>,
    ) -> Outcome {
        let pair = match look(dir, stem, buffer) {
            Ok(Sight::Incomplete) => return Outcome::Incomplete,
            Ok(Sight::Broken { result, metadata, reason }) => {
                let wait = metadata.settles_in(self.clock.wall()).max(least_wait(&metadata));
                let bytes = result.version.size + metadata.version.size;
                return Outcome::Broken { metadata, reason, wait, bytes };
            }
            Ok(Sight::Whole(pair)) => pair,
            Err(error) => return Outcome::Failed(Failure::new("look at it", &error)),
        };
        let now = self.clock.wall();
        let (expires_at, bytes) = (pair.expires_at, pair.bytes());
        if now < expires_at {
            return Outcome::Waiting { expires_at, bytes };
        }
        let settled = settled.is_some_and(|then| pair.result.is_unchanged_since(&then));
        if pair.may_be_half_published() && !settled {
            let wait = pair.result.settles_in(now);
            if !wait.is_zero() {
                return Outcome::Unsettled { result: pair.result, wait, expires_at, bytes };
            }
        }
        if !self.deletes {
            return Outcome::Due { expires_at, bytes };
        }
        self.delete(root, dir, stem, &pair, buffer)
    }

    fn delete(
        &self,
        root: &Root,
        dir: &Dir,
        stem: &Stem,
        pair: &Pair,
        buffer: &mut Vec<u8>,
    ) -> Outcome {
        let wall = || self.clock.wall();
        match remove(root, dir, stem, pair, &wall, buffer) {
            Removal::Removed { freed, leftover } => {
                let late = self.clock.wall() - pair.expires_at;
                tracing::debug!(
                    path = path_field(&result_path(root, &dir.rel, stem)),
                    late_ms = late.num_milliseconds(),
                    "deleted an expired result"
                );
                self.tell_removed(root, &dir.rel, stem);
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
        }
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

fn result_path(root: &Root, rel: &Path, stem: &Stem) -> PathBuf {
    let name = stem.name(Half::Result);
    root.path().join(rel).join(OsStr::from_bytes(&name))
}

/// A file that is being truncated is empty for an instant before its times tell that it changed.
fn least_wait(metadata: &Seen) -> Duration {
    if metadata.version.size == 0 { TRUNCATION } else { Duration::ZERO }
}
