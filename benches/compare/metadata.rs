//! What metadata files contain.

use std::fmt;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Local};
use clap::ValueEnum;

use crate::measure::Outcome;

/// A file that the result store has written.
const STORE: &str = include_str!("../data/metadata.json");
/// The example of the integration guide.
const GUIDE: &str = include_str!("../data/guide.json");

/// The parts of the two that differ from pair to pair.
pub const RESULT_ID: &str = "228d96a0-c31a-405e-8cfd-0074e290eafc";
const STORE_EXPIRY: &str = "4890609687.1605";
const GUIDE_EXPIRY: &str = "2025-11-18T12:00:00";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Content {
    /// As the result store writes it: some 570 bytes, with the expiry as a number
    Store,
    /// As the integration guide shows it: some 130 bytes, with the expiry as text
    Guide,
}

impl Content {
    /// An expiry as this content has it.
    pub fn expiry(self, at: SystemTime) -> Outcome<String> {
        Ok(match self {
            Self::Store => seconds(at)?,
            // Text without an offset is local time.
            Self::Guide => DateTime::<Local>::from(at).format("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
        })
    }

    /// The metadata of the pair with this stem. `expiry` is in the form of this content.
    pub fn metadata(self, stem: &str, expiry: &str) -> String {
        match self {
            Self::Store => STORE.replacen(RESULT_ID, stem, 1).replacen(STORE_EXPIRY, expiry, 1),
            Self::Guide => GUIDE.replacen(GUIDE_EXPIRY, expiry, 1),
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Store => "metadata of the store",
            Self::Guide => "metadata of the guide",
        })
    }
}

/// A time as the result store writes it, to the microsecond.
pub fn seconds(time: SystemTime) -> Outcome<String> {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(format!("{}.{:06}", since_epoch.as_secs(), since_epoch.subsec_micros()))
}

/// A time that is years away.
pub fn far() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(4_890_609_687)
}

/// A time that is years ago.
pub fn past() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}
