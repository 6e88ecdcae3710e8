//! What can happen while very many results go at once.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use crate::common::{CacheDir, call, free_address, now, result_cleaner, wait_until};
use serde_json::Value;

const PAST: f64 = 1_700_000_000.5;

/// Writes `count` expired pairs into the directory `name`, and waits until none of them counts as
/// half published any more.
fn expired(cache: &CacheDir, name: &str, count: usize) {
    for number in 0..count {
        let pair = cache.pair(&format!("{name}/{number}"));
        fs::write(&pair.result, "result").unwrap();
        fs::write(&pair.metadata, format!(r#"{{"expires_at": {PAST}}}"#)).unwrap();
    }
    let written = now();
    wait_until("a second has passed", || now() > written + 1.1);
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[test]
fn every_result_is_counted_although_results_vanish_while_they_are_counted() {
    let cache = CacheDir::in_memory();
    expired(&cache, "flat", 3000);
    let output = call(&["sweep", "--json", cache.path().to_str().unwrap()]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["deleted_count"], &report["checked_count"]), (&3000.into(), &3000.into()));
    assert_eq!(report["errors"], 0);
}

#[test]
fn what_is_moved_out_of_the_cache_directory_amid_its_deletion_is_kept() {
    for _ in 0..10 {
        let cache = CacheDir::in_memory();
        expired(&cache, "moving", 6000);
        let (inside, outside) = (cache.path().join("moving"), cache.outside("moved"));
        let mut sweep =
            result_cleaner().arg("sweep").arg(cache.path()).stdout(Stdio::null()).spawn().unwrap();
        wait_until("the deletion has begun", || count(&inside) < 12_000);
        fs::rename(&inside, &outside).unwrap();
        let at_the_move = count(&outside);
        assert!(sweep.wait().unwrap().success());
        let left = count(&outside);
        // Each thread may have been about to delete one pair.
        assert!(at_the_move - left <= 32, "{at_the_move} files were moved out, {left} are left");
        if at_the_move > 1000 {
            return;
        }
    }
    panic!("each time the deletion was over before the move");
}

#[test]
fn hard_linked_copies_do_not_wait_for_each_other() {
    let cache = CacheDir::in_memory();
    expired(&cache, "original", 40);
    for copy in 0..5 {
        let to = cache.path().join(format!("copy_{copy}"));
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(cache.path().join("original")).unwrap() {
            let entry = entry.unwrap();
            fs::hard_link(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    // A result and its metadata may even be one file.
    let pair = cache.pair("one-file");
    fs::write(&pair.metadata, format!(r#"{{"expires_at": {PAST}}}"#)).unwrap();
    fs::hard_link(&pair.metadata, &pair.result).unwrap();
    let output = call(&["sweep", "--json", cache.path().to_str().unwrap()]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["deleted_count"], &report["errors"]), (&241.into(), &0.into()));
    assert_eq!(cache.files(), [""; 0]);
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_deletions_nor_the_end() {
    let cache = CacheDir::in_memory();
    // Far more than a pipe holds.
    for number in 0..2000 {
        let pair = cache.pair(&format!("{}-{number}", "x".repeat(100)));
        fs::write(&pair.result, "result").unwrap();
        fs::write(&pair.metadata, "{}").unwrap();
    }
    let address = free_address();
    let mut service = result_cleaner()
        .args(["run", "--no-metrics", "-vv", "--listen", &address])
        .arg(cache.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let url = format!("http://{address}");
    wait_until("all broken metadata was logged", || {
        crate::common::get(&url, "/stats")
            .is_some_and(|(_, body)| body.contains(r#""total_errors":2000"#))
    });
    let pair = cache.store("live", now() + 0.3);
    wait_until("the pair is gone", || pair.is_gone());

    let pid = rustix::process::Pid::from_raw(service.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait_until("the service has ended", || service.try_wait().unwrap().is_some());
    assert!(service.wait().unwrap().success());
    let mut log = Vec::new();
    service.stderr.take().unwrap().read_to_end(&mut log).unwrap();
    assert!(!log.is_empty());
}
