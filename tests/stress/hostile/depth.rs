//! Trees deeper, and paths longer, than the kernel takes as one path.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, statat, unlinkat};
use serde_json::Value;

use super::inputs::{one_deeper, write_at};
use super::scene::{descriptors, memory, wait_until_calm};
use super::{MAX_MEMORY, assert_lines};
use crate::common::{
    CacheDir, Service, extent, figure, free_address, has_strace, now, result_cleaner, stderr,
    stdout, succeed, text, wait_for_later_pair, wait_until,
};

/// A chain of directories, which the standard library can't remove.
struct Chain {
    top: PathBuf,
    levels: Vec<OwnedFd>,
}

impl Chain {
    fn make(top: &Path, levels: usize, name: &str) -> Self {
        fs::create_dir(top).unwrap();
        let mut chain = Self { top: top.to_owned(), levels: Vec::new() };
        let mut end = OwnedFd::from(File::open(top).unwrap());
        for _ in 0..levels {
            let deeper = one_deeper(&end, name).unwrap();
            chain.levels.push(std::mem::replace(&mut end, deeper));
        }
        chain.levels.push(end);
        chain
    }

    fn end(&self) -> &OwnedFd {
        self.levels.last().unwrap()
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let _ = Command::new("rm").arg("-rf").arg(&self.top).status();
    }
}

fn store(dir: &OwnedFd, expires_at: f64) {
    write_at(dir, "a.result.json.lz4", "a result of 23 bytes...").unwrap();
    write_at(dir, "a.metadata.json", &format!(r#"{{"expires_at": {expires_at}}}"#)).unwrap();
}

fn is_gone(dir: &OwnedFd) -> bool {
    ["a.result.json.lz4", "a.metadata.json"]
        .iter()
        .all(|name| statat(dir, *name, AtFlags::SYMLINK_NOFOLLOW).is_err())
}

#[test]
fn a_pair_on_the_last_of_very_many_levels_goes_on_time_and_its_tree_costs_little() {
    let levels = extent("TEST_RESULT_CLEANER_LEVELS", 800, 4000) as usize;
    let cache = CacheDir::new();
    let args = ["--fallback-interval", "1s"];
    let service = Service::ready(cache.path(), &args);
    wait_for_later_pair(&cache);
    let before = (memory(&service, "VmRSS"), descriptors(&service));

    let mut chain = Chain::make(&cache.path().join("deep"), levels, "d");
    chain.levels.drain(..levels);
    store(chain.end(), now() + 1000.0);
    service.wait_for_stat("heap_size", 1);
    // A sweep finds what nobody reports.
    unlinkat(chain.end(), "a.metadata.json", AtFlags::empty()).unwrap();
    service.wait_for_stat("heap_size", 0);
    let metadata = format!(r#"{{"expires_at": {}}}"#, now() + 5.0);
    write_at(chain.end(), "a.metadata.json", &metadata).unwrap();
    wait_until("the pair is gone", || is_gone(chain.end()));
    store(chain.end(), now() - 1.0);
    wait_until("the pair is gone", || is_gone(chain.end()));
    service.wait_for_stat("total_deleted", 3);
    service.wait_for_stat("watch", "degraded");
    service.assert_lines_with("can't watch some directories", 1);

    let more = memory(&service, "VmHWM").saturating_sub(before.0);
    figure(&format!("memory up by a tree of {levels} levels"), format!("{more} KiB"));
    assert!(more < MAX_MEMORY, "memory is up by {more} KiB");
    drop(chain);
    service.wait_for_stat("watch", "active");
    wait_until("no descriptor is kept", || descriptors(&service) <= before.1);
    wait_until_calm(&service);
    wait_for_later_pair(&cache);
    let (status, _, log) = service.terminate();
    assert!(status.success());
    assert_lines(&log);
}

#[test]
fn each_level_costs_a_few_lookups_however_deep_it_is() {
    if !has_strace() {
        return;
    }
    let cache = CacheDir::new();
    // 12,600 bytes: four pieces at the most.
    let levels = 600;
    let chain = Chain::make(&cache.path().join("deep"), levels, &"d".repeat(20));
    store(chain.end(), 1.5);
    let trace = cache.outside("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=openat,openat2", "-o", text(&trace)]);
    command.arg(result_cleaner().get_program()).arg("sweep").arg(cache.path());
    assert!(command.status().unwrap().success());
    assert!(is_gone(chain.end()));
    let lookups = fs::read_to_string(&trace).unwrap().lines().count();
    assert!(lookups < 10 * levels, "{lookups} lookups on {levels} levels");
}

#[test]
fn every_level_is_cleaned_with_few_descriptors_whatever_its_path_measures() {
    let cache = CacheDir::new();
    // Each length of a path beyond the limits of 1,024 and 4,096 bytes.
    let chains: Vec<Chain> = (0..8)
        .map(|more| {
            let name = "d".repeat(56 + more);
            Chain::make(&cache.path().join(format!("deep-{more}")), 90, &name)
        })
        .collect();
    let fill = || {
        for level in chains.iter().flat_map(|chain| &chain.levels) {
            store(level, 1.5);
        }
    };
    let all_gone = || chains.iter().flat_map(|chain| &chain.levels).all(is_gone);
    let pairs = chains.iter().map(|chain| chain.levels.len()).sum::<usize>();
    let limited = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"]);
        command.arg(result_cleaner().get_program()).args(arguments);
        command
    };

    fill();
    let swept = limited(&["sweep", "--json", text(cache.path())]).output().unwrap();
    assert_eq!(stderr(&swept), "");
    let report: Value = serde_json::from_str(stdout(&swept)).unwrap();
    assert_eq!(report["deleted_count"], pairs, "{report}");
    assert!(all_gone());

    fill();
    let address = free_address();
    let run = ["run", text(cache.path()), "--no-metrics", "--listen", &address];
    let service = Service::spawn(limited(&run), &format!("http://{address}"));
    service.wait_for_stat("total_deleted", pairs);
    assert!(all_gone());
    assert_eq!(service.stats()["total_errors"], 0, "{}", service.log());
    let listed = succeed(&["list", text(cache.path())]);
    assert_eq!(stdout(&listed), "no results\n");
}
