//! Metadata that is broken, or only appears broken because it is still being written.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Attempts, ScanId, Scope};
use crate::pair::change::WriteState;
use crate::pair::name::PairKey;
use crate::pair::version::{Broken, FileState, SETTLE_TIME, Version};
use crate::sys::clock::Now;

/// How many versions of broken metadata, and how many writers, are tracked. Beyond these limits, an old
/// version may be counted again, and a writer may be considered done one second after its last change.
const MAX_COUNTED: usize = 131_072;
const MAX_WRITERS: usize = 16_384;

/// The writers of metadata, and the broken metadata that was counted.
#[derive(Debug, Default)]
pub(super) struct HalfWritten {
    /// Pairs whose metadata is being written, as far as events show: the writer has not closed it.
    writers: HashMap<PairKey, WriteState>,
    /// Broken metadata that was counted, and the latest scan that had started when it was last seen.
    /// Each version of a file counts once, even if the file was renamed since.
    counted: HashMap<(Version, Broken), ScanId>,
    /// The last full scan that was completed.
    last_full: ScanId,
}

impl HalfWritten {
    /// Records what an event reports about the writer of a pair's metadata.
    pub(super) fn note_writer(&mut self, key: &PairKey, writer: WriteState) {
        match writer {
            WriteState::Unknown => {}
            WriteState::Created | WriteState::Writing => {
                if let Some(known) = self.writers.get_mut(key) {
                    *known = writer;
                } else if self.writers.len() < MAX_WRITERS {
                    self.writers.insert(key.clone(), writer);
                }
            }
            WriteState::Closed | WriteState::Gone => self.forget_writer(key),
        }
    }

    pub(super) fn forget_writer(&mut self, key: &PairKey) {
        self.writers.remove(key);
    }

    /// Drops the writers in `scope`, which a scan reads itself, and returns their pairs. An event may
    /// have been lost, or a directory moved away while metadata in it was being written. Without this,
    /// such a writer would be tracked forever.
    pub(super) fn forget_writers(&mut self, scope: &Scope) -> impl Iterator<Item = PairKey> {
        self.writers.extract_if(|key, _| scope.covers(&key.dir)).map(|(key, _)| key)
    }

    pub(super) fn writer(&self, key: &PairKey) -> Option<WriteState> {
        self.writers.get(key).copied()
    }

    /// Returns whether this version of a file, broken for this reason, was counted before. Updates when
    /// it was last seen.
    pub(super) fn was_counted(&mut self, version: Version, reason: &Broken, scan: ScanId) -> bool {
        let counted = self.counted.get_mut(&(version, reason.clone()));
        counted.is_some_and(|seen| {
            *seen = scan;
            true
        })
    }

    /// Records that it is counted now.
    pub(super) fn count(&mut self, version: Version, reason: Broken, scan: ScanId) {
        if self.counted.len() >= MAX_COUNTED {
            let last_full = self.last_full;
            self.counted.retain(|_, seen| *seen >= last_full);
        }
        if self.counted.len() >= MAX_COUNTED {
            // Drop any half of them, so that this is not done at each call.
            let mut is_kept = false;
            self.counted.retain(|_, _| {
                is_kept = !is_kept;
                is_kept
            });
        }
        self.counted.insert((version, reason), scan);
    }

    pub(super) fn full_scan_ended(&mut self, id: ScanId) {
        self.last_full = id;
    }
}

/// Returns when metadata is confirmed as broken, and not just half written; `None` if an event of its
/// writer will decide.
pub(super) fn confirm_at(
    metadata: &FileState,
    wait: Duration,
    writer: WriteState,
    attempts: Attempts,
    pause: Option<(Instant, Attempts)>,
    now: Now,
) -> Option<Instant> {
    let suspect = Some((metadata.version, metadata.ctime));
    match (writer, pause) {
        (WriteState::Writing, _) => None,
        // A file that has content, but no write event, was complete when it was linked here.
        (WriteState::Created, _) if metadata.version.size == 0 && !metadata.was_linked() => None,
        // The wait for this version is over.
        _ if attempts.suspect == suspect => Some(now.mono),
        // The next writer may have opened the file already, and its events may be delayed.
        (WriteState::Closed, _) => Some(now.mono + SETTLE_TIME),
        // The schedule is waiting for this version already.
        (_, Some((until, attempts))) if attempts.suspect == suspect => Some(until),
        _ => Some(now.mono + wait),
    }
}
