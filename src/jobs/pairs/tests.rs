use std::fs;
use std::path::Path;

use super::*;
use crate::config::Config;
use crate::disk::inspect::stat_file;
use crate::sys::clock::Clock;
use crate::watch::inbox::Inbox;

struct Place {
    dir: tempfile::TempDir,
    context: JobContext,
    root: Root,
}

impl Place {
    fn with_a_pair(expires_at: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.result.json.lz4"), "result").unwrap();
        fs::write(dir.path().join("a.metadata.json"), metadata(expires_at)).unwrap();
        let root = Root::at(dir.path()).unwrap().unwrap();
        let context = JobContext::deleting(Arc::new(Clock::default()), &Config::new("x"));
        Self { dir, context, root }
    }

    fn metadata(&self) -> std::path::PathBuf {
        self.dir.path().join("a.metadata.json")
    }

    fn open(&self) -> Arc<Dir> {
        Arc::new(self.root.open_dir(&Path::new("").into()).unwrap())
    }

    fn outcome(&self) -> Outcome {
        let mut processor = PairProcessor::new(&self.context, &self.root);
        processor.process(&self.open(), &Stem::new(b"a"), Hint::Listed);
        processor.finish();
        processor.take_found().pop().unwrap().outcome
    }
}

fn metadata(expires_at: u64) -> String {
    format!(r#"{{"expires_at": {expires_at}}}"#)
}

#[test]
fn only_deletions_whose_events_are_reported_are_waited_for() {
    let never = AtomicBool::new(false);
    for is_watched in [true, false] {
        let place = Place::with_a_pair(1);
        let inbox = Arc::new(Inbox::default());
        let context = place.context.clone().paced_by(&inbox.backpressure);
        let watcher = Watcher::start(place.dir.path(), Arc::clone(&inbox)).unwrap();
        if is_watched {
            let root = [Path::new("").into()];
            let answers = watcher.begin_watch(&root);
            assert_eq!(watcher.finish_watch(&root, answers, &never), [Ok(true)]);
        }
        let mut processor = PairProcessor::new(&context, &place.root).watched_by(Some(&watcher));
        let dir = place.open();
        let settled = stat_file(&dir, b"a.result.json.lz4").unwrap().unwrap();
        processor.process(&dir, &Stem::new(b"a"), Hint::Settled(settled));
        // The event may have arrived already.
        let is_counted = inbox.backpressure.count() == 1;
        processor.finish();
        assert!(matches!(
            processor.take_found()[..],
            [JobResult { outcome: Outcome::Deleted { .. }, .. }]
        ));
        assert_eq!(is_counted, is_watched);
    }
}

#[test]
fn a_listed_result_that_has_vanished_is_no_pair_once_it_is_due() {
    let place = Place::with_a_pair(1);
    fs::remove_file(place.dir.path().join("a.result.json.lz4")).unwrap();
    assert!(matches!(place.outcome(), Outcome::Incomplete));
    assert!(place.metadata().exists());
}

#[test]
fn a_directory_under_the_name_of_listed_metadata_is_left_alone() {
    let place = Place::with_a_pair(1);
    fs::remove_file(place.metadata()).unwrap();
    fs::create_dir(place.metadata()).unwrap();
    assert!(matches!(place.outcome(), Outcome::Incomplete));
    assert!(place.dir.path().join("a.result.json.lz4").exists());
}
