//! What the tests share: a cache directory in a temporary place with both writers of the field,
//! the real binary, and a metrics service on loopback.
//!
//! Time is waited for by condition: [`wait_until`] gives up after [`PATIENCE`] only.

#![allow(dead_code, unused_imports, reason = "each program uses a part of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;

mod chromium;
#[cfg(feature = "cli")]
mod fake_clock;
mod loss;
mod metrics;
mod service;
mod trial;
mod usage;

pub use chromium::*;
#[cfg(feature = "cli")]
pub use fake_clock::*;
pub use loss::*;
pub use metrics::*;
pub use service::*;
pub use trial::*;
pub use usage::*;

/// How long a condition may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        let waited = start.elapsed();
        assert!(waited < PATIENCE, "in vain waited until {what}");
        // Many conditions cost a request: whoever has waited for long asks less often.
        thread::sleep((waited / 8).clamp(Duration::from_millis(2), Duration::from_millis(30)));
    }
}

/// Calls `attempt` with the seconds that it may take, and with twice as many each time it returns
/// false, because it took longer. So a test has as much time as the machine needs, and no more.
#[track_caller]
pub fn in_time(mut attempt: impl FnMut(f64) -> bool) {
    let mut seconds = 1.0;
    while !attempt(seconds) {
        seconds *= 2.0;
        assert!(seconds < PATIENCE.as_secs_f64(), "in vain tried with {seconds} s");
    }
}

/// Runs `check` for each item, six at a time, for what waits more than it works.
pub fn side_by_side<T: Sync>(items: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(item);
                }
            });
        }
    });
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

    /// An empty one in memory, where there is enough of it: no disk slows down what happens in it.
    pub fn in_memory() -> Self {
        const MEMORY: &str = "/dev/shm";
        const ENOUGH: u64 = 1 << 30;
        let free = rustix::fs::statvfs(MEMORY).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
        let temp = if free < ENOUGH { tempfile::tempdir() } else { tempfile::tempdir_in(MEMORY) };
        let temp = temp.unwrap();
        let path = temp.path().join("cached_results");
        fs::create_dir(&path).unwrap();
        Self { temp, path }
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

/// Waits until the cleaner of `cache` has dealt with all that is due now: a pair that came later
/// is gone.
#[track_caller]
pub fn wait_for_later_pair(cache: &CacheDir) {
    // Due by whatever clock the cleaner reads.
    let later = cache.pair("a-later-pair").settled(1.5);
    // Its halves bear reserved names for an instant.
    let claims =
        ["r", "m"].map(|half| cache.path().join(format!(".result-cleaner-a-later-pair.{half}")));
    wait_until("a later pair is gone", || {
        later.is_gone() && !claims.iter().any(|claim| claim.exists())
    });
}

impl Pair {
    /// Publishes both files so that nothing speaks for a result that is newer than its metadata:
    /// once it has expired it can go at once.
    pub fn settled(self, expires_at: f64) -> Self {
        fs::create_dir_all(self.result.parent().unwrap()).unwrap();
        publish(&self.result, b"a result of 23 bytes...");
        // Halves of the same instant would be waited for, as if one were missing.
        wait_for_tick(&self.result);
        self.set_expiry(expires_at);
        self
    }
}

/// Waits until whatever changes gets a later ctime than `file` has. Makes a file beside it meanwhile.
pub fn wait_for_tick(file: &Path) {
    use std::os::unix::fs::MetadataExt;
    let ctime = |path: &Path| {
        let seen = fs::metadata(path).unwrap();
        (seen.ctime(), seen.ctime_nsec())
    };
    let tick = file.with_extension("tick.tmp");
    wait_until("the clock of the file system goes on", || {
        fs::write(&tick, "").unwrap();
        ctime(&tick) > ctime(file)
    });
    fs::remove_file(tick).unwrap();
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

/// Whether strace can be driven here; says so where it can't.
pub fn has_strace() -> bool {
    let works = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    let works = works.is_ok_and(|status| status.success());
    if !works {
        eprintln!("skipped: strace is not installed, or may not trace");
    }
    works
}
