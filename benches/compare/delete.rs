//! Deleting trees in which all has expired.

use std::time::Duration;

use tokio::runtime::Runtime;

use crate::measure::{Outcome, Side, check, compare, timed};
use crate::peers::Peer;
use crate::tree::{State, Tree};
use crate::{Args, floor, ours};

pub fn run(args: &Args) -> Outcome {
    let (pairs, state) = (args.pairs(10_000), args.state());
    let runtime = ours::runtime()?;
    let mut all = sides(&runtime, pairs, state);
    let by_peer = |peer: Peer| peer.side(move |peer| peer.delete(&Tree::expired(pairs, state)?));
    all.extend(Peer::ALL.map(by_peer));
    compare(&format!("delete {pairs} pairs"), pairs, args.rounds, all)?;
    if state == State::Written {
        let fresh = sides(&runtime, pairs, State::Fresh);
        compare(&format!("delete {pairs} pairs, not on the disk yet"), pairs, args.rounds, fresh)?;
    }
    windows(pairs)
}

/// The floor, and ours.
fn sides(runtime: &Runtime, pairs: usize, state: State) -> Vec<Side<'_>> {
    vec![
        side("floor: scan and unlink both", pairs, state, by_floor),
        side("ours, in process", pairs, state, |tree| ours::delete(runtime, tree)),
        side("ours, sweep", pairs, state, ours::delete_by_command),
    ]
}

/// A side that deletes a tree of its own, of which nothing may be left.
pub fn side<'a>(
    name: &'static str,
    pairs: usize,
    state: State,
    delete: impl Fn(&Tree) -> Outcome<Duration> + 'a,
) -> Side<'a> {
    Side::new(name, move || {
        let tree = Tree::expired(pairs, state)?;
        let took = delete(&tree)?;
        tree.check_empty()?;
        Ok(took)
    })
}

pub fn by_floor(tree: &Tree) -> Outcome<Duration> {
    let (took, gone) = timed(|| floor::scan_and_unlink(tree.path()))?;
    check(gone == tree.pairs(), format_args!("{gone} pairs were deleted"))?;
    Ok(took)
}

/// For how long a file is exposed that can't be claimed. That it is not on the disk leaves out the
/// freeing of its space, which comes after its name is gone.
fn windows(pairs: usize) -> Outcome {
    let tree = Tree::expired(pairs, State::Fresh)?;
    let mut windows = floor::windows(tree.path())?;
    tree.check_empty()?;
    windows.sort();
    let at = |percent: usize| windows[windows.len() * percent / 100].as_secs_f64() * 1e6;
    println!(
        "from a last look at a file to its being unlinked, where it can't be claimed: \
         median {:.1} us, 99 of 100 within {:.1} us",
        at(50),
        at(99)
    );
    Ok(())
}
