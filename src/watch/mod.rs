//! Events of the kernel, as changes for the worker. The only room that names notify.
//!
//! Each directory has a watch of its own, which a scan sets right before it lists the directory:
//! the listing shows what appears before it, and events show what appears after it. (One recursive
//! watch would lose what is put into a new directory before its own watch stands.)
//!
//! # How it copes with notify
//! notify's thread answers requests only when it has emptied the kernel's queue, and under a flood of
//! events it never has. So:
//! - One thread, the registrar, asks notify for watches. Whoever waits for it gives up when the
//!   reader has lost events, or makes no progress.
//! - Watches are asked for one by one. (`update_paths` would be several times as fast, but it empties
//!   the queue into a buffer without a bound before it returns.)
//! - A reader that has lost events is replaced, and the directories with most of them are not watched
//!   again until they calm down ([`floods`]). What is left of the old reader sleeps
//!   ([`reader`]).
//!
//! It does not report whether what was renamed is a directory, so the translation looks it up. It drops
//! the watches of a directory that was renamed by itself, and of all below it; but below one that it
//! does not know at that moment it keeps them, and takes what bears their names later for watched.
//! A scan may set such watches while directories are being renamed, so [`Watcher::drop_stale`]
//! ends them before the next one. Where the events of renames were lost, a new watcher has to be
//! started. It compares each directory that is removed with all that it watches: 5,000 at once keep
//! its thread busy for seconds, so that its reader is replaced as if events had been lost.

pub(crate) mod backpressure;
mod directories;
pub(crate) mod floods;
pub(crate) mod inbox;
pub(crate) mod limits;
mod reader;
mod translate;
mod watcher;

#[cfg(any(fuzzing, test))]
pub(crate) use self::directories::Watched;
#[cfg(any(fuzzing, test))]
pub(crate) use self::translate::Translator;
pub(crate) use self::watcher::{Answers, Watcher, delivers_event};
