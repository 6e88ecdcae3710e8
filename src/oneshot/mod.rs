//! Operations that run once, without a service: sweeps, listings, explanations, checks.

pub(crate) mod doctor;
mod evict;
pub(crate) mod explain;
pub(crate) mod list;
mod obstacles;
pub(crate) mod options;
pub(crate) mod sweep;
mod verdicts;
