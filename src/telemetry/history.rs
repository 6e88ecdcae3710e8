//! The recent history, for those who inspect a running cleaner.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

use crate::pair::reason::Reason;
use crate::pair::tally::Tally;
use crate::telemetry::stats::{FreedSpan, LastSweep, Recent, RecentError, SweepReport};

/// How many errors are kept.
const MAX_ERRORS: usize = 20;
/// Freed bytes are added up per span, and kept for a day.
const SPAN: TimeDelta = TimeDelta::minutes(10);
const MAX_SPANS: usize = 144;

/// The entries: the worker writes them, and any number of readers read them.
#[derive(Debug, Clone, Default)]
pub(crate) struct History(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    last_sweep: Option<LastSweep>,
    errors: VecDeque<RecentError>,
    freed: VecDeque<FreedSpan>,
}

impl History {
    pub(crate) fn sweep(&self, report: SweepReport, ended_at: DateTime<Utc>) {
        self.lock().last_sweep = Some(LastSweep { ended_at, report });
    }

    pub(crate) fn error(&self, path: String, reason: Reason, at: DateTime<Utc>) {
        let mut entries = self.lock();
        entries.errors.truncate(MAX_ERRORS - 1);
        entries.errors.push_front(RecentError { at, path, reason });
    }

    /// Adds the deletions and bytes of `tally` to the span of `now`.
    pub(crate) fn freed(&self, tally: &Tally, now: DateTime<Utc>) {
        let freed_bytes = tally.freed_bytes + tally.orphans.orphan_bytes;
        if tally.deleted == 0 && freed_bytes == 0 {
            return;
        }
        let since = now.duration_trunc(SPAN).unwrap_or(now);
        let mut entries = self.lock();
        match entries.freed.back_mut() {
            // Also applies if the clock was set back.
            Some(last) if last.since >= since => {
                last.deleted += tally.deleted;
                last.freed_bytes += freed_bytes;
            }
            _ => {
                if entries.freed.len() >= MAX_SPANS {
                    entries.freed.pop_front();
                }
                entries.freed.push_back(FreedSpan { since, deleted: tally.deleted, freed_bytes });
            }
        }
    }

    pub(crate) fn read(&self, now: DateTime<Utc>) -> Recent {
        let entries = self.lock();
        let first = now - TimeDelta::days(1);
        Recent {
            last_sweep: entries.last_sweep,
            errors: entries.errors.iter().cloned().collect(),
            freed: entries.freed.iter().filter(|span| span.since > first).copied().collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn what_is_freed_is_added_up_by_ten_minutes_and_forgotten_after_a_day() {
        let history = History::default();
        let one = Tally { deleted: 1, freed_bytes: 10, ..Tally::default() };
        for seconds in [0, 599, 600, 550, 7200] {
            history.freed(&one, at(seconds));
        }
        history.freed(&Tally { checked: 5, ..Tally::default() }, at(9000));
        let reported = |now| {
            let spans = history.read(now).freed.into_iter();
            spans.map(|span| (span.since, span.deleted, span.freed_bytes)).collect::<Vec<_>>()
        };
        assert_eq!(reported(at(7200)), [(at(0), 2, 20), (at(600), 2, 20), (at(7200), 1, 10)]);
        assert_eq!(reported(at(86_400 + 600)), [(at(7200), 1, 10)]);
        for span in 0..1000 {
            history.freed(&one, at(span * 600));
        }
        assert!(history.lock().freed.len() <= MAX_SPANS);
    }

    #[test]
    fn the_last_errors_are_listed_newest_first() {
        let history = History::default();
        for number in 0..30 {
            history.error(number.to_string(), Reason::Changed, at(number));
        }
        let errors = history.read(at(30)).errors;
        let paths: Vec<_> = errors.iter().map(|error| error.path.clone()).collect();
        assert_eq!(paths, (10..30).rev().map(|number: i32| number.to_string()).collect::<Vec<_>>());
    }
}
