//! `Cleaner::subscribe`: what happened, one by one, for an application that embeds a cleaner.

use std::time::Duration;

use crate::common::{CacheDir, PATIENCE, now, publish};
use result_cleaner::{Cleaner, Config, Event, Events, Reason};

/// The next event that `wanted` makes something of.
async fn next<T>(events: &mut Events, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    let search = async {
        loop {
            let event = events.next().await.expect("the cleaner works");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("it is reported")
}

async fn spawn(cache: &CacheDir) -> Cleaner {
    Cleaner::spawn(Config::new(cache.path()).without_metrics()).await.unwrap()
}

#[tokio::test]
async fn deletions_and_sweeps_are_reported_with_their_figures() {
    let cache = CacheDir::new();
    let cleaner = spawn(&cache).await;
    let mut events = cleaner.subscribe();
    let sweep = |event| if let Event::SweepDone(report) = event { Some(report) } else { None };
    assert_eq!(next(&mut events, sweep).await.deleted_count, 0);

    let at = now() + 0.5;
    let pair = cache.pair("s/a").settled(at);
    let size = 23 + format!(r#"{{"expires_at": {at}}}"#).len() as u64;
    let deleted = |event| match event {
        Event::Deleted { result, freed_bytes, late } => Some((result, freed_bytes, late)),
        Event::Skipped { .. } | Event::Lagged(_) => panic!("{event:?}"),
        _ => None,
    };
    let (result, freed_bytes, late) = next(&mut events, deleted).await;
    assert_eq!(
        result,
        pair.result.parent().unwrap().canonicalize().unwrap().join("a.result.json.lz4")
    );
    assert_eq!(freed_bytes, size);
    assert!(late < PATIENCE, "{late:?}");
    assert!(pair.is_gone());

    cache.store("live", now() + 60.0);
    let report = cleaner.sweep().await.unwrap();
    assert_eq!(next(&mut events, sweep).await, report);
    cleaner.stop().await.unwrap();
    let last = tokio::time::timeout(PATIENCE, events.next()).await.expect("it ends");
    assert_eq!(last, None);
}

#[tokio::test]
async fn evictions_are_events_of_their_own_and_the_store_is_notified_of_them() {
    struct Store(std::sync::mpsc::Sender<std::path::PathBuf>);
    impl result_cleaner::ResultStore for Store {
        fn removed(&self, result: &std::path::Path) {
            self.0.send(result.to_owned()).unwrap();
        }
    }
    let cache = CacheDir::new();
    let (store, removed) = std::sync::mpsc::channel();
    let expires_at = (now() + 3600.0).floor();
    let pair = cache.pair("a").settled(expires_at);
    let config = Config::new(cache.path()).without_metrics().with_result_store(Store(store));
    let config = config.with_max_size(1).with_evict_min_age(Duration::from_millis(1));
    let cleaner = Cleaner::spawn(config).await.unwrap();
    let mut events = cleaner.subscribe();
    let evicted = |event| match event {
        Event::Evicted { result, freed_bytes, expires_at } => {
            Some((result, freed_bytes, expires_at.timestamp()))
        }
        Event::Deleted { .. } => panic!("{event:?}"),
        _ => None,
    };
    let (result, freed_bytes, expired_at) = next(&mut events, evicted).await;
    assert_eq!(result, removed.recv_timeout(PATIENCE).unwrap());
    assert!(result.ends_with("a.result.json.lz4") && pair.is_gone());
    assert!(freed_bytes > 0 && freed_bytes.is_multiple_of(512), "{freed_bytes} bytes");
    assert_eq!(expired_at as f64, expires_at);
    let stats = cleaner.get_stats();
    assert_eq!((stats.total_evicted, stats.total_evicted_bytes), (1, freed_bytes));
    assert_eq!((stats.total_deleted, stats.size_bytes), (0, Some(0)));
    cleaner.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_skipped_is_reported_with_the_reason() {
    let cache = CacheDir::new();
    let cleaner = spawn(&cache).await;
    let mut events = cleaner.subscribe();
    let broken = cache.store("broken", now() + 60.0);
    publish(&broken.metadata, b"{");
    let reason = |path: &std::path::Path| {
        let name = path.file_name().unwrap().to_owned();
        move |event| match event {
            Event::Skipped { path, reason } if path.file_name() == Some(&name) => Some(reason),
            _ => None,
        }
    };
    let why = next(&mut events, reason(&broken.metadata)).await;
    let line = why.to_string();
    assert!(line.starts_with("invalid metadata") && !line.contains('\n'), "{line}");
    let Reason::InvalidMetadata(wrong) = why else { panic!("{why:?}") };
    assert!(line.ends_with(&wrong), "{wrong}");
    let recent = cleaner.handle().recent();
    assert_eq!(recent.errors[0].reason, Reason::InvalidMetadata(wrong));

    let anew = cache.store("anew", now() - 1.0);
    publish(&anew.result, b"newer than its metadata");
    let why = next(&mut events, reason(&anew.result)).await;
    assert_eq!(why, Reason::HalfPublished);
    cleaner.stop().await.unwrap();
}

#[tokio::test]
async fn nobody_waits_for_a_subscriber_that_does_not_read() {
    let cache = CacheDir::new();
    for number in 0..5000 {
        cache.store(&format!("{}/{number}", number % 10), now() - 1.0);
    }
    let cleaner = spawn(&cache).await;
    let mut events = cleaner.subscribe();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while cleaner.get_stats().total_deleted < 5000 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", cleaner.get_stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let Some(Event::Lagged(missed)) = events.next().await else { panic!("nothing was missed") };
    let mut reported = 0;
    cleaner.stop().await.unwrap();
    while let Some(event) = events.next().await {
        reported += u64::from(matches!(event, Event::Deleted { .. }));
    }
    assert!(
        missed > 0 && reported > 0 && missed + reported >= 5000,
        "{missed} missed, {reported} reported"
    );
}
