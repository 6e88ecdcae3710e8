//! One thing that is stuck, flooded or lost holds up nothing else.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{CacheDir, Pair, Service, call, get, now, wait_until};
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
        wait_until("every pair is gone", || pairs.iter().all(Pair::is_gone));
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
    wait_until("the lock is reported", || {
        service.log().contains("another program has locked the directory")
    });
    let free = cache.store("free/pair", now() + 0.2);
    let start = Instant::now();
    wait_until("the other pair is gone", || free.is_gone());
    assert!(start.elapsed() < Duration::from_secs(30), "it waited for the locked ones");
    drop(locked);
    service.wait_for_stat("total_deleted", 601);
}

/// Makes metadata immutable, or mutable again; false where that is not possible.
fn immutable(pair: &Pair, flag: &str) -> bool {
    let chattr = Command::new("chattr").arg(flag).arg(&pair.metadata).output();
    chattr.is_ok_and(|output| output.status.success())
}

/// Each takes the results and gives them back, which the other must not take for changes of them.
#[test]
fn two_services_that_fail_at_the_same_pairs_do_not_spur_each_other_on() {
    let cache = CacheDir::new();
    let pairs: Vec<_> = (0..5).map(|number| cache.store(&format!("{number}"), 1.5)).collect();
    if !pairs.iter().all(|pair| immutable(pair, "+i")) {
        return println!("skipped: files can't be made immutable here");
    }
    let start = Instant::now();
    let services = [0, 1].map(|_| Service::start(cache.path(), &["-v"]));
    let number = pairs.len() as u64;
    // At 0, 1, 3 and 7 seconds, by one of them: where both come at the same instant, one finds the pair
    // in the hands of the other, and comes again later.
    wait_until("each was tried four times", || {
        let log = services.each_ref().map(Service::log).concat();
        let tried = |pair: &Pair| {
            let name = pair.result.file_name().unwrap().to_str().unwrap();
            log.lines().any(|line| line.contains(name) && line.contains("retry_in=8s"))
        };
        pairs.iter().all(tried)
    });
    let failed = services.each_ref().map(|service| service.count("total_errors"));
    let is_whole = pairs.iter().all(Pair::is_whole);
    let took = start.elapsed();
    for pair in &pairs {
        assert!(immutable(pair, "-i"));
    }
    assert!(is_whole, "half of a pair went");
    // Each pause is twice as long as the one before it; two attempts more may have another cause.
    let most = number * u64::from((took.as_secs() + 1).ilog2() + 3);
    assert!(failed.iter().all(|count| *count <= most), "{failed:?} in {took:?}");
    for service in &services {
        let warnings = service.log().lines().filter(|line| line.contains("WARN")).count();
        assert!(warnings <= 10, "{}", service.log());
    }
    wait_until("all are gone", || pairs.iter().all(Pair::is_gone));
}

#[test]
fn something_else_under_a_reserved_name_is_reported_and_left_alone() {
    let cache = CacheDir::new();
    let reserved = cache.path().join(".result-cleaner-a.r");
    fs::create_dir(&reserved).unwrap();
    fs::set_permissions(&reserved, fs::Permissions::from_mode(0o700)).unwrap();
    let blocked = cache.store("a", 1.5);
    let service = Service::start(cache.path(), &[]);
    wait_until("it is reported", || service.log().contains("another file has the reserved name"));
    let free = cache.store("b", now() + 0.2);
    wait_until("the other pair is gone", || free.is_gone());
    assert!(blocked.is_whole() && reserved.is_dir());
    service.wait_for_at_least("total_errors", 1);
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
