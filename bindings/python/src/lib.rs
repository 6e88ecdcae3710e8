//! The native part of the Python package `result_cleaner`: the engine behind a mailbox.
//!
//! One thread per process runs the cleaners, and it and its helpers never attach to the interpreter.
//! What they have to say waits in a mailbox. Its file descriptor becomes readable, the event loop wakes,
//! and Python takes a bounded number of messages. Python objects hold numbers that name mailboxes and
//! cleaners, and never the engine's own objects, so that a forked child has nothing of its parent's to
//! drop.

mod engine;
mod errors;
mod hub;
mod log;
mod message;

use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::{PyImportError, PyOSError, PyValueError};
use pyo3::prelude::*;
use result_cleaner::text::parse_size;
use result_cleaner::{Config, MinFree};

use crate::engine::RemovedPaths;
use crate::hub::{CleanerId, MailboxId, RequestId};

/// The settings of a cleaner, read from the attributes of a Python object.
#[derive(FromPyObject)]
struct Settings {
    cache_dir: PathBuf,
    check_interval: f64,
    metrics_url: Option<String>,
    /// Whether the mailbox gets the path of each removed result.
    report_removed: bool,
    max_size: Option<String>,
    min_free: Option<String>,
    evict_min_age: f64,
}

impl Settings {
    fn config(self, mailbox: MailboxId) -> PyResult<Config> {
        let interval = Duration::try_from_secs_f64(self.check_interval)
            .map_err(|error| PyValueError::new_err(format!("check_interval: {error}")))?;
        let mut config = Config::new(self.cache_dir).with_check_interval(interval);
        config.metrics_url = self.metrics_url;
        let evict_min_age = Duration::try_from_secs_f64(self.evict_min_age)
            .map_err(|error| PyValueError::new_err(format!("evict_min_age: {error}")))?;
        config = config.with_evict_min_age(evict_min_age);
        (config.max_size, config.min_free) = budget(self.max_size, self.min_free)?;
        if self.report_removed {
            config = config.with_result_store(RemovedPaths(mailbox));
        }
        Ok(config)
    }
}

/// Reads the limits of a disk budget.
fn budget(
    max_size: Option<String>,
    min_free: Option<String>,
) -> PyResult<(Option<u64>, Option<MinFree>)> {
    let wrong = |setting| move |reason| PyValueError::new_err(format!("{setting}: {reason}"));
    let max_size = max_size.map(|size| parse_size(&size)).transpose();
    let min_free = min_free.map(|size| size.parse::<MinFree>()).transpose();
    Ok((max_size.map_err(wrong("max_size"))?, min_free.map_err(wrong("min_free"))?))
}

/// Checks that the limits of a disk budget make sense.
#[pyfunction]
fn check_budget(max_size: Option<String>, min_free: Option<String>) -> PyResult<()> {
    budget(max_size, min_free).map(drop)
}

/// Returns the number of a new mailbox, and the descriptor that is readable while it has messages.
#[pyfunction]
fn open_mailbox(py: Python<'_>) -> PyResult<(MailboxId, i32)> {
    hub::with(py, |hub| hub.open_mailbox()).map_err(|errno| {
        let error = std::io::Error::from(errno);
        PyOSError::new_err((errno.raw_os_error(), error.to_string()))
    })
}

/// Takes at most `limit` log lines and `limit` messages.
#[pyfunction]
fn take(py: Python<'_>, mailbox: MailboxId, limit: usize) -> PyResult<Vec<Py<PyAny>>> {
    let (lines, messages) = hub::with(py, |hub| hub.take(mailbox, limit));
    let lines = lines.into_iter().map(|line| message::log_line(py, line));
    lines.chain(messages.into_iter().map(|message| message.into_python(py))).collect()
}

/// Closes a mailbox and its descriptor. Messages that still wait, or come later, are dropped.
#[pyfunction]
fn close_mailbox(py: Python<'_>, mailbox: MailboxId) {
    hub::with(py, |hub| hub.close_mailbox(mailbox));
}

/// Starts a cleaner and returns its number. The answer says whether it could start.
#[pyfunction]
fn start(
    py: Python<'_>,
    settings: Settings,
    mailbox: MailboxId,
    request: RequestId,
) -> PyResult<CleanerId> {
    let config = settings.config(mailbox)?;
    Ok(hub::with(py, |hub| engine::start(hub, config, mailbox, request))?)
}

/// Makes a full sweep by a running cleaner; the answer is its report as JSON.
#[pyfunction]
fn sweep(
    py: Python<'_>,
    cleaner: CleanerId,
    mailbox: MailboxId,
    request: RequestId,
) -> PyResult<()> {
    Ok(hub::with(py, |hub| engine::sweep(hub, cleaner, mailbox, request))?)
}

/// Makes a full sweep without a running cleaner; the answer is its report as JSON.
#[pyfunction]
fn sweep_once(
    py: Python<'_>,
    settings: Settings,
    mailbox: MailboxId,
    request: RequestId,
) -> PyResult<()> {
    let config = settings.config(mailbox)?;
    Ok(hub::with(py, |hub| engine::sweep_once(hub, config, mailbox, request))?)
}

/// Stops a cleaner. The answer comes once it has ended; without a request nothing answers.
#[pyfunction]
#[pyo3(signature = (cleaner, mailbox=None, request=None))]
fn stop(
    py: Python<'_>,
    cleaner: CleanerId,
    mailbox: Option<MailboxId>,
    request: Option<RequestId>,
) {
    hub::with(py, |hub| engine::stop(hub, cleaner, mailbox.zip(request)));
}

/// Sends the events of a cleaner from now on to a mailbox, and `closed` after the last one.
#[pyfunction]
fn subscribe(py: Python<'_>, cleaner: CleanerId, mailbox: MailboxId) -> PyResult<()> {
    Ok(hub::with(py, |hub| engine::subscribe(hub, cleaner, mailbox))?)
}

/// Returns the stats of a cleaner as JSON, also after its end; `None` until it has started.
#[pyfunction]
fn stats(py: Python<'_>, cleaner: CleanerId) -> Option<String> {
    let handle = hub::with(py, |hub| hub.handle(cleaner));
    handle.map(|handle| message::json(&handle.stats()))
}

/// Forgets a cleaner, and stops it if it still runs.
#[pyfunction]
fn release(py: Python<'_>, cleaner: CleanerId) {
    let released = hub::with(py, |hub| hub.release(cleaner));
    drop(released);
}

/// Logs lines of this level of Python's `logging` and above from now on.
#[pyfunction]
fn set_log_level(level: u8) {
    log::set_level(level);
}

/// Stops all cleaners, and waits for them at most so many seconds.
#[pyfunction]
fn shutdown(py: Python<'_>, timeout: f64) {
    let ends = hub::with(py, engine::stop_all);
    let timeout = Duration::try_from_secs_f64(timeout).unwrap_or_default();
    py.detach(|| engine::wait_for_all(ends, timeout));
}

/// Holds the lock of everything that the engine's threads share with Python, until the fork is over.
#[pyfunction]
fn before_fork(py: Python<'_>) {
    hub::hold(py);
}

/// Continues in the parent.
#[pyfunction]
fn after_fork_in_parent() {
    drop(hub::held());
}

/// Forgets all that belongs to the parent: its engine has no threads here.
#[pyfunction]
fn after_fork_in_child() {
    if let Some(mut hub) = hub::held() {
        hub.forget_parent();
    }
}

/// The native part of result_cleaner. Use the package `result_cleaner` instead.
#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // PyO3 alone refuses the second interpreter of a process, whichever that is, and not in each version.
    if !is_main_interpreter() {
        return Err(PyImportError::new_err("result_cleaner can't be used in a subinterpreter"));
    }
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(check_budget, module)?)?;
    module.add_function(wrap_pyfunction!(open_mailbox, module)?)?;
    module.add_function(wrap_pyfunction!(take, module)?)?;
    module.add_function(wrap_pyfunction!(close_mailbox, module)?)?;
    module.add_function(wrap_pyfunction!(start, module)?)?;
    module.add_function(wrap_pyfunction!(sweep, module)?)?;
    module.add_function(wrap_pyfunction!(sweep_once, module)?)?;
    module.add_function(wrap_pyfunction!(stop, module)?)?;
    module.add_function(wrap_pyfunction!(subscribe, module)?)?;
    module.add_function(wrap_pyfunction!(stats, module)?)?;
    module.add_function(wrap_pyfunction!(release, module)?)?;
    module.add_function(wrap_pyfunction!(set_log_level, module)?)?;
    module.add_function(wrap_pyfunction!(shutdown, module)?)?;
    module.add_function(wrap_pyfunction!(before_fork, module)?)?;
    module.add_function(wrap_pyfunction!(after_fork_in_parent, module)?)?;
    module.add_function(wrap_pyfunction!(after_fork_in_child, module)?)
}

#[expect(unsafe_code, reason = "PyO3 has no safe function for this")]
fn is_main_interpreter() -> bool {
    // SAFETY: a module is initialized by a thread that is attached to the interpreter.
    let id = unsafe { pyo3::ffi::PyInterpreterState_GetID(pyo3::ffi::PyInterpreterState_Get()) };
    id == 0
}
