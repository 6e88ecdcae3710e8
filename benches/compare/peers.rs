//! Other programs that do such work: they go by a file's age, or poll.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::NamedTempFile;

use crate::measure::{Outcome, Side, check};
use crate::tree::{METADATA_SUFFIX, OLDER_THAN_MINUTES, RESULT_SUFFIX, Tree};
use crate::usage::{Cost, Who, charged};

const POLLING_SWEEP: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/polling_sweep.py");

#[derive(Debug, Clone, Copy)]
pub enum Peer {
    Find,
    Tmpfiles,
    Tmpreaper,
    /// Reads and compares each `expires_at`, as the polling daemon does.
    Python,
}

impl Peer {
    pub const ALL: [Self; 4] = [Self::Find, Self::Tmpfiles, Self::Tmpreaper, Self::Python];

    pub fn name(self) -> &'static str {
        match self {
            Self::Find => "find",
            Self::Tmpfiles => "systemd-tmpfiles",
            Self::Tmpreaper => "tmpreaper",
            Self::Python => "python, polling sweep",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Find => "find",
            Self::Tmpfiles => "systemd-tmpfiles",
            Self::Tmpreaper => "tmpreaper",
            Self::Python => "python3",
        }
    }

    pub fn is_installed(self) -> bool {
        let mut command = Command::new(self.program());
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    /// Its side of a comparison, or that it is not installed.
    pub fn side<'a>(self, mut run: impl FnMut(Self) -> Outcome<Cost> + 'a) -> Side<'a> {
        if self.is_installed() {
            Side::new(self.name(), move || run(self))
        } else {
            Side::not_installed(self.name())
        }
    }

    /// Has it look at `tree`, in which there is nothing for it to do. Only for those that can look
    /// without deleting.
    pub fn look(self, tree: &Tree) -> Outcome<Cost> {
        let command = match self {
            Self::Python => polling_sweep(tree.path(), &["--dry-run"])?,
            _ => find(tree.path(), "-print"),
        };
        let (cost, output) = run(command)?;
        match self {
            Self::Python => check_counts(&output, tree, 0)?,
            _ => check(output.is_empty(), "it found files that are old")?,
        }
        Ok(cost)
    }

    /// Has it delete all of `tree`.
    pub fn delete(self, tree: &Tree) -> Outcome<Cost> {
        let cost = match self {
            Self::Find => run(find(tree.path(), "-delete"))?.0,
            Self::Tmpfiles => {
                let mut rules = NamedTempFile::new()?;
                let root = tree.path().display();
                writeln!(rules, "e \"{root}\" - - - m:{OLDER_THAN_MINUTES}min")?;
                let mut command = Command::new(self.program());
                command.arg("--clean").arg(rules.path());
                run(command)?.0
            }
            Self::Tmpreaper => {
                let mut command = Command::new(self.program());
                command.args(["--mtime", "--runtime=0"]).arg(format!("{OLDER_THAN_MINUTES}m"));
                command.arg(tree.path());
                run(command)?.0
            }
            Self::Python => {
                let (cost, output) = run(polling_sweep(tree.path(), &[])?)?;
                check_counts(&output, tree, tree.pairs())?;
                cost
            }
        };
        tree.check_empty()?;
        Ok(cost)
    }
}

/// `find`, doing `action` with each file of a pair that is old.
pub fn find(root: &Path, action: &str) -> Command {
    let mut find = Command::new("find");
    find.arg(root).arg("(");
    find.args(["-name", &format!("*{RESULT_SUFFIX}"), "-o"]);
    find.args(["-name", &format!("*{METADATA_SUFFIX}"), ")"]);
    find.args(["-mmin", &format!("+{OLDER_THAN_MINUTES}"), action]);
    find
}

fn polling_sweep(root: &Path, flags: &[&str]) -> Outcome<Command> {
    // What is called python3 may be a script that takes longer to find Python than Python takes.
    let itself = ["-c", "import sys; print(sys.executable)"];
    let python = Command::new(Peer::Python.program()).args(itself).output()?.stdout;
    let mut command = Command::new(String::from_utf8(python)?.trim());
    command.arg(POLLING_SWEEP).arg(root).args(flags);
    Ok(command)
}

/// An error unless it says `<seen> <deleted>` as expected.
fn check_counts(output: &str, tree: &Tree, deleted: usize) -> Outcome {
    let expected = format!("{} {deleted}", tree.pairs());
    check(output.trim() == expected, format_args!("it counted {output:?}, not {expected:?}"))
}

/// Runs it to its end; what it wrote.
fn run(mut command: Command) -> Outcome<(Cost, String)> {
    let (cost, output) = charged(Who::Children, || command.output())?;
    check(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    Ok((cost, String::from_utf8(output.stdout)?))
}
