//! Metadata that is broken, or only looks so because it is still being written.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Attempts, ScanId, Scope};
use crate::pair::change::WriteState;
use crate::pair::name::PairKey;
use crate::pair::version::{Broken, FileState, SETTLE_TIME, Version};
use crate::sys::clock::Now;

/// How many versions of broken metadata are remembered, and how many writers. Whoever has more
/// may have an old version counted again, and be taken for done a second after the last change.
const MAX_TOLD: usize = 131_072;
const MAX_WRITERS: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct HalfWritten {
    /// Pairs whose metadata is being written, as far as events tell: its writer has not closed it.
    writers: HashMap<PairKey, WriteState>,
    /// Broken metadata that was counted, so that each version of a file counts once, whatever its
    /// name is by now; and the last scan that had begun when it was last seen.
    told: HashMap<(Version, Broken), ScanId>,
    /// The last full scan that was completed.
    last_full: ScanId,
}

impl HalfWritten {
    /// Takes in what an event tells of the writer of a pair's metadata.
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

    /// Forgets the writers of all that a scan sees for itself: where an event was lost, or a
    /// directory was moved away with what is being written in it, one would write for ever.
    pub(super) fn forget_writers(&mut self, scope: &Scope) -> impl Iterator<Item = PairKey> {
        self.writers.extract_if(|key, _| scope.covers(&key.dir)).map(|(key, _)| key)
    }

    pub(super) fn writer(&self, key: &PairKey) -> Option<WriteState> {
        self.writers.get(key).copied()
    }

    /// Whether this version of a file, broken for this reason, was counted before.
    pub(super) fn was_told(&mut self, version: Version, reason: &Broken, scan: ScanId) -> bool {
        let told = self.told.get_mut(&(version, reason.clone()));
        told.is_some_and(|seen| {
            *seen = scan;
            true
        })
    }

    /// Remembers that it is counted now.
    pub(super) fn tell(&mut self, version: Version, reason: Broken, scan: ScanId) {
        if self.told.len() >= MAX_TOLD {
            let last_full = self.last_full;
            self.told.retain(|_, seen| *seen >= last_full);
        }
        if self.told.len() >= MAX_TOLD {
            // Half of them, whichever, so that this is not done each time.
            let mut is_kept = false;
            self.told.retain(|_, _| {
                is_kept = !is_kept;
                is_kept
            });
        }
        self.told.insert((version, reason), scan);
    }

    pub(super) fn full_scan_ended(&mut self, id: ScanId) {
        self.last_full = id;
    }
}

/// When it is to be believed that metadata is broken, and not just half written; `None` where its
/// writer will tell.
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
        // What has content without having been written to was complete when it was linked here.
        (WriteState::Created, _) if metadata.version.size == 0 && !metadata.was_linked() => None,
        // It was waited for.
        _ if attempts.suspect == suspect => Some(now.mono),
        // The next writer may have opened it already, and its events be on their way.
        (WriteState::Closed, _) => Some(now.mono + SETTLE_TIME),
        // It is being waited for.
        (_, Some((until, attempts))) if attempts.suspect == suspect => Some(until),
        _ => Some(now.mono + wait),
    }
}
