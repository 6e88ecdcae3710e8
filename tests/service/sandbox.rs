//! Whatever deletes is confined to the cache directory by the kernel (Landlock). What a confined
//! thread can't do is tested beside its code; here, that no other thread renames or unlinks.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::common::{
    CacheDir, Pair, Service, figure, free_address, has_strace, now, result_cleaner, traced_by,
    wait_for_later_pair, wait_until,
};
use landlock::{AccessFs, Ruleset, RulesetAttr, RulesetStatus};
use rustix::process::{Signal, kill_process};

#[test]
fn in_a_sweep_no_thread_that_is_not_confined_renames_or_unlinks() {
    if !has_strace() || !has_landlock() {
        return;
    }
    let cache = cache_with_leftovers();
    let log = cache.outside("log");
    let output = traced(&log).arg("sweep").arg(cache.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    figure("renames and unlinks of a sweep, all confined", check(&log, 3 * 4));
}

#[test]
fn in_a_service_no_thread_that_is_not_confined_renames_or_unlinks() {
    if !has_strace() || !has_landlock() {
        return;
    }
    let cache = cache_with_leftovers();
    let (log, address) = (cache.outside("log"), free_address());
    let mut command = traced(&log);
    command.arg("run").arg(cache.path()).args(["--no-metrics", "--listen", &address]);
    let service = Service::spawn(command, &format!("http://{address}"));
    let soon = cache.store("dir-0/soon", now() + 0.5);
    wait_until("it deletes by its timer", || soon.is_gone());
    // The others have to settle first.
    service.wait_for_stat("total_deleted", 4);
    // Another directory in its place gets threads of its own.
    fs::rename(cache.path(), cache.outside("away")).unwrap();
    let again = cache.store("again", now() + 0.5);
    wait_until("it deletes there, too", || again.is_gone());
    let traced = traced_by(service.pid()).unwrap();
    kill_process(traced, Signal::TERM).unwrap();
    // The process ends with its first thread.
    let first = traced.as_raw_pid().to_string();
    wait_until("the trace is complete", || {
        let ended = |line: &str| {
            let reported = line.split_once(' ');
            reported.is_some_and(|(thread, what)| thread == first && what.contains("+++ exited"))
        };
        fs::read_to_string(&log).is_ok_and(|log| log.lines().any(ended))
    });
    figure("renames and unlinks of a service, all confined", check(&log, 5 * 4));
}

/// What is being deleted then is out of the reach of the threads that delete.
#[test]
fn a_directory_that_is_moved_out_amid_deletions_keeps_its_pairs_whole_and_that_is_no_error() {
    let cache = CacheDir::new();
    let (rounds, pairs) = (20, 40);
    let dirs: Vec<_> = (0..rounds).map(|round| cache.outside(&format!("dir-{round}"))).collect();
    let pair = |dir: &Path, number| Pair::at(dir, &format!("{number}")).write(1.5);
    for dir in &dirs {
        (0..pairs).for_each(|number| drop(pair(dir, number)));
    }
    let made = now();
    wait_until("the results have settled", || now() > made + 1.1);
    let service = Service::ready(cache.path(), &[]);
    let mut left = 0;
    for dir in &dirs {
        let inside = cache.path().join(dir.file_name().unwrap());
        fs::rename(dir, &inside).unwrap();
        wait_until("a deletion has begun", || !Pair::at(&inside, "0").is_whole());
        fs::rename(&inside, dir).unwrap();
    }
    wait_for_later_pair(&cache);
    for dir in &dirs {
        let names = || fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let is_reserved = |name: OsString| name.to_string_lossy().starts_with(".result-cleaner-");
        wait_until("no reserved name is left", || !names().any(is_reserved));
        left += (0..pairs).filter(|n| Pair::at(dir, &n.to_string()).is_whole()).count();
    }
    figure("pairs that were moved away amid deletions", left);
    service.wait_for_stat("total_deleted", rounds * pairs - left + 1);
    service.assert_calm();
}

/// Three pairs that expired, and what a killed cleaner left.
fn cache_with_leftovers() -> CacheDir {
    let cache = CacheDir::new();
    for number in 0..3 {
        cache.store(&format!("dir-{number}/pair"), now() - 10.0);
    }
    let left = cache.store("dir-0/left", 4e9);
    fs::rename(&left.result, cache.path().join("dir-0/.result-cleaner-left.r")).unwrap();
    cache
}

fn traced(log: &Path) -> Command {
    let mut command = Command::new("strace");
    let calls = "trace=landlock_restrict_self,renameat2,unlinkat,unlink,rename,clone,clone3";
    command.args(["-f", "-e", calls, "-e", "signal=none", "-o"]).arg(log);
    command.arg(result_cleaner().get_program());
    command
}

/// Checks that each thread that renames or unlinks was confined before, or begun by one that was;
/// how many such calls there were, which has to be `least` at the least.
fn check(log: &Path, least: usize) -> usize {
    let log = fs::read_to_string(log).unwrap();
    let mut unfinished: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let (thread, line) = line.split_once(' ').unwrap();
        let line = line.trim_start();
        // A call in which another thread's came between is reported in two parts.
        let call = if line.starts_with("<... ") { unfinished[thread] } else { line };
        unfinished.insert(thread, call);
        if let Some((_, result)) = line.rsplit_once(" = ") {
            calls.push((thread, call, result));
        }
    }
    // A new thread may be reported before the call that made it has returned.
    let began: HashMap<&str, &str> = calls
        .iter()
        .filter(|(_, call, _)| call.starts_with("clone"))
        .map(|(thread, _, child)| (*child, *thread))
        .collect();
    let mut confined: HashSet<&str> = HashSet::new();
    let mut changes = 0;
    for (thread, call, result) in calls {
        if call.starts_with("landlock_restrict_self(") && result == "0" {
            confined.insert(thread);
        } else if call.starts_with("rename") || call.starts_with("unlink") {
            let mut ancestry = std::iter::successors(Some(thread), |of| began.get(of).copied());
            assert!(ancestry.any(|one| confined.contains(one)), "{thread} {call}\n{log}");
            changes += 1;
        }
    }
    assert!(changes >= least, "{changes} calls\n{log}");
    changes
}

/// Whether the kernel can confine a thread; says so where it can't.
fn has_landlock() -> bool {
    let confine = || {
        let ruleset = Ruleset::default().handle_access(AccessFs::MakeDir).unwrap();
        ruleset.create().unwrap().restrict_self().unwrap().ruleset
    };
    let has = thread::spawn(confine).join().unwrap() != RulesetStatus::NotEnforced;
    if !has {
        eprintln!("skipped: this kernel has no Landlock");
    }
    has
}
