//! The commands that do one thing and exit.

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

mod command_line;
mod doctor;
mod expires_at;
mod explain;
mod generated;
mod listing;
mod terminal;
