use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn space(free: u64) -> FreeSpace {
    FreeSpace { free, total: 10_000 }
}

fn counted(space: &CountedSpace) -> u64 {
    space.counted(0).unwrap().free
}

/// A batch that has evicted so many `bytes`, and what was free before and after it.
fn batch(start: EvictionStart, [before, after]: [u64; 2], bytes: u64) -> EvictedBatch {
    EvictedBatch { start, space: Some([space(before), space(after)]), bytes }
}

/// Starts and ends a batch.
fn evict(state: &mut CountedSpace, size: u64, free: [u64; 2], bytes: u64, now: Instant) {
    let start = state.start_batch((size, 0));
    state.end_batch(batch(start, free, bytes), (size - bytes, 0), now);
}

#[test]
fn what_was_evicted_counts_as_free_until_it_shows_or_for_half_a_minute() {
    let (mut state, start) = (CountedSpace::default(), Instant::now());
    evict(&mut state, 5300, [100, 100], 300, start);
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
    assert!(!state.end_credits(start + CREDIT_LIFETIME - SECOND));
    assert_eq!(counted(&state), 350);
    assert!(!state.end_credits(start + CREDIT_LIFETIME), "most of it shows");
    assert_eq!(counted(&state), 250);
}

#[test]
fn what_a_writer_takes_during_an_eviction_hides_it_only_until_the_pair_is_known() {
    let (mut state, start) = (CountedSpace::default(), Instant::now());
    // A writer has taken 80 of the 300 that were freed.
    evict(&mut state, 5300, [100, 320], 300, start);
    assert_eq!(counted(&state), 400, "what is written is no pair yet");
    state.read(space(320), 5080);
    assert_eq!(counted(&state), 320);
}

#[test]
fn what_two_batches_free_is_counted_once_however_they_overlap() {
    // Of each 300, 60 show: those of the metadata. The results are open.
    for (before_second, after_first) in [(100, 160), (130, 160), (160, 160), (100, 190), (160, 190)]
    {
        let (mut state, start) = (CountedSpace::default(), Instant::now());
        let [first, second] = [(5600, 0), (5600, 300)].map(|sizes| state.start_batch(sizes));
        state.end_batch(batch(first, [100, after_first], 300), (5300, 300), start);
        let free = counted(&state) + 300;
        assert!(free >= 700, "{before_second}, {after_first}: {free}");
        state.end_batch(batch(second, [before_second, 220], 300), (5000, 0), start);
        assert_eq!(counted(&state), 700, "{before_second}, {after_first}");
        state.read(space(220), 5000);
        assert_eq!(counted(&state), 700, "{before_second}, {after_first}");
    }
}

#[test]
fn what_a_batch_frees_is_counted_once_if_a_later_batch_ends_before_it() {
    let (mut state, start) = (CountedSpace::default(), Instant::now());
    let [first, second] = [(5600, 0), (5600, 300)].map(|sizes| state.start_batch(sizes));
    // The first one has freed 240 of its 300 when the second one begins.
    state.end_batch(batch(second, [340, 370], 30), (5570, 300), start);
    state.end_batch(batch(first, [100, 430], 300), (5270, 0), start);
    assert_eq!(counted(&state), 430, "all of it shows");
    assert!(!state.end_credits(start + CREDIT_LIFETIME));

    // The first one begins only when the second one has ended.
    let mut state = CountedSpace { high_water: Some(5700), ..CountedSpace::default() };
    let [first, second] = [(5600, 0), (5600, 290)].map(|sizes| state.start_batch(sizes));
    state.end_batch(batch(second, [100, 410], 310), (5290, 290), start);
    state.end_batch(batch(first, [410, 700], 290), (5000, 0), start);
    assert_eq!(counted(&state), 700, "all of it shows");
    assert!(!state.end_credits(start + CREDIT_LIFETIME));
}

#[test]
fn evictions_are_in_vain_if_less_than_half_of_them_shows_in_half_a_minute() {
    let (mut state, start) = (CountedSpace::default(), Instant::now());
    evict(&mut state, 5600, [100, 400], 300, start);
    evict(&mut state, 5300, [400, 400], 300, start + 2 * SECOND);
    assert!(!state.end_credits(start + CREDIT_LIFETIME + SECOND));
    assert!(!state.end_credits(start + CREDIT_LIFETIME + 2 * SECOND), "half of all shows");
    let later = start + CREDIT_LIFETIME + 3 * SECOND;
    evict(&mut state, 5000, [400, 404], 10, later);
    let is_in_vain = state.end_credits(later + CREDIT_LIFETIME);
    assert!(is_in_vain, "of what is not long ago, less than half shows");
}
