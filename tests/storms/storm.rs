//! One storm: processes flood a directory while pairs are published and expire.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::{CacheDir, Pair, Service, extent, figure, is_long, now};
use crate::flood::{Flooders, Kind};
use crate::gauge::{Gauged, Held, gauge};
use crate::measured::{Field, LONG_AGO, Measured};

/// A pair may be so late,
pub const MAX_LATENESS: Duration = Duration::from_secs(2);
/// and so long after the storm none is left.
const MAX_AFTERMATH: Duration = Duration::from_secs(2);
/// Sweeps end at least so often; one is due each second.
const MAX_SWEEP_GAP: Duration = Duration::from_secs(3);
/// The limit of the 99th percentile of response times. In ordinary runs other programs may keep the processors from
/// the service for longer than that.
const MAX_ANSWER: Duration = Duration::from_millis(100);
const MAX_ORDINARY_ANSWER: Duration = Duration::from_secs(1);
/// From SIGTERM to the exit.
const MAX_EXIT: Duration = Duration::from_secs(1);
/// What the service may hold more than when it is quiet: on a slow disk, two scans call 15 threads
/// each and have 64 directories open each.
const MORE_THREADS: usize = 40;
const MORE_DESCRIPTORS: usize = 160;
/// One is in use; one is being replaced and another one is made where events were lost.
pub const MAX_INOTIFY_INSTANCES: usize = 4;
/// KiB more than twice the quiet size.
const MORE_MEMORY: u64 = 16 * 1024;

/// How long to wait for what should have happened long ago.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often pairs are published during a storm.
const PUBLISH_EVERY: Duration = Duration::from_millis(50);
/// So many rounds of them share a new directory.
const ROUNDS_PER_DIRECTORY: u32 = 10;
/// So many pairs wait in each directory when the storm begins.
const WAITING: u32 = 20;
/// So many of the pairs that stay share a directory.
const PER_DIRECTORY: u64 = 50;
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Storms disturb each other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A limit: three times as large on one core, which flood and service share, and in ordinary runs,
/// which may go beside other programs.
pub fn limit(limit: Duration) -> Duration {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores == 1 || !is_long() { limit * 3 } else { limit }
}

/// Whether so many KiB at most are bounded.
pub fn is_bounded(quiet: &Held, peak: u64) -> bool {
    peak <= 2 * quiet.resident + MORE_MEMORY
}

/// A storm that is to be made.
#[derive(Debug)]
pub struct Storm {
    pub kind: Kind,
    pub processes: u32,
    pub length: Duration,
    /// So many pairs stay in a tree of directories all the while.
    pub staying: u64,
    /// Whether a sweep is due each second.
    pub sweeps: bool,
}

/// Storms of one kind: by `processes`, or in a long run by one and by two.
pub fn trial(kind: Kind, processes: u32) {
    let _alone = alone();
    let flooders = extent("TEST_RESULT_CLEANER_FLOODERS", processes.into(), 0) as u32;
    let both = [1, 2];
    let each = if flooders == 0 { &both[..] } else { &[flooders][..] };
    let mut failures = Vec::new();
    for &processes in each {
        let storm = Storm { kind, processes, length: length(), staying: 0, sweeps: true };
        failures.extend(storm.make());
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// How long a storm lasts.
pub fn length() -> Duration {
    Duration::from_secs(extent("TEST_RESULT_CLEANER_STORM_SECONDS", 2, 10))
}

/// Makes so many pairs that stay, in a tree of directories.
fn populate(cache: &CacheDir, count: u64) {
    for number in 0..count {
        let name = format!("tree-{}/{number}", number / PER_DIRECTORY);
        Pair::at(cache.path(), &name).write(now() + 3600.0);
    }
}

impl Storm {
    fn title(&self) -> String {
        let amid =
            if self.staying > 0 { format!(", {} pairs stay", self.staying) } else { "".into() };
        format!("{} by {}{amid}", self.kind.name(), self.processes)
    }

    /// What was wrong.
    pub fn make(&self) -> Vec<String> {
        let Self { kind, processes, length, .. } = *self;
        let cache = CacheDir::in_memory();
        let flooded = cache.path().join("flooded");
        (0..processes).for_each(|lane| kind.prepare(&flooded, lane));
        populate(&cache, self.staying);
        let args: &[&str] = if self.sweeps { &["--check-interval", "1s"] } else { &[] };
        let service = Service::ready(cache.path(), args);
        let quiet = quiet(&service);

        let field = Field::default();
        let over = AtomicBool::new(false);
        let flooders = Flooders::start(kind, &flooded, processes, length);
        let begin = Instant::now();
        let (mut gauged, calls, end) = thread::scope(|scope| {
            let _over = Over(&over);
            let gauging = scope.spawn(|| gauge(&service, &over));
            scope.spawn(|| publish(cache.path(), &field, length));
            let looking = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    field.look();
                    thread::sleep(LOOK_EVERY);
                }
            });
            let calls = flooders.wait();
            let end = now();
            over.store(true, Ordering::Relaxed);
            looking.join().unwrap();
            let given_up = Instant::now() + PATIENCE;
            while field.look() > 0 && Instant::now() < given_up {
                thread::sleep(LOOK_EVERY);
            }
            (gauging.join().unwrap(), calls, end)
        });
        let lasted = begin.elapsed();

        let mut verdict = Verdict { title: self.title(), failures: Vec::new() };
        verdict.figure("calls a second", calls as f64 / length.as_secs_f64());
        verdict.check(calls > 0, "nothing was flooded");
        verdict.judge_pairs(&field.into_pairs(), end);
        if self.sweeps {
            verdict.judge_sweeps(&gauged);
        }
        verdict.judge_service(&mut gauged, &quiet);
        verdict.judge_calm(&service, &quiet);
        let again = || Flooders::start(kind, &flooded, processes, lasted + PATIENCE);
        verdict.judge_end(service, again);
        verdict.failures
    }
}

/// What the service holds at most while nothing happens. A sweep, and the check of the directory, each
/// take a thread for an instant every second.
fn quiet(service: &Service) -> Held {
    let end = Instant::now() + Duration::from_millis(if is_long() { 2500 } else { 300 });
    let mut quiet = Held::by(service);
    while Instant::now() < end {
        thread::sleep(LOOK_EVERY);
        quiet = quiet.max(&Held::by(service));
    }
    quiet
}

/// Says so when it is dropped, so that threads end when another one panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Publishes pairs all through a storm of this length; all are due before it ends.
fn publish(cache: &Path, field: &Field, length: Duration) {
    let length = length.as_secs_f64();
    let latest = now() + length - 0.1;
    let [flooded, other] = ["flooded", "other"].map(|dir| cache.join(dir));
    for number in 0..WAITING {
        // All of them are published within a fifth of it.
        let expires_at = latest - length * 0.8 * f64::from(number) / f64::from(WAITING);
        field.add(Measured::publish(&flooded, "flooded", expires_at, true));
        field.add(Measured::publish(&other, "other", expires_at, true));
    }
    let mut round = 0;
    while now() < latest {
        let new = cache.join(format!("new-{}", round / ROUNDS_PER_DIRECTORY));
        for (dir, place) in [(&flooded, "flooded"), (&other, "other"), (&new, "new")] {
            let expires_at = match round % 3 {
                0 => LONG_AGO,
                1 => (now() + 0.3).min(latest),
                _ => (now() + 0.8).min(latest),
            };
            let settles = round % 4 == 0 && now() + 1.2 < latest;
            field.add(Measured::publish(dir, place, expires_at, settles));
        }
        round += 1;
        thread::sleep(PUBLISH_EVERY);
    }
}

/// What was found of one storm.
struct Verdict {
    title: String,
    failures: Vec<String>,
}

impl Verdict {
    fn figure(&self, what: &str, value: f64) {
        figure(&format!("storm of {}: {what}", self.title), format!("{value:.1}"));
    }

    fn check(&mut self, holds: bool, complaint: impl AsRef<str>) {
        if !holds {
            self.failures.push(format!("{}: {}", self.title, complaint.as_ref()));
        }
    }

    fn judge_pairs(&mut self, pairs: &[Measured], end: f64) {
        let aftermath = limit(MAX_AFTERMATH).as_secs_f64();
        let lateness = limit(MAX_LATENESS).as_secs_f64();
        for place in ["flooded", "other", "new"] {
            let there: Vec<_> = pairs.iter().filter(|pair| pair.place == place).collect();
            self.check(!there.is_empty(), format!("no pair was in {place}"));
            let worst = there.iter().map(|pair| pair.late()).fold(0.0, f64::max);
            self.figure(&format!("most late in {place}, s"), worst);
            let late = there.iter().filter(|pair| pair.late() > lateness).count();
            let of = there.len();
            self.check(late == 0, format!("{late} of {of} pairs in {place} late, by {worst:.1} s"));
            let left = |pair: &&&Measured| pair.gone.is_none_or(|gone| gone > end + aftermath);
            let left = there.iter().filter(left).count();
            self.check(
                left == 0,
                format!("{left} of {of} pairs in {place} left {aftermath} s after"),
            );
            let never = there.iter().filter(|pair| pair.gone.is_none()).count();
            self.check(
                never == 0,
                format!("{never} of {of} pairs in {place} left {PATIENCE:?} after"),
            );
        }
        let early = pairs.iter().filter(|pair| pair.gone.is_some_and(|at| at < pair.expires_at));
        let early: Vec<_> = early.collect();
        self.check(early.is_empty(), format!("deleted too early: {early:?}"));
    }

    fn judge_sweeps(&mut self, gauged: &Gauged) {
        let (sweeps, gap) = (gauged.sweeps, gauged.longest_gap);
        self.figure("sweeps", sweeps as f64);
        self.figure("longest time without a sweep, s", gap.as_secs_f64());
        let complaint = format!("{gap:.1?} without a sweep, {sweeps} all in all");
        self.check(gap <= limit(MAX_SWEEP_GAP), complaint);
    }

    fn judge_service(&mut self, gauged: &mut Gauged, quiet: &Held) {
        let p99 = gauged.p99();
        self.figure("99 of 100 requests within, ms", p99.as_secs_f64() * 1e3);
        self.figure("memory when quiet, KiB", quiet.resident as f64);
        self.figure("memory at most, KiB", gauged.most.peak as f64);
        self.figure("threads at most", gauged.most.threads as f64);
        self.figure("descriptors at most", gauged.most.descriptors as f64);
        self.figure("inotify instances at most", gauged.most.inotify_instances as f64);
        self.figure("degraded", f64::from(u8::from(gauged.was_degraded)));
        self.check(gauged.unanswered == 0, format!("{} requests unanswered", gauged.unanswered));
        let max = if is_long() { limit(MAX_ANSWER) } else { MAX_ORDINARY_ANSWER };
        self.check(p99 <= max, format!("99 of 100 requests took up to {p99:.0?}"));
        let most = gauged.most;
        self.check(is_bounded(quiet, most.peak), format!("{} KiB in memory, {quiet:?}", most.peak));
        self.check(
            most.threads <= quiet.threads + MORE_THREADS
                && most.descriptors <= quiet.descriptors + MORE_DESCRIPTORS
                && most.inotify_instances <= MAX_INOTIFY_INSTANCES,
            format!("held {most:?}, {quiet:?}"),
        );
    }

    /// Threads and descriptors come back to what they were.
    fn judge_calm(&mut self, service: &Service, quiet: &Held) {
        let start = Instant::now();
        // In ordinary runs threads are left to the long ones, since that takes so long.
        // A sweep and a check of the directory, each once a second, may keep one thread more in the pool.
        let threads = if is_long() { quiet.threads + 1 } else { usize::MAX };
        let quiet = Held { threads, ..*quiet };
        let mut held = Held::by(service);
        while !held.is_within(&quiet) && start.elapsed() < PATIENCE {
            thread::sleep(LOOK_EVERY);
            held = Held::by(service);
        }
        self.figure(
            "until threads and descriptors are as before, s",
            start.elapsed().as_secs_f64(),
        );
        self.check(held.is_within(&quiet), format!("afterwards held {held:?}, {quiet:?}"));
    }

    /// SIGTERM amid the same storm ends the service.
    fn judge_end(&mut self, service: Service, flood: impl FnOnce() -> Flooders) {
        let flooders = flood();
        thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        service.signal(Signal::TERM);
        while !has_ended(service.pid()) && start.elapsed() < PATIENCE {
            thread::sleep(LOOK_EVERY);
        }
        let took = start.elapsed();
        self.figure("SIGTERM to exit, s", took.as_secs_f64());
        self.check(took <= limit(MAX_EXIT), format!("SIGTERM to exit took {took:.1?}"));
        if took < PATIENCE {
            let (status, _, log) = service.terminate();
            self.check(status.code() == Some(0), format!("ended with {status}: {log}"));
        }
        drop(flooders);
    }
}

/// Whether a child of ours has ended; it is not waited for yet.
fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().starts_with('Z')
}
