//! What becomes of a file, in words.

pub(super) const TMP_STAYS: &str = "It stays: it is no result before its writer renames it.";
pub(super) const UNCHANGED_FOR: &str = "it is removed once it has not been changed for";
pub(super) const OTHER_STAYS: &str = "It stays: files with other names are never touched.";
pub(super) const OUTSIDE_STAYS: &str = "It stays: nothing outside the cache directory is touched. (Another one is named by \
     --cache-dir.)";
pub(super) const MOUNT_STAYS: &str =
    "It stays: mount points in the cache directory are not entered.";
pub(super) const UNREAD_STAYS: &str =
    "It stays until its directory can be read by the cleaner: look at the permissions.";
pub(super) const TAKEN: &str =
    "A cleaner has taken it to its reserved name, to delete it or to give it back.";
pub(super) const GONE: &str = "There is no such result: it was deleted, or never stored.";
pub(super) const ODD_RESULT_STAYS: &str =
    "It stays: only regular files are results; nothing else that bears the name is touched.";
pub(super) const ODD_METADATA_STAYS: &str =
    "It stays: metadata is a regular file, and links are not followed.";
pub(super) const UNSEEN_STAYS: &str =
    "It stays until it can be looked at; that is tried again by each sweep.";
pub(super) const RESULT_ALONE_STAYS: &str = "It stays: a result without metadata is left alone, since nothing tells when it may go. \
     Once its metadata arrives the pair is judged anew.";
pub(super) const METADATA_ALONE_STAYS: &str = "It stays: metadata without a result is left alone.";
pub(super) const EXPIRED_AND_UNCHANGED_FOR: &str =
    "it is removed once it has expired and not been changed for";
pub(super) const BROKEN_STAYS: &str =
    "It stays until its metadata is repaired, or written anew; that is noticed at once.";
pub(super) const VANISHED: &str = "It is being deleted, or written anew, right now: ask again.";
pub(super) const UNREADABLE_STAYS: &str =
    "It stays until its metadata can be read; that is tried again by each sweep.";
pub(super) const WAITS: &str = "A running cleaner deletes it within milliseconds of that time.";
pub(super) const IN_HANDS: &str =
    "It is being changed, or is in the hands of a cleaner, right now: ask again.";
pub(super) const CLAIM_STAYS: &str = "A cleaner is about to delete it, or to give it its name back. What a killed cleaner has \
     left is taken up by the next start, or by `result-cleaner sweep`.";
pub(super) const UNSETTLED: &str = "It goes once it has been unchanged for a second: the result is newer than its metadata, \
     so that new metadata may be on its way.";
pub(super) const GOES: &str =
    "A running cleaner deletes it at once; without one, `result-cleaner sweep` does.";
pub(super) const LONG_NAME: &str = "Its name leaves no room for a reserved one, so that a writer that publishes it anew in \
     the same instant loses it.";
pub(super) const TRIED_AGAIN: &str =
    "Until then it is tried again with pauses of up to ten minutes.";
pub(super) const NO_FILE: &str = "There is no such file.";
pub(super) const DIRECTORY_STAYS: &str = "It stays: directories are left alone. (With --prune-empty-dirs \
     AGE one below the cache directory is removed once it has been empty and unchanged for AGE.)";
