//! How far scanning and deleting are from what the kernel charges.
//!
//! `cargo bench --bench floor` (or `cargo bench --bench floor -- 100000` for as many pairs).
//!
//! The floor of a scan is one thread that lists, opens, reads and closes each metadata file, and
//! parses nothing; that of a deletion is one thread that unlinks both files of each pair. Each
//! figure is a ratio to its floor, of medians over alternating runs on trees of the same make.
//!
//! Also told is the time from a last look at a file to its being unlinked: what is published in
//! between is lost where a file can't be claimed first.

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use result_cleaner::{Config, sweep_dry_run, sweep_once};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::read;

const ROUNDS: usize = 5;
const PAIRS_A_DIRECTORY: usize = 500;
const FAR: f64 = 4_890_621_416.3;
const PAST: f64 = 1_700_000_000.5;

fn main() {
    let pairs: usize = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(5_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("{pairs} pairs in directories of {PAIRS_A_DIRECTORY}, medians of {ROUNDS} runs\n");
    println!("{:<10} {:>12} {:>12} {:>8}", "work", "floor", "ours", "ratio");

    let tree = tree(pairs, FAR);
    let config = Config::new(tree.path());
    let mut scans = Vec::new();
    for _ in 0..ROUNDS {
        let floor = timed(|| assert_eq!(floor_scan(tree.path()), pairs));
        let ours = timed(|| {
            let report = runtime.block_on(sweep_dry_run(&config)).unwrap();
            assert_eq!((report.checked_count, report.errors), (pairs as u64, 0));
        });
        scans.push((floor, ours));
    }
    row("scan", pairs, &scans);
    drop(tree);

    let mut deletions = Vec::new();
    for _ in 0..ROUNDS {
        let (first, second) = (self::tree(pairs, PAST), self::tree(pairs, PAST));
        // So that no result counts as half published any more.
        std::thread::sleep(Duration::from_millis(1100));
        let floor = timed(|| assert_eq!(floor_delete(first.path()), pairs));
        let config = Config::new(second.path());
        let ours = timed(|| {
            let report = runtime.block_on(sweep_once(&config)).unwrap();
            assert_eq!((report.deleted_count, report.errors), (pairs as u64, 0));
        });
        deletions.push((floor, ours));
    }
    row("delete", pairs, &deletions);

    let mut windows = windows(self::tree(pairs, PAST).path());
    windows.sort();
    let at = |share: f64| windows[(windows.len() as f64 * share) as usize].as_secs_f64() * 1e6;
    println!(
        "\nfrom a last look at a file to its being unlinked, where it can't be claimed: median {:.1} us, \
         99 of 100 within {:.1} us",
        at(0.5),
        at(0.99)
    );
}

fn row(work: &str, pairs: usize, runs: &[(Duration, Duration)]) {
    let floor = median(runs.iter().map(|run| run.0.as_secs_f64()).collect());
    let ours = median(runs.iter().map(|run| run.1.as_secs_f64()).collect());
    let ratio = median(runs.iter().map(|run| run.1.as_secs_f64() / run.0.as_secs_f64()).collect());
    let micros = |seconds: f64| format!("{:.2} us/pair", seconds * 1e6 / pairs as f64);
    println!("{work:<10} {:>12} {:>12} {ratio:>8.2}", micros(floor), micros(ours));
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn tree(pairs: usize, expires_at: f64) -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    let padding = "x".repeat(400);
    let metadata = format!(r#"{{"padding": "{padding}", "expires_at": {expires_at}}}"#);
    for number in 0..pairs {
        let dir = tree.path().join(format!("session_{}", number / PAIRS_A_DIRECTORY));
        if number % PAIRS_A_DIRECTORY == 0 {
            fs::create_dir(&dir).unwrap();
        }
        let stem = format!("{number:08x}-aead-4aa8-9037-cd243541f7b3");
        fs::write(dir.join(format!("{stem}.result.json.lz4")), "result").unwrap();
        fs::write(dir.join(format!("{stem}.metadata.json")), &metadata).unwrap();
    }
    tree
}

/// Calls `work` for each file of each session directory.
fn for_each_file(root: &Path, mut work: impl FnMut(&OwnedFd, &CStr)) {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for session in fs::read_dir(root).unwrap() {
        let fd = openat(CWD, session.unwrap().path(), directory, Mode::empty()).unwrap();
        for entry in Dir::read_from(fd.as_fd()).unwrap() {
            work(&fd, entry.unwrap().file_name());
        }
    }
}

fn floor_scan(root: &Path) -> usize {
    let mut seen = 0;
    let mut buffer = [0; 4096];
    for_each_file(root, |dir, name| {
        if name.to_bytes().ends_with(b".metadata.json") {
            let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            assert!(read(&file, &mut buffer).unwrap() > 0);
            seen += 1;
        }
    });
    seen
}

fn floor_delete(root: &Path) -> usize {
    let mut gone = 0;
    for_each_file(root, |dir, name| {
        if !name.to_bytes().starts_with(b".") {
            unlinkat(dir, name, AtFlags::empty()).unwrap();
            gone += 1;
        }
    });
    gone / 2
}

fn windows(root: &Path) -> Vec<Duration> {
    let mut windows = Vec::new();
    for_each_file(root, |dir, name| {
        if !name.to_bytes().starts_with(b".") {
            statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            windows.push(timed(|| unlinkat(dir, name, AtFlags::empty()).unwrap()));
        }
    });
    windows
}
