//! A claim: one half of a pair under its reserved name. The only module that renames or unlinks.
//!
//! A check of a name has three answers: yes, no, and an error that says nothing about the file. On such an
//! error the caller restores the claimed file. If it took the error for a no, it could delete a live file.

#![expect(clippy::disallowed_methods, reason = "the one place that renames and unlinks")]

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::{AtFlags, RenameFlags, renameat_with, unlinkat};
use rustix::io::{Errno, retry_on_intr};

use crate::disk::inspect::{stat, stat_file};
use crate::disk::root::Dir;
use crate::display::path_field;
use crate::pair::name::{Half, Stem};
use crate::pair::version::FileState;

/// How long a claimed result is held before it is unlinked. `open(2)` with `O_TRUNC` takes some microseconds
/// from the lookup to the truncation, unless its thread is suspended in between.
pub(crate) const CLAIM_HOLD_TIME: Duration = Duration::from_millis(2);

/// A half under its reserved name.
pub(super) struct Claim<'a> {
    pub dir: &'a Dir,
    own: Vec<u8>,
    pub reserved: Vec<u8>,
}

impl<'a> Claim<'a> {
    pub(super) fn new(dir: &'a Dir, stem: &Stem, half: Half) -> Self {
        Self { dir, own: stem.name(half), reserved: stem.claim(half) }
    }

    /// The same for the temporary file of a half.
    pub(super) fn of_tmp(dir: &'a Dir, stem: &Stem, half: Half) -> Self {
        Self { dir, own: stem.tmp_name(half), reserved: stem.tmp_claim(half) }
    }

    /// The same for a half without the other one.
    pub(super) fn of_orphan(dir: &'a Dir, stem: &Stem, half: Half) -> Self {
        Self { dir, own: stem.name(half), reserved: stem.orphan_claim(half) }
    }

    pub(super) fn acquire(&self) -> rustix::io::Result<()> {
        rename(self.dir, &self.own, &self.reserved)
    }

    /// Whether the claimed file is the one that was judged, unchanged. (Its ctime is ignored: the rename changed
    /// it.)
    pub(super) fn holds(&self, judged: &FileState) -> io::Result<bool> {
        self.is_at(&self.reserved, judged)
    }

    /// Whether something other than a regular file has the reserved name. No cleaner put it there, and no
    /// recovery will remove it.
    pub(super) fn is_blocked(&self) -> rustix::io::Result<bool> {
        match stat(self.dir, &self.reserved) {
            Ok(stat) => Ok(FileState::of(&stat).is_none()),
            // Its owner has removed or renamed it meanwhile.
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the file under its own name, without a claim.
    pub(super) fn unlink_unclaimed(&self) -> rustix::io::Result<()> {
        unlink(self.dir, &self.own)
    }

    /// Whether the file under its own name is the one that was judged, unchanged.
    pub(super) fn name_holds(&self, judged: &FileState) -> io::Result<bool> {
        self.is_at(&self.own, judged)
    }

    fn is_at(&self, name: &[u8], judged: &FileState) -> io::Result<bool> {
        Ok(stat_file(self.dir, name)?.is_some_and(|seen| seen.version == judged.version))
    }

    /// Whether another regular file has the half's own name by now.
    pub(super) fn name_reused(&self) -> io::Result<bool> {
        Ok(stat_file(self.dir, &self.own)?.is_some())
    }

    /// Whether nothing at all has the half's own name.
    pub(super) fn name_free(&self) -> io::Result<bool> {
        is_free(self.dir, &self.own)
    }

    pub(super) fn unlink(&self) -> rustix::io::Result<()> {
        unlink(self.dir, &self.reserved)
    }

    /// Restores the file's own name if that is free.
    pub(super) fn restore(&self) -> rustix::io::Result<()> {
        rename(self.dir, &self.reserved, &self.own)
    }

    /// Restores the file's own name, or deletes the claimed file if a writer published that name anew.
    pub(super) fn restore_or_discard(&self) -> rustix::io::Result<()> {
        match self.restore() {
            Err(Errno::EXIST) => self.unlink(),
            // A recovery was faster.
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// The same, if a regular file has the reserved name.
    fn restore_if_regular(&self) -> rustix::io::Result<()> {
        if self.is_blocked()? { Ok(()) } else { self.restore_or_discard() }
    }
}

/// Restores both halves, the result last.
///
/// That order makes the result the newer half, so that it counts as half published for a second. If a writer
/// published the pair anew meanwhile, the restored metadata may belong to an older result.
///
/// # Errors
/// Those of the system. If it is unknown whether the result was published anew, both stay claimed: the order
/// of the two would be a guess.
pub(super) fn restore_or_discard_both(result: &Claim<'_>, metadata: &Claim<'_>) -> io::Result<()> {
    if result.name_reused()? {
        match result.unlink() {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match result.acquire() {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    metadata.restore_or_discard()?;
    Ok(result.restore_or_discard()?)
}

/// Removes the directory `name`, if it is empty.
pub(super) fn remove_dir(parent: &Dir, name: &[u8]) -> rustix::io::Result<()> {
    retry_on_intr(|| unlinkat(parent, name, AtFlags::REMOVEDIR))
}

pub(super) fn rename(dir: &Dir, from: &[u8], to: &[u8]) -> rustix::io::Result<()> {
    retry_on_intr(|| renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE))
}

pub(super) fn unlink(dir: &Dir, name: &[u8]) -> rustix::io::Result<()> {
    retry_on_intr(|| unlinkat(dir, name, AtFlags::empty()))
}

/// Restores all claimed files of a pair in a directory that was moved out of the cache directory during a
/// deletion, or deletes a claimed file if a writer published its name anew. A confined thread can't.
pub(crate) fn restore(dir: &Dir, stem: &Stem) {
    for half in [Half::Metadata, Half::Result] {
        for claim in [Claim::new, Claim::of_orphan, Claim::of_tmp].map(|of| of(dir, stem, half)) {
            match claim.restore_if_regular() {
                Ok(()) | Err(Errno::NAMETOOLONG) => {}
                Err(error) => tracing::warn!(
                    path = path_field(&dir.rel.join(OsStr::from_bytes(&claim.reserved))),
                    reason = error.to_string(),
                    "can't restore a claimed file in a directory that was moved away"
                ),
            }
        }
    }
}

/// Whether the error means that a file can't be renamed to a reserved name, but might still be unlinked: the
/// file system does not support such a rename, the name would be too long, or the disk is full.
pub(super) fn cannot_claim(error: Errno) -> bool {
    matches!(
        error,
        Errno::INVAL
            | Errno::NOSYS
            | Errno::OPNOTSUPP
            | Errno::NAMETOOLONG
            | Errno::NOSPC
            | Errno::DQUOT
    )
}

/// Whether nothing at all has this name.
pub(super) fn is_free(dir: &Dir, name: &[u8]) -> io::Result<bool> {
    match stat(dir, name) {
        Ok(_) => Ok(false),
        // A name that is too long belongs to no file.
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
