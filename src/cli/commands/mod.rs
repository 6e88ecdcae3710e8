//! The subcommands, each with its arguments and its output.

pub(super) mod doctor;
pub(super) mod explain;
pub(super) mod generate;
pub(super) mod list;
pub(super) mod run;
pub(super) mod status;
pub(super) mod sweep;
