//! The least that has to be asked of the kernel for each work, by one thread.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::{Errno, Result, read};

use crate::tree::{METADATA_SUFFIX, RESULT_SUFFIX};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Calls `work` for each file in the directories of `root`, which are one level deep.
pub fn for_each_file(
    root: &Path,
    mut work: impl FnMut(&OwnedFd, &CStr) -> Result<()>,
) -> Result<()> {
    let root = openat(CWD, root, DIRECTORY, Mode::empty())?;
    for session in Dir::read_from(root.as_fd())? {
        let session = session?;
        if session.file_name().to_bytes().starts_with(b".") {
            continue;
        }
        let dir = openat(&root, session.file_name(), DIRECTORY, Mode::empty())?;
        for file in Dir::read_from(dir.as_fd())? {
            let file = file?;
            if !matches!(file.file_name().to_bytes(), b"." | b"..") {
                work(&dir, file.file_name())?;
            }
        }
    }
    Ok(())
}

/// Lists, opens, reads and closes each metadata file; how many there are.
pub fn scan(root: &Path) -> Result<usize> {
    for_each_metadata(root, |_, _| Ok(()))
}

/// The same, and unlinks both files of each pair.
pub fn scan_and_unlink(root: &Path) -> Result<usize> {
    for_each_metadata(root, |dir, metadata| {
        let stem = &metadata.to_bytes()[..metadata.to_bytes().len() - METADATA_SUFFIX.len()];
        let result = CString::new([stem, RESULT_SUFFIX.as_bytes()].concat());
        unlinkat(dir, result.map_err(|_| Errno::INVAL)?, AtFlags::empty())?;
        unlinkat(dir, metadata, AtFlags::empty())
    })
}

fn for_each_metadata(
    root: &Path,
    mut work: impl FnMut(&OwnedFd, &CStr) -> Result<()>,
) -> Result<usize> {
    let mut seen = 0;
    let mut buffer = [0; 4096];
    for_each_file(root, |dir, name| {
        if !name.to_bytes().ends_with(METADATA_SUFFIX.as_bytes()) {
            return Ok(());
        }
        let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        if read(&file, &mut buffer)? > 0 {
            seen += 1;
        }
        drop(file);
        work(dir, name)
    })?;
    Ok(seen)
}

/// Lists and unlinks every file, and reads none; how many pairs there were.
pub fn unlink(root: &Path) -> Result<usize> {
    let mut gone = 0;
    for_each_file(root, |dir, name| {
        gone += 1;
        unlinkat(dir, name, AtFlags::empty())
    })?;
    Ok(gone / 2)
}

/// Looks at each file right before it is unlinked: from the look until the file is gone, what is
/// published in its place is lost where a file can't be claimed first.
pub fn windows(root: &Path) -> Result<Vec<Duration>> {
    let mut windows = Vec::new();
    for_each_file(root, |dir, name| {
        statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let looked = Instant::now();
        unlinkat(dir, name, AtFlags::empty())?;
        windows.push(looked.elapsed());
        Ok(())
    })?;
    Ok(windows)
}

/// Watches `root` and each directory below it, however deep, before it lists it; the watches, and
/// how many there are.
pub fn watch(root: &Path) -> Result<(OwnedFd, usize)> {
    let events = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::ATTRIB
        | WatchFlags::ONLYDIR;
    let watches = inotify::init(CreateFlags::CLOEXEC)?;
    let mut watched = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let dir = openat(CWD, &path, DIRECTORY, Mode::empty())?;
        inotify::add_watch(&watches, &path, events)?;
        watched += 1;
        for entry in Dir::new(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == FileType::Directory && !matches!(name, b"." | b"..") {
                pending.push(path.join(OsStr::from_bytes(name)));
            }
        }
    }
    Ok((watches, watched))
}
