//! The service: whatever drives `result-cleaner run`.

#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;

mod arrival;
mod bulk;
mod cache_dir;
mod clock;
mod contrib;
mod descriptors;
mod disk_time;
mod environment;
mod figures;
mod halves;
mod lost_events;
mod metadata_changes;
mod metrics_service;
mod orphans;
mod page;
mod reports;
mod rogue;
mod samples;
mod sandbox;
mod service_manager;
mod signals;
mod statistics;
mod stuck;
mod without_claims;
