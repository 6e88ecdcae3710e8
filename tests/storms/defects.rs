//! Single things that a flood must not bring about.

use std::thread;
use std::time::{Duration, Instant};

use crate::common::{CacheDir, Service, figure};
use crate::flood::{Flooders, Kind};
use crate::gauge::{Held, reset_peak, sweeps};
use crate::measured::{LONG_AGO, Measured};
use crate::storm::{MAX_INOTIFY_INSTANCES, MAX_LATENESS, alone, is_bounded, limit};

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
    const SWEEPS: u64 = 7;
    let _alone = alone();
    let cache = CacheDir::new();
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
    let cache = CacheDir::new();
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
    for number in 0..30 {
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
