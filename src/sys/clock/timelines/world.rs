//! The simulated clocks, the worker that reads them, and an observer that knows the rule.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::*;
use super::{DAY, EPOCH, Event, HOLD, LATEST, Plan, SECOND, SLOWEST, Timeline, moments};
use crate::pair::change::{Changes, Trigger, WriteState};
use crate::pair::name::{PairKey, Stem};
use crate::pair::outcome::{Job, JobResult, Outcome, Summary};
use crate::schedule::command::Command;
use crate::schedule::input::{Completion, Input, RootSeen, Watching};
use crate::schedule::{Core, Intervals};

const BOOTED: i64 = 100 * SECOND;
/// Jumps that are closer may be seen as one: the pause between two readings, and a slow wake-up.
const APART: i64 = SECOND + SLOWEST;

/// One setting of the clock.
struct Step {
    boot: i64,
    mono: i64,
    by: i64,
    /// The offset before the step.
    before: i64,
    /// When since boot the worker next read the clocks.
    seen: Option<i64>,
}

struct Pair {
    expires_at: i64,
    key: PairKey,
    is_there: bool,
    /// True if the schedule has returned a job for it.
    is_known: bool,
    /// Since when it has to be deleted, by the monotonic clock.
    due_since: Option<i64>,
    /// True if only a step that is held back makes it due, or did so.
    was_held: bool,
}

pub(super) struct World {
    wall: i64,
    boot: i64,
    mono: i64,
    start: Instant,
    history: Vec<Step>,
    pairs: Vec<Pair>,
    // The worker.
    jumps: ClockJumps,
    core: Core,
    inputs: Vec<Input>,
    slow: (i64, i64),
    wake: i64,
    jobs: Vec<(i64, Vec<Job>)>,
    // The observer.
    checked: i64,
    pub deleted: u64,
    /// How many of these deletions were held back.
    pub held: u64,
    /// How late the latest of them was, in milliseconds.
    pub latest: i64,
}

impl World {
    pub fn new(timeline: &Timeline) -> Self {
        let moments = moments(&timeline.events);
        let pair = |(number, plan): (usize, &Plan)| Pair {
            expires_at: plan.moment.get(&moments) + plan.away,
            key: PairKey {
                dir: Path::new("").into(),
                stem: Stem::new(number.to_string().as_bytes()),
            },
            is_there: false,
            is_known: false,
            due_since: None,
            was_held: false,
        };
        let start = Instant::now();
        let day = Duration::from_secs(86_400);
        let watching = Watching { refusal: None, reports_all_changes: true };
        Self {
            wall: EPOCH,
            boot: BOOTED,
            mono: 0,
            start,
            history: Vec::new(),
            pairs: timeline.plans.iter().enumerate().map(pair).collect(),
            jumps: ClockJumps::default(),
            core: Core::new(Intervals { check: day, fallback: day }, None, false, start),
            inputs: vec![Input::RootProbed(RootSeen::Replaced(watching))],
            slow: timeline.slow,
            wake: 0,
            jobs: Vec::new(),
            checked: 0,
            deleted: 0,
            held: 0,
            latest: 0,
        }
    }

    pub fn run(mut self, timeline: &Timeline) -> Result<Self, TestCaseError> {
        self.round()?;
        for (number, event) in timeline.events.iter().enumerate() {
            for (plan, pair) in timeline.plans.iter().zip(0..) {
                if plan.published.index(timeline.events.len()) == number {
                    self.publish(pair);
                }
            }
            match *event {
                Event::Pass(time) => self.pass(time)?,
                Event::Step(by) | Event::TakeBack(by) => self.step(by)?,
                Event::Sleep(time) => {
                    self.wall += time;
                    self.boot += time;
                    self.check()?;
                }
            }
        }
        self.pass(2 * HOLD)?;
        Ok(self)
    }

    fn publish(&mut self, pair: usize) {
        let pair = &mut self.pairs[pair];
        pair.is_there = true;
        let reported = Trigger { appeared: true, writer: WriteState::Closed };
        let pairs = HashMap::from([(pair.key.clone(), reported)]);
        self.inputs.push(Input::Changes(Changes { pairs, ..Changes::default() }));
        self.wake = self.wake.min(self.mono);
    }

    fn step(&mut self, by: i64) -> Result<(), TestCaseError> {
        self.check()?;
        let before = self.wall - self.boot;
        self.history.push(Step { boot: self.boot, mono: self.mono, by, before, seen: None });
        self.wall += by;
        self.check()
    }

    /// Lets time pass while the worker runs.
    fn pass(&mut self, time: i64) -> Result<(), TestCaseError> {
        let end = self.mono + time;
        loop {
            let woken = self.wake.saturating_add(self.slow.0);
            let next = self.jobs.iter().map(|(at, _)| *at).fold(woken, i64::min).max(self.mono);
            if next > end {
                break;
            }
            self.go_on(next - self.mono);
            self.check()?;
            self.round()?;
        }
        self.go_on(end - self.mono);
        self.check()
    }

    fn go_on(&mut self, time: i64) {
        self.mono += time;
        self.boot += time;
        self.wall += time;
    }

    /// Performs the work of the worker, and of its threads, after a wake-up.
    fn round(&mut self) -> Result<(), TestCaseError> {
        // The clocks are read before the threads go on.
        while !self.poll()? {}
        let mono = self.mono;
        for (_, jobs) in self.jobs.extract_if(.., |(at, _)| *at <= mono).collect::<Vec<_>>() {
            let mut found = Vec::new();
            for job in jobs {
                let outcome = self.process(&job)?;
                found.push(JobResult { key: job.key, outcome });
            }
            let done =
                Completion::Jobs { found, took: Duration::ZERO, holds: false, evicted: None };
            self.inputs.push(Input::Completed(1, done));
        }
        while !self.poll()? {}
        // Timers are a millisecond late rather than early.
        let now = self.now();
        let next = self.core.next_wake(now) - self.start;
        self.wake = next.as_micros().div_ceil(1000) as i64;
        self.check()
    }

    /// Polls the core, and carries out what it asks for. Returns whether that is all.
    fn poll(&mut self) -> Result<bool, TestCaseError> {
        let (now, inputs) = (self.now(), std::mem::take(&mut self.inputs));
        let mut has_ticked = false;
        for command in self.core.poll(now, inputs) {
            match command {
                Command::Tick => {
                    self.tick()?;
                    has_ticked = true;
                }
                Command::Process(jobs) => self.start(jobs)?,
                Command::Scan(id, ..) => {
                    let summary = Box::new(Summary::default());
                    let ended = Completion::ScanEnded { id, summary, took: Duration::ZERO };
                    self.inputs.push(Input::Completed(1, ended));
                }
                _ => {}
            }
        }
        Ok(self.inputs.is_empty() && !has_ticked)
    }

    fn tick(&mut self) -> Result<(), TestCaseError> {
        self.jumps.observe(wall(self.wall), TimeDelta::milliseconds(self.boot));
        for step in self.history.iter_mut().filter(|step| step.seen.is_none()) {
            prop_assert!(self.mono - step.mono < APART, "it looked too late");
            step.seen = Some(self.boot);
        }
        Ok(())
    }

    fn start(&mut self, jobs: Vec<Job>) -> Result<(), TestCaseError> {
        for pair in self.pairs.iter_mut().filter(|pair| jobs.iter().any(|job| job.key == pair.key))
        {
            // The first job inspects the published pair.
            let is_due = pair.expires_at <= self.wall;
            prop_assert!(is_due || !pair.is_known, "{} was given out early", pair.expires_at);
            pair.is_known = true;
        }
        self.jobs.push((self.mono + self.slow.1, jobs));
        Ok(())
    }

    /// Deletes the pair if it is due by the worker's clock.
    fn process(&mut self, job: &Job) -> Result<Outcome, TestCaseError> {
        let now = self.now().wall;
        let high = self.highest();
        let pair = self.pairs.iter_mut().find(|pair| pair.key == job.key).unwrap();
        if now < wall(pair.expires_at) {
            let expires_at = wall(pair.expires_at);
            return Ok(Outcome::NotDue { expires_at, bytes: None, size: None });
        }
        prop_assert!(pair.expires_at <= self.wall, "{} ms early", pair.expires_at - self.wall);
        prop_assert!(pair.expires_at <= high, "{} ms too early", pair.expires_at - high);
        if let Some(since) = pair.due_since {
            self.latest = self.latest.max(self.mono - since);
        }
        pair.is_there = false;
        self.deleted += 1;
        self.held += u64::from(pair.was_held);
        Ok(Outcome::Deleted { freed: 1, leftover: None, late: TimeDelta::zero() })
    }

    /// Checks that no pair is still there after it has been due for 2 s.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let together = |group: &[Step], step: &Step| {
            let forward = group.iter().all(|step| step.by > 0);
            step.by <= DAY && forward && group.iter().map(|step| step.by).sum::<i64>() <= DAY
        };
        let (low, high) = (self.deciding_time(|step| step.seen, together), self.highest());
        for pair in self.pairs.iter_mut().filter(|pair| pair.is_there) {
            if pair.expires_at > low {
                pair.due_since = None;
                pair.was_held |= pair.expires_at > high && pair.expires_at <= self.wall;
                continue;
            }
            let for_so_long = (low - pair.expires_at).min(self.mono - self.checked);
            let since = *pair.due_since.get_or_insert(self.mono - for_so_long);
            let late = self.mono - since;
            prop_assert!(late <= LATEST, "{pair} is {late} ms late", pair = pair.expires_at);
        }
        self.checked = self.mono;
        Ok(())
    }

    /// Returns the latest possible deciding time.
    fn highest(&self) -> i64 {
        self.deciding_time(|step| Some(step.boot), |group, _| group.len() > 1)
    }

    /// Returns the time that decides whether a pair is due. `held_from` returns since when a step is
    /// held back, if it is. `believed` returns which forward jumps of a group of close jumps take
    /// effect, besides small jumps that occur alone.
    fn deciding_time(
        &self,
        held_from: impl Fn(&Step) -> Option<i64>,
        believed: impl Fn(&[Step], &Step) -> bool,
    ) -> i64 {
        let is_held = |step: &Step| held_from(step).is_none_or(|from| self.boot < from + HOLD);
        let mut lowest = self.wall - self.boot;
        let mut raised = 0;
        // Go from the last group to the first.
        let mut earlier = &self.history[..];
        while earlier.last().is_some_and(is_held) {
            let pause = earlier.windows(2).rposition(|two| two[1].mono - two[0].mono >= APART);
            let group;
            (earlier, group) = earlier.split_at(pause.map_or(0, |at| at + 1));
            for step in group.iter().rev() {
                let is_small = group.len() == 1 && step.by <= DAY;
                if step.by > 0 && (is_small || believed(group, step)) {
                    raised += step.by;
                }
                if is_held(step) {
                    lowest = lowest.min(step.before + raised);
                }
            }
        }
        lowest + self.boot
    }

    fn now(&mut self) -> Now {
        let settled = self.jumps.settle(wall(self.wall), TimeDelta::milliseconds(self.boot));
        let mono = self.start + Duration::from_millis(self.mono as u64);
        Now { wall: settled, mono }
    }
}

fn wall(milliseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(milliseconds).unwrap()
}
