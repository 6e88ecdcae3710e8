//! Confines the threads that delete to the cache directory, with Landlock.
//!
//! Every rename and unlink is relative to the descriptor of a directory within the cache directory, and that
//! lookup follows no link. This keeps deletions inside. The kernel would catch a mistake in it: a confined
//! thread may remove and rename regular files below the cache directory. It can't write or truncate files,
//! nor create, link or remove anything elsewhere. Reading is not confined.
//!
//! Landlock confines a thread to directories, not to paths, for as long as the thread lives. So work on one
//! cache directory runs on a thread of its own, and a directory that replaces it gets another thread.

use std::sync::Once;

use landlock::{
    ABI, AccessFs, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, make_bitflags,
};

use crate::disk::root::Root;

/// Confines this thread, and all threads that it starts, to `root` for as long as it lives.
///
/// If it `prunes`, it may also remove directories there. The outcome is logged once, a failure included.
pub(crate) fn enter(root: &Root, prunes: bool) {
    log_once(&confine(root, prunes));
}

/// Confines this thread, and all that it starts. Returns false if the kernel has no Landlock.
fn confine(root: &Root, prunes: bool) -> Result<bool, RulesetError> {
    let files = make_bitflags!(AccessFs::{RemoveFile | MakeReg});
    let allowed = if prunes { files | AccessFs::RemoveDir } else { files };
    let status = Ruleset::default()
        .handle_access(AccessFs::from_write(ABI::V5))?
        .create()?
        .add_rule(PathBeneath::new(root, allowed))?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn log_once(confinement: &Result<bool, RulesetError>) {
    static LOGGED: Once = Once::new();
    static FAILED: Once = Once::new();
    // A failure is logged even if other threads were confined before.
    let once = if confinement.is_err() { &FAILED } else { &LOGGED };
    once.call_once(|| match confinement {
        Ok(true) => tracing::debug!("Landlock sandbox enabled for deletion threads"),
        Ok(false) => tracing::info!("no Landlock sandbox: the kernel does not support it"),
        Err(error) => {
            tracing::info!(reason = error.to_string(), "can't enable the Landlock sandbox")
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::runtime::on_own_thread;
    use std::fs;
    use std::io::ErrorKind;

    #[test]
    fn a_confined_thread_deletes_and_renames_inside_and_changes_nothing_outside() {
        let temp = tempfile::tempdir().unwrap();
        let cache = temp.path().join("cache");
        fs::create_dir_all(cache.join("dir")).unwrap();
        let outside = temp.path().join("outside");
        for path in [&outside, &cache.join("dir/a"), &cache.join("dir/b")] {
            fs::write(path, "content").unwrap();
        }
        let root = Root::at(&cache).unwrap().unwrap();
        let is_supported = std::thread::scope(|scope| {
            scope.spawn(|| confine(&root, false).unwrap()).join().unwrap()
        });
        if !is_supported {
            eprintln!("skipped: this kernel has no Landlock");
            return;
        }
        on_own_thread(
            || enter(&root, false),
            || {
                let denied = |result: std::io::Result<()>| {
                    let kind = result.unwrap_err().kind();
                    assert!(
                        matches!(kind, ErrorKind::PermissionDenied | ErrorKind::CrossesDevices),
                        "{kind}"
                    );
                };
                denied(fs::remove_file(&outside));
                denied(fs::rename(&outside, temp.path().join("elsewhere")));
                denied(fs::rename(&outside, cache.join("inside")));
                denied(fs::rename(cache.join("dir/a"), temp.path().join("elsewhere")));
                denied(fs::hard_link(cache.join("dir/a"), temp.path().join("elsewhere")));
                denied(fs::write(&outside, "other"));
                denied(fs::write(temp.path().join("new"), "other"));
                denied(fs::write(cache.join("dir/a"), "other"));
                denied(fs::create_dir(temp.path().join("new")));
                denied(fs::remove_dir(cache.join("dir")));
                fs::rename(cache.join("dir/a"), cache.join("dir/c")).unwrap();
                fs::remove_file(cache.join("dir/b")).unwrap();
            },
        );
        assert_eq!(fs::read(&outside).unwrap(), b"content");
        // The thread that started the confined one is not confined.
        fs::write(&outside, "other").unwrap();
    }
}
