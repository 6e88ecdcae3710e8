//! Every form of `expires_at`, from the file on disk to what `list` says of it, in several zones.
use chrono::{DateTime, TimeDelta};
use serde_json::Value;
use std::{collections::HashMap, fs, path::Path, process::Command, thread, time::Duration};

/// The content of a metadata file, and its instant or a part of the reason against it.
type Row = (Vec<u8>, Result<&'static str, &'static str>);

struct Zone {
    name: &'static str,
    /// The same rules, as of 2026, for a machine that has no time zone database.
    posix: &'static str,
}

impl Zone {
    fn tz(&self) -> &'static str {
        let known = Path::new("/usr/share/zoneinfo").join(self.name).exists();
        if known { self.name } else { self.posix }
    }

    /// Writes a pair for each row, lists them in this zone, and compares.
    fn check(&self, rows: &[Row]) {
        let dir = tempfile::tempdir().unwrap();
        for (n, (metadata, _)) in rows.iter().enumerate() {
            fs::write(dir.path().join(format!("{n}.result.json.lz4")), "result").unwrap();
            fs::write(dir.path().join(format!("{n}.metadata.json")), metadata).unwrap();
        }
        // Invalid metadata that changed within the last second may still be in writing.
        thread::sleep(Duration::from_millis(1_200));

        let lines = self.list(dir.path());
        assert_eq!(lines.len(), rows.len());
        let is_valid = |line: &Value| !line["expires_at"].is_null();
        assert!(lines.is_sorted_by_key(|line| !is_valid(line)), "invalid pairs come last");
        let instants: Vec<_> = lines.iter().filter(|line| is_valid(line)).map(instant).collect();
        assert!(instants.is_sorted(), "soonest first");

        let by_name: HashMap<String, &Value> =
            lines.iter().map(|line| (name(line), line)).collect();
        for (n, (metadata, expected)) in rows.iter().enumerate() {
            let line = by_name[&format!("{n}.result.json.lz4")];
            let shown = &String::from_utf8_lossy(metadata)[..metadata.len().min(80)];
            let context = format!("{shown} in {}: {line}", self.tz());
            match expected {
                Ok(expected) => {
                    assert!(is_valid(line), "{context}");
                    let apart = instant(line) - DateTime::parse_from_rfc3339(expected).unwrap();
                    assert!(apart.abs() < TimeDelta::milliseconds(1), "{context}, not {expected}");
                }
                Err(part) => {
                    assert!(!is_valid(line), "{context}");
                    let reason = line["reason"].as_str().expect("a reason");
                    assert!(reason.contains(part), "{context} does not name {part}");
                    assert!(!reason.contains(char::is_control), "{context}");
                }
            }
        }
    }

    fn list(&self, dir: &Path) -> Vec<Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_result-cleaner"))
            .args(["list", "--json"])
            .arg(dir)
            .env("TZ", self.tz())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

fn instant(line: &Value) -> DateTime<chrono::FixedOffset> {
    let text = line["expires_at"].as_str().unwrap();
    assert!(text.ends_with('Z') || text.ends_with("+00:00"), "{text} is in UTC");
    DateTime::parse_from_rfc3339(text).unwrap()
}

fn name(line: &Value) -> String {
    let path = Path::new(line["result"].as_str().unwrap());
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn texts(cases: &[(&'static str, &'static str)]) -> Vec<Row> {
    let json = |text| serde_json::json!({ "expires_at": text, "file_size": 1024 }).to_string();
    cases.iter().map(|&(text, instant)| (json(text).into_bytes(), Ok(instant))).collect()
}

const BERLIN: Zone = Zone { name: "Europe/Berlin", posix: "CET-1CEST,M3.5.0,M10.5.0/3" };
const NEW_YORK: Zone = Zone { name: "America/New_York", posix: "EST5EDT,M3.2.0,M11.1.0" };
const LORD_HOWE: Zone =
    Zone { name: "Australia/Lord_Howe", posix: "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0" };

#[test]
fn local_time_in_berlin() {
    BERLIN.check(&texts(&[
        ("2026-11-18T12:00:00", "2026-11-18T11:00:00Z"),
        ("2026-07-18T12:00:00", "2026-07-18T10:00:00Z"),
        ("2026-11-18t12:00:00", "2026-11-18T11:00:00Z"),
        ("2026-11-18 12:00:00", "2026-11-18T11:00:00Z"),
        ("20261118T120000", "2026-11-18T11:00:00Z"),
        ("20261118T12:00:00", "2026-11-18T11:00:00Z"),
        ("2026-11-18T120000", "2026-11-18T11:00:00Z"),
        ("2026-11-18T12:34", "2026-11-18T11:34:00Z"),
        ("20261118 1234", "2026-11-18T11:34:00Z"),
        ("2026-11-18T12", "2026-11-18T11:00:00Z"),
        ("2026-11-18T12:00:00.25", "2026-11-18T11:00:00.25Z"),
        ("2026-11-18T12:00:00,5", "2026-11-18T11:00:00.5Z"),
        ("20261118T120000.12345678901234567890", "2026-11-18T11:00:00.123456789Z"),
        ("2026-11-18", "2026-11-17T23:00:00Z"),
        ("20260718", "2026-07-17T22:00:00Z"),
        // Clocks go from 02:00 to 03:00.
        ("2026-03-29T01:59:59", "2026-03-29T00:59:59Z"),
        ("2026-03-29T02:00:00", "2026-03-29T01:00:00Z"),
        ("2026-03-29T02:30:00", "2026-03-29T01:30:00Z"),
        ("2026-03-29T02:59:59", "2026-03-29T01:59:59Z"),
        ("2026-03-29T03:00:00", "2026-03-29T01:00:00Z"),
        // Clocks go from 03:00 to 02:00.
        ("2026-10-25T01:59:59", "2026-10-24T23:59:59Z"),
        ("2026-10-25T02:00:00", "2026-10-25T01:00:00Z"),
        ("2026-10-25T02:30:00", "2026-10-25T01:30:00Z"),
        ("2026-10-25T02:59:59", "2026-10-25T01:59:59Z"),
        ("2026-10-25T03:00:00", "2026-10-25T02:00:00Z"),
    ]));
}

#[test]
fn local_time_in_new_york() {
    NEW_YORK.check(&texts(&[
        ("2026-12-01T12:00:00", "2026-12-01T17:00:00Z"),
        ("2026-07-01", "2026-07-01T04:00:00Z"),
        // Clocks go from 02:00 to 03:00.
        ("2026-03-08T01:59:59", "2026-03-08T06:59:59Z"),
        ("2026-03-08T02:00", "2026-03-08T07:00:00Z"),
        ("2026-03-08T02:30", "2026-03-08T07:30:00Z"),
        ("2026-03-08T03:00", "2026-03-08T07:00:00Z"),
        // Clocks go from 02:00 to 01:00.
        ("2026-11-01T00:59:59", "2026-11-01T04:59:59Z"),
        ("2026-11-01T01:00", "2026-11-01T06:00:00Z"),
        ("2026-11-01T01:59:59", "2026-11-01T06:59:59Z"),
        ("2026-11-01T02:00", "2026-11-01T07:00:00Z"),
    ]));
}

#[test]
fn local_time_on_lord_howe_where_clocks_move_by_half_an_hour() {
    LORD_HOWE.check(&texts(&[
        ("2026-07-01T12:00:00", "2026-07-01T01:30:00Z"),
        ("2026-12-01", "2026-11-30T13:00:00Z"),
        // Clocks go from 02:00 to 02:30.
        ("2026-10-04T01:59:59", "2026-10-03T15:29:59Z"),
        ("2026-10-04T02:00", "2026-10-03T15:30:00Z"),
        ("2026-10-04T02:15", "2026-10-03T15:45:00Z"),
        ("2026-10-04T02:30", "2026-10-03T15:30:00Z"),
        // Clocks go from 02:00 to 01:30.
        ("2026-04-05T01:29:59", "2026-04-04T14:29:59Z"),
        ("2026-04-05T01:30", "2026-04-04T15:00:00Z"),
        ("2026-04-05T01:59:59", "2026-04-04T15:29:59Z"),
        ("2026-04-05T02:00", "2026-04-04T15:30:00Z"),
    ]));
}

#[test]
fn with_offset_the_zone_does_not_matter() {
    let rows = texts(&[
        ("2026-11-18T12:00:00Z", "2026-11-18T12:00:00Z"),
        ("20261118 1200z", "2026-11-18T12:00:00Z"),
        ("2026-11-18T12:00:00+05", "2026-11-18T07:00:00Z"),
        ("2026-11-18T12:00:00+0530", "2026-11-18T06:30:00Z"),
        ("2026-11-18T12:00:00+05:30", "2026-11-18T06:30:00Z"),
        ("2026-11-18T12:00:00-05:30:15", "2026-11-18T17:30:15Z"),
        ("2026-11-18T12:00:00.125+23:59:59", "2026-11-17T12:00:01.125Z"),
        ("2026-11-18T12-00:00", "2026-11-18T12:00:00Z"),
        ("0001-01-01T00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
    ]);
    BERLIN.check(&rows);
    LORD_HOWE.check(&rows);
}

#[test]
fn numbers_and_what_may_surround_expires_at() {
    let nested = format!(
        r#"{{"query_context":{}{},"expires_at":1795468279}}"#,
        "[".repeat(500_000),
        "]".repeat(500_000)
    );
    let rows = [
        (r#"{"expires_at": 1795468279}"#, "2026-11-23T21:11:19Z"),
        (r#"{"expires_at": 1795468279.4981642}"#, "2026-11-23T21:11:19.498164Z"),
        (r#"{"expires_at": 1.795468279e9}"#, "2026-11-23T21:11:19Z"),
        (r#"{"expires_at": 0.25}"#, "1970-01-01T00:00:00.25Z"),
        (r#"{"expires_at": 253402300799}"#, "9999-12-31T23:59:59Z"),
        (r#"{"expires\u005fat": 1795468279}"#, "2026-11-23T21:11:19Z"),
        (r#"{"q": {"expires_at": null}, "expires_at": 1795468279}"#, "2026-11-23T21:11:19Z"),
        (r#"{"q": "\ud800", "n": 1e999, "expires_at": 1795468279}"#, "2026-11-23T21:11:19Z"),
        (nested.as_str(), "2026-11-23T21:11:19Z"),
    ];
    BERLIN.check(&rows.map(|(json, instant)| (json.as_bytes().to_vec(), Ok(instant))));
}

#[test]
fn invalid_metadata_comes_with_a_reason() {
    let large = format!(r#"{{"expires_at": 1795468279, "padding": "{}"}}"#, "x".repeat(1 << 20));
    let rows = [
        ("{}", "missing"),
        (r#"{"q": {"expires_at": 1795468279}}"#, "missing"),
        (r#"{"expires_at": null}"#, "null"),
        (r#"{"expires_at": true}"#, "boolean"),
        (r#"{"expires_at": [1795468279]}"#, "array"),
        (r#"{"expires_at": {"at": 1795468279}}"#, "object"),
        (r#"{"expires_at": ""}"#, "empty"),
        (r#"{"expires_at": 0}"#, "zero or negative"),
        (r#"{"expires_at": -1795468279}"#, "zero or negative"),
        (r#"{"expires_at": 1795468279498}"#, "milliseconds"),
        (r#"{"expires_at": 1795468279498164}"#, "microseconds"),
        (r#"{"expires_at": 1795468279498164200}"#, "nanoseconds"),
        (r#"{"expires_at": 1e400}"#, "number"),
        (r#"{"expires_at": "1795468279"}"#, "quotes"),
        (r#"{"expires_at": "0000-01-01T00:00:00"}"#, "year"),
        (r#"{"expires_at": "10000-01-01T00:00:00"}"#, "year"),
        (r#"{"expires_at": "0001-01-01T00:00:00+01:00"}"#, "year"),
        (r#"{"expires_at": "9999-12-31T23:59:59-01:00"}"#, "year"),
        (r#"{"expires_at": "2026-02-29"}"#, "day"),
        (r#"{"expires_at": "2026-11-18T12:00:60"}"#, "second 60"),
        (r#"{"expires_at": "2026-11-18T24:00:00"}"#, "hour 24"),
        (r#"{"expires_at": "2026-11-18T12:60"}"#, "time"),
        (r#"{"expires_at": " 2026-11-18"}"#, "white space"),
        (r#"{"expires_at": "2026-11-18 "}"#, "white space"),
        (r#"{"expires_at": "2026-11-18Z"}"#, "no time"),
        (r#"{"expires_at": "2026-11-18T12:00+24:00"}"#, "offset"),
        (r#"{"expires_at": "2026-11-18T12:00:00 Z"}"#, "no date and time"),
        (r#"{"expires_at": "2026-11-18T12:00.5"}"#, "no date and time"),
        (r#"{"expires_at": "next\n\u001b[2Jweek"}"#, "no date and time"),
        (r#"{"expires_at": 1795468279, "expires_at": 1795468279}"#, "more than once"),
        (r#"{"expires_at": 1795468279"#, "cut short"),
        (r#"{"expires_at": 1795468279} {}"#, "not JSON"),
        ("expires_at: 1795468279", "not JSON"),
        ("[1795468279]", "not an object"),
        ("\u{feff}{\"expires_at\": 1795468279}", "byte order mark"),
        ("", "empty"),
        (large.as_str(), "larger than"),
    ];
    let mut rows = rows.map(|(json, part)| (json.as_bytes().to_vec(), Err(part))).to_vec();
    rows.push((b"{\"q\": \"\xff\", \"expires_at\": 1795468279}".to_vec(), Err("UTF-8")));
    NEW_YORK.check(&rows);
}
