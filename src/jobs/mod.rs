//! Blocking work on threads: pairs to delete, scans, orphans.

pub(crate) mod context;
pub(crate) mod orphans;
pub(crate) mod pairs;
mod recoveries;
pub(crate) mod scan;
pub(crate) mod throttle;
