//! Paths for people and for the log.

use std::path::Path;

/// A path for people to read: what could change a terminal's state, or look like another line, is
/// escaped.
#[must_use]
pub fn display_path(path: &Path) -> String {
    match path.to_str() {
        Some(text) if !text.chars().any(is_treacherous) => text.to_owned(),
        _ => format!("{path:?}"),
    }
}

/// Whether a terminal would not just show it: control characters, line separators, and what changes the
/// direction of writing.
fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A path as a field of a log line. It is text, so that each format of the log quotes and escapes
/// it in its own way.
pub(crate) fn path_field(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_shown_escaped() {
        assert_eq!(display_path(Path::new("/a/ä b")), "/a/ä b");
        assert_eq!(display_path(Path::new("/a/\u{1b}[2J")), "\"/a/\\u{1b}[2J\"");
        assert_eq!(display_path(Path::new("/a/\u{202e}b")), "\"/a/\\u{202e}b\"");
        assert_eq!(display_path(Path::new("/a/\u{2028}b")), "\"/a/\\u{2028}b\"");
    }
}
