//! What an application, or the command line, uses to control a running cleaner.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::disk::root::{Located, locate};
use crate::error::Error;
use crate::sys::clock::now_utc;
use crate::sys::runtime::{self, panic_message};
use crate::telemetry::Reporter;
use crate::telemetry::events::Events;
use crate::telemetry::recorder::Readers;
use crate::telemetry::stats::{Recent, Stats, SweepReport};
use crate::worker::Worker;
use crate::worker::requests::Request;

/// How long after the request to stop the last report may take. The rest of the promised second is for the process to
/// end.
const LAST_REPORT_TIME: Duration = Duration::from_millis(650);

/// A running cleaner: it deletes each result of its cache directory within milliseconds of its
/// expiry, until it is stopped or dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// use result_cleaner::{Cleaner, Config};
/// # let dir = tempfile::tempdir().unwrap();
/// let config = Config::new(dir.path()).without_metrics();
/// let cleaner = Cleaner::spawn(config).await?;
/// let report = cleaner.sweep().await?;
/// assert_eq!(report.errors, 0);
/// println!("{} waiting", cleaner.get_stats().heap_size);
/// cleaner.stop().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Cleaner {
    /// Closing this channel stops the worker.
    requests: mpsc::UnboundedSender<Request>,
    handle: Handle,
}

impl Cleaner {
    /// Starts a cleaner on the current tokio runtime.
    ///
    /// The cache directory need not exist yet. This method returns once the configuration is validated;
    /// the first scan then continues in the background.
    ///
    /// # Errors
    /// [`Error::NoRuntime`] and [`Error::NoDriver`] if there is no suitable runtime.
    /// [`Error::NotADirectory`] if the cache directory's path is not a directory. The errors of an
    /// invalid configuration.
    pub async fn spawn(config: Config) -> Result<Self, Error> {
        let runtime = runtime::current()?;
        runtime::require_timer()?;
        config.validate()?;
        let path = config.expanded_cache_dir()?;
        // A relative path is resolved now, so that a later change of the working directory does not
        // affect it.
        let absolute = std::path::absolute(&path)
            .map_err(|source| Error::Unreadable { path: path.clone(), source })?;
        let probed = absolute.clone();
        let located = runtime.spawn_blocking(move || locate(&probed)).await;
        if let Ok(Located::NotADirectory) = located {
            return Err(Error::NotADirectory { path });
        }
        let start = |url: &String| Reporter::start(url, config.report_interval);
        let reporter = config.metrics_url.as_ref().map(start).transpose()?;
        let (worker, events, readers) = Worker::new(&config, path, absolute, reporter);
        let (requests, asked) = mpsc::unbounded_channel();
        let task = runtime.spawn(async move {
            let (reporter, asked_to_stop) = worker.run(events, asked).await?;
            if let Some(reporter) = reporter {
                reporter.finish(LAST_REPORT_TIME.saturating_sub(asked_to_stop.elapsed())).await;
            }
            Ok(())
        });
        let handle = Handle {
            readers: Arc::new(readers),
            requests: requests.downgrade(),
            end: end_of(&runtime, task),
        };
        Ok(Self { requests, handle })
    }

    /// Returns the current state. Never waits for the file system.
    #[must_use]
    pub fn get_stats(&self) -> Stats {
        self.handle.stats()
    }

    /// Returns a handle for use elsewhere, which does not keep the cleaner running.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Subscribes to the events of the cleaner from now on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), result_cleaner::Error> {
    /// use result_cleaner::{Cleaner, Config, Event};
    /// # let dir = tempfile::tempdir().unwrap();
    /// let config = Config::new(dir.path()).without_metrics();
    /// let cleaner = Cleaner::spawn(config).await?;
    /// let mut events = cleaner.subscribe();
    /// while let Some(event) = events.next().await {
    ///     match event {
    ///         Event::Deleted { result, .. } => println!("{} is gone", result.display()),
    ///         Event::SweepDone(report) => {
    ///             println!("{} seen", report.checked_count);
    ///             break;
    ///         }
    ///         _ => {}
    ///     }
    /// }
    /// cleaner.stop().await
    /// # }
    /// ```
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.handle.subscribe()
    }

    /// Makes a full sweep now and returns its report. If a sweep is already running, the new one starts
    /// after it. If the cache directory does not exist, the report is all zeros.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the cleaner ends before the sweep does. [`Error::Unreadable`] if the cache
    /// directory can't be read.
    pub async fn sweep(&self) -> Result<SweepReport, Error> {
        self.handle.sweep().await
    }

    /// Stops the cleaner: work in progress ends, and one attempt is made to deliver pending reports.
    /// Takes less than a second.
    ///
    /// # Errors
    /// [`Error::Died`] if the cleaner had already ended by itself because of a bug.
    pub async fn stop(self) -> Result<(), Error> {
        let Self { requests, handle } = self;
        drop(requests);
        handle.closed().await
    }
}

/// How a cleaner has ended: in order, or with the message of a panic. `None` while it runs.
type End = Option<Result<(), String>>;

/// Makes the end of `task` known to any number of handles.
fn end_of(
    runtime: &tokio::runtime::Handle,
    task: JoinHandle<Result<(), String>>,
) -> watch::Receiver<End> {
    let (ended, end) = watch::channel(None);
    runtime.spawn(async move {
        let how = match task.await {
            Ok(how) => how,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Err(panic_message(panic.as_ref())),
                // The runtime is shutting down, and the worker ended with it.
                Err(_) => Ok(()),
            },
        };
        if let Err(message) = &how {
            tracing::error!(reason = message, "the cleaner failed and deletes nothing any more");
        }
        // Nobody may wait for it.
        let _ = ended.send(Some(how));
    });
    end
}

/// Controls a [`Cleaner`] from elsewhere, in any number of copies, without keeping it running: once the
/// `Cleaner` is stopped or dropped, the handles report that it has ended.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// use result_cleaner::{Cleaner, Config};
/// let cleaner = Cleaner::spawn(Config::new(dir.path()).without_metrics()).await?;
/// let handle = cleaner.handle();
/// assert!(handle.responds().await && handle.recent().errors.is_empty());
/// let ended = tokio::spawn({
///     let handle = handle.clone();
///     async move { handle.closed().await }
/// });
/// assert_eq!(handle.sweep().await?.errors, 0);
/// cleaner.stop().await?;
/// ended.await.unwrap()?;
/// assert!(!handle.stats().running);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Handle {
    readers: Arc<Readers>,
    requests: mpsc::WeakUnboundedSender<Request>,
    end: watch::Receiver<End>,
}

impl Handle {
    /// Returns the current state. Never waits for the file system.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.readers.stats.get()
    }

    /// Returns the current state, how many pairs expire when, and the recent history. Counting takes the
    /// worker some milliseconds per million pairs.
    pub async fn full_stats(&self) -> Stats {
        let expiring = self.ask(Request::Buckets).await;
        Stats { expiring, recent: Some(self.recent()), ..self.stats() }
    }

    /// Returns the recent history: last sweep, errors and freed space.
    #[must_use]
    pub fn recent(&self) -> Recent {
        self.readers.history.read(now_utc())
    }

    /// Returns true as soon as the cleaner processes requests, and false once it has ended. Does not
    /// return while the cleaner hangs.
    pub async fn responds(&self) -> bool {
        self.ask(Request::Ping).await.is_some()
    }

    /// Subscribes to the events of the cleaner, like [`Cleaner::subscribe`]. If the cleaner has ended,
    /// the stream has ended, too.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.readers.subscriptions.subscribe()
    }

    /// Makes a full sweep now, like [`Cleaner::sweep`].
    ///
    /// # Errors
    /// [`Error::Stopped`] if the cleaner ends, or has ended, before the sweep does.
    /// [`Error::Unreadable`] if the cache directory can't be read.
    pub async fn sweep(&self) -> Result<SweepReport, Error> {
        self.ask(Request::Sweep).await.unwrap_or(Err(Error::Stopped))
    }

    /// Returns once the cleaner has ended, at once if it has ended already. Any number of tasks may
    /// wait at the same time. `Ok` if the [`Cleaner`] was stopped or dropped, or its runtime shut down.
    ///
    /// # Errors
    /// [`Error::Died`] if it has ended by itself, which happens only because of a bug.
    pub async fn closed(&self) -> Result<(), Error> {
        let mut end = self.end.clone();
        // If the runtime was shut down, the task that reports the end is gone.
        let how = end.wait_for(Option::is_some).await.map_or(None, |how| how.clone());
        how.unwrap_or(Ok(())).map_err(|message| Error::Died { message })
    }

    /// Makes a request and waits for the answer; `None` if the cleaner ends before it answers.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.requests.upgrade()?.send(request(answer)).ok()?;
        answered.await.ok()
    }
}

#[cfg(feature = "server")]
impl crate::server::StatsSource for Handle {
    fn stats(&self) -> std::pin::Pin<Box<dyn Future<Output = Stats> + Send + '_>> {
        Box::pin(self.full_stats())
    }

    fn metrics(&self) -> Result<String, String> {
        self.readers.prometheus.render(&Self::stats(self), &self.recent())
    }

    fn alive(&self) -> bool {
        Self::stats(self).running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_has_died_says_so_to_each_that_asks() {
        let temp = tempfile::tempdir().unwrap();
        let config = Config::new(temp.path()).without_metrics();
        let mut cleaner = Cleaner::spawn(config).await.unwrap();
        let panics = tokio::spawn(async { panic!("on purpose") });
        cleaner.handle.end = end_of(&runtime::current().unwrap(), panics);
        let (first, second) = (cleaner.handle(), cleaner.handle());
        let (first, second) = tokio::join!(first.closed(), second.closed());
        for ended in [first, second, cleaner.handle().closed().await, cleaner.stop().await] {
            let error = ended.unwrap_err();
            assert!(
                matches!(&error, Error::Died { message } if message.contains("on purpose")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_end_of_the_runtime_is_the_end_of_the_cleaner() {
        let temp = tempfile::tempdir().unwrap();
        let config = Config::new(temp.path()).without_metrics();
        let builder = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = builder().unwrap();
        let cleaner = runtime.block_on(Cleaner::spawn(config)).unwrap();
        let handle = cleaner.handle();
        drop(runtime);
        builder().unwrap().block_on(async {
            handle.closed().await.unwrap();
            assert!(matches!(handle.sweep().await, Err(Error::Stopped)));
            assert_eq!(handle.subscribe().next().await, None);
            assert!(!handle.responds().await && !handle.stats().running);
            cleaner.stop().await.unwrap();
        });
    }
}
