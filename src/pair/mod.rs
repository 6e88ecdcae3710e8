//! What a cached result is: the names of its two files, and what its metadata says.

pub(crate) mod change;
pub(crate) mod expires_at;
pub(crate) mod mark;
pub(crate) mod metadata;
pub(crate) mod name;
pub(crate) mod outcome;
pub(crate) mod tally;
pub(crate) mod version;
