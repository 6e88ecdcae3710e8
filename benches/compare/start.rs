//! What the start of a service costs, and the memory that it holds afterwards.

use std::path::Path;
use std::time::Instant;

use crate::measure::{CPU, Measured, Outcome, Side, WALL, check, compare};
use crate::ours::BINARY;
use crate::process::Process;
use crate::tree::{Form, Tree};
use crate::usage::{Cost, Usage, Who};
use crate::{Args, scan};

/// What was measured at one size.
struct Started {
    pairs: usize,
    floor: Measured,
    ours: Measured,
    rest: Rest,
}

/// A service at rest.
struct Rest {
    /// In bytes.
    resident: usize,
    /// From the start of the service on.
    used: Usage,
}

pub fn run(args: &Args) -> Outcome {
    let empty = at_rest(BINARY.as_ref(), &Tree::waiting(&args.form_in_memory(0))?)?.resident;
    println!("\nstart: a service without pairs holds {:.1} MiB", mebibytes(empty));
    let mut last = None;
    for pairs in args.sizes(&[10_000, 300_000]) {
        let started = start(args, &args.form_in_memory(pairs))?;
        print_rest(&started, empty);
        if let Some(last) = &last {
            print_growth(last, &started);
        }
        last = Some(started);
    }
    Ok(())
}

fn start(args: &Args, form: &Form) -> Outcome<Started> {
    let tree = Tree::waiting(form)?;
    tree.settle();
    let ours = || until_first_scan(BINARY.as_ref(), &tree);
    let mut sides = vec![
        Side::new(scan::FLOOR, || scan::by_floor(&tree)),
        Side::new("ours, until the first scan is done", ours),
    ];
    if let Some(other) = &args.other {
        sides.push(Side::new("the other build, the same", || until_first_scan(other, &tree)));
    }
    let measured = compare(&format!("start with {form}"), form.pairs, args.rounds, sides)?;
    let rest = at_rest(BINARY.as_ref(), &tree)?;
    if let Some(other) = &args.other {
        let rest = at_rest(other, &tree)?;
        println!("the other build at rest: {:.1} MiB", mebibytes(rest.resident));
    }
    tree.check_whole()?;
    let mut measured = measured.into_iter();
    let (Some(floor), Some(ours)) = (measured.next(), measured.next()) else {
        return Err("there are two sides".into());
    };
    Ok(Started { pairs: form.pairs, floor, ours, rest })
}

/// The processor time is that of the whole process, which is ended right after its first scan.
fn until_first_scan(binary: &Path, tree: &Tree) -> Outcome<Cost> {
    let before = Usage::of(Who::Children)?;
    let start = Instant::now();
    let process = Process::start_serving(binary, tree.path())?;
    let wall = start.elapsed();
    check_known(&process, tree)?;
    drop(process);
    Ok(Cost { wall, usage: Usage::of(Who::Children)?.since(before) })
}

fn at_rest(binary: &Path, tree: &Tree) -> Outcome<Rest> {
    let before = Usage::of(Who::Children)?;
    let process = Process::start_serving(binary, tree.path())?;
    let resident = process.resident_at_rest()?;
    check_known(&process, tree)?;
    drop(process);
    Ok(Rest { resident, used: Usage::of(Who::Children)?.since(before) })
}

/// An error unless the service waits for each pair of `tree`, and has met no error.
fn check_known(process: &Process, tree: &Tree) -> Outcome {
    let stats: serde_json::Value = serde_json::from_str(&process.stats()?)?;
    let counts = ["heap_size", "total_cleanups", "total_deleted", "total_errors"]
        .map(|name| stats[name].as_u64());
    let expected = [tree.pairs() as u64, 1, 0, 0].map(Some);
    check(counts == expected && stats["watch"] == "active", stats)
}

fn print_rest(Started { pairs, ours, rest, .. }: &Started, empty: usize) {
    println!(
        "at rest: {:.1} MiB, {:.0} bytes a waiting pair; processor time until then {:.2} us a pair, \
         until the first scan {:.2}",
        mebibytes(rest.resident),
        (rest.resident as f64 - empty as f64) / *pairs as f64,
        rest.used.cpu().as_secs_f64() * 1e6 / *pairs as f64,
        ours.median(CPU).unwrap_or(f64::NAN) * 1e6 / *pairs as f64,
    );
}

fn print_growth(from: &Started, to: &Started) {
    let times = |side: fn(&Started) -> &Measured, figure| {
        let median = |started| side(started).median(figure).unwrap_or(f64::NAN);
        median(to) / median(from)
    };
    println!(
        "from {} to {} pairs, {:.1} times as many: wall time {:.1} times (floor {:.1}), processor \
         time {:.1} times (floor {:.1}), {:.0} bytes for each further pair",
        from.pairs,
        to.pairs,
        to.pairs as f64 / from.pairs as f64,
        times(|started| &started.ours, WALL),
        times(|started| &started.floor, WALL),
        times(|started| &started.ours, CPU),
        times(|started| &started.floor, CPU),
        (to.rest.resident as f64 - from.rest.resident as f64)
            / (to.pairs as f64 - from.pairs as f64),
    );
}

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
