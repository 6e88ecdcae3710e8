//! What the cleaner finds on the simulated disk, and does there.

use std::io;
use std::path::Path;
use std::time::Duration;

use chrono::TimeDelta;

use super::Chance;
use super::disk::{DirId, Disk, FROM, Halves, Metadata, REASON, TO};
use crate::pair::disk_budget::{BLOCK, Chosen};
use crate::pair::name::Half;
use crate::pair::outcome::{Failure, Outcome};
use crate::pair::tally::ErrorKind;
use crate::pair::version::{FileState, SETTLE_TIME, Version};

pub(super) fn error() -> io::Error {
    io::Error::from_raw_os_error(13)
}

fn failure() -> Failure {
    Failure::new(ErrorKind::Deletion, "do it", &error())
}

impl Disk {
    /// Kills the cleaner: some of the pairs that it was deleting keep reserved names.
    pub fn crash(&mut self, chance: &mut dyn Chance) {
        let wall = self.now.wall;
        for halves in self.dirs.values_mut().flat_map(|dir| dir.pairs.values_mut()) {
            let is_due = matches!(halves.metadata, Some(Metadata::Valid(at)) if at <= wall);
            let is_evicted = self.has_budget && matches!(halves.metadata, Some(Metadata::Valid(_)));
            if (is_due || is_evicted) && halves.claimed == (None, None) && chance.one_in(2) {
                halves.claimed.0 = halves.result.take();
                if halves.claimed.0.is_some() && chance.one_in(2) {
                    halves.claimed.1 = halves.metadata.take();
                    // The result is unlinked before the metadata.
                    halves.claimed.0 = halves.claimed.0.filter(|_| chance.one_in(2));
                }
            }
        }
    }

    /// Recovers the claims in a directory. Returns the pairs that this changed, and those whose deletion it
    /// finished; `None` if another cleaner works there.
    pub fn recover(&mut self, dir: DirId) -> Option<(Vec<u8>, Vec<u8>)> {
        let directory = &self.dirs[&dir];
        if directory.is_locked {
            return None;
        }
        let claimed = |halves: &Halves| halves.claimed != (None, None);
        let stems: Vec<u8> = directory
            .pairs
            .iter()
            .filter(|(_, halves)| claimed(halves))
            .map(|(stem, _)| *stem)
            .collect();
        let mut finished = Vec::new();
        for &stem in &stems {
            let version = self.version();
            let (restored, now) = (self.changed_result(version), self.now);
            let halves = self.halves(dir, stem);
            let (result, metadata) = std::mem::take(&mut halves.claimed);
            let is_due = matches!(metadata, Some(Metadata::Valid(at)) if at <= now.wall);
            let is_whole = result.is_some() || metadata.is_none();
            if (is_due || !is_whole) && halves.result.is_none() && halves.metadata.is_none() {
                finished.extend(result.map(|_| stem));
                continue;
            }
            halves.metadata = halves.metadata.or(metadata);
            let restored = result.map(|_| restored);
            halves.result = halves.result.or(restored);
            self.emit(dir, stem, Half::Metadata, &[TO]);
            self.emit(dir, stem, Half::Result, &[TO]);
        }
        Some((stems, finished))
    }

    /// Inspects a pair in a directory that was opened as `rel`, and deletes the pair if it is due.
    pub fn process(
        &mut self,
        dir: DirId,
        rel: &Path,
        stem: u8,
        job: (Option<FileState>, Option<Chosen>),
        chance: &mut dyn Chance,
    ) -> Outcome {
        let (settled, chosen) = job;
        if !self.dirs.contains_key(&dir) {
            return Outcome::Incomplete;
        }
        if !self.can_read(dir) || chance.one_in(80) {
            return Outcome::Failed(failure());
        }
        let Halves { result, metadata, claimed } = *self.halves(dir, stem);
        let (Some(result), Some(metadata)) = (result, metadata) else {
            let is_claimed = result.is_none() && claimed.0.is_some();
            return if is_claimed { Outcome::ClaimedElsewhere } else { Outcome::Incomplete };
        };
        let expires_at = match metadata {
            Metadata::Valid(at) => at,
            Metadata::Broken(version) | Metadata::HalfWritten(version) => {
                let wait = Duration::from_secs(chance.below(2) as u64);
                let metadata = FileState::pretended(version);
                return Outcome::Broken { metadata, reason: REASON, wait, bytes: 1 };
            }
        };
        let is_due = expires_at <= self.now.wall;
        let seen = FileState::pretended(result.version).changed_at(result.ctime);
        let is_chosen = chosen.is_some_and(|chosen| {
            let is_settled = !result.is_newer || seen.settles_in(self.now.wall).is_zero();
            chosen.expires_at == expires_at
                && result.disk_size().blocks > 0
                && chosen.is_old_enough(&seen, self.now.wall)
                && (is_settled || chosen.future == Some(result.ctime))
        });
        if !is_due && !is_chosen {
            let size = self.has_budget.then(|| result.disk_size());
            return Outcome::NotDue { expires_at, bytes: None, size };
        }
        let wait = SETTLE_TIME.saturating_sub(self.now.mono - result.changed);
        if is_due && result.is_newer && !wait.is_zero() && settled != Some(seen) {
            return Outcome::Unsettled { result: seen, wait, expires_at, bytes: 1 };
        }
        if claimed.0.is_some() {
            return Outcome::ClaimedElsewhere;
        }
        if self.rel(dir).as_deref() != Some(rel) {
            return Outcome::Incomplete;
        }
        let outcome = self.delete(dir, stem, seen.version, chance);
        match outcome {
            Outcome::Deleted { leftover, .. } if !is_due => {
                let freed = result.disk_size().bytes();
                if self.frees_late {
                    let until = self.now.mono + Duration::from_secs(chance.below(90) as u64);
                    self.hidden.push((until, freed / BLOCK));
                }
                Outcome::Evicted { freed, leftover, expires_at }
            }
            outcome => outcome,
        }
    }

    /// Deletes a pair whose result has this `version`.
    fn delete(
        &mut self,
        dir: DirId,
        stem: u8,
        version: Version,
        chance: &mut dyn Chance,
    ) -> Outcome {
        let mut leftover = None;
        match chance.below(30) {
            20..22 => return Outcome::Changed,
            22..24 => return Outcome::Failed(failure().of_result(version)),
            24 | 25 => {
                let halves = self.halves(dir, stem);
                halves.claimed.0 = halves.result.take();
                self.emit(dir, stem, Half::Result, &[FROM]);
                return Outcome::RestoreFailed(failure().of_result(version));
            }
            26 | 27 => {
                // Another cleaner was faster.
                self.delete_halves(dir, stem, true);
                return Outcome::ClaimedElsewhere;
            }
            28 => {
                self.delete_halves(dir, stem, false);
                leftover = Some(failure());
            }
            _ => self.delete_halves(dir, stem, true),
        }
        Outcome::Deleted { freed: 1, leftover, late: TimeDelta::zero() }
    }

    fn delete_halves(&mut self, dir: DirId, stem: u8, both: bool) {
        self.halves(dir, stem).result = None;
        self.emit(dir, stem, Half::Result, &[FROM]);
        if both {
            self.halves(dir, stem).metadata = None;
            self.emit(dir, stem, Half::Metadata, &[FROM]);
        }
    }
}
