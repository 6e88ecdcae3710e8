//! Half a pair, a pair that is being replaced, and what only looks like one.

use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use crate::common::{
    CacheDir, Pair, Service, free_address, in_time, now, publish, result_cleaner, tool,
    wait_for_later_pair, wait_until,
};

const HOUR: f64 = 3600.0;
/// Long expired.
const LONG_AGO: f64 = 1.5;
/// How often is tried to come in time, where the time is the second that a half-published pair has.
const MAX_ATTEMPTS: u32 = 20;

fn wait_until_gone(pair: &Pair) {
    wait_until("the pair is gone", || pair.is_gone());
}

#[test]
fn a_half_alone_is_kept_and_is_no_error() {
    let cache = CacheDir::new();
    let [old, new] = ["old", "new"].map(|age| {
        (cache.pair(&format!("{age}-result")), cache.pair(&format!("dir/{age}-metadata")))
    });
    let make = |(result, metadata): &(Pair, Pair)| {
        publish(&result.result, b"result");
        metadata.set_expiry(LONG_AGO);
        // Broken, but of no pair.
        fs::write(metadata.metadata.with_file_name("broken.metadata.json"), "{").unwrap();
    };
    make(&old);
    let service = Service::ready(cache.path(), &["--check-interval", "1s"]);
    make(&new);
    service.wait_for_at_least("total_cleanups", 4);
    wait_for_later_pair(&cache);
    for (result, metadata) in [old, new] {
        assert!(result.result.exists() && metadata.metadata.exists());
    }
    service.wait_for_stat("total_deleted", 1);
    service.wait_for_stat("heap_size", 0);
    assert_eq!(service.count("total_errors"), 0, "{}", service.log());
}

#[test]
fn a_missing_half_that_arrives_makes_a_pair_that_is_judged_anew() {
    let cache = CacheDir::new();
    let pairs: Vec<Pair> = (0..6).map(|n| cache.pair(&format!("dir-{n}/pair"))).collect();
    let results = |range: &[Pair]| range.iter().for_each(|pair| publish(&pair.result, b"result"));
    let metadata = |range: &[Pair]| {
        range[0].set_expiry(LONG_AGO);
        range[1].set_expiry(now() + HOUR);
        fs::write(&range[2].metadata, "[]").unwrap();
    };
    results(&pairs[..3]);
    metadata(&pairs[3..]);
    let service = Service::ready(cache.path(), &[]);
    service.assert_calm();
    metadata(&pairs[..3]);
    results(&pairs[3..]);
    wait_until_gone(&pairs[0]);
    wait_until_gone(&pairs[3]);
    service.wait_for_stat("heap_size", 2);
    service.wait_for_stat("total_errors", 2);
    service.wait_for_stat("total_deleted", 2);
    for n in [1, 2, 4, 5] {
        assert!(pairs[n].is_whole(), "{n}");
    }
    service.assert_errors(2);
}

#[test]
fn a_result_that_is_newer_than_its_metadata_goes_once_unchanged_for_a_second() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let pair = cache.pair("pair");
    pair.set_expiry(LONG_AGO);
    wait_for_later_pair(&cache);
    let published = now();
    publish(&pair.result, b"result");
    wait_until_gone(&pair);
    assert_a_second_passed_since(published);
    service.assert_calm();
}

fn assert_a_second_passed_since(time: f64) {
    // The file system's clock is a few milliseconds behind.
    assert!(now() >= time + 0.98, "it went after {} s", now() - time);
}

#[test]
fn a_result_that_goes_on_changing_begins_its_second_anew() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    for attempt in 0.. {
        let pair = cache.pair(&format!("pair-{attempt}"));
        pair.set_expiry(LONG_AGO);
        let published = now();
        publish(&pair.result, b"result");
        wait_until("half a second is over", || now() > published + 0.5);
        let changed = now();
        let file = File::options().append(true).open(&pair.result);
        let written = file.is_ok_and(|mut file| file.write_all(b"more").is_ok());
        let in_time = written && now() < published + 0.8;
        wait_until_gone(&pair);
        if in_time {
            assert_a_second_passed_since(changed);
            break;
        }
        if attempt == MAX_ATTEMPTS {
            return eprintln!("left out: the machine is too busy");
        }
    }
    service.assert_calm();
}

/// The names of an expiring pair are published again around its expiry: the result before it, the
/// metadata after it.
#[test]
fn a_result_that_kept_an_old_mtime_is_as_new_as_its_name() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    for attempt in 0.. {
        let expiry = now() + 1.5;
        let pair = cache.store(&format!("dir-{attempt}/pair"), expiry);
        // Published long enough before it expires.
        let witness = cache.store(&format!("witness-{attempt}"), expiry + 0.1);
        wait_until("it is about to expire", || now() > expiry - 0.2);
        let temporary = pair.result.with_extension("tmp");
        fs::write(&temporary, "fresh").unwrap();
        set_mtime(&temporary, 1);
        let published = now();
        fs::rename(&temporary, &pair.result).unwrap();
        wait_until_gone(&witness);
        // What a busy machine made late is no half-published pair any more.
        let there = fs::read(&pair.result);
        let in_time = published < expiry - 0.05 && now() < published + 0.8;
        if in_time {
            assert_eq!(there.unwrap(), b"fresh");
        }
        pair.set_expiry(now() + HOUR);
        if in_time && now() < published + 0.95 {
            service.wait_for_stat("heap_size", 1);
            let second = cache.store("second", published + 1.2);
            wait_until_gone(&second);
            assert!(pair.is_whole());
            assert_eq!(fs::read(&pair.result).unwrap(), b"fresh");
            break;
        }
        let _ = fs::remove_dir_all(pair.result.parent().unwrap());
        service.wait_for_stat("heap_size", 0);
        if attempt == MAX_ATTEMPTS {
            return eprintln!("left out: the machine is too busy");
        }
    }
    service.assert_calm();
}

fn set_mtime(path: &Path, seconds: u64) {
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    let file = File::options().append(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(time).set_accessed(time)).unwrap();
}

#[test]
fn modification_times_in_the_past_or_the_future_do_not_matter() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let aside = cache.outside("aside");
    let at = now() + 1.0;
    for (n, times) in
        [(1, 4_000_000_000), (4_000_000_000, 1), (1, 1), (4_000_000_000, 4_000_000_000)]
            .into_iter()
            .enumerate()
    {
        for (name, at) in [("going", at), ("waiting", at + HOUR)] {
            // A rename keeps them.
            let name = format!("{name}-{n}");
            let (made, pair) = (Pair::at(&aside, &name).write(at), cache.pair(&name));
            set_mtime(&made.result, times.0);
            set_mtime(&made.metadata, times.1);
            fs::rename(made.result, pair.result).unwrap();
            fs::rename(made.metadata, pair.metadata).unwrap();
        }
    }
    service.wait_for_stat("total_deleted", 4);
    assert!(now() >= at);
    service.wait_for_stat("heap_size", 4);
    service.assert_calm();
}

/// Puts what only bears the names of pairs into `dir`, each half beside a real other half.
fn impostors(cache: &CacheDir, dir: &str) -> (Vec<PathBuf>, Vec<UnixListener>) {
    let real = Pair::at(&cache.outside("real"), "pair").write(LONG_AGO);
    let mut listeners = Vec::new();
    let mut make = |kind: &str, path: &Path, target: &Path| match kind {
        "symlink" => symlink(target, path).unwrap(),
        "dangling" => symlink("nowhere", path).unwrap(),
        "fifo" => assert!(tool("mkfifo", &[path.as_ref()])),
        "socket" => listeners.push(UnixListener::bind(path).unwrap()),
        "directory" => fs::create_dir(path).unwrap(),
        _ => unreachable!(),
    };
    let mut paths = Vec::new();
    for kind in ["symlink", "dangling", "fifo", "socket", "directory"] {
        let result = cache.pair(&format!("{dir}/{kind}-r"));
        make(kind, &result.result, &real.result);
        result.set_expiry(LONG_AGO);
        let metadata = cache.pair(&format!("{dir}/{kind}-m"));
        make(kind, &metadata.metadata, &real.metadata);
        publish(&metadata.result, b"result");
        let both = cache.pair(&format!("{dir}/{kind}-both"));
        make(kind, &both.result, &real.result);
        make(kind, &both.metadata, &real.metadata);
        for pair in [result, metadata, both] {
            paths.extend([pair.result, pair.metadata]);
        }
    }
    paths.extend([real.result, real.metadata]);
    (paths, listeners)
}

#[test]
fn what_is_no_regular_file_is_left_alone_and_blocks_nothing() {
    let cache = CacheDir::new();
    let (mut paths, _before) = impostors(&cache, "before");
    let service = Service::ready(cache.path(), &["--check-interval", "1s"]);
    let (more, _after) = impostors(&cache, "after");
    paths.extend(more);
    service.wait_for_at_least("total_cleanups", 3);
    wait_for_later_pair(&cache);
    for path in &paths {
        assert!(path.symlink_metadata().is_ok(), "{path:?}");
    }
    service.wait_for_stat("total_deleted", 1);
    service.wait_for_stat("heap_size", 0);
    assert_eq!(service.count("total_errors"), 0, "{}", service.log());
}

#[test]
fn a_symlinked_directory_is_not_followed() {
    let cache = CacheDir::new();
    let outside = cache.outside("elsewhere");
    let old = Pair::at(&outside, "old").write(LONG_AGO);
    symlink(&outside, cache.path().join("before")).unwrap();
    let service = Service::ready(cache.path(), &[]);
    symlink(&outside, cache.path().join("after")).unwrap();
    let new = Pair::at(&outside, "new").write(LONG_AGO);
    wait_for_later_pair(&cache);
    assert!(old.is_whole() && new.is_whole());
    service.wait_for_stat("heap_size", 0);
    service.assert_calm();
}

#[test]
fn a_link_in_the_place_of_a_known_directory_leads_nowhere() {
    in_time(|seconds| {
        let cache = CacheDir::new();
        let target = Pair::at(&cache.outside("elsewhere"), "sub/pair").write(LONG_AGO);
        let service = Service::ready(cache.path(), &[]);
        let at = now() + seconds;
        cache.store("replaced/sub/pair", at);
        let known = service.knows_before(at, 1);
        // Its time has come before anything reports the link.
        service.stop();
        if !known || now() >= at {
            return false;
        }
        fs::rename(cache.path().join("replaced"), cache.outside("replaced")).unwrap();
        symlink(cache.outside("elsewhere"), cache.path().join("replaced")).unwrap();
        wait_until("it is due", || now() > at);
        service.go_on();
        service.wait_for_stat("heap_size", 0);
        wait_for_later_pair(&cache);
        assert!(target.is_whole());
        assert!(Pair::at(&cache.outside("replaced"), "sub/pair").is_whole());
        service.assert_calm();
        true
    });
}

#[test]
fn directories_that_bear_the_names_are_directories() {
    let cache = CacheDir::new();
    let dirs =
        ["x.result.json.lz4", "x.metadata.json", "y.result.json.lz4/y.metadata.json", "z.tmp"];
    let pairs = |at: f64| -> Vec<Pair> {
        dirs.iter().map(|dir| cache.store(&format!("{dir}/pair"), at)).collect()
    };
    let first = pairs(LONG_AGO);
    let service = Service::ready(cache.path(), &[]);
    first.iter().for_each(wait_until_gone);
    pairs(now() + 0.2).iter().for_each(wait_until_gone);
    // Made, moved and removed while it runs.
    for dir in dirs {
        fs::rename(cache.path().join(dir), cache.outside("aside")).unwrap();
        Pair::at(&cache.outside("aside"), "pair").write(LONG_AGO);
        fs::rename(cache.outside("aside"), cache.path().join(dir)).unwrap();
        wait_until_gone(&Pair::at(&cache.path().join(dir), "pair"));
        assert!(cache.path().join(dir).is_dir());
    }
    service.wait_for_stat("total_deleted", 12);
    service.assert_calm();
}

#[test]
fn temporary_files_and_all_other_names_stay() {
    let cache = CacheDir::new();
    let others = [
        "a.result.json.lz4.tmp",
        "a.metadata.json.tmp",
        "a.result.json",
        "a.RESULT.json.lz4",
        "a.result.json.lz4~",
        "aresult.json.lz4",
        "a.metadata.jsonx",
        "notes.txt",
        ".result-cleaner-x",
    ];
    let write = |dir: &str| {
        let dir = cache.path().join(dir);
        fs::create_dir_all(&dir).unwrap();
        for name in others {
            fs::write(dir.join(name), r#"{"expires_at": 1.5}"#).unwrap();
        }
        fs::write(dir.join("a.metadata.json"), r#"{"expires_at": 1.5}"#).unwrap();
    };
    write("before");
    let service = Service::ready(cache.path(), &["--check-interval", "1s"]);
    write("after");
    service.wait_for_at_least("total_cleanups", 3);
    wait_for_later_pair(&cache);
    assert_eq!(cache.files().len(), 2 * (others.len() + 1));
    assert_eq!(service.stats()["total_errors"], 0);
}

#[test]
fn mount_points_inside_are_not_entered() {
    if !tool_works("unshare", &["-Urm", "mount", "-t", "tmpfs", "none", "/tmp"]) {
        return eprintln!("skipped: mounts can't be made here");
    }
    let cache = CacheDir::new();
    let source = cache.outside("source");
    let bound = Pair::at(&source, "sub/bound").write(LONG_AGO);
    let beneath = cache.store("bind/sub/bound", now() + HOUR);
    fs::create_dir(cache.path().join("tmpfs")).unwrap();
    let script = r#"set -e
        mount --bind "$1/source" "$1/cached_results/bind"
        mount -t tmpfs none "$1/cached_results/tmpfs"
        cp "$1"/source/sub/* "$1/cached_results/tmpfs"
        shift; exec "$@""#;
    let address = free_address();
    let temp = cache.path().parent().unwrap();
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", script, "sh"]).arg(temp);
    command.arg(result_cleaner().get_program()).arg("run").arg(cache.path());
    command.args(["--no-metrics", "--check-interval", "1s", "--listen", &address]);
    let service = Service::spawn(command, &format!("http://{address}"));
    service.wait_for_at_least("total_cleanups", 3);
    wait_for_later_pair(&cache);
    assert!(bound.is_whole() && beneath.is_whole());
    let seen = PathBuf::from(format!("/proc/{}/root{}", service.pid(), cache.path().display()));
    assert_ne!(seen.metadata().unwrap().dev(), seen.join("tmpfs").metadata().unwrap().dev());
    assert!(Pair::at(&seen.join("tmpfs"), "bound").is_whole());
    service.wait_for_stat("heap_size", 0);
    assert_eq!(service.count("total_errors"), 0, "{}", service.log());
}

fn tool_works(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}
