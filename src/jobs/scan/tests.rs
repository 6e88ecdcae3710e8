use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::config::Config;
use crate::pair::name::{Half, PairKey};
use crate::pair::outcome::{JobResult, Outcome, Waiting};
use crate::sys::clock::Clock;

const FAR: &str = r#"{"expires_at": 8000000000.5}"#;

struct Place {
    dir: tempfile::TempDir,
    context: JobContext,
}

impl Place {
    fn new() -> Self {
        let context = JobContext::deleting(Arc::new(Clock::default()), &Config::new("x"));
        Self { dir: tempfile::tempdir().unwrap(), context }
    }

    fn pair(&self, path: &str, metadata: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let half = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        fs::write(half(".result.json.lz4"), "result").unwrap();
        fs::write(half(".metadata.json"), metadata).unwrap();
    }

    /// Scans everything. Returns how often each pair was found to wait, the other outcomes, and the summary.
    fn scan(&self, cancel: bool) -> (HashMap<PathBuf, u32>, Vec<JobResult>, Summary) {
        let root = Root::at(self.dir.path()).unwrap().unwrap();
        let all = Mutex::new((HashMap::new(), Vec::new()));
        let found = |found: ScanFound| {
            let mut all = all.lock().unwrap();
            for Waiting { dir, pairs, .. } in found.waiting {
                for (stem, expires_at) in pairs {
                    assert_eq!(expires_at.timestamp(), 8_000_000_000);
                    let key = PairKey { dir: Arc::clone(&dir), stem };
                    *all.0.entry(key.path(Half::Result)).or_default() += 1;
                }
            }
            all.1.extend(found.others);
        };
        let cancel = AtomicBool::new(cancel);
        let context = &self.context;
        let scan = Scan { root: &root, watcher: None, context, cancel: &cancel, found: &found };
        let summary = scan.run(&[Path::new("").into()], &[]);
        let (waiting, others) = all.into_inner().unwrap();
        (waiting, others, summary)
    }
}

#[test]
fn each_pair_is_found_once_in_huge_small_and_deep_directories() {
    let place = Place::new();
    let mut count = 0;
    let mut add = |path: String| {
        place.pair(&path, FAR);
        count += 1;
    };
    (0..1300).for_each(|number| add(format!("huge/{number}")));
    (0..300).for_each(|number| add(format!("dir-{}/{number}", number % 100)));
    (0..20).for_each(|depth| add(format!("{}pair", "deep/".repeat(depth))));
    let (waiting, others, summary) = place.scan(false);
    assert_eq!((waiting.len(), summary.results), (count, count as u64));
    assert!(waiting.values().all(|times| *times == 1));
    assert!(others.is_empty() && summary.unreadable.is_empty());
}

#[test]
fn metadata_that_does_not_fit_the_first_read_waits_as_well() {
    let place = Place::new();
    let filler = "x".repeat(10_000);
    place.pair("a", &format!(r#"{{"filler": "{filler}", "expires_at": 8000000000}}"#));
    let (waiting, others, _) = place.scan(false);
    assert!(waiting.is_empty());
    assert!(
        matches!(others[..], [JobResult { outcome: Outcome::NotDue { .. }, .. }]),
        "{others:?}"
    );
}

#[test]
fn what_does_not_simply_wait_is_inspected_with_care() {
    let place = Place::new();
    place.pair("due", r#"{"expires_at": 1}"#);
    place.pair("broken", "{");
    place.pair("waits", FAR);
    place.pair("alone", FAR);
    fs::remove_file(place.dir.path().join("alone.result.json.lz4")).unwrap();
    let (waiting, others, _) = place.scan(false);
    assert_eq!(waiting.into_keys().collect::<Vec<_>>(), [Path::new("waits.result.json.lz4")]);
    let mut others: Vec<_> =
        others.into_iter().map(|found| (found.key.stem, found.outcome)).collect();
    others.sort_by(|a, b| a.0.bytes().cmp(&b.0.bytes()));
    assert!(
        matches!(
            others[..],
            [
                (_, Outcome::Incomplete),
                (_, Outcome::Broken { .. }),
                // Its halves may have been written within one tick of the clock.
                (_, Outcome::Unsettled { .. } | Outcome::Deleted { .. })
            ]
        ),
        "{others:?}"
    );
}

#[test]
fn a_cancelled_scan_ends_with_what_it_has() {
    let place = Place::new();
    (0..700).for_each(|number| place.pair(&format!("{}/{number}", number % 3), FAR));
    let (waiting, others, _) = place.scan(true);
    assert!(waiting.is_empty() && others.is_empty());
}

#[test]
fn a_turn_that_panics_keeps_no_other_thread_waiting() {
    let queue = WorkQueue::new(vec![(Path::new("a").into(), true)]);
    thread::scope(|scope| {
        let turn = queue.next(16).unwrap();
        let other = scope.spawn(|| queue.next(16).is_none());
        let panicked = scope.spawn(move || {
            let _turn = turn;
            std::panic::resume_unwind(Box::new("a panic"));
        });
        assert!(panicked.join().is_err());
        assert!(other.join().unwrap());
    });
}
