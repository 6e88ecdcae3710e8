//! The accepted forms of `expires_at`, and the instant that each of them means.
//!
//! | form | meaning |
//! | --- | --- |
//! | a number > 0 | seconds since the Unix epoch |
//! | `2025-11-18T12:00:00` and its shorter and basic forms | local time of the process |
//! | the same with `Z` or an offset | that instant |
//!
//! Text has to be valid in both ISO 8601 and Python's `datetime.fromisoformat`; week and ordinal dates
//! are excluded. Text with two possible meanings is rejected with a reason.
//!
//! Nothing here reads a clock or a file, except that [`from_text`] reads the local time zone.

use chrono::{DateTime, Datelike, Local, NaiveDate, NaiveDateTime, Offset, TimeDelta};
use chrono::{TimeZone, Utc};

/// Why a value is not a valid `expires_at`. Displayed as one line that says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum InvalidExpiry {
    /// `null`.
    #[error("expires_at is null; {WANTED}")]
    Null,
    /// `true` or `false`.
    #[error("expires_at is a boolean; {WANTED}")]
    Boolean,
    /// An array with any content.
    #[error("expires_at is an array; {WANTED}")]
    Array,
    /// An object with any content.
    #[error("expires_at is an object; {WANTED}")]
    Object,
    /// An empty string.
    #[error("expires_at is an empty string; {WANTED}")]
    Empty,
    /// A number ≤ 0.
    #[error("expires_at is zero or negative; seconds since the Unix epoch are above 0")]
    NotPositive,
    /// A number that is plausible only in another unit, which is named.
    #[error("expires_at looks like {0}; it is counted in seconds since the Unix epoch")]
    NotSeconds(&'static str),
    /// A number that is plausible in no unit.
    #[error("expires_at is a number far out of range; {WANTED}")]
    TooLarge,
    /// A text that is a number, not a date.
    #[error("expires_at is a number in quotes; write it without quotes")]
    NumberInQuotes,
    /// White space before or after the value.
    #[error("expires_at begins or ends with white space; remove it")]
    OuterSpace,
    /// A year outside 1-9999.
    #[error("expires_at has a year outside 1-9999, as written or in UTC; years have four digits")]
    Year,
    /// A month outside 1-12, or a day that this month does not have.
    #[error("expires_at names a day that the calendar does not have; check month and day")]
    Day,
    /// The end of a day, written as hour 24; hour 0 of the next day is clearer.
    #[error("expires_at has the hour 24; write 00:00 of the next day")]
    Hour24,
    /// A leap second.
    #[error("expires_at has the second 60; seconds go from 0 to 59")]
    Second60,
    /// An hour, a minute or a second out of range.
    #[error("expires_at has a time outside 00:00:00 to 23:59:59")]
    Time,
    /// A date like `2025-W47-2`.
    #[error("expires_at is a week date; write year, month and day as in 2025-11-18")]
    WeekDate,
    /// A date like `2025-322`.
    #[error("expires_at is an ordinal date; write year, month and day as in 2025-11-18")]
    OrdinalDate,
    /// A date like `2025-11-18Z`.
    #[error("expires_at has an offset but no time; write both as in 2025-11-18T00:00Z")]
    OffsetWithoutTime,
    /// An offset that is out of range or has none of the accepted forms.
    #[error("expires_at has an unusable offset; write Z, +05, +0530, +05:30 or +05:30:15")]
    Offset,
    /// Any other text; contains its beginning.
    #[error("expires_at is {0:?}, which is no date and time; {WANTED}")]
    NotADateTime(String),
}

const WANTED: &str = "write seconds since the Unix epoch or a time like 2025-11-18T12:00:00Z";

/// The first second of the year 10000, since the Unix epoch.
const END: f64 = 253_402_300_800.0;

const DAY: TimeDelta = TimeDelta::days(1);

/// Returns the instant `n` seconds after the Unix epoch, to the nearest nanosecond.
pub(crate) fn from_number(n: f64) -> Result<DateTime<Utc>, InvalidExpiry> {
    if n <= 0.0 {
        return Err(InvalidExpiry::NotPositive);
    }
    match n / END {
        ..1.0 => {}
        1.0..1e3 => return Err(InvalidExpiry::NotSeconds("milliseconds")),
        1e3..1e6 => return Err(InvalidExpiry::NotSeconds("microseconds")),
        1e6..1e9 => return Err(InvalidExpiry::NotSeconds("nanoseconds")),
        _ => return Err(InvalidExpiry::TooLarge),
    }
    let nanos = nearest_nanos(n);
    let secs = i64::try_from(nanos / 1_000_000_000).map_err(|_| InvalidExpiry::TooLarge)?;
    DateTime::from_timestamp(secs, (nanos % 1_000_000_000) as u32).ok_or(InvalidExpiry::TooLarge)
}

/// Converts `n` seconds, 0 ≤ `n` < [`END`], to nanoseconds; half a nanosecond is rounded up.
///
/// A multiplication in floating point would round once more, with errors of hundreds of nanoseconds.
fn nearest_nanos(n: f64) -> u128 {
    const FRACTION_BITS: u32 = f64::MANTISSA_DIGITS - 1;
    let bits = n.to_bits();
    let exponent = (bits >> FRACTION_BITS) as i32;
    let fraction = bits & ((1 << FRACTION_BITS) - 1);
    // Only subnormal numbers lack the implied bit; they round to 0 with or without it.
    let nanos = u128::from(fraction | (1 << FRACTION_BITS)) * 1_000_000_000;
    let shift = (f64::MAX_EXP - 1 + FRACTION_BITS as i32 - exponent) as u32;
    match nanos.checked_shr(shift - 1) {
        Some(halves) => halves.div_ceil(2),
        None => 0,
    }
}

/// Returns the instant that `s` means. Text without an offset is in the local time of the process.
pub(crate) fn from_text(s: &str) -> Result<DateTime<Utc>, InvalidExpiry> {
    parse(s, &Local)
}

/// As [`from_text`], but text without an offset is in the local time of `zone`.
pub(crate) fn parse<Tz: TimeZone>(s: &str, zone: &Tz) -> Result<DateTime<Utc>, InvalidExpiry> {
    let fields = Scanner(s.as_bytes()).fields().ok_or_else(|| diagnose(s))?;
    let local = fields.date_time()?;
    let utc = match fields.offset {
        None => resolve(local, zone),
        Some(offset) => local - offset.time_delta()?,
    };
    match utc.year() {
        1..=9999 => Ok(utc.and_utc()),
        _ => Err(InvalidExpiry::Year),
    }
}

/// Returns the instant, in UTC, at which clocks in `zone` show `local`. If there are two such instants,
/// it is the later one. If clocks skip `local`, it is computed with the offset before the change.
///
/// This queries the zone only in the direction from UTC to local time, which is never ambiguous.
/// chrono's other direction misjudges the seconds in which an offset changes, and the order of the two
/// answers. One day in either direction is more than every offset, and no zone changes twice within two
/// days.
fn resolve<Tz: TimeZone>(local: NaiveDateTime, zone: &Tz) -> NaiveDateTime {
    let offset_at = |utc: NaiveDateTime| zone.offset_from_utc_datetime(&utc).fix();
    let before = offset_at(local - DAY);
    let after = offset_at(local + DAY);
    let candidates = [before, after].map(|offset| (local - offset, offset));
    let exact = candidates.into_iter().filter(|&(utc, offset)| offset_at(utc) == offset);
    exact.map(|(utc, _)| utc).max().unwrap_or(local - before)
}

/// The fields of the text. Each value has the right number of digits, but may be out of range.
struct DateTimeFields {
    date: [u32; 3],
    time: [u32; 3],
    nanos: u32,
    offset: Option<WrittenOffset>,
}

struct WrittenOffset {
    west: bool,
    time: [u32; 3],
}

impl DateTimeFields {
    fn date_time(&self) -> Result<NaiveDateTime, InvalidExpiry> {
        let [year, month, day] = self.date;
        if year == 0 {
            return Err(InvalidExpiry::Year);
        }
        let date = NaiveDate::from_ymd_opt(year as i32, month, day).ok_or(InvalidExpiry::Day)?;
        match self.time {
            [24, ..] => Err(InvalidExpiry::Hour24),
            [_, _, 60] => Err(InvalidExpiry::Second60),
            [h, m, s] => date.and_hms_nano_opt(h, m, s, self.nanos).ok_or(InvalidExpiry::Time),
        }
    }
}

impl WrittenOffset {
    /// Returns how far local time is ahead of UTC.
    fn time_delta(&self) -> Result<TimeDelta, InvalidExpiry> {
        let [h @ 0..=23, m @ 0..=59, s @ 0..=59] = self.time else {
            return Err(InvalidExpiry::Offset);
        };
        let east = TimeDelta::seconds(i64::from(h * 3600 + m * 60 + s));
        Ok(if self.west { -east } else { east })
    }
}

/// The rest of a text that is parsed from left to right. A method that returns `None` may have consumed
/// a part of it.
struct Scanner<'a>(&'a [u8]);

impl Scanner<'_> {
    fn fields(mut self) -> Option<DateTimeFields> {
        let date = self.date()?;
        let (mut time, mut nanos, mut offset) = ([0; 3], 0, None);
        if self.one_of(b"Tt ").is_some() {
            (time, nanos) = self.time()?;
            offset = self.offset()?;
        }
        self.0.is_empty().then_some(DateTimeFields { date, time, nanos, offset })
    }

    fn date(&mut self) -> Option<[u32; 3]> {
        let year = self.digits(4)?;
        let extended = self.one_of(b"-").is_some();
        let month = self.digits(2)?;
        if extended {
            self.one_of(b"-")?;
        }
        Some([year, month, self.digits(2)?])
    }

    fn time(&mut self) -> Option<([u32; 3], u32)> {
        let (time, parts) = self.clock()?;
        let mut nanos = 0;
        if parts == 3 && self.one_of(b".,").is_some() {
            nanos = self.digits(1)? * 100_000_000;
            let mut unit = 10_000_000;
            while let Some(digit) = self.digits(1) {
                nanos += digit * unit;
                unit /= 10;
            }
        }
        Some((time, nanos))
    }

    /// Parses an offset; `Some(None)` if there is none.
    fn offset(&mut self) -> Option<Option<WrittenOffset>> {
        let (west, time) = match self.one_of(b"Zz+-") {
            None => return Some(None),
            Some(b'Z' | b'z') => (false, [0; 3]),
            Some(sign) => (sign == b'-', self.clock()?.0),
        };
        Some(Some(WrittenOffset { west, time }))
    }

    /// Parses `HH`, `HH:MM`, `HH:MM:SS` or the same without colons. Returns the time and its number of
    /// parts.
    fn clock(&mut self) -> Option<([u32; 3], usize)> {
        let mut time = [self.digits(2)?, 0, 0];
        let extended = self.0.first() == Some(&b':');
        for part in 1..3 {
            let more = if extended {
                self.one_of(b":").is_some()
            } else {
                self.0.first().is_some_and(u8::is_ascii_digit)
            };
            if !more {
                return Some((time, part));
            }
            time[part] = self.digits(2)?;
        }
        Some((time, 3))
    }

    /// Returns whether the text is a year and a day of the year, with or without a time.
    fn ordinal(mut self) -> bool {
        let year = self.digits(4).is_some();
        self.one_of(b"-");
        let day = self.digits(3).is_some();
        year && day && (self.0.is_empty() || self.one_of(b"Tt ").is_some())
    }

    /// Returns whether the text begins with a year and a week.
    fn week(mut self) -> bool {
        let year = self.digits(4).is_some();
        self.one_of(b"-");
        year && self.one_of(b"Ww").is_some()
    }

    fn one_of(&mut self, bytes: &[u8]) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        bytes.contains(&first).then(|| self.0 = rest)?;
        Some(first)
    }

    fn digits(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let value = digits.iter().try_fold(0, |value, byte| {
            byte.is_ascii_digit().then(|| value * 10 + u32::from(byte - b'0'))
        })?;
        self.0 = rest;
        Some(value)
    }
}

/// Returns the mistake in a text that has none of the accepted forms.
fn diagnose(s: &str) -> InvalidExpiry {
    if s.is_empty() {
        return InvalidExpiry::Empty;
    }
    if s.trim() != s {
        return InvalidExpiry::OuterSpace;
    }
    let bytes = s.as_bytes();
    if Scanner(bytes).ordinal() {
        return InvalidExpiry::OrdinalDate;
    }
    let numeric = bytes.iter().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte));
    if numeric && s.parse::<f64>().is_ok() {
        return InvalidExpiry::NumberInQuotes;
    }
    let unsigned = bytes.strip_prefix(b"+").or(bytes.strip_prefix(b"-")).unwrap_or(bytes);
    let year_digits = unsigned.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let dash = |index| unsigned.get(index) == Some(&b'-');
    let dated = year_digits >= 4 && dash(year_digits) && dash(year_digits + 3);
    if dated && (year_digits > 4 || unsigned.len() < bytes.len()) {
        return InvalidExpiry::Year;
    }
    if Scanner(bytes).week() {
        return InvalidExpiry::WeekDate;
    }
    let mut scan = Scanner(bytes);
    if scan.date().is_some() {
        if scan.one_of(b"Zz+-").is_some() {
            return InvalidExpiry::OffsetWithoutTime;
        }
        if scan.one_of(b"Tt ").is_some() && scan.time().is_some() && scan.one_of(b"+-").is_some() {
            return InvalidExpiry::Offset;
        }
    }

    const SHOWN: usize = 40;
    let end = s.char_indices().nth(SHOWN).map_or(s.len(), |(index, _)| index);
    let ellipsis = if end < s.len() { "…" } else { "" };
    InvalidExpiry::NotADateTime(format!("{}{ellipsis}", &s[..end]))
}

#[cfg(test)]
mod tests;
