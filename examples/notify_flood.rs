//! Shows how notify's inotify backend behaves under load, for its maintainers: `docs/notify.md`
//! describes each case. No part of result-cleaner is used.
//!
//! `cargo run --release --example notify_flood` runs all cases within a minute;
//! `cargo run --release --example notify_flood -- flood` runs one: `flood`, `removal`, `replaced`,
//! `rename` or `panic`.
//!
//! Each flood ends after a few seconds, which bounds the memory that the cases use.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "an example is as short as may be, and prints what it does"
)]

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use notify::{Config, Event, INotifyWatcher, PathOp, RecursiveMode, WatchPathConfig, Watcher};
use tempfile::TempDir;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Case = fn() -> Outcome;

const WRITERS: usize = 8;
const FILES: usize = 64;
/// Directories in one call of `update_paths`.
const BATCH: usize = 1024;
const FLOOD: Duration = Duration::from_secs(5);
/// From the start of a flood until the watcher is dropped.
const LEAD: Duration = Duration::from_secs(1);
/// How long a case waits for an event or for the end of a thread.
const PATIENCE: Duration = Duration::from_secs(60);
/// The kernel cuts the name of notify's thread after 15 bytes.
const THREAD: &str = "notify-rs inoti";

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, prefix] = &args[..]
        && word == "write"
    {
        return Ok(write(prefix)?);
    }
    let setting = |path| fs::read_to_string(Path::new("/proc/sys").join(path));
    println!(
        "{} processors, Linux {}, max_queued_events {}",
        thread::available_parallelism()?,
        setting("kernel/osrelease")?.trim(),
        setting("fs/inotify/max_queued_events")?.trim()
    );
    let cases: [(&str, Case); 5] = [
        ("flood", flood),
        ("removal", removal),
        ("replaced", replaced),
        ("rename", rename),
        ("panic", panicking_handler),
    ];
    for (name, case) in cases {
        if args.is_empty() || args.iter().any(|arg| arg == name) {
            println!("\n{name}");
            case()?;
        }
    }
    Ok(())
}

/// Writes single bytes to files that stay open, whose paths begin with `prefix`. The files take
/// turns, because the kernel merges an event with an equal one right before it.
fn write(prefix: &str) -> io::Result<()> {
    let open = |number| File::create(format!("{prefix}_{number:035}.json"));
    let files = (0..FILES).map(open).collect::<io::Result<Vec<_>>>()?;
    let start = Instant::now();
    while start.elapsed() < FLOOD {
        for file in &files {
            file.write_all_at(b"x", 0)?;
        }
    }
    Ok(())
}

/// Calls that the event loop has to answer, without and with a flood of writes.
fn flood() -> Outcome {
    println!(
        "{WRITERS} processes write single bytes to {FILES} files each for {} s; the handler counts",
        FLOOD.as_secs()
    );
    for writers in [0, WRITERS] {
        repeat(writers, "watch and unwatch", |watcher, dirs| {
            let dir = &dirs[0];
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
            Ok(watcher.unwatch(dir)?)
        })?;
    }
    for writers in [0, WRITERS] {
        repeat(writers, "update_paths", |watcher, dirs| {
            Ok(watcher.update_paths(dirs.iter().map(|dir| watch_op(dir)).collect())?)
        })?;
    }
    for writers in [0, WRITERS] {
        let Flooded { watcher, flood, _dir, .. } = Flooded::start(writers)?;
        thread::sleep(LEAD);
        let start = Instant::now();
        drop(watcher);
        wait_until("the end of notify's thread", || !thread_lives())?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        println!("drop, {writers} writers: its thread ended {took:.1} ms later");
        flood.end()?;
    }
    Ok(())
}

/// Makes the calls again and again, from just before the flood until its end.
fn repeat(
    writers: usize,
    name: &str,
    calls: impl Fn(&mut INotifyWatcher, &[PathBuf]) -> Outcome,
) -> Outcome {
    let other = TempDir::new()?;
    let dirs: Vec<_> = (0..BATCH).map(|n| other.path().join(format!("dir_{n}"))).collect();
    dirs.iter().try_for_each(fs::create_dir)?;
    let Flooded { mut watcher, events, overflows, flood, _dir } = Flooded::start(writers)?;
    let before = memory("VmRSS")?;
    let (mut longest, mut count) = (Duration::ZERO, 0);
    while flood.start.elapsed() < FLOOD {
        let start = Instant::now();
        calls(&mut watcher, &dirs)?;
        longest = longest.max(start.elapsed());
        count += 1;
    }
    let peak = memory("VmHWM")?;
    let span = flood.end()?;
    drop(watcher);
    // What is still buffered counts as well.
    wait_until("the end of notify's thread", || !thread_lives())?;
    println!(
        "{name}, {writers} writers: {count} times, the longest {:.1} ms; {:.0} events per second, {} overflows, memory {before} -> {peak} MiB",
        longest.as_secs_f64() * 1e3,
        events.load(Relaxed) as f64 / span.as_secs_f64(),
        overflows.load(Relaxed),
    );
    Ok(())
}

fn watch_op(dir: &Path) -> PathOp {
    PathOp::Watch(dir.to_owned(), WatchPathConfig::new(RecursiveMode::NonRecursive))
}

/// A watcher of a directory that is being flooded.
struct Flooded {
    watcher: INotifyWatcher,
    events: Arc<AtomicU64>,
    overflows: Arc<AtomicU64>,
    flood: Flood,
    _dir: TempDir,
}

impl Flooded {
    fn start(writers: usize) -> Outcome<Self> {
        let dir = TempDir::new()?;
        let (events, overflows) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (Arc::clone(&events), Arc::clone(&overflows));
        let count = move |event: notify::Result<Event>| {
            counts.0.fetch_add(1, Relaxed);
            counts.1.fetch_add(event.is_ok_and(|event| event.need_rescan()).into(), Relaxed);
        };
        let mut watcher = INotifyWatcher::new(count, Config::default())?;
        watcher.watch(dir.path(), RecursiveMode::NonRecursive)?;
        let flood = Flood::start(writers, dir.path())?;
        Ok(Self { watcher, events, overflows, flood, _dir: dir })
    }
}

/// The writing processes.
struct Flood {
    start: Instant,
    writers: Vec<Child>,
}

impl Flood {
    fn start(writers: usize, dir: &Path) -> Outcome<Self> {
        let start = Instant::now();
        let spawn = |number: usize| {
            let dir = dir.join(number.to_string());
            Command::new(std::env::current_exe()?).arg("write").arg(dir).spawn()
        };
        Ok(Self { start, writers: (0..writers).map(spawn).collect::<io::Result<_>>()? })
    }

    /// Waits for the end of the flood, and returns how long it took.
    fn end(mut self) -> Outcome<Duration> {
        for writer in &mut self.writers {
            writer.wait()?;
        }
        Ok(self.start.elapsed())
    }
}

/// Removing watched directories: the processor time of notify's thread.
fn removal() -> Outcome {
    for count in [1000, 2000, 4000] {
        let root = TempDir::new()?;
        let (sender, events) = mpsc::channel();
        let mut watcher = INotifyWatcher::new(sender, Config::default())?;
        watcher.watch(root.path(), RecursiveMode::NonRecursive)?;
        let dirs: Vec<_> = (0..count).map(|n| root.path().join(format!("dir_{n}"))).collect();
        dirs.iter().try_for_each(fs::create_dir)?;
        watcher.update_paths(dirs.iter().map(|dir| watch_op(dir)).collect())?;
        let before = thread_cpu()?;
        dirs.iter().try_for_each(fs::remove_dir)?;
        let last = root.path().join("last");
        File::create(&last)?;
        wait_for(&events, &last, PATIENCE)?;
        let cpu = (thread_cpu()? - before).as_secs_f64() * 1e6 / f64::from(count);
        println!("{count} watched directories removed: {cpu:.1} us of processor time for each");
        drop(watcher);
        wait_until("the end of notify's thread", || !thread_lives())?;
    }
    Ok(())
}

/// A watched directory is replaced while the kernel's queue is full.
fn replaced() -> Outcome {
    let root = TempDir::new()?;
    let sub = root.path().join("sub");
    fs::create_dir(&sub)?;
    let gate = Arc::new((Mutex::new(true), Condvar::new()));
    let (sender, events) = mpsc::channel();
    let handler_gate = Arc::clone(&gate);
    let handler = move |event: notify::Result<Event>| {
        if let Ok(closed) = handler_gate.0.lock() {
            drop(handler_gate.1.wait_while(closed, |closed| *closed));
        }
        // The receiver may be gone.
        let _ = sender.send(event);
    };
    let mut watcher = INotifyWatcher::new(handler, Config::default())?;
    watcher.watch(root.path(), RecursiveMode::NonRecursive)?;
    watcher.watch(&sub, RecursiveMode::NonRecursive)?;

    let queue: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")?.trim().parse()?;
    let files = [File::create(root.path().join("a"))?, File::create(root.path().join("b"))?];
    for number in 0..2 * queue {
        files[number % 2].write_all_at(b"x", 0)?;
    }
    fs::remove_dir(&sub)?;
    fs::create_dir(&sub)?;
    *gate.0.lock().map_err(|_| "the handler panicked")? = false;
    gate.1.notify_all();
    while !events.recv_timeout(PATIENCE)??.need_rescan() {}
    println!("the queue overflowed, and the handler received Flag::Rescan");

    let seen = |watcher: &mut INotifyWatcher, name: &str| -> Outcome<bool> {
        watcher.watch(&sub, RecursiveMode::NonRecursive)?;
        File::create(sub.join(name))?;
        Ok(wait_for(&events, &sub.join(name), Duration::from_secs(1)).is_ok())
    };
    println!("watch(new directory) is Ok, and its events arrive: {}", seen(&mut watcher, "1")?);
    watcher.unwatch(&sub)?;
    println!("after unwatch and watch, its events arrive: {}", seen(&mut watcher, "2")?);
    Ok(())
}

/// The events that the handler receives for one rename.
fn rename() -> Outcome {
    let root = TempDir::new()?;
    let (from, to, last) = (root.path().join("a"), root.path().join("b"), root.path().join("last"));
    File::create(&from)?;
    let (sender, events) = mpsc::channel();
    let mut watcher = INotifyWatcher::new(sender, Config::default())?;
    watcher.watch(root.path(), RecursiveMode::NonRecursive)?;
    fs::rename(&from, &to)?;
    File::create(&last)?;
    loop {
        let event = events.recv_timeout(PATIENCE)??;
        if event.paths.contains(&last) {
            return Ok(());
        }
        println!("{:?}", event.kind);
    }
}

/// Dropping a watcher whose handler panicked.
fn panicking_handler() -> Outcome {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|panic| println!("panic: {panic}")));
    let root = TempDir::new()?;
    let mut watcher =
        INotifyWatcher::new(|_| panic!("the handler's own panic"), Config::default())?;
    watcher.watch(root.path(), RecursiveMode::NonRecursive)?;
    File::create(root.path().join("file"))?;
    wait_until("the end of notify's thread", || !thread_lives())?;
    println!("watch: {:?}", watcher.watch(root.path(), RecursiveMode::NonRecursive));
    let dropped = panic::catch_unwind(AssertUnwindSafe(|| drop(watcher)));
    println!("drop panics: {}", dropped.is_err());
    panic::set_hook(hook);
    Ok(())
}

/// Drops events until one names `path`.
fn wait_for(
    events: &mpsc::Receiver<notify::Result<Event>>,
    path: &Path,
    patience: Duration,
) -> Outcome {
    let start = Instant::now();
    loop {
        let event = events.recv_timeout(patience.saturating_sub(start.elapsed()))??;
        if event.paths.iter().any(|known| known == path) {
            return Ok(());
        }
    }
}

fn wait_until(what: &str, holds: impl Fn() -> bool) -> Outcome {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > PATIENCE {
            return Err(format!("waited in vain for {what}").into());
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Whether this process has a thread of notify.
fn thread_lives() -> bool {
    thread_cpu().is_ok()
}

/// Processor time of notify's thread; an error where there is none.
fn thread_cpu() -> Outcome<Duration> {
    for thread in fs::read_dir("/proc/self/task")? {
        let thread = thread?.path();
        // A thread may end meanwhile.
        if fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim_end() == THREAD) {
            let scheduled = fs::read_to_string(thread.join("schedstat"))?;
            let nanos = scheduled.split(' ').next().ok_or("no schedstat")?.parse()?;
            return Ok(Duration::from_nanos(nanos));
        }
    }
    Err("notify has no thread".into())
}

/// `VmRSS` or `VmHWM` of this process, in MiB.
fn memory(field: &str) -> Outcome<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: u64 = line.ok_or("no such field")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}
