//! Reads the values of settings as they are written on the command line and in files.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::{MinFree, parse_size};

/// Reads a duration such as `6h`, `90s`, `250ms`, `30d` or `1h30m` (ms, s, m, h, d, w). A bare number is whole seconds.
///
/// ```
/// use std::time::Duration;
/// use result_cleaner::text::parse_duration;
/// assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
/// assert_eq!(parse_duration("90"), parse_duration("90s"));
/// assert!(parse_duration("0s").is_err());
/// ```
///
/// # Errors
/// One line for the person who wrote `text`, also for zero.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text)
            .map_err(|_| "write it like 6h, 90s, 250ms, 30d or 1h30m".to_owned())?,
    };
    if parsed.is_zero() {
        return Err("it must be more than zero".to_owned());
    }
    Ok(parsed)
}

/// A value in a file: text or a number, both read like text on the command line.
struct Written<T>(fn(&str) -> Result<T, String>);

impl<T> Visitor<'_> for Written<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        self.0(text).map_err(|reason| E::custom(format_args!("invalid value {text:?}: {reason}")))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

struct ConfiguredDuration(Duration);

impl<'de> Deserialize<'de> for ConfiguredDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written(parse_duration)).map(Self)
    }
}

struct ConfiguredSize(u64);

impl<'de> Deserialize<'de> for ConfiguredSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written(parse_size)).map(Self)
    }
}

impl<'de> Deserialize<'de> for MinFree {
    /// Reads text as [`FromStr`](std::str::FromStr) does, or a number of bytes.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written(|text| text.parse()))
    }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    ConfiguredDuration::deserialize(from).map(|time| time.0)
}

pub(super) fn optional_duration<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Duration>, D::Error> {
    Option::<ConfiguredDuration>::deserialize(from).map(|time| time.map(|time| time.0))
}

pub(super) fn optional_size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    Option::<ConfiguredSize>::deserialize(from).map(|size| size.map(|size| size.0))
}
