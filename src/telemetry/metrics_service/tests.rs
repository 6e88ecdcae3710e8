use std::io::Write;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::pair::tally::{ErrorKind, Errors};

/// More time than a busy machine needs for a report.
const FINISH: Duration = Duration::from_secs(5);

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);

fn tally(deleted: u64) -> Tally {
    let duration = Duration::from_micros(500 * deleted);
    Tally {
        deleted,
        freed_bytes: 10 * deleted,
        checked: 100,
        errors: ErrorKind::Deletion.into(),
        duration,
        ..Tally::default()
    }
}

/// A metrics service that answers the n-th request with `answer(n)`: the first line of the answer, or
/// `None` for no answer.
struct Metrics {
    url: String,
    got: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Metrics {
    async fn start(answer: impl Fn(usize) -> Option<&'static str> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let got = Arc::new(Mutex::new(Vec::new()));
        let metrics = Self { url, got: got.clone() };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (head, body, mut stream) = read_request(stream).await;
                let n = got.lock().unwrap().len();
                got.lock().unwrap().push((head, body));
                let answer = answer(n);
                tokio::spawn(async move {
                    if let Some(line) = answer {
                        let answer = format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                    // Until the client leaves.
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                });
            }
        });
        metrics
    }

    fn bodies(&self) -> Vec<Value> {
        self.got.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }

    async fn wait_for(&self, reports: usize) -> Vec<Value> {
        until(|| self.bodies().len() >= reports).await;
        self.bodies()
    }
}

async fn read_request(stream: TcpStream) -> (String, Value, BufReader<TcpStream>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).await.unwrap(), 0);
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    (head, serde_json::from_slice(&body).unwrap(), stream)
}

async fn until(condition: impl Fn() -> bool) {
    let checks = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, checks).await.expect("the condition is never met");
}

fn sum(bodies: &[Value], key: &str) -> u64 {
    bodies.iter().map(|body| body[key].as_u64().unwrap()).sum()
}

/// Collects the log lines of this thread, the only one in these tests.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let sink = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn lines(&self, level: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(level)).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_sweep_is_a_report_of_its_own_even_an_idle_one() {
    let metrics = Metrics::start(|_| Some("204 No Content")).await;
    let url = format!("{}/base//", metrics.url.replace("//", "//us%20er:secret@"));
    let reporter = Reporter::start(&url, LONG).unwrap();
    reporter.sweep(tally(10));
    reporter.sweep(Tally::default());
    let bodies = metrics.wait_for(2).await;
    let (head, mut first) = metrics.got.lock().unwrap()[0].clone();
    assert!(head.starts_with("POST /base/track/cleanup HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(concat!("user-agent: result-cleaner/", env!("CARGO_PKG_VERSION"))));
    assert!(head.contains("content-type: application/json"));
    assert!(head.contains("authorization: Basic dXMgZXI6c2VjcmV0"), "{head}");
    let timestamp = first.as_object_mut().unwrap().remove("timestamp").unwrap();
    let timestamp = timestamp.as_str().unwrap();
    chrono::NaiveDateTime::parse_from_str(timestamp, "%Y-%m-%dT%H:%M:%S").unwrap();
    assert_eq!(timestamp.len(), 19);
    let expected = r#"{"deleted_count": 10, "freed_bytes": 100, "checked_count": 100,
        "errors": 1, "duration_ms": 5.0}"#;
    assert_eq!(first, serde_json::from_str::<Value>(expected).unwrap());
    assert_eq!(bodies[1]["checked_count"], 0);
    assert!(bodies[1]["duration_ms"].is_f64());
}

#[tokio::test]
async fn what_waits_for_the_interval_is_sent_at_the_end() {
    let metrics = Metrics::start(|_| Some("200 OK")).await;
    let reporter = Reporter::start(&metrics.url, LONG).unwrap();
    reporter.between(Tally { deleted: 0, errors: Errors::default(), ..tally(1) });
    reporter.between(tally(1));
    metrics.wait_for(1).await;
    reporter.between(tally(2));
    reporter.sweep(tally(4));
    let bodies = metrics.wait_for(2).await;
    assert_eq!((&bodies[0]["deleted_count"], &bodies[1]["deleted_count"]), (&1.into(), &4.into()));
    assert_eq!(bodies[0]["checked_count"], 200);
    reporter.finish(FINISH).await;
    let bodies = metrics.wait_for(3).await;
    assert_eq!(bodies[2]["deleted_count"], 2);
}

#[tokio::test]
async fn an_outage_loses_nothing_and_is_reported_once() {
    let (log, _guard) = Log::start();
    let metrics = Metrics::start(|n| match n {
        0 => Some("302 Found\r\nLocation: /elsewhere"),
        1 => Some("500 Internal Server Error"),
        2 => None,
        _ => Some("201 Created"),
    })
    .await;
    let reporter = Reporter::start_with(&metrics.url, SHORT, 100 * SHORT).unwrap();
    for n in 1..=9 {
        reporter.sweep(tally(n));
        reporter.between(tally(100 * n));
    }
    until(|| log.lines("INFO").len() == 1).await;
    let bodies = metrics.bodies();
    assert_eq!(bodies[1]["deleted_count"], 4545, "all that waits is merged");
    assert_eq!(sum(&bodies[3..], "deleted_count"), 4545);
    assert_eq!(sum(&bodies[3..], "errors"), 18);
    let warnings = log.lines("WARN");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in ["metrics service", &metrics.url, "HTTP 302", "buffering reports"] {
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
    assert!(log.lines("INFO")[0].contains("metrics service"));
    reporter.finish(FINISH).await;
    assert_eq!(sum(&metrics.bodies()[3..], "deleted_count"), 4545);
}

#[tokio::test]
async fn a_service_without_the_endpoint_is_asked_again_at_each_sweep_only() {
    for answer in ["404 Not Found", "405 Method Not Allowed", "410 Gone", "501 Not Implemented"] {
        let (log, _guard) = Log::start();
        let metrics = Metrics::start(move |n| Some(if n < 2 { answer } else { "200 OK" })).await;
        let reporter = Reporter::start(&metrics.url, SHORT).unwrap();
        reporter.between(tally(1));
        metrics.wait_for(1).await;
        until(|| log.lines("WARN").len() == 1).await;
        reporter.between(tally(2));
        // Many times the interval at which an unreachable service would be tried again.
        tokio::time::sleep(25 * SHORT).await;
        assert_eq!(metrics.bodies().len(), 1);
        reporter.sweep(tally(4));
        metrics.wait_for(2).await;
        reporter.between(tally(8));
        reporter.sweep(tally(16));
        until(|| log.lines("INFO").len() == 1).await;
        let delivered = &metrics.bodies()[2..];
        assert_eq!((sum(delivered, "deleted_count"), sum(delivered, "errors")), (31, 5));
        let warnings = log.lines("WARN");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        for part in ["metrics service", &metrics.url, "no endpoint /track/cleanup", answer] {
            assert!(warnings[0].contains(part), "{warnings:?}");
        }
        reporter.finish(FINISH).await;
        assert_eq!(sum(&metrics.bodies()[2..], "deleted_count"), 31);
    }
}

#[tokio::test]
async fn what_no_service_accepts_is_logged_at_the_end_without_the_password() {
    let (log, _guard) = Log::start();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let reporter = Reporter::start(&format!("http://user:secret@{closed}"), LONG).unwrap();
    reporter.sweep(tally(2));
    until(|| log.lines("WARN").len() == 1).await;
    reporter.between(tally(1));
    reporter.finish(FINISH).await;
    let warnings = log.lines("WARN");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for line in &warnings {
        assert!(line.contains(&format!("metrics service http://***@{closed}")), "{line}");
        assert!(line.contains("connection refused") && !line.contains("secret"), "{line}");
    }
    let figures = "deleted_count=3 freed_bytes=30 checked_count=200 errors=2 duration_ms=1.5";
    assert!(warnings[1].contains(figures), "{warnings:?}");
}

#[tokio::test]
async fn a_hanging_attempt_does_not_keep_the_end_waiting() {
    let (log, _guard) = Log::start();
    let metrics = Metrics::start(|n| (n > 0).then_some("200 OK")).await;
    let reporter = Reporter::start_with(&metrics.url, LONG, LONG).unwrap();
    reporter.sweep(tally(1));
    metrics.wait_for(1).await;
    reporter.sweep(tally(2));
    tokio::time::timeout(PATIENCE, reporter.finish(FINISH)).await.unwrap();
    let bodies = metrics.wait_for(2).await;
    assert_eq!(bodies[1]["deleted_count"], 3, "nothing else was sent while the first hung");

    let silent = Metrics::start(|_| None).await;
    let reporter = Reporter::start_with(&silent.url, LONG, LONG).unwrap();
    reporter.sweep(tally(1));
    silent.wait_for(1).await;
    tokio::time::timeout(PATIENCE, reporter.finish(FINISH)).await.unwrap();
    assert_eq!(silent.bodies().len(), 1, "it could have been taken: no reason to repeat it");
    // On a busy machine the task may write it after the end that was waited for.
    until(|| log.lines("WARN").iter().any(|line| line.contains(NO_TIME))).await;
}

#[tokio::test]
async fn dropping_the_reporter_ends_its_task() {
    let metrics = Metrics::start(|_| None).await;
    for busy in [false, true] {
        let reporter = Reporter::start(&metrics.url, LONG).unwrap();
        if busy {
            reporter.sweep(tally(1));
            metrics.wait_for(1).await;
        }
        let shared = Arc::downgrade(&reporter.shared);
        drop(reporter);
        until(|| shared.strong_count() == 0).await;
    }
}

#[test]
fn a_runtime_without_drivers_is_reported_as_such() {
    let start = || Reporter::start("http://localhost:1", LONG).err();
    assert!(matches!(start(), Some(Error::NoRuntime)));
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let none = builder.build().unwrap();
    let start_in = |runtime: tokio::runtime::Runtime| runtime.block_on(async { start() });
    assert!(matches!(start_in(none), Some(Error::NoDriver { driver: "time" })));
    let time = builder.enable_time().build().unwrap();
    assert!(matches!(start_in(time), Some(Error::NoDriver { driver: "io" })));
}

#[test]
fn retries_come_at_the_interval_within_bounds_and_memory_is_bounded() {
    let start = Instant::now();
    let late = start + Duration::from_secs(5);
    for (interval, retry) in [
        (Duration::MAX, start + MAX_RETRY),
        (Duration::from_secs(7), start + Duration::from_secs(7)),
        (Duration::from_millis(1), late + MIN_RETRY),
    ] {
        let mut waiting = PendingReports::new(interval);
        waiting.add_sweep(tally(1));
        assert_eq!(waiting.step(start), Step::Send(tally(1)));
        assert_eq!(waiting.reports(), 1, "until it is accepted");
        waiting.failed(tally(1), start, late, &"timed out".to_owned().into());
        assert_eq!(waiting.step(late), Step::Wait(Some(retry)));
        for _ in 0..10_000 {
            waiting.add_sweep(tally(1));
            waiting.add_between(tally(1));
        }
        assert!(waiting.sweeps.len() <= MAX_SWEEPS);
        let merged = 1 + MAX_SWEEPS as u64 + 1;
        assert_eq!(waiting.reports(), merged);
        let Step::Send(all) = waiting.step(retry) else { panic!("not due at {retry:?}") };
        assert_eq!((all.deleted, all.errors.total()), (20_001, 20_001));
        assert_eq!(waiting.reports(), merged, "until they are accepted");
        waiting.delivered();
        assert_eq!((waiting.reports(), waiting.step(retry)), (0, Step::Wait(None)), "idle again");
    }
}
