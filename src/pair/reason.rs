//! Why something is not deleted for now.

use std::fmt;
use std::io;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) const INVALID_METADATA: &str = "invalid metadata, result kept";
pub(crate) const DIRECTORY_UNREADABLE: &str = "can't read a directory, results kept";
pub(crate) const NOT_RECOVERED: &str = "can't recover an interrupted deletion";
pub(crate) const WOULD_DELETE: &str = "would delete";
pub(crate) const WOULD_EVICT: &str = "would evict";
pub(crate) const NO_FILE_SYSTEM_SIZE: &str =
    "the file system reports no size, nothing is evicted for its free space (--min-free)";
pub(crate) const FILE_SYSTEM_TOO_SMALL: &str = "the file system is smaller than what has to stay free, nothing is evicted for it: lower --min-free";
pub(crate) const NAME_IN_USE: &str = "can't delete the result: the reserved name stays in use";

/// Why something is not deleted for now. Displayed as one line, which says what happens next where that is not clear.
/// The JSON is that line.
///
/// ```
/// use std::io::ErrorKind;
/// use result_cleaner::Reason;
/// let advise = |reason: &Reason| match reason {
///     Reason::InvalidMetadata(_) => "repair the program that writes it",
///     Reason::CouldNotDelete { error, .. } if error.kind() == ErrorKind::PermissionDenied => {
///         "give this user permission to write to the directory"
///     }
///     Reason::HalfPublished | Reason::Changed | Reason::ClaimedElsewhere => "wait a second",
///     _ => "read the line",
/// };
/// let reason = Reason::InvalidMetadata("expires_at is missing".to_owned());
/// assert_eq!(reason.to_string(), "invalid metadata, result kept: expires_at is missing");
/// assert_eq!(advise(&reason), "repair the program that writes it");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The metadata is invalid, so that the result is kept. Contains what is wrong with it, in one line.
    #[error("{INVALID_METADATA}: {0}")]
    InvalidMetadata(String),
    /// The metadata can't be read, so that the result is kept.
    #[error("{INVALID_METADATA}: can't be read: {0}")]
    MetadataUnreadable(SystemError),
    /// The directory can't be read, so that all in it is kept.
    #[error("{DIRECTORY_UNREADABLE}: {0}")]
    DirectoryUnreadable(SystemError),
    /// The cache directory can't be read; retried every second.
    #[error(transparent)]
    CacheDirUnreadable(SystemError),
    /// An operation on a pair, a directory or an orphan has failed. The cleaner retries it with growing pauses.
    #[error("can't {action}: {error}")]
    CouldNotDelete {
        /// The operation, such as `delete the result` or `inspect the pair`.
        action: &'static str,
        /// Why it has failed.
        error: SystemError,
    },
    /// Another cleaner has kept its claim of the result for half a minute, or it died and its claim can't be recovered.
    #[error("{NAME_IN_USE}")]
    ReservedNameInUse,
    /// A deletion that was interrupted can be neither finished nor undone for now.
    #[error("{NOT_RECOVERED}: {0}")]
    NotRecovered(SystemError),
    /// The result is newer than its metadata, so new metadata may follow.
    #[error(
        "the result is newer than its metadata and may be half published: retried once it has been unchanged for a second"
    )]
    HalfPublished,
    /// The pair changed while it was being deleted.
    #[error("the pair changed while it was being deleted: retried soon")]
    Changed,
    /// Another cleaner is about to delete it.
    #[error("another cleaner has claimed it: retried soon")]
    ClaimedElsewhere,
    /// A reason of which only the line is known, since it was read from JSON.
    #[error("{0}")]
    Other(String),
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reason {
    /// Reads the line, which says nothing of the kind.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::Other)
    }
}

/// An error of the system, which can be cloned and compared, in contrast to [`io::Error`]. Displayed as that one is.
///
/// ```
/// use std::io;
/// let error = result_cleaner::SystemError::from(io::Error::from_raw_os_error(13));
/// assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
/// assert_eq!(error.to_string(), "Permission denied (os error 13)");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemError {
    kind: io::ErrorKind,
    line: String,
}

impl SystemError {
    /// An error that is displayed as `line` instead of in the system's words.
    pub(super) fn in_words(kind: io::ErrorKind, line: &str) -> Self {
        Self { kind, line: line.to_owned() }
    }

    /// Returns what kind of error it is.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.kind
    }
}

impl From<&io::Error> for SystemError {
    fn from(error: &io::Error) -> Self {
        Self { kind: error.kind(), line: error.to_string() }
    }
}

impl From<io::Error> for SystemError {
    fn from(error: io::Error) -> Self {
        Self::from(&error)
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for SystemError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::outcome::Failure;
    use crate::pair::tally::ErrorKind;

    #[test]
    fn each_kind_is_one_line_in_its_own_words() {
        let denied = || SystemError::from(io::Error::from_raw_os_error(13));
        let failed = |error: io::Error| {
            Reason::from(Failure::new(ErrorKind::Deletion, "delete the result", &error))
        };
        let lines = [
            (
                Reason::MetadataUnreadable(denied()),
                "invalid metadata, result kept: can't be read: Permission denied (os error 13)",
            ),
            (
                Reason::DirectoryUnreadable(denied()),
                "can't read a directory, results kept: Permission denied (os error 13)",
            ),
            (Reason::CacheDirUnreadable(denied()), "Permission denied (os error 13)"),
            (
                Reason::NotRecovered(denied()),
                "can't recover an interrupted deletion: Permission denied (os error 13)",
            ),
            (Reason::ReservedNameInUse, "can't delete the result: the reserved name stays in use"),
            (
                failed(io::Error::from_raw_os_error(13)),
                "can't delete the result: Permission denied (os error 13)",
            ),
            (
                failed(io::Error::from_raw_os_error(17)),
                "can't delete the result: another file has the reserved name",
            ),
            (
                failed(io::Error::other("locked")),
                "can't delete the result: another program has locked the directory",
            ),
            (Reason::ClaimedElsewhere, "another cleaner has claimed it: retried soon"),
        ];
        for (reason, line) in lines {
            assert_eq!(reason.to_string(), line, "{reason:?}");
        }
        let Reason::CouldNotDelete { action, error } = failed(io::Error::from_raw_os_error(30))
        else {
            panic!("a failure is a deletion that failed")
        };
        assert_eq!(
            (action, error.kind()),
            ("delete the result", io::ErrorKind::ReadOnlyFilesystem)
        );
    }
}
