//! Lists directories by descriptor. (`watch::limits` and `occupancy` walk the tree by path, for the log and `doctor`.)

use std::ffi::CStr;
use std::io;
use std::ops::ControlFlow;

use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;

use crate::disk::inspect::stat;
use crate::disk::root::Dir;

/// How many bytes of entries the kernel hands over at once. The C library's `readdir` asks for as many.
const BUFFER: usize = 32 * 1024;

/// Calls `entry` with each name in `dir` and the type of its file, in no order, until it breaks.
///
/// `dir` can be listed only once.
///
/// # Errors
/// Those of the system.
pub(crate) fn list(
    dir: &Dir,
    mut entry: impl FnMut(&CStr, FileType) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(found) = entries.next() {
        let found = match found {
            Err(Errno::INTR) => continue,
            found => found?,
        };
        let name = found.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry(name, file_type(dir, name, found.file_type())?).is_break() {
            break;
        }
    }
    Ok(())
}

/// The type of an entry that was listed with the type `listed`. Some file systems report it only on a
/// `stat`.
fn file_type(dir: &Dir, name: &CStr, listed: FileType) -> io::Result<FileType> {
    if listed != FileType::Unknown {
        return Ok(listed);
    }
    match stat(dir, name.to_bytes()) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode)),
        // It vanished during the listing.
        Err(Errno::NOENT) => Ok(FileType::Unknown),
        Err(error) => Err(error.into()),
    }
}
