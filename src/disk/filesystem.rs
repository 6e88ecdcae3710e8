//! What file systems guarantee, by their magic numbers.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::fstatfs;

use super::root::Dir;

/// Whether the file system reports all changes to the kernel. Network file systems and those in user space
/// do not report changes that are made elsewhere.
///
/// # Errors
/// If the kernel does not report which file system it is.
pub(crate) fn gives_events(dir: &Dir) -> io::Result<bool> {
    Ok(silent_file_system(dir)?.is_none())
}

/// The name of the file system if it does not report all changes; otherwise `None`.
///
/// # Errors
/// If the kernel does not report which file system it is.
pub(crate) fn silent_file_system(dir: &Dir) -> io::Result<Option<&'static str>> {
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

/// How long the kernel may take to write a changed page back; `None` where that is unknown or unlimited.
///
/// Until then, further changes of that page through a memory map leave no trace.
pub(super) fn time_to_write_back() -> Option<Duration> {
    /// Extra time for the writing itself.
    const SLACK: Duration = Duration::from_secs(25);
    let setting = |name| {
        let text = std::fs::read_to_string(Path::new("/proc/sys/vm").join(name)).ok()?;
        text.trim().parse().ok().map(|centiseconds: u64| Duration::from_millis(centiseconds * 10))
    };
    let (every, age) = (setting("dirty_writeback_centisecs")?, setting("dirty_expire_centisecs")?);
    // With zero, the kernel writes nothing back before memory is short.
    (!every.is_zero()).then_some(every + age + SLACK)
}

/// Whether the file system is known to update a file's ctime on each change. That includes changes through
/// a memory map, if the change before has been written back.
pub(super) fn keeps_ctimes(dir: &OwnedFd) -> bool {
    const KNOWN: [u32; 4] = [
        0xef53,      // ext2, ext3, ext4
        0x5846_5342, // XFS
        0x9123_683e, // Btrfs
        0xf2f5_2010, // F2FS
    ];
    // The type of the field differs between platforms; the numbers are 32 bits wide.
    fstatfs(dir).is_ok_and(|fs| KNOWN.contains(&(fs.f_type as u32)))
}
