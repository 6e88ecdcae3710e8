//! Wall time, processor time and context switches of a work.

use std::error::Error;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;

use crate::measure::Outcome;

/// Whose usage the kernel reports.
#[derive(Debug, Clone, Copy)]
pub enum Who {
    /// All threads of this process, also those that have ended.
    Process,
    /// The same without the calling thread, which only waits and polls.
    OtherThreads,
    /// The child processes that have ended.
    Children,
}

/// What a work has used of the processors. The kernel measures the sum of both times, and samples at
/// each tick how it divides: the parts of a work that takes some milliseconds say little.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub user: Duration,
    pub system: Duration,
    /// Context switches of threads that waited for something.
    pub voluntary: u64,
    /// Context switches of threads that had to give way to others.
    pub involuntary: u64,
}

/// What a work costs.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub wall: Duration,
    pub usage: Usage,
}

impl Usage {
    /// All that `who` has used so far.
    pub fn of(who: Who) -> Outcome<Self> {
        Ok(match who {
            Who::Process => Self::reported(UsageWho::RUSAGE_SELF)?,
            Who::OtherThreads => Self::reported(UsageWho::RUSAGE_SELF)?
                .since(Self::reported(UsageWho::RUSAGE_THREAD)?),
            Who::Children => Self::reported(UsageWho::RUSAGE_CHILDREN)?,
        })
    }

    fn reported(who: UsageWho) -> Outcome<Self> {
        let usage = getrusage(who)?;
        let time = |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs());
        Ok(Self {
            user: time(usage.user_time()),
            system: time(usage.system_time()),
            voluntary: usage.voluntary_context_switches().unsigned_abs(),
            involuntary: usage.involuntary_context_switches().unsigned_abs(),
        })
    }

    /// The part that was used after `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
            voluntary: self.voluntary.saturating_sub(before.voluntary),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
        }
    }

    pub fn cpu(self) -> Duration {
        self.user + self.system
    }
}

/// What `work` costs, which has to come out well. With [`Who::Children`] it includes the processes
/// that `work` starts and waits for.
pub fn charged<T, E: Into<Box<dyn Error>>>(
    who: Who,
    work: impl FnOnce() -> Result<T, E>,
) -> Outcome<(Cost, T)> {
    let before = Usage::of(who)?;
    let start = Instant::now();
    let outcome = work();
    let wall = start.elapsed();
    let usage = Usage::of(who)?.since(before);
    Ok((Cost { wall, usage }, outcome.map_err(Into::into)?))
}

/// Does `work` on one core. The threads and processes that it starts inherit that.
pub fn on_one_core(work: impl FnOnce() -> Outcome) -> Outcome {
    let this_thread = Pid::from_raw(0);
    let all = sched_getaffinity(this_thread)?;
    let is_allowed = |core: &usize| all.is_set(*core) == Ok(true);
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(is_allowed).ok_or("no core is allowed")?)?;
    sched_setaffinity(this_thread, &one)?;
    let outcome = work();
    sched_setaffinity(this_thread, &all)?;
    outcome
}
