//! What has to be there: all that was put there and not taken away again, without what a cleaner
//! that polls would have deleted. Knows nothing of the code that is tested.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use serde_json::Value;

use crate::common::{Pair, pair_of_bytes};

/// A file that was put somewhere.
#[derive(Debug, Clone)]
pub struct File {
    pub bytes: Rc<[u8]>,
    /// All names of one file share it.
    pub inode: u64,
    /// Names what was written, and when that was.
    pub version: (u64, Instant),
    /// Whether it may be gone or not: it was touched while its pair could go.
    pub maybe: bool,
}

/// What stands on the disk: files and directories.
pub type Disk = (BTreeMap<PathBuf, Vec<u8>>, BTreeSet<PathBuf>);

/// What has to stand on the disk, in the cache directory and beside it.
pub struct Shadow {
    cache: PathBuf,
    /// What expires before this, in milliseconds since the epoch, expires amid the test.
    soon: i64,
    pub files: BTreeMap<PathBuf, File>,
    pub dirs: BTreeSet<PathBuf>,
    /// How often a pair was touched when it could go, so that it was deleted or not.
    pub touched: u64,
    /// The names of files that were changed when a cleaner may have claimed them. A cleaner that is killed then
    /// leaves the old file claimed, and the next one gives it its name back if that is free by then.
    pub claimable: HashSet<OsString>,
    serial: u64,
}

/// What a cleaner that polls would know of a directory.
#[derive(Debug, Default)]
pub struct Polled {
    pub waiting: u64,
    pub next_expiry: Option<i64>,
    /// The versions of broken metadata that have a result beside them.
    pub broken: BTreeMap<u64, PathBuf>,
}

impl Shadow {
    pub fn new(cache: &Path, soon: i64) -> Self {
        Self {
            cache: cache.to_owned(),
            soon,
            files: BTreeMap::new(),
            dirs: BTreeSet::from([cache.to_owned()]),
            touched: 0,
            claimable: HashSet::new(),
            serial: 0,
        }
    }

    fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.cache)
    }

    /// Whether metadata with this content lets its pair go amid the test.
    pub fn is_due(&self, metadata: &[u8]) -> bool {
        expiry(metadata).is_some_and(|at| at < self.soon)
    }

    fn number(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// A new file has this name from now on.
    pub fn put(&mut self, path: &Path, bytes: &[u8]) {
        let (inode, version) = (self.number(), (self.number(), Instant::now()));
        let file = File { bytes: bytes.into(), inode, version, maybe: false };
        self.files.insert(path.to_owned(), file);
    }

    /// The file of this name, or a new one, has this content from now on.
    pub fn write(&mut self, path: &Path, bytes: &[u8]) -> u64 {
        match self.files.get(path).map(|file| file.inode) {
            Some(inode) => self.rewrite(inode, bytes),
            None => self.put(path, bytes),
        }
        self.files[path].inode
    }

    /// What bears this number, under whatever name, has this content from now on.
    pub fn rewrite(&mut self, inode: u64, bytes: &[u8]) {
        let version = (self.number(), Instant::now());
        for file in self.files.values_mut().filter(|file| file.inode == inode) {
            file.bytes = bytes.into();
            file.version = version;
        }
        self.settle();
    }

    pub fn rename(&mut self, from: &Path, to: &Path) {
        let file = self.files.remove(from).expect("it is there");
        self.files.insert(to.to_owned(), file);
    }

    pub fn swap(&mut self, a: &Path, b: &Path) {
        let [file_a, file_b] = [a, b].map(|path| self.files.remove(path).expect("it is there"));
        self.files.insert(a.to_owned(), file_b);
        self.files.insert(b.to_owned(), file_a);
    }

    /// What lies at or below `dir`.
    pub fn below(&self, dir: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let is_below = |path: &&PathBuf| path.starts_with(dir);
        let files = self.files.range(dir.to_owned()..).map(|(path, _)| path).take_while(is_below);
        let dirs = self.dirs.range(dir.to_owned()..).take_while(is_below);
        (files.cloned().collect(), dirs.cloned().collect())
    }

    pub fn move_tree(&mut self, from: &Path, to: &Path) {
        let moved = self.cut(from);
        self.paste(moved, to);
    }

    pub fn swap_trees(&mut self, a: &Path, b: &Path) {
        let (from_a, from_b) = (self.cut(a), self.cut(b));
        self.paste(from_a, b);
        self.paste(from_b, a);
    }

    pub fn remove_tree(&mut self, dir: &Path) {
        self.touch_all(dir);
        self.cut(dir);
    }

    /// Takes note that the pairs at or below `dir` are taken away from the cleaner's hands.
    pub fn touch_all(&mut self, dir: &Path) {
        let pairs: Vec<Pair> =
            self.below(dir).0.iter().filter_map(|path| pair_with(path)).collect();
        pairs.iter().for_each(|pair| self.touch(pair));
    }

    fn cut(&mut self, dir: &Path) -> (Vec<(PathBuf, File)>, Vec<PathBuf>) {
        let (files, dirs) = self.below(dir);
        let rest = |path: PathBuf| path.strip_prefix(dir).unwrap().to_owned();
        dirs.iter().for_each(|dir| drop(self.dirs.take(dir)));
        let take = |path: PathBuf| {
            let file = self.files.remove(&path).unwrap();
            (rest(path), file)
        };
        (files.into_iter().map(take).collect(), dirs.into_iter().map(rest).collect())
    }

    fn paste(&mut self, (files, dirs): (Vec<(PathBuf, File)>, Vec<PathBuf>), to: &Path) {
        self.files.extend(files.into_iter().map(|(rest, file)| (to.join(rest), file)));
        self.dirs.extend(dirs.into_iter().map(|rest| to.join(rest)));
        self.settle();
    }

    /// The halves that are there, or may be, if both are; the result first.
    pub fn whole(&self, pair: &Pair) -> Option<[&File; 2]> {
        Some([self.files.get(&pair.result)?, self.files.get(&pair.metadata)?])
    }

    /// Whether the cleaner may delete the pair at any moment.
    pub fn may_go(&self, pair: &Pair) -> bool {
        self.holds(&pair.metadata)
            && self.whole(pair).is_some_and(|[_, metadata]| self.is_due(&metadata.bytes))
    }

    /// Takes note that a pair is about to be changed: if it can go, each half may be gone by then.
    pub fn touch(&mut self, pair: &Pair) {
        if self.may_go(pair) {
            self.touched += 1;
            for half in [&pair.result, &pair.metadata] {
                self.claimable.insert(half.file_name().unwrap().to_owned());
                self.files.get_mut(half).unwrap().maybe = true;
            }
        }
    }

    /// Where a pair can go of which one half may not be there, the other one may stay.
    pub fn settle(&mut self) {
        for pair in self.pairs() {
            if self.may_go(&pair) && self.whole(&pair).unwrap().iter().any(|file| file.maybe) {
                for half in [&pair.result, &pair.metadata] {
                    self.files.get_mut(half).unwrap().maybe = true;
                }
            }
        }
    }

    /// The pairs in the cache directory both of whose halves are there, or may be.
    pub fn pairs(&self) -> Vec<Pair> {
        let files = self.below(&self.cache).0;
        files
            .iter()
            .filter_map(|path| pair_with(path))
            .filter(|pair| self.whole(pair).is_some())
            .collect()
    }

    /// The version of a pair's metadata, if that is broken.
    pub fn broken(&self, pair: &Pair) -> Option<(u64, Instant)> {
        let metadata = self.files.get(&pair.metadata)?;
        expiry(&metadata.bytes).is_none().then_some(metadata.version)
    }

    /// What is wrong with what stands on the disk, once everything has been dealt with; or what a
    /// cleaner that polls would know of it. Where a cleaner was `killed`, what was moved away while
    /// it was being deleted may still bear a reserved name.
    pub fn compare(&self, (files, dirs): &Disk, killed: bool) -> Result<Polled, String> {
        if let Some(dir) = dirs.symmetric_difference(&self.dirs).next() {
            return Err(format!("{dir:?} is there: {}", dirs.contains(dir)));
        }
        for (path, bytes) in files {
            let Some(file) = self.files.get(path) else {
                if killed && self.may_be_left(path) {
                    continue;
                }
                return Err(format!("{path:?} should not be there"));
            };
            if **bytes != *file.bytes {
                return Err(format!("{path:?} is {}", bytes.escape_ascii()));
            }
        }
        for (path, file) in &self.files {
            if !file.maybe && !files.contains_key(path) && !self.goes(path) {
                return Err(format!("{path:?} is lost"));
            }
            if !file.maybe && files.contains_key(path) && self.goes(path) {
                return Err(format!("{path:?} should be gone"));
            }
        }
        let mut polled = Polled::default();
        for (metadata, bytes) in files.iter().filter(|(path, _)| self.holds(path)) {
            if !pair_with(metadata).is_some_and(|pair| files.contains_key(&pair.result)) {
                continue;
            }
            let Some(at) = expiry(bytes) else {
                if let Some(file) = self.files.get(metadata) {
                    polled.broken.insert(file.version.0, metadata.clone());
                }
                continue;
            };
            if at < self.soon {
                return Err(format!("{metadata:?} should be gone"));
            }
            polled.waiting += 1;
            polled.next_expiry = Some(polled.next_expiry.map_or(at, |next| next.min(at)));
        }
        Ok(polled)
    }

    /// Whether a cleaner that was killed may have left a file that is not known here.
    pub fn may_be_left(&self, path: &Path) -> bool {
        let is_unknown = !self.files.contains_key(path);
        let is_claim = is_reserved(path) && !self.holds(path);
        is_unknown && (is_claim || self.claimable.contains(path.file_name().unwrap()))
    }

    /// Whether the file belongs to a pair that goes.
    fn goes(&self, path: &Path) -> bool {
        pair_of(path).is_some_and(|pair| self.may_go(&pair))
    }

    /// Takes over from the disk, which has come to rest, what is gone.
    pub fn adopt(&mut self, (files, _): &Disk) {
        let cache = &self.cache;
        self.files.retain(|path, _| !path.starts_with(cache) || files.contains_key(path));
        for (path, file) in &mut self.files {
            file.maybe &= !path.starts_with(cache);
        }
        self.touched = 0;
    }
}

/// When metadata says that its result expires, in milliseconds since the epoch; `None` where it is
/// broken.
pub fn expiry(metadata: &[u8]) -> Option<i64> {
    let metadata: Value = serde_json::from_slice(metadata).ok()?;
    match metadata.get("expires_at")? {
        Value::Number(seconds) => {
            let ms = (seconds.as_f64()? * 1000.0).round() as i64;
            (1..253_402_300_800_000).contains(&ms).then_some(ms)
        }
        Value::String(text) => {
            let at = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").ok()?;
            Some(at.and_local_timezone(chrono::Local).latest()?.timestamp_millis())
        }
        _ => None,
    }
}

/// Whether the file bears a name that cleaners reserve.
pub fn is_reserved(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".result-cleaner-"))
}

/// The pair that a file is a half of.
pub fn pair_of(half: &Path) -> Option<Pair> {
    let name = half.file_name()?.as_bytes();
    let stem = [&b".metadata.json"[..], b".result.json.lz4"]
        .iter()
        .find_map(|end| name.strip_suffix(*end))?;
    Some(pair_of_bytes(half.parent()?, stem))
}

/// The pair that has this metadata.
fn pair_with(metadata: &Path) -> Option<Pair> {
    pair_of(metadata).filter(|pair| pair.metadata == metadata)
}

/// All below `root`; `None` where it changed while it was read.
pub fn read(root: &Path) -> Option<Disk> {
    let (mut files, mut dirs) = Disk::default();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.ok()?;
        if entry.file_type().is_dir() {
            dirs.insert(entry.into_path());
        } else {
            files.insert(entry.path().to_owned(), std::fs::read(entry.path()).ok()?);
        }
    }
    Some((files, dirs))
}
