//! Random operations on a real directory while the real service works there: in the end the disk
//! and the service's figures are what a cleaner that polls would have made of it, without a sweep.
//!
//! `TEST_RESULT_CLEANER_REAL_OPERATIONS` sets how many operations.

mod budget;
mod operations;
mod shadow;
mod trees;

use std::collections::HashSet;
use std::fs;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{CacheDir, PATIENCE, Pair, Random, Service, extent, figure, now, seed};
use shadow::{Disk, Shadow, read};

/// How many directories with a service each there are at once, so that their rests overlap.
const WORLDS: u64 = 4;
/// How many operations there are between two rests.
const ROUND: u64 = 300;
/// What was as it is for less than this has not been believed to be broken, or to be whole.
const UNSETTLED: Duration = Duration::from_millis(800);

/// What came of it all.
#[derive(Default)]
struct Tally {
    deleted: u64,
    broken: u64,
    rests: u64,
    restarts: u64,
}

/// A file that is being written in two pieces.
struct Writer {
    file: fs::File,
    inode: u64,
    content: String,
    written: usize,
}

struct World {
    random: Random,
    cache: CacheDir,
    outside: PathBuf,
    shadow: Shadow,
    service: Option<Service>,
    writers: Vec<Writer>,
    /// What was done since the last rest.
    history: Vec<String>,
    names: u64,
    /// Of this process of the service: broken versions that it has to have counted, and those that
    /// it may have.
    reported: HashSet<u64>,
    perhaps_reported: HashSet<u64>,
    /// Of this process: pairs that it has to have deleted, and how many it may have.
    deleted: u64,
    perhaps_deleted: u64,
    /// Of these, how many the tally has.
    counted: u64,
    /// Results that could go already when it was started.
    before: HashSet<u64>,
    /// Whether one was killed since the last rest.
    killed: bool,
    tally: Tally,
}

#[test]
fn whatever_is_done_it_ends_as_with_a_polling_cleaner() {
    let operations = extent("TEST_RESULT_CLEANER_REAL_OPERATIONS", 3600, 100_000);
    let seed = seed();
    let mut sum = Tally::default();
    thread::scope(|scope| {
        let run = |seed| World::new(seed).run(operations.div_ceil(WORLDS));
        let worlds: Vec<_> =
            (0..WORLDS).map(|n| scope.spawn(move || run(seed.wrapping_add(n)))).collect();
        for world in worlds {
            let tally = world.join().unwrap_or_else(|panic| resume_unwind(panic));
            sum.deleted += tally.deleted;
            sum.broken += tally.broken;
            sum.rests += tally.rests;
            sum.restarts += tally.restarts;
        }
    });
    let Tally { deleted, broken, rests, restarts } = sum;
    assert!(deleted > 0 && broken > 0, "nothing was ever deleted, or broken");
    figure(
        "operations against the real service",
        format!(
            "{operations}, with {deleted} pairs deleted, {broken} broken versions counted and \
             {restarts} restarts; 0 divergences at {rests} rests"
        ),
    );
}

fn milliseconds() -> i64 {
    (now() * 1000.0) as i64
}

impl World {
    fn new(seed: u64) -> Self {
        let cache = CacheDir::new();
        let outside = cache.outside("outside");
        fs::create_dir(&outside).unwrap();
        let mut shadow = Shadow::new(cache.path(), milliseconds() + 5 * 3_600_000);
        shadow.dirs.insert(outside.clone());
        let service = Some(Service::start(cache.path(), &[]));
        Self {
            random: Random(seed),
            cache,
            outside,
            shadow,
            service,
            writers: Vec::new(),
            history: Vec::new(),
            names: 0,
            reported: HashSet::new(),
            perhaps_reported: HashSet::new(),
            deleted: 0,
            perhaps_deleted: 0,
            counted: 0,
            before: HashSet::new(),
            killed: false,
            tally: Tally::default(),
        }
    }

    fn run(mut self, operations: u64) -> Tally {
        for number in 1..=operations {
            let broken = self.broken();
            let start = Instant::now();
            self.operate();
            self.may_tell(broken);
            if start.elapsed() > UNSETTLED {
                // It may have been seen half done.
                self.names += 1;
                self.perhaps_reported.insert(u64::MAX - self.names);
            }
            if number % ROUND == 0 || number == operations {
                self.rest();
            }
        }
        self.tally
    }

    /// Broken versions that may be counted.
    fn broken(&self) -> Vec<(u64, Instant)> {
        self.shadow.pairs().iter().filter_map(|pair| self.shadow.broken(pair)).collect()
    }

    /// Takes note of those that may have been counted before they were changed.
    fn may_tell(&mut self, broken: impl IntoIterator<Item = (u64, Instant)>) {
        let old = broken.into_iter().filter(|(_, written)| written.elapsed() > UNSETTLED);
        self.perhaps_reported.extend(old.map(|(version, _)| version));
    }

    /// Takes note that a pair gets another result and then other metadata, and that it is touched.
    fn replaces(&mut self, pair: &Pair) {
        self.shadow.touch(pair);
        self.may_tell(self.shadow.broken(pair));
    }

    /// Waits until all is as it has to be.
    fn rest(&mut self) {
        while !self.writers.is_empty() {
            self.go_on_writing();
        }
        for pair in self.shadow.pairs().iter().filter(|pair| self.shadow.may_go(pair)) {
            let [result, metadata] = self.shadow.whole(pair).unwrap();
            let surely =
                !result.maybe && !metadata.maybe && !self.before.contains(&result.version.0);
            self.deleted += u64::from(surely);
            self.perhaps_deleted += 1;
        }
        self.perhaps_deleted += self.shadow.touched;
        self.before.clear();
        let deadline = Instant::now() + PATIENCE;
        let (disk, stats) = loop {
            match self.look_around() {
                Ok(rested) => break rested,
                Err(why) if Instant::now() > deadline => self.fail(&why),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        self.shadow.adopt(&disk);
        if std::mem::take(&mut self.killed) {
            let left = disk.0.keys().filter(|path| self.shadow.may_be_left(path));
            for path in left {
                fs::remove_file(path).unwrap();
            }
        }
        self.shadow.claimable.clear();
        let number = |key: &str| stats[key].as_u64().unwrap();
        for (what, least, most) in [
            ("total_errors", self.reported.len() as u64, self.perhaps_reported.len() as u64),
            ("total_deleted", self.deleted, self.perhaps_deleted),
            ("total_cleanups", 1, 1),
        ] {
            if !(least..=most).contains(&number(what)) {
                self.fail(&format!("{what} should be {least} to {most}: {stats}"));
            }
        }
        self.tally.deleted += number("total_deleted") - self.counted;
        self.counted = number("total_deleted");
        self.tally.rests += 1;
        self.history.clear();
    }

    /// What there is, if all is as it has to be, and why it is not.
    fn look_around(&mut self) -> Result<(Disk, serde_json::Value), String> {
        let home = self.cache.outside("");
        let disk = read(&home).ok_or("the disk changed")?;
        let polled = self.shadow.compare(&disk, self.killed)?;
        let service = self.service.as_ref().unwrap();
        let stats = service.stats();
        let next = stats["next_expiry"].as_str().map(|at| {
            (chrono::DateTime::parse_from_rfc3339(at).unwrap().timestamp_micros() + 500)
                .div_euclid(1000)
        });
        let reported: HashSet<u64> = polled.broken.keys().chain(&self.reported).copied().collect();
        let number = |key: &str| stats[key].as_u64().unwrap();
        if (number("heap_size"), next) != (polled.waiting, polled.next_expiry) {
            let (waiting, soonest) = (polled.waiting, polled.next_expiry);
            return Err(format!(
                "{waiting} pairs wait, the first for {soonest:?}, not {next:?}: {stats}"
            ));
        }
        if number("total_errors") < reported.len() as u64 || number("total_deleted") < self.deleted
        {
            let deleted = self.deleted;
            return Err(format!(
                "{deleted} deleted, and {reported:?} broken, as {:?}: {stats}",
                polled.broken
            ));
        }
        if stats["watch"] != "active"
            || number("total_cleanups") < 1
            || read(&home).as_ref() != Some(&disk)
        {
            return Err(format!("it does not come to rest: {stats}"));
        }
        self.perhaps_reported.extend(&reported);
        self.tally.broken += (reported.len() - self.reported.len()) as u64;
        self.reported = reported;
        Ok((disk, stats))
    }

    fn fail(&self, why: &str) -> ! {
        let log = self.service.as_ref().map(Service::log).unwrap_or_default();
        panic!("{why}\nafter {:#?}\n{log}", self.history);
    }
}
