//! What is done to whole directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::World;
use super::operations::STEMS;
use crate::common::{pair_of_bytes, wait_until};

impl World {
    pub fn fill_new_dir(&mut self) {
        let parent = self.dir();
        if let Some(dir) = self.new_dir(&parent) {
            self.fill(&dir);
        }
    }

    /// A new directory in `parent`, unless that is deep down already; names come again soon.
    fn new_dir(&mut self, parent: &Path) -> Option<PathBuf> {
        let depth = parent.components().count() - self.cache.path().components().count();
        let dir = parent.join(format!("d{}", self.random.below(6)));
        (depth < 4 && !self.shadow.dirs.contains(&dir)).then_some(dir)
    }

    /// Makes a directory, with directories in it, and puts pairs into them at once.
    fn fill(&mut self, dir: &Path) {
        self.note(format!("fill {dir:?}"));
        let mut dir = dir.to_owned();
        for _ in 0..=self.random.below(2) {
            fs::create_dir_all(&dir).unwrap();
            self.shadow.dirs.insert(dir.clone());
            for _ in 0..self.random.below(4) {
                let pair = pair_of_bytes(&dir, STEMS[self.random.below(STEMS.len())]);
                if self.shadow.whole(&pair).is_some() || self.random.one_in(2) {
                    self.store_at(&pair);
                } else {
                    self.write_at(&pair);
                }
            }
            dir = dir.join(format!("d{}", self.random.below(6)));
        }
    }

    fn some_dir(&mut self) -> Option<PathBuf> {
        Some(self.dir()).filter(|dir| dir != self.cache.path())
    }

    /// Renames a directory: to a new name, over an empty one, or swaps it with another.
    pub fn move_dir(&mut self) {
        let (Some(from), to) = (self.some_dir(), self.dir()) else { return };
        if from.starts_with(&to) || to.starts_with(&from) || self.random.one_in(2) {
            // What begins under one name may end under another.
            let (parent, mut from) = (to, from);
            for _ in 0..=self.random.below(4) {
                let Some(to) = self.new_dir(&parent).filter(|to| !to.starts_with(&from)) else {
                    return;
                };
                self.move_tree(&from, &to);
                from = to;
            }
        } else if self.shadow.below(&to).0.is_empty() && self.shadow.below(&to).1.len() == 1 {
            self.shadow.dirs.remove(&to);
            self.move_tree(&from, &to);
        } else {
            self.note(format!("swap {from:?} and {to:?}"));
            renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE).unwrap();
            self.shadow.swap_trees(&from, &to);
        }
    }

    fn move_tree(&mut self, from: &Path, to: &Path) {
        self.may_tell(self.broken());
        self.note(format!("move {from:?} to {to:?}"));
        fs::rename(from, to).unwrap();
        self.shadow.move_tree(from, to);
    }

    pub fn move_out(&mut self) {
        let Some(from) = self.some_dir() else { return };
        let to = self.outside();
        self.shadow.touch_all(&from);
        self.move_tree(&from, &to);
    }

    /// Moves a tree in and out again before much can become of it.
    pub fn pass_through(&mut self) {
        for _ in 0..4 {
            let Some(inside) = self.move_in() else { return };
            // Watching the clock takes less time than the shortest sleep.
            let pause = Duration::from_micros(self.random.below(2000) as u64);
            let start = Instant::now();
            while start.elapsed() < pause {}
            let to = self.outside();
            self.shadow.touch_all(&inside);
            self.move_tree(&inside, &to);
        }
    }

    pub fn move_in(&mut self) -> Option<PathBuf> {
        let parent = self.dir();
        let to = self.new_dir(&parent)?;
        let there = self.shadow.dirs.iter().filter(|dir| dir.parent() == Some(&self.outside));
        let there: Vec<PathBuf> = there.cloned().collect();
        if there.is_empty() {
            let dir = self.outside();
            self.fill(&dir);
            return None;
        }
        let from = there[self.random.below(there.len())].clone();
        self.move_tree(&from, &to);
        Some(to)
    }

    pub fn remove_tree(&mut self) {
        let Some(dir) = self.some_dir() else { return };
        self.note(format!("remove {dir:?}"));
        self.shadow.remove_tree(&dir);
        // The cleaner may take files away, and give them back, meanwhile.
        wait_until("the directory is gone", || fs::remove_dir_all(&dir).is_ok() || !dir.exists());
    }

    fn outside(&mut self) -> PathBuf {
        self.names += 1;
        self.outside.join(self.names.to_string())
    }
}
