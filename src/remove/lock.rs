//! The shared lock on a directory that a cleaner keeps while it has claims there.

use std::io;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::disk::root::{Dir, Lock};

/// The number of attempts at a lock that a recovery has for an instant, and the pause between them. On a busy
/// machine, the instant may be a tenth of a second and more.
const LOCK_TRIES: u32 = 250;
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Locks the directory against recoveries until its descriptor is closed. Returns false if the file system
/// does not support such locks: claims then can't be distinguished from those of a dead owner.
pub(super) fn lock_shared(dir: &Dir) -> io::Result<bool> {
    let tries = match dir.lock() {
        Lock::Shared => return Ok(true),
        Lock::None => LOCK_TRIES,
        // A program that keeps its lock for so long is no recovery, and the other pairs need not wait as long.
        Lock::HeldByOthers => 1,
    };
    for _ in 0..tries {
        match flock(dir, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                dir.note_lock(Lock::Shared);
                return Ok(true);
            }
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
            Err(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::BADF) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
    dir.note_lock(Lock::HeldByOthers);
    Err(io::Error::new(io::ErrorKind::WouldBlock, "another program has locked the directory"))
}
