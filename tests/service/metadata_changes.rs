//! However the metadata of a known pair changes, what it says last is what counts.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    CacheDir, Pair, Service, in_time, now, pair_of_bytes, publish, unprivileged_run,
    wait_for_later_pair, wait_until,
};

const HOUR: f64 = 3600.0;
/// What is logged of each broken version.
const BROKEN: &str = "invalid metadata";

/// A way to replace metadata, and its name.
type Way = (&'static str, fn(&Path, &str));
/// By a rename, and in place at once.
const WAYS: [Way; 2] = [
    ("renamed", |path, json| publish(path, json.as_bytes())),
    ("in-place", |path, json| fs::write(path, json).unwrap()),
];

fn expiring(at: f64) -> String {
    format!(r#"{{"expires_at": {at}}}"#)
}

fn wait_until_gone(pair: &Pair) {
    wait_until("the pair is gone", || pair.is_gone());
}

#[test]
fn an_extended_pair_outlives_its_old_time_and_goes_at_the_new_one() {
    in_time(|seconds| {
        let cache = CacheDir::new();
        let service = Service::ready(cache.path(), &[]);
        let old = now() + seconds;
        let pairs = WAYS.map(|(name, _)| cache.store(name, old));
        let known = service.knows_before(old, 2);
        for (pair, (_, replace)) in pairs.iter().zip(WAYS) {
            replace(&pair.metadata, &expiring(old + HOUR));
        }
        if !known || now() >= old {
            return false;
        }
        let other = cache.store("other", old + 0.1);
        wait_until_gone(&other);
        assert!(pairs.iter().all(Pair::is_whole));
        service.wait_for_stat("heap_size", 2);
        for (pair, (_, replace)) in pairs.iter().zip(WAYS) {
            let new = now() + 0.5;
            replace(&pair.metadata, &expiring(new));
            wait_until_gone(pair);
            assert!(now() >= new);
        }
        service.wait_for_stat("total_deleted", 3);
        service.assert_calm();
        true
    });
}

#[test]
fn a_shortened_pair_goes_at_the_earlier_time() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let pairs = WAYS.map(|(name, _)| cache.store(name, now() + HOUR));
    service.wait_for_stat("heap_size", 2);
    let at = now() + 0.3;
    for (pair, (_, replace)) in pairs.iter().zip(WAYS) {
        replace(&pair.metadata, &expiring(at));
    }
    pairs.iter().for_each(wait_until_gone);
    assert!(now() >= at);
    service.wait_for_stat("total_deleted", 2);
    service.assert_calm();
}

#[test]
fn a_shortened_pair_goes_although_the_writer_of_its_metadata_keeps_it_open() {
    let cache = CacheDir::new();
    let pair = cache.pair("session/kept-open");
    fs::write(&pair.result, "result").unwrap();
    fs::write(&pair.metadata, expiring((now() + HOUR).floor())).unwrap();
    let service = Service::ready(cache.path(), &[]);
    service.wait_for_stat("heap_size", 1);

    let mut writer = OpenOptions::new().write(true).open(&pair.metadata).unwrap();
    writer.write_all(expiring(now().floor()).as_bytes()).unwrap();
    writer.flush().unwrap();
    wait_until_gone(&pair);
    service.wait_for_stat("total_deleted", 1);
    service.assert_calm();
    drop(writer);
}

#[test]
fn a_pair_with_spoiled_metadata_is_kept_until_it_is_mended() {
    WAYS.into_iter().for_each(|way| in_time(|seconds| is_spoiled_in_time(way, seconds)));
}

fn is_spoiled_in_time((name, replace): Way, seconds: f64) -> bool {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let old = now() + seconds;
    let pair = cache.store(name, old);
    replace(&pair.metadata, r#"{"expires_at": "soon"}"#);
    if now() >= old {
        return false;
    }
    service.wait_for_stat("total_errors", 1);
    service.wait_for_stat("heap_size", 0);
    let other = cache.store("other", old.max(now()) + 0.1);
    wait_until_gone(&other);
    assert!(pair.is_whole());

    replace(&pair.metadata, &expiring(now() + HOUR));
    service.wait_for_stat("heap_size", 1);
    fs::write(&pair.metadata, "").unwrap();
    service.wait_for_stat("total_errors", 2);
    service.wait_for_stat("heap_size", 0);
    replace(&pair.metadata, &expiring(1.5));
    wait_until_gone(&pair);
    service.wait_for_stat("total_deleted", 2);
    service.assert_lines_with(BROKEN, 2);
    service.assert_errors(2);
    true
}

#[test]
fn each_broken_version_is_counted_and_logged_once_with_its_path_and_reason() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &["--check-interval", "1s"]);
    let versions = [
        ("null", "not an object"),
        (r#"{"expires_at": 1795468284498}"#, "milliseconds"),
        (r#"{"expires_at": 1, "expires_at": 1}"#, "more than once"),
        (r#"{"total_count": 1}"#, "missing"),
    ];
    let dir = cache.path().join("dir");
    let name = |number: usize| format!("new\nline-{number}\x1b");
    let pairs: Vec<Pair> = (0..versions.len())
        .map(|number| pair_of_bytes(&dir, name(number).as_bytes()).write(now() + HOUR))
        .collect();
    service.wait_for_stat("heap_size", pairs.len());
    for (pair, (content, _)) in pairs.iter().zip(versions) {
        publish(&pair.metadata, content.as_bytes());
    }
    let assert_counted = |count: usize| {
        service.wait_for_stat("total_errors", count);
        // Neither sweeps nor events of the same version count it again.
        for half in pairs.iter().flat_map(|pair| [&pair.metadata, &pair.result]) {
            fs::set_permissions(half, Permissions::from_mode(0o600)).unwrap();
        }
        service.wait_for_sweeps(2);
        wait_for_later_pair(&cache);
        assert_eq!(service.count("total_errors"), count as u64, "{}", service.log());
        service.assert_lines_with(BROKEN, count);
    };
    assert_counted(versions.len());
    let log = service.log();
    for (number, (_, reason)) in versions.iter().enumerate() {
        let path = format!(r"dir/new\nline-{number}\u{{1b}}.metadata");
        let line = log.lines().find(|line| line.contains(&path)).expect(&log);
        assert!(line.contains(BROKEN) && line.contains(reason), "{line}");
    }
    // Another version of the same size.
    publish(&pairs[1].metadata, br#"{"expires_at": 1795468284499}"#);
    assert_counted(versions.len() + 1);
    assert!(pairs.iter().all(Pair::is_whole));
}

#[test]
fn a_broken_version_counts_once_while_sweeps_and_news_of_it_cross() {
    let cache = CacheDir::new();
    let pairs: Vec<Pair> = (0..20).map(|n| cache.store(&format!("dir/{n}"), 1.5e12)).collect();
    let service = Service::ready(cache.path(), &["--check-interval", "1s"]);
    service.wait_for_stat("total_errors", 20);
    let sweeps = service.count("total_cleanups") + 4;
    wait_until("there were more sweeps", || {
        // The permissions are no part of a version.
        for pair in &pairs {
            fs::set_permissions(&pair.metadata, Permissions::from_mode(0o600)).unwrap();
        }
        service.count("total_cleanups") >= sweeps
    });
    service.wait_for_sweeps(2);
    assert_eq!(service.count("total_errors"), 20, "{}", service.log());
    service.assert_lines_with(BROKEN, 20);
}

#[test]
fn a_broken_version_counts_once_although_its_result_comes_and_goes() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let pair = cache.store("pair", 1.5e12);
    service.wait_for_stat("total_errors", 1);
    let aside = cache.outside("aside");
    for _ in 0..2 {
        fs::rename(&pair.result, &aside).unwrap();
        wait_for_later_pair(&cache);
        fs::rename(&aside, &pair.result).unwrap();
        // It would be believed to be broken once it has been unchanged for a second.
        let other = cache.store("other", now() + 1.5);
        wait_until_gone(&other);
    }
    service.assert_errors(1);
}

#[test]
fn a_broken_version_counts_although_another_one_of_its_name_was_moved_away_half_written() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let dir = cache.path().join("dir");
    let pair = cache.store("dir/pair", now() + HOUR);
    service.wait_for_stat("heap_size", 1);
    let mut writer = OpenOptions::new().write(true).truncate(true).open(&pair.metadata).unwrap();
    writer.write_all(br#"{"expires_at": "#).unwrap();
    service.wait_for_stat("heap_size", 0);
    fs::rename(&dir, cache.outside("moved-away")).unwrap();

    let broken = cache.outside("broken");
    Pair::at(&broken, "pair").write(1.5e12);
    fs::rename(&broken, &dir).unwrap();
    service.wait_for_stat("total_errors", 1);
    service.assert_errors(1);
    drop(writer);
}

#[test]
fn metadata_that_was_deleted_keeps_its_result_until_it_is_back() {
    in_time(|seconds| {
        let cache = CacheDir::new();
        let service = Service::ready(cache.path(), &[]);
        let at = now() + seconds;
        let pair = cache.store("pair", at);
        let known = service.knows_before(at, 1);
        if fs::remove_file(&pair.metadata).is_err() || !known || now() >= at {
            return false;
        }
        service.wait_for_stat("heap_size", 0);
        let other = cache.store("other", at + 0.1);
        wait_until_gone(&other);
        assert!(pair.result.exists());

        pair.set_expiry(now() + HOUR);
        service.wait_for_stat("heap_size", 1);
        fs::remove_file(&pair.metadata).unwrap();
        service.wait_for_stat("heap_size", 0);
        pair.set_expiry(1.5);
        wait_until_gone(&pair);
        service.wait_for_stat("total_deleted", 2);
        service.assert_calm();
        true
    });
}

#[test]
fn an_extension_that_no_event_reports_saves_the_result() {
    in_time(|seconds| {
        let cache = CacheDir::new();
        let elsewhere = cache.outside("hard-link");
        let service = Service::ready(cache.path(), &[]);
        let old = now() + seconds;
        let pair = cache.store("pair", old);
        let linked = fs::hard_link(&pair.metadata, &elsewhere).is_ok();
        let known = service.knows_before(old, 1);
        // The kernel reports it there only.
        fs::write(&elsewhere, expiring(old + HOUR)).unwrap();
        if !linked || !known || now() >= old {
            return false;
        }
        let other = cache.store("other", old + 0.1);
        wait_until_gone(&other);
        assert!(pair.is_whole());
        service.wait_for_stat("heap_size", 1);
        assert!(service.stats()["next_expiry"].is_string());
        service.assert_calm();
        true
    });
}

#[test]
fn an_extension_right_before_the_deletion_saves_the_result() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let old = now() + 2.0;
    let pairs: Vec<Pair> = (0..100).map(|n| cache.store(&format!("dir/{n}"), old)).collect();
    // The last thing that is done before they expire; the last of them come too late.
    wait_until("they are about to expire", || now() > old - 0.015);
    let mut in_time = Vec::new();
    for pair in &pairs {
        if now() >= old {
            break;
        }
        pair.set_expiry(old + HOUR);
        if now() < old {
            in_time.push(pair);
        }
    }
    for pair in &pairs[in_time.len().min(99) + 1..] {
        wait_until_gone(pair);
    }
    let other = cache.store("other", now() + 0.1);
    wait_until_gone(&other);
    assert!(in_time.iter().all(|pair| pair.is_whole()), "{} in time", in_time.len());
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
}

#[test]
fn metadata_that_could_not_be_read_is_inspected_again_when_its_permissions_change() {
    let cache = CacheDir::new();
    let at_start = cache.store("at-start", 1.5);
    let known = cache.store("known", now() + HOUR);
    let closed = Permissions::from_mode(0o000);
    fs::set_permissions(&at_start.metadata, closed.clone()).unwrap();
    let Some((command, url)) = unprivileged_run(&cache, &[]) else { return };
    let service = Service::spawn(command, &url);
    service.wait_for_stat("total_errors", 1);
    service.wait_for_stat("heap_size", 1);
    fs::set_permissions(&known.metadata, closed).unwrap();
    service.wait_for_stat("total_errors", 2);
    service.wait_for_stat("heap_size", 0);
    service.assert_lines_with("can't be read", 2);

    fs::set_permissions(&known.metadata, Permissions::from_mode(0o644)).unwrap();
    service.wait_for_stat("heap_size", 1);
    assert!(at_start.is_whole());
    fs::set_permissions(&at_start.metadata, Permissions::from_mode(0o644)).unwrap();
    wait_until_gone(&at_start);
    assert!(known.is_whole());
    service.assert_errors(2);
}

#[test]
fn a_new_pair_of_a_name_that_could_not_be_deleted_does_not_wait_for_the_old_pause() {
    let cache = CacheDir::new();
    let old = cache.store("closed/a", now() + HOUR);
    let dir = cache.path().join("closed");
    let Some((command, url)) = unprivileged_run(&cache, &[]) else { return };
    let set_mode = |mode| fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
    set_mode(0o555);
    let service = Service::spawn(command, &url);
    service.wait_for_stat("heap_size", 1);
    // Root may write where the service may not.
    if fs::write(dir.join("probe"), "").is_err() {
        return eprintln!("skipped: permissions bind this user, too");
    }
    old.set_expiry(1.5);
    service.wait_for_at_least("total_errors", 1);
    // Each of these causes an attempt; only those at the end of a pause count.
    for _ in 0..20 {
        old.set_expiry(1.5);
        thread::sleep(Duration::from_millis(10));
    }
    let errors = service.count("total_errors");
    assert!(errors <= 4, "{errors} errors\n{}", service.log());
    set_mode(0o777);
    wait_until_gone(&old);

    // The files of others in a sticky directory can't be deleted, and no event reports that a new one can.
    let sticky = cache.path().join("sticky");
    let kept = cache.store("sticky/b", 1.5);
    fs::set_permissions(&sticky, Permissions::from_mode(0o1777)).unwrap();
    let errors = service.count("total_errors");
    service.wait_for_at_least("total_errors", errors + 5);
    fs::remove_file(&kept.metadata).unwrap();
    fs::remove_file(&kept.result).unwrap();
    for file in [&kept.result, &kept.metadata] {
        fs::write(file, r#"{"expires_at": 1.5}"#).unwrap();
        chown(file, Some(65_534), Some(65_534)).unwrap();
    }
    let published = Instant::now();
    wait_until_gone(&kept);
    // The pause after five failures is 16 s.
    assert!(published.elapsed() < Duration::from_secs(14), "{:?}", published.elapsed());
}
