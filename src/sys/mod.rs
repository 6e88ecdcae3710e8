//! What the system provides: clocks, the timer, and the threads and runtimes that run the rest.

pub(crate) mod clock;
pub(crate) mod descriptors;
pub(crate) mod runtime;
pub(crate) mod timer;
