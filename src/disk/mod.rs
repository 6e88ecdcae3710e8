//! Opens, lists and inspects the cache directory. Only reads.

pub(crate) mod filesystem;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod root;
pub(crate) mod survey;
