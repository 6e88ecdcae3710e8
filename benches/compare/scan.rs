//! Looking at trees in which nothing has expired.

use std::fs;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::measure::{Outcome, Side, check, compare, timed};
use crate::ours::{self, Service};
use crate::peers::Peer;
use crate::tree::Tree;
use crate::{Args, floor};

/// Files whose times are younger than this may change without their times telling, so that a
/// cleaner does well to read them again. Nobody can set a ctime, so the tree has to wait.
const OLD_ENOUGH: Duration = Duration::from_secs(70);

pub fn run(args: &Args) -> Outcome {
    let pairs = args.pairs(10_000);
    let tree = Tree::waiting(pairs)?;
    let runtime = ours::runtime()?;
    let mut warm = sides(&tree, &runtime, || Ok(()));
    warm.extend([Peer::Find, Peer::Python].map(|peer| peer.side(|peer| peer.look(&tree))));
    compare(&format!("scan {pairs} pairs"), pairs, args.rounds, warm)?;
    if rustix::process::geteuid().is_root() {
        let cold = sides(&tree, &runtime, drop_caches);
        compare(&format!("scan {pairs} pairs, cold"), pairs, args.rounds, cold)?;
    } else {
        println!("\nscan, cold: only root may empty the kernel's caches");
    }
    tree.check_whole()
}

/// The floor, and ours, each of which begins after `prepare`.
fn sides<'a>(tree: &'a Tree, runtime: &'a Runtime, prepare: fn() -> Outcome) -> Vec<Side<'a>> {
    vec![
        floor_side(tree, prepare),
        Side::new("ours, in process", move || prepare().and_then(|()| ours::look(runtime, tree))),
        Side::new("ours, sweep --dry-run", move || {
            prepare().and_then(|()| ours::look_by_command(tree))
        }),
    ]
}

fn floor_side(tree: &Tree, prepare: fn() -> Outcome) -> Side<'_> {
    Side::new("floor: getdents, open, read, close", move || {
        prepare()?;
        let (took, seen) = timed(|| floor::scan(tree.path()))?;
        check(seen == tree.pairs(), format_args!("the floor has seen {seen}"))?;
        Ok(took)
    })
}

fn drop_caches() -> Outcome {
    rustix::fs::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// Made before anything else, so that it ages while other chapters run.
pub fn tree_to_sweep_again(args: &Args) -> Outcome<Tree> {
    Tree::waiting(args.pairs(10_000))
}

/// Sweeps of a running service in which nothing has changed since the sweep before.
pub fn again(args: &Args, tree: &Tree) -> Outcome {
    let left = OLD_ENOUGH.saturating_sub(tree.age());
    if !left.is_zero() {
        println!(
            "\nresweep: waits for {} s, so that no file is so young that it is read again anyway",
            left.as_secs() + 1
        );
        tree.wait_for_age(OLD_ENOUGH);
    }
    let service = Service::start(tree.path())?;
    service.wait_for_first_scan()?;
    service.sweep(tree)?;
    let sides = vec![
        floor_side(tree, || Ok(())),
        Side::new("ours, sweep() of a service", || service.sweep(tree)),
    ];
    let work = format!("resweep {} pairs, nothing changed", tree.pairs());
    compare(&work, tree.pairs(), args.rounds, sides)?;
    tree.check_whole()?;
    service.stop()
}
