//! The worker's clock and schedule in generated timelines. The wall clock is set by ±1 s to ±10 years,
//! once, several times in a row, and back and forth. The machine falls asleep. Only this file moves the
//! clocks.
//!
//! The test checks this rule. An *offset* is how far the wall clock is ahead of the time since boot;
//! only setting the clock changes it. Setting it back, or forward by at most one day, takes effect at
//! once. Setting it forward by more makes nothing due until the clock has been seen that far ahead for
//! 60 s. So the lowest offset of the last 60 s decides (each raised by the forward jumps since then that
//! took effect). A pair that is due by it
//! - is not deleted early: not before the wall clock has reached its `expires_at`, nor before the
//!   deciding time has; and
//! - is not deleted late: it is gone once it has been due for 3 s. Time asleep does not count, but pairs
//!   that became due in it are gone 3 s after waking. A step is noticed at the next reading of the clocks,
//!   a second later; here, each wake-up of the worker and each job may take another quarter of a second.
//!
//! The worker reads the clocks once per second. The next reading detects a step, and the cleaner sees
//! all steps between two readings as one. The rule therefore leaves open whether jumps that follow each
//! other so quickly count separately or together.

mod world;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use self::world::World;
use crate::trial::{extent, figure};

/// All times are in milliseconds.
const SECOND: i64 = 1000;
const HOUR: i64 = 3600 * SECOND;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

const EPOCH: i64 = 1_800_000_000 * SECOND;
const LATEST: i64 = 3 * SECOND;
const HOLD: i64 = 60 * SECOND;
/// How long the worker may take to wake up, and how long a job may take.
const SLOWEST: i64 = 240;

#[derive(Debug, Clone)]
enum Event {
    Pass(i64),
    /// The clock is set by this much.
    Step(i64),
    /// The last step is undone, except for this much.
    TakeBack(i64),
    /// The machine is asleep for this long.
    Sleep(i64),
}

/// A pair, and when it is published. It expires at `away` from a moment that one of the clocks passes.
#[derive(Debug, Clone)]
struct Plan {
    moment: Index,
    away: i64,
    published: Index,
}

#[derive(Debug, Clone)]
struct Timeline {
    events: Vec<Event>,
    plans: Vec<Plan>,
    /// How long the worker takes to wake up, and how long a job takes.
    slow: (i64, i64),
}

fn timelines() -> impl Strategy<Value = Timeline> {
    let events = prop::collection::vec(event(), 1..30);
    let plans = prop::collection::vec(plan(), 1..16);
    let all = (events, plans, (0..SLOWEST, 0..SLOWEST));
    all.prop_map(|(events, plans, slow)| Timeline { events: resolved(events), plans, slow })
}

/// Replaces each [`Event::TakeBack`] with the step that it stands for.
fn resolved(mut events: Vec<Event>) -> Vec<Event> {
    let mut last = 0;
    for event in &mut events {
        if let Event::TakeBack(but) = *event {
            *event = Event::Step(but - last);
        }
        if let Event::Step(by) = *event {
            last = by;
        }
    }
    events
}

fn event() -> impl Strategy<Value = Event> {
    let pause = prop_oneof![0..SECOND, SECOND..5 * SECOND, SECOND..70 * SECOND];
    let size = prop_oneof![
        Just(SECOND),
        SECOND..10 * SECOND,
        SECOND..HOUR,
        HOUR..DAY,
        DAY - 2 * SECOND..DAY + 2 * SECOND,
        DAY..40 * DAY,
        DAY..=10 * YEAR,
    ];
    prop_oneof![
        4 => pause.prop_map(Event::Pass),
        3 => (size, any::<bool>()).prop_map(|(size, back)| Event::Step(if back { -size } else { size })),
        1 => prop_oneof![Just(0), -HOUR..HOUR].prop_map(Event::TakeBack),
        1 => prop_oneof![SECOND..HOUR, HOUR..40 * DAY].prop_map(Event::Sleep),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let away = prop_oneof![Just(0), -2 * SECOND..2 * SECOND, -90 * SECOND..90 * SECOND, -DAY..DAY];
    let all = (any::<Index>(), away, any::<Index>());
    all.prop_map(|(moment, away, published)| Plan { moment, away, published })
}

/// Returns what the wall clock shows around each event, and what it would show if it had never been set.
fn moments(events: &[Event]) -> Vec<i64> {
    let (mut wall, mut unset) = (EPOCH, EPOCH);
    let mut moments = vec![EPOCH];
    for event in events {
        match *event {
            Event::Pass(time) | Event::Sleep(time) => {
                wall += time;
                unset += time;
            }
            Event::Step(by) | Event::TakeBack(by) => wall += by,
        }
        moments.extend([wall, unset]);
    }
    moments
}

#[test]
fn however_the_clock_is_set_nothing_goes_early_nor_more_than_three_seconds_late() {
    let cases = extent("TEST_RESULT_CLEANER_TIMELINES", 1_000, 30_000);
    let config = Config { cases: cases as u32, ..Config::with_source_file(file!()) };
    let totals = std::cell::Cell::new((0, 0, 0));
    let outcome = TestRunner::new(config).run(&timelines(), |timeline| {
        let world = World::new(&timeline).run(&timeline)?;
        let (deleted, held, latest) = totals.get();
        totals.set((deleted + world.deleted, held + world.held, latest.max(world.latest)));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let (deleted, held, latest) = totals.get();
    assert!(deleted > cases && held > cases / 10, "too little was tested: {deleted}, {held} held");
    figure(
        "clock set and machine asleep, generated timelines",
        format!(
            "{cases} timelines, {deleted} deletions ({held} after a hold), 0 early, the latest {latest} ms late"
        ),
    );
}
