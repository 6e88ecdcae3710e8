//! Deletes expired cached results the moment they expire.
//!
//! A result is a pair of files, `X.result.json.lz4` and `X.metadata.json`, whose metadata says
//! when it may go. A [`Cleaner`] watches a directory of them and deletes each pair within
//! milliseconds of its `expires_at`:
//!
//! ```
//! use result_cleaner::{Cleaner, Config};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), result_cleaner::Error> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let cache_dir = dir.path();
//! let config = Config::new(cache_dir).with_metrics_url(None); // or "~/.omnimemory/cached_results"
//! let cleaner = Cleaner::spawn(config).await?;
//! println!("next expiry: {:?}", cleaner.get_stats().next_expiry);
//! cleaner.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//! One full scan fills a min-heap keyed on `expires_at`; events of the kernel keep it current; a
//! timer takes from it what is due; a full sweep every 6 hours reconciles heap and disk, so that
//! the outcome equals that of a program that polls.
//!
//! What holds everywhere in here:
//! - Only the worker changes the heap; there is no lock around it. It applies pending changes before it starts
//!   deletions.
//! - Events are hints to inspect a name again; the disk is the truth. The metadata is read again right before a
//!   deletion. Nothing read from it ever chooses a path.
//! - A directory's watch is set before the directory is listed; the first scan is the first sweep.
//! - No event, file or network error ends the worker.
//! - On the command line, Landlock confines each thread that deletes to the cache directory.
//! - Orphans (halves without the other one) and empty directories are removed only where the configuration asks for
//!   it, and only after two inspections found them unchanged.
//! - The source is divided into rooms, folders of `src`, that use each other in one direction; `tests/tidy.rs` holds
//!   the table. Only `remove` renames and unlinks, only `watch` names notify, and only `sys::clock` reads clocks.
//!
//! # Known limits
//! - A writer has to publish the metadata within a second of its result. A longer pause, or a
//!   clock step between the two, can let old metadata judge a new result.
//! - Metadata that is extended after its `expires_at` has passed may come too late.
//! - Where a file can't be renamed to a reserved name (its own is near 255 bytes long, the file
//!   system knows no `renameat2` flags, the disk is full), a writer that publishes it anew between
//!   the last look and the `unlink`, some microseconds, loses it.
//! - A writer that rewrites files in place, instead of renaming new ones over them, may write to a
//!   file that is gone, if it is held up in `open(2)` for longer than the 2 ms for which a result is
//!   held before it is unlinked, or opens a file before its expiry and changes it only after.
//! - Changes through a hard link elsewhere, a memory map or another host are seen by the next
//!   sweep only; an extension is always seen.
//! - A clock that is wrong by years when the cleaner starts makes everything due.
//! - Directories that are removed by the thousands at once keep notify's thread busy for some seconds;
//!   another reader takes its place.
//! - A directory that is renamed again and again, many times a second, may not keep its name for as long
//!   as a deletion takes. Pairs in it are deleted once it rests.
//! - A directory in which more happens than can be read is listed every second instead of watched.
//! - Directories whose paths below the cache directory are longer than 1,024 bytes are not watched,
//!   but swept every [`Config::fallback_interval`]: a watch costs the more, the longer its path is.
//! - With [`Config::prune_empty_dirs`], a writer that makes a file in an old empty directory in the very
//!   instant in which that is removed gets an error; one that has just made the directory does not.
//! - A program that keeps an exclusive lock (`flock`) on a directory keeps what is in it from being
//!   deleted.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::print_stderr,
        clippy::print_stdout,
        unreachable_pub,
        reason = "tests make and remove files, print figures, and share helpers"
    )
)]

/// The examples in the README are tested like those here.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod cleaner;
mod config;
mod disk;
mod display;
mod error;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod jobs;
mod oneshot;
mod pair;
mod remove;
mod schedule;
#[cfg(feature = "server")]
pub mod server;
mod sys;
mod telemetry;
#[cfg(test)]
#[path = "../tests/common/trial.rs"]
mod trial;
mod watch;
mod worker;

pub use cleaner::{Cleaner, Observer};
pub use config::{
    Config, DEFAULT_CACHE_DIR, DEFAULT_METRICS_URL, MIN_ORPHAN_AGE, ResultStore, expand_home,
};
pub use display::display_path;
pub use error::Error;
pub use oneshot::doctor::{Check, CheckStatus, diagnose};
pub use oneshot::explain::{Condition, Explanation, Fate, explain};
pub use oneshot::sweep::{
    ListedPair, Progress, list, sweep_dry_run, sweep_once, sweep_with_progress,
};
pub use telemetry::events::{Event, Events};
#[cfg(feature = "report")]
pub use telemetry::http_client::fetch_stats;
pub use telemetry::stats::{
    ExpiryBucket, FreedSpan, LastSweep, OrphanReport, Recent, RecentError, Stats, SweepReport,
    WatchState,
};
