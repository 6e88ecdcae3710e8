//! Disk budgets: what pairs may take on disk, what has to stay free, and by how much a limit is exceeded.

use std::cmp::Ordering;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use chrono::{DateTime, TimeDelta, Utc};

use super::name::Stem;
use super::version::{FileState, FileTime, Pair};

/// The unit of `st_blocks`, in bytes.
pub(crate) const BLOCK: u64 = 512;
/// The most pairs that one batch evicts. The limits are checked again before each batch.
pub(crate) const EVICTION_BATCH: usize = 64;
/// The highest share of a file system that can be kept free, in percent.
const MAX_PERCENT: u8 = 90;

/// How much of the cache directory's file system has to stay free for unprivileged users.
///
/// ```
/// use result_cleaner::MinFree;
/// assert_eq!("10%".parse(), Ok(MinFree::Percent(10)));
/// assert_eq!("2GiB".parse(), Ok(MinFree::Bytes(2 << 30)));
/// assert!("100%".parse::<MinFree>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MinFree {
    /// This many bytes.
    Bytes(u64),
    /// This share of the file system's size in percent, 1 to 90.
    Percent(u8),
}

impl MinFree {
    /// Returns whether the value is within its bounds.
    pub(crate) fn is_valid(self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes > 0,
            Self::Percent(percent) => (1..=MAX_PERCENT).contains(&percent),
        }
    }

    /// Returns the bytes that have to stay free on a file system with `total` bytes.
    pub(crate) fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => share(total, percent.into()),
        }
    }
}

impl FromStr for MinFree {
    type Err = String;

    /// Reads a size as [`parse_size`] does, or a share such as `10%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.trim().strip_suffix('%') else {
            let size = parse_size(text).map_err(|error| format!("{error}, or a share like 10%"));
            return size.map(Self::Bytes);
        };
        let percent = percent.trim_end().parse().map(Self::Percent);
        percent
            .ok()
            .filter(|share| share.is_valid())
            .ok_or_else(|| format!("a share must be 1% to {MAX_PERCENT}%, a whole number"))
    }
}

/// Reads a size in bytes such as `500M`, `20GiB` or `1.5TB`.
///
/// K, M, G, T and KiB, MiB, … are powers of 1024; KB, MB, … are powers of 1000. A bare number is bytes.
///
/// ```
/// use result_cleaner::text::parse_size;
/// assert_eq!(parse_size("500M"), Ok(500 << 20));
/// assert_eq!(parse_size("1.5TB"), Ok(1_500_000_000_000));
/// assert!(parse_size("0").is_err());
/// ```
///
/// # Errors
/// One line for the person who wrote `text`, also for zero.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    // To bytesize, a single letter is a power of 1000.
    let has_letter = text.ends_with(|c: char| "KMGTPEkmgtpe".contains(c));
    let spelled = if has_letter { format!("{text}iB") } else { text.to_owned() };
    let ByteSize(bytes) =
        spelled.parse().map_err(|_| "write it like 500M, 20GiB or 1.5TB".to_owned())?;
    if bytes == 0 { Err("it must be more than zero".to_owned()) } else { Ok(bytes) }
}

/// The space on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreeSpace {
    /// What unprivileged users may still use.
    pub free: u64,
    /// The size of the file system; zero if it reports none.
    pub total: u64,
}

/// The limits of a disk budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    pub max_size: Option<u64>,
    pub min_free: Option<MinFree>,
    /// How long a result has to be unchanged before it may be evicted.
    pub min_age: Duration,
}

/// By how much a limit is exceeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Excess {
    /// Whether the limit itself is exceeded, so that an eviction has to begin.
    pub is_over: bool,
    /// How many bytes have to go until an eviction ends.
    pub bytes: u64,
}

impl Budget {
    /// Compares what the pairs take on disk with `max_size`.
    pub(crate) fn size_excess(&self, size: u64) -> Excess {
        let Some(limit) = self.max_size else { return Excess::default() };
        Excess { is_over: size > limit, bytes: size.saturating_sub(share(limit, 95)) }
    }

    /// Compares the free space with `min_free`. A file system that can't hold that much, or reports no size,
    /// exceeds no limit.
    pub(crate) fn free_excess(&self, space: FreeSpace) -> Excess {
        let Some(limit) = self.min_free else { return Excess::default() };
        let limit = limit.bytes(space.total);
        if limit > space.total {
            return Excess::default();
        }
        let target = share(limit, 105).min(space.total);
        Excess { is_over: space.free < limit, bytes: target.saturating_sub(space.free) }
    }

    /// Returns whether a file system is too small for `min_free`.
    pub(crate) fn is_too_large_for(&self, space: FreeSpace) -> bool {
        self.min_free.is_some_and(|limit| limit.bytes(space.total) > space.total)
    }
}

/// For which limits an eviction has begun and not ended: for the size, and for the free space.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Evicting([bool; 2]);

impl Evicting {
    /// Begins and ends evictions, and returns how many bytes to evict now. No eviction ends while deletions are under way
    /// (`is_leaving`), because they may fail.
    pub(crate) fn needed(&mut self, excesses: [Excess; 2], is_leaving: bool) -> u64 {
        let needed = self.0.iter_mut().zip(excesses).map(|(evicts, excess)| {
            *evicts = excess.is_over || *evicts && (excess.bytes > 0 || is_leaving);
            if *evicts { excess.bytes } else { 0 }
        });
        needed.max().unwrap_or(0)
    }

    /// Returns whether something has to go now.
    pub(crate) fn is_needed(self, excesses: [Excess; 2]) -> bool {
        let is_needed =
            |(evicts, excess): (bool, Excess)| excess.is_over || evicts && excess.bytes > 0;
        self.0.into_iter().zip(excesses).any(is_needed)
    }
}

/// Pairs that are too young to be evicted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Young {
    pub pairs: u64,
    pub bytes: u64,
}

/// A limit that is exceeded while nothing can be evicted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shortfall {
    /// What all complete, valid pairs take on disk.
    pub size: u64,
    pub space: Option<FreeSpace>,
    /// Pairs that are too young.
    pub young: Young,
    pub min_age: Duration,
}

fn share(of: u64, percent: u64) -> u64 {
    let share = u128::from(of) * u128::from(percent) / 100;
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// What a pair takes on disk, and when its result was last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskSize {
    /// The blocks of both files; zero if the result has another link, since its removal frees nothing.
    pub blocks: u32,
    pub ctime: FileTime,
}

impl DiskSize {
    pub(crate) fn of(result: &FileState, metadata_blocks: u32) -> Self {
        let blocks =
            if result.is_linked() { 0 } else { result.blocks.saturating_add(metadata_blocks) };
        Self { blocks, ctime: result.ctime }
    }

    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.blocks) * BLOCK
    }
}

/// A pair that was chosen to be evicted, in the state in which it was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub expires_at: DateTime<Utc>,
    /// How old the result has to be.
    pub min_age: Duration,
    /// The ctime of the result if that lies in the future, but was first seen long enough ago.
    pub future: Option<FileTime>,
}

impl Chosen {
    /// Returns whether a pair that is not due can be evicted now. Its result may be half published, as that of a due pair.
    pub(crate) fn is_evictable(&self, pair: &Pair, now: DateTime<Utc>) -> bool {
        let is_settled = !pair.may_be_half_published() || pair.result.settles_in(now).is_zero();
        pair.expires_at == self.expires_at
            && pair.disk_size().blocks > 0
            && self.is_old_enough(&pair.result, now)
            && (is_settled || self.future == Some(pair.result.ctime))
    }

    /// Returns whether the result is old enough.
    pub(crate) fn is_old_enough(&self, result: &FileState, now: DateTime<Utc>) -> bool {
        match result.age(now) {
            Some(age) => age >= self.min_age,
            None => self.future == Some(result.ctime),
        }
    }
}

/// Compares two pairs by `expires_at`, directory and stem: the one that is evicted first is the least. The names break
/// ties, so that several cleaners choose the same pairs.
pub(crate) fn eviction_order(
    a: (DateTime<Utc>, &Path, &Stem),
    b: (DateTime<Utc>, &Path, &Stem),
) -> Ordering {
    let by_dir = || a.1.as_os_str().cmp(b.1.as_os_str());
    let by_stem = || a.2.bytes().cmp(&b.2.bytes());
    a.0.cmp(&b.0).then_with(by_dir).then_with(by_stem)
}

/// Returns the first second at which a result that was changed in the second `since` is older than `min_age`.
pub(crate) fn evictable_from(since: u32, min_age: Duration) -> Option<DateTime<Utc>> {
    // The fraction of the second is not known.
    let since = DateTime::from_timestamp(i64::from(since) + 1, 0)?;
    since.checked_add_signed(TimeDelta::from_std(min_age).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_documented() {
        for (text, expected) in [
            ("1", 1),
            ("500M", 500 << 20),
            ("500m", 500 << 20),
            ("1K", 1024),
            ("1KiB", 1024),
            ("1Ki", 1024),
            ("1KB", 1000),
            ("20GiB", 20 << 30),
            ("20 GiB", 20 << 30),
            ("3G", 3 << 30),
            ("2T", 2 << 40),
            ("1.5TB", 1_500_000_000_000),
            ("1.5G", 3 << 29),
            ("10B", 10),
            ("99999999999999999999T", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(expected), "{text}");
        }
        for wrong in ["", "0", "0G", "-1", "G", "1X", "1.2.3G", "10%", "1e9"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_one_to_ninety_percent() {
        assert_eq!("25%".parse(), Ok(MinFree::Percent(25)));
        assert_eq!("16M".parse(), Ok(MinFree::Bytes(16 << 20)));
        for wrong in ["0%", "91%", "100%", "-5%", "5.5%", "%", "300%"] {
            assert!(wrong.parse::<MinFree>().is_err(), "{wrong}");
        }
        assert_eq!(MinFree::Percent(25).bytes(64 << 20), 16 << 20);
    }

    #[test]
    fn an_eviction_goes_on_to_below_the_limit() {
        let budget = Budget {
            max_size: Some(1000),
            min_free: Some(MinFree::Bytes(1000)),
            min_age: Duration::ZERO,
        };
        let excess = |is_over, bytes| Excess { is_over, bytes };
        assert_eq!(budget.size_excess(1001), excess(true, 51));
        assert_eq!(budget.size_excess(1000), excess(false, 50));
        assert_eq!(budget.size_excess(950), excess(false, 0));
        let free = |free, total| budget.free_excess(FreeSpace { free, total });
        assert_eq!(free(999, 10_000), excess(true, 51));
        assert_eq!(free(1000, 10_000), excess(false, 50));
        assert_eq!(free(1050, 10_000), excess(false, 0));
        assert_eq!(free(10, 1010), excess(true, 1000), "the target is at most the whole");
        assert_eq!(free(0, 999), excess(false, 0), "it can't hold that much");
        assert_eq!(free(0, 0), excess(false, 0), "it reports no size");
        let unlimited = Budget { max_size: None, min_free: None, ..budget };
        assert_eq!(unlimited.size_excess(u64::MAX), excess(false, 0));
    }
}
