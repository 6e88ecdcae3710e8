//! Round after round, by chance, of what has one running service lose events: queues that
//! overflow, directories that are removed, replaced, renamed, mounted over or made unreadable, and
//! limits. After each, heap and disk are equal, and what appears is known by events; in the end
//! the service holds and does no more than at first.
//!
//! `TEST_RESULT_CLEANER_LONG` makes 100 rounds; `TEST_RESULT_CLEANER_ROUNDS` as many as it says.
//! Without root and namespaces, what needs them is left out.

use std::cell::Cell;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::{
    CacheDir, Mounted, Pair, Random, Service, extent, figure, now, seed, unprivileged_run_by,
    wait_until,
};
use rustix::fs::{CWD, Mode, RenameFlags, renameat_with};

const HOUR: f64 = 3600.0;
/// Long expired.
const LONG_AGO: f64 = 1.5;
/// The directories that are there after each round, others may be.
const DIRS: [&str; 5] = ["", "a", "a/deep", "b", "b/deep"];
/// In a user namespace of its own, so that limits bind it alone, and without its privileges.
const IN_NAMESPACE: [&str; 5] =
    ["unshare", "-Ur", "setpriv", "--bounding-set=-all", "--inh-caps=-all"];
const NO_LIMIT: u64 = 1_000_000;

struct Field {
    cache: CacheDir,
    service: Service,
    random: Random,
    /// Numbers pairs and directories, so that no name comes twice.
    serial: Cell<u32>,
    /// Whether its limits can be set.
    has_limits: bool,
    /// How long it took to take up a directory that came into the cache directory's place.
    taken_up: Vec<Duration>,
}

/// What may happen to a service, and how often.
type Disturbance = (&'static str, fn(&mut Field));

const DISTURBANCES: [Disturbance; 9] = [
    ("scramble", Field::scramble),
    ("overflow", Field::overflow),
    ("remove", Field::remove),
    ("replace", Field::replace),
    ("away for an instant", Field::away_for_an_instant),
    ("parent away for an instant", Field::parent_away_for_an_instant),
    ("mount", Field::mount),
    ("unreadable", Field::unreadable),
    ("limit", Field::limit),
];

impl Field {
    fn start() -> Option<Self> {
        // Whoever the service runs as may delete what this test makes.
        rustix::process::umask(Mode::empty());
        let random = Random(seed());
        let cache = CacheDir::new();
        let args = ["--fallback-interval", "1s"];
        let trial = std::process::Command::new(IN_NAMESPACE[0])
            .args(&IN_NAMESPACE[1..])
            .arg("true")
            .status();
        let has_namespace = trial.is_ok_and(|status| status.success());
        let wrapper: &[&str] = if has_namespace { &IN_NAMESPACE } else { &[] };
        let (command, url) = unprivileged_run_by(&cache, wrapper, &args)?;
        let service = Service::spawn(command, &url);
        let has_limits = has_namespace && service.set_limit("max_inotify_watches", NO_LIMIT);
        if !has_limits {
            eprintln!("skipped: limits can't be set for a user namespace here");
        }
        fs::set_permissions(cache.path(), Permissions::from_mode(0o777)).unwrap();
        let mut field = Self {
            cache,
            service,
            random,
            serial: Cell::default(),
            has_limits,
            taken_up: Vec::new(),
        };
        let path = field.cache.path().to_owned();
        field.populate(&path);
        Some(field)
    }

    fn next(&self) -> u32 {
        self.serial.set(self.serial.get() + 1);
        self.serial.get()
    }

    fn live(&self, dir: &Path) {
        let name = format!("live-{}", self.next());
        Pair::at(dir, &name).write(now() + HOUR);
    }

    fn old(&self, dir: &Path) -> Pair {
        let name = format!("old-{}", self.next());
        Pair::at(dir, &name).settled(LONG_AGO)
    }

    /// Gives `root` what a cache directory has; one that has expired.
    fn populate(&mut self, root: &Path) -> Pair {
        for dir in DIRS {
            self.live(&root.join(dir));
        }
        let dir = DIRS[self.random.below(DIRS.len())];
        self.old(&root.join(dir))
    }

    /// A populated directory elsewhere; the path of what has expired in it, below it.
    fn prepared(&mut self) -> (PathBuf, PathBuf) {
        let dir = self.cache.outside(&format!("prepared-{}", self.next()));
        let old = self.populate(&dir);
        let result = old.result.strip_prefix(&dir).unwrap().to_owned();
        (dir, result)
    }

    /// A place that something can be moved away to.
    fn aside(&self) -> PathBuf {
        self.cache.outside(&format!("aside-{}", self.next()))
    }

    fn by_chance(&mut self) -> bool {
        self.random.one_in(2)
    }

    /// Lets the service see what is there at this moment, or not.
    fn moment(&mut self) {
        for _ in 0..self.random.below(30) {
            self.service.stats();
        }
    }

    /// Turns what is below the cache directory upside down.
    fn scramble(&mut self) {
        let root = self.cache.path().to_owned();
        for _ in 0..3 {
            let [one, other] = ["a", "b"].map(|dir| root.join(dir));
            match self.random.below(5) {
                0 => {
                    remove(&one);
                    fs::create_dir_all(one.join("deep")).unwrap();
                }
                1 => {
                    fs::rename(&one, self.aside()).unwrap();
                    let (new, _) = self.prepared();
                    fs::rename(new, &one).unwrap();
                    fs::create_dir(one.join("deep")).unwrap();
                }
                2 => renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap(),
                3 => {
                    let moved = root.join(format!("moved-{}", self.next()));
                    fs::rename(&other, moved).unwrap();
                    fs::create_dir_all(other.join("deep")).unwrap();
                }
                _ => {
                    let new = root.join(format!("new-{}", self.next()));
                    self.old(&new);
                    self.live(&new);
                    if self.by_chance() {
                        fs::rename(new, one.join(format!("new-{}", self.next()))).unwrap();
                    }
                }
            }
            self.old(&one);
            self.live(&other);
        }
    }

    fn overflow(&mut self) {
        self.service.stop_and_lose_events(self.cache.path());
        self.scramble();
        self.service.go_on();
    }

    /// Has `dir` take the place of the cache directory, which nothing stands in.
    fn take_up(&mut self, dir: &Path, old: &Path) {
        let start = Instant::now();
        fs::rename(dir, self.cache.path()).unwrap();
        let old = self.cache.path().join(old);
        wait_until("what has expired in the new directory is gone", || !old.exists());
        self.taken_up.push(start.elapsed());
    }

    fn remove(&mut self) {
        let (new, old) = self.prepared();
        remove(self.cache.path());
        if self.by_chance() {
            self.service.wait_for_stat("watch", "absent");
            self.service.wait_for_stat("heap_size", 0);
        }
        self.take_up(&new, &old);
    }

    fn replace(&mut self) {
        let (new, old) = self.prepared();
        fs::rename(self.cache.path(), self.aside()).unwrap();
        self.moment();
        self.take_up(&new, &old);
    }

    fn away_for_an_instant(&mut self) {
        let away = self.aside();
        fs::rename(self.cache.path(), &away).unwrap();
        self.change_in(&away);
        fs::rename(&away, self.cache.path()).unwrap();
    }

    fn parent_away_for_an_instant(&mut self) {
        let parent = self.cache.path().parent().unwrap().to_owned();
        let away = parent.with_extension("away");
        fs::rename(&parent, &away).unwrap();
        self.change_in(&away.join(self.cache.path().file_name().unwrap()));
        fs::rename(&away, &parent).unwrap();
    }

    /// Changes something in the cache directory, which is to be found at `root` now.
    fn change_in(&mut self, root: &Path) {
        let new = root.join(format!("new-{}", self.next()));
        self.live(&new.join("deep"));
        self.old(&new);
        self.live(&root.join("a"));
        self.moment();
    }

    fn mount(&mut self) {
        let Some(mounted) = Mounted::at(self.cache.path()) else { return };
        let path = self.cache.path().to_owned();
        self.populate(&path);
        if self.by_chance() {
            self.converge();
        }
        drop(mounted);
    }

    fn unreadable(&mut self) {
        let dir = DIRS[self.random.below(3)];
        let closed = self.cache.path().join(dir);
        let set_mode = |mode| fs::set_permissions(&closed, Permissions::from_mode(mode)).unwrap();
        // Who runs the service may be bound by permissions, and this test not.
        let is_root = rustix::process::geteuid().is_root();
        set_mode(if is_root { 0o000 } else { 0o300 });
        let path = self.cache.path().to_owned();
        self.change_in(&path);
        if dir.is_empty() && self.by_chance() {
            self.service.wait_for_stat("watch", "degraded");
        }
        set_mode(0o777);
    }

    fn limit(&mut self) {
        if !self.has_limits {
            return;
        }
        let limit = ["max_inotify_watches", "max_inotify_instances"][self.random.below(2)];
        assert!(self.service.set_limit(limit, 0));
        if self.by_chance() {
            self.replace();
        } else {
            self.scramble();
        }
        self.moment();
        assert!(self.service.set_limit(limit, NO_LIMIT));
    }

    /// How many live pairs there are on the disk, and how much that should not be there.
    fn on_disk(&self) -> (usize, usize) {
        let files = self.cache.files();
        let name = |path: &String| path.rsplit('/').next().unwrap().to_owned();
        let names = files.iter().map(name);
        let (live, other): (Vec<String>, Vec<String>) =
            names.partition(|name| name.starts_with("live-"));
        let other = other.iter().filter(|name| !name.ends_with(".flood"));
        (live.len() / 2, other.count())
    }

    /// Asserts that heap and disk come to be equal, and that what then appears is known.
    fn converge(&mut self) {
        self.service.wait_for_stat("watch", "active");
        wait_until("nothing is left that has expired", || self.on_disk().1 == 0);
        let live = self.on_disk().0;
        self.service.wait_for_stat("heap_size", live);
        let dirs = walkdir::WalkDir::new(self.cache.path()).into_iter();
        let dirs = dirs.map(Result::unwrap).filter(|entry| entry.file_type().is_dir());
        let dirs: Vec<PathBuf> = dirs.map(walkdir::DirEntry::into_path).collect();
        let pairs: Vec<Pair> = dirs.iter().map(|dir| self.old(dir)).collect();
        for pair in pairs {
            wait_until("what appears is known", || pair.is_gone());
        }
        self.service.wait_for_stat("heap_size", live);
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}\n{}", self.service.stats(), self.service.log());
        }
    }
}

/// Removes the directory `dir`, in which the service may be at work.
fn remove(dir: &Path) {
    wait_until("the directory is removed", || fs::remove_dir_all(dir).is_ok() || !dir.exists());
}

#[test]
fn whatever_events_are_lost_heap_and_disk_become_equal_and_nothing_spins_or_leaks() {
    let rounds = extent("TEST_RESULT_CLEANER_ROUNDS", 10, 100);
    let Some(mut field) = Field::start() else { return };
    field.converge();
    field.service.assert_comes_to_rest();
    let (first, start) = (field.service.usage(), Instant::now());
    for round in 1..=rounds {
        for _ in 0..=field.random.below(2) {
            let (name, disturb) = DISTURBANCES[field.random.below(DISTURBANCES.len())];
            println!("round {round}: {name}");
            disturb(&mut field);
        }
        field.converge();
    }
    let stats = field.service.stats();
    // It sweeps each second where it is refused watches.
    let most = start.elapsed().as_secs() * 2 + 4 * rounds;
    assert!(stats["total_cleanups"].as_u64().unwrap() < most, "{stats}\n{}", field.service.log());
    field.service.assert_comes_to_rest();
    wait_until("it holds no more than at first", || {
        let last = field.service.usage();
        // Threads that are idle end after a while.
        last.descriptors <= first.descriptors && last.threads <= first.threads + 8
    });
    assert_eq!(stats["running"], true);
    assert_eq!(field.service.lines_with("panicked"), 0, "{}", field.service.log());

    figure("rounds of lost events", rounds);
    let taken_up = &mut field.taken_up;
    taken_up.sort();
    if let Some(worst) = taken_up.last() {
        let median = taken_up[taken_up.len() / 2].as_millis();
        figure(
            "cache directory made again is picked up within",
            format!(
                "{median} ms in the median, {} ms at worst, of {}",
                worst.as_millis(),
                taken_up.len()
            ),
        );
    }
}
