//! notify's thread that reads the kernel's events, as its handler sees it.
//!
//! notify answers its callers only when the kernel's queue is empty. While events arrive faster than notify
//! reads them, that never happens. So a reader that has fallen behind is retired and replaced. The retired
//! thread costs next to nothing until the flood ends, and then ends too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use notify::Event;

use super::translate::Translator;
use crate::pair::change::Change;
use crate::watch::floods::Rates;
use crate::watch::inbox::Inbox;

/// The most readers that a cleaner may have at once. Retired readers that wait for the end of a flood count
/// too. The system has 128 instances of inotify for each user by default.
const MAX_READERS: usize = 3;

/// Events that are closer together than this were read in one batch.
const AT_ONCE: Duration = Duration::from_micros(50);
/// A reader that wakes up again sooner than this has many events to read.
const OFTEN: Duration = Duration::from_millis(5);
/// How long such a reader sleeps, so that events gather.
const GATHER: Duration = Duration::from_millis(1);

/// How long a retired reader reads at a time. This is enough to empty the kernel's queue, unless the flood
/// goes on.
const LINGER_READING: Duration = Duration::from_millis(50);
/// How long a retired reader sleeps in between.
const LINGER_PAUSE: Duration = Duration::from_millis(950);

/// The state that the reader shares with those who wait for its answers.
#[derive(Debug, Default)]
pub(super) struct ReaderState {
    /// Whether events were lost, so that the reader may never finish reading the remaining ones.
    pub overrun: AtomicBool,
    /// Whether the reader was retired.
    pub retired: AtomicBool,
    /// Whether the registrar waits for an answer of the reader.
    pub is_asked: AtomicBool,
}

impl ReaderState {
    /// Returns whether the reader was replaced, or is about to be.
    pub(super) fn is_given_up(&self) -> bool {
        self.retired.load(Ordering::Relaxed) || self.overrun.load(Ordering::Relaxed)
    }
}

/// Reserves a slot for one more reader; `None` if the cleaner has [`MAX_READERS`] already.
pub(super) fn reserve_slot(readers: &Arc<AtomicUsize>) -> Option<ReaderSlot> {
    let add = |count| (count < MAX_READERS).then_some(count + 1);
    let added = readers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    added.ok().map(|_| ReaderSlot(Arc::clone(readers)))
}

/// The slot of one reader. Dropping it frees the slot for another one.
#[derive(Debug)]
pub(super) struct ReaderSlot(Arc<AtomicUsize>);

impl Drop for ReaderSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Handles each event on notify's thread.
pub(super) struct Handler {
    inbox: Arc<Inbox>,
    translator: Translator,
    rates: Rates,
    batching: ReadBatching,
    state: Arc<ReaderState>,
    lingers_until: Instant,
    /// Whether the flooded directories were reported since the reader was overrun.
    has_reported_floods: bool,
    /// Dropped with this handler, when notify's thread ends.
    _slot: ReaderSlot,
}

impl Handler {
    pub(super) fn new(
        translator: Translator,
        inbox: Arc<Inbox>,
        state: Arc<ReaderState>,
        slot: ReaderSlot,
    ) -> Self {
        let now = Instant::now();
        Self {
            inbox,
            translator,
            rates: Rates::new(now),
            batching: ReadBatching::new(now),
            state,
            lingers_until: now,
            has_reported_floods: false,
            _slot: slot,
        }
    }

    fn handle(&mut self, event: notify::Result<Event>) {
        if self.state.retired.load(Ordering::Relaxed) {
            return self.linger();
        }
        let (now, was_idle) = self.batching.pace(&self.state);
        if was_idle {
            self.translator.caught_up();
        }
        if self.rates.is_sampled()
            && let Ok(event) = &event
            && let Some(dir) = self.translator.origin(event)
        {
            self.rates.count(dir, now);
        }
        let inbox = &self.inbox;
        if event.as_ref().is_ok_and(Event::need_rescan) {
            inbox.overflows.fetch_add(1, Ordering::Relaxed);
        }
        let mut lost = false;
        self.translator.translate(event, &mut |change| {
            lost |= change == Change::EventsLost;
            inbox.push(change);
        });
        if self.translator.is_about_to_stall() && !self.state.overrun.load(Ordering::Relaxed) {
            // Events that notify does not read in time count as lost.
            inbox.push(Change::EventsLost);
            lost = true;
        }
        if lost {
            self.state.overrun.store(true, Ordering::Relaxed);
            self.report_floods();
        } else if !self.has_reported_floods && self.state.overrun.load(Ordering::Relaxed) {
            // The caller that waited for this reader has given up.
            self.report_floods();
        }
    }

    /// Reports the directories that have more events than can be read.
    fn report_floods(&mut self) {
        self.has_reported_floods = true;
        for dir in self.rates.flooded() {
            self.inbox.floods.begin(dir);
        }
    }

    /// Drops events, and sleeps most of the time: notify's thread can't end before the kernel's queue is empty.
    fn linger(&mut self) {
        if Instant::now() >= self.lingers_until {
            thread::sleep(LINGER_PAUSE);
            self.lingers_until = Instant::now() + LINGER_READING;
        }
    }
}

impl notify::EventHandler for Handler {
    fn handle_event(&mut self, event: notify::Result<Event>) {
        self.handle(event);
    }
}

/// Lets events gather while there are many of them. An event that finds its reader asleep costs the program
/// that caused it a wake-up, which takes longer than to unlink a file.
struct ReadBatching {
    /// When the last event came.
    last: Instant,
    /// When the reader last woke up.
    woken: Instant,
}

impl ReadBatching {
    fn new(now: Instant) -> Self {
        Self { last: now, woken: now }
    }

    /// Records an event, and sleeps first if the reader wakes up too often. Returns the time, and whether the reader was
    /// idle before the event.
    fn pace(&mut self, state: &ReaderState) -> (Instant, bool) {
        let mut now = Instant::now();
        // While another event always follows at once, the reader is behind and must not sleep.
        let was_idle = now - self.last >= AT_ONCE;
        if was_idle {
            // It must not sleep while the registrar waits for it either.
            if now - self.woken < OFTEN && !state.is_asked.load(Ordering::Relaxed) {
                thread::sleep(GATHER);
                now = Instant::now();
            }
            self.woken = now;
        }
        self.last = now;
        (now, was_idle)
    }
}
