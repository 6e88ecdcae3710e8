//! The same names are published again just when what stands there expires, while two services
//! delete in one directory: nothing fresh is lost, nothing is left over, nothing is counted twice.
//! One file, because all of its tests share the writers.
//!
//! `TEST_RESULT_CLEANER_PUBLICATIONS` sets how often is published in each test.

use std::fs::{self, File};
use std::io::Write;
use std::ops::AddAssign;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    CacheDir, PATIENCE, Pair, Random, Service, extent, figure, now, publish, seed, wait_until,
};

/// How often is published in each test, ordinarily and in a long run.
const PUBLICATIONS: (u64, u64) = (2000, 100_000);
/// How many names each writer publishes in a round, and how far apart they expire.
const NAMES: usize = 16;
const APART: f64 = 0.004;
/// How far from the expiry the name is published anew, at most.
const NEAR: f64 = 0.003;
/// Far ahead, with as many digits as the present has.
const FAR: f64 = 8e9;
/// A writer that was interrupted for longer between the two halves of a pair, so that its result
/// may count as abandoned, proves nothing.
const MAX_PAUSE: Duration = Duration::from_millis(900);

/// Opening a file in order to truncate it is not one step: the name is looked up, then the file is
/// emptied. A file that a cleaner took in between, and held and deleted while its writer was held
/// up for longer than that, is lost with what its writer then writes. This is the least time of
/// opening at which that may be the cause: for so long a result is held.
const HELD_UP: Duration = Duration::from_millis(2);
/// A file that was empty for longer than this, between being truncated and being written, while
/// another writer closed it, may have been counted as broken.
const SLOW: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, PartialEq)]
enum Style {
    /// Each file is written beside its place and renamed, as the result store does.
    Renamed,
    /// Each file is truncated and written where it is.
    InPlace,
}

#[test]
fn of_two_writers_that_rename_no_fresh_result_is_lost() {
    Trial::new(Style::Renamed, false).run();
}

#[test]
fn of_two_writers_that_write_in_place_no_fresh_result_is_lost() {
    Trial::new(Style::InPlace, false).run();
}

#[test]
fn of_two_writers_that_fight_for_a_name_by_renaming_the_last_one_wins() {
    Trial::new(Style::Renamed, true).run();
}

#[test]
fn of_two_writers_that_fight_for_a_name_in_place_the_last_one_wins() {
    Trial::new(Style::InPlace, true).run();
}

/// A writer that has looked a result up to write to it anew may come to that only when a cleaner
/// has taken it.
#[test]
fn a_result_that_is_written_to_right_after_it_was_claimed_is_restored() {
    const AFTER: Duration = Duration::from_micros(300);
    const SOON: Duration = Duration::from_millis(1);
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let tries = extent("TEST_RESULT_CLEANER_PUBLICATIONS", 100, 1000);
    // Long enough ahead for both halves to count as settled.
    let first = now() + 1.5;
    let at = |number: u64| first + number as f64 * 0.02;
    let pairs: Vec<_> = (0..tries).map(|n| cache.store(&format!("pair-{n}"), at(n))).collect();
    let mut in_time = 0;
    for pair in &pairs {
        let Ok(mut file) = File::options().write(true).open(&pair.result) else { continue };
        // When it was last known to be there.
        let mut seen = Instant::now();
        let mut looking = seen;
        while pair.result.exists() {
            (seen, looking) = (looking, Instant::now());
        }
        let gone = Instant::now();
        while gone.elapsed() < AFTER {}
        file.set_len(0).unwrap();
        file.write_all(b"fresh").unwrap();
        let took = seen.elapsed();
        fs::write(&pair.metadata, format!(r#"{{"expires_at": {FAR}}}"#)).unwrap();
        if took < SOON {
            in_time += 1;
            wait_until("the fresh result has its name back", || {
                fs::read(&pair.result).is_ok_and(|content| content == b"fresh")
            });
        }
    }
    if in_time == 0 {
        eprintln!("skipped: no write came in time on this busy machine\n{}", service.log());
    }
    figure("written to within 1 ms of being taken", format_args!("0 of {in_time} lost"));
}

struct Trial {
    style: Style,
    /// Whether both writers publish under the same names.
    shared: bool,
    seed: u64,
    cache: CacheDir,
    /// When what stands under each name of a round expires, for each writer's names.
    expiries: [Mutex<[f64; NAMES]>; 2],
    /// What was published last under each name, by each writer. The names of even and odd rounds
    /// differ, so that those of one round are left alone for a whole other round.
    last: [[[Mutex<Option<Publication>>; NAMES]; 2]; 2],
    barrier: Barrier,
    tally: Mutex<Tally>,
}

/// A publication, and when each of its halves was put in place: not before, and not after.
#[derive(Debug, Clone)]
struct Publication {
    tag: String,
    result: (Instant, Instant),
    metadata: (Instant, Instant),
    /// How long it took to open a file at the most, where that was written in place.
    opening: Duration,
}

impl Publication {
    /// Whether its metadata may have been seen empty for too long, as if its writer were gone.
    fn is_slow(&self) -> bool {
        self.metadata.1 - self.metadata.0 > SLOW
    }

    fn pause(&self) -> Duration {
        self.metadata.1 - self.result.0
    }
}

#[derive(Debug, Default)]
struct Tally {
    published: u64,
    expired: u64,
    excluded: u64,
    slow: u64,
    longest_opening: Duration,
    held_up: Vec<String>,
    lost: Vec<String>,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.published += other.published;
        self.expired += other.expired;
        self.excluded += other.excluded;
        self.slow += other.slow;
        self.longest_opening = self.longest_opening.max(other.longest_opening);
        self.held_up.extend(other.held_up);
        self.lost.extend(other.lost);
    }
}

impl Trial {
    fn new(style: Style, shared: bool) -> Self {
        Self {
            style,
            shared,
            seed: seed(),
            cache: CacheDir::new(),
            expiries: Default::default(),
            last: Default::default(),
            barrier: Barrier::new(2),
            tally: Mutex::default(),
        }
    }

    fn run(self) {
        let wanted = extent("TEST_RESULT_CLEANER_PUBLICATIONS", PUBLICATIONS.0, PUBLICATIONS.1);
        let services = [0, 1].map(|_| Service::start(self.cache.path(), &[]));
        // Each writer publishes each of its names twice a round; of shared names one does so once.
        let per_round = (if self.shared { 3 } else { 4 }) * NAMES as u64;
        let rounds = wanted.div_ceil(per_round).max(3);
        thread::scope(|scope| {
            for writer in 0..2 {
                let trial = &self;
                scope.spawn(move || trial.write(writer, rounds));
            }
        });
        self.check_all();
        let owners = if self.shared { 0..1 } else { 0..2 };
        let pairs: Vec<Pair> = (0..2)
            .flat_map(|parity| owners.clone().map(move |owner| (parity, owner)))
            .flat_map(|place| (0..NAMES).map(move |name| (place, name)))
            .map(|((parity, owner), name)| self.pair(parity, owner, name))
            .collect();
        let mut expected: Vec<_> = pairs
            .iter()
            .flat_map(|pair| [&pair.result, &pair.metadata])
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        expected.sort();
        let mut tally = std::mem::take(&mut *self.tally.lock().unwrap());
        figure(
            self.what(),
            format_args!(
                "{} of {} lost; {} left out for a pause, longest opening {:?}",
                tally.lost.len() + tally.held_up.len(),
                tally.published,
                tally.excluded,
                tally.longest_opening,
            ),
        );
        println!("{} lost whose writer was held up: {:#?}", tally.held_up.len(), tally.held_up);
        let logs = || services.each_ref().map(Service::log).join("----\n");
        assert!(tally.lost.is_empty(), "lost: {:#?}\n{}", tally.lost, logs());
        if tally.excluded == 0 && tally.held_up.is_empty() {
            wait_until("only the last pairs are left", || self.cache.files() == expected);
        }
        for pair in &pairs {
            publish(&pair.metadata, br#"{"expires_at": 1.5}"#);
        }
        tally.expired += pairs.len() as u64;
        wait_until("everything that expired is gone", || self.cache.files().is_empty());
        let sum = |key: &str| -> u64 {
            services.iter().map(|service| service.stats()[key].as_u64().unwrap()).sum()
        };
        wait_until("the services know it", || sum("heap_size") == 0);
        let (deleted, errors) = (sum("total_deleted"), sum("total_errors"));
        println!(
            "{deleted} of {} expired publications deleted, {errors} errors, {} slow writes",
            tally.expired, tally.slow
        );
        let excused = if self.style == Style::InPlace { tally.slow } else { 0 };
        assert!(errors <= excused, "{errors} errors, {excused} excused\n{}", logs());
        assert!(deleted <= tally.expired, "{deleted} deleted of {}", tally.expired);
        assert!(deleted >= expected.len() as u64 / 2, "the last ones at least");
    }

    fn what(&self) -> &'static str {
        match (self.style, self.shared) {
            (Style::Renamed, false) => "republished by renaming within 3 ms of expiry",
            (Style::Renamed, true) => "the same, two writers of the same names",
            (Style::InPlace, false) => "republished in place within 3 ms of expiry",
            (Style::InPlace, true) => "the same in place, two writers of the same names",
        }
    }

    fn write(&self, writer: usize, rounds: u64) {
        let mut random = Random(self.seed ^ (writer as u64) << 32);
        let owner = if self.shared { 0 } else { writer };
        let mut tally = Tally::default();
        for round in 0..rounds {
            let parity = (round % 2) as usize;
            // The one that may be seen to be fresh for a while, then one that expires soon.
            if owner == writer {
                let start = now() + 0.02;
                for name in 0..NAMES {
                    self.check(parity, owner, name, &mut tally);
                    let at = start + name as f64 * APART;
                    let tag = format!("{writer}-{round}-soon");
                    let pair = self.pair(parity, owner, name);
                    tally.slow += u64::from(self.publish_settled(&pair, &tag, at).is_slow());
                    self.expiries[owner].lock().unwrap()[name] = at;
                    tally.published += 1;
                    tally.expired += 1;
                }
            }
            self.barrier.wait();
            for name in 0..NAMES {
                let at = self.expiries[owner].lock().unwrap()[name];
                sleep_to(at + (random.fraction() * 2.0 - 1.0) * NEAR);
                let tag = format!("{writer}-{round}");
                let publication = self.publish(&self.pair(parity, owner, name), &tag, FAR);
                tally.slow += u64::from(publication.is_slow());
                tally.longest_opening = tally.longest_opening.max(publication.opening);
                *self.last[parity][writer][name].lock().unwrap() = Some(publication);
                tally.published += 1;
            }
            self.barrier.wait();
        }
        *self.tally.lock().unwrap() += tally;
    }

    fn check_all(&self) {
        let mut tally = Tally::default();
        for parity in 0..2 {
            for owner in 0..if self.shared { 1 } else { 2 } {
                for name in 0..NAMES {
                    self.check(parity, owner, name, &mut tally);
                }
            }
        }
        *self.tally.lock().unwrap() += tally;
    }

    /// Checks that what was published last under the name stands there. Where that were two at
    /// once, each half may be of either.
    fn check(&self, parity: usize, owner: usize, name: usize, tally: &mut Tally) {
        let writers = if self.shared { 0..2 } else { owner..owner + 1 };
        let last: Vec<Publication> = writers
            .filter_map(|writer| self.last[parity][writer][name].lock().unwrap().clone())
            .collect();
        if last.is_empty() {
            return;
        }
        if last.iter().any(|publication| publication.pause() > MAX_PAUSE) {
            tally.excluded += 1;
            return;
        }
        let pair = self.pair(parity, owner, name);
        let half = |path: &Path, spans: fn(&Publication) -> (Instant, Instant)| {
            let newest = last.iter().map(|publication| spans(publication).0).max();
            let text = fs::read_to_string(path).unwrap_or_default();
            last.iter().any(|publication| {
                Some(spans(publication).1) >= newest && text.contains(&quoted(&publication.tag))
            })
        };
        // A cleaner may have taken a file for an instant.
        let deadline = Instant::now() + PATIENCE;
        while !half(&pair.result, |last| last.result) || !half(&pair.metadata, |last| last.metadata)
        {
            if Instant::now() > deadline {
                let there = [&pair.result, &pair.metadata].map(fs::read_to_string);
                let held_up = last.iter().any(|publication| publication.opening > HELD_UP);
                let lost = if held_up { &mut tally.held_up } else { &mut tally.lost };
                lost.push(format!("{pair:?}: {last:?}, but {there:?}"));
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn pair(&self, parity: usize, owner: usize, name: usize) -> Pair {
        Pair::at(self.cache.path(), &format!("{parity}-{owner}-{name}"))
    }

    /// Publishes a pair whose metadata is newer than its result even in the file system's coarse
    /// time, so that nothing holds up its deletion.
    fn publish_settled(&self, pair: &Pair, tag: &str, expires_at: f64) -> Publication {
        let publication = self.publish(pair, tag, expires_at);
        let changed = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ctime(), metadata.ctime_nsec()))
        };
        while let (Some(result), Some(metadata)) = (changed(&pair.result), changed(&pair.metadata))
            && metadata <= result
        {
            fs::set_permissions(&pair.metadata, fs::Permissions::from_mode(0o644)).unwrap();
        }
        publication
    }

    fn publish(&self, pair: &Pair, tag: &str, expires_at: f64) -> Publication {
        // All of one length, so that their sizes do not distinguish them.
        let result = format!("{:>40}", quoted(tag));
        let metadata = format!("{{\"expires_at\": {expires_at:.6}, \"by\": {result}}}");
        let mut opening = Duration::ZERO;
        let mut put = |path: &Path, content: &str, other: &str| {
            let start = Instant::now();
            match self.style {
                // Writers that fight must not take each other's temporary file.
                Style::Renamed if self.shared => {
                    let temporary = path.with_extension(format!("{other}.tmp"));
                    fs::write(&temporary, content).unwrap();
                    fs::rename(&temporary, path).unwrap();
                }
                Style::Renamed => publish(path, content.as_bytes()),
                Style::InPlace => {
                    let mut file = File::create(path).unwrap();
                    opening = opening.max(start.elapsed());
                    file.write_all(content.as_bytes()).unwrap();
                }
            }
            (start, Instant::now())
        };
        let result_put = put(&pair.result, &result, tag);
        let metadata_put = put(&pair.metadata, &metadata, tag);
        Publication { tag: tag.to_owned(), result: result_put, metadata: metadata_put, opening }
    }
}

fn quoted(tag: &str) -> String {
    format!("\"{tag}\"")
}

/// Waits for a moment of the wall clock.
fn sleep_to(at: f64) {
    while let left = at - now()
        && left > 0.0
    {
        // The scheduler may wake a sleeper late; the rest is spun.
        if left > 0.0005 {
            thread::sleep(Duration::from_secs_f64(left - 0.0004));
        }
    }
}
