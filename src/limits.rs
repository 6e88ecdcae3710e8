//! The kernel's limits against what there is. The only module that names walkdir.

use std::path::Path;
use std::time::Duration;

use walkdir::WalkDir;

use crate::watch::Refusal;

/// Tells that `refused` directories are not watched, but swept `every` so often; where more watches
/// would help, also `of` how many, so that the limit can be chosen.
pub(crate) fn tell_refused(refused: u64, of: Option<usize>, every: Duration, refusal: &Refusal) {
    tracing::warn!(
        directories = refused,
        of,
        ?every,
        "directories are not watched, but swept instead: {refusal}"
    );
}

/// The directories on the file system of `root` that can be read, itself included.
pub(crate) fn count_directories(root: &Path) -> usize {
    let entries = WalkDir::new(root).same_file_system(true).into_iter();
    entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_dir()).count()
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
