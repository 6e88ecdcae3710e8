//! Scans that are under way, as the agenda sees them.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound::{Included, Unbounded};
use std::path::Path;
use std::sync::Arc;

use crate::entry::Key;

/// Names one scan; later ones have greater numbers.
pub(crate) type ScanId = u32;

/// What a scan covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    Everything,
    Trees(Trees),
}

impl Scope {
    pub fn covers(&self, dir: &Path) -> bool {
        match self {
            Self::Everything => true,
            Self::Trees(trees) => trees.cover(dir),
        }
    }

    pub fn extend(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Trees(trees), Self::Trees(more)) => {
                more.iter().for_each(|tree| trees.insert(Arc::clone(tree)));
            }
            _ => *self = Self::Everything,
        }
    }
}

/// Directories with all that is below them. None of them is below another one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trees(BTreeSet<Arc<Path>>);

impl Trees {
    pub fn insert(&mut self, tree: Arc<Path>) {
        if self.cover(&tree) {
            return;
        }
        while let Some(below) = self.first_below(&tree) {
            self.0.remove(&below);
        }
        self.0.insert(tree);
    }

    /// Whether `dir` is one of them, or below one. In the order of paths a directory is followed at
    /// once by what is below it, so that only one of them comes into question, however deep `dir` is.
    pub fn cover(&self, dir: &Path) -> bool {
        let up_to_dir = (Unbounded, Included(dir));
        self.0.range::<Path, _>(up_to_dir).next_back().is_some_and(|tree| dir.starts_with(tree))
    }

    fn first_below(&self, tree: &Path) -> Option<Arc<Path>> {
        let from_tree = (Included(tree), Unbounded);
        self.0.range::<Path, _>(from_tree).next().filter(|dir| dir.starts_with(tree)).cloned()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Arc<Path>> for Trees {
    fn from_iter<I: IntoIterator<Item = Arc<Path>>>(trees: I) -> Self {
        trees.into_iter().fold(Self::default(), |mut all, tree| {
            all.insert(tree);
            all
        })
    }
}

#[derive(Debug)]
pub(super) struct Scanning {
    pub id: ScanId,
    pub scope: Scope,
    /// Pairs of which others told since it began, and what other scans began to cover since: what
    /// this one read of them may be older.
    pub touched: HashSet<Key>,
    /// Pairs that nobody knew when they vanished, unless this scan has seen them before.
    pub vanished: HashSet<Key>,
    /// Whether any pair in its scope was known when it began, so that it may be found to be gone.
    pub covers_known: bool,
    pub overtaken: Scope,
}

impl Scanning {
    pub fn new(id: ScanId, scope: Scope, covers_known: bool) -> Self {
        let overtaken = Scope::Trees(Trees::default());
        let (touched, vanished) = (HashSet::new(), HashSet::new());
        Self { id, scope, touched, vanished, covers_known, overtaken }
    }

    pub fn may_be_outdated_on(&self, key: &Key) -> bool {
        self.touched.contains(key) || self.overtaken.covers(&key.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn trees_cover_what_has_one_of_them_above_it(
            trees in prop::collection::vec("[ab!-]{0,2}(/[ab!-]{1,2}){0,3}", 0..6),
            dir in "[ab!-]{0,2}(/[ab!-]{1,2}){0,4}",
        ) {
            let relative = |path: &str| -> Arc<Path> { Path::new(path.trim_start_matches('/')).into() };
            let trees: Vec<Arc<Path>> = trees.iter().map(|tree| relative(tree)).collect();
            let all: Trees = trees.iter().cloned().collect();
            let dir = relative(&dir);
            let expected = dir.ancestors().any(|above| trees.iter().any(|tree| **tree == *above));
            prop_assert_eq!(all.cover(&dir), expected, "{:?} {:?}", trees, dir);
            for tree in all.iter() {
                prop_assert!(trees.contains(tree));
                prop_assert!(tree.ancestors().skip(1).all(|above| !all.0.contains(above)));
            }
        }
    }
}
