//! Shares of the files that this process may have open.

use rustix::process::{Resource, getrlimit};

/// How many files may be open for one purpose: one in `parts` of what the system allows to be open,
/// but `most` at the most.
pub(crate) fn share_of_open_files(parts: u64, most: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / parts).unwrap_or(usize::MAX).clamp(1, most)
}
