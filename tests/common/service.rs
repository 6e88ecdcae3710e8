//! The real binary, and what it answers.

use super::*;

/// The binary that is tested, with nothing of this process's own settings for it.
#[cfg(feature = "cli")]
pub fn result_cleaner() -> Command {
    without_settings(Path::new(env!("CARGO_BIN_EXE_result-cleaner")))
}

/// A command with nothing of this process's own settings for the binary.
#[cfg(feature = "cli")]
fn without_settings(program: &Path) -> Command {
    let mut command = Command::new(program);
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

    /// Waits until `/stats` has `value` for `key`, and for as long as that comes nearer.
    #[track_caller]
    pub fn wait_for_stat(&self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        let (mut last, mut nearest) = (Value::Null, u64::MAX);
        let mut deadline = Instant::now() + PATIENCE;
        while last != value {
            assert!(Instant::now() < deadline, "{key} is {last}, not {value}\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
            last = self.stats()[key].clone();
            if let (Some(now), Some(then)) = (last.as_i64(), value.as_i64())
                && now.abs_diff(then) < nearest
            {
                nearest = now.abs_diff(then);
                deadline = Instant::now() + PATIENCE;
            }
        }
    }

    /// Waits until it knows of `count` pairs that expire later; false where that is not before `end`.
    pub fn knows_before(&self, end: f64, count: u64) -> bool {
        wait_until("the pairs are known, or expired", || {
            self.stats()["heap_size"] == count || now() >= end
        });
        now() < end
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

/// Keeps others from starting many services, too: the kernel limits how many inotify instances a user
/// may have, to 128 for a start. Held for as long as they run.
pub fn many_services() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An address on loopback that nothing listens on. It is not found by listening there for a moment: a process that
/// another test starts at that moment holds the socket until it executes its program.
pub fn free_address() -> String {
    let (host, round) = next_host();
    format!("{host}:{}", 8004 + round)
}

/// A host on loopback that nothing else uses, so that what is free there stays free.
pub fn own_host() -> Ipv4Addr {
    next_host().0
}

/// A host of this process, and how often it came before, as a number that other processes with such a host do not get.
fn next_host() -> (Ipv4Addr, u16) {
    static LAST: AtomicU16 = AtomicU16::new(0);
    let ([.., high, low], [round, number]) =
        (std::process::id().to_be_bytes(), LAST.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    let host = Ipv4Addr::new(127, 128 | high >> 1, low, number);
    (host, u16::from(high & 1) << 8 | u16::from(round))
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

#[cfg(feature = "cli")]
impl Service {
    /// Like [`Service::start`], and waits until the first scan is over.
    pub fn ready(dir: &Path, args: &[&str]) -> Self {
        let service = Self::start(dir, args);
        service.wait_for_stat("watch", "active");
        wait_until("the first scan is over", || service.stats()["total_cleanups"] != 0);
        service
    }

    /// A counter of `/stats`.
    pub fn count(&self, key: &str) -> u64 {
        self.stats()[key].as_u64().unwrap()
    }

    /// Waits until the counter `key` is `least` or more.
    #[track_caller]
    pub fn wait_for_at_least(&self, key: &str, least: u64) {
        wait_until(&format!("{key} is {least} or more"), || self.count(key) >= least);
    }

    /// Waits until `more` sweeps have ended since now.
    #[track_caller]
    pub fn wait_for_sweeps(&self, more: u64) {
        self.wait_for_at_least("total_cleanups", self.count("total_cleanups") + more);
    }

    /// Asserts that there was no sweep but the first scan, and no error.
    #[track_caller]
    pub fn assert_calm(&self) {
        self.assert_errors(0);
    }

    /// Asserts that there was no sweep but the first scan, and so many errors. The last of them may
    /// still be on its way.
    #[track_caller]
    pub fn assert_errors(&self, count: u64) {
        self.wait_for_at_least("total_cleanups", 1);
        self.wait_for_at_least("total_errors", count);
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

/// The binary as a user whom permissions bind, for a service on `cache`, which that user owns; its
/// address. `None`, with a message, where there is no such user.
#[cfg(feature = "cli")]
pub fn unprivileged_run(cache: &CacheDir, args: &[&str]) -> Option<(Command, String)> {
    unprivileged_run_by(cache, &[], args)
}

/// The same, run by `wrapper`.
#[cfg(feature = "cli")]
pub fn unprivileged_run_by(
    cache: &CacheDir,
    wrapper: &[&str],
    args: &[&str],
) -> Option<(Command, String)> {
    use std::os::unix::fs::{PermissionsExt, chown};
    const NOBODY: u32 = 65534;
    let address = free_address();
    let mut command = wrapped(wrapper, Path::new(env!("CARGO_BIN_EXE_result-cleaner")));
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
        let inner = wrapped(wrapper, &binary);
        command = Command::new("setpriv");
        command.args(user).args(["env", "-i"]).arg(inner.get_program()).args(inner.get_args());
    }
    command.arg("run").arg(cache.path()).args(["--no-metrics", "--listen", &address]).args(args);
    Some((command, format!("http://{address}")))
}

/// `binary`, run by `wrapper` if there is one.
#[cfg(feature = "cli")]
fn wrapped(wrapper: &[&str], binary: &Path) -> Command {
    let Some((program, args)) = wrapper.split_first() else { return without_settings(binary) };
    let mut command = without_settings(Path::new(program));
    command.args(args).arg(binary);
    command
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

/// The process that the tracer `tracer` runs; `None` as long as there is none, or when it has ended.
pub fn traced_by(tracer: u32) -> Option<rustix::process::Pid> {
    let children = fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children")).ok()?;
    rustix::process::Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}
