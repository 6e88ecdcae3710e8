//! Lists the pairs of a cache directory.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};

use super::sweep::{on_thread, scan};
use crate::config::Config;
use crate::disk::root::Root;
use crate::display::path_field;
use crate::error::Error;
use crate::jobs::context::JobContext;
use crate::pair::name::Half;
use crate::pair::outcome::{JobResult, Outcome};
use crate::sys::clock::Clock;

/// A pair that [`list`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedPair {
    /// The result's path.
    pub result: PathBuf,
    /// The size of both files, in bytes.
    pub bytes: u64,
    /// When the pair expires, or why its metadata is invalid.
    pub expires_at: Result<DateTime<Utc>, String>,
}

/// Lists the pairs: the earliest expiry first, those with invalid metadata last.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// for pair in result_cleaner::list(&result_cleaner::Config::new(dir.path())).await? {
///     match pair.expires_at {
///         Ok(at) => println!("{at} {}", pair.result.display()),
///         Err(reason) => println!("{}: {reason}", pair.result.display()),
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As for [`sweep_once`](crate::sweep_once).
pub async fn list(config: &Config) -> Result<Vec<ListedPair>, Error> {
    let context = JobContext::listing(Arc::new(Clock::default()), config);
    on_thread(config, move |root| list_blocking(root, &context)).await
}

fn list_blocking(root: &Root, context: &JobContext) -> Result<Vec<ListedPair>, Error> {
    let pairs = Mutex::new(Vec::new());
    let summary = scan(root, context, &|found| {
        let listed = found.others.into_iter().filter_map(|found| listed(root, found));
        pairs.lock().unwrap_or_else(PoisonError::into_inner).extend(listed);
    })?;
    for (path, error) in summary.unreadable {
        tracing::warn!(
            path = path_field(&root.path().join(path)),
            reason = error.to_string(),
            "can't read a directory"
        );
    }
    let mut pairs = pairs.into_inner().unwrap_or_else(PoisonError::into_inner);
    pairs.sort_by(|a: &ListedPair, b: &ListedPair| {
        match (&a.expires_at, &b.expires_at) {
            (Ok(a), Ok(b)) => a.cmp(b),
            (a, b) => a.is_err().cmp(&b.is_err()),
        }
        .then_with(|| a.result.cmp(&b.result))
    });
    Ok(pairs)
}

fn listed(root: &Root, found: JobResult) -> Option<ListedPair> {
    let (expires_at, bytes) = match found.outcome {
        Outcome::NotDue { expires_at, bytes, .. } => (Ok(expires_at), bytes.unwrap_or(0)),
        Outcome::Due { expires_at, bytes } | Outcome::Unsettled { expires_at, bytes, .. } => {
            (Ok(expires_at), bytes)
        }
        Outcome::Broken { reason, bytes, .. } => (Err(reason.to_string()), bytes),
        Outcome::Failed(failure) => (Err(failure.to_string()), 0),
        _ => return None,
    };
    let result = root.path().join(found.key.path(Half::Result));
    Some(ListedPair { result, bytes, expires_at })
}
