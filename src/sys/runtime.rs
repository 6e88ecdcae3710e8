//! The tokio runtime: checks that it has the drivers that the cleaner needs, and the results of its
//! tasks. tokio has no function that checks for a driver: it panics if one is missing.

use std::panic::{self, AssertUnwindSafe, resume_unwind};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinError;

use crate::error::Error;

/// Returns the runtime in which this function is called.
///
/// # Errors
/// [`Error::NoRuntime`] if there is none.
pub(crate) fn current() -> Result<Handle, Error> {
    Handle::try_current().map_err(|_| Error::NoRuntime)
}

/// Checks that the current runtime has timers.
pub(crate) fn require_timer() -> Result<(), Error> {
    let missing = panics(|| drop(tokio::time::sleep(Duration::ZERO)));
    if missing { Err(Error::NoDriver { driver: "time" }) } else { Ok(()) }
}

/// Checks that there is a runtime with timers and sockets.
#[cfg(any(feature = "report", feature = "server"))]
pub(crate) fn require_sockets() -> Result<(), Error> {
    current()?;
    require_timer()?;
    if has_io() { Ok(()) } else { Err(Error::NoDriver { driver: "io" }) }
}

/// Returns whether the current runtime can wait for sockets and similar descriptors.
pub(crate) fn has_io() -> bool {
    // This is the smallest operation that registers with the driver. If the system can't create the
    // socket, this proves nothing about the driver.
    !panics(|| drop(tokio::net::UnixDatagram::unbound()))
}

/// Returns whether `probe` panics. The process's panic hook prints the panic: a library does not replace
/// the hook of the program that embeds it.
fn panics(probe: impl FnOnce()) -> bool {
    panic::catch_unwind(AssertUnwindSafe(probe)).is_err()
}

/// Runs `work` on a thread of its own, after `prepare` on the same thread, and returns its result. If
/// the system can't start a thread, `work` runs on the calling thread, without `prepare`.
///
/// # Panics
/// If `work` panics.
pub(crate) fn on_own_thread<T: Send>(
    prepare: impl FnOnce() + Send,
    work: impl FnOnce() -> T + Send,
) -> T {
    let mut work = Some(work);
    let done = thread::scope(|scope| {
        let run = || {
            prepare();
            work.take().map(|work| work())
        };
        match thread::Builder::new().spawn_scoped(scope, run) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => None,
        }
    });
    match (done, work) {
        (Some(done), _) => done,
        (None, Some(work)) => work(),
        (None, None) => unreachable!("what was taken has run"),
    }
}

/// Returns the result of a task that ran on a thread that may block.
///
/// # Errors
/// [`Error::Died`] if the task panicked or the runtime was shut down.
pub(crate) fn joined<T>(task: Result<Result<T, Error>, JoinError>) -> Result<T, Error> {
    task.unwrap_or_else(|error| {
        let message = error.try_into_panic().map_or_else(
            |_| "the runtime was shut down".to_owned(),
            |panic| panic_message(panic.as_ref()),
        );
        Err(Error::Died { message })
    })
}

/// Returns the message of a caught panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_on_its_own_thread_comes_back_and_so_does_its_panic() {
        assert_eq!(on_own_thread(|| (), || 7), 7);
        let work = || on_own_thread(|| (), || panic!("on purpose"));
        assert!(panic::catch_unwind(AssertUnwindSafe(work)).is_err());
    }
}
