//! Taking up the claims that cleaners left behind in a directory when they were killed.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::claim::{Claim, restore_or_discard_both, unlink};
use crate::disk::inspect::{read_metadata, stat_file};
use crate::disk::root::{Dir, Root};
use crate::pair::name::{Half, Name, Stem};
use crate::pair::version::FileState;

/// What became of claims that were found in a directory.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// Pairs whose deletion was finished, and the bytes that this freed.
    pub finished: Vec<Stem>,
    pub freed: u64,
    /// Pairs that had claims, which are to be judged anew.
    pub touched: Vec<Stem>,
    /// Claims that have a living owner.
    pub owned: bool,
    /// Reserved names that could not be dealt with, and why.
    pub failed: Vec<(PathBuf, io::Error)>,
}

impl Recovery {
    /// Takes in what came of dealing with a reserved name.
    fn note(&mut self, dir: &Dir, reserved: &[u8], done: io::Result<()>) {
        match done {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.failed.push((dir.rel.join(OsStr::from_bytes(reserved)), error));
            }
        }
    }
}

/// Takes up the claims that cleaners left behind in a directory when they were killed.
///
/// A pair whose metadata was claimed while it was due was being deleted: that is finished. All
/// else gets its own name back, or goes if that was published anew meanwhile.
pub(crate) fn recover(
    root: &Root,
    rel: &Arc<Path>,
    claims: &[Vec<u8>],
    now: DateTime<Utc>,
) -> io::Result<Recovery> {
    let mut recovery = Recovery::default();
    // A descriptor of its own, since the lock belongs to the descriptor.
    let dir = &root.open_dir(rel)?;
    match flock(dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK | Errno::INTR) => {
            recovery.owned = true;
            return Ok(recovery);
        }
        Err(error) => return Err(error.into()),
    }
    let mut stems: Vec<Stem> = Vec::new();
    for reserved in claims {
        match Name::of(reserved) {
            Name::Claim(_, stem) if !stems.contains(&stem) => stems.push(stem),
            // It was not certain yet that nobody comes back for it.
            Name::TmpClaim(half, stem) => {
                let done = Claim::of_tmp(dir, &stem, half).restore_or_discard();
                recovery.note(dir, reserved, done.map_err(io::Error::from));
            }
            Name::OrphanClaim(half, stem) => {
                let done = Claim::of_orphan(dir, &stem, half).restore_or_discard();
                recovery.note(dir, reserved, done.map_err(io::Error::from));
            }
            // Whoever has made one that lives holds the lock, too.
            Name::ProbeFile => {
                let done = unlink_if_empty(dir, reserved);
                recovery.note(dir, reserved, done);
            }
            _ => {}
        }
    }
    for stem in stems {
        let done = recover_pair(dir, &stem, now, &mut recovery);
        recovery.note(dir, &stem.claim(Half::Result), done);
        recovery.touched.push(stem);
    }
    Ok(recovery)
}

/// Finishes the deletion of one pair, or gives back what is claimed of it.
fn recover_pair(
    dir: &Dir,
    stem: &Stem,
    now: DateTime<Utc>,
    recovery: &mut Recovery,
) -> io::Result<()> {
    let result = Claim::new(dir, stem, Half::Result);
    let metadata = Claim::new(dir, stem, Half::Metadata);
    let taken = stat_file(dir, &result.reserved)?;
    // An owner claims metadata only after it made sure of the result that it had claimed
    // before. It may be that of a newer result by mistake, if there is one; and a recovery may
    // have taken a newer result for an instant, which then has not settled.
    let untouched = !result.name_reused()? && !metadata.name_reused()?;
    let settled = taken.is_none_or(|taken| taken.settles_in(now).is_zero());
    match claimed_metadata(&metadata, now)? {
        Some((seen, true)) if untouched && settled => {
            finish(stem, &result, taken, &metadata, seen, recovery)
        }
        Some(_) => restore_or_discard_both(&result, &metadata),
        None if taken.is_some() => Ok(result.restore_or_discard()?),
        None => Ok(()),
    }
}

fn unlink_if_empty(dir: &Dir, name: &[u8]) -> io::Result<()> {
    match stat_file(dir, name)? {
        Some(seen) if seen.version.size == 0 => Ok(unlink(dir, name)?),
        _ => Ok(()),
    }
}

/// Claimed metadata, and whether it says that its pair may go.
fn claimed_metadata(
    claim: &Claim<'_>,
    now: DateTime<Utc>,
) -> io::Result<Option<(FileState, bool)>> {
    let read = read_metadata(claim.dir, &claim.reserved, &mut Vec::new())?;
    Ok(read.map(|read| (read.seen, read.expires_at.is_ok_and(|at| at <= now))))
}

/// Finishes a deletion: the result first, so that no crash in between leaves metadata alone as if
/// its result had never been.
fn finish(
    stem: &Stem,
    result: &Claim<'_>,
    taken: Option<FileState>,
    metadata: &Claim<'_>,
    seen: FileState,
    recovery: &mut Recovery,
) -> io::Result<()> {
    if let Some(taken) = taken {
        result.unlink()?;
        recovery.finished.push(stem.clone());
        recovery.freed += taken.version.size;
    }
    metadata.unlink()?;
    recovery.freed += seen.version.size;
    Ok(())
}
