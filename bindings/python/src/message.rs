//! The messages of a mailbox, and how Python gets them: as tuples that begin with the kind.

use std::path::PathBuf;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use result_cleaner::{Error, Event};

use crate::errors::exception;
use crate::hub::RequestId;
use crate::log::LogLine;

/// What the engine has to say to Python.
#[derive(Debug)]
pub(crate) enum Message {
    /// The answer to a request.
    Reply(RequestId, Result<String, Error>),
    /// A result was removed.
    Removed(PathBuf),
    /// An event for a subscriber.
    Event(Event),
    /// So many paths or events were dropped at this point, because nobody took them in time.
    Dropped(u64),
    /// The cleaner has ended; the error says why, if it has ended by itself.
    Closed(Option<Error>),
}

impl Message {
    /// Whether the message may be dropped if too many wait.
    pub(crate) fn is_bulk(&self) -> bool {
        matches!(self, Self::Removed(_) | Self::Event(_))
    }

    pub(crate) fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Self::Reply(request, Ok(answer)) => {
                ("reply", request, answer, py.None()).into_py_any(py)
            }
            Self::Reply(request, Err(error)) => {
                ("reply", request, py.None(), exception(error)).into_py_any(py)
            }
            Self::Removed(path) => ("removed", path).into_py_any(py),
            Self::Event(event) => event_tuple(py, event),
            Self::Dropped(count) => ("dropped", count).into_py_any(py),
            Self::Closed(error) => ("closed", error.map(exception)).into_py_any(py),
        }
    }
}

fn event_tuple(py: Python<'_>, event: Event) -> PyResult<Py<PyAny>> {
    match event {
        Event::Deleted { result, freed_bytes, late } => {
            ("deleted", result, freed_bytes, late.as_secs_f64()).into_py_any(py)
        }
        Event::Evicted { result, freed_bytes, expires_at } => {
            let expires_at = expires_at.timestamp_micros() as f64 / 1e6;
            ("evicted", result, freed_bytes, expires_at).into_py_any(py)
        }
        Event::Skipped { path, reason } => ("skipped", path, reason.to_string()).into_py_any(py),
        Event::SweepDone(report) => ("swept", json(&report)).into_py_any(py),
        Event::Lagged(count) => ("dropped", count).into_py_any(py),
        other => ("other", format!("{other:?}")).into_py_any(py),
    }
}

pub(crate) fn log_line(py: Python<'_>, line: LogLine) -> PyResult<Py<PyAny>> {
    ("log", line.level, line.text).into_py_any(py)
}

/// Returns `value` as JSON, in the form that the service uses.
pub(crate) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
