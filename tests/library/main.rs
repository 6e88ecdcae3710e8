//! The library: what an application that embeds the cleaner relies on.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test ends where something unexpected happens, and prints its figures"
)]

#[path = "../common/mod.rs"]
mod common;

mod cleaner;
mod events;
mod mcp;
mod resweep;
