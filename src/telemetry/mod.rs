//! What the cleaner reports of itself: stats, history, events, Prometheus metrics, the metrics service.

pub(crate) mod events;
pub(crate) mod history;
#[cfg(feature = "report")]
pub(crate) mod http_client;
#[cfg(feature = "report")]
pub(crate) mod metrics_service;
#[cfg(feature = "server")]
pub(crate) mod prometheus;
pub(crate) mod recorder;
pub(crate) mod reports;
pub(crate) mod stats;
