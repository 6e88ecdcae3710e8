//! Random operations on a real directory with a disk budget: which pairs the real services evict, against an oracle
//! that knows nothing of the code that is tested.
//!
//! `TEST_RESULT_CLEANER_BUDGET_ROUNDS` sets the number of rounds.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    CacheDir, PATIENCE, Pair, Random, Service, extent, figure, now, publish, seed,
};

/// What all may take, and the largest pair.
const LIMIT: u64 = 2 << 20;
const LARGEST: u64 = 68 << 10;
/// From which age on a pair may be evicted, and after which it surely is if it has to.
const MIN_AGE: f64 = 0.3;
const NAMES: usize = 120;

/// A pair that was put there.
#[derive(Debug, Clone, Copy)]
struct Put {
    expires_at: f64,
    /// When its result was last published.
    published: f64,
    /// Whether it has not been touched since the last rest.
    is_stable: bool,
    is_linked: bool,
}

struct World {
    random: Random,
    cache: CacheDir,
    services: Vec<Service>,
    pairs: BTreeMap<usize, Put>,
    /// What was removed or made smaller since the last rest.
    removed: u64,
    evicted: u64,
}

#[test]
fn the_soonest_to_expire_are_evicted_and_no_more_than_needed() {
    let rounds = extent("TEST_RESULT_CLEANER_BUDGET_ROUNDS", 4, 200);
    let seed = seed();
    let evicted: u64 = thread::scope(|scope| {
        let run = |number: u64| {
            World::new(seed.wrapping_add(number), 1 + number as usize % 2).run(rounds)
        };
        let worlds: Vec<_> = (0..2).map(|number| scope.spawn(move || run(number))).collect();
        worlds.into_iter().map(|world| world.join().unwrap()).sum()
    });
    assert!(evicted > 0, "nothing was ever evicted");
    figure(
        "rounds of operations with a disk budget",
        format!("{rounds}, {evicted} pairs evicted, all in order"),
    );
}

fn on_disk(pair: &Pair) -> u64 {
    let blocks = |path: &Path| fs::symlink_metadata(path).map_or(0, |found| found.blocks());
    let is_linked = fs::symlink_metadata(&pair.result).is_ok_and(|found| found.nlink() > 1);
    if is_linked || !pair.is_whole() {
        0
    } else {
        (blocks(&pair.result) + blocks(&pair.metadata)) * 512
    }
}

impl World {
    fn new(seed: u64, cleaners: usize) -> Self {
        let cache = CacheDir::in_memory();
        let limit = LIMIT.to_string();
        let start =
            || Service::start(cache.path(), &["--max-size", &limit, "--evict-min-age", "300ms"]);
        let services = (0..cleaners).map(|_| start()).collect();
        let (pairs, removed, evicted) = (BTreeMap::new(), 0, 0);
        Self { random: Random(seed), cache, services, pairs, removed, evicted }
    }

    fn run(mut self, rounds: u64) -> u64 {
        for _ in 0..rounds {
            for _ in 0..60 {
                self.operate();
            }
            self.rest();
        }
        self.services.iter().for_each(|service| service.assert_errors(0));
        self.evicted
    }

    fn pair(&self, name: usize) -> Pair {
        self.cache.pair(&format!("{}/{name:03}", name % 4))
    }

    fn expiry(&mut self) -> f64 {
        now() + 3600.0 + 600_000.0 * self.random.fraction()
    }

    fn operate(&mut self) {
        let name = self.random.below(NAMES);
        let pair = self.pair(name);
        // What goes by itself meanwhile is seen at the next rest.
        let is_there = pair.is_whole();
        match self.random.below(20) {
            0..=9 => self.publish(name, &pair),
            10..=13 if is_there => {
                let expires_at = self.expiry();
                if let Some(put) = self.pairs.get_mut(&name) {
                    (put.expires_at, put.is_stable) = (expires_at, false);
                    pair.set_expiry(expires_at);
                }
            }
            14 if is_there => {
                self.removed += on_disk(&pair);
                self.pairs.remove(&name);
                let _ = fs::remove_file(&pair.metadata);
                let _ = fs::remove_file(&pair.result);
            }
            15 if is_there => {
                let link = self.cache.outside(&format!("{name}-{}", self.random.next()));
                self.removed += on_disk(&pair);
                if let Some(put) = self.pairs.get_mut(&name) {
                    put.is_stable = false;
                    put.is_linked |= fs::hard_link(&pair.result, link).is_ok();
                    // The kernel reports no new link. The next event or sweep shows it.
                    pair.set_expiry(put.expires_at);
                }
            }
            _ => thread::sleep(Duration::from_millis(self.random.below(30) as u64)),
        }
    }

    /// Publishes a pair, perhaps anew.
    fn publish(&mut self, name: usize, pair: &Pair) {
        self.removed += on_disk(pair);
        let bytes = 1 + self.random.below((LARGEST - 4096) as usize);
        let (published, expires_at) = (now(), self.expiry());
        publish(&pair.result, &vec![7; bytes]);
        pair.set_expiry(expires_at);
        let put = Put { expires_at, published, is_stable: false, is_linked: false };
        self.pairs.insert(name, put);
    }

    /// Waits until the limit is kept, and checks what has gone since the last rest.
    fn rest(&mut self) {
        let size = || -> u64 { (0..NAMES).map(|name| on_disk(&self.pair(name))).sum() };
        let start = Instant::now();
        loop {
            let on_disk = size();
            let known = |service: &Service| service.stats()["size_bytes"].as_u64();
            let known: Vec<_> = self.services.iter().map(known).collect();
            if on_disk <= LIMIT && known.iter().all(|known| *known == Some(on_disk)) {
                break;
            }
            let log = || self.services.iter().map(Service::log).collect::<String>();
            assert!(start.elapsed() < PATIENCE, "{on_disk} on disk, known: {known:?}\n{}", log());
            thread::sleep(Duration::from_millis(20));
        }
        self.services.iter().for_each(Service::assert_comes_to_rest);
        let (gone_at, left) = (now(), size());
        let mut gone = Vec::new();
        for (name, put) in &self.pairs {
            let pair = self.pair(*name);
            if !pair.is_whole() {
                // Metadata may have been extended when its pair had just gone.
                assert!(pair.is_gone() || !put.is_stable, "half of {name}");
                assert!(!pair.result.exists(), "the metadata of {name} went alone");
                let _ = fs::remove_file(&pair.metadata);
                assert!(gone_at - put.published >= MIN_AGE, "{name} went young: {put:?}");
                assert!(!put.is_linked || !put.is_stable, "{name} freed nothing: {put:?}");
                gone.push((*name, *put));
            }
        }
        let stable = gone.iter().filter(|(_, put)| put.is_stable);
        let last = stable.map(|(_, put)| put.expires_at).max_by(f64::total_cmp);
        for (name, _) in &gone {
            self.pairs.remove(name);
        }
        for (name, put) in &mut self.pairs {
            let is_in_order = last.is_none_or(|last| put.expires_at >= last);
            assert!(
                !put.is_stable || put.is_linked || is_in_order,
                "{name} should have gone: {put:?}"
            );
            // A cleaner knows the age of a result to the second, and a choice of pairs holds for one.
            put.is_stable = gone_at - put.published > 3.0;
        }
        if !gone.is_empty() {
            // Each cleaner but one may have evicted a batch too much.
            let slack = LARGEST * (1 + 64 * (self.services.len() as u64 - 1));
            let least = (LIMIT * 95 / 100).saturating_sub(slack);
            assert!(left + self.removed >= least, "{left} are left: too much was evicted");
        }
        self.evicted += gone.len() as u64;
        self.removed = 0;
    }
}
