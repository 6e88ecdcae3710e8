//! Checks the environment that the service needs.
//!
//! Each check does what the service will do, as far as that leaves no trace. For example, it watches the
//! directory, makes a file there, and waits for the kernel to report it. Longer than other files: it has a function for
//! each check.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Datelike, Local, Utc};
use rustix::io::Errno;
use serde::Serialize;

use crate::config::Config;
use crate::disk::filesystem::partly_silent_file_system;
use crate::disk::root::{Dir, Located, Root, locate};
use crate::display::display_path;
use crate::error::Error;
use crate::pair::change::WatchError;
use crate::remove::{ProbeFile, probe_file_name};
use crate::sys::clock::now_utc;
use crate::sys::descriptors::open_file_limit;
use crate::sys::runtime;
use crate::watch::delivers_event;
use crate::watch::limits::{Survey, inotify_limit, survey};

/// How long an event may take to arrive.
const EVENT_PATIENCE: Duration = Duration::from_secs(5);
/// How many seconds the file system's clock may differ from that of this machine.
const CLOCK_TOLERANCE: i64 = 2;
/// A service has at most this many files open, besides the directories that it scans.
const MIN_OPEN_FILES: u64 = 256;

const MORE_FILES: &str = "`ulimit -n 1024`, or LimitNOFILE=1024 in the unit";
const READABLE: &str =
    "give this user permission to read and enter it (chmod u+rwx), or run the service as its owner";

/// The outcome of one check; [`diagnose`] returns them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// The subject of the check, in a word or two.
    pub check: &'static str,
    /// Whether the service can work well.
    pub status: CheckStatus,
    /// The finding, in one line.
    pub found: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// The severity of a finding; a worse status is greater.
///
/// ```
/// use result_cleaner::CheckStatus;
/// assert!(CheckStatus::Wrong > CheckStatus::Warning && CheckStatus::Warning > CheckStatus::Ok);
/// assert_eq!(CheckStatus::Wrong.to_string(), "wrong");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CheckStatus {
    /// Nothing to do.
    Ok,
    /// The service works, but not as well as it could.
    Warning,
    /// The service does not work, or deletes nothing.
    Wrong,
}

impl fmt::Display for CheckStatus {
    /// Writes the same word as in the JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, status: CheckStatus::Ok, found: found.into(), remedy: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (status, remedy) = (CheckStatus::Warning, Some(remedy.into()));
        Self { check, status, found: found.into(), remedy }
    }

    fn wrong(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: CheckStatus::Wrong, ..Self::warning(check, found, remedy) }
    }
}

/// Checks the environment for a service with this configuration. Creates a file with a reserved name in
/// the cache directory, and removes it again.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// use result_cleaner::{CheckStatus, Config, diagnose};
/// let config = Config::new(dir.path()).without_metrics();
/// for check in diagnose(&config).await? {
///     if check.status > CheckStatus::Ok {
///         println!("{}: {}: {}", check.check, check.found, check.remedy.unwrap_or_default());
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NoRuntime`], [`Error::NoDriver`] if the runtime can't reach the metrics service, and the errors of an
/// invalid configuration.
pub async fn diagnose(config: &Config) -> Result<Vec<Check>, Error> {
    let runtime = runtime::current()?;
    #[cfg(feature = "report")]
    if config.metrics_url.is_some() {
        runtime::require_sockets()?;
    }
    config.validate()?;
    let cache_dir = config.expanded_cache_dir()?;
    let task = runtime.spawn_blocking(move || Ok(check_machine(&cache_dir)));
    let mut checks = runtime::joined(task.await)?;
    checks.push(check_metrics(config).await);
    Ok(checks)
}

fn check_machine(cache_dir: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some((root, dir)) = check_directory(cache_dir, &mut checks) {
        check_contents(&root, &dir, &mut checks);
    }
    checks.push(check_instances());
    checks.push(check_files());
    checks.push(check_time_zone(std::env::var("TZ").ok().as_deref()));
    checks
}

fn check_directory(cache_dir: &Path, checks: &mut Vec<Check>) -> Option<(Root, Dir)> {
    const CHECK: &str = "directory";
    let shown = display_path(cache_dir);
    let unreadable = |error: &std::io::Error| {
        let remedy = if is_out_of_files(error) { MORE_FILES } else { READABLE };
        Check::wrong(CHECK, format!("{shown} can't be read: {error}"), remedy)
    };
    let (check, opened) = match locate(cache_dir) {
        Located::Directory(id) => {
            let resolved = display_path(&id.path);
            let open = || {
                let root = Root::open(id)?;
                let dir = root.open_dir(&Path::new("").into())?;
                Ok::<_, std::io::Error>((root, dir))
            };
            match open() {
                Ok(opened) => (Check::ok(CHECK, format!("{resolved} is there")), Some(opened)),
                Err(error) => (unreadable(&error), None),
            }
        }
        Located::Absent => {
            let remedy = format!("nothing to do, the service waits for it; or `mkdir -p {shown}`");
            (Check::warning(CHECK, format!("{shown} does not exist yet"), remedy), None)
        }
        Located::NotADirectory => {
            let remedy = "name the directory that holds the cached results";
            (Check::wrong(CHECK, format!("{shown} is no directory"), remedy), None)
        }
        Located::Unreadable(error) => (unreadable(&error), None),
    };
    checks.push(check);
    opened
}

fn is_out_of_files(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

fn check_contents(root: &Root, dir: &Dir, checks: &mut Vec<Check>) {
    let survey = survey(root.path());
    let Survey { directories, too_long, forbidden, unseen, .. } = survey;
    checks.push(match (&survey.example, &survey.unseen_example) {
        (Some(example), _) => Check::wrong(
            "permissions",
            format!("this user may not delete in {forbidden} of {}, such as {}", count_of(directories), display_path(example)),
            "give this user permission to read, write and enter them (chmod u+rwx), mount the file system read-write, or run the service as their owner",
        ),
        (None, Some((example, error))) => Check::wrong(
            "permissions",
            format!("{unseen} of {} can't be checked, such as {}: {error}", count_of(directories), display_path(example)),
            if is_out_of_files(error) { MORE_FILES } else { "the log of the kernel (dmesg) may say why" },
        ),
        (None, None) => Check::ok("permissions", format!("this user may delete in {}", all_of(directories))),
    });
    checks.push(match partly_silent_file_system(dir) {
        Ok(None) => Check::ok("file system", "reports changes"),
        Err(error) => Check::wrong(
            "file system",
            format!("the system does not say which it is: {error}"),
            "the log of the kernel (dmesg) may say why",
        ),
        Ok(Some(name)) => Check::warning(
            "file system",
            format!("{name} does not report changes by other hosts"),
            "run the service on the host that writes the results, or lower --fallback-interval",
        ),
    });
    checks.push(check_watches(directories, too_long));
    check_probe_file(root, dir, checks);
}

/// Returns the number of directories in words.
fn count_of(directories: usize) -> String {
    if directories == 1 { "1 directory".to_owned() } else { format!("{directories} directories") }
}

fn all_of(directories: usize) -> String {
    if directories == 1 {
        "the directory".to_owned()
    } else {
        format!("all {directories} directories")
    }
}

fn check_watches(directories: usize, too_long: usize) -> Check {
    const CHECK: &str = "watches";
    let Some(limit) = inotify_limit("max_user_watches") else {
        return Check::warning(CHECK, "fs.inotify.max_user_watches can't be read", "mount /proc");
    };
    let found = format!("{}, fs.inotify.max_user_watches is {limit}", count_of(directories));
    let remedy = format!(
        "`sysctl fs.inotify.max_user_watches={}`",
        (directories * 4).next_power_of_two().max(1_048_576)
    );
    if directories >= limit {
        Check::wrong(CHECK, found, remedy)
    } else if directories > limit / 2 {
        Check::warning(CHECK, found, remedy)
    } else if too_long > 0 {
        Check::warning(
            CHECK,
            format!(
                "{too_long} of {} can't be watched: {}",
                count_of(directories),
                WatchError::PathTooLong
            ),
            "shorten these paths, or lower --fallback-interval, which is how often they are swept",
        )
    } else {
        Check::ok(CHECK, found)
    }
}

fn check_instances() -> Check {
    let limit = |name| inotify_limit(name).map_or("unknown".to_owned(), |limit| limit.to_string());
    let limits = format!(
        "fs.inotify.max_user_instances is {}, fs.inotify.max_queued_events is {}",
        limit("max_user_instances"),
        limit("max_queued_events")
    );
    Check::ok("inotify", limits)
}

fn check_probe_file(root: &Root, dir: &Dir, checks: &mut Vec<Check>) {
    const CHECK: &str = "canary";
    let name = probe_file_name(now_utc());
    let (made, is_reported) =
        match delivers_event(root.path(), &name, || ProbeFile::make(dir, &name), EVENT_PATIENCE) {
            Ok(reported) => reported,
            Err(refusal) => {
                let remedy = match refusal {
                    WatchError::TooManyWatches | WatchError::TooManyInstances => "raise that limit",
                    _ => "until then only sweeps find new results",
                };
                return checks.push(Check::wrong(
                    CHECK,
                    format!("the directory can't be watched: {refusal}"),
                    remedy,
                ));
            }
        };
    let mut probe_file = match made {
        Ok(probe_file) => probe_file,
        Err(error) => {
            let remedy = "make the directory writable, or free some space on the disk";
            return checks.push(Check::wrong(
                CHECK,
                format!("can't create a file in the directory: {error}"),
                remedy,
            ));
        }
    };
    checks.push(if is_reported {
        Check::ok(CHECK, "created a file, and the kernel reported it")
    } else {
        let found =
            format!("created a file, and the kernel did not report it within {EVENT_PATIENCE:?}");
        Check::warning(CHECK, found, "lower --fallback-interval: only sweeps find new results")
    });
    checks.push(match probe_file.claim() {
        Ok(()) => Check::ok("renaming", "files can be renamed to reserved names"),
        Err(error) => Check::warning(
            "renaming",
            format!("files can't be renamed to reserved names (RENAME_NOREPLACE): {error}"),
            "use another file system where several writers publish the same names over and over",
        ),
    });
    checks.push(check_clock(
        probe_file.made.and_then(|(s, ns)| DateTime::from_timestamp(s, ns)),
        now_utc(),
    ));
}

fn check_clock(made: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Check {
    const CHECK: &str = "clock";
    let synchronise = "have the clock synchronised (`timedatectl set-ntp true`)";
    if !(2025..2100).contains(&now.year()) {
        return Check::wrong(CHECK, format!("it is {now}, which can't be"), synchronise);
    }
    match made {
        Some(made) if (made - now).num_seconds().abs() > CLOCK_TOLERANCE => Check::wrong(
            CHECK,
            format!("the file system says that it is {made}, this machine {now}"),
            "synchronise both clocks: the cleaner learns which half of a result is newer from the file system's",
        ),
        _ => Check::ok(
            CHECK,
            format!("{}, as the file system has it", now.format("%Y-%m-%dT%H:%M:%SZ")),
        ),
    }
}

fn check_files() -> Check {
    const CHECK: &str = "open files";
    match open_file_limit() {
        Some(limit) if limit < MIN_OPEN_FILES => {
            Check::warning(CHECK, format!("at most {limit} may be open"), MORE_FILES)
        }
        limit => {
            Check::ok(CHECK, limit.map_or("no limit".to_owned(), |limit| format!("up to {limit}")))
        }
    }
}

/// Checks that the time zone is known, because an unknown one is silently treated as UTC.
fn check_time_zone(tz: Option<&str>) -> Check {
    const CHECK: &str = "time zone";
    let offset = now_utc().with_timezone(&Local).offset().to_string();
    let Some(tz) = tz.filter(|tz| !tz.is_empty()) else {
        return Check::ok(CHECK, format!("that of the system, {offset} now"));
    };
    let name = tz.strip_prefix(':').unwrap_or(tz);
    // A rule begins with its own name for the zone, in letters or brackets, and the offset follows.
    let offset_of_rule = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let is_rule = name.starts_with('<')
        || (name.len() - offset_of_rule.len() >= 3
            && offset_of_rule.starts_with(|c: char| c.is_ascii_digit() || "+-".contains(c)));
    let zones =
        ["/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo"];
    let is_known = zones.iter().any(|zones| is_zone(&Path::new(zones).join(name)));
    if is_rule || is_known || name == "UTC" {
        return Check::ok(CHECK, format!("TZ={tz}, {offset} now"));
    }
    Check::wrong(
        CHECK,
        format!("TZ={tz} is not a known time zone: expires_at without an offset is read as UTC"),
        "install the package tzdata, or correct TZ",
    )
}

/// Whether a file contains the rules of a time zone (RFC 9636).
fn is_zone(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"TZif"
}

#[cfg(feature = "report")]
async fn check_metrics(config: &Config) -> Check {
    use crate::telemetry::http_client::Service;
    const CHECK: &str = "metrics service";
    let Some(url) = &config.metrics_url else {
        return Check::ok(CHECK, "nothing is reported");
    };
    let service = match Service::new(url, Duration::from_secs(5)) {
        Ok(service) => service,
        Err(reason) => {
            let found = format!("{} {reason}", crate::config::redacted(url));
            return Check::wrong(CHECK, found, "correct --metrics-url");
        }
    };
    match service.probe().await {
        Ok(None) => Check::ok(CHECK, format!("{} answers", service.address)),
        Ok(Some(status)) => Check::warning(
            CHECK,
            format!("{} answers with an error: HTTP {status}", service.address),
            "look at its log, or correct --metrics-url; until then reports are buffered",
        ),
        Err(reason) => Check::warning(
            CHECK,
            format!("{} is unreachable: {reason}", service.address),
            "start it, correct --metrics-url, or use --no-metrics; until then reports are buffered",
        ),
    }
}

#[cfg(not(feature = "report"))]
async fn check_metrics(_: &Config) -> Check {
    Check::ok("metrics service", "nothing is reported")
}
