//! What is done to the cache directory, and beside it. One file: it is one list of operations.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;

use super::shadow::expiry;
use super::{UNSETTLED, World, Writer, milliseconds};
use crate::common::{Pair, Service, pair_of_bytes, publish, wait_until};

pub const STEMS: [&[u8]; 8] = [
    b"a",
    b"b",
    b"b.metadata.json",
    b"new\nline",
    b"\xff\xfe",
    b"",
    b"b9cae70a-aead-4aa8-9037-cd243541f7b3",
    b"d12e3d5a-b8cd-4c74-b817-2ad74f0562af",
];
impl World {
    /// Does anything at all.
    pub fn operate(&mut self) {
        match self.random.below(100) {
            0..=13 => self.store(),
            14..=19 => self.write_in_place(),
            20..=31 => self.replace_metadata(),
            32..=35 => self.replace_result(),
            36..=41 => self.remove_half(),
            42..=47 => self.move_pair(),
            48..=52 => self.move_half(),
            53..=56 => self.swap_halves(),
            57..=60 => self.link_pair(),
            61..=66 => self.fill_new_dir(),
            67..=71 => self.move_dir(),
            72..=74 => self.move_out(),
            75..=77 => drop(self.move_in()),
            78 => self.pass_through(),
            79..=80 => self.remove_tree(),
            81..=84 => self.begin_to_write(),
            85..=88 => self.go_on_writing(),
            89..=90 => self.change_permissions(),
            91..=94 => self.look(),
            95..=98 => thread::sleep(Duration::from_micros(self.random.below(8000) as u64)),
            _ if self.random.one_in(2) => self.restart(),
            _ => {}
        }
    }

    /// One of the operations that depend on no file being there.
    fn operate_unseen(&mut self) {
        match self.random.below(8) {
            0 | 1 => self.store(),
            2 => self.replace_metadata_by_rename(),
            3 => self.fill_new_dir(),
            4 => self.move_dir(),
            5 => self.move_out(),
            6 => drop(self.move_in()),
            _ => self.remove_tree(),
        }
    }

    pub fn note(&mut self, what: String) {
        self.history.push(what.replace(&*self.cache.outside("").to_string_lossy(), ""));
    }

    pub fn dir(&mut self) -> PathBuf {
        let dirs = self.shadow.below(self.cache.path()).1;
        dirs[self.random.below(dirs.len())].clone()
    }

    fn pair(&mut self) -> Pair {
        let dir = self.dir();
        pair_of_bytes(&dir, STEMS[self.random.below(STEMS.len())])
    }

    /// A pair that is there for sure, and stays.
    fn lasting_pair(&mut self) -> Option<Pair> {
        let lasts = |pair: &Pair| {
            !self.shadow.may_go(pair)
                && self.shadow.whole(pair).unwrap().iter().all(|file| !file.maybe)
        };
        let pairs: Vec<Pair> = self.shadow.pairs().into_iter().filter(lasts).collect();
        (!pairs.is_empty()).then(|| pairs[self.random.below(pairs.len())].clone())
    }

    fn result(&mut self) -> String {
        self.names += 1;
        format!("result {} of {:>30}", self.names, "")
    }

    /// Metadata of either writer: most that waits for hours, some that has expired or will in a
    /// moment, and some that is broken.
    fn metadata(&mut self) -> String {
        self.names += 1;
        let number = self.names;
        let hours = 10 * 3_600_000 + self.random.below(36_000_000) as i64;
        let at = match self.random.below(10) {
            0 => milliseconds() - 1 - self.random.below(100_000) as i64,
            1 | 2 => milliseconds() + self.random.below(1000) as i64,
            3 | 4 => {
                let broken = [
                    String::new(),
                    format!("{{\"number\": {number}, \"expires_at\": 17"),
                    format!("{{\"number\": {number}, \"expires_at\": 1795468284498}}"),
                    format!("{{\"number\": {number}, \"expires_at\": \"soon\"}}"),
                    format!("[{number}]"),
                ];
                return broken[self.random.below(broken.len())].clone();
            }
            _ => milliseconds() + hours,
        };
        if self.random.one_in(2) {
            return format!(
                "{{\"number\": {number}, \"expires_at\": {}.{:03}}}",
                at / 1000,
                at % 1000
            );
        }
        let at = chrono::DateTime::from_timestamp_millis(at).unwrap().with_timezone(&chrono::Local);
        format!(
            "{{\"number\": {number}, \"expires_at\": \"{}\"}}",
            at.format("%Y-%m-%dT%H:%M:%S%.3f")
        )
    }

    fn store(&mut self) {
        let pair = self.pair();
        self.store_at(&pair);
    }

    /// Publishes a pair as the result store does.
    pub fn store_at(&mut self, pair: &Pair) {
        let (result, metadata) = (self.result(), self.metadata());
        self.note(format!("store {metadata} {pair:?}"));
        self.replaces(pair);
        let start = Instant::now();
        publish(&pair.result, result.as_bytes());
        publish(&pair.metadata, metadata.as_bytes());
        self.shadow.put(&pair.result, result.as_bytes());
        self.shadow.put(&pair.metadata, metadata.as_bytes());
        self.forgive(&pair.result, start);
    }

    /// A result whose metadata came late may have been judged by what was there before.
    fn forgive(&mut self, result: &Path, start: Instant) {
        self.shadow.files.get_mut(result).unwrap().maybe |= start.elapsed() > UNSETTLED;
        self.shadow.settle();
    }

    /// Whether a file may be written where it is: it stays, or is not there, nobody else writes it,
    /// and it has no other name, which the kernel would not report.
    fn is_free(&self, pair: &Pair, half: &Path) -> bool {
        let alone = |inode| {
            self.shadow.files.values().filter(|file| file.inode == inode).count() == 1
                && self.writers.iter().all(|writer| writer.inode != inode)
        };
        !self.shadow.may_go(pair)
            && self.shadow.files.get(half).is_none_or(|file| !file.maybe && alone(file.inode))
    }

    fn write_in_place(&mut self) {
        let pair = self.pair();
        if self.is_free(&pair, &pair.result) && self.is_free(&pair, &pair.metadata) {
            self.write_at(&pair);
        }
    }

    pub fn write_at(&mut self, pair: &Pair) {
        let (result, metadata) = (self.result(), self.metadata());
        self.note(format!("write {metadata} {pair:?}"));
        self.replaces(pair);
        let start = Instant::now();
        fs::write(&pair.result, &result).unwrap();
        fs::write(&pair.metadata, &metadata).unwrap();
        self.shadow.write(&pair.result, result.as_bytes());
        self.shadow.write(&pair.metadata, metadata.as_bytes());
        self.forgive(&pair.result, start);
    }

    /// Extends, shortens, spoils or mends a pair, or leaves metadata alone.
    fn replace_metadata(&mut self) {
        let pair = self.pair();
        if self.random.one_in(2) || !self.is_free(&pair, &pair.metadata) {
            return self.replace_metadata_by_rename();
        }
        let metadata = self.metadata();
        self.note(format!("rewrite {metadata} {pair:?}"));
        fs::write(&pair.metadata, &metadata).unwrap();
        self.shadow.write(&pair.metadata, metadata.as_bytes());
    }

    fn replace_metadata_by_rename(&mut self) {
        let (pair, metadata) = (self.pair(), self.metadata());
        self.note(format!("replace {metadata} {pair:?}"));
        self.shadow.touch(&pair);
        publish(&pair.metadata, metadata.as_bytes());
        self.shadow.put(&pair.metadata, metadata.as_bytes());
        self.shadow.settle();
    }

    fn replace_result(&mut self) {
        let (pair, result) = (self.pair(), self.result());
        self.note(format!("replace result {pair:?}"));
        self.shadow.touch(&pair);
        publish(&pair.result, result.as_bytes());
        self.shadow.put(&pair.result, result.as_bytes());
        self.shadow.settle();
    }

    fn remove_half(&mut self) {
        let pair = self.pair();
        let half = self.half_of(&pair);
        self.shadow.touch(&pair);
        match self.shadow.files.get(&half) {
            None => {}
            Some(file) if file.maybe => {
                self.note(format!("try to remove {half:?}"));
                let _ = fs::remove_file(&half);
            }
            Some(_) => {
                self.note(format!("remove {half:?}"));
                insist(&half, || fs::remove_file(&half));
                self.shadow.files.remove(&half);
            }
        }
    }

    fn half_of(&mut self, pair: &Pair) -> PathBuf {
        if self.random.one_in(2) { pair.result.clone() } else { pair.metadata.clone() }
    }

    /// Whether renaming one to the other would do nothing, since both name one file.
    fn is_same(&self, a: &Path, b: &Path) -> bool {
        let inode = |path| self.shadow.files.get(path).map(|file| file.inode);
        a == b || inode(a) == inode(b)
    }

    fn move_pair(&mut self) {
        let Some(from) = self.lasting_pair() else { return };
        let to = self.pair();
        if self.is_same(&from.result, &to.result) || self.is_same(&from.metadata, &to.metadata) {
            return;
        }
        self.note(format!("move {from:?} to {to:?}"));
        self.replaces(&to);
        let start = Instant::now();
        for (from, to) in [(&from.result, &to.result), (&from.metadata, &to.metadata)] {
            insist(from, || fs::rename(from, to));
            self.shadow.rename(from, to);
        }
        self.forgive(&to.result, start);
    }

    fn move_half(&mut self) {
        let Some(pair) = self.lasting_pair() else { return };
        let from = self.half_of(&pair);
        let other = self.pair();
        let to = if from == pair.result { &other.result } else { &other.metadata };
        if self.is_same(&from, to) {
            return;
        }
        self.note(format!("move {from:?} to {to:?}"));
        self.shadow.touch(&other);
        insist(&from, || fs::rename(&from, to));
        self.shadow.rename(&from, to);
        self.shadow.settle();
    }

    fn swap_halves(&mut self) {
        let (Some(a), Some(b)) = (self.lasting_pair(), self.lasting_pair()) else { return };
        let (a, b) =
            if self.random.one_in(2) { (a.result, b.result) } else { (a.metadata, b.metadata) };
        if !self.is_same(&a, &b) {
            self.note(format!("swap {a:?} and {b:?}"));
            insist(&a, || Ok(renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE)?));
            self.shadow.swap(&a, &b);
        }
    }

    fn link_pair(&mut self) {
        let Some(from) = self.lasting_pair() else { return };
        let to = self.pair();
        let written = self.writers.iter().map(|writer| writer.inode);
        let inodes = self.shadow.whole(&from).unwrap().map(|file| file.inode);
        let taken =
            [&to.result, &to.metadata].iter().any(|half| self.shadow.files.contains_key(*half));
        if taken || written.clone().any(|inode| inodes.contains(&inode)) {
            return;
        }
        self.note(format!("link {from:?} to {to:?}"));
        for (from, to) in [(&from.result, &to.result), (&from.metadata, &to.metadata)] {
            insist(from, || fs::hard_link(from, to));
            let file = self.shadow.files[from].clone();
            self.shadow.files.insert(to.clone(), file);
        }
    }

    fn begin_to_write(&mut self) {
        let pair = self.pair();
        if !self.is_free(&pair, &pair.metadata) || self.writers.len() == 3 {
            return;
        }
        let content = self.metadata();
        let written = content.len() / 2;
        self.note(format!("begin to write {content} {pair:?}"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&pair.metadata)
            .unwrap();
        file.write_all(&content.as_bytes()[..written]).unwrap();
        let inode = self.shadow.write(&pair.metadata, &content.as_bytes()[..written]);
        self.writers.push(Writer { file, inode, content, written });
    }

    pub fn go_on_writing(&mut self) {
        if !self.writers.is_empty() {
            let at = self.random.below(self.writers.len());
            let Writer { mut file, inode, content, written } = self.writers.swap_remove(at);
            self.note(format!("go on to write {content}"));
            file.write_all(&content.as_bytes()[written..]).unwrap();
            drop(file);
            self.shadow.rewrite(inode, content.as_bytes());
        }
    }

    fn change_permissions(&mut self) {
        let Some(pair) = self.lasting_pair() else { return };
        let half = self.half_of(&pair);
        self.note(format!("chmod {half:?}"));
        insist(&half, || fs::set_permissions(&half, Permissions::from_mode(0o640)));
    }

    /// Nothing goes that has to stay, and nothing goes early.
    fn look(&mut self) {
        let pairs = self.shadow.pairs();
        if pairs.is_empty() {
            return;
        }
        let pair = &pairs[self.random.below(pairs.len())];
        let files = self.shadow.whole(pair).unwrap();
        if files.iter().any(|file| file.maybe) {
            return;
        }
        if self.shadow.may_go(pair) {
            let gone = !pair.result.exists() || !pair.metadata.exists();
            assert!(
                !gone || Some(milliseconds()) >= expiry(&files[1].bytes),
                "{pair:?} went too early"
            );
        } else {
            wait_until("what has to stay is there", || pair.is_whole());
        }
    }

    /// Ends the service, in one way or the other, and starts another one after a while.
    fn restart(&mut self) {
        let service = self.service.take().unwrap();
        if self.random.one_in(2) {
            self.note("terminate".to_owned());
            let (status, _, log) = service.terminate();
            assert!(status.success(), "{status}\n{log}");
        } else {
            self.note("kill".to_owned());
            service.end(Signal::KILL);
            self.killed = true;
        }
        for _ in 0..self.random.below(12) {
            self.operate_unseen();
        }
        self.reported.clear();
        self.perhaps_reported.clear();
        (self.deleted, self.perhaps_deleted, self.counted) = (0, 0, 0);
        let pairs = self.shadow.pairs();
        let due = pairs.iter().filter(|pair| self.shadow.may_go(pair));
        self.before = due.map(|pair| self.shadow.whole(pair).unwrap()[0].version.0).collect();
        self.note("start".to_owned());
        self.service = Some(Service::start(self.cache.path(), &[]));
        self.tally.restarts += 1;
    }
}

/// Does something to a file that has to be there: the cleaner may only have it in its hands for an
/// instant.
fn insist(path: &Path, mut action: impl FnMut() -> io::Result<()>) {
    wait_until(&format!("{path:?} is there"), || match action() {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        done => {
            done.unwrap();
            true
        }
    });
}
