//! Texts and numbers as values of `expires_at`, in arbitrary time zones.

use chrono::{FixedOffset, MappedLocalTime, NaiveDate, NaiveDateTime, TimeZone};

use super::reference::{self, Zone};
use super::{Input, assert_is_one_line, nanos};
use crate::pair::expires_at::{from_number, parse};

const DAY: i64 = 86_400;

/// Reads a value that is made of `bytes`, and compares the outcome with the reference.
pub fn expires_at(bytes: &[u8]) {
    let mut input = Input(bytes);
    let form = input.below(4);
    if form == 0 {
        let number = f64::from_bits(input.number(8));
        let found = from_number(number);
        assert_eq!(found.ok().map(nanos), reference::number_instant(number), "{number:e}");
        return;
    }
    let day = day(&mut input);
    let zone = zone(&mut input, day);
    let text = match form {
        1 => String::from_utf8_lossy(input.rest()).into_owned(),
        _ => text(&mut input, day),
    };
    let found = parse(&text, &ClockJumps(&zone));
    if let Err(reason) = &found {
        assert_is_one_line(&reason.to_string());
    }
    let expected = reference::text_instant(&text, &|_| zone.clone());
    assert_eq!(found.as_ref().ok().copied().map(nanos), expected, "{text:?}: {found:?}, {zone:?}");
}

/// Returns a day since the epoch, at both ends of the calendar or anywhere between.
fn day(input: &mut Input) -> i64 {
    let span = |from, to| reference::days(from, 1, 1)..reference::days(to, 1, 1);
    let days = match input.below(4) {
        0 => span(1, 2),
        1 => span(9999, 10_000),
        2 => span(1, 10_000),
        _ => span(1970, 2100),
    };
    let offset = input.number(3);
    days.start + offset as i64 % (days.end - days.start)
}

/// Returns a zone whose offsets change around `day`, by any amount, but not twice within two days.
fn zone(input: &mut Input, day: i64) -> Zone {
    fn offset(input: &mut Input) -> i64 {
        let unit = input.pick(&[3600, 1800, 900, 1]);
        let number = input.number(3) as i64 - (1 << 23);
        number * unit % DAY
    }

    let at_first = offset(input);
    let mut changes = Vec::new();
    let mut from = (day - 3) * DAY;
    for _ in 0..input.below(4) {
        from += input.number(3) as i64 * input.pick(&[1, 900]) % (2 * DAY);
        changes.push((from, offset(input)));
        from += 2 * DAY;
    }
    Zone { at_first, changes }
}

/// Returns text that is a date near `day`, or almost one.
fn text(input: &mut Input, day: i64) -> String {
    let (mut year, mut month, mut date) = civil(day + input.below(5) as i64 - 2);
    match input.below(16) {
        0 => year = i64::from(input.byte()) * 40,
        1 => month = input.below(15) as i64,
        2 => date = input.below(34) as i64,
        _ => {}
    }
    let dash = input.pick(&["-", "-", "-", "", ""]);
    let mut text = format!("{year:04}{dash}{month:02}{dash}{date:02}");
    if input.below(8) > 0 {
        text += input.pick(&["T", "T", "t", " ", "_"]);
        text += &clock(input);
        match input.below(4) {
            0 | 1 => {}
            _ => {
                text += input.pick(&[".", ","]);
                let digits = input.below(12);
                text += &format!("{:020}", input.number(8))[..digits];
            }
        }
    }
    match input.below(8) {
        0..4 => {}
        4 => text += input.pick(&["Z", "z", " "]),
        _ => {
            text += input.pick(&["+", "-"]);
            text += &clock(input);
        }
    }
    if input.below(4) == 0 && text.is_ascii() {
        let at = input.below(text.len());
        text.replace_range(at..=at, input.pick(&["", "0", "9", ":", "-", "W", " ", "é"]));
    }
    text
}

fn clock(input: &mut Input) -> String {
    let colon = input.pick(&[":", ":", ""]);
    let limit = input.pick(&[60, 60, 60, 63]);
    let hour = input.below(if limit == 60 { 24 } else { 26 });
    let mut text = format!("{hour:02}");
    for _ in 0..input.pick(&[2, 2, 1, 0]) {
        text += &format!("{colon}{:02}", input.below(limit));
    }
    text
}

fn civil(day: i64) -> (i64, i64, i64) {
    let year = (0..1973 + day.div_euclid(365))
        .rev()
        .find(|year| reference::days(*year, 1, 1) <= day)
        .unwrap_or(0);
    let month = (1..=12).rev().find(|month| reference::days(year, *month, 1) <= day).unwrap_or(1);
    (year, month, day - reference::days(year, month, 1) + 1)
}

/// Local time from a list of offsets. Only the direction from UTC is defined.
#[derive(Clone)]
struct ClockJumps<'a>(&'a Zone);

impl TimeZone for ClockJumps<'_> {
    type Offset = FixedOffset;

    fn from_offset(_: &FixedOffset) -> Self {
        unimplemented!()
    }

    fn offset_from_local_date(&self, _: &NaiveDate) -> MappedLocalTime<FixedOffset> {
        unimplemented!()
    }

    fn offset_from_local_datetime(&self, _: &NaiveDateTime) -> MappedLocalTime<FixedOffset> {
        unimplemented!()
    }

    fn offset_from_utc_date(&self, _: &NaiveDate) -> FixedOffset {
        unimplemented!()
    }

    fn offset_from_utc_datetime(&self, utc: &NaiveDateTime) -> FixedOffset {
        let offset = self.0.offset(utc.and_utc().timestamp());
        FixedOffset::east_opt(offset as i32).unwrap()
    }
}
