//! Checks what kind of file a name refers to, and what prevents a deletion.

use std::io;
use std::path::Path;

use rustix::fs::{Access, AtFlags, FileType, FlockOperation, accessat, flock};
use rustix::io::Errno;

use super::explain::shown;
use crate::disk::inspect::stat;
use crate::disk::root::Dir;
use crate::pair::name::{Half, Stem};

/// What kind of file a name refers to.
pub(super) enum Kind {
    File,
    Nothing,
    Other(&'static str),
    Unknown(io::Error),
}

pub(super) fn kind(dir: &Dir, name: &[u8]) -> Kind {
    let stat = match stat(dir, name) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::NAMETOOLONG) => return Kind::Nothing,
        Err(error) => return Kind::Unknown(error.into()),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Other("a symbolic link"),
        FileType::Directory => Kind::Other("a directory"),
        FileType::Fifo => Kind::Other("a FIFO"),
        FileType::Socket => Kind::Other("a socket"),
        _ => Kind::Other("a device"),
    }
}

/// Returns whether a half of a pair is at its reserved name.
pub(super) fn is_claimed(dir: &Dir, stem: &Stem) -> io::Result<bool> {
    for half in [Half::Result, Half::Metadata] {
        match kind(dir, &stem.claim(half)) {
            Kind::Nothing => {}
            Kind::File | Kind::Other(_) => return Ok(true),
            Kind::Unknown(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Returns what prevents this user from deleting a due result, and what to do about it.
pub(super) fn obstacle(dir: &Dir, stem: &Stem) -> Option<String> {
    match accessat(dir, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => {}
        Err(Errno::ROFS) => {
            return Some("its file system is mounted read-only: mount it read-write".to_owned());
        }
        Err(error) => {
            return Some(format!(
                "this user may not write to the directory ({}): allow that, or run the cleaner as its owner",
                io::Error::from(error)
            ));
        }
    }
    for half in [Half::Result, Half::Metadata] {
        let name = stem.claim(half);
        if let Kind::Other(_) = kind(dir, &name) {
            return Some(format!("another file has the reserved name {}: remove it", shown(&name)));
        }
    }
    if flock(dir, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) {
        return Some(
            "another program has locked the directory (flock): stop that program".to_owned(),
        );
    }
    None
}

pub(super) fn is_missing(file: &Path) -> bool {
    std::fs::symlink_metadata(file).is_err_and(|error| says_missing(&error))
}

pub(super) fn says_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
