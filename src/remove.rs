//! Deleting a pair. The only module that renames or unlinks.
//!
//! Linux has no "unlink this name if it still is that file", so between a look and an `unlink` a
//! writer could publish the same names anew, and lose what it published. Therefore each half is
//! first *claimed*: renamed to a reserved name beside it, where no writer will touch it. What was
//! claimed is compared with what was judged, and put back if it is something else. Only then is it
//! unlinked.
//!
//! ```text
//! claim result ─ same file? ─ read metadata again ─ still due? ─ claim metadata ─ same file? ─ unlink both
//!       no: put it back ┘          no: put the result back ┘          no: put both back ┘
//! ```
//!
//! All cleaners use one reserved name for one half, and a claim replaces nothing. So there is one
//! claimant of a pair at a time, and what it gives back is never newer than what a writer has put
//! in its place meanwhile, nor older than what another cleaner holds.
//!
//! A claim outlives its owner if that is killed. Whoever holds claims in a directory holds a shared
//! lock on it, so that [`recover`], which takes an exclusive one, never touches the claims of the
//! living. (A lock needs no file of its own, ends with its process, and is seen across containers.)
//! Another program that keeps an exclusive lock on a directory keeps what is in it from deletion.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::{AtFlags, FlockOperation, RenameFlags, flock, renameat_with, unlinkat};
use rustix::io::{Errno, retry_on_intr};

use crate::entry::{Half, Name, Stem};
use crate::look::{Metadata, Pair, Seen, read_metadata, regular};
use crate::root::{Dir, Root};

/// How often, and with what pause, a lock that a recovery holds for an instant is tried again.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// What became of an attempt to delete.
#[derive(Debug)]
pub(crate) enum Removal {
    /// This cleaner removed the result; `leftover` tells why its metadata could not follow.
    Removed { freed: u64, leftover: Option<io::Error> },
    /// The pair is not what was judged any more; it is as it was found.
    Changed,
    /// Somebody else was faster.
    Gone,
    /// Another cleaner has taken it, or a dead one had.
    Taken,
    /// The system refused; the pair is as it was found.
    Failed(io::Error),
    /// The system refused to give a file its name back; a recovery has to do it.
    Stranded(io::Error),
}

/// Deletes `pair`, which was judged to be due, if it still is what was judged, and still due by
/// the time that `wall` tells.
pub(crate) fn remove(
    root: &Root,
    dir: &Dir,
    stem: &Stem,
    pair: &Pair,
    wall: &dyn Fn() -> DateTime<Utc>,
    buffer: &mut Vec<u8>,
) -> Removal {
    let removal = Attempt { dir, stem, pair, wall, buffer };
    // A directory that was moved out of the cache directory takes its pairs with it.
    if !root.still_holds(dir) {
        return Removal::Gone;
    }
    match lock_shared(dir) {
        Ok(true) => removal.by_claims(),
        Ok(false) => removal.directly(),
        Err(error) => Removal::Failed(error),
    }
}

struct Attempt<'a> {
    dir: &'a Dir,
    stem: &'a Stem,
    pair: &'a Pair,
    wall: &'a dyn Fn() -> DateTime<Utc>,
    buffer: &'a mut Vec<u8>,
}

impl Attempt<'_> {
    fn by_claims(mut self) -> Removal {
        let result = Claim::new(self.dir, self.stem, Half::Result);
        match result.take() {
            Ok(()) => {}
            Err(Errno::NOENT) => return Removal::Gone,
            Err(Errno::EXIST) => return Removal::Taken,
            Err(error) if cannot_claim(error) => return self.directly(),
            Err(error) => return Removal::Failed(error.into()),
        }
        if !result.is(&self.pair.result) {
            return given_back(&result, None, Removal::Changed);
        }
        match self.read_again() {
            Ok(true) => {}
            Ok(false) => return given_back(&result, None, Removal::Changed),
            Err(error) => return given_back(&result, None, Removal::Failed(error)),
        }
        let metadata = Claim::new(self.dir, self.stem, Half::Metadata);
        match metadata.take() {
            Ok(()) => {}
            Err(Errno::NOENT) => return given_back(&result, None, Removal::Changed),
            Err(Errno::EXIST) => return given_back(&result, None, Removal::Taken),
            Err(error) if cannot_claim(error) => return self.metadata_directly(&result),
            Err(error) => return given_back(&result, None, Removal::Failed(error.into())),
        }
        if !metadata.is(&self.pair.metadata) || !result.is(&self.pair.result) {
            return given_back(&result, Some(&metadata), Removal::Changed);
        }
        if let Err(error) = result.unlink() {
            return given_back(&result, Some(&metadata), Removal::Failed(error.into()));
        }
        // A writer that had opened it by its own name may only now have begun to write to it.
        let unlinked = if metadata.is(&self.pair.metadata) {
            metadata.unlink()
        } else {
            metadata.give_back().and(Err(Errno::NOENT))
        };
        self.removed(unlinked)
    }

    /// The result is claimed, but its metadata can't be.
    fn metadata_directly(mut self, result: &Claim<'_>) -> Removal {
        if let Err(error) = result.unlink() {
            return given_back(result, None, Removal::Failed(error.into()));
        }
        let unlinked = self.unlink_metadata_if_same();
        self.removed(unlinked)
    }

    /// Without claims: the last look and the `unlink` follow each other at once.
    fn directly(mut self) -> Removal {
        match self.read_again() {
            Ok(true) => {}
            Ok(false) => return Removal::Changed,
            Err(error) => return Removal::Failed(error),
        }
        let name = self.stem.name(Half::Result);
        match regular(self.dir, &name) {
            Ok(Some(seen)) if seen.version == self.pair.result.version => {}
            Ok(Some(_)) => return Removal::Changed,
            Ok(None) => return Removal::Gone,
            Err(error) => return Removal::Failed(error),
        }
        match unlink(self.dir, &name) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Removal::Gone,
            Err(error) => return Removal::Failed(error.into()),
        }
        let unlinked = self.unlink_metadata_if_same();
        self.removed(unlinked)
    }

    fn unlink_metadata_if_same(&mut self) -> rustix::io::Result<()> {
        match self.read_again() {
            Ok(true) => unlink(self.dir, &self.stem.name(Half::Metadata)),
            // Published anew: it belongs to a result that is there, or about to be.
            Ok(false) => Err(Errno::NOENT),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }

    /// Whether the metadata under its own name is the file that was judged, and still due.
    fn read_again(&mut self) -> io::Result<bool> {
        let again = read_metadata(self.dir, &self.stem.name(Half::Metadata), self.buffer)?;
        Ok(again.is_some_and(|Metadata { seen, expires_at }| {
            seen.version == self.pair.metadata.version
                && expires_at.is_ok_and(|at| at <= (self.wall)())
        }))
    }

    fn removed(&self, metadata: rustix::io::Result<()>) -> Removal {
        let result = self.pair.result.version.size;
        match metadata {
            Ok(()) => Removal::Removed { freed: self.pair.bytes(), leftover: None },
            Err(Errno::NOENT) => Removal::Removed { freed: result, leftover: None },
            Err(error) => Removal::Removed { freed: result, leftover: Some(error.into()) },
        }
    }
}

/// A half under its reserved name.
struct Claim<'a> {
    dir: &'a Dir,
    own: Vec<u8>,
    reserved: Vec<u8>,
}

impl<'a> Claim<'a> {
    fn new(dir: &'a Dir, stem: &Stem, half: Half) -> Self {
        Self { dir, own: stem.name(half), reserved: stem.claim(half) }
    }

    fn take(&self) -> rustix::io::Result<()> {
        rename(self.dir, &self.own, &self.reserved)
    }

    /// Whether what was taken is the file that was judged, unchanged. (Its ctime tells nothing:
    /// the renaming changed it.)
    fn is(&self, judged: &Seen) -> bool {
        regular(self.dir, &self.reserved)
            .is_ok_and(|seen| seen.is_some_and(|seen| seen.version == judged.version))
    }

    /// Whether a file stands under the name that this one would get back.
    fn own_name_is_taken(&self) -> bool {
        regular(self.dir, &self.own).is_ok_and(|seen| seen.is_some())
    }

    fn unlink(&self) -> rustix::io::Result<()> {
        unlink(self.dir, &self.reserved)
    }

    /// Gives the file its name back, or drops it if that was published anew meanwhile.
    fn give_back(&self) -> rustix::io::Result<()> {
        match rename(self.dir, &self.reserved, &self.own) {
            Err(Errno::EXIST) => self.unlink(),
            // A recovery was faster.
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// Gives back what was claimed of a pair.
fn given_back(result: &Claim<'_>, metadata: Option<&Claim<'_>>, removal: Removal) -> Removal {
    let done = match metadata {
        Some(metadata) => give_back_both(result, metadata),
        None => result.give_back(),
    };
    done.map_or_else(|error| Removal::Stranded(error.into()), |()| removal)
}

/// Gives both halves back, the result last. That makes it the newer one, so that it counts as half
/// published for a second: if it was published anew meanwhile, what is given back may be the
/// metadata of an older one.
fn give_back_both(result: &Claim<'_>, metadata: &Claim<'_>) -> rustix::io::Result<()> {
    if result.own_name_is_taken() {
        match result.unlink() {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        match result.take() {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    metadata.give_back()?;
    result.give_back()
}

/// Why a file can't be taken to a reserved name although it might be unlinked: the file system
/// knows no such renaming, the name would be too long, or the disk is full.
fn cannot_claim(error: Errno) -> bool {
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

fn rename(dir: &Dir, from: &[u8], to: &[u8]) -> rustix::io::Result<()> {
    retry_on_intr(|| renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE))
}

fn unlink(dir: &Dir, name: &[u8]) -> rustix::io::Result<()> {
    retry_on_intr(|| unlinkat(dir, name, AtFlags::empty()))
}

/// Locks the directory against recoveries until its descriptor is closed; false where the file
/// system knows no such locks, so that claims can't be told from a dead owner's.
fn lock_shared(dir: &Dir) -> io::Result<bool> {
    // Who holds it for so long is no recovery, and the other pairs need not wait as long.
    let tries = if dir.is_locked_by_others() { 1 } else { LOCK_TRIES };
    for _ in 0..tries {
        match flock(dir, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
            Err(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::BADF) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
    dir.note_locked_by_others();
    Err(io::Error::new(io::ErrorKind::WouldBlock, "another program holds a lock on the directory"))
}

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
        if let Name::Claim(_, stem) = Name::of(reserved)
            && !stems.contains(&stem)
        {
            stems.push(stem);
        }
    }
    for stem in stems {
        let result = Claim::new(dir, &stem, Half::Result);
        let metadata = Claim::new(dir, &stem, Half::Metadata);
        let taken = regular(dir, &result.reserved)?;
        // An owner claims metadata only after it made sure of the result that it had claimed
        // before. It may be that of a newer result by mistake, if there is one; and a recovery may
        // have taken a newer result for an instant, which then has not settled.
        let untouched = !result.own_name_is_taken() && !metadata.own_name_is_taken();
        let settled = taken.is_none_or(|taken| taken.settles_in(now).is_zero());
        let done = match claimed_metadata(&metadata, now)? {
            Some((seen, true)) if untouched && settled => {
                if taken.is_some() {
                    recovery.finished.push(stem.clone());
                }
                finish(&result, taken, &metadata, seen, &mut recovery)
            }
            Some(_) => give_back_both(&result, &metadata),
            None if taken.is_some() => result.give_back(),
            None => Ok(()),
        };
        if let Err(error) = done {
            let name = OsStr::from_bytes(&result.reserved);
            recovery.failed.push((dir.rel.join(name), error.into()));
        }
        recovery.touched.push(stem);
    }
    Ok(recovery)
}

/// Claimed metadata, and whether it says that its pair may go.
fn claimed_metadata(claim: &Claim<'_>, now: DateTime<Utc>) -> io::Result<Option<(Seen, bool)>> {
    let read = read_metadata(claim.dir, &claim.reserved, &mut Vec::new())?;
    Ok(read.map(|read| (read.seen, read.expires_at.is_ok_and(|at| at <= now))))
}

/// Finishes a deletion: the result first, so that no crash in between leaves metadata alone as if
/// its result had never been.
fn finish(
    result: &Claim<'_>,
    taken: Option<Seen>,
    metadata: &Claim<'_>,
    seen: Seen,
    recovery: &mut Recovery,
) -> rustix::io::Result<()> {
    if let Some(taken) = taken {
        result.unlink()?;
        recovery.freed += taken.version.size;
    }
    metadata.unlink()?;
    recovery.freed += seen.version.size;
    Ok(())
}
