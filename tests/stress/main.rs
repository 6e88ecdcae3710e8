//! Faults, crashes, hostile input, many cleaners and random operations.
//!
//! A program of its own because these tests keep all cores busy: beside them, a test that waits for
//! one event would take several times as long.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::too_many_lines,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test ends where something unexpected happens, and prints its figures"
)]
#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;

mod crash;
mod crowd;
mod failing_calls;
mod hostile;
mod lost_rounds;
mod model;
mod republish;
