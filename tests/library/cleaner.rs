//! The library: what an application that embeds the cleaner relies on.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::common::{CacheDir, PATIENCE, Pair, now, publish};
use result_cleaner::{
    Cleaner, Config, Error, Handle, ResultStore, WatchState, list, sweep_dry_run, sweep_once,
};
use tokio::runtime::Builder;

fn config(cache: &CacheDir) -> Config {
    Config::new(cache.path()).without_metrics()
}

/// Waits until `condition` holds, and leaves the thread to the cleaner meanwhile.
#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let deadline = Instant::now() + PATIENCE;
    async move {
        while !condition() {
            assert!(Instant::now() < deadline, "in vain waited until {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn until_stopped(handle: &Handle) {
    until("it is not running", || !handle.stats().running).await;
}

/// Polls a future once, outside of any runtime.
fn poll_by_hand<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits for what can't come"),
    }
}

#[tokio::test]
async fn a_cleaner_deletes_reports_sweeps_and_stops() {
    let cache = CacheDir::samples();
    let cleaner = Cleaner::spawn(config(&cache)).await.unwrap();
    assert!(cleaner.get_stats().running);
    until("the expired pairs are deleted", || cleaner.get_stats().total_deleted == 12).await;
    let soon = cache.store("soon", now() + 0.3);
    until("it is gone", || soon.is_gone()).await;
    let broken = cache.store("broken", 1.5);
    publish(&broken.metadata, b"{");

    let report = cleaner.sweep().await.unwrap();
    assert_eq!((report.deleted_count, report.checked_count, report.freed_bytes), (0, 13, 0));
    until("the error is counted", || cleaner.get_stats().total_errors == 1).await;
    until("what is left waits", || {
        let stats = cleaner.get_stats();
        (stats.total_deleted, stats.heap_size) == (13, 12)
    })
    .await;
    let stats = cleaner.get_stats();
    assert_eq!(stats.watch, WatchState::Active);
    assert!(stats.total_cleanups >= 2);
    assert_eq!(stats.cache_directory, cache.path().canonicalize().unwrap());

    let handle = cleaner.handle();
    cleaner.stop().await.unwrap();
    assert!(!handle.stats().running);
    assert_eq!(handle.stats().total_deleted, 13);
}

#[test]
fn a_runtime_of_one_thread_is_enough() {
    let cache = CacheDir::new();
    let pair = cache.store("a", now() - 1.0);
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let cleaner = Cleaner::spawn(config(&cache)).await.unwrap();
        until("the pair is gone", || pair.is_gone()).await;
        cleaner.stop().await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_it_stops_it() {
    let cache = CacheDir::new();
    let pair = cache.store("a", now() - 1.0);
    let cleaner = Cleaner::spawn(config(&cache)).await.unwrap();
    let handle = cleaner.handle();
    until("the pair is gone", || pair.is_gone()).await;
    drop(cleaner);
    until_stopped(&handle).await;
    let expires_at = now() + 0.2;
    let pair = cache.store("a", expires_at);
    until("it could have been deleted", || now() > expires_at + 1.0).await;
    assert!(pair.is_whole());
}

#[tokio::test]
async fn two_cleaners_work_on_two_directories() {
    let (a, b) = (CacheDir::samples(), CacheDir::new());
    for n in 0..7 {
        b.store(&format!("s/{n}"), now() - 1.0);
    }
    let first = Cleaner::spawn(config(&a)).await.unwrap();
    let second = Cleaner::spawn(config(&b)).await.unwrap();
    until("each has done its own", || {
        (first.get_stats().total_deleted, second.get_stats().total_deleted) == (12, 7)
    })
    .await;
    first.stop().await.unwrap();
    let pair = b.store("later", now() + 0.2);
    until("the other goes on", || pair.is_gone()).await;
    second.stop().await.unwrap();
}

#[tokio::test]
async fn two_cleaners_on_one_directory_count_each_pair_once() {
    const PAIRS: u64 = 400;
    let cache = CacheDir::new();
    let expires_at = now() + 1.0;
    let pairs: Vec<Pair> =
        (0..PAIRS).map(|n| cache.store(&format!("{}/{n}", n % 4), expires_at)).collect();
    // The size of each file was the same when it was read and when it is removed.
    let bytes: u64 = pairs.iter().filter(|pair| pair.is_whole()).map(Pair::bytes).sum();
    let first = Cleaner::spawn(config(&cache)).await.unwrap();
    let second = Cleaner::spawn(config(&cache)).await.unwrap();
    until("all is gone", || cache.files().is_empty()).await;
    let deleted = || first.get_stats().total_deleted + second.get_stats().total_deleted;
    until("all is counted", || deleted() >= PAIRS).await;
    // Whatever each still believes, a sweep finds out.
    first.sweep().await.unwrap();
    second.sweep().await.unwrap();
    let heaps = || first.get_stats().heap_size + second.get_stats().heap_size;
    until("nothing waits any more", || heaps() == 0).await;
    let (one, two) = (first.get_stats(), second.get_stats());
    assert_eq!(one.total_deleted + two.total_deleted, PAIRS);
    assert_eq!(one.total_freed_bytes + two.total_freed_bytes, bytes);
    assert_eq!((one.total_errors, two.total_errors), (0, 0));
}

#[test]
fn without_a_runtime_the_error_says_so() {
    let cache = CacheDir::samples();
    let config = config(&cache);
    let error = poll_by_hand(Cleaner::spawn(config.clone())).unwrap_err();
    assert!(matches!(error, Error::NoRuntime), "{error:?}");
    assert!(error.to_string().contains("no tokio runtime"), "{error}");
    assert!(matches!(poll_by_hand(sweep_once(&config)), Err(Error::NoRuntime)));
    assert!(matches!(poll_by_hand(sweep_dry_run(&config)), Err(Error::NoRuntime)));
    assert!(matches!(poll_by_hand(list(&config)), Err(Error::NoRuntime)));
    assert_eq!(cache.files().len(), 48);
}

#[test]
fn a_runtime_without_a_driver_is_refused_with_what_to_do() {
    let cache = CacheDir::new();
    let runtime = Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(Cleaner::spawn(config(&cache))).unwrap_err();
    assert!(matches!(error, Error::NoDriver { driver: "time" }), "{error:?}");
    assert!(error.to_string().contains("enable_all"), "{error}");
}

#[cfg(feature = "report")]
#[test]
fn a_runtime_without_sockets_can_not_report() {
    let cache = CacheDir::new();
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let reporting = config(&cache).with_metrics_url("http://127.0.0.1:1");
    let error = runtime.block_on(Cleaner::spawn(reporting.clone())).unwrap_err();
    assert!(matches!(error, Error::NoDriver { driver: "io" }), "{error:?}");
    let diagnosis = runtime.block_on(result_cleaner::diagnose(&reporting)).unwrap_err();
    assert!(matches!(diagnosis, Error::NoDriver { driver: "io" }), "{diagnosis:?}");
    let fetched = runtime.block_on(result_cleaner::fetch_stats("http://127.0.0.1:1")).unwrap_err();
    assert!(matches!(fetched, Error::NoDriver { driver: "io" }), "{fetched:?}");
    assert!(matches!(
        poll_by_hand(result_cleaner::fetch_stats("http://127.0.0.1:1")),
        Err(Error::NoRuntime)
    ));
}

#[cfg(feature = "server")]
#[test]
fn a_server_needs_a_runtime_with_sockets() {
    let address = "127.0.0.1:0".parse().unwrap();
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let error = runtime.block_on(result_cleaner::server::bind(address)).unwrap_err();
    assert!(matches!(error, Error::NoDriver { driver: "io" }), "{error:?}");
    assert!(matches!(poll_by_hand(result_cleaner::server::bind(address)), Err(Error::NoRuntime)));
}

#[cfg(not(feature = "report"))]
#[tokio::test]
async fn without_an_http_client_a_metrics_service_is_refused() {
    let cache = CacheDir::new();
    assert_eq!(Config::new(cache.path()).metrics_url, None);
    let reporting = config(&cache).with_metrics_url("http://127.0.0.1:1");
    let error = Cleaner::spawn(reporting).await.unwrap_err();
    assert!(matches!(error, Error::MetricsUrl { .. }), "{error:?}");
    assert!(error.to_string().contains("enable the feature `report`"), "{error}");
}

#[derive(Default)]
struct Reported {
    results: Mutex<Vec<PathBuf>>,
    panics: bool,
}

impl ResultStore for Reported {
    fn removed(&self, result: &Path) {
        assert!(!result.exists(), "reported before it was removed");
        self.results.lock().unwrap().push(result.to_owned());
        assert!(!self.panics, "this panic is part of the test");
    }
}

impl Reported {
    fn sorted(&self) -> Vec<PathBuf> {
        let mut results = self.results.lock().unwrap().clone();
        results.sort();
        results
    }
}

#[tokio::test]
async fn the_result_store_is_notified_once_of_each_removed_result() {
    let cache = CacheDir::new();
    let reported = Arc::new(Reported::default());
    let mut config = config(&cache);
    config = config.with_result_store(Arc::clone(&reported));
    let mut expected: Vec<PathBuf> =
        (0..20).map(|n| cache.store(&format!("s/{n}"), now() - 1.0).result).collect();
    cache.store("live", now() + 3600.0);
    let cleaner = Cleaner::spawn(config.clone()).await.unwrap();
    expected.push(cache.store("soon", now() + 0.3).result);
    until("all are gone", || cleaner.get_stats().total_deleted == 21).await;
    cleaner.sweep().await.unwrap();
    cleaner.stop().await.unwrap();
    expected.push(cache.store("swept", now() - 1.0).result);
    sweep_dry_run(&config).await.unwrap();
    sweep_once(&config).await.unwrap();
    expected.sort();
    let root = cache.path().canonicalize().unwrap();
    let expected: Vec<PathBuf> =
        expected.iter().map(|path| root.join(path.strip_prefix(cache.path()).unwrap())).collect();
    assert_eq!(reported.sorted(), expected);
}

#[tokio::test]
async fn a_result_store_that_panics_does_no_harm() {
    let cache = CacheDir::new();
    let reported = Arc::new(Reported { panics: true, ..Reported::default() });
    let mut config = config(&cache);
    config.result_store = Some(reported.clone());
    for n in 0..5 {
        cache.store(&n.to_string(), now() - 1.0);
    }
    let cleaner = Cleaner::spawn(config).await.unwrap();
    until("all are gone", || cleaner.get_stats().total_deleted == 5).await;
    cache.store("soon", now() + 0.2);
    until("it goes on", || cleaner.get_stats().total_deleted == 6).await;
    assert_eq!(cache.files(), Vec::<String>::new());
    assert_eq!(reported.sorted().len(), 6);
    assert!(cleaner.get_stats().running);
    cleaner.stop().await.unwrap();
}

#[tokio::test]
async fn a_single_sweep_needs_no_service_and_a_dry_run_changes_nothing() {
    let cache = CacheDir::samples();
    let before = cache.files();
    let dry = sweep_dry_run(&config(&cache)).await.unwrap();
    let configured = sweep_once(&config(&cache).with_dry_run(true)).await.unwrap();
    assert_eq!(
        (configured.deleted_count, configured.freed_bytes),
        (dry.deleted_count, dry.freed_bytes)
    );
    assert_eq!(cache.files(), before);
    let report = sweep_once(&config(&cache)).await.unwrap();
    assert_eq!((report.deleted_count, report.checked_count, report.errors), (12, 24, 0));
    assert_eq!(
        (dry.deleted_count, dry.checked_count, dry.freed_bytes, dry.errors),
        (12, 24, report.freed_bytes, 0)
    );
    assert_eq!(cache.files().len(), 24);
    let absent = sweep_once(&config(&CacheDir::absent())).await.unwrap();
    assert_eq!(absent, result_cleaner::SweepReport::default());
}

#[tokio::test]
async fn pairs_are_listed_the_soonest_first_and_the_broken_last() {
    let cache = CacheDir::new();
    let broken = cache.store("a", 1.5);
    publish(&broken.metadata, br#"{"expires_at": null}"#);
    let later = cache.store("b", 4_000_000_000.25);
    let sooner = cache.store("c", 1_000_000_000.0);
    fs::write(cache.path().join("d.result.json.lz4"), "an orphan").unwrap();
    let pairs = list(&config(&cache)).await.unwrap();
    let at: Vec<Option<i64>> = pairs
        .iter()
        .map(|pair| pair.expires_at.as_ref().ok().map(chrono::DateTime::timestamp_millis))
        .collect();
    assert_eq!(at, [Some(1_000_000_000_000), Some(4_000_000_000_250), None]);
    for (listed, pair) in pairs.iter().zip([sooner, later, broken]) {
        assert_eq!(listed.result, pair.result.canonicalize().unwrap());
        assert_eq!(listed.bytes, pair.bytes());
    }
    assert!(pairs[2].expires_at.as_ref().unwrap_err().contains("expires_at"));
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_clearly() {
    let cache = CacheDir::samples();
    for setting in ["check_interval", "report_interval", "fallback_interval"] {
        let mut config = config(&cache);
        match setting {
            "check_interval" => config.check_interval = Duration::from_millis(999),
            "report_interval" => config.report_interval = Duration::ZERO,
            _ => config.fallback_interval = Duration::ZERO,
        }
        let error = Cleaner::spawn(config).await.unwrap_err();
        assert!(matches!(error, Error::TooShort { .. }), "{error:?}");
        assert!(error.to_string().contains(setting), "{error}");
    }

    let file = cache.outside("file");
    fs::write(&file, "").unwrap();
    let config = Config::new(&file).without_metrics();
    for error in [
        Cleaner::spawn(config.clone()).await.unwrap_err(),
        sweep_once(&config).await.unwrap_err(),
        list(&config).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::NotADirectory { .. }), "{error:?}");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
    assert_eq!(cache.files().len(), 48, "nothing was deleted");
}

#[cfg(feature = "report")]
#[tokio::test]
async fn an_address_that_no_report_can_go_to_is_refused() {
    let cache = CacheDir::new();
    for url in ["localhost:8003", "", "ftp://x", "http://"] {
        let config = Config::new(cache.path()).with_metrics_url(url);
        let error = Cleaner::spawn(config).await.unwrap_err();
        assert!(matches!(error, Error::MetricsUrl { .. }), "{error:?}");
        assert!(error.to_string().starts_with("metrics URL"), "{error}");
    }
}

#[tokio::test]
async fn a_sweep_that_is_asked_for_during_another_sees_what_is_there_by_then() {
    let cache = CacheDir::new();
    for n in 0..1000 {
        cache.guide(&n.to_string(), now() + 3600.0);
    }
    let cleaner = Cleaner::spawn(config(&cache)).await.unwrap();
    for n in 1..=5 {
        let (first, second) = tokio::join!(cleaner.sweep(), async {
            cache.guide(&format!("late-{n}"), now() + 3600.0);
            cleaner.sweep().await
        });
        assert!(first.unwrap().checked_count >= 999 + n);
        assert_eq!(second.unwrap().checked_count, 1000 + n);
    }
    assert_eq!(cleaner.get_stats().total_errors, 0);
    assert!(cleaner.get_stats().total_cleanups >= 6);
}

#[test]
fn a_sweep_after_its_runtime_has_ended_says_that_it_stopped() {
    let cache = CacheDir::new();
    let first = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cleaner = first.block_on(Cleaner::spawn(config(&cache))).unwrap();
    drop(first);
    let second = Builder::new_current_thread().enable_all().build().unwrap();
    second.block_on(async {
        let error = cleaner.sweep().await.unwrap_err();
        assert!(matches!(error, Error::Stopped), "{error:?}");
        assert_eq!(error.to_string(), "the cleaner has stopped");
        assert!(!cleaner.get_stats().running);
        cleaner.stop().await.unwrap();
    });
}

#[tokio::test]
async fn handles_sweep_subscribe_and_wait_for_the_end_without_keeping_it_running() {
    let cache = CacheDir::samples();
    let cleaner = Cleaner::spawn(config(&cache)).await.unwrap();
    let handle = cleaner.handle();
    let mut events = handle.subscribe();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.closed().await })
        })
        .collect();
    let (first, second) = tokio::join!(handle.sweep(), handle.sweep());
    assert_eq!(first.unwrap().errors + second.unwrap().errors, 0);
    until("the expired pairs are deleted", || handle.stats().total_deleted == 12).await;
    assert!(waiting.iter().all(|ended| !ended.is_finished()));
    drop(cleaner);
    for ended in waiting {
        ended.await.unwrap().unwrap();
    }
    handle.closed().await.unwrap();
    assert!(matches!(handle.sweep().await, Err(Error::Stopped)));
    assert!(!handle.stats().running && !handle.responds().await);
    while events.next().await.is_some() {}
    assert_eq!(handle.subscribe().next().await, None);
}

#[tokio::test]
async fn a_sweep_of_what_cannot_be_read_has_the_number_of_the_error() {
    let cache = CacheDir::new();
    let path = cache.path().join("loop");
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let cleaner = Cleaner::spawn(Config::new(&path).without_metrics()).await.unwrap();
    // Before the first look at the path, there is nothing to sweep.
    let error = loop {
        if let Err(error) = cleaner.sweep().await {
            break error;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let Error::Unreadable { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    cleaner.stop().await.unwrap();
}
