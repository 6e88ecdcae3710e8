//! The errors of the cleaner as a whole. A failure of a single file is never one of these: the cleaner
//! counts it, logs it and retries, and continues with everything else.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::display::display_path;

/// Why a cleaner could not be started, or why a request to it failed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use result_cleaner::{Cleaner, Config, Error};
/// # let file = tempfile::NamedTempFile::new().unwrap();
/// # let path = file.path();
/// match Cleaner::spawn(Config::new(path).without_metrics()).await {
///     Err(Error::NotADirectory { path }) => println!("{} is a file", path.display()),
///     Err(error) => println!("{error}"), // one line, that says what to do
///     Ok(_) => unreachable!("a file is no directory"),
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A function of this crate was polled outside of a tokio runtime.
    #[error(
        "no tokio runtime is running here: call this from within one (`#[tokio::main]`, or `Runtime::block_on`)"
    )]
    NoRuntime,
    /// The tokio runtime was built without a driver that the cleaner needs.
    #[error("the tokio runtime lacks its {driver} driver: build it with `Builder::enable_all()`")]
    NoDriver {
        /// The missing driver: `time` or `io`.
        driver: &'static str,
    },
    /// A duration in the configuration is below its minimum.
    #[error("{setting} is {value:?}, but must be at least {minimum:?}")]
    TooShort {
        /// The field of [`Config`](crate::Config).
        setting: &'static str,
        /// The value that was set.
        value: Duration,
        /// The least value that is allowed.
        minimum: Duration,
    },
    /// A limit in the configuration is out of its bounds.
    #[error("{setting} must be {reason}")]
    Limit {
        /// The field of [`Config`](crate::Config).
        setting: &'static str,
        /// What is allowed.
        reason: &'static str,
    },
    /// A path begins with `~`, and no home directory is known.
    #[error(
        "{} begins with ~, but no home directory is known: set HOME, or give the whole path", display_path(.path)
    )]
    NoHome {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The path of the cache directory is not a directory.
    #[error("{} is not a directory: give the directory that holds the cached results", display_path(.path))]
    NotADirectory {
        /// The cache directory as it was given.
        path: PathBuf,
    },
    /// The cache directory exists, but can't be read.
    #[error("can't read the cache directory {}: {source}", display_path(.path))]
    Unreadable {
        /// The cache directory as it was given.
        path: PathBuf,
        /// The error that the system reported.
        source: io::Error,
    },
    /// The address of the metrics service can't be used.
    #[error("metrics URL {url:?} {reason}")]
    MetricsUrl {
        /// The address as it was given.
        url: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The address of a running cleaner can't be used.
    #[error("address {url:?} {reason}")]
    Address {
        /// The address as it was given.
        url: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// No cleaner answers at an address.
    #[error("no cleaner answers at {url}: {reason}")]
    NoAnswer {
        /// The address, without what may be secret.
        url: String,
        /// What happened instead.
        reason: String,
    },
    /// The address to listen on can't be used.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address as it was given.
        address: std::net::SocketAddr,
        /// The error that the system reported, or advice for the usual causes.
        source: io::Error,
    },
    /// The cleaner has ended, so that it can't accept a request any more.
    #[error("the cleaner has stopped")]
    Stopped,
    /// A task of the cleaner panicked, which is a bug in it, or the runtime was shut down. Nothing is deleted any more.
    #[error("the cleaner failed: {message}")]
    Died {
        /// The panic's message.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        let error = Error::NotADirectory { path: "fi\nle".into() };
        assert!(!error.to_string().contains('\n'));
    }
}
