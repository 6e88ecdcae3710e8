//! From the expiry of single results until they are gone, as the kernel reports it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::inotify::{ReadFlags, Reader};

use crate::measure::{Latencies, Outcome, check};
use crate::ours::Service;
use crate::process::Process;
use crate::tree::{self, RESULT_SUFFIX, Tree};
use crate::{Args, floor, metadata};

const RESULTS: usize = 500;
/// Until the first one expires: all are published and known by then.
const LEAD: Duration = Duration::from_secs(3);
const SPAN_MICROS: u64 = 15_000_000;
/// After the last one should be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// A name in one of the directories is no more.
struct Gone {
    name: String,
    at: SystemTime,
    /// Not renamed, but unlinked.
    unlinked: bool,
}

/// What happened to a pair.
#[derive(Default)]
struct Fate {
    expires_at: Option<SystemTime>,
    /// The result is under its name no more.
    left: Option<SystemTime>,
    unlinked: usize,
    /// The last of its files was unlinked.
    gone: Option<SystemTime>,
}

pub fn run(args: &Args) -> Outcome {
    let start = |root: &Path| {
        let service = Service::start(root)?;
        service.wait_for_first_scan()?;
        Ok(service)
    };
    lateness("a running service", args, start, Service::stop)?;
    let Some(other) = &args.other else { return Ok(()) };
    let start = |root: &Path| Process::start_serving(other, root);
    lateness("a service of the other build", args, start, |_| Ok(()))
}

/// Publishes results under a service that `start` starts, and `stop` stops, while others wait there.
fn lateness<S>(
    title: &str,
    args: &Args,
    start: impl FnOnce(&Path) -> Outcome<S>,
    stop: impl FnOnce(S) -> Outcome,
) -> Outcome {
    let results = args.pairs(RESULTS);
    let waiting = args.sizes(&[0]).into_iter().next().unwrap_or_default();
    let tree = Tree::waiting(&args.form_in_memory(waiting))?;
    let sessions: Vec<_> = (0..10).map(|n| tree.path().join(format!("expiring_{n}"))).collect();
    sessions.iter().try_for_each(fs::create_dir)?;
    let (watches, _) = floor::watch(tree.path())?;
    let service = start(tree.path())?;

    let begin = SystemTime::now() + LEAD;
    let mut fates: HashMap<String, Fate> = HashMap::new();
    for number in 0..results {
        let after = Duration::from_micros(scattered(number as u64) % SPAN_MICROS);
        // As exactly as it is written.
        let text = metadata::seconds(begin + after)?;
        let expires_at = SystemTime::UNIX_EPOCH + written(&text)?;
        let stem = tree::stem(number);
        tree::publish(&sessions[number % sessions.len()], &stem, &text)?;
        fates.insert(stem, Fate { expires_at: Some(expires_at), ..Fate::default() });
    }
    check(SystemTime::now() < begin, "the machine is too slow to publish them in time")?;

    let (sender, events) = mpsc::channel();
    // It ends with the process, if not before: no event informs it that the rest does not matter.
    thread::spawn(move || forward(&watches, &sender));
    let end = begin + Duration::from_micros(SPAN_MICROS) + PATIENCE;
    let mut left = results;
    while left > 0 {
        let patience = end.duration_since(SystemTime::now()).unwrap_or_default();
        let Ok(event) = events.recv_timeout(patience) else {
            return Err(format!("{left} of {results} pairs were not gone in time").into());
        };
        let Some(fate) =
            tree::stem_in(OsStr::new(&event.name)).and_then(|stem| fates.get_mut(stem))
        else {
            continue;
        };
        if event.name.ends_with(RESULT_SUFFIX) {
            fate.left.get_or_insert(event.at);
        }
        if event.unlinked {
            fate.unlinked += 1;
            fate.gone = Some(event.at);
            left -= usize::from(fate.unlinked == 2);
        }
    }
    tree.check_whole()?;
    stop(service)?;
    report(&format!("{title} in which {waiting} others wait"), &fates)
}

fn report(title: &str, fates: &HashMap<String, Fate>) -> Outcome {
    let (mut left, mut gone) = (Latencies::default(), Latencies::default());
    let mut early = 0;
    for fate in fates.values() {
        let late = |at: Option<SystemTime>| at?.duration_since(fate.expires_at?).ok();
        match (late(fate.left), late(fate.gone)) {
            (Some(lateness), Some(until_gone)) => {
                left.add(lateness);
                gone.add(until_gone);
            }
            _ => early += 1,
        }
    }
    println!("\nlateness: from the expiry of a result in {title}");
    println!("until it has left its name   {left}");
    println!("until both files are gone    {gone}");
    check(early == 0, format_args!("{early} results went before they had expired"))
}

/// Sends each name of a file in the watched directories that is there no more, until nobody listens.
fn forward(watches: &OwnedFd, events: &Sender<Gone>) {
    let mut buffer = [MaybeUninit::uninit(); 64 * 1024];
    let mut reader = Reader::new(watches, &mut buffer);
    while let Ok(event) = reader.next() {
        let at = SystemTime::now();
        let unlinked = event.events().contains(ReadFlags::DELETE);
        if !unlinked && !event.events().contains(ReadFlags::MOVED_FROM) {
            continue;
        }
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        if events.send(Gone { name, at, unlinked }).is_err() {
            return;
        }
    }
}

/// The time that `seconds.micros` means.
fn written(text: &str) -> Outcome<Duration> {
    let (seconds, micros) = text.split_once('.').ok_or("no fraction")?;
    Ok(Duration::from_secs(seconds.parse()?) + Duration::from_micros(micros.parse()?))
}

/// Numbers that look like chance, and are the same in each run.
fn scattered(number: u64) -> u64 {
    number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}
