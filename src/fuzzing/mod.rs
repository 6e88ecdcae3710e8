//! Entry points of the fuzzers in `tests/fuzz`: each takes bytes and panics if something is wrong. Not
//! part of the library: only the fuzzers, and the tests that replay their corpus, use this module.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::too_many_lines,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a fuzzer ends where something unexpected happens"
)]

mod events;
mod simulation;
#[cfg(test)]
mod tests;
mod text;

#[path = "../../tests/common/reference.rs"]
mod reference;

use chrono::{DateTime, Utc};

use self::reference::{Wrong, Zone};
use crate::pair::expires_at::InvalidExpiry;
use crate::pair::metadata::{InvalidMetadata, plain, with_serde_json};

pub use self::events::events;
pub use self::simulation::simulation;
pub use self::text::expires_at;

/// A value of `TZ` with a rule that the reference knows.
pub const SUMMER_TIME: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

/// Reads metadata, and compares the outcome with the reference. The variable `TZ` has to be `UTC` or
/// [`SUMMER_TIME`].
pub fn metadata(json: &[u8]) {
    let summer_time = match std::env::var("TZ").as_deref() {
        Ok("UTC") => false,
        Ok(SUMMER_TIME) => true,
        _ => panic!("TZ is not UTC or {SUMMER_TIME}"),
    };
    let zone = |year| if summer_time { Zone::central_europe(year) } else { Zone::default() };
    let shown = json.escape_ascii();
    let expected = reference::read(json, &zone);
    let found = crate::pair::metadata::expires_at(json);
    if let Err(reason) = &found {
        assert_is_one_line(&reason.to_string());
    }
    let found = found.map(nanos).map_err(|reason| class(&reason));
    if is_odd(json) && expected.is_err() {
        assert!(found.is_err(), "{shown}");
    } else {
        assert_eq!(found, expected, "{shown}");
    }
    // serde_json refuses some valid JSON, but accepts nothing else.
    if serde_json::from_slice::<serde_json::Value>(json).is_ok() {
        let is_json = !matches!(expected, Err(Wrong::NotJson | Wrong::CutShort));
        assert!(is_json, "the reference is wrong: {shown}");
    }
}

/// Reads metadata with the scanner of the plain form; returns whether it finds something. That has to be what
/// serde_json finds.
pub fn plain(json: &[u8]) -> bool {
    // Whatever is no text is refused before.
    let json = String::from_utf8_lossy(json);
    let found = plain::expires_at(&json);
    if let Some(found) = found {
        assert_eq!(Ok(found), with_serde_json(&json), "{json:?}");
    }
    found.is_some()
}

/// Whether a string contains a control character, or there may be half of a surrogate pair. The parser
/// and the reference may detect these before or after other errors.
fn is_odd(json: &[u8]) -> bool {
    if json.windows(3).any(|part| part.eq_ignore_ascii_case(b"\\ud")) {
        return true;
    }
    let mut quoted = false;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => drop(bytes.next()),
            ..b' ' if quoted => return true,
            _ => {}
        }
    }
    false
}

fn assert_is_one_line(reason: &str) {
    assert!(reason.len() < 600 && !reason.contains(char::is_control), "{reason:?}");
}

fn nanos(instant: DateTime<Utc>) -> i128 {
    let fraction = i128::from(instant.timestamp_subsec_nanos());
    i128::from(instant.timestamp()) * 1_000_000_000 + fraction
}

fn class(reason: &InvalidMetadata) -> Wrong {
    match reason {
        InvalidMetadata::Empty => Wrong::Empty,
        InvalidMetadata::TooLarge => Wrong::TooLarge,
        InvalidMetadata::ByteOrderMark | InvalidMetadata::Utf16 | InvalidMetadata::NotUtf8(_) => {
            Wrong::Encoding
        }
        InvalidMetadata::Truncated(_) => Wrong::CutShort,
        InvalidMetadata::NotJson(_) => Wrong::NotJson,
        InvalidMetadata::NotAnObject => Wrong::NotAnObject,
        InvalidMetadata::MissingExpiresAt => Wrong::Missing,
        InvalidMetadata::DuplicateExpiresAt => Wrong::Twice,
        InvalidMetadata::ExpiresAt(reason) => match reason {
            InvalidExpiry::Null => Wrong::Null,
            InvalidExpiry::Boolean => Wrong::Boolean,
            InvalidExpiry::Array => Wrong::Array,
            InvalidExpiry::Object => Wrong::Object,
            InvalidExpiry::NotPositive | InvalidExpiry::NotSeconds(_) | InvalidExpiry::TooLarge => {
                Wrong::Number
            }
            _ => Wrong::Text,
        },
    }
}

/// An input that is read from the left; after its end it yields zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Reads a number of `bytes` bytes.
    fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
