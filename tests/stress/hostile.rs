//! A directory in which everything is meant to do harm: nothing outside is touched, nothing blocks,
//! memory stays bounded, and each thing that is wrong is counted, and reported in one line that no name
//! can forge.

mod content;
mod depth;
mod inputs;
mod links;
mod names;
mod scene;
mod swaps;

use crate::common::{
    Service, figure, last_stats, stderr, stdout, succeed, text, wait_for_later_pair, wait_until,
};
use inputs::{Input, Reported};
use rustix::process::Signal;
use scene::{Hostile, memory, with_own_mounts};
use serde_json::Value;

/// How much more memory a service may take.
const MAX_MEMORY: u64 = 20 * 1024;

fn all_inputs() -> Vec<Input> {
    [links::inputs(), content::inputs(), names::inputs()].into_iter().flatten().collect()
}

fn made() -> Hostile {
    let mut hostile = Hostile::new();
    hostile.make(all_inputs());
    hostile
}

/// A line of a log, in either format.
struct Line {
    level: String,
    rest: String,
}

impl Line {
    /// Takes apart a line as only the program itself writes it.
    fn of(line: &str) -> Self {
        assert!(!line.contains(char::is_control), "{line:?}");
        let (time, level, rest) = if line.starts_with('{') {
            let line: Value = serde_json::from_str(line).unwrap();
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            let rest = ["message", "reason", "error", "path"].map(field).join("\t");
            (field("timestamp"), field("level"), rest)
        } else {
            let (time, rest) = line.split_once(' ').unwrap();
            let (level, rest) = rest.trim_start().split_once(' ').unwrap();
            (time.to_owned(), level.to_owned(), rest.to_owned())
        };
        assert!(chrono::DateTime::parse_from_rfc3339(&time).is_ok(), "{line:?}");
        assert!(["ERROR", "WARN", "INFO", "DEBUG"].contains(&level.as_str()), "{line:?}");
        Self { level, rest }
    }
}

/// Asserts that each line of a log is as the program itself writes it.
#[track_caller]
fn assert_lines(log: &str) {
    for line in log.lines() {
        Line::of(line);
    }
}

/// Asserts that the warnings of a log report of each input what has to be reported, and nothing else.
/// A sweep reports each pair, a service each version of a file, and that it does not watch the
/// longest paths.
#[track_caller]
fn assert_reported(hostile: &Hostile, log: &str, is_sweep: bool) {
    let lines: Vec<Line> = log.lines().map(Line::of).collect();
    let warnings: Vec<&str> = lines
        .iter()
        .filter(|line| line.level == "WARN" || line.level == "ERROR")
        .map(|line| line.rest.as_str())
        .collect();
    let unwatched =
        warnings.iter().filter(|line| line.contains("can't watch some directories")).count();
    assert_eq!(unwatched, usize::from(!is_sweep));
    let mut reported = unwatched;
    for made in &hostile.made {
        let mark = made.mark();
        let of_it: Vec<_> = warnings.iter().filter(|line| line.contains(&mark)).collect();
        let (count, words) = match made.reported {
            Reported::Nothing => (0, ""),
            Reported::Broken { pairs, versions, reason } => {
                (if is_sweep { pairs as usize } else { versions }, reason)
            }
            Reported::Fails { reason } => (1, reason),
        };
        assert_eq!(of_it.len(), count, "{}: {of_it:?}", made.name);
        assert!(of_it.iter().all(|line| line.contains(words)), "{}: {of_it:?}", made.name);
        reported += count;
    }
    assert_eq!(warnings.len(), reported, "of what? {warnings:#?}");
}

/// Waits until the service has deleted and reported all that it has to.
fn wait_until_done(hostile: &Hostile, service: &Service) {
    wait_until("all that has to go is gone", || hostile.still_there().is_empty());
    for made in &hostile.made {
        let mark = made.mark();
        let count = match made.reported {
            Reported::Nothing => continue,
            Reported::Broken { versions, .. } => versions,
            Reported::Fails { .. } => 1,
        };
        wait_until(&format!("{} is reported", made.name), || {
            let log = service.log();
            log.lines().filter(|line| line.contains("WARN") && line.contains(&mark)).count()
                >= count
        });
    }
}

/// Asserts what the service has counted and reported.
fn assert_counted(hostile: &Hostile, service: Service) {
    let (broken, failing) = hostile.errors();
    // And the pair that came last.
    service.wait_for_stat("total_deleted", hostile.pairs_gone + 1);
    service.wait_for_at_least("total_errors", broken + failing);
    let (status, _, log) = service.terminate();
    assert!(status.success(), "{log}");
    let stats = last_stats(&log);
    let again = log.lines().filter(|line| line.contains("still failing")).count() as u64;
    let counted = stats["total_errors"].as_u64().unwrap();
    assert!(
        counted >= broken + failing && counted <= broken + failing + again,
        "{stats} {again} {broken} {failing}\n{log}"
    );
    assert_eq!(stats["total_deleted"], hostile.pairs_gone + 1, "{log}");
    assert_reported(hostile, &log, false);
}

#[test]
fn what_is_there_at_the_start_harms_nothing_and_is_reported_once() {
    with_own_mounts("what_is_there_at_the_start_harms_nothing_and_is_reported_once", start);
}

fn start() {
    let hostile = made();
    figure("hostile inputs", hostile.made.len());
    let service = Service::start(hostile.cache.path(), &["-v", "--check-interval", "1s"]);
    wait_until_done(&hostile, &service);
    wait_for_later_pair(&hostile.cache);
    // What was reported is not reported again by later sweeps.
    service.wait_for_sweeps(2);
    hostile.assert_cleaned();
    assert_counted(&hostile, service);
}

#[test]
fn what_arrives_harms_nothing_and_is_reported_once() {
    with_own_mounts("what_arrives_harms_nothing_and_is_reported_once", arrival);
}

fn arrival() {
    let mut hostile = Hostile::new();
    let service = Service::ready(hostile.cache.path(), &["-v", "--log-format", "json"]);
    wait_for_later_pair(&hostile.cache);
    let before = memory(&service, "VmRSS");
    // It learns of everything by events, and after everything has been recorded.
    service.signal(Signal::STOP);
    hostile.make(all_inputs());
    service.signal(Signal::CONT);
    wait_until_done(&hostile, &service);
    hostile.assert_cleaned();
    assert_eq!(service.count("total_cleanups"), 1, "a sweep was needed");
    let more = memory(&service, "VmHWM").saturating_sub(before);
    figure("memory up by", format!("{more} KiB"));
    assert!(more < MAX_MEMORY, "memory is up by {more} KiB");
    assert_counted(&hostile, service);
}

#[test]
fn listing_changes_nothing_and_sweeping_only_what_has_expired() {
    with_own_mounts("listing_changes_nothing_and_sweeping_only_what_has_expired", commands);
}

fn commands() {
    let hostile = made();
    let (broken, failing) = hostile.errors();
    let cache = text(hostile.cache.path());

    let listed = succeed(&["list", "--json", cache]);
    let lines: Vec<Value> = stdout(&listed)
        .lines()
        .inspect(|line| assert!(!line.contains(char::is_control), "{line:?}"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let invalid: Vec<_> = lines.iter().filter(|line| line["expires_at"].is_null()).collect();
    assert_eq!(invalid.len() as u64, broken);
    for made in &hostile.made {
        let Reported::Broken { pairs, reason, .. } = made.reported else { continue };
        let is_of_it = |line: &&&Value| line["result"].as_str().unwrap().contains(&made.mark());
        let of_it: Vec<_> = invalid.iter().filter(is_of_it).collect();
        assert_eq!(of_it.len() as u64, pairs, "{}: {of_it:?}", made.name);
        let is_reported =
            of_it.iter().all(|line| line["reason"].as_str().unwrap().contains(reason));
        assert!(is_reported, "{}: {of_it:?}", made.name);
    }
    hostile.assert_unchanged();

    let shown = succeed(&["list", cache]);
    // A head, and the totals.
    assert_eq!(stdout(&shown).lines().count(), lines.len() + 2);
    assert!(!stdout(&shown).contains(|c: char| c.is_control() && c != '\n'));
    // The longest path makes no other line longer.
    assert!(shown.stdout.len() < listed.stdout.len());

    let dry = succeed(&["sweep", "--dry-run", "--json", cache]);
    let report: Value = serde_json::from_str(stdout(&dry)).unwrap();
    assert_eq!(report["deleted_count"], hostile.pairs_gone + failing, "{report}");
    assert_eq!(report["errors"], broken, "{report}");
    hostile.assert_unchanged();

    let swept = succeed(&["sweep", "--json", cache]);
    let report: Value = serde_json::from_str(stdout(&swept)).unwrap();
    assert_eq!(report["deleted_count"], hostile.pairs_gone, "{report}");
    assert_eq!(report["errors"], broken + failing, "{report}");
    assert_reported(&hostile, stderr(&swept), true);
    hostile.assert_cleaned();
}
