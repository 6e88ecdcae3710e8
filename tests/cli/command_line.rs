//! The commands that do one thing and end: what they print, what they change, how they end.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Output, Stdio};

use crate::common::{
    CacheDir, Pair, Service, call, free_address, keys, now, publish, result_cleaner, snapshot,
    stderr, stdout, succeed, text, wait_until,
};
use serde_json::Value;

/// The only line on standard error of a call that has to fail with exit status 1.
#[track_caller]
fn failure(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(stdout(output), "");
    let line = stderr(output).strip_suffix('\n').expect("a line");
    assert!(!line.contains('\n'), "one line: {line}");
    assert!(line.starts_with("error: "), "{line}");
    line
}

#[track_caller]
fn sweep(cache: &CacheDir) -> Value {
    let output = succeed(&["sweep", text(cache.path()), "--json"]);
    serde_json::from_str(stdout(&output)).unwrap()
}

#[track_caller]
fn assert_figures(report: &Value, deleted: u64, checked: u64, errors: u64) {
    for (key, value) in [("deleted_count", deleted), ("checked_count", checked), ("errors", errors)]
    {
        assert_eq!(report[key], value, "{key} in {report}");
    }
}

#[test]
fn sweep_deletes_what_has_expired_and_reports_it() {
    let cache = CacheDir::samples();
    cache.store("s/new", now() - 1.0);
    let output = succeed(&["sweep", text(cache.path())]);
    assert!(stdout(&output).starts_with("deleted 13 of 25 results"), "{}", stdout(&output));
    assert_eq!(stdout(&output).lines().count(), 1);
    assert_eq!(stderr(&output), "");
    assert_eq!(cache.files().len(), 24);

    let size = cache.store("s/new", now() - 1.0).bytes();
    let report = sweep(&cache);
    assert_figures(&report, 1, 13, 0);
    assert_eq!(report["freed_bytes"], size);
    assert!(report["duration_ms"].as_f64().unwrap() > 0.0);
    let expected = ["checked_count", "deleted_count", "duration_ms", "errors", "freed_bytes"];
    assert_eq!(keys(&report), expected);
}

#[test]
fn a_dry_run_counts_the_same_and_changes_nothing() {
    let cache = CacheDir::samples();
    cache.store("deep/er/a", now() - 1.0);
    publish(&cache.store("broken", 1.5).metadata, b"{");
    fs::write(cache.path().join("orphan.metadata.json"), r#"{"expires_at": 1}"#).unwrap();
    let before = snapshot(&cache);
    let output = succeed(&["sweep", text(cache.path()), "--dry-run", "--json"]);
    let dry: Value = serde_json::from_str(stdout(&output)).unwrap();
    let output = succeed(&["sweep", "--dry-run", text(cache.path())]);
    assert!(stdout(&output).starts_with("would delete 13 of 26 results"), "{}", stdout(&output));
    assert_eq!(snapshot(&cache), before);
    assert_figures(&dry, 13, 26, 1);

    let report = sweep(&cache);
    assert_figures(&report, 13, 26, 1);
    assert_eq!(report["freed_bytes"], dry["freed_bytes"]);
    assert_eq!(cache.files().len(), before.iter().filter(|(path, _)| path.is_file()).count());
}

#[test]
fn one_sweep_waits_for_metadata_and_results_that_may_be_half_written() {
    let cache = CacheDir::new();
    let replaced = cache.store("replaced", now() - 1.0);
    let broken = cache.pair("broken");
    fs::write(&broken.result, "data").unwrap();
    let published = now();
    publish(&replaced.result, b"newer than its metadata");
    fs::write(&broken.metadata, "{").unwrap();
    let output = succeed(&["sweep", text(cache.path()), "--json"]);
    let report: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_figures(&report, 1, 2, 1);
    assert!(replaced.is_gone() && broken.is_whole());
    // It could not know before the result had been unchanged for a second; the file system's clock
    // is a few milliseconds behind.
    assert!(now() >= published + 0.98, "{report}");
    let log = stderr(&output);
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("WARN") && log.contains("broken.metadata.json"), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[test]
fn a_directory_that_cannot_be_read_for_want_of_descriptors_is_a_failure() {
    let cache = CacheDir::samples();
    for command in ["sweep", "list"] {
        let limited = r#"ulimit -n "$0" && exec "$@""#;
        let mut failed = 0;
        for files in 6..14 {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", limited, &files.to_string(), env!("CARGO_BIN_EXE_result-cleaner")]);
            let output = shell.args([command, text(cache.path())]).output().unwrap();
            if output.status.success() {
                // It may not have read some of the directories below.
                let nothing = ["of 0 results", "no results"];
                let reported = stdout(&output);
                assert!(
                    !nothing.iter().any(|nothing| reported.contains(nothing)),
                    "{files}: {output:?}"
                );
            } else if stderr(&output).contains("can't read the cache directory") {
                failed += 1;
            }
        }
        assert!(failed > 0, "{command}");
    }
}

#[test]
fn a_cache_directory_that_is_moved_amid_a_sweep_keeps_what_is_left() {
    let cache = CacheDir::in_memory();
    for number in 0..1200 {
        cache.store(&format!("{}/{number}", number % 8), now() - 60.0);
    }
    let mut sweep = result_cleaner();
    sweep.args(["sweep", text(cache.path()), "--max-disk-time", "20ms"]);
    let mut sweep = sweep.stdout(Stdio::null()).spawn().unwrap();
    wait_until("the sweep is under way", || cache.files().len() < 2400);
    let moved = cache.outside("moved");
    fs::rename(cache.path(), &moved).unwrap();
    wait_until("the sweep ends", || sweep.try_wait().unwrap().is_some());
    let left = walkdir::WalkDir::new(&moved)
        .into_iter()
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_type().is_file()));
    let left = left.count();
    // It has deleted a few by then, and would have deleted all.
    assert!(left > 600, "only {left} files are left");
}

#[test]
fn metadata_whose_result_could_have_no_name_is_no_error() {
    let cache = CacheDir::new();
    let name = format!("{}.metadata.json", "m".repeat(241));
    fs::write(cache.path().join(name), r#"{"expires_at": 1.5}"#).unwrap();
    assert_figures(&sweep(&cache), 0, 0, 0);
    assert_eq!(stdout(&succeed(&["list", text(cache.path()), "--json"])), "");
}

#[test]
fn an_absent_directory_is_noted_and_no_failure() {
    let cache = CacheDir::absent();
    let path = text(cache.path());
    for args in [
        &["sweep", path, "--json"][..],
        &["sweep", path],
        &["list", path],
        &["list", path, "--json"],
    ] {
        let output = succeed(args);
        assert_eq!(stderr(&output).lines().count(), 1, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(path) && stderr(&output).contains("does not exist"));
    }
    let report = sweep(&cache);
    assert_figures(&report, 0, 0, 0);
    assert_eq!(report["freed_bytes"], 0);
    assert_eq!(stdout(&succeed(&["list", path, "--json"])), "");
    assert!(!cache.path().exists());
}

#[test]
fn a_file_in_the_place_of_the_directory_is_a_failure() {
    let cache = CacheDir::new();
    let file = cache.outside("file");
    fs::write(&file, "content").unwrap();
    for command in ["sweep", "list", "run"] {
        let output = call(&[command, text(&file)]);
        assert!(failure(&output).contains(text(&file)), "{output:?}");
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "content");
}

#[test]
fn a_directory_that_can_not_be_read_is_a_failure() {
    let cache = CacheDir::samples();
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o0)).unwrap();
    for name in ["sweep", "list"] {
        let mut command = result_cleaner();
        command.arg(name).arg(cache.path());
        if rustix::process::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        let output = match command.output() {
            Ok(output) => output,
            // Nobody but root may run the binary where it lies.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return,
            Err(error) => panic!("{error}"),
        };
        let line = failure(&output);
        assert!(line.contains(text(cache.path())) && line.contains("ermission denied"), "{line}");
    }
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(cache.files().len(), 48);
}

#[test]
fn wrong_usage_is_reported_with_exit_status_2_and_nothing_is_deleted() {
    let cache = CacheDir::samples();
    let path = text(cache.path());
    for args in [
        &["run", path, "--check-interval", "0"][..],
        &["run", path, "--check-interval", "500ms"],
        &["run", path, "--check-interval", "six"],
        &["run", path, "--report-interval", "0s"],
        &["run", path, "--fallback-interval", "0ms"],
        &["run", path, "--listen", "localhost"],
        &["run", path, "--listen", "127.0.0.1:99999"],
        &["run", path, "--no-metrics", "--metrics-url", "http://localhost:8003"],
        &["run", path, "--log-format", "xml"],
        &["run", path, "-q", "-v"],
        &["run", path, "another"],
        &["sweep", path, "--unknown"],
        &["sweep", path, "--listen", "127.0.0.1:0"],
        &["sweep", "--dry-run=x", path],
        &["list", "--nonsense"],
        &["status", "--unknown"],
        &["nonsense"],
        &[],
    ] {
        let output = call(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert_eq!(stdout(&output), "");
        assert!(
            stderr(&output).contains("Usage:") || stderr(&output).contains("--help"),
            "{output:?}"
        );
    }
    assert_eq!(cache.files().len(), 48);
}

#[test]
fn a_port_in_use_is_reported_with_what_to_do_before_anything_is_deleted() {
    let cache = CacheDir::new();
    let pair = cache.store("a", now() - 60.0);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = call(&["run", text(cache.path()), "--no-metrics", "--listen", &address]);
    let line = failure(&output);
    assert!(line.contains(&address) && line.contains("choose another port"), "{line}");
    assert!(pair.is_whole());
}

#[test]
fn status_draws_what_expires_when() {
    let cache = CacheDir::new();
    let broken = cache.store("broken", 1.5);
    publish(&broken.metadata, b"{");
    for n in 0..7 {
        cache.store(&n.to_string(), now() + 1800.0);
    }
    let service = Service::start(cache.path(), &["--check-interval", "2h"]);
    service.wait_for_stat("heap_size", 7);
    service.wait_for_stat("total_errors", 1);
    cache.store("gone", now() + 0.2);
    service.wait_for_stat("total_deleted", 1);
    service.wait_for_stat("heap_size", 7);

    let output = succeed(&["status", "--url", &service.url]);
    let has = |name: &str, value: &str| {
        let found = |line: &str| {
            line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(value))
        };
        assert!(stdout(&output).lines().any(found), "no {name} {value}: {}", stdout(&output));
    };
    has("cache", text(&cache.path().canonicalize().unwrap()));
    has("running", "yes");
    has("next expiry", "in 29m");
    has("waiting", "7");
    has("deleted", "1");
    has("freed", "");
    has("errors", "1");
    let bars: Vec<&str> = stdout(&output).lines().filter(|line| line.contains('█')).collect();
    assert_eq!(bars.len(), 1, "{}", stdout(&output));
    assert!(bars[0].ends_with(" 7") && bars[0].contains("1h"), "{bars:?}");

    let output = succeed(&["status", "--url", &service.url, "--json"]);
    let reported: Value = serde_json::from_str(stdout(&output)).unwrap();
    let served = service.stats();
    for key in keys(&served).into_iter().filter(|key| *key != "expiring") {
        assert_eq!(reported[key], served[key], "{key}");
    }
}

#[test]
fn status_of_something_else_takes_little_and_shows_no_control_characters() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let endless = |mut stream: std::net::TcpStream| {
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
            let mut sent = stream.write_all(head.as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(&[b' '; 65536]);
            }
        };
        let odd = |mut stream: std::net::TcpStream| {
            let body = r#"{"watch": "\u001b]0;hi\u0007"}"#;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + body).as_bytes());
        };
        let next = || {
            let (mut stream, _) = listener.accept().unwrap();
            // Who is answered before having asked takes that for an error.
            assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            stream
        };
        endless(next());
        odd(next());
    });
    let output = call(&["status", "--url", &url]);
    assert!(failure(&output).contains("not what a cleaner answers: more than"), "{output:?}");
    let output = call(&["status", "--url", &url]);
    let reported = failure(&output);
    assert!(
        reported.contains("not what a cleaner answers") && !reported.contains(char::is_control),
        "{reported}"
    );
}

#[test]
fn status_of_nothing_says_how_to_start_a_service() {
    let address = free_address();
    let url = format!("http://{address}");
    for args in [&["status", "--url", &url][..], &["status", "--json", "--url", &url]] {
        let output = call(args);
        let (line, advice) = (failure(&output), format!("run --listen {address}"));
        assert!(line.contains(&url) && line.contains(&advice), "{line}");
    }
}

#[test]
fn status_keeps_drawing_for_as_long_as_somebody_reads() {
    let cache = CacheDir::new();
    let service = Service::start(cache.path(), &[]);
    for json in [&["--json"][..], &[]] {
        let mut command = result_cleaner();
        command.args(["status", "--watch", "--url", &service.url]).args(json);
        let mut status = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(status.stdout.take().unwrap()).lines();
        let drawn = lines.map_while(Result::ok).filter(|line| line.contains("running")).take(2);
        assert_eq!(drawn.count(), 2);
        wait_until("it has ended", || status.try_wait().unwrap().is_some());
        assert!(status.wait().unwrap().success());
    }
}

#[test]
fn nothing_is_coloured_into_a_pipe() {
    let cache = CacheDir::new();
    let Pair { metadata, .. } = cache.store("broken", 1.5);
    publish(&metadata, b"{");
    let path = text(cache.path());
    for args in
        [&["sweep", path][..], &["list", path], &["--help"], &["nonsense"], &["list", "--x"]]
    {
        for no_colour in [None, Some("1")] {
            let mut command = result_cleaner();
            command.args(args).envs(no_colour.map(|value| ("NO_COLOR", value)));
            let output = command.output().unwrap();
            assert!(!stdout(&output).contains('\u{1b}'), "{args:?}: {output:?}");
            assert!(!stderr(&output).contains('\u{1b}'), "{args:?}: {output:?}");
            assert!(!output.stdout.is_empty() || !output.stderr.is_empty());
        }
    }
}
