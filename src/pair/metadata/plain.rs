//! A scanner of metadata in the form in which programs write it, faster than serde_json.
//!
//! It decides nothing on its own. It returns a value only if serde_json would accept the input and find the
//! same value. It returns `None` for everything else, whether that is invalid or only unusual: then serde_json
//! decides, and makes the message. So a form belongs here only if it is frequent and simple.
//!
//! Most functions here skip something at the start of a text and return the rest. Rests that are arguments
//! and results stay in registers: a position in memory makes the scanner a third slower.
//!
//! The scanner recurses once for each level of nesting, at most [`MAX_DEPTH`] times.

use crate::pair::expires_at::{from_number, from_text};
use chrono::{DateTime, Utc};

/// The deepest nesting that is read here, below the top level. What a store writes has two or three levels.
pub(crate) const MAX_DEPTH: u32 = 16;

/// Returns the instant in the top-level `expires_at` of `json`, if `json` is valid and plain.
///
/// `json` is a string because nothing here checks the bytes of characters beyond ASCII.
pub(crate) fn expires_at(json: &str) -> Option<DateTime<Utc>> {
    let mut found = None;
    let mut rest = byte(white_space(json.as_bytes()), b'{')?;
    loop {
        let (name, after) = key(rest)?;
        if name != b"expires_at" {
            rest = value(after, MAX_DEPTH)?;
        } else if found.is_none() {
            let (expiry, after) = expiry(after)?;
            (found, rest) = (Some(expiry), after);
        } else {
            return None;
        }
        let (more, after) = comma_or(rest, b'}')?;
        rest = after;
        if !more {
            return found.filter(|_| white_space(rest).is_empty());
        }
    }
}

/// Skips a value of `expires_at` that is a valid expiry.
fn expiry(json: &[u8]) -> Option<(DateTime<Utc>, &[u8])> {
    let json = white_space(json);
    if json.first() == Some(&b'"') {
        let (text, rest) = bare_string(json)?;
        return Some((from_text(str::from_utf8(text).ok()?).ok()?, rest));
    }
    let rest = number(json)?;
    let number = &json[..json.len() - rest.len()];
    if number.contains(&b'e') || number.contains(&b'E') {
        return None;
    }
    // Both parsers choose the floating-point number that is nearest to a decimal one.
    let seconds = str::from_utf8(number).ok()?.parse().ok()?;
    Some((from_number(seconds).ok()?, rest))
}

/// Skips any value. At most `depth` arrays and objects contain each other in it.
fn value(json: &[u8], depth: u32) -> Option<&[u8]> {
    let json = white_space(json);
    match json {
        [b'"', rest @ ..] => string(rest),
        [b'{', rest @ ..] => object(rest, depth.checked_sub(1)?),
        [b'[', rest @ ..] => array(rest, depth.checked_sub(1)?),
        [b't', b'r', b'u', b'e', rest @ ..]
        | [b'f', b'a', b'l', b's', b'e', rest @ ..]
        | [b'n', b'u', b'l', b'l', rest @ ..] => Some(rest),
        _ => number(json),
    }
}

/// Skips an object after its opening brace.
fn object(mut json: &[u8], depth: u32) -> Option<&[u8]> {
    if let [b'}', rest @ ..] = white_space(json) {
        return Some(rest);
    }
    loop {
        let (_, rest) = key(json)?;
        let (more, rest) = comma_or(value(rest, depth)?, b'}')?;
        if !more {
            return Some(rest);
        }
        json = rest;
    }
}

/// Skips an array after its opening bracket.
fn array(mut json: &[u8], depth: u32) -> Option<&[u8]> {
    if let [b']', rest @ ..] = white_space(json) {
        return Some(rest);
    }
    loop {
        let (more, rest) = comma_or(value(json, depth)?, b']')?;
        if !more {
            return Some(rest);
        }
        json = rest;
    }
}

/// Skips a comma or `end`; true if it is a comma.
#[inline]
fn comma_or(json: &[u8], end: u8) -> Option<(bool, &[u8])> {
    match white_space(json) {
        [b',', rest @ ..] => Some((true, rest)),
        [byte, rest @ ..] if *byte == end => Some((false, rest)),
        _ => None,
    }
}

/// Skips a key and its colon, and returns the key. A key with an escape is unusual, and may be another way to
/// write `expires_at`.
#[inline]
fn key(json: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, rest) = bare_string(white_space(json))?;
    Some((key, byte(white_space(rest), b':')?))
}

/// Skips a string without escapes, and returns what is between its quotes.
#[inline]
fn bare_string(json: &[u8]) -> Option<(&[u8], &[u8])> {
    let json = byte(json, b'"')?;
    let (text, rest) = json.split_at(unescaped_len(json));
    Some((text, byte(rest, b'"')?))
}

/// Skips a string after its opening quote.
#[inline]
fn string(mut json: &[u8]) -> Option<&[u8]> {
    loop {
        json = match &json[unescaped_len(json)..] {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', rest @ ..] => rest,
            // As for serde_json, half of a surrogate pair is valid in a value that nobody needs.
            [b'\\', b'u', a, b, c, d, rest @ ..] => {
                [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()).then_some(rest)?
            }
            _ => return None,
        }
    }
}

/// Returns how many bytes precede the first quote, backslash or control character, or the end.
#[inline]
fn unescaped_len(json: &[u8]) -> usize {
    // The lowest and the highest bit of each byte.
    const LOW: u64 = u64::MAX / 0xFF;
    const HIGH: u64 = LOW << 7;
    // Sets the highest bit of each byte of `word` that is below `limit`, and clears all others. A byte after
    // such a byte may be wrong, so that only the first counts.
    let below = |word: u64, limit: u8| word.wrapping_sub(LOW * u64::from(limit)) & !word & HIGH;
    let is = |word: u64, byte: u8| below(word ^ (LOW * u64::from(byte)), 1);

    let mut rest = json;
    while let Some((bytes, after)) = rest.split_first_chunk() {
        let word = u64::from_le_bytes(*bytes);
        let ends = below(word, b' ') | is(word, b'"') | is(word, b'\\');
        if ends != 0 {
            return json.len() - rest.len() + ends.trailing_zeros() as usize / 8;
        }
        rest = after;
    }
    let ends = |byte: &u8| matches!(byte, b'"' | b'\\' | ..b' ');
    json.len() - rest.len() + rest.iter().position(ends).unwrap_or(rest.len())
}

/// Skips a number.
#[inline]
fn number(json: &[u8]) -> Option<&[u8]> {
    let json = json.strip_prefix(b"-").unwrap_or(json);
    let mut rest = match json {
        [b'0', rest @ ..] => rest,
        _ => digits(json)?,
    };
    if let [b'.', after @ ..] = rest {
        rest = digits(after)?;
    }
    if let [b'e' | b'E', b'+' | b'-', after @ ..] | [b'e' | b'E', after @ ..] = rest {
        rest = digits(after)?;
    }
    Some(rest)
}

/// Skips at least one digit.
#[inline]
fn digits(json: &[u8]) -> Option<&[u8]> {
    let count = json.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (count > 0).then_some(&json[count..])
}

#[inline]
fn white_space(mut json: &[u8]) -> &[u8] {
    while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = json {
        json = rest;
    }
    json
}

#[inline]
fn byte(json: &[u8], byte: u8) -> Option<&[u8]> {
    let (first, rest) = json.split_first()?;
    (*first == byte).then_some(rest)
}

#[cfg(test)]
mod tests;
