//! Reports to the metrics service: each cleanup is reported, nothing is lost while the service is
//! away, and cleaning waits for it never.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    CacheDir, MetricsStub, PATIENCE, Service, free_address, keys, last_stats, now, publish,
    result_cleaner, wait_until,
};
use chrono::{NaiveDateTime, TimeDelta, Utc};
use serde_json::Value;

const FIGURES: [(&str, &str); 3] = [
    ("deleted_count", "total_deleted"),
    ("freed_bytes", "total_freed_bytes"),
    ("errors", "total_errors"),
];

fn start(cache: &CacheDir, url: &str, args: &[&str]) -> Service {
    Service::start(cache.path(), &[&["--metrics-url", url], args].concat())
}

/// The sums of what was delivered are the totals.
#[track_caller]
fn assert_all_delivered(metrics: &MetricsStub, stats: &Value) {
    for (figure, total) in FIGURES {
        assert_eq!(metrics.sum(figure), stats[total], "{figure}: {:?}", metrics.delivered());
    }
}

fn outages(log: &str) -> Vec<&str> {
    let is_one = |line: &&str| line.contains("WARN") && line.contains("unreachable");
    log.lines().filter(is_one).collect()
}

/// Publishes `count` expired pairs and waits until they are deleted.
fn delete(cache: &CacheDir, service: &Service, name: &str, count: u64) {
    let before = service.count("total_deleted");
    for n in 0..count {
        cache.store(&format!("{name}-{n}"), now() - 1.0);
    }
    service.wait_for_stat("total_deleted", before + count);
}

/// Adds a pair whose metadata is broken and waits until that is counted.
fn break_one(cache: &CacheDir, service: &Service, name: &str) {
    let before = service.count("total_errors");
    publish(&cache.store(name, 1e10).metadata, b"broken");
    service.wait_for_stat("total_errors", before + 1);
}

#[test]
fn a_report_has_exactly_the_documented_keys_and_types() {
    let cache = CacheDir::samples();
    let metrics = MetricsStub::start();
    let address = free_address();
    let mut command = result_cleaner();
    command.arg("run").arg(cache.path()).args(["--listen", &address]);
    command.args(["--metrics-url", &format!("{}/base/", metrics.url)]).env("TZ", "IST-5:30");
    let _service = Service::spawn(command, &format!("http://{address}"));
    wait_until("the first scan is reported", || !metrics.requests().is_empty());
    let (line, body) = metrics.requests().swap_remove(0);
    assert_eq!(line, "POST /base/track/cleanup HTTP/1.1");
    let body: Value = serde_json::from_str(&body).unwrap();
    let expected =
        ["checked_count", "deleted_count", "duration_ms", "errors", "freed_bytes", "timestamp"];
    assert_eq!(keys(&body), expected);
    for key in ["checked_count", "deleted_count", "freed_bytes", "errors"] {
        assert!(body[key].is_u64(), "{key} is {}", body[key]);
    }
    assert!(body["duration_ms"].is_f64() && body["duration_ms"].as_f64().unwrap() > 0.0);
    let timestamp = body["timestamp"].as_str().unwrap();
    let local = NaiveDateTime::parse_from_str(timestamp, "%Y-%m-%dT%H:%M:%S").unwrap();
    let age = Utc::now().naive_utc() + TimeDelta::minutes(330) - local;
    assert!(age < TimeDelta::minutes(2) && age > TimeDelta::minutes(-1), "{timestamp}");
    // However the work is divided among reports, each sample is in one of them.
    wait_until("all samples are reported", || metrics.sum("checked_count") >= 24);
}

#[test]
fn every_sweep_is_reported_by_itself_also_one_that_found_nothing() {
    let cache = CacheDir::new();
    let metrics = MetricsStub::start();
    let service = start(&cache, &metrics.url, &["--check-interval", "1s"]);
    wait_until("empty sweeps are reported", || metrics.delivered().len() >= 2);
    for n in 0..3 {
        cache.store(&n.to_string(), now() + 3600.0);
    }
    let reported = |checked: u64| {
        let delivered = metrics.delivered();
        delivered.iter().filter(|report| report["checked_count"] == checked).count()
    };
    wait_until("the pairs are in reports", || reported(3) >= 2);
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert_eq!(last_stats(&log)["total_cleanups"], metrics.delivered().len(), "{log}");
    for report in metrics.delivered() {
        assert!(report["checked_count"].as_u64().unwrap() <= 3, "they were merged: {report}");
        assert_eq!((&report["deleted_count"], &report["errors"]), (&0.into(), &0.into()));
    }
}

#[test]
fn what_the_timer_deletes_is_reported_once_an_interval() {
    let cache = CacheDir::new();
    let metrics = MetricsStub::start();
    let begin = Instant::now();
    let service = start(&cache, &metrics.url, &["--report-interval", "1s"]);
    wait_until("the first scan is reported", || metrics.delivered().len() == 1);
    let start = now();
    for n in 0..60 {
        cache.store(&n.to_string(), start + 0.5 + f64::from(n) * 0.05);
    }
    service.wait_for_stat("total_deleted", 60);
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    let reports = metrics.delivered();
    // One at the begin, one at the end, and the first scan's.
    let most = begin.elapsed().as_secs() + 3;
    assert!(reports.len() as u64 <= most, "{} of at most {most}", reports.len());
    assert_eq!(last_stats(&log)["total_cleanups"], 1);
    assert_all_delivered(&metrics, &last_stats(&log));
    for report in &reports[1..] {
        assert!(report["checked_count"].as_u64() >= report["deleted_count"].as_u64(), "{report}");
        assert!(report["duration_ms"].as_f64().unwrap() > 0.0, "{report}");
    }
}

#[test]
fn what_waits_for_its_interval_is_delivered_on_sigterm() {
    let cache = CacheDir::new();
    let metrics = MetricsStub::start();
    let service = start(&cache, &metrics.url, &["--report-interval", "1h"]);
    wait_until("the first scan is reported", || metrics.delivered().len() == 1);
    delete(&cache, &service, "first", 1);
    wait_until("the first deletion is reported", || metrics.sum("deleted_count") == 1);
    delete(&cache, &service, "more", 5);
    break_one(&cache, &service, "broken");
    assert_eq!(metrics.delivered().len(), 2);
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert_eq!(metrics.delivered().len(), 3);
    assert_eq!(metrics.sum("deleted_count"), 6);
    assert_all_delivered(&metrics, &last_stats(&log));
}

#[test]
fn an_outage_loses_nothing_and_is_warned_of_once() {
    let cache = CacheDir::new();
    let metrics = MetricsStub::start();
    let arguments = ["--report-interval", "200ms", "--check-interval", "1s"];
    let service = start(&cache, &metrics.url, &arguments);
    let outages_of: [&[Option<u16>]; 2] = [&[Some(500), None, Some(302), Some(404)], &[Some(503)]];
    let mut answers = 0;
    for (outage, with) in (1..).zip(outages_of) {
        wait_until("a report is delivered", || !metrics.delivered().is_empty());
        answers += with.len() as u64;
        for (n, &answer) in with.iter().enumerate() {
            metrics.answer(answer);
            let delivered = metrics.delivered().len();
            delete(&cache, &service, &format!("{outage}-{n}"), 3);
            break_one(&cache, &service, &format!("{outage}-{n}-broken"));
            let requests = metrics.requests().len();
            wait_until("it is tried again", || metrics.requests().len() > requests + 1);
            assert_eq!(metrics.delivered().len(), delivered);
        }
        wait_until("it is warned of", || outages(&service.log()).len() >= outage);
        metrics.answer(Some(204));
        wait_until("all is delivered", || {
            metrics.sum("deleted_count") == answers * 3 && metrics.sum("errors") == answers
        });
        wait_until("that it is over is logged", || {
            service.log().matches("reachable again").count() == outage
        });
    }
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert_all_delivered(&metrics, &last_stats(&log));
    let warnings = outages(&log);
    assert_eq!(warnings.len(), 2, "{log}");
    for warning in warnings {
        assert!(warning.contains("metrics service") && warning.contains(&metrics.url), "{warning}");
    }
}

#[test]
fn a_service_that_has_no_such_endpoint_is_asked_once_a_sweep_and_gets_everything_later() {
    let cache = CacheDir::new();
    let metrics = MetricsStub::start();
    metrics.answer(Some(404));
    let service = start(&cache, &metrics.url, &["--report-interval", "100ms"]);
    let is_warning = |line: &&str| line.contains("WARN") && line.contains("no endpoint");
    wait_until("it is warned of", || service.log().lines().filter(is_warning).count() == 1);
    for n in 0..3 {
        delete(&cache, &service, &n.to_string(), 2);
        thread::sleep(Duration::from_millis(300));
    }
    break_one(&cache, &service, "broken");
    assert_eq!(metrics.requests().len(), 1, "the first scan's alone");
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    let figures = "undelivered figures: deleted_count=6";
    assert!(log.contains(figures) && outages(&log).is_empty(), "{log}");

    let args = ["--report-interval", "100ms", "--check-interval", "1s"];
    let service = start(&cache, &metrics.url, &args);
    let (before, sweeps) = (metrics.requests().len() as u64, service.count("total_cleanups"));
    delete(&cache, &service, "more", 4);
    service.wait_for_at_least("total_cleanups", sweeps + 3);
    wait_until("it is tried again", || metrics.requests().len() as u64 > before + 1);
    metrics.answer(Some(200));
    wait_until("all is delivered", || metrics.sum("deleted_count") == 4);
    wait_until("the service knows that", || service.log().contains("reachable again"));
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert_all_delivered(&metrics, &last_stats(&log));
    let attempts = metrics.requests().len() - metrics.delivered().len();
    let sweeps = last_stats(&log)["total_cleanups"].as_u64();
    // What is deleted before the first sweep has ended may make the first attempt.
    assert!(attempts as u64 <= before + sweeps.unwrap() + 1, "{attempts}: {log}");
    assert_eq!(log.lines().filter(is_warning).count(), 1, "{log}");
    assert!(log.contains("reachable again") && outages(&log).is_empty(), "{log}");
}

#[test]
fn a_service_that_starts_late_gets_everything() {
    let cache = CacheDir::samples();
    let address = free_address();
    let url = format!("http://{address}");
    let service = start(&cache, &url, &["--report-interval", "100ms", "--check-interval", "1s"]);
    service.wait_for_stat("total_deleted", 12);
    wait_until("it is warned of", || outages(&service.log()).len() == 1);
    delete(&cache, &service, "meanwhile", 8);
    break_one(&cache, &service, "broken");
    service.wait_for_at_least("total_cleanups", 3);
    assert_eq!(outages(&service.log()).len(), 1, "{}", service.log());

    let metrics = MetricsStub::at(&address);
    wait_until("all is delivered", || {
        !metrics.delivered().is_empty() && metrics.sum("deleted_count") == 20
    });
    // Merged: more results than there ever were.
    assert!(metrics.delivered()[0]["checked_count"].as_u64().unwrap() > 24);
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert_all_delivered(&metrics, &last_stats(&log));
    assert_eq!(outages(&log).len(), 1, "{log}");
}

/// Waits for a connection.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    wait_until("a report is sent", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Takes one request from `listener` and answers it.
fn answer_one(listener: &TcpListener, answer: &str) {
    let mut stream = accept(listener);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = Vec::new();
    let mut part = [0; 4096];
    while !request.ends_with(b"}") {
        let length = stream.read(&mut part).unwrap();
        assert!(length > 0, "the request ends early");
        request.extend_from_slice(&part[..length]);
    }
    stream.write_all(answer.as_bytes()).unwrap();
}

#[test]
fn a_redirect_is_not_followed_and_delivers_nothing() {
    let cache = CacheDir::new();
    let elsewhere = MetricsStub::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let redirect = format!(
        "HTTP/1.1 307 X\r\nLocation: {}/track/cleanup\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        elsewhere.url
    );
    cache.store("a", now() - 1.0);
    let service = start(&cache, &url, &["--report-interval", "100ms"]);
    answer_one(&listener, &redirect);
    service.wait_for_stat("total_deleted", 1);
    // That there is a second one shows that the first did not count.
    answer_one(&listener, &redirect);
    drop(listener);
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert!(elsewhere.requests().is_empty());
    assert!(log.contains("undelivered figures: deleted_count=1"), "{log}");
}

#[test]
fn on_sigterm_one_last_attempt_is_made_and_what_it_fails_to_deliver_is_logged() {
    let cache = CacheDir::samples();
    let metrics = MetricsStub::start();
    metrics.answer(Some(503));
    let service = start(&cache, &metrics.url, &["--report-interval", "1h"]);
    service.wait_for_stat("total_deleted", 12);
    wait_until("it is warned of", || outages(&service.log()).len() == 1);
    delete(&cache, &service, "a", 3);
    break_one(&cache, &service, "broken");
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    let (_, last) = metrics.requests().pop().unwrap();
    let last: Value = serde_json::from_str(&last).unwrap();
    let stats = last_stats(&log);
    let line =
        log.lines().find(|line| line.contains("undelivered figures:")).expect("it is logged");
    assert!(line.contains("WARN") && line.contains("metrics service"), "{line}");
    assert_eq!(stats["total_deleted"], 15);
    for (figure, total) in FIGURES {
        assert_eq!(last[figure], stats[total], "{figure} in the last attempt");
        let reported = format!("{figure}={}", stats[total]);
        assert!(line.split(' ').any(|word| word == reported), "no {reported} in {line}");
    }
    assert_eq!(log.matches("undelivered figures:").count(), 1);
}

#[test]
fn at_most_one_report_is_in_flight() {
    let cache = CacheDir::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (accepted, connections) = mpsc::channel::<TcpStream>();
    thread::spawn(move || {
        // Each is kept without an answer.
        while let Ok((stream, _)) = listener.accept() {
            accepted.send(stream).unwrap();
        }
    });
    let service = start(&cache, &url, &["--report-interval", "100ms", "--check-interval", "1s"]);
    let mut first = connections.recv_timeout(PATIENCE).unwrap();
    delete(&cache, &service, "a", 5);
    // The time-out ends the first one, and only then there is a second.
    let _second = connections.recv_timeout(PATIENCE).unwrap();
    first.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut request = Vec::new();
    match first.read_to_end(&mut request) {
        Ok(_) => assert!(request.starts_with(b"POST /track/cleanup ")),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it is still open"),
    }
    service.wait_for_at_least("total_cleanups", 2);
}
