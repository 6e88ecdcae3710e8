//! The cache directory and the directories below it, as open descriptors.
//!
//! A path that was checked may lead elsewhere by the time it is used. So directories are opened relative to
//! the cache directory's own descriptor. That lookup follows no symbolic link and enters no mount point.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{
    Access, AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat, StatxAttributes, StatxFlags, accessat,
    fstat, lstat, open, openat, openat2, stat, statx,
};
use rustix::io::{Errno, retry_on_intr};

use crate::error::Error;

const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The longest path in bytes that the kernel accepts, including the zero at its end.
const MAX_PATH: usize = 4096;

/// The most attempts at a lookup that the kernel reports as disturbed (`EAGAIN`) or interrupted.
const MAX_LOOKUPS: u32 = 100;

/// What is at the configured path of the cache directory.
#[derive(Debug)]
pub(crate) enum Located {
    /// A directory that can be read.
    Directory(RootId),
    /// Nothing.
    Absent,
    /// Something other than a directory.
    NotADirectory,
    /// It can't be inspected, or can't be read.
    Unreadable(io::Error),
}

/// The identity of a cache directory. If one field differs, it is another directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootId {
    /// The path with every symbolic link resolved.
    pub path: PathBuf,
    dev: u64,
    ino: u64,
}

/// Inspects `path`, which may be a symbolic link. Opens nothing, so that a process without free descriptors does not
/// take the directory for unreadable.
pub(crate) fn locate(path: &Path) -> Located {
    let identity = || -> io::Result<Option<RootId>> {
        let resolved = std::fs::canonicalize(path)?;
        let seen = stat(&resolved)?;
        if !rustix::fs::FileType::from_raw_mode(seen.st_mode).is_dir() {
            return Ok(None);
        }
        accessat(CWD, &resolved, Access::READ_OK | Access::EXEC_OK, AtFlags::EACCESS)?;
        Ok(Some(RootId { path: resolved, dev: seen.st_dev, ino: seen.st_ino }))
    };
    match identity() {
        Ok(Some(id)) => Located::Directory(id),
        Ok(None) => Located::NotADirectory,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Located::Absent,
            io::ErrorKind::NotADirectory => Located::NotADirectory,
            _ => Located::Unreadable(error),
        },
    }
}

/// The cache directory, open.
#[derive(Debug)]
pub(crate) struct Root {
    pub id: RootId,
    fd: OwnedFd,
}

impl Root {
    /// Opens the cache directory at `path`, which may be a symbolic link; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] and [`Error::Unreadable`].
    pub(crate) fn at(path: &Path) -> Result<Option<Self>, Error> {
        let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
        match locate(path) {
            Located::Directory(id) => match Self::open(id) {
                Ok(root) => Ok(Some(root)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(unreadable(error)),
            },
            Located::Absent => Ok(None),
            Located::NotADirectory => Err(Error::NotADirectory { path: path.to_owned() }),
            Located::Unreadable(error) => Err(unreadable(error)),
        }
    }

    /// Opens the directory that `id` names.
    ///
    /// # Errors
    /// Those of the system; `NotFound` also if another directory is at the path by now.
    pub(crate) fn open(id: RootId) -> io::Result<Self> {
        let fd = open(&id.path, DIR_FLAGS, Mode::empty())?;
        let seen = fstat(&fd)?;
        if (seen.st_dev, seen.st_ino) != (id.dev, id.ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { id, fd })
    }

    /// The resolved path of the cache directory.
    pub(crate) fn path(&self) -> &Path {
        &self.id.path
    }

    /// Opens the directory `rel` below the cache directory. The empty path is the cache directory itself.
    ///
    /// # Errors
    /// Those of the system: `ELOOP` or `ENOTDIR` where the path leads over a symbolic link, `EXDEV`
    /// where it leads into a mount point.
    pub(crate) fn open_dir(&self, rel: &Arc<Path>) -> io::Result<Dir> {
        let path = if rel.as_os_str().is_empty() { Path::new(".") } else { rel };
        let fd = match open_beneath(&self.fd, path) {
            // Older kernels, containers whose filter does not know the call, long paths, and renames that disturb
            // each attempt.
            Err(Errno::NOSYS | Errno::PERM | Errno::NAMETOOLONG | Errno::AGAIN | Errno::INTR) => {
                self.step_down(path)?
            }
            opened => opened?,
        };
        let seen = fstat(&fd)?;
        Ok(Dir {
            rel: Arc::clone(rel),
            fd,
            identity: (seen.st_dev, seen.st_ino),
            lock: AtomicU8::new(LockState::None as u8),
        })
    }

    /// Whether the path of the cache directory still leads to it. False once it, or a directory above, was moved.
    ///
    /// # Errors
    /// Those that say nothing about where the path leads.
    pub(crate) fn is_in_place(&self) -> io::Result<bool> {
        match retry_on_intr(|| lstat(&self.id.path)).map_err(io::Error::from) {
            Ok(there) => Ok((there.st_dev, there.st_ino) == (self.id.dev, self.id.ino)),
            Err(error) if is_not_ours(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether `dir` is still where it was opened, and can be reached there.
    ///
    /// # Errors
    /// Those that say nothing about where it is, such as too many open files.
    pub(crate) fn still_contains(&self, dir: &Dir) -> io::Result<bool> {
        Ok(self.place_of(dir)? == DirPlace::Same)
    }

    /// Where `dir` is, compared with where it was opened.
    ///
    /// # Errors
    /// Those that say nothing about where it is, such as too many open files.
    pub(crate) fn place_of(&self, dir: &Dir) -> io::Result<DirPlace> {
        if dir.rel.as_os_str().is_empty() {
            return Ok(DirPlace::Same);
        }
        match self.open_dir(&dir.rel) {
            Ok(there) if there.identity == dir.identity => Ok(DirPlace::Same),
            Err(error) if is_mounted_over(&error) => Ok(DirPlace::MountedOver),
            Err(error) if !is_not_ours(&error) => Err(error),
            Ok(_) | Err(_) => Ok(DirPlace::Moved),
        }
    }

    /// Whether the path of `dir` still leads to it. False once a directory above was renamed.
    ///
    /// # Errors
    /// Those that say nothing about where the path leads.
    pub(crate) fn path_leads_to(&self, dir: &Dir) -> io::Result<bool> {
        let path = self.id.path.join(&dir.rel);
        match retry_on_intr(|| lstat(&path)).map_err(io::Error::from) {
            Ok(there) => Ok(dir.is_described_by(&there)),
            Err(error) if is_not_ours(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Does the same lookup in pieces, each short enough for the kernel.
    fn step_down(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut fd = open_step(&self.fd, Path::new("."))?;
        for piece in pieces(path)? {
            fd = match open_beneath(&fd, &piece) {
                Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN | Errno::INTR) => {
                    self.step_by_step(fd, &piece)?
                }
                opened => opened?,
            };
            self.same_file_system(&fd)?;
        }
        Ok(fd)
    }

    /// Does the same lookup one component at a time. A rename elsewhere disturbs none of these steps.
    fn step_by_step(&self, mut fd: OwnedFd, piece: &Path) -> io::Result<OwnedFd> {
        for name in piece {
            fd = open_step(&fd, Path::new(name))?;
            self.same_file_system(&fd)?;
            if is_mount_root(&fd)? {
                return Err(Errno::XDEV.into());
            }
        }
        Ok(fd)
    }

    fn same_file_system(&self, fd: &OwnedFd) -> io::Result<()> {
        if fstat(fd)?.st_dev == self.id.dev { Ok(()) } else { Err(Errno::XDEV.into()) }
    }
}

/// Cuts a path that only goes downwards into pieces of less than [`MAX_PATH`] bytes.
fn pieces(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut pieces = Vec::new();
    let mut piece = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => {
                if piece.as_os_str().len() + name.len() + 1 >= MAX_PATH {
                    pieces.push(std::mem::take(&mut piece));
                }
                piece.push(name);
            }
            _ => return Err(Errno::INVAL.into()),
        }
    }
    pieces.push(piece);
    pieces.retain(|piece| !piece.as_os_str().is_empty());
    Ok(pieces)
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens the directory `name` in `dir`, unless it is a symbolic link.
fn open_step(dir: &OwnedFd, name: &Path) -> rustix::io::Result<OwnedFd> {
    retry_on_intr(|| openat(dir, name, DIR_FLAGS, Mode::empty()))
}

/// Whether something is mounted at this directory, which may be a part of the same file system. False on
/// kernels before 5.8, which don't report it.
fn is_mount_root(dir: &OwnedFd) -> io::Result<bool> {
    match statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::empty()) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOSYS | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Opens the directory `path` below `dir`. Follows no symbolic link and enters no mount point.
///
/// # Errors
/// Those of the system; `EAGAIN` where renames or signals disturbed [`MAX_LOOKUPS`] attempts.
fn open_beneath(dir: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    for _ in 0..MAX_LOOKUPS {
        match openat2(dir, path, DIR_FLAGS, Mode::empty(), resolve) {
            // A rename elsewhere in the system, or a signal, came between.
            Err(Errno::INTR | Errno::AGAIN) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// Where a directory is, compared with where it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirPlace {
    Same,
    /// Another file system is mounted over it, or over one above, and may be unmounted again.
    MountedOver,
    /// Not there any more: it was moved out of the cache directory, for example.
    Moved,
}

/// An open directory within the cache directory.
#[derive(Debug)]
pub(crate) struct Dir {
    /// Its path relative to the cache directory.
    pub rel: Arc<Path>,
    fd: OwnedFd,
    /// Device and inode.
    identity: (u64, u64),
    lock: AtomicU8,
}

/// What is known about the lock on a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum LockState {
    /// No lock was requested yet.
    None,
    /// This descriptor has a shared lock, until it is closed.
    Shared,
    /// Another program kept its lock until the last attempt.
    HeldByOthers,
}

impl Dir {
    /// Whether `stat` describes this directory.
    pub(crate) fn is_described_by(&self, stat: &Stat) -> bool {
        (stat.st_dev, stat.st_ino) == self.identity
    }

    pub(crate) fn lock_state(&self) -> LockState {
        match self.lock.load(Ordering::Relaxed) {
            lock if lock == LockState::Shared as u8 => LockState::Shared,
            lock if lock == LockState::HeldByOthers as u8 => LockState::HeldByOthers,
            _ => LockState::None,
        }
    }

    pub(crate) fn set_lock_state(&self, lock: LockState) {
        self.lock.store(lock as u8, Ordering::Relaxed);
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether the error says that a directory leads into another file system.
pub(crate) fn is_mounted_over(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::XDEV)
}

/// Whether the error says that a name leads to nothing in the cache directory: it is gone, or a symbolic
/// link, a file that is not a directory, or a mount point is in the way.
pub(crate) fn is_not_ours(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
    )
}

/// Whether the error says nothing about the file or directory itself, such as too many open files. The next
/// attempt may succeed although nothing has changed there.
pub(crate) fn is_unrelated(error: &io::Error) -> bool {
    let says_something = matches!(
        Errno::from_io_error(error),
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NAMETOOLONG)
    );
    !says_something && !is_not_ours(error)
}
