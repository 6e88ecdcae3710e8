//! Halves without the other one, what writers have left, and empty directories: removed where that is
//! asked for, once they are old enough, and else never.
//!
//! Files can't be made to look old, since nobody sets their ctime; so the binary is given a clock
//! that is ahead (libfaketime). Without that these tests are skipped. What happens at the wrong
//! moment is covered by unit tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{
    CacheDir, FakeClock, Pair, Random, Service, call, now, publish, result_cleaner, seed, snapshot,
    stderr, stdout, unprivileged_run_by, wait_until,
};
use serde_json::Value;

const HOUR: f64 = 3600.0;
const LITTER: [&str; 4] = [
    "s/alone.result.json.lz4",
    "s/expired.metadata.json",
    "left.result.json.lz4.tmp",
    "s/left.metadata.json.tmp",
];
const EMPTY: [&str; 2] = ["empty", "s/empty"];

/// A cache directory with litter, and with what looks like it. All pairs are live.
fn littered() -> CacheDir {
    let cache = CacheDir::new();
    cache.store("s/live", now() + 1e6);
    cache.guide("t/live", now() + 1e6);
    for file in LITTER {
        fs::write(cache.path().join(file), r#"{"expires_at": 1.5}"#).unwrap();
    }
    for dir in EMPTY {
        fs::create_dir(cache.path().join(dir)).unwrap();
    }
    for (file, content) in [
        ("later.metadata.json", r#"{"expires_at": 8000000000}"#),
        ("broken.metadata.json", "{"),
        ("notes.txt", "x"),
        ("other.tmp", "x"),
        ("x.result.json.lz4.tmp.bak", "x"),
    ] {
        fs::write(cache.path().join(file), content).unwrap();
    }
    fs::create_dir_all(cache.path().join("nested/empty")).unwrap();
    fs::write(cache.path().join("nested/keep"), "").unwrap();
    fs::write(cache.path().join("nested/empty/.keep"), "").unwrap();
    cache
}

fn sweep(clock: &FakeClock, cache: &CacheDir, args: &[&str]) -> Value {
    let mut command = result_cleaner();
    let command = clock.faked(&mut command).arg("sweep").arg(cache.path());
    let output = command.args(args).arg("--json").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_str(stdout(&output)).unwrap()
}

/// The paths of a snapshot, relative to the cache directory.
fn paths(cache: &CacheDir) -> Vec<String> {
    let relative = |path: &std::path::Path| {
        path.strip_prefix(cache.path()).unwrap_or(path).to_string_lossy().into_owned()
    };
    snapshot(cache).into_iter().map(|(path, _)| relative(&path)).collect()
}

#[test]
fn a_sweep_removes_what_is_asked_for_and_nothing_else() {
    let Some(clock) = FakeClock::new() else { return };
    clock.set(2.0 * HOUR);
    let cache = littered();
    let before = paths(&cache);
    let size = LITTER.len() * r#"{"expires_at": 1.5}"#.len();

    let report = sweep(&clock, &cache, &[]);
    assert!(report.get("orphans_removed").is_none(), "{report}");
    let report = sweep(&clock, &cache, &["--remove-orphans", "3h", "--prune-empty-dirs", "3h"]);
    assert_eq!((&report["orphans_removed"], &report["directories_pruned"]), (&0.into(), &0.into()));
    let both = ["--remove-orphans", "1h", "--prune-empty-dirs", "1h"];
    let dry = sweep(&clock, &cache, &[&both[..], &["--dry-run"]].concat());
    assert_eq!(paths(&cache), before);

    let report = sweep(&clock, &cache, &["--remove-orphans", "1h"]);
    assert_eq!(report["orphans_removed"], LITTER.len());
    assert_eq!(report["orphan_bytes_freed"], size);
    assert_eq!((&report["deleted_count"], &report["freed_bytes"]), (&0.into(), &0.into()));
    let left: Vec<_> = before.into_iter().filter(|path| !LITTER.contains(&path.as_str())).collect();
    assert_eq!(paths(&cache), left);

    let report = sweep(&clock, &cache, &["--prune-empty-dirs", "1h"]);
    assert_eq!(report["directories_pruned"], EMPTY.len());
    let left: Vec<_> = left.into_iter().filter(|path| !EMPTY.contains(&path.as_str())).collect();
    assert_eq!(paths(&cache), left);
    for key in ["orphans_removed", "orphan_bytes_freed"] {
        assert_eq!(dry[key], if key == "orphans_removed" { LITTER.len() } else { size }, "{dry}");
    }
    assert_eq!(dry["directories_pruned"], EMPTY.len());
}

#[test]
fn less_than_an_hour_is_wrong_usage() {
    for flag in ["--remove-orphans", "--prune-empty-dirs"] {
        for command in ["sweep", "run"] {
            for age in ["59m", "0", "3599", "1"] {
                let output = call(&[command, "/nonexistent", flag, age]);
                assert_eq!(output.status.code(), Some(2), "{command} {flag} {age}");
                assert!(stderr(&output).contains(flag), "{}", stderr(&output));
            }
        }
    }
}

#[test]
fn a_service_removes_it_when_it_is_old_enough_and_counts_it_apart() {
    let Some(clock) = FakeClock::new() else { return };
    let cache = littered();
    let before = paths(&cache);
    let args = ["--remove-orphans", "1h", "--prune-empty-dirs", "1h"];
    let service = clock.service(&cache, &args);
    service.wait_for_stat("heap_size", 2);
    // Reported by the kernel, and not by the first scan.
    let late = "t/late.result.json.lz4";
    fs::write(cache.path().join(late), "x").unwrap();
    clock.set(0.5 * HOUR);
    let soon = cache.store("soon", now() + 0.6 * HOUR);
    service.wait_for_stat("heap_size", 3);
    assert_eq!(service.stats()["total_orphans_removed"], 0);
    clock.set(1.1 * HOUR);
    wait_until("what has expired is gone", || soon.is_gone());
    service.wait_for_stat("total_deleted", 1);
    service.wait_for_stat("total_orphans_removed", LITTER.len() + 1);
    service.wait_for_stat("total_directories_pruned", EMPTY.len());
    let gone = |path: &String| LITTER.contains(&path.as_str()) || EMPTY.contains(&path.as_str());
    let left: Vec<_> = before.into_iter().filter(|path| !gone(path)).collect();
    assert_eq!(paths(&cache), left);
    let size = LITTER.len() * r#"{"expires_at": 1.5}"#.len() + 1;
    service.wait_for_stat("total_orphan_bytes_freed", size);
    service.assert_calm();
}

#[test]
fn what_cannot_be_removed_is_an_error_that_is_tried_again() {
    let Some(clock) = FakeClock::new() else { return };
    let cache = CacheDir::new();
    let orphan = cache.pair("s/a").result;
    fs::write(&orphan, "x").unwrap();
    let dir = orphan.parent().unwrap();
    let ahead = clock.wrapper(2.0 * HOUR);
    let ahead: Vec<&str> = ahead.iter().map(String::as_str).collect();
    let args = ["--remove-orphans", "1h"];
    let Some((command, url)) = unprivileged_run_by(&cache, &ahead, &args) else { return };
    fs::set_permissions(dir, fs::Permissions::from_mode(0o555)).unwrap();
    let service = Service::spawn(command, &url);
    service.wait_for_at_least("total_errors", 2);
    service.assert_lines_with("WARN", 1);
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    service.wait_for_stat("total_orphans_removed", 1);
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// By a clock that makes everything look old, so that nothing but the care for what is being written
/// saves it.
#[test]
fn writers_that_are_at_work_lose_nothing() {
    let Some(clock) = FakeClock::new() else { return };
    clock.set(2.0 * HOUR);
    let cache = CacheDir::new();
    let args = ["--remove-orphans", "1h", "--prune-empty-dirs", "1h"];
    let service = clock.service(&cache, &args);
    let done = AtomicBool::new(false);
    let pairs = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                sweep(&clock, &cache, &args);
            }
        });
        // Also where this thread panics.
        let _end = OnDrop(|| done.store(true, Ordering::Relaxed));
        let random = &mut Random(seed());
        let mut pause = |most: usize| {
            thread::sleep(Duration::from_millis(random.below(most) as u64));
        };
        let mut write = |number: usize| -> Pair {
            let dir = cache.path().join(format!("{}", number % 50));
            if !dir.exists() {
                fs::create_dir(&dir).unwrap();
            }
            pause(20);
            let pair = Pair::at(&dir, &number.to_string());
            publish(&pair.result, b"a result of 23 bytes...");
            pause(50);
            pair.set_expiry(now() + 1e6);
            pair
        };
        (0..300).map(&mut write).collect::<Vec<Pair>>()
    });
    for pair in &pairs {
        assert!(pair.is_whole(), "{pair:?}\n{}", service.log());
    }
    let stats = service.stats();
    assert_eq!((&stats["total_orphans_removed"], &stats["total_errors"]), (&0.into(), &0.into()));
}
