//! Inspects a pair: which files exist, and whether it is due. Changes nothing.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use chrono::{DateTime, Utc};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, pread, retry_on_intr};
use rustix::path::Arg;

use crate::disk::root::{Dir, is_not_ours};
use crate::pair::metadata::{self, InvalidMetadata, MAX_METADATA_BYTES};
use crate::pair::name::{Half, Stem};
use crate::pair::version::{Broken, FileState, Pair, allocated};

/// The state of a pair on disk.
#[derive(Debug)]
pub(crate) enum Inspection {
    /// At least one half is missing or is no regular file, which is no error.
    Incomplete,
    /// The result is under its reserved name.
    Claimed,
    /// Both halves exist, but the metadata is unusable.
    Broken { result: FileState, metadata: FileState, reason: Broken },
    /// Both halves exist, and the metadata is valid. Its file is open.
    Complete(Pair, OwnedFd),
    /// The metadata is valid and not due yet. The result was only listed.
    NotDue { expires_at: DateTime<Utc> },
}

/// Inspects both halves of a pair.
///
/// # Errors
/// Those that say nothing about the pair, such as too many open files. The caller has to inspect it again.
pub(crate) fn inspect(dir: &Dir, stem: &Stem, buffer: &mut Vec<u8>) -> io::Result<Inspection> {
    let Some(result) = stat_file(dir, &stem.name(Half::Result))? else {
        let is_claimed = stat_file(dir, &stem.claim(Half::Result))?.is_some();
        return Ok(if is_claimed { Inspection::Claimed } else { Inspection::Incomplete });
    };
    let metadata = read_metadata(dir, &stem.name(Half::Metadata), buffer)?;
    Ok(metadata.map_or(Inspection::Incomplete, |metadata| metadata.with(result)))
}

/// Inspects a pair whose halves were both just listed as regular files.
///
/// Reads the metadata first, and inspects the result only if `wait` returns false for its expiry time.
///
/// # Errors
/// As for [`inspect`].
pub(crate) fn inspect_listed(
    dir: &Dir,
    stem: &Stem,
    buffer: &mut Vec<u8>,
    wait: impl FnOnce(DateTime<Utc>) -> bool,
) -> io::Result<Inspection> {
    let name = stem.name(Half::Metadata);
    let Some(metadata) = open_metadata(dir, &name, None, buffer)? else {
        return Ok(Inspection::Incomplete);
    };
    if let Ok(expires_at) = metadata.expires_at
        && wait(expires_at)
    {
        return Ok(Inspection::NotDue { expires_at });
    }
    let result = stat_file(dir, &stem.name(Half::Result))?;
    Ok(result.map_or(Inspection::Incomplete, |result| metadata.with(result)))
}

/// The regular file with this name, without following a link or opening the file.
pub(crate) fn stat_file(dir: &Dir, name: &[u8]) -> io::Result<Option<FileState>> {
    match stat(dir, name) {
        Ok(stat) => Ok(FileState::of(&stat)),
        Err(error) => none_if_nowhere(error),
    }
}

/// The stat of anything with this name, regular file or not. Follows no link and opens nothing.
pub(crate) fn stat(dir: &Dir, name: &[u8]) -> rustix::io::Result<Stat> {
    retry_on_intr(|| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW))
}

/// Metadata that was read, and the state of its file.
#[derive(Debug)]
pub(crate) struct ReadMetadata {
    pub seen: FileState,
    pub expires_at: Result<DateTime<Utc>, Broken>,
    /// `None` where it can't be opened, or is too large.
    file: Option<OwnedFd>,
}

impl ReadMetadata {
    /// The inspection of the pair that this metadata and `result` form.
    fn with(self, result: FileState) -> Inspection {
        let metadata = self.seen;
        match (self.expires_at, self.file) {
            (Ok(expires_at), Some(file)) => {
                Inspection::Complete(Pair { result, metadata, expires_at }, file)
            }
            (Err(reason), _) => Inspection::Broken { result, metadata, reason },
            (Ok(_), None) => Inspection::Incomplete,
        }
    }
}

/// Reads metadata that was just listed as a regular file, with as few system calls as possible.
///
/// Returns `None` if it can't be read, or does not fit into `buffer`: [`inspect_listed`] finds out more. Stores in
/// `blocks` what it takes on disk, if that is wanted.
pub(crate) fn read_listed<'a>(
    dir: &Dir,
    name: &CStr,
    buffer: &'a mut [u8],
    blocks: Option<&mut u32>,
) -> Option<&'a [u8]> {
    let file = open_quietly(dir, name).ok()?;
    if let Some(blocks) = blocks {
        *blocks = allocated(&fstat(&file).ok()?);
    }
    let count = retry_on_intr(|| pread(&file, &mut *buffer, 0)).ok()?;
    // A short read of a regular file ends at its end.
    (count < buffer.len()).then(|| &buffer[..count])
}

/// Reads the metadata with this name; `None` if it does not exist or is no regular file.
pub(crate) fn read_metadata(
    dir: &Dir,
    name: &[u8],
    buffer: &mut Vec<u8>,
) -> io::Result<Option<ReadMetadata>> {
    // Opening a device or a FIFO can have effects, so the type is checked first.
    match stat_file(dir, name)? {
        Some(named) => open_metadata(dir, name, Some(named), buffer),
        None => Ok(None),
    }
}

/// Reads the metadata with this name, which was just inspected (`named`) or listed as a regular file.
fn open_metadata(
    dir: &Dir,
    name: &[u8],
    named: Option<FileState>,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<ReadMetadata>> {
    let file = match open_quietly(dir, name) {
        Ok(file) => file,
        Err(error @ (Errno::ACCESS | Errno::PERM)) => {
            let seen = match named {
                Some(named) => Some(named),
                None => stat_file(dir, name)?,
            };
            let expires_at = Err(Broken::Unreadable(error.raw_os_error()));
            return Ok(seen.map(|seen| ReadMetadata { seen, expires_at, file: None }));
        }
        // A socket got the name meanwhile.
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return none_if_nowhere(error),
    };
    let Some(seen) = FileState::of(&fstat(&file)?) else {
        return Ok(None);
    };
    if seen.version.size > MAX_METADATA_BYTES {
        let expires_at = Err(InvalidMetadata::TooLarge.into());
        return Ok(Some(ReadMetadata { seen, expires_at, file: None }));
    }
    read_all(&file, seen.version.size, buffer)?;
    let expires_at = metadata::expires_at(buffer).map_err(Broken::from);
    // The content that was read may be newer than the state that was seen before.
    let seen = match &expires_at {
        Err(_) => FileState::of(&fstat(&file)?).unwrap_or(seen),
        Ok(_) => seen,
    };
    Ok(Some(ReadMetadata { seen, expires_at, file: Some(file) }))
}

/// Reads open metadata once more. Returns whether its file is still the one in `seen`, still has the name,
/// and still has the content `before`.
pub(crate) fn reread_unchanged(
    dir: &Dir,
    name: &[u8],
    file: &OwnedFd,
    seen: &FileState,
    before: &[u8],
    buffer: &mut Vec<u8>,
) -> io::Result<bool> {
    let named = stat_file(dir, name)?;
    if named.is_none_or(|named| named.version != seen.version) {
        return Ok(false);
    }
    read_all(file, seen.version.size, buffer)?;
    Ok(buffer == before)
}

/// Opens a file for reading without following a link, waiting, or changing anything.
fn open_quietly(dir: &Dir, name: impl Arg + Copy) -> rustix::io::Result<OwnedFd> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |flags| retry_on_intr(|| openat(dir, name, flags, Mode::empty()));
    match open(flags | OFlags::NOATIME) {
        // Only a file's owner may open it without an update of the access time.
        Err(Errno::PERM) => open(flags),
        opened => opened,
    }
}

/// Reads to the end of the file, but at most one byte more than metadata may have.
fn read_all(file: &OwnedFd, size: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
    let limit = MAX_METADATA_BYTES as usize + 1;
    buffer.resize((size as usize + 1).clamp(4096, limit), 0);
    let mut filled = 0;
    while filled < limit {
        if filled == buffer.len() {
            buffer.resize((filled * 2).min(limit), 0);
        }
        let count = retry_on_intr(|| pread(file, &mut buffer[filled..], filled as u64))?;
        filled += count;
        // A short read of a regular file ends at its end. Another read would cost as much and return nothing.
        if count == 0 || filled < buffer.len() {
            break;
        }
    }
    buffer.truncate(filled);
    Ok(())
}

fn none_if_nowhere<T>(error: Errno) -> io::Result<Option<T>> {
    // A name that is too long belongs to no file.
    if error == Errno::NAMETOOLONG {
        return Ok(None);
    }
    let error = io::Error::from(error);
    if is_not_ours(&error) { Ok(None) } else { Err(error) }
}
