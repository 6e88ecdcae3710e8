//! A system that runs out of descriptors or memory says nothing of the files: no pair is forgotten, and
//! no file is lost.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::{
    CacheDir, Pair, Service, free_address, has_strace, last_stats, now, result_cleaner, succeed,
    text, traced_by, wait_until,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

const PAIRS: usize = 10;

#[test]
fn a_crowd_of_clients_leaves_the_cleaner_its_descriptors() {
    let cache = CacheDir::new();
    let address = free_address();
    let binary = result_cleaner();
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n 64; exec "$0" "$@""#]).arg(binary.get_program());
    for (name, _) in binary.get_envs() {
        command.env_remove(name);
    }
    command.arg("run").arg(cache.path()).args(["--no-metrics", "--listen", &address]);
    let service = Service::spawn(command, &format!("http://{address}"));
    wait_until("the first scan is over", || service.log().contains("Cleanup completed"));
    let clients: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut client = TcpStream::connect(&address).unwrap();
            // The service may have had enough of it already.
            let _ = client.write_all(b"GET /stats HTTP/1.1\r\n");
            client
        })
        .collect();
    let pairs: Vec<Pair> =
        (0..PAIRS).map(|number| cache.store(&format!("{number}/pair"), now() + 0.5)).collect();
    wait_until("every pair is gone", || pairs.iter().all(Pair::is_gone));
    drop(clients);
    // With all of them it would have no descriptor left, neither for another client nor for a file.
    assert_eq!(service.lines_with("can't accept"), 0, "{}", service.log());
    service.wait_for_stat("total_deleted", PAIRS);
    service.assert_calm();
}

#[test]
fn a_pair_is_not_forgotten_where_no_descriptor_is_left_to_check_its_directory() {
    let cache = CacheDir::new();
    let pairs: Vec<Pair> =
        (0..PAIRS).map(|number| cache.pair(&format!("{number}/pair")).settled(4e9)).collect();
    let service = Bounded::start(&cache);
    // One for the directory, one for the metadata, and none to look where the directory is.
    service.leave_descriptors(2);
    for pair in &pairs {
        pair.set_expiry(1.5);
    }
    wait_until(&format!("each failure is logged: {}", service.log()), || {
        let log = service.log();
        let is_logged = |pair: &Pair| {
            let path = text(&pair.result).to_owned();
            log.lines().any(|line| line.contains(&path) && line.contains("Too many open files"))
        };
        pairs.iter().all(is_logged)
    });
    wait_until("one fails at the check of its directory", || {
        service.log().contains("check where the directory is")
    });
    service.lift_limit();
    wait_until("every pair is gone", || pairs.iter().all(Pair::is_gone));
    let stats = service.end();
    assert!(stats["total_errors"].as_u64() >= Some(PAIRS as u64), "{stats}");
    assert_eq!(stats["total_cleanups"], 1, "it took a sweep: {stats}");
}

#[test]
fn a_new_directory_for_which_no_descriptor_is_left_is_scanned_later() {
    let cache = CacheDir::new();
    let service = Bounded::start(&cache);
    service.leave_descriptors(0);
    let pair = cache.store("new/pair", 1.5);
    wait_until("the failure is logged", || service.log().contains("can't read"));
    service.lift_limit();
    wait_until("the pair is gone", || pair.is_gone());
    let stats = service.end();
    assert!(stats["total_errors"].as_u64() >= Some(1), "{stats}");
    assert_eq!(stats["total_cleanups"], 1, "it took a sweep: {stats}");
}

#[test]
fn a_look_that_fails_amid_a_deletion_is_counted_and_costs_nothing() {
    if !has_strace() {
        return;
    }
    let mut failed = 0;
    for at in 1.. {
        let cache = CacheDir::new();
        let pair = cache.pair("pair").settled(1.5);
        let (output, is_injected) =
            faulty_sweep(&cache, &[], "newfstatat", "ENOMEM", &at.to_string());
        if !is_injected {
            break;
        }
        let what = format!("look {at}: {output:?}, {:?}", cache.files());
        if let Ok(report) = serde_json::from_slice::<Value>(&output.stdout) {
            let count = |key: &str| report[key].as_u64().unwrap();
            assert_eq!(count("deleted_count") + count("errors"), 1, "{what}");
            failed += count("errors");
        }
        assert!(pair.is_whole() || pair.is_gone() || reserved(&cache) > 0, "{what}");
        sweep(&cache);
        assert_eq!(cache.files(), [""; 0], "{what}");
    }
    assert!(failed >= 5, "only {failed} looks failed");
}

#[test]
fn a_look_that_fails_amid_a_recovery_loses_no_metadata() {
    if !has_strace() {
        return;
    }
    let mut failed = 0;
    for at in 1.. {
        let cache = CacheDir::new();
        // A cleaner was killed when it had claimed both halves, and the result was published anew.
        let old = cache.pair("pair").settled(1.5);
        fs::rename(&old.result, cache.path().join(".result-cleaner-pair.r")).unwrap();
        fs::rename(&old.metadata, cache.path().join(".result-cleaner-pair.m")).unwrap();
        fs::write(&old.result, "a new result").unwrap();
        // What is claimed counts as left behind only once it has been there for a second.
        thread::sleep(Duration::from_millis(1100));
        let (output, is_injected) =
            faulty_sweep(&cache, &[], "newfstatat", "ENOMEM", &at.to_string());
        if !is_injected {
            break;
        }
        let what = format!("look {at}: {output:?}, {:?}", cache.files());
        let has_metadata =
            old.metadata.exists() || cache.path().join(".result-cleaner-pair.m").exists();
        assert!(has_metadata || !old.result.exists(), "the new result is alone, {what}");
        if let Ok(report) = serde_json::from_slice::<Value>(&output.stdout) {
            failed += report["errors"].as_u64().unwrap();
        }
    }
    assert!(failed >= 3, "only {failed} looks failed");
}

#[test]
fn a_lookup_that_is_always_disturbed_ends_and_finds_its_directory() {
    if !has_strace() {
        return;
    }
    let cache = CacheDir::new();
    cache.store("a/b/pair", 1.5);
    cache.store("pair", 1.5);
    let (output, is_injected) = faulty_sweep(&cache, &[], "openat2", "EAGAIN", "1+");
    assert!(is_injected, "openat2 is not called");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["deleted_count"], &report["errors"]), (&2.into(), &0.into()), "{output:?}");
}

/// A service without `--listen`, whose descriptors are those that it needs, and that are then bounded.
struct Bounded {
    child: Child,
    log: std::path::PathBuf,
    unbounded: Rlimit,
}

impl Bounded {
    /// Starts one for `cache`, and waits until the first scan is over.
    fn start(cache: &CacheDir) -> Self {
        let log = cache.outside("log");
        let mut command = result_cleaner();
        command.arg("run").arg(cache.path()).args(["--no-metrics", "--log-format", "text", "-v"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let unbounded = rustix::process::getrlimit(Resource::Nofile);
        let service = Self { child: command.spawn().unwrap(), log, unbounded };
        wait_until("the first scan is over", || service.log().contains("Cleanup completed"));
        service
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn open(&self) -> Vec<u64> {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let number = |fd: std::io::Result<fs::DirEntry>| fd.unwrap().file_name();
        fds.map(|fd| number(fd).to_str().unwrap().parse().unwrap()).collect()
    }

    /// Lets the service open so many files more.
    fn leave_descriptors(&self, free: usize) {
        let mut open = self.open();
        wait_until("it has come to rest", || {
            thread::sleep(Duration::from_millis(100));
            let before = std::mem::replace(&mut open, self.open());
            before == open
        });
        let limit = (0..).filter(|number| !open.contains(number)).nth(free).unwrap();
        self.set_limit(Rlimit { current: Some(limit), ..self.unbounded });
    }

    fn lift_limit(&self) {
        self.set_limit(self.unbounded);
    }

    fn set_limit(&self, limit: Rlimit) {
        prlimit(Some(self.pid()), Resource::Nofile, limit).unwrap();
    }

    /// Ends it; its last stats.
    fn end(mut self) -> Value {
        kill_process(self.pid(), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        last_stats(&self.log())
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sweep of `cache` in which the calls of `failing` that `when` names fail with `error`, counted on
/// each thread; and whether one did.
fn faulty_sweep(
    cache: &CacheDir,
    args: &[&str],
    failing: &str,
    error: &str,
    when: &str,
) -> (Output, bool) {
    let log = cache.outside("strace.log");
    let binary = result_cleaner();
    let mut command = Command::new("strace");
    for (name, _) in binary.get_envs() {
        command.env_remove(name);
    }
    command.args(["-f", "-qq", "-e", &format!("trace={failing}"), "-e", "signal=none"]);
    // What the loader and the C library need for themselves does not fail.
    for dir in ["", "a", "a/b"] {
        command.arg("-P").arg(cache.path().join(Path::new(dir)));
    }
    command.args(["-e", &format!("inject={failing}:error={error}:when={when}"), "-o"]).arg(&log);
    command.arg(binary.get_program()).args(["sweep", "--json"]).args(args).arg(cache.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tracer = Tracer(command.spawn().unwrap());
    wait_until("the sweep ends", || tracer.0.try_wait().unwrap().is_some());
    let mut output = Output { status: tracer.0.wait().unwrap(), stdout: vec![], stderr: vec![] };
    std::io::copy(tracer.0.stdout.as_mut().unwrap(), &mut output.stdout).unwrap();
    std::io::copy(tracer.0.stderr.as_mut().unwrap(), &mut output.stderr).unwrap();
    (output, fs::read_to_string(&log).unwrap().contains("(INJECTED)"))
}

/// strace, which does not outlive this value, nor does what it runs.
struct Tracer(Child);

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = traced_by(self.0.id()).map(|pid| kill_process(pid, Signal::KILL));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sweep(cache: &CacheDir) {
    succeed(&["sweep", text(cache.path())]);
}

fn reserved(cache: &CacheDir) -> usize {
    cache.files().iter().filter(|name| name.contains(".result-cleaner-")).count()
}
