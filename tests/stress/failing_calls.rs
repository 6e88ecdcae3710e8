//! Every call that a cleaner makes of the system may fail. Then the others of its pairs go on, the
//! failing call is not repeated without end, and once the fault has passed everything goes. One file, because all
//! of its tests drive the same traced process.
//!
//! `TEST_RESULT_CLEANER_LONG` tries every call with every error.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use crate::common::{
    CacheDir, Pair, Service, call, figure, free_address, has_strace, is_long, now, result_cleaner,
    side_by_side, traced_by, wait_until,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

const CALLS: [&str; 14] = [
    "renameat2",
    "unlinkat",
    "openat2",
    "openat",
    "newfstatat",
    "flock",
    "getdents64",
    "pread64",
    "inotify_add_watch",
    "fstatfs",
    "fstat",
    "faccessat2",
    "readlink",
    "close",
];
const ERRORS: [&str; 14] = [
    "EACCES",
    "EPERM",
    "EROFS",
    "EIO",
    "ESTALE",
    "ENOSPC",
    "EMFILE",
    "ENFILE",
    "ENOMEM",
    "EINTR",
    "ENOENT",
    "EBUSY",
    "ENAMETOOLONG",
    "ELOOP",
];
/// What an ordinary run tries.
const FEW: [(&str, &str); 8] = [
    ("renameat2", "EACCES"),
    ("renameat2", "ENOSPC"),
    ("unlinkat", "EROFS"),
    ("unlinkat", "EIO"),
    ("openat2", "EMFILE"),
    ("newfstatat", "ESTALE"),
    ("flock", "EIO"),
    ("inotify_add_watch", "ENOSPC"),
];
const PAIRS: usize = 12;
/// More calls than a service needs for these pairs, also when it tries again each second or two.
const BOUND: usize = 2000;

#[test]
fn a_sweep_whose_calls_fail_now_and_then_ends_and_the_next_one_does_the_rest() {
    if !has_strace() {
        return;
    }
    side_by_side(&cases(), |(failing, error)| {
        let tree = Tree::new();
        let fault = format!("{failing}:error={error}:when=2+3");
        let (output, count) = traced_sweep(&tree, failing, &fault);
        let what = format!("{failing} {error}: {output:?}");
        assert!(matches!(output.status.code(), Some(0 | 1)), "{what}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{what}");
        assert!(count < BOUND, "{count} calls, {what}");
        tree.check_live(&what);
        let swept = sweep(&tree);
        assert!(tree.is_done(), "{what}, then {swept}: {:?}", tree.cache.files());
        tree.check_live(&what);
    });
    figure("sweeps with a failing call", cases().len());
}

#[test]
fn a_service_whose_calls_fail_goes_on_and_makes_up_for_it() {
    if !has_strace() {
        return;
    }
    side_by_side(&cases(), |&(failing, error)| {
        let tree = Tree::new();
        // The system interrupts no call for ever.
        let when = if error == "EINTR" { "1+9" } else { "1+" };
        let fault = format!("{failing}:error={error}:when={when}");
        let mut service = Traced::start(&tree, failing, &fault, &["--check-interval", "1s"]);
        let what = || format!("{failing} {error}: {:?}", tree.cache.files());
        wait_until(&format!("a call fails, {}", what()), || {
            assert!(service.lives(), "it ended, {}", what());
            calls_in(&service.log) > 0
        });
        let start = Instant::now();
        wait_until("it has had time for a tight loop", || start.elapsed().as_millis() > 1000);
        let count = calls_in(&service.log);
        let seconds = start.elapsed().as_secs() as usize + 1;
        assert!(count < BOUND * seconds, "{count} calls in {seconds} s, {}", what());
        service.end_fault();
        wait_until(&format!("all that expired is gone, {}", what()), || tree.is_done());
        assert!(service.lives(), "{}", what());
        assert!(service.stats().is_some_and(|stats| stats["running"] == true), "{}", what());
        tree.check_live(&what());
    });
    figure("services with a failing call", cases().len());
}

#[test]
fn one_pair_that_can_not_be_deleted_holds_up_no_other() {
    if !has_strace() {
        return;
    }
    side_by_side(&["renameat2", "unlinkat"], |failing| {
        for error in ["EACCES", "EPERM", "EROFS", "EIO", "EBUSY"] {
            let tree = Tree::new();
            let fault = format!("{failing}:error={error}:when=1");
            let (output, _) = traced_sweep(&tree, failing, &fault);
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let what = format!("{failing} {error}: {report}, {:?}", tree.cache.files());
            // The first call of each of the threads failed.
            let errors = report["errors"].as_u64().unwrap();
            assert!((1..=8).contains(&errors), "{what}");
            assert!(report["deleted_count"].as_u64().unwrap() + errors >= PAIRS as u64, "{what}");
            assert_eq!(reserved(&tree), 0, "{what}");
            sweep(&tree);
            assert!(tree.is_done(), "{what}");
        }
    });
}

#[test]
fn an_interrupted_call_is_made_again_and_is_no_error() {
    if !has_strace() {
        return;
    }
    side_by_side(&["renameat2", "unlinkat", "openat2", "flock", "read"], |failing| {
        let tree = Tree::new();
        let fault = format!("{failing}:error=EINTR:when=2..4");
        let (output, _) = traced_sweep(&tree, failing, &fault);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["errors"], 0, "{failing}: {output:?}");
        assert_eq!(report["deleted_count"], PAIRS, "{failing}");
        assert!(tree.is_done(), "{failing}: {:?}", tree.cache.files());
    });
}

#[test]
fn where_files_can_not_be_claimed_they_are_deleted_all_the_same() {
    if !has_strace() {
        return;
    }
    let errors = ["EINVAL", "ENOSYS", "EOPNOTSUPP", "ENAMETOOLONG", "ENOSPC", "EDQUOT"];
    side_by_side(&errors, |error| {
        for when in ["1+", "2+2"] {
            let tree = Tree::new();
            let fault = format!("renameat2:error={error}:when={when}");
            let (output, _) = traced_sweep(&tree, "renameat2", &fault);
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let what = format!("{error} {when}: {output:?}");
            assert_eq!(
                (&report["errors"], &report["deleted_count"]),
                (&0.into(), &PAIRS.into()),
                "{what}"
            );
            assert!(tree.is_done(), "{what}");
            tree.check_live(&what);
        }
    });
}

#[test]
fn a_service_that_gets_no_more_threads_works_with_those_it_has() {
    if !has_strace() {
        return;
    }
    let tree = Tree::new();
    let service = Service::ready(tree.cache.path(), &[]);
    wait_until("what was there at the start is gone", || tree.is_done());
    let log = tree.cache.outside("strace.log");
    let mut tracer = Command::new("strace")
        .args(["-f", "-p", &service.pid().to_string(), "-e", "trace=clone3,clone"])
        .args(["-e", "inject=clone3,clone:error=EAGAIN", "-o"])
        .arg(&log)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let soon = tree.cache.store("soon", now() + 0.5);
    // By itself, and by a scan of a directory that appears.
    let mut number = 0;
    wait_until("a call fails", || {
        number += 1;
        tree.cache.store(&format!("new-{number}/pair"), 1.5);
        calls_in(&log) > 0
    });
    tree.cache.store("another/pair", now() + 0.2);
    wait_until("all that expired is gone", || soon.is_gone() && tree.cache.files().len() == 2);
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    tree.check_live("no threads");
}

#[test]
fn a_service_that_can_not_be_confined_or_watch_deletes_all_the_same() {
    if !has_strace() {
        return;
    }
    let cases = [
        ("landlock_create_ruleset", "ENOSYS"),
        ("landlock_create_ruleset", "EOPNOTSUPP"),
        ("landlock_add_rule", "EINVAL"),
        ("landlock_restrict_self", "E2BIG"),
        ("prctl", "EPERM"),
        ("inotify_init1", "EMFILE"),
    ];
    side_by_side(&cases, |(failing, error)| {
        let tree = Tree::new();
        let (log, address) = (tree.cache.outside("strace.log"), free_address());
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", &format!("trace={failing}"), "-e", "signal=none"]);
        command.args(["-e", &format!("inject={failing}:error={error}"), "-o"]).arg(&log);
        command.arg(result_cleaner().get_program()).arg("run").arg(tree.cache.path());
        command.args(["--no-metrics", "--listen", &address, "--fallback-interval", "1s"]);
        let service = Service::spawn(command, &format!("http://{address}"));
        let soon = tree.cache.store("soon", now() + 0.5);
        wait_until(&format!("all that expired is gone: {failing} {error}"), || {
            soon.is_gone() && tree.is_done()
        });
        assert!(calls_in(&log) > 0, "{failing} is not called");
        assert_eq!(service.stats()["total_errors"], 0, "{failing}: {}", service.log());
        kill_process(traced_by(service.pid()).unwrap(), Signal::KILL).unwrap();
    });
}

#[test]
fn a_deletion_that_goes_on_failing_is_retried_with_growing_pauses() {
    if !has_strace() {
        return;
    }
    let tree = Tree::new();
    let service = Traced::start(&tree, "renameat2", "renameat2:error=EROFS", &[]);
    wait_until("each was tried four times", || {
        service
            .stats()
            .is_some_and(|stats| stats["total_errors"].as_u64() >= Some(4 * PAIRS as u64))
    });
    assert_eq!(tree.cache.files().len(), 2 * (PAIRS + 1), "all is as it was");
    let mut attempts: HashMap<String, Vec<f64>> = HashMap::new();
    for line in fs::read_to_string(&service.log).unwrap().lines() {
        // A call that was interrupted by another thread's has its end in another line.
        let (Some((_, time)), Some(name)) = (line.split_once(' '), line.split('"').nth(1)) else {
            continue;
        };
        let time = time.split_whitespace().next().unwrap().parse().unwrap();
        attempts.entry(name.to_owned()).or_default().push(time);
    }
    assert_eq!(attempts.len(), PAIRS, "{attempts:?}");
    for (name, times) in attempts {
        // A scan and an event of the same pair may cross, which may or may not count as another failure.
        let mut apart = times.clone();
        apart.dedup_by(|later, earlier| *later - *earlier < 0.5);
        assert!(apart.len() + 1 >= times.len(), "{name} was tried at {times:?}");
        // The last of them may be under way.
        let mut pauses = [1.0, 2.0, 4.0, 8.0, 16.0].into_iter().zip(apart.windows(2));
        let are_long = pauses.all(|(pause, pair)| pair[1] - pair[0] >= 0.99 * pause);
        assert!(are_long, "{name} was tried at {times:?}");
    }
}

/// Expired pairs in two directories, and a live one.
struct Tree {
    cache: CacheDir,
    live: Pair,
}

impl Tree {
    fn new() -> Self {
        let cache = CacheDir::new();
        for number in 0..PAIRS {
            cache.store(&format!("{}{number}", if number % 2 == 0 { "" } else { "s/" }), 1.5);
        }
        let live = cache.store("live", now() + 3600.0);
        Self { cache, live }
    }

    fn is_done(&self) -> bool {
        self.cache.files() == ["live.metadata.json", "live.result.json.lz4"]
    }

    fn check_live(&self, what: &str) {
        assert!(self.live.is_whole(), "the live one is gone: {what}");
    }
}

fn reserved(tree: &Tree) -> usize {
    tree.cache.files().iter().filter(|name| name.contains(".result-cleaner-")).count()
}

fn sweep(tree: &Tree) -> String {
    let output = call(&["sweep", "--json", tree.cache.path().to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A sweep with faults, and how often it made the failing call.
fn traced_sweep(tree: &Tree, failing: &str, fault: &str) -> (Output, usize) {
    let log = tree.cache.outside("strace.log");
    let mut command = traced(tree, &log, failing, fault);
    command.args(["sweep", "--json"]).arg(tree.cache.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    wait_until(&format!("a sweep with {fault} ends"), || child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    (output, calls_in(&log))
}

/// The binary with faults of strace's making, and a log of the failing call.
fn traced(tree: &Tree, log: &Path, failing: &str, fault: &str) -> Command {
    let binary = result_cleaner();
    let mut command = Command::new("strace");
    for (name, _) in binary.get_envs() {
        command.env_remove(name);
    }
    command.args(["-f", "-qq", "-ttt", "-e", &format!("trace={failing}"), "-e", "signal=none"]);
    // What the loader and the C library need for themselves does not fail.
    command.arg("-P").arg(tree.cache.path()).arg("-P").arg(tree.cache.path().join("s"));
    for name in tree.cache.files() {
        command.arg("-P").arg(tree.cache.path().join(name));
    }
    command.args(["-e", &format!("inject={fault}"), "-o"]).arg(log);
    command.arg(binary.get_program());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn calls_in(log: &Path) -> usize {
    let text = fs::read(log).unwrap_or_default();
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count()
}

fn cases() -> Vec<(&'static str, &'static str)> {
    if !is_long() {
        return FEW.to_vec();
    }
    let all = CALLS.iter().flat_map(|&call| ERRORS.iter().map(move |&error| (call, error)));
    // That a name is gone is the truth: where it were not, its metadata would rightly be left alone.
    all.filter(|case| *case != ("renameat2", "ENOENT")).collect()
}

/// A service with faults.
struct Traced {
    tracer: Child,
    service: Option<Pid>,
    url: String,
    log: PathBuf,
}

impl Traced {
    fn start(tree: &Tree, failing: &str, fault: &str, args: &[&str]) -> Self {
        let (address, log) = (free_address(), tree.cache.outside("strace.log"));
        let mut command = traced(tree, &log, failing, fault);
        command.arg("run").arg(tree.cache.path());
        command.args(["--no-metrics", "--listen", &address]).args(args);
        let tracer = command.spawn().unwrap();
        let url = format!("http://{address}");
        let mut traced = Self { tracer, service: None, url, log };
        wait_until("the service answers", || {
            traced.service = traced_by(traced.tracer.id());
            traced.stats().is_some()
        });
        traced
    }

    fn stats(&self) -> Option<Value> {
        let (_, body) = crate::common::get(&self.url, "/stats")?;
        serde_json::from_str(&body).ok()
    }

    fn lives(&self) -> bool {
        self.service.is_some_and(|pid| test_kill_process(pid).is_ok())
    }

    /// Kills the tracer, so that the service goes on without faults.
    fn end_fault(&mut self) {
        self.tracer.kill().unwrap();
        self.tracer.wait().unwrap();
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.service.map(|pid| kill_process(pid, Signal::KILL));
        let _ = self.tracer.kill();
        let _ = self.tracer.wait();
    }
}
