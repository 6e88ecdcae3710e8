//! Sends the events of a cleaner to its subscribers.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_core::Stream;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use crate::pair::reason::Reason;
use crate::telemetry::stats::SweepReport;

/// How many events may wait for a subscriber; later events displace the oldest.
const MAX_WAITING: usize = 4096;

/// An event of a cleaner, for those who [subscribe](crate::Cleaner::subscribe) to it.
///
/// ```
/// use result_cleaner::{Event, Reason};
/// let print = |event: Event| match event {
///     Event::Deleted { result, late, .. } => println!("{} was deleted {late:?} late", result.display()),
///     Event::Skipped { path, reason: Reason::InvalidMetadata(why) } => {
///         println!("the writer of {} has a bug: {why}", path.display());
///     }
///     Event::Skipped { path, reason } => println!("{} is kept: {reason}", path.display()),
///     Event::Lagged(count) => println!("{count} events were dropped: ask get_stats()"),
///     _ => {}
/// };
/// # print(Event::Lagged(1));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// An expired result was deleted.
    Deleted {
        /// Its path, below the resolved cache directory.
        result: PathBuf,
        /// `st_size` of its files that this cleaner deleted, in bytes.
        freed_bytes: u64,
        /// How long after its `expires_at` the result was deleted.
        late: Duration,
    },
    /// A result was deleted before its expiry, because of the disk budget.
    Evicted {
        /// Its path, below the resolved cache directory.
        result: PathBuf,
        /// What its files that this cleaner deleted took on disk, in bytes.
        freed_bytes: u64,
        /// When it would have expired.
        expires_at: DateTime<Utc>,
    },
    /// Something was not deleted for now: a pair that has expired and has to wait, a pair with invalid metadata, or
    /// something that could not be read or deleted.
    Skipped {
        /// The path concerned: a result, its metadata, or a directory.
        path: PathBuf,
        /// The reason.
        reason: Reason,
    },
    /// A full sweep was completed.
    SweepDone(SweepReport),
    /// This many events were dropped, because the subscriber did not read them in time.
    Lagged(u64),
}

/// The events of a cleaner from now on, as a [`Stream`].
/// [`Cleaner::subscribe`](crate::Cleaner::subscribe) creates one, and shows how to read it. The stream
/// ends when the cleaner ends.
///
/// The cleaner never waits for a subscriber. If more than 4,096 events wait, the oldest are dropped, and
/// [`Event::Lagged`] reports their number.
#[derive(Debug)]
pub struct Events(BroadcastStream<Event>);

impl Events {
    /// Returns the next event; `None` once the cleaner has ended.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        Pin::new(&mut self.0).poll_next(cx).map(|next| {
            next.map(|event| {
                event.unwrap_or_else(|BroadcastStreamRecvError::Lagged(count)| Event::Lagged(count))
            })
        })
    }
}

/// The worker's end of the channel of events.
#[derive(Debug)]
pub(crate) struct EventSender(broadcast::Sender<Event>);

impl EventSender {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(MAX_WAITING).0)
    }

    pub(crate) fn subscriptions(&self) -> Subscriptions {
        Subscriptions(self.0.downgrade())
    }

    /// Sends the event if there is a subscriber.
    pub(crate) fn send(&self, event: impl FnOnce() -> Event) {
        if self.0.receiver_count() > 0 {
            // The subscribers may have gone in the meantime.
            let _ = self.0.send(event());
        }
    }
}

/// Subscribes to a worker's events, and does not keep the streams open after the worker has ended.
#[derive(Debug)]
pub(crate) struct Subscriptions(broadcast::WeakSender<Event>);

impl Subscriptions {
    pub(crate) fn subscribe(&self) -> Events {
        // If the worker has ended, the stream has ended, too.
        let receiver =
            self.0.upgrade().map_or_else(|| broadcast::channel(1).1, |sender| sender.subscribe());
        Events(BroadcastStream::new(receiver))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(checked_count: u64) -> Event {
        Event::SweepDone(SweepReport { checked_count, ..SweepReport::default() })
    }

    #[tokio::test]
    async fn a_slow_reader_learns_how_many_events_were_dropped() {
        let sender = EventSender::new();
        let mut events = sender.subscriptions().subscribe();
        let total = MAX_WAITING as u64 + 10;
        (0..total).for_each(|number| sender.send(|| sweep(number)));
        assert_eq!(events.next().await, Some(Event::Lagged(10)));
        for number in 10..total {
            assert_eq!(events.next().await, Some(sweep(number)));
        }
        drop(sender);
        assert_eq!(events.next().await, None);
    }

    #[tokio::test]
    async fn whoever_comes_too_late_learns_it() {
        let sender = EventSender::new();
        sender.send(|| unreachable!("nobody wants to know"));
        let subscriptions = sender.subscriptions();
        drop(sender);
        assert_eq!(subscriptions.subscribe().next().await, None);
    }
}
