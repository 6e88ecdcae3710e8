//! Kernel events and their translation.
//!
//! The events have names that are relevant and names that are not, within the root and outside of it. Two rules
//! have to hold. A change is about a path of its event and is within the root. All that an event says of a pair
//! or of a known directory is in the changes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use notify::event::{
    AccessKind, AccessMode, CreateKind, DataChange, Flag, MetadataKind, ModifyKind, RemoveKind,
    RenameMode,
};
use notify::{Event, EventKind};

use super::Input;
use crate::pair::change::Change;
use crate::pair::name::Half;
use crate::watch::{KnownDirectories, Translator};

/// Does not exist, so that the disk does not show what an event is about.
const ROOT: &str = "/nonexistent/cache";

/// Interprets `bytes` as events, and as directories that are watched.
pub fn events(bytes: &[u8]) {
    let watched = KnownDirectories::default();
    let translator = Translator::new(Path::new(ROOT), watched.clone());
    let mut world = World { input: Input(bytes), watched, translator };
    while !world.input.is_empty() {
        if world.input.below(8) == 7 {
            let rel = world.directory();
            world.watched.insert(&rel.into(), |_| {});
        } else {
            world.event();
        }
    }
}

struct World<'a> {
    input: Input<'a>,
    watched: KnownDirectories,
    translator: Translator,
}

/// What an event means for a path.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    Appeared,
    Written,
    Vanished,
    /// Something that is not a directory has vanished.
    FileVanished,
    Directory,
    Nothing,
}

impl World<'_> {
    fn event(&mut self) {
        let (kind, says) = self.kind();
        let mut event = Event::new(kind);
        for _ in 0..self.input.pick(&[1, 1, 1, 1, 2, 0]) {
            event = event.add_path(self.path());
        }
        let mut rescan = false;
        if self.input.below(32) == 31 {
            event = event.set_flag(Flag::Rescan);
            rescan = true;
        }
        let shown = format!("{event:?}");
        let paths: Vec<PathBuf> = event.paths.iter().filter_map(|path| below_root(path)).collect();
        let is_error = self.input.below(64) == 63;
        let event = if is_error { Err(notify::Error::generic("x")) } else { Ok(event) };

        let mut changes = Vec::new();
        self.translator.translate(event, &mut |change| changes.push(change));
        if rescan || is_error {
            assert_eq!(changes, [Change::EventsLost], "{shown}");
        } else {
            for path in &paths {
                self.assert_reported(path, says, &changes, &shown);
            }
            for change in &changes {
                assert_justified(change, &paths, &shown);
            }
        }
    }

    fn kind(&mut self) -> (EventKind, Says) {
        use EventKind::{Access, Create, Modify, Remove};
        self.input.pick(&[
            (Create(CreateKind::File), Says::Appeared),
            (Access(AccessKind::Close(AccessMode::Write)), Says::Appeared),
            (Modify(ModifyKind::Name(RenameMode::To)), Says::Appeared),
            (Modify(ModifyKind::Metadata(MetadataKind::Any)), Says::Appeared),
            (Modify(ModifyKind::Data(DataChange::Any)), Says::Written),
            (Modify(ModifyKind::Name(RenameMode::From)), Says::Vanished),
            (Remove(RemoveKind::File), Says::FileVanished),
            (Remove(RemoveKind::Other), Says::Vanished),
            (Create(CreateKind::Folder), Says::Directory),
            (Remove(RemoveKind::Folder), Says::Directory),
            (Modify(ModifyKind::Name(RenameMode::Both)), Says::Nothing),
            (Access(AccessKind::Open(AccessMode::Any)), Says::Nothing),
            (Access(AccessKind::Close(AccessMode::Read)), Says::Nothing),
            (EventKind::Other, Says::Nothing),
        ])
    }

    fn path(&mut self) -> PathBuf {
        match self.input.below(16) {
            0 => ROOT.into(),
            1 => self.input.pick(&["", "/", "/nonexistent", "a.metadata.json"]).into(),
            2 => Path::new("/nonexistent/cachex").join(self.name()),
            3 => Path::new(ROOT).join(self.directory()),
            _ => Path::new(ROOT).join(self.directory()).join(self.name()),
        }
    }

    fn directory(&mut self) -> PathBuf {
        let dirs: &[&[u8]] =
            &[b"", b"s", b"s/t", b"\xff", b"d.metadata.json", b".result-cleaner-d.r"];
        OsStr::from_bytes(self.input.pick(dirs)).into()
    }

    /// Returns a name that the kernel may report.
    fn name(&mut self) -> PathBuf {
        const UUID: &[u8] = b"b9cae70a-aead-4aa8-9037-cd243541f7b3";
        let mut name = Vec::new();
        if self.input.below(8) == 7 {
            name.extend(b".result-cleaner-");
        }
        if self.input.below(8) == 7 {
            let raw = (0..self.input.below(40)).map(|_| self.input.byte());
            name.extend(raw.filter(|byte| !b"\0/".contains(byte)));
        } else {
            name.extend(self.input.pick(&[
                &b"x"[..],
                b"y",
                UUID,
                b"",
                b"\xff\n",
                b"z.metadata.json",
            ]));
        }
        let ends: &[&[u8]] = &[
            b".metadata.json",
            b".result.json.lz4",
            b".metadata.json",
            b".result.json.lz4",
            b".metadata.json.tmp",
            b".r",
            b".m",
            b"",
        ];
        name.extend(self.input.pick(ends));
        if [&b""[..], b".", b".."].contains(&name.as_slice()) {
            name = b"x".to_vec();
        }
        OsStr::from_bytes(&name).into()
    }

    /// Asserts that the changes contain everything that they must about a path below the root.
    fn assert_reported(&self, rel: &Path, says: Says, changes: &[Change], shown: &str) {
        let is_watched = self.watched.has_below(rel);
        let tree = changes.contains(&Change::Subtree(rel.into()));
        let pair = half(rel).and_then(|half| {
            let reported = changes.iter().filter_map(|change| match change {
                Change::Pair(key, trigger) if key.path(half) == rel => Some(trigger.appeared),
                _ => None,
            });
            reported.reduce(|one, other| one || other)
        });
        match (says, half(rel)) {
            (Says::Directory, _) => assert!(tree, "{shown}"),
            (Says::Appeared, Some(_)) => assert_eq!(pair, Some(true), "{shown}"),
            (Says::Written, Some(Half::Metadata)) => assert_eq!(pair, Some(true), "{shown}"),
            (Says::Vanished, _) if is_watched => assert!(tree, "{shown}"),
            (Says::Vanished | Says::FileVanished, Some(_)) => assert!(pair.is_some(), "{shown}"),
            (Says::Nothing, _) => assert!(changes.is_empty(), "{shown}: {changes:?}"),
            _ => {}
        }
    }
}

/// Returns the path relative to the root; `None` outside of it.
fn below_root(path: &Path) -> Option<PathBuf> {
    let path = path.as_os_str().as_bytes();
    let rel = path.strip_prefix(ROOT.as_bytes())?;
    let rel = if rel.is_empty() { rel } else { rel.strip_prefix(b"/")? };
    Some(OsStr::from_bytes(rel).into())
}

fn half(rel: &Path) -> Option<Half> {
    let name = rel.file_name()?.as_bytes();
    if name.ends_with(b".metadata.json") {
        return Some(Half::Metadata);
    }
    name.ends_with(b".result.json.lz4").then_some(Half::Result)
}

/// Asserts that a change is about one of the paths below the root, and so within it.
fn assert_justified(change: &Change, paths: &[PathBuf], shown: &str) {
    match change {
        Change::Pair(key, _) => {
            let halves = [Half::Result, Half::Metadata].map(|half| key.path(half));
            assert!(halves.iter().any(|half| paths.contains(half)), "{shown}: {key:?}");
            assert_within(&key.dir, shown);
        }
        Change::Subtree(tree) => {
            assert!(paths.iter().any(|path| **path == **tree), "{shown}: {tree:?}");
            assert_within(tree, shown);
        }
        Change::DirectoryAlone(dir) => panic!("{shown}: {dir:?}"),
        Change::Orphans(_) => panic!("nobody asked for it: {shown}"),
        Change::EventsLost => panic!("nothing was missed: {shown}"),
    }
}

fn assert_within(rel: &Arc<Path>, shown: &str) {
    let plain = |component| matches!(component, Component::Normal(_));
    assert!(rel.components().all(plain), "{shown}: {rel:?}");
}
