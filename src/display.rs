//! Formats paths for people and for the log.

use std::path::Path;

/// Returns a path for people to read. Characters that could change a terminal's state, or look like
/// another line, are escaped.
#[must_use]
pub fn display_path(path: &Path) -> String {
    match path.to_str() {
        Some(text) if !text.chars().any(is_treacherous) => text.to_owned(),
        _ => format!("{path:?}"),
    }
}

/// Whether a terminal would do more than show the character: control characters, line separators, and
/// characters that change the direction of writing.
fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns a path as a field of a log line. It is a string, so that each log format quotes and escapes
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
