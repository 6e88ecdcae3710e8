//! The cleaner's reports about itself: stats, history, events, Prometheus metrics, the metrics service.

pub(crate) mod durations;
pub(crate) mod events;
pub(crate) mod history;
#[cfg(feature = "report")]
pub(crate) mod http_client;
#[cfg(feature = "report")]
mod metrics_service;
#[cfg(not(feature = "report"))]
mod no_reporter;
#[cfg(feature = "server")]
mod process;
#[cfg(feature = "server")]
pub(crate) mod prometheus;
pub(crate) mod recorder;
pub(crate) mod stats;

#[cfg(feature = "report")]
pub(crate) use self::metrics_service::Reporter;
#[cfg(not(feature = "report"))]
pub(crate) use self::no_reporter::Reporter;
