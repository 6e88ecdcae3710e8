//! All results of a running service expire at the same moment.

use std::cell::Cell;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::measure::{Outcome, Side, check, compare, timed, wait_until};
use crate::ours::Service;
use crate::process::Process;
use crate::tree::{Form, State, Tree};
use crate::usage::{Cost, Usage, Who, charged, on_one_core};
use crate::{Args, delete, floor};

const GLANCE: Duration = Duration::from_micros(500);
/// Of a process, which has to answer each time.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// From the beginning of a tree until its results expire, besides three times as long as it takes to
/// make such a tree. A cleaner takes results that are younger than a second for half published.
const LEAD: Duration = Duration::from_secs(2);
/// With twice the lead each, where a busy machine took longer to make the tree.
const ATTEMPTS: u32 = 4;

pub fn run(args: &Args) -> Outcome {
    for form in args.forms(args.pairs(2_000), &[5, 50]) {
        table(args, &form, args.state(), "")?;
        if let Some(form) = form.on_tmpfs() {
            table(args, &form, State::Fresh, "")?;
        }
    }
    // In memory, where no wait for a disk hides what the processor has to do.
    let form = args.form(args.pairs(2_000));
    let (form, state) = match form.on_tmpfs() {
        Some(form) => (form, State::Fresh),
        None => (form, args.state()),
    };
    on_one_core(|| table(args, &form, state, ", on one core"))
}

/// What a storm over such a tree costs.
fn table(args: &Args, form: &Form, state: State, how: &str) -> Outcome {
    let (making, tree) = timed(|| Tree::expired(form, state))?;
    drop(tree);
    let lead = Cell::new(LEAD + 3 * making);
    let in_time = |storm: &dyn Fn(Duration) -> Outcome<Option<Cost>>| {
        for _ in 0..ATTEMPTS {
            if let Some(cost) = storm(lead.get())? {
                return Ok(cost);
            }
            lead.set(2 * lead.get());
        }
        Err("it takes too long to make the tree: the results have expired".into())
    };
    let mut sides = vec![
        Side::new("floor: unlink both", || {
            let tree = rested(form, state, lead.get())?;
            let (cost, gone) = charged(Who::Process, || floor::unlink(tree.path()))?;
            check(gone == form.pairs, format_args!("{gone} pairs were deleted"))?;
            tree.check_empty()?;
            Ok(cost)
        }),
        Side::new("floor: scan and unlink both", || {
            let tree = rested(form, state, lead.get())?;
            let cost = delete::by_floor(&tree)?;
            tree.check_empty()?;
            Ok(cost)
        }),
        Side::new("ours, from the expiry on", || in_time(&|lead| storm(form, state, lead))),
    ];
    if let Some(other) = &args.other {
        let run = move || in_time(&|lead| storm_by(other, form, state, lead));
        sides.push(Side::new("the other build, the same", run));
    }
    compare(&format!("storm of {form}{how}"), form.pairs, args.rounds, sides)?;
    Ok(())
}

/// A tree for a floor. It rests on its disk for as long as that of the service does, so that no side
/// begins while the disk is still busy with writing.
fn rested(form: &Form, state: State, lead: Duration) -> Outcome<Tree> {
    let begin = Instant::now();
    let tree = Tree::expired(form, state)?;
    if state == State::Written {
        thread::sleep(lead.saturating_sub(begin.elapsed()));
    }
    Ok(tree)
}

/// From the moment at which all pairs expire until the last file is gone. Nothing if they expired before
/// the service knew them.
fn storm(form: &Form, state: State, lead: Duration) -> Outcome<Option<Cost>> {
    once(form, state, lead, |_| Ok(()))
}

/// The same with a tree that `prepare` has changed.
pub fn once(
    form: &Form,
    state: State,
    lead: Duration,
    prepare: impl FnOnce(&Tree) -> std::io::Result<()>,
) -> Outcome<Option<Cost>> {
    let expiry = SystemTime::now() + lead;
    let tree = Tree::expiring(form, expiry, state)?;
    prepare(&tree)?;
    let service = Service::start(tree.path())?;
    service.wait_for_first_scan()?;
    let counts = || {
        let stats = service.stats();
        Ok((stats.heap_size, stats.total_deleted))
    };
    let cost = from_expiry_on(&tree, expiry, GLANCE, counts, || Usage::of(Who::OtherThreads))?;
    service.stop()?;
    Ok(cost)
}

/// The same as [`storm`] by another build, as a process of its own. Its context switches are not counted, and its
/// processor time has the answers that it gives meanwhile in it.
fn storm_by(binary: &Path, form: &Form, state: State, lead: Duration) -> Outcome<Option<Cost>> {
    let expiry = SystemTime::now() + lead;
    let tree = Tree::expiring(form, expiry, state)?;
    let service = Process::start_serving(binary, tree.path())?;
    let counts = || {
        let stats: serde_json::Value = serde_json::from_str(&service.stats()?)?;
        let count = |name: &str| stats[name].as_u64().ok_or_else(|| format!("no {name}"));
        Ok((count("heap_size")?, count("total_deleted")?))
    };
    from_expiry_on(&tree, expiry, POLL_INTERVAL, counts, || service.used())
}

/// What a service costs from `expiry` on until all of `tree` is gone. `counts` returns how many pairs it waits for and how
/// many it has deleted; it is asked at every `interval`. Nothing if the pairs have expired already.
fn from_expiry_on(
    tree: &Tree,
    expiry: SystemTime,
    interval: Duration,
    counts: impl Fn() -> Outcome<(u64, u64)>,
    used: impl Fn() -> Outcome<Usage>,
) -> Outcome<Option<Cost>> {
    let Ok(left) = expiry.duration_since(SystemTime::now()) else {
        return Ok(None);
    };
    let moment = Instant::now() + left;
    thread::sleep(left.saturating_sub(Duration::from_millis(20)));
    let pairs = tree.pairs() as u64;
    let before = counts()?;
    let used_before = used()?;
    if Instant::now() < moment {
        check(before == (pairs, 0), format_args!("before the expiry: {before:?}"))?;
    }
    wait_until("all deleted", interval, || counts().is_ok_and(|(_, deleted)| deleted == pairs))?;
    wait_until("all gone", GLANCE, || tree.check_empty().is_ok())?;
    let wall = moment.elapsed();
    Ok(Some(Cost { wall, usage: used()?.since(used_before) }))
}
