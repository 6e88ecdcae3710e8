//! The disk budget: which results go before they expire, and which never do.
//!
//! `TEST_RESULT_CLEANER_LONG` makes the writers write for longer, on more file systems.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    CacheDir, Pair, Service, call, figure, is_long, now, publish, stderr, succeed, text, wait_until,
};
use serde_json::Value;

const WEEK: f64 = 7.0 * 86_400.0;
const MIB: usize = 1 << 20;
/// Old enough after this; and the argument for that.
const AGE: Duration = Duration::from_millis(1100);
const OLD: &[&str] = &["--evict-min-age", "100ms"];

/// Writes a pair that takes `bytes` and a block for its metadata.
fn sized(pair: &Pair, bytes: usize, expires_at: f64) {
    publish(&pair.result, &vec![7; bytes]);
    pair.set_expiry(expires_at);
}

/// What both files take on disk.
fn on_disk(pair: &Pair) -> u64 {
    let blocks = |path: &Path| fs::metadata(path).map_or(0, |found| found.blocks());
    (blocks(&pair.result) + blocks(&pair.metadata)) * 512
}

/// So many pairs of 64 KiB, old enough to be evicted. The later the number, the sooner it expires.
fn filled(cache: &CacheDir, count: usize) -> Vec<Pair> {
    let pairs: Vec<Pair> = (0..count)
        .map(|number| {
            let pair = cache.pair(&format!("{}/{number:03}", number % 3));
            sized(&pair, 64 << 10, now() + WEEK - number as f64 * 10.0);
            pair
        })
        .collect();
    thread::sleep(AGE);
    pairs
}

fn size(pairs: &[Pair]) -> u64 {
    pairs.iter().map(on_disk).sum()
}

/// The buckets that are not empty: the end of each, its pairs, and what they take on disk.
fn waiting_by_bucket(stats: &Value) -> Vec<(u64, u64, u64)> {
    let buckets = stats["expiring"].as_array().unwrap().iter();
    let figures = buckets.map(|bucket| {
        ["within_seconds", "count", "bytes"].map(|key| bucket[key].as_u64().unwrap_or(0))
    });
    let filled = figures.filter(|[_, count, bytes]| *count > 0 || *bytes > 0);
    filled.map(|[end, count, bytes]| (end, count, bytes)).collect()
}

fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [args, OLD].concat()
}

#[test]
fn over_the_limit_the_soonest_to_expire_go_until_the_rest_is_below_it() {
    let cache = CacheDir::in_memory();
    let pairs = filled(&cache, 30);
    let (all, each) = (size(&pairs), on_disk(&pairs[0]));
    let limit = (each * 20).to_string();
    let service = Service::start(cache.path(), &with(&["--max-size", &limit, "-v"]));
    // 95 % of 20 pairs are 19.
    service.wait_for_stat("total_evicted", 11);
    service.wait_for_stat("size_bytes", each * 19);
    assert!(pairs[..19].iter().all(Pair::is_whole));
    assert!(pairs[19..].iter().all(Pair::is_gone));
    let stats = service.stats();
    assert_eq!(stats["total_evicted_bytes"], all - each * 19);
    assert_eq!((&stats["total_deleted"], &stats["total_freed_bytes"]), (&0.into(), &0.into()));
    assert_eq!((&stats["heap_size"], &stats["total_errors"]), (&19.into(), &0.into()));
    assert_eq!(stats["max_size_bytes"], each * 20);
    assert!(stats["free_bytes"].as_u64().is_some_and(|free| free > 0));
    assert_eq!(waiting_by_bucket(&stats), [(86_400 * 7, 19, each * 19)]);
    let (_, metrics) = service.get("/metrics").unwrap();
    for line in ["result_cleaner_results_evicted_total 11", "result_cleaner_filesystem_free_bytes "]
    {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(metrics.contains("result_cleaner_lateness_seconds_count 0"), "{metrics}");
    service.assert_lines_with("evicted a result", 11);

    let status = succeed(&["status", "--url", &service.url]);
    let status = String::from_utf8(status.stdout).unwrap();
    let bar = status.lines().find(|line| line.starts_with("on disk")).unwrap();
    // 95 % of 40 blocks.
    assert_eq!(bar.matches('█').count(), 38, "{status}");
    assert!(status.contains("11 before they expired"), "{status}");

    // Events keep the size: rewritten in place, removed, published anew, extended.
    let [rewritten, removed, grown, extended] = &pairs[..4] else { panic!() };
    fs::write(&rewritten.result, vec![7; 4096]).unwrap();
    fs::remove_file(&removed.result).unwrap();
    publish(&grown.result, &vec![7; 128 << 10]);
    extended.set_expiry(now() + 2.0 * WEEK);
    service.wait_for_stat("size_bytes", size(&pairs) - on_disk(removed));
    service.assert_calm();
    assert_eq!(service.count("total_evicted"), 11);
    let (_, _, log) = service.terminate();
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn without_a_budget_nothing_goes_and_no_size_is_known() {
    let cache = CacheDir::new();
    let pair = cache.store("a", now() + WEEK);
    let service = Service::ready(cache.path(), &[]);
    service.wait_for_stat("heap_size", 1);
    let stats = service.stats();
    assert_eq!(&stats["size_bytes"], &Value::Null);
    assert_eq!((&stats["total_evicted"], &stats["total_evicted_bytes"]), (&0.into(), &0.into()));
    let buckets = stats["expiring"].as_array().unwrap();
    assert!(buckets.iter().all(|bucket| bucket["bytes"].is_null()), "{buckets:?}");
    assert!(pair.is_whole());
}

#[test]
fn what_is_young_broken_or_no_pair_is_kept_and_one_warning_says_so() {
    let cache = CacheDir::in_memory();
    let pairs = filled(&cache, 5);
    fs::write(cache.pair("broken").result, vec![7; 8192]).unwrap();
    fs::write(cache.pair("broken").metadata, "{").unwrap();
    fs::write(cache.pair("alone").result, vec![7; 8192]).unwrap();
    fs::write(cache.path().join("other"), vec![7; 8192]).unwrap();
    let service = Service::start(cache.path(), &["--max-size", "100K"]);
    let warning = "the disk budget is exceeded, and nothing more can be evicted";
    service.assert_lines_with(warning, 1);
    let log = service.log();
    let line = log.lines().find(|line| line.contains(warning)).unwrap();
    let young = format!("too_young_bytes={}", size(&pairs));
    for field in [&young, "too_young_pairs=5", "orphan_bytes=8192", "other_files_bytes=8192"] {
        assert!(line.contains(field), "{field}: {line}");
    }
    assert!(!line.contains(" broken_bytes=0"), "{line}");
    // It goes on to be exceeded, without another word.
    cache.store("more", now() + WEEK);
    service.wait_for_stat("heap_size", 6);
    service.assert_comes_to_rest();
    service.assert_lines_with(warning, 1);
    assert_eq!(service.count("total_evicted"), 0);
    assert!(pairs.iter().all(Pair::is_whole));
}

#[test]
fn a_pair_that_expires_is_deleted_and_only_the_rest_is_evicted() {
    let cache = CacheDir::in_memory();
    let pairs = filled(&cache, 10);
    pairs[0].set_expiry(now() - 1.0);
    let each = on_disk(&pairs[1]);
    let service = Service::start(cache.path(), &with(&["--max-size", &(each * 9).to_string()]));
    service.wait_for_stat("total_deleted", 1);
    service.wait_for_stat("size_bytes", each * 9);
    assert_eq!(service.count("total_evicted"), 0);
    // Nine pairs are within the limit, and a tenth is not.
    sized(&cache.pair("later"), 64 << 10, now() + 2.0 * WEEK);
    service.wait_for_stat("total_evicted", 2);
    assert!(pairs[9].is_gone() && pairs[8].is_gone() && pairs[7].is_whole());
    service.assert_calm();
}

#[test]
fn a_pair_that_cannot_be_evicted_is_an_error_with_growing_pauses_and_the_next_one_goes() {
    let cache = CacheDir::in_memory();
    let pairs = filled(&cache, 6);
    // The soonest to expire. Something else has its reserved name.
    let blocked = &pairs[5];
    fs::create_dir(blocked.result.with_file_name(".result-cleaner-005.r")).unwrap();
    let limit = (on_disk(blocked) * 5).to_string();
    let service = Service::start(cache.path(), &with(&["--max-size", &limit]));
    service.wait_for_stat("total_evicted", 2);
    assert!(blocked.is_whole() && pairs[4].is_gone() && pairs[3].is_gone());
    service.assert_lines_with("another file has the reserved name", 1);
    // All is below the limit now, so it is not tried again.
    service.assert_comes_to_rest();
    service.assert_errors(1);
    // A limit that can't be kept without it: it is tried again and again, ever less often.
    sized(&cache.pair("more"), 200 << 10, now() + 2.0 * WEEK);
    service.wait_for_at_least("total_errors", 2);
    thread::sleep(Duration::from_secs(4));
    let errors = service.count("total_errors");
    assert!(errors <= 5, "{errors} attempts");
    assert!(blocked.is_whole());
}

#[test]
fn two_cleaners_evict_no_more_than_a_batch_each_beyond_what_one_would() {
    let cache = CacheDir::in_memory();
    let pairs: Vec<Pair> = (0..1200)
        .map(|number| {
            let pair = cache.pair(&format!("{}/{number:04}", number % 5));
            fs::write(&pair.result, vec![7; 4096]).unwrap();
            fs::write(&pair.metadata, format!(r#"{{"expires_at": {}}}"#, now() + WEEK)).unwrap();
            pair
        })
        .collect();
    thread::sleep(AGE);
    let each = on_disk(&pairs[0]);
    let args = ["--max-size", &(each * 800).to_string()];
    let services = [(); 2].map(|()| Service::start(cache.path(), &with(&args)));
    wait_until("both know that enough is gone", || {
        let is_below = |service: &Service| {
            let stats = service.stats();
            stats["total_cleanups"] != 0 && stats["size_bytes"].as_u64() <= Some(each * 760)
        };
        services.iter().all(is_below)
    });
    services.iter().for_each(Service::assert_comes_to_rest);
    let left = pairs.iter().filter(|pair| pair.is_whole()).count();
    assert!(pairs.iter().all(|pair| pair.is_whole() || pair.is_gone()));
    assert!((760 - 2 * 64..=760).contains(&left), "{left} are left");
    let evicted: u64 = services.iter().map(|service| service.count("total_evicted")).sum();
    assert_eq!(evicted, (1200 - left) as u64, "each is counted once");
    services.iter().for_each(|service| service.assert_errors(0));
}

#[test]
fn two_cleaners_free_no_more_than_a_batch_each_beyond_what_one_would() {
    let Some(mount) = Mount::new("tmpfs") else { return };
    let cache = mount.cache();
    let pairs: Vec<Pair> = (0..1200)
        .map(|number| {
            let pair = Pair::at(&cache.join((number % 5).to_string()), &format!("{number:04}"));
            fs::create_dir_all(pair.result.parent().unwrap()).unwrap();
            sized(&pair, 4096, now() + WEEK);
            pair
        })
        .collect();
    thread::sleep(AGE);
    let each = on_disk(&pairs[0]);
    let enough = mount.free() + each * 440;
    let args = ["--min-free", &(enough * 100 / 105).to_string()];
    let services = [(); 2].map(|()| Service::start(&cache, &with(&args)));
    wait_until("enough is free", || mount.free() >= enough - each);
    for service in &services {
        service.wait_for_at_least("total_cleanups", 1);
        service.assert_comes_to_rest();
    }
    let left = pairs.iter().filter(|pair| pair.is_whole()).count();
    assert!(pairs.iter().all(|pair| pair.is_whole() || pair.is_gone()));
    // What else the file system holds takes a pair's room or so.
    assert!((758 - 2 * 64..=762).contains(&left), "{left} are left");
    services.iter().for_each(|service| service.assert_errors(0));
}

#[test]
fn another_limit_after_a_restart_holds_at_once() {
    let cache = CacheDir::in_memory();
    let pairs = filled(&cache, 20);
    let each = on_disk(&pairs[0]);
    for (limit, left) in [(10, 9), (15, 9), (100, 9), (5, 4)] {
        let args = ["--max-size", &(each * limit).to_string()];
        let service = Service::ready(cache.path(), &with(&args));
        service.wait_for_stat("size_bytes", each * left);
        service.assert_comes_to_rest();
        let count = pairs.iter().filter(|pair| pair.is_whole()).count() as u64;
        assert_eq!(count, left, "with a limit of {limit}");
        let (status, _, log) = service.terminate();
        assert!(status.success(), "{log}");
    }
}

#[test]
fn a_dry_run_warns_of_a_budget_that_can_not_be_kept() {
    let cache = CacheDir::in_memory();
    filled(&cache, 3);
    let dir = text(cache.path());
    let young = ["--evict-min-age", "1h", "--max-size", "64K"];
    let too_much = ["--min-free", "1000T"];
    for (limit, warning) in [
        (&young[..], "the disk budget is exceeded, and nothing more can be evicted"),
        (&too_much[..], "the file system is smaller than what has to stay free"),
    ] {
        for dry_run in [&["--dry-run"][..], &[]] {
            let output = succeed(&[&["sweep", dir], limit, dry_run].concat());
            assert!(stderr(&output).contains(warning), "{dry_run:?}: {}", stderr(&output));
        }
    }
}

#[test]
fn a_sweep_evicts_and_a_dry_run_list_and_explain_tell_before() {
    let cache = CacheDir::in_memory();
    let pairs = filled(&cache, 10);
    let each = on_disk(&pairs[0]);
    let limit = (each * 6).to_string();
    let dir = text(cache.path());
    let call = |args: &[&str]| succeed(&[args, &["--max-size", &limit], OLD].concat());
    let json = |args: &[&str]| -> Value { serde_json::from_slice(&call(args).stdout).unwrap() };

    let dry = call(&["sweep", dir, "--dry-run", "-v"]);
    assert_eq!(stderr(&dry).matches("would evict").count(), 5, "{}", stderr(&dry));
    let report = json(&["sweep", dir, "--dry-run", "--json"]);
    assert_eq!(
        (&report["evicted_count"], &report["evicted_bytes"]),
        (&5.into(), &(each * 5).into())
    );
    assert_eq!(report["deleted_count"], 0);
    assert!(pairs.iter().all(Pair::is_whole));

    let listed = String::from_utf8(call(&["list", dir, "--json"]).stdout).unwrap();
    let listed: Vec<Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let beyond: Vec<bool> =
        listed.iter().map(|pair| pair["beyond_budget"].as_bool().unwrap()).collect();
    assert_eq!(beyond, [true, true, true, true, true, false, false, false, false, false]);
    assert!(listed.iter().all(|pair| pair["disk_bytes"] == each));

    for (number, pair) in pairs.iter().enumerate() {
        let file = text(&pair.result);
        let explained = json(&["explain", "--json", "--cache-dir", dir, file]);
        assert_eq!(explained["evicted_after"], 9 - number);
        let is_evicted = explained["verdict"].as_str().unwrap().contains("evicted now");
        assert_eq!(is_evicted, number > 4, "{explained}");
    }

    let report = json(&["sweep", dir, "--json"]);
    assert_eq!(
        (&report["evicted_count"], &report["evicted_bytes"]),
        (&5.into(), &(each * 5).into())
    );
    assert_eq!((&report["deleted_count"], &report["errors"]), (&0.into(), &0.into()));
    assert!(pairs[..5].iter().all(Pair::is_whole) && pairs[5..].iter().all(Pair::is_gone));
    let report = json(&["sweep", dir, "--json"]);
    assert_eq!(report["evicted_count"], 0);
}

#[test]
fn a_limit_that_makes_no_sense_is_refused() {
    for (flag, wrong) in [
        ("--max-size", "0"),
        ("--max-size", "10%"),
        ("--max-size", "big"),
        ("--min-free", "0"),
        ("--min-free", "0%"),
        ("--min-free", "91%"),
        ("--min-free", "100%"),
        ("--evict-min-age", "0"),
    ] {
        for command in ["run", "sweep", "list"] {
            let output = call(&[command, flag, wrong, "/nonexistent"]);
            assert_eq!(output.status.code(), Some(2), "{command} {flag} {wrong}");
            assert!(stderr(&output).contains(flag), "{}", stderr(&output));
        }
    }
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &["--min-free", "1000T", "--max-size", "1000000T"]);
    service.assert_lines_with("the file system is smaller than what has to stay free", 1);
}

/// A file system of its own, which is unmounted in the end.
struct Mount {
    path: PathBuf,
    /// Dropped after the unmounting.
    _temp: tempfile::TempDir,
}

impl Mount {
    /// One of 64 MiB in memory, or in a file; `None`, and why, where nothing can be mounted.
    fn new(kind: &str) -> Option<Self> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("mounted");
        fs::create_dir(&path).unwrap();
        let image = temp.path().join("image");
        let run = |program: &str, args: &[&str]| {
            Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
        };
        let is_mounted = if kind == "tmpfs" {
            run("mount", &["-t", "tmpfs", "-o", "size=64m", "tmpfs", text(&path)])
        } else {
            File::create(&image)
                .unwrap()
                .set_len(if kind == "ext4" { 64 } else { 320 } << 20)
                .unwrap();
            run(&format!("mkfs.{kind}"), &["-q", text(&image)])
                && run("mount", &["-o", "loop", text(&image), text(&path)])
        };
        if !is_mounted {
            println!("skipped: {kind} can't be mounted here");
            return None;
        }
        Some(Self { path, _temp: temp })
    }

    fn cache(&self) -> PathBuf {
        let cache = self.path.join("cache");
        let _ = fs::create_dir(&cache);
        cache
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.path).unwrap();
        found.f_bavail * found.f_frsize
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        }
    }
}

/// What came of a writer that publishes a result of 1 MiB every 125 ms.
#[derive(Debug, Default)]
struct Written {
    count: usize,
    failed: usize,
    /// How young the youngest was that went.
    youngest: Option<Duration>,
    least_free: u64,
}

fn write_steadily(mount: &Mount, cache: &Path, time: Duration) -> Written {
    let start = Instant::now();
    let mut written = Written { least_free: u64::MAX, ..Written::default() };
    let mut there: Vec<(Pair, Instant)> = Vec::new();
    let content = vec![7; MIB];
    while start.elapsed() < time {
        let pair = Pair::at(cache, &format!("{:06}", written.count));
        let temporary = cache.join("new.tmp");
        let write = || -> std::io::Result<()> {
            fs::write(&temporary, &content)?;
            fs::rename(&temporary, &pair.result)?;
            fs::write(&temporary, format!(r#"{{"expires_at": {}}}"#, now() + WEEK))?;
            fs::rename(&temporary, &pair.metadata)
        };
        let begun = Instant::now();
        match write() {
            Ok(()) => there.push((pair, begun)),
            Err(_) => {
                written.failed += 1;
                let _ = fs::remove_file(&pair.result);
            }
        }
        written.count += 1;
        there.retain(|(pair, begun)| {
            let is_there = pair.result.exists();
            if !is_there {
                let age = begun.elapsed();
                written.youngest = Some(written.youngest.map_or(age, |before| before.min(age)));
            }
            is_there
        });
        written.least_free = written.least_free.min(mount.free());
        thread::sleep(
            (start + Duration::from_millis(125) * written.count as u32)
                .saturating_duration_since(Instant::now()),
        );
    }
    written
}

#[test]
fn a_writer_finds_room_however_long_it_writes() {
    let kinds: &[&str] = if is_long() { &["tmpfs", "ext4"] } else { &["tmpfs"] };
    for kind in kinds {
        let Some(mount) = Mount::new(kind) else { continue };
        let cache = mount.cache();
        let service = Service::ready(&cache, &["--min-free", "16M", "--evict-min-age", "2s"]);
        let time = Duration::from_secs(if is_long() { 60 } else { 9 });
        let written = write_steadily(&mount, &cache, time);
        figure(&format!("a writer of 8 MB/s on {kind} of 64 MiB"), format!("{written:?}"));
        assert_eq!(written.failed, 0, "{written:?}\n{}", service.log());
        assert!(written.youngest.is_some_and(|age| age >= Duration::from_secs(2)), "{written:?}");
        wait_until("enough is free", || mount.free() >= 16 << 20);
        assert!(mount.free() < 32 << 20, "much more than needed is free");
        assert!(service.count("total_evicted") > 0);
        service.assert_calm();
        assert_eq!(service.lines_with("WARN"), 0, "{}", service.log());
    }
}

#[test]
fn where_all_is_young_writes_fail_and_one_warning_names_the_rate() {
    let Some(mount) = Mount::new("tmpfs") else { return };
    let cache = mount.cache();
    let service = Service::ready(&cache, &["--min-free", "16M"]);
    let written = write_steadily(&mount, &cache, Duration::from_secs(10));
    assert_eq!(written.youngest, None, "something young went: {written:?}");
    let warning = "the disk budget is exceeded, and nothing more can be evicted";
    service.assert_lines_with(warning, 1);
    assert!(service.log().contains("written_bytes_per_second="), "{}", service.log());
    service.assert_comes_to_rest();
    service.assert_lines_with(warning, 1);
    assert_eq!(service.count("total_evicted"), 0);
}

#[test]
fn a_file_system_that_frees_late_loses_no_more_than_needed() {
    if !is_long() {
        return;
    }
    for kind in ["btrfs", "xfs"] {
        let Some(mount) = Mount::new(kind) else { continue };
        let cache = mount.cache();
        let room = mount.free() / MIB as u64;
        for number in 0..room / 2 {
            let pair = Pair::at(&cache, &format!("{number:03}"));
            fs::write(&pair.result, vec![7; MIB]).unwrap();
            pair.set_expiry(now() + WEEK + number as f64);
        }
        rustix::fs::sync();
        thread::sleep(AGE);
        // Some 20 MiB more than are free.
        let limit = mount.free() + (20 << 20);
        let service = Service::ready(&cache, &with(&["--min-free", &limit.to_string()]));
        service.wait_for_at_least("total_evicted", 20);
        thread::sleep(Duration::from_secs(45));
        let evicted = service.count("total_evicted_bytes");
        let needed = limit * 105 / 100 - (limit - (20 << 20));
        figure(&format!("evicted on {kind}, where {needed} bytes were needed"), evicted);
        assert!(evicted <= needed + (8 << 20), "{evicted} of {needed}\n{}", service.log());
        assert!(mount.free() >= limit, "{} of {limit}\n{}", mount.free(), service.log());
        assert_eq!(service.lines_with("WARN"), 0, "{}", service.log());
    }
}

#[test]
fn where_results_are_open_no_more_go_than_free_enough_once_they_are_closed() {
    let Some(mount) = Mount::new("tmpfs") else { return };
    let cache = mount.cache();
    // Of each pair, only the metadata is freed at once. Several batches are needed, which overlap.
    let pairs: Vec<Pair> =
        (0..600).map(|number| Pair::at(&cache, &format!("{number:03}"))).collect();
    for (number, pair) in pairs.iter().enumerate() {
        sized(pair, 16 << 10, now() + WEEK + number as f64);
    }
    let open: Vec<File> = pairs.iter().map(|pair| File::open(&pair.result).unwrap()).collect();
    thread::sleep(AGE);
    let each = on_disk(&pairs[0]);
    let limit = (mount.free() + each * 300) * 100 / 105;
    let service = Service::ready(&cache, &with(&["--min-free", &limit.to_string()]));
    // What one of the batches frees while another one begins may be counted as hidden, too.
    service.wait_for_at_least("total_evicted", 300 - 64);
    thread::sleep(Duration::from_secs(2));
    let evicted = service.count("total_evicted");
    assert!(evicted <= 301, "{evicted} are evicted\n{}", service.log());
    drop(open);
}

#[test]
fn open_and_linked_files_free_nothing_and_no_others_go_in_their_place() {
    let Some(mount) = Mount::new("tmpfs") else { return };
    let cache = mount.cache();
    let pairs: Vec<Pair> =
        (0..50).map(|number| Pair::at(&cache, &format!("{number:02}"))).collect();
    for (number, pair) in pairs.iter().enumerate() {
        fs::write(&pair.result, vec![7; MIB]).unwrap();
        pair.set_expiry(now() + WEEK + number as f64);
    }
    // The first five have another link, and all others are open.
    for (number, pair) in pairs[..5].iter().enumerate() {
        fs::hard_link(&pair.result, mount.path.join(number.to_string())).unwrap();
    }
    let open: Vec<File> = pairs[5..].iter().map(|pair| File::open(&pair.result).unwrap()).collect();
    thread::sleep(AGE);
    let needed = (16 << 20) * 105 / 100 - mount.free();
    let service = Service::ready(&cache, &with(&["--min-free", "16M"]));
    let expected = needed.div_ceil(MIB as u64 + 4096);
    service.wait_for_stat("total_evicted", expected);
    // What was evicted counts as free for 30 s.
    let (time, paused) = if is_long() { (45, 1) } else { (4, 0) };
    thread::sleep(Duration::from_secs(time));
    assert_eq!(service.count("total_evicted"), expected, "{}", service.log());
    service.assert_lines_with("evictions free less than half of what they delete", paused);
    assert!(pairs[..5].iter().all(Pair::is_whole), "a linked result went");
    drop(open);
}
