//! The one actor of the service. It reports to the [`Core`] what happens, and carries out its commands:
//! blocking work runs on the threads of the [`Executor`].
//!
//! ```text
//! events ──► inbox ─┐                            ┌─► jobs and scans, on blocking threads ─┐
//! requests ─────────┼─► worker ──► core          ├─► stats, log, reports                  │
//! the clock ────────┘      ▲        └─ commands ─┘                                        │
//!                          └───────────────────── completions ────────────────────────────┘
//! ```

pub(crate) mod cache_root;
pub(crate) mod executor;
mod notices;
pub(crate) mod requests;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout_at;

use self::cache_root::{CacheRoot, Open};
use self::executor::{Executor, MAX_MESSAGES, Message};
use self::requests::{Request, SweepAnswer};
use crate::config::{Config, MinFree};
use crate::jobs::context::JobContext;
use crate::pair::name::Half;
use crate::pair::outcome::Waiting;
use crate::schedule::command::Command;
use crate::schedule::input::{Completion, Input, RequestId, RootSeen};
use crate::schedule::{Core, Intervals};
use crate::sys::clock::Clock;
use crate::sys::timer::Timer;
use crate::telemetry::Reporter;
use crate::telemetry::recorder::{Readers, Recorder};
use crate::telemetry::stats::ExpiryBucket;
use crate::watch::inbox::Inbox;

/// How long work in progress may take to end when the cleaner is stopped.
const STOP_PATIENCE: Duration = Duration::from_millis(400);

pub(crate) struct Worker {
    /// The cache directory as it was configured, and its path from any working directory.
    configured_path: PathBuf,
    path: PathBuf,
    intervals: Intervals,
    min_free: Option<MinFree>,
    executor: Executor,
    clock: Arc<Clock>,
    recorder: Recorder,
    inbox: Arc<Inbox>,
    core: Core,
    cache_root: CacheRoot,
    /// The requests for sweeps that were not answered yet.
    sweep_requests: HashMap<RequestId, SweepAnswer>,
    last_request: RequestId,
    /// How many pairs expire when, as last counted, and until when that count may be reused.
    buckets: Option<(Instant, Vec<ExpiryBucket>)>,
}

impl Worker {
    /// Creates a worker for the cache directory at `path`, which was configured as `configured_path`.
    /// Also returns the channel of messages to it, and the handles that read its state.
    pub(crate) fn new(
        config: &Config,
        configured_path: PathBuf,
        path: PathBuf,
        reporter: Option<Reporter>,
    ) -> (Self, mpsc::Receiver<Message>, Readers) {
        if config.dry_run {
            tracing::info!("dry run: results are logged at their time, and nothing is deleted");
        }
        let clock = Arc::new(Clock::default());
        let recorder = Recorder::new(config, configured_path.clone(), reporter);
        let readers = recorder.readers();
        let context = JobContext::of_service(Arc::clone(&clock), config);
        let inbox = Arc::new(Inbox::new(context.orphan_ages().any()));
        let context = context.paced_by(&inbox.backpressure);
        let (executor, messages) = Executor::new(context);
        let intervals =
            Intervals { check: config.check_interval, fallback: config.fallback_interval };
        let worker = Self {
            configured_path,
            path,
            intervals,
            min_free: config.min_free,
            executor,
            core: Core::new(intervals, config.budget(), config.dry_run, clock.now().mono),
            clock,
            recorder,
            inbox,
            cache_root: CacheRoot::Unknown,
            sweep_requests: HashMap::new(),
            last_request: 0,
            buckets: None,
        };
        (worker, messages, readers)
    }

    /// Runs until `requests` is closed. Returns the reporter, if there is one, and when `requests` was
    /// closed.
    ///
    /// # Errors
    /// The message of a panic on one of the worker's threads.
    pub(crate) async fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        mut requests: mpsc::UnboundedReceiver<Request>,
    ) -> Result<(Option<Reporter>, Instant), String> {
        let timer = Timer::new();
        let mut inputs = Vec::new();
        loop {
            // Changes come before the end of a scan that may have made up for what followed them.
            self.take_changes(&mut inputs);
            // Requests must not delay completions, and completions must not delay due deletions.
            for message in std::iter::from_fn(|| messages.try_recv().ok()).take(MAX_MESSAGES) {
                self.receive(message, &mut inputs)?;
            }
            self.poll(std::mem::take(&mut inputs));
            self.publish();
            let wake = self.next_wake();
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => inputs.extend(self.answer(request)),
                    None => break,
                },
                message = messages.recv() => {
                    // The executor holds a sender, so that the channel never closes.
                    let Some(message) = message else { break };
                    self.take_changes(&mut inputs);
                    self.receive(message, &mut inputs)?;
                }
                // Also during a pause: otherwise nothing would wake the worker when the pause ends.
                () = self.inbox.notified(), if self.core.can_work() => {}
                () = timer.until(wake) => {}
            }
        }
        let asked_to_stop = Instant::now();
        self.wind_up(&mut messages).await?;
        self.publish();
        Ok((self.recorder.take_reporter(), asked_to_stop))
    }

    /// Waits until work in progress ends, so that its figures are counted.
    async fn wind_up(&mut self, messages: &mut mpsc::Receiver<Message>) -> Result<(), String> {
        self.executor.cancel();
        self.poll(vec![Input::Stop]);
        let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
        while self.core.is_working() {
            let Ok(Some(message)) = timeout_at(deadline, messages.recv()).await else {
                tracing::info!("jobs that are still running at shutdown are not counted");
                break;
            };
            let mut inputs = Vec::new();
            self.receive(message, &mut inputs)?;
            self.poll(inputs);
        }
        Ok(())
    }

    /// Adds what a thread has sent to the `inputs` of the core.
    fn receive(&mut self, message: Message, inputs: &mut Vec<Input>) -> Result<(), String> {
        match message {
            Message::Completed(open, generation, completion) => {
                self.record_outcomes(open.root.path(), &completion);
                inputs.push(Input::Completed(generation, completion));
            }
            Message::RootProbed(found) => {
                // What came before is about the cache directory that was in place until now.
                self.poll(std::mem::take(inputs));
                let seen = self.root_probed(found);
                let is_same = matches!(seen, RootSeen::Unchanged | RootSeen::Rewatched(_));
                inputs.push(Input::RootProbed(seen));
                if !is_same {
                    // What the inbox holds is about the cache directory before.
                    self.poll(std::mem::take(inputs));
                }
            }
            Message::FreeSpace(generation, space) => {
                inputs.push(Input::FreeSpace(generation, space));
            }
            Message::Panicked(message) => return Err(message),
        }
        Ok(())
    }

    fn record_outcomes(&self, root: &Path, completion: &Completion) {
        if let Completion::ScanBatch { found, .. } = completion {
            for Waiting { dir, pairs, .. } in &found.waiting {
                tracing::trace!(?dir, pairs = pairs.len(), "found pairs that wait");
            }
        }
        for found in completion.outcomes() {
            tracing::trace!(?found, "processed");
            let result = || root.join(found.key.path(Half::Result));
            self.recorder.found(&found.outcome, result);
        }
    }

    fn take_changes(&mut self, inputs: &mut Vec<Input>) {
        if !self.core.can_work() {
            return;
        }
        if self.inbox.take_events_lost() {
            inputs.push(Input::EventsLost);
        }
        if let Some(report) = self.inbox.floods.take_report() {
            self.log_floods(&report);
            inputs.push(Input::Floods { flooded: report.flooded, calm: report.calm });
        }
        if self.core.takes_changes_at().is_some_and(|at| at <= Instant::now()) {
            inputs.push(Input::Changes(self.inbox.drain()));
        }
    }

    fn poll(&mut self, inputs: Vec<Input>) {
        for command in self.core.poll(self.clock.now(), inputs) {
            self.carry_out(command);
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Tick => {
                self.tick();
                // The clock may have jumped.
                self.poll(Vec::new());
            }
            Command::Rewatch => self.executor.rewatch(&self.path, &self.inbox),
            Command::StartOver(generation) => {
                self.executor.start_over(generation);
                self.inbox.floods.clear();
                let _ = self.inbox.drain();
            }
            Command::Process(jobs) => {
                self.with_open(|executor, open| executor.process(open, jobs, None));
            }
            Command::Evict(jobs, start) => {
                self.with_open(|executor, open| executor.process(open, jobs, Some(start)));
            }
            Command::Scan(id, trees) => {
                self.with_open(|executor, open| executor.scan(open, id, &trees));
            }
            Command::RemoveOrphans(due, limit) => {
                self.with_open(|executor, open| executor.remove_orphans(open, due, limit));
            }
            Command::ReadFreeSpace => {
                self.with_open(|executor, open| executor.read_free_space(open))
            }
            Command::MeasureOccupancy(shortfall) => {
                self.with_open(|executor, open| executor.measure_occupancy(open, shortfall));
            }
            Command::Count(tally) => self.recorder.count(tally, self.clock.now()),
            Command::CountOutsideSweeps(tally) => self.recorder.between(tally),
            Command::SweepDone(tally, requests) => self.sweep_done(tally, requests),
            Command::NothingToSweep(requests) => self.answer_without_sweep(requests),
            Command::Report(notice) => self.report(notice),
        }
    }

    /// Starts work in the cache directory. The core asks for that only while the directory is open.
    fn with_open(&mut self, start: impl FnOnce(&mut Executor, &Arc<Open>)) {
        if let CacheRoot::Open(open) = &self.cache_root {
            start(&mut self.executor, open);
        }
    }

    /// Checks the clock and the cache directory.
    fn tick(&mut self) {
        if let Some(step) = self.clock.tick() {
            tracing::warn!(
                hours = step.num_hours(),
                "the clock jumped forward, results that are due only because of this are deleted in 60 s, unless it is set back"
            );
        }
        self.executor.probe(&self.path, &self.cache_root, &self.inbox);
    }

    fn next_wake(&self) -> Instant {
        let now = self.clock.now();
        let wake = self.core.next_wake(now);
        match self.core.takes_changes_at() {
            Some(at) if !self.inbox.is_empty() => wake.min(at),
            _ => wake,
        }
    }

    fn publish(&self) {
        let resolved = self.cache_root.id().map_or(&self.configured_path, |id| &id.path);
        let (watched, refused) = self.cache_root.watches();
        let undelivered = self.recorder.undelivered_reports();
        self.recorder.publish(|stats| {
            stats.watched_directories = watched as u64;
            stats.refused_directories = refused as u64;
            stats.total_queue_overflows = self.inbox.overflows.load(Ordering::Relaxed);
            stats.undelivered_reports = undelivered.or(stats.undelivered_reports);
            stats.heap_size = self.core.heap_size() as u64;
            stats.next_expiry = self.core.next_expiry();
            stats.watch = self.core.watch_state();
            stats.size_bytes = self.core.size_bytes();
            let space = self.core.space();
            stats.free_bytes = space.map(|space| space.free);
            if let Some(MinFree::Percent(_)) = self.min_free {
                stats.min_free_bytes =
                    self.min_free.zip(space).map(|(limit, space)| limit.bytes(space.total));
            }
            if stats.cache_directory != *resolved {
                stats.cache_directory.clone_from(resolved);
            }
        });
    }

    /// Returns the path where the cache directory is, or is expected.
    fn root_path(&self) -> &Path {
        self.cache_root.id().map_or(&self.path, |id| &id.path)
    }
}
