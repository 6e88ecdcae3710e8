//! Waiting for a moment, to within some tenths of a millisecond.
//!
//! tokio's timers are up to a millisecond late, and wake their thread twice for a wait of more than 64
//! milliseconds. A kernel timer does neither.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::runtime::has_io;

/// A kernel timer, or tokio's timer if no kernel timer is available.
#[derive(Debug)]
pub(crate) struct Timer(Option<AsyncFd<OwnedFd>>);

impl Timer {
    /// Returns a timer for the current runtime, which requires tokio's timers.
    pub(crate) fn new() -> Self {
        if !has_io() {
            return Self(None);
        }
        let timer = kernel_timer();
        if let Err(error) = &timer {
            tracing::debug!(reason = error.to_string(), "no kernel timer available, using tokio's");
        }
        Self(timer.ok())
    }

    /// Waits until `at`.
    pub(crate) async fn until(&self, at: Instant) {
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return tokio::task::yield_now().await;
        }
        if let Some(fd) = &self.0
            && wait(fd, left).await.is_ok()
        {
            return;
        }
        tokio::time::sleep_until(at.into()).await;
    }
}

#[expect(
    deprecated,
    reason = "it is unsound for what gives away its descriptor, which an OwnedFd does not; what \
              replaces it is unsafe"
)]
fn kernel_timer() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    AsyncFd::with_interest(fd, Interest::READABLE)
}

async fn wait(fd: &AsyncFd<OwnedFd>, left: Duration) -> io::Result<()> {
    let it_value = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    let once = Itimerspec { it_interval: Timespec::default(), it_value };
    timerfd_settime(fd, TimerfdTimerFlags::empty(), &once)?;
    loop {
        let mut ready = fd.readable().await?;
        let read = |fd: &AsyncFd<OwnedFd>| Ok(rustix::io::read(fd, &mut [0; 8])?);
        // The descriptor may be ready because an earlier wait ended; setting the timer has cancelled
        // that.
        if let Ok(done) = ready.try_io(read) {
            return done.map(drop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_waits_as_long_as_requested_and_can_be_given_up() {
        let timer = Timer::new();
        assert!(timer.0.is_some());
        for wait in [Duration::from_millis(30), Duration::ZERO, Duration::from_millis(5)] {
            let given_up = timer.until(Instant::now() + Duration::from_micros(300));
            tokio::select! { biased; () = tokio::task::yield_now() => {}, () = given_up => {} }
            let at = Instant::now() + wait;
            timer.until(at).await;
            assert!(Instant::now() >= at);
        }
    }

    #[test]
    fn tokios_timer_does_where_there_is_no_io() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let timer = Timer::new();
            assert!(timer.0.is_none());
            let at = Instant::now() + Duration::from_millis(3);
            timer.until(at).await;
            assert!(Instant::now() >= at);
        });
    }
}
