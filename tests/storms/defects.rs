//! Single things that a flood must not bring about.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    CacheDir, Pair, Service, extent, figure, free_address, now, wait_for_later_pair, wait_until,
};
use crate::flood::{Flooders, Kind};
use crate::gauge::{Held, reset_peak, sweeps};
use crate::measured::{LONG_AGO, Measured};
use crate::storm::{MAX_INOTIFY_INSTANCES, MAX_LATENESS, Storm, alone, is_bounded, length, limit};

/// How long a flood lasts at most: what is waited for comes much sooner, or not before its end.
const FLOOD: Duration = Duration::from_secs(20);
/// How often to look.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds, but not beyond the end of the flood; whether it held in time.
fn amid(flooders: &mut Flooders, mut condition: impl FnMut() -> bool) -> bool {
    loop {
        if flooders.are_over() {
            return false;
        }
        if condition() {
            return true;
        }
        thread::sleep(PAUSE);
    }
}

#[test]
fn chmod_of_broken_metadata_in_a_loop_keeps_no_sweep_from_ending_and_leaves_no_watcher_behind() {
    // One may have begun before the flood.
    const SWEEPS: u64 = 4;
    let _alone = alone();
    let cache = CacheDir::in_memory();
    let flooded = cache.path().join("flooded");
    Kind::ChmodBroken.prepare(&flooded, 0);
    let service = Service::ready(cache.path(), &["--check-interval", "1s"]);
    let mut flooders = Flooders::start(Kind::ChmodBroken, &flooded, 1, FLOOD);
    let (start, before) = (Instant::now(), sweeps(&service));
    let mut instances = 0;
    let go_on = amid(&mut flooders, || {
        instances = instances.max(Held::by(&service).inotify_instances);
        sweeps(&service) >= before + SWEEPS
    });
    let took = start.elapsed();
    let ended = sweeps(&service) - before;
    figure("broken metadata in a loop: sweeps", format!("{ended} in {took:.1?}"));
    figure("broken metadata in a loop: inotify instances", instances);
    assert!(go_on, "{ended} sweeps ended in {took:.1?} of flood\n{}", service.log());
    assert!(
        instances <= MAX_INOTIFY_INSTANCES,
        "{instances} inotify instances after {ended} sweeps in {took:.1?} of flood"
    );
}

#[test]
fn writes_to_open_results_keep_no_new_directory_from_being_watched_and_memory_stays_bounded() {
    let _alone = alone();
    let cache = CacheDir::in_memory();
    (0..2).for_each(|lane| Kind::Write.prepare(cache.path(), lane));
    let service = Service::ready(cache.path(), &["--check-interval", "1s"]);
    let quiet = Held::by(&service);
    reset_peak(&service);
    let mut flooders = Flooders::start(Kind::Write, cache.path(), 2, FLOOD);
    thread::sleep(Duration::from_millis(300));
    let (start, before) = (Instant::now(), sweeps(&service));
    let mut pairs: Vec<Measured> = Vec::new();
    let look = |pairs: &mut [Measured]| {
        pairs.iter_mut().for_each(Measured::look);
        pairs.iter().all(|pair| pair.gone.is_some())
    };
    for number in 0..20 {
        let dir = cache.path().join(format!("new-{number}"));
        pairs.push(Measured::publish(&dir, "new", LONG_AGO, false));
        let next = Instant::now() + Duration::from_millis(100);
        while Instant::now() < next {
            look(&mut pairs);
            thread::sleep(PAUSE);
        }
    }
    let all_gone = amid(&mut flooders, || look(&mut pairs));
    let go_on = amid(&mut flooders, || sweeps(&service) >= before + 2);
    let took = start.elapsed();
    let (ended, peak) = (sweeps(&service) - before, Held::by(&service).peak);
    let worst = pairs.iter().map(Measured::late).fold(0.0, f64::max);
    figure("writes to open results: sweeps", format!("{ended} in {took:.1?}"));
    figure("writes to open results: most late, s", format!("{worst:.1}"));
    figure(
        "writes to open results: memory, KiB",
        format!("{peak} at most, {} before", quiet.resident),
    );
    let left = pairs.iter().filter(|pair| pair.gone.is_none()).count();
    assert!(all_gone, "{left} of {} pairs left after {took:.1?} of flood", pairs.len());
    assert!(go_on, "{ended} sweeps ended in {took:.1?} of flood");
    assert!(worst <= limit(MAX_LATENESS).as_secs_f64(), "a pair was late by {worst:.1} s");
    assert!(is_bounded(&quiet, peak), "{peak} KiB in memory, {quiet:?}");
}

#[test]
fn in_a_large_tree_what_was_lost_is_found_soon_after_the_storm() {
    let _alone = alone();
    let staying = extent("TEST_RESULT_CLEANER_STAYING_PAIRS", 2000, 10_000);
    // No sweep but those that lost events bring about.
    let storm = Storm {
        kind: Kind::ChmodUnrelated,
        processes: 2,
        length: length(),
        staying,
        sweeps: false,
    };
    let failures = storm.make();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

// What follows makes no flood, and so goes beside the storms.

/// How many descriptors the service may have.
const FEW_DESCRIPTORS: usize = 64;
/// How many clients want one of them at most.
const CLIENTS: usize = 1000;
/// How long they stay at least.
const CROWD: Duration = Duration::from_secs(1);

/// Connects, without a word, until the service has one descriptor left; where it has none, it drops
/// some of those that say nothing.
fn crowd(service: &Service, address: &str, clients: &mut Vec<TcpStream>) {
    while Held::by(service).descriptors + 1 < FEW_DESCRIPTORS && clients.len() < CLIENTS {
        clients.extend(TcpStream::connect(address));
        thread::sleep(PAUSE);
    }
}

#[test]
fn where_clients_take_all_descriptors_what_expires_meanwhile_is_tried_again() {
    let cache = CacheDir::in_memory();
    let address = free_address();
    let mut command = Command::new("sh");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RESULT_CLEANER_") {
            command.env_remove(name);
        }
    }
    let limited = format!("ulimit -n {FEW_DESCRIPTORS}; exec \"$@\"");
    command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_result-cleaner"), "run"]);
    command.arg(cache.path()).args(["--no-metrics", "--listen", &address]);
    let service = Service::spawn(command, &format!("http://{address}"));
    service.wait_for_stat("watch", "active");
    wait_until("the first scan is over", || service.stats()["total_cleanups"] != 0);

    let mut clients = Vec::new();
    crowd(&service, &address, &mut clients);
    let publish = |number| {
        let dir = cache.path().join(format!("new-{number}"));
        Measured::publish(&dir, "new", now() + 0.3, false)
    };
    let mut pairs: Vec<Measured> = (0..10).map(publish).collect();
    let (start, mut left) = (Instant::now(), pairs.len());
    // A machine that is busy may take longer to delete a pair, or to fail.
    let has_failed = || service.log().contains("os error 24");
    while start.elapsed() < CROWD || left > 0 && !has_failed() && start.elapsed() < FLOOD {
        crowd(&service, &address, &mut clients);
        thread::sleep(PAUSE);
        pairs.iter_mut().for_each(Measured::look);
        left = pairs.iter().filter(|pair| pair.gone.is_none()).count();
    }
    drop(clients);
    let start = Instant::now();
    let is_gone = |pair: &Measured| pair.pair.is_gone();
    while !pairs.iter().all(is_gone) && start.elapsed() < FLOOD {
        thread::sleep(PAUSE);
    }
    let took = start.elapsed();
    let never = pairs.iter().filter(|pair| !is_gone(pair)).count();
    figure("no descriptor left: pairs left meanwhile", format!("{left} of {}", pairs.len()));
    figure("no descriptor left: until they are gone afterwards", format!("{took:.1?}"));
    let (log, errors) = (service.log(), service.stats()["total_errors"].clone());
    assert!(never == 0, "{never} left {took:.1?} after, {errors} errors were counted\n{log}");
    if left > 0 {
        assert!(has_failed(), "not logged:\n{log}");
        assert!(errors != 0, "no failure was counted\n{log}");
    }
}

/// The name of a directory: five of them make a path that the service does not watch.
const LONG_NAME: usize = 240;
/// Less than the two seconds for which it used to wait for each 2,048 pairs.
const MAX_STALL: Duration = Duration::from_millis(1500);
/// So many pairs share a directory.
const PER_DIRECTORY: u64 = 500;

/// Has `count` pairs that are due appear at once in `top`, `depth` directories down; how long it
/// takes until all are gone, and how late the pairs meanwhile in a watched directory are.
fn bulk(cache: &CacheDir, top: &str, depth: usize, count: u64) -> (Duration, f64) {
    let aside = cache.outside(top);
    let deep = (0..depth).fold(aside.clone(), |dir, _| dir.join("d".repeat(LONG_NAME)));
    for number in 0..count {
        let dir = deep.join((number / PER_DIRECTORY).to_string());
        Pair::at(&dir, &number.to_string()).write(LONG_AGO);
    }
    // Until none of them could be half published.
    thread::sleep(Duration::from_millis(1100));
    let moved = cache.path().join(top);
    fs::rename(&aside, &moved).unwrap();
    let start = Instant::now();
    let mut pairs = Vec::new();
    let is_over = |dir: &Path| {
        let mut entries = walkdir::WalkDir::new(dir).into_iter();
        entries.all(|entry| !entry.is_ok_and(|entry| entry.file_type().is_file()))
    };
    loop {
        let over = is_over(&moved);
        if !over {
            pairs.push(Measured::publish(
                &cache.path().join("watched"),
                "watched",
                LONG_AGO,
                false,
            ));
        }
        pairs.iter_mut().for_each(Measured::look);
        if over && pairs.iter().all(|pair| pair.gone.is_some()) {
            break;
        }
        assert!(start.elapsed() < 3 * FLOOD, "some of {count} pairs in {top} are left");
        thread::sleep(Duration::from_millis(20));
    }
    (start.elapsed(), pairs.iter().map(Measured::late).fold(0.0, f64::max))
}

#[test]
fn where_directories_are_not_watched_deletions_wait_for_no_event() {
    let cache = CacheDir::in_memory();
    let count = extent("TEST_RESULT_CLEANER_UNWATCHED_PAIRS", 3000, 20_000);
    let service = Service::ready(cache.path(), &["--fallback-interval", "1s"]);
    // From now on it knows that deletions are reported to it.
    wait_for_later_pair(&cache);
    let (watched, _) = bulk(&cache, "near", 0, count);
    let (unwatched, late) = bulk(&cache, "far", 5, count);
    figure(&format!("{count} pairs in watched directories"), format!("{watched:.1?}"));
    figure(&format!("{count} pairs in unwatched directories"), format!("{unwatched:.1?}"));
    figure("most late beside them, in a watched one, s", format!("{late:.1}"));
    assert!(late <= limit(MAX_STALL).as_secs_f64(), "a pair was late by {late:.1} s");
    let allowed = 2 * watched + limit(MAX_STALL);
    assert!(unwatched <= allowed, "{unwatched:.1?}, in watched directories {watched:.1?}");
    drop(service);
}

/// So many names come and go before their events are waited for.
const NAMES_AT_ONCE: u64 = 2000;
/// KiB by which memory may grow.
const GROWTH: u64 = 4 * 1024;

#[test]
fn metadata_names_that_come_and_go_without_a_result_leave_nothing_in_memory() {
    let cache = CacheDir::in_memory();
    let count = extent("TEST_RESULT_CLEANER_NAMES", 30_000, 186_000);
    let service = Service::ready(cache.path(), &[]);
    let source = cache.outside("source");
    fs::write(&source, "{}").unwrap();
    let come_and_go = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            let name = format!("{}-{number}.metadata.json", "n".repeat(180));
            let name = cache.path().join(name);
            fs::hard_link(&source, &name).unwrap();
            fs::remove_file(&name).unwrap();
            if number % NAMES_AT_ONCE == 0 {
                // Events that were lost would have it forget.
                wait_for_later_pair(&cache);
            }
        }
        wait_for_later_pair(&cache);
    };
    come_and_go(0..2 * NAMES_AT_ONCE);
    let before = Held::by(&service).resident;
    come_and_go(2 * NAMES_AT_ONCE..count);
    let after = Held::by(&service).resident;
    let more = after.saturating_sub(before);
    figure(&format!("memory after {count} names"), format!("{before} KiB, then {after} KiB"));
    // What it forgot because events were lost would prove nothing.
    service.assert_calm();
    assert!(more <= GROWTH, "{more} KiB more after {count} names, at first {before} KiB");
}
