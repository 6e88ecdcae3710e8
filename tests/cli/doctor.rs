//! `doctor`: each check is really made, a line each, with the remedy; and it leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::common::{
    CacheDir, MetricsStub, call, free_address, now, result_cleaner, snapshot, stderr, stdout, text,
    unprivileged_run_by,
};
use serde_json::Value;

/// What each check has found, and the exit status.
fn checks(command: &mut Command) -> (Vec<Value>, Option<i32>) {
    let output = command.output().unwrap();
    let lines = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap());
    (lines.collect(), output.status.code())
}

fn doctor(args: &[&str]) -> (Vec<Value>, Option<i32>) {
    checks(result_cleaner().arg("doctor").args(args).arg("--json"))
}

#[track_caller]
fn find<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("{checks:?}"))
}

#[test]
fn where_all_is_well_everything_is_ok_and_nothing_is_left_behind() {
    let cache = CacheDir::new();
    cache.store("s/a", now() + 60.0);
    cache.store("s/b", now() - 60.0);
    let before = snapshot(&cache);
    let metrics = MetricsStub::start();
    let (checks, status) = doctor(&[text(cache.path()), "--metrics-url", &metrics.url]);
    assert_eq!(status, Some(0), "{checks:?}");
    let names = [
        "directory",
        "permissions",
        "file system",
        "watches",
        "canary",
        "renaming",
        "clock",
        "inotify",
        "open files",
        "time zone",
        "metrics service",
    ];
    assert_eq!(checks.iter().map(|check| &check["check"]).collect::<Vec<_>>(), names);
    for check in &checks {
        assert_eq!(check["status"], "ok", "{check}");
        assert_eq!(check["remedy"], Value::Null, "{check}");
    }
    let found = &find(&checks, "permissions")["found"];
    assert_eq!(found, "this user may delete in all 2 directories");
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap();
    assert!(find(&checks, "watches")["found"].as_str().unwrap().contains(limit.trim()));
    assert_eq!(snapshot(&cache).len(), before.len());
    let kept = |path: &std::path::Path| before.iter().any(|(known, _)| known == path);
    assert!(snapshot(&cache).iter().all(|(path, _)| kept(path)));
}

#[test]
fn a_metrics_service_out_of_reach_is_a_warning_only() {
    let cache = CacheDir::new();
    let url = format!("http://{}", free_address());
    let (checks, status) = doctor(&[text(cache.path()), "--metrics-url", &url]);
    assert_eq!(status, Some(0));
    let check = find(&checks, "metrics service");
    assert_eq!(check["status"], "warning");
    assert!(check["found"].as_str().unwrap().contains(&url), "{check}");
    assert!(check["remedy"].as_str().unwrap().contains("--no-metrics"), "{check}");
    let (checks, _) = doctor(&[text(cache.path()), "--no-metrics"]);
    assert_eq!(find(&checks, "metrics service")["status"], "ok");
}

#[test]
fn a_directory_that_is_absent_is_a_warning_and_a_file_in_its_place_is_wrong() {
    let cache = CacheDir::absent();
    let (checks, status) = doctor(&[text(cache.path()), "--no-metrics"]);
    assert_eq!((status, &find(&checks, "directory")["status"]), (Some(0), &"warning".into()));
    fs::write(cache.path(), "").unwrap();
    let output = call(&["doctor", text(cache.path()), "--no-metrics"]);
    assert_eq!(output.status.code(), Some(1));
    let [check, remedy] = [0, 1].map(|number| stdout(&output).lines().nth(number).unwrap());
    assert!(check.starts_with("wrong    directory"), "{check}");
    assert_eq!(
        remedy.trim_start(),
        "remedy: name the directory that holds the cached results",
        "{check}"
    );
    assert_eq!(stderr(&output), "error: 1 check failed; the line below it says what to do\n");
}

#[test]
fn directories_in_which_this_user_may_not_delete_are_wrong() {
    let cache = CacheDir::new();
    let shut = cache.store("s/a", now() + 60.0).result.parent().unwrap().to_owned();
    let Some((command, _)) = unprivileged_run_by(&cache, &[], &[]) else { return };
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o555)).unwrap();
    // The same user, and another command.
    let mut doctor = Command::new(command.get_program());
    let before_run = command.get_args().take_while(|arg| *arg != "run");
    doctor.args(before_run).arg("doctor").arg(cache.path()).args(["--no-metrics", "--json"]);
    let (checks, status) = checks(&mut doctor);
    let check = find(&checks, "permissions");
    assert_eq!((status, &check["status"]), (Some(1), &"wrong".into()), "{check}");
    assert!(check["found"].as_str().unwrap().contains(text(&shut)), "{check}");
    assert!(check["remedy"].as_str().unwrap().contains("chmod"), "{check}");

    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let (checks, _) = self::checks(&mut doctor);
    let check = find(&checks, "canary");
    assert_eq!(check["status"], "wrong", "{check}");
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_time_zone_that_nobody_knows_is_wrong() {
    let cache = CacheDir::new();
    let mut command = result_cleaner();
    command.env("TZ", "Europe/Nowhere").arg("doctor").arg(cache.path());
    let (checks, status) = checks(command.args(["--no-metrics", "--json"]));
    let check = find(&checks, "time zone");
    assert_eq!((status, &check["status"]), (Some(1), &"wrong".into()), "{check}");
    assert!(check["remedy"].as_str().unwrap().contains("tzdata"), "{check}");
}

#[test]
fn paths_that_are_too_long_for_a_watch_are_a_warning_and_nothing_is_wrong() {
    let cache = CacheDir::new();
    let name = "d".repeat(200);
    let dir = (0..6).fold(cache.path().to_owned(), |dir, _| dir.join(&name));
    fs::create_dir_all(&dir).unwrap();
    // Deeper than a path may be long.
    let chain = format!("for i in $(seq 20); do mkdir {name} && cd -P ./{name} || exit; done");
    let deeper = Command::new("sh").arg("-c").arg(chain).current_dir(&dir).status().unwrap();
    assert!(deeper.success());
    let (checks, status) = doctor(&[text(cache.path()), "--no-metrics"]);
    assert_eq!(status, Some(0), "{checks:?}");
    let watches = find(&checks, "watches");
    assert_eq!(watches["status"], "warning", "{watches}");
    assert!(watches["found"].as_str().unwrap().contains("longer than 1024 bytes"), "{watches}");
}

#[test]
fn too_few_watches_are_wrong_with_the_setting_to_raise() {
    let cache = CacheDir::new();
    for number in 0..20 {
        fs::create_dir(cache.path().join(number.to_string())).unwrap();
    }
    // The limit of a user namespace counts, though not what sysctl shows of it.
    let mut command = Command::new("unshare");
    let limited = r#"echo 0 > /proc/sys/user/max_inotify_watches && exec "$0" "$@""#;
    command.args(["-Ur", "sh", "-c", limited, env!("CARGO_BIN_EXE_result-cleaner"), "doctor"]);
    let output = command.arg(cache.path()).args(["--no-metrics", "--json"]).output();
    let Ok(output) = output else { return eprintln!("skipped: unshare can't be run") };
    if output.stdout.is_empty() {
        return eprintln!("skipped: {}", stderr(&output));
    }
    let checks: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let check = find(&checks, "canary");
    assert_eq!((output.status.code(), &check["status"]), (Some(1), &"wrong".into()), "{check}");
    assert!(check["found"].as_str().unwrap().contains("fs.inotify.max_user_watches"), "{check}");
}
