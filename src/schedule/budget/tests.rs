use super::*;
use crate::pair::budget::MinFree;

const SECOND: Duration = Duration::from_secs(1);

fn state() -> (BudgetState, Instant) {
    let now = Instant::now();
    let min_free = Some(MinFree::Bytes(500));
    let budget = Budget { max_size: None, min_free, min_age: SECOND };
    (BudgetState::new(budget), now)
}

fn space(free: u64) -> FreeSpace {
    FreeSpace { free, total: 10_000 }
}

fn counted(state: &BudgetState) -> u64 {
    state.counted_space(0).unwrap().free
}

/// Starts a batch, while all pairs take `size`, and nothing is about to be freed.
fn start_batch(state: &mut BudgetState, size: u64) {
    let is_quiet = state.batches.is_empty() && state.hidden() == 0;
    state.batches.push_back(is_quiet.then_some(size));
}

#[test]
fn what_was_evicted_counts_as_free_until_it_shows_or_for_half_a_minute() {
    let (mut state, start) = state();
    start_batch(&mut state, 5300);
    state.end_batch([space(100), space(100)], 300, (5000, 0), start);
    assert_eq!(counted(&state), 400, "nothing of it shows");
    state.read(space(300), 5000);
    assert_eq!(counted(&state), 400, "a part of it shows");
    // What others use and free again was not freed late.
    state.read(space(200), 5000);
    state.read(space(300), 5000);
    assert_eq!(counted(&state), 400);
    // A writer has used space for pairs that are known.
    state.read(space(250), 5050);
    assert_eq!(counted(&state), 350);
    assert!(!state.end_credits(start + CREDIT_HOLDS - SECOND));
    assert_eq!(counted(&state), 350);
    assert!(!state.end_credits(start + CREDIT_HOLDS), "most of it shows");
    assert_eq!(counted(&state), 250);
}

#[test]
fn what_a_writer_takes_during_an_eviction_hides_it_only_until_the_pair_is_known() {
    let (mut state, start) = state();
    start_batch(&mut state, 5300);
    // A writer has taken 80 of the 300 that were freed.
    state.end_batch([space(100), space(320)], 300, (5000, 0), start);
    assert_eq!(counted(&state), 400, "what is written is no pair yet");
    state.read(space(320), 5080);
    assert_eq!(counted(&state), 320);
}

#[test]
fn what_two_batches_free_is_counted_once_however_they_overlap() {
    // Of each 300, 60 show: those of the metadata. The results are open.
    for (before_second, after_first) in [(100, 160), (130, 160), (160, 160), (100, 190), (160, 190)]
    {
        let (mut state, start) = state();
        start_batch(&mut state, 5600);
        start_batch(&mut state, 5600);
        state.end_batch([space(100), space(after_first)], 300, (5300, 300), start);
        let free = counted(&state) + 300;
        assert!(free >= 700, "{before_second}, {after_first}: {free}");
        state.end_batch([space(before_second), space(220)], 300, (5000, 0), start);
        assert_eq!(counted(&state), 700, "{before_second}, {after_first}");
        state.read(space(220), 5000);
        assert_eq!(counted(&state), 700, "{before_second}, {after_first}");
    }
}

#[test]
fn evictions_are_in_vain_if_less_than_half_of_them_shows_in_half_a_minute() {
    let (mut state, start) = state();
    start_batch(&mut state, 5600);
    state.end_batch([space(100), space(400)], 300, (5300, 0), start);
    start_batch(&mut state, 5300);
    state.end_batch([space(400), space(400)], 300, (5000, 0), start + 2 * SECOND);
    assert!(!state.end_credits(start + CREDIT_HOLDS + SECOND));
    assert!(!state.end_credits(start + CREDIT_HOLDS + 2 * SECOND), "half of all shows");
    let later = start + CREDIT_HOLDS + 3 * SECOND;
    start_batch(&mut state, 5000);
    state.end_batch([space(400), space(404)], 10, (4990, 0), later);
    let is_in_vain = state.end_credits(later + CREDIT_HOLDS);
    assert!(is_in_vain, "of what is not long ago, less than half shows");
}

#[test]
fn an_episode_ends_once_the_limits_were_kept_for_long() {
    let (calm, start) = (60 * SECOND, Instant::now());
    let mut reported = Reported { nothing_to_evict: true, ..Reported::default() };
    for (second, is_exceeded, is_reported) in [
        (0, true, true),
        (1, false, true),
        (60, true, true),
        (61, false, true),
        (90, false, true),
        (121, true, false),
    ] {
        reported.note(is_exceeded, calm, start + second * SECOND);
        assert_eq!(reported.nothing_to_evict, is_reported, "in second {second}");
    }
}
