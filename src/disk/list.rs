//! Lists directories. The only module that does.

use std::io;
use std::ops::ControlFlow;

use rustix::fs::{DirEntry, FileType};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::disk::inspect::stat;
use crate::disk::root::Dir;

/// Calls `entry` with each name in `dir` and the type of its file, in no order, until it breaks.
///
/// `dir` can be listed only once.
///
/// # Errors
/// Those of the system.
pub(crate) fn list(
    dir: &Dir,
    mut entry: impl FnMut(&[u8], FileType) -> ControlFlow<()>,
) -> io::Result<()> {
    // No other reader uses this descriptor, so that its copy needs no read position of its own.
    for found in rustix::fs::Dir::new(fcntl_dupfd_cloexec(dir, 0)?)? {
        let found = found?;
        let name = found.file_name().to_bytes();
        if name != b"." && name != b".." && entry(name, file_type(dir, &found)?).is_break() {
            break;
        }
    }
    Ok(())
}

/// The type of an entry. Some file systems report it only on a `stat`.
fn file_type(dir: &Dir, entry: &DirEntry) -> io::Result<FileType> {
    if entry.file_type() != FileType::Unknown {
        return Ok(entry.file_type());
    }
    match stat(dir, entry.file_name().to_bytes()) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode)),
        // It vanished during the listing.
        Err(Errno::NOENT) => Ok(FileType::Unknown),
        Err(error) => Err(error.into()),
    }
}
