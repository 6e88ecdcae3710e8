//! Ways to keep changes from a running service.

use super::*;

/// How many events the kernel keeps for whoever does not read them.
pub fn event_queue() -> usize {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    limit.trim().parse().unwrap()
}

#[cfg(feature = "cli")]
impl Service {
    /// Stops it, until [`Service::go_on`].
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        wait_until("it is stopped", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        });
    }

    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Stops it and has the kernel's queue of its events overflow by those of `dir`, which it
    /// watches: what happens until [`Service::go_on`] is not reported.
    pub fn stop_and_lose_events(&self, dir: &Path) {
        let files =
            ["one.flood", "other.flood"].map(|name| fs::File::create(dir.join(name)).unwrap());
        self.stop();
        // Events of different files are not merged. Twice as many as fit.
        for number in 0..event_queue() {
            for file in &files {
                file.set_modified(UNIX_EPOCH + Duration::from_secs(number as u64)).unwrap();
            }
        }
    }

    /// Sets a limit of the user namespace that it runs in, by its name in `/proc/sys/user`; false
    /// where that can't be done.
    pub fn set_limit(&self, limit: &str, count: u64) -> bool {
        let set = format!("echo {count} > /proc/sys/user/{limit}");
        let mut enter = Command::new("nsenter");
        enter.args(["--user", "--target", &self.pid().to_string(), "sh", "-c", &set]);
        enter.output().is_ok_and(|output| output.status.success())
    }
}

/// A file system in memory, mounted where another directory stands; unmounted with this value,
/// although it is in use.
pub struct Mounted(PathBuf);

impl Mounted {
    /// One that everybody may write to. `None`, with a message, where nothing can be mounted.
    pub fn at(dir: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "mode=777", "none"]).arg(dir);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(dir.to_owned()));
        }
        eprintln!("skipped: file systems can't be mounted here");
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) && !thread::panicking() {
            panic!("{} can't be unmounted", self.0.display());
        }
    }
}
