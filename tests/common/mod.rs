//! What the tests share: a cache directory in a temporary place with both writers of the field,
//! the real binary, and a metrics service on loopback.
//!
//! Time is waited for by condition: [`wait_until`] gives up after [`PATIENCE`] only.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;

/// How long a condition may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Seconds since the Unix epoch.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A cache directory that is removed with this value.
pub struct CacheDir {
    temp: TempDir,
    path: PathBuf,
}

impl CacheDir {
    /// An empty one.
    pub fn new() -> Self {
        let cache = Self::absent();
        fs::create_dir(&cache.path).unwrap();
        cache
    }

    /// One that does not exist yet.
    pub fn absent() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("cached_results");
        Self { temp, path }
    }

    /// A copy of 24 results that the real result store wrote: 12 expired in 2025, 12 expire in 2124.
    pub fn samples() -> Self {
        let cache = Self::new();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cached_results");
        copy_tree(&data, &cache.path);
        cache
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A place beside the cache directory, on the same file system.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Publishes a pair as the result store does: each file by a rename, the result first, with
    /// `expires_at` as a number. `name` may have directories, which are made.
    pub fn store(&self, name: &str, expires_at: f64) -> Pair {
        let pair = self.pair(name);
        let metadata = serde_json::json!({
            "total_count": 50,
            "query_context": {"query": "…", "nested": {"any": ["depth"]}},
            "expires_at": expires_at,
            "compressed": true,
        });
        publish(&pair.result, b"a result of 23 bytes...");
        publish(&pair.metadata, serde_json::to_string_pretty(&metadata).unwrap().as_bytes());
        pair
    }

    /// Writes a pair in place as the integration guide shows it: local time without an offset.
    pub fn guide(&self, name: &str, expires_at: f64) -> Pair {
        let pair = self.pair(name);
        let at = chrono::DateTime::from_timestamp_micros((expires_at * 1e6) as i64).unwrap();
        let at = at.with_timezone(&chrono::Local).format("%Y-%m-%dT%H:%M:%S%.6f");
        fs::write(&pair.result, b"a result of 23 bytes...").unwrap();
        fs::write(&pair.metadata, format!(r#"{{"expires_at": "{at}", "file_size": 23}}"#)).unwrap();
        pair
    }

    /// The paths of a pair that may not exist; its directory is made.
    pub fn pair(&self, name: &str) -> Pair {
        let pair = Pair::at(&self.path, name);
        fs::create_dir_all(pair.result.parent().unwrap()).unwrap();
        pair
    }

    /// Every file below the cache directory, sorted, relative to it.
    pub fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for entry in walkdir::WalkDir::new(&self.path) {
            let Ok(entry) = entry else { continue };
            if !entry.file_type().is_dir() {
                let path = entry.path().strip_prefix(&self.path).unwrap();
                files.push(path.to_string_lossy().into_owned());
            }
        }
        files.sort();
        files
    }
}

/// The two files of a result.
#[derive(Debug, Clone)]
pub struct Pair {
    pub result: PathBuf,
    pub metadata: PathBuf,
}

impl Pair {
    pub fn at(dir: &Path, name: &str) -> Self {
        Self {
            result: dir.join(format!("{name}.result.json.lz4")),
            metadata: dir.join(format!("{name}.metadata.json")),
        }
    }

    /// Whether both files are there.
    pub fn is_whole(&self) -> bool {
        self.result.exists() && self.metadata.exists()
    }

    /// Whether neither file is there.
    pub fn is_gone(&self) -> bool {
        !self.result.exists() && !self.metadata.exists()
    }

    /// The size of both files.
    pub fn bytes(&self) -> u64 {
        fs::metadata(&self.result).unwrap().len() + fs::metadata(&self.metadata).unwrap().len()
    }

    /// Replaces the metadata by a rename, as the result store does.
    pub fn set_expiry(&self, expires_at: f64) {
        publish(&self.metadata, format!(r#"{{"expires_at": {expires_at}}}"#).as_bytes());
    }
}

/// Writes `<path>.tmp` and renames it to `path`.
pub fn publish(path: &Path, content: &[u8]) {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    fs::write(&temporary, content).unwrap();
    fs::rename(&temporary, path).unwrap();
}

pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The binary that is tested, with nothing of this process's own settings for it.
#[cfg(feature = "cli")]
pub fn result_cleaner() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_result-cleaner"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RESULT_CLEANER_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end.
#[cfg(feature = "cli")]
pub fn call(args: &[&str]) -> Output {
    result_cleaner().args(args).output().unwrap()
}

/// `result-cleaner run` as a process of its own; killed with this value.
#[cfg(feature = "cli")]
pub struct Service {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    pub url: String,
}

#[cfg(feature = "cli")]
impl Service {
    /// Starts the service on `dir`, with `--listen` on a free port and without a metrics service
    /// unless `args` name one.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        let address = free_address();
        let mut command = result_cleaner();
        command.arg("run").arg(dir).args(["--listen", &address]).args(args);
        if !args.contains(&"--metrics-url") {
            command.arg("--no-metrics");
        }
        Self::spawn(command, &format!("http://{address}"))
    }

    /// Starts `command`, which has to serve at `url`, and waits until it answers.
    pub fn spawn(mut command: Command, url: &str) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                kept.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let mut service = Self { child, log, reader: Some(reader), url: url.to_owned() };
        wait_until("the service answers", || {
            if let Some(status) = service.child.try_wait().unwrap() {
                panic!("the service ended with {status}: {}", service.log());
            }
            service.get("/healthz").is_some_and(|(status, _)| status == 200)
        });
        service
    }

    /// Status and body of a GET request; `None` where nothing answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        get(&self.url, path)
    }

    /// What `/stats` says.
    pub fn stats(&self) -> Value {
        let (status, body) = self.get("/stats").expect("the service answers");
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until `/stats` has `value` for `key`.
    #[track_caller]
    pub fn wait_for_stat(&self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        let mut last = Value::Null;
        let deadline = Instant::now() + PATIENCE;
        while last != value {
            assert!(Instant::now() < deadline, "{key} is {last}, not {value}\n{}", self.log());
            last = self.stats()[key].clone();
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Sends SIGTERM; the exit status, how long it took to end, and all that it logged.
    pub fn terminate(mut self) -> (ExitStatus, Duration, String) {
        let start = Instant::now();
        self.signal(rustix::process::Signal::TERM);
        let status = self.child.wait().unwrap();
        let took = start.elapsed();
        self.reader.take().unwrap().join().unwrap();
        (status, took, self.log())
    }

    /// Kills it as the machine would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[cfg(feature = "cli")]
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address on loopback that nothing listens on (or nothing did a moment ago).
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Status and body of a GET request; `None` where nothing answers.
pub fn get(url: &str, path: &str) -> Option<(u16, String)> {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// A metrics service on loopback that keeps what it is sent.
pub struct MetricsStub {
    pub url: String,
    state: Arc<Mutex<StubState>>,
}

struct StubState {
    /// The status to answer with; `None` to take the report and close without an answer.
    answer: Option<u16>,
    /// The reports that were answered with success.
    delivered: Vec<Value>,
    /// All requests: the first line, and the body.
    requests: Vec<(String, String)>,
}

impl MetricsStub {
    /// One that answers 200.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = StubState { answer: Some(200), delivered: Vec::new(), requests: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &shared));
            }
        });
        Self { url, state }
    }

    /// What to answer from now on; `None` closes the connection without an answer.
    pub fn answer(&self, status: Option<u16>) {
        self.state.lock().unwrap().answer = status;
    }

    pub fn delivered(&self) -> Vec<Value> {
        self.state.lock().unwrap().delivered.clone()
    }

    pub fn requests(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The sum of a figure over all delivered reports.
    pub fn sum(&self, key: &str) -> u64 {
        self.delivered().iter().map(|report| report[key].as_u64().unwrap()).sum()
    }
}

fn answer(stream: TcpStream, state: &Mutex<StubState>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut request_line = String::new();
    reader.read_line(&mut request_line).ok()?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    let mut state = state.lock().unwrap();
    state.requests.push((request_line.trim_end().to_owned(), body.clone()));
    let status = state.answer?;
    if (200..300).contains(&status) {
        state.delivered.push(serde_json::from_str(&body).ok()?);
    }
    drop(state);
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()
}

/// A pair whose stem is any bytes, in any directory.
pub fn pair_of_bytes(dir: &Path, stem: &[u8]) -> Pair {
    use std::os::unix::ffi::OsStrExt;
    let name = |suffix: &[u8]| dir.join(std::ffi::OsStr::from_bytes(&[stem, suffix].concat()));
    Pair { result: name(b".result.json.lz4"), metadata: name(b".metadata.json") }
}

impl Pair {
    /// Writes both files in place, the result first, and makes their directory.
    pub fn write(self, expires_at: f64) -> Self {
        fs::create_dir_all(self.result.parent().unwrap()).unwrap();
        fs::write(&self.result, b"a result of 23 bytes...").unwrap();
        fs::write(&self.metadata, format!(r#"{{"expires_at": {expires_at}}}"#)).unwrap();
        self
    }
}

/// Runs a tool of the system; false, with a message, where it is not installed.
pub fn tool(program: &str, args: &[&std::ffi::OsStr]) -> bool {
    match Command::new(program).args(args).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {output:?}");
            true
        }
        Err(error) => {
            eprintln!("skipped: {program} can't be run: {error}");
            false
        }
    }
}

#[cfg(feature = "cli")]
impl Service {
    /// Like [`Service::start`], and waits until the first scan is over.
    pub fn ready(dir: &Path, args: &[&str]) -> Self {
        let service = Self::start(dir, args);
        service.wait_for_stat("watch", "active");
        wait_until("the first scan is over", || service.stats()["total_cleanups"] != 0);
        service
    }

    /// Asserts that there was no sweep but the first scan, and no error.
    #[track_caller]
    pub fn assert_calm(&self) {
        self.assert_errors(0);
    }

    /// Asserts that there was no sweep but the first scan, and so many errors.
    #[track_caller]
    pub fn assert_errors(&self, count: u64) {
        let stats = self.stats();
        assert_eq!(stats["total_cleanups"], 1, "a sweep was needed\n{}", self.log());
        assert_eq!(stats["total_errors"], count, "{}", self.log());
    }

    /// How many lines of the log have `text` in them.
    pub fn lines_with(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    /// Asserts that so many lines of the log have `text` in them; the last may still be on its way.
    #[track_caller]
    pub fn assert_lines_with(&self, text: &str, count: usize) {
        wait_until("the lines are logged", || self.lines_with(text) >= count);
        assert_eq!(self.lines_with(text), count, "{}", self.log());
    }
}

/// Waits until the cleaner of `cache` has dealt with all that is due now: a pair that came later
/// is gone.
#[track_caller]
pub fn wait_for_later_pair(cache: &CacheDir) {
    use std::os::unix::fs::MetadataExt;
    let ctime = |path: &Path| {
        let seen = fs::metadata(path).unwrap();
        (seen.ctime(), seen.ctime_nsec())
    };
    let later = cache.pair("a-later-pair");
    publish(&later.result, b"result");
    // Halves of the same instant would be waited for, as if one were missing.
    let tick = cache.outside("tick");
    wait_until("the clock of the file system goes on", || {
        fs::write(&tick, "").unwrap();
        ctime(&tick) > ctime(&later.result)
    });
    later.set_expiry(now());
    wait_until("a later pair is gone", || later.is_gone());
}

/// The binary as a user whom permissions bind, for a service on `cache`, which that user owns; its
/// address. `None`, with a message, where there is no such user.
#[cfg(feature = "cli")]
pub fn unprivileged_run(cache: &CacheDir, args: &[&str]) -> Option<(Command, String)> {
    use std::os::unix::fs::{PermissionsExt, chown};
    const NOBODY: u32 = 65534;
    let address = free_address();
    let mut command = result_cleaner();
    if rustix::process::geteuid().is_root() {
        let temp = cache.path().parent().unwrap();
        fs::set_permissions(temp, fs::Permissions::from_mode(0o755)).unwrap();
        for entry in walkdir::WalkDir::new(cache.path()) {
            chown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // That user might not reach the binary where it is.
        let binary = temp.join("result-cleaner");
        fs::copy(env!("CARGO_BIN_EXE_result-cleaner"), &binary).unwrap();
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
        let mut trial = Command::new("setpriv");
        if !trial.args(user).arg("true").status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: permissions do not bind root, and setpriv does not work");
            return None;
        }
        command = Command::new("setpriv");
        command.args(user).arg("env").arg("-i").arg(binary);
    }
    command.arg("run").arg(cache.path()).args(["--no-metrics", "--listen", &address]).args(args);
    Some((command, format!("http://{address}")))
}

/// The stats in the last line of a log, whichever its format.
pub fn last_stats(log: &str) -> Value {
    let line = log.lines().last().expect("something was logged");
    if line.starts_with('{') {
        let line: Value = serde_json::from_str(line).unwrap();
        return line["stats"].clone();
    }
    let (_, stats) = line.split_once("stopped: ").expect("the last line has the stats");
    serde_json::from_str(stats).unwrap()
}

#[cfg(feature = "cli")]
impl Service {
    /// Sends `signal`, which has to end it; the exit status and all that it logged.
    pub fn end(mut self, signal: rustix::process::Signal) -> (ExitStatus, String) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        (status, self.log())
    }
}

impl MetricsStub {
    /// One at `address`, which nothing listens on.
    pub fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let state = StubState { answer: Some(200), delivered: Vec::new(), requests: Vec::new() };
        let stub = Self { url: format!("http://{address}"), state: Arc::new(Mutex::new(state)) };
        let shared = Arc::clone(&stub.state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &shared));
            }
        });
        stub
    }
}

/// `path` as an argument.
#[cfg(feature = "cli")]
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[cfg(feature = "cli")]
pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

#[cfg(feature = "cli")]
pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// The output of a call that has to succeed.
#[cfg(feature = "cli")]
#[track_caller]
pub fn succeed(args: &[&str]) -> Output {
    let output = call(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    output
}

/// The keys of a JSON object, sorted.
pub fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// All that a change to the tree would change.
pub fn snapshot(cache: &CacheDir) -> Vec<(PathBuf, [i64; 8])> {
    use std::os::unix::fs::MetadataExt;

    let entries = walkdir::WalkDir::new(cache.path()).sort_by_file_name();
    let seen = entries.into_iter().map(|entry| {
        let entry = entry.unwrap();
        let seen: fs::Metadata = entry.metadata().unwrap();
        let numbers = [
            seen.ino().cast_signed(),
            seen.size().cast_signed(),
            seen.mode().into(),
            seen.nlink().cast_signed(),
            seen.mtime(),
            seen.mtime_nsec(),
            seen.ctime(),
            seen.ctime_nsec(),
        ];
        (entry.into_path(), numbers)
    });
    seen.collect()
}
