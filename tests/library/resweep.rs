//! Sweeps after the first one find what no event reports, and forget nothing.

use std::fs;

use crate::common::{CacheDir, now, wait_until};
use result_cleaner::{Cleaner, Config};

const FAR: &str = r#"{"expires_at": 8000000000.5}"#;
const PAST: &str = r#"{"expires_at": 1000000000.5}"#;

fn config(cache: &CacheDir) -> Config {
    let mut config = Config::new(cache.path());
    config.metrics_url = None;
    config
}

/// The kernel reports no write through a hard link in another directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_finds_metadata_that_was_written_through_another_link() {
    let cache = CacheDir::new();
    let (pair, live) = (cache.pair("s/a"), cache.pair("s/b"));
    for pair in [&pair, &live] {
        fs::write(&pair.result, "result").unwrap();
        fs::write(&pair.metadata, FAR).unwrap();
    }
    let elsewhere = cache.outside("link");
    fs::hard_link(&pair.metadata, &elsewhere).unwrap();
    let cleaner = Cleaner::spawn(config(&cache)).await.unwrap();
    for _ in 0..3 {
        let report = cleaner.sweep().await.unwrap();
        assert_eq!((report.checked_count, report.deleted_count, report.errors), (2, 0, 0));
    }
    wait_until("both pairs wait", || cleaner.get_stats().heap_size == 2);

    fs::write(&elsewhere, PAST).unwrap();
    let written = now();
    wait_until("nothing counts as half written any more", || now() > written + 1.1);
    let report = cleaner.sweep().await.unwrap();
    assert_eq!((report.deleted_count, report.errors), (1, 0));
    assert!(pair.is_gone() && live.is_whole());
    cleaner.stop().await.unwrap();
}

/// A sweep must not forget a pair that waits, nor keep one that is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_goes_on_waiting() {
    let cache = CacheDir::new();
    for number in 0..200 {
        let pair = cache.pair(&format!("{}/{number}", number % 7));
        fs::write(&pair.result, "result").unwrap();
        fs::write(&pair.metadata, FAR).unwrap();
    }
    let cleaner = Cleaner::spawn(config(&cache)).await.unwrap();
    for round in 0..4 {
        let report = cleaner.sweep().await.unwrap();
        let left = 200 - 10 * round;
        assert_eq!((report.checked_count, report.deleted_count, report.errors), (left, 0, 0));
        wait_until("the others wait", || cleaner.get_stats().heap_size == left);
        for number in 0..10 {
            let number = 10 * round + number;
            fs::remove_file(cache.pair(&format!("{}/{number}", number % 7)).result).unwrap();
        }
    }
    let due = cache.pair("3/199");
    due.set_expiry(now() + 0.5);
    wait_until("it goes on time", || due.is_gone());
    cleaner.stop().await.unwrap();
}
