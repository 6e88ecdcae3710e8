//! Signals end the service cleanly, pause it, or kill it: whatever comes, no pair is left in
//! halves and no live one is lost.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::common::{
    CacheDir, Pair, Service, free_address, in_time, last_stats, now, succeed, text, wait_until,
};
use rustix::process::Signal;

/// Far more than the second that the service may take.
const PROMPT: Duration = Duration::from_secs(30);

/// `count` pairs in directories of 500, written in place.
fn bulk(cache: &CacheDir, kind: &str, count: usize, expires_at: f64) -> Vec<Pair> {
    let metadata = format!(r#"{{"expires_at": {expires_at}}}"#);
    let pairs = (0..count).map(|n| {
        let dir = cache.path().join(format!("{kind}-{}", n / 500));
        if n % 500 == 0 {
            fs::create_dir(&dir).unwrap();
        }
        let pair = Pair::at(&dir, &n.to_string());
        fs::write(&pair.result, vec![b'x'; n % 97]).unwrap();
        fs::write(&pair.metadata, &metadata).unwrap();
        pair
    });
    pairs.collect()
}

fn reserved_names(cache: &CacheDir) -> Vec<String> {
    let is_reserved = |path: &String| {
        let name = Path::new(path).file_name().unwrap();
        name.to_string_lossy().starts_with(".result-cleaner-")
    };
    cache.files().into_iter().filter(is_reserved).collect()
}

#[test]
fn sigterm_sigint_and_sighup_end_it_cleanly() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let cache = CacheDir::new();
        // Whoever runs the tests may have SIGHUP ignored.
        let address = free_address();
        let mut command = std::process::Command::new("env");
        command.arg("--default-signal=HUP").arg(env!("CARGO_BIN_EXE_result-cleaner"));
        command.arg("run").arg(cache.path()).args(["--no-metrics", "--listen", &address]);
        let service = Service::spawn(command, &format!("http://{address}"));
        let pair = cache.store("a", now() + 0.2);
        let live = cache.store("live", now() + 3600.0);
        service.wait_for_stat("total_deleted", 1);
        let (status, log) = service.end(signal);
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(pair.is_gone() && live.is_whole());
        let last = last_stats(&log);
        assert_eq!((&last["running"], &last["total_deleted"]), (&false.into(), &1.into()));
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    }
}

#[test]
fn a_service_that_was_started_with_sighup_ignored_ignores_it() {
    let cache = CacheDir::new();
    let address = free_address();
    let mut command = std::process::Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_result-cleaner")).arg("run").arg(cache.path());
    command.args(["--no-metrics", "--listen", &address]);
    let service = Service::spawn(command, &format!("http://{address}"));
    service.signal(Signal::HUP);
    cache.store("a", now() - 1.0);
    service.wait_for_stat("total_deleted", 1);
    let (status, _, log) = service.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn sigterm_amid_a_bulk_deletion_leaves_whole_pairs_and_true_figures() {
    let cache = CacheDir::in_memory();
    let pairs = bulk(&cache, "expired", 4000, now() - 60.0);
    let before: u64 = pairs.iter().map(Pair::bytes).sum();
    let service = Service::start(cache.path(), &[]);
    wait_until("the deletion is under way", || service.count("total_deleted") > 0);
    let (status, took, log) = service.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(took < PROMPT, "it took {took:?}");

    let is_cut_off = log.contains("jobs that are still running at shutdown are not counted");
    if is_cut_off && !reserved_names(&cache).is_empty() {
        // It has to end within a second, however busy the machine is. The next cleaner finishes its work.
        println!("left out: the service could not finish its claims in time");
        succeed(&["sweep", text(cache.path())]);
        return assert_eq!(cache.files(), Vec::<String>::new(), "{log}");
    }
    assert_eq!(reserved_names(&cache), Vec::<String>::new());
    let left: Vec<&Pair> = pairs.iter().filter(|pair| !pair.is_gone()).collect();
    for pair in &left {
        assert!(pair.is_whole(), "half of {pair:?} is left");
    }
    let after: u64 = left.iter().map(|pair| pair.bytes()).sum();
    let last = last_stats(&log);
    assert_eq!(last["total_errors"], 0, "{log}");
    let deleted = pairs.len() - left.len();
    if is_cut_off {
        println!("left out: the service could not end its work in time");
        assert!(last["total_deleted"].as_u64().unwrap() <= deleted as u64, "{log}");
    } else {
        assert_eq!(last["total_deleted"], deleted, "{log}");
        assert_eq!(last["total_freed_bytes"], before - after);
    }

    let service = Service::start(cache.path(), &[]);
    service.wait_for_stat("total_deleted", left.len());
    assert_eq!(cache.files(), Vec::<String>::new());
}

#[test]
fn sigterm_amid_the_first_scan_ends_it_and_loses_nothing() {
    let cache = CacheDir::in_memory();
    let pairs = bulk(&cache, "live", 3000, now() + 36_000.0);
    let service = Service::start(cache.path(), &[]);
    let (status, took, log) = service.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(took < PROMPT, "it took {took:?}");
    assert!(pairs.iter().all(Pair::is_whole));
    let last = last_stats(&log);
    assert_eq!((&last["running"], &last["total_deleted"]), (&false.into(), &0.into()));
    assert_eq!(last["total_errors"], 0, "{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
fn what_came_and_expired_while_it_was_stopped_is_made_good_at_sigcont() {
    in_time(|seconds| {
        let cache = CacheDir::new();
        let service = Service::start(cache.path(), &[]);
        let soon = now() + seconds;
        let known = cache.store("known", soon);
        let renewed = cache.store("renewed", soon);
        let shortened = cache.store("shortened", now() + 3600.0);
        let is_known = service.knows_before(soon, 3);
        service.stop();
        if !is_known || now() >= soon {
            return false;
        }
        renewed.set_expiry(now() + 3600.0);
        let appeared = cache.store("new/directory/appeared", now() + 0.2);
        let expired = cache.store("expired", now() - 5.0);
        let live = cache.store("live", now() + 7200.0);
        shortened.set_expiry(now() + 0.2);
        let end = soon.max(now() + 0.2) + 0.5;
        wait_until("all of that has expired", || now() > end);
        assert!(shortened.is_whole() && appeared.is_whole() && expired.is_whole());

        service.go_on();
        for pair in [&known, &appeared, &expired, &shortened] {
            wait_until("it is gone", || pair.is_gone());
        }
        service.wait_for_stat("heap_size", 2);
        service.wait_for_stat("total_deleted", 4);
        assert!(renewed.is_whole() && live.is_whole());
        service.assert_calm();

        // And it goes on as before.
        let next = cache.store("next", now() + 0.3);
        wait_until("it is gone", || next.is_gone());
        let (status, _, log) = service.terminate();
        assert_eq!(status.code(), Some(0), "{log}");
        true
    });
}
