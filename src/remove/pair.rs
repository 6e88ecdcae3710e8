//! Deletes a pair, with claims where the file system supports them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use rustix::io::Errno;

use super::claim::{CLAIM_HOLD_TIME, Claim, cannot_claim, restore_or_discard_both, unlink};
use super::lock::{LockPatience, lock_shared};
use crate::disk::inspect::{ReadMetadata, read_metadata, reread_unchanged, stat_file};
use crate::disk::root::Dir;
use crate::pair::disk_budget::DiskSize;
use crate::pair::name::{Half, Stem};
use crate::pair::version::{Pair, Version};

/// The outcome of an attempt to delete a pair.
#[derive(Debug)]
pub(crate) enum Removal {
    /// The result is claimed. It is to be unlinked after the hold time.
    Claimed(ClaimedPair),
    /// This cleaner deleted the result. `freed` is the size of the deleted files, and `disk_freed` is what they took on
    /// disk. `leftover` is the reason why its metadata could not be deleted.
    Deleted { freed: u64, disk_freed: u64, leftover: Option<io::Error> },
    /// The pair changed since it was judged. It is left as it was found.
    Changed,
    /// Another program deleted it first.
    DeletedElsewhere,
    /// Another cleaner has claimed it, or a killed one had.
    ClaimedElsewhere,
    /// The system refused. The pair is left as it was found.
    Failed(io::Error),
    /// The system refused to restore a file's own name. A recovery has to do it.
    RestoreFailed(io::Error),
}

/// Deletes a pair that was judged to be due or to be evicted, if it is unchanged, and still due unless it is to be
/// evicted. `wall` returns the current time. Waits no longer than `patience` allows for a lock on the directory.
pub(crate) fn remove(
    dir: &Arc<Dir>,
    stem: &Stem,
    judged: DuePair,
    wall: &dyn Fn() -> DateTime<Utc>,
    buffers: &mut Buffers,
    patience: &mut LockPatience,
) -> Removal {
    let DuePair { pair, metadata, evicts } = judged;
    let attempt = Attempt { dir, stem, pair, evicts, wall, buffers };
    match lock_shared(dir, patience) {
        Ok(true) => attempt.with_claims(&metadata),
        Ok(false) => attempt.without_claims(),
        Err(error) => Removal::Failed(error),
    }
}

/// A pair that was judged to be due or to be evicted, and its open metadata.
#[derive(Debug)]
pub(crate) struct DuePair {
    pub pair: Pair,
    pub metadata: OwnedFd,
    /// Whether it is deleted even if it is not due.
    pub evicts: bool,
}

/// Buffers for the content of metadata, reused for the next pair.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The content that the pair was judged by.
    pub judged: Vec<u8>,
    again: Vec<u8>,
}

impl Buffers {
    /// Frees the memory that unusually large metadata required.
    pub(crate) fn shrink(&mut self) {
        const ENOUGH: usize = 64 * 1024;
        for buffer in [&mut self.judged, &mut self.again] {
            buffer.truncate(ENOUGH);
            buffer.shrink_to(ENOUGH);
        }
    }
}

struct Attempt<'a> {
    dir: &'a Arc<Dir>,
    stem: &'a Stem,
    pair: Pair,
    evicts: bool,
    wall: &'a dyn Fn() -> DateTime<Utc>,
    buffers: &'a mut Buffers,
}

impl Attempt<'_> {
    fn with_claims(mut self, metadata_file: &OwnedFd) -> Removal {
        let result = Claim::new(self.dir, self.stem, Half::Result);
        match result.acquire() {
            Ok(()) => {}
            Err(Errno::NOENT) => return Removal::DeletedElsewhere,
            Err(Errno::EXIST) => return claimed_by_others(&result),
            Err(error) if cannot_claim(error) => return self.without_claims(),
            Err(error) => return Removal::Failed(error.into()),
        }
        match self.may_delete(&result, metadata_file) {
            Ok(true) => {}
            Ok(false) => return restore_then(&result, None, Removal::Changed),
            Err(error) => return restore_then(&result, None, Removal::Failed(error)),
        }
        let (dir, stem) = (Arc::clone(self.dir), self.stem.clone());
        let (pair, evicts) = (self.pair, self.evicts);
        Removal::Claimed(ClaimedPair { dir, stem, pair, evicts, since: Instant::now() })
    }

    /// Whether the claimed result is the one that was judged, and its metadata allows its deletion. Missing metadata keeps
    /// a result that is to be evicted.
    fn may_delete(&mut self, result: &Claim<'_>, metadata_file: &OwnedFd) -> io::Result<bool> {
        if !result.holds(&self.pair.result)? {
            return Ok(false);
        }
        match self.allows_deletion_as_judged(metadata_file)? {
            Some(is_due) => Ok(is_due),
            // A result that is not due is kept without its metadata, too.
            None if self.evicts => Ok(false),
            None => Claim::new(self.dir, self.stem, Half::Metadata).name_free(),
        }
    }

    /// Deletes without claims: the last check and the `unlink` follow each other at once.
    fn without_claims(mut self) -> Removal {
        match self.still_allows_deletion() {
            Ok(Some(true)) => {}
            Ok(_) => return Removal::Changed,
            Err(error) => return Removal::Failed(error),
        }
        let name = self.stem.name(Half::Result);
        match stat_file(self.dir, &name) {
            Ok(Some(seen)) if seen.version == self.pair.result.version => {}
            Ok(Some(_)) => return Removal::Changed,
            Ok(None) => return Removal::DeletedElsewhere,
            Err(error) => return Removal::Failed(error),
        }
        match unlink(self.dir, &name) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Removal::DeletedElsewhere,
            Err(error) => return Removal::Failed(error.into()),
        }
        let unlinked = self.unlink_metadata_if_allowed();
        removed(&self.pair, unlinked)
    }

    /// Finishes the deletion of a claimed result whose metadata can't be claimed: the last checks and the `unlink`
    /// follow each other at once.
    fn without_metadata_claim(mut self, result: &Claim<'_>) -> Removal {
        match self.still_allows_deletion() {
            Ok(Some(true)) => {}
            Ok(_) => return restore_then(result, None, Removal::Changed),
            Err(error) => return restore_then(result, None, Removal::Failed(error)),
        }
        if let Some(refusal) = unlink_unless_changed(result, &self.pair) {
            return refusal;
        }
        let unlinked = self.unlink_metadata_if_allowed();
        removed(&self.pair, unlinked)
    }

    fn unlink_metadata_if_allowed(&mut self) -> rustix::io::Result<()> {
        match self.still_allows_deletion() {
            Ok(Some(true)) => unlink(self.dir, &self.stem.name(Half::Metadata)),
            // Published anew: the metadata belongs to a result that exists, or is about to.
            Ok(_) => Err(Errno::NOENT),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }

    /// Like [`still_allows_deletion`](Self::still_allows_deletion), but rereads the open file that was judged if that still has
    /// the name.
    fn allows_deletion_as_judged(&mut self, file: &OwnedFd) -> io::Result<Option<bool>> {
        let name = self.stem.name(Half::Metadata);
        let (seen, Buffers { judged, again }) = (&self.pair.metadata, &mut *self.buffers);
        if reread_unchanged(self.dir, &name, file, seen, judged, again)? {
            return Ok(Some(self.allows_deletion(self.pair.expires_at)));
        }
        if self.evicts {
            return Ok(Some(false));
        }
        self.still_allows_deletion()
    }

    /// Whether the metadata under its own name is the file that was judged, and allows the deletion; `None` if it does
    /// not exist.
    fn still_allows_deletion(&mut self) -> io::Result<Option<bool>> {
        let again =
            read_metadata(self.dir, &self.stem.name(Half::Metadata), &mut self.buffers.again)?;
        Ok(again.map(|ReadMetadata { seen, expires_at, .. }| {
            seen.version == self.pair.metadata.version
                && expires_at.is_ok_and(|at| self.allows_deletion(at))
        }))
    }

    /// Whether a pair with this `expires_at` may be deleted: it is due, or it is to be evicted and has not changed.
    fn allows_deletion(&self, expires_at: DateTime<Utc>) -> bool {
        self.evicts && expires_at == self.pair.expires_at || expires_at <= (self.wall)()
    }
}

/// A pair whose result is claimed.
#[derive(Debug)]
pub(crate) struct ClaimedPair {
    /// Keeps the lock on the directory.
    pub dir: Arc<Dir>,
    pub stem: Stem,
    pair: Pair,
    /// Whether it is deleted even if it is not due.
    pub evicts: bool,
    since: Instant,
}

impl ClaimedPair {
    pub(crate) fn expires_at(&self) -> DateTime<Utc> {
        self.pair.expires_at
    }

    /// The version of the result.
    pub(crate) fn version(&self) -> Version {
        self.pair.result.version
    }

    /// When the hold time is over.
    pub(crate) fn until(&self) -> Instant {
        self.since + CLAIM_HOLD_TIME
    }

    /// Unlinks both halves, unless they were changed or published anew meanwhile.
    pub(crate) fn finish(self, wall: &dyn Fn() -> DateTime<Utc>, buffers: &mut Buffers) -> Removal {
        let Self { dir, stem, pair, evicts, .. } = &self;
        let result = Claim::new(dir, stem, Half::Result);
        let metadata = Claim::new(dir, stem, Half::Metadata);
        match result.name_reused() {
            Ok(false) => {}
            // The new result needs the current metadata, old or new. The old result is due or to be evicted.
            Ok(true) => return self.result_alone(&result),
            Err(error) => return restore_then(&result, None, Removal::Failed(error)),
        }
        match metadata.acquire() {
            Ok(()) => {}
            // What is not due is kept without its metadata, too.
            Err(Errno::NOENT) if *evicts && pair.expires_at > wall() => {
                return restore_then(&result, None, Removal::Changed);
            }
            // Another program that deletes too found no result, and deleted the metadata. If the result were
            // restored, it would be kept for ever.
            Err(Errno::NOENT) => return self.result_alone(&result),
            Err(Errno::EXIST) => return restore_then(&result, None, claimed_by_others(&metadata)),
            Err(error) if cannot_claim(error) => {
                let attempt = Attempt { dir, stem, pair: *pair, evicts: *evicts, wall, buffers };
                return attempt.without_metadata_claim(&result);
            }
            Err(error) => return restore_then(&result, None, Removal::Failed(error.into())),
        }
        let published_anew = match self.is_published_anew(&result, &metadata) {
            Ok(Some(published_anew)) => published_anew,
            Ok(None) => return restore_then(&result, Some(&metadata), Removal::Changed),
            Err(error) => {
                return restore_then(&result, Some(&metadata), Removal::Failed(error));
            }
        };
        if let Err(error) = result.unlink() {
            return restore_then(&result, Some(&metadata), Removal::Failed(error.into()));
        }
        if published_anew {
            return restore_then(&result, Some(&metadata), removed(pair, Err(Errno::NOENT)));
        }
        removed(pair, metadata.unlink())
    }

    /// Whether another result was published since both halves were claimed; `None` if these are no longer the
    /// files that were judged.
    fn is_published_anew(
        &self,
        result: &Claim<'_>,
        metadata: &Claim<'_>,
    ) -> io::Result<Option<bool>> {
        if !metadata.holds(&self.pair.metadata)? || !result.holds(&self.pair.result)? {
            return Ok(None);
        }
        result.name_reused().map(Some)
    }

    /// Unlinks the result only, if it is unchanged.
    fn result_alone(&self, result: &Claim<'_>) -> Removal {
        unlink_unless_changed(result, &self.pair)
            .unwrap_or_else(|| removed(&self.pair, Err(Errno::NOENT)))
    }
}

/// Unlinks a claimed result if it is unchanged, and returns `None`. Otherwise restores it, and returns why.
fn unlink_unless_changed(result: &Claim<'_>, pair: &Pair) -> Option<Removal> {
    let refusal = match result.holds(&pair.result) {
        Ok(true) => Removal::Failed(result.unlink().err()?.into()),
        Ok(false) => Removal::Changed,
        Err(error) => Removal::Failed(error),
    };
    Some(restore_then(result, None, refusal))
}

fn removed(pair: &Pair, metadata: rustix::io::Result<()>) -> Removal {
    let leftover = match metadata {
        Ok(()) => {
            let (freed, disk_freed) = (pair.bytes(), pair.disk_size().bytes());
            return Removal::Deleted { freed, disk_freed, leftover: None };
        }
        Err(Errno::NOENT) => None,
        Err(error) => Some(error.into()),
    };
    let (freed, disk_freed) = (pair.result.version.size, DiskSize::of(&pair.result, 0).bytes());
    Removal::Deleted { freed, disk_freed, leftover }
}

/// The outcome if the reserved name is already in use.
fn claimed_by_others(claim: &Claim<'_>) -> Removal {
    match claim.is_blocked() {
        Ok(true) => Removal::Failed(Errno::EXIST.into()),
        Ok(false) => Removal::ClaimedElsewhere,
        Err(error) => Removal::Failed(error.into()),
    }
}

/// Restores the claimed files of a pair and returns `removal`, or the error of the restore.
fn restore_then(result: &Claim<'_>, metadata: Option<&Claim<'_>>, removal: Removal) -> Removal {
    let done = match metadata {
        Some(metadata) => restore_or_discard_both(result, metadata),
        None => result.restore_or_discard().map_err(io::Error::from),
    };
    done.map_or_else(Removal::RestoreFailed, |()| removal)
}
