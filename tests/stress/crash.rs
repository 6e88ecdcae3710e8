//! Cleaners that are killed, or held up, in the middle of a deletion, at every system call that matters, and
//! what the next one makes of what they left.
//!
//! `TEST_RESULT_CLEANER_LONG` adds the calls that change nothing, and the service.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{
    CacheDir, Pair, call, figure, has_strace, is_long, now, publish, result_cleaner, side_by_side,
    traced_by, wait_until,
};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};

/// The calls that change the directory, and those around them.
const CHANGING: [&str; 2] = ["renameat2", "unlinkat"];
const OTHERS: [&str; 12] = [
    "flock",
    "openat2",
    "openat",
    "newfstatat",
    "fstat",
    "read",
    "close",
    "getdents64",
    "statx",
    "clock_nanosleep",
    "landlock_restrict_self",
    "clone3",
];
/// Later than any of these calls in a sweep of the tree below.
const MANY: u32 = 500;

#[test]
fn a_sweep_killed_at_any_call_is_finished_by_the_next_one() {
    if !has_strace() {
        return;
    }
    side_by_side(&calls(), |call| {
        let mut kills = 0;
        for nth in 1..MANY {
            let tree = Tree::new();
            if !tree.sweep_killed_at(call, nth) {
                break;
            }
            tree.check_after_restart(&format!("{call} {nth}"));
            kills += 1;
        }
        figure(&format!("sweeps killed at each {call}"), kills);
        assert!(kills < MANY - 1, "{call} is called without end");
    });
}

#[test]
fn a_recovery_killed_at_any_call_is_finished_by_the_next_one() {
    if !has_strace() {
        return;
    }
    // The calls of a deletion after which something is left to take up.
    let deletions = [("renameat2", 2), ("unlinkat", 1), ("unlinkat", 2)];
    let cases: Vec<_> = deletions
        .iter()
        .flat_map(|first| calls().into_iter().map(move |call| (first, call)))
        .collect();
    side_by_side(&cases, |((first_call, first), call)| {
        for nth in 1..MANY {
            let tree = Tree::new();
            assert!(tree.sweep_killed_at(first_call, *first));
            if !tree.sweep_killed_at(call, nth) {
                break;
            }
            tree.check_after_restart(&format!("{first_call} {first}, then {call} {nth}"));
        }
    });
}

#[test]
fn an_eviction_killed_at_any_call_leaves_whole_pairs_or_nothing() {
    if !has_strace() {
        return;
    }
    side_by_side(&calls(), |call| {
        for nth in 1..MANY {
            let cache = CacheDir::new();
            // With settled metadata, so that both are evicted at once.
            let pairs = settled_until(&cache, &["a", "s/b"], now() + 3600.0);
            let mut command = traced(&[&format!("{call}:signal=KILL:when={nth}")]);
            command.arg("sweep").arg(cache.path());
            command.args(["--max-size", "1", "--evict-min-age", "1ms"]);
            let status = command.status().unwrap();
            let context = check_after_eviction(&cache, &pairs, &format!("{call} {nth}"));
            if status.success() {
                assert!(pairs.iter().all(Pair::is_gone), "{context}");
                break;
            }
        }
    });
}

#[test]
fn a_service_killed_at_any_call_is_finished_by_a_sweep() {
    if !has_strace() || !is_long() {
        return;
    }
    side_by_side(&calls(), |call| {
        for nth in 1..MANY {
            let tree = Tree::new();
            let killed = service_killed_at(&tree.cache, &[], call, nth, &tree.expired);
            tree.check_after_restart(&format!("{call} {nth}"));
            if !killed {
                break;
            }
        }
    });
}

#[test]
fn a_service_killed_at_any_call_of_an_eviction_leaves_whole_pairs_or_nothing() {
    if !has_strace() || !is_long() {
        return;
    }
    side_by_side(&calls(), |call| {
        for nth in 1..MANY {
            let cache = CacheDir::new();
            let pairs = settled_until(&cache, &["a", "s/b"], now() + 3600.0);
            let budget = ["--max-size", "1", "--evict-min-age", "1ms"];
            let killed = service_killed_at(&cache, &budget, call, nth, &pairs);
            check_after_eviction(&cache, &pairs, &format!("{call} {nth}"));
            if !killed {
                break;
            }
        }
    });
}

#[test]
fn a_result_that_was_published_anew_survives_whatever_a_killed_cleaner_left() {
    if !has_strace() {
        return;
    }
    let kills = [("renameat2", 1), ("renameat2", 2), ("unlinkat", 1), ("unlinkat", 2)];
    side_by_side(&kills, |&(call, nth)| {
        // What the writer got done between the kill and the restart.
        for halves in [0, 1, 2] {
            // The metadata has to follow its result within a second.
            let (cache, pair, sweep) = loop {
                let cache = CacheDir::new();
                let pair = settled(&cache, &["a"]).remove(0);
                assert!(sweep_killed_at(cache.path(), call, nth));
                let published = now();
                if halves > 0 {
                    publish(&pair.result, b"fresh");
                }
                if halves > 1 {
                    pair.set_expiry(now() + 3600.0);
                }
                let (sweep, followed) = restart_with_half_published(&cache, &pair, halves);
                if halves != 1 || followed < published + 0.9 {
                    break (cache, pair, sweep);
                }
            };
            let what = format!("{call} {nth}, {halves} halves: {sweep}");
            let files = cache.files();
            if halves == 0 {
                assert_eq!(files, [] as [&str; 0], "{what}");
            } else {
                assert_eq!(files, ["a.metadata.json", "a.result.json.lz4"], "{what}");
                assert_eq!(fs::read(&pair.result).unwrap(), b"fresh", "{what}");
            }
        }
    });
}

/// Sweeps, and publishes the metadata of a result that was half published when the sweep began; what
/// the sweep printed, and when the metadata was there.
fn restart_with_half_published(cache: &CacheDir, pair: &Pair, halves: u32) -> (String, f64) {
    let mut command = result_cleaner();
    command.args(["sweep", "--json"]).arg(cache.path()).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    if halves == 1 {
        wait_until("what was left is taken up", || {
            !cache.files().iter().any(|name| name.starts_with(".result-cleaner-"))
        });
        pair.set_expiry(now() + 3600.0);
    }
    let followed = now();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    (String::from_utf8(output.stdout).unwrap(), followed)
}

#[test]
fn metadata_that_was_claimed_by_mistake_is_restored_though_it_has_expired_meanwhile() {
    if !has_strace() {
        return;
    }
    // Killed when it is about to give back what it took: by then it is the metadata of a newer
    // result, which was published while the call that takes it was held up.
    let cache = CacheDir::new();
    let pair = settled(&cache, &["a"]).remove(0);
    let faults = ["renameat2:delay_enter=1500000:when=2", "unlinkat:signal=KILL:when=1"];
    let mut command = traced(&faults);
    let mut child = command.arg("sweep").arg(cache.path()).spawn().unwrap();
    wait_until("the result is taken", || !pair.result.exists());
    publish(&pair.result, b"fresh");
    pair.set_expiry(1.5);
    child.wait().unwrap();
    // Whether or not the writer came in between: everything has expired, so everything goes.
    sweep(cache.path());
    assert_eq!(cache.files(), [] as [&str; 0]);
}

#[test]
fn of_two_cleaners_that_are_held_up_neither_puts_an_old_result_over_a_fresh_one() {
    if !has_strace() {
        return;
    }
    let cache = CacheDir::new();
    let pair = settled(&cache, &["a"]).remove(0);
    let sweeping = |delays: &str| {
        let mut command = traced(&[&format!("renameat2:{delays}:when=1")]);
        command.arg("sweep").arg(cache.path()).spawn().unwrap()
    };
    // One has made up its mind, and is about to take the result; the other one does.
    let mut slow = sweeping("delay_enter=1500000:delay_exit=1500000");
    wait_until("it is about to", || is_locked(cache.path()));
    let mut quick = sweeping("delay_exit=1900000");
    wait_until("the old result is taken", || !pair.result.exists());
    publish(&pair.result, b"fresh");
    pair.set_expiry(now() + 3600.0);
    assert!(slow.wait().unwrap().success());
    assert!(quick.wait().unwrap().success());
    assert_eq!(cache.files(), ["a.metadata.json", "a.result.json.lz4"]);
    assert_eq!(fs::read(&pair.result).unwrap(), b"fresh");
}

#[test]
fn what_a_living_cleaner_has_claimed_is_left_alone() {
    let cache = CacheDir::new();
    let dir = File::open(cache.path()).unwrap();
    flock(&dir, FlockOperation::NonBlockingLockShared).unwrap();
    let taken = [".result-cleaner-a.r", ".result-cleaner-a.m"];
    fs::write(cache.path().join(taken[0]), "a result").unwrap();
    fs::write(cache.path().join(taken[1]), r#"{"expires_at": 1.5}"#).unwrap();
    settled(&cache, &["b"]);
    let swept = sweep(cache.path());
    assert_eq!(swept["deleted_count"], 1, "the others go");
    assert_eq!(cache.files(), [taken[1], taken[0]]);
    drop(dir);
    let swept = sweep(cache.path());
    assert_eq!(swept["deleted_count"], 1, "its owner is dead");
    assert_eq!(cache.files(), [] as [&str; 0]);
}

/// A tree with everything that must and must not go.
struct Tree {
    cache: CacheDir,
    expired: Vec<Pair>,
    live: Vec<Pair>,
}

impl Tree {
    fn new() -> Self {
        let cache = CacheDir::new();
        let expired = settled(&cache, &["a", "s/t/b"]);
        let live = vec![
            cache.store("live", now() + 3600.0),
            cache.store("s/live", now() + 3600.0),
            // Renewed after it had expired.
            cache.store("renewed", 1.5),
        ];
        live[2].set_expiry(now() + 3600.0);
        Self { cache, expired, live }
    }

    fn sweep_killed_at(&self, call: &str, nth: u32) -> bool {
        sweep_killed_at(self.cache.path(), call, nth)
    }

    fn check_after_restart(&self, when: &str) {
        let left = self.cache.files();
        sweep(self.cache.path());
        let context =
            || format!("killed at {when}, which left {left:?}; now {:?}", self.cache.files());
        assert!(self.expired.iter().all(Pair::is_gone), "{}", context());
        assert!(self.live.iter().all(Pair::is_whole), "{}", context());
        assert_eq!(self.cache.files().len(), 2 * self.live.len(), "{}", context());
    }
}

/// Expired pairs whose metadata is newer than its result even in the file system's coarse time,
/// so that they are deleted at once.
fn settled(cache: &CacheDir, names: &[&str]) -> Vec<Pair> {
    settled_until(cache, names, 1.5)
}

/// The same with another expiry.
fn settled_until(cache: &CacheDir, names: &[&str], expires_at: f64) -> Vec<Pair> {
    let pairs: Vec<Pair> = names.iter().map(|name| cache.store(name, expires_at)).collect();
    let changed = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    for pair in &pairs {
        wait_until("the metadata is newer", || {
            pair.set_expiry(expires_at);
            changed(&pair.metadata) > changed(&pair.result)
        });
    }
    pairs
}

/// Sweeps without being killed; what it printed.
fn sweep(dir: &Path) -> serde_json::Value {
    let output = call(&["sweep", "--json", dir.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether a sweep was killed at its `nth` call of `call`; else it came to its end.
fn sweep_killed_at(dir: &Path, call: &str, nth: u32) -> bool {
    let mut command = traced(&[&format!("{call}:signal=KILL:when={nth}")]);
    let status = command.arg("sweep").arg(dir).status().unwrap();
    assert!(status.success() || status.signal() == Some(9), "{status}");
    !status.success()
}

/// Asserts that a cleaner without a budget, too, makes whole what one that was killed in an eviction has left. Returns
/// what there was before and after that.
fn check_after_eviction(cache: &CacheDir, pairs: &[Pair], killed_at: &str) -> String {
    let left = cache.files();
    sweep(cache.path());
    let now_left = cache.files();
    let context = format!("killed at {killed_at}, which left {left:?}; now {now_left:?}");
    assert!(pairs.iter().all(|pair| pair.is_whole() || pair.is_gone()), "{context}");
    assert!(!now_left.iter().any(|name| name.contains(".result-cleaner-")), "{context}");
    context
}

/// Whether a service was killed at its `nth` call of `call`. Else all `pairs` were gone before, and it is killed then.
fn service_killed_at(
    cache: &CacheDir,
    args: &[&str],
    call: &str,
    nth: u32,
    pairs: &[Pair],
) -> bool {
    let mut command = traced(&[&format!("{call}:signal=KILL:when={nth}")]);
    command.arg("run").arg(cache.path()).arg("--no-metrics").args(args);
    let mut child = command.spawn().unwrap();
    let mut killed = false;
    wait_until("it is killed, or all that has to go is gone", || {
        killed = child.try_wait().unwrap().is_some();
        killed || pairs.iter().all(Pair::is_gone)
    });
    // The tracer ends with the one that it traces, but not the other way round.
    if let Some(pid) = traced_by(child.id()) {
        let _ = kill_process(pid, Signal::KILL);
    }
    child.wait().unwrap();
    killed
}

/// The binary with faults of strace's making.
fn traced(faults: &[&str]) -> Command {
    let binary = result_cleaner();
    let mut command = Command::new("strace");
    for (name, _) in binary.get_envs() {
        command.env_remove(name);
    }
    command.args(["-f", "-qq", "-o", "/dev/null"]);
    for fault in faults {
        command.args(["-e", &format!("inject={fault}")]);
    }
    command.arg(binary.get_program());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn is_locked(dir: &Path) -> bool {
    let dir = File::open(dir).unwrap();
    flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err()
}

fn calls() -> Vec<&'static str> {
    let others = if is_long() { &OTHERS[..] } else { &[] };
    CHANGING.iter().chain(others).copied().collect()
}
