//! Recovers the claims that killed cleaners left behind in a directory.

use std::collections::HashSet;
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

/// The outcome of a recovery in one directory.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// The pairs whose deletion was finished.
    pub finished: Vec<Finished>,
    /// How many results had a reserved name, so that no listing counts them.
    pub results: u64,
    /// Pairs that had claims. They have to be judged again.
    pub had_claims: Vec<Stem>,
    /// Whether the claims have, or may have, a living owner.
    pub owned: bool,
    /// Reserved names that could not be recovered, and why.
    pub failed: Vec<(PathBuf, io::Error)>,
}

/// A pair whose deletion a recovery has finished.
#[derive(Debug)]
pub(crate) struct Finished {
    pub stem: Stem,
    pub expires_at: DateTime<Utc>,
    /// The bytes that this freed.
    pub freed: u64,
}

impl Recovery {
    /// Records the outcome for one reserved name.
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

/// Recovers the claims that killed cleaners left behind in a directory.
///
/// Claimed metadata that is due shows an interrupted deletion, and that is finished. So is a deletion of whose result
/// nothing is left, which may have been an eviction. Every other claimed file gets its own name back, or is deleted if a
/// writer published that name anew meanwhile.
pub(crate) fn recover(
    root: &Root,
    rel: &Arc<Path>,
    claims: &[Vec<u8>],
    now: DateTime<Utc>,
    is_cancelled: &dyn Fn() -> bool,
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
    let mut stems: HashSet<Stem> = HashSet::new();
    for reserved in claims {
        if is_cancelled() {
            return Ok(recovery);
        }
        match Name::of(reserved) {
            Name::Claim(_, stem) => drop(stems.insert(stem)),
            // It was not certain yet that its writer was gone.
            Name::TmpClaim(half, stem) => {
                let done = Claim::of_tmp(dir, &stem, half).restore_or_discard();
                recovery.note(dir, reserved, done.map_err(io::Error::from));
            }
            Name::OrphanClaim(half, stem) => {
                let done = Claim::of_orphan(dir, &stem, half).restore_or_discard();
                recovery.note(dir, reserved, done.map_err(io::Error::from));
            }
            // The owner of a probe file that is in use has the lock, too.
            Name::ProbeFile => {
                let done = unlink_if_empty(dir, reserved);
                recovery.note(dir, reserved, done);
            }
            _ => {}
        }
    }
    for stem in stems {
        if is_cancelled() {
            break;
        }
        let done = recover_pair(dir, &stem, now, &mut recovery);
        recovery.note(dir, &stem.claim(Half::Result), done);
        recovery.had_claims.push(stem);
    }
    Ok(recovery)
}

/// Finishes the deletion of one pair, or restores its claimed files.
fn recover_pair(
    dir: &Dir,
    stem: &Stem,
    now: DateTime<Utc>,
    recovery: &mut Recovery,
) -> io::Result<()> {
    let result = Claim::new(dir, stem, Half::Result);
    let metadata = Claim::new(dir, stem, Half::Metadata);
    let claimed_result = stat_file(dir, &result.reserved)?;
    recovery.results += u64::from(claimed_result.is_some());
    // An owner claims metadata only after it has checked the result that it claimed before. It may claim
    // that of a newer result by mistake, if there is one. A recovery may have claimed a newer result for an
    // instant, which then has not settled.
    let untouched = !result.name_reused()? && !metadata.name_reused()?;
    let settled = claimed_result.is_none_or(|seen| seen.settles_in(now).is_zero());
    match claimed_metadata(&metadata)? {
        // The result first: a crash in between then does not leave metadata without any trace of its result.
        Some((size, Some(expires_at))) if untouched && settled && expires_at <= now => {
            if let Some(claimed_result) = claimed_result {
                result.unlink()?;
                let freed = claimed_result.version.size + size;
                recovery.finished.push(Finished { stem: stem.clone(), expires_at, freed });
            }
            Ok(metadata.unlink()?)
        }
        // An eviction deletes the result of metadata that is not due. Only the metadata is left of that pair.
        Some(_) if untouched && claimed_result.is_none() => Ok(metadata.unlink()?),
        Some(_) => restore_or_discard_both(&result, &metadata),
        None if claimed_result.is_some() => Ok(result.restore_or_discard()?),
        None => Ok(()),
    }
}

fn unlink_if_empty(dir: &Dir, name: &[u8]) -> io::Result<()> {
    match stat_file(dir, name)? {
        Some(seen) if seen.version.size == 0 => Ok(unlink(dir, name)?),
        _ => Ok(()),
    }
}

/// The size of claimed metadata, and its `expires_at` if it is valid.
fn claimed_metadata(claim: &Claim<'_>) -> io::Result<Option<(u64, Option<DateTime<Utc>>)>> {
    let read = read_metadata(claim.dir, &claim.reserved, &mut Vec::new())?;
    Ok(read.map(|read| (read.seen.version.size, read.expires_at.ok())))
}
