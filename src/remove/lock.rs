//! The shared lock on a directory that a cleaner keeps while it has claims there.

use std::io;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::disk::root::{Dir, LockState};

/// How long to wait for a lock that a recovery has for an instant, and the pause between two attempts. On a busy
/// machine, the instant may be a tenth of a second and more.
const MAX_WAIT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(2);

/// How long a thread may still wait for locks. Directories that another program keeps locked cost it [`MAX_WAIT`]
/// together, however many there are: the pairs of other directories wait meanwhile.
#[derive(Debug)]
pub(crate) struct LockPatience(Duration);

impl Default for LockPatience {
    fn default() -> Self {
        Self(MAX_WAIT)
    }
}

/// Locks the directory against recoveries until its descriptor is closed. Returns false if the file system
/// does not support such locks: claims then can't be distinguished from those of a dead owner.
pub(super) fn lock_shared(dir: &Dir, patience: &mut LockPatience) -> io::Result<bool> {
    if dir.lock_state() == LockState::Shared {
        return Ok(true);
    }
    let left = patience.0;
    loop {
        match flock(dir, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                dir.set_lock_state(LockState::Shared);
                // Only locks that are never released use it up.
                patience.0 = left;
                return Ok(true);
            }
            Err(Errno::INTR) => {}
            // A program that keeps its lock for so long is no recovery, and the other pairs need not wait as long.
            Err(Errno::WOULDBLOCK)
                if dir.lock_state() == LockState::HeldByOthers || patience.0.is_zero() =>
            {
                break;
            }
            Err(Errno::WOULDBLOCK) => {
                thread::sleep(PAUSE);
                patience.0 = patience.0.saturating_sub(PAUSE);
            }
            Err(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::BADF) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
    dir.set_lock_state(LockState::HeldByOthers);
    Err(io::Error::new(io::ErrorKind::WouldBlock, "another program has locked the directory"))
}
