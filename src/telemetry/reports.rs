//! Telling the metrics service of what was done, or nobody where the library has no HTTP client.

use crate::pair::tally::Activity;

/// Where the worker tells of what was done.
pub(crate) trait Reports: Send {
    fn sweep(&self, activity: Activity);
    fn between(&self, activity: Activity);
}

/// Without an HTTP client, nobody is told.
#[cfg(not(feature = "report"))]
#[derive(Default)]
pub(crate) struct Nobody;

#[cfg(not(feature = "report"))]
impl Reports for Nobody {
    fn sweep(&self, _: Activity) {}
    fn between(&self, _: Activity) {}
}

#[cfg(feature = "report")]
impl Reports for Option<crate::telemetry::metrics_service::Reporter> {
    fn sweep(&self, activity: Activity) {
        if let Some(reporter) = self {
            reporter.sweep(activity);
        }
    }

    fn between(&self, activity: Activity) {
        if let Some(reporter) = self {
            reporter.between(activity);
        }
    }
}
