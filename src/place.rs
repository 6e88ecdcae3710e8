//! What stands where the cache directory should be, and picking it up.

use std::path::Path;
use std::sync::Arc;

use crate::change::Inbox;
use crate::root::{Root, RootId, Standing, look_at};
use crate::watch::{Refusal, Watcher, gives_events};

/// What stands where the cache directory should be.
#[derive(Debug)]
pub(crate) enum Place {
    /// What stood there before; nothing is known before the first look.
    Same,
    /// No directory.
    Absent,
    /// A directory that can't be read.
    Unreadable { reason: String },
    /// A directory that is ready to be worked on.
    Open(Arc<Open>),
}

impl Place {
    /// Which directory it is.
    pub fn id(&self) -> Option<&RootId> {
        match self {
            Self::Open(open) => Some(&open.root.id),
            _ => None,
        }
    }
}

/// A cache directory that is being worked on.
#[derive(Debug)]
pub(crate) struct Open {
    pub root: Root,
    /// Tells of changes, or why nothing does.
    pub watcher: Result<Watcher, Refusal>,
    /// Whether the file system tells of all changes.
    pub gives_events: bool,
}

/// Looks at `path` again, where the directory `known` stood before, and opens what stands there.
pub(crate) fn probe(path: &Path, known: Option<&RootId>, inbox: &Arc<Inbox>) -> Place {
    let id = match look_at(path) {
        Standing::Directory(id) => id,
        Standing::Absent | Standing::NotADirectory => return Place::Absent,
        Standing::Unreadable(error) => return Place::Unreadable { reason: error.to_string() },
    };
    if Some(&id) == known {
        return Place::Same;
    }
    let open = || -> std::io::Result<Open> {
        let root = Root::open(id)?;
        let gives_events = gives_events(&root.open_dir(&Path::new("").into())?);
        let watcher = Watcher::start(root.path(), Arc::clone(inbox));
        Ok(Open { root, watcher, gives_events })
    };
    match open() {
        Ok(open) => Place::Open(Arc::new(open)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Place::Absent,
        Err(error) => Place::Unreadable { reason: error.to_string() },
    }
}
