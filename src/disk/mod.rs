//! Opens, lists and inspects the cache directory. Only reads.

pub(crate) mod filesystem;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod occupancy;
pub(crate) mod root;
