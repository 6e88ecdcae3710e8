//! The units that come with the service, run for real: in a container with systemd as PID 1, whose root
//! is empty but for the host's `/usr`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::geteuid;

/// Runs `tests/data/units.sh` when the container has booted, and ends it.
const PROBE: &str = "
[Unit]
DefaultDependencies=no
Wants=basic.target
After=basic.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStartPre=/usr/bin/touch /test/booted
ExecStart=/bin/sh /test/units.sh
ExecStopPost=/bin/sh -c 'journalctl --no-pager --boot > /test/journal'
StandardOutput=append:/test/output
StandardError=append:/test/output
";

/// A busy machine may take minutes to make the mounts of a sandbox, and to end a process that has watches.
const PATIENCE: &str = "
[Manager]
DefaultTimeoutStartSec=600
DefaultTimeoutStopSec=600
";

#[test]
fn the_units_run_under_systemd() {
    if !geteuid().is_root() || Command::new("systemd-nspawn").arg("--version").output().is_err() {
        eprintln!("skipped: a container needs root and systemd-nspawn");
        return;
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fs::copy(repository.join("tests/data/units.sh"), dir.join("units.sh")).unwrap();
    fs::write(dir.join("probe.service"), PROBE).unwrap();
    fs::write(dir.join("patience.conf"), PATIENCE).unwrap();
    fs::create_dir_all(dir.join("units/user")).unwrap();
    for name in ["result-cleaner.service", "result-cleaner@.service", "user/result-cleaner.service"]
    {
        let unit = fs::read_to_string(repository.join("contrib/systemd").join(name)).unwrap();
        // /usr can't be written to in the container.
        let unit = unit
            .replace("/usr/local/bin/result-cleaner", "/opt/result-cleaner")
            .replace("%h/.cargo/bin/result-cleaner", "/opt/result-cleaner");
        fs::write(dir.join("units").join(name), unit).unwrap();
    }

    // A container that hangs has to end too.
    let mut container = Command::new("timeout");
    container.args(["--kill-after=5", "900", "systemd-nspawn"]);
    container.args(["--quiet", "--register=no", "--keep-unit", "--private-network"]);
    container.args(["--directory=/", "--volatile=yes", "--console=pipe"]);
    container.arg(format!("--machine=result-cleaner-{}", std::process::id()));
    container.arg(format!("--bind={}:/test", dir.display()));
    for (outside, inside) in [
        (repository.join("contrib"), "/test/contrib"),
        (PathBuf::from(env!("CARGO_BIN_EXE_result-cleaner")), "/opt/result-cleaner"),
        (dir.join("probe.service"), "/run/systemd/system/probe.service"),
        (dir.join("patience.conf"), "/run/systemd/system.conf.d/patience.conf"),
        (dir.join("patience.conf"), "/run/systemd/user.conf.d/patience.conf"),
    ] {
        container.arg(format!("--bind-ro={}:{inside}", outside.display()));
    }
    container.args(["--boot", "systemd.unit=probe.service", "systemd.firstboot=off"]);
    let log = fs::File::create(dir.join("boot")).unwrap();
    container.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    container.status().unwrap();

    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    if !dir.join("booted").exists() {
        eprintln!("skipped: no container can be booted here: {}", read("boot"));
        return;
    }
    let output = read("output");
    assert!(output.ends_with("the units work\n"), "{output}\n{}", read("journal"));
}
