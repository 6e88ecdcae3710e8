//! A temporary file that shows which operations work in a directory.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use chrono::{DateTime, Utc};
use rustix::fs::{Mode, OFlags, fstat, openat};

use super::claim::{rename, unlink};
use super::lock::{LockPatience, lock_shared};
use crate::disk::root::Dir;
use crate::display::path_field;
use crate::pair::version::{FileState, FileTime};

/// An empty file under a reserved name. It is removed when this value is dropped.
#[derive(Debug)]
pub(crate) struct ProbeFile<'a> {
    dir: &'a Dir,
    name: Vec<u8>,
    /// When the file was created, by the clock of the file system.
    pub made: Option<FileTime>,
}

impl<'a> ProbeFile<'a> {
    /// Creates the file under `name`, which has to come from [`probe_file_name`].
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn make(dir: &'a Dir, name: &str) -> io::Result<Self> {
        // While this lock is kept, no recovery removes the file as one that was left behind.
        lock_shared(dir, &mut LockPatience::default())?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(dir, Path::new(name), flags, Mode::RUSR | Mode::WUSR)?;
        let mut probe = Self { dir, name: name.as_bytes().to_vec(), made: None };
        probe.made = FileState::of(&fstat(&file)?).map(|seen| seen.version.mtime);
        Ok(probe)
    }

    /// Renames the file as a claim does: the rename replaces nothing.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn claim(&mut self) -> io::Result<()> {
        let claimed = [&self.name[..], b"-claimed"].concat();
        rename(self.dir, &self.name, &claimed)?;
        self.name = claimed;
        Ok(())
    }
}

/// A name that no other probe file has. Processes of other containers may have the same process number.
pub(crate) fn probe_file_name(now: DateTime<Utc>) -> String {
    format!(".result-cleaner-canary-{}-{}", std::process::id(), now.timestamp_micros())
}

impl Drop for ProbeFile<'_> {
    fn drop(&mut self) {
        if let Err(error) = unlink(self.dir, &self.name) {
            let name = OsStr::from_bytes(&self.name);
            tracing::warn!(
                path = path_field(&self.dir.rel.join(name)),
                reason = error.to_string(),
                "can't remove the probe file"
            );
        }
    }
}
