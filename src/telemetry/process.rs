//! What this process takes of the machine. The only module that names procfs.
//!
//! Under /proc, this reads the files of the process alone, because a service manager may hide all others.

use chrono::{DateTime, TimeDelta, Utc};
use procfs::process::Process;

use crate::sys::clock::boot_time;
use crate::sys::descriptors::open_file_limit;

/// The usage of one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessUsage {
    /// Processor time in seconds.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub threads: i64,
    pub open_files: usize,
    /// `None` if the number is not limited.
    pub max_open_files: Option<u64>,
}

impl ProcessUsage {
    /// Reads the usage; `None` if /proc can't be read. Takes some 0.1 ms.
    pub(super) fn read() -> Option<Self> {
        let process = Process::myself().ok()?;
        let stat = process.stat().ok()?;
        Some(Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
            resident_bytes: stat.rss * procfs::page_size(),
            virtual_bytes: stat.vsize,
            threads: stat.num_threads,
            open_files: process.fd_count().ok()?,
            max_open_files: open_file_limit(),
        })
    }
}

/// Returns when this process was started, by the present wall clock.
pub(super) fn started_at() -> Option<DateTime<Utc>> {
    let ticks = Process::myself().and_then(|process| process.stat()).ok()?.starttime;
    let after_boot = i64::try_from(ticks * 1000 / procfs::ticks_per_second()).ok()?;
    Some(boot_time() + TimeDelta::milliseconds(after_boot))
}
