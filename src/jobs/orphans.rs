//! Finds and removes orphans: halves without the other one, temporary files that writers left of either, and
//! empty directories. They are removed only if the configuration asks for it, and only once they have been
//! unchanged for the configured age.
//!
//! One pass lists one directory. It returns when something in the directory will be old enough, and the
//! caller has to run another pass then. The first pass that finds an old file or directory only makes it a
//! candidate. A later pass removes it if it is unchanged. So a file that a writer still uses is kept even if
//! the file system's clock makes it look old.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::{FileType, Stat, fstat};

use crate::disk::inspect::{read_metadata, stat_file};
use crate::disk::list;
use crate::disk::root::{Dir, Root, is_not_ours};
use crate::display::path_field;
use crate::jobs::context::JobContext;
use crate::pair::name::{Half, Name, Stem};
use crate::pair::outcome::Failure;
use crate::pair::outcome::{OrphanCandidates, OrphanPass};
use crate::pair::tally::ErrorKind;
use crate::pair::version::{FileState, FileTime};
use crate::remove::{Orphan, prune, remove_orphans};

impl OrphanPass {
    fn search_again_at(&mut self, at: DateTime<Utc>) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    fn fail(&mut self, path: PathBuf, doing: &'static str, error: &io::Error) {
        self.failures.push((path, Failure::new(ErrorKind::Orphan, doing, error)));
    }
}

/// Removes the orphans in the directory `rel` that are old enough and were candidates `before`.
///
/// If the context only inspects, counts all old orphans instead. Returns at most `limit` new candidates.
pub(crate) fn search(
    root: &Root,
    context: &JobContext,
    rel: &Arc<Path>,
    before: &OrphanCandidates,
    limit: usize,
) -> OrphanPass {
    let mut pass = OrphanPass::default();
    let _spending = context.throttle().spend();
    let mut run = || -> io::Result<()> {
        let dir = Arc::new(root.open_dir(rel)?);
        let contents = Contents::of(&dir)?;
        let search = Search { root, context, dir, before, limit };
        if let Some(age) = context.orphan_ages().orphans {
            search.remove_old(&contents, age, &mut pass)?;
        }
        if let Some(age) = context.orphan_ages().empty_dirs {
            search.prune(&contents, age, &mut pass)?;
        }
        Ok(())
    };
    match run() {
        Err(error) if !is_not_ours(&error) => {
            pass.fail(rel.to_path_buf(), "look for orphans", &error);
        }
        _ => {}
    }
    pass
}

/// An orphan, of whatever age: its name, whether it is a `*.tmp` file, which half it is, and its state.
pub(crate) struct FoundOrphan {
    pub name: Vec<u8>,
    pub is_tmp: bool,
    pub half: Half,
    pub seen: FileState,
}

/// Lists the orphans in a directory that no cleaner has claimed. Files that can't be inspected are left out.
///
/// # Errors
/// Those of opening and listing the directory.
pub(crate) fn list_orphans(root: &Root, rel: &Arc<Path>) -> io::Result<Vec<FoundOrphan>> {
    let dir = root.open_dir(rel)?;
    let contents = Contents::of(&dir)?;
    let tmp = contents.tmp.iter().map(|(half, stem)| (stem.tmp_name(*half), true, *half, stem));
    let halves =
        contents.orphans().map(|(half, stem)| (stem.name(half).to_vec(), false, half, stem));
    let unclaimed = tmp.chain(halves).filter(|(.., stem)| !contents.claimed.contains(*stem));
    let found = unclaimed.filter_map(|(name, is_tmp, half, _)| {
        let seen = stat_file(&dir, &name).transpose()?;
        Some(seen.map(|seen| FoundOrphan { name, is_tmp, half, seen }))
    });
    found.collect()
}

/// The names in a directory, as far as they show what is an orphan.
#[derive(Debug, Default)]
struct Contents {
    is_empty: bool,
    results: HashSet<Stem>,
    metadata: HashSet<Stem>,
    tmp: HashSet<(Half, Stem)>,
    /// Pairs with a half that a cleaner has claimed.
    claimed: HashSet<Stem>,
}

impl Contents {
    fn of(dir: &Dir) -> io::Result<Self> {
        let mut contents = Self { is_empty: true, ..Self::default() };
        list::list(dir, |name, file_type| {
            contents.is_empty = false;
            match Name::of(name.to_bytes()) {
                Name::Claim(_, stem) | Name::TmpClaim(_, stem) | Name::OrphanClaim(_, stem) => {
                    contents.claimed.insert(stem);
                }
                // Whatever has the name, its other half is no orphan.
                Name::Half(Half::Result, stem) => drop(contents.results.insert(stem)),
                Name::Half(Half::Metadata, stem) => drop(contents.metadata.insert(stem)),
                Name::Tmp(half, stem) if file_type == FileType::RegularFile => {
                    contents.tmp.insert((half, stem));
                }
                Name::Tmp(..) | Name::ProbeFile | Name::Other => {}
            }
            ControlFlow::Continue(())
        })?;
        Ok(contents)
    }

    /// Halves without the other one.
    fn orphans(&self) -> impl Iterator<Item = (Half, &Stem)> {
        let results = self.results.difference(&self.metadata).map(|stem| (Half::Result, stem));
        let metadata = self.metadata.difference(&self.results).map(|stem| (Half::Metadata, stem));
        results.chain(metadata)
    }

    /// Whether the other half of a pair is being written, or was when its writer was killed.
    fn is_being_completed(&self, half: Half, stem: &Stem) -> bool {
        self.tmp.contains(&(half.other(), stem.clone()))
    }
}

struct Search<'a> {
    root: &'a Root,
    context: &'a JobContext,
    dir: Arc<Dir>,
    before: &'a OrphanCandidates,
    limit: usize,
}

impl Search<'_> {
    /// The orphans that are old enough. Those that were no candidates before are candidates from now on.
    fn old_orphans(
        &self,
        contents: &Contents,
        age: Duration,
        pass: &mut OrphanPass,
    ) -> io::Result<Vec<Orphan>> {
        let mut judged = Vec::new();
        for (half, stem) in &contents.tmp {
            if contents.claimed.contains(stem) {
                continue;
            }
            if let Some(seen) = stat_file(&self.dir, &stem.tmp_name(*half))?
                && self.is_old_enough(seen.unchanged_until(age), pass)
            {
                judged.push(Orphan::Tmp(*half, stem.clone(), seen));
            }
        }
        for (half, stem) in contents.orphans() {
            if contents.claimed.contains(stem) || contents.is_being_completed(half, stem) {
                continue;
            }
            if let Some((seen, expires_at)) = self.orphan(half, stem)?
                && self.is_old_enough(seen.unchanged_until(age).max(expires_at), pass)
            {
                judged.push(Orphan::Half(half, stem.clone(), seen));
            }
        }
        for orphan in &judged {
            if pass.candidates.files.len() < self.limit && !self.was_candidate(orphan) {
                pass.candidates.files.insert(orphan.name(), *orphan.seen());
            }
        }
        Ok(judged)
    }

    fn remove_old(
        &self,
        contents: &Contents,
        age: Duration,
        pass: &mut OrphanPass,
    ) -> io::Result<()> {
        let mut judged = self.old_orphans(contents, age, pass)?;
        if !self.context.deletes() {
            pass.removed.orphans += judged.len() as u64;
            pass.removed.orphan_bytes +=
                judged.iter().map(|orphan| orphan.seen().version.size).sum::<u64>();
            return Ok(());
        }
        let clock = self.context.clock();
        let found = judged.len();
        judged.retain(|orphan| self.was_candidate(orphan));
        let count = judged.len();
        let done = if count == 0 || !self.root.still_contains(&self.dir)? {
            Vec::new()
        } else {
            remove_orphans(&self.dir, judged, &|| clock.wall())
        };
        if done.len() < found {
            // Some are new candidates, have changed, or are claimed by another cleaner.
            pass.search_again_at(clock.wall());
        }
        for (orphan, removed) in done {
            let path = self.path(&orphan.name());
            match removed {
                Ok(freed) => {
                    pass.removed.orphans += 1;
                    pass.removed.orphan_bytes += freed;
                    let path = self.root.path().join(path);
                    tracing::debug!(path = path_field(&path), "removed an orphan");
                }
                Err(error) => match self.root.still_contains(&self.dir) {
                    Ok(true) => pass.fail(path, "remove the orphan", &error),
                    // The files of a directory that was moved away were moved with it.
                    Ok(false) => self.context.note_moved_away(&self.dir, orphan.stem()),
                    Err(_) => {
                        self.context.note_moved_away(&self.dir, orphan.stem());
                        pass.fail(path, "remove the orphan", &error);
                    }
                },
            }
        }
        Ok(())
    }

    /// A half without the other one, and the earliest time at which its content allows its removal; `None` if
    /// it may not be removed at all.
    fn orphan(&self, half: Half, stem: &Stem) -> io::Result<Option<(FileState, DateTime<Utc>)>> {
        let name = stem.name(half);
        Ok(match half {
            Half::Result => {
                stat_file(&self.dir, &name)?.map(|seen| (seen, DateTime::<Utc>::MIN_UTC))
            }
            Half::Metadata => read_metadata(&self.dir, &name, &mut Vec::new())?
                .and_then(|read| Some((read.seen, read.expires_at.ok()?))),
        })
    }

    fn prune(&self, contents: &Contents, age: Duration, pass: &mut OrphanPass) -> io::Result<()> {
        let may_empty = pass.removed.orphans > 0;
        if self.dir.rel.as_os_str().is_empty() || !(contents.is_empty || may_empty) {
            return Ok(());
        }
        let now = self.context.clock().wall();
        let unchanged_until = |stat: &Stat| old_from(times(stat), age);
        let stat = fstat(&self.dir)?;
        let until = unchanged_until(&stat);
        if !contents.is_empty {
            // It may be empty by now. Then the removal of its last file has changed it.
            pass.search_again_at(until);
            return Ok(());
        }
        if !self.is_old_enough(until, pass) {
            return Ok(());
        }
        let candidate = Some((stat.st_ino, times(&stat)));
        if !self.context.deletes() {
            pass.candidates.directory = candidate;
            pass.removed.pruned += 1;
            return Ok(());
        }
        if self.before.directory != candidate {
            pass.candidates.directory = candidate;
            return Ok(());
        }
        match prune(self.root, &self.dir, |stat| unchanged_until(stat) <= now) {
            Ok(true) => {
                pass.removed.pruned += 1;
                let path = self.root.path().join(&self.dir.rel);
                tracing::debug!(path = path_field(&path), "removed an empty directory");
            }
            Ok(false) => {}
            Err(error) => pass.fail(self.dir.rel.to_path_buf(), "remove the orphan", &error),
        }
        Ok(())
    }

    fn was_candidate(&self, orphan: &Orphan) -> bool {
        self.before.files.get(&orphan.name()) == Some(orphan.seen())
    }

    /// Whether the time `at` has come. If not, requests another pass at that time.
    fn is_old_enough(&self, at: DateTime<Utc>, pass: &mut OrphanPass) -> bool {
        let is_old_enough = at <= self.context.clock().wall();
        if !is_old_enough {
            pass.search_again_at(at);
        }
        is_old_enough
    }

    fn path(&self, name: &[u8]) -> PathBuf {
        self.dir.rel.join(std::ffi::OsStr::from_bytes(name))
    }
}

impl FileState {
    /// The time until which the file must stay unchanged to be `age` old, by the later of its times.
    fn unchanged_until(&self, age: Duration) -> DateTime<Utc> {
        old_from(self.version.mtime.max(self.ctime), age)
    }
}

fn times(stat: &Stat) -> FileTime {
    let time = |seconds, nanos| (seconds, u32::try_from(nanos).unwrap_or(0));
    time(stat.st_mtime, stat.st_mtime_nsec).max(time(stat.st_ctime, stat.st_ctime_nsec))
}

/// The time at which a file that was changed at `changed` is `age` old; the maximum if that is out of range.
fn old_from(changed: FileTime, age: Duration) -> DateTime<Utc> {
    DateTime::from_timestamp(changed.0, changed.1)
        .and_then(|changed| changed.checked_add_signed(chrono::TimeDelta::from_std(age).ok()?))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}
