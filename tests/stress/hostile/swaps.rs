//! Attackers that exchange what stands under a name, as fast as they can, while it is cleaned.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;

use super::inputs::{LONG_AGO, expired, live, write_at};
use super::scene::{descriptors, entries, memory, wait_until_calm};
use super::{MAX_MEMORY, assert_lines};
use crate::common::{
    CacheDir, Pair, Service, extent, figure, now, stdout, succeed, text, wait_until,
};

/// How many pairs are in each directory that is swapped.
const PAIRS: usize = 20;

/// What stands under `name` in the cache directory, and what it is exchanged with.
struct Swap {
    inside: PathBuf,
    outside: PathBuf,
}

impl Swap {
    fn new(cache: &CacheDir, name: &str) -> Self {
        let outside = cache.outside(&format!("bait-{}", name.replace('/', "-")));
        Self { inside: cache.path().join(name), outside }
    }

    /// Whether both were there to be exchanged.
    fn swap(&self) -> bool {
        renameat_with(CWD, &self.inside, CWD, &self.outside, RenameFlags::EXCHANGE).is_ok()
    }
}

/// Directories with the same pairs: one in the cache directory, and one outside that must not be
/// touched.
struct Twins {
    swap: Swap,
    /// The real directory, wherever it is.
    real: OwnedFd,
}

impl Twins {
    /// `name` is swapped, and the pairs are in `below` it.
    fn new(cache: &CacheDir, name: &str, below: &str) -> Self {
        let swap = Swap::new(cache, name);
        let victim = cache.outside("victims").join(name);
        for number in 0..PAIRS {
            Pair::at(&victim.join(below), &number.to_string()).write(LONG_AGO);
        }
        symlink(&victim, &swap.outside).unwrap();
        let real = swap.inside.join(below);
        fs::create_dir_all(&real).unwrap();
        Self { swap, real: OwnedFd::from(File::open(real).unwrap()) }
    }

    /// Publishes expired pairs anew in the real directory.
    fn fill(&self) {
        for number in 0..PAIRS {
            // What is there already stays.
            let _ = write_at(&self.real, &format!("{number}.result.json.lz4"), "a result");
            let _ = write_at(&self.real, &format!("{number}.metadata.json"), &expired());
        }
    }
}

/// A pair of whose halves one is swapped with something else.
struct Halves {
    swap: Swap,
    pair: Pair,
    /// Whether it may go; else its metadata is live whenever it is metadata at all.
    goes: bool,
}

impl Halves {
    /// A live pair whose metadata is swapped.
    fn metadata(cache: &CacheDir, stem: &str, make_bait: impl FnOnce(&Path)) -> Self {
        let pair = cache.pair(&format!("halves/{stem}"));
        fs::write(&pair.result, "a result").unwrap();
        fs::write(&pair.metadata, live()).unwrap();
        let swap = Swap::new(cache, &format!("halves/{stem}.metadata.json"));
        make_bait(&swap.outside);
        Self { swap, pair, goes: false }
    }

    /// An expired pair whose result is swapped.
    fn result(cache: &CacheDir, stem: &str, make_bait: impl FnOnce(&Path)) -> Self {
        let pair = cache.pair(&format!("halves/{stem}"));
        let swap = Swap::new(cache, &format!("halves/{stem}.result.json.lz4"));
        make_bait(&swap.outside);
        Self { swap, pair, goes: true }
    }

    fn attack(&self) -> bool {
        if self.goes && !self.pair.metadata.exists() {
            let _ = fs::write(&self.pair.metadata, expired());
        }
        if self.goes && self.pair.result.symlink_metadata().is_err() {
            // Never to what a link leads to.
            let _ = File::create_new(&self.pair.result);
        }
        self.swap.swap()
    }
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn what_is_swapped_while_it_is_cleaned_leads_to_nothing_outside() {
    let cache = CacheDir::in_memory();
    let victim = Pair::at(&cache.outside("victims"), "a").write(LONG_AGO);
    let twins = [
        Twins::new(&cache, "d", ""),
        Twins::new(&cache, "parent", "of/nested"),
        Twins::new(&cache, "far/from/the/top", "down"),
    ];
    let halves = [
        Halves::metadata(&cache, "link", |bait| symlink(&victim.metadata, bait).unwrap()),
        Halves::metadata(&cache, "fifo", fifo),
        Halves::metadata(&cache, "dir", |bait| fs::create_dir(bait).unwrap()),
        Halves::result(&cache, "link-result", |bait| symlink(&victim.result, bait).unwrap()),
        Halves::result(&cache, "fifo-result", fifo),
        Halves::result(&cache, "dir-result", |bait| {
            Pair::at(bait, "kept").write(LONG_AGO);
            fs::write(bait.join("kept.metadata.json"), live()).unwrap();
        }),
    ];
    let fifo_for_dir = Swap::new(&cache, "fifo-for-dir");
    Pair::at(&fifo_for_dir.inside, "a").write(now() + 36_000.0);
    fifo(&fifo_for_dir.outside);
    let before = entries(&cache.outside("victims"));

    let service = Service::ready(cache.path(), &["--fallback-interval", "1s"]);
    let (had, held) = (memory(&service, "VmRSS"), descriptors(&service));
    let time = Duration::from_secs(extent("TEST_RESULT_CLEANER_SWAP_SECONDS", 2, 60));
    let over = AtomicBool::new(false);
    let (swaps, swept) = (AtomicU64::new(0), AtomicU64::new(0));
    let go_on = || !over.load(Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            while go_on() {
                swaps.fetch_add(u64::from(twins[0].swap.swap()), Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while go_on() {
                let others = twins[1..].iter().map(|twins| twins.swap.swap());
                let others = others.chain(halves.iter().map(Halves::attack));
                let count = others.chain([fifo_for_dir.swap()]).filter(|swapped| *swapped).count();
                swaps.fetch_add(count as u64, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while go_on() {
                twins.iter().for_each(Twins::fill);
                thread::sleep(Duration::from_millis(5));
            }
        });
        scope.spawn(|| {
            while go_on() {
                let report = succeed(&["sweep", "--json", text(cache.path())]);
                let report: Value = serde_json::from_str(stdout(&report)).unwrap();
                swept.fetch_add(report["deleted_count"].as_u64().unwrap(), Ordering::Relaxed);
            }
        });
        let start = Instant::now();
        while start.elapsed() < time {
            let pair = cache.store("beside/a", LONG_AGO);
            wait_until("a pair beside all that is gone", || pair.is_gone());
        }
        over.store(true, Ordering::Relaxed);
    });

    assert_eq!(entries(&cache.outside("victims")), before, "something outside was touched");
    for halves in halves.iter().filter(|halves| !halves.goes) {
        assert!(halves.pair.result.exists(), "{:?} is gone", halves.pair.result);
    }
    wait_until("something was cleaned meanwhile", || {
        service.count("total_deleted") + swept.load(Ordering::Relaxed) > 0
    });
    let deleted = service.count("total_deleted");
    let more = memory(&service, "VmHWM").saturating_sub(had);
    figure("memory up by the swaps", format!("{more} KiB"));
    assert!(more < MAX_MEMORY, "memory is up by {more} KiB");
    wait_until("no descriptor is kept", || descriptors(&service) <= held);
    wait_until_calm(&service);
    figure(
        "directory and link swapped",
        format!(
            "{} times in {} s, {deleted} pairs deleted by the service, 0 outside touched",
            swaps.load(Ordering::Relaxed),
            time.as_secs()
        ),
    );
    let (status, _, log) = service.terminate();
    assert!(status.success());
    assert_lines(&log);
}

#[test]
fn metadata_that_changes_while_it_is_read_is_waited_for_and_costs_no_more() {
    let cache = CacheDir::in_memory();
    let service = Service::ready(cache.path(), &[]);
    let had = memory(&service, "VmRSS");
    let [grows, outgrows, flickers] =
        ["grows", "outgrows", "flickers"].map(|stem| cache.pair(stem));
    for pair in [&grows, &outgrows, &flickers] {
        fs::write(&pair.result, "a result").unwrap();
    }
    let over = AtomicBool::new(false);
    let go_on = || !over.load(Ordering::Relaxed);
    thread::scope(|scope| {
        for (pair, most) in [(&grows, 900_000), (&outgrows, 3_000_000)] {
            scope.spawn(move || {
                let mut file = File::create(&pair.metadata).unwrap();
                // Broken until the end.
                file.write_all(b"{\"padding\":\"").unwrap();
                let mut size = 0;
                while size < most || go_on() {
                    // It stops to grow in time, but not to change.
                    if size < most {
                        size += file.write(&[b' '; 4096]).unwrap();
                    } else {
                        file.set_modified(std::time::SystemTime::now()).unwrap();
                    }
                }
                file.write_all(b"\",\"expires_at\":1.5}").unwrap();
            });
        }
        scope.spawn(|| {
            // Never both valid and expired, and never closed while it is broken.
            while go_on() {
                let mut file = File::create(&flickers.metadata).unwrap();
                file.write_all(b"{\"expires_at\":1.5").unwrap();
                file.set_len(0).unwrap();
                file.rewind().unwrap();
                file.write_all(live().as_bytes()).unwrap();
            }
        });
        for _ in 0..3 {
            let pair = cache.store("beside", LONG_AGO);
            wait_until("the pair beside them is gone", || pair.is_gone());
            succeed(&["list", text(cache.path())]);
        }
        let swept = succeed(&["sweep", "--json", text(cache.path())]);
        let report: Value = serde_json::from_str(stdout(&swept)).unwrap();
        assert_eq!(report["deleted_count"], 0, "{report}");
        over.store(true, Ordering::Relaxed);
    });
    wait_until("what was completed is gone", || grows.is_gone());
    service.assert_lines_with("larger than 1048576 bytes", 1);
    assert!(outgrows.is_whole() && flickers.is_whole());
    let more = memory(&service, "VmHWM").saturating_sub(had);
    figure("memory up by what grows", format!("{more} KiB"));
    assert!(more < MAX_MEMORY, "memory is up by {more} KiB");
    wait_until_calm(&service);
    // Its writer may have been held up for so long that it had to be taken for broken.
    let logged = || 1 + service.lines_with("flickers.metadata.json") as u64;
    wait_until("each line of the log is counted", || service.count("total_errors") == logged());
}
