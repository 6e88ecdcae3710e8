//! The commands that do one thing and exit.

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
