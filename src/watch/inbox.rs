//! The inbox in which changes wait for the worker.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::backpressure::Backpressure;
use super::floods::Floods;
use crate::pair::change::{Change, Changes, WriteState};

/// Where producers push changes, and the worker drains them.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    changes: Mutex<Changes>,
    arrivals: Notify,
    /// Whether directories that may have orphans are to be reported.
    pub wants_orphans: bool,
    /// Counts the events of the cleaner's own deletions, which are no changes.
    pub backpressure: Arc<Backpressure>,
    /// The directories with more events than the reader can handle.
    pub floods: Floods,
    /// How often the kernel's queue of events was full.
    pub overflows: AtomicU64,
    /// How many threads read events, including retired ones that wait for a flood to end.
    pub readers: Arc<AtomicUsize>,
}

impl Inbox {
    pub(crate) fn new(wants_orphans: bool) -> Self {
        Self { wants_orphans, ..Self::default() }
    }

    pub(crate) fn push(&self, change: Change) {
        let first = {
            let mut changes = self.lock();
            let first = changes.is_empty();
            changes.add(change);
            first
        };
        if first {
            self.arrivals.notify_one();
        }
    }

    pub(crate) fn drain(&self) -> Changes {
        std::mem::take(&mut *self.lock())
    }

    /// Returns whether events were lost, and resets that. Leaves all other changes.
    pub(crate) fn take_events_lost(&self) -> bool {
        std::mem::take(&mut self.lock().events_lost)
    }

    /// Records that a new watcher reports events from now on, and that a sweep makes up for those that were
    /// lost. The events of a writer after its last one here may be among them.
    pub(crate) fn rewatched(&self) {
        let mut changes = self.lock();
        changes.events_lost = false;
        for trigger in changes.pairs.values_mut() {
            trigger.writer = WriteState::Unknown;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns once changes have arrived since the inbox was last drained.
    pub(crate) async fn notified(&self) {
        self.arrivals.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pair::change::{MAX_PENDING, Trigger};
    use crate::pair::name::{PairKey, Stem};

    fn key(number: usize) -> PairKey {
        PairKey { dir: Path::new("d").into(), stem: Stem::new(number.to_string().as_bytes()) }
    }

    #[test]
    fn changes_of_one_pair_are_merged_and_the_last_state_of_its_writer_counts() {
        let inbox = Inbox::default();
        for (appeared, writer) in [
            (true, WriteState::Writing),
            (true, WriteState::Closed),
            (true, WriteState::Writing),
            (false, WriteState::Unknown),
        ] {
            inbox.push(Change::Pair(key(1), Trigger { appeared, writer }));
        }
        let changes = inbox.drain();
        assert_eq!(changes.pairs[&key(1)], Trigger { appeared: true, writer: WriteState::Writing });
        assert!(inbox.drain().is_empty());
    }

    #[test]
    fn what_does_not_fit_is_kept_by_directory_and_at_last_as_lost_events() {
        let inbox = Inbox::default();
        for number in 0..=MAX_PENDING {
            inbox.push(Change::Pair(key(number), Trigger::default()));
        }
        inbox.push(Change::Pair(key(0), Trigger::default()));
        let dir = Arc::clone(&key(0).dir);
        let changes = inbox.drain();
        assert_eq!(
            (changes.pairs.len(), changes.alone, changes.events_lost),
            (MAX_PENDING, [dir].into(), false)
        );
        for number in 0..=MAX_PENDING {
            inbox.push(Change::Subtree(Path::new(&number.to_string()).into()));
        }
        let changes = inbox.drain();
        assert_eq!((changes.subtrees.len(), changes.events_lost), (MAX_PENDING, true));
    }
}
