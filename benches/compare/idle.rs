//! What a service costs that waits: processor time, wake-ups and memory.

use std::thread;
use std::time::Duration;

use crate::Args;
use crate::measure::Outcome;
use crate::process::Process;
use crate::tree::Tree;

/// After the first scan.
const SETTLING: Duration = Duration::from_secs(3);
const SPAN: Duration = Duration::from_secs(10);

pub fn run(args: &Args) -> Outcome {
    let tree = Tree::waiting(&args.form(args.pairs(5_000)))?;
    let process = Process::start(tree.path())?;
    thread::sleep(SETTLING);
    let usage = process.usage_within(SPAN)?;
    println!("\nidle: {} pairs wait, for {} s", tree.pairs(), SPAN.as_secs());
    println!(
        "processor time    {:.3} ms a second",
        usage.cpu.as_secs_f64() * 1e3 / SPAN.as_secs_f64()
    );
    println!("context switches  {:.1} a second", usage.switches as f64 / SPAN.as_secs_f64());
    println!("resident memory   {:.1} MiB", process.resident()? as f64 / f64::from(1 << 20));
    tree.check_whole()
}
