//! Telling the metrics service of what was done, or nobody where the library has no HTTP client.

use crate::pair::tally::Tally;

/// Where the worker tells of what was done.
pub(crate) trait Reports: Send {
    fn sweep(&self, tally: Tally);
    fn between(&self, tally: Tally);
}

/// Without an HTTP client, nobody is told.
#[cfg(not(feature = "report"))]
#[derive(Default)]
pub(crate) struct Nobody;

#[cfg(not(feature = "report"))]
impl Reports for Nobody {
    fn sweep(&self, _: Tally) {}
    fn between(&self, _: Tally) {}
}

#[cfg(feature = "report")]
impl Reports for Option<crate::telemetry::metrics_service::Reporter> {
    fn sweep(&self, tally: Tally) {
        if let Some(reporter) = self {
            reporter.sweep(tally);
        }
    }

    fn between(&self, tally: Tally) {
        if let Some(reporter) = self {
            reporter.between(tally);
        }
    }
}
