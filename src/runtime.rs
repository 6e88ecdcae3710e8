//! The tokio runtime: whether it has what is needed, and what became of its tasks. tokio tells of a missing driver only by panicking,
//! there is no way to ask.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::error::Error;

/// The runtime that this is called in.
pub(crate) fn current() -> Result<Handle, Error> {
    Handle::try_current().map_err(|_| Error::NoRuntime)
}

/// Makes sure that the current runtime has timers.
pub(crate) fn require_timer() -> Result<(), Error> {
    let missing = panics(|| drop(tokio::time::sleep(Duration::ZERO)));
    if missing { Err(Error::NoDriver { driver: "time" }) } else { Ok(()) }
}

/// Makes sure that the current runtime has sockets.
#[cfg(feature = "report")]
pub(crate) fn require_sockets() -> Result<(), Error> {
    // The least that registers with the driver. That the socket can't be made says nothing.
    let missing = panics(|| drop(tokio::net::UnixDatagram::unbound()));
    if missing { Err(Error::NoDriver { driver: "io" }) } else { Ok(()) }
}

/// Whether `probe` panics. The panic is not printed.
fn panics(probe: impl FnOnce()) -> bool {
    thread_local! {
        static PROBING: Cell<bool> = const { Cell::new(false) };
    }
    static FILTER: Once = Once::new();
    // Stays for good, since taking it out again could undo what others have set meanwhile.
    FILTER.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !PROBING.get() {
                previous(info);
            }
        }));
    });
    PROBING.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(probe));
    PROBING.set(false);
    outcome.is_err()
}

/// The message of a caught panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
