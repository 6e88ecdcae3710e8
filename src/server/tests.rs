use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::telemetry::stats::WatchState;

const PATIENCE: Duration = Duration::from_secs(60);

struct Cleaner(AtomicBool);

impl StatsSource for Cleaner {
    fn stats(&self) -> Pin<Box<dyn Future<Output = Stats> + Send + '_>> {
        Box::pin(async { stats() })
    }

    fn metrics(&self) -> Result<String, String> {
        Ok("figures".to_owned())
    }

    fn alive(&self) -> bool {
        self.0.load(SeqCst)
    }
}

fn stats() -> Stats {
    Stats {
        version: String::new(),
        host: String::new(),
        started_at: None,
        running: true,
        check_interval: Duration::from_secs(6 * 3600),
        total_cleanups: 1,
        total_deleted: 2,
        total_freed_bytes: 3,
        total_freed_mb: 0.0,
        total_errors: 4,
        errors_by_kind: Default::default(),
        cache_directory: "/x".into(),
        heap_size: 5,
        next_expiry: None,
        watch: WatchState::Active,
        watched_directories: 0,
        refused_directories: 0,
        total_queue_overflows: 0,
        undelivered_reports: None,
        total_orphans_removed: 0,
        total_orphan_bytes_freed: 0,
        total_directories_pruned: 0,
        size_bytes: None,
        free_bytes: None,
        max_size_bytes: None,
        min_free_bytes: None,
        total_evicted: 0,
        total_evicted_bytes: 0,
        dry_run: false,
        would_delete: 0,
        would_evict: 0,
        expiring: None,
        recent: None,
    }
}

struct Server {
    address: SocketAddr,
    cleaner: Arc<Cleaner>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        Self::with_at_most(MAX_CONNECTIONS).await
    }

    async fn with_at_most(max_connections: usize) -> Self {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let cleaner = Arc::new(Cleaner(AtomicBool::new(true)));
        let (stop, stopped) = oneshot::channel();
        let names = vec!["Box.lan".to_owned(), "other:8004".to_owned()];
        let source = cleaner.clone();
        let serve = serve_with(max_connections, listener, source, names, async {
            let _ = stopped.await;
        });
        let task = tokio::spawn(serve);
        Self { address, cleaner, stop, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Returns head and body of the answer to `request`. The client closes its side after the
    /// request.
    async fn answer(&self, request: &str) -> (String, String) {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = read_all(stream).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer with a head");
        (head.to_ascii_lowercase(), body.to_owned())
    }

    async fn status(&self, request: &str) -> u16 {
        let (head, _) = self.answer(request).await;
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    timeout(PATIENCE, read).await.expect("the connection is never closed").unwrap();
    answer
}

#[tokio::test]
async fn stats_are_json_that_nobody_keeps() {
    let server = Server::start().await;
    let (head, body) = server.answer("GET /stats?x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(serde_json::from_str::<Stats>(&body).unwrap(), stats());
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    for line in [
        "content-type: application/json",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        &format!("content-length: {}", body.len()),
    ] {
        assert!(head.lines().any(|found| found == line), "no {line} in {head}");
    }

    let (without, nothing) = server.answer("HEAD /stats HTTP/1.1\r\nHost: [::1]\r\n\r\n").await;
    assert_eq!(nothing, "");
    let undated = |head: &str| {
        let lines = head.lines().filter(|line| !line.starts_with("date:"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(undated(&without), undated(&head));
}

#[tokio::test]
async fn health_is_that_of_the_worker() {
    let server = Server::start().await;
    let request = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:8004\r\n\r\n";
    let (head, body) = server.answer(request).await;
    assert!(head.starts_with("http/1.1 200 ") && body == "ok\n", "{head}");
    server.cleaner.0.store(false, SeqCst);
    let (head, body) = server.answer(request).await;
    assert!(head.starts_with("http/1.1 503 ") && body == "the worker has died\n", "{head}");
}

#[tokio::test]
async fn what_is_not_there_and_what_does_not_work_is_reported() {
    let server = Server::start().await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET /stats/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("POST /x HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("DELETE /stats HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        ("GET /stats HTTP/1.1\r\n\r\n", 400),
        ("GET /stats HTTP/1.0\r\n\r\n", 400),
        ("GET /stats HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
        ("GET /stats HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        ("GET http://localhost/stats HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET http://evil.example/stats HTTP/1.1\r\nHost: localhost\r\n\r\n", 421),
        ("GET http://localhost/stats HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        ("nonsense\r\n\r\n", 400),
    ] {
        assert_eq!(server.status(request).await, status, "{request}");
    }
    for method in ["POST", "PUT", "OPTIONS", "TRACE", "PATCH", "DELETE"] {
        let request = format!(
            "{method} /stats HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000\r\n\r\n{:50000}",
            ""
        );
        let (head, _) = server.answer(&request).await;
        assert!(head.starts_with("http/1.1 405 "), "{method}: {head}");
        assert!(head.contains("\r\nallow: get, head\r\n"), "{head}");
    }
}

#[tokio::test]
async fn no_more_connections_are_open_at_once_than_there_is_room_for() {
    const MAX_CONNECTIONS: usize = 4;
    let server = Server::with_at_most(MAX_CONNECTIONS).await;
    let mut half_open = Vec::new();
    for _ in 0..3 * MAX_CONNECTIONS {
        half_open.push(server.connect().await);
    }
    // The server closes the oldest connections long before their time limit.
    let start = Instant::now();
    for stream in &mut half_open[..2 * MAX_CONNECTIONS] {
        let end = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    if start.elapsed() < HEAD_TIMEOUT / 2 {
        let is_open = |stream: &TcpStream| {
            let read = stream.try_read(&mut [0]);
            read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        let open = half_open.iter().filter(|stream| is_open(stream)).count();
        assert!((1..=MAX_CONNECTIONS).contains(&open), "{open} are open");
    }
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(server.status(request).await, 200);
}

#[tokio::test]
async fn clients_that_say_nothing_hold_up_nobody() {
    let server = Server::start().await;
    let mut half_open = Vec::new();
    for n in 0..200 {
        let mut stream = server.connect().await;
        let start = ["", "GET /stats HTTP/1.1\r\n", "POST /stats HTTP/1.1\r\nHost: localhost\r\n"];
        // The server may have closed the connection already.
        let _ = stream.write_all(start[n % 3].as_bytes()).await;
        half_open.push(stream);
    }
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(server.status(request).await, 200);

    // The server has closed the oldest connection; its shutdown closes the others.
    let mut byte = [0];
    let oldest = timeout(PATIENCE, half_open[0].read(&mut byte)).await.unwrap();
    assert!(matches!(oldest, Ok(0) | Err(_)), "{oldest:?}");
    server.stop.send(()).unwrap();
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
    let last = timeout(PATIENCE, half_open[199].read(&mut byte)).await.unwrap();
    assert!(matches!(last, Ok(0) | Err(_)), "{last:?}");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_connection_serves_several_requests_and_ends_when_it_lies_idle() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    let request = "GET /healthz HTTP/1.1\r\nHost: other\r\n\r\n";
    stream.write_all(request.repeat(2).as_bytes()).await.unwrap();
    let answers = read_all(stream).await;
    assert_eq!(answers.matches("\r\n\r\nok\n").count(), 2, "{answers}");
}

#[tokio::test]
async fn an_address_in_use_is_reported_with_what_to_do() {
    let server = Server::start().await;
    let error = bind(server.address).await.unwrap_err().to_string();
    assert!(error.contains(&server.address.to_string()), "{error}");
    assert!(error.contains("choose another port"), "{error}");
}
