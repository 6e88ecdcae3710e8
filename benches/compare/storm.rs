//! All results of a running service expire at the same moment.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::measure::{Outcome, Side, check, compare, timed, wait_until};
use crate::ours::Service;
use crate::tree::{Form, State, Tree};
use crate::usage::{Cost, Usage, Who, charged, on_one_core};
use crate::{Args, delete, floor};

const GLANCE: Duration = Duration::from_micros(500);

pub fn run(args: &Args) -> Outcome {
    for form in args.forms(args.pairs(4_000), &[5, 50]) {
        table(args, &form, args.state(), "")?;
        if let Some(form) = form.on_tmpfs() {
            table(args, &form, State::Fresh, "")?;
        }
    }
    // In memory, where no wait for a disk hides what the processor has to do.
    let form = args.form(args.pairs(4_000));
    let (form, state) = match form.on_tmpfs() {
        Some(form) => (form, State::Fresh),
        None => (form, args.state()),
    };
    on_one_core(|| table(args, &form, state, ", on one core"))
}

/// What a storm over such a tree costs.
fn table(args: &Args, form: &Form, state: State, how: &str) -> Outcome {
    // How long it takes to make a tree, which has to be done before its results expire.
    let making = Cell::new(Duration::ZERO);
    let sides = vec![
        Side::new("floor: unlink both", || {
            let (took, tree) = timed(|| Tree::expired(form, state))?;
            making.set(making.get().max(took));
            let (cost, gone) = charged(Who::Process, || floor::unlink(tree.path()))?;
            check(gone == form.pairs, format_args!("{gone} pairs were deleted"))?;
            tree.check_empty()?;
            Ok(cost)
        }),
        Side::new("floor: scan and unlink both", || {
            let tree = Tree::expired(form, state)?;
            let cost = delete::by_floor(&tree)?;
            tree.check_empty()?;
            Ok(cost)
        }),
        Side::new("ours, from the expiry on", || storm(form, state, 3 * making.get())),
    ];
    compare(&format!("storm of {form}{how}"), form.pairs, args.rounds, sides)?;
    Ok(())
}

/// From the moment at which all pairs expire until the last file is gone.
fn storm(form: &Form, state: State, lead: Duration) -> Outcome<Cost> {
    let expiry = SystemTime::now() + Duration::from_secs(3) + lead;
    let tree = Tree::expiring(form, expiry, state)?;
    let service = Service::start(tree.path())?;
    service.wait_for_first_scan()?;
    let left = expiry.duration_since(SystemTime::now());
    let left = left.map_err(|_| "it took too long to make the tree: the results have expired")?;
    let moment = Instant::now() + left;
    thread::sleep(left.saturating_sub(Duration::from_millis(20)));
    let before = service.stats();
    let used = Usage::of(Who::OtherThreads)?;
    if Instant::now() < moment {
        let counts = (before.heap_size, before.total_deleted);
        check(counts == (form.pairs as u64, 0), format_args!("before the expiry: {before:?}"))?;
    }
    wait_until("all deleted", GLANCE, || service.stats().total_deleted == form.pairs as u64)?;
    wait_until("all gone", GLANCE, || tree.check_empty().is_ok())?;
    let wall = moment.elapsed();
    let usage = Usage::of(Who::OtherThreads)?.since(used);
    service.stop()?;
    Ok(Cost { wall, usage })
}
