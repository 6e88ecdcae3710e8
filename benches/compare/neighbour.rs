//! What another program on the same disk feels of a cleanup.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::measure::{Latencies, Outcome, joined};
use crate::peers::Peer;
use crate::tree::{Place, Tree};
use crate::{Args, ours};

const FILES: usize = 100;
const ALONE: Duration = Duration::from_secs(1);

/// What was felt beside one of the programs, and how fast that was.
struct Beside {
    name: &'static str,
    felt: Latencies,
    pairs: usize,
    took: Duration,
}

impl Beside {
    fn new(name: &'static str) -> Self {
        Self { name, felt: Latencies::default(), pairs: 0, took: Duration::ZERO }
    }

    /// Measures the neighbour while `work` is done, which returns how many pairs it has deleted.
    fn measure(
        &mut self,
        home: &Path,
        work: impl FnOnce() -> Outcome<(usize, Duration)>,
    ) -> Outcome {
        let over = AtomicBool::new(false);
        let (done, felt) = thread::scope(|scope| {
            let neighbour = scope.spawn(|| neighbour(home, &over));
            let done = work();
            over.store(true, Ordering::Relaxed);
            (done, joined(neighbour))
        });
        let (pairs, took) = done?;
        self.felt.append(felt?);
        self.pairs += pairs;
        self.took += took;
        Ok(())
    }
}

pub fn run(args: &Args) -> Outcome {
    let (form, state) = (args.form(args.pairs(2_000)), args.state());
    let pairs = form.pairs;
    let home = Place::new()?;
    for number in 0..FILES {
        File::create(home.path().join(number.to_string()))?;
    }
    let home = home.path();
    let mut alone = Beside::new("alone");
    let mut ours = Beside::new("while ours sweeps");
    let mut bounded = Beside::new("with --max-disk-time 300ms");
    let mut find = Beside::new("while find -delete does");
    for _ in 0..args.rounds {
        alone.measure(home, || {
            thread::sleep(ALONE);
            Ok((0, ALONE))
        })?;
        let tree = Tree::expired(&form, state)?;
        tree.settle();
        ours.measure(home, || Ok((pairs, ours::delete_by_command(&tree)?.wall)))?;
        tree.check_empty()?;
        let tree = Tree::expired(&form, state)?;
        tree.settle();
        bounded.measure(home, || {
            Ok((pairs, ours::delete_by_command_with(&tree, &["--max-disk-time", "300ms"])?.wall))
        })?;
        tree.check_empty()?;
        if Peer::Find.is_installed() {
            let tree = Tree::expired(&form, state)?;
            tree.settle();
            find.measure(home, || Ok((pairs, Peer::Find.delete(&tree)?.wall)))?;
        }
    }
    println!(
        "\nneighbour: a program that writes, syncs and reads 4 KiB and looks at {FILES} files"
    );
    for Beside { name, felt, pairs, took } in [&alone, &ours, &bounded, &find] {
        if felt.is_empty() {
            println!("{name:<28} not installed");
            continue;
        }
        println!("{name:<28} {felt}");
        if *pairs > 0 {
            let to_alone = |share| felt.percentile(share) / alone.felt.percentile(share);
            println!(
                "{:<28} p50 is {:.2} and p99 {:.2} times of that alone; {:.0} pairs deleted a second",
                "",
                to_alone(0.5),
                to_alone(0.99),
                *pairs as f64 / took.as_secs_f64()
            );
        }
    }
    Ok(())
}

/// How long each turn of its work takes, until all is over; there is one at least.
fn neighbour(home: &Path, over: &AtomicBool) -> io::Result<Latencies> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(home.join("own"))?;
    let mut block = [7; 4096];
    let mut latencies = Latencies::default();
    while latencies.is_empty() || !over.load(Ordering::Relaxed) {
        let start = Instant::now();
        file.write_all_at(&block, 0)?;
        file.sync_all()?;
        file.read_exact_at(&mut block, 0)?;
        for number in 0..FILES {
            fs::metadata(home.join(number.to_string()))?;
        }
        latencies.add(start.elapsed());
    }
    Ok(latencies)
}
