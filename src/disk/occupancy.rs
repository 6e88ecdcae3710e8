//! What takes the space in a cache directory, by kind.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use walkdir::WalkDir;

use super::inspect::{Inspection, inspect, stat_file};
use super::root::{Dir, Root};
use crate::pair::disk_budget::{BLOCK, Shortfall};
use crate::pair::name::{Half, Name};

/// Files of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub files: u64,
    pub bytes: u64,
}

/// What the files in a cache directory take on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Occupancy {
    /// Complete, valid pairs. Those whose result has another link are counted apart: their removal frees nothing.
    pub pairs: Share,
    pub linked: Share,
    /// Pairs with invalid metadata.
    pub broken: Share,
    /// Halves without the other one, and temporary files of writers.
    pub orphans: Share,
    pub others: Share,
}

impl Occupancy {
    /// Logs that a limit of the disk budget is exceeded while nothing can be evicted, and what takes the space.
    pub(crate) fn log(&self, shortfall: &Shortfall) {
        let Shortfall { size, space, young, min_age } = shortfall;
        let all = [self.pairs, self.linked, self.broken, self.orphans, self.others];
        let in_directory: u64 = all.iter().map(|share| share.bytes).sum();
        // A part of this may be reserved for the system.
        let used = space.map(|space| space.total.saturating_sub(space.free));
        let rate = young.bytes as f64 / min_age.as_secs_f64().max(0.001);
        tracing::warn!(
            size_bytes = size,
            free_bytes = space.map(|space| space.free),
            too_young_pairs = young.pairs,
            too_young_bytes = young.bytes,
            ?min_age,
            written_bytes_per_second = rate as u64,
            linked_bytes = self.linked.bytes,
            broken_bytes = self.broken.bytes,
            orphan_bytes = self.orphans.bytes,
            other_files_bytes = self.others.bytes,
            outside_bytes = used.map(|used| used.saturating_sub(in_directory)),
            "the disk budget is exceeded, and nothing more can be evicted: results younger than --evict-min-age, broken pairs, orphans and other files are kept"
        );
    }

    fn kind(&mut self, dir: Option<&Dir>, name: &[u8]) -> &mut Share {
        let (stem, dir) = match (Name::of(name), dir) {
            (Name::Half(_, stem), Some(dir)) => (stem, dir),
            (Name::Tmp(..), _) => return &mut self.orphans,
            _ => return &mut self.others,
        };
        match inspect(dir, &stem, &mut Vec::new()) {
            Ok(Inspection::Complete(pair, _)) if pair.result.is_linked() => &mut self.linked,
            Ok(Inspection::Complete(..)) => &mut self.pairs,
            Ok(Inspection::Broken { .. }) => &mut self.broken,
            Ok(Inspection::Incomplete) => match stat_file(dir, &stem.name(Half::Metadata)) {
                // Both halves, but one of them is no regular file.
                Ok(Some(_)) if matches!(Name::of(name), Name::Half(Half::Result, _)) => {
                    &mut self.others
                }
                _ => &mut self.orphans,
            },
            _ => &mut self.others,
        }
    }
}

/// Adds up what the files on the file system of `root` take on disk, until `cancel` is set. Follows no link.
pub(crate) fn occupancy(root: &Root, cancel: &AtomicBool) -> Occupancy {
    let mut found = Occupancy::default();
    let mut last: Option<(Arc<Path>, Option<Dir>)> = None;
    for entry in WalkDir::new(root.path()).same_file_system(true) {
        if cancel.load(Ordering::Relaxed) {
            break;
        }
        // What vanishes meanwhile, or can't be read, takes no part.
        let Ok(entry) = entry else { continue };
        if !entry.file_type().is_file() {
            continue;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        let parent = entry.path().parent().and_then(|dir| dir.strip_prefix(root.path()).ok());
        let parent = parent.unwrap_or(Path::new(""));
        let dir = match &mut last {
            Some((rel, dir)) if **rel == *parent => dir,
            _ => {
                let rel: Arc<Path> = parent.into();
                let dir = root.open_dir(&rel).ok();
                &mut last.insert((rel, dir)).1
            }
        };
        let share = found.kind(dir.as_ref(), entry.file_name().as_bytes());
        share.files += 1;
        share.bytes += metadata.blocks() * BLOCK;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_are_added_up_by_their_kind() {
        let temp = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = temp.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let pair = |name: &str, metadata: &str| {
            write(&format!("{name}.result.json.lz4"), "result");
            write(&format!("{name}.metadata.json"), metadata);
        };
        pair("a", r#"{"expires_at": 8000000000}"#);
        pair("d/b", r#"{"expires_at": 8000000000}"#);
        pair("linked", r#"{"expires_at": 8000000000}"#);
        let linked = temp.path().join("linked.result.json.lz4");
        fs::hard_link(&linked, temp.path().join("elsewhere")).unwrap();
        pair("broken", "{");
        write("alone.result.json.lz4", "result");
        write("x.metadata.json.tmp", "{");
        write("d/README", "other");
        let root = Root::at(temp.path()).unwrap().unwrap();
        let found = occupancy(&root, &AtomicBool::new(false));
        let Occupancy { pairs, linked, broken, orphans, others } = found;
        let files = [pairs, linked, broken, orphans, others].map(|share| share.files);
        assert_eq!(files, [4, 2, 2, 2, 2]);
    }
}
