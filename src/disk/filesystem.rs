//! What file systems guarantee, by their magic numbers.

use std::io;

use rustix::fs::{fstatfs, fstatvfs};
use rustix::io::retry_on_intr;

use super::root::{Dir, Root};
use crate::pair::disk_budget::FreeSpace;

/// Whether the file system reports all changes to the kernel. Network file systems and those in user space
/// do not report changes that are made elsewhere.
///
/// # Errors
/// If the kernel does not report which file system it is.
pub(crate) fn reports_all_changes(dir: &Dir) -> io::Result<bool> {
    Ok(partly_silent_file_system(dir)?.is_none())
}

/// The name of the file system if it does not report all changes; otherwise `None`.
///
/// # Errors
/// If the kernel does not report which file system it is.
pub(crate) fn partly_silent_file_system(dir: &Dir) -> io::Result<Option<&'static str>> {
    const SILENT: [(u32, &str); 9] = [
        (0x6969, "NFS"),
        (0x6573_5546, "FUSE"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB2"),
        (0x517b, "SMB"),
        (0x0102_1997, "9P"),
        (0x00c3_6400, "Ceph"),
        (0x5346_414f, "AFS"),
        (0x7375_7245, "Coda"),
    ];
    // The type of the field differs between platforms; the numbers are 32 bits wide.
    let found = fstatfs(dir)?.f_type as u32;
    Ok(SILENT.iter().find(|(number, _)| *number == found).map(|(_, name)| *name))
}

/// Returns the size of the cache directory's file system, and what unprivileged users may still use of it. May block
/// for as long as the file system does not answer.
///
/// # Errors
/// Those of the system.
pub(crate) fn free_space(root: &Root) -> io::Result<FreeSpace> {
    let found = retry_on_intr(|| fstatvfs(root))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(FreeSpace { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
}
