//! The simulation, driven by a seed.
//!
//! `TEST_RESULT_CLEANER_OPERATIONS` sets the number of steps.

use super::{Chance, World};
use crate::trial::{Random, extent, figure, seed};

impl Chance for Random {
    fn below(&mut self, bound: usize) -> usize {
        Random::below(self, bound)
    }
}

#[test]
fn whatever_happens_it_ends_as_a_polling_cleaner_would() {
    let steps = extent("TEST_RESULT_CLEANER_OPERATIONS", 50_000, 1_000_000);
    let mut seed = seed();
    let (mut deleted, mut evicted) = (0, 0);
    for _ in 0..steps.div_ceil(2000) {
        println!("from seed {seed}");
        let mut random = Random(seed);
        let mut world = World::new(&mut random);
        for step in 1..=2000 {
            world.step(&mut random);
            if step % 250 == 0 {
                world.come_to_rest(&mut random);
            }
        }
        deleted += world.deleted;
        evicted += world.evicted;
        seed = seed.wrapping_add(1);
    }
    assert!(deleted > 0 && evicted > 0, "nothing was deleted, so that little was tested");
    let pairs = format!("{deleted} pairs deleted and {evicted} evicted");
    figure("simulated steps", format!("{steps}, {pairs}, 0 divergences"));
}
