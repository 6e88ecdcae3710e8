//! The figures for Prometheus, read by a parser that others wrote.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::common::{CacheDir, PATIENCE, Service, now, publish, wait_until};
use chrono::{DateTime, Utc};
use prometheus_parse::{HistogramCount, Scrape, Value};

/// The counters, and the keys of `/stats` that say the same.
const COUNTERS: [(&str, &str); 11] = [
    ("result_cleaner_sweeps_total", "total_cleanups"),
    ("result_cleaner_results_deleted_total", "total_deleted"),
    ("result_cleaner_freed_bytes_total", "total_freed_bytes"),
    ("result_cleaner_queue_overflows_total", "total_queue_overflows"),
    ("result_cleaner_orphans_removed_total", "total_orphans_removed"),
    ("result_cleaner_orphan_freed_bytes_total", "total_orphan_bytes_freed"),
    ("result_cleaner_directories_pruned_total", "total_directories_pruned"),
    ("result_cleaner_results_evicted_total", "total_evicted"),
    ("result_cleaner_evicted_bytes_total", "total_evicted_bytes"),
    ("result_cleaner_results_would_delete_total", "would_delete"),
    ("result_cleaner_results_would_evict_total", "would_evict"),
];

const LAST_SWEEP: &str = "result_cleaner_last_sweep_timestamp_seconds";

/// What `/metrics` says now.
fn scrape(service: &Service) -> Scrape {
    let (status, body) = service.get("/metrics").expect("the service answers");
    assert_eq!(status, 200, "{body}");
    Scrape::parse(body.lines().map(|line| Ok(line.to_owned()))).unwrap()
}

/// The one sample of that name.
#[track_caller]
fn number(scrape: &Scrape, name: &str) -> f64 {
    let mut samples = scrape.samples.iter().filter(|sample| sample.metric == name);
    let (Some(sample), None) = (samples.next(), samples.next()) else {
        panic!("not one sample of {name}");
    };
    match sample.value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => value,
        _ => panic!("{name} is no number"),
    }
}

/// The samples of that name by their label.
#[track_caller]
fn labelled(scrape: &Scrape, name: &str, label: &str) -> HashMap<String, f64> {
    let samples = scrape.samples.iter().filter(|sample| sample.metric == name);
    let values = samples.map(|sample| match sample.value {
        Value::Gauge(value) | Value::Counter(value) => {
            (sample.labels.get(label).unwrap().to_owned(), value)
        }
        _ => panic!("{name} is no number"),
    });
    values.collect()
}

fn has(scrape: &Scrape, name: &str) -> bool {
    scrape.samples.iter().any(|sample| sample.metric == name)
}

/// Whether the first scan is in the figures, which is the last thing that is said of it.
fn has_swept(scrape: &Scrape) -> bool {
    has(scrape, LAST_SWEEP) && number(scrape, "result_cleaner_sweep_duration_seconds_count") > 0.0
}

#[track_caller]
fn buckets<'a>(scrape: &'a Scrape, name: &str) -> &'a [HistogramCount] {
    let mut samples = scrape.samples.iter().filter(|sample| sample.metric == name);
    match samples.next().map(|sample| &sample.value) {
        Some(Value::Histogram(buckets)) => buckets,
        other => panic!("{name} is no histogram: {other:?}"),
    }
}

#[test]
fn counters_and_gauges_are_those_of_the_stats() {
    let cache = CacheDir::samples();
    for name in ["broken", "broken-too"] {
        publish(&cache.store(name, now() - 5.0).metadata, b"{");
    }
    let next = now().floor() + 3600.25;
    cache.store("next", next);
    let service = Service::ready(cache.path(), &["--check-interval", "90m"]);
    for (key, value) in [("total_deleted", 12), ("heap_size", 13), ("total_errors", 2)] {
        service.wait_for_stat(key, value);
    }
    wait_until("the first scan is in the figures", || has_swept(&scrape(&service)));

    let (stats, figures) = (service.stats(), scrape(&service));
    let mut counters: HashMap<&str, f64> = HashMap::new();
    for sample in &figures.samples {
        let is_total = sample.metric.ends_with("_total");
        assert_eq!(is_total, matches!(sample.value, Value::Counter(_)), "{}", sample.metric);
        let is_of_process = sample.metric == "process_cpu_seconds_total";
        if let Value::Counter(value) = sample.value
            && sample.labels.is_empty()
            && !is_of_process
        {
            counters.insert(&sample.metric, value);
            let help = figures.docs.get(&sample.metric);
            assert!(help.is_some_and(|help| help.ends_with('.')), "{}: {help:?}", sample.metric);
        }
    }
    let reported = COUNTERS.map(|(name, key)| (name, stats[key].as_f64().unwrap()));
    assert_eq!(counters, HashMap::from(reported));

    assert_eq!(number(&figures, "result_cleaner_running"), 1.0);
    assert_eq!(number(&figures, "result_cleaner_pending_results"), 13.0);
    assert_eq!(number(&figures, "result_cleaner_check_interval_seconds"), 5400.0);
    assert_eq!(number(&figures, "result_cleaner_next_expiry_timestamp_seconds"), next);
    let ended = stats["recent"]["last_sweep"]["ended_at"].as_str().unwrap();
    let ended = ended.parse::<DateTime<Utc>>().unwrap().timestamp_micros() as f64 / 1e6;
    assert_eq!(number(&figures, "result_cleaner_last_sweep_timestamp_seconds"), ended);
    let started = stats["started_at"].as_str().unwrap();
    let started = started.parse::<DateTime<Utc>>().unwrap().timestamp_micros() as f64 / 1e6;
    assert_eq!(number(&figures, "result_cleaner_start_time_seconds"), started);

    let labelled = |name: &str, label: &str| labelled(&figures, name, label);
    let states = [("active", 1.0), ("degraded", 0.0), ("polling", 0.0), ("absent", 0.0)];
    let states = states.map(|(state, value)| (state.to_owned(), value));
    assert_eq!(labelled("result_cleaner_watch_state", "state"), HashMap::from(states));
    let version = (env!("CARGO_PKG_VERSION").to_owned(), 1.0);
    assert_eq!(labelled("result_cleaner_build_info", "version"), HashMap::from([version]));
}

#[test]
fn errors_are_counted_by_what_they_are_about_from_the_start() {
    const NAME: &str = "result_cleaner_errors_total";
    const KINDS: [&str; 6] =
        ["deletion", "directory", "inspection", "invalid_metadata", "orphan", "recovery"];
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let expected = |invalid: f64| -> HashMap<String, f64> {
        let count = |kind| if kind == "invalid_metadata" { invalid } else { 0.0 };
        KINDS.into_iter().map(|kind| (kind.to_owned(), count(kind))).collect()
    };
    assert_eq!(labelled(&scrape(&service), NAME, "kind"), expected(0.0));
    publish(&cache.store("broken", now() - 5.0).metadata, b"{");
    service.wait_for_stat("total_errors", 1);
    assert_eq!(labelled(&scrape(&service), NAME, "kind"), expected(1.0));
    assert_eq!(service.stats()["errors_by_kind"]["invalid_metadata"], 1);
}

#[test]
fn the_process_is_measured_by_the_customary_names() {
    let cache = CacheDir::new();
    let before = now();
    let service = Service::ready(cache.path(), &[]);
    let figures = scrape(&service);
    let started = number(&figures, "process_start_time_seconds");
    // The kernel counts in hundredths of a second.
    assert!(before - 0.1 <= started && started <= now(), "{before} {started}");
    for (name, least) in [
        ("process_resident_memory_bytes", 1e5),
        ("process_virtual_memory_bytes", 1e6),
        ("process_open_fds", 4.0),
        ("process_max_fds", 16.0),
        ("process_threads", 2.0),
    ] {
        assert!(number(&figures, name) >= least, "{name}");
    }
    let cpu = |figures: &Scrape| number(figures, "process_cpu_seconds_total");
    wait_until("the work shows", || cpu(&scrape(&service)) > 0.0);
    assert_eq!(number(&scrape(&service), "process_start_time_seconds"), started);
}

#[test]
fn directories_space_and_reports_are_shown() {
    let cache = CacheDir::new();
    for name in ["a/b/x", "a/c/x", "x"] {
        cache.store(name, now() + 3600.0);
    }
    // Nobody listens there.
    let service = Service::ready(
        cache.path(),
        &["--metrics-url", "http://127.0.0.1:9", "--report-interval", "100ms"],
    );
    let wait_for = |name: &str, value: f64| {
        wait_until(&format!("{name} is {value}"), || number(&scrape(&service), name) == value);
    };
    wait_for("result_cleaner_watched_directories", 4.0);
    std::fs::remove_dir_all(cache.path().join("a/b")).unwrap();
    wait_for("result_cleaner_watched_directories", 3.0);
    assert_eq!(number(&scrape(&service), "result_cleaner_refused_directories"), 0.0);
    wait_until("the report of the first scan waits", || {
        number(&scrape(&service), "result_cleaner_undelivered_reports") >= 1.0
    });
    wait_until("the free space is known", || {
        has(&scrape(&service), "result_cleaner_filesystem_free_bytes")
    });
}

#[test]
fn histograms_count_each_deletion_and_sweep_once() {
    let cache = CacheDir::new();
    for n in 0..3 {
        cache.store(&format!("late-{n}"), now() - 30.0);
    }
    let service = Service::ready(cache.path(), &[]);
    service.wait_for_stat("total_deleted", 3);
    for n in 0..4 {
        cache.store(&format!("in-time-{n}"), now() + 0.3);
    }
    service.wait_for_stat("total_deleted", 7);
    wait_until("the first scan is in the figures", || has_swept(&scrape(&service)));

    let figures = scrape(&service);
    for (name, count) in
        [("result_cleaner_lateness_seconds", 7.0), ("result_cleaner_sweep_duration_seconds", 1.0)]
    {
        let buckets = buckets(&figures, name);
        assert!(buckets.is_sorted_by(|a, b| a.less_than < b.less_than), "{buckets:?}");
        assert!(buckets.is_sorted_by(|a, b| a.count <= b.count), "{buckets:?}");
        let last = buckets.last().unwrap();
        assert_eq!((last.less_than, last.count), (f64::INFINITY, count), "{name}");
        assert_eq!(number(&figures, &format!("{name}_count")), count);
        assert!(number(&figures, &format!("{name}_sum")) > 0.0);
    }
    // Those that had expired before the start, and on a busy machine others too.
    let lateness = buckets(&figures, "result_cleaner_lateness_seconds");
    let within =
        |seconds| lateness.iter().find(|bucket| bucket.less_than == seconds).unwrap().count;
    assert!(within(10.0) <= 4.0, "{lateness:?}");
    assert_eq!(within(3600.0), 7.0, "{lateness:?}");
    assert!(number(&figures, "result_cleaner_lateness_seconds_sum") >= 90.0);
    // What alerts and dashboards go by.
    for edge in [0.0001, 0.005, 0.1, 1.0, 5.0] {
        assert!(lateness.iter().any(|bucket| bucket.less_than == edge), "{edge}: {lateness:?}");
    }
}

#[test]
fn what_is_not_known_yet_is_left_out() {
    let cache = CacheDir::absent();
    let service = Service::start(cache.path(), &[]);
    service.wait_for_stat("watch", "absent");
    let figures = scrape(&service);
    for name in ["result_cleaner_next_expiry_timestamp_seconds", LAST_SWEEP] {
        assert!(!has(&figures, name), "{name}");
    }
    std::fs::create_dir(cache.path()).unwrap();
    cache.store("a", now() + 3600.0);
    wait_until("both are known", || {
        let figures = scrape(&service);
        has(&figures, "result_cleaner_next_expiry_timestamp_seconds") && has(&figures, LAST_SWEEP)
    });
}

#[test]
fn the_content_type_is_that_of_the_text_format() {
    let cache = CacheDir::new();
    let service = Service::start(cache.path(), &[]);
    let mut stream = TcpStream::connect(service.url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, _) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    let content_type = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(head.lines().any(|line| line == content_type), "{head}");
}
