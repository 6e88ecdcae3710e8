//! The figures that the service reports of itself, and that all ways to read them agree.

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::{CacheDir, Pair, Service, last_stats, now, publish, wait_until};
use chrono::{DateTime, Utc};
use result_cleaner::{Cleaner, Config};
use serde_json::{Value, json};

type Fits = fn(&Value) -> bool;

/// The documented keys, and what their values look like.
const KEYS: [(&str, Fits); 11] = [
    ("running", Value::is_boolean),
    ("check_interval_hours", Value::is_f64),
    ("total_cleanups", Value::is_u64),
    ("total_deleted", Value::is_u64),
    ("total_freed_bytes", Value::is_u64),
    ("total_freed_mb", Value::is_f64),
    ("total_errors", Value::is_u64),
    ("cache_directory", Value::is_string),
    ("heap_size", Value::is_u64),
    ("next_expiry", is_instant_or_null),
    ("watch", Value::is_string),
];

/// RFC 3339 in UTC.
fn is_instant_or_null(value: &Value) -> bool {
    value.as_str().map_or(value.is_null(), |text| {
        text.ends_with('Z') && DateTime::parse_from_rfc3339(text).is_ok()
    })
}

#[track_caller]
fn assert_keys(stats: &Value) {
    for (key, fits) in KEYS {
        let value = stats.get(key).unwrap_or_else(|| panic!("no {key} in {stats}"));
        assert!(fits(value), "{key} is {value}");
    }
}

/// Only the documented keys, so that what may be added to them makes no difference.
fn documented(stats: &Value) -> Value {
    KEYS.iter().map(|(key, _)| ((*key).to_owned(), stats[key].clone())).collect()
}

fn instant(seconds: f64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros((seconds * 1e6).round() as i64).unwrap()
}

/// Waits until `/stats` shows that `heap_size` pairs wait, and when the first of them expires.
#[track_caller]
fn wait_for_heap(service: &Service, heap_size: u64, next_expiry: Option<f64>) {
    let mut stats = Value::Null;
    wait_until(&format!("{heap_size} pairs wait, the first till {next_expiry:?}"), || {
        stats = service.stats();
        let next = stats["next_expiry"].as_str().map(|text| text.parse::<DateTime<Utc>>().unwrap());
        stats["heap_size"] == heap_size && next == next_expiry.map(instant)
    });
    assert_keys(&stats);
}

/// A pair whose result has `size` bytes.
fn sized(cache: &CacheDir, name: &str, size: u64, expires_at: f64) -> Pair {
    let pair = cache.store(name, expires_at);
    let file = fs::OpenOptions::new().write(true).open(&pair.result).unwrap();
    file.set_len(size).unwrap();
    pair
}

fn broken(cache: &CacheDir, name: &str, content: &str) -> Pair {
    let pair = cache.store(name, now() - 5.0);
    publish(&pair.metadata, content.as_bytes());
    pair
}

#[test]
fn every_key_is_there_with_its_type() {
    let cache = CacheDir::new();
    let service = Service::start(cache.path(), &["--check-interval", "90m"]);
    wait_for_heap(&service, 0, None);
    service.wait_for_stat("total_cleanups", 1);
    assert_eq!(
        documented(&service.stats()),
        json!({
            "running": true,
            "check_interval_hours": 1.5,
            "total_cleanups": 1,
            "total_deleted": 0,
            "total_freed_bytes": 0,
            "total_freed_mb": 0.0,
            "total_errors": 0,
            "cache_directory": cache.path().canonicalize().unwrap().to_str().unwrap(),
            "heap_size": 0,
            "next_expiry": null,
            "watch": "active",
        })
    );

    let later = now().floor() + 3600.25;
    cache.store("later", later);
    wait_for_heap(&service, 1, Some(later));
}

#[test]
fn they_say_which_cleaner_it_is_and_since_when() {
    let before = instant(now());
    let cache = CacheDir::new();
    let service = Service::start(cache.path(), &[]);
    let stats = service.stats();
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(stats["host"].as_str(), rustix::system::uname().nodename().to_str().ok());
    let started: DateTime<Utc> = stats["started_at"].as_str().unwrap().parse().unwrap();
    // In whole milliseconds.
    let is_later = started + chrono::TimeDelta::milliseconds(1) >= before;
    assert!(is_later && started <= instant(now()), "{before} {started}");
}

#[test]
fn deleted_and_freed_are_exact_to_the_byte() {
    let cache = CacheDir::new();
    let due = now() - 1.0;
    let mut expected = 0;
    for (name, size) in [("empty", 0), ("one", 1), ("s/deep/odd", 4097), ("s/big", 70_001)] {
        expected += sized(&cache, name, size, due).bytes();
    }
    expected += cache.guide("guide", due).bytes();
    cache.store("live", now() + 3600.0);
    cache.pair("orphan");
    fs::write(cache.path().join("orphan.result.json.lz4"), "left alone").unwrap();

    let service = Service::start(cache.path(), &[]);
    service.wait_for_stat("total_deleted", 5);
    assert_eq!(service.stats()["total_freed_bytes"], expected);

    let soon = sized(&cache, "soon", 12_345, now() + 0.3);
    expected += soon.bytes();
    service.wait_for_stat("total_deleted", 6);
    assert_eq!(service.stats()["total_freed_bytes"], expected);
    assert_eq!(service.stats()["total_errors"], 0);
}

#[test]
fn freed_megabytes_are_mebibytes_rounded_to_two_places() {
    let cache = CacheDir::new();
    let service = Service::start(cache.path(), &[]);
    let mut sum = 0;
    // 2.996… is 3.0, and 5.994… is 5.99.
    for (n, total, shown) in [(1, 3_141_700, 3.0), (2, 6_285_700, 5.99)] {
        let pair = cache.pair(&n.to_string());
        let metadata = format!(r#"{{"expires_at": {}}}"#, now() - 1.0);
        fs::write(&pair.result, vec![b'x'; total - sum - metadata.len()]).unwrap();
        publish(&pair.metadata, metadata.as_bytes());
        sum = total;
        service.wait_for_stat("total_deleted", n);
        let stats = service.stats();
        assert_eq!(
            (&stats["total_freed_bytes"], &stats["total_freed_mb"]),
            (&json!(total), &json!(shown))
        );
    }
}

#[test]
fn the_heap_follows_what_is_published_renewed_and_taken_away() {
    let cache = CacheDir::new();
    let service = Service::start(cache.path(), &[]);
    let start = now().floor();
    let far = cache.store("far", start + 7200.5);
    wait_for_heap(&service, 1, Some(start + 7200.5));
    let near = cache.guide("near", start + 3600.25);
    wait_for_heap(&service, 2, Some(start + 3600.25));
    near.set_expiry(start + 1800.0);
    wait_for_heap(&service, 2, Some(start + 1800.0));
    near.set_expiry(start + 9000.0);
    wait_for_heap(&service, 2, Some(start + 7200.5));
    fs::remove_file(&far.metadata).unwrap();
    wait_for_heap(&service, 1, Some(start + 9000.0));
    far.set_expiry(start + 5000.0);
    wait_for_heap(&service, 2, Some(start + 5000.0));
    publish(&far.metadata, b"broken");
    wait_for_heap(&service, 1, Some(start + 9000.0));
    fs::rename(&near.result, cache.outside("moved away")).unwrap();
    wait_for_heap(&service, 0, None);

    let soon = cache.store("soon", now() + 0.3);
    wait_until("it is gone", || soon.is_gone());
    service.wait_for_stat("total_deleted", 1);
    wait_for_heap(&service, 0, None);
    service.assert_errors(1);
}

#[test]
fn sweeps_are_counted() {
    let cache = CacheDir::new();
    let service = Service::start(cache.path(), &["--check-interval", "1s"]);
    for cleanups in 1..=3 {
        service.wait_for_at_least("total_cleanups", cleanups);
    }
    let (status, _, log) = service.terminate();
    assert!(status.success());
    let logged = log.lines().filter(|line| line.contains("Cleanup completed")).count();
    assert_eq!(last_stats(&log)["total_cleanups"], logged, "{log}");
}

#[test]
fn the_cache_directory_is_shown_resolved_and_as_given_while_it_is_absent() {
    let cache = CacheDir::absent();
    let link = cache.outside("link");
    symlink(cache.path(), &link).unwrap();
    let service = Service::start(&link, &[]);
    service.wait_for_stat("watch", "absent");
    service.wait_for_stat("cache_directory", link.to_str().unwrap());
    assert_keys(&service.stats());

    fs::create_dir(cache.path()).unwrap();
    service.wait_for_stat("watch", "active");
    let resolved = cache.path().canonicalize().unwrap();
    service.wait_for_stat("cache_directory", resolved.to_str().unwrap());

    fs::remove_dir(cache.path()).unwrap();
    service.wait_for_stat("watch", "absent");
    service.wait_for_stat("cache_directory", link.to_str().unwrap());
}

#[test]
fn the_last_line_of_the_log_contains_what_was_served() {
    for format in ["text", "json"] {
        let cache = CacheDir::samples();
        let bad = broken(&cache, "broken", "null");
        let service = Service::start(cache.path(), &["--log-format", format]);
        service.wait_for_stat("total_deleted", 12);
        service.wait_for_stat("total_errors", 1);
        service.wait_for_stat("heap_size", 12);
        let mut served = service.stats();
        let (status, _, log) = service.terminate();
        assert!(status.success(), "{log}");
        let last = last_stats(&log);
        assert_keys(&last);
        assert_eq!(served["running"], true);
        served["running"] = false.into();
        assert_eq!(documented(&last), documented(&served), "{format}");
        let name = bad.metadata.file_name().unwrap().to_str().unwrap();
        assert!(log.contains(name), "the error is logged with its path: {log}");
        if format == "json" {
            for line in log.lines() {
                assert!(serde_json::from_str::<Value>(line).unwrap().is_object(), "{line}");
            }
        }
    }
}

#[tokio::test]
async fn the_library_reports_the_same_and_that_it_was_stopped() {
    let cache = CacheDir::samples();
    let config = Config::new(cache.path()).without_metrics();
    let cleaner = Cleaner::spawn(config).await.unwrap();
    let handle = cleaner.handle();
    // A sweep that begins after the first scan has ended: nothing is left to be done.
    while cleaner.sweep().await.unwrap().checked_count != 12 {}
    let mut stats = serde_json::to_value(cleaner.get_stats()).unwrap();
    assert_keys(&stats);
    assert_eq!((&stats["running"], &stats["total_deleted"]), (&json!(true), &json!(12)));
    cleaner.stop().await.unwrap();
    stats["running"] = false.into();
    assert_eq!(serde_json::to_value(handle.stats()).unwrap(), stats);

    // The service, on what is left, reports the same of it.
    let service = Service::start(cache.path(), &[]);
    service.wait_for_stat("heap_size", stats["heap_size"].clone());
    for key in ["next_expiry", "cache_directory", "check_interval_hours", "watch"] {
        service.wait_for_stat(key, stats[key].clone());
    }
}
