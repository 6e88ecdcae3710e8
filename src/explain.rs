//! Why a file goes, or stays.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chrono::{DateTime, Utc};
use rustix::fs::{Access, AtFlags, FileType, FlockOperation, accessat, flock};
use rustix::io::Errno;

use crate::attend::{Attendant, Found, Job, Outcome};
use crate::attending::Attending;
use crate::clock::Clock;
use crate::config::Config;
use crate::entry::{Half, Key, Name, Stem};
use crate::error::{Error, display_path};
use crate::look::{Metadata, read_metadata, status};
use crate::root::{Dir, Root, Standing, is_mounted_over, look_at};

/// The longest name that file systems take, in bytes.
const LONGEST_NAME: usize = 255;

const GOES: &str =
    "A running cleaner deletes it at once; without one, `result-cleaner sweep` does.";

/// Why a result goes or stays, as far as it can be told now.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// The file that was asked about, as it was named.
    pub file: PathBuf,
    /// The result that it is, or belongs to, where its name is that of either half.
    pub result: Option<PathBuf>,
    /// The five conditions of which all have to be met for a deletion, in their order.
    pub conditions: [Condition; 5],
    /// When the metadata says that the result may go.
    pub expires_at: Option<DateTime<Utc>>,
    /// What will become of it.
    pub fate: Fate,
    /// The same in words, with what stands in the way and what can be done about it.
    pub verdict: String,
}

/// One of the conditions of a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Condition {
    /// What has to hold.
    pub what: &'static str,
    /// Whether it does; `None` where that can't be told because an earlier one does not.
    pub met: Option<bool>,
    /// Why, or why not.
    pub why: String,
}

/// What will become of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It may go now.
    Due,
    /// It goes once its time has come.
    Waits,
    /// It is left alone.
    Stays,
    /// It is not there.
    Gone,
}

const WHAT: [&str; 5] = [
    "the name is that of a result",
    "it lies in the cache directory",
    "its companion is there",
    "the metadata is valid",
    "its time has come",
];

/// Tells for `file`, a result or metadata, which conditions of a deletion are met, and what will become
/// of it. Changes nothing.
///
/// # Errors
/// [`Error::Unreadable`] and [`Error::NotADirectory`] for the cache directory, [`Error::NoRuntime`].
pub async fn explain(config: &Config, file: &Path) -> Result<Explanation, Error> {
    let runtime = crate::runtime::current()?;
    let cache_dir = config.expanded_cache_dir()?;
    let attendant = Attendant::listing(Arc::new(Clock::default()), config);
    let (config, file) = (config.clone(), file.to_owned());
    let task = runtime.spawn_blocking(move || {
        let root = match look_at(&cache_dir) {
            Standing::Directory(id) => match Root::open(id) {
                Ok(root) => Some(root),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(source) => return Err(Error::Unreadable { path: cache_dir, source }),
            },
            Standing::Absent => None,
            Standing::NotADirectory => return Err(Error::NotADirectory { path: cache_dir }),
            Standing::Unreadable(source) => {
                return Err(Error::Unreadable { path: cache_dir, source });
            }
        };
        let explaining = Explaining { cache_dir, root, attendant, config };
        Ok(explaining.explain(file))
    });
    crate::runtime::joined(task.await)
}

struct Explaining {
    cache_dir: PathBuf,
    root: Option<Root>,
    attendant: Attendant,
    config: Config,
}

/// An explanation that is being written: conditions are added in their order until one is not met.
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

    fn finish(mut self, fate: Fate, verdict: impl Into<String>) -> Explanation {
        let left = WHAT[self.conditions.len()..].iter().map(|what| Condition {
            what,
            met: None,
            why: "not looked at, since an earlier condition is not met".to_owned(),
        });
        self.conditions.extend(left);
        let mut conditions = self.conditions.into_iter();
        Explanation {
            file: self.file,
            result: self.result,
            conditions: WHAT.map(|what| {
                conditions.next().unwrap_or(Condition { what, met: None, why: String::new() })
            }),
            expires_at: self.expires_at,
            fate,
            verdict: verdict.into(),
        }
    }
}

impl Explaining {
    fn explain(&self, file: PathBuf) -> Explanation {
        let mut draft =
            Draft { file: file.clone(), result: None, expires_at: None, conditions: Vec::new() };
        let name = file.file_name().unwrap_or_default().as_bytes();
        let (half, stem) = match Name::of(name) {
            Name::Half(half, stem) => (half, stem),
            Name::Tmp(half, stem) => {
                draft.add(
                    false,
                    format!(
                        "it ends in .tmp: a writer has not completed {} yet",
                        shown(&stem.name(half))
                    ),
                );
                return draft.finish(
                    Fate::Stays,
                    self.unless_orphans(
                        "It stays: it is no result before its writer renames it.",
                        "it is removed once it has not been changed for",
                    ),
                );
            }
            Name::Claim(half, stem) | Name::TmpClaim(half, stem) => {
                draft.add(
                    false,
                    format!(
                        "it is a reserved name: a cleaner has taken {} there",
                        shown(&stem.name(half))
                    ),
                );
                return draft.finish(
                    Fate::Stays,
                    "A cleaner is about to delete it, or to give it its name back. What a cleaner that was \
                     killed has left is taken up by the next start, or by `result-cleaner sweep`.",
                );
            }
            Name::Other => {
                draft.add(false, "it ends neither in .result.json.lz4 nor in .metadata.json");
                return draft
                    .finish(Fate::Stays, "It stays: files with other names are never touched.");
            }
        };
        let result = file.with_file_name(OsStr::from_bytes(&stem.name(Half::Result)));
        draft.result = Some(result.clone());
        draft.add(
            true,
            match half {
                Half::Result => "it ends in .result.json.lz4".to_owned(),
                Half::Metadata => {
                    format!("it is the metadata of {}", shown(&stem.name(Half::Result)))
                }
            },
        );
        match self.open(&file) {
            Ok((root, dir)) => {
                draft.add(true, format!("that is {}", display_path(root.path())));
                self.explain_pair(draft, root, &dir, &stem)
            }
            Err((why, fate, verdict)) => {
                draft.add(false, why);
                draft.finish(fate, verdict)
            }
        }
    }

    /// The directory of `file`, in the cache directory; else why it is not there, and what that means.
    fn open(&self, file: &Path) -> Result<(&Root, Dir), (String, Fate, String)> {
        let stays = |why: String| {
            (why, Fate::Stays, "It stays: nothing outside the cache directory is touched. (Another one is named by --cache-dir.)".to_owned())
        };
        let Some(root) = &self.root else {
            return Err(stays(format!("{} does not exist", display_path(&self.cache_dir))));
        };
        let parent = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let resolved = match std::fs::canonicalize(parent) {
            Ok(resolved) => resolved,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let why = format!("{} does not exist", display_path(parent));
                return Err((why, Fate::Gone, "There is no such file.".to_owned()));
            }
            Err(error) => {
                return Err(stays(format!("{} can't be reached: {error}", display_path(parent))));
            }
        };
        let Ok(rel) = resolved.strip_prefix(root.path()) else {
            return Err(stays(format!(
                "it lies in {}, not in {}",
                display_path(&resolved),
                display_path(root.path())
            )));
        };
        match root.open_dir(&rel.into()) {
            Ok(dir) => Ok((root, dir)),
            Err(error) if is_mounted_over(&error) => Err((
                format!(
                    "{} lies on another file system, which is mounted there",
                    display_path(&resolved)
                ),
                Fate::Stays,
                "It stays: mount points in the cache directory are not entered.".to_owned(),
            )),
            Err(error) => Err((
                format!("{} can't be opened: {error}", display_path(&resolved)),
                Fate::Stays,
                "It stays until its directory can be read by the cleaner: look at the permissions."
                    .to_owned(),
            )),
        }
    }

    fn explain_pair(&self, mut draft: Draft, root: &Root, dir: &Dir, stem: &Stem) -> Explanation {
        let kind = |half: Half| kind(dir, &stem.name(half));
        let (result, metadata) = (kind(Half::Result), kind(Half::Metadata));
        match (&result, &metadata) {
            (Kind::Nothing, Kind::Nothing) => {
                draft.add(false, "neither the result nor its metadata is there");
                return draft.finish(Fate::Gone, if taken(dir, stem) {
                    "A cleaner has taken it to its reserved name, to delete it or to give it back."
                } else {
                    "There is no such result: it was deleted, or never stored."
                });
            }
            (Kind::Other(what), _) => {
                draft.add(
                    false,
                    format!("{} is {what}, no regular file", shown(&stem.name(Half::Result))),
                );
                return draft.finish(Fate::Stays, "It stays: only regular files are results; nothing else that bears the name is touched.");
            }
            (_, Kind::Other(what)) => {
                draft.add(
                    false,
                    format!("{} is {what}, no regular file", shown(&stem.name(Half::Metadata))),
                );
                return draft.finish(
                    Fate::Stays,
                    "It stays: metadata is a regular file, and links are not followed.",
                );
            }
            (Kind::Unknown(error), _) | (_, Kind::Unknown(error)) => {
                draft.add(false, format!("it can't be looked at: {error}"));
                return draft.finish(
                    Fate::Stays,
                    "It stays until it can be looked at; that is tried again by each sweep.",
                );
            }
            (Kind::File, Kind::Nothing) => {
                draft.add(
                    false,
                    format!("there is no {} beside it", shown(&stem.name(Half::Metadata))),
                );
                return draft.finish(Fate::Stays, self.unless_orphans(
                    "It stays: a result without metadata is left alone, since nothing tells when it may go. Once its metadata arrives the pair is judged anew.",
                    "it is removed once it has not been changed for",
                ));
            }
            (Kind::Nothing, Kind::File) => {
                draft.add(
                    false,
                    format!("its result {} is not there", shown(&stem.name(Half::Result))),
                );
                return draft.finish(
                    Fate::Stays,
                    self.unless_orphans(
                        "It stays: metadata without a result is left alone.",
                        "it is removed once it has expired and not been changed for",
                    ),
                );
            }
            (Kind::File, Kind::File) => draft.add(true, shown(&stem.name(Half::Metadata))),
        }
        let read = read_metadata(dir, &stem.name(Half::Metadata), &mut Vec::new());
        let expires_at = match read {
            Ok(Some(Metadata { expires_at: Ok(at), .. })) => at,
            Ok(Some(Metadata { expires_at: Err(reason), .. })) => {
                draft.add(false, reason.to_string());
                return draft.finish(Fate::Stays, "It stays until its metadata is repaired, or written anew; that is noticed at once.");
            }
            Ok(None) => {
                draft.add(false, "it has just vanished");
                return draft.finish(
                    Fate::Gone,
                    "It is being deleted, or written anew, right now: ask again.",
                );
            }
            Err(error) => {
                draft.add(false, format!("it can't be read: {error}"));
                return draft.finish(
                    Fate::Stays,
                    "It stays until its metadata can be read; that is tried again by each sweep.",
                );
            }
        };
        draft.expires_at = Some(expires_at);
        draft.add(true, "a JSON object with a valid expires_at");
        let now = self.attendant.clock().wall();
        draft.add(
            expires_at <= now,
            match expires_at <= now {
                true => "expires_at has passed",
                false => "expires_at lies ahead",
            },
        );
        let (fate, verdict) = self.fate(root, dir, stem);
        draft.finish(fate, verdict)
    }

    /// What the engine would make of a whole pair.
    fn fate(&self, root: &Root, dir: &Dir, stem: &Stem) -> (Fate, String) {
        let key = Key { dir: Arc::clone(&dir.rel), stem: stem.clone() };
        let mut attending = Attending::new(&self.attendant, root);
        attending.attend_all(&[Job { key, settled: None }], &AtomicBool::new(false));
        let Some(Found { outcome, .. }) = attending.take_found().pop() else {
            return (Fate::Stays, "It can't be told what becomes of it.".to_owned());
        };
        match outcome {
            Outcome::Waiting { .. } | Outcome::Unchanged => {
                (Fate::Waits, "A running cleaner deletes it within milliseconds of that time.".to_owned())
            }
            Outcome::Due { .. } => match obstacle(dir, stem) {
                None if stem.claim(Half::Result).len() > LONGEST_NAME => {
                    (Fate::Due, format!("{GOES} Its name leaves no room for a reserved one, so that a writer that publishes it anew in the same instant loses it."))
                }
                None => (Fate::Due, GOES.to_owned()),
                Some(obstacle) => (Fate::Due, format!("It may go, but {obstacle}. Until then it is tried again with pauses of up to ten minutes.")),
            },
            Outcome::Unsettled { .. } => (
                Fate::Due,
                "It goes once it has been unchanged for a second: the result is newer than its metadata, so that its \
                 new metadata may be on its way."
                    .to_owned(),
            ),
            Outcome::Broken { reason, .. } => (Fate::Stays, format!("It stays: {reason}.")),
            Outcome::Failed(failure) | Outcome::Stranded(failure) => (Fate::Stays, format!("It stays for now: {failure}.")),
            Outcome::Incomplete | Outcome::Removed { .. } => (Fate::Gone, "It has just vanished.".to_owned()),
            Outcome::Changed | Outcome::Taken => {
                (Fate::Due, "It is being changed, or is in the hands of a cleaner, right now: ask again.".to_owned())
            }
        }
    }

    /// `stays`, and what asking for the removal of orphans would change.
    fn unless_orphans(&self, stays: &str, removed: &str) -> String {
        match self.config.remove_orphans {
            Some(age) => format!("{stays} With --remove-orphans {removed} {age:?}."),
            None => format!("{stays} (`--remove-orphans AGE` has it removed.)"),
        }
    }
}

enum Kind {
    File,
    Nothing,
    Other(&'static str),
    Unknown(io::Error),
}

fn kind(dir: &Dir, name: &[u8]) -> Kind {
    let stat = match status(dir, name) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::NAMETOOLONG) => return Kind::Nothing,
        Err(error) => return Kind::Unknown(error.into()),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Other("a symbolic link"),
        FileType::Directory => Kind::Other("a directory"),
        FileType::Fifo => Kind::Other("a FIFO"),
        FileType::Socket => Kind::Other("a socket"),
        _ => Kind::Other("a device"),
    }
}

fn taken(dir: &Dir, stem: &Stem) -> bool {
    [Half::Result, Half::Metadata].into_iter().any(|half| status(dir, &stem.claim(half)).is_ok())
}

/// What keeps a result that is due from being deleted by this user, and what to do about it.
fn obstacle(dir: &Dir, stem: &Stem) -> Option<String> {
    match accessat(dir, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => {}
        Err(Errno::ROFS) => {
            return Some("its file system is mounted read-only: mount it read-write".to_owned());
        }
        Err(error) => {
            return Some(format!(
                "this user may not write to its directory ({}): grant that, or run the cleaner as its owner",
                io::Error::from(error)
            ));
        }
    }
    if let Kind::Other(_) = kind(dir, &stem.claim(Half::Result)) {
        return Some(format!(
            "something that is no regular file bears the reserved name {}: take it away",
            shown(&stem.claim(Half::Result))
        ));
    }
    if flock(dir, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) {
        return Some(
            "another program holds a lock (flock) on its directory: end that program".to_owned(),
        );
    }
    None
}

fn shown(name: &[u8]) -> String {
    display_path(Path::new(OsStr::from_bytes(name)))
}
