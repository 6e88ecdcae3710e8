//! What a dry run has reported. From then on these pairs count as deleted.

use std::collections::HashMap;
use std::path::Path;

use chrono::{DateTime, Utc};

use super::ScanId;
use super::waiting::WaitingSize;
use crate::pair::disk_budget::BLOCK;
use crate::pair::name::PairKey;

/// The pairs that a dry run would have deleted or evicted.
#[derive(Debug, Default)]
pub(super) struct DryRun {
    reported: HashMap<PairKey, ReportedPair>,
    /// What they take on disk, as far as that was measured for a disk budget.
    blocks: u64,
}

#[derive(Debug, Clone, Copy)]
struct ReportedPair {
    expires_at: DateTime<Utc>,
    /// The latest scan that had started when the pair was last seen.
    scan: ScanId,
    blocks: u32,
}

impl DryRun {
    /// Records that a pair would be deleted. Returns false if that was reported before.
    pub(super) fn report(
        &mut self,
        key: &PairKey,
        expires_at: DateTime<Utc>,
        size: WaitingSize,
        scan: ScanId,
    ) -> bool {
        if self.see(key, expires_at, scan) {
            return false;
        }
        self.forget(key);
        self.blocks += u64::from(size.blocks);
        let reported = ReportedPair { expires_at, scan, blocks: size.blocks };
        self.reported.insert(key.clone(), reported);
        true
    }

    /// Records that a pair was seen. Returns whether it was reported with this `expires_at`, and so counts as deleted.
    pub(super) fn see(&mut self, key: &PairKey, expires_at: DateTime<Utc>, scan: ScanId) -> bool {
        let known = self.reported.get_mut(key).filter(|known| known.expires_at == expires_at);
        known.map(|known| known.scan = scan).is_some()
    }

    pub(super) fn forget(&mut self, key: &PairKey) {
        if let Some(known) = self.reported.remove(key) {
            self.blocks -= u64::from(known.blocks);
        }
    }

    pub(super) fn contains(&self, key: &PairKey) -> bool {
        self.reported.contains_key(key)
    }

    /// Keeps the pairs for which `exists` returns true. It takes the directory and the latest scan that had started when
    /// the pair was last seen.
    pub(super) fn retain(&mut self, exists: impl Fn(&Path, ScanId) -> bool) {
        let blocks = &mut self.blocks;
        self.reported.retain(|key, known| {
            let exists = exists(&key.dir, known.scan);
            *blocks -= if exists { 0 } else { u64::from(known.blocks) };
            exists
        });
    }

    /// Returns what would be free by now, in bytes.
    pub(super) fn freed(&self) -> u64 {
        self.blocks * BLOCK
    }
}
