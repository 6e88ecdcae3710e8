//! What has to hold in the simulated world: what was counted, and how all is at rest.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::World;
use super::disk::{self, CACHE, Metadata, RootIs, key};
use crate::pair::change::WatchState;
use crate::pair::name::PairKey;
use crate::pair::outcome::{Outcome, Waiting};
use crate::pair::tally::Tally;
use crate::schedule::command::{CountedError, Notice};
use crate::schedule::input::{Completion, Generation};

/// What the core has asked for and what has come of it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub deleted: u64,
    pub counted: u64,
    pub evicted: u64,
    pub counted_evicted: u64,
    /// How often the core has asked what takes the space.
    pub measurements: u64,
    /// Errors that were counted, those that were reported, and those of stale outcomes, which are not.
    pub errors: u64,
    /// Deletions and errors that belong to a sweep, or are reported as outside of sweeps.
    in_reports: (u64, u64),
    reported: u64,
    stale: u64,
    /// Versions of broken metadata that were reported.
    broken: u64,
    /// Versions that were seen, and those that existed at rest, each with the generation that saw it.
    broken_seen: HashSet<(Generation, u64)>,
    broken_at_rest: HashSet<(Generation, u64)>,
    pub sweeps: u64,
    pub rewatches: u64,
}

impl Ledger {
    pub fn add_reported(&mut self, tally: Tally) {
        self.in_reports.0 += tally.deleted;
        self.in_reports.1 += tally.errors.total();
    }
}

impl World {
    /// Records what a completion has to be counted as.
    pub(super) fn record(&mut self, generation: Generation, completion: &Completion) {
        let is_stale = generation != self.generation;
        let is_job = matches!(completion, Completion::Jobs { .. } | Completion::Claims { .. });
        for found in completion.outcomes() {
            if is_job && !is_stale {
                assert!(self.in_flight.remove(&found.key), "{:?} was not asked for", found.key);
            }
            let errors = found.outcome.tally().errors.total();
            self.ledger.stale += if is_stale { errors } else { 0 };
            self.ledger.deleted += found.outcome.tally().deleted;
            self.ledger.evicted += found.outcome.tally().evicted;
            if let Outcome::NotDue { .. } = found.outcome {
                self.learned.insert(found.key.clone(), self.disk.now.mono);
            }
            if let Outcome::Broken { metadata, .. } = &found.outcome {
                self.ledger.broken_seen.insert((generation, metadata.version.ino));
            }
        }
        if let Completion::ScanBatch { found, .. } = completion {
            for Waiting { dir, pairs, .. } in &found.waiting {
                for (stem, _) in pairs {
                    let key = PairKey { dir: Arc::clone(dir), stem: stem.clone() };
                    self.learned.insert(key, self.disk.now.mono);
                }
            }
        }
        if let Completion::ScanEnded { id, .. } = completion
            && !is_stale
        {
            self.scans.retain(|running| running != id);
        }
    }

    pub(super) fn report(&mut self, notice: &Notice) {
        match notice {
            Notice::Error(_, error) => {
                self.ledger.reported += 1;
                self.ledger.broken += u64::from(matches!(error, CountedError::InvalidMetadata(_)));
            }
            Notice::RootUnreadable(_) => self.ledger.reported += 1,
            _ => {}
        }
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.inbox.is_empty()
            && self.requests.is_empty()
            && self.core.watch_state() == WatchState::Active
            && self.core.is_at_rest(self.disk.now)
    }

    /// Checks that disk and core are as a polling cleaner would have left them.
    pub(super) fn assert_equals_polling(&mut self) {
        assert_eq!(self.disk.root, RootIs::There);
        assert!(self.disk.dirs.contains_key(&CACHE) && self.in_flight.is_empty());
        let (mut expected, mut size) = (BTreeMap::new(), 0);
        for (_, rel, stem, halves) in self.disk.pairs() {
            let shown = (&rel, stem);
            assert_eq!(halves.claimed, (None, None), "{shown:?} was not recovered");
            match halves.metadata.filter(|_| halves.result.is_some()) {
                Some(Metadata::Valid(at)) => {
                    assert!(at > self.disk.now.wall, "{shown:?} should have been deleted");
                    expected.insert(shown_key(&key(&rel, stem)), at);
                    size += halves.result.unwrap().disk_size().bytes();
                }
                // The event of a writer that closes its file may be lost with the watch of a directory that is being
                // moved. The next sweep counts its metadata.
                Some(Metadata::Broken(_)) if self.core.awaits_writer(&key(&rel, stem)) => {}
                Some(Metadata::Broken(version)) => {
                    self.ledger.broken_at_rest.insert((self.generation, version));
                }
                Some(Metadata::HalfWritten(_)) => panic!("nobody writes any more"),
                None => {}
            }
        }
        let heap: BTreeMap<_, DateTime<Utc>> =
            self.core.waiting().map(|(key, at)| (shown_key(&key), at)).collect();
        assert_eq!(heap, expected);
        assert_eq!(self.core.heap_size(), expected.len());
        assert_eq!(self.core.next_expiry(), expected.values().min().copied());
        self.assert_budget_is_kept(size);
        self.assert_all_is_reported();
        let broken = self.ledger.broken;
        let least = self.ledger.broken_at_rest.len() as u64;
        let most = self.ledger.broken_seen.len() as u64;
        assert!(
            (least..=most).contains(&broken),
            "{broken} broken versions, not {least} to {most}: {:?}",
            self.core
        );
    }

    /// Checks that the core knows the size of all pairs, and that a limit is exceeded only where nothing can be evicted.
    fn assert_budget_is_kept(&mut self, size: u64) {
        let Some(budget) = self.budget else { return };
        assert_eq!(self.core.size_bytes(), Some(size));
        let now = self.disk.now;
        let evictable = self.core.evictable_before(DateTime::<Utc>::MAX_UTC, now);
        let is_over = budget.size_excess(size).is_over && !self.core.evicts_soon(now);
        assert!(
            !is_over || evictable.is_empty(),
            "{evictable:?} should have been evicted: {:?}",
            self.core
        );
        if !self.disk.frees_late {
            let space = self.disk.space();
            let waits = self.core.waits_for_space(space) || self.core.evicts_soon(now);
            let is_low = budget.free_excess(space).is_over && !waits;
            assert!(
                !is_low || evictable.is_empty(),
                "{evictable:?} should have been evicted, with {space:?}: {:?}",
                self.core
            );
        }
    }

    /// Checks that each deletion and each error was counted and reported once.
    pub(super) fn assert_all_is_reported(&self) {
        let Ledger { deleted, counted, errors, reported, stale, in_reports, .. } = self.ledger;
        let Ledger { evicted, counted_evicted, .. } = self.ledger;
        assert_eq!(counted_evicted, evicted, "evictions are not counted once");
        assert_eq!(in_reports, (counted, errors), "reports and totals differ");
        assert_eq!(counted, deleted, "deletions are not counted once");
        assert_eq!(errors, reported + stale, "errors are not reported once");
    }
}

pub(super) fn shown_key(key: &PairKey) -> (PathBuf, u8) {
    (key.dir.to_path_buf(), disk::stem_of(key))
}
