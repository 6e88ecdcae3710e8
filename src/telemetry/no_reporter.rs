//! A stub for the metrics service if the library has no HTTP client: no reporter can be created.

use std::time::Duration;

use crate::error::Error;
use crate::pair::tally::Tally;

#[derive(Debug)]
pub(crate) enum Reporter {}

impl Reporter {
    /// Refuses every URL.
    ///
    /// # Errors
    /// Always [`Error::MetricsUrl`].
    pub(crate) fn start(url: &str, _: Duration) -> Result<Self, Error> {
        Err(Error::MetricsUrl {
            url: url.to_owned(),
            reason:
                "can't be reported to: enable the feature `report`, or call `without_metrics()`"
                    .into(),
        })
    }

    pub(crate) fn sweep(&self, _: Tally) {
        match *self {}
    }

    pub(crate) fn between(&self, _: Tally) {
        match *self {}
    }

    pub(crate) fn undelivered(&self) -> u64 {
        match *self {}
    }

    pub(crate) async fn finish(self, _: Duration) {
        match self {}
    }
}
