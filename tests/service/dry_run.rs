//! A service that only logs what it would delete.

use std::fs;
use std::process::Command;

use crate::common::{CacheDir, Service, free_address, last_stats, now, publish, wait_until};

fn start(cache: &CacheDir, args: &[&str]) -> Service {
    let service = Service::start(cache.path(), &[&["--dry-run"], args].concat());
    assert_eq!(service.stats()["dry_run"], true);
    service
}

#[test]
fn each_pair_is_logged_once_at_its_time_and_nothing_is_deleted() {
    let cache = CacheDir::new();
    let expired = cache.store("s/expired", now() - 60.0);
    let service = start(&cache, &["--check-interval", "1s", "--remove-orphans", "1h"]);
    let soon = cache.store("new/soon", now() + 0.5);
    let live = cache.store("live", now() + 3600.0);
    service.wait_for_stat("would_delete", 2);
    // Sweeps find them again and again.
    service.wait_for_sweeps(2);
    for pair in [&expired, &soon] {
        let path = pair.result.display();
        service.assert_lines_with(&format!("would delete path=\"{path}\""), 1);
    }
    service.wait_for_stat("heap_size", 1);

    // A pair that gets another time counts again; one that goes by itself does not.
    expired.set_expiry(now() + 0.3);
    fs::remove_file(&soon.result).unwrap();
    fs::remove_file(&soon.metadata).unwrap();
    service.wait_for_stat("would_delete", 3);
    let soon = cache.store("new/soon", now() - 1.0);
    service.wait_for_stat("would_delete", 4);
    assert!(expired.is_whole() && soon.is_whole() && live.is_whole());
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    let stats = last_stats(&log);
    for (key, value) in [("total_deleted", 0), ("total_errors", 0), ("would_delete", 4)] {
        assert_eq!(stats[key], value, "{log}");
    }
}

#[test]
fn the_variable_makes_a_dry_run_too() {
    let cache = CacheDir::new();
    let pair = cache.store("expired", now() - 60.0);
    let address = free_address();
    let mut command = Command::new(env!("CARGO_BIN_EXE_result-cleaner"));
    command.env("RESULT_CLEANER_DRY_RUN", "1").arg("run").arg(cache.path());
    command.args(["--no-metrics", "--listen", &address]);
    let service = Service::spawn(command, &format!("http://{address}"));
    service.wait_for_stat("would_delete", 1);
    assert!(pair.is_whole());
}

#[test]
fn pairs_that_would_be_evicted_are_logged_once_and_count_as_deleted() {
    let cache = CacheDir::new();
    // Each takes at least two blocks of 4 KiB on disk.
    for number in 0..10 {
        let pair = cache.pair(&number.to_string());
        publish(&pair.result, &[b'x'; 100_000]);
        pair.set_expiry(now() + 1000.0 + f64::from(number));
    }
    let args = ["--max-size", "500K", "--evict-min-age", "1ms", "--check-interval", "1s"];
    let service = start(&cache, &args);
    wait_until("the size is below the limit", || {
        let stats = service.stats();
        stats["would_evict"] != 0 && stats["size_bytes"].as_u64().unwrap() <= 500 * 1024
    });
    service.wait_for_sweeps(2);
    let stats = service.stats();
    let evicted = stats["would_evict"].as_u64().unwrap();
    assert!((5..10).contains(&evicted), "{stats}");
    assert_eq!(stats["heap_size"], 10 - evicted);
    service.assert_lines_with("would evict", usize::try_from(evicted).unwrap());
    // The soonest first.
    service.assert_lines_with("/0.result.json.lz4", 1);
    service.assert_lines_with("/9.result.json.lz4", 0);
    assert_eq!(cache.files().len(), 20);
}
