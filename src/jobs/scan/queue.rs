//! The work that the threads of a scan share.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::listing::Listing;
use crate::disk::root::Dir;

/// Directories to list: their paths relative to the cache directory, and whether what is below them is to be
/// listed, too.
pub(super) type Pending = Vec<(Arc<Path>, bool)>;

/// A part of the pairs of a huge directory, which was listed before.
pub(super) struct Part {
    pub(super) dir: Arc<Dir>,
    pub(super) listing: Arc<Listing>,
    /// The numbers of the first pair and of the one after the last pair.
    pub(super) from: usize,
    pub(super) to: usize,
}

/// What a thread does next.
pub(super) enum Work {
    Directories(Pending),
    Part(Part),
}

/// The work that is left. It ends when none is left and no thread can find more.
#[derive(Default)]
pub(super) struct WorkQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    dirs: Pending,
    parts: Vec<Part>,
    /// How many threads are working, and may add to the queue.
    working: usize,
    /// How many threads wait for work.
    idle: usize,
}

/// A thread's turn to work. Dropping it ends the turn, even after a panic.
pub(super) struct Turn<'a> {
    pub(super) work: Work,
    /// Whether there is work for another thread.
    pub(super) has_more: bool,
    queue: &'a WorkQueue,
}

impl WorkQueue {
    pub(super) fn new(dirs: Pending) -> Self {
        Self { state: Mutex::new(QueueState { dirs, ..QueueState::default() }), ..Self::default() }
    }

    /// Waits for work: a part, or up to `at_once` directories. Returns `None` once there is no more.
    pub(super) fn next(&self, at_once: usize) -> Option<Turn<'_>> {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.take(at_once) {
                state.working += 1;
                let has_more = state.has_unclaimed_work();
                return Some(Turn { work, has_more, queue: self });
            }
            if state.working == 0 {
                return None;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Takes a part, if there is one, for a thread whose turn it is.
    pub(super) fn take_part(&self) -> Option<Part> {
        self.lock().parts.pop()
    }

    /// Adds directories and parts. Returns whether no waiting thread can take them.
    pub(super) fn add(&self, dirs: impl Iterator<Item = Arc<Path>>, parts: Vec<Part>) -> bool {
        let mut state = self.lock();
        state.dirs.extend(dirs.map(|dir| (dir, true)));
        state.parts.extend(parts);
        if state.idle > 0 {
            self.changed.notify_all();
        }
        state.has_unclaimed_work()
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    /// Whether there is work that no waiting thread can take.
    fn has_unclaimed_work(&self) -> bool {
        self.idle == 0 && (!self.dirs.is_empty() || !self.parts.is_empty())
    }

    fn take(&mut self, at_once: usize) -> Option<Work> {
        // Parts first: their names fill memory.
        if let Some(part) = self.parts.pop() {
            return Some(Work::Part(part));
        }
        // The other threads need some, too.
        let share = self.dirs.len().div_ceil(self.working + self.idle + 1);
        let left = self.dirs.len() - share.min(at_once);
        let dirs = self.dirs.split_off(left);
        (!dirs.is_empty()).then_some(Work::Directories(dirs))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.working -= 1;
        if state.working == 0 {
            self.queue.changed.notify_all();
        }
    }
}
