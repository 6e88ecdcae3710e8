//! Turns the kernel's events into changes for the worker. The only room that names notify.
//!
//! Each directory has a watch of its own, which a scan sets right before it lists the directory. The
//! listing shows what appears before the listing, and events show what appears after it. (One recursive
//! watch would lose files that are created in a new directory before its own watch is set.)
//!
//! # How it copes with notify
//! notify's thread answers requests only when it has emptied the kernel's queue. Under a flood of events
//! that never happens. So:
//! - One thread, the registrar, asks notify for watches. A caller that waits for the registrar gives up when
//!   the reader has lost events, or makes no progress.
//! - The registrar asks for watches one by one. (`update_paths` would be several times as fast, but it
//!   empties the queue into an unbounded buffer before it returns.)
//! - A reader that has lost events is replaced. The directories with most of the events are not watched
//!   again until they calm down ([`floods`]). The thread of the old reader sleeps ([`reader`]).
//!
//! notify does not report whether a renamed file is a directory, so the translation looks it up.
//!
//! When a watched directory is renamed, notify may drop its watch and those of all directories below it, or keep
//! them: it depends on which of its own parent and itself has a watch. It then takes other directories that get
//! those names for watched, and sets no watch. So each directory that is forgotten is unwatched
//! ([`directories`]), and [`Watcher::drop_stale`] does that for those that were moved before the next scan. If
//! the events of renames were lost, a new watcher has to be started.
//!
//! notify compares each directory that is removed with all that it watches. 5,000 removals at once keep its
//! thread busy for seconds, so its reader is replaced as if events had been lost.

pub(crate) mod backpressure;
mod directories;
pub(crate) mod floods;
pub(crate) mod inbox;
pub(crate) mod limits;
mod mount_points;
mod reader;
mod translate;
mod watcher;

#[cfg(any(fuzzing, test))]
pub(crate) use self::directories::KnownDirectories;
#[cfg(any(fuzzing, test))]
pub(crate) use self::translate::Translator;
pub(crate) use self::watcher::{Watcher, delivers_event};
