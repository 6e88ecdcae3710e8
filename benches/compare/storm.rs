//! All results of a running service expire at the same moment.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::measure::{Outcome, Side, check, compare, timed, wait_until};
use crate::ours::Service;
use crate::tree::{State, Tree};
use crate::{Args, delete, floor};

const GLANCE: Duration = Duration::from_micros(500);

pub fn run(args: &Args) -> Outcome {
    let (pairs, state) = (args.pairs(10_000), args.state());
    // How long it takes to make a tree, which has to be done before its results expire.
    let making = Cell::new(Duration::ZERO);
    let sides = vec![
        Side::new("floor: unlink both", || {
            let (took, tree) = timed(|| Tree::expired(pairs, state))?;
            making.set(making.get().max(took));
            let (took, gone) = timed(|| floor::unlink(tree.path()))?;
            check(gone == pairs, format_args!("{gone} pairs were deleted"))?;
            tree.check_empty()?;
            Ok(took)
        }),
        delete::side("floor: scan and unlink both", pairs, state, delete::by_floor),
        Side::new("ours, from the expiry on", || storm(pairs, state, 3 * making.get())),
    ];
    compare(&format!("storm of {pairs} pairs"), pairs, args.rounds, sides)
}

/// From the moment at which so many pairs expire until the last file is gone.
fn storm(pairs: usize, state: State, lead: Duration) -> Outcome<Duration> {
    let expiry = SystemTime::now() + Duration::from_secs(3) + lead;
    let tree = Tree::expiring(pairs, expiry, state)?;
    let service = Service::start(tree.path())?;
    service.wait_for_first_scan()?;
    let left = expiry.duration_since(SystemTime::now());
    let left = left.map_err(|_| "it took too long to make the tree: the results have expired")?;
    let moment = Instant::now() + left;
    thread::sleep(left.saturating_sub(Duration::from_millis(20)));
    let before = service.stats();
    if Instant::now() < moment {
        let counts = (before.heap_size, before.total_deleted);
        check(counts == (pairs as u64, 0), format_args!("before the expiry: {before:?}"))?;
    }
    wait_until("all deleted", GLANCE, || service.stats().total_deleted == pairs as u64)?;
    wait_until("all gone", GLANCE, || tree.check_empty().is_ok())?;
    let took = moment.elapsed();
    service.stop()?;
    Ok(took)
}
