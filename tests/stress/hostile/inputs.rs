//! What an input of the hostile directory is, and the places in which it is made.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::{FdFlags, fcntl_setfd};

use super::scene::{End, Hostile, may_mount};
use crate::common::{Pair, now, pair_of_bytes};

/// One thing that a directory may hold.
pub struct Input {
    pub name: String,
    pub reported: Reported,
    /// Only root can make it, where the machine lets it.
    pub privileged: bool,
    pub make: Make,
}

type Make = Box<dyn Fn(&mut Place) -> io::Result<()>>;

/// What the log has to say of an input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reported {
    Nothing,
    /// Broken metadata: of so many pairs, in so many versions of a file, for this reason.
    Broken {
        pairs: u64,
        versions: usize,
        reason: &'static str,
    },
    /// One pair that is due, and can't be deleted, for this reason.
    Fails {
        reason: &'static str,
    },
}

/// One that is no error. What goes of it, it says itself.
pub fn calm(name: &str, make: impl Fn(&mut Place) -> io::Result<()> + 'static) -> Input {
    Input {
        name: name.to_owned(),
        reported: Reported::Nothing,
        privileged: false,
        make: Box::new(make),
    }
}

/// One with a pair whose metadata is broken.
pub fn broken(
    name: &str,
    reason: &'static str,
    make: impl Fn(&mut Place) -> io::Result<()> + 'static,
) -> Input {
    Input { reported: Reported::Broken { pairs: 1, versions: 1, reason }, ..calm(name, make) }
}

/// One with a pair that is due, and can't be deleted.
pub fn fails(
    name: &str,
    reason: &'static str,
    make: impl Fn(&mut Place) -> io::Result<()> + 'static,
) -> Input {
    Input { reported: Reported::Fails { reason }, ..calm(name, make) }
}

impl Input {
    pub fn privileged(self) -> Self {
        Self { privileged: true, ..self }
    }

    /// With so many broken pairs that share one file.
    pub fn sharing(self, pairs: u64) -> Self {
        let Reported::Broken { versions, reason, .. } = self.reported else {
            panic!("it is not broken")
        };
        Self { reported: Reported::Broken { pairs, versions, reason }, ..self }
    }
}

/// Where an input is made: a directory of its own in the cache directory.
pub struct Place<'a> {
    pub dir: PathBuf,
    pub hostile: &'a mut Hostile,
}

impl Place<'_> {
    pub fn path(&self, name: impl AsRef<[u8]>) -> PathBuf {
        self.dir.join(OsStr::from_bytes(name.as_ref()))
    }

    pub fn pair(&self, stem: impl AsRef<[u8]>) -> Pair {
        pair_of_bytes(&self.dir, stem.as_ref())
    }

    pub fn write(&self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> io::Result<()> {
        fs::write(self.path(name), content)
    }

    pub fn dir(&self, name: impl AsRef<[u8]>) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    pub fn result(&self, stem: impl AsRef<[u8]>) -> io::Result<()> {
        fs::write(self.pair(stem).result, "a result of 23 bytes...")
    }

    pub fn metadata(&self, stem: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> io::Result<()> {
        fs::write(self.pair(stem).metadata, content)
    }

    /// A pair of this metadata that stays.
    pub fn stays(&self, stem: impl AsRef<[u8]>, metadata: impl AsRef<[u8]>) -> io::Result<()> {
        self.result(&stem)?;
        self.metadata(&stem, metadata)
    }

    /// A pair of this metadata that has to go.
    pub fn goes(&mut self, stem: impl AsRef<[u8]>, metadata: impl AsRef<[u8]>) -> io::Result<()> {
        self.stays(&stem, metadata)?;
        self.has_to_go(self.pair(stem));
        Ok(())
    }

    pub fn has_to_go(&mut self, pair: Pair) {
        self.hostile.gone.extend([pair.result, pair.metadata]);
        self.hostile.pairs_gone += 1;
    }

    /// What stands under a reserved name, and has to go.
    pub fn leftover(&mut self, name: &str) {
        self.hostile.gone.push(self.path(name));
    }

    pub fn link(&self, target: impl AsRef<Path>, name: impl AsRef<[u8]>) -> io::Result<()> {
        std::os::unix::fs::symlink(target, self.path(name))
    }

    /// A directory outside, with an expired pair `a` and a directory `d` with another one.
    pub fn victims(&self) -> PathBuf {
        self.hostile.cache.outside("victims")
    }

    /// The expired pair of [`Place::victims`].
    pub fn victim(&self) -> Pair {
        Pair::at(&self.victims(), "a")
    }

    /// An expired pair outside that is for this input alone, and may get other names.
    pub fn linked_victim(&mut self) -> Pair {
        let number = self.hostile.linked.len();
        let pair = Pair::at(&self.hostile.cache.outside("linked"), &number.to_string());
        let pair = pair.write(LONG_AGO);
        self.hostile.linked.push(pair.clone());
        pair
    }

    /// Makes a special file by `mknod`.
    pub fn special(&self, name: &str, kind: &str, numbers: &[&str]) -> io::Result<()> {
        let mut arguments = vec![self.path(name).into_os_string(), kind.into()];
        arguments.extend(numbers.iter().map(|number| (*number).into()));
        run("mknod", &arguments)
    }

    pub fn socket(&mut self, name: &str) -> io::Result<()> {
        // A socket's path has to be short.
        let short = self.hostile.cache.outside("s");
        self.hostile.sockets.push(UnixListener::bind(&short)?);
        fs::rename(short, self.path(name))
    }

    /// Mounts what the arguments of `mount` say over `name`.
    pub fn mount(&mut self, arguments: &[&str], name: &str) -> io::Result<()> {
        if !may_mount() {
            return Err(io::Error::other("this process has no mounts of its own"));
        }
        let path = self.path(name);
        let mut arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        arguments.push(path.as_os_str());
        run("mount", &arguments)?;
        self.hostile.mounts.push(path);
        Ok(())
    }

    /// Mounts a file system whose server never answers.
    pub fn mount_that_hangs(&mut self, name: &str) -> io::Result<()> {
        self.dir(name)?;
        let server = File::options().read(true).write(true).open("/dev/fuse")?;
        // Only `mount` is to inherit it, and then only this process holds it.
        fcntl_setfd(&server, FdFlags::empty())?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let mounted = self.mount(&["-i", "-t", "fuse", "-o", &options, "none"], name);
        fcntl_setfd(&server, FdFlags::CLOEXEC)?;
        self.hostile.servers.push(server);
        mounted
    }

    /// Makes a chain of directories of this name below `levels`, with a pair `a` at its end that
    /// has to go, or stays.
    pub fn chain(&mut self, levels: u64, name: &str, metadata: &str, goes: bool) -> io::Result<()> {
        let mut end = OwnedFd::from(File::open(self.dir("levels")?)?);
        for _ in 0..levels {
            end = one_deeper(&end, name)?;
        }
        write_at(&end, "a.result.json.lz4", "a result of 23 bytes...")?;
        write_at(&end, "a.metadata.json", metadata)?;
        self.hostile.ends.push(End { dir: end, goes });
        self.hostile.pairs_gone += u64::from(goes);
        Ok(())
    }

    /// Sets a flag by `chattr`.
    pub fn flag(&mut self, flag: char, path: PathBuf) -> io::Result<()> {
        run("chattr", &[OsStr::new(&format!("+{flag}")), path.as_os_str()])?;
        self.hostile.flags.push((flag, path));
        Ok(())
    }
}

/// Long expired.
pub const LONG_AGO: f64 = 1.5;

/// Metadata that has expired.
pub fn expired() -> String {
    format!(r#"{{"expires_at": {LONG_AGO}}}"#)
}

/// Metadata that has not.
pub fn live() -> String {
    format!(r#"{{"expires_at": {}}}"#, now() + 36_000.0)
}

/// Makes the directory `name` in `dir`, however long its path is, and opens it.
pub fn one_deeper(dir: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    mkdirat(dir, name, Mode::RWXU)?;
    Ok(openat(dir, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Writes a file in `dir`, however long its path is.
pub fn write_at(dir: &OwnedFd, name: &str, content: &str) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    File::from(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?).write_all(content.as_bytes())
}

/// Runs a tool of the system.
pub fn run(program: &str, arguments: &[impl AsRef<OsStr>]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() { Ok(()) } else { Err(io::Error::other(format!("{output:?}"))) }
}
