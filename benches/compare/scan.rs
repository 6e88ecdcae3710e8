//! Looking at trees in which nothing has expired.

use std::fs;

use crate::measure::{Outcome, Side, check, compare};
use crate::metadata::Content;
use crate::ours::{self, Service};
use crate::peers::Peer;
use crate::tree::{Form, Tree};
use crate::usage::{Cost, Who, charged, on_one_core};
use crate::{Args, floor};

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
    let mut sides = vec![
        Side::new(FLOOR, || by_floor(tree)),
        Side::new(IN_PROCESS, || ours::look(&runtime, tree)),
        Side::new(BY_COMMAND, || ours::look_by_command(ours::BINARY.as_ref(), tree)),
        Peer::Find.side(|peer| peer.look(tree)),
        Peer::Python.side(|peer| peer.look(tree)),
    ];
    if let Some(other) = &args.other {
        sides.insert(3, Side::new(BY_OTHER, || ours::look_by_command(other, tree)));
    }
    compare(&format!("scan {form}"), tree.pairs(), args.rounds, sides)?;
    Ok(())
}

/// Prints the floor and ours, each of which begins after `prepare`.
fn alone(args: &Args, tree: &Tree, work: &str, prepare: fn() -> Outcome) -> Outcome {
    // Its threads run where the caller may run.
    let runtime = ours::runtime()?;
    let by_command = |binary| prepare().and_then(|()| ours::look_by_command(binary, tree));
    let mut sides = vec![
        Side::new(FLOOR, || prepare().and_then(|()| by_floor(tree))),
        Side::new(IN_PROCESS, || prepare().and_then(|()| ours::look(&runtime, tree))),
        Side::new(BY_COMMAND, || by_command(ours::BINARY.as_ref())),
    ];
    if let Some(other) = &args.other {
        sides.push(Side::new(BY_OTHER, || by_command(other)));
    }
    compare(work, tree.pairs(), args.rounds, sides)?;
    Ok(())
}

pub const FLOOR: &str = "floor: getdents, open, read, close";
const IN_PROCESS: &str = "ours, in process";
const BY_COMMAND: &str = "ours, sweep --dry-run";
const BY_OTHER: &str = "the other build, the same";

pub fn by_floor(tree: &Tree) -> Outcome<Cost> {
    let (cost, seen) = charged(Who::Process, || floor::scan(tree.path()))?;
    check(seen == tree.pairs(), format_args!("the floor has seen {seen}"))?;
    Ok(cost)
}

fn drop_caches() -> Outcome {
    rustix::fs::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// Sweeps of a running service in which nothing has changed since the sweep before.
pub fn again(args: &Args) -> Outcome {
    for form in args.forms(args.pairs(10_000), &[5, 50]) {
        let tree = Tree::waiting(&form)?;
        let service = Service::start(tree.path())?;
        service.wait_for_first_scan()?;
        service.sweep(&tree)?;
        let sides = vec![
            Side::new(FLOOR, || by_floor(&tree)),
            Side::new("ours, sweep() of a service", || service.sweep(&tree)),
        ];
        compare(&format!("resweep {form}, nothing changed"), tree.pairs(), args.rounds, sides)?;
        tree.check_whole()?;
        service.stop()?;
    }
    Ok(())
}
