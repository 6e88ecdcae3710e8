//! The errors of the engine as the exceptions that a Python user expects.

use std::io;

use pyo3::PyErr;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use result_cleaner::Error;
use rustix::io::Errno;

pub(crate) fn exception(error: Error) -> PyErr {
    match error {
        // Python makes the subclass that belongs to the number.
        Error::NotADirectory { path } => PyOSError::new_err((
            Errno::NOTDIR.raw_os_error(),
            "Not a directory",
            path.into_os_string(),
        )),
        Error::Unreadable { path, source } => {
            let number = source.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            PyOSError::new_err((number, without_number(&source), path.into_os_string()))
        }
        Error::TooShort { .. } | Error::Limit { .. } | Error::MetricsUrl { .. } => {
            PyValueError::new_err(error.to_string())
        }
        other => PyRuntimeError::new_err(other.to_string()),
    }
}

/// Returns the text of `error` as Python has it, without the number.
fn without_number(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(text, _)| text.to_owned())
}
