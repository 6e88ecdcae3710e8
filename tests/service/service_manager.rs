//! The service under a service manager: what it sends over the manager's socket, and the unit files
//! that come with it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{
    CacheDir, PATIENCE, Service, figure, free_address, has_strace, now, result_cleaner, traced_by,
    wait_until,
};
use rustix::process::{Signal, kill_process};

/// The units, and the exposure that `systemd-analyze security` may see in each, in tenths.
const UNITS: [(&str, u32); 3] = [
    ("contrib/systemd/result-cleaner.service", 12),
    ("contrib/systemd/result-cleaner@.service", 15),
    ("contrib/systemd/user/result-cleaner.service", 20),
];

/// A service manager's socket, and a service that knows it.
struct Managed {
    socket: UnixDatagram,
    service: Service,
}

impl Managed {
    fn start(cache: &CacheDir) -> Self {
        let path = cache.outside("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let address = free_address();
        let mut command = result_cleaner();
        command.arg("run").arg(cache.path()).args(["--no-metrics", "--listen", &address]);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
        Self { service: Service::spawn(command, &format!("http://{address}")), socket }
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("the service sends something");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }
}

#[test]
fn it_reports_that_it_is_ready_its_status_and_that_it_ends() {
    let cache = CacheDir::new();
    cache.store("gone", now() - 10.0);
    cache.store("stays", 4e9);
    let managed = Managed::start(&cache);
    let first = managed.next();
    assert!(first.starts_with("READY=1\nSTATUS="), "{first:?}");
    let mut reported = String::new();
    wait_until("its status shows what it has done", || {
        reported = managed.next();
        assert!(reported.starts_with("WATCHDOG=1\nSTATUS="), "{reported:?}");
        reported
            .contains("watch active; 1 waiting, next 2096-10-02T07:06:40.000Z; 1 deleted, 0 errors")
    });
    managed.service.signal(Signal::TERM);
    wait_until("it says that it ends", || managed.next() == "STOPPING=1\n");
}

#[test]
fn a_service_that_does_not_work_does_not_feed_the_watchdog() {
    let cache = CacheDir::new();
    let managed = Managed::start(&cache);
    while !managed.next().starts_with("WATCHDOG=1") {}
    managed.service.stop();
    managed.socket.set_nonblocking(true).unwrap();
    // What was sent before may still wait; then nothing comes, however long.
    while managed.socket.recv(&mut [0; 4096]).is_ok() {}
    managed.socket.set_nonblocking(false).unwrap();
    managed.socket.set_read_timeout(Some(std::time::Duration::from_millis(700))).unwrap();
    assert!(managed.socket.recv(&mut [0; 4096]).is_err());
    managed.service.go_on();
    managed.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(managed.next().starts_with("WATCHDOG=1"));
}

#[test]
fn the_units_are_valid_and_leave_little_exposed() {
    if !has_systemd_analyze() {
        return;
    }
    for (name, most) in UNITS {
        let temp = tempfile::tempdir().unwrap();
        let copy = temp.path().join(Path::new(name).file_name().unwrap());
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let content = fs::read_to_string(&unit).unwrap();
        // It has to be installed where the unit says.
        let binary = env!("CARGO_BIN_EXE_result-cleaner");
        let installed = content
            .replace("/usr/local/bin/result-cleaner", binary)
            .replace("%h/.cargo/bin/result-cleaner", binary);
        fs::write(&copy, installed).unwrap();
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&copy)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && !said.contains("result-cleaner"), "{said}");
        let security = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(&copy)
            .output()
            .unwrap();
        let table = String::from_utf8_lossy(&security.stdout);
        let exposure = table.lines().find_map(|line| {
            let (_, figure) = line.split_once("exposure level for ")?.1.split_once(": ")?;
            figure.split(' ').next()?.parse::<f64>().ok()
        });
        let exposure = exposure.unwrap_or_else(|| panic!("no exposure: {security:?}"));
        figure(&format!("systemd-analyze security of {name}"), exposure);
        assert!(exposure * 10.0 <= f64::from(most), "{table}");
    }
}

#[test]
fn the_units_allow_every_system_call_that_the_service_makes() {
    if !has_systemd_analyze() || !has_strace() {
        return;
    }
    let made = system_calls_of_a_service();
    assert!(made.contains("renameat2") && made.contains("inotify_add_watch"), "{made:?}");
    for (unit, _) in UNITS {
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join(unit);
        let allowed = allowed_by(&unit);
        let denied: Vec<_> = made.difference(&allowed).collect();
        assert!(denied.is_empty(), "{} denies {denied:?}", unit.display());
    }
}

/// The calls of a service that scans, watches, deletes by scan and by timer, reports, serves and
/// ends.
fn system_calls_of_a_service() -> BTreeSet<String> {
    let cache = CacheDir::new();
    cache.store("dir/expired", now() - 10.0);
    let summary = cache.outside("calls");
    let address = free_address();
    let metrics = crate::common::MetricsStub::start();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-c", "-S", "name", "-U", "name", "-o"]).arg(&summary);
    command.arg(result_cleaner().get_program()).arg("run").arg(cache.path());
    command.args(["--listen", &address, "--metrics-url", &metrics.url, "--report-interval", "1"]);
    let service = Service::spawn(command, &format!("http://{address}"));
    wait_until("the first scan is over", || service.stats()["total_cleanups"] == 1);
    let soon = cache.store("other/soon", now() + 0.5);
    wait_until("it has deleted by its timer, too", || soon.is_gone());
    wait_until("it has reported", || metrics.sum("deleted_count") == 2);
    kill_process(traced_by(service.pid()).unwrap(), Signal::TERM).unwrap();
    let ended = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.len() > 100);
    wait_until("strace has written its summary", || ended(&summary));
    let names = fs::read_to_string(&summary).unwrap();
    // strace may report a thread amid the table.
    let is_name = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let names = names.lines().map(str::trim).filter(is_name);
    names.filter(|name| !["syscall", "total"].contains(name)).map(str::to_owned).collect()
}

/// The calls that a unit's filter lets through.
fn allowed_by(unit: &Path) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for line in fs::read_to_string(unit).unwrap().lines() {
        let Some(filter) = line.strip_prefix("SystemCallFilter=") else { continue };
        let (filter, denies) = match filter.strip_prefix('~') {
            Some(rest) => (rest, true),
            None => (filter, false),
        };
        for name in filter.split(' ').flat_map(expanded) {
            if denies {
                allowed.remove(&name);
            } else {
                allowed.insert(name);
            }
        }
    }
    allowed
}

/// The calls of a group, or the call itself.
fn expanded(name: &str) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.to_owned()];
    }
    let listed = Command::new("systemd-analyze").args(["syscall-filter", name]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names = listed.lines().skip(1).map(str::trim);
    names.filter(|name| !name.is_empty() && !name.starts_with('#')).flat_map(expanded).collect()
}

fn has_systemd_analyze() -> bool {
    let works = Command::new("systemd-analyze").arg("--version").output();
    let works = works.is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("skipped: systemd-analyze is not installed");
    }
    works
}

/// Makes the service's standard error look like the journal, with the socket of a test as the journal's.
const IN_THE_JOURNAL: &str = r#"
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind "$0" /run/systemd/journal || exit 77
JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@"
"#;

/// The service with standard error as its journal, and the journal's socket. `None`, with a message, where
/// nothing can be mounted.
fn run_in_the_journal(cache: &CacheDir, args: &[&str]) -> Option<(Service, UnixDatagram)> {
    let dir = cache.outside("journal");
    fs::create_dir(&dir).unwrap();
    let script = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", IN_THE_JOURNAL]);
        command.arg(&dir).args(args);
        command
    };
    let trial = script(&["true"]).output();
    if !trial.is_ok_and(|trial| trial.status.success()) {
        eprintln!("skipped: nothing can be mounted");
        return None;
    }
    let socket = UnixDatagram::bind(dir.join("socket")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = free_address();
    let mut command = script(&[env!("CARGO_BIN_EXE_result-cleaner"), "run", "--no-metrics"]);
    command.arg(cache.path()).args(["--listen", &address]).args(args);
    Some((Service::spawn(command, &format!("http://{address}")), socket))
}

#[test]
fn lines_in_the_journal_have_their_level_and_fields_and_no_time() {
    let cache = CacheDir::new();
    let broken = cache.store("broken", 4e9);
    fs::write(&broken.metadata, "{").unwrap();
    let Some((service, socket)) = run_in_the_journal(&cache, &[]) else { return };
    let mut entry = String::new();
    wait_until("the warning is in the journal", || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("an entry");
        entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
        entry.contains("MESSAGE=invalid metadata")
    });
    let lines: Vec<&str> = entry.lines().collect();
    assert_eq!(lines[..2], ["PRIORITY=4", "SYSLOG_IDENTIFIER=result-cleaner"], "{entry}");
    let path = format!("RESULT_CLEANER_PATH={}", broken.metadata.display());
    assert!(lines.contains(&path.as_str()), "{entry}");
    let (status, _, log) = service.terminate();
    assert_eq!((status.code(), log.as_str()), (Some(0), ""));
}

#[test]
fn a_log_format_that_was_chosen_is_written_to_standard_error_in_any_case() {
    let cache = CacheDir::new();
    let Some((service, _socket)) = run_in_the_journal(&cache, &["--log-format", "text"]) else {
        return;
    };
    // It answers before it watches.
    service.wait_for_stat("total_cleanups", 1);
    let (_, _, log) = service.terminate();
    assert!(log.contains("INFO watching the cache directory"), "{log}");
}
