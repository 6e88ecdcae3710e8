//! Tracks directories with more events than the reader can handle.
//!
//! The kernel puts the events of all watched directories into one queue, and drops those that do not fit.
//! So one flooded directory costs the events of all others. Such a directory loses its watch: the worker
//! lists it every second instead, until it calms down.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// The most directories that may be flooded at once. Sweeps cover any further ones.
const MAX_FLOODED: usize = 256;
/// The rate, in events per second, at which a directory counts as flooded once events were lost.
const FLOOD_RATE: u32 = 5_000;
/// One event in this many is counted by directory. To count each event would cost too much.
const SAMPLE: u32 = 16;
/// The period over which events are counted. With each period, older counts lose half their weight.
const WINDOW: Duration = Duration::from_millis(100);
/// How long events are counted to find out whether a directory has calmed down.
const MEASURE_TIME: Duration = Duration::from_millis(20);

/// The flooded directories of one cache directory, relative to it.
#[derive(Debug, Default)]
pub(crate) struct Floods(Mutex<FloodState>);

#[derive(Debug, Default)]
struct FloodState {
    episodes: BTreeMap<Arc<Path>, Episode>,
    /// The directories whose floods have ended since the last report.
    calm: BTreeSet<Arc<Path>>,
    /// Whether a flood has begun or ended since the last report.
    is_changed: bool,
}

/// How much of a flood was reported to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Episode {
    Begun,
    Reported,
    Ended,
}

/// What has changed since the last report.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FloodReport {
    /// All directories that are flooded now.
    pub flooded: Vec<Arc<Path>>,
    /// The floods that have begun, and those that have ended, for the log.
    pub begun: Vec<Arc<Path>>,
    pub ended: Vec<Arc<Path>>,
    /// The directories whose floods have ended. The worker lists them again: a retired watcher may have watched
    /// them, and the new one has skipped them as flooded.
    pub calm: BTreeSet<Arc<Path>>,
}

impl Floods {
    /// Whether the directory `rel` is flooded.
    pub(crate) fn contains(&self, rel: &Path) -> bool {
        self.lock().episodes.get(rel).is_some_and(|episode| *episode != Episode::Ended)
    }

    /// Records that the directory `rel` is flooded.
    pub(crate) fn begin(&self, rel: &Arc<Path>) {
        let FloodState { episodes, is_changed, .. } = &mut *self.lock();
        let has_room = episodes.len() < MAX_FLOODED;
        match episodes.get_mut(rel) {
            // Its end was not reported yet: the episode goes on.
            Some(episode @ Episode::Ended) => *episode = Episode::Reported,
            None if has_room => drop(episodes.insert(Arc::clone(rel), Episode::Begun)),
            _ => return,
        }
        *is_changed = true;
    }

    /// Records that the directory `rel` has calmed down, or is gone.
    pub(crate) fn end(&self, rel: &Path) {
        let FloodState { episodes, calm, is_changed } = &mut *self.lock();
        match episodes.get_mut(rel) {
            Some(episode @ Episode::Reported) => *episode = Episode::Ended,
            // Its beginning was not reported yet.
            Some(Episode::Begun) => drop(episodes.remove(rel)),
            _ => return,
        }
        calm.insert(rel.into());
        *is_changed = true;
    }

    /// What has changed since the last call; `None` if nothing has.
    pub(crate) fn take_report(&self) -> Option<FloodReport> {
        let mut state = self.lock();
        if !std::mem::take(&mut state.is_changed) {
            return None;
        }
        let mut report =
            FloodReport { calm: std::mem::take(&mut state.calm), ..FloodReport::default() };
        state.episodes.retain(|rel, episode| {
            if *episode == Episode::Ended {
                report.ended.push(Arc::clone(rel));
                return false;
            }
            if *episode == Episode::Begun {
                report.begun.push(Arc::clone(rel));
                *episode = Episode::Reported;
            }
            report.flooded.push(Arc::clone(rel));
            true
        });
        Some(report)
    }

    /// Forgets all floods, because the cache directory was replaced or removed.
    pub(crate) fn clear(&self) {
        *self.lock() = FloodState::default();
    }

    /// Ends the floods among `rels` that are over. Takes [`MEASURE_TIME`].
    ///
    /// A separate instance of inotify counts the events: unlike the reader's, it can be closed at any moment.
    pub(crate) fn end_if_over(&self, root: &Path, rels: &[Arc<Path>]) {
        match measure(root, rels) {
            Ok(counts) => {
                let limit = u64::from(FLOOD_RATE) * MEASURE_TIME.as_millis() as u64 / 1000;
                for (rel, count) in rels.iter().zip(counts) {
                    if count < limit {
                        self.end(rel);
                    }
                }
            }
            // inotify is not available now: the directories are listed for another second.
            Err(error) => {
                tracing::debug!(reason = error.to_string(), "can't measure the rate of events")
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, FloodState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of events in each of the directories within [`MEASURE_TIME`].
fn measure(root: &Path, rels: &[Arc<Path>]) -> io::Result<Vec<u64>> {
    let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let events = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR
        | WatchFlags::DONT_FOLLOW;
    let mut counts = vec![0; rels.len()];
    let mut indexes = HashMap::new();
    let start = Instant::now();
    for (index, rel) in rels.iter().enumerate() {
        // A directory that can't be watched has no flood of events either.
        if let Ok(watch) = add_watch(&inotify, root.join(rel), events) {
            indexes.insert(watch, index);
        }
    }
    thread::sleep(MEASURE_TIME.saturating_sub(start.elapsed()));
    let mut buffer = [MaybeUninit::uninit(); 64 * 1024];
    let mut reader = Reader::new(&inotify, &mut buffer);
    // The events that are queued now are enough: while a flood lasts, another one always follows.
    for _ in 0..QUEUE_LENGTH {
        match reader.next() {
            Ok(event) => match indexes.get(&event.wd()) {
                Some(index) => counts[*index] += 1,
                None if event.wd() < 0 => return Ok(vec![u64::MAX; rels.len()]),
                None => {}
            },
            Err(rustix::io::Errno::AGAIN) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(counts)
}

/// The usual length of the kernel's queue (`fs.inotify.max_queued_events`).
const QUEUE_LENGTH: usize = 16_384;

/// Counts events by directory, to find those that are flooded once events are lost.
#[derive(Debug)]
pub(crate) struct Rates {
    skipped: u32,
    since: Instant,
    counts: HashMap<Arc<Path>, u32>,
}

impl Rates {
    pub(crate) fn new(now: Instant) -> Self {
        Self { skipped: 0, since: now, counts: HashMap::new() }
    }

    /// Whether the next event is one of those that are counted.
    pub(crate) fn is_sampled(&mut self) -> bool {
        self.skipped = (self.skipped + 1) % SAMPLE;
        self.skipped == 0
    }

    /// Counts an event in the directory `rel`.
    pub(crate) fn count(&mut self, rel: Arc<Path>, now: Instant) {
        if now - self.since >= WINDOW {
            self.since = now;
            self.counts.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
        }
        *self.counts.entry(rel).or_default() += 1;
    }

    /// The directories that are flooded.
    pub(crate) fn flooded(&self) -> impl Iterator<Item = &Arc<Path>> {
        // Earlier counts weigh at most as much as one more period.
        let least = FLOOD_RATE * WINDOW.as_millis() as u32 / 1000 / SAMPLE;
        self.counts.iter().filter(move |(_, count)| **count >= least).map(|(rel, _)| rel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn rel(path: &str) -> Arc<Path> {
        Path::new(path).into()
    }

    #[test]
    fn an_episode_is_reported_once_however_often_it_flares_up() {
        let floods = Floods::default();
        let rels = |paths: &[&str]| paths.iter().map(|path| rel(path)).collect::<Vec<_>>();
        let report = |flooded: &[&str], begun: &[&str], ended: &[&str], calm: &[&str]| {
            let (flooded, begun, ended) = (rels(flooded), rels(begun), rels(ended));
            Some(FloodReport { flooded, begun, ended, calm: rels(calm).into_iter().collect() })
        };
        assert_eq!(floods.take_report(), None);
        floods.begin(&rel("a"));
        floods.begin(&rel("a"));
        assert!(floods.contains(&rel("a")));
        assert_eq!(floods.take_report(), report(&["a"], &["a"], &[], &[]));
        assert_eq!(floods.take_report(), None);
        floods.end(&rel("a"));
        assert!(!floods.contains(&rel("a")));
        floods.begin(&rel("a"));
        assert_eq!(floods.take_report(), report(&["a"], &[], &[], &["a"]));
        floods.end(&rel("a"));
        assert_eq!(floods.take_report(), report(&[], &[], &["a"], &["a"]));
        // The log need not know of this one, but the directory may have lost its watch.
        floods.begin(&rel("b"));
        floods.end(&rel("b"));
        assert_eq!(floods.take_report(), report(&[], &[], &[], &["b"]));
    }

    #[test]
    fn only_what_happens_often_is_a_flood() {
        let start = Instant::now();
        let mut rates = Rates::new(start);
        // 80,000 events per second in one directory, 200 in another one, for a second.
        for millisecond in 0..1000 {
            for _ in 0..80 {
                if rates.is_sampled() {
                    rates.count(rel("flooded"), start + Duration::from_millis(millisecond));
                }
            }
            if millisecond % 5 == 0 && rates.is_sampled() {
                rates.count(rel("calm"), start + Duration::from_millis(millisecond));
            }
        }
        assert_eq!(rates.flooded().collect::<Vec<_>>(), [&rel("flooded")]);
    }

    #[test]
    fn a_flood_is_over_when_little_happens_any_more() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = [rel("calm"), rel("flooded"), rel("gone")];
        for dir in &dirs[..2] {
            fs::create_dir(temp.path().join(dir)).unwrap();
        }
        let floods = Floods::default();
        let are_flooded =
            || -> Vec<_> { dirs.iter().filter(|dir| floods.contains(dir)).cloned().collect() };
        dirs.iter().for_each(|dir| floods.begin(dir));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            // The kernel merges an event with one of the same kind and name right before it.
            let files = ["flooded/a", "flooded/b"].map(|name| temp.path().join(name));
            scope.spawn(|| {
                let files = files.map(|file| fs::File::create(file).unwrap());
                while !stop.load(Ordering::Relaxed) {
                    for file in &files {
                        std::os::unix::fs::FileExt::write_at(file, b"x", 0).unwrap();
                    }
                }
            });
            let give_up = Instant::now() + Duration::from_secs(60);
            while are_flooded() != [rel("flooded")] && Instant::now() < give_up {
                floods.end_if_over(temp.path(), &dirs);
                floods.begin(&dirs[1]);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(are_flooded(), [rel("flooded")]);
        floods.end_if_over(temp.path(), &dirs);
        assert!(are_flooded().is_empty());
    }
}
