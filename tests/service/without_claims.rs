//! Pairs that can't be taken to a reserved name before they are deleted, because their own names
//! are too long, or the file system can't rename without replacing: they are looked at a last time,
//! and deleted at once.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use crate::common::{
    CacheDir, Pair, Service, call, free_address, has_strace, in_time, now, pair_of_bytes,
    result_cleaner, succeed, text, traced_by, wait_until,
};
use rustix::process::{Signal, kill_process};

/// `.result.json.lz4` has 16 bytes.
const MAX_NAME: usize = 255 - 16;

/// Pairs that expired, that expire soon, that are renewed or published anew in time, and that stay.
struct Pairs {
    /// When the first of them expires that had not before.
    at: f64,
    expired: Vec<Pair>,
    soon: Vec<Pair>,
    renewed: Pair,
    anew: Pair,
    stays: Pair,
}

impl Pairs {
    /// Pairs whose stems are as long as may be.
    fn long(cache: &CacheDir, seconds: f64) -> Self {
        Self::new(cache, seconds, |number| vec![b'0' + number; MAX_NAME])
    }

    fn short(cache: &CacheDir, seconds: f64) -> Self {
        Self::new(cache, seconds, |number| vec![b'0' + number])
    }

    fn new(cache: &CacheDir, seconds: f64, stem: impl Fn(u8) -> Vec<u8>) -> Self {
        let dir = cache.path().join("dir");
        let pair = |number, expires_at| pair_of_bytes(&dir, &stem(number)).write(expires_at);
        let soon = now() + seconds;
        Self {
            at: soon,
            expired: vec![pair(0, 1.5), pair(1, now() - 1.0)],
            soon: vec![pair(2, soon), pair(3, soon + 0.1)],
            renewed: pair(4, soon),
            anew: pair(5, soon),
            stays: pair(6, 4e9),
        }
    }

    /// What has to come of them while a service runs; false where some could not be renewed in time.
    fn check(&self, cache: &CacheDir, service: &Service) -> bool {
        let put = |path: &Path, content: &str| {
            // A temporary name beside it would be too long.
            let temporary = cache.outside("temporary");
            fs::write(&temporary, content).unwrap();
            fs::rename(&temporary, path).unwrap();
        };
        put(&self.renewed.metadata, r#"{"expires_at": 4e9}"#);
        put(&self.anew.result, "anew");
        put(&self.anew.metadata, r#"{"expires_at": 4e9}"#);
        if now() >= self.at {
            return false;
        }
        let gone = || self.expired.iter().chain(&self.soon).all(Pair::is_gone);
        wait_until("what expires is gone", gone);
        service.wait_for_stat("heap_size", 3);
        service.wait_for_stat("total_deleted", 4);
        assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
        assert_eq!(fs::read(&self.anew.result).unwrap(), b"anew");
        for pair in [&self.renewed, &self.anew, &self.stays] {
            assert!(pair.result.exists() && pair.metadata.exists());
        }
        assert_eq!(fs::read_dir(cache.path().join("dir")).unwrap().count(), 6);
        true
    }
}

#[test]
fn names_of_255_bytes() {
    in_time(|seconds| {
        let cache = CacheDir::new();
        let pairs = Pairs::long(&cache, seconds);
        let service = Service::start(cache.path(), &[]);
        pairs.check(&cache, &service)
    });
}

#[test]
fn names_of_every_length_up_to_255_bytes() {
    let cache = CacheDir::new();
    for length in (1..20).chain(225..=MAX_NAME) {
        let _ = pair_of_bytes(cache.path(), &vec![b'x'; length]).write(1.5);
    }
    let count = 19 + MAX_NAME - 224;
    let output = succeed(&["sweep", "--json", text(cache.path())]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["deleted_count"], count);
    assert_eq!(report["errors"], 0);
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn a_file_system_that_can_not_rename_without_replacing() {
    if !has_strace() {
        return;
    }
    let check = |error, seconds| {
        let cache = CacheDir::new();
        let pairs = Pairs::short(&cache, seconds);
        let address = free_address();
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-qq",
            "-e",
            "trace=renameat2",
            "-e",
            "signal=none",
            "-o",
            "/dev/null",
        ]);
        command.args(["-e", &format!("inject=renameat2:error={error}")]);
        command.arg(result_cleaner().get_program()).arg("run").arg(cache.path());
        command.args(["--no-metrics", "--listen", &address]);
        let service = Service::spawn(command, &format!("http://{address}"));
        let checked = pairs.check(&cache, &service);
        // The tracer alone would leave the service behind.
        kill_process(traced_by(service.pid()).unwrap(), Signal::KILL).unwrap();
        checked
    };
    for error in ["EINVAL", "ENOSYS"] {
        in_time(|seconds| check(error, seconds));
    }
}

#[test]
fn a_reserved_name_of_255_bytes_is_recovered() {
    let cache = CacheDir::new();
    let stem = vec![b'x'; MAX_NAME - 2];
    let pair = pair_of_bytes(cache.path(), &stem).write(4e9);
    let claim = [b".result-cleaner-".as_slice(), &stem, b".r"].concat();
    assert_eq!(claim.len(), 255);
    let claim = cache.path().join(OsStr::from_bytes(&claim));
    fs::rename(&pair.result, &claim).unwrap();
    assert_eq!(call(&["sweep", text(cache.path())]).status.code(), Some(0));
    assert!(pair.result.exists() && !claim.exists());
}
