//! What the parts that only compute take, in time and in allocations.
//!
//! `cargo bench --bench pure` (or `-- metadata` for those whose names contain that).

#![expect(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a benchmark ends where something unexpected happens, and prints its figures"
)]

use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher, black_box};

/// The modules are private to the library, and compiled in here once more, so that being measured
/// does not make them part of its interface. They are pure: they need nothing else of it.
#[path = "../src"]
#[allow(dead_code, unused_imports, reason = "only a part of each module is measured")]
mod source {
    pub(crate) mod pair;
    #[path = "schedule/queue.rs"]
    pub(crate) mod queue;
}

use source::pair::{expires_at, metadata, name};
use source::{pair, queue};

/// Has each benchmark print what it allocates.
#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// As the result store has written it.
const STORE: &str = include_str!("data/metadata.json");
/// As the integration guide shows it.
const GUIDE: &str = include_str!("data/guide.json");

fn main() {
    divan::main();
}

fn parse(bencher: Bencher, json: &str) {
    bencher
        .counter(BytesCount::of_str(json))
        .bench(|| metadata::expires_at(black_box(json.as_bytes())).unwrap());
}

#[divan::bench]
fn metadata_of_the_store(bencher: Bencher) {
    parse(bencher, STORE);
}

#[divan::bench]
fn metadata_of_the_guide(bencher: Bencher) {
    parse(bencher, GUIDE);
}

/// Whatever a program has put into `query_context` is passed over.
#[divan::bench]
fn metadata_of_100_kb(bencher: Bencher) {
    let filters = vec![r#"{"lang": ["rust", null], "depth": 5, "text": "a \"quoted\" one"}"#; 1600];
    let context = format!(r#""filters": [{}]"#, filters.join(", "));
    let json = STORE.replacen(r#""query":"#, &format!(r#"{context}, "query":"#), 1);
    assert!((100_000..130_000).contains(&json.len()));
    parse(bencher, &json);
}

#[divan::bench(args = [
    "2025-11-18T12:00:00Z",
    "2025-11-18T12:00:00.123456+05:30",
    "20251118T120000Z",
    "2025-11-18T12:00:00",
    "2025-11-18 12:00",
    "2025-11-18",
    "1763467200",
])]
fn expires_at_as_text(text: &str) -> bool {
    expires_at::from_text(black_box(text)).is_ok()
}

#[divan::bench]
fn expires_at_as_a_number() -> bool {
    expires_at::from_number(black_box(4_890_609_687.16)).is_ok()
}

#[divan::bench(args = [
    "228d96a0-c31a-405e-8cfd-0074e290eafc.result.json.lz4",
    "228d96a0-c31a-405e-8cfd-0074e290eafc.metadata.json",
    "latest_search.metadata.json",
    ".result-cleaner-228d96a0-c31a-405e-8cfd-0074e290eafc.r",
    "228d96a0-c31a-405e-8cfd-0074e290eafc.metadata.json.tmp",
])]
fn name(name: &str) -> name::Name {
    name::Name::of(black_box(name.as_bytes()))
}

type Queue = queue::Queue<name::Stem, u64, ()>;

/// One number after the other, in an order that looks like none.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn stem(number: u64) -> name::Stem {
    let name = format!("{:08x}-c31a-405e-8cfd-{number:012x}", scattered(number) as u32);
    name::Stem::new(name.as_bytes())
}

fn entries(count: u64) -> Vec<(name::Stem, u64)> {
    (0..count).map(|number| (stem(number), scattered(number))).collect()
}

fn filled(entries: Vec<(name::Stem, u64)>) -> Queue {
    let mut queue = Queue::default();
    for (stem, at) in entries {
        queue.insert(stem, at, ());
    }
    queue
}

const ENTRIES: [u64; 3] = [1_000, 100_000, 1_000_000];

/// What it holds at most is what so many waiting entries take.
#[divan::bench(args = ENTRIES, sample_count = 10, sample_size = 1)]
fn queue_fill(bencher: Bencher, count: u64) {
    let all = entries(count);
    bencher.counter(ItemsCount::new(count)).with_inputs(|| all.clone()).bench_values(filled);
}

#[divan::bench(args = ENTRIES, sample_count = 10, sample_size = 1)]
fn queue_drain(bencher: Bencher, count: u64) {
    let all = entries(count);
    bencher.counter(ItemsCount::new(count)).with_inputs(|| filled(all.clone())).bench_refs(
        |queue| {
            while let Some(soonest) = queue.pop_due(u64::MAX) {
                black_box(soonest);
            }
        },
    );
}

/// For the soonest that goes another one comes, so that they stay as many.
#[divan::bench(args = ENTRIES, sample_size = 100)]
fn queue_turnover(bencher: Bencher, count: u64) {
    let mut queue = filled(entries(count));
    let mut next = count;
    bencher
        .with_inputs(|| {
            next += 1;
            (stem(next), scattered(next))
        })
        .bench_local_values(|(stem, at)| {
            let soonest = queue.pop_due(u64::MAX);
            queue.insert(stem, at, ());
            soonest
        });
}
