//! The verdicts of `explain`: why a file is kept or deleted, in words.

pub(super) const TMP_KEPT: &str = "Kept: it is no result before its writer renames it.";
pub(super) const UNCHANGED_FOR: &str = "the cleaner removes it once it has been unchanged for";
pub(super) const OTHER_KEPT: &str = "Kept: files with other names are never touched.";
pub(super) const OUTSIDE_KEPT: &str =
    "Kept: nothing outside the cache directory is touched. (--cache-dir names another one.)";
pub(super) const MOUNT_KEPT: &str = "Kept: mount points in the cache directory are not entered.";
pub(super) const UNREAD_KEPT: &str =
    "Kept until the cleaner can read its directory: check the permissions.";
pub(super) const CLAIMED: &str =
    "A cleaner has claimed it, and is about to delete or to restore it.";
pub(super) const NOT_THERE: &str = "There is no such result: it was deleted, or never stored.";
pub(super) const ODD_RESULT_KEPT: &str = "Kept: only regular files are results.";
pub(super) const ODD_METADATA_KEPT: &str =
    "Kept: metadata has to be a regular file, links are not followed.";
pub(super) const UNSEEN_KEPT: &str = "Kept until it can be inspected; each sweep retries that.";
pub(super) const RESULT_ALONE_KEPT: &str = "Kept: without metadata, nothing says when the result expires. Once the metadata arrives, \
     the cleaner inspects the pair again.";
pub(super) const METADATA_ALONE_KEPT: &str = "Kept: metadata without a result is not deleted.";
pub(super) const EXPIRED_AND_UNCHANGED_FOR: &str =
    "the cleaner removes it once it has expired and been unchanged for";
pub(super) const BROKEN_KEPT: &str =
    "Kept until its metadata is repaired or replaced; the cleaner notices that at once.";
pub(super) const VANISHED: &str = "It is being deleted or replaced right now: try again.";
pub(super) const UNREADABLE_KEPT: &str =
    "Kept until it can be inspected; a running cleaner retries that with growing pauses.";
pub(super) const METADATA_UNREADABLE_KEPT: &str = "Kept until its metadata can be read: check the permissions; the cleaner notices a change at once.";
pub(super) const EVICTED_NOW: &str = "The budget is exceeded by so much that it is evicted now.";
pub(super) const WITHIN_BUDGET: &str = "The budget does not need its space now.";
pub(super) const NOT_EVICTABLE: &str = "The disk budget does not evict it now: its result is too young (--evict-min-age), or has another link.";
pub(super) const EVICTION_UNKNOWN: &str = "Whether the disk budget evicts it is unknown: the cache directory or the free space can't be read.";
pub(super) const NOT_DUE: &str = "A running cleaner deletes it within milliseconds of its expiry.";
pub(super) const CHANGING: &str =
    "It is being changed, or a cleaner has claimed it, right now: try again.";
pub(super) const CLAIM_KEPT: &str = "A cleaner has claimed it, and is about to delete or to restore it. If that cleaner was killed, \
     the next start or `result-cleaner sweep` recovers it.";
pub(super) const UNSETTLED: &str = "Deleted once it has been unchanged for a second: the result is newer than its metadata, \
     and new metadata may follow.";
pub(super) const DELETED_AT_ONCE: &str =
    "A running cleaner deletes it at once; without one, `result-cleaner sweep` does.";
pub(super) const LONG_NAME: &str = "Its name is too long for a reserved name: a writer that publishes it again in the same \
     instant may lose the new result.";
pub(super) const RETRIED: &str = "Until then the cleaner retries with pauses of up to ten minutes.";
pub(super) const NO_FILE: &str = "There is no such file.";
pub(super) const DIRECTORY_KEPT: &str = "Kept: directories are not removed. (--prune-empty-dirs AGE removes one below the cache \
     directory once it has been empty and unchanged for AGE.)";

/// Returns `kept`, and what `--remove-orphans` would change.
pub(super) fn unless_orphans(kept: &str, removed: &str) -> String {
    format!("{kept} (With --remove-orphans AGE {removed} AGE.)")
}
