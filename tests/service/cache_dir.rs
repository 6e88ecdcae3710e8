//! The cache directory itself: absent, vanishing, replaced, linked to, unreadable, not watchable.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::common::{
    CacheDir, Pair, Service, call, free_address, in_time, now, result_cleaner, unprivileged_run,
    wait_for_later_pair, wait_until,
};

const HOUR: f64 = 3600.0;
/// Long expired.
const LONG_AGO: f64 = 1.5;

fn wait_until_gone(pair: &Pair) {
    wait_until("the pair is gone", || pair.is_gone());
}

/// Starts `command` with the arguments of a service.
fn spawn(mut command: Command, dir: &str, args: &[&str]) -> Service {
    let address = free_address();
    command.args(["run", dir, "--no-metrics", "--listen", &address]).args(args);
    Service::spawn(command, &format!("http://{address}"))
}

#[test]
fn a_directory_that_is_absent_at_the_start_is_picked_up_when_it_appears() {
    let cache = CacheDir::absent();
    let service = Service::start(cache.path(), &[]);
    wait_until("it says so", || service.log().contains("does not exist yet"));
    assert_eq!(service.stats()["watch"], "absent");
    assert_eq!(service.stats()["total_cleanups"], 0);
    assert_eq!(service.stats()["cache_directory"], cache.path().to_str().unwrap());

    let old = cache.store("session/old", LONG_AGO);
    wait_until_gone(&old);
    service.wait_for_stat("watch", "active");
    cache.store("session/waiting", now() + HOUR);
    service.wait_for_stat("heap_size", 1);
    service.wait_for_stat("total_deleted", 1);
    service.assert_calm();
}

#[test]
fn a_directory_that_vanishes_and_is_made_again_is_no_error() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    for round in 1..=2 {
        cache.store("session/waiting", now() + HOUR);
        service.wait_for_stat("heap_size", 1);
        fs::remove_dir_all(cache.path()).unwrap();
        service.wait_for_stat("watch", "absent");
        service.wait_for_stat("heap_size", 0);
        assert_eq!(service.stats()["running"], true);
        assert_eq!(service.stats()["next_expiry"], serde_json::Value::Null);

        wait_until_gone(&cache.store("session/old", LONG_AGO));
        service.wait_for_stat("watch", "active");
        service.wait_for_stat("total_deleted", 2 * round - 1);
        wait_until_gone(&cache.store("session/new", now() + 0.1));
        service.wait_for_stat("total_deleted", 2 * round);
        fs::remove_dir_all(cache.path()).unwrap();
        fs::create_dir(cache.path()).unwrap();
    }
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
}

#[test]
fn the_pairs_of_a_directory_that_was_renamed_away_are_forgotten_and_safe() {
    in_time(|seconds| {
        let cache = CacheDir::new();
        let service = Service::ready(cache.path(), &[]);
        let at = now() + 2.0 * seconds;
        cache.store("both", at);
        cache.store("session/old", at);
        cache.store("later", now() + HOUR);
        let known = service.knows_before(at, 3);
        let away = cache.outside("away");
        fs::rename(cache.path(), &away).unwrap();
        let fresh = cache.store("both", now() + HOUR);
        wait_until("the new one is watched", || {
            service.lines_with("watching the cache directory") == 2
        });
        service.wait_for_stat("heap_size", 1);
        let is_in_time = known && now() < at;

        // Its changes no longer matter, and neither does its time.
        Pair::at(&away, "later").set_expiry(LONG_AGO);
        Pair::at(&away, "session/new").write(LONG_AGO);
        wait_until_gone(&cache.store("other", at + 0.2));
        assert!(fresh.is_whole());
        if is_in_time {
            for name in ["both", "later", "session/old", "session/new"] {
                assert!(Pair::at(&away, name).is_whole(), "{name}\n{}", service.log());
            }
        }
        service.wait_for_stat("watch", "active");
        assert_eq!(service.count("total_errors"), 0, "{}", service.log());
        is_in_time
    });
}

#[test]
fn a_directory_that_is_away_for_an_instant_only_loses_nothing() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    cache.store("session/waiting", now() + HOUR);
    service.wait_for_stat("heap_size", 1);
    for round in 1..=5 {
        fs::rename(cache.path(), cache.outside("away")).unwrap();
        // It has time to see that.
        (0..50).for_each(|_| drop(service.stats()));
        fs::rename(cache.outside("away"), cache.path()).unwrap();
        wait_for_later_pair(&cache);
        service.wait_for_stat("heap_size", 1);
        cache.store("session/deep/going", now());
        service.wait_for_stat("total_deleted", 2 * round);
    }
    Pair::at(cache.path(), "session/waiting").set_expiry(LONG_AGO);
    service.wait_for_stat("total_deleted", 11);
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
}

#[test]
fn a_cache_directory_that_is_a_link_is_followed_to_where_it_points_now() {
    let cache = CacheDir::absent();
    let targets = ["first", "second"].map(|name| cache.outside(name));
    let old = targets.each_ref().map(|target| Pair::at(target, "dir/old").write(LONG_AGO));
    symlink("first", cache.path()).unwrap();
    let service = Service::ready(cache.path(), &[]);
    wait_until_gone(&old[0]);
    let first = targets[0].canonicalize().unwrap();
    assert_eq!(service.stats()["cache_directory"], first.to_str().unwrap());
    let left = Pair::at(&targets[0], "left").write(now() + HOUR);
    service.wait_for_stat("heap_size", 1);
    assert!(old[1].is_whole());

    symlink("second", cache.outside("new-link")).unwrap();
    fs::rename(cache.outside("new-link"), cache.path()).unwrap();
    wait_until_gone(&old[1]);
    let second = targets[1].canonicalize().unwrap();
    service.wait_for_stat("cache_directory", second.to_str().unwrap());
    service.wait_for_stat("heap_size", 0);
    left.set_expiry(LONG_AGO);
    wait_for_later_pair(&cache);
    assert!(left.is_whole());
    service.wait_for_stat("watch", "active");
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
}

#[test]
fn a_file_in_its_place_at_the_start_is_refused_in_one_line() {
    let cache = CacheDir::absent();
    fs::write(cache.path(), "").unwrap();
    let path = cache.path().to_str().unwrap();
    let output = call(&["run", path, "--no-metrics"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains(path) && message.contains("not a directory"), "{message}");
    assert!(cache.path().is_file());
}

#[test]
fn a_directory_within_that_can_not_be_read_counts_once_and_is_scanned_when_it_can() {
    let cache = CacheDir::new();
    let hidden = cache.store("closed/deep/hidden", LONG_AGO);
    cache.store("open/known", now() + HOUR);
    let going = cache.store("open/going", LONG_AGO);
    let (closed, open) = (cache.path().join("closed"), cache.path().join("open"));
    let Some((command, url)) = unprivileged_run(&cache, &[]) else { return };
    fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
    let service = Service::spawn(command, &url);
    wait_until_gone(&going);
    service.wait_for_stat("total_errors", 1);
    fs::set_permissions(&open, Permissions::from_mode(0o000)).unwrap();
    service.wait_for_stat("total_errors", 2);
    service.assert_lines_with("can't read a directory", 2);

    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    Pair::at(&open, "new").write(LONG_AGO);
    service.wait_for_stat("total_deleted", 2);
    assert!(closed.join("deep").exists() && hidden.result.exists());
    fs::set_permissions(&closed, Permissions::from_mode(0o755)).unwrap();
    wait_until_gone(&hidden);
    service.wait_for_stat("total_deleted", 3);
    service.wait_for_stat("heap_size", 1);
    service.assert_errors(2);
}

#[test]
fn a_cache_directory_that_can_not_be_read_counts_once_and_is_tried_again() {
    let cache = CacheDir::new();
    let old = cache.store("old", LONG_AGO);
    let Some((command, url)) = unprivileged_run(&cache, &[]) else { return };
    fs::set_permissions(cache.path(), Permissions::from_mode(0o000)).unwrap();
    let service = Service::spawn(command, &url);
    service.wait_for_stat("total_errors", 1);
    service.wait_for_stat("watch", "degraded");
    // As soon as it is tried again.
    fs::set_permissions(cache.path(), Permissions::from_mode(0o755)).unwrap();
    wait_until_gone(&old);
    service.wait_for_stat("watch", "active");
    assert_eq!(service.count("total_errors"), 1, "{}", service.log());
}

#[test]
fn a_relative_directory_is_meant_from_where_the_service_was_started() {
    let cache = CacheDir::new();
    let old = cache.store("dir/old", LONG_AGO);
    let mut command = result_cleaner();
    command.current_dir(cache.path().parent().unwrap());
    let service = spawn(command, "cached_results", &[]);
    wait_until_gone(&old);
    cache.store("dir/waiting", now() + HOUR);
    service.wait_for_stat("heap_size", 1);
    let resolved = cache.path().canonicalize().unwrap();
    assert_eq!(service.stats()["cache_directory"], resolved.to_str().unwrap());
    service.assert_calm();
}

#[test]
fn a_tilde_is_the_home_directory() {
    let cache = CacheDir::new();
    let mut command = result_cleaner();
    command.env("HOME", cache.path().parent().unwrap());
    let service = spawn(command, "~/cached_results", &[]);
    wait_until_gone(&cache.store("dir/old", LONG_AGO));
    service.wait_for_stat("total_deleted", 1);
    service.assert_calm();
}
