//! The binary under libfaketime (Debian's package `faketime`).

use super::*;

/// A wall clock that differs from the real one by what it is set to.
pub struct FakeClock {
    library: PathBuf,
    temp: tempfile::TempDir,
}

impl FakeClock {
    /// One that shows the real time; `None`, with a message, where the binary can't be made to read
    /// it.
    pub fn new() -> Option<Self> {
        let Some(library) = library() else {
            eprintln!("skipped: libfaketime is not installed");
            return None;
        };
        let clock = Self { library, temp: tempfile::tempdir().unwrap() };
        let cache = CacheDir::new();
        cache.store("a", now() + 3600.0);
        clock.set(-86_400.0);
        let mut command = result_cleaner();
        let output =
            clock.faked(&mut command).args(["list", "--json", text(cache.path())]).output();
        let listed: serde_json::Value =
            serde_json::from_str(stdout(&output.unwrap()).trim()).unwrap();
        if listed["expires_in_seconds"].as_f64().unwrap() < 86_400.0 {
            eprintln!("skipped: libfaketime does not change what the binary reads");
            return None;
        }
        clock.set(0.0);
        Some(clock)
    }

    /// Sets it to be `ahead` of the real one by so many seconds.
    pub fn set(&self, ahead: f64) {
        publish(&self.file(), format!("{ahead:+}\n").as_bytes());
    }

    fn file(&self) -> PathBuf {
        self.temp.path().join("offset")
    }

    pub fn faked<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", self.file()).envs([
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ])
    }

    /// What runs a command by a clock that is `ahead` of the real one by so many seconds, whoever runs it.
    pub fn wrapper(&self, ahead: f64) -> Vec<String> {
        let preload = format!("LD_PRELOAD={}", self.library.display());
        let offset = format!("FAKETIME={ahead:+}");
        let others = ["FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"].map(str::to_owned);
        ["env".to_owned(), preload, offset].into_iter().chain(others).collect()
    }

    /// The service by this clock, its first scan done.
    pub fn service(&self, cache: &CacheDir, args: &[&str]) -> Service {
        let address = free_address();
        let mut command = result_cleaner();
        self.faked(&mut command).arg("run").arg(cache.path()).args(args);
        command.args(["--no-metrics", "--listen", &address]);
        let service = Service::spawn(command, &format!("http://{address}"));
        service.wait_for_stat("watch", "active");
        service.wait_for_stat("total_cleanups", 1);
        service
    }
}

/// Where distributions put the library for programs with threads.
fn library() -> Option<PathBuf> {
    let dirs = fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok).map(|entry| entry.path());
    dirs.chain(["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from))
        .map(|dir| dir.join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
}
