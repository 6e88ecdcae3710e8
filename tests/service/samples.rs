//! The main job on what the real result store wrote.

use crate::common::{CacheDir, MetricsStub, Service, now, wait_until};

#[test]
fn the_service_deletes_the_expired_pairs_and_nothing_else() {
    let cache = CacheDir::samples();
    let metrics = MetricsStub::start();
    let live: Vec<String> = cache.files();
    assert_eq!(live.len(), 48);
    let service = Service::start(cache.path(), &["--metrics-url", &metrics.url]);
    service.wait_for_stat("total_deleted", 12);
    service.wait_for_stat("heap_size", 12);
    assert_eq!(cache.files().len(), 24);

    let store = cache.store("session_9/from-the-store", now() + 0.4);
    let guide = cache.guide("as-in-the-guide", now() + 0.4);
    wait_until("both pairs are gone", || store.is_gone() && guide.is_gone());
    service.wait_for_stat("total_deleted", 14);
    service.assert_calm();

    let stats = service.stats();
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert_eq!(metrics.sum("deleted_count"), 14);
    assert_eq!(metrics.sum("freed_bytes"), stats["total_freed_bytes"].as_u64().unwrap());
    assert_eq!(metrics.sum("errors"), 0);
}
