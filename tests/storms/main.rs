//! Whatever other programs do in the cache directory: sweeps go on, memory, threads and descriptors
//! stay bounded, and pairs go on time.
//!
//! Storms are made by processes of their own. Each kind runs for 2 s by one process or by two;
//! `TEST_RESULT_CLEANER_LONG` has each run for 10 s by one and then by two. What a long run does can
//! be chosen: `TEST_RESULT_CLEANER_STORM_SECONDS`, and `TEST_RESULT_CLEANER_FLOODERS` (0: one, then
//! two). The cache directories lie in memory, so that floods of names are as fast as the kernel can.
//! Run with `-- --nocapture` for the figures.
//!
//! To flood a directory by hand, and watch `result-cleaner status --watch` beside it:
//! ```sh
//! TEST_RESULT_CLEANER_FLOOD=chmod-broken:DIR/flooded:10 \
//!     cargo test --test storms -- --exact a_flooding_process --ignored --nocapture
//! ```
//! That is KIND:DIR:SECONDS; the kinds are `chmod-broken`, `chmod-live`, `chmod`, `write`,
//! `create-tmp`, `create`, `mkdir`, `rename`, `rename-dirs` and `link`. DIR is made, and what the flood
//! has needed stays in it. Several processes may flood one directory.

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
mod defects;
mod flood;
mod gauge;
mod measured;
mod storm;

use flood::Kind;
use storm::trial;

#[test]
#[ignore = "a process that the other tests start, or somebody by hand"]
fn a_flooding_process() {
    flood::play_role();
}

#[test]
fn chmod_of_broken_metadata() {
    trial(Kind::ChmodBroken, 1);
}

#[test]
fn chmod_of_live_metadata() {
    trial(Kind::ChmodLive, 2);
}

#[test]
fn chmod_of_unrelated_files() {
    trial(Kind::ChmodUnrelated, 1);
}

#[test]
fn writes_to_results_that_are_held_open() {
    trial(Kind::Write, 2);
}

#[test]
fn temporary_files_that_come_and_go() {
    trial(Kind::CreateTmp, 1);
}

#[test]
fn unrelated_files_that_come_and_go() {
    trial(Kind::Create, 2);
}

#[test]
fn directories_that_come_and_go() {
    trial(Kind::Mkdir, 1);
}

#[test]
fn unrelated_files_that_are_renamed_to_and_fro() {
    trial(Kind::RenameFiles, 2);
}

#[test]
fn directories_that_are_renamed_to_and_fro() {
    trial(Kind::RenameDirs, 1);
}
