//! `explain`: for each thing that can be the matter with a result, the condition that is not met, why,
//! and what becomes of it; and that the engine then does just that.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::{
    CacheDir, Pair, call, now, publish, result_cleaner, snapshot, stderr, stdout, succeed, text,
    unprivileged_run_by, wait_until,
};
use serde_json::Value;

fn explain(cache: &CacheDir, file: &Path) -> Value {
    let output =
        call(&["explain", "--cache-dir", text(cache.path()), "--json", file.to_str().unwrap()]);
    serde_json::from_str(stdout(&output)).unwrap_or_else(|_| panic!("{output:?}"))
}

/// Asserts which condition is the first that is not met (6: all are), and that the reason for that,
/// or the verdict, has `words` in it.
#[track_caller]
fn assert_explained(explained: &Value, unmet: usize, fate: &str, words: &str) {
    let conditions = explained["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 5);
    for (number, condition) in (1..).zip(conditions) {
        let expected = match number {
            _ if number < unmet => Value::Bool(true),
            _ if number == unmet => Value::Bool(false),
            _ => Value::Null,
        };
        assert_eq!(condition["condition"], number);
        assert_eq!(condition["met"], expected, "{explained}");
        assert!(!condition["why"].as_str().unwrap().is_empty());
    }
    assert_eq!(explained["fate"], fate, "{explained}");
    let why = conditions.get(unmet - 1).map_or("", |condition| condition["why"].as_str().unwrap());
    let reported = format!("{why} | {}", explained["verdict"].as_str().unwrap());
    assert!(reported.contains(words), "{words:?} is not in {reported:?}");
}

#[test]
fn each_condition_that_is_not_met_is_reported_with_the_reason() {
    let cache = CacheDir::new();
    let path = |name: &str| cache.path().join(name);
    let whole = |name: &str, metadata: &str| -> Pair {
        let pair = cache.pair(name).settled(1.5);
        publish(&pair.metadata, metadata.as_bytes());
        pair
    };
    let expired = whole("s/expired", r#"{"expires_at": 1.5}"#);
    let live = cache.store("live", now() + 7200.5);
    let broken = whole("broken", "{");
    let millis = whole("millis", r#"{"expires_at": 1795468279498}"#);
    let alone = cache.pair("alone").result;
    let lone_metadata = cache.pair("lone").metadata;
    for file in [&alone, &path("x.metadata.json.tmp"), &path("notes.txt")] {
        fs::write(file, "x").unwrap();
    }
    fs::write(&lone_metadata, r#"{"expires_at": 1.5}"#).unwrap();
    fs::write(path(".result-cleaner-a.r"), "x").unwrap();
    fs::create_dir(path("y.metadata.json.tmp")).unwrap();
    fs::write(path("odd.metadata.json"), "{").unwrap();
    let (fifo, link) = (whole("fifo", "{}"), whole("link", "{}"));
    fs::remove_file(&fifo.metadata).unwrap();
    assert!(Command::new("mkfifo").arg(&fifo.metadata).status().unwrap().success());
    fs::remove_file(&link.result).unwrap();
    symlink("s/expired.result.json.lz4", &link.result).unwrap();
    let elsewhere = cache.outside("a.result.json.lz4");
    fs::write(&elsewhere, "x").unwrap();
    symlink(cache.outside(""), path("outside")).unwrap();
    let before = snapshot(&cache);

    for (file, unmet, fate, words) in [
        (&expired.result, 6, "due", "deletes it at once"),
        (&expired.metadata, 6, "due", "deletes it at once"),
        (&live.result, 5, "waits", "within milliseconds of its expiry"),
        (&broken.result, 4, "stays", "metadata"),
        (&millis.metadata, 4, "stays", "milliseconds"),
        (&alone, 3, "stays", "there is no alone.metadata.json"),
        (&lone_metadata, 3, "stays", "lone.result.json.lz4 is not there"),
        (&fifo.result, 3, "stays", "is a FIFO"),
        (&link.metadata, 3, "stays", "is a symbolic link"),
        (&path("gone.result.json.lz4"), 3, "gone", "never stored"),
        (&elsewhere, 2, "stays", "nothing outside"),
        (&path("outside/a.result.json.lz4"), 2, "stays", "nothing outside"),
        (&path("nowhere/a.result.json.lz4"), 2, "gone", "does not exist"),
        (&path("notes.txt"), 1, "stays", "other names"),
        (&path("s"), 1, "stays", "--prune-empty-dirs"),
        (&path("nothing.txt"), 1, "gone", "no such file"),
        (&path("nothing.metadata.json.tmp"), 1, "gone", "no such file"),
        (&path("live.result.json.lz4/x.metadata.json"), 2, "gone", "no such file"),
        (&path("y.metadata.json.tmp"), 1, "stays", "only regular files"),
        (&path("odd.metadata.json"), 3, "stays", "is invalid, too"),
        (&path("x.metadata.json.tmp"), 1, "stays", "--remove-orphans"),
        (&path(".result-cleaner-a.r"), 1, "stays", "reserved name"),
    ] {
        assert_explained(&explain(&cache, file), unmet, fate, words);
    }
    assert_eq!(snapshot(&cache), before, "nothing is changed");

    let explained = explain(&cache, &live.metadata);
    assert_eq!(explained["result"], text(&live.result));
    let left = explained["expires_in_seconds"].as_f64().unwrap();
    assert!((7000.0..7201.0).contains(&left), "{explained}");
    assert!(explained["expires_at"].as_str().unwrap().ends_with('Z'));

    succeed(&["sweep", text(cache.path())]);
    assert!(expired.is_gone() && live.is_whole() && broken.is_whole() && alone.exists());
}

#[test]
fn what_keeps_the_engine_from_deleting_is_reported() {
    let cache = CacheDir::new();
    let pair = cache.pair("s/a").settled(1.5);
    let settles = "unchanged for a second";
    let mut explained = Value::Null;
    wait_until("it is explained within that second", || {
        publish(&pair.result, b"newer than its metadata");
        explained = explain(&cache, &pair.result);
        explained.to_string().contains(settles)
    });
    assert_explained(&explained, 6, "due", settles);

    let pair = cache.pair("t/a").settled(1.5);
    let dir = fs::File::open(pair.result.parent().unwrap()).unwrap();
    rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_explained(&explain(&cache, &pair.result), 6, "due", "has locked the directory");
    drop(dir);

    let pair = cache.pair("u/a").settled(1.5);
    fs::create_dir(pair.result.with_file_name(".result-cleaner-a.r")).unwrap();
    assert_explained(&explain(&cache, &pair.result), 6, "due", "has the reserved name");

    let long = cache.pair(&"l".repeat(239)).write(1.5);
    wait_until("it has settled", || !explain(&cache, &long.result).to_string().contains(settles));
    assert_explained(&explain(&cache, &long.result), 6, "due", "too long for a reserved name");

    let taken = cache.pair("v/a").settled(1.5);
    fs::rename(&taken.result, taken.result.with_file_name(".result-cleaner-a.r")).unwrap();
    fs::remove_file(&taken.metadata).unwrap();
    assert_explained(&explain(&cache, &taken.result), 3, "gone", "has claimed it");
}

#[test]
fn people_get_five_lines_and_a_verdict() {
    let cache = CacheDir::new();
    let pair = cache.store("a", now() + 26.0 * 3600.0 + 60.0);
    let output = succeed(&[
        "explain",
        "--cache-dir",
        text(cache.path()),
        text(&pair.metadata),
        text(&pair.result),
    ]);
    let blocks: Vec<&str> = stdout(&output).split("\n\n").collect();
    assert_eq!(blocks.len(), 2);
    for (block, file) in blocks.iter().zip([&pair.metadata, &pair.result]) {
        let lines: Vec<&str> = block.trim_end().lines().collect();
        assert_eq!(lines.len(), 8, "{block}");
        assert_eq!(lines[0], text(file));
        for (number, line) in (1..=5).zip(&lines[1..]) {
            let met = if number == 5 { "no " } else { "yes" };
            assert!(line.starts_with(&format!("  {number}. {met}  ")), "{line}");
        }
        assert!(lines[6].ends_with("(in 1 day 2h)"), "{}", lines[6]);
    }
    assert!(!stdout(&output).contains('\u{1b}'), "no colour into a pipe");
}

#[test]
fn files_that_are_not_there_fail_and_the_others_are_explained() {
    let cache = CacheDir::new();
    let pair = cache.store("a", now() + 60.0);
    let gone = cache.path().join("g.result.json.lz4");
    let output =
        call(&["explain", "--cache-dir", text(cache.path()), text(&pair.result), text(&gone)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("within milliseconds"));
    assert_eq!(stderr(&output), format!("error: not there: {}\n", text(&gone)));
    assert_eq!(call(&["explain"]).status.code(), Some(2));
    let not_a_dir = call(&["explain", "--cache-dir", text(&pair.result), text(&pair.result)]);
    assert_eq!(not_a_dir.status.code(), Some(1));
    assert!(stderr(&not_a_dir).contains("not a directory"), "{}", stderr(&not_a_dir));
}

#[test]
fn the_cache_directory_may_be_named_over_a_link_and_files_relative_to_where_one_is() {
    let cache = CacheDir::new();
    let pair = cache.pair("s/a").settled(1.5);
    let link = cache.outside("link");
    symlink(cache.path(), &link).unwrap();
    let mut command = result_cleaner();
    command.args(["explain", "--json", "--cache-dir", text(&link), "a.metadata.json"]);
    let output = command.current_dir(pair.result.parent().unwrap()).output().unwrap();
    let explained: Value = serde_json::from_str(stdout(&output)).unwrap();
    wait_until("it has settled", || explain(&cache, &pair.result)["fate"] == "due");
    assert_explained(&explained, 6, "due", "");
}

#[test]
fn the_cache_directory_is_found_if_it_is_not_named() {
    let cache = CacheDir::new();
    let pair = cache.store("s/a", now() + 60.0);
    let explain = |file: &str, variable: &str| -> Value {
        let mut command = result_cleaner();
        command.args(["explain", "--json", file]).env("RESULT_CLEANER_CACHE_DIR", variable);
        let output = command.output().unwrap();
        serde_json::from_str(stdout(&output)).unwrap_or_else(|_| panic!("{output:?}"))
    };
    let (dir, file) = (text(cache.path()), text(&pair.result));
    // The variable, where the file lies in that directory; also for a path as `list` shows it.
    for file in [file, "s/a.result.json.lz4"] {
        let explained = explain(file, dir);
        assert_explained(&explained, 5, "waits", "is in the future");
        assert_eq!(explained["cache_directory"], dir);
    }
    // Else the directory of the file.
    let own = text(pair.result.parent().unwrap());
    for variable in ["", "/nowhere"] {
        let explained = explain(file, variable);
        assert_explained(&explained, 5, "waits", "is in the future");
        assert_eq!(explained["cache_directory"], own);
    }
    let output = succeed(&["explain", file]);
    let line = format!("  cache directory {own}, the directory of the file");
    assert!(stdout(&output).lines().any(|shown| shown == line), "{}", stdout(&output));
}

#[test]
fn what_can_not_be_read_is_not_taken_for_absent_and_the_other_files_are_explained() {
    let cache = CacheDir::new();
    for name in ["open/a", "locked/a"] {
        cache.store(name, now() + 60.0);
    }
    let unreadable = cache.store("open/unreadable", now() + 60.0).metadata;
    let Some((service, _)) = unprivileged_run_by(&cache, &[], &[]) else { return };
    for (path, mode) in [(cache.path().join("locked"), 0o000), (unreadable, 0o000)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let dir = text(cache.path());
    let explain = |args: &[&str]| {
        let before_run = service.get_args().take_while(|arg| *arg != "run");
        let mut command = Command::new(service.get_program());
        command.args(before_run).arg("explain").args(args).output().unwrap()
    };
    let output = explain(&["--cache-dir", dir, "locked/a.result.json.lz4"]);
    assert!(stdout(&output).contains("Permission denied"), "{output:?}");
    assert!(!stderr(&output).contains("not there"), "{output:?}");

    let paths = ["open/a", "locked/a"].map(|name| cache.pair(name).result);
    let [open, locked] = paths.each_ref().map(|path| text(path));
    let output = explain(&[locked, open]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("expires_at is in the future"), "{output:?}");
    assert!(stderr(&output).contains(locked), "{output:?}");

    let output = explain(&["--cache-dir", dir, "open/unreadable.result.json.lz4"]);
    assert!(stdout(&output).contains("check the permissions"), "{output:?}");
}
