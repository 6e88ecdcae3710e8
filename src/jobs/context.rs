//! What all blocking jobs share: clock, result store, throttle, sandbox, and whether they delete.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{getpriority_process, setpriority_process};

use crate::config::{Config, OrphanAges, ResultStore};
use crate::disk::root::{Dir, Root};
use crate::display::path_field;
use crate::jobs::throttle::Throttle;
use crate::pair::disk_budget::Budget;
use crate::pair::name::{Half, Stem};
use crate::remove::restore;
use crate::remove::sandbox;
use crate::sys::clock::Clock;
use crate::sys::runtime::on_own_thread;
use crate::watch::backpressure::Backpressure;

/// The niceness of a low-priority thread.
const NICE: i32 = 5;

type MovedAway = Arc<Mutex<Vec<(Arc<Dir>, Stem)>>>;

/// How the pairs of one cleaner are processed. Clones share the clock, the store and the limits.
#[derive(Clone)]
pub(crate) struct JobContext {
    clock: Arc<Clock>,
    store: Option<Arc<dyn ResultStore>>,
    /// Whether it deletes, or only inspects.
    deletes: bool,
    /// Whether it also reports the sizes of pairs that are not due.
    reports_sizes: bool,
    throttle: Arc<Throttle>,
    backpressure: Arc<Backpressure>,
    orphan_ages: OrphanAges,
    budget: Option<Budget>,
    /// Whether it works on threads that are confined to the cache directory.
    confined: bool,
    /// Pairs that were moved out of the cache directory while they were being deleted.
    moved_away: MovedAway,
}

impl JobContext {
    /// A context that deletes expired results.
    pub(crate) fn deleting(clock: Arc<Clock>, config: &Config) -> Self {
        let store = config.result_store.clone();
        Self {
            clock,
            store,
            deletes: true,
            reports_sizes: false,
            throttle: Arc::new(Throttle::new(config.max_disk_time)),
            backpressure: Arc::default(),
            orphan_ages: config.orphan_ages(),
            budget: config.budget(),
            confined: config.sandbox,
            moved_away: Arc::default(),
        }
    }

    /// The context of a service: a dry run only inspects, and removes no orphans.
    pub(crate) fn of_service(clock: Arc<Clock>, config: &Config) -> Self {
        let context = Self::deleting(clock, config);
        if config.dry_run {
            Self { orphan_ages: OrphanAges::default(), ..context.inspect_only() }
        } else {
            context
        }
    }

    /// A context that only inspects.
    pub(crate) fn inspecting(clock: Arc<Clock>, config: &Config) -> Self {
        Self::deleting(clock, config).inspect_only()
    }

    /// The same context, but it only inspects.
    pub(crate) fn inspect_only(&self) -> Self {
        Self { deletes: false, store: None, confined: false, ..self.clone() }
    }

    /// A context that only inspects, but inspects each file.
    pub(crate) fn listing(clock: Arc<Clock>, config: &Config) -> Self {
        let orphan_ages = OrphanAges::default();
        Self { reports_sizes: true, orphan_ages, ..Self::inspecting(clock, config) }
    }

    /// The same, and scans note the directories that may have orphans of any age.
    pub(crate) fn listing_orphans(clock: Arc<Clock>, config: &Config) -> Self {
        let orphan_ages = OrphanAges { orphans: Some(Duration::ZERO), empty_dirs: None };
        Self { orphan_ages, ..Self::listing(clock, config) }
    }

    /// Runs `work` in `root`, which may delete: on a confined thread if the sandbox is on, and on a thread with a
    /// low priority if it is `low_priority`.
    pub(crate) fn run<T: Send>(
        &self,
        root: &Root,
        low_priority: bool,
        work: impl FnOnce() -> T + Send,
    ) -> T {
        let prepare = || {
            if low_priority {
                lower_priority();
            }
            self.confine(root);
        };
        let done =
            if low_priority || self.confined { on_own_thread(prepare, work) } else { work() };
        self.restore_moved_away();
        done
    }

    /// Runs `work`, which only reads by itself, on a thread with a low priority, as are all threads that it
    /// starts. It is not confined, because each file would then cost a tenth more to open.
    pub(crate) fn run_reading<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_own_thread(lower_priority, work)
    }

    /// Confines this thread, and all that it starts, to `root` if the sandbox is on.
    pub(crate) fn confine(&self, root: &Root) {
        if self.confined {
            sandbox::enter(root, self.orphan_ages.empty_dirs.is_some());
        }
    }

    /// Restores claimed pairs in directories that were moved out of the cache directory. A confined thread
    /// can't do that.
    pub(crate) fn restore_moved_away(&self) {
        for (dir, stem) in std::mem::take(&mut *self.moved_away()) {
            restore(&dir, &stem);
        }
    }

    fn moved_away(&self) -> MutexGuard<'_, Vec<(Arc<Dir>, Stem)>> {
        self.moved_away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it deletes, or only inspects.
    pub(crate) fn deletes(&self) -> bool {
        self.deletes
    }

    /// Whether it also reports the sizes of pairs that are not due.
    pub(crate) fn reports_sizes(&self) -> bool {
        self.reports_sizes
    }

    /// The disk budget, if there is one. Sizes on disk are reported only with one.
    pub(crate) fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    /// The limit on the time that is spent on files.
    pub(crate) fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// The same context, but deletions wait for `backpressure`.
    pub(crate) fn paced_by(self, backpressure: &Arc<Backpressure>) -> Self {
        Self { backpressure: Arc::clone(backpressure), ..self }
    }

    /// Counts the kernel's events of deletions.
    pub(crate) fn backpressure(&self) -> &Backpressure {
        &self.backpressure
    }

    /// How old orphans and empty directories have to be before they are removed; `None` where they are kept.
    pub(crate) fn orphan_ages(&self) -> OrphanAges {
        self.orphan_ages
    }

    /// Records a pair that was moved out of the cache directory while it was being deleted.
    pub(crate) fn note_moved_away(&self, dir: &Arc<Dir>, stem: &Stem) {
        self.moved_away().push((Arc::clone(dir), stem.clone()));
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Reports to the result store, if there is one, that a result was removed.
    pub(crate) fn report_removed(&self, root: &Root, rel: &Path, stem: &Stem) {
        if let Some(store) = &self.store {
            let path = result_path(root, rel, stem);
            if catch_unwind(AssertUnwindSafe(|| store.removed(&path))).is_err() {
                tracing::error!(path = path_field(&path), "the result store panicked in `removed`");
            }
        }
    }
}

/// Lowers the priority of this thread, and of all threads that it starts, for as long as it lives.
///
/// Beside one other program, the kernel gives it a third of the processor time that it would have otherwise.
/// I/O schedulers that know priorities serve its requests after those of others.
fn lower_priority() {
    // If the system refuses, or the priority is low already, the thread goes on unchanged.
    if getpriority_process(None).is_ok_and(|nice| nice < NICE) {
        let _ = setpriority_process(None, NICE);
    }
}

pub(crate) fn result_path(root: &Root, rel: &Path, stem: &Stem) -> PathBuf {
    let name = stem.name(Half::Result);
    root.path().join(rel).join(OsStr::from_bytes(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_of_bulky_work_gives_way() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path()).unwrap().unwrap();
        let context = JobContext::deleting(Arc::new(Clock::default()), &Config::new("x"));
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        assert_eq!(context.run(&root, true, nice), before.max(NICE));
        assert_eq!(context.run(&root, false, nice), before);
        assert_eq!(nice(), before);
    }
}
