//! Deleting a pair, by claims where that can be.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use rustix::io::Errno;

use super::claim::{CLAIM_HOLD_TIME, Claim, cannot_claim, restore_or_discard_both, unlink};
use super::lock::lock_shared;
use crate::disk::inspect::{Metadata, read_metadata, reread_unchanged, stat_file};
use crate::disk::root::Dir;
use crate::pair::name::{Half, Stem};
use crate::pair::version::Pair;

/// What became of an attempt to delete.
#[derive(Debug)]
pub(crate) enum Removal {
    /// Its result is claimed, and to be unlinked once it was held.
    Claimed(ClaimedPair),
    /// This cleaner removed the result; `leftover` tells why its metadata could not follow.
    Deleted { freed: u64, leftover: Option<io::Error> },
    /// The pair is not what was judged any more; it is as it was found.
    Changed,
    /// Somebody else was faster.
    DeletedElsewhere,
    /// Another cleaner has taken it, or a dead one had.
    ClaimedElsewhere,
    /// The system refused; the pair is as it was found.
    Failed(io::Error),
    /// The system refused to give a file its name back; a recovery has to do it.
    RestoreFailed(io::Error),
}

/// Deletes a pair that was judged to be due, if it still is what was judged, and still due by the
/// time that `wall` tells.
pub(crate) fn remove(
    dir: &Arc<Dir>,
    stem: &Stem,
    judged: DuePair,
    wall: &dyn Fn() -> DateTime<Utc>,
    buffers: &mut Buffers,
) -> Removal {
    let DuePair { pair, metadata } = judged;
    let attempt = Attempt { dir, stem, pair, wall, buffers };
    match lock_shared(dir) {
        Ok(true) => attempt.with_claims(&metadata),
        Ok(false) => attempt.without_claims(),
        Err(error) => Removal::Failed(error),
    }
}

/// A pair that was judged to be due, and its metadata, which is open.
#[derive(Debug)]
pub(crate) struct DuePair {
    pub pair: Pair,
    pub metadata: OwnedFd,
}

/// Room for what is read of metadata, which is used again for the next pair.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// What it was judged by.
    pub judged: Vec<u8>,
    again: Vec<u8>,
}

impl Buffers {
    /// Gives back what unusually large metadata took.
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
    wall: &'a dyn Fn() -> DateTime<Utc>,
    buffers: &'a mut Buffers,
}

impl Attempt<'_> {
    fn with_claims(mut self, metadata_file: &OwnedFd) -> Removal {
        let result = Claim::new(self.dir, self.stem, Half::Result);
        match result.acquire() {
            Ok(()) => {}
            Err(Errno::NOENT) => return Removal::DeletedElsewhere,
            Err(Errno::EXIST) => return taken_by_others(&result),
            Err(error) if cannot_claim(error) => return self.without_claims(),
            Err(error) => return Removal::Failed(error.into()),
        }
        match self.may_go(&result, metadata_file) {
            Ok(true) => {}
            Ok(false) => return given_back(&result, None, Removal::Changed),
            Err(error) => return given_back(&result, None, Removal::Failed(error)),
        }
        let (dir, stem) = (Arc::clone(self.dir), self.stem.clone());
        Removal::Claimed(ClaimedPair { dir, stem, pair: self.pair, since: Instant::now() })
    }

    /// Whether the claimed result is what was judged, and its metadata is still due, or gone.
    fn may_go(&mut self, result: &Claim<'_>, metadata_file: &OwnedFd) -> io::Result<bool> {
        if !result.holds(&self.pair.result)? {
            return Ok(false);
        }
        match self.is_due_as_judged(metadata_file)? {
            Some(is_due) => Ok(is_due),
            None => Claim::new(self.dir, self.stem, Half::Metadata).name_free(),
        }
    }

    /// Without claims: the last look and the `unlink` follow each other at once.
    fn without_claims(mut self) -> Removal {
        match self.is_still_due() {
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
        let unlinked = self.unlink_metadata_if_due();
        removed(&self.pair, unlinked)
    }

    fn unlink_metadata_if_due(&mut self) -> rustix::io::Result<()> {
        match self.is_still_due() {
            Ok(Some(true)) => unlink(self.dir, &self.stem.name(Half::Metadata)),
            // Published anew: it belongs to a result that is there, or about to be.
            Ok(_) => Err(Errno::NOENT),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }

    /// As [`is_still_due`](Self::is_still_due), by another reading of the file that was judged where
    /// that still bears the name.
    fn is_due_as_judged(&mut self, file: &OwnedFd) -> io::Result<Option<bool>> {
        let name = self.stem.name(Half::Metadata);
        let (seen, Buffers { judged, again }) = (&self.pair.metadata, &mut *self.buffers);
        if reread_unchanged(self.dir, &name, file, seen, judged, again)? {
            return Ok(Some(self.pair.expires_at <= (self.wall)()));
        }
        self.is_still_due()
    }

    /// Whether the metadata under its own name is the file that was judged, and still due; `None`
    /// where there is none.
    fn is_still_due(&mut self) -> io::Result<Option<bool>> {
        let again =
            read_metadata(self.dir, &self.stem.name(Half::Metadata), &mut self.buffers.again)?;
        Ok(again.map(|Metadata { seen, expires_at, .. }| {
            seen.version == self.pair.metadata.version
                && expires_at.is_ok_and(|at| at <= (self.wall)())
        }))
    }
}

/// A pair whose result is claimed.
#[derive(Debug)]
pub(crate) struct ClaimedPair {
    /// Keeps the lock on the directory.
    pub dir: Arc<Dir>,
    pub stem: Stem,
    pair: Pair,
    since: Instant,
}

impl ClaimedPair {
    /// When it has been held for long enough.
    pub(crate) fn until(&self) -> Instant {
        self.since + CLAIM_HOLD_TIME
    }

    /// Unlinks both halves, if nothing has happened to them meanwhile.
    pub(crate) fn finish(self, wall: &dyn Fn() -> DateTime<Utc>, buffers: &mut Buffers) -> Removal {
        let Self { dir, stem, pair, .. } = &self;
        let result = Claim::new(dir, stem, Half::Result);
        let metadata = Claim::new(dir, stem, Half::Metadata);
        match result.name_reused() {
            Ok(false) => {}
            // The new result needs its metadata, whichever that is by now; the old one had expired.
            Ok(true) => return self.result_alone(&result),
            Err(error) => return given_back(&result, None, Removal::Failed(error)),
        }
        match metadata.acquire() {
            Ok(()) => {}
            // A program of another kind that deletes too found no result any more, and deleted the
            // metadata. Given back, the result would stay for ever.
            Err(Errno::NOENT) => return self.result_alone(&result),
            Err(Errno::EXIST) => return given_back(&result, None, taken_by_others(&metadata)),
            Err(error) if cannot_claim(error) => {
                let mut attempt = Attempt { dir, stem, pair: *pair, wall, buffers };
                return match result.unlink() {
                    Ok(()) => removed(pair, attempt.unlink_metadata_if_due()),
                    Err(error) => given_back(&result, None, Removal::Failed(error.into())),
                };
            }
            Err(error) => return given_back(&result, None, Removal::Failed(error.into())),
        }
        let published_anew = match self.is_published_anew(&result, &metadata) {
            Ok(Some(published_anew)) => published_anew,
            Ok(None) => return given_back(&result, Some(&metadata), Removal::Changed),
            Err(error) => {
                return given_back(&result, Some(&metadata), Removal::Failed(error));
            }
        };
        if let Err(error) = result.unlink() {
            return given_back(&result, Some(&metadata), Removal::Failed(error.into()));
        }
        if published_anew {
            return given_back(&result, Some(&metadata), removed(pair, Err(Errno::NOENT)));
        }
        removed(pair, metadata.unlink())
    }

    /// Whether another result has been published since both halves were claimed; `None` where these are
    /// not what was judged any more.
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

    /// Unlinks the result only, if nothing has happened to it meanwhile.
    fn result_alone(&self, result: &Claim<'_>) -> Removal {
        match result.holds(&self.pair.result) {
            Ok(true) => {}
            Ok(false) => return given_back(result, None, Removal::Changed),
            Err(error) => return given_back(result, None, Removal::Failed(error)),
        }
        match result.unlink() {
            Ok(()) => removed(&self.pair, Err(Errno::NOENT)),
            Err(error) => given_back(result, None, Removal::Failed(error.into())),
        }
    }
}

fn removed(pair: &Pair, metadata: rustix::io::Result<()>) -> Removal {
    let result = pair.result.version.size;
    match metadata {
        Ok(()) => Removal::Deleted { freed: pair.bytes(), leftover: None },
        Err(Errno::NOENT) => Removal::Deleted { freed: result, leftover: None },
        Err(error) => Removal::Deleted { freed: result, leftover: Some(error.into()) },
    }
}

/// What to make of a reserved name that was taken already.
fn taken_by_others(claim: &Claim<'_>) -> Removal {
    match claim.is_blocked() {
        Ok(true) => Removal::Failed(Errno::EXIST.into()),
        Ok(false) => Removal::ClaimedElsewhere,
        Err(error) => Removal::Failed(error),
    }
}

/// Gives back what was claimed of a pair.
fn given_back(result: &Claim<'_>, metadata: Option<&Claim<'_>>, removal: Removal) -> Removal {
    let done = match metadata {
        Some(metadata) => restore_or_discard_both(result, metadata),
        None => result.restore_or_discard().map_err(io::Error::from),
    };
    done.map_or_else(Removal::RestoreFailed, |()| removal)
}
