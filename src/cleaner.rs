//! The handle that an application, or the command line, uses to control a running cleaner.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
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

/// The time limit for stopping. It leaves enough of the one second that is promised for the process to
/// end.
const STOP_TIME: Duration = Duration::from_millis(650);

/// A running cleaner: it deletes each result of its cache directory within milliseconds of its
/// expiry, until it is stopped or dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// use result_cleaner::{Cleaner, Config};
/// # let dir = tempfile::tempdir().unwrap();
/// let config = Config::new(dir.path()).with_metrics_url(None);
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
    readers: Arc<Readers>,
    /// `None` once the task was found to have ended by itself.
    task: Option<JoinHandle<Result<(), Error>>>,
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
        let looked_at = absolute.clone();
        let standing = runtime.spawn_blocking(move || locate(&looked_at)).await;
        if let Ok(Located::NotADirectory) = standing {
            return Err(Error::NotADirectory { path });
        }
        let start = |url: &String| Reporter::start(url, config.report_interval);
        let reporter = config.metrics_url.as_ref().map(start).transpose()?;
        let (worker, events, readers) = Worker::new(&config, path, absolute, reporter);
        let (requests, asked) = mpsc::unbounded_channel();
        let task = runtime.spawn(async move {
            let run = worker.run(events, asked).await;
            let (reporter, asked_to_stop) = run.map_err(|message| {
                tracing::error!("the cleaner failed and deletes nothing any more: {message}");
                Error::Died { message }
            })?;
            if let Some(reporter) = reporter {
                reporter.finish(STOP_TIME.saturating_sub(asked_to_stop.elapsed())).await;
            }
            Ok(())
        });
        Ok(Self { requests, readers: Arc::new(readers), task: Some(task) })
    }

    /// Returns the current state. Never waits for the file system.
    #[must_use]
    pub fn get_stats(&self) -> Stats {
        self.observer().get_stats()
    }

    /// Returns a handle that reads the stats from elsewhere and does not keep the cleaner running.
    #[must_use]
    pub fn observer(&self) -> Observer {
        Observer { readers: Arc::clone(&self.readers), requests: self.requests.downgrade() }
    }

    /// Subscribes to the events of the cleaner from now on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), result_cleaner::Error> {
    /// use result_cleaner::{Cleaner, Config, Event};
    /// # let dir = tempfile::tempdir().unwrap();
    /// let config = Config::new(dir.path()).with_metrics_url(None);
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
        self.readers.subscriptions.subscribe()
    }

    /// Makes a full sweep now and returns its report. If a sweep is already running, the new one starts
    /// after it. If the cache directory does not exist, the report is all zeros.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the cleaner ends before the sweep does. [`Error::Unreadable`] if the cache
    /// directory can't be read.
    pub async fn sweep(&self) -> Result<SweepReport, Error> {
        let (answer, report) = oneshot::channel();
        self.requests.send(Request::Sweep(answer)).map_err(|_| Error::Stopped)?;
        report.await.map_err(|_| Error::Stopped)?
    }

    /// Stops the cleaner: work in progress ends, and one attempt is made to deliver pending reports.
    /// Takes less than a second.
    ///
    /// # Errors
    /// [`Error::Died`] if the cleaner had already ended by itself because of a bug.
    pub async fn stop(self) -> Result<(), Error> {
        let Self { requests, task, .. } = self;
        drop(requests);
        match task {
            Some(mut task) => join(&mut task).await,
            None => Err(died_before()),
        }
    }

    /// Returns once the cleaner has ended by itself, which happens only because of a bug.
    ///
    /// # Errors
    /// [`Error::Died`], always.
    pub async fn died(&mut self) -> Error {
        let Some(task) = &mut self.task else {
            return died_before();
        };
        let ended = join(task).await;
        self.task = None;
        ended.err().unwrap_or(Error::Stopped)
    }
}

fn died_before() -> Error {
    Error::Died { message: "its end was reported before".to_owned() }
}

async fn join(task: &mut JoinHandle<Result<(), Error>>) -> Result<(), Error> {
    match task.await {
        Ok(ended) => ended,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Err(Error::Died { message: panic_message(panic.as_ref()) }),
            // The runtime is shutting down, and the worker ended with it.
            Err(_) => Ok(()),
        },
    }
}

/// Reads the stats of a [`Cleaner`] without keeping it running.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// use result_cleaner::{Cleaner, Config};
/// let cleaner = Cleaner::spawn(Config::new(dir.path()).with_metrics_url(None)).await?;
/// let observer = cleaner.observer();
/// assert!(observer.responds().await && observer.recent().errors.is_empty());
/// cleaner.stop().await?;
/// assert!(!observer.get_stats().running);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Observer {
    readers: Arc<Readers>,
    requests: mpsc::WeakUnboundedSender<Request>,
}

impl Observer {
    /// Returns the current state. Never waits for the file system.
    #[must_use]
    pub fn get_stats(&self) -> Stats {
        self.readers.stats.get()
    }

    /// Returns true as soon as the cleaner processes requests, and false once it has ended. Does not
    /// return while the cleaner hangs.
    pub async fn responds(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        let asked = self.requests.upgrade().map(|requests| requests.send(Request::Ping(answer)));
        matches!(asked, Some(Ok(()))) && answered.await.is_ok()
    }

    /// Returns the recent history: last sweep, errors and freed space.
    #[must_use]
    pub fn recent(&self) -> Recent {
        self.readers.history.read(now_utc())
    }

    /// Returns the current state, how many pairs expire when, and the recent history. Counting takes the
    /// worker some milliseconds per million pairs.
    pub async fn get_full_stats(&self) -> Stats {
        let (answer, buckets) = oneshot::channel();
        let asked = self.requests.upgrade().map(|requests| requests.send(Request::Buckets(answer)));
        let expiring = match asked {
            Some(Ok(())) => buckets.await.ok(),
            _ => None,
        };
        Stats { expiring, recent: Some(self.recent()), ..self.get_stats() }
    }
}

#[cfg(feature = "server")]
impl crate::server::StatsSource for Observer {
    fn stats(&self) -> std::pin::Pin<Box<dyn Future<Output = Stats> + Send + '_>> {
        Box::pin(self.get_full_stats())
    }

    fn metrics(&self) -> Result<String, String> {
        self.readers.telemetry.render(&self.get_stats(), &self.recent())
    }

    fn alive(&self) -> bool {
        self.get_stats().running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_has_died_says_so_each_time_it_is_asked() {
        let temp = tempfile::tempdir().unwrap();
        let config = Config::new(temp.path()).with_metrics_url(None);
        let mut cleaner = Cleaner::spawn(config).await.unwrap();
        let alive = cleaner.task.replace(tokio::spawn(async { panic!("on purpose") }));
        for reason in ["on purpose", "before"] {
            let error = cleaner.died().await;
            assert!(
                matches!(&error, Error::Died { message } if message.contains(reason)),
                "{error}"
            );
        }
        assert!(matches!(cleaner.stop().await, Err(Error::Died { .. })));
        alive.unwrap().await.unwrap().unwrap();
    }
}
