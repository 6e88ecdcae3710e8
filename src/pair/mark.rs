//! Marks: fingerprints by which a sweep recognizes metadata that it need not read again.
//!
//! Whatever changes a file gives it a new ctime, which no program can set. So metadata with the same
//! inode, size and times as at the last read has the same content, except after
//! - a change within the same tick of the file system's clock as the one before,
//! - a write through a memory map to a page that is dirty already: the kernel updates the ctime only
//!   once it has written the page back (within 35 s by default: `vm.dirty_expire_centisecs` and
//!   `vm.dirty_writeback_centisecs`),
//! - a change on a file system that never writes back, as those in memory, or that learns late of
//!   changes made elsewhere, as network file systems.
//!
//! Therefore metadata gets a mark only if it was old enough when it was read, and only on file systems
//! where this age is known to suffice (`Root::ctime_reliable_after`). Each sweep reads all other
//! metadata.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::name::Stem;
use super::version::FileState;

/// A hash of one version of one pair's metadata. Its 64 bits are stored in halves, so that it needs no
/// padding where a million of them are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Mark(NonZeroU32, u32);

impl Mark {
    pub(crate) fn of(dir: &Path, stem: &Stem, metadata: &FileState) -> Self {
        let mut hasher = DefaultHasher::new();
        (dir.as_os_str(), stem, metadata.version, metadata.ctime).hash(&mut hasher);
        Self::of_hash(hasher.finish())
    }

    pub(crate) fn of_hash(hash: u64) -> Self {
        let high = NonZeroU32::new((hash >> 32) as u32).unwrap_or(NonZeroU32::MIN);
        Self(high, hash as u32)
    }

    /// Returns the mark of metadata that was read at `now`; `None` if the metadata is not old enough, or
    /// if `ctime_reliable_after` is `None`.
    pub(crate) fn of_settled(
        ctime_reliable_after: Option<Duration>,
        dir: &Path,
        stem: &Stem,
        metadata: &FileState,
        now: DateTime<Utc>,
    ) -> Option<Self> {
        let is_old = metadata.age(now)? >= ctime_reliable_after?;
        is_old.then(|| Self::of(dir, stem, metadata))
    }
}

/// The marks of all pairs that wait for their expiry.
pub(crate) type Marks = HashSet<Mark>;

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    #[test]
    fn only_what_has_been_unchanged_for_long_gets_a_mark() {
        let seen = FileState::pretended(1);
        let (dir, stem) = (Path::new("d"), Stem::new(b"a"));
        let after = Some(Duration::from_secs(60));
        let mark = |after, age| {
            let now = DateTime::UNIX_EPOCH + TimeDelta::seconds(age);
            Mark::of_settled(after, dir, &stem, &seen, now)
        };
        assert_eq!(mark(after, 59), None);
        assert_eq!(mark(after, 60), Some(Mark::of(dir, &stem, &seen)));
        assert_eq!(mark(after, -1_000_000), None);
        assert_eq!(mark(None, 1_000_000), None);
    }

    #[test]
    fn another_file_time_or_place_is_another_mark() {
        let seen = FileState::pretended(1);
        let mark = |dir: &str, stem: &[u8], seen| Mark::of(Path::new(dir), &Stem::new(stem), &seen);
        let first = mark("d", b"a", seen);
        assert_eq!(mark("d", b"a", seen), first);
        assert_ne!(mark("d", b"b", seen), first);
        assert_ne!(mark("e", b"a", seen), first);
        assert_ne!(mark("d", b"a", FileState::pretended(2)), first);
        assert_ne!(mark("d", b"a", seen.changed_at((0, 1))), first);
    }
}
