//! The pauses before retries.

use std::time::Duration;

/// The first pause before a retry; each is twice as long as the one before it, up to the maximum.
const MIN_RETRY_PAUSE: Duration = Duration::from_secs(1);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(600);

/// The first pause for a pair that changed while it was about to be deleted.
const CHANGED_PAUSE: Duration = Duration::from_millis(50);

/// Returns the pause before the next attempt after `failures` earlier failures and one more.
pub(crate) fn backoff(failures: u32) -> Duration {
    MIN_RETRY_PAUSE.saturating_mul(2_u32.saturating_pow(failures)).min(MAX_RETRY_PAUSE)
}

/// Returns the pause before the next attempt at a pair that was about to be deleted and changed.
/// `changes` is how often this has happened before.
pub(crate) fn changed_pause(changes: u32) -> Duration {
    CHANGED_PAUSE.saturating_mul(2_u32.saturating_pow(changes)).min(MAX_RETRY_PAUSE)
}
