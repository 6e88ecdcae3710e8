//! What happens to whole directories on the simulated disk.

use notify::EventKind::{self, Create, Remove};
use notify::event::{CreateKind, RemoveKind};

use super::Chance;
use super::disk::{
    CACHE, DIR_NAMES, DirId, Directory, Disk, FROM, MAX_DEPTH, OUTSIDE, PERMISSIONS, RootIs, TO,
};
use crate::pair::name::Half;

impl Disk {
    /// A free name for another directory in `parent`.
    fn free_name(&self, chance: &mut dyn Chance, parent: DirId) -> Option<&'static str> {
        let name = DIR_NAMES[chance.below(DIR_NAMES.len())];
        let depth = self.rel(parent)?.iter().count();
        (depth < MAX_DEPTH && !self.dirs[&parent].dirs.contains_key(name)).then_some(name)
    }

    /// Makes a directory and fills it at once.
    pub(super) fn make_dir(&mut self, chance: &mut dyn Chance) {
        let parent = self.some_dir(chance);
        let Some(name) = self.free_name(chance, parent) else { return };
        self.last_dir += 1;
        let dir = self.last_dir;
        self.dirs.insert(dir, Directory::default());
        self.attach(dir, parent, name.to_owned());
        self.kernel.emit(parent, name, Create(CreateKind::Folder));
        for stem in 0..chance.below(4) as u8 {
            let (version, metadata) = (self.version(), self.some_metadata(chance));
            self.put_result(dir, stem, version, &[TO]);
            self.put_metadata(dir, stem, metadata, &[TO]);
        }
    }

    fn attach(&mut self, dir: DirId, parent: DirId, name: String) {
        self.dir_changes += 1;
        self.dirs.get_mut(&parent).unwrap().dirs.insert(name.clone(), dir);
        self.dirs.get_mut(&dir).unwrap().parent = Some((parent, name));
    }

    fn moved_to(&mut self, dir: DirId, parent: DirId, name: &str) {
        self.kernel.emit(parent, name, TO);
        self.kernel.emit(dir, "", FROM);
    }

    /// Takes a directory out of its parent.
    fn detach(&mut self, dir: DirId, kind: EventKind) {
        if let Some((parent, name)) = self.dirs.get_mut(&dir).unwrap().parent.take() {
            self.dir_changes += 1;
            self.dirs.get_mut(&parent).unwrap().dirs.remove(&name);
            self.kernel.emit(parent, &name, kind);
        }
    }

    /// Moves a directory to another parent, or swaps it with another one.
    pub(super) fn move_dir(&mut self, chance: &mut dyn Chance) {
        let (from, to) = (self.some_dir(chance), self.some_dir(chance));
        let is_related = self.below(from).contains(&to) || self.below(to).contains(&from);
        if from == CACHE || self.below(from).contains(&to) {
            return;
        }
        if !is_related && chance.one_in(3) {
            let places = [from, to].map(|dir| self.dirs[&dir].parent.clone().unwrap());
            self.detach(from, FROM);
            self.detach(to, FROM);
            for (dir, (parent, name)) in [to, from].into_iter().zip(places) {
                self.attach(dir, parent, name.clone());
                self.moved_to(dir, parent, &name);
            }
        } else if let Some(name) = self.free_name(chance, to) {
            self.detach(from, FROM);
            self.attach(from, to, name.to_owned());
            self.moved_to(from, to, name);
        }
    }

    pub(super) fn move_out(&mut self, dir: DirId) {
        if dir != CACHE && self.rel(dir).is_some() {
            self.detach(dir, FROM);
            self.last_dir += 1;
            let name = self.last_dir.to_string();
            self.attach(dir, OUTSIDE, name.clone());
            self.moved_to(dir, OUTSIDE, &name);
        }
    }

    pub(super) fn move_in(&mut self, chance: &mut dyn Chance) -> Option<DirId> {
        let outside: Vec<DirId> = self.dirs[&OUTSIDE].dirs.values().copied().collect();
        let parent = self.some_dir(chance);
        let dir = *outside.get(chance.below(outside.len().max(1)))?;
        let name = self.free_name(chance, parent)?;
        self.detach(dir, FROM);
        self.attach(dir, parent, name.to_owned());
        self.moved_to(dir, parent, name);
        Some(dir)
    }

    pub(super) fn remove_tree(&mut self, dir: DirId) {
        for dir in self.below(dir).into_iter().rev() {
            for (stem, halves) in std::mem::take(&mut self.dirs.get_mut(&dir).unwrap().pairs) {
                let halves = [
                    (Half::Result, halves.result.is_some()),
                    (Half::Metadata, halves.metadata.is_some()),
                ];
                for (half, _) in halves.into_iter().filter(|(_, is_there)| *is_there) {
                    self.emit(dir, stem, half, &[Remove(RemoveKind::File)]);
                }
            }
            self.detach(dir, Remove(RemoveKind::Folder));
            self.kernel.emit(dir, "", Remove(RemoveKind::Folder));
            if dir != CACHE {
                self.dirs.remove(&dir);
                self.kernel.drop_watch(dir);
            }
        }
    }

    pub(super) fn set_readable(&mut self, dir: DirId, is_readable: bool) {
        self.dirs.get_mut(&dir).unwrap().is_unreadable = !is_readable;
        if let Some((parent, name)) = self.dirs[&dir].parent.clone() {
            self.kernel.emit(parent, &name, PERMISSIONS);
        }
        self.kernel.emit(dir, "", PERMISSIONS);
    }

    /// Removes the cache directory, makes it again, or takes or gives the permission to read it.
    pub(super) fn change_root(&mut self, chance: &mut dyn Chance) {
        self.kernel.emit(CACHE, "", PERMISSIONS);
        self.root = match self.root {
            RootIs::Absent => {
                self.epoch += 1;
                RootIs::There
            }
            RootIs::Unreadable => RootIs::There,
            RootIs::There if chance.one_in(2) => RootIs::Unreadable,
            RootIs::There => {
                self.remove_tree(CACHE);
                self.kernel.drop_watch(CACHE);
                RootIs::Absent
            }
        };
    }
}
