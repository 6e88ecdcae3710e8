//! Removes orphans, where the configuration asks for it: halves without the other one, temporary files that
//! writers left behind, and empty directories.
//!
//! A file is claimed like the halves of a pair, and held for as long, so that a file that a writer still uses
//! is restored. A directory can't be claimed. Its last check and the `rmdir` follow each other at once, and
//! the kernel removes only an empty directory.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::thread;

use chrono::{DateTime, Utc};
use rustix::io::Errno;

use super::claim::{self, CLAIM_HOLD_TIME, Claim, cannot_claim, is_free};
use super::lock::{LockPatience, lock_shared};
use crate::disk::inspect::{read_metadata, stat};
use crate::disk::root::{Dir, Root, is_not_ours};
use crate::pair::name::{Half, Stem};
use crate::pair::version::FileState;

/// How many claimed files are held at once.
const MAX_HELD: usize = 64;

/// A file that was judged to be an orphan.
#[derive(Debug)]
pub(crate) enum Orphan {
    /// A half without the other one.
    Half(Half, Stem, FileState),
    /// The temporary file that a writer left of a half.
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

    /// The pair that the file belongs to.
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

    /// Whether the file is still an orphan: its other half neither exists nor is being written. `name` is the
    /// file's current name.
    ///
    /// Metadata must also be unchanged and due. A temporary file always qualifies.
    fn stands_alone(&self, dir: &Dir, name: &[u8], now: DateTime<Utc>) -> io::Result<bool> {
        let is_free = |name: &[u8]| is_free(dir, name);
        let free = |half, stem: &Stem| {
            // In this order: a half that is claimed between the two checks is found under its reserved name.
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

/// Removes orphans of one directory, if they are unchanged and still orphans. `wall` returns the current time.
///
/// Returns for each the bytes that this freed, or why it could not be removed. A file that has changed, or
/// that another cleaner has claimed, is left out.
pub(crate) fn remove_orphans(
    dir: &Arc<Dir>,
    judged: Vec<Orphan>,
    wall: &dyn Fn() -> DateTime<Utc>,
) -> Vec<(Orphan, io::Result<u64>)> {
    let has_claims = lock_shared(dir, &mut LockPatience::default());
    let mut done = Vec::new();
    let mut judged = judged.into_iter();
    loop {
        let some: Vec<Orphan> = judged.by_ref().take(MAX_HELD).collect();
        if some.is_empty() {
            return done;
        }
        let mut held = Vec::new();
        for orphan in some {
            match &has_claims {
                Err(error) => done.push((orphan, Err(copy_of(error)))),
                Ok(has_claims) => match begin(dir, &orphan, *has_claims, wall()) {
                    Ok(Begun::Claimed) => held.push(orphan),
                    Ok(Begun::Removed(freed)) => done.push((orphan, Ok(freed))),
                    Ok(Begun::LeftAlone) => {}
                    Err(error) => done.push((orphan, Err(error))),
                },
            }
        }
        if !held.is_empty() {
            thread::sleep(CLAIM_HOLD_TIME);
        }
        for orphan in held {
            match finish(dir, &orphan, wall()) {
                Ok(Some(freed)) => done.push((orphan, Ok(freed))),
                Ok(None) => {}
                Err(error) => done.push((orphan, Err(error))),
            }
        }
    }
}

enum Begun {
    Claimed,
    Removed(u64),
    /// It has changed or vanished, or another cleaner has claimed it.
    LeftAlone,
}

fn begin(dir: &Dir, orphan: &Orphan, has_claims: bool, now: DateTime<Utc>) -> io::Result<Begun> {
    let (claim, seen) = (orphan.claim(dir), orphan.seen());
    let taken = if has_claims { claim.acquire() } else { Err(Errno::NOSYS) };
    match taken {
        Ok(()) => {
            let is_judged = claim.holds(seen);
            if matches!(is_judged, Ok(true)) {
                return Ok(Begun::Claimed);
            }
            claim.restore_or_discard()?;
            return is_judged.map(|_| Begun::LeftAlone);
        }
        Err(Errno::NOENT) => return Ok(Begun::LeftAlone),
        Err(Errno::EXIST) if !claim.is_blocked()? => return Ok(Begun::LeftAlone),
        Err(error) if cannot_claim(error) => {}
        Err(error) => return Err(error.into()),
    }
    if !orphan.stands_alone(dir, &orphan.name(), now)? || !claim.name_holds(seen)? {
        return Ok(Begun::LeftAlone);
    }
    match claim.unlink_unclaimed() {
        Ok(()) => Ok(Begun::Removed(seen.version.size)),
        Err(Errno::NOENT) => Ok(Begun::LeftAlone),
        Err(error) => Err(error.into()),
    }
}

/// Unlinks a claimed orphan and returns the freed bytes, or restores it and returns `None`.
fn finish(dir: &Dir, orphan: &Orphan, now: DateTime<Utc>) -> io::Result<Option<u64>> {
    let (claim, seen) = (orphan.claim(dir), orphan.seen());
    let may_delete = || -> io::Result<bool> {
        Ok(claim.holds(seen)?
            && !claim.name_reused()?
            && orphan.stands_alone(dir, &claim.reserved, now)?)
    };
    let freed = match may_delete() {
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

/// Removes the directory `dir`, which was found to be empty, if it still has its name and `is_old` accepts
/// its stat. Returns whether it was removed.
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
    if !dir.is_described_by(&named) || !is_old(&named) {
        return Ok(false);
    }
    match claim::remove_dir(&parent, name.as_bytes()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
