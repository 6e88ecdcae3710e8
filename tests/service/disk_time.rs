//! The bound on the time that is spent on files.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::{
    CacheDir, PATIENCE, Pair, Service, call, now, stderr, succeed, text, wait_until,
};
use serde_json::Value;

/// Writes `count` expired pairs, and waits until none of them counts as half published any more.
fn expired(cache: &CacheDir, count: usize) -> Vec<Pair> {
    let pairs = (0..count).map(|number| {
        let pair = cache.pair(&format!("{}/{number}", number / 100));
        fs::write(&pair.result, "result").unwrap();
        fs::write(&pair.metadata, r#"{"expires_at": 1700000000.5}"#).unwrap();
        pair
    });
    let pairs = pairs.collect();
    let written = now();
    wait_until("a second has passed", || now() > written + 1.1);
    pairs
}

#[test]
fn a_sweep_with_little_time_takes_longer_and_leaves_nothing_out() {
    let cache = CacheDir::new();
    let sweep = |args: &[&str]| {
        expired(&cache, 500);
        let start = Instant::now();
        let output = succeed(&[&["sweep", "--json", text(cache.path())], args].concat());
        let took = start.elapsed();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["deleted_count"], &report["errors"]), (&500.into(), &0.into()));
        assert_eq!(cache.files(), Vec::<String>::new());
        (took, report["duration_ms"].as_f64().unwrap())
    };
    let (_, mut milliseconds) = sweep(&[]);
    // Half of that in each second: it needs two seconds or so, and more with several threads. What the first sweep
    // took says little where the machine is busy, so the bound becomes smaller until it is felt.
    let felt = (0..10).any(|_| {
        milliseconds = (milliseconds / 2.0).ceil();
        let (took, _) = sweep(&["--max-disk-time", &format!("{milliseconds}ms")]);
        took > Duration::from_millis(300)
    });
    assert!(felt, "no bound makes it rest, not even {milliseconds} ms in each second");
}

#[test]
fn a_service_that_rests_holds_nothing_and_ends_at_once() {
    let cache = CacheDir::new();
    let pairs = expired(&cache, 1000);
    // So little that it rests nearly all the time, and enough that a busy machine, on which each call
    // takes long, gets on.
    let service = Service::start(cache.path(), &["--max-disk-time", "10ms"]);
    wait_until("it deletes", || pairs.iter().any(|pair| pair.is_gone()));
    let (status, took, log) = service.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(took < PATIENCE, "it took {took:?}");
    assert!(pairs.iter().all(|pair| pair.is_gone() || pair.is_whole()));
    assert!(pairs.iter().any(Pair::is_whole), "it did not rest");
    assert!(cache.files().iter().all(|file| !file.contains(".result-cleaner-")));
}

#[test]
fn a_bound_that_makes_no_sense_is_refused() {
    for wrong in ["0", "999us", "fast", ""] {
        for command in ["run", "sweep"] {
            let output = call(&[command, "--max-disk-time", wrong, "/nonexistent"]);
            assert_eq!(output.status.code(), Some(2), "{command} {wrong}");
            assert!(stderr(&output).contains("--max-disk-time"), "{}", stderr(&output));
        }
    }
}
