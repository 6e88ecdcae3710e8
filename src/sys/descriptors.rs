//! Shares of the limit of files that this process may have open.

use rustix::process::{Resource, getrlimit};

/// Returns how many files may be open for one purpose: the system's limit of open files divided by
/// `parts`, but at most `most` and at least one.
pub(crate) fn share_of_open_files(parts: u64, most: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / parts).unwrap_or(usize::MAX).clamp(1, most)
}
