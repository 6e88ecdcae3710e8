//! Looking at a pair: what is there, and whether it may go. Changes nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, pread, retry_on_intr};

use crate::disk::root::{Dir, leads_nowhere};
use crate::pair::metadata::{self, InvalidMetadata, MAX_METADATA_BYTES};
use crate::pair::name::{Half, Stem};

/// How long a result that may be half published, or metadata that may be half written, has to be
/// unchanged before it is believed.
pub(crate) const SETTLING: Duration = Duration::from_secs(1);

/// A file's time in seconds and nanoseconds since the epoch, as the file system keeps it.
pub(crate) type FileTime = (i64, u32);

/// What tells one version of a file from another, short of reading it. A rename keeps it all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Version {
    pub ino: u64,
    pub size: u64,
    pub mtime: FileTime,
}

/// A regular file as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub version: Version,
    pub ctime: FileTime,
    linked: bool,
}

impl Seen {
    /// `None` for what is no regular file.
    pub fn of(stat: &Stat) -> Option<Self> {
        FileType::from_raw_mode(stat.st_mode).is_file().then(|| Self {
            version: Version {
                ino: stat.st_ino,
                size: u64::try_from(stat.st_size).unwrap_or(0),
                mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            },
            ctime: (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or(0)),
            linked: stat.st_nlink > 1,
        })
    }

    /// A file that exists only for a test; another `ino` is another file.
    #[cfg(any(fuzzing, test))]
    pub fn pretended(ino: u64) -> Self {
        Self { version: Version { ino, size: 1, mtime: (0, 0) }, ctime: (0, 0), linked: false }
    }

    /// The same file, changed then.
    #[cfg(test)]
    pub fn changed_at(self, ctime: FileTime) -> Self {
        Self { ctime, ..self }
    }

    /// Whether nothing has happened to it since it was seen as `then`. Making or removing another
    /// of its names changes its ctime, which tells nothing.
    pub fn is_unchanged_since(&self, then: &Self) -> bool {
        self.version == then.version && (self.ctime == then.ctime || then.linked)
    }

    /// Whether it may have been complete when this name was made: it has others, or it had, since
    /// linking and unlinking change the ctime alone.
    pub fn was_linked(&self) -> bool {
        self.linked || self.ctime != self.version.mtime
    }

    /// How much longer it has to stay unchanged before it counts as settled.
    ///
    /// A change that lies in the future says nothing of how long ago it was; it is waited for as
    /// if it were made now.
    pub fn settles_in(&self, now: DateTime<Utc>) -> Duration {
        self.age(now).map_or(SETTLING, |age| SETTLING.saturating_sub(age))
    }

    /// How long ago it was changed; `None` where that lies in the future.
    pub fn age(&self, now: DateTime<Utc>) -> Option<Duration> {
        let changed = DateTime::from_timestamp(self.ctime.0, self.ctime.1)?;
        (now - changed).to_std().ok()
    }
}

/// Why the metadata of a pair can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Invalid(#[from] InvalidMetadata),
    #[error("can't be read: {}", io::Error::from_raw_os_error(*.0))]
    Unreadable(i32),
}

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

/// A complete pair with valid metadata.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub result: Seen,
    pub metadata: Seen,
    pub expires_at: DateTime<Utc>,
}

impl Pair {
    /// The size of both files.
    pub fn bytes(&self) -> u64 {
        self.result.version.size + self.metadata.version.size
    }

    /// Whether the result may belong to metadata that is still to come. File systems keep times
    /// in steps of some milliseconds, so that equal ones tell nothing.
    pub fn may_be_half_published(&self) -> bool {
        self.result.ctime >= self.metadata.ctime
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(ctime: FileTime) -> Seen {
        Seen::pretended(1).changed_at(ctime)
    }

    #[test]
    fn a_change_settles_within_a_second_even_if_it_lies_in_the_future() {
        let now = DateTime::from_timestamp(1000, 500_000_000).unwrap();
        let ms = Duration::from_millis;
        for (ctime, left) in [
            ((1000, 500_000_000), ms(1000)),
            ((1000, 0), ms(500)),
            ((999, 500_000_000), ms(0)),
            ((0, 0), ms(0)),
            ((5000, 0), ms(1000)),
            ((i64::MAX, 0), ms(1000)),
        ] {
            assert_eq!(seen(ctime).settles_in(now), left, "{ctime:?}");
        }
    }

    #[test]
    fn equal_times_leave_a_doubt() {
        let pair = |result, metadata| Pair {
            result: seen(result),
            metadata: seen(metadata),
            expires_at: DateTime::UNIX_EPOCH,
        };
        assert!(!pair((1, 0), (1, 1)).may_be_half_published());
        assert!(pair((1, 1), (1, 1)).may_be_half_published());
        assert!(pair((2, 0), (1, 9)).may_be_half_published());
    }
}
