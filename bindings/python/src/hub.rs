//! Everything that the engine's threads share with Python, behind one lock.
//!
//! A thread that forks holds the lock meanwhile, so that the child finds everything whole. Neither
//! Python code nor an allocation of the interpreter runs while the lock is held.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use result_cleaner::Handle;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::engine::{Command, Engine};
use crate::log::LogLine;
use crate::message::Message;

/// How many removed paths and events may wait in a mailbox, and how many log lines in the process.
/// Later ones are dropped and counted.
const MAX_MESSAGES: usize = 65_536;
const MAX_LOG_LINES: usize = 16_384;

/// The numbers by which Python names a mailbox, a cleaner, and a request that waits for its answer.
pub(crate) type MailboxId = u64;
pub(crate) type CleanerId = u64;
pub(crate) type RequestId = u64;

static HUB: Mutex<Hub> = Mutex::new(Hub::new());

thread_local! {
    /// The lock, while this thread forks.
    static HELD: RefCell<Option<MutexGuard<'static, Hub>>> = const { RefCell::new(None) };
}

/// Runs `work` for a thread of Python. A thread that has to wait for the lock detaches, because the
/// thread that holds it may need to attach before it can go on.
pub(crate) fn with<T>(py: Python<'_>, work: impl FnOnce(&mut Hub) -> T) -> T {
    HELD.with_borrow_mut(|held| match held {
        // Python code that runs around a fork, such as a finalizer.
        Some(hub) => work(hub),
        None => work(&mut HUB.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)),
    })
}

/// Locks the hub for a thread of the engine.
pub(crate) fn lock() -> MutexGuard<'static, Hub> {
    HUB.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks the hub until [`held`] is called by this thread, or by the only thread of its forked child.
pub(crate) fn hold(py: Python<'_>) {
    if HELD.with_borrow(Option::is_none) {
        let hub = HUB.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        HELD.set(Some(hub));
    }
}

/// Returns the lock that [`hold`] has taken.
pub(crate) fn held() -> Option<MutexGuard<'static, Hub>> {
    HELD.take()
}

pub(crate) struct Hub {
    pub engine: Option<Engine>,
    mailboxes: BTreeMap<MailboxId, Mailbox>,
    pub cleaners: BTreeMap<CleanerId, Running>,
    /// Lines do not say which cleaner wrote them, so any mailbox takes them.
    log: VecDeque<LogLine>,
    /// Lines that were dropped since the last one that is in the queue.
    lines_dropped: u64,
    last_id: u64,
}

/// A cleaner that was started, until it is released.
pub(crate) struct Running {
    /// Closing this channel stops the cleaner.
    pub commands: mpsc::UnboundedSender<Command>,
    /// `None` until the cleaner has started.
    pub handle: Option<Handle>,
}

impl Hub {
    const fn new() -> Self {
        Self {
            engine: None,
            mailboxes: BTreeMap::new(),
            cleaners: BTreeMap::new(),
            log: VecDeque::new(),
            lines_dropped: 0,
            last_id: 0,
        }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn open_mailbox(&mut self) -> Result<(MailboxId, i32), Errno> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (id, descriptor) = (self.next_id(), ready.as_raw_fd());
        let mailbox =
            Mailbox { ready, is_ready: false, messages: VecDeque::new(), bulk: 0, dropped: 0 };
        self.mailboxes.insert(id, mailbox);
        Ok((id, descriptor))
    }

    pub(crate) fn close_mailbox(&mut self, id: MailboxId) {
        self.mailboxes.remove(&id);
    }

    /// Puts a message into a mailbox. Returns false if the mailbox was closed.
    pub(crate) fn push(&mut self, id: MailboxId, message: Message) -> bool {
        let Some(mailbox) = self.mailboxes.get_mut(&id) else {
            return false;
        };
        mailbox.push(message);
        true
    }

    /// Adds a log line, and wakes all mailboxes: the loop of one may be blocked.
    pub(crate) fn log(&mut self, line: LogLine) {
        if self.log.len() >= MAX_LOG_LINES {
            self.lines_dropped += 1;
            return;
        }
        self.log.push_back(line);
        self.mailboxes.values_mut().for_each(Mailbox::signal);
    }

    /// Takes at most `limit` log lines and `limit` messages. The mailbox stays ready if there are more.
    pub(crate) fn take(&mut self, id: MailboxId, limit: usize) -> (Vec<LogLine>, Vec<Message>) {
        let Some(mailbox) = self.mailboxes.get_mut(&id) else {
            return (Vec::new(), Vec::new());
        };
        let mut lines: Vec<_> = self.log.drain(..limit.min(self.log.len())).collect();
        if self.log.is_empty() && self.lines_dropped > 0 {
            lines.push(LogLine::dropped(std::mem::take(&mut self.lines_dropped)));
        }
        let messages = mailbox.take(limit);
        if self.log.is_empty() && mailbox.messages.is_empty() {
            mailbox.rest();
        }
        (lines, messages)
    }

    pub(crate) fn handle(&self, id: CleanerId) -> Option<Handle> {
        self.cleaners.get(&id)?.handle.clone()
    }

    /// Forgets a cleaner. What it consists of is returned, to be dropped without the lock.
    pub(crate) fn release(&mut self, id: CleanerId) -> Option<Running> {
        self.cleaners.remove(&id)
    }

    /// Forgets the parent's engine in a forked child. Its parts are never dropped here: dropping them
    /// may wait for a thread, or for a lock of a thread, that only the parent has.
    pub(crate) fn forget_parent(&mut self) {
        std::mem::forget(self.engine.take());
        std::mem::forget(std::mem::take(&mut self.cleaners));
        // Messages and descriptors belong to nobody else.
        self.mailboxes.clear();
        self.log.clear();
        self.lines_dropped = 0;
    }
}

struct Mailbox {
    /// Readable while there are messages, or log lines.
    ready: OwnedFd,
    is_ready: bool,
    messages: VecDeque<Message>,
    /// How many of the messages may be dropped if there are too many.
    bulk: usize,
    /// Messages that were dropped since the last one that is in the queue.
    dropped: u64,
}

impl Mailbox {
    fn push(&mut self, message: Message) {
        if message.is_bulk() {
            if self.bulk >= MAX_MESSAGES {
                self.dropped += 1;
                return;
            }
            self.bulk += 1;
            if self.dropped > 0 {
                self.messages.push_back(Message::Dropped(std::mem::take(&mut self.dropped)));
            }
        }
        self.messages.push_back(message);
        self.signal();
    }

    fn take(&mut self, limit: usize) -> Vec<Message> {
        let mut messages: Vec<_> = self.messages.drain(..limit.min(self.messages.len())).collect();
        self.bulk -= messages.iter().filter(|message| message.is_bulk()).count();
        if self.messages.is_empty() && self.dropped > 0 {
            messages.push(Message::Dropped(std::mem::take(&mut self.dropped)));
        }
        messages
    }

    fn signal(&mut self) {
        if !self.is_ready {
            // Fails only if the counter is full, and then the descriptor is readable.
            let _ = rustix::io::write(&self.ready, &1u64.to_ne_bytes());
            self.is_ready = true;
        }
    }

    fn rest(&mut self) {
        if self.is_ready {
            let _ = rustix::io::read(&self.ready, &mut [0; 8]);
            self.is_ready = false;
        }
    }
}
