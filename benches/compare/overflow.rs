//! How many events per second a reader takes before the kernel's queue overflows, and how much
//! processor time its thread uses for each event.
//!
//! Two processes of their own make the events at a steady rate. Each step starts a new reader and a new
//! directory; the steps halve the interval between a rate without an overflow and one with it.

use std::any::Any;
use std::fs::{self, File, Permissions};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use notify::{Config, Event, EventKindMask, INotifyWatcher, RecursiveMode, Watcher};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::Args;
use crate::measure::{Outcome, check, median, wait_until};
use crate::process::{Process, cpu_of};
use crate::tree::{self, METADATA_SUFFIX, Place};

const SPAN: Duration = Duration::from_secs(2);
/// After the flood: the reader empties the queue, and a service logs what it lost.
const GRACE: Duration = Duration::from_secs(1);
/// Processes that make events: one alone is hardly faster than a reader.
const FLOODERS: usize = 2;
/// Files of each of them. They take turns, because the kernel merges an event with an equal one right
/// before it.
const FILES: usize = 64;
/// The lowest rate that is tried, in events per second.
const LEAST: f64 = 10_000.0;
/// Where two rates differ by less, the steps end.
const CLOSE: f64 = 1.1;
/// A flood that was held up makes at most so many events at once: a quarter of the default queue.
const BURST: f64 = 4096.0;
const PAUSE: Duration = Duration::from_micros(200);

const QUEUE: &str = "/proc/sys/fs/inotify/max_queued_events";

/// What the flood does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Write,
    Chmod,
    Create,
    Metadata,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Write, Self::Chmod, Self::Create, Self::Metadata];

    fn description(self) -> &'static str {
        match self {
            Self::Write => "writes of single bytes to unrelated open files",
            Self::Chmod => "chmod of unrelated files",
            Self::Create => "creation, closing and removal of unrelated files",
            Self::Metadata => "chmod of metadata",
        }
    }

    /// How many events one turn causes.
    fn events(self) -> u32 {
        if self == Self::Create { 3 } else { 1 }
    }

    fn path(self, root: &Path, number: usize) -> PathBuf {
        match self {
            Self::Metadata => root.join(format!("{}{METADATA_SUFFIX}", tree::stem(number))),
            _ => root.join(format!("{}.log", tree::stem(number))),
        }
    }

    /// Makes the files that the flood opens.
    fn prepare(self, root: &Path) -> Outcome {
        for number in 0..FLOODERS * FILES {
            match self {
                Self::Write | Self::Chmod => drop(File::create(self.path(root, number))?),
                Self::Create => {}
                Self::Metadata => tree::publish(root, &tree::stem(number), tree::FAR)?,
            }
        }
        Ok(())
    }
}

/// A process that makes events; it prints how many it made.
pub fn flood(job: &[String]) -> Outcome {
    let [kind, root, rate, flooder] = job else { return Err("a flood needs four words".into()) };
    let (kind, rate) = (Kind::from_str(kind, false)?, rate.parse::<f64>()?);
    let first = flooder.parse::<usize>()? * FILES;
    let paths: Vec<_> = (first..first + FILES).map(|n| kind.path(Path::new(root), n)).collect();
    let open = |path| File::options().read(true).write(kind == Kind::Write).open(path);
    let files = match kind {
        Kind::Create => Vec::new(),
        _ => paths.iter().map(open).collect::<Result<Vec<_>, _>>()?,
    };
    let turn = |number: usize| match kind {
        Kind::Write => files[number].write_all_at(b"x", 0),
        Kind::Chmod | Kind::Metadata => {
            files[number].set_permissions(Permissions::from_mode(0o600))
        }
        Kind::Create => {
            drop(File::create(&paths[number])?);
            fs::remove_file(&paths[number])
        }
    };
    let events = f64::from(kind.events());
    let (mut made, mut owed) = (0.0, 0.0);
    let start = Instant::now();
    let mut last = start;
    while last - start < SPAN {
        let now = Instant::now();
        owed = (owed + rate * (now - last).as_secs_f64()).min(BURST);
        last = now;
        if owed < FILES as f64 * events {
            thread::sleep(PAUSE);
            continue;
        }
        (0..FILES).try_for_each(turn)?;
        made += FILES as f64 * events;
        owed -= FILES as f64 * events;
    }
    println!("{made}");
    Ok(())
}

/// What reads the events.
#[derive(Debug, Clone, Copy)]
enum Reader {
    Raw,
    Notify,
    Ours,
}

/// A reader at work, until this is dropped.
struct Running {
    /// Of its process, below `/proc`.
    proc: PathBuf,
    /// The name of the thread that reads, as far as the kernel keeps it.
    thread: &'static str,
    overflows: Box<dyn Fn() -> u64>,
    _reader: Box<dyn Any>,
}

impl Reader {
    const ALL: [Self; 3] = [Self::Raw, Self::Notify, Self::Ours];

    fn name(self) -> &'static str {
        match self {
            Self::Raw => "floor: reads 64 KiB, does nothing",
            Self::Notify => "notify, empty handler",
            Self::Ours => "ours, as a service",
        }
    }

    fn start(self, root: &Path) -> Outcome<Running> {
        const OWN: &str = "/proc/self";
        const NOTIFY: &str = "notify-rs inoti";
        let counter = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&counter);
        let overflows = Box::new(move || counter.load(Ordering::Relaxed));
        let running = match self {
            Self::Raw => Running {
                proc: OWN.into(),
                thread: Raw::THREAD,
                overflows,
                _reader: Box::new(Raw::start(root, count)?),
            },
            Self::Notify => {
                let handler = move |event: notify::Result<Event>| {
                    if event.is_ok_and(|event| event.need_rescan()) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                };
                // As the service subscribes.
                let kinds = EventKindMask::CREATE
                    | EventKindMask::REMOVE
                    | EventKindMask::MODIFY_DATA
                    | EventKindMask::MODIFY_META
                    | EventKindMask::MODIFY_NAME
                    | EventKindMask::ACCESS_CLOSE;
                let config = Config::default().with_event_kinds(kinds);
                let mut watcher = INotifyWatcher::new(handler, config)?;
                watcher.watch(root, RecursiveMode::NonRecursive)?;
                Running { proc: OWN.into(), thread: NOTIFY, overflows, _reader: Box::new(watcher) }
            }
            Self::Ours => {
                let process = Arc::new(Process::start(root)?);
                let service = Arc::clone(&process);
                Running {
                    proc: process.proc(),
                    thread: NOTIFY,
                    // A service sweeps or warns after an overflow.
                    overflows: Box::new(move || service.notes()),
                    _reader: Box::new(process),
                }
            }
        };
        wait_until("the reader's thread", Duration::from_millis(1), || {
            matches!(cpu_of(&running.proc, running.thread), Ok(Some(_)))
        })?;
        Ok(running)
    }
}

impl Running {
    fn cpu(&self) -> Outcome<Duration> {
        Ok(cpu_of(&self.proc, self.thread)?.ok_or("the reader's thread has ended")?)
    }

    /// Ends it, and waits until its thread has ended.
    fn stop(self) -> Outcome {
        let Self { proc, thread, overflows, _reader } = self;
        drop((overflows, _reader));
        wait_until("the end of the reader", Duration::from_millis(1), || {
            !matches!(cpu_of(&proc, thread), Ok(Some(_)))
        })
    }
}

/// A thread that reads and counts overflows.
struct Raw {
    queue: Arc<OwnedFd>,
    watch: i32,
    thread: Option<JoinHandle<()>>,
}

impl Raw {
    const THREAD: &str = "raw reader";

    fn start(root: &Path, overflows: Arc<AtomicU64>) -> Outcome<Self> {
        // What notify's mask of events comes to.
        let events = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        let queue = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let watch = inotify::add_watch(&queue, root, events)?;
        let read = Arc::clone(&queue);
        let thread = thread::Builder::new().name(Self::THREAD.into()).spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 64 * 1024];
            let mut reader = inotify::Reader::new(&*read, &mut buffer);
            while let Ok(event) = reader.next() {
                if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                    overflows.fetch_add(1, Ordering::Relaxed);
                }
                // The watch has ended.
                if event.events().contains(ReadFlags::IGNORED) {
                    return;
                }
            }
        })?;
        Ok(Self { queue, watch, thread: Some(thread) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The directory is still there, and so is its watch.
        let _ = inotify::remove_watch(&self.queue, self.watch);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Floods `root` at that rate, and returns how many events were made.
fn make_events(kind: Kind, root: &Path, rate: f64) -> Outcome<f64> {
    let kind = kind.to_possible_value().ok_or("no such kind")?;
    let start = |flooder: usize| {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--flood").arg(kind.get_name()).arg(root);
        command.args([(rate / FLOODERS as f64).to_string(), flooder.to_string()]);
        command.stdout(Stdio::piped()).spawn()
    };
    let flooders = (0..FLOODERS).map(start).collect::<Result<Vec<_>, _>>()?;
    let mut made = 0.0;
    for flooder in flooders {
        let output = flooder.wait_with_output()?;
        check(output.status.success(), "a process that makes events has failed")?;
        made += String::from_utf8(output.stdout)?.trim().parse::<f64>()?;
    }
    Ok(made)
}

/// What a reader did at one rate.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Events that were made per second.
    rate: f64,
    overflowed: bool,
    /// Processor time of the reader's thread for each event, in microseconds; not a number after an
    /// overflow.
    cost: f64,
}

fn step(kind: Kind, reader: Reader, rate: f64) -> Outcome<Step> {
    let root = Place::new()?;
    kind.prepare(root.path())?;
    let running = reader.start(root.path())?;
    thread::sleep(GRACE);
    let (notes, cpu) = ((running.overflows)(), running.cpu()?);
    let made = make_events(kind, root.path(), rate)?;
    thread::sleep(GRACE);
    let overflowed = (running.overflows)() > notes;
    // A service may start another thread after an overflow.
    let cost = match overflowed {
        true => f64::NAN,
        false => running.cpu()?.checked_sub(cpu).ok_or("another thread reads now")?.as_secs_f64(),
    };
    let step = Step { rate: made / SPAN.as_secs_f64(), overflowed, cost: cost * 1e6 / made };
    running.stop()?;
    Ok(step)
}

/// The highest rate without an overflow, and whether that is all that the flood can make. Nothing
/// where even the lowest rate overflows the queue.
fn highest(kind: Kind, reader: Reader) -> Outcome<Option<(Step, bool)>> {
    let full = step(kind, reader, f64::INFINITY)?;
    if !full.overflowed {
        return Ok(Some((full, true)));
    }
    let mut above = full.rate;
    let mut best: Option<Step> = None;
    loop {
        let below = best.map_or(LEAST / CLOSE, |step| step.rate);
        if above / below < CLOSE {
            return Ok(best.map(|step| (step, false)));
        }
        let rate = (above * below).sqrt();
        let step = step(kind, reader, rate)?;
        if step.overflowed {
            above = rate;
        } else if step.rate > below {
            best = Some(step);
        } else {
            // The flood can't make more at this rate.
            return Ok(best.or(Some(step)).map(|step| (step, true)));
        }
    }
}

pub fn run(args: &Args) -> Outcome {
    println!(
        "\noverflow: events per second, for {} s, that a queue of {} takes without an overflow: medians of {} rounds",
        SPAN.as_secs(),
        fs::read_to_string(QUEUE)?.trim(),
        args.rounds
    );
    for kind in Kind::ALL {
        let mut found = Reader::ALL.map(|_| Vec::new());
        for round in 0..args.rounds as usize {
            for turn in 0..Reader::ALL.len() {
                let at = (round + turn) % Reader::ALL.len();
                found[at].extend(highest(kind, Reader::ALL[at])?);
            }
        }
        println!("{:<50} {:>9}  {:<21} us each", kind.description(), "a second", "(from - to)");
        for (reader, found) in Reader::ALL.iter().zip(&found) {
            if found.len() < args.rounds as usize {
                println!("{:<50} an overflow even at {LEAST}", reader.name());
                continue;
            }
            let rates: Vec<f64> = found.iter().map(|(step, _)| step.rate).collect();
            let costs = found.iter().map(|(step, _)| step.cost).collect();
            let range = format!(
                "({:.0} - {:.0})",
                rates.iter().copied().fold(f64::INFINITY, f64::min),
                rates.iter().copied().fold(0.0, f64::max)
            );
            let all =
                if found.iter().all(|(_, all)| *all) { ", all that the flood makes" } else { "" };
            println!(
                "{:<50} {:>9.0}  {range:<21} {:.2}{all}",
                reader.name(),
                median(rates),
                median(costs)
            );
        }
    }
    Ok(())
}
