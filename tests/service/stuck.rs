//! One thing that is stuck, flooded or lost holds up nothing else.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{CacheDir, Service, call, get, now, wait_until};
use rustix::fs::{FlockOperation, flock};

#[test]
fn a_flood_of_requests_holds_up_no_deletion() {
    let cache = CacheDir::new();
    for number in 0..5000 {
        let pair = cache.pair(&format!("waiting/{number}"));
        fs::write(&pair.result, "").unwrap();
        fs::write(&pair.metadata, r#"{"expires_at": 8000000000}"#).unwrap();
    }
    let service = Service::start(cache.path(), &[]);
    service.wait_for_stat("heap_size", 5000);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    assert!(get(&service.url, "/stats").is_some_and(|(status, _)| status == 200));
                }
            });
        }
        let pairs: Vec<_> =
            (0..300).map(|number| cache.store(&format!("due/{number}"), now() + 0.3)).collect();
        wait_until("every pair is gone", || pairs.iter().all(crate::common::Pair::is_gone));
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_directory_that_another_program_has_locked_holds_up_no_other() {
    let cache = CacheDir::new();
    fs::create_dir(cache.path().join("locked")).unwrap();
    let locked = File::open(cache.path().join("locked")).unwrap();
    flock(&locked, FlockOperation::LockExclusive).unwrap();
    for number in 0..600 {
        cache.store(&format!("locked/{number}"), 1.5);
    }
    let service = Service::start(cache.path(), &[]);
    wait_until("the lock is told", || service.log().contains("holds a lock on its directory"));
    let free = cache.store("free/pair", now() + 0.2);
    let start = Instant::now();
    wait_until("the other pair is gone", || free.is_gone());
    assert!(start.elapsed() < Duration::from_secs(30), "it waited for the locked ones");
    drop(locked);
    service.wait_for_stat("total_deleted", 601);
}

/// Makes metadata immutable, or mutable again; false where that is not possible.
fn immutable(pair: &crate::common::Pair, flag: &str) -> bool {
    let chattr = Command::new("chattr").arg(flag).arg(&pair.metadata).output();
    chattr.is_ok_and(|output| output.status.success())
}

#[test]
fn metadata_that_can_not_be_deleted_is_tried_again_with_growing_pauses() {
    let cache = CacheDir::new();
    let pair = cache.store("stuck", now() + 1000.0);
    pair.set_expiry(now() + 0.5);
    if !immutable(&pair, "+i") {
        return println!("skipped: files can't be made immutable here");
    }
    let service = Service::start(cache.path(), &["-v"]);
    wait_until("it fails", || service.log().contains("can't delete it"));
    let start = Instant::now();
    wait_until("it has failed four times", || service.log().contains("again_in=8s"));
    let took = start.elapsed();
    let whole = pair.is_whole();
    assert!(immutable(&pair, "-i"));
    assert!(took > Duration::from_millis(6500), "the fourth attempt came after {took:?}");
    assert!(whole, "half of the pair went");
    wait_until("the pair is gone", || pair.is_gone());
}

/// Each takes the results and gives them back, which the other must not take for news of them.
#[test]
fn two_services_that_fail_at_the_same_pairs_do_not_spur_each_other_on() {
    let cache = CacheDir::new();
    let pairs: Vec<_> = (0..5).map(|number| cache.store(&format!("{number}"), 1.5)).collect();
    if !pairs.iter().all(|pair| immutable(pair, "+i")) {
        return println!("skipped: files can't be made immutable here");
    }
    let services = [0, 1].map(|_| Service::start(cache.path(), &[]));
    let errors = || services.each_ref().map(|service| service.stats()["total_errors"].as_u64());
    // At 0, 1, 3, 7 and 15 seconds, by each service.
    let start = now();
    wait_until("some pauses have passed", || now() > start + 16.0);
    let failed = errors();
    for pair in &pairs {
        assert!(immutable(pair, "-i"));
    }
    assert!(
        failed.iter().all(|errors| errors.is_some_and(|count| (5..=35).contains(&count))),
        "{failed:?}"
    );
    for service in &services {
        let warnings = service.log().lines().filter(|line| line.contains("WARN")).count();
        assert!(warnings <= 10, "{}", service.log());
    }
    wait_until("all are gone", || pairs.iter().all(crate::common::Pair::is_gone));
}

#[test]
fn something_else_under_a_reserved_name_is_told_and_left_alone() {
    let cache = CacheDir::new();
    let reserved = cache.path().join(".result-cleaner-a.r");
    fs::create_dir(&reserved).unwrap();
    fs::set_permissions(&reserved, fs::Permissions::from_mode(0o700)).unwrap();
    let blocked = cache.store("a", 1.5);
    let service = Service::start(cache.path(), &[]);
    wait_until("it is told", || service.log().contains("something bears the reserved name"));
    let free = cache.store("b", now() + 0.2);
    wait_until("the other pair is gone", || free.is_gone());
    assert!(blocked.is_whole() && reserved.is_dir());
    assert!(service.stats()["total_errors"].as_u64() >= Some(1), "each attempt counts");
    fs::remove_dir(&reserved).unwrap();
    wait_until("the pair is gone", || blocked.is_gone());
}

#[test]
fn a_fresh_result_that_a_killed_recovery_had_in_its_hands_is_given_back() {
    let cache = CacheDir::new();
    let pair = cache.store("a", now() + 1000.0);
    // The recovery took the fresh result for an instant, and had not yet given back the old
    // metadata; the fresh one was published meanwhile.
    fs::rename(&pair.result, cache.path().join(".result-cleaner-a.r")).unwrap();
    fs::write(cache.path().join(".result-cleaner-a.m"), r#"{"expires_at": 1.5}"#).unwrap();
    assert!(call(&["sweep", cache.path().to_str().unwrap()]).status.success());
    assert_eq!(cache.files(), ["a.metadata.json", "a.result.json.lz4"]);
    assert!(fs::read_to_string(&pair.metadata).unwrap().contains("query_context"));
}
