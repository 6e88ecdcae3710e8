//! Races between the parts of the worker, which a test can't provoke in a running service.

use std::fs;

use super::*;
use crate::pair::change::{Change, MAX_PENDING, Trigger};
use crate::pair::name::{PairKey, Stem};
use crate::sys::clock::TICK;
use crate::telemetry::stats::SharedStats;

fn worker(dir: &Path) -> (Worker, mpsc::Receiver<Message>, SharedStats) {
    let (worker, messages, readers) =
        Worker::new(&Config::new(dir), dir.to_owned(), dir.to_owned(), None);
    (worker, messages, readers.stats)
}

/// Makes a cache directory in `temp` with the live pair `a`, and a hard link to its metadata outside.
/// The kernel does not report what is written through that link.
fn live_pair_with_another_name(temp: &Path) -> (PathBuf, PathBuf) {
    let (cache, elsewhere) = (temp.join("cache"), temp.join("elsewhere"));
    fs::create_dir(&cache).unwrap();
    fs::write(cache.join("a.result.json.lz4"), "result").unwrap();
    fs::write(&elsewhere, r#"{"expires_at": 8000000000}"#).unwrap();
    fs::hard_link(&elsewhere, cache.join("a.metadata.json")).unwrap();
    (cache, elsewhere)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn changes_that_do_not_fit_are_made_up_for_by_listings_and_sweeps() {
    let temp = tempfile::tempdir().unwrap();
    let (cache, elsewhere) = live_pair_with_another_name(temp.path());
    let (worker, messages, stats) = worker(&cache);
    let inbox = Arc::clone(&worker.inbox);
    let (requests, asked) = mpsc::unbounded_channel();
    let task = tokio::spawn(worker.run(messages, asked));
    until("the first scan is over", || stats.get().total_cleanups == 1).await;

    // The kernel does not report what is written through the other link.
    fs::write(&elsewhere, r#"{"expires_at": 1.5}"#).unwrap();
    // The worker shares the only thread with this test, so that it can't take in anything meanwhile.
    for number in 0..=MAX_PENDING {
        let stem = Stem::new(number.to_string().as_bytes());
        inbox.push(Change::Pair(PairKey { dir: Path::new("").into(), stem }, Trigger::default()));
    }
    until("the pair is deleted", || stats.get().total_deleted == 1).await;
    assert_eq!(stats.get().total_cleanups, 1, "listing its directory was enough");

    for number in 0..=MAX_PENDING {
        inbox.push(Change::Subtree(Path::new(&number.to_string()).into()));
    }
    until("a sweep was made", || stats.get().total_cleanups == 2).await;
    drop(requests);
    assert!(task.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_change_that_comes_amid_the_pause_after_another_one_does_not_wait_for_the_tick() {
    const ROUNDS: u32 = 20;
    let temp = tempfile::tempdir().unwrap();
    let (cache, elsewhere) = live_pair_with_another_name(temp.path());
    let (worker, messages, stats) = worker(&cache);
    let inbox = Arc::clone(&worker.inbox);
    let (requests, asked) = mpsc::unbounded_channel();
    let task = tokio::spawn(worker.run(messages, asked));
    until("the first scan is over", || stats.get().total_cleanups == 1).await;

    let change = |stem: &[u8]| {
        let key = PairKey { dir: Path::new("").into(), stem: Stem::new(stem) };
        Change::Pair(key, Trigger { appeared: true, ..Trigger::default() })
    };
    let start = Instant::now();
    for round in 1..=ROUNDS {
        // The kernel does not report what is written through the other link.
        let expires_at = 8_000_000_000 + i64::from(round);
        fs::write(&elsewhere, format!(r#"{{"expires_at": {expires_at}}}"#)).unwrap();
        inbox.push(change(b"unknown"));
        while !inbox.is_empty() {
            tokio::task::yield_now().await;
        }
        inbox.push(change(b"a"));
        let next = || stats.get().next_expiry.map(|at| at.timestamp());
        until("the change is known", || next() == Some(expires_at)).await;
    }
    assert!(start.elapsed() < ROUNDS * TICK / 2, "{ROUNDS} changes took {:?}", start.elapsed());
    drop(requests);
    assert!(task.await.unwrap().is_ok());
}

#[tokio::test]
async fn orphans_and_empty_directories_go_while_the_service_runs_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = temp.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let gone = |name: &str| !temp.path().join(name).exists();
    let mut config = Config::new(temp.path());
    // Shorter than the minimum for an application.
    let age = Some(Duration::from_millis(100));
    (config.remove_orphans, config.prune_empty_dirs) = (age, age);
    write("before/a.result.json.lz4", "found by the first scan");
    write("live/b.metadata.json", r#"{"expires_at": 8000000000}"#);
    let path = temp.path().to_owned();
    let (worker, messages, readers) = Worker::new(&config, path.clone(), path, None);
    let (requests, asked) = mpsc::unbounded_channel();
    let task = tokio::spawn(worker.run(messages, asked));
    until("the first scan has ended", || readers.stats.get().total_cleanups == 1).await;
    write("after/c.result.json.lz4", "told by the kernel");
    write("after/d.metadata.json.tmp", "{");
    write("pair/e.metadata.json", r#"{"expires_at": 1}"#);
    write("pair/e.result.json.lz4", "expired");
    write("live/b.result.json.lz4", "live");
    until("all is gone", || ["before", "after", "pair"].into_iter().all(gone)).await;
    until("that is counted", || readers.stats.get().total_directories_pruned == 3).await;
    let stats = readers.stats.get();
    assert_eq!((stats.total_deleted, stats.total_orphans_removed), (1, 3));
    assert_eq!(stats.total_orphan_bytes_freed, 23 + 18 + 1);
    assert_eq!((stats.heap_size, stats.total_cleanups, stats.total_errors), (1, 1, 0));
    assert!(!gone("live/b.result.json.lz4") && !gone("live/b.metadata.json"));
    drop(requests);
    assert!(task.await.unwrap().is_ok());
}
