//! What a dry run has reported. From then on these pairs count as gone.

use std::collections::HashMap;
use std::path::Path;

use chrono::{DateTime, Utc};

use super::ScanId;
use super::waiting::Size;
use crate::pair::budget::BLOCK;
use crate::pair::name::PairKey;

/// The pairs that a dry run would have deleted or evicted.
#[derive(Debug, Default)]
pub(super) struct DryRun {
    reported: HashMap<PairKey, Reported>,
    /// What they take on disk, as far as that was measured for a disk budget.
    blocks: u64,
}

#[derive(Debug, Clone, Copy)]
struct Reported {
    expires_at: DateTime<Utc>,
    /// The latest scan that had started when the pair was last seen.
    scan: ScanId,
    blocks: u32,
}

impl DryRun {
    /// Records that a pair would go. Returns false if that is known.
    pub(super) fn report(
        &mut self,
        key: &PairKey,
        expires_at: DateTime<Utc>,
        size: Size,
        scan: ScanId,
    ) -> bool {
        if self.see(key, expires_at, scan) {
            return false;
        }
        self.forget(key);
        self.blocks += u64::from(size.blocks);
        let reported = Reported { expires_at, scan, blocks: size.blocks };
        self.reported.insert(key.clone(), reported);
        true
    }

    /// Records that a pair was seen. Returns whether it was reported with this `expires_at`, and so counts as gone.
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

    /// Forgets the pairs that `is_gone` applies to. It takes the directory and the latest scan that had started when
    /// the pair was last seen.
    pub(super) fn forget_gone(&mut self, is_gone: impl Fn(&Path, ScanId) -> bool) {
        let blocks = &mut self.blocks;
        self.reported.retain(|key, known| {
            let is_gone = is_gone(&key.dir, known.scan);
            *blocks -= if is_gone { u64::from(known.blocks) } else { 0 };
            !is_gone
        });
    }

    /// Returns what would be free by now, in bytes.
    pub(super) fn freed(&self) -> u64 {
        self.blocks * BLOCK
    }
}
