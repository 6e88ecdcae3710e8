//! Every flag has an environment variable, and what is given on the command line beats it.

use std::process::Output;

use crate::common::{
    CacheDir, MetricsStub, Service, free_address, now, result_cleaner, wait_until,
};
use serde_json::Value;

/// The service with these variables and arguments, besides those that the tests need.
fn start(cache: &CacheDir, variables: &[(&str, &str)], args: &[&str]) -> Service {
    let address = free_address();
    let mut command = result_cleaner();
    command.arg("run").arg(cache.path()).args(args).args(["--listen", &address]);
    command.envs(variables.iter().copied());
    Service::spawn(command, &format!("http://{address}"))
}

/// Whether the service with these reports to the default metrics service, or to none.
fn reports(variables: &[(&str, &str)], args: &[&str]) -> bool {
    // Port 1 takes no reports, which is logged.
    let cache = CacheDir::new();
    let variables = [&[("RESULT_CLEANER_METRICS_URL", "http://127.0.0.1:1")], variables].concat();
    let service = start(&cache, &variables, args);
    service.wait_for_stat("total_cleanups", 1);
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    log.contains("metrics service http://127.0.0.1:1 ")
}

fn call(args: &[&str], variables: &[(&str, &str)]) -> Output {
    result_cleaner().args(args).envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn the_variables_set_what_the_flags_set() {
    let cache = CacheDir::new();
    let metrics = MetricsStub::start();
    let address = free_address();
    let mut command = result_cleaner();
    command.arg("run").arg(cache.path()).envs([
        ("RESULT_CLEANER_CHECK_INTERVAL", "90m"),
        ("RESULT_CLEANER_METRICS_URL", &metrics.url),
        ("RESULT_CLEANER_LISTEN", &address),
        ("RESULT_CLEANER_REPORT_INTERVAL", "50ms"),
        ("RESULT_CLEANER_FALLBACK_INTERVAL", "5m"),
        ("RESULT_CLEANER_ALLOW_HOST", "one.example,two.example"),
        ("RESULT_CLEANER_MAX_SIZE", "1.5G"),
        ("RESULT_CLEANER_MIN_FREE", "2KiB"),
        ("RESULT_CLEANER_EVICT_MIN_AGE", "1h"),
        ("RESULT_CLEANER_LOG_FORMAT", "json"),
        ("RESULT_CLEANER_VERBOSE", "1"),
    ]);
    let service = Service::spawn(command, &format!("http://{address}"));
    let stats = service.stats();
    assert_eq!(
        (&stats["max_size_bytes"], &stats["min_free_bytes"]),
        (&(3 << 29).into(), &2048.into())
    );
    wait_until("the first scan is reported", || !metrics.delivered().is_empty());
    assert_eq!(service.stats()["check_interval_hours"], 1.5);
    cache.store("a", now() - 1.0);
    service.wait_for_stat("total_deleted", 1);
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert!(log.contains("deleted an expired result"), "debug lines are asked for: {log}");
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
}

#[test]
fn a_flag_beats_its_variable() {
    let cache = CacheDir::new();
    let (one, other) = (MetricsStub::start(), MetricsStub::start());
    let variables = [
        ("RESULT_CLEANER_CHECK_INTERVAL", "90m"),
        ("RESULT_CLEANER_METRICS_URL", one.url.as_str()),
        ("RESULT_CLEANER_LOG_FORMAT", "json"),
        ("RESULT_CLEANER_LISTEN", "127.0.0.1:1"),
    ];
    let args = ["--check-interval", "2h", "--metrics-url", &other.url, "--log-format", "text"];
    let service = start(&cache, &variables, &args);
    wait_until("the first scan is reported", || !other.delivered().is_empty());
    assert_eq!(service.stats()["check_interval_hours"], 2.0);
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert!(one.requests().is_empty() && log.contains(" INFO "), "{log}");
}

#[test]
fn no_metrics_on_the_command_line_beats_the_address_in_the_environment() {
    assert!(reports(&[], &[]));
    assert!(!reports(&[], &["--no-metrics"]));
}

#[test]
fn an_address_on_the_command_line_beats_no_metrics_in_the_environment() {
    let cache = CacheDir::new();
    let metrics = MetricsStub::start();
    let variables = [("RESULT_CLEANER_NO_METRICS", "1")];
    let service = start(&cache, &variables, &["--metrics-url", &metrics.url]);
    wait_until("the first scan is reported", || !metrics.delivered().is_empty());
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
}

#[test]
fn a_variable_that_no_flag_has_is_a_warning_with_the_nearest_name() {
    let cache = CacheDir::samples();
    let path = cache.path().to_str().unwrap();
    let variables = [
        ("RESULT_CLEANER_DRYRUN", "1"),
        ("RESULT_CLEANER_CHEK_INTERVAL", "1h"),
        ("RESULT_CLEANER_DIR", "/"),
        ("RESULT_CLEANER_XYZZY", "1"),
        ("RESULT_CLEANER_EMPTY", ""),
        // Of another command.
        ("RESULT_CLEANER_URL", "http://127.0.0.1:1"),
    ];
    let output = call(&["sweep", path, "--dry-run"], &variables);
    assert!(output.status.success(), "{output:?}");
    let mut lines: Vec<_> = std::str::from_utf8(&output.stderr).unwrap().lines().collect();
    lines.sort_unstable();
    let warnings = [
        "CHEK_INTERVAL; did you mean RESULT_CLEANER_CHECK_INTERVAL?",
        "DIR; did you mean RESULT_CLEANER_CACHE_DIR?",
        "DRYRUN; did you mean RESULT_CLEANER_DRY_RUN?",
        "XYZZY; see `result-cleaner help environment`",
    ];
    let warnings = warnings
        .map(|warning| format!("warning: no flag has the variable RESULT_CLEANER_{warning}"));
    assert_eq!(lines, warnings);
}

#[test]
fn an_empty_variable_counts_as_not_set_and_a_switch_takes_no_other_words() {
    let cache = CacheDir::samples();
    let path = cache.path().to_str().unwrap();
    let empty = ["MAX_DISK_TIME", "REMOVE_ORPHANS", "PRUNE_EMPTY_DIRS", "JSON", "DRY_RUN"];
    let empty = empty.map(|name| (format!("RESULT_CLEANER_{name}"), ""));
    let empty: Vec<_> = empty.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let output = call(&["sweep", path], &empty);
    assert!(output.stdout.starts_with(b"deleted 12 of 24 "), "{output:?}");
    let output = call(&["sweep", path], &[("RESULT_CLEANER_DRY_RUN", "flase")]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn variables_that_switch_understand_the_usual_words() {
    for value in ["1", "true", "yes", "on"] {
        assert!(!reports(&[("RESULT_CLEANER_NO_METRICS", value)], &[]), "{value:?}");
    }
    for value in ["0", "false", "no", "off", ""] {
        assert!(reports(&[("RESULT_CLEANER_NO_METRICS", value)], &[]), "{value:?}");
    }
}

#[test]
fn verbosity_is_a_number_or_a_switch() {
    let cache = CacheDir::new();
    let dir = cache.path().to_str().unwrap();
    for value in ["0", "1", "2", "true", "no", "YES"] {
        let output = call(&["sweep", dir], &[("RESULT_CLEANER_VERBOSE", value)]);
        assert!(output.status.success(), "{value}: {output:?}");
    }
    let output = call(&["sweep", dir], &[("RESULT_CLEANER_VERBOSE", "loud")]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn one_loudness_on_the_command_line_beats_the_other_in_the_environment() {
    for (variable, args, info, debug) in [
        (("RESULT_CLEANER_VERBOSE", "1"), &["-q"][..], false, false),
        (("RESULT_CLEANER_QUIET", "1"), &["-v"], true, true),
        (("RESULT_CLEANER_QUIET", "true"), &[], false, false),
        (("RESULT_CLEANER_QUIET", "false"), &["-v"], true, true),
        (("RESULT_CLEANER_QUIET", "0"), &[], true, false),
        (("RESULT_CLEANER_VERBOSE", "0"), &[], true, false),
    ] {
        let cache = CacheDir::new();
        cache.store("a", now() - 1.0);
        let service = start(&cache, &[variable], &[args, &["--no-metrics"]].concat());
        service.wait_for_stat("total_deleted", 1);
        let (status, _, log) = service.terminate();
        assert!(status.success(), "{log}");
        assert_eq!(log.contains("INFO"), info, "{variable:?} {args:?}: {log}");
        assert_eq!(log.contains("DEBUG"), debug, "{variable:?} {args:?}: {log}");
    }
}

#[test]
fn the_commands_take_variables_too() {
    let cache = CacheDir::samples();
    let path = cache.path().to_str().unwrap();
    let json = ("RESULT_CLEANER_JSON", "1");
    let output = call(&["sweep", path], &[("RESULT_CLEANER_DRY_RUN", "yes"), json]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["deleted_count"], cache.files().len()), (&12.into(), 48));
    let output = call(&["list", path], &[json]);
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 24);

    let off = [("RESULT_CLEANER_DRY_RUN", "0"), ("RESULT_CLEANER_JSON", "")];
    let output = call(&["sweep", path], &off);
    assert!(output.stdout.starts_with(b"deleted 12 of 24 "), "{output:?}");
    assert_eq!(cache.files().len(), 24);
    let output = call(&["sweep", path, "--dry-run", "--json"], &off);
    assert!(output.stdout.starts_with(b"{"), "{output:?}");

    let service = Service::start(cache.path(), &[]);
    let output = call(&["status"], &[("RESULT_CLEANER_URL", &service.url), json]);
    let stats: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(stats["running"], true);
}

#[test]
fn one_variable_names_the_directory_for_every_command() {
    let cache = CacheDir::samples();
    let path = cache.path().to_str().unwrap();
    let other = CacheDir::new();
    let named = ("RESULT_CLEANER_CACHE_DIR", path);
    let json = ("RESULT_CLEANER_JSON", "1");
    let checked = |args: &[&str]| {
        let output = call(args, &[named, json]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["checked_count"].clone()
    };
    assert_eq!(checked(&["sweep", "--dry-run"]), 24);
    assert_eq!(checked(&["sweep", "--dry-run", other.path().to_str().unwrap()]), 0);

    let output = call(&["list"], &[named, json]);
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 24);

    // Without the variable, `explain` would take the directory of the file.
    let file = other.store("nested/result", now() + 60.0).result;
    let other = other.path().to_str().unwrap();
    let output =
        call(&["explain", file.to_str().unwrap()], &[("RESULT_CLEANER_CACHE_DIR", other), json]);
    let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(explained["cache_directory"], other);

    let output = call(&["doctor", "--no-metrics"], &[named, json]);
    assert!(String::from_utf8(output.stdout).unwrap().contains(path));

    let address = free_address();
    let mut command = result_cleaner();
    command.args(["run", "--no-metrics", "--listen", &address]).env(named.0, named.1);
    let service = Service::spawn(command, &format!("http://{address}"));
    assert_eq!(service.stats()["cache_directory"], path);
    service.wait_for_stat("total_deleted", 12);
}

#[test]
fn a_wrong_variable_is_wrong_usage_that_is_reported() {
    let cache = CacheDir::samples();
    let path = cache.path().to_str().unwrap();
    for variable in [
        ("RESULT_CLEANER_CHECK_INTERVAL", "500ms"),
        ("RESULT_CLEANER_REPORT_INTERVAL", "0"),
        ("RESULT_CLEANER_LISTEN", "nowhere"),
        ("RESULT_CLEANER_LOG_FORMAT", "xml"),
    ] {
        let output = call(&["run", path], &[variable]);
        assert_eq!(output.status.code(), Some(2), "{variable:?}: {output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(variable.1) && error.contains(variable.0), "{output:?}");
        // What the command line names is not the variable's.
        let flag = variable.0.replace("RESULT_CLEANER_", "--").to_lowercase().replace('_', "-");
        let output = call(&["run", path, &flag, variable.1], &[variable]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains(variable.0), "{output:?}");
    }
    assert_eq!(cache.files().len(), 48);
}
