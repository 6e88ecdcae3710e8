//! Writes what the core reports to the log, and records its errors.

use crate::display::path_field;
use crate::pair::reason::{
    FILE_SYSTEM_TOO_SMALL, NO_FILE_SYSTEM_SIZE, Reason, WOULD_DELETE, WOULD_EVICT,
};
use crate::schedule::command::{CountedError, Notice};
use crate::watch::floods::FloodReport;

use super::Worker;

impl Worker {
    pub(super) fn report(&self, notice: Notice) {
        match notice {
            Notice::Error(path, error) => {
                let path = self.root_path().join(path);
                log_error(&path, &error);
                self.recorder.error(&path, error.reason(), self.clock.now());
            }
            // The log has it already: the state of the cache directory has changed.
            Notice::RootUnreadable(reason) => {
                let reason = Reason::CacheDirUnreadable(reason);
                self.recorder.error(&self.path, reason, self.clock.now());
            }
            Notice::Unwatched(count, refusal) => {
                let every = self.intervals.fallback;
                self.executor.log_unwatched(self.root_path(), count, every, &refusal);
            }
            Notice::WatchedAgain => tracing::info!("all directories are watched again"),
            Notice::WouldDelete { result, expires_at, evicts } => {
                let path = path_field(&self.root_path().join(result));
                let message = if evicts { WOULD_EVICT } else { WOULD_DELETE };
                tracing::info!(path, expires_at = expires_at.to_rfc3339(), "{message}");
            }
            Notice::SpaceUnknown(reason) => tracing::warn!(
                path = path_field(self.root_path()),
                reason,
                "can't read the free space of the file system, nothing is evicted for it until that is known"
            ),
            Notice::NoFileSystemSize => {
                tracing::warn!(path = path_field(self.root_path()), "{NO_FILE_SYSTEM_SIZE}")
            }
            Notice::MinFreeTooLarge(total) => tracing::error!(
                path = path_field(self.root_path()),
                file_system_bytes = total,
                "{FILE_SYSTEM_TOO_SMALL}"
            ),
            Notice::EvictionsPaused(pause) => tracing::warn!(
                path = path_field(self.root_path()),
                ?pause,
                "evictions free less than half of what they delete, pausing them for --min-free: deleted files are still open, in a snapshot, or have hard links"
            ),
            Notice::EvictionsTooSlow { size, space } => tracing::warn!(
                path = path_field(self.root_path()),
                size_bytes = size,
                free_bytes = space.map(|space| space.free),
                "results arrive faster than they can be evicted, the disk budget is exceeded"
            ),
        }
    }

    pub(super) fn log_floods(&self, report: &FloodReport) {
        for dir in &report.begun {
            tracing::warn!(
                path = path_field(&self.root_path().join(dir)),
                "directory flooded with events, listing it every second until it calms down"
            );
        }
        for dir in &report.ended {
            tracing::info!(
                path = path_field(&self.root_path().join(dir)),
                "flooded directory has calmed down, watching it again"
            );
        }
    }
}

fn log_error(path: &std::path::Path, error: &CountedError) {
    let (path, message) = (path_field(path), error.message());
    match error {
        CountedError::DirectoryUnreadable(error) | CountedError::NotRecovered(error) => {
            tracing::warn!(path, reason = error.to_string(), "{message}");
        }
        CountedError::ReservedNameInUse => tracing::warn!(path, "{message}"),
        CountedError::InvalidMetadata(reason) => {
            tracing::warn!(path, reason = reason.to_string(), "{message}")
        }
        CountedError::Failed { failure, is_first: true, .. } => tracing::warn!(path, "{failure}"),
        CountedError::Failed { failure, retry_in, .. } => {
            let retry_in = retry_in.map(tracing::field::debug);
            tracing::debug!(path, reason = failure.to_string(), retry_in, "{message}");
        }
    }
}
