//! The service: whatever drives `result-cleaner run`.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test ends where something unexpected happens, and prints its figures"
)]
#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;

mod arrival;
// Named so that its tests begin early: they take long, one after the other.
mod browser;
mod bulk;
mod cache_dir;
mod clock;
mod contrib;
mod descriptors;
mod disk_budget;
mod disk_time;
mod dry_run;
mod environment;
mod figures;
mod halves;
mod lost_events;
mod metadata_changes;
mod metrics_service;
mod orphans;
mod reports;
mod rogue;
mod samples;
mod sandbox;
mod service_manager;
mod signals;
mod statistics;
mod stuck;
mod units;
mod without_claims;
