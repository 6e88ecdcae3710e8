//! Many cleaners of different processes on one directory: services, some of which are killed or
//! ended and started again all the time, sweeps, and a program of another kind that polls and
//! unlinks by itself. Each pair is deleted, counted once by the one that removed its result, and
//! nobody sees an error; what has not expired is not touched.
//!
//! `TEST_RESULT_CLEANER_PAIRS` sets how many pairs there are. In the long runs it is 20,000.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{
    CacheDir, Pair, Random, extent, figure, has_strace, is_long, last_stats, many_services, now,
    result_cleaner, seed, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const CLEANERS: usize = 8;
const DELETED: &str = "deleted an expired result";
const UNCOUNTED: &str = "jobs that are still running at shutdown are not counted";
const TAKEN_UP: &str = "completing an interrupted deletion";
/// A recovery may keep its lock for longer than a deletion waits, if others have the processors. The deletion is
/// then an error, and tried again.
const LOCKED: &str = "another program has locked the directory";

#[test]
fn eight_services_that_are_ended_and_started_again_count_each_pair_once() {
    let crowd = Crowd::new(2_000);
    let totals = crowd.restarting(&[], Cleaner::end);
    crowd.assert_counted(&totals, "eight services that are ended and started again");
}

#[test]
fn eight_services_that_are_killed_and_started_again_leave_nothing_and_count_no_pair_twice() {
    let crowd = Crowd::new(2_000);
    // They log each deletion, so that it is known what the killed ones have counted.
    let totals = crowd.restarting(&["-v"], Cleaner::kill);
    crowd.assert_at_rest(&totals, Some(LOCKED));
    let number = crowd.expired.len();
    let reported: usize = totals.iter().map(|totals| totals.lines_with(DELETED)).sum();
    let taken_up: usize = totals.iter().map(|totals| totals.lines_with(TAKEN_UP)).sum();
    assert!(reported > 0 && reported <= number, "{reported} of {number}");
    figure(
        "eight services that are killed and started again",
        format!(
            "{number} pairs, {} kills, {reported} deletions logged before a kill, {taken_up} of them \
             taken up from a killed one, 0 reported twice, {} errors",
            totals.len() - CLEANERS,
            totals.iter().map(|totals| totals.lines_with(LOCKED)).sum::<usize>(),
        ),
    );
}

#[test]
fn services_sweeps_and_a_program_that_unlinks_by_itself_count_each_pair_once() {
    let crowd = Crowd::new(2_000);
    let services: Vec<Cleaner> = (0..3).map(|_| crowd.service(&[])).collect();
    let over = Flag::default();
    let mut totals = thread::scope(|scope| {
        let end = Raise(&over);
        let sweeps = [0; 3].map(|_| scope.spawn(|| crowd.sweep_until(&over)));
        let polls = [0; 2].map(|_| scope.spawn(|| crowd.poll_until(&over)));
        crowd.wait_until_expired_are_gone();
        drop(end);
        let all = sweeps.into_iter().chain(polls);
        all.flat_map(|thread| thread.join().unwrap()).collect::<Vec<Totals>>()
    });
    totals.extend(services.into_iter().map(Cleaner::end));
    crowd.assert_counted(&totals, "services, sweeps, and another program");
}

#[test]
fn a_result_goes_though_another_program_has_deleted_its_metadata_meanwhile() {
    if !has_strace() {
        return;
    }
    // Held up when it has taken the result; and when it is about to take the metadata.
    let taken = "renameat2:delay_exit=1500000:when=1";
    let about_to_take = "renameat2:delay_enter=1500000:when=2";
    for (fault, leaves_link) in [(taken, false), (taken, true), (about_to_take, false)] {
        let cache = CacheDir::in_memory();
        let pair = cache.store("a", 1.5);
        let Some(sweep) = thread::scope(|scope| {
            let sweep = scope.spawn(|| sweep_with(fault, cache.path()));
            wait_until("the result is taken", || !pair.result.exists());
            let in_time = fs::remove_file(&pair.metadata).is_ok();
            if leaves_link && in_time {
                symlink("elsewhere", &pair.metadata).unwrap();
            }
            Some(sweep.join().unwrap()).filter(|_| in_time)
        }) else {
            eprintln!("left out: the machine is too busy");
            continue;
        };
        // What is not metadata, but bears its name, is left alone, and so is the result.
        let left = if leaves_link { &["a.metadata.json", "a.result.json.lz4"][..] } else { &[] };
        assert_eq!(cache.files(), left, "{fault}");
        assert_eq!(sweep["deleted_count"], u64::from(!leaves_link), "{fault}");
        assert_eq!(sweep["errors"], 0, "{fault}");
    }
}

/// What one process has counted in its life.
#[derive(Debug, Default)]
struct Totals {
    deleted: u64,
    freed: u64,
    errors: u64,
    /// Whether that is all.
    is_all: bool,
    /// What it has logged.
    log: String,
}

impl Totals {
    fn lines_with(&self, text: &str) -> usize {
        self.log.lines().filter(|line| line.contains(text)).count()
    }
}

/// A cache directory full of pairs.
struct Crowd {
    cache: CacheDir,
    logs: tempfile::TempDir,
    started: AtomicU64,
    expired: Vec<Pair>,
    bytes: u64,
    /// The size of each result.
    result_bytes: u64,
    live: Vec<Pair>,
    untouched: Vec<[i64; 6]>,
    _many: MutexGuard<'static, ()>,
}

impl Crowd {
    /// Half of the pairs have expired, the others do within the next seconds. Some do not.
    fn new(ordinary: u64) -> Self {
        let many = many_services();
        let cache = CacheDir::in_memory();
        let number = extent("TEST_RESULT_CLEANER_PAIRS", ordinary, 20_000);
        let name = |kind: &str, number: u64| format!("session-{}/{kind}-{number}", number % 20);
        let live: Vec<Pair> =
            (0..number / 20).map(|at| cache.store(&name("live", at), now() + 3600.0)).collect();
        let start = now();
        let even = (0..number).step_by(2).map(|at| cache.store(&name("expired", at), 1.5));
        let mut expired: Vec<Pair> = even.collect();
        // From when the last of them are written, for some seconds more.
        let spread = if is_long() { 15.0 } else { 2.0 };
        let start = now() + 1.1 * (now() - start);
        expired.extend((1..number).step_by(2).map(|at| {
            cache.store(&name("expired", at), start + at as f64 / number as f64 * spread)
        }));
        let bytes = expired.iter().map(Pair::bytes).sum();
        let result_bytes = fs::metadata(&expired[0].result).unwrap().len();
        let untouched = seen(&live);
        let logs = tempfile::tempdir().unwrap();
        Self {
            cache,
            logs,
            started: AtomicU64::new(0),
            expired,
            bytes,
            result_bytes,
            live,
            untouched,
            _many: many,
        }
    }

    fn service(&self, args: &[&str]) -> Cleaner {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.logs.path().join(number.to_string());
        let mut command = result_cleaner();
        command.arg("run").arg(self.cache.path()).arg("--no-metrics").args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Cleaner { child: command.spawn().unwrap(), log }
    }

    /// Eight at a time, each of which meets its end after a while, and has a successor; the last
    /// ones stay until everything is gone.
    fn restarting(&self, args: &[&str], end: impl Fn(Cleaner) -> Totals + Sync) -> Vec<Totals> {
        let seed = seed();
        let lives = if is_long() { 20 } else { 4 };
        let mut totals: Vec<Totals> = thread::scope(|scope| {
            let live = |slot: u64| {
                let mut random = Random(seed ^ slot << 32);
                let lives = (0..lives).map(|_| {
                    let cleaner = self.service(args);
                    thread::sleep(Duration::from_millis(random.below(1_000) as u64));
                    end(cleaner)
                });
                lives.collect::<Vec<_>>()
            };
            let slots = (0..CLEANERS as u64).map(|slot| scope.spawn(move || live(slot)));
            let slots: Vec<_> = slots.collect();
            slots.into_iter().flat_map(|slot| slot.join().unwrap()).collect()
        });
        let last: Vec<Cleaner> = (0..CLEANERS).map(|_| self.service(args)).collect();
        self.wait_until_expired_are_gone();
        totals.extend(last.into_iter().map(Cleaner::end));
        totals
    }

    /// Sweep after sweep.
    fn sweep_until(&self, over: &Flag) -> Vec<Totals> {
        let mut totals = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let mut command = result_cleaner();
            let output = command.args(["sweep", "--json"]).arg(self.cache.path()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            totals.push(Totals {
                deleted: report["deleted_count"].as_u64().unwrap(),
                freed: report["freed_bytes"].as_u64().unwrap(),
                errors: report["errors"].as_u64().unwrap(),
                is_all: true,
                log: String::from_utf8(output.stderr).unwrap(),
            });
        }
        totals
    }

    /// Looks at everything again and again, and unlinks what has expired, as a program that polls
    /// does.
    fn poll_until(&self, over: &Flag) -> Vec<Totals> {
        let mut totals = Totals { is_all: true, ..Totals::default() };
        while !over.load(Ordering::Relaxed) {
            for pair in &self.expired {
                let Ok(content) = fs::read(&pair.metadata) else { continue };
                let metadata: Value = serde_json::from_slice(&content).unwrap();
                if metadata["expires_at"].as_f64().unwrap() > now() {
                    continue;
                }
                if fs::remove_file(&pair.result).is_ok() {
                    totals.deleted += 1;
                    totals.freed += self.result_bytes;
                }
                if fs::remove_file(&pair.metadata).is_ok() {
                    totals.freed += content.len() as u64;
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        vec![totals]
    }

    fn wait_until_expired_are_gone(&self) {
        let mut left: Vec<&Pair> = self.expired.iter().collect();
        wait_until("everything that expired is gone", || {
            left.retain(|pair| !pair.is_gone());
            thread::sleep(Duration::from_millis(20));
            left.is_empty() && self.cache.files().len() == 2 * self.live.len()
        });
    }

    /// Asserts that nothing is left but what lives, untouched; that there was no error but those whose lines have
    /// `tolerated` in them; and that nobody logged a deletion that somebody else logged.
    #[track_caller]
    fn assert_at_rest(&self, totals: &[Totals], tolerated: Option<&str>) {
        assert_eq!(self.cache.files().len(), 2 * self.live.len(), "{:?}", self.cache.files());
        assert_eq!(seen(&self.live), self.untouched, "what lives was touched");
        let mut reported = HashSet::new();
        for totals in totals {
            let is_tolerated = |line: &&str| tolerated.is_some_and(|text| line.contains(text));
            let errors = totals.log.lines().filter(is_tolerated).count();
            assert!(totals.errors <= errors as u64, "{}", totals.log);
            for line in totals.log.lines().filter(|line| !is_tolerated(line)) {
                assert!(!line.contains(" WARN ") && !line.contains(" ERROR "), "{line}");
                if line.contains(DELETED) {
                    let (_, path) = line.split_once("path=").unwrap();
                    let path = path.split_whitespace().next().unwrap();
                    assert!(reported.insert(path.to_owned()), "{path} was deleted twice");
                }
            }
        }
    }

    /// Asserts this, and that together they have counted each pair and each byte.
    #[track_caller]
    fn assert_counted(&self, totals: &[Totals], who: &str) {
        self.assert_at_rest(totals, None);
        let number = self.expired.len() as u64;
        let deleted: u64 = totals.iter().map(|totals| totals.deleted).sum();
        let freed: u64 = totals.iter().map(|totals| totals.freed).sum();
        if totals.iter().all(|totals| totals.is_all) {
            assert_eq!((deleted, freed), (number, self.bytes));
        } else {
            // A service has to end within a second, however busy the machine is.
            println!("left out: a service could not end its work, or its log, in time");
            assert!(deleted <= number && freed <= self.bytes, "{deleted} of {number}, {freed}");
        }
        let busy = totals.iter().filter(|totals| totals.deleted > 0).count();
        assert!(busy > 1, "they did not compete");
        figure(
            &format!("{who} on one directory"),
            format!(
                "{number} pairs, {deleted} counted by {busy} of {} processes, 0 errors",
                totals.len()
            ),
        );
    }
}

/// What reading, linking or writing a file would change of it.
fn seen(pairs: &[Pair]) -> Vec<[i64; 6]> {
    let files = pairs.iter().flat_map(|pair| [&pair.result, &pair.metadata]);
    files
        .map(|file| {
            let seen = fs::metadata(file).unwrap();
            let ino = seen.ino().cast_signed();
            [
                ino,
                seen.mtime(),
                seen.mtime_nsec(),
                seen.ctime(),
                seen.ctime_nsec(),
                seen.nlink().cast_signed(),
            ]
        })
        .collect()
}

/// A service as a process of its own, which logs to a file.
struct Cleaner {
    child: Child,
    log: PathBuf,
}

impl Cleaner {
    /// Ends it as a supervisor does; what it has counted.
    fn end(mut self) -> Totals {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        // Before that, it might not know the signal yet.
        wait_until("it runs", || fs::metadata(&self.log).unwrap().len() > 0);
        kill_process(pid, Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        let log = fs::read_to_string(&self.log).unwrap();
        assert!(status.success(), "{status}: {log}");
        // A log that is written too slowly ends without the last line.
        if !log.contains(" stopped: ") {
            return Totals { log, ..Totals::default() };
        }
        let stats = last_stats(&log);
        let figure = |key: &str| stats[key].as_u64().unwrap();
        Totals {
            deleted: figure("total_deleted"),
            freed: figure("total_freed_bytes"),
            errors: figure("total_errors"),
            is_all: !log.contains(UNCOUNTED),
            log,
        }
    }

    /// Kills it, so that only its log is left.
    fn kill(mut self) -> Totals {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let log = fs::read_to_string(&self.log).unwrap();
        Totals { log, ..Totals::default() }
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sweeps with a fault of strace's making; what it printed.
fn sweep_with(fault: &str, dir: &Path) -> Value {
    let binary = result_cleaner();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={fault}")]);
    command.arg(binary.get_program()).args(["sweep", "--json"]).arg(dir);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

type Flag = AtomicBool;

/// Raises a flag when it is dropped, so that threads end although the test has failed.
struct Raise<'a>(&'a Flag);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
