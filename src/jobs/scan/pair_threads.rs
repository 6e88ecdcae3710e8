//! The threads of a scan that process the pairs that do not simply wait, and delete those that are due.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::{Scan, cores};
use crate::disk::root::Dir;
use crate::jobs::pairs::{Hint, PairProcessor};
use crate::pair::name::Stem;
use crate::pair::outcome::ScanFound;

/// How many batches may wait to be processed.
const MAX_QUEUED: usize = 4;

/// Pairs of one directory to process.
pub(in crate::jobs) struct Batch {
    pub(in crate::jobs) dir: Arc<Dir>,
    pub(in crate::jobs) pairs: Vec<(Stem, Hint)>,
}

/// Threads that process pairs. They are confined if the sandbox is on.
pub(super) struct PairThreads<'scope, 'scan> {
    scan: &'scan Scan<'scan>,
    scope: &'scope Scope<'scope, 'scan>,
    batches: Sender<Batch>,
    queue: Receiver<Batch>,
    count: AtomicUsize,
    max_threads: usize,
}

impl<'scope, 'scan: 'scope> PairThreads<'scope, 'scan> {
    pub(super) fn new(scan: &'scan Scan<'scan>, scope: &'scope Scope<'scope, 'scan>) -> Self {
        let (batches, queue) = crossbeam_channel::bounded(MAX_QUEUED);
        Self { scan, scope, batches, queue, count: AtomicUsize::new(0), max_threads: cores() }
    }

    /// Hands a batch to the threads, and starts another one if they are busy.
    pub(super) fn process(&self, batch: Batch) {
        if !self.scan.context.deletes() {
            return self.scan.process_here(batch);
        }
        let waits = !self.queue.is_empty();
        let refused = match self.batches.try_send(batch) {
            Ok(()) => None,
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => Some(batch),
        };
        let grow = |count| ((count == 0 || waits) && count < self.max_threads).then_some(count + 1);
        if self.count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, grow).is_ok() {
            let (scan, queue) = (self.scan, DrainedAtPanic(self.queue.clone()));
            let work = move || {
                scan.context.confine(scan.root);
                scan.process_batches(&queue.0);
            };
            if thread::Builder::new().spawn_scoped(self.scope, work).is_err() {
                self.count.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let has_threads = || self.count.load(Ordering::SeqCst) > 0;
        if let Some(batch) = refused {
            if has_threads() {
                // Blocks until a thread takes a batch, or one that could not start another thread does the work.
                let _ = self.batches.send(batch);
            } else {
                self.scan.process_here(batch);
            }
        }
        if !has_threads() {
            // The system has no thread to spare: this thread does the work.
            self.queue.try_iter().for_each(|batch| self.scan.process_here(batch));
        }
    }
}

/// A queue that goes on being emptied when its thread panics, so that no reader waits for ever to add to it. The
/// scan then ends with that panic.
struct DrainedAtPanic(Receiver<Batch>);

impl Drop for DrainedAtPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.iter().for_each(drop);
        }
    }
}

impl Scan<'_> {
    fn processor(&self) -> PairProcessor<'_> {
        PairProcessor::new(self.context, self.root).watched_by(self.watcher)
    }

    /// Processes batches until there are no more.
    fn process_batches(&self, queue: &Receiver<Batch>) {
        let mut processor = self.processor();
        loop {
            let next = match processor.next() {
                Some(until) => queue.recv_deadline(until),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(batch) => self.process_batch(&mut processor, batch),
                Err(RecvTimeoutError::Timeout) => processor.finish_due(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.hand_over(&mut processor);
        }
        processor.finish();
        self.hand_over(&mut processor);
    }

    /// Processes a batch on this thread.
    pub(in crate::jobs) fn process_here(&self, batch: Batch) {
        let mut processor = self.processor();
        self.process_batch(&mut processor, batch);
        processor.finish();
        self.hand_over(&mut processor);
    }

    fn process_batch(&self, processor: &mut PairProcessor<'_>, batch: Batch) {
        for (stem, hint) in batch.pairs {
            processor.rest(self.cancel);
            if self.cancelled() {
                return;
            }
            processor.process(&batch.dir, &stem, hint);
        }
    }

    fn hand_over(&self, processor: &mut PairProcessor<'_>) {
        let found = ScanFound { others: processor.take_found(), ..ScanFound::default() };
        // The claims of a batch may all be held still.
        if !found.is_empty() {
            (self.found)(found);
        }
    }
}
