//! The wall clock is set while the service runs: forward, far forward, back, to and fro. What is
//! due by the clock goes, nothing goes early, and what only a step of more than a day has made due
//! is held back for a minute, and nothing else is.
//!
//! The real binary under libfaketime (Debian's package `faketime`), which has it read a wall clock
//! that the tests set; without that they are skipped. Its other clocks are the real ones, as they
//! are when a real clock is set. Generated timelines, with a machine that sleeps, are a unit test.
//!
//! `TEST_RESULT_CLEANER_LONG` waits for the end of the minute, and sets the clock more often.

use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    CacheDir, FakeClock, Pair, Random, Service, extent, figure, in_time, is_long, now, seed,
    wait_for_later_pair, wait_until,
};

const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;
const WARNING: &str = " WARN the clock jumped forward";

#[test]
fn what_a_step_of_an_hour_makes_due_goes_at_once_and_nothing_else_does() {
    let Some(clock) = FakeClock::new() else { return };
    let cache = CacheDir::new();
    let first = cache.store("first", now() + 0.5 * HOUR);
    let second = cache.store("second", now() + 1.5 * HOUR);
    let service = clock.service(&cache, &[]);
    service.wait_for_stat("heap_size", 2);
    let start = Instant::now();
    clock.set(HOUR);
    wait_until("what has become due is gone", || first.is_gone());
    let took = start.elapsed();
    assert!(second.is_whole());
    service.wait_for_stat("heap_size", 1);
    clock.set(2.0 * HOUR);
    wait_until("what has become due is gone", || second.is_gone());
    assert_eq!(service.lines_with(WARNING), 0, "{}", service.log());
    end(service);
    figure("clock set forward by 1 h, until what is due is gone", format!("{took:?}"));
}

#[test]
fn nothing_goes_early_when_the_clock_is_set_back() {
    let Some(clock) = FakeClock::new() else { return };
    for by in [HOUR, 3650.0 * DAY] {
        in_time(|seconds| {
            clock.set(0.0);
            let cache = CacheDir::new();
            let service = clock.service(&cache, &[]);
            let expires_at = now() + seconds;
            let pair = cache.store("a", expires_at);
            let known = service.knows_before(expires_at, 1);
            clock.set(-by);
            if !known || now() >= expires_at {
                return false;
            }
            wait_until("it would be due without the step", || now() > expires_at + 0.1);
            wait_for_later_pair(&cache);
            assert!(pair.is_whole(), "{}", service.log());
            if by < DAY {
                clock.set(0.0);
                wait_until("it is due again, and gone", || pair.is_gone());
            }
            end(service);
            true
        });
    }
}

#[test]
fn what_only_a_step_of_40_days_has_made_due_is_held_back_and_the_rest_is_not() {
    let Some(clock) = FakeClock::new() else { return };
    let cache = CacheDir::new();
    let service = clock.service(&cache, &[]);
    let soon_at = now() + 1.5;
    let soon = cache.store("soon", soon_at);
    let far = cache.store("far", now() + 20.0 * DAY);
    wait_until("both are known", || service.stats()["heap_size"] == 2 || soon.is_gone());
    let start = Instant::now();
    clock.set(40.0 * DAY);
    wait_until("it warns", || service.lines_with(WARNING) == 1);
    wait_until("what is due without the step is gone", || soon.is_gone());
    assert!(now() >= soon_at, "it went early");
    wait_for_later_pair(&cache);
    assert_within_the_minute(start, far.is_whole());
    clock.set(0.0);
    wait_for_later_pair(&cache);
    assert!(far.is_whole(), "the step was taken back");
    service.wait_for_stat("heap_size", 1);
    assert_eq!(service.lines_with(WARNING), 1, "{}", service.log());
    end(service);
}

#[test]
fn what_only_a_step_of_40_days_has_made_due_goes_after_a_minute() {
    if !is_long() {
        return;
    }
    let Some(clock) = FakeClock::new() else { return };
    let cache = CacheDir::new();
    let far = cache.store("far", now() + 20.0 * DAY);
    let farther = cache.store("farther", now() + 60.0 * DAY);
    let between: Vec<(f64, Pair)> = (1..12)
        .map(|number| now() + 5.0 * f64::from(number))
        .map(|at| (at, cache.store(&format!("at-{at}"), at)))
        .collect();
    let service = clock.service(&cache, &[]);
    service.wait_for_stat("heap_size", 13);
    let start = Instant::now();
    clock.set(40.0 * DAY);
    for (at, pair) in &between {
        wait_until("what is due without the step is gone", || pair.is_gone());
        assert!(now() >= *at, "it went early");
        assert_within_the_minute(start, far.is_whole());
    }
    wait_until("the minute is over", || far.is_gone());
    let held = start.elapsed();
    assert!(held >= Duration::from_secs(60), "{held:?}");
    assert!(farther.is_whole());
    end(service);
    figure(
        "clock set forward by 40 days, what only this made due is held back",
        format!("{held:?}"),
    );
}

#[test]
fn a_clock_that_is_set_to_and_fro_has_nothing_deleted_early() {
    let Some(clock) = FakeClock::new() else { return };
    let mut random = Random(seed());
    let cache = CacheDir::new();
    let service = clock.service(&cache, &[]);
    // The steps that are believed go less far than the first of these, the others farther.
    let days_10 = cache.store("10-days", now() + 10.0 * DAY);
    let years_9 = cache.store("9-years", now() + 9.0 * 365.0 * DAY);
    service.wait_for_stat("heap_size", 2);
    let steps = extent("TEST_RESULT_CLEANER_STEPS", 60, 2_000);
    for number in 0..steps {
        let size = match random.below(4) {
            0 => 1.0,
            1 => random.fraction() * HOUR,
            2 => (40.0 + random.fraction() * 300.0) * DAY,
            _ => 10.0 * 365.0 * DAY,
        };
        clock.set(if random.one_in(2) { -size } else { size });
        thread::sleep(Duration::from_millis(random.below(40) as u64));
        clock.set(0.0);
        if number % 20 == 19 {
            wait_for_later_pair(&cache);
        }
    }
    wait_for_later_pair(&cache);
    assert!(days_10.is_whole() && years_9.is_whole(), "{}", service.log());
    service.wait_for_stat("heap_size", 2);
    end(service);
    figure("clock set to and fro by 1 s to 10 years", format!("{steps} times, 0 early"));
}

#[test]
fn what_became_due_while_the_service_was_frozen_goes_when_it_goes_on() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    service.stop();
    let expires_at = now() + 0.5;
    let pair = cache.store("a", expires_at);
    wait_until("it is due", || now() > expires_at + 1.0);
    assert!(pair.is_whole());
    service.go_on();
    wait_until("it is gone", || pair.is_gone());
    service.assert_calm();
}

/// Ends a service that had nothing to complain of, by a signal, so that libfaketime tidies up.
#[track_caller]
fn end(service: Service) {
    service.assert_calm();
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
}

#[track_caller]
fn assert_within_the_minute(start: Instant, holds: bool) {
    // On a machine that stood still for so long, the minute is over.
    assert!(holds || start.elapsed() >= Duration::from_secs(60));
}
