//! Cached results: the names of their two files, their metadata, and the outcomes of work on them.

pub(crate) mod change;
pub(crate) mod disk_budget;
pub(crate) mod expires_at;
pub(crate) mod metadata;
pub(crate) mod name;
pub(crate) mod outcome;
pub(crate) mod reason;
pub(crate) mod tally;
pub(crate) mod version;
