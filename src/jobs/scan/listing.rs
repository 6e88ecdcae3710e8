//! The names that a scan finds in one directory.

use std::ffi::{CStr, OsStr};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::FileType;

use crate::disk::list;
use crate::disk::root::Dir;
use crate::pair::name::{Half, Name};

/// The names in one directory that matter to a scan. It keeps all of them in one buffer.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The names of halves, each with a zero at its end, as `openat` takes them.
    names: Vec<u8>,
    /// Where the names of metadata are, in the order of the listing: file systems list directories in an
    /// order that suits the disk.
    metadata: Vec<Range<usize>>,
    /// Where the stems of results are, sorted by their bytes.
    results: Vec<Range<usize>>,
    /// The names of directories.
    pub(super) dirs: Vec<Box<OsStr>>,
    /// Reserved names.
    pub(super) claims: Vec<Vec<u8>>,
    /// Whether nothing is in the directory, not even a file that does not matter.
    pub(super) is_empty: bool,
    /// Whether a writer's unfinished file is in the directory.
    pub(super) has_leftovers: bool,
}

impl Listing {
    /// Lists `dir` until `is_cancelled` returns true. Forgets what was listed before.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn read(&mut self, dir: &Dir, is_cancelled: impl Fn() -> bool) -> io::Result<()> {
        self.names.clear();
        self.metadata.clear();
        self.results.clear();
        self.dirs.clear();
        self.claims.clear();
        (self.is_empty, self.has_leftovers) = (true, false);
        list::list(dir, |name, file_type| {
            if is_cancelled() {
                return ControlFlow::Break(());
            }
            self.is_empty = false;
            match file_type {
                FileType::RegularFile => self.add_file(name),
                FileType::Directory => self.dirs.push(OsStr::from_bytes(name.to_bytes()).into()),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        let names = &self.names;
        self.results.sort_unstable_by(|a, b| names[a.clone()].cmp(&names[b.clone()]));
        Ok(())
    }

    fn add_file(&mut self, name: &CStr) {
        let bytes = name.to_bytes();
        match Name::parse(bytes) {
            Name::Half(Half::Metadata, stem) => {
                let start = self.keep(name);
                self.metadata.push(start..start + stem.len());
            }
            Name::Half(Half::Result, stem) => {
                let start = self.keep(name);
                self.results.push(start..start + stem.len());
            }
            Name::Tmp(..) => self.has_leftovers = true,
            claim if claim.is_claim() => self.claims.push(bytes.to_owned()),
            _ => {}
        }
    }

    fn keep(&mut self, name: &CStr) -> usize {
        let start = self.names.len();
        self.names.extend_from_slice(name.to_bytes_with_nul());
        start
    }

    /// How many names of metadata were listed.
    pub(super) fn len(&self) -> usize {
        self.metadata.len()
    }

    /// How many names of results were listed.
    pub(super) fn results(&self) -> usize {
        self.results.len()
    }

    /// The file name and the stem of metadata, by its number.
    pub(super) fn metadata(&self, number: usize) -> (&CStr, &[u8]) {
        let stem = self.metadata[number].clone();
        let name = CStr::from_bytes_until_nul(&self.names[stem.start..]).unwrap_or_default();
        (name, &self.names[stem])
    }

    /// Whether the result with this stem was listed.
    pub(super) fn has_result(&self, stem: &[u8]) -> bool {
        self.results.binary_search_by(|result| self.names[result.clone()].cmp(stem)).is_ok()
    }

    /// Whether a half was listed without the other one.
    pub(super) fn has_orphans(&self) -> bool {
        let pairs = (0..self.len()).filter(|&at| self.has_result(self.metadata(at).1)).count();
        pairs < self.len().max(self.results())
    }
}
