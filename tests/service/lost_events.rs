//! Events that do not arrive: the kernel drops them, refuses to watch, or what was watched is not
//! there any more. One file, because each case needs the same preparations. The heap comes to equal the disk all the same, what appears afterwards is known
//! by events again, and nothing spins meanwhile.
//!
//! Some of these need root, a namespace or tools of the system, and are skipped without.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{
    CacheDir, MetricsStub, Mounted, Pair, Service, event_queue, extent, figure, free_address, now,
    result_cleaner, unprivileged_run, wait_for_later_pair, wait_until,
};
use rustix::fs::inotify;

const HOUR: f64 = 3600.0;
/// Long expired.
const LONG_AGO: f64 = 1.5;
/// Limits of a user namespace.
const WATCHES: &str = "max_inotify_watches";
const INSTANCES: &str = "max_inotify_instances";

fn wait_until_gone(pair: &Pair) {
    wait_until("the pair is gone", || pair.is_gone());
}

fn sweeps(service: &Service) -> u64 {
    service.stats()["total_cleanups"].as_u64().unwrap()
}

/// Asserts that what appears in `dirs` and in new directories there is known without a sweep.
#[track_caller]
fn assert_events_arrive(service: &Service, dirs: &[&Path]) {
    assert!(do_events_arrive(service, dirs), "a sweep was needed\n{}", service.log());
}

/// Whether what appears in `dirs` and in new directories there is known while there is no sweep.
#[track_caller]
fn do_events_arrive(service: &Service, dirs: &[&Path]) -> bool {
    service.wait_for_stat("watch", "active");
    service.assert_comes_to_rest();
    let before = sweeps(service);
    let places = dirs.iter().flat_map(|dir| [dir.to_path_buf(), dir.join("later")]);
    let pairs: Vec<Pair> =
        places.map(|place| Pair::at(&place, "later").settled(now() + 0.1)).collect();
    pairs.iter().for_each(wait_until_gone);
    sweeps(service) == before
}

/// Writes `count` pairs in place: in directories of 1000 pairs, so that each result is older than
/// its metadata.
fn write_pairs(dir: &Path, count: usize, expires_at: f64) {
    let metadata = format!(r#"{{"expires_at": {expires_at}}}"#);
    for first in (0..count).step_by(1000) {
        let dir = dir.join(first.to_string());
        fs::create_dir_all(&dir).unwrap();
        let pairs = || (first..count.min(first + 1000)).map(|n| Pair::at(&dir, &n.to_string()));
        pairs().for_each(|pair| fs::write(pair.result, "result").unwrap());
        pairs().for_each(|pair| fs::write(pair.metadata, &metadata).unwrap());
    }
}

/// How many events `action` causes in the directory `dir`; `None` where they can't be counted.
fn events_in(dir: &Path, action: impl FnOnce()) -> Option<usize> {
    use inotify::{CreateFlags, WatchFlags};
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
    let of_interest = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::MOVE
        | WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&watch, dir, of_interest).ok()?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let counted = scope.spawn(|| {
            let mut buffer = [std::mem::MaybeUninit::uninit(); 65_536];
            let mut events = inotify::Reader::new(&watch, &mut buffer);
            let mut count = 0;
            loop {
                let was_over = over.load(Ordering::Relaxed);
                while let Ok(event) = events.next() {
                    if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                        return None;
                    }
                    count += 1;
                }
                if was_over {
                    return Some(count);
                }
                thread::yield_now();
            }
        });
        action();
        over.store(true, Ordering::Relaxed);
        counted.join().unwrap()
    })
}

#[test]
fn events_that_overflow_the_queue_of_the_kernel_cost_one_sweep_and_no_pair() {
    let cache = CacheDir::in_memory();
    let (known, gone) = (cache.store("known", now() + HOUR), cache.store("gone", now() + HOUR));
    let service = Service::ready(cache.path(), &[]);
    service.wait_for_stat("heap_size", 2);
    service.stop();
    let events = events_in(cache.path(), || {
        for number in 0..10_000 {
            let expires_at = if number % 20 == 0 { LONG_AGO } else { now() + HOUR };
            Pair::at(cache.path(), &number.to_string()).write(expires_at);
        }
    });
    match events {
        Some(count) => figure(
            "events dropped by an overflow of 20,000 files",
            format!("{} of {count}", count - event_queue()),
        ),
        None => eprintln!("the events can't be counted"),
    }
    // What happens from here on is not reported at all.
    known.set_expiry(LONG_AGO);
    fs::remove_file(&gone.result).unwrap();
    cache.store("new/directory/new", now() + HOUR);
    service.go_on();
    service.wait_for_stat("total_cleanups", 2);
    service.wait_for_stat("total_deleted", 501);
    service.wait_for_stat("heap_size", 9501);
    assert!(known.is_gone());
    let overflows = service.stats()["total_queue_overflows"].as_u64();
    assert!(overflows >= Some(1), "{overflows:?}");
    let is_whole = |number: usize| Pair::at(cache.path(), &number.to_string()).is_whole();
    assert_eq!((0..10_000).filter(|&number| is_whole(number)).count(), 9500);
    assert_events_arrive(&service, &[cache.path(), &cache.path().join("new/directory")]);
    assert_eq!(sweeps(&service), 2, "one sweep was enough\n{}", service.log());
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
}

#[test]
fn directories_that_were_replaced_while_events_were_lost_are_watched_again() {
    let cache = CacheDir::new();
    for dir in ["removed", "renamed", "kept/replaced"] {
        cache.store(&format!("{dir}/live"), now() + HOUR);
    }
    let service = Service::ready(cache.path(), &[]);
    service.wait_for_stat("heap_size", 3);
    let dirs = ["removed", "renamed", "kept/replaced"].map(|dir| cache.path().join(dir));
    for round in 1..=2 {
        service.stop_and_lose_events(cache.path());
        fs::remove_dir_all(&dirs[0]).unwrap();
        fs::create_dir(&dirs[0]).unwrap();
        fs::rename(&dirs[1], cache.outside("aside")).unwrap();
        fs::rename(&dirs[2], &dirs[1]).unwrap();
        fs::rename(cache.outside("aside"), &dirs[2]).unwrap();
        service.go_on();
        wait_until("a sweep has made up for it", || sweeps(&service) > round);
        service.wait_for_stat("heap_size", 2);
        assert_events_arrive(&service, &dirs.each_ref().map(PathBuf::as_path));
        assert_eq!(sweeps(&service), round + 1, "{}", service.log());
    }
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
}

#[test]
fn its_own_reading_and_deleting_sets_off_no_sweep_and_no_work() {
    let pairs = extent("TEST_RESULT_CLEANER_PAIRS", 10_000, 100_000);
    let cache = CacheDir::in_memory();
    write_pairs(&cache.path().join("live"), pairs as usize / 2, now() + HOUR);
    write_pairs(&cache.path().join("expired"), pairs as usize / 2, LONG_AGO);
    let written = now();
    wait_until("each result has settled", || now() > written + 1.1);
    let metrics = MetricsStub::start();
    let args = ["--metrics-url", &metrics.url, "--report-interval", "200ms"];
    let service = Service::start(cache.path(), &args);
    wait_until("the first scan is over", || sweeps(&service) > 0);
    wait_for_later_pair(&cache);
    service.assert_comes_to_rest();
    service.wait_for_stat("heap_size", pairs / 2);
    service.wait_for_stat("total_deleted", pairs / 2 + 1);
    service.assert_calm();

    // Each pair was looked at once, and the later one a few times.
    wait_until("all is reported", || metrics.sum("deleted_count") == pairs / 2 + 1);
    let checked = metrics.sum("checked_count");
    assert!((pairs..pairs + 20).contains(&checked), "{checked} looks at {pairs} pairs");
    let watches = watches(&service);
    assert!(watches.len() > pairs as usize / 1000, "{watches:?}");
    let of_reading = inotify::WatchFlags::ACCESS
        | inotify::WatchFlags::OPEN
        | inotify::WatchFlags::CLOSE_NOWRITE;
    for mask in watches {
        assert_eq!(mask & of_reading.bits(), 0, "its own reading is reported to it: {mask:x}");
    }
    figure("files among which its own work sets off no sweep", pairs * 2);
}

/// The masks of all watches of the service.
fn watches(service: &Service) -> Vec<u32> {
    let infos = fs::read_dir(format!("/proc/{}/fdinfo", service.pid())).unwrap();
    let infos = infos.filter_map(|info| fs::read_to_string(info.unwrap().path()).ok());
    let masks = |info: String| -> Vec<u32> {
        let lines = info.lines().filter(|line| line.starts_with("inotify "));
        let masks = lines.filter_map(|line| line.split("mask:").nth(1)?.split(' ').next());
        masks.map(|mask| u32::from_str_radix(mask, 16).unwrap()).collect()
    };
    infos.flat_map(masks).collect()
}

#[test]
fn directories_whose_watch_dies_are_watched_again() {
    let cache = CacheDir::new();
    let dirs = ["made-again", "replaced", "swapped", "swapped-too", "away", "held"];
    let dirs = dirs.map(|dir| cache.path().join(dir));
    for dir in &dirs {
        Pair::at(&dir.join("deep"), "live").write(now() + HOUR);
    }
    fs::remove_dir_all(dirs[5].join("deep")).unwrap();
    // It stays as long as somebody has it open.
    let in_use = fs::File::open(&dirs[5]).unwrap();
    let service = Service::ready(cache.path(), &[]);
    let [again, replaced, swapped, too, away, held] = &dirs;
    for round in 0..20 {
        fs::remove_dir_all(again).unwrap();
        Pair::at(&again.join("deep"), "live").write(now() + HOUR);
        let (new, old) = (cache.outside("new"), cache.outside(&format!("old-{round}")));
        Pair::at(&new.join("deep"), "live").write(now() + HOUR);
        fs::rename(replaced, old).unwrap();
        fs::rename(&new, replaced).unwrap();
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, swapped, CWD, too, RenameFlags::EXCHANGE).unwrap();
        fs::rename(away, &new).unwrap();
        fs::rename(&new, away).unwrap();
    }
    Pair::at(&cache.outside("new/deep"), "live").write(now() + HOUR);
    fs::rename(cache.outside("new"), held).unwrap();
    let deep: Vec<PathBuf> = dirs.iter().map(|dir| dir.join("deep")).collect();
    let all: Vec<&Path> = dirs.iter().chain(&deep).map(PathBuf::as_path).collect();
    assert_events_arrive(&service, &all);
    service.wait_for_stat("heap_size", dirs.len());
    drop(in_use);
    // A scan that met a directory amid its replacement may have asked for a sweep.
    assert_eq!(service.count("total_errors"), 0, "{}", service.log());
}

#[test]
fn what_came_while_the_parent_was_away_for_an_instant_is_watched() {
    let cache = CacheDir::absent();
    let (parent, away) = (cache.outside("parent"), cache.outside("parent-away"));
    let path = parent.join("cached_results");
    Pair::at(&path, "live").write(now() + HOUR);
    let service = Service::ready(&path, &[]);
    let populated = cache.outside("populated");
    Pair::at(&populated, "live").write(now() + HOUR);
    type Comes<'a> = (&'a str, &'a dyn Fn(&Path));
    let came: [Comes<'_>; 2] = [
        ("made", &|dir| fs::create_dir(dir).unwrap()),
        ("moved-in", &|dir| fs::rename(&populated, dir).unwrap()),
    ];
    for (name, come) in came {
        fs::rename(&parent, &away).unwrap();
        come(&away.join("cached_results").join(name));
        // It has time to look at it.
        (0..50).for_each(|_| drop(service.stats()));
        fs::rename(&away, &parent).unwrap();
        wait_until_gone(&Pair::at(&path.join(name), "new").settled(now() + 0.1));
        assert_events_arrive(&service, &[&path, &path.join(name)]);
    }
    service.wait_for_stat("heap_size", 2);
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
}

#[test]
fn what_a_mount_point_in_it_covered_is_found_when_it_is_unmounted() {
    let cache = CacheDir::in_memory();
    let beneath = ["first/a", "first/deep/a"].map(|name| cache.store(name, LONG_AGO));
    fs::create_dir_all(cache.path().join("gone/point")).unwrap();
    let points = ["first", "gone/point"].map(|name| Mounted::at(&cache.path().join(name)));
    let [Some(first), Some(gone)] = points else { return };
    let service = Service::ready(cache.path(), &[]);
    drop(first);
    beneath.iter().for_each(wait_until_gone);
    assert_events_arrive(
        &service,
        &[&cache.path().join("first"), &cache.path().join("first/deep")],
    );
    // One that is mounted right after its directory appeared: before, while or after that is watched.
    for round in 0..3 {
        let dir = cache.path().join(format!("new-{round}"));
        fs::create_dir(&dir).unwrap();
        let Some(mounted) = Mounted::at(&dir) else { return };
        wait_for_later_pair(&cache);
        drop(mounted);
        wait_until_gone(&cache.store(&format!("new-{round}/a"), LONG_AGO));
    }
    // One that is mounted amid deletions.
    let soon = now() + 0.5;
    let many: Vec<Pair> = (0..1000).map(|n| cache.store(&format!("many/{n}"), soon)).collect();
    wait_until("deletions have begun", || many.iter().any(Pair::is_gone));
    let Some(mounted) = Mounted::at(&cache.path().join("many")) else { return };
    wait_for_later_pair(&cache);
    drop(mounted);
    many.iter().for_each(wait_until_gone);
    drop(gone);
    fs::remove_dir_all(cache.path().join("gone")).unwrap();
    service.assert_comes_to_rest();
    service.assert_errors(0);
}

#[test]
fn a_file_system_that_is_mounted_as_the_cache_directory_comes_and_goes() {
    let cache = CacheDir::new();
    let beneath = cache.store("session/beneath", now() + HOUR);
    let service = Service::ready(cache.path(), &[]);
    service.wait_for_stat("heap_size", 1);
    let descriptors = service.usage().descriptors;
    for round in 0..3 {
        let Some(mounted) = Mounted::at(cache.path()) else { return };
        service.wait_for_stat("heap_size", 0);
        let old = cache.store("session/old", LONG_AGO);
        cache.store("session/live", now() + HOUR);
        cache.store("other", now() + HOUR);
        wait_until_gone(&old);
        service.wait_for_stat("heap_size", 2);
        if round == 0 {
            assert_events_arrive(&service, &[cache.path(), &cache.path().join("session")]);
        }
        drop(mounted);
        service.wait_for_stat("heap_size", 1);
        // It lets go of the file system, which could not be unmounted for good otherwise.
        wait_until("nothing of it is held", || service.usage().descriptors <= descriptors);
        assert!(beneath.is_whole());
    }
    assert_events_arrive(&service, &[cache.path(), &cache.path().join("session")]);
    service.wait_for_stat("heap_size", 1);
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
}

fn set_mode(dir: &Path, mode: u32) {
    fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_cache_directory_that_becomes_unreadable_is_opened_as_it_is_when_it_can_be_read_again() {
    let cache = CacheDir::new();
    let session = cache.path().join("session");
    let names = ["live", "vanishing", "expiring"];
    for round in 0..2 {
        for name in names {
            cache.store(&format!("session/{name}-{round}"), now() + HOUR);
        }
    }
    set_mode(cache.path(), 0o777);
    set_mode(&session, 0o777);
    let Some((command, url)) = unprivileged_run(&cache, &[]) else { return };
    let service = Service::spawn(command, &url);
    service.wait_for_stat("heap_size", 6);
    for round in 0..2 {
        set_mode(cache.path(), 0o000);
        service.wait_for_stat("watch", "degraded");
        service.wait_for_stat("heap_size", 0);
        service.assert_comes_to_rest();
        let [_, vanishing, expiring] =
            names.map(|name| cache.pair(&format!("session/{name}-{round}")));
        fs::remove_file(vanishing.metadata).unwrap();
        expiring.set_expiry(LONG_AGO);
        cache.store(&format!("session/new-{round}"), now() + HOUR);
        set_mode(cache.path(), 0o777);
        wait_until_gone(&expiring);
        service.wait_for_stat("heap_size", 6 - (round + 1));
        service.wait_for_stat("total_errors", round + 1);
        service.assert_lines_with("can't read the cache directory", round as usize + 1);
    }
    // However it flickers, in the end it is known as it is.
    for round in 0..200 {
        set_mode([cache.path(), &session][round % 2], 0o000);
        set_mode([cache.path(), &session][round % 2], 0o777);
        if round % 10 == 0 {
            cache.store(&format!("session/flicker-{round}"), now() + HOUR);
        }
    }
    service.wait_for_stat("heap_size", 24);
    let usual = cache.pair("session/later");
    usual.clone().settled(now() + 0.1);
    wait_until_gone(&usual);
    service.assert_comes_to_rest();
}

#[test]
fn a_directory_that_becomes_readable_while_the_scan_that_could_not_read_it_goes_on_is_read() {
    const OTHERS: usize = 3000;
    let cache = CacheDir::new();
    let (tree, away) = (cache.path().join("tree"), cache.outside("tree"));
    set_mode(cache.path(), 0o777);
    for number in 0..OTHERS {
        Pair::at(&away.join((number % 15).to_string()), &number.to_string()).write(now() + HOUR);
    }
    Pair::at(&away.join("closed"), "live").write(now() + HOUR);
    for dir in fs::read_dir(&away).unwrap() {
        set_mode(&dir.unwrap().path(), 0o777);
    }
    set_mode(&away, 0o777);
    let Some((command, url)) = unprivileged_run(&cache, &[]) else { return };
    let service = Service::spawn(command, &url);
    service.wait_for_stat("watch", "active");
    for round in 0..40 {
        set_mode(&away.join("closed"), 0o000);
        fs::rename(&away, &tree).unwrap();
        // The moments are spread over the scan.
        thread::sleep(Duration::from_millis(round));
        set_mode(&tree.join("closed"), 0o777);
        service.wait_for_stat("heap_size", OTHERS + 1);
        fs::rename(&tree, &away).unwrap();
        service.wait_for_stat("heap_size", 0);
    }
    assert_eq!(sweeps(&service), 1, "{}", service.log());
}

#[test]
fn what_came_and_went_in_an_unreadable_directory_is_forgotten_when_that_can_be_read() {
    let cache = CacheDir::new();
    let closed = cache.path().join("closed");
    cache.store("closed/live", now() + HOUR);
    for dir in [cache.path(), &closed] {
        set_mode(dir, 0o777);
    }
    let Some((command, url)) = unprivileged_run(&cache, &[]) else { return };
    let service = Service::spawn(command, &url);
    service.wait_for_stat("watched_directories", 2);
    for round in 0..5 {
        set_mode(&closed, 0o000);
        service.wait_for_stat("refused_directories", 1);
        let new = closed.join(round.to_string());
        if fs::create_dir(&new).is_err() {
            return eprintln!("skipped: permissions bind this user, too");
        }
        thread::sleep(Duration::from_millis(100));
        fs::remove_dir(&new).unwrap();
        thread::sleep(Duration::from_millis(100));
        set_mode(&closed, 0o777);
        service.wait_for_stat("watched_directories", 2);
        service.wait_for_stat("refused_directories", 0);
    }
    assert_eq!(sweeps(&service), 1, "{}", service.log());
}

/// A service whose user has a limit of `count` of what `/proc/sys/user/<limit>` counts.
fn limited(cache: &CacheDir, limit: &str, count: u32) -> Option<Service> {
    let set = format!("echo {count} > /proc/sys/user/{limit}");
    let mut trial = Command::new("unshare");
    if !trial.args(["-Ur", "sh", "-ec", &set]).output().is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: {limit} can't be set for a user namespace here");
        return None;
    }
    let address = free_address();
    let mut command = Command::new("unshare");
    let script = format!(r#"{set} && exec "$@""#);
    command.args(["-Ur", "sh", "-ec", &script, "sh"]).arg(result_cleaner().get_program());
    command.arg("run").arg(cache.path()).args(["--no-metrics", "--listen", &address]);
    command.args(["--fallback-interval", "1s"]);
    Some(Service::spawn(command, &format!("http://{address}")))
}

fn assert_degraded_but_at_work(cache: &CacheDir, service: &Service, sysctl: &str, dirs: &Path) {
    service.wait_for_stat("watch", "degraded");
    let known = service.count("total_deleted");
    for n in 0..6 {
        wait_until_gone(&Pair::at(&dirs.join(n.to_string()), "new").settled(now() + 0.1));
        wait_until_gone(&Pair::at(&dirs.join(format!("new-{n}")), "new").settled(now() + 0.1));
    }
    cache.store("waiting", now() + HOUR);
    service.wait_for_stat("heap_size", 1);
    service.wait_for_stat("total_deleted", known + 12);
    service.wait_for_stat("watch", "degraded");
    service.assert_lines_with(sysctl, 1);
    service.assert_comes_to_rest();
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
}

/// Raises the limit, and asserts that all is watched once the log has the line `recovered`.
fn assert_recovers(
    cache: &CacheDir,
    service: &Service,
    (limit, recovered): (&str, &str),
    dirs: &Path,
) {
    if !service.set_limit(limit, 1000) {
        return eprintln!("skipped: {limit} can't be raised again here");
    }
    service.assert_lines_with(recovered, 1);
    // Where it is watched anew, the sweep that sets the watches may yet be under way.
    let dirs = [cache.path(), &dirs.join("0"), &dirs.join("new-5")];
    wait_until("events arrive again", || do_events_arrive(service, &dirs));
    service.wait_for_stat("heap_size", 1);
    service.assert_lines_with(recovered, 1);
}

#[test]
fn where_the_kernel_refuses_watches_it_says_so_once_and_sweeps_until_it_has_them() {
    let cache = CacheDir::new();
    for n in 0..6 {
        cache.store(&format!("{n}/old"), LONG_AGO);
    }
    let Some(service) = limited(&cache, WATCHES, 3) else { return };
    service.wait_for_stat("total_deleted", 6);
    assert_degraded_but_at_work(&cache, &service, "fs.inotify.max_user_watches", cache.path());
    // The cache directory, and twelve below it.
    service.wait_for_stat("watched_directories", 3);
    service.wait_for_stat("refused_directories", 10);
    let recovers = (WATCHES, "all directories are watched again");
    assert_recovers(&cache, &service, recovers, cache.path());
}

#[test]
fn where_the_kernel_refuses_to_watch_at_all_it_says_so_once_and_sweeps_until_it_does() {
    let cache = CacheDir::new();
    let Some(service) = limited(&cache, INSTANCES, 0) else { return };
    let dirs = cache.path().join("dirs");
    assert_degraded_but_at_work(&cache, &service, "fs.inotify.max_user_instances", &dirs);
    assert_recovers(&cache, &service, (INSTANCES, "watching the cache directory"), &dirs);
}
