//! Taking turns, medians and percentiles.

use std::error::Error;
use std::fmt;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::usage::Cost;

/// An error is work that was wrong, or a benchmark that could not be made.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// What does the work once: it prepares what it needs, and returns what the work itself cost.
type Run<'a> = Box<dyn FnMut() -> Outcome<Cost> + 'a>;

/// One of the ways in which a work is done.
pub struct Side<'a> {
    name: &'static str,
    /// Nothing where the program is not installed.
    run: Option<Run<'a>>,
}

impl<'a> Side<'a> {
    pub fn new(name: &'static str, run: impl FnMut() -> Outcome<Cost> + 'a) -> Self {
        Self { name, run: Some(Box::new(run)) }
    }

    pub fn not_installed(name: &'static str) -> Self {
        Self { name, run: None }
    }
}

/// What each round of one side cost; nothing where it is not installed.
pub struct Measured {
    pub name: &'static str,
    rounds: Vec<Cost>,
}

/// A figure of a cost.
pub type Figure = fn(&Cost) -> f64;

/// Seconds of wall time.
pub const WALL: Figure = |cost| cost.wall.as_secs_f64();
/// Seconds of processor time.
pub const CPU: Figure = |cost| cost.usage.cpu().as_secs_f64();
const USER: Figure = |cost| cost.usage.user.as_secs_f64();
const SYSTEM: Figure = |cost| cost.usage.system.as_secs_f64();
const VOLUNTARY: Figure = |cost| cost.usage.voluntary as f64;
const INVOLUNTARY: Figure = |cost| cost.usage.involuntary as f64;

/// The median of the ratios of each round, and how far they are spread.
#[derive(Debug, Clone, Copy)]
pub struct Ratio {
    pub median: f64,
    least: f64,
    most: f64,
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2} - {:.2})", self.median, self.least, self.most)
    }
}

impl Measured {
    /// The median of the rounds.
    pub fn median(&self, figure: Figure) -> Option<f64> {
        (!self.rounds.is_empty()).then(|| median(self.rounds.iter().map(figure).collect()))
    }

    /// How many times the slowest round took as long as the fastest.
    fn spread(&self) -> Option<f64> {
        let walls = || self.rounds.iter().map(WALL);
        Some(walls().max_by(f64::total_cmp)? / walls().min_by(f64::total_cmp)?)
    }

    pub fn ratio_to(&self, floor: &Self, figure: Figure) -> Option<Ratio> {
        let rounds = self.rounds.iter().zip(&floor.rounds);
        let mut ratios: Vec<f64> =
            rounds.map(|(ours, floor)| figure(ours) / figure(floor)).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (*ratios.first()?, *ratios.last()?);
        Some(Ratio { median: median(ratios), least, most })
    }
}

/// Has the sides take turns; who begins changes from round to round.
pub fn alternate(rounds: u32, mut sides: Vec<Side<'_>>) -> Outcome<Vec<Measured>> {
    let mut measured: Vec<Measured> =
        sides.iter().map(|side| Measured { name: side.name, rounds: Vec::new() }).collect();
    for round in 0..rounds as usize {
        for turn in 0..sides.len() {
            let at = (round + turn) % sides.len();
            if let Some(run) = &mut sides[at].run {
                let cost = run().map_err(|error| format!("{}: {error}", sides[at].name))?;
                measured[at].rounds.push(cost);
            }
        }
    }
    Ok(measured)
}

/// Prints how `sides` do at `work`, which is about `count` things. The first of them is the floor.
pub fn compare(
    work: &str,
    count: usize,
    rounds: u32,
    sides: Vec<Side<'_>>,
) -> Outcome<Vec<Measured>> {
    let measured = alternate(rounds, sides)?;
    println!("\n{work}: medians of {rounds} rounds");
    println!(
        "{:<36} {:>9} {:>8} {:>8} {:>8} {:>7} {:>7}  {:<21} CPU to the floor",
        "us each, and switches in all",
        "wall",
        "CPU",
        "user",
        "system",
        "vol.",
        "invol.",
        "wall to the floor"
    );
    for side in &measured {
        println!("{:<36} {}", side.name, columns(side, &measured[0], count));
    }
    // A disk that others use, too, can be ten times slower for some seconds.
    if let Some(spread) = measured[0].spread().filter(|spread| *spread > UNSTEADY) {
        println!("unsteady: the floor's own rounds differ {spread:.1} times in wall time");
    }
    Ok(measured)
}

/// Where the rounds of a floor differ by more, a ratio to it proves nothing.
const UNSTEADY: f64 = 1.5;

/// The columns of one side.
fn columns(side: &Measured, floor: &Measured, count: usize) -> String {
    let ratios = side.ratio_to(floor, WALL).zip(side.ratio_to(floor, CPU));
    let Some((wall_ratio, cpu_ratio)) = ratios else {
        return "not installed".to_owned();
    };
    let in_all = |figure| side.median(figure).unwrap_or(f64::NAN);
    let [wall, cpu, user, system] =
        [WALL, CPU, USER, SYSTEM].map(|time| in_all(time) * 1e6 / count as f64);
    let [voluntary, involuntary] = [VOLUNTARY, INVOLUNTARY].map(in_all);
    let (wall_ratio, cpu_ratio) = (wall_ratio.to_string(), cpu_ratio.to_string());
    format!(
        "{wall:>9.2} {cpu:>8.2} {user:>8.2} {system:>8.2} {voluntary:>7.0} {involuntary:>7.0}  {wall_ratio:<21} {cpu_ratio}"
    )
}

/// How long `work` takes, which has to come out well.
pub fn timed<T, E: Into<Box<dyn Error>>>(
    work: impl FnOnce() -> Result<T, E>,
) -> Outcome<(Duration, T)> {
    let start = Instant::now();
    let outcome = work();
    let took = start.elapsed();
    Ok((took, outcome.map_err(Into::into)?))
}

/// What the thread has returned; it panics if the thread did.
pub fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// An error where `right` does not hold.
pub fn check(right: bool, wrong: impl fmt::Display) -> Outcome {
    if right { Ok(()) } else { Err(wrong.to_string().into()) }
}

/// Waits until `holds`, looking every `pause`.
pub fn wait_until(what: &str, pause: Duration, mut holds: impl FnMut() -> bool) -> Outcome {
    const PATIENCE: Duration = Duration::from_secs(300);
    let start = Instant::now();
    while !holds() {
        check(start.elapsed() < PATIENCE, format_args!("waited in vain: {what}"))?;
        thread::sleep(pause);
    }
    Ok(())
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => values[len / 2 - 1..=len / 2].iter().sum::<f64>() / 2.0,
    }
}

/// Times of many single events. Displayed as percentiles.
#[derive(Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub fn append(&mut self, mut more: Self) {
        self.0.append(&mut more.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What so large a share of them does not exceed, in milliseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let at = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
        sorted.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| self.percentile(share));
        write!(f, "p50 {p50:.3} ms, p99 {p99:.3} ms, max {max:.3} ms ({} times)", self.0.len())
    }
}
