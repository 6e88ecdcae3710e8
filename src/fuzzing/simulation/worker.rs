//! The simulated worker: reports to the core what has happened, and carries out its commands.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::TimeDelta;

use super::kernel::Kernel;
use super::ledger::shown_key;
use super::probe::{Probe, Probed};
use super::tasks::{Jobs, Message, Scan, Task};
use super::{Chance, Root, World};
use crate::pair::disk_budget::EVICTION_BATCH;
use crate::pair::outcome::Job;
use crate::schedule::command::{Command, EvictionStart};
use crate::schedule::input::{Generation, Input, RequestId, RootSeen, Watching};
use crate::sys::clock::{Now, TICK};

impl World {
    /// Polls the core as the worker does.
    pub(super) fn poll(&mut self, chance: &mut dyn Chance) {
        let mut inputs = Vec::new();
        self.take_changes(&mut inputs);
        for _ in 0..chance.below(self.messages.len() + 1) {
            let message = self.messages.pop_front().unwrap();
            self.receive(message, &mut inputs);
        }
        self.poll_with(inputs);
    }

    pub(super) fn take_changes(&mut self, inputs: &mut Vec<Input>) {
        if !self.core.can_work() {
            return;
        }
        if self.inbox.take_events_lost() {
            inputs.push(Input::EventsLost);
        }
        if let Some(report) = self.inbox.floods.take_report() {
            inputs.push(Input::Floods { flooded: report.flooded, calm: report.calm });
        }
        if self.core.takes_changes_at().is_some_and(|at| at <= self.disk.now.mono) {
            inputs.push(Input::Changes(self.inbox.drain()));
        }
    }

    pub(super) fn receive(&mut self, message: Message, inputs: &mut Vec<Input>) {
        match message {
            Message::Completed(generation, completion) => {
                self.record(generation, &completion);
                inputs.push(Input::Completed(generation, completion));
            }
            Message::Space(generation, space) => {
                self.is_asking = false;
                inputs.push(Input::FreeSpace(generation, space));
            }
            Message::Probed(probed) => {
                self.poll_with(std::mem::take(inputs));
                (self.is_probing, self.is_rewatching) = (false, false);
                let seen = self.root_seen(probed);
                let is_same = matches!(seen, RootSeen::Unchanged | RootSeen::Rewatched(_));
                inputs.push(Input::RootProbed(seen));
                if !is_same {
                    // From now on, the worker has another generation.
                    self.poll_with(std::mem::take(inputs));
                }
            }
        }
    }

    fn root_seen(&mut self, probed: Probed) -> RootSeen {
        let (epoch, watcher) = match probed {
            Probed::Unchanged => return RootSeen::Unchanged,
            Probed::Absent if self.root == Root::Absent => return RootSeen::Unchanged,
            Probed::Unreadable if self.root == Root::Unreadable => return RootSeen::Unchanged,
            Probed::Absent => {
                self.root = Root::Absent;
                self.disk.kernel = Kernel::new(0);
                return RootSeen::Absent;
            }
            Probed::Unreadable => {
                self.root = Root::Unreadable;
                self.disk.kernel = Kernel::new(0);
                return RootSeen::Unreadable {
                    reason: std::io::Error::other("it is closed").into(),
                };
            }
            Probed::Open(epoch, watcher) => (epoch, watcher),
        };
        let is_same = matches!(self.root, Root::Open(known, _) if known == epoch);
        self.root = Root::Open(epoch, watcher.clone().ok());
        // The reader before this one is retired.
        self.disk.kernel = Kernel::new(watcher.clone().unwrap_or(0));
        let watching = Watching { refusal: watcher.err(), reports_all_changes: true };
        if is_same {
            self.inbox.rewatched();
            RootSeen::Rewatched(watching)
        } else {
            RootSeen::Replaced(watching)
        }
    }

    pub(super) fn poll_with(&mut self, inputs: Vec<Input>) {
        let now = self.disk.now;
        let is_before = |(at, then): (Instant, Now)| {
            // If the wall clock jumps, more may be due.
            now.mono < at
                && now.wall - then.wall <= TimeDelta::from_std(now.mono - then.mono).unwrap()
        };
        let is_idle = inputs.is_empty() && self.next_work.is_some_and(is_before);
        for command in self.core.poll(now, inputs) {
            let is_expected = !is_idle || matches!(command, Command::Tick);
            assert!(is_expected, "the timer would have been too late for {command:?}");
            self.carry_out(command);
        }
        let century = Duration::from_secs(100 * 365 * 86_400);
        self.next_work = Some((self.core.next_work(now).unwrap_or(now.mono + century), now));
        assert!(self.core.poll(now, []).is_empty(), "one poll was not enough");
        let wake = self.core.next_wake(now);
        assert!(wake > now.mono || self.is_stopped, "it would spin");
        assert!(wake <= now.mono + TICK, "it would oversleep");
    }

    fn carry_out(&mut self, command: Command) {
        let now = self.disk.now.mono;
        match command {
            Command::Tick => {
                let too_soon = self.last_tick.is_some_and(|last| now - last < TICK);
                assert!(!too_soon, "it ticks too often");
                self.last_tick = Some(now);
                let known = match self.root {
                    Root::Open(epoch, watcher) => Some((epoch, watcher.is_some())),
                    _ => None,
                };
                self.probe(known);
            }
            Command::Rewatch => {
                assert!(!self.is_rewatching, "it asks for a watcher twice");
                self.is_rewatching = true;
                self.ledger.rewatches += u64::from(self.probe(None));
            }
            Command::StartOver(generation) => self.start_over(generation),
            Command::Process(jobs) => self.start_jobs(jobs, None),
            Command::Evict(jobs, start) => {
                self.check_evictions(&jobs);
                self.start_jobs(jobs, Some(start));
            }
            Command::Scan(id, trees) => {
                self.scans.push(id);
                assert!(self.scans.len() <= 2, "too many scans");
                let Root::Open(_, watcher) = self.root else { panic!("there is nothing to scan") };
                let scan = Scan::new(id, self.generation, watcher, &trees, now);
                self.tasks.push(Task::Scan(Box::new(scan)));
            }
            Command::RemoveOrphans(..) => panic!("nobody asked for it"),
            Command::ReadFreeSpace => {
                assert!(!std::mem::replace(&mut self.is_asking, true), "it asks twice");
                self.tasks.push(Task::Space(self.generation));
            }
            Command::MeasureOccupancy(_) => self.ledger.measurements += 1,
            Command::Count(tally) => {
                self.ledger.counted += tally.deleted;
                self.deleted += tally.deleted;
                self.ledger.counted_evicted += tally.evicted;
                self.evicted += tally.evicted;
                self.ledger.errors += tally.errors.total();
            }
            Command::CountOutsideSweeps(tally) => self.ledger.add_reported(tally),
            Command::SweepDone(tally, requests) => {
                self.ledger.add_reported(tally);
                self.ledger.sweeps += 1;
                self.answer(&requests);
            }
            Command::NothingToSweep(requests) => {
                assert!(!matches!(self.root, Root::Open(..) | Root::Unknown));
                self.answer(&requests);
            }
            Command::Report(notice) => self.report(&notice),
        }
    }

    fn start_jobs(&mut self, mut jobs: Vec<Job>, eviction: Option<EvictionStart>) {
        // A hash map has put them in an order that no seed repeats.
        jobs.sort_by_key(|job| shown_key(&job.key));
        for job in &jobs {
            assert!(self.in_flight.insert(job.key.clone()), "{:?} twice", job.key);
        }
        self.tasks.push(Task::Jobs(Jobs {
            before: None,
            eviction,
            evicted: 0,
            generation: self.generation,
            is_cancelled: false,
            jobs: jobs.into(),
            opened: BTreeMap::new(),
            found: Vec::new(),
            start: self.disk.now.mono,
            holds: false,
        }));
    }

    /// Checks that no pair is left waiting that should be evicted before these. A choice holds for a second, and what
    /// the core has learned since may not be in it.
    fn check_evictions(&self, jobs: &[Job]) {
        let Some(last) =
            jobs.iter().filter_map(|job| job.evict).map(|chosen| chosen.expires_at).max()
        else {
            return;
        };
        assert!(jobs.len() <= EVICTION_BATCH && jobs.iter().all(|job| job.evict.is_some()));
        let now = self.disk.now;
        if now.mono - self.wall_moved < Duration::from_secs(2) {
            return;
        }
        for key in self.core.evictable_before(last, now) {
            let learned = self.learned.get(&key).copied();
            let is_new = learned.is_none_or(|at| now.mono - at < Duration::from_secs(2));
            assert!(is_new, "{key:?} should be evicted before {jobs:?}");
        }
    }

    /// Starts a probe, unless one is running. A probe that ends lets the core ask again.
    fn probe(&mut self, known: Option<(u64, bool)>) -> bool {
        let is_free = !std::mem::replace(&mut self.is_probing, true);
        if is_free {
            self.tasks.push(Task::Probe(Probe { known }));
        }
        is_free
    }

    fn start_over(&mut self, generation: Generation) {
        self.generation = generation;
        self.inbox.floods.clear();
        let _ = self.inbox.drain();
        self.in_flight.clear();
        self.learned.clear();
        self.is_asking = false;
        self.scans.clear();
        for task in &mut self.tasks {
            task.cancel();
        }
    }

    fn answer(&mut self, requests: &[RequestId]) {
        for request in requests {
            assert!(self.requests.remove(request), "a request was answered twice");
        }
    }
}
