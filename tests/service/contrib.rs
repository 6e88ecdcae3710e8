//! What others load into Prometheus and Grafana goes by the figures that the service has.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{CacheDir, MetricsStub, Service, call, now, result_cleaner, wait_until};
use serde_json::Value;

/// A file of this repository.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

/// The figures of a service that has something to report for each.
fn figures() -> String {
    let cache = CacheDir::samples();
    cache.store("waits", now() + 3600.0);
    let metrics = MetricsStub::start();
    let budget = ["--max-size", "1G", "--min-free", "1"];
    let args = [&["--metrics-url", &metrics.url][..], &budget].concat();
    let service = Service::ready(cache.path(), &args);
    service.wait_for_stat("total_deleted", 12);
    service.wait_for_stat("heap_size", 13);
    let mut figures = String::new();
    wait_until("the first scan is in the figures", || {
        let (status, reported) = service.get("/metrics").unwrap();
        assert_eq!(status, 200);
        figures = reported;
        ["last_sweep_timestamp_seconds", "filesystem_free_bytes"]
            .iter()
            .all(|name| figures.contains(&format!("result_cleaner_{name}")))
    });
    figures
}

/// The metrics that are named in `text`.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    words.filter(|word| word.starts_with("result_cleaner_")).collect()
}

/// The values of the label `label` that are asked for in `text`, and those of alternatives.
fn label_values<'a>(text: &'a str, label: &str) -> BTreeSet<&'a str> {
    let mut values = BTreeSet::new();
    for part in text.split(label).skip(1) {
        let Some(value) = part.trim_start_matches('=').trim_start_matches('~').strip_prefix('"')
        else {
            continue;
        };
        values.extend(value.split('"').next().unwrap().split('|'));
    }
    values
}

/// Runs promtool with `input`; `None`, with a message, where it is not installed.
fn promtool(args: &[&str], input: &str) -> Option<(bool, String)> {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("skipped: promtool can't be run: {error}");
            return None;
        }
    };
    // It may have ended without having read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[track_caller]
fn promtool_is_content(args: &[&str], input: &str) {
    if let Some((passed, said)) = promtool(args, input) {
        assert!(passed, "promtool {args:?}: {said}");
    }
}

#[test]
fn every_metric_and_state_that_is_asked_for_is_there() {
    let figures = figures();
    let served: BTreeSet<&str> =
        figures.lines().filter(|line| !line.starts_with('#')).flat_map(metrics_in).collect();
    let process = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("process_")).map(str::to_owned).collect()
    };
    let states = label_values(&figures, "state");
    assert_eq!(states.len(), 4, "{states:?}");
    for name in ["contrib/prometheus/alerts.yml", "contrib/grafana/result-cleaner.json"] {
        let text = read(name).replace("\\\"", "\"");
        let asked = metrics_in(&text);
        assert!(asked.len() >= 6, "{name} asks for {asked:?} only");
        let unknown: Vec<_> = asked.difference(&served).collect();
        assert!(unknown.is_empty(), "{name} asks for {unknown:?}");
        assert!(process(&text).is_subset(&process(&figures)), "{name}: {figures}");
        let asked = label_values(&text, "state");
        assert!(!asked.is_empty() && asked.is_subset(&states), "{name} asks for {asked:?}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value =
        serde_json::from_str(&read("contrib/grafana/result-cleaner.json")).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variable = |name: &str| variables.iter().find(|it| it["name"] == *name).unwrap();
    assert_eq!(variable("datasource")["type"], "datasource");
    for name in ["job", "instance"] {
        assert_eq!(variable(name)["includeAll"], true);
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "panels share an id");
    let mut covered = BTreeSet::new();
    for panel in panels {
        let title = &panel["title"];
        let place = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        let [x, y, w, h] = place;
        assert!(x + w <= 24, "{title} is too wide");
        for cell in (y..y + h).flat_map(|row| (x..x + w).map(move |column| (row, column))) {
            assert!(covered.insert(cell), "{title} lies over another panel");
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let selectors = query.matches(['{']).count();
            let chosen = query.matches(r#"{job=~"$job", instance=~"$instance""#).count();
            assert_eq!(chosen, selectors, "{title} shows all hosts");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}

#[test]
fn every_query_of_the_dashboard_is_valid() {
    let dashboard: Value =
        serde_json::from_str(&read("contrib/grafana/result-cleaner.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let rules = targets.enumerate().map(|(number, target)| {
        let query = target["expr"].as_str().unwrap().replace("$__range", "6h");
        let query = query.replace("$__rate_interval", "2m");
        format!("  - record: query:{number}\n    expr: {}\n", Value::from(query))
    });
    let rules = format!("groups:\n- name: queries\n  rules:\n{}", rules.collect::<String>());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queries.yml");
    fs::write(&path, rules).unwrap();
    promtool_is_content(&["check", "rules", path.to_str().unwrap()], "");
}

#[test]
fn promtool_is_content_with_the_figures() {
    promtool_is_content(&["check", "metrics"], &figures());
}

#[test]
fn alerts_are_valid_and_raised_when_they_should_be() {
    let [alerts, scrape, scenes] = [
        "contrib/prometheus/alerts.yml",
        "contrib/prometheus/scrape.yml",
        "tests/data/alerts.test.yml",
    ]
    .map(|name| file(name).to_str().unwrap().to_owned());
    promtool_is_content(&["check", "rules", &alerts], "");
    promtool_is_content(&["check", "config", &scrape], "");
    promtool_is_content(&["test", "rules", &scenes], "");
    let alerts = read("contrib/prometheus/alerts.yml");
    let scenes = read("tests/data/alerts.test.yml");
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(scenes.contains(&format!("alertname=\"{alert}\"")), "{alert} is in no scene");
    }
}

#[test]
fn the_units_leave_every_setting_to_variables() {
    for (unit, command) in [
        ("result-cleaner.service", "/usr/local/bin/result-cleaner run"),
        ("user/result-cleaner.service", "%h/.cargo/bin/result-cleaner run"),
        // What the instance is for is no setting.
        ("result-cleaner@.service", ":/usr/local/bin/result-cleaner run %f"),
    ] {
        let text = read(&format!("contrib/systemd/{unit}"));
        assert!(text.contains(&format!("\nExecStart={command}\n")), "{unit}");
        assert!(text.contains("\nEnvironmentFile=-"), "{unit}");
    }
    let user = read("contrib/systemd/sysusers.d/result-cleaner.conf");
    assert!(read("contrib/systemd/result-cleaner.service").contains("\nUser=omnimemory\n"));
    assert!(user.contains("\nu omnimemory "), "{user}");
}

/// The variables of the flags of `run`, and that of the directory.
fn variables_of_run() -> BTreeSet<String> {
    let help = call(&["run", "--help"]).stdout;
    let help = String::from_utf8(help).unwrap();
    let options = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let flags = options.filter_map(|line| line.split("--").nth(1)?.split([' ', '.']).next());
    let flags = flags.filter(|flag| *flag != "help");
    let variable = |flag: &str| format!("RESULT_CLEANER_{}", flag.to_uppercase().replace('-', "_"));
    flags.chain(["cache-dir"]).map(variable).collect()
}

#[test]
fn the_file_of_settings_explains_each_and_sets_none() {
    let text = read("contrib/default/result-cleaner");
    let mut explained = BTreeSet::new();
    for paragraph in text.trim_end().split("\n\n").skip(1) {
        let (words, setting) = paragraph.rsplit_once('\n').unwrap();
        assert!(words.lines().all(|line| line.starts_with("# ")), "{paragraph}");
        let setting = setting.strip_prefix('#').expect("it is commented out");
        let (name, value) = setting.split_once('=').unwrap();
        assert!(explained.insert(name.to_owned()), "{name} stands there twice");
        // The value is valid. The service fails because its directory is a file.
        let mut command = result_cleaner();
        command.args(["run", "/dev/null"]).env(name, value);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{setting}: {output:?}");
    }
    assert_eq!(explained, variables_of_run());
}
