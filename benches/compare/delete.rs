//! Deleting trees in which all has expired.

use std::path::Path;

use tokio::runtime::Runtime;

use crate::measure::{Outcome, Side, check, compare};
use crate::peers::Peer;
use crate::tree::{Form, State, Tree};
use crate::usage::{Cost, Who, charged};
use crate::{Args, floor, ours};

pub fn run(args: &Args) -> Outcome {
    let forms = args.forms(args.pairs(2_000), &[5, 50]);
    forms.iter().try_for_each(|form| table(args, form))?;
    windows(&args.form(args.pairs(2_000)))
}

/// What deleting such trees costs.
fn table(args: &Args, form: &Form) -> Outcome {
    let state = args.state();
    let runtime = ours::runtime()?;
    let mut all = sides(&runtime, form, state);
    all.extend(args.other.as_ref().map(|other| by_other(other, form, state)));
    all.extend(Peer::ALL.map(|by| peer(by, form, state)));
    compare(&format!("delete {form}"), form.pairs, args.rounds, all)?;
    if state == State::Written {
        let mut fresh = sides(&runtime, form, State::Fresh);
        fresh.extend(args.other.as_ref().map(|other| by_other(other, form, State::Fresh)));
        let work = format!("delete {form}, not on the disk yet");
        compare(&work, form.pairs, args.rounds, fresh)?;
    }
    Ok(())
}

/// The floor, and ours.
fn sides<'a>(runtime: &'a Runtime, form: &'a Form, state: State) -> Vec<Side<'a>> {
    vec![
        side("floor: scan and unlink both", form, state, by_floor),
        side("ours, in process", form, state, |tree| ours::delete(runtime, tree)),
        side("ours, sweep", form, state, ours::delete_by_command),
    ]
}

/// Another build of this program.
fn by_other<'a>(other: &'a Path, form: &'a Form, state: State) -> Side<'a> {
    side("the other build, sweep", form, state, |tree| ours::delete_by(other, tree, &[]))
}

/// A side that deletes a tree of its own, of which nothing may be left.
pub fn side<'a>(
    name: &'static str,
    form: &'a Form,
    state: State,
    delete: impl Fn(&Tree) -> Outcome<Cost> + 'a,
) -> Side<'a> {
    Side::new(name, move || once(form, state, &delete))
}

/// The side of another program.
pub fn peer(by: Peer, form: &Form, state: State) -> Side<'_> {
    by.side(move |by| once(form, state, |tree| by.delete(tree)))
}

fn once(form: &Form, state: State, delete: impl Fn(&Tree) -> Outcome<Cost>) -> Outcome<Cost> {
    let tree = Tree::expired(form, state)?;
    tree.settle();
    let cost = delete(&tree)?;
    tree.check_empty()?;
    Ok(cost)
}

pub fn by_floor(tree: &Tree) -> Outcome<Cost> {
    let (cost, gone) = charged(Who::Process, || floor::scan_and_unlink(tree.path()))?;
    check(gone == tree.pairs(), format_args!("{gone} pairs were deleted"))?;
    Ok(cost)
}

/// For how long a file is exposed that can't be claimed. That it is not on the disk leaves out the
/// freeing of its space, which comes after its name is gone.
fn windows(form: &Form) -> Outcome {
    let tree = Tree::expired(form, State::Fresh)?;
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
