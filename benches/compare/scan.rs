//! Looking at trees in which nothing has expired.

use std::fs;
use std::time::Duration;

use crate::measure::{Outcome, Side, check, compare};
use crate::metadata::Content;
use crate::ours::{self, Service};
use crate::peers::Peer;
use crate::tree::{Form, Tree};
use crate::usage::{Cost, Who, charged, on_one_core};
use crate::{Args, floor};

/// Files whose times are younger than this may change without their times telling, so that a
/// cleaner does well to read them again. Nobody can set a ctime, so the tree has to wait.
const OLD_ENOUGH: Duration = Duration::from_secs(70);

pub fn run(args: &Args) -> Outcome {
    let forms = args.forms(args.pairs(10_000), &[5, 50, 500]);
    for form in &forms {
        let tree = Tree::waiting(form)?;
        beside_peers(args, &tree, form)?;
        on_one_core(|| alone(args, &tree, &format!("scan {form}, on one core"), || Ok(())))?;
        if rustix::process::geteuid().is_root() {
            alone(args, &tree, &format!("scan {form}, cold"), drop_caches)?;
        } else {
            println!("\nscan, cold: only root may empty the kernel's caches");
        }
        tree.check_whole()?;
    }
    if args.metadata.is_none() {
        // One such tree shows what the content changes.
        let form = Form { content: Content::Guide, ..args.form(args.pairs(10_000)) };
        let tree = Tree::waiting(&form)?;
        beside_peers(args, &tree, &form)?;
        tree.check_whole()?;
    }
    Ok(())
}

/// Prints the floor, ours and other programs.
fn beside_peers(args: &Args, tree: &Tree, form: &Form) -> Outcome {
    let runtime = ours::runtime()?;
    let sides = vec![
        Side::new(FLOOR, || by_floor(tree)),
        Side::new(IN_PROCESS, || ours::look(&runtime, tree)),
        Side::new(BY_COMMAND, || ours::look_by_command(tree)),
        Peer::Find.side(|peer| peer.look(tree)),
        Peer::Python.side(|peer| peer.look(tree)),
    ];
    compare(&format!("scan {form}"), tree.pairs(), args.rounds, sides)?;
    Ok(())
}

/// Prints the floor and ours, each of which begins after `prepare`.
fn alone(args: &Args, tree: &Tree, work: &str, prepare: fn() -> Outcome) -> Outcome {
    // Its threads run where the caller may run.
    let runtime = ours::runtime()?;
    let sides = vec![
        Side::new(FLOOR, || prepare().and_then(|()| by_floor(tree))),
        Side::new(IN_PROCESS, || prepare().and_then(|()| ours::look(&runtime, tree))),
        Side::new(BY_COMMAND, || prepare().and_then(|()| ours::look_by_command(tree))),
    ];
    compare(work, tree.pairs(), args.rounds, sides)?;
    Ok(())
}

pub const FLOOR: &str = "floor: getdents, open, read, close";
const IN_PROCESS: &str = "ours, in process";
const BY_COMMAND: &str = "ours, sweep --dry-run";

pub fn by_floor(tree: &Tree) -> Outcome<Cost> {
    let (cost, seen) = charged(Who::Process, || floor::scan(tree.path()))?;
    check(seen == tree.pairs(), format_args!("the floor has seen {seen}"))?;
    Ok(cost)
}

fn drop_caches() -> Outcome {
    rustix::fs::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// A tree of this form for `again`.
pub struct OldTree {
    form: Form,
    tree: Tree,
}

/// Made before anything else, so that they age while other chapters run.
pub fn trees_to_sweep_again(args: &Args) -> Outcome<Vec<OldTree>> {
    let make = |form: Form| Ok(OldTree { tree: Tree::waiting(&form)?, form });
    args.forms(args.pairs(10_000), &[5, 50]).into_iter().map(make).collect()
}

/// Sweeps of a running service in which nothing has changed since the sweep before.
pub fn again(args: &Args, OldTree { form, tree }: &OldTree) -> Outcome {
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
        Side::new(FLOOR, || by_floor(tree)),
        Side::new("ours, sweep() of a service", || service.sweep(tree)),
    ];
    compare(&format!("resweep {form}, nothing changed"), tree.pairs(), args.rounds, sides)?;
    tree.check_whole()?;
    service.stop()
}
