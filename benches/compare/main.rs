//! How result-cleaner compares with what the kernel charges, and with other programs.
//!
//! `cargo bench --bench compare` runs every chapter but `growth` and `overflow`, within about six minutes;
//! `cargo bench --bench compare -- scan delete --pairs 100000` runs what is named, as large as said;
//! `-- start --sizes 10000,300000,1000000` starts services on trees of these sizes; `-- --help` lists
//! the rest.
//!
//! Each figure has a ratio to a floor: one thread that makes only the system calls without which the
//! work can't be done. Both are measured in one run, taking turns over several rounds, because
//! absolute times vary from machine to machine and from hour to hour. Times are never a failure;
//! wrong work is: counts that differ, files that are left over or wrongly gone.
//!
//! Wall time alone hides what a second core does. So each side also reports its processor time, with a
//! ratio of its own, and the context switches of its threads; `scan` and `storm` repeat their work on
//! one core. What kernel threads do for a side is in no processor time. The kernel measures the
//! processor time of a side, and only samples how it divides into user and system time.
//!
//! Where the rounds of a floor differ much from each other, the table says that it is unsteady: its
//! ratios of wall time prove nothing then.
//!
//! Trees are made in `TMPDIR`, which chooses the file system; `storm` repeats its work in `/dev/shm`,
//! where no disk hides what the processor does. `start` makes its trees there unless `TMPDIR` is set: it
//! takes 10 KB of memory a pair, and minutes to remove large trees from a disk. A real directory holds
//! a session's results: some 5 or 50, so that the price of a directory counts.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a benchmark ends where something unexpected happens, and prints its figures"
)]

mod burst;
mod delete;
mod evict;
mod floor;
mod growth;
mod idle;
mod lateness;
mod measure;
mod metadata;
mod neighbour;
mod ours;
mod overflow;
mod peers;
mod plot;
mod process;
mod scan;
mod start;
mod storm;
mod tree;
mod usage;
mod watch;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::measure::Outcome;
use crate::metadata::Content;
use crate::tree::{Form, State};

/// Compares result-cleaner with the floor of the kernel, and with other programs.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure; all but `growth` and `overflow` where nothing is named
    chapters: Vec<Chapter>,
    /// Pairs in a tree, instead of what each chapter takes by itself; `start` and `growth` go by --sizes
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: Option<u32>,
    /// Pairs in a directory: `scan`, `resweep`, `delete` and `storm` measure each of these numbers, the
    /// others the first [default: 5,50, and 500 for `scan`; 50 for the others]
    #[arg(long, value_delimiter = ',', value_name = "N,…",
        value_parser = clap::value_parser!(u32).range(1..))]
    per_directory: Vec<u32>,
    /// What metadata files contain [default: store, and for `scan` also one tree with guide]
    #[arg(long)]
    metadata: Option<Content>,
    /// How often the sides take turns
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Delete results that are not on the disk yet, which leaves out what the disk takes
    #[arg(long)]
    fresh: bool,
    /// Another build of result-cleaner, which `scan`, `delete`, `storm`, `start` and `lateness` compare with
    /// this one
    #[arg(long, value_name = "BINARY")]
    other: Option<PathBuf>,
    /// Directories in the tree of `watch`
    #[arg(long, default_value = "2000")]
    directories: usize,
    /// Pairs in the trees of `start` and `growth`, and those that wait beside the results of `lateness`
    /// [default: 10000,300000 for `start`, 1000,10000,100000 for `growth`, 0 for `lateness`]
    #[arg(long, value_delimiter = ',', value_name = "N,…",
        value_parser = clap::value_parser!(u32).range(1..))]
    sizes: Vec<u32>,
    /// Where `growth` draws its picture
    #[arg(long, default_value = "target/growth.svg")]
    plot: PathBuf,
    /// A process of `overflow` that makes events: their kind, the directory, how many per second, and
    /// its number
    #[arg(long, hide = true, num_args = 4)]
    flood: Option<Vec<String>>,
    /// Cargo says so when it runs a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn pairs(&self, default: usize) -> usize {
        self.pairs.map_or(default, |pairs| pairs as usize)
    }

    fn sizes(&self, default: &[usize]) -> Vec<usize> {
        or_else(&self.sizes, default)
    }

    /// A tree of so many pairs, where a chapter makes only one kind of them.
    fn form(&self, pairs: usize) -> Form {
        Form {
            pairs,
            per_directory: self.per_directory.first().map_or(50, |&number| number as usize),
            content: self.metadata.unwrap_or(Content::Store),
            home: env::temp_dir(),
        }
    }

    /// The same in memory, unless `TMPDIR` is set: it takes minutes to remove a large one from a disk.
    fn form_in_memory(&self, pairs: usize) -> Form {
        let form = self.form(pairs);
        match env::var_os("TMPDIR") {
            Some(_) => form,
            None => form.on_tmpfs().unwrap_or(form),
        }
    }

    /// Trees of so many pairs, one for each number of pairs in a directory.
    fn forms(&self, pairs: usize, per_directory: &[usize]) -> Vec<Form> {
        let numbers = or_else(&self.per_directory, per_directory).into_iter();
        numbers.map(|per_directory| Form { per_directory, ..self.form(pairs) }).collect()
    }

    /// How trees are that are to be deleted.
    fn state(&self) -> State {
        if self.fresh { State::Fresh } else { State::Written }
    }
}

fn or_else(given: &[u32], default: &[usize]) -> Vec<usize> {
    match given {
        [] => default.to_vec(),
        given => given.iter().map(|&number| number as usize).collect(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Chapter {
    /// A look at a tree in which nothing has expired: warm, on one core, and as root also cold
    Scan,
    /// Deleting a tree in which all has expired
    Delete,
    /// All results of a running service expire at once: in TMPDIR, in memory, and on one core
    Storm,
    /// A limit on the size is exceeded: until all is below it again (`--pairs 100000` are 1 GiB)
    Evict,
    /// The start of a service until its first scan is done, and its memory for each waiting pair
    Start,
    /// Starting a service on many directories
    Watch,
    /// From the expiry of single results until they are gone
    Lateness,
    /// Many results are published at once while the processors are busy
    Burst,
    /// What a service costs that waits
    Idle,
    /// What another program feels of a cleanup
    Neighbour,
    /// A sweep of a running service in which nothing has changed
    Resweep,
    /// Scanning and deleting trees of several sizes, as a table and a picture
    Growth,
    /// How many events per second a service reads before the kernel's queue overflows
    Overflow,
}

impl Chapter {
    const ORDINARY: [Self; 11] = [
        Self::Scan,
        Self::Delete,
        Self::Storm,
        Self::Evict,
        Self::Start,
        Self::Watch,
        Self::Lateness,
        Self::Burst,
        Self::Idle,
        Self::Neighbour,
        Self::Resweep,
    ];
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(job) = &args.flood {
        return exit(overflow::flood(job).map(|()| true));
    }
    if !args.bench {
        println!("nothing to do: this is a benchmark, and cargo bench runs it");
        return ExitCode::SUCCESS;
    }
    exit(run(&args))
}

fn exit(outcome: Outcome<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all chapters that are asked for, also after one in which the work was wrong; whether all
/// was right.
fn run(args: &Args) -> Outcome<bool> {
    let chapters =
        if args.chapters.is_empty() { &Chapter::ORDINARY[..] } else { &args.chapters[..] };
    let mut all_right = true;
    for chapter in chapters {
        let outcome = match chapter {
            Chapter::Scan => scan::run(args),
            Chapter::Delete => delete::run(args),
            Chapter::Storm => storm::run(args),
            Chapter::Evict => evict::run(args),
            Chapter::Start => start::run(args),
            Chapter::Watch => watch::run(args),
            Chapter::Lateness => lateness::run(args),
            Chapter::Burst => burst::run(args),
            Chapter::Idle => idle::run(args),
            Chapter::Neighbour => neighbour::run(args),
            Chapter::Resweep => scan::again(args),
            Chapter::Growth => growth::run(args),
            Chapter::Overflow => overflow::run(args),
        };
        if let Err(wrong) = outcome {
            println!("\nWRONG in {chapter:?}: {wrong}");
            all_right = false;
        }
    }
    Ok(all_right)
}
