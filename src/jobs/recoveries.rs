//! Recovers claims that a scan has found.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::context::result_path;
use super::pairs::Hint;
use super::scan::{Batch, Scan};
use crate::disk::root::{is_not_ours, is_unrelated};
use crate::display::path_field;
use crate::pair::name::PairKey;
use crate::pair::outcome::{JobResult, Outcome, ScanFound, Summary};
use crate::remove::{Finished, Recovery, recover};

/// If errors kept more directories than this from being read, the whole cache directory is scanned again
/// instead of each of them.
const MAX_RESCANS: usize = 64;
/// How long a scan waits for the owners of claims before it leaves the claims alone.
const OWNERS_PATIENCE: Duration = Duration::from_millis(500);

impl Summary {
    /// Requests another scan of `rel` if `error` says nothing about it.
    pub(super) fn scan_again(&mut self, rel: &Arc<Path>, error: &io::Error) {
        if !is_unrelated(error) {
            return;
        }
        let rel = if self.recoveries.len() < MAX_RESCANS { rel } else { &Path::new("").into() };
        if !self.recoveries.contains(rel) {
            self.recoveries.push(Arc::clone(rel));
        }
    }
}

impl Scan<'_> {
    /// Recovers the claims that killed cleaners left behind.
    pub(super) fn recover_claims(
        &self,
        claims: Vec<(Arc<Path>, Vec<Vec<u8>>)>,
        summary: &mut Summary,
    ) {
        let deadline = Instant::now() + OWNERS_PATIENCE;
        for (rel, names) in claims {
            if self.cancelled() {
                return;
            }
            match self.recover_in(&rel, &names, deadline) {
                Ok(recovery) => self.recovered(rel, recovery, summary),
                Err(error) => self.not_recovered(rel, error, summary),
            }
        }
    }

    /// Records that a directory with claims can't be opened or locked.
    fn not_recovered(&self, rel: Arc<Path>, error: io::Error, summary: &mut Summary) {
        if is_not_ours(&error) {
            return;
        }
        summary.scan_again(&rel, &error);
        summary.not_recovered.push((rel.to_path_buf(), error));
    }

    fn recover_in(
        &self,
        rel: &Arc<Path>,
        names: &[Vec<u8>],
        deadline: Instant,
    ) -> io::Result<Recovery> {
        loop {
            let now = self.context.clock().wall();
            let recovery = recover(self.root, rel, names, now, &|| self.cancelled())?;
            if !recovery.owned || self.cancelled() || Instant::now() >= deadline {
                return Ok(recovery);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn recovered(&self, rel: Arc<Path>, recovery: Recovery, summary: &mut Summary) {
        summary.results += recovery.results;
        let now = self.context.clock().wall();
        let mut found = ScanFound::default();
        for Finished { stem, expires_at, freed } in recovery.finished {
            tracing::debug!(
                path = path_field(&result_path(self.root, &rel, &stem)),
                "deleted an expired result, completing an interrupted deletion"
            );
            self.context.report_removed(self.root, &rel, &stem);
            let outcome = Outcome::Deleted { freed, leftover: None, late: now - expires_at };
            found.others.push(JobResult { key: PairKey { dir: Arc::clone(&rel), stem }, outcome });
        }
        if !found.is_empty() {
            (self.found)(found);
        }
        if recovery.owned {
            summary.recoveries.push(Arc::clone(&rel));
        }
        for (path, error) in recovery.failed {
            summary.scan_again(&rel, &error);
            summary.not_recovered.push((path, error));
        }
        match self.root.open_dir(&rel) {
            Ok(dir) => {
                let pairs = recovery.had_claims.into_iter().map(|stem| (stem, Hint::Nothing));
                let batch = Batch { dir: Arc::new(dir), pairs: pairs.collect() };
                self.process_here(batch);
            }
            Err(error) => self.not_recovered(rel, error, summary),
        }
    }
}
