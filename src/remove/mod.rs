//! Deletes pairs and orphans. The only room that renames or unlinks.
//!
//! Linux has no "unlink this name if it still is that file". Between a check and an `unlink`, a writer
//! could publish the same names anew, and its new files would be lost. Therefore the cleaner first *claims*
//! each half: it renames it to a reserved name beside it, which no writer touches. It then compares the
//! claimed file with the one that was judged, and restores it if it differs.
//!
//! A writer that truncates a file in place may have looked its name up just before the claim, and truncate
//! it just after. So the cleaner *holds* the result for an instant before it unlinks it. The metadata needs
//! no hold time: a writer that publishes a pair anew begins with the result. The result's name is free by
//! then, so the cleaner notices the new file.
//!
//! ```text
//! claim result ─ same file? ─ read metadata again ─ still due? ─ hold ─ published anew? ─┐
//!           no: restore ┘              no: restore ┘            yes: unlink the old one ┘ │
//!                                                                                         │
//!         unlink both ─ published anew? ─ same files still? ─ claim metadata ─────────────┘
//!             yes: restore ┘                 no: restore ┘
//! ```
//!
//! All cleaners use one reserved name for one half, and a claim replaces nothing. So a pair has one claimant
//! at a time. A restored file is never newer than the one that a writer has published meanwhile, nor older
//! than the one that another cleaner has claimed.
//!
//! A claim outlives its owner if that is killed. A cleaner with claims in a directory keeps a shared lock on
//! it. [`recover`] takes an exclusive lock, so it never touches the claims of a living cleaner. (A lock needs
//! no file of its own, ends with its process, and works across containers.) While another program keeps an
//! exclusive lock on a directory, nothing in it is deleted.

mod claim;
mod lock;
mod orphan;
mod pair;
mod probe_file;
mod recovery;
pub(crate) mod sandbox;

pub(crate) use self::claim::restore;
pub(crate) use self::lock::LockPatience;
pub(crate) use self::orphan::{Orphan, prune, remove_orphans};
pub(crate) use self::pair::{Buffers, ClaimedPair, DuePair, Removal, remove};
pub(crate) use self::probe_file::{ProbeFile, probe_file_name};
pub(crate) use self::recovery::{Finished, Recovery, recover};
