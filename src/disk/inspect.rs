//! Looking at a pair: what is there, and whether it may go. Changes nothing.

use std::io;
use std::os::fd::OwnedFd;

use chrono::{DateTime, Utc};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, pread, retry_on_intr};

use crate::disk::root::{Dir, leads_nowhere};
use crate::pair::metadata::{self, InvalidMetadata, MAX_METADATA_BYTES};
use crate::pair::name::{Half, Stem};
use crate::pair::version::{Broken, Pair, Seen};

/// What is there of a pair.
#[derive(Debug)]
pub(crate) enum Sight {
    /// At most half of it: that is no error.
    Incomplete,
    /// Its result is under its reserved name.
    Taken,
    /// Both halves, but the metadata can't be used.
    Broken { result: Seen, metadata: Seen, reason: Broken },
    /// Both halves, and valid metadata, which is open.
    Whole(Pair, OwnedFd),
    /// Valid metadata that says that there is time; its result was only listed.
    Waiting { metadata: Seen, expires_at: DateTime<Utc> },
}

/// Looks at both halves of a pair.
///
/// # Errors
/// Those that say nothing about the pair, such as too many open files; it has to be looked at
/// again.
pub(crate) fn look(dir: &Dir, stem: &Stem, buffer: &mut Vec<u8>) -> io::Result<Sight> {
    let Some(result) = regular(dir, &stem.name(Half::Result))? else {
        let is_taken = regular(dir, &stem.claim(Half::Result))?.is_some();
        return Ok(if is_taken { Sight::Taken } else { Sight::Incomplete });
    };
    let metadata = read_metadata(dir, &stem.name(Half::Metadata), buffer)?;
    Ok(metadata.map_or(Sight::Incomplete, |metadata| metadata.with(result)))
}

/// Reads the metadata of a pair of which both halves were just listed as regular files, and looks
/// at its result only where that metadata does not tell that it has to `wait`.
///
/// # Errors
/// As for [`look`].
pub(crate) fn look_at_listed(
    dir: &Dir,
    stem: &Stem,
    buffer: &mut Vec<u8>,
    wait: impl FnOnce(DateTime<Utc>) -> bool,
) -> io::Result<Sight> {
    let name = stem.name(Half::Metadata);
    let Some(metadata) = open_metadata(dir, &name, None, buffer)? else {
        return Ok(Sight::Incomplete);
    };
    if let Ok(expires_at) = metadata.expires_at
        && wait(expires_at)
    {
        return Ok(Sight::Waiting { metadata: metadata.seen, expires_at });
    }
    let result = regular(dir, &stem.name(Half::Result))?;
    Ok(result.map_or(Sight::Incomplete, |result| metadata.with(result)))
}

/// The regular file that bears the name, without following a link or opening it.
pub(crate) fn regular(dir: &Dir, name: &[u8]) -> io::Result<Option<Seen>> {
    match status(dir, name) {
        Ok(stat) => Ok(Seen::of(&stat)),
        Err(error) => none_if_nowhere(error),
    }
}

/// What bears the name, be it a regular file or not, without following a link or opening it.
pub(crate) fn status(dir: &Dir, name: &[u8]) -> rustix::io::Result<Stat> {
    retry_on_intr(|| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW))
}

/// Metadata as it was read.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub seen: Seen,
    pub expires_at: Result<DateTime<Utc>, Broken>,
    /// `None` where it can't be opened.
    file: Option<OwnedFd>,
}

impl Metadata {
    /// A pair, with the result beside it.
    fn with(self, result: Seen) -> Sight {
        let metadata = self.seen;
        match (self.expires_at, self.file) {
            (Ok(expires_at), Some(file)) => {
                Sight::Whole(Pair { result, metadata, expires_at }, file)
            }
            (Err(reason), _) => Sight::Broken { result, metadata, reason },
            (Ok(_), None) => Sight::Incomplete,
        }
    }
}

/// Reads the metadata that bears the name; `None` where no regular file does.
pub(crate) fn read_metadata(
    dir: &Dir,
    name: &[u8],
    buffer: &mut Vec<u8>,
) -> io::Result<Option<Metadata>> {
    // Opening a device or a FIFO can have effects, so its type is asked for first.
    match regular(dir, name)? {
        Some(named) => open_metadata(dir, name, Some(named), buffer),
        None => Ok(None),
    }
}

/// Reads the metadata that bears the name, which was just `named` or listed as a regular file.
fn open_metadata(
    dir: &Dir,
    name: &[u8],
    named: Option<Seen>,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<Metadata>> {
    let file = match open_quietly(dir, name) {
        Ok(file) => file,
        Err(error @ (Errno::ACCESS | Errno::PERM)) => {
            let seen = match named {
                Some(named) => Some(named),
                None => regular(dir, name)?,
            };
            let expires_at = Err(Broken::Unreadable(error.raw_os_error()));
            return Ok(seen.map(|seen| Metadata { seen, expires_at, file: None }));
        }
        // A socket that took the name meanwhile.
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return none_if_nowhere(error),
    };
    let Some(seen) = Seen::of(&fstat(&file)?) else {
        return Ok(None);
    };
    if seen.version.size > MAX_METADATA_BYTES {
        let expires_at = Err(InvalidMetadata::TooLarge.into());
        return Ok(Some(Metadata { seen, expires_at, file: None }));
    }
    read_all(&file, seen.version.size, buffer)?;
    let expires_at = metadata::expires_at(buffer).map_err(Broken::from);
    // What was read may be newer than what was seen before.
    let seen = match &expires_at {
        Err(_) => Seen::of(&fstat(&file)?).unwrap_or(seen),
        Ok(_) => seen,
    };
    Ok(Some(Metadata { seen, expires_at, file: Some(file) }))
}

/// Reads open metadata once more; whether it still is what was `seen`, bears the name, and says
/// what was read from it into `before`.
pub(crate) fn says_the_same(
    dir: &Dir,
    name: &[u8],
    file: &OwnedFd,
    seen: &Seen,
    before: &[u8],
    buffer: &mut Vec<u8>,
) -> io::Result<bool> {
    let named = regular(dir, name)?;
    if named.is_none_or(|named| named.version != seen.version) {
        return Ok(false);
    }
    read_all(file, seen.version.size, buffer)?;
    Ok(buffer == before)
}

/// Opens a file for reading so that nothing is followed, waited for, or changed.
fn open_quietly(dir: &Dir, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |flags| retry_on_intr(|| openat(dir, name, flags, Mode::empty()));
    match open(flags | OFlags::NOATIME) {
        // Only a file's owner may leave its access time alone.
        Err(Errno::PERM) => open(flags),
        opened => opened,
    }
}

/// Reads to the end, but one byte more than metadata may have at the most.
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
        // A short read of a regular file ends at its end; asking once more would cost as much.
        if count == 0 || filled < buffer.len() {
            break;
        }
    }
    buffer.truncate(filled);
    Ok(())
}

fn none_if_nowhere<T>(error: Errno) -> io::Result<Option<T>> {
    // What is too long for a name is borne by nothing.
    if error == Errno::NAMETOOLONG {
        return Ok(None);
    }
    let error = io::Error::from(error);
    if leads_nowhere(&error) { Ok(None) } else { Err(error) }
}
