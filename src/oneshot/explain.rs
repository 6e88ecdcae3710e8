//! Explains why a file is deleted or kept.
//!
//! Longer than other files: it goes through all conditions of a deletion in their order.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chrono::{DateTime, Utc};

use super::evict::Candidates;
use super::obstacles::{Kind, is_claimed, is_missing, kind, obstacle, says_missing};
use super::sweep::scan_into;
use super::verdicts;
use crate::config::Config;
use crate::disk::inspect::{ReadMetadata, read_metadata};
use crate::disk::root::{Dir, Root, is_mounted_over};
use crate::display::display_path;
use crate::error::Error;
use crate::jobs::context::JobContext;
use crate::jobs::pairs::PairProcessor;
use crate::pair::disk_budget::Budget;
use crate::pair::name::{Half, Name, PairKey, Stem};
use crate::pair::outcome::{Job, JobResult, Outcome};
use crate::pair::version::Broken;
use crate::sys::clock::Clock;

/// The longest name that file systems take, in bytes.
const MAX_NAME: usize = 255;

/// Why a result is deleted or kept, as far as is known now; [`explain`] returns it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// The file in question, as it was named.
    pub file: PathBuf,
    /// The result that it is, or belongs to; `None` if its name is not that of either half.
    pub result: Option<PathBuf>,
    /// The five conditions of a deletion, in their order. All of them have to be met.
    pub conditions: [Condition; 5],
    /// The `expires_at` of the metadata.
    pub expires_at: Option<DateTime<Utc>>,
    /// What will happen to it.
    pub fate: Fate,
    /// How many pairs would be evicted before this one; `None` without a disk budget, or if it can't be evicted now.
    pub evicted_after: Option<u64>,
    /// The fate and the eviction in words, with any obstacle and what to do about it.
    pub verdict: String,
}

/// One of the conditions of a deletion.
///
/// ```
/// # let explain = |explanation: result_cleaner::Explanation| {
/// for condition in &explanation.conditions {
///     println!("{}: {:?}, {}", condition.what, condition.met, condition.why);
/// }
/// # };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Condition {
    /// The condition.
    pub what: &'static str,
    /// Whether it is met; `None` if this is unknown because an earlier condition is not met.
    pub met: Option<bool>,
    /// Why, or why not.
    pub why: String,
}

/// What will happen to a file.
///
/// ```
/// use result_cleaner::Fate;
/// let is_there = |fate: Fate| fate != Fate::Gone;
/// assert!(is_there(Fate::Waits));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It may be deleted now.
    Due,
    /// It is deleted once it has expired.
    Waits,
    /// It is kept.
    Stays,
    /// It does not exist.
    Gone,
}

const WHAT: [&str; 5] = [
    "the name is that of a result",
    "it is in the cache directory",
    "its other half exists",
    "the metadata is valid",
    "it has expired",
];

/// Reports which conditions of a deletion are met for `file`, a result or metadata, and what will happen
/// to the file. Changes nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # std::fs::write(dir.path().join("a.result.json.lz4"), "data").unwrap();
/// use result_cleaner::{Config, Fate, explain};
/// let file = dir.path().join("a.result.json.lz4");
/// let explanation = explain(&Config::new(dir.path()), &file).await?;
/// assert_eq!(explanation.fate, Fate::Stays);
/// assert_eq!(explanation.conditions[2].met, Some(false), "it has no metadata");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The errors of an invalid configuration; [`Error::Unreadable`] and [`Error::NotADirectory`] for the cache
/// directory; [`Error::NoRuntime`].
pub async fn explain(config: &Config, file: &Path) -> Result<Explanation, Error> {
    config.validate()?;
    let runtime = crate::sys::runtime::current()?;
    let cache_dir = config.expanded_cache_dir()?;
    let context = JobContext::listing(Arc::new(Clock::default()), config);
    let file = file.to_owned();
    let task = runtime.spawn_blocking(move || {
        let root = Root::at(&cache_dir)?;
        let explaining = Explaining { cache_dir, root, context };
        Ok(explaining.explain(file))
    });
    crate::sys::runtime::joined(task.await)
}

struct Explaining {
    cache_dir: PathBuf,
    root: Option<Root>,
    context: JobContext,
}

/// An unfinished explanation: conditions are added in their order until one is not met.
struct Draft {
    file: PathBuf,
    result: Option<PathBuf>,
    expires_at: Option<DateTime<Utc>>,
    conditions: Vec<Condition>,
}

impl Draft {
    fn add(&mut self, met: bool, why: impl Into<String>) {
        let what = WHAT[self.conditions.len()];
        self.conditions.push(Condition { what, met: Some(met), why: why.into() });
    }

    /// Ends the explanation with a condition that is not met.
    fn stop(
        mut self,
        why: impl Into<String>,
        fate: Fate,
        verdict: impl Into<String>,
    ) -> Explanation {
        self.add(false, why);
        self.finish(fate, verdict)
    }

    fn finish(self, fate: Fate, verdict: impl Into<String>) -> Explanation {
        let mut conditions = self.conditions.into_iter();
        let or_not_checked = |what| {
            let why = "not checked, because an earlier condition is not met".to_owned();
            conditions.next().unwrap_or(Condition { what, met: None, why })
        };
        Explanation {
            file: self.file,
            result: self.result,
            conditions: WHAT.map(or_not_checked),
            expires_at: self.expires_at,
            fate,
            evicted_after: None,
            verdict: verdict.into(),
        }
    }
}

impl Explaining {
    fn explain(&self, file: PathBuf) -> Explanation {
        let name = file.file_name().unwrap_or_default().as_bytes().to_vec();
        let mut draft =
            Draft { file: file.clone(), result: None, expires_at: None, conditions: Vec::new() };
        let (half, stem) = match Name::of(&name) {
            Name::Half(half, stem) => (half, stem),
            other => return explain_other(draft, &file, &other),
        };
        let result = stem.name(Half::Result);
        draft.result = Some(file.with_file_name(OsStr::from_bytes(&result)));
        match half {
            Half::Result => draft.add(true, "it ends in .result.json.lz4"),
            Half::Metadata => draft.add(true, format!("it is the metadata of {}", shown(&result))),
        }
        match self.open(&file) {
            Ok((root, dir)) => {
                draft.add(true, format!("that is {}", display_path(root.path())));
                self.explain_pair(draft, root, &dir, &stem)
            }
            Err((why, _)) if is_missing(&file) => draft.stop(why, Fate::Gone, verdicts::NO_FILE),
            Err((why, verdict)) => draft.stop(why, Fate::Stays, verdict),
        }
    }

    /// Opens the directory of `file` in the cache directory. The error says why that fails, and what it
    /// means for the file.
    fn open(&self, file: &Path) -> Result<(&Root, Dir), (String, &'static str)> {
        let kept = |why: String| (why, verdicts::OUTSIDE_KEPT);
        let Some(root) = &self.root else {
            return Err(kept(format!("{} does not exist", display_path(&self.cache_dir))));
        };
        let parent = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let resolved = match std::fs::canonicalize(parent) {
            Ok(resolved) => resolved,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(kept(format!("{} does not exist", display_path(parent))));
            }
            Err(error) => {
                return Err(kept(format!("{} can't be reached: {error}", display_path(parent))));
            }
        };
        let Ok(rel) = resolved.strip_prefix(root.path()) else {
            return Err(kept(format!(
                "it is in {}, not in {}",
                display_path(&resolved),
                display_path(root.path())
            )));
        };
        match root.open_dir(&rel.into()) {
            Ok(dir) => Ok((root, dir)),
            Err(error) if is_mounted_over(&error) => Err((
                format!(
                    "{} is on another file system, which is mounted there",
                    display_path(&resolved)
                ),
                verdicts::MOUNT_KEPT,
            )),
            Err(error) => Err((
                format!("{} can't be opened: {error}", display_path(&resolved)),
                verdicts::UNREAD_KEPT,
            )),
        }
    }

    fn explain_pair(&self, mut draft: Draft, root: &Root, dir: &Dir, stem: &Stem) -> Explanation {
        let names = [Half::Result, Half::Metadata].map(|half| stem.name(half));
        let [result, metadata] = names.each_ref().map(|name| shown(name));
        let odd = |name: &str, what: &str| format!("{name} is {what}, not a regular file");
        let unseen = |error: &io::Error| format!("it can't be inspected: {error}");
        let kinds = names.each_ref().map(|name| kind(dir, name));
        // After `kinds`: a file that a cleaner claims in between is found at its reserved name.
        let is_claimed = match is_claimed(dir, stem) {
            Ok(is_claimed) => is_claimed,
            Err(error) => return draft.stop(unseen(&error), Fate::Stays, verdicts::UNSEEN_KEPT),
        };
        match kinds {
            [Kind::Nothing, Kind::Nothing] => {
                let verdict = if is_claimed { verdicts::CLAIMED } else { verdicts::NOT_THERE };
                let why = "neither the result nor its metadata is there";
                return draft.stop(why, Fate::Gone, verdict);
            }
            [Kind::Other(what), _] => {
                return draft.stop(odd(&result, what), Fate::Stays, verdicts::ODD_RESULT_KEPT);
            }
            [_, Kind::Other(what)] => {
                return draft.stop(odd(&metadata, what), Fate::Stays, verdicts::ODD_METADATA_KEPT);
            }
            [Kind::Unknown(error), _] | [_, Kind::Unknown(error)] => {
                return draft.stop(unseen(&error), Fate::Stays, verdicts::UNSEEN_KEPT);
            }
            [Kind::File, Kind::Nothing] => {
                let why = format!("there is no {metadata} beside it");
                let verdict =
                    verdicts::unless_orphans(verdicts::RESULT_ALONE_KEPT, verdicts::UNCHANGED_FOR);
                return draft.stop(why, Fate::Stays, verdict);
            }
            [Kind::Nothing, Kind::File] if is_claimed => {
                let why = format!("its result {result} is at its reserved name");
                return draft.stop(why, Fate::Due, verdicts::CLAIMED);
            }
            [Kind::Nothing, Kind::File] => {
                let (kept, removed) =
                    (verdicts::METADATA_ALONE_KEPT, verdicts::EXPIRED_AND_UNCHANGED_FOR);
                let why = format!("its result {result} is not there");
                let read = read_metadata(dir, &stem.name(Half::Metadata), &mut Vec::new());
                let verdict = match read {
                    Ok(Some(ReadMetadata { expires_at: Err(reason), .. })) => {
                        format!("{kept} (Its metadata is invalid, too: {reason}.)")
                    }
                    _ => verdicts::unless_orphans(kept, removed),
                };
                return draft.stop(why, Fate::Stays, verdict);
            }
            [Kind::File, Kind::File] => draft.add(true, metadata),
        }
        self.explain_expiry(draft, root, dir, stem)
    }

    /// Explains why a pair with both halves is deleted or kept.
    fn explain_expiry(&self, mut draft: Draft, root: &Root, dir: &Dir, stem: &Stem) -> Explanation {
        let (expires_at, is_due, verdict) = match self.inspect(root, dir, stem) {
            Some(Outcome::NotDue { expires_at, .. } | Outcome::Evictable { expires_at }) => {
                (expires_at, false, verdicts::NOT_DUE.to_owned())
            }
            Some(Outcome::Due { expires_at, .. }) => (expires_at, true, deletion(dir, stem)),
            Some(Outcome::Unsettled { expires_at, .. }) => {
                (expires_at, true, verdicts::UNSETTLED.to_owned())
            }
            Some(Outcome::Broken { reason, .. }) => {
                let verdict = match reason {
                    Broken::Unreadable(_) => verdicts::METADATA_UNREADABLE_KEPT,
                    _ => verdicts::BROKEN_KEPT,
                };
                return draft.stop(reason.to_string(), Fate::Stays, verdict);
            }
            Some(Outcome::Failed(failure) | Outcome::RestoreFailed(failure)) => {
                return draft.stop(failure.to_string(), Fate::Stays, verdicts::UNREADABLE_KEPT);
            }
            Some(Outcome::Changed | Outcome::ClaimedElsewhere) => {
                return draft.stop("it has just changed", Fate::Due, verdicts::CHANGING);
            }
            Some(Outcome::Incomplete | Outcome::Deleted { .. } | Outcome::Evicted { .. })
            | None => {
                return draft.stop("it has just vanished", Fate::Gone, verdicts::VANISHED);
            }
        };
        draft.expires_at = Some(expires_at);
        draft.add(true, "a JSON object with a valid expires_at");
        let why = if is_due { "expires_at has passed" } else { "expires_at is in the future" };
        draft.add(is_due, why);
        let fate = if is_due { Fate::Due } else { Fate::Waits };
        let mut explanation = draft.finish(fate, verdict);
        if let (Fate::Waits, Some(budget)) = (fate, self.context.budget()) {
            let key = PairKey { dir: Arc::clone(&dir.rel), stem: stem.clone() };
            let (evicted_after, verdict) = self.eviction(root, budget, &key);
            explanation.evicted_after = evicted_after;
            explanation.verdict = format!("{} {verdict}", explanation.verdict);
        }
        explanation
    }

    /// Returns how many pairs would be evicted before this one, and the same in words.
    fn eviction(&self, root: &Root, budget: &Budget, key: &PairKey) -> (Option<u64>, String) {
        let unknown = || (None, verdicts::EVICTION_UNKNOWN.to_owned());
        let scanned = scan_into(root, &self.context, Candidates::default(), |candidates, batch| {
            for JobResult { key, outcome } in &batch.others {
                candidates.add_outcome(key, outcome);
            }
        });
        let Ok((_, candidates)) = scanned else { return unknown() };
        let (in_order, _) = candidates.in_order(budget, self.context.clock().wall());
        let Ok(beyond) = candidates.beyond(budget, root, &in_order) else { return unknown() };
        let Some(before) = in_order.iter().position(|candidate| candidate.key == *key) else {
            return (None, verdicts::NOT_EVICTABLE.to_owned());
        };
        let now =
            if before < beyond.count { verdicts::EVICTED_NOW } else { verdicts::WITHIN_BUDGET };
        let pairs = if before == 1 { "1 pair goes" } else { &format!("{before} pairs go") };
        (Some(before as u64), format!("If the disk budget is exceeded, {pairs} before it. {now}"))
    }

    /// Inspects a complete pair as a cleaner does before a deletion.
    fn inspect(&self, root: &Root, dir: &Dir, stem: &Stem) -> Option<Outcome> {
        let key = PairKey { dir: Arc::clone(&dir.rel), stem: stem.clone() };
        let mut processor = PairProcessor::new(&self.context, root);
        processor.process_jobs(&[Job { key, settled: None, evict: None }], &AtomicBool::new(false));
        processor.take_found().pop().map(|found| found.outcome)
    }
}

/// Returns what becomes of a due pair, in words.
fn deletion(dir: &Dir, stem: &Stem) -> String {
    match obstacle(dir, stem) {
        None if stem.claim(Half::Result).len() > MAX_NAME => {
            format!("{} {}", verdicts::DELETED_AT_ONCE, verdicts::LONG_NAME)
        }
        None => verdicts::DELETED_AT_ONCE.to_owned(),
        Some(obstacle) => format!("It is due, but {obstacle}. {}", verdicts::RETRIED),
    }
}

/// Explains what happens to a file whose name is that of neither half.
fn explain_other(draft: Draft, file: &Path, name: &Name) -> Explanation {
    let found = std::fs::symlink_metadata(file);
    let is = |is: fn(&std::fs::Metadata) -> bool| found.as_ref().is_ok_and(is);
    let (is_dir, is_file) = (is(|found| found.is_dir()), is(|found| found.is_file()));
    let (why, verdict) = match name {
        Name::Tmp(half, stem) => {
            let half = shown(&stem.name(*half));
            let verdict = if is_file {
                verdicts::unless_orphans(verdicts::TMP_KEPT, verdicts::UNCHANGED_FOR)
            } else {
                verdicts::ODD_RESULT_KEPT.to_owned()
            };
            (format!("it ends in .tmp: a writer has not completed {half} yet"), verdict)
        }
        Name::Claim(half, stem) | Name::OrphanClaim(half, stem) => {
            let half = shown(&stem.name(*half));
            (claimed(&half), verdicts::CLAIM_KEPT.to_owned())
        }
        Name::TmpClaim(half, stem) => {
            let half = shown(&stem.tmp_name(*half));
            (claimed(&half), verdicts::CLAIM_KEPT.to_owned())
        }
        _ => {
            let why = "it ends neither in .result.json.lz4 nor in .metadata.json".to_owned();
            (why, if is_dir { verdicts::DIRECTORY_KEPT } else { verdicts::OTHER_KEPT }.to_owned())
        }
    };
    match found {
        Ok(_) => draft.stop(why, Fate::Stays, verdict),
        Err(error) if says_missing(&error) => draft.stop(why, Fate::Gone, verdicts::NO_FILE),
        Err(error) => draft.stop(why, Fate::Stays, format!("{} ({error})", verdicts::UNSEEN_KEPT)),
    }
}

fn claimed(name: &str) -> String {
    format!("it is a reserved name: a cleaner has claimed {name}")
}

pub(super) fn shown(name: &[u8]) -> String {
    display_path(Path::new(OsStr::from_bytes(name)))
}
