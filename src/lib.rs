//! Deletes expired cached results the moment they expire.
//!
//! A result is a pair of files, `X.result.json.lz4` and `X.metadata.json`. The metadata says when the
//! result expires. A [`Cleaner`] watches a directory of such pairs and deletes each pair within
//! milliseconds of its `expires_at`:
//!
//! ```
//! use result_cleaner::{Cleaner, Config};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), result_cleaner::Error> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let cache_dir = dir.path();
//! let config = Config::new(cache_dir).without_metrics(); // or "~/.omnimemory/cached_results"
//! let cleaner = Cleaner::spawn(config).await?;
//! println!("next expiry: {:?}", cleaner.get_stats().next_expiry);
//! cleaner.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! The settings are in [`Config`]. [`Cleaner::subscribe`] reports what happens, [`Cleaner::handle`] returns a [`Handle`] for
//! other parts of an application, and [`sweep_once`], [`list`], [`explain`] and [`diagnose`] need no running cleaner.
//!
//! # Features
//! | feature | adds |
//! | --- | --- |
//! | none | the cleaner, sweeps, listings, checks: 56 crates, 47 s |
//! | `report` | reports to the metrics service, and `fetch_stats`: 120 crates, 81 s |
//! | `server` | the module `server`: the page, `/stats` and `/metrics` over HTTP: 73 crates, 52 s |
//! | `cli` (default) | the command; includes both: 167 crates, 90 s |
//!
//! Crates are counted with this one; the build is a clean one without optimization, in seconds of processor time.
//! An application that only deletes uses `default-features = false`.
//!
//! # How it works
//! One full scan fills a min-heap keyed on `expires_at`. Kernel events keep the heap current. A timer
//! takes the pairs that are due from the heap. A full sweep every 6 hours reconciles heap and disk, so
//! that the outcome equals that of a program that polls.
//!
//! Rules that hold everywhere in this crate:
//! - Only the worker's task changes the heap, so the heap needs no lock.
//! - An event is only a hint to inspect a name again; the disk is the truth. The cleaner reads the
//!   metadata again right before a deletion. Nothing read from the metadata ever chooses a path.
//! - The cleaner sets a directory's watch before it lists the directory. The first scan is the first
//!   sweep.
//! - No event, file or network error ends the worker.
//! - On the command line, Landlock confines each thread that deletes to the cache directory.
//! - The cleaner removes orphans (halves without the other half) and empty directories only where the
//!   configuration asks for it, and only after two inspections found them unchanged.
//! - A pair that has not expired is deleted only where the configuration has a disk budget
//!   ([`Config::max_size`], [`Config::min_free`]), with the same checks.
//! - The source is divided into rooms: folders of `src` that use each other in one direction.
//!   `tests/tidy.rs` holds the table. Only `remove` renames and unlinks, only `watch` names notify, and
//!   only `sys::clock` reads the wall clock to decide what is due.
//!
//! # Known limitations
//! - A writer has to publish the metadata within a second of its result. A longer pause, or a clock step
//!   between the two, can let old metadata judge a new result.
//! - Metadata that is extended after its `expires_at` has passed may come too late.
//! - If the cache directory itself is moved during a deletion, pairs that were claimed by then are deleted at their
//!   new place: those of the last milliseconds.
//! - If a cleaner is killed between its two `unlink`s of a pair that it could not claim, the metadata stays.
//! - Some files can't be renamed to a reserved name: the file's own name is near 255 bytes long, the
//!   file system does not support `renameat2` flags, or the disk is full. A writer that publishes such a
//!   file again between the last check and the `unlink`, some microseconds, loses it.
//! - A writer may rewrite a file in place instead of renaming a new one over it. The cleaner keeps
//!   a claimed result for 2 ms before it unlinks it. If `open(2)` blocks the writer for longer than that, it may
//!   write to a deleted file. The same happens if it opens a file before its expiry and changes it only
//!   after.
//! - The kernel does not report changes through a hard link elsewhere, a memory map or another host.
//!   Only the next sweep sees them; an extension is always seen.
//! - If the clock is wrong by years when the cleaner starts, everything is due.
//! - If thousands of directories are removed at once, notify's thread is busy for some seconds. Another
//!   reader replaces it.
//! - If a directory is renamed many times per second, its name may not last for as long as a deletion
//!   takes. The cleaner deletes the pairs in it once the renaming stops.
//! - If a directory has more events than can be read, the cleaner lists it every second instead of
//!   watching it.
//! - Directories whose paths below the cache directory are longer than 1,024 bytes are not watched,
//!   because a watch costs more the longer its path is. They are swept every
//!   [`Config::fallback_interval`] instead.
//! - With [`Config::prune_empty_dirs`], a writer gets an error if it creates a file in an old empty
//!   directory at the instant at which the cleaner removes the directory. A writer that has just created
//!   the directory does not.
//! - If a program keeps an exclusive lock (`flock`) on a directory, the cleaner can't delete the files
//!   in it.

#![cfg_attr(docsrs, feature(doc_cfg))]
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

/// Compiles and runs the examples in the README, like those in this crate.
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

pub use cleaner::{Cleaner, Handle};
pub use config::{
    Config, DEFAULT_CACHE_DIR, DEFAULT_METRICS_URL, MIN_ORPHAN_AGE, MinFree, ResultStore,
};
pub use error::Error;
pub use oneshot::doctor::{Check, CheckStatus, diagnose};
pub use oneshot::explain::{Condition, Explanation, Fate, explain};
pub use oneshot::list::{ListedOrphan, ListedPair, OrphanKind, list, list_orphans};
pub use oneshot::options::{Progress, SweepOptions};
pub use oneshot::sweep::{sweep_dry_run, sweep_once, sweep_with};
pub use pair::reason::{Reason, SystemError};
pub use telemetry::events::{Event, Events};
#[cfg(feature = "report")]
pub use telemetry::http_client::fetch_stats;
pub use telemetry::stats::{
    EvictionReport, ExpiryBucket, FreedSpan, LastSweep, OrphanReport, Recent, RecentError, Stats,
    SweepReport, WatchState,
};

/// The forms in which the command line reads values and shows paths, for programs that do the same.
pub mod text {
    pub use crate::config::{expand_home, parse_duration, parse_size};
    pub use crate::display::display_path;
}
