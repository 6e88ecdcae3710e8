//! The parser of metadata files, which returns the `expires_at` in them.
//!
//! A scan passes every metadata file through [`expires_at`], so this function keeps nothing but that
//! value. A scanner reads the plain form in which programs write metadata; serde_json reads all else. Neither
//! recurses without limit: nesting beyond that of plain metadata costs one byte of heap per level, and no
//! stack.

use crate::pair::expires_at::{InvalidExpiry, from_number, from_text};
use chrono::{DateTime, Utc};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

pub(crate) mod plain;

/// The largest size in bytes of a metadata file that is read; larger files are invalid.
pub(crate) const MAX_METADATA_BYTES: u64 = 1024 * 1024;

/// Why metadata has no valid expiry. Displayed as one line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum InvalidMetadata {
    /// The file has no content.
    #[error("the file is empty")]
    Empty,
    /// The file is larger than [`MAX_METADATA_BYTES`].
    #[error("the file is larger than {} bytes", MAX_METADATA_BYTES)]
    TooLarge,
    /// The file begins with a UTF-8 byte order mark.
    #[error("the file begins with a byte order mark; write UTF-8 without one")]
    ByteOrderMark,
    /// The file has two bytes per character.
    #[error("the file is in UTF-16; write UTF-8")]
    Utf16,
    /// Contains the offset of the first wrong byte.
    #[error("the file is not UTF-8 (first wrong byte at offset {0})")]
    NotUtf8(usize),
    /// Contains what the parser expected, and where.
    #[error("the file is cut short: {0}")]
    Truncated(String),
    /// Contains what is wrong, and where.
    #[error("the file is not JSON: {0}")]
    NotJson(String),
    /// The file is an array, a string, a number, a boolean or null.
    #[error("the file is JSON, but not an object")]
    NotAnObject,
    /// The top level has no `expires_at`.
    #[error("expires_at is missing")]
    MissingExpiresAt,
    /// The file has more than one `expires_at`. It is undefined which of them applies, even if they are
    /// equal.
    #[error("expires_at is there more than once")]
    DuplicateExpiresAt,
    /// `expires_at` is present, but its value is no instant.
    #[error(transparent)]
    ExpiresAt(#[from] InvalidExpiry),
}

/// Returns the instant from which on the result of a metadata file with the content `json` is expired.
pub(crate) fn expires_at(json: &[u8]) -> Result<DateTime<Utc>, InvalidMetadata> {
    if json.len() as u64 > MAX_METADATA_BYTES {
        return Err(InvalidMetadata::TooLarge);
    }
    match json {
        [] => return Err(InvalidMetadata::Empty),
        [0xEF, 0xBB, 0xBF, ..] => return Err(InvalidMetadata::ByteOrderMark),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [b'{', 0, ..] | [0, b'{', ..] => {
            return Err(InvalidMetadata::Utf16);
        }
        _ => {}
    }
    // Neither parser validates the strings that it skips.
    let json = str::from_utf8(json).map_err(|e| InvalidMetadata::NotUtf8(e.valid_up_to()))?;

    plain::expires_at(json).map_or_else(|| with_serde_json(json), Ok)
}

/// Reads `json`, plain or not, with serde_json.
pub(crate) fn with_serde_json(json: &str) -> Result<DateTime<Utc>, InvalidMetadata> {
    parse(json).unwrap_or_else(|error| Err(from_json_error(&error, json)))
}

fn parse(json: &str) -> serde_json::Result<Result<DateTime<Utc>, InvalidMetadata>> {
    let mut parser = serde_json::Deserializer::from_str(json);
    let mut control_in_key = false;
    let outcome = parser.deserialize_map(Metadata { control_in_key: &mut control_in_key })?;
    parser.end()?;
    if control_in_key {
        // JSON requires control characters to be escaped. serde_json does not check this in a key that
        // is read as bytes.
        serde_json::from_str::<IgnoredAny>(json)?;
    }
    Ok(outcome)
}

fn from_json_error(error: &serde_json::Error, json: &str) -> InvalidMetadata {
    if error.is_data() {
        return InvalidMetadata::NotAnObject;
    }
    let message = error.to_string();
    if message.starts_with("number out of range") {
        // In an object, the parser converts only the number that it needs, in `expires_at`.
        if json.trim_ascii_start().starts_with('{') {
            return InvalidExpiry::TooLarge.into();
        }
        return InvalidMetadata::NotAnObject;
    }
    // serde_json reports a skipped number that is cut before a digit as invalid, not as cut short.
    let lacks_a_digit = || parse(&format!("{json}0")).is_err_and(|error| error.is_eof());
    if error.is_eof() || message.starts_with("invalid number") && lacks_a_digit() {
        return InvalidMetadata::Truncated(message);
    }
    InvalidMetadata::NotJson(message)
}

/// Reads the whole object. An object that is JSON but has no usable expiry is a value, not an error: the
/// parser's own errors are then about JSON alone.
struct Metadata<'a> {
    /// Set to true if a key contains a control character.
    control_in_key: &'a mut bool,
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = Result<DateTime<Utc>, InvalidMetadata>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let mut duplicate = false;
        while let Some(is_expires_at) = map.next_key_seed(Key(self.control_in_key))? {
            if is_expires_at {
                duplicate |= found.is_some();
                found = Some(map.next_value_seed(Expiry)?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(match found {
            _ if duplicate => Err(InvalidMetadata::DuplicateExpiresAt),
            None => Err(InvalidMetadata::MissingExpiresAt),
            Some(expiry) => expiry.map_err(InvalidMetadata::ExpiresAt),
        })
    }
}

/// Reads a key; the value is true if the key is `expires_at`.
struct Key<'a>(&'a mut bool);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    /// Requests bytes, because as text a key with half of a surrogate pair would be an error.
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, key: &[u8]) -> Result<bool, E> {
        *self.0 |= key.iter().any(|byte| *byte < b' ');
        Ok(key == b"expires_at")
    }
}

/// Reads the value of `expires_at`. A value that is JSON but no valid expiry is not a parser error.
struct Expiry;

impl<'de> DeserializeSeed<'de> for Expiry {
    type Value = Result<DateTime<Utc>, InvalidExpiry>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Expiry {
    type Value = Result<DateTime<Utc>, InvalidExpiry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    // Integers beyond 2^53, which lose digits here, are years out of range.
    fn visit_u64<E>(self, n: u64) -> Result<Self::Value, E> {
        Ok(from_number(n as f64))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Self::Value, E> {
        Ok(from_number(n as f64))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Self::Value, E> {
        Ok(from_number(n))
    }

    fn visit_str<E>(self, s: &str) -> Result<Self::Value, E> {
        Ok(from_text(s))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Err(InvalidExpiry::Null))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Err(InvalidExpiry::Boolean))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err(InvalidExpiry::Array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Err(InvalidExpiry::Object))
    }
}

#[cfg(test)]
mod tests;
