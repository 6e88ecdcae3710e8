//! One version of a file, and of a pair: what was seen of it without keeping it open.

use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::{FileType, Stat};

use super::metadata::InvalidMetadata;

/// How long a result that may be half published, or metadata that may be half written, has to be
/// unchanged before it is believed.
pub(crate) const SETTLE_TIME: Duration = Duration::from_secs(1);

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
pub(crate) struct FileState {
    pub version: Version,
    pub ctime: FileTime,
    linked: bool,
}

impl FileState {
    /// `None` for what is no regular file.
    pub(crate) fn of(stat: &Stat) -> Option<Self> {
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
    pub(crate) fn is_unchanged_since(&self, then: &Self) -> bool {
        self.version == then.version && (self.ctime == then.ctime || then.linked)
    }

    /// Whether it may have been complete when this name was made: it has others, or it had, since
    /// linking and unlinking change the ctime alone.
    pub(crate) fn was_linked(&self) -> bool {
        self.linked || self.ctime != self.version.mtime
    }

    /// How much longer it has to stay unchanged before it counts as settled.
    ///
    /// A change that lies in the future says nothing of how long ago it was; it is waited for as
    /// if it were made now.
    pub(crate) fn settles_in(&self, now: DateTime<Utc>) -> Duration {
        self.age(now).map_or(SETTLE_TIME, |age| SETTLE_TIME.saturating_sub(age))
    }

    /// How long ago it was changed; `None` where that lies in the future.
    pub(crate) fn age(&self, now: DateTime<Utc>) -> Option<Duration> {
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

/// A complete pair with valid metadata.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub result: FileState,
    pub metadata: FileState,
    pub expires_at: DateTime<Utc>,
}

impl Pair {
    /// The size of both files.
    pub(crate) fn bytes(&self) -> u64 {
        self.result.version.size + self.metadata.version.size
    }

    /// Whether the result may belong to metadata that is still to come. File systems keep times
    /// in jumps of some milliseconds, so that equal ones tell nothing.
    pub(crate) fn may_be_half_published(&self) -> bool {
        self.result.ctime >= self.metadata.ctime
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(ctime: FileTime) -> FileState {
        FileState::pretended(1).changed_at(ctime)
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
