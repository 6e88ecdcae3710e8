//! Trees of pairs, as the result store makes them.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags, statfs};
use tempfile::TempDir;

use crate::floor;
use crate::measure::{Outcome, check};
use crate::metadata::{self, Content, RESULT_ID};

pub const RESULT_SUFFIX: &str = ".result.json.lz4";
pub const METADATA_SUFFIX: &str = ".metadata.json";

/// The result store's smaller results are of about this size.
const RESULT: [u8; 146] = [b'r'; 146];

/// What is newer may be half published, and a cleaner waits.
const SETTLED: Duration = Duration::from_millis(1100);
/// Programs that go by the time of change get files that are so old,
const OLD: Duration = Duration::from_secs(3600);
/// and delete those that are older than this.
pub const OLDER_THAN_MINUTES: u64 = 5;

/// An empty directory, which goes when this is dropped.
pub struct Place {
    // Dropped first.
    dir: TempDir,
    _parent: TempDir,
}

impl Place {
    /// Far on the disk from where files were deleted moments ago, if the file system can be asked for that
    /// so: ext4 passes by all inodes that were just freed, one by one, for each new file, so that
    /// making one tree would be the slower, the more trees were deleted before.
    pub fn new() -> Outcome<Self> {
        Self::below(&env::temp_dir())
    }

    fn below(dir: &Path) -> Outcome<Self> {
        let parent = tempfile::tempdir_in(dir)?;
        let handle = File::open(parent.path())?;
        if let Ok(flags) = ioctl_getflags(&handle) {
            // Where it can't be asked, it takes longer.
            let _ = ioctl_setflags(&handle, flags | IFlags::TOPDIR);
        }
        // Where it goes depends on its name, which differs from time to time.
        Ok(Self { dir: tempfile::tempdir_in(&parent)?, _parent: parent })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Where a tree is before it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// On the disk, as results are that have waited for their expiry: deleting them frees space.
    Written,
    /// In memory only, as results are in their first seconds: what the disk takes is left out.
    Fresh,
}

/// How a tree is made.
#[derive(Debug, Clone)]
pub struct Form {
    pub pairs: usize,
    pub per_directory: usize,
    pub content: Content,
    /// The directory in which the tree is made.
    pub home: PathBuf,
}

impl Form {
    /// The same in memory, if the machine has such a file system and `home` is none.
    pub fn on_tmpfs(&self) -> Option<Self> {
        const SHARED_MEMORY: &str = "/dev/shm";
        let is_tmpfs = |path: &Path| statfs(path).is_ok_and(|status| status.f_type == 0x0102_1994);
        let home = PathBuf::from(SHARED_MEMORY);
        (is_tmpfs(&home) && !is_tmpfs(&self.home)).then(|| Self { home, ..self.clone() })
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pairs, per_directory, content, home } = self;
        write!(f, "{pairs} pairs, {per_directory} a directory, {content}, in {}", home.display())
    }
}

/// A tree of pairs, which goes when this is dropped.
pub struct Tree {
    place: Place,
    pairs: usize,
    made: Instant,
}

impl Tree {
    /// None of it expires for years.
    pub fn waiting(form: &Form) -> Outcome<Self> {
        Self::new(form, metadata::far(), None)
    }

    /// All of it has expired, and is old.
    pub fn expired(form: &Form, state: State) -> Outcome<Self> {
        let tree = Self::new(form, metadata::past(), Some(SystemTime::now() - OLD))?;
        tree.bring_to(state);
        Ok(tree)
    }

    /// All of it expires at the same moment.
    pub fn expiring(form: &Form, at: SystemTime, state: State) -> Outcome<Self> {
        let tree = Self::new(form, at, None)?;
        tree.bring_to(state);
        Ok(tree)
    }

    fn bring_to(&self, state: State) {
        if state == State::Written {
            rustix::fs::sync();
        }
    }

    fn new(form: &Form, expires_at: SystemTime, modified: Option<SystemTime>) -> Outcome<Self> {
        let place = Place::below(&form.home)?;
        let expiry = form.content.expiry(expires_at)?;
        for number in 0..form.pairs {
            let session = place.path().join(format!("session_{}", number / form.per_directory));
            if number % form.per_directory == 0 {
                fs::create_dir(&session)?;
            }
            let stem = stem(number);
            let write = |suffix: &str, content: &[u8]| -> io::Result<()> {
                let mut file = File::create(session.join(format!("{stem}{suffix}")))?;
                file.write_all(content)?;
                modified.map_or(Ok(()), |modified| file.set_modified(modified))
            };
            write(RESULT_SUFFIX, &RESULT)?;
            write(METADATA_SUFFIX, form.content.metadata(&stem, &expiry).as_bytes())?;
        }
        Ok(Self { place, pairs: form.pairs, made: Instant::now() })
    }

    pub fn path(&self) -> &Path {
        self.place.path()
    }

    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Waits until a cleaner takes nothing of it for half published.
    pub fn settle(&self) {
        thread::sleep(SETTLED.saturating_sub(self.made.elapsed()));
    }

    /// An error unless every file of it is gone.
    pub fn check_empty(&self) -> Outcome {
        check_files(self.path(), 0)
    }

    /// An error unless every file of it is there.
    pub fn check_whole(&self) -> Outcome {
        check_files(self.path(), 2 * self.pairs)
    }
}

/// An error unless there are so many files in the directories below `root`.
pub fn check_files(root: &Path, expected: usize) -> Outcome {
    let mut files = 0;
    floor::for_each_file(root, |_, _| {
        files += 1;
        Ok(())
    })?;
    check(files == expected, format_args!("{files} files are there, not {expected}"))
}

/// Publishes a pair as the result store does: the result first, each under its name at once.
pub fn publish(dir: &Path, stem: &str, expires_at: &str) -> io::Result<()> {
    let write = |suffix: &str, content: &[u8]| {
        let path = dir.join(format!("{stem}{suffix}"));
        let unfinished = dir.join(format!("{stem}{suffix}.tmp"));
        fs::write(&unfinished, content)?;
        fs::rename(unfinished, path)
    };
    write(RESULT_SUFFIX, &RESULT)?;
    write(METADATA_SUFFIX, Content::Store.metadata(stem, expires_at).as_bytes())
}

/// An `expires_at` of the result store that is years away.
pub const FAR: &str = "4890609687.1605";

pub fn stem(number: usize) -> String {
    format!("{number:08x}-aead-4aa8-9037-cd243541f7b3")
}

/// The stem of the pair to which a file belongs, under whatever name; nothing for other files.
pub fn stem_in(name: &OsStr) -> Option<&str> {
    let name = str::from_utf8(name.as_bytes()).ok()?;
    let name = name.strip_prefix(".result-cleaner-").unwrap_or(name);
    name.get(..RESULT_ID.len())
}
