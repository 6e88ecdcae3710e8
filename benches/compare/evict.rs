//! From the moment at which a limit on the size is exceeded until all is below it again.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use result_cleaner::{Cleaner, Config};

use crate::measure::{Outcome, Side, check, compare, wait_until};
use crate::ours::{Service, runtime};
use crate::tree::{Form, State, Tree, publish, stem};
use crate::usage::{Cost, Usage, Who, charged};
use crate::{Args, floor, metadata, storm};

const GLANCE: Duration = Duration::from_micros(500);
/// What each result takes: 100,000 pairs take 1 GiB.
const RESULT: usize = 6 * 1024;
/// Results have to be older than this, and are.
const MIN_AGE: Duration = Duration::from_millis(100);

pub fn run(args: &Args) -> Outcome {
    let form = args.form(args.pairs(20_000));
    table(args, &form)?;
    form.on_tmpfs().map_or(Ok(()), |form| table(args, &form))
}

/// An eviction brings the pairs from the limit to 95 % of it. The floor and the deletion are those of as many pairs.
fn table(args: &Args, form: &Form) -> Outcome {
    let evicted = Form { pairs: form.pairs / 20, ..form.clone() };
    let lead = Duration::from_secs(3);
    let sides = vec![
        Side::new("floor: unlink both", || {
            let tree = Tree::expired(&evicted, State::Fresh)?;
            fill(&tree)?;
            let (cost, gone) = charged(Who::Process, || floor::unlink(tree.path()))?;
            check(gone == evicted.pairs, format_args!("{gone} pairs were deleted"))?;
            Ok(cost)
        }),
        Side::new("ours, as many that expire at once", || {
            let cost = storm::once(&evicted, State::Fresh, lead, |tree| fill(tree).map(drop))?;
            cost.ok_or_else(|| "it takes too long to make the tree".into())
        }),
        Side::new("ours, from crossing to below", || evict(form)),
    ];
    let work = format!("evicting a twentieth of {form}");
    compare(&work, evicted.pairs, args.rounds, sides)?;
    Ok(())
}

/// Makes all results of a tree as large as they are to be. Returns what all takes on disk.
fn fill(tree: &Tree) -> io::Result<u64> {
    let mut blocks = 0;
    for entry in walk(tree)? {
        if entry.to_string_lossy().ends_with(".result.json.lz4") {
            OpenOptions::new().append(true).open(&entry)?.write_all(&[b'r'; RESULT])?;
        }
        blocks += fs::symlink_metadata(&entry)?.blocks();
    }
    Ok(blocks * 512)
}

fn walk(tree: &Tree) -> io::Result<Vec<std::path::PathBuf>> {
    let entries = walkdir::WalkDir::new(tree.path()).into_iter();
    let files =
        entries.filter(|entry| !entry.as_ref().is_ok_and(|entry| entry.file_type().is_dir()));
    files.map(|entry| Ok(entry?.into_path())).collect()
}

fn evict(form: &Form) -> Outcome<Cost> {
    let tree = Tree::waiting(form)?;
    let size = fill(&tree)?;
    thread::sleep(2 * MIN_AGE + Duration::from_secs(1));
    let runtime = runtime()?;
    let config = Config::new(tree.path()).without_metrics();
    let config = config.with_max_size(size).with_evict_min_age(MIN_AGE);
    let cleaner = runtime.block_on(Cleaner::spawn(config))?;
    let service = Service { cleaner, runtime };
    service.wait_for_first_scan()?;
    let before = service.stats();
    let known = (before.heap_size, before.size_bytes, before.total_evicted);
    check(known == (form.pairs as u64, Some(size), 0), format_args!("before: {before:?}"))?;
    let used = Usage::of(Who::OtherThreads)?;
    let start = Instant::now();
    publish(tree.path(), &stem(form.pairs), &form.content.expiry(metadata::far())?)?;
    let target = size / 100 * 95;
    wait_until("all is below", GLANCE, || service.stats().size_bytes <= Some(target))?;
    let wall = start.elapsed();
    let usage = Usage::of(Who::OtherThreads)?.since(used);
    let after = service.stats();
    check(after.total_errors == 0, format_args!("after: {after:?}"))?;
    service.stop()?;
    Ok(Cost { wall, usage })
}
