//! Evictions without a service: what a sweep evicts, and what it would evict.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chrono::{DateTime, Utc};

use super::sweep::SweepState;
use crate::disk::filesystem::free_space;
use crate::disk::inspect::stat_file;
use crate::disk::occupancy::occupancy;
use crate::disk::root::Root;
use crate::display::path_field;
use crate::jobs::context::{JobContext, result_path};
use crate::jobs::pairs::PairProcessor;
use crate::pair::disk_budget::{
    Budget, Chosen, DiskSize, EVICTION_BATCH, Evicting, FreeSpace, Shortfall, Young, eviction_order,
};
use crate::pair::name::{Half, PairKey};
use crate::pair::outcome::{Job, Outcome, Waiting, sort_by_directory};
use crate::pair::reason::{FILE_SYSTEM_TOO_SMALL, NO_FILE_SYSTEM_SIZE, WOULD_EVICT};
use crate::pair::tally::ErrorKind;
use crate::pair::version::age_of;

/// A complete, valid pair that has not expired.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub key: PairKey,
    pub expires_at: DateTime<Utc>,
    pub size: DiskSize,
}

impl Candidate {
    /// Returns whether the pair can be evicted: its result is old enough, and its removal frees space.
    fn is_evictable(&self, budget: &Budget, now: DateTime<Utc>) -> bool {
        self.size.blocks > 0
            && age_of(self.size.ctime, now).is_some_and(|age| age >= budget.min_age)
    }
}

/// The pairs that a scan has found and that have not expired, and what the others take.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pairs: Vec<Candidate>,
    /// What expired pairs take that were not deleted because the context only inspects, in bytes.
    due: u64,
    /// What expired pairs take whose deletion failed.
    stuck: u64,
}

impl Candidates {
    pub(super) fn add_waiting(&mut self, found: Waiting) {
        let Waiting { dir, pairs, sizes } = found;
        let candidate = |((stem, expires_at), size)| {
            let key = PairKey { dir: Arc::clone(&dir), stem };
            Candidate { key, expires_at, size }
        };
        self.pairs.extend(pairs.into_iter().zip(sizes).map(candidate));
    }

    pub(super) fn add(&mut self, key: PairKey, expires_at: DateTime<Utc>, size: Option<DiskSize>) {
        self.pairs.extend(size.map(|size| Candidate { key, expires_at, size }));
    }

    /// Adds the pair of an outcome if that says that the pair has not expired, or has and was not deleted.
    pub(super) fn add_outcome(&mut self, key: &PairKey, outcome: &Outcome) {
        match *outcome {
            Outcome::NotDue { expires_at, size, .. } => self.add(key.clone(), expires_at, size),
            Outcome::Due { size, .. } => self.add_due(size),
            _ => {}
        }
    }

    /// Adds an expired pair, which goes before any other.
    pub(super) fn add_due(&mut self, size: Option<DiskSize>) {
        self.due += size.map_or(0, DiskSize::bytes);
    }

    /// Adds an expired pair that could not be deleted, and so goes on taking its space.
    pub(super) fn add_stuck(&mut self, root: &Root, key: &PairKey) {
        let size = || -> std::io::Result<u64> {
            let dir = root.open_dir(&key.dir)?;
            let halves =
                [Half::Result, Half::Metadata].map(|half| stat_file(&dir, &key.stem.name(half)));
            let [result, metadata] = halves;
            let blocks = metadata?.map_or(0, |metadata| metadata.blocks);
            Ok(result?.map_or(0, |result| DiskSize::of(&result, blocks).bytes()))
        };
        // What can't be inspected counts nothing.
        self.stuck += size().unwrap_or(0);
    }

    /// Returns what the pairs take that are not due or could not be deleted, in bytes.
    fn size(&self) -> u64 {
        self.stuck + self.pairs.iter().map(|candidate| candidate.size.bytes()).sum::<u64>()
    }

    /// Returns the pairs that can be evicted, in the order in which they go; and what is too young.
    pub(super) fn in_order(&self, budget: &Budget, now: DateTime<Utc>) -> (Vec<&Candidate>, Young) {
        let (mut evictable, others): (Vec<_>, Vec<_>) =
            self.pairs.iter().partition(|candidate| candidate.is_evictable(budget, now));
        evictable.sort_by(|a, b| {
            let (a_key, b_key) = (&a.key, &b.key);
            eviction_order(
                (a.expires_at, &a_key.dir, &a_key.stem),
                (b.expires_at, &b_key.dir, &b_key.stem),
            )
        });
        let young = others.iter().filter(|candidate| candidate.size.blocks > 0);
        let young = young.fold(Young::default(), |young, candidate| Young {
            pairs: young.pairs + 1,
            bytes: young.bytes + candidate.size.bytes(),
        });
        (evictable, young)
    }

    /// Returns how many pairs in [this order](Self::in_order) would go, after the expired ones, and what would be
    /// left.
    ///
    /// # Errors
    /// If the free space has to be known and can't be read.
    pub(super) fn beyond(
        &self,
        budget: &Budget,
        root: &Root,
        in_order: &[&Candidate],
    ) -> std::io::Result<Beyond> {
        let (mut size, mut evicting) = (self.size(), Evicting::default());
        let mut space = space(budget, root)?;
        space.free = space.free.saturating_add(self.due);
        let mut count = 0;
        for candidate in in_order {
            let excesses = [budget.size_excess(size), budget.free_excess(space)];
            if evicting.needed(excesses, false) == 0 {
                break;
            }
            count += 1;
            size -= candidate.size.bytes();
            space.free = space.free.saturating_add(candidate.size.bytes());
        }
        Ok(Beyond { count, size, space })
    }
}

/// What a disk budget would evict.
pub(super) struct Beyond {
    /// How many pairs.
    pub count: usize,
    /// What all pairs would take then, in bytes.
    size: u64,
    space: FreeSpace,
}

/// Reads the free space, if there is a limit for it.
fn space(budget: &Budget, root: &Root) -> std::io::Result<FreeSpace> {
    match budget.min_free {
        Some(_) => free_space(root),
        None => Ok(FreeSpace { free: 0, total: 0 }),
    }
}

/// Evicts pairs until the limits are kept, or would do so if the context only inspects.
pub(super) fn evict(
    root: &Root,
    context: &JobContext,
    budget: &Budget,
    candidates: &Candidates,
    state: &mut SweepState,
) {
    let done = if context.deletes() {
        Eviction::new(root, context, budget, candidates).run(state)
    } else {
        dry_run(root, context, budget, candidates, state)
    };
    if let Err(error) = done {
        let message = "can't read the free space of the file system, nothing more is evicted";
        state.error(ErrorKind::Directory, std::path::Path::new(""), message, &error);
    }
}

fn dry_run(
    root: &Root,
    context: &JobContext,
    budget: &Budget,
    candidates: &Candidates,
    state: &mut SweepState,
) -> std::io::Result<()> {
    let (in_order, young) = candidates.in_order(budget, context.clock().wall());
    let Beyond { count, size, space } = candidates.beyond(budget, root, &in_order)?;
    check_file_system(root, budget, space);
    for candidate in &in_order[..count] {
        let Candidate { key, size, .. } = candidate;
        let path = path_field(&result_path(root, &key.dir, &key.stem));
        tracing::debug!(path, "{WOULD_EVICT}");
        state.tally.evicted += 1;
        state.tally.evicted_bytes += size.bytes();
    }
    if budget.size_excess(size).is_over || budget.free_excess(space).is_over {
        log_shortfall(root, budget, size, space, young);
    }
    Ok(())
}

/// Logs that the budget can't be kept on this file system.
fn check_file_system(root: &Root, budget: &Budget, space: FreeSpace) {
    let path = path_field(root.path());
    match budget.min_free {
        Some(_) if space.total == 0 => tracing::warn!(path, "{NO_FILE_SYSTEM_SIZE}"),
        Some(_) if budget.is_too_large_for(space) => {
            tracing::error!(path, file_system_bytes = space.total, "{FILE_SYSTEM_TOO_SMALL}");
        }
        _ => {}
    }
}

/// Logs that a limit is exceeded and nothing more can be evicted, and what takes the space.
fn log_shortfall(root: &Root, budget: &Budget, size: u64, space: FreeSpace, young: Young) {
    let space = budget.min_free.map(|_| space);
    let shortfall = Shortfall { size, space, young, min_age: budget.min_age };
    occupancy(root, &AtomicBool::new(false)).log(&shortfall);
}

struct Eviction<'a> {
    root: &'a Root,
    context: &'a JobContext,
    budget: &'a Budget,
    /// The pairs that can be evicted, in their order, and the next of them.
    in_order: Vec<&'a Candidate>,
    next: usize,
    young: Young,
    /// What all pairs take on disk.
    size: u64,
    /// What was evicted and does not show as free.
    hidden: u64,
    evicting: Evicting,
}

impl<'a> Eviction<'a> {
    fn new(
        root: &'a Root,
        context: &'a JobContext,
        budget: &'a Budget,
        candidates: &'a Candidates,
    ) -> Self {
        let (in_order, young) = candidates.in_order(budget, context.clock().wall());
        let (size, evicting) = (candidates.size(), Evicting::default());
        Self { root, context, budget, in_order, next: 0, young, size, hidden: 0, evicting }
    }

    fn run(mut self, state: &mut SweepState) -> std::io::Result<()> {
        let mut space = space(self.budget, self.root)?;
        check_file_system(self.root, self.budget, space);
        loop {
            let free = space.free.saturating_add(self.hidden);
            let excesses = [
                self.budget.size_excess(self.size),
                self.budget.free_excess(FreeSpace { free, ..space }),
            ];
            let needed = self.evicting.needed(excesses, false);
            if needed == 0 {
                return Ok(());
            }
            let batch = self.next_batch(needed);
            if batch.is_empty() {
                if excesses.iter().any(|excess| excess.is_over) {
                    log_shortfall(self.root, self.budget, self.size, space, self.young);
                }
                return Ok(());
            }
            space = self.evict(&batch, space, state)?;
        }
    }

    /// The pairs that go first, until these take the `needed` bytes.
    fn next_batch(&mut self, mut needed: u64) -> Vec<&'a Candidate> {
        let mut batch = Vec::new();
        while needed > 0
            && batch.len() < EVICTION_BATCH
            && let Some(candidate) = self.in_order.get(self.next)
        {
            self.next += 1;
            needed = needed.saturating_sub(candidate.size.bytes());
            batch.push(*candidate);
        }
        batch
    }

    /// Evicts one batch. Returns the free space after that.
    fn evict(
        &mut self,
        batch: &[&Candidate],
        before: FreeSpace,
        state: &mut SweepState,
    ) -> std::io::Result<FreeSpace> {
        let mut jobs: Vec<Job> = batch.iter().map(|candidate| self.job(candidate)).collect();
        sort_by_directory(&mut jobs);
        let mut processor = PairProcessor::new(self.context, self.root);
        processor.process_jobs(&jobs, &AtomicBool::new(false));
        processor.finish();
        let mut freed = 0;
        for found in processor.take_found() {
            let size = batch.iter().find(|candidate| candidate.key == found.key);
            let size = size.map_or(0, |candidate| candidate.size.bytes());
            // A pair that another cleaner has claimed is about to go.
            let is_kept = matches!(
                found.outcome,
                Outcome::NotDue { .. }
                    | Outcome::Changed
                    | Outcome::Failed(_)
                    | Outcome::RestoreFailed(_)
            );
            self.size = self.size.saturating_sub(if is_kept { 0 } else { size });
            if let Outcome::Evicted { freed: bytes, .. } = found.outcome {
                freed += bytes;
            }
            state.add(found, None);
        }
        let after = space(self.budget, self.root)?;
        self.hidden += freed.saturating_sub(after.free.saturating_sub(before.free));
        Ok(after)
    }

    fn job(&self, candidate: &Candidate) -> Job {
        let Candidate { key, expires_at, .. } = candidate;
        let min_age = self.budget.min_age;
        let chosen = Chosen { expires_at: *expires_at, min_age, future: None };
        Job { key: key.clone(), settled: None, evict: Some(chosen) }
    }
}
