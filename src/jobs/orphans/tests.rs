use std::cell::Cell;
use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Instant;

use super::*;
use crate::config::Config;
use crate::pair::tally::OrphanTally;
use crate::remove::recover;
use crate::sys::clock::Clock;

const EXPIRED: &str = r#"{"expires_at": 1.5}"#;
const LIVE: &str = r#"{"expires_at": 8000000000}"#;

struct Cache {
    temp: tempfile::TempDir,
    root: Root,
}

impl Cache {
    fn with(files: &[(&str, &str)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path()).unwrap().unwrap();
        let cache = Self { temp, root };
        for (name, content) in files {
            cache.write(name, content);
        }
        cache
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    fn files(&self) -> Vec<String> {
        let mut files: Vec<_> = walkdir::WalkDir::new(self.temp.path())
            .min_depth(1)
            .into_iter()
            .map(|entry| {
                let path = entry.unwrap().into_path();
                path.strip_prefix(self.temp.path()).unwrap().to_str().unwrap().to_owned()
            })
            .collect();
        files.sort();
        files
    }

    /// Runs two passes over a directory.
    fn search(&self, dir: &str, age: Duration) -> OrphanPass {
        let first = self.look(dir, age, &OrphanCandidates::default());
        assert_eq!(first.removed, OrphanTally::default(), "nothing goes at the first look");
        self.look(dir, age, &first.candidates)
    }

    fn look(&self, dir: &str, age: Duration, before: &OrphanCandidates) -> OrphanPass {
        let mut config = Config::new("x");
        (config.remove_orphans, config.prune_empty_dirs) = (Some(age), Some(age));
        let context = JobContext::deleting(Arc::new(Clock::default()), &config);
        super::search(&self.root, &context, &Path::new(dir).into(), before, 4096)
    }

    fn dir(&self) -> Arc<Dir> {
        Arc::new(self.root.open_dir(&Path::new("").into()).unwrap())
    }

    fn seen(&self, name: &str) -> FileState {
        stat_file(&self.dir(), name.as_bytes()).unwrap().unwrap()
    }
}

/// Waits until all earlier changes are older than the returned age.
fn some_age() -> Duration {
    let age = Duration::from_millis(20);
    thread::sleep(age * 2);
    age
}

fn stem(name: &str) -> Stem {
    Stem::new(name.as_bytes())
}

#[test]
fn what_is_old_and_stands_alone_goes_and_nothing_else_does() {
    let orphans = [
        ("alone.result.json.lz4", "12345"),
        ("expired.metadata.json", EXPIRED),
        ("left.result.json.lz4.tmp", "12"),
        ("left.metadata.json.tmp", "{"),
    ];
    let stays = [
        ("pair.result.json.lz4", "x"),
        ("pair.metadata.json", EXPIRED),
        ("live.metadata.json", LIVE),
        ("broken.metadata.json", "{"),
        ("written.result.json.lz4", "x"),
        ("claimed.metadata.json", EXPIRED),
        (".result-cleaner-claimed.r", "x"),
        ("other.tmp", "x"),
        ("a.result.json.lz4.bak", "x"),
        ("below/alone.result.json.lz4", "another directory"),
    ];
    let cache = Cache::with(&[&orphans[..], &stays[..]].concat());
    fs::create_dir(cache.path("half.metadata.json")).unwrap();
    cache.write("half.result.json.lz4", "x");
    symlink("gone", cache.path("link.result.json.lz4")).unwrap();
    symlink("gone", cache.path("linked.metadata.json")).unwrap();
    cache.write("linked.result.json.lz4", "x");
    let before = cache.files();
    assert_eq!(cache.search("", Duration::from_secs(3600)).removed, OrphanTally::default());
    assert_eq!(cache.files(), before);

    let age = some_age();
    // Its metadata is being written.
    cache.write("written.metadata.json.tmp", "{");
    let size = orphans.iter().map(|(_, content)| content.len() as u64).sum();
    let pass = cache.search("", age);
    assert_eq!(pass.removed, OrphanTally { orphans: 4, orphan_bytes: size, pruned: 0 });
    let gone = |name: &String| !orphans.iter().any(|(orphans, _)| orphans == name);
    let mut left: Vec<_> = before.into_iter().filter(gone).collect();
    left.push("written.metadata.json.tmp".to_owned());
    left.sort();
    assert_eq!(cache.files(), left);
    assert!(pass.next.is_some(), "what is being written is to be looked at again");
}

#[test]
fn what_has_changed_since_it_was_suspected_is_a_suspect_anew() {
    let cache = Cache::with(&[("a.result.json.lz4", "x"), ("b.result.json.lz4", "x")]);
    fs::create_dir(cache.path("empty")).unwrap();
    let age = some_age();
    let first = cache.look("", age, &OrphanCandidates::default()).candidates;
    let directory = cache.look("empty", age, &OrphanCandidates::default()).candidates;
    // Both look old, as if the clock of the file system were behind.
    cache.write("a.result.json.lz4", "y");
    cache.write("c.result.json.lz4", "x");
    fs::remove_dir(cache.path("empty")).unwrap();
    fs::create_dir(cache.path("empty")).unwrap();
    let age = some_age();
    let second = cache.look("", age, &first);
    assert_eq!(second.removed.orphans, 1);
    assert!(!cache.path("b.result.json.lz4").exists());
    assert_eq!(second.candidates.files.len(), 2);
    assert!(second.next.is_some());
    assert_eq!(cache.look("", age, &second.candidates).removed.orphans, 2);
    assert_eq!(cache.look("empty", age, &directory).removed.pruned, 0);
}

#[test]
fn what_is_too_young_is_reported() {
    let cache = Cache::with(&[("a.result.json.lz4", "x"), ("later.metadata.json", LIVE)]);
    let next = cache.search("", Duration::from_secs(3600)).next.unwrap();
    let (seconds, nanos) = cache.seen("a.result.json.lz4").ctime;
    assert_eq!(next, DateTime::from_timestamp(seconds + 3600, nanos).unwrap());
    fs::remove_file(cache.path("a.result.json.lz4")).unwrap();
    assert_eq!(cache.search("", some_age()).next.unwrap().timestamp(), 8_000_000_000);
}

#[test]
fn a_half_whose_other_one_arrives_meanwhile_is_given_back() {
    for (alone, other) in [
        ("a.result.json.lz4", "a.metadata.json"),
        ("a.result.json.lz4", "a.metadata.json.tmp"),
        ("a.metadata.json", "a.result.json.lz4"),
    ] {
        let cache = Cache::with(&[(alone, EXPIRED)]);
        let half = if alone.contains("result") { Half::Result } else { Half::Metadata };
        let judged = Orphan::Half(half, stem("a"), cache.seen(alone));
        let asked = Cell::new(0);
        let wall = || {
            // It is claimed by the second call.
            asked.set(asked.get() + 1);
            if asked.get() == 2 {
                assert!(!cache.path(alone).exists());
                cache.write(other, EXPIRED);
            }
            Utc::now()
        };
        assert!(remove_orphans(&cache.dir(), vec![judged], &wall).is_empty());
        let mut both = [alone, other];
        both.sort_unstable();
        assert_eq!(cache.files(), both);
    }
}

#[test]
fn what_is_written_anew_before_it_is_claimed_or_after_is_kept() {
    for name in ["a.result.json.lz4", "a.metadata.json", "a.metadata.json.tmp"] {
        for changes_at in [1, 2] {
            let cache = Cache::with(&[(name, EXPIRED)]);
            let seen = cache.seen(name);
            let judged = match name {
                "a.result.json.lz4" => Orphan::Half(Half::Result, stem("a"), seen),
                "a.metadata.json" => Orphan::Half(Half::Metadata, stem("a"), seen),
                _ => Orphan::Tmp(Half::Metadata, stem("a"), seen),
            };
            let asked = Cell::new(0);
            let wall = || {
                asked.set(asked.get() + 1);
                if asked.get() == changes_at {
                    cache.write("new", "written anew");
                    fs::rename(cache.path("new"), cache.path(name)).unwrap();
                }
                Utc::now()
            };
            remove_orphans(&cache.dir(), vec![judged], &wall);
            assert_eq!(fs::read(cache.path(name)).unwrap(), b"written anew");
            assert_eq!(cache.files(), [name]);
        }
    }
}

#[test]
fn only_old_and_empty_directories_below_the_cache_directory_go() {
    let cache = Cache::with(&[("full/x", "x"), ("above/below/x", "x")]);
    fs::create_dir(cache.path("empty")).unwrap();
    fs::remove_file(cache.path("above/below/x")).unwrap();
    assert_eq!(cache.search("empty", Duration::from_secs(3600)).removed.pruned, 0);
    let age = some_age();
    let pruned = |dir: &str| {
        let pass = cache.search(dir, age);
        assert!(pass.failures.is_empty());
        pass.removed.pruned
    };
    for (dir, count) in [("", 0), ("full", 0), ("above", 0), ("empty", 1), ("gone", 0)] {
        assert_eq!(pruned(dir), count, "{dir}");
    }
    let start = Instant::now();
    assert_eq!(pruned("above/below"), 1);
    // It was changed when it became empty, which is long ago on a machine that is very busy.
    let kept = pruned("above") == 0;
    assert!(kept || start.elapsed() >= age / 2);
    thread::sleep(age);
    assert_eq!(pruned("above"), u64::from(kept));
    assert_eq!(cache.files(), ["full", "full/x"]);
}

#[test]
fn a_directory_that_fills_or_is_another_one_at_the_last_moment_stays() {
    let cache = Cache::with(&[]);
    let make = |name: &str| {
        fs::create_dir(cache.path(name)).unwrap();
        cache.root.open_dir(&Path::new(name).into()).unwrap()
    };
    let filled = make("filled");
    let fill = |_: &Stat| {
        cache.write("filled/x", "x");
        true
    };
    assert!(!prune(&cache.root, &filled, fill).unwrap());
    let replaced = make("replaced");
    fs::rename(cache.path("replaced"), cache.path("moved")).unwrap();
    make("replaced");
    assert!(!prune(&cache.root, &replaced, |_| true).unwrap());
    assert_eq!(cache.files(), ["filled", "filled/x", "moved", "replaced"]);
}

#[test]
fn names_of_any_length_are_dealt_with() {
    // The longest possible names, and a half whose other half can't have a name.
    let long = [
        format!("{}.result.json.lz4", "r".repeat(239)),
        format!("{}.metadata.json", "m".repeat(241)),
        format!("{}.metadata.json.tmp", "t".repeat(237)),
    ];
    let cache = Cache::with(&[]);
    for name in &long {
        assert_eq!(name.len(), 255);
        cache.write(name, EXPIRED);
    }
    let pass = cache.search("", some_age());
    assert_eq!(pass.removed.orphans, 3, "{pass:?}");
    assert!(pass.failures.is_empty() && cache.files().is_empty());
}

#[test]
fn what_was_claimed_in_a_directory_that_was_moved_away_is_restored() {
    let claims = [
        (".result-cleaner-a.ro", "a.result.json.lz4"),
        (".result-cleaner-a.mo", "a.metadata.json"),
        (".result-cleaner-a.rt", "a.result.json.lz4.tmp"),
    ];
    let cache = Cache::with(&claims.map(|(claim, _)| (claim, EXPIRED)));
    crate::remove::restore(&cache.dir(), &stem("a"));
    let mut own = claims.map(|(_, own)| own);
    own.sort_unstable();
    assert_eq!(cache.files(), own);
}

#[test]
fn what_was_published_anew_before_its_directory_was_moved_away_replaces_the_claimed_file() {
    let cache = Cache::with(&[
        (".result-cleaner-a.r", "old"),
        ("a.result.json.lz4", "new"),
        (".result-cleaner-a.m", EXPIRED),
        (".result-cleaner-b.r", "old"),
    ]);
    let blocked = cache.path(".result-cleaner-b.m");
    std::os::unix::fs::symlink("elsewhere", &blocked).unwrap();
    for name in ["a", "b"] {
        crate::remove::restore(&cache.dir(), &stem(name));
    }
    assert_eq!(
        cache.files(),
        [".result-cleaner-b.m", "a.metadata.json", "a.result.json.lz4", "b.result.json.lz4"]
    );
    assert_eq!(std::fs::read(cache.path("a.result.json.lz4")).unwrap(), b"new");
}

#[test]
fn a_probe_file_that_was_left_behind_is_removed_unless_something_else_has_the_name() {
    let names = [".result-cleaner-canary-1-2", ".result-cleaner-canary-3-4-claimed"];
    let cache = Cache::with(&[(names[0], ""), (names[1], "not empty")]);
    let claims = names.map(|name| name.as_bytes().to_vec());
    let recovery =
        recover(&cache.root, &Path::new("").into(), &claims, Utc::now(), &|| false).unwrap();
    assert!(recovery.failed.is_empty());
    assert_eq!(cache.files(), [names[1]]);
}

#[test]
fn what_a_killed_cleaner_had_claimed_gets_its_name_back() {
    let claims = [
        (".result-cleaner-a.rt", "a.result.json.lz4.tmp"),
        (".result-cleaner-a.mt", "a.metadata.json.tmp"),
        (".result-cleaner-b.ro", "b.result.json.lz4"),
        (".result-cleaner-c.mo", "c.metadata.json"),
    ];
    let cache = Cache::with(&claims.map(|(claim, _)| (claim, EXPIRED)));
    let names = claims.map(|(claim, _)| claim.as_bytes().to_vec());
    let recovery =
        recover(&cache.root, &Path::new("").into(), &names, Utc::now(), &|| false).unwrap();
    assert!(recovery.failed.is_empty() && recovery.finished.is_empty());
    let mut own = claims.map(|(_, own)| own);
    own.sort_unstable();
    assert_eq!(cache.files(), own);
}

#[test]
fn a_thousand_orphans_do_not_take_a_thousand_pauses() {
    let cache = Cache::with(&[]);
    for number in 0..1000 {
        cache.write(&format!("{number}.result.json.lz4"), "x");
    }
    let age = some_age();
    let start = Instant::now();
    assert_eq!(cache.search("", age).removed.orphans, 1000);
    assert_eq!(cache.files(), [""; 0]);
    println!("figure: 1000 orphans: {:?}", start.elapsed());
}
