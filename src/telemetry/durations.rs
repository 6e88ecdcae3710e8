//! Durations as numbers in the JSON.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// Returns `duration` in milliseconds, with whole microseconds, so that it has no more digits than that.
pub(crate) fn in_milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// Reads a time that was counted in units of `unit` seconds.
fn from_units<'de, D: Deserializer<'de>>(number: D, unit: f64) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(number)? * unit;
    if seconds < 0.0 {
        return Err(D::Error::custom("a duration is negative"));
    }
    // In whole microseconds, as it was written.
    let micros = Duration::try_from_secs_f64((seconds * 1e6).round() / 1e6);
    Ok(micros.unwrap_or(Duration::MAX))
}

/// A duration as a number of hours.
pub(crate) mod hours {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_secs_f64() / 3600.0)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from_units(from, 3600.0)
    }
}

/// A duration as a number of milliseconds.
pub(crate) mod milliseconds {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(in_milliseconds(*time))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from_units(from, 1e-3)
    }
}
