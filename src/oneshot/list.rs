//! Lists the pairs and the orphans of a cache directory.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::evict::Candidates;
use super::sweep::{on_thread, scan, scan_into};
use crate::config::Config;
use crate::disk::root::{Root, is_not_ours};
use crate::display::path_field;
use crate::error::Error;
use crate::jobs::context::JobContext;
use crate::jobs::orphans;
use crate::pair::disk_budget::{Budget, DiskSize};
use crate::pair::name::{Half, PairKey};
use crate::pair::outcome::{JobResult, Outcome};
use crate::pair::reason::DIRECTORY_UNREADABLE;
use crate::sys::clock::Clock;

/// A pair that [`list`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedPair {
    /// The result's path.
    pub result: PathBuf,
    /// The size of both files, in bytes.
    pub bytes: u64,
    /// What both files take on disk, in bytes; `None` unless the configuration has a disk budget and the pair waits for
    /// its expiry.
    pub disk_bytes: Option<u64>,
    /// Whether the pair is beyond the disk budget: a sweep with the same configuration would evict it now.
    pub is_beyond_budget: bool,
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

/// A file without its other half; [`list_orphans`] returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedOrphan {
    /// The file's path.
    pub path: PathBuf,
    /// Its size, in bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: OrphanKind,
}

/// What an orphan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrphanKind {
    /// A result without metadata.
    Result,
    /// Metadata without a result.
    Metadata,
    /// A file that a writer has not renamed to the name of a result or of metadata (yet).
    Tmp,
}

/// Lists the orphans, of whatever age, in the order of their paths.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # std::fs::write(dir.path().join("a.result.json.lz4"), "data").unwrap();
/// use result_cleaner::{Config, OrphanKind, list_orphans};
/// let orphans = list_orphans(&Config::new(dir.path())).await?;
/// assert_eq!(orphans[0].kind, OrphanKind::Result);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As for [`sweep_once`](crate::sweep_once).
pub async fn list_orphans(config: &Config) -> Result<Vec<ListedOrphan>, Error> {
    let context = JobContext::listing_orphans(Arc::new(Clock::default()), config);
    on_thread(config, move |root| {
        let summary = scan(root, &context, &|_| {})?;
        warn_unreadable(root, summary.unreadable);
        let mut orphans = Vec::new();
        for dir in summary.orphans {
            let listed = orphans::list_orphans(root, &dir).unwrap_or_else(|error| {
                // A directory that was removed meanwhile has none.
                if !is_not_ours(&error) {
                    warn_unreadable(root, [((*dir).into(), error)]);
                }
                Vec::new()
            });
            for found in listed {
                let path = root.path().join(&*dir).join(OsStr::from_bytes(&found.name));
                let kind = match found.half {
                    _ if found.is_tmp => OrphanKind::Tmp,
                    Half::Result => OrphanKind::Result,
                    Half::Metadata => OrphanKind::Metadata,
                };
                orphans.push(ListedOrphan { path, bytes: found.seen.version.size, kind });
            }
        }
        orphans.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(orphans)
    })
    .await
}

fn list_blocking(root: &Root, context: &JobContext) -> Result<Vec<ListedPair>, Error> {
    let into = (Vec::new(), Candidates::default());
    let (summary, (mut pairs, candidates)) =
        scan_into(root, context, into, |(pairs, candidates), batch| {
            for found in batch.others {
                candidates.add_outcome(&found.key, &found.outcome);
                pairs.extend(listed(root, found));
            }
        })?;
    warn_unreadable(root, summary.unreadable);
    if let Some(budget) = context.budget() {
        mark_beyond_budget(&mut pairs, root, context, budget, &candidates)?;
    }
    pairs.sort_by(|a: &ListedPair, b: &ListedPair| {
        match (&a.expires_at, &b.expires_at) {
            (Ok(a), Ok(b)) => a.cmp(b),
            (a, b) => a.is_err().cmp(&b.is_err()),
        }
        .then_with(|| a.result.cmp(&b.result))
    });
    Ok(pairs)
}

/// Logs the directories that could not be read.
fn warn_unreadable(root: &Root, dirs: impl IntoIterator<Item = (Arc<Path>, std::io::Error)>) {
    for (dir, error) in dirs {
        tracing::warn!(
            path = path_field(&root.path().join(dir)),
            reason = error.to_string(),
            "{DIRECTORY_UNREADABLE}"
        );
    }
}

/// Marks the pairs that a sweep would evict.
fn mark_beyond_budget(
    pairs: &mut [ListedPair],
    root: &Root,
    context: &JobContext,
    budget: &Budget,
    candidates: &Candidates,
) -> Result<(), Error> {
    let now = context.clock().wall();
    let (in_order, _) = candidates.in_order(budget, now);
    let unreadable = |source| Error::Unreadable { path: root.path().to_owned(), source };
    let beyond = candidates.beyond(budget, root, &in_order).map_err(unreadable)?;
    let path = |key: &PairKey| root.path().join(key.path(Half::Result));
    let evicted: HashSet<PathBuf> =
        in_order[..beyond.count].iter().map(|candidate| path(&candidate.key)).collect();
    for pair in pairs {
        pair.is_beyond_budget = evicted.contains(&pair.result);
    }
    Ok(())
}

fn listed(root: &Root, found: JobResult) -> Option<ListedPair> {
    let disk_bytes = match &found.outcome {
        Outcome::NotDue { size, .. } => size.map(DiskSize::bytes),
        _ => None,
    };
    let (expires_at, bytes) = match found.outcome {
        Outcome::NotDue { expires_at, bytes, .. } => (Ok(expires_at), bytes.unwrap_or(0)),
        Outcome::Due { expires_at, bytes, .. } | Outcome::Unsettled { expires_at, bytes, .. } => {
            (Ok(expires_at), bytes)
        }
        Outcome::Broken { reason, bytes, .. } => (Err(reason.to_string()), bytes),
        Outcome::Failed(failure) => (Err(failure.to_string()), 0),
        _ => return None,
    };
    let result = root.path().join(found.key.path(Half::Result));
    Some(ListedPair { result, bytes, disk_bytes, is_beyond_budget: false, expires_at })
}
