//! Tests of how events become changes, and which of them arrive.

use std::fs;
use std::thread;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{Event, EventKind};

use super::*;
use crate::pair::change::{Changes, Trigger, WriteState};
use crate::pair::name::PairKey;

/// The changes that an event of `kind` about `path` below the cache directory becomes.
fn changes(kind: EventKind, path: &str) -> Vec<Change> {
    let watched = KnownDirectories::default();
    watched.insert(&Path::new("session").into(), |_| {});
    let mut translator = Translator::new(Path::new("/cache"), watched);
    let mut changes = Vec::new();
    let event = Event::new(kind).add_path(Path::new("/cache").join(path));
    translator.translate(Ok(event), &mut |change| changes.push(change));
    changes
}

#[track_caller]
fn watch(watcher: &Watcher, rel: &str) {
    assert_eq!(answers(watcher, &[Path::new(rel).into()]), [Ok(true)]);
}

/// Asks for watches of `rels`, and returns the answers.
fn answers(watcher: &Watcher, rels: &[Arc<Path>]) -> Vec<Result<bool, WatchError>> {
    let answers = watcher.begin_watch(rels);
    watcher.finish_watch(rels, answers, &AtomicBool::new(false))
}

fn pair(dir: &str, stem: &str, appeared: bool, writer: WriteState) -> Vec<Change> {
    let stem = crate::pair::name::Stem::new(stem.as_bytes());
    let key = PairKey { dir: Path::new(dir).into(), stem };
    vec![Change::Pair(key, Trigger { appeared, writer })]
}

#[test]
fn events_become_the_fewest_changes_that_cover_them() {
    use WriteState::{Closed, Created, Gone, Unknown, Writing};
    let close = EventKind::Access(AccessKind::Close(AccessMode::Write));
    let file = EventKind::Create(CreateKind::File);
    let from = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    let to = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    let both = EventKind::Modify(ModifyKind::Name(RenameMode::Both));
    let data = EventKind::Modify(ModifyKind::Data(notify::event::DataChange::Any));
    let attributes = EventKind::Modify(ModifyKind::Metadata(notify::event::MetadataKind::Any));
    let removed = EventKind::Remove(RemoveKind::File);
    let tree = |dir: &str| vec![Change::Subtree(Path::new(dir).into())];
    for (kind, path, expected) in [
        (file, "s/a.metadata.json", pair("s", "a", true, Created)),
        (file, "a.metadata.json", pair("", "a", true, Created)),
        (file, "a.result.json.lz4", pair("", "a", true, Unknown)),
        (file, "a.result.json.lz4.tmp", vec![]),
        (close, "a.metadata.json", pair("", "a", true, Closed)),
        (close, "a.result.json.lz4", pair("", "a", true, Unknown)),
        (data, "a.metadata.json", pair("", "a", true, Writing)),
        (data, "a.result.json.lz4", vec![]),
        (to, "a.metadata.json", pair("", "a", true, Closed)),
        (to, ".result-cleaner-a.m", vec![]),
        (to, "perhaps-a-directory", tree("perhaps-a-directory")),
        (from, "a.metadata.json", pair("", "a", false, Gone)),
        (from, "a.metadata.json.tmp", vec![]),
        (from, "session", tree("session")),
        (from, "unknown", vec![]),
        (removed, "a.result.json.lz4", pair("", "a", false, Unknown)),
        (removed, "a.metadata.json", pair("", "a", false, Gone)),
        (removed, "unknown", vec![]),
        (attributes, "a.metadata.json", pair("", "a", true, Unknown)),
        (attributes, "session", tree("session")),
        (attributes, "unknown", vec![]),
        (both, "session", vec![]),
        (EventKind::Create(CreateKind::Folder), "new", tree("new")),
        (EventKind::Remove(RemoveKind::Folder), "session", tree("session")),
    ] {
        assert_eq!(changes(kind, path), expected, "{kind:?} {path}");
    }
}

#[test]
fn an_overflow_is_noticed_though_it_has_no_path() {
    let mut translator = Translator::new(Path::new("/cache"), KnownDirectories::default());
    let mut changes = Vec::new();
    let overflow = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
    translator.translate(Ok(overflow), &mut |change| changes.push(change));
    translator.translate(Err(notify::Error::generic("x")), &mut |change| changes.push(change));
    assert_eq!(changes, [Change::EventsLost, Change::EventsLost]);
}

#[test]
fn a_watch_that_was_set_below_what_is_being_renamed_is_set_anew() {
    let temp = tempfile::tempdir().unwrap();
    let (root, aside) = (temp.path().join("cache"), temp.path().join("aside"));
    for dir in [root.join("s/deep"), aside.join("deep")] {
        fs::create_dir_all(dir).unwrap();
    }
    let inbox = Arc::new(Inbox::default());
    let watcher = Watcher::start(&root, Arc::clone(&inbox)).unwrap();
    watch(&watcher, "");
    // A scan that was running when the watch of `s` was dropped does the same.
    watch(&watcher, "s/deep");
    fs::rename(root.join("s"), temp.path().join("away")).unwrap();
    fs::rename(&aside, root.join("s")).unwrap();
    let arrives = |expected: &dyn Fn(Changes) -> bool| {
        (0..6000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            expected(inbox.drain())
        })
    };
    assert!(arrives(&|changes| changes.subtrees.contains(Path::new("s"))));
    watcher.drop_stale();
    watch(&watcher, "s");
    watch(&watcher, "s/deep");
    fs::write(root.join("s/deep/a.metadata.json"), "").unwrap();
    assert!(arrives(&|changes| !changes.pairs.is_empty()), "it is not watched");
}

#[test]
fn of_many_that_are_to_be_watched_each_gets_its_own_answer() {
    let temp = tempfile::tempdir().unwrap();
    let inbox = Arc::new(Inbox::default());
    let watcher = Watcher::start(temp.path(), Arc::clone(&inbox)).unwrap();
    let long = "x/".repeat(600);
    let names = ["a", "gone", "b", &long, "gone, too", "c"];
    for name in ["a", "b", "c"] {
        fs::create_dir(temp.path().join(name)).unwrap();
    }
    let rels: Vec<Arc<Path>> = names.iter().map(|name| Path::new(name).into()).collect();
    let expected =
        [Ok(true), Ok(false), Ok(true), Err(WatchError::PathTooLong), Ok(false), Ok(true)];
    assert_eq!(answers(&watcher, &rels), expected);
    assert_eq!(answers(&watcher, &rels), expected, "once more");
    assert_eq!(answers(&watcher, &[]), []);
    for (name, answer) in names.iter().zip(expected) {
        assert_eq!(watcher.is_watching(Path::new(name)), answer == Ok(true), "{name}");
    }
    for name in ["a", "b", "c"] {
        fs::write(temp.path().join(name).join("x.metadata.json"), "").unwrap();
    }
    let mut changes = std::collections::HashSet::new();
    while changes.len() < 3 {
        changes.extend(inbox.drain().pairs.into_keys().map(|key| key.dir));
        thread::sleep(Duration::from_millis(1));
    }
}
