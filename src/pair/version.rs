//! Versions of files and of pairs: what the cleaner saw of them without keeping them open.

use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::{FileType, Stat};

use super::disk_budget::DiskSize;
use super::metadata::InvalidMetadata;

/// How long a result that may be half published, or metadata that may be half written, has to be
/// unchanged before the cleaner acts on it.
pub(crate) const SETTLE_TIME: Duration = Duration::from_secs(1);

/// A file's time in seconds and nanoseconds since the epoch, as the file system stores it.
pub(crate) type FileTime = (i64, u32);

/// Identifies one version of a file without reading its content. A rename changes none of these fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Version {
    pub ino: u64,
    pub size: u64,
    pub mtime: FileTime,
}

/// A regular file as the cleaner saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileState {
    pub version: Version,
    pub ctime: FileTime,
    /// `st_blocks`, as far as it fits.
    pub blocks: u32,
    linked: bool,
}

impl FileState {
    /// Returns the state of a file; `None` if it is not a regular file.
    pub(crate) fn of(stat: &Stat) -> Option<Self> {
        FileType::from_raw_mode(stat.st_mode).is_file().then(|| Self {
            version: Version {
                ino: stat.st_ino,
                size: u64::try_from(stat.st_size).unwrap_or(0),
                mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            },
            ctime: (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or(0)),
            blocks: allocated(stat),
            linked: stat.st_nlink > 1,
        })
    }

    /// Returns a file that exists only for a test; another `ino` is another file.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn pretended(ino: u64) -> Self {
        let version = Version { ino, size: 1, mtime: (0, 0) };
        Self { version, ctime: (0, 0), blocks: 8, linked: false }
    }

    /// Returns the same file, last changed at `ctime`.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn changed_at(self, ctime: FileTime) -> Self {
        Self { ctime, ..self }
    }

    /// Returns whether the file is unchanged since it was seen as `then`. The ctime of a file that had
    /// other names is ignored: creating or removing another name changes it as well.
    pub(crate) fn is_unchanged_since(&self, then: &Self) -> bool {
        self.version == then.version && (self.ctime == then.ctime || then.linked)
    }

    /// True if the file may have been complete when this name was created: it has other names, or it
    /// had. Linking and unlinking change the ctime but not the mtime.
    pub(crate) fn was_linked(&self) -> bool {
        self.linked || self.ctime != self.version.mtime
    }

    /// True if the file has another name now.
    pub(crate) fn is_linked(&self) -> bool {
        self.linked
    }

    /// Returns how much longer the file has to stay unchanged before it counts as settled.
    ///
    /// A change time in the future does not show how old the change is. Such a change counts as made
    /// now.
    pub(crate) fn settles_in(&self, now: DateTime<Utc>) -> Duration {
        self.age(now).map_or(SETTLE_TIME, |age| SETTLE_TIME.saturating_sub(age))
    }

    /// Returns how long ago the file was changed; `None` if its change time is in the future.
    pub(crate) fn age(&self, now: DateTime<Utc>) -> Option<Duration> {
        age_of(self.ctime, now)
    }
}

/// Returns how long ago `ctime` was; `None` if it is in the future.
pub(crate) fn age_of(ctime: FileTime, now: DateTime<Utc>) -> Option<Duration> {
    let changed = DateTime::from_timestamp(ctime.0, ctime.1)?;
    (now - changed).to_std().ok()
}

/// Returns the blocks that a file takes, as far as their number fits: 2 TiB.
pub(crate) fn allocated(stat: &Stat) -> u32 {
    u32::try_from(stat.st_blocks.max(0)).unwrap_or(u32::MAX)
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
    /// Returns the size of both files together, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.result.version.size + self.metadata.version.size
    }

    /// Returns what both files take on disk.
    pub(crate) fn disk_size(&self) -> DiskSize {
        DiskSize::of(&self.result, self.metadata.blocks)
    }

    /// True if the result may belong to metadata that has not been published yet. File systems store
    /// times in steps of some milliseconds, so equal times prove nothing.
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
