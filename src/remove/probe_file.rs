//! A file that shows what works in a directory, and is removed again.

use std::io;
use std::path::Path;

use chrono::{DateTime, Utc};
use rustix::fs::{Mode, OFlags, fstat, openat};

use super::claim::{rename, unlink};
use super::lock::lock_shared;
use crate::disk::root::Dir;
use crate::pair::version::{FileState, FileTime};

/// An empty file under a reserved name. It is removed with this value.
#[derive(Debug)]
pub(crate) struct ProbeFile<'a> {
    dir: &'a Dir,
    name: Vec<u8>,
    /// When the file system says that it was made.
    pub made: Option<FileTime>,
}

impl<'a> ProbeFile<'a> {
    /// Makes it under `name`, which has to be one of [`probe_file_name`].
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn make(dir: &'a Dir, name: &str) -> io::Result<Self> {
        // While this is held, nobody takes it for one that was left behind.
        lock_shared(dir)?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(dir, Path::new(name), flags, Mode::RUSR | Mode::WUSR)?;
        let mut canary = Self { dir, name: name.as_bytes().to_vec(), made: None };
        canary.made = FileState::of(&fstat(&file)?).map(|seen| seen.version.mtime);
        Ok(canary)
    }

    /// Renames it as files are that are about to be deleted: so that nothing is replaced.
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

/// A name that no other canary has: processes of other containers may have the same number.
pub(crate) fn probe_file_name(now: DateTime<Utc>) -> String {
    format!(".result-cleaner-canary-{}-{}", std::process::id(), now.timestamp_micros())
}

impl Drop for ProbeFile<'_> {
    fn drop(&mut self) {
        if let Err(error) = unlink(self.dir, &self.name) {
            tracing::warn!(%error, "can't remove the file {}", self.name.escape_ascii());
        }
    }
}
