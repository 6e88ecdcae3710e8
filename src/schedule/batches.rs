//! Batches of jobs, and how many run at once.

use std::collections::VecDeque;

use crate::pair::outcome::Job;

/// How many pairs of one kind one batch has at most. A batch up to the small size is not divided.
pub(super) const MAX_BATCH: usize = 1024;
pub(crate) const SMALL_BATCH: usize = 64;
/// How many batches of jobs run at once.
const MAX_RUNNING: usize = 2;
/// How many batches may still have claims to finish.
const MAX_HOLDING: usize = 16;

/// The batches that run.
#[derive(Debug, Default)]
pub(super) struct Slots {
    batches: usize,
    holding: usize,
}

impl Slots {
    /// Returns how many more batches can start.
    pub(super) fn free(&self) -> usize {
        (MAX_RUNNING - self.batches).min(MAX_HOLDING.saturating_sub(self.holding))
    }

    pub(super) fn are_taken(&self) -> bool {
        self.batches + self.holding > 0
    }

    /// Records that a batch starts.
    pub(super) fn batch_started(&mut self) {
        self.batches += 1;
    }

    /// Records that the jobs of a batch are done; it may still hold claims.
    pub(super) fn jobs_done(&mut self, holds: bool) {
        self.batches -= 1;
        self.holding += usize::from(holds);
    }

    /// Records that the claims of a batch are finished.
    pub(super) fn claims_done(&mut self) {
        self.holding -= 1;
    }
}

/// Cuts jobs that are sorted by directory into batches for `threads` threads. The jobs of one directory
/// stay together if they fit, because threads that delete in the same directory wait for each other.
pub(super) fn batches(mut jobs: Vec<Job>, threads: usize) -> VecDeque<Vec<Job>> {
    let size = jobs.len().div_ceil(threads.max(1)).clamp(SMALL_BATCH, MAX_BATCH);
    let mut batches = VecDeque::new();
    while jobs.len() > size {
        let dir = jobs[size].key.dir.as_os_str();
        let first_of_dir = jobs.partition_point(|job| job.key.dir.as_os_str() < dir);
        let rest = jobs.split_off(if first_of_dir == 0 { size } else { first_of_dir });
        batches.push_back(std::mem::replace(&mut jobs, rest));
    }
    batches.push_back(jobs);
    batches
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::pair::name::{PairKey, Stem};

    #[test]
    fn what_is_due_is_cut_into_batches_between_directories() {
        let sizes = |per_dir: &[usize], threads| -> Vec<usize> {
            let jobs = per_dir.iter().enumerate().flat_map(|(dir, &jobs)| {
                let dir: Arc<Path> = Path::new(&format!("{dir:02}")).into();
                let key = move |number: usize| PairKey {
                    dir: Arc::clone(&dir),
                    stem: Stem::new(number.to_string().as_bytes()),
                };
                (0..jobs).map(move |number| Job { key: key(number), settled: None, evict: None })
            });
            let jobs: Vec<Job> = jobs.collect();
            let batches = batches(jobs.clone(), threads);
            let again: Vec<_> = batches.iter().flatten().map(|job| job.key.clone()).collect();
            assert_eq!(again, jobs.into_iter().map(|job| job.key).collect::<Vec<_>>());
            batches.iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[10; 30], 2), [150, 150]);
        assert_eq!(sizes(&[100, 200], 2), [100, 150, 50]);
        assert_eq!(sizes(&[5, 5], 2), [10]);
        assert_eq!(sizes(&[100; 30], 1), [1000, 1000, 1000]);
        assert_eq!(sizes(&[2000], 1), [1024, 976]);
        assert_eq!(sizes(&[], 2), [0]);
    }
}
