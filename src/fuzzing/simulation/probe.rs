//! The simulated probe of the cache directory.

use super::disk::{Disk, RootIs};
use crate::pair::change::WatchError;

/// What a probe has found.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Probed {
    Unchanged,
    Absent,
    Unreadable,
    /// A directory, and its watcher or the reason why there is none.
    Open(u64, Result<u64, WatchError>),
}

/// Whether the directory is known, and has a watcher. A new watcher is required if nothing is known.
pub(super) struct Probe {
    pub known: Option<(u64, bool)>,
}

impl Probe {
    pub(super) fn run(&self, disk: &mut Disk) -> Probed {
        match disk.root {
            RootIs::Absent => return Probed::Absent,
            RootIs::Unreadable => return Probed::Unreadable,
            RootIs::There => {}
        }
        let known = self.known.filter(|(epoch, _)| *epoch == disk.epoch);
        if let Some((_, true)) = known {
            return Probed::Unchanged;
        }
        if disk.refuses_instances {
            return match known {
                Some(_) => Probed::Unchanged,
                None => Probed::Open(disk.epoch, Err(WatchError::TooManyInstances)),
            };
        }
        disk.watchers += 1;
        Probed::Open(disk.epoch, Ok(disk.watchers))
    }
}
