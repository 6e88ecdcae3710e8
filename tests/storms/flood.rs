//! Floods of events, each made by a process of its own: this test program, started again.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::common::{Pair, now};

/// What a flooding process shall do: `KIND:DIR:SECONDS[:LANE[:PARENT]]`.
const VARIABLE: &str = "TEST_RESULT_CLEANER_FLOOD";
/// The name of the test that is the flooding process.
const ROLE: &str = "a_flooding_process";
/// How many calls a flooding process makes between two looks at the clock.
const BURST: usize = 256;
/// How many files a process changes or renames in turn.
const FILES: usize = 64;
/// How many files with metadata a process changes in turn.
const METADATA_FILES: usize = 20;
const DIRECTORIES: usize = 8;

/// What a flooding process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// chmod of broken metadata that has a result.
    ChmodBroken,
    /// chmod of the metadata of pairs that expire in an hour.
    ChmodLive,
    /// chmod of files that are no half of a pair.
    ChmodUnrelated,
    /// Single bytes into results that it holds open, of pairs that expire in an hour.
    Write,
    /// Makes and unlinks files whose names end in `.tmp`.
    CreateTmp,
    /// Makes and unlinks files whose names say nothing.
    Create,
    /// Makes and removes directories.
    Mkdir,
    /// Renames files that are no half of a pair to and fro.
    RenameFiles,
    /// Renames directories to and fro.
    RenameDirs,
    /// Links metadata without a result to a second name and removes that.
    Link,
}

/// Every kind, by the name that the environment variable has for it.
const NAMES: [(&str, Kind); 10] = [
    ("chmod-broken", Kind::ChmodBroken),
    ("chmod-live", Kind::ChmodLive),
    ("chmod", Kind::ChmodUnrelated),
    ("write", Kind::Write),
    ("create-tmp", Kind::CreateTmp),
    ("create", Kind::Create),
    ("mkdir", Kind::Mkdir),
    ("rename", Kind::RenameFiles),
    ("rename-dirs", Kind::RenameDirs),
    ("link", Kind::Link),
];

impl Kind {
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, kind)| *kind == self).unwrap().0
    }

    /// Makes the files that the process `lane` needs in `dir`, where they are not there yet.
    pub fn prepare(self, dir: &Path, lane: u32) {
        fs::create_dir_all(dir).unwrap();
        let write = |path: PathBuf, content: &str| {
            if !path.exists() {
                fs::write(path, content).unwrap();
            }
        };
        for number in 0..self.count() {
            let pair = Pair::at(dir, &format!("flood-{lane}-{number}"));
            match self {
                Self::ChmodBroken => {
                    write(pair.result, "a result");
                    write(pair.metadata, r#"{"expires_at": "soon"}"#);
                }
                Self::ChmodLive | Self::Write => {
                    write(pair.result, "a result");
                    write(pair.metadata, &format!(r#"{{"expires_at": {}}}"#, now() + 3600.0));
                }
                Self::ChmodUnrelated => write(dir.join(self.place(lane, number)), ""),
                Self::RenameFiles if !dir.join(self.other_place(lane, number)).exists() => {
                    write(dir.join(self.place(lane, number)), "");
                }
                Self::RenameDirs if !dir.join(self.other_place(lane, number)).exists() => {
                    let moved = dir.join(self.place(lane, number));
                    fs::create_dir_all(moved.join("below")).unwrap();
                    write(moved.join("notes"), "");
                }
                Self::Link => write(pair.metadata, "{}"),
                _ => {}
            }
        }
    }

    /// How many names a process uses in turn.
    fn count(self) -> usize {
        match self {
            Self::ChmodBroken | Self::ChmodLive | Self::ChmodUnrelated => METADATA_FILES,
            Self::RenameDirs => DIRECTORIES,
            Self::Link => 1,
            _ => FILES,
        }
    }

    fn place(self, lane: u32, number: usize) -> String {
        match self {
            Self::ChmodBroken | Self::ChmodLive | Self::Link => {
                format!("flood-{lane}-{number}.metadata.json")
            }
            Self::Write => format!("flood-{lane}-{number}.result.json.lz4"),
            Self::CreateTmp => format!("flood-{lane}-{number}.metadata.json.tmp"),
            _ => format!("flood-{lane}-{number}"),
        }
    }

    fn other_place(self, lane: u32, number: usize) -> String {
        format!("flood-{lane}-{number}-elsewhere")
    }

    /// Floods `dir` for so long; how many calls succeeded.
    fn flood(self, dir: &Path, lane: u32, length: Duration) -> u64 {
        self.prepare(dir, lane);
        let names = |place: fn(Self, u32, usize) -> String| -> Vec<CString> {
            (0..self.count()).map(|it| CString::new(place(self, lane, it)).unwrap()).collect()
        };
        let (names, others) = (names(Self::place), names(Self::other_place));
        let dir = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let held: Vec<OwnedFd> = if self == Self::Write {
            let open = |name| rustix::fs::openat(&dir, name, OFlags::WRONLY, Mode::empty());
            names.iter().map(|name| open(name).unwrap()).collect()
        } else {
            Vec::new()
        };
        let flood = Flood { kind: self, dir: &dir, names, others, held };
        let end = Instant::now() + length;
        let mut done = 0;
        let mut turn = 0;
        while Instant::now() < end {
            for _ in 0..BURST {
                done += u64::from(flood.act(turn).is_ok());
                turn += 1;
            }
        }
        done
    }
}

struct Flood<'a> {
    kind: Kind,
    dir: &'a OwnedFd,
    names: Vec<CString>,
    others: Vec<CString>,
    held: Vec<OwnedFd>,
}

impl Flood<'_> {
    fn act(&self, turn: usize) -> rustix::io::Result<()> {
        use rustix::fs::{chmodat, linkat, mkdirat, openat, renameat, unlinkat};

        let at = turn % self.names.len();
        let is_odd = (turn / self.names.len()) % 2 == 1;
        let (dir, name) = (self.dir, &self.names[at]);
        match self.kind {
            Kind::ChmodBroken | Kind::ChmodLive | Kind::ChmodUnrelated => {
                let mode = if is_odd { 0o600 } else { 0o644 };
                chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())
            }
            Kind::Write => rustix::io::pwrite(&self.held[at], b"x", 0).map(drop),
            Kind::CreateTmp | Kind::Create => {
                openat(dir, name, OFlags::WRONLY | OFlags::CREATE, Mode::RUSR | Mode::WUSR)?;
                unlinkat(dir, name, AtFlags::empty())
            }
            Kind::Mkdir => {
                let _ = mkdirat(dir, name, Mode::RWXU);
                unlinkat(dir, name, AtFlags::REMOVEDIR)
            }
            Kind::RenameFiles | Kind::RenameDirs => {
                let (from, to) = (name, &self.others[at]);
                let (from, to) = if is_odd { (to, from) } else { (from, to) };
                renameat(dir, from, dir, to)
            }
            Kind::Link => {
                // Each name is another one.
                let other = format!("link-{}-{turn}.metadata.json", name.to_str().unwrap());
                linkat(dir, name, dir, other.as_str(), AtFlags::empty())?;
                unlinkat(dir, other.as_str(), AtFlags::empty())
            }
        }
    }
}

/// Floods as the environment variable says; that is what the process is there for.
pub fn play_role() {
    let Ok(spec) = std::env::var(VARIABLE) else {
        eprintln!("nothing to do: {VARIABLE} is not set");
        return;
    };
    let mut parts = spec.split(':');
    let mut next = || parts.next();
    let (Some(kind), Some(dir), Some(seconds)) = (next(), next(), next()) else {
        panic!("{VARIABLE} has to be KIND:DIR:SECONDS");
    };
    let Some((_, kind)) = NAMES.iter().find(|(name, _)| *name == kind) else {
        panic!("{kind} is none of {:?}", NAMES.map(|(name, _)| name));
    };
    // Without a lane of its own by hand, several processes keep apart.
    let lane = next().map_or(std::process::id(), |lane| lane.parse().unwrap());
    if let Some(parent) = next() {
        set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
        if getppid().map(Pid::as_raw_nonzero) != parent.parse().ok() {
            return;
        }
    }
    let seconds = Duration::from_secs_f64(seconds.parse().expect("a number of seconds"));
    println!("\nflooded: {}", kind.flood(Path::new(dir), lane, seconds));
}

/// Flooding processes; killed with this value. They end with the thread that started them too.
pub struct Flooders(Vec<Child>);

impl Flooders {
    /// Has so many processes flood `dir`.
    pub fn start(kind: Kind, dir: &Path, processes: u32, length: Duration) -> Self {
        let start = |lane| {
            let (dir, seconds) = (dir.display(), length.as_secs_f64());
            let parent = std::process::id();
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", ROLE, "--ignored", "--nocapture", "--test-threads=1"])
                .env(VARIABLE, format!("{}:{dir}:{seconds}:{lane}:{parent}", kind.name()))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        Self((0..processes).map(start).collect())
    }

    /// Whether one of them has ended.
    pub fn are_over(&mut self) -> bool {
        self.0.iter_mut().any(|child| child.try_wait().unwrap().is_some())
    }

    /// Waits until all have ended; how many calls they made.
    pub fn wait(mut self) -> u64 {
        let count = |child: Child| {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let count = text.lines().find_map(|line| line.strip_prefix("flooded: "));
            count.unwrap_or_else(|| panic!("the flood failed: {text}")).parse::<u64>().unwrap()
        };
        std::mem::take(&mut self.0).into_iter().map(count).sum()
    }
}

impl Drop for Flooders {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
