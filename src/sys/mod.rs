//! System services: clocks, the timer, the limit of open files, and the threads and runtimes of the
//! service.

pub(crate) mod clock;
pub(crate) mod descriptors;
pub(crate) mod runtime;
pub(crate) mod timer;
