//! `list`: what expires when, for people and for programs.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use crate::common::{
    CacheDir, keys, now, publish, result_cleaner, snapshot, stderr, stdout, succeed, text,
};
use chrono::DateTime;
use serde_json::Value;

#[test]
fn list_has_the_soonest_first_and_the_invalid_last() {
    let cache = CacheDir::new();
    let invalid = cache.store("a/invalid", 1.5);
    publish(&invalid.metadata, br#"{"expires_at": 1795468279498}"#);
    let late = cache.store("b", now() + 7200.0);
    let expired = cache.guide("c", 1_000_000_000.25);
    let soon = cache.store("d", now().floor() + 60.0);
    fs::write(cache.path().join("orphan.result.json.lz4"), "").unwrap();
    let order = [&expired, &soon, &late, &invalid];

    let before = snapshot(&cache);
    let output = succeed(&["list", text(cache.path()), "--json"]);
    let lines: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (line, pair) in lines.iter().zip(order) {
        let mut found = keys(line);
        found.retain(|key| *key != "reason");
        assert_eq!(found, ["bytes", "expires_at", "expires_in_seconds", "result"]);
        assert_eq!(line["result"], text(&pair.result.canonicalize().unwrap()));
        assert_eq!(line["bytes"], pair.bytes());
    }
    for line in &lines[..3] {
        let at = line["expires_at"].as_str().unwrap();
        assert!(at.ends_with('Z') && at.contains('.'), "{at}");
        let at = DateTime::parse_from_rfc3339(at).unwrap().timestamp_micros() as f64 / 1e6;
        let left = line["expires_in_seconds"].as_f64().unwrap();
        assert!((at - now() - left).abs() < 60.0, "{line}");
        assert!(line.get("reason").is_none());
    }
    assert_eq!(lines[0]["expires_at"], "2001-09-09T01:46:40.250Z");
    assert!(lines[0]["expires_in_seconds"].as_f64().unwrap() < 0.0);
    assert!(lines[3]["expires_at"].is_null() && lines[3]["expires_in_seconds"].is_null());
    assert!(lines[3]["reason"].as_str().unwrap().contains("milliseconds"), "{}", lines[3]);

    let output = succeed(&["list", text(cache.path())]);
    let lines: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert!(
        lines[5].starts_with("4 results, ")
            && lines[5].contains(", 1 expired, 1 invalid, next in ")
    );
    assert!(lines[4].contains(" a/invalid.result.json.lz4: "), "relative paths: {lines:?}");
    for (line, pair) in lines[1..].iter().zip(order) {
        assert!(line.contains(text(pair.result.file_name().unwrap().as_ref())), "{line}");
    }
    assert!(lines[1].contains("expired") && lines[4].contains("milliseconds"), "{lines:?}");
    assert_eq!(snapshot(&cache), before);
}

#[test]
fn hostile_names_are_shown_harmlessly_and_named_exactly() {
    let cache = CacheDir::new();
    for name in [&b"one\xe9"[..], b"\x1b[2J\nclear\r\x07"] {
        let pair =
            |half: &str| cache.path().join(OsStr::from_bytes(&[name, half.as_bytes()].concat()));
        fs::write(pair(".result.json.lz4"), "data").unwrap();
        fs::write(pair(".metadata.json"), "broken").unwrap();
    }
    let path = text(cache.path());
    let output = succeed(&["list", path]);
    assert_eq!(stdout(&output).lines().count(), 4, "{}", stdout(&output));
    let swept = succeed(&["sweep", path]);
    assert_eq!(stderr(&swept).lines().count(), 2, "{}", stderr(&swept));
    for shown in [stdout(&output), stderr(&output), stdout(&swept), stderr(&swept)] {
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    }
    let quoted = [r"$'\x1B[2J\nclear\r\x07.result.json.lz4'", r"$'one\xE9.result.json.lz4'"];
    let program = result_cleaner().get_program().to_str().unwrap().to_owned();
    for name in quoted {
        assert!(stdout(&output).contains(name), "{}", stdout(&output));
        // What is shown can be pasted into a shell.
        let script = format!("{program} explain --cache-dir {path} {name}");
        let Ok(output) = Command::new("bash").args(["-c", &script]).output() else { continue };
        assert!(output.status.success(), "{output:?}");
    }

    let output = succeed(&["list", path, "--json"]);
    let lines: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let dir = cache.path().canonicalize().unwrap();
    for line in lines {
        let result = line["result"].as_str().unwrap();
        if let Some(bytes) = line["result_bytes"].as_str() {
            let expected = dir.join(OsStr::from_bytes(b"one\xe9.result.json.lz4"));
            let hex: String =
                expected.as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(bytes, hex);
            assert!(result.ends_with("one\u{fffd}.result.json.lz4"), "{result}");
        } else {
            assert_eq!(result, text(&dir.join("\u{1b}[2J\nclear\r\u{7}.result.json.lz4")));
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let cache = CacheDir::new();
    for n in 0..1000 {
        // Together far more than a pipe holds.
        cache.guide(&format!("{n:0200}"), now() + 3600.0);
    }
    for args in [&["list"][..], &["list", "--json"]] {
        let mut child = result_cleaner()
            .args(args)
            .arg(cache.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(!first.is_empty());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn filters_are_a_union_and_a_limit_hides_the_rest() {
    let cache = CacheDir::new();
    let expired = cache.store("a/expired", now() - 60.0);
    let live = cache.store("live", now() + 3600.0);
    let invalid = cache.store("invalid", 1.5);
    publish(&invalid.metadata, b"{");
    let orphans = ["alone.result.json.lz4", "b.metadata.json.tmp", "lone.metadata.json"];
    for name in orphans {
        fs::write(cache.path().join(name), "12345").unwrap();
    }
    let list = |args: &[&str]| -> Vec<Value> {
        let output = succeed(&[&["list", text(cache.path()), "--json"], args].concat());
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let names = |lines: &[Value]| -> Vec<String> {
        let name =
            |line: &Value| line["result"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        lines.iter().map(name).collect()
    };
    let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let pairs = [&expired, &live, &invalid].map(|pair| name(&pair.result));
    let [expired, live, invalid] = pairs.each_ref().map(String::as_str);
    assert_eq!(names(&list(&[])), [expired, live, invalid]);
    assert_eq!(names(&list(&["--limit", "1"])), [expired]);
    assert_eq!(names(&list(&["--expired"])), [expired]);
    assert_eq!(names(&list(&["--invalid", "--expired"])), [expired, invalid]);
    let found = list(&["--orphans"]);
    assert_eq!(names(&found), orphans);
    for (line, kind) in found.iter().zip(["result", "tmp", "metadata"]) {
        assert_eq!((&line["orphan"], &line["bytes"]), (&kind.into(), &5.into()), "{line}");
    }
    // The orphans are what a sweep sees besides the pairs.
    let swept = succeed(&["sweep", text(cache.path()), "--dry-run", "--json"]);
    let swept: Value = serde_json::from_str(stdout(&swept)).unwrap();
    assert_eq!((&swept["checked_count"], &swept["dry_run"]), (&4.into(), &true.into()));

    let output = succeed(&["list", text(cache.path()), "--limit", "2", "--orphans", "--invalid"]);
    let last = stdout(&output).lines().last().unwrap();
    assert!(
        last.starts_with("1 result, ") && last.ends_with("3 orphans, 15 B (2 not shown)"),
        "{last}"
    );
}
