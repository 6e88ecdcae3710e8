//! The library: what an application that embeds the cleaner relies on.

#[path = "../common/mod.rs"]
mod common;

mod cleaner;
mod events;
mod mcp;
mod unchanged;
