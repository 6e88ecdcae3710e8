//! Reports the state of the service to the service manager (`Type=notify`, `WatchdogSec=`).
//!
//! Does nothing unless a manager requests it with `NOTIFY_SOCKET` in the environment.

use std::convert::Infallible;
use std::time::Duration;

use result_cleaner::{Handle, Stats};
use sd_notify::NotifyState;

/// How often the state is reported if the manager's watchdog is off.
const STATUS_INTERVAL: Duration = Duration::from_secs(60);
/// How long the worker may take to answer before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reports that the service has started, and its state from now on.
pub(crate) async fn keep_notified(cleaner: Handle) -> Infallible {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let interval = watchdog.map_or(STATUS_INTERVAL, |within| within / 3);
    notify(&[NotifyState::Ready, NotifyState::Status(&status(&cleaner.stats()))]);
    loop {
        tokio::time::sleep(interval).await;
        // If the worker hangs, the watchdog gets no notification.
        let patience = PATIENCE.min(interval);
        if tokio::time::timeout(patience, cleaner.responds()).await == Ok(true) {
            let status = status(&cleaner.stats());
            notify(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
        }
    }
}

/// Reports that the service is about to end.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(reason = error.to_string(), "can't notify the service manager");
    }
}

fn status(stats: &Stats) -> String {
    let next = stats.next_expiry.map_or_else(|| "never".to_owned(), super::output::rfc3339);
    format!(
        "watch {}; {} waiting, next {next}; {} deleted, {} errors",
        stats.watch, stats.heap_size, stats.total_deleted, stats.total_errors
    )
}
