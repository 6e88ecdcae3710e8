//! The one vocabulary of news, and the inbox in which it waits for the worker.
//!
//! News is a hint to look again at a name; what is there is told by the disk alone. That is why it
//! can be merged, doubled and reordered without harm.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::echoes::Echoes;
use crate::floods::Floods;
use crate::pair::name::Key;

/// How many pairs, and how many directories, may wait for the worker. Past that their directories
/// are listed, and past that everything is. 65,536 pairs take some 6 MiB.
pub(crate) const MAX_PENDING: usize = 65_536;

/// What the last event of a pair's metadata says of its writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Writer {
    /// Nothing.
    #[default]
    Unknown,
    /// It has given the file its name, by creating or by linking it.
    Created,
    /// It has changed the file, and not closed it yet.
    AtWork,
    /// It is done: the file was closed, or got its name when it was complete.
    Done,
    /// The metadata has lost its name.
    Gone,
}

/// Why to look at a pair again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Trigger {
    /// Something appeared or changed; else it only vanished.
    pub appeared: bool,
    /// What is known of the metadata's writer.
    pub writer: Writer,
}

impl Trigger {
    /// Adds later news.
    pub fn merge(&mut self, later: Self) {
        self.appeared |= later.appeared;
        if later.writer != Writer::Unknown {
            self.writer = later.writer;
        }
    }
}

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Look at this pair again.
    Pair(Key, Trigger),
    /// Look at this directory, relative to the cache directory, and all below it again.
    Tree(Arc<Path>),
    /// List this directory again, but not those below it that are known.
    Directory(Arc<Path>),
    /// There may be [litter](crate::litter) in this directory.
    Litter(Arc<Path>),
    /// Some news was lost: look at everything again.
    Missed,
}

/// All news since it was last taken.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub pairs: HashMap<Key, Trigger>,
    pub trees: HashSet<Arc<Path>>,
    pub dirs: HashSet<Arc<Path>>,
    pub litter: HashSet<Arc<Path>>,
    pub missed: bool,
}

impl News {
    fn add(&mut self, change: Change) {
        match change {
            Change::Pair(key, trigger) => {
                if let Some(pending) = self.pairs.get_mut(&key) {
                    pending.merge(trigger);
                } else if self.pairs.len() < MAX_PENDING {
                    self.pairs.insert(key, trigger);
                } else {
                    self.add(Change::Directory(key.dir));
                }
            }
            Change::Directory(dir) if self.dirs.len() < MAX_PENDING || self.dirs.contains(&dir) => {
                self.dirs.insert(dir);
            }
            Change::Tree(dir) if self.trees.len() < MAX_PENDING => {
                self.trees.insert(dir);
            }
            Change::Litter(dir) if self.litter.len() < MAX_PENDING => {
                self.litter.insert(dir);
            }
            Change::Directory(_) | Change::Tree(_) | Change::Litter(_) | Change::Missed => {
                self.missed = true;
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
            && self.trees.is_empty()
            && self.dirs.is_empty()
            && self.litter.is_empty()
            && !self.missed
    }
}

/// Where producers leave news, and the worker takes it.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    news: Mutex<News>,
    arrived: Notify,
    /// Whether to be told where there may be litter.
    pub wants_litter: bool,
    /// What is told of the cleaner's own deletions, which is no news.
    pub echoes: Arc<Echoes>,
    /// The directories whose events can't be kept up with.
    pub floods: Floods,
    /// How many threads read events, those included that were given up and wait for a flood to end.
    pub readers: Arc<AtomicUsize>,
}

impl Inbox {
    pub fn new(wants_litter: bool) -> Self {
        Self { wants_litter, ..Self::default() }
    }

    pub fn put(&self, change: Change) {
        let first = {
            let mut news = self.lock();
            let first = news.is_empty();
            news.add(change);
            first
        };
        if first {
            self.arrived.notify_one();
        }
    }

    pub fn take(&self) -> News {
        std::mem::take(&mut *self.lock())
    }

    /// Takes whether news was lost, and leaves all else.
    pub fn take_missed(&self) -> bool {
        std::mem::take(&mut self.lock().missed)
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns once news has arrived since it was last taken.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::name::Stem;

    fn key(number: usize) -> Key {
        Key { dir: Path::new("d").into(), stem: Stem::new(number.to_string().as_bytes()) }
    }

    #[test]
    fn news_of_one_pair_is_merged_and_the_last_word_of_its_writer_counts() {
        let inbox = Inbox::default();
        for (appeared, writer) in [
            (true, Writer::AtWork),
            (true, Writer::Done),
            (true, Writer::AtWork),
            (false, Writer::Unknown),
        ] {
            inbox.put(Change::Pair(key(1), Trigger { appeared, writer }));
        }
        let news = inbox.take();
        assert_eq!(news.pairs[&key(1)], Trigger { appeared: true, writer: Writer::AtWork });
        assert!(inbox.take().is_empty());
    }

    #[test]
    fn what_does_not_fit_is_remembered_by_directory_and_at_last_as_missed() {
        let inbox = Inbox::default();
        for number in 0..=MAX_PENDING {
            inbox.put(Change::Pair(key(number), Trigger::default()));
        }
        inbox.put(Change::Pair(key(0), Trigger::default()));
        let dir = Arc::clone(&key(0).dir);
        let news = inbox.take();
        assert_eq!((news.pairs.len(), news.dirs, news.missed), (MAX_PENDING, [dir].into(), false));
        for number in 0..=MAX_PENDING {
            inbox.put(Change::Tree(Path::new(&number.to_string()).into()));
        }
        let news = inbox.take();
        assert_eq!((news.trees.len(), news.missed), (MAX_PENDING, true));
    }
}
