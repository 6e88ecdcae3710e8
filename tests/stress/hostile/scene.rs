//! The directory in which inputs are made, what stands around it, and what may change of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, statat};

use super::inputs::{Input, LONG_AGO, Place, Reported, expired, run};
use crate::common::{CacheDir, Pair, Service, wait_until};

/// A cache directory with inputs in it, and what stands around it.
pub struct Hostile {
    pub cache: CacheDir,
    /// The inputs that could be made, each with its directory.
    pub made: Vec<Made>,
    /// What has to go.
    pub gone: Vec<PathBuf>,
    /// How many pairs have to go.
    pub pairs_gone: u64,
    victims: Entries,
    /// The ends of chains of directories.
    pub ends: Vec<End>,
    pub linked: Vec<Pair>,
    pub sockets: Vec<UnixListener>,
    pub servers: Vec<File>,
    pub mounts: Vec<PathBuf>,
    pub flags: Vec<(char, PathBuf)>,
}

/// The end of a chain of directories, with a pair `a` in it that has to go, or stays.
pub struct End {
    pub dir: OwnedFd,
    pub goes: bool,
}

impl End {
    /// How many files are there of its pair.
    fn files(&self) -> usize {
        let is_there = |name: &&&str| statat(&self.dir, **name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        ["a.result.json.lz4", "a.metadata.json"].iter().filter(is_there).count()
    }
}

pub struct Made {
    pub name: String,
    pub reported: Reported,
    pub dir: PathBuf,
    before: Entries,
}

impl Made {
    /// What every path of it has in it, however it is escaped.
    pub fn mark(&self) -> String {
        format!("/{}/", self.dir.file_name().unwrap().to_str().unwrap())
    }
}

impl Hostile {
    /// Victims, and no input yet.
    pub fn new() -> Self {
        let cache = CacheDir::new();
        let victims = cache.outside("victims");
        Pair::at(&victims, "a").write(LONG_AGO);
        Pair::at(&victims.join("d"), "a").write(LONG_AGO);
        fs::create_dir(cache.outside("linked")).unwrap();
        Self {
            victims: entries(&victims),
            cache,
            made: Vec::new(),
            gone: Vec::new(),
            pairs_gone: 0,
            ends: Vec::new(),
            linked: Vec::new(),
            sockets: Vec::new(),
            servers: Vec::new(),
            mounts: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// Makes the inputs, each in a directory of its own. Nothing may clean there meanwhile.
    pub fn make(&mut self, inputs: Vec<Input>) {
        for (number, input) in inputs.into_iter().enumerate() {
            let dir = self.cache.path().join(format!("input-{number:03}"));
            fs::create_dir(&dir).unwrap();
            let mut place = Place { dir: dir.clone(), hostile: self };
            match (input.make)(&mut place) {
                Ok(()) => self.made.push(Made {
                    name: input.name,
                    reported: input.reported,
                    dir,
                    before: Entries::new(),
                }),
                Err(error) if input.privileged => {
                    eprintln!("skipped: {}: {error}", input.name);
                    self.gone.retain(|path| !path.starts_with(&dir));
                }
                Err(error) => panic!("{}: {error}", input.name),
            }
        }
        for made in &mut self.made {
            made.before = entries(&made.dir);
        }
    }

    /// How many pairs a sweep has to count as errors: those that are broken, and those that can't
    /// be deleted.
    pub fn errors(&self) -> (u64, u64) {
        let mut sums = (0, 0);
        for made in &self.made {
            match made.reported {
                Reported::Nothing => {}
                Reported::Broken { pairs, .. } => sums.0 += pairs,
                Reported::Fails { .. } => sums.1 += 1,
            }
        }
        sums
    }

    /// What has to go and is still there.
    pub fn still_there(&self) -> Vec<PathBuf> {
        let mut there = self.gone.clone();
        there.retain(|path| path.symlink_metadata().is_ok());
        let at_ends = self.ends.iter().filter(|end| end.goes && end.files() > 0);
        there.extend(at_ends.map(|_| "the end of a chain of directories".into()));
        there
    }

    /// Asserts that nothing at all has changed.
    #[track_caller]
    pub fn assert_unchanged(&self) {
        for made in &self.made {
            assert_eq!(entries(&made.dir), made.before, "{}", made.name);
        }
        assert!(self.ends.iter().all(|end| end.files() == 2));
        self.assert_nothing_outside_changed();
    }

    /// Asserts that what had to go is gone, and nothing else has changed.
    #[track_caller]
    pub fn assert_cleaned(&self) {
        assert!(self.still_there().is_empty(), "still there: {:?}", self.still_there());
        for made in &self.made {
            // Taking a file to a reserved name and back changes its ctime and its directory.
            let is_calm = !matches!(made.reported, Reported::Fails { .. })
                && !self.gone.iter().any(|path| path.starts_with(&made.dir));
            let mut before = made.before.clone();
            before.retain(|path, _| !self.gone.contains(path));
            if is_calm {
                assert_eq!(entries(&made.dir), before, "{}", made.name);
                continue;
            }
            before.values_mut().for_each(Entry::forget_renames);
            // A half may be under its reserved name just now, for another attempt.
            wait_until(&format!("{} is as it has to be", made.name), || {
                let mut after = entries(&made.dir);
                after.values_mut().for_each(Entry::forget_renames);
                after == before
            });
        }
        assert!(self.ends.iter().all(|end| end.files() == if end.goes { 0 } else { 2 }));
        self.assert_nothing_outside_changed();
    }

    #[track_caller]
    fn assert_nothing_outside_changed(&self) {
        assert_eq!(entries(&self.cache.outside("victims")), self.victims);
        for pair in &self.linked {
            assert_eq!(fs::read(&pair.result).unwrap(), b"a result of 23 bytes...");
            assert_eq!(fs::read_to_string(&pair.metadata).unwrap(), expired());
        }
    }
}

impl Drop for Hostile {
    /// Makes it removable.
    fn drop(&mut self) {
        for (flag, path) in &self.flags {
            let _ = run("chattr", &[OsStr::new(&format!("-{flag}")), path.as_os_str()]);
        }
        for path in self.mounts.iter().rev() {
            let _ = run("umount", &[OsStr::new("-l"), path.as_os_str()]);
        }
        if !self.ends.is_empty() {
            // The standard library holds every directory open on its way down.
            let _ = run("rm", &[OsStr::new("-rf"), self.cache.path().as_os_str()]);
        }
    }
}

/// All entries below a directory.
pub type Entries = BTreeMap<PathBuf, Entry>;

/// All that a change to a file or directory would change.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    is_dir: bool,
    inode: u64,
    size: u64,
    mode: u32,
    links: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Entry {
    fn forget_renames(&mut self) {
        self.ctime = (0, 0);
        self.links = 0;
        if self.is_dir {
            self.mtime = (0, 0);
            self.size = 0;
        }
    }
}

/// What is below `dir`, and `dir` itself; not what would hang, or has no end.
pub fn entries(dir: &Path) -> Entries {
    let mut entries = Entries::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        if ["hangs", "levels", "loop"].iter().any(|name| path.ends_with(name)) {
            continue;
        }
        // What vanished since it was listed is missing, which is for the caller to see.
        let Ok(seen) = path.symlink_metadata() else { continue };
        let entry = Entry {
            is_dir: seen.is_dir(),
            inode: seen.ino(),
            size: seen.size(),
            mode: seen.mode(),
            links: seen.nlink(),
            mtime: (seen.mtime(), seen.mtime_nsec()),
            ctime: (seen.ctime(), seen.ctime_nsec()),
        };
        if entry.is_dir {
            pending.extend(fs::read_dir(&path).unwrap().map(|below| below.unwrap().path()));
        }
        entries.insert(path, entry);
    }
    entries
}

/// Runs the test `name` in a process with mounts of its own, so that none of them outlives it.
pub fn with_own_mounts(name: &str, test: impl FnOnce()) {
    if may_mount() {
        return test();
    }
    let unshare = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.arg("--mount").arg(program).args(arguments).env(OWN_MOUNTS, "1").output()
    };
    if !unshare(Path::new("true"), &[]).is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: all that is mounted, since unshare does not work here");
        return test();
    }
    let itself = std::env::current_exe().unwrap();
    let (_, module) = module_path!().split_once("::").unwrap();
    let module = module.trim_end_matches("::scene");
    let arguments = ["--exact", &format!("{module}::{name}"), "--nocapture"];
    let output = unshare(&itself, &arguments).unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("running 1 test"), "no such test");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "it failed in a process with mounts of its own");
}

const OWN_MOUNTS: &str = "TEST_RESULT_CLEANER_OWN_MOUNTS";

/// Whether this process has mounts of its own.
pub fn may_mount() -> bool {
    std::env::var_os(OWN_MOUNTS).is_some()
}

/// A figure of a service's memory, in KiB.
pub fn memory(service: &Service, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(which)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How many descriptors a service has open.
pub fn descriptors(service: &Service) -> usize {
    fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count()
}

/// Waits until a service does next to nothing.
pub fn wait_until_calm(service: &Service) {
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", service.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    wait_until("the service is calm", || {
        let before = ticks();
        thread::sleep(Duration::from_millis(500));
        ticks() <= before + 2
    });
}
