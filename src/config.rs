//! The settings of an embedding application or the command line.

mod builder;
mod read;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

pub use self::read::parse_duration;
use crate::error::Error;
use crate::pair::disk_budget::Budget;
pub use crate::pair::disk_budget::{MinFree, parse_size};

/// The cache directory unless another one is given.
pub const DEFAULT_CACHE_DIR: &str = "~/.omnimemory/cached_results";
/// The base URL of the metrics service unless another one is given.
pub const DEFAULT_METRICS_URL: &str = "http://localhost:8003";

/// The minimum age of orphans and empty directories before they may be removed.
pub const MIN_ORPHAN_AGE: Duration = Duration::from_secs(3600);

/// How long a result has to be unchanged before it may be evicted, unless another time is given.
const DEFAULT_EVICT_MIN_AGE: Duration = Duration::from_secs(60);

/// Receives a call for each deleted result, so that an application can drop its references to it.
///
/// The cleaner calls it from a thread that may block, right after the deletion, once per result. A panic
/// in it is caught and logged.
///
/// ```
/// use std::path::Path;
/// struct Index;
/// impl result_cleaner::ResultStore for Index {
///     fn removed(&self, result: &Path) {
///         println!("{} is gone", result.display());
///     }
/// }
/// let config = result_cleaner::Config::new("/tmp/results").with_result_store(Index);
/// assert!(config.result_store.is_some());
/// ```
///
/// An [`Arc`] of a store is a store, so that an application can keep one, too:
///
/// ```
/// # use std::path::Path;
/// # use std::sync::{Arc, Mutex};
/// # use result_cleaner::{Config, ResultStore};
/// #[derive(Default)]
/// struct Removed(Mutex<u64>);
/// impl ResultStore for Removed {
///     fn removed(&self, _: &Path) {
///         *self.0.lock().unwrap() += 1;
///     }
/// }
/// let removed = Arc::new(Removed::default());
/// let config = Config::new("/tmp/results").with_result_store(Arc::clone(&removed));
/// # let shared: Arc<dyn ResultStore> = removed.clone();
/// # let config = config.with_result_store(shared);
/// # config.result_store.unwrap().removed(Path::new("x"));
/// println!("{} were deleted", removed.0.lock().unwrap());
/// ```
pub trait ResultStore: Send + Sync + 'static {
    /// Reports that the result at `result` was deleted. The path is below the resolved cache directory.
    /// It may differ from the path that the writer used if a symbolic link leads to the cache.
    fn removed(&self, result: &Path);
}

impl<S: ResultStore + ?Sized> ResultStore for Arc<S> {
    fn removed(&self, result: &Path) {
        S::removed(self, result);
    }
}

/// The settings of a cleaner.
///
/// The defaults are those of the polling daemon that it replaces.
///
/// ```
/// use std::time::Duration;
/// let mut config = result_cleaner::Config::new("~/.omnimemory/cached_results");
/// assert_eq!(config.check_interval, Duration::from_secs(6 * 3600));
/// config.metrics_url = None;
/// ```
///
/// It can be read from a file in any self-describing serde format, such as JSON, TOML or YAML.
/// Keys that are left out have their defaults; unknown keys are refused. Durations are text such as `6h` or a number of
/// seconds, sizes are text such as `20GiB` or a number of bytes, as on the command line
/// ([`parse_duration`], [`parse_size`]).
///
/// ```
/// # use std::time::Duration;
/// # use result_cleaner::{Config, MinFree};
/// let json = r#"{"cache_dir": "/cache", "check_interval": "1h30m", "report_interval": 5,
///     "metrics_url": null, "max_size": "20GiB", "min_free": "10%"}"#;
/// let config: Config = serde_json::from_str(json).unwrap();
/// config.validate().unwrap();
/// assert_eq!(config.check_interval, Duration::from_secs(5400));
/// assert_eq!((config.report_interval, config.metrics_url), (Duration::from_secs(5), None));
/// assert_eq!((config.max_size, config.min_free), (Some(20 << 30), Some(MinFree::Percent(10))));
/// assert!(serde_json::from_str::<Config>(r#"{"check_intervall": "1h"}"#).is_err());
/// ```
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// The directory whose expired results are deleted. A leading `~` is the home directory. The path
    /// may be a symbolic link, and need not exist yet.
    pub cache_dir: PathBuf,
    /// Interval from the end of one full sweep to the next: at least a second, 6 hours by default.
    #[serde(deserialize_with = "read::duration")]
    pub check_interval: Duration,
    /// Base URL of the metrics service, to which `/track/cleanup` is appended. `None` sends no reports.
    /// The default is [`DEFAULT_METRICS_URL`]. Without the feature `report` the default is `None`, and a
    /// URL is refused.
    pub metrics_url: Option<String>,
    /// Receives a call for each deleted result; `None` by default. It can't be read from a file.
    #[serde(skip)]
    pub result_store: Option<Arc<dyn ResultStore>>,
    /// The minimum interval between reports of what the timer deleted; 10 s by default.
    #[serde(deserialize_with = "read::duration")]
    pub report_interval: Duration,
    /// The interval between sweeps while the kernel can't report all changes; 60 s by default.
    #[serde(deserialize_with = "read::duration")]
    pub fallback_interval: Duration,
    /// Limits file I/O to this much time per second, by all threads together, so that other programs can
    /// use the disk. At least a millisecond; no limit by default. If there is more to do, the work takes
    /// longer, and results are deleted after they expire.
    #[serde(deserialize_with = "read::optional_duration")]
    pub max_disk_time: Option<Duration>,
    /// Removes results without metadata, expired metadata without a result, and abandoned `*.tmp` files
    /// of the two names. A file must have been unchanged for this long (by the later of mtime and
    /// ctime). At least an hour. With `None`, the default, they are kept.
    #[serde(deserialize_with = "read::optional_duration")]
    pub remove_orphans: Option<Duration>,
    /// Removes directories below the cache directory that have been empty and unchanged for this long.
    /// At least an hour. With `None`, the default, they are kept.
    #[serde(deserialize_with = "read::optional_duration")]
    pub prune_empty_dirs: Option<Duration>,
    /// Evicts results before they expire, the soonest `expires_at` first, once all complete, valid pairs take more than
    /// this many bytes on disk (allocated, as `du` counts). An eviction goes on until they take 95 % of it. With `None`,
    /// the default, nothing is evicted.
    #[serde(deserialize_with = "read::optional_size")]
    pub max_size: Option<u64>,
    /// Evicts results, likewise, once less than this is free on the cache directory's file system, until 105 % of it are
    /// free. With `None`, the default, nothing is evicted.
    pub min_free: Option<MinFree>,
    /// How long a result has to be unchanged before it may be evicted; 60 s by default.
    #[serde(deserialize_with = "read::duration")]
    pub evict_min_age: Duration,
    /// Whether the cleaner only logs what it would delete or evict. It logs each pair once, and then treats it as
    /// deleted. A running cleaner ignores [`remove_orphans`](Self::remove_orphans) and
    /// [`prune_empty_dirs`](Self::prune_empty_dirs) meanwhile. Off by default.
    pub dry_run: bool,
    /// Whether Landlock confines the threads that delete to the cache directory, if the kernel supports
    /// it. They then can't create, write, rename or remove anything elsewhere. The command line sets it.
    /// It is off by default: the cleaner calls [`result_store`](Self::result_store) and writes logs on
    /// those threads, and these may need to write.
    pub sandbox: bool,
}

impl Config {
    /// Creates a configuration for `cache_dir` with defaults for everything else.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            check_interval: Duration::from_secs(6 * 3600),
            metrics_url: cfg!(feature = "report").then(|| DEFAULT_METRICS_URL.to_owned()),
            result_store: None,
            report_interval: Duration::from_secs(10),
            fallback_interval: Duration::from_secs(60),
            max_disk_time: None,
            remove_orphans: None,
            prune_empty_dirs: None,
            max_size: None,
            min_free: None,
            evict_min_age: DEFAULT_EVICT_MIN_AGE,
            dry_run: false,
            sandbox: false,
        }
    }

    /// Returns the disk budget, if one is set.
    pub(crate) fn budget(&self) -> Option<Budget> {
        let Self { max_size, min_free, evict_min_age: min_age, .. } = *self;
        (max_size.is_some() || min_free.is_some()).then_some(Budget { max_size, min_free, min_age })
    }

    /// Returns how old orphans and empty directories have to be to be removed.
    pub(crate) fn orphan_ages(&self) -> OrphanAges {
        OrphanAges { orphans: self.remove_orphans, empty_dirs: self.prune_empty_dirs }
    }

    /// Returns [`cache_dir`](Self::cache_dir) with a leading `~` replaced by the home directory.
    ///
    /// # Errors
    /// [`Error::NoHome`] if there is a `~` to expand and no home directory is known.
    pub fn expanded_cache_dir(&self) -> Result<PathBuf, Error> {
        expand_home(&self.cache_dir)
    }

    /// Checks that each duration has at least its minimum, and that the limits are within their bounds. Every
    /// function that takes a `Config` calls this before it starts any work. It checks neither the file system nor
    /// [`metrics_url`](Self::metrics_url).
    ///
    /// ```
    /// # use std::time::Duration;
    /// let config = result_cleaner::Config::default().with_check_interval(Duration::ZERO);
    /// let error = config.validate().unwrap_err();
    /// assert_eq!(error.to_string(), "check_interval is 0ns, but must be at least 1s");
    /// ```
    ///
    /// # Errors
    /// [`Error::TooShort`] and [`Error::Limit`], with the name of the setting.
    pub fn validate(&self) -> Result<(), Error> {
        let millisecond = Duration::from_millis(1);
        let minimums = [
            ("check_interval", self.check_interval, Duration::from_secs(1)),
            ("report_interval", self.report_interval, millisecond),
            ("fallback_interval", self.fallback_interval, millisecond),
            ("max_disk_time", self.max_disk_time.unwrap_or(millisecond), millisecond),
            ("remove_orphans", self.remove_orphans.unwrap_or(MIN_ORPHAN_AGE), MIN_ORPHAN_AGE),
            ("prune_empty_dirs", self.prune_empty_dirs.unwrap_or(MIN_ORPHAN_AGE), MIN_ORPHAN_AGE),
            ("evict_min_age", self.evict_min_age, millisecond),
        ];
        for (setting, value, minimum) in minimums {
            if value < minimum {
                return Err(Error::TooShort { setting, value, minimum });
            }
        }
        if self.max_size == Some(0) {
            return Err(Error::Limit { setting: "max_size", reason: "more than zero" });
        }
        if self.min_free.is_some_and(|limit| !limit.is_valid()) {
            let reason = "more than zero, or 1 to 90 percent";
            return Err(Error::Limit { setting: "min_free", reason });
        }
        Ok(())
    }
}

/// How old [orphans](crate::jobs::orphans) and empty directories have to be to be removed; `None` if
/// they are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OrphanAges {
    pub orphans: Option<Duration>,
    pub empty_dirs: Option<Duration>,
}

impl OrphanAges {
    /// Whether orphans or empty directories are to be removed.
    pub(crate) fn any(&self) -> bool {
        self.orphans.is_some() || self.empty_dirs.is_some()
    }
}

impl Default for Config {
    /// Creates the configuration for [`DEFAULT_CACHE_DIR`].
    fn default() -> Self {
        Self::new(DEFAULT_CACHE_DIR)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("cache_dir", &self.cache_dir)
            .field("check_interval", &self.check_interval)
            .field("metrics_url", &self.metrics_url.as_deref().map(redacted))
            .field("result_store", &self.result_store.as_ref().map(|_| "..."))
            .field("report_interval", &self.report_interval)
            .field("fallback_interval", &self.fallback_interval)
            .field("max_disk_time", &self.max_disk_time)
            .field("remove_orphans", &self.remove_orphans)
            .field("prune_empty_dirs", &self.prune_empty_dirs)
            .field("max_size", &self.max_size)
            .field("min_free", &self.min_free)
            .field("evict_min_age", &self.evict_min_age)
            .field("dry_run", &self.dry_run)
            .field("sandbox", &self.sandbox)
            .finish()
    }
}

/// Returns `url`, valid or not, without what may be secret: user name and password, and the query.
pub(crate) fn redacted(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    // A password may contain any character unescaped, so the last @ counts, not the first.
    let (credentials, rest) = match url.rfind('@') {
        Some(at) if at >= start => ("***", &url[at..]),
        _ => ("", &url[start..]),
    };
    let (rest, query) = match rest.find('?') {
        Some(at) => (&rest[..at], "?***"),
        None => (rest, ""),
    };
    format!("{}{credentials}{rest}{query}", &url[..start])
}

/// Returns `path` with a leading `~` replaced by the home directory.
///
/// # Errors
/// [`Error::NoHome`] if there is a `~` to expand and no home directory is known.
pub fn expand_home(path: &Path) -> Result<PathBuf, Error> {
    let Ok(rest) = path.strip_prefix("~") else {
        return Ok(path.to_owned());
    };
    match std::env::home_dir() {
        Some(home) if !home.as_os_str().is_empty() => Ok(home.join(rest)),
        _ => Err(Error::NoHome { path: path.to_owned() }),
    }
}
