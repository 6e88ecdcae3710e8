//! Scans that are under way, as the agenda sees them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use crate::entry::Key;

/// Names one scan; later ones have greater numbers.
pub(crate) type ScanId = u32;

/// What a scan covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    Everything,
    Trees(HashSet<Arc<Path>>),
}

impl Scope {
    pub fn covers(&self, dir: &Path) -> bool {
        match self {
            Self::Everything => true,
            Self::Trees(trees) => dir.ancestors().any(|above| trees.contains(above)),
        }
    }

    pub fn extend(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Trees(trees), Self::Trees(more)) => trees.extend(more.iter().cloned()),
            _ => *self = Self::Everything,
        }
    }
}

#[derive(Debug)]
pub(super) struct Scanning {
    pub id: ScanId,
    pub scope: Scope,
    /// Pairs of which others told since it began, and what other scans began to cover since: what
    /// this one read of them may be older.
    pub touched: HashSet<Key>,
    /// Whether any pair in its scope was known when it began, so that it may be found to be gone.
    pub covers_known: bool,
    pub overtaken: Scope,
}

impl Scanning {
    pub fn new(id: ScanId, scope: Scope, covers_known: bool) -> Self {
        let overtaken = Scope::Trees(HashSet::new());
        Self { id, scope, touched: HashSet::new(), covers_known, overtaken }
    }

    pub fn may_be_outdated_on(&self, key: &Key) -> bool {
        self.touched.contains(key) || self.overtaken.covers(&key.dir)
    }
}
