//! The core in a simulated world: a disk, the kernel's queue of events, threads, a clock and other cleaners.
//! Any source of chance drives it: a seed in the tests, the bytes of the fuzzer.
//!
//! Events are delayed and dropped, watches are refused, directories move while threads are in them, threads
//! are slow, other cleaners claim pairs, the cache directory goes and comes back, the cleaner is killed.
//! Three rules have to hold.
//!
//! Safety: once all is calm, the disk and the core are as a polling cleaner would leave them. Every outcome
//! is counted once.
//!
//! Liveness: the core comes to rest if it is only polled when it asks for that, or when something has
//! happened. By then every due pair is gone and every requested sweep has ended. While events are lost all
//! the time, sweeps still end.
//!
//! Thrift: nothing is asked for twice while it is under way, and no poll asks for another one at once.

mod cleaning;
mod disk;
mod kernel;
mod ledger;
mod probe;
mod tasks;
#[cfg(test)]
mod tests;
mod trees;
mod worker;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::disk::{CAPACITY, Disk};
use self::kernel::Kernel;
use self::ledger::Ledger;
use self::tasks::{Message, Surroundings, Task};
use super::Input as Bytes;
use crate::pair::disk_budget::{BLOCK, Budget, MinFree};
use crate::pair::name::PairKey;
use crate::schedule::input::{Generation, Input, RequestId};
use crate::schedule::{Core, Intervals, ScanId};
use crate::sys::clock::{Now, TICK};
use crate::watch::inbox::Inbox;

const INTERVALS: Intervals =
    Intervals { check: Duration::from_secs(6 * 3600), fallback: Duration::from_secs(60) };
/// How long it may take, in simulated time, until all is at rest: longer than the longest pause between two
/// attempts.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);
/// How many rounds that may take.
const MAX_ROUNDS: u32 = 100_000;
/// How long a storm lasts, and within which time a sweep has to end in it.
const STORM: Duration = Duration::from_secs(10);

/// A source of chance.
pub(super) trait Chance {
    fn below(&mut self, bound: usize) -> usize;

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
}

impl Chance for Bytes<'_> {
    fn below(&mut self, bound: usize) -> usize {
        Bytes::below(self, bound)
    }
}

/// Interprets `bytes` as what happens in the simulated world.
pub fn simulation(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let mut world = World::new(&mut bytes);
    while !bytes.is_empty() {
        world.step(&mut bytes);
    }
    world.come_to_rest(&mut bytes);
}

/// The cache directory as the worker knows it: its epoch, and the watcher, if it has one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Root {
    Unknown,
    Absent,
    Unreadable,
    Open(u64, Option<u64>),
}

pub(super) struct World {
    disk: Disk,
    core: Core,
    budget: Option<Budget>,
    /// When the core last learned that a pair waits, and when the wall clock last moved by itself.
    learned: HashMap<PairKey, Instant>,
    wall_moved: Instant,
    /// Whether the core waits for the free space.
    is_asking: bool,
    inbox: Inbox,
    /// When the core starts its next work if nothing happens before, and when it was asked for that.
    next_work: Option<(Instant, Now)>,
    is_stopped: bool,
    tasks: Vec<Task>,
    messages: VecDeque<Message>,
    generation: Generation,
    root: Root,
    last_tick: Option<Instant>,
    is_rewatching: bool,
    /// Whether a probe is running, or has sent what it found.
    is_probing: bool,
    in_flight: HashSet<PairKey>,
    scans: Vec<ScanId>,
    requests: HashSet<RequestId>,
    last_request: RequestId,
    needs_sweep: bool,
    needs_watcher: bool,
    /// Whether a directory may have had no watch since all was at rest: it was flooded, or the kernel refused.
    has_unwatched: bool,
    is_calm: bool,
    /// Whether events are lost, and sweeps requested. In a world without, no sweep conceals a mistake.
    has_floods: bool,
    has_sweeps: bool,
    ledger: Ledger,
    /// Deletions and evictions in the life of the disk.
    pub deleted: u64,
    pub evicted: u64,
}

/// A disk budget, or none.
fn some_budget(chance: &mut dyn Chance) -> Option<Budget> {
    if chance.one_in(2) {
        return None;
    }
    let blocks = |chance: &mut dyn Chance, from: u64, to: u64| {
        (from + chance.below((to - from) as usize) as u64) * BLOCK
    };
    let kind = chance.below(3);
    let max_size = (kind != 0).then(|| blocks(chance, 20, 400));
    let free = (kind != 1).then(|| blocks(chance, CAPACITY - 500, CAPACITY - 30));
    let min_age = Duration::from_millis([1, 2000, 20_000][chance.below(3)]);
    Some(Budget { max_size, min_free: free.map(MinFree::Bytes), min_age })
}

impl World {
    pub fn new(chance: &mut dyn Chance) -> Self {
        let (mut disk, hardship) = (Disk::new(), chance.below(6));
        let budget = some_budget(chance);
        disk.has_budget = budget.is_some();
        disk.frees_late = chance.one_in(4);
        let mut world = Self::on(disk, budget);
        world.has_floods = [2, 4].contains(&hardship);
        world.has_sweeps = [1, 2].contains(&hardship);
        world.disk.has_refusals = [3, 4].contains(&hardship);
        world
    }

    /// A cleaner that has just been started.
    fn on(disk: Disk, budget: Option<Budget>) -> Self {
        let disk_now = disk.now.mono;
        Self {
            core: Core::new(INTERVALS, budget, false, disk_now),
            budget,
            learned: HashMap::new(),
            wall_moved: disk_now,
            is_asking: false,
            evicted: 0,
            disk,
            inbox: Inbox::default(),
            next_work: None,
            is_stopped: false,
            tasks: Vec::new(),
            messages: VecDeque::new(),
            generation: 0,
            root: Root::Unknown,
            last_tick: None,
            is_rewatching: false,
            is_probing: false,
            in_flight: HashSet::new(),
            scans: Vec::new(),
            requests: HashSet::new(),
            last_request: 0,
            needs_sweep: false,
            needs_watcher: false,
            has_unwatched: false,
            is_calm: false,
            has_floods: false,
            has_sweeps: false,
            ledger: Ledger::default(),
            deleted: 0,
        }
    }

    /// Kills the cleaner and starts it again.
    fn restart(&mut self, chance: &mut dyn Chance) {
        if chance.one_in(2) {
            self.stop(chance);
        }
        self.disk.crash(chance);
        let mut disk = std::mem::replace(&mut self.disk, Disk::new());
        disk.kernel = Kernel::new(0);
        let Self { deleted, evicted, has_floods, has_sweeps, .. } = *self;
        // With another budget than before, or none.
        let budget = if chance.one_in(2) { self.budget } else { some_budget(chance) };
        disk.has_budget = budget.is_some();
        *self = Self { deleted, evicted, has_floods, has_sweeps, ..Self::on(disk, budget) };
    }

    /// Stops the cleaner, and lets its threads end. It starts no more work, and all that was done is reported.
    fn stop(&mut self, chance: &mut dyn Chance) {
        for task in &mut self.tasks {
            task.cancel();
        }
        self.is_stopped = true;
        self.poll_with(vec![Input::Stop]);
        while self.core.is_working() {
            let before = self.tasks.len();
            self.progress(8, chance);
            assert!(self.tasks.len() <= before);
            while let Some(message) = self.messages.pop_front() {
                let mut inputs = Vec::new();
                self.receive(message, &mut inputs);
                self.poll_with(inputs);
            }
        }
        self.assert_all_is_reported();
    }

    /// Lets one thing happen.
    pub fn step(&mut self, chance: &mut dyn Chance) {
        match chance.below(24) {
            0..9 => self.change_disk(chance, Disk::operate),
            9..12 => self.read_events(1 + chance.below(4)),
            12..15 => self.poll(chance),
            15..20 => self.progress(1 + chance.below(8), chance),
            20 => self.pass_through(chance),
            21 if self.has_sweeps && chance.one_in(4) => self.request_sweep(),
            22 if self.has_floods && chance.one_in(8) => {
                let rel = self.some_dir(chance);
                self.inbox.floods.begin(&rel.as_path().into());
                self.has_unwatched = true;
                self.disk.kernel.overflow();
            }
            23 if chance.one_in(32) => self.restart(chance),
            23 if self.has_floods && chance.one_in(16) => self.storm(chance),
            _ => self.disk.now.mono += Duration::from_millis(chance.below(5) as u64),
        }
    }

    /// Changes the disk in some way. Where directories come and go in one without a watch, which is flooded or was
    /// refused, only a sweep with a new watcher finds out which of them has which name.
    fn change_disk<T>(
        &mut self,
        chance: &mut dyn Chance,
        change: impl FnOnce(&mut Disk, &mut dyn Chance) -> T,
    ) -> T {
        let (before, wall) = (self.disk.dir_changes, self.disk.now.wall);
        let done = change(&mut self.disk, chance);
        if self.disk.now.wall != wall {
            self.wall_moved = self.disk.now.mono;
        }
        self.has_unwatched |= self.disk.refuses_watches;
        self.needs_watcher |= before < self.disk.dir_changes && self.has_unwatched;
        done
    }

    /// Moves a tree in and out again before much can become of it.
    fn pass_through(&mut self, chance: &mut dyn Chance) {
        for _ in 0..4 {
            let Some(dir) = self.change_disk(chance, Disk::move_in) else { return };
            for _ in 0..chance.below(6) {
                self.read_events(chance.below(3));
                self.progress(chance.below(6), chance);
                self.poll(chance);
            }
            self.change_disk(chance, |disk, _| disk.move_out(dir));
        }
    }

    fn some_dir(&self, chance: &mut dyn Chance) -> PathBuf {
        let pairs = self.disk.pairs();
        pairs
            .get(chance.below(pairs.len().max(1)))
            .map(|(_, rel, ..)| rel.clone())
            .unwrap_or_default()
    }

    fn read_events(&mut self, count: usize) {
        for _ in 0..count {
            self.disk.kernel.read(&self.inbox);
        }
    }

    fn request_sweep(&mut self) {
        self.last_request += 1;
        self.requests.insert(self.last_request);
        self.poll_with(vec![Input::Sweep(self.last_request)]);
    }

    /// Lets the threads go on by some steps.
    fn progress(&mut self, steps: usize, chance: &mut dyn Chance) {
        for _ in 0..steps {
            if self.tasks.is_empty() {
                return;
            }
            let at = chance.below(self.tasks.len());
            let mut around = Surroundings {
                disk: &mut self.disk,
                inbox: &self.inbox,
                chance,
                messages: &mut self.messages,
                is_calm: self.is_calm,
                is_rewatching: self.is_rewatching,
                is_probing: &mut self.is_probing,
                needs_sweep: &mut self.needs_sweep,
            };
            if self.tasks[at].step(&mut around) {
                self.tasks.swap_remove(at);
            }
        }
    }

    /// Loses events all the time. Sweeps have to end all the same, and no watcher is replaced without a sweep
    /// that uses it.
    fn storm(&mut self, chance: &mut dyn Chance) {
        self.disk.calm_down(chance);
        self.come_to_rest(chance);
        // A sweep that takes long delays the next one by as much.
        self.disk.now.mono += Duration::from_secs(600);
        let (start, sweeps, rewatches) =
            (self.disk.now.mono, self.ledger.sweeps, self.ledger.rewatches);
        while self.disk.now.mono - start < STORM {
            self.disk.kernel.overflow();
            self.read_events(100);
            self.progress(100 + chance.below(400), chance);
            let mut inputs = Vec::new();
            self.take_changes(&mut inputs);
            while let Some(message) = self.messages.pop_front() {
                self.receive(message, &mut inputs);
            }
            self.poll_with(inputs);
            self.disk.now.mono += Duration::from_millis(5 + chance.below(50) as u64);
        }
        let (sweeps, rewatches) = (self.ledger.sweeps - sweeps, self.ledger.rewatches - rewatches);
        assert!(sweeps >= 3, "{sweeps} sweeps in {STORM:?}");
        assert!(rewatches <= sweeps + 2, "{rewatches} watchers for {sweeps} sweeps");
    }

    /// Lets all running work end. Nothing happens any more from outside, except that time passes.
    pub fn come_to_rest(&mut self, chance: &mut dyn Chance) {
        self.disk.calm_down(chance);
        self.is_calm = true;
        let start = self.disk.now.mono;
        // By then, a probe has seen the cache directory as it is now.
        let (probed, end) = (start + 2 * TICK, start + PATIENCE);
        for round in 0.. {
            assert!(round < MAX_ROUNDS, "it never comes to rest: {:?}", self.core);
            self.read_events(1);
            self.progress(8, chance);
            let mut inputs = Vec::new();
            self.take_changes(&mut inputs);
            if let Some(message) = self.messages.pop_front() {
                self.receive(message, &mut inputs);
                self.poll_with(inputs);
                continue;
            }
            self.poll_with(inputs);
            if !self.disk.kernel.is_empty() || !self.tasks.is_empty() {
                continue;
            }
            if !self.tasks.is_empty() {
                continue;
            }
            if self.disk.now.mono >= probed && self.is_at_rest() {
                if std::mem::take(&mut self.needs_watcher) {
                    self.disk.kernel.overflow();
                } else if std::mem::take(&mut self.needs_sweep) {
                    self.request_sweep();
                } else {
                    break;
                }
                continue;
            }
            // The monotonic clock advances, so pauses end; the wall clock does not, so nothing expires.
            let now = self.disk.now.mono;
            assert!(now < end, "it never comes to rest: {:?}", self.core);
            let wake = self.core.next_wake(self.disk.now);
            let changes = self.core.takes_changes_at().filter(|_| !self.inbox.is_empty());
            self.disk.now.mono = changes.map_or(wake, |at| wake.min(at)).max(now);
        }
        self.assert_equals_polling();
        (self.is_calm, self.has_unwatched) = (false, false);
    }
}
