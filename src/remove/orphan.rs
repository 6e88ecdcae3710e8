//! Removing what stands alone, where the configuration asks for it: halves without the other one,
//! what writers have left, and empty directories.
//!
//! A file is claimed as the halves of a pair are, and held for as long, so that what a writer has in
//! its hands is given back. A directory can't be claimed: its last look and the `rmdir` follow each
//! other at once, and the kernel removes only an empty one.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::thread;

use chrono::{DateTime, Utc};
use rustix::io::Errno;

use super::claim::{self, Claim};
use super::claim::{CLAIM_HOLD_TIME, cannot_claim};
use super::lock::lock_shared;
use crate::disk::inspect::{read_metadata, stat};
use crate::disk::root::{Dir, Root, is_not_ours};
use crate::pair::name::{Half, Stem};
use crate::pair::version::FileState;

/// How many files are held at once.
const AT_ONCE: usize = 64;

/// A file that was judged to be orphans.
#[derive(Debug)]
pub(crate) enum Orphan {
    /// A half without the other one.
    Half(Half, Stem, FileState),
    /// What a writer has left of a half.
    Tmp(Half, Stem, FileState),
}

impl Orphan {
    /// The file's name.
    pub(crate) fn name(&self) -> Vec<u8> {
        match self {
            Self::Half(half, stem, _) => stem.name(*half),
            Self::Tmp(half, stem, _) => stem.tmp_name(*half),
        }
    }

    /// The pair that it is of.
    pub(crate) fn stem(&self) -> &Stem {
        match self {
            Self::Half(_, stem, _) | Self::Tmp(_, stem, _) => stem,
        }
    }

    pub(crate) fn seen(&self) -> &FileState {
        match self {
            Self::Half(_, _, seen) | Self::Tmp(_, _, seen) => seen,
        }
    }

    fn claim<'a>(&self, dir: &'a Dir) -> Claim<'a> {
        match self {
            Self::Half(half, stem, _) => Claim::of_orphan(dir, stem, *half),
            Self::Tmp(half, stem, _) => Claim::of_tmp(dir, stem, *half),
        }
    }

    /// Whether nothing that belongs to it is there, nor about to be; `name` is what it bears now.
    fn stands_alone(&self, dir: &Dir, name: &[u8], now: DateTime<Utc>) -> io::Result<bool> {
        let is_free = |name: &[u8]| match stat(dir, name) {
            Ok(_) => Ok(false),
            // What is too long for a name is borne by nothing.
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(true),
            Err(error) => Err(io::Error::from(error)),
        };
        let free = |half, stem: &Stem| {
            // In this order: what is claimed in between is found under the second name.
            Ok::<_, io::Error>(is_free(&stem.name(half))? && is_free(&stem.claim(half))?)
        };
        match self {
            Self::Tmp(..) => Ok(true),
            Self::Half(Half::Result, stem, _) => {
                Ok(free(Half::Metadata, stem)? && is_free(&stem.tmp_name(Half::Metadata))?)
            }
            Self::Half(Half::Metadata, stem, seen) => {
                let is_due = read_metadata(dir, name, &mut Vec::new())?.is_some_and(|metadata| {
                    metadata.seen.version == seen.version
                        && metadata.expires_at.is_ok_and(|at| at <= now)
                });
                Ok(is_due && free(Half::Result, stem)? && is_free(&stem.tmp_name(Half::Result))?)
            }
        }
    }
}

/// Removes files of one directory that were judged to stand alone, where they still are what was
/// judged, and still do by the time that `wall` tells. Tells of each the bytes that this freed, or why it
/// could not be removed, but nothing of what has changed, or is in other hands.
pub(crate) fn remove_orphans(
    dir: &Arc<Dir>,
    judged: Vec<Orphan>,
    wall: &dyn Fn() -> DateTime<Utc>,
) -> Vec<(Orphan, io::Result<u64>)> {
    let has_claims = lock_shared(dir);
    let mut done = Vec::new();
    let mut judged = judged.into_iter();
    loop {
        let some: Vec<Orphan> = judged.by_ref().take(AT_ONCE).collect();
        if some.is_empty() {
            return done;
        }
        let mut held = Vec::new();
        for alone in some {
            match &has_claims {
                Err(error) => done.push((alone, Err(copy_of(error)))),
                Ok(has_claims) => match begin(dir, &alone, *has_claims, wall()) {
                    Ok(Begun::ClaimedPair) => held.push(alone),
                    Ok(Begun::Removed(freed)) => done.push((alone, Ok(freed))),
                    Ok(Begun::LeftAlone) => {}
                    Err(error) => done.push((alone, Err(error))),
                },
            }
        }
        if !held.is_empty() {
            thread::sleep(CLAIM_HOLD_TIME);
        }
        for alone in held {
            match finish(dir, &alone, wall()) {
                Ok(Some(freed)) => done.push((alone, Ok(freed))),
                Ok(None) => {}
                Err(error) => done.push((alone, Err(error))),
            }
        }
    }
}

enum Begun {
    ClaimedPair,
    Removed(u64),
    /// It is not what was judged any more, or in other hands.
    LeftAlone,
}

fn begin(dir: &Dir, alone: &Orphan, has_claims: bool, now: DateTime<Utc>) -> io::Result<Begun> {
    let (claim, seen) = (alone.claim(dir), alone.seen());
    let taken = if has_claims { claim.acquire() } else { Err(Errno::NOSYS) };
    match taken {
        Ok(()) => {
            let is_judged = claim.holds(seen);
            if matches!(is_judged, Ok(true)) {
                return Ok(Begun::ClaimedPair);
            }
            claim.restore_or_discard()?;
            return is_judged.map(|_| Begun::LeftAlone);
        }
        Err(Errno::NOENT) => return Ok(Begun::LeftAlone),
        Err(Errno::EXIST) if !claim.is_blocked()? => return Ok(Begun::LeftAlone),
        Err(error) if cannot_claim(error) => {}
        Err(error) => return Err(error.into()),
    }
    if !alone.stands_alone(dir, &alone.name(), now)? || !claim.name_holds(seen)? {
        return Ok(Begun::LeftAlone);
    }
    match claim.unlink_unclaimed() {
        Ok(()) => Ok(Begun::Removed(seen.version.size)),
        Err(Errno::NOENT) => Ok(Begun::LeftAlone),
        Err(error) => Err(error.into()),
    }
}

/// The bytes that were freed; `None` where it was given back.
fn finish(dir: &Dir, alone: &Orphan, now: DateTime<Utc>) -> io::Result<Option<u64>> {
    let (claim, seen) = (alone.claim(dir), alone.seen());
    let may_go = || -> io::Result<bool> {
        Ok(claim.holds(seen)?
            && !claim.name_reused()?
            && alone.stands_alone(dir, &claim.reserved, now)?)
    };
    let freed = match may_go() {
        Ok(true) => claim.unlink().map(|()| Some(seen.version.size)).map_err(io::Error::from),
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    if !matches!(freed, Ok(Some(_))) {
        claim.restore_or_discard()?;
    }
    freed
}

fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Removes the directory `dir`, which was found to be empty, if it still bears its name and is old
/// enough, as `is_old` tells of it; whether it did.
pub(crate) fn prune(
    root: &Root,
    dir: &Dir,
    is_old: impl FnOnce(&rustix::fs::Stat) -> bool,
) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (dir.rel.parent(), dir.rel.file_name()) else {
        return Ok(false);
    };
    let parent = match root.open_dir(&parent.into()) {
        Ok(parent) => parent,
        Err(error) if is_not_ours(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let named = match stat(&parent, name.as_bytes()) {
        Ok(named) => named,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !dir.is(&named) || !is_old(&named) {
        return Ok(false);
    }
    match claim::remove_dir(&parent, name.as_bytes()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
