//! The core: every decision of the worker. When to probe, to sweep, to scan, to watch anew, to process
//! pairs, and to wake up.
//!
//! The worker reports what has happened and carries out the commands that the core returns. Longer than other files: it
//! holds the whole state.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::batches::{MAX_BATCH, Slots, batches};
use super::cache_root::{Rewatch, RootState};
use super::command::{Command, Notice};
use super::disk_budget::DiskBudget;
use super::free_space::SpaceReadings;
use super::input::{Generation, Input, RequestId};
use super::lost_events::Flooded;
use super::orphans::OrphanSchedule;
use super::sweeps::Sweeps;
use super::{Bucket, ScanId, Schedule, Scope, SubtreeSet};
use crate::pair::change::{Changes, WatchError, WatchState};
use crate::pair::disk_budget::Budget;
#[cfg(any(fuzzing, test))]
use crate::pair::name::PairKey;
use crate::pair::outcome::Job;
use crate::pair::tally::Tally;
use crate::sys::clock::{Now, TICK};

/// How many due pairs are taken at once, to be sorted by directory.
const MAX_DUE: usize = 16_384;
/// How long changes gather before the core takes them in.
const CHANGES_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between two scans of some directories. The pause is as long as the last such scan, but no
/// shorter than [`CHANGES_PAUSE`].
const MAX_SCAN_PAUSE: Duration = Duration::from_millis(20);
/// How many pairs and directories with changes may wait. Beyond that, further changes stay in the inbox,
/// which merges them.
const MAX_BACKLOG: usize = 65_536;
/// How often to sweep while nothing is watched because of a flood.
const FLOOD_SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The intervals between full sweeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Intervals {
    pub check: Duration,
    /// The longest interval while the kernel does not report all changes.
    pub fallback: Duration,
}

/// The state of the worker, and its decisions.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) intervals: Intervals,
    pub(super) root: RootState,
    pub(super) generation: Generation,
    pub(super) schedule: Schedule,
    pub(super) disk_budget: Option<DiskBudget>,
    pub(super) space_readings: SpaceReadings,
    pub(super) slots: Slots,
    /// Batches that the schedule handed out as due and for which no thread was free.
    due: VecDeque<Vec<Job>>,
    pub(super) full_scan: Option<FullScan>,
    /// The running scan of some directories.
    pub(super) subtree_scan: Option<ScanId>,
    pub(super) orphans: OrphanSchedule,
    /// Whether a search for orphans is running.
    pub(super) is_searching_orphans: bool,
    pub(super) sweeps: Sweeps,
    /// Why some directories are not watched, as it was last reported.
    pub(super) refused: Option<WatchError>,
    pub(super) rewatch: Rewatch,
    pub(super) flooded: Flooded,
    next_tick: Instant,
    /// When to take in changes again, and when to scan directories again.
    next_changes: Instant,
    pub(super) rescan_after: Instant,
    pub(super) is_stopping: bool,
    commands: Vec<Command>,
}

/// A full scan that is running.
#[derive(Debug)]
pub(super) struct FullScan {
    pub id: ScanId,
    pub tally: Tally,
    pub requests: Vec<RequestId>,
    /// Whether another scan meanwhile could not watch a directory, which this scan may have passed
    /// already.
    pub refused_meanwhile: bool,
}

impl Core {
    /// Returns the state of a worker that knows nothing yet. It probes the cache directory at once.
    pub(crate) fn new(
        intervals: Intervals,
        budget: Option<Budget>,
        is_dry_run: bool,
        now: Instant,
    ) -> Self {
        Self {
            intervals,
            root: RootState::Unknown,
            generation: 0,
            schedule: Schedule::new(budget.as_ref(), is_dry_run, now),
            disk_budget: budget.map(DiskBudget::new),
            space_readings: SpaceReadings::new(now),
            slots: Slots::default(),
            due: VecDeque::new(),
            full_scan: None,
            subtree_scan: None,
            orphans: OrphanSchedule::default(),
            is_searching_orphans: false,
            sweeps: Sweeps::new(now),
            refused: None,
            rewatch: Rewatch::No,
            flooded: Flooded::new(now),
            next_tick: now,
            next_changes: now,
            rescan_after: now,
            is_stopping: false,
            commands: Vec::new(),
        }
    }

    /// Takes in what has happened, and returns what to do now.
    ///
    /// It has to be called again at [`Core::next_wake`], or earlier with more inputs.
    pub(crate) fn poll(
        &mut self,
        now: Now,
        inputs: impl IntoIterator<Item = Input>,
    ) -> Vec<Command> {
        for input in inputs {
            match input {
                Input::RootProbed(seen) => self.root_probed(seen, now),
                Input::Changes(changes) => self.apply_changes(changes, now),
                Input::EventsLost => self.events_lost(),
                Input::Floods { flooded, calm } => self.floods_changed(flooded, calm, now),
                Input::Sweep(request) => self.sweeps.request([request]),
                Input::Completed(generation, completion) => {
                    self.completed(generation, completion, now)
                }
                Input::FreeSpace(generation, space) => {
                    if generation == self.generation {
                        self.free_space_read(space, now);
                    }
                }
                Input::Stop => self.stop(),
            }
            let notices = self.schedule.take_notices();
            self.commands.extend(notices.into_iter().map(Command::Report));
        }
        if !self.is_stopping {
            self.start_work(now);
        }
        std::mem::take(&mut self.commands)
    }

    pub(super) fn command(&mut self, command: Command) {
        self.commands.push(command);
    }

    pub(super) fn report(&mut self, notice: Notice) {
        self.command(Command::Report(notice));
    }

    /// Counts work that belongs to no full sweep.
    pub(super) fn count_outside_sweeps(&mut self, tally: Tally) {
        self.command(Command::Count(tally));
        self.command(Command::CountOutsideSweeps(tally));
    }

    fn apply_changes(&mut self, mut changes: Changes, now: Now) {
        if !changes.is_empty() {
            self.next_changes = now.mono + CHANGES_PAUSE;
        }
        self.orphans.note(std::mem::take(&mut changes.orphans), now);
        if changes.events_lost {
            self.events_lost();
        }
        self.schedule.apply_changes(changes);
    }

    fn start_work(&mut self, now: Now) {
        if now.mono >= self.next_tick {
            self.next_tick = now.mono + TICK;
            self.command(Command::Tick);
        }
        if !self.can_work() {
            return self.answer_without_sweep();
        }
        self.read_free_space(now);
        // Changes and expiries may take all threads for long.
        self.evict(1, now);
        while self.slots.free() > 0 {
            let jobs = self.next_batch(now);
            if jobs.is_empty() {
                break;
            }
            self.slots.batch_started();
            self.command(Command::Process(jobs));
        }
        self.evict(usize::MAX, now);
        if self.full_scan.is_none() && self.sweeps.is_due(now.mono) {
            self.start_sweep();
        }
        if !self.is_searching_orphans {
            let (due, limit) = self.orphans.take_due(now);
            if !due.is_empty() {
                self.is_searching_orphans = true;
                self.command(Command::RemoveOrphans(due, limit));
            }
        }
        self.list_flooded(now);
        if self.subtree_scan.is_none() && now.mono >= self.rescan_after {
            let trees = self.schedule.take_rescans(now);
            if !trees.is_empty() {
                self.subtree_scan = Some(self.start_scan(Scope::Subtrees(trees)));
            }
        }
    }

    /// Starts a full sweep. If events were lost, a new watcher comes first: the sweep then sets its watches.
    fn start_sweep(&mut self) {
        match self.rewatch {
            Rewatch::No => {}
            Rewatch::Requested => return,
            Rewatch::Needed => {
                self.rewatch = Rewatch::Requested;
                return self.command(Command::Rewatch);
            }
        }
        let requests = self.sweeps.begin();
        let id = self.start_scan(Scope::Everything);
        let tally = Tally::default();
        self.full_scan = Some(FullScan { id, tally, requests, refused_meanwhile: false });
    }

    /// Returns pairs with changes, and some of the due pairs. A flood of one kind does not delay the
    /// other.
    fn next_batch(&mut self, now: Now) -> Vec<Job> {
        let mut batch = self.schedule.take_inspections(MAX_BATCH);
        if self.due.is_empty() {
            self.due = batches(self.schedule.take_due(now, MAX_DUE), self.slots.free());
        }
        batch.extend(self.due.pop_front().unwrap_or_default());
        batch
    }

    /// Whether pairs have expired that were not handed out yet.
    pub(super) fn has_due(&self, now: Now) -> bool {
        !self.due.is_empty() || self.next_expiry().is_some_and(|at| at <= now.wall)
    }

    fn start_scan(&mut self, scope: Scope) -> ScanId {
        let trees = match &scope {
            Scope::Everything => SubtreeSet::from_iter([Path::new("").into()]),
            Scope::Subtrees(trees) => trees.clone(),
        };
        let id = self.schedule.begin_scan(scope);
        self.command(Command::Scan(id, trees));
        id
    }

    /// Answers pending sweep requests if there is no directory to sweep.
    fn answer_without_sweep(&mut self) {
        // Before the first probe, the state of the cache directory is about to be known.
        if self.root != RootState::Unknown && self.sweeps.is_requested() {
            let requests = self.sweeps.take_requests();
            self.command(Command::NothingToSweep(requests));
        }
    }

    fn stop(&mut self) {
        self.is_stopping = true;
        if let Some(full) = &mut self.full_scan {
            let tally = std::mem::take(&mut full.tally);
            self.command(Command::CountOutsideSweeps(tally));
        }
    }

    /// Discards all state of the cache directory, because it was replaced or removed, or can't be read.
    pub(super) fn start_over(&mut self, now: Instant) {
        self.generation += 1;
        let budget = self.disk_budget.as_ref().map(|state| state.limits);
        self.schedule = Schedule::new(budget.as_ref(), self.schedule.is_dry_run(), now);
        self.disk_budget = budget.map(DiskBudget::new);
        self.space_readings = SpaceReadings::new(now);
        // Threads may be blocked in the old directory for as long as its file system does not answer.
        self.slots = Slots::default();
        self.due.clear();
        self.subtree_scan = None;
        self.orphans = OrphanSchedule::default();
        self.is_searching_orphans = false;
        self.refused = None;
        self.rewatch = Rewatch::No;
        self.flooded.clear();
        if let Some(full) = self.full_scan.take() {
            self.command(Command::CountOutsideSweeps(full.tally));
            // A requested sweep now covers the new directory.
            self.sweeps.request(full.requests);
        }
        self.command(Command::StartOver(self.generation));
    }

    /// Whether there is a cache directory to work on.
    pub(crate) fn can_work(&self) -> bool {
        matches!(self.root, RootState::Open(_)) && !self.is_stopping
    }

    /// Whether a thread works, and will report its completion.
    pub(crate) fn is_working(&self) -> bool {
        self.slots.are_taken()
            || self.full_scan.is_some()
            || self.subtree_scan.is_some()
            || self.is_searching_orphans
    }

    /// Returns when the core takes in changes; `None` while it can't.
    pub(crate) fn takes_changes_at(&self) -> Option<Instant> {
        (self.can_work() && self.schedule.backlog() < MAX_BACKLOG).then_some(self.next_changes)
    }

    /// Returns when to poll again if nothing happens before.
    pub(crate) fn next_wake(&self, now: Now) -> Instant {
        self.next_work(now).map_or(self.next_tick, |at| at.min(self.next_tick))
    }

    /// Returns when the next work starts if nothing happens before.
    pub(crate) fn next_work(&self, now: Now) -> Option<Instant> {
        if !self.can_work() {
            return None;
        }
        // Work that waits for other work starts once that has ended, and not at a time.
        let pair = self.schedule.next_pair(now).filter(|_| self.slots.free() > 0);
        let tree = self.schedule.next_rescan(now).filter(|_| self.subtree_scan.is_none());
        let tree = tree.map(|at| at.max(self.rescan_after));
        let can_sweep = self.full_scan.is_none() && self.rewatch != Rewatch::Requested;
        let sweep = can_sweep.then(|| self.sweeps.next());
        let orphans = self.orphans.next(now).filter(|_| !self.is_searching_orphans);
        let (reading, eviction) = (self.space_readings.next(), self.next_eviction(now));
        let wakes = [pair, tree, self.flooded.next_list(), orphans, sweep, reading, eviction];
        wakes.into_iter().flatten().min()
    }

    pub(super) fn sweep_interval(&self) -> Duration {
        let Intervals { check, fallback } = self.intervals;
        match (&self.root, self.watch_state()) {
            (RootState::Open(watching), _) if watching.refusal == Some(WatchError::Flooded) => {
                check.min(FLOOD_SWEEP_INTERVAL)
            }
            (_, WatchState::Degraded | WatchState::Polling) => check.min(fallback),
            _ => check,
        }
    }

    /// Returns how the cleaner learns of changes now.
    pub(crate) fn watch_state(&self) -> WatchState {
        match &self.root {
            RootState::Unknown | RootState::Absent => WatchState::Absent,
            RootState::Unreadable => WatchState::Degraded,
            RootState::Open(watching) if !watching.reports_all_changes => WatchState::Polling,
            RootState::Open(watching)
                if watching.refusal.is_some() || self.refused.is_some() || self.flooded.any() =>
            {
                WatchState::Degraded
            }
            RootState::Open(_) => WatchState::Active,
        }
    }

    /// Returns how many complete, valid pairs wait for their expiry.
    pub(crate) fn heap_size(&self) -> usize {
        self.schedule.heap_size()
    }

    /// Returns the earliest `expires_at` of the waiting pairs.
    pub(crate) fn next_expiry(&self) -> Option<DateTime<Utc>> {
        self.schedule.next_expiry()
    }

    /// Returns how many pairs wait, by when they expire, as [`Schedule::buckets`] does.
    pub(crate) fn buckets(&self, now: DateTime<Utc>) -> Vec<Bucket> {
        self.schedule.buckets(now)
    }

    /// Whether nothing is left to do but to wait for expiries, and for the next regular sweep.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn is_at_rest(&self, now: Now) -> bool {
        let is_late = |at: Option<Instant>| at.is_some_and(|at| at <= now.mono);
        // A pair that has become old enough waits for the next choice.
        let next_eviction = self.next_eviction(now);
        let is_soon = next_eviction.is_some_and(|at| at <= now.mono + Duration::from_secs(2));
        let is_evicting =
            is_soon && !self.evictable_before(DateTime::<Utc>::MAX_UTC, now).is_empty();
        self.can_work()
            && !self.is_working()
            && !self.sweeps.is_requested()
            && !self.sweeps.is_due(now.mono)
            && !self.sweeps.are_events_lost()
            && self.schedule.is_at_rest()
            && !is_late(self.schedule.next_pair(now))
            && !is_late(next_eviction)
            && !is_evicting
    }

    /// Returns whether the metadata of a pair is being written, as far as events have reported it.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn awaits_writer(&self, key: &PairKey) -> bool {
        self.schedule.half_written.writer(key).is_some()
    }

    /// Returns the waiting pairs, in no order.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (PairKey, DateTime<Utc>)> {
        self.schedule.waiting()
    }

    /// Delays the next scan of some directories for as long as the last one took, within bounds.
    pub(super) fn pause_rescans(&mut self, took: Duration, now: Now) {
        self.rescan_after = now.mono + took.clamp(CHANGES_PAUSE, MAX_SCAN_PAUSE);
    }
}
