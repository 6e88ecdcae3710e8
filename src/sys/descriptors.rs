//! The limit of files that this process may have open, and shares of it.

use rustix::process::{Resource, getrlimit};

/// Returns how many files this process may have open; `None` if the number is not limited.
pub(crate) fn open_file_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Returns how many files may be open for one purpose: the limit of open files divided by `divisor`, but
/// at most `max` and at least one.
pub(crate) fn share_of_open_files(divisor: u64, max: usize) -> usize {
    let limit = open_file_limit().unwrap_or(u64::MAX);
    usize::try_from(limit / divisor).unwrap_or(usize::MAX).clamp(1, max)
}
