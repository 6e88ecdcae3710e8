//! Compares the kernel's limits with the cache directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use walkdir::WalkDir;

use crate::pair::change::{MAX_WATCHED_PATH, WatchError};

/// Logs that `refused` directories are not watched, but swept `every` so often. `all_directories` helps to choose a
/// higher limit; `None` if no limit is reached.
pub(crate) fn log_unwatched(
    refused: u64,
    all_directories: Option<usize>,
    every: Duration,
    refusal: &WatchError,
) {
    tracing::warn!(
        directories = refused,
        all_directories,
        ?every,
        reason = refusal.to_string(),
        "can't watch some directories, sweeping them instead"
    );
}

/// The number of directories on the file system of `root` that can be read, including `root`.
pub(crate) fn count_directories(root: &Path) -> usize {
    let entries = WalkDir::new(root).same_file_system(true).into_iter();
    entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_dir()).count()
}

/// What a walk over the directories of a cache directory found.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// The directories on its file system, including the cache directory itself.
    pub directories: usize,
    /// How many of them have too long a path to be watched.
    pub too_long: usize,
    /// How many of them this user may not read or not delete in, and an example.
    pub forbidden: usize,
    pub example: Option<PathBuf>,
    /// How many could not be inspected for another reason, such as too many open files, and an example.
    pub unseen: usize,
    pub unseen_example: Option<(PathBuf, io::Error)>,
}

/// Inspects all directories on the file system of `root`.
pub(crate) fn survey(root: &Path) -> Survey {
    let mut survey = Survey::default();
    let mut last_forbidden: Option<PathBuf> = None;
    for entry in WalkDir::new(root).same_file_system(true) {
        let (path, error) = match entry {
            Ok(entry) if !entry.file_type().is_dir() => continue,
            Ok(entry) => {
                survey.directories += 1;
                let rel = entry.path().strip_prefix(root).unwrap_or(entry.path());
                survey.too_long += usize::from(rel.as_os_str().len() > MAX_WATCHED_PATH);
                let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
                match accessat(CWD, entry.path(), wanted, AtFlags::EACCESS) {
                    Ok(()) => continue,
                    Err(error) => (entry.into_path(), io::Error::from(error)),
                }
            }
            Err(error) => (error.path().unwrap_or(root).to_owned(), io::Error::from(error)),
        };
        match error.kind() {
            // It vanished during the walk.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
            // The service opens it in several steps.
            io::ErrorKind::InvalidFilename => {}
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                // The walk meets an unreadable directory twice, the second time right after the first.
                if last_forbidden.as_deref() != Some(&path) {
                    survey.forbidden += 1;
                    last_forbidden = Some(path);
                }
                if survey.example.is_none() {
                    survey.example.clone_from(&last_forbidden);
                }
            }
            _ => {
                survey.unseen += 1;
                survey.unseen_example.get_or_insert((path, error));
            }
        }
    }
    survey
}

/// The value of a limit of inotify, by its sysctl name.
pub(crate) fn inotify_limit(name: &str) -> Option<usize> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/fs/inotify").join(name)).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_counted_and_links_are_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("a/b/c")).unwrap();
        std::fs::write(temp.path().join("a/file"), "").unwrap();
        std::os::unix::fs::symlink("a", temp.path().join("link")).unwrap();
        assert_eq!(count_directories(temp.path()), 4);
    }
}
