//! Deleting. The only room that renames or unlinks.
//!
//! Linux has no "unlink this name if it still is that file", so between a look and an `unlink` a
//! writer could publish the same names anew, and lose what it published. Therefore each half is
//! first *claimed*: renamed to a reserved name beside it, where no writer will touch it. What was
//! claimed is compared with what was judged, and put back if it is something else.
//!
//! A writer that truncates a file in place may have looked its name up just before it was claimed,
//! and truncate it just after. So the result is *held* for an instant before it is unlinked. (The
//! metadata need not be: who publishes a pair anew begins with the result, whose name is free by
//! then, so that it is noticed.)
//!
//! ```text
//! claim result ─ same file? ─ read metadata again ─ still due? ─ hold ─ published anew? ─┐
//!       no: put it back ┘          no: put it back ┘            yes: unlink the old one ┘ │
//!                                                                                         │
//!         unlink both ─ published anew? ─ same files still? ─ claim metadata ─────────────┘
//!            yes: put back ┘                no: put back ┘
//! ```
//!
//! All cleaners use one reserved name for one half, and a claim replaces nothing. So there is one
//! claimant of a pair at a time, and what it gives back is never newer than what a writer has put
//! in its place meanwhile, nor older than what another cleaner holds.
//!
//! A claim outlives its owner if that is killed. Whoever holds claims in a directory holds a shared
//! lock on it, so that [`recover`], which takes an exclusive one, never touches the claims of the
//! living. (A lock needs no file of its own, ends with its process, and is seen across containers.)
//! Another program that keeps an exclusive lock on a directory keeps what is in it from deletion.

mod claim;
mod lock;
mod orphan;
mod pair;
mod probe_file;
mod recovery;
pub(crate) mod sandbox;

pub(crate) use self::claim::restore;
pub(crate) use self::orphan::{Orphan, prune, remove_orphans};
pub(crate) use self::pair::{Buffers, ClaimedPair, DuePair, Removal, remove};
pub(crate) use self::probe_file::{ProbeFile, probe_file_name};
pub(crate) use self::recovery::{Recovery, recover};
