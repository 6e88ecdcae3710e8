//! What a metadata file says, by a reader that is slow and plain. The fuzzers and the replay of
//! their corpus hold the real one against it; the two share no code, not even a library.
//!
//! It reads from the left and says what is wrong first. Its length is that of the forms of `expires_at`; it is one
//! file, because the fuzzers include it as such.

#![allow(dead_code, reason = "each user takes a part of it")]

/// Why there is no instant, as coarsely as two readers can agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    TooLarge,
    Empty,
    /// Not UTF-8, or with a byte order mark.
    Encoding,
    CutShort,
    NotJson,
    /// JSON to begin with, but no object.
    NotAnObject,
    Missing,
    Twice,
    Null,
    Boolean,
    Array,
    Object,
    /// A number that is no instant.
    Number,
    /// A text that is no instant.
    Text,
}

/// Local time: the seconds that clocks are ahead of UTC, and how that changes.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    pub at_first: i64,
    /// From which second on another offset holds, in order.
    pub changes: Vec<(i64, i64)>,
}

impl Zone {
    /// Central European time in the years around `year`, by the rule that is in force since 1996:
    /// summer is from the last Sunday of March, 01:00 UTC, to the last Sunday of October, 01:00 UTC.
    pub fn central_europe(year: i64) -> Self {
        let last_sunday = |year, month| {
            let last_day = days(year, month, 31);
            // The first day of 1970 was a Thursday.
            (last_day - (last_day + 4).rem_euclid(7)) * DAY + 3600
        };
        let changes = (year - 1..=year + 1)
            .flat_map(|year| [(last_sunday(year, 3), 7200), (last_sunday(year, 10), 3600)]);
        Self { at_first: 3600, changes: changes.collect() }
    }

    pub fn offset(&self, instant: i64) -> i64 {
        let past = self.changes.iter().take_while(|(from, _)| *from <= instant);
        past.last().map_or(self.at_first, |(_, offset)| *offset)
    }

    /// The last instant at which clocks show `local`; where they skip it, by the offset before.
    pub fn instant(&self, local: i64) -> i64 {
        let offsets = self.changes.iter().map(|(_, offset)| *offset).chain([self.at_first]);
        let instants = offsets.map(|offset| local - offset);
        let shown = instants.filter(|instant| instant + self.offset(*instant) == local);
        shown.max().unwrap_or_else(|| {
            let mut before = self.at_first;
            for (from, after) in &self.changes {
                if from + before <= local && local < from + after {
                    break;
                }
                before = *after;
            }
            local - before
        })
    }
}

const DAY: i64 = 86_400;
const NANOS: i128 = 1_000_000_000;

/// Nanoseconds since the epoch at which the result beside this metadata expires. `zone` is asked
/// for the local time in a year.
pub fn read(metadata: &[u8], zone: &dyn Fn(i64) -> Zone) -> Result<i128, Wrong> {
    if metadata.len() > 1024 * 1024 {
        return Err(Wrong::TooLarge);
    }
    if metadata.is_empty() {
        return Err(Wrong::Empty);
    }
    let is_wide = metadata.starts_with(b"{\0") || metadata.starts_with(b"\0{");
    if is_wide || metadata.starts_with(b"\xEF\xBB\xBF") || str::from_utf8(metadata).is_err() {
        return Err(Wrong::Encoding);
    }
    let mut json = Json { bytes: metadata, at: 0 };
    let found = json.object(zone)?;
    json.space();
    if json.at < metadata.len() {
        return Err(Wrong::NotJson);
    }
    match found.as_slice() {
        [] => Err(Wrong::Missing),
        [expires_at] => *expires_at,
        _ => Err(Wrong::Twice),
    }
}

struct Json<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Json<'_> {
    /// All values that are named `expires_at`.
    fn object(&mut self, zone: &dyn Fn(i64) -> Zone) -> Result<Vec<Result<i128, Wrong>>, Wrong> {
        let mut found = Vec::new();
        self.space();
        match self.peek()? {
            b'{' => self.at += 1,
            b'[' => return Err(Wrong::NotAnObject),
            b'"' => {
                // Half of a surrogate pair has no meaning as text.
                self.string()?.ok_or(Wrong::NotJson)?;
                return Err(Wrong::NotAnObject);
            }
            _ => {
                self.value()?;
                return Err(Wrong::NotAnObject);
            }
        }
        self.space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(found);
        }
        loop {
            if self.key()?.as_deref() == Some("expires_at") {
                found.push(self.expires_at(zone)?);
            } else {
                self.value()?;
            }
            self.space();
            match self.next()? {
                b',' => {}
                b'}' => return Ok(found),
                _ => return Err(Wrong::NotJson),
            }
        }
    }

    fn expires_at(&mut self, zone: &dyn Fn(i64) -> Zone) -> Result<Result<i128, Wrong>, Wrong> {
        self.space();
        let start = self.at;
        let first = self.peek()?;
        if first == b'"' {
            let text = self.string()?.ok_or(Wrong::NotJson)?;
            return Ok(text_instant(&text, zone).ok_or(Wrong::Text));
        }
        self.value()?;
        Ok(Err(match first {
            b'n' => Wrong::Null,
            b't' | b'f' => Wrong::Boolean,
            b'[' => Wrong::Array,
            b'{' => Wrong::Object,
            _ => {
                let written = str::from_utf8(&self.bytes[start..self.at]).unwrap();
                let number: f64 = written.parse().unwrap();
                if number.is_infinite() {
                    return Err(Wrong::Number);
                }
                return Ok(number_instant(number).ok_or(Wrong::Number));
            }
        }))
    }

    /// Skips a value of any kind and depth.
    fn value(&mut self) -> Result<(), Wrong> {
        // What closes the arrays and objects that are open.
        let mut open = Vec::new();
        loop {
            self.space();
            match self.peek()? {
                first @ (b'{' | b'[') => {
                    self.at += 1;
                    self.space();
                    let close = if first == b'{' { b'}' } else { b']' };
                    if self.peek()? == close {
                        self.at += 1;
                    } else {
                        open.push(close);
                        if first == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b'"' => drop(self.string()?),
                b't' => self.word("true")?,
                b'f' => self.word("false")?,
                b'n' => self.word("null")?,
                b'-' | b'0'..=b'9' => self.number()?,
                _ => return Err(Wrong::NotJson),
            }
            // A value has ended, and perhaps others with it.
            loop {
                let Some(&close) = open.last() else { return Ok(()) };
                self.space();
                match self.next()? {
                    b',' => {
                        if close == b'}' {
                            self.key()?;
                        }
                        break;
                    }
                    byte if byte == close => drop(open.pop()),
                    _ => return Err(Wrong::NotJson),
                }
            }
        }
    }

    /// A key and its colon.
    fn key(&mut self) -> Result<Option<String>, Wrong> {
        self.space();
        let key = self.string()?;
        self.space();
        self.expect(b':')?;
        Ok(key)
    }

    /// `None` where half of a surrogate pair is in it.
    fn string(&mut self) -> Result<Option<String>, Wrong> {
        self.expect(b'"')?;
        let mut units: Vec<u16> = Vec::new();
        loop {
            let start = self.at;
            match self.next()? {
                b'"' => return Ok(String::from_utf16(&units).ok()),
                b'\\' => units.push(self.escape()?),
                0..0x20 => return Err(Wrong::NotJson),
                _ => {
                    while self.at < self.bytes.len() && self.bytes[self.at] & 0xC0 == 0x80 {
                        self.at += 1;
                    }
                    let plain = str::from_utf8(&self.bytes[start..self.at]).unwrap();
                    units.extend(plain.encode_utf16());
                }
            }
        }
    }

    fn escape(&mut self) -> Result<u16, Wrong> {
        Ok(match self.next()? {
            byte @ (b'"' | b'\\' | b'/') => byte.into(),
            b'b' => 8,
            b'f' => 12,
            b'n' => 10,
            b'r' => 13,
            b't' => 9,
            b'u' => {
                let mut unit = 0;
                // All four are there, or the text ends here, whatever they are.
                let digits = self.bytes.get(self.at..self.at + 4).ok_or(Wrong::CutShort)?;
                for digit in digits {
                    let digit = char::from(*digit).to_digit(16).ok_or(Wrong::NotJson)?;
                    unit = unit * 16 + digit as u16;
                }
                self.at += 4;
                unit
            }
            _ => return Err(Wrong::NotJson),
        })
    }

    fn number(&mut self) -> Result<(), Wrong> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        if self.peek()? == b'0' {
            self.at += 1;
            if self.at < self.bytes.len() && self.bytes[self.at].is_ascii_digit() {
                return Err(Wrong::NotJson);
            }
        } else {
            self.digits()?;
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            if let b'+' | b'-' = self.peek()? {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Wrong> {
        if !self.peek()?.is_ascii_digit() {
            return Err(Wrong::NotJson);
        }
        while self.at < self.bytes.len() && self.bytes[self.at].is_ascii_digit() {
            self.at += 1;
        }
        Ok(())
    }

    fn word(&mut self, word: &str) -> Result<(), Wrong> {
        word.bytes().try_for_each(|byte| self.expect(byte))
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Wrong> {
        if self.next()? == wanted { Ok(()) } else { Err(Wrong::NotJson) }
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Result<u8, Wrong> {
        self.bytes.get(self.at).copied().ok_or(Wrong::CutShort)
    }

    fn next(&mut self) -> Result<u8, Wrong> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }
}

/// A number of seconds since the epoch, to the nearest nanosecond.
pub fn number_instant(seconds: f64) -> Option<i128> {
    let end = (days(10_000, 1, 1) * DAY) as f64;
    if !(seconds > 0.0 && seconds < end) {
        return None;
    }
    // No number that is stored in 64 bits has more digits.
    let exact = format!("{seconds:.1074}");
    let (whole, fraction) = exact.split_once('.').unwrap();
    let nanos: i128 = format!("{whole}{}", &fraction[..9]).parse().unwrap();
    let rounds_up = fraction.as_bytes()[9] >= b'5';
    Some(nanos + i128::from(rounds_up))
}

/// The instant that a text means.
pub fn text_instant(text: &str, zone: &dyn Fn(i64) -> Zone) -> Option<i128> {
    const DATES: [&str; 2] = ["9999-99-99", "99999999"];
    const TIMES: [&str; 5] = ["99", "99:99", "9999", "99:99:99", "999999"];

    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    let number = |digits: &str| -> i64 { digits.parse().unwrap() };
    let parts = |time: &str| {
        let digits = time.replace(':', "") + "0000";
        [number(&digits[..2]), number(&digits[2..4]), number(&digits[4..6])]
    };

    let date_shape = DATES.into_iter().find(|date| shape.starts_with(*date))?;
    let (date, rest) = text.split_at(date_shape.len());
    let date = date.replace('-', "");
    let (year, month, day) = (number(&date[..4]), number(&date[4..6]), number(&date[6..]));
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last_day = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year == 0 || !(1..=last_day).contains(&day) {
        return None;
    }
    let mut local = days(year, month, day) * DAY;
    let mut nanos = 0;
    let mut offset = None;

    if !rest.is_empty() {
        let rest = rest.strip_prefix(['T', 't', ' '])?;
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ':').unwrap_or(rest.len());
        let (time, mut rest) = rest.split_at(end);
        let time_shape = &shape[shape.len() - time.len() - rest.len()..][..time.len()];
        if !TIMES.contains(&time_shape) {
            return None;
        }
        let [hour, minute, second] = parts(time);
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        local += hour * 3600 + minute * 60 + second;
        if let Some(fraction) = rest.strip_prefix(['.', ',']) {
            let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
            let has_seconds = time.replace(':', "").len() == 6;
            if end == 0 || !has_seconds {
                return None;
            }
            nanos = number(&format!("{:0<9}", &fraction[..end.min(9)]));
            rest = &fraction[end..];
        }
        offset = match rest {
            "" => None,
            "Z" | "z" => Some(0),
            _ => {
                let written = rest.strip_prefix(['+', '-'])?;
                if !TIMES.contains(&&shape[shape.len() - written.len()..]) {
                    return None;
                }
                let [hours, minutes, seconds] = parts(written);
                if hours > 23 || minutes > 59 || seconds > 59 {
                    return None;
                }
                let ahead = hours * 3600 + minutes * 60 + seconds;
                Some(if rest.starts_with('-') { -ahead } else { ahead })
            }
        };
    }
    let instant = match offset {
        Some(offset) => local - offset,
        None => zone(year).instant(local),
    };
    let years = days(1, 1, 1) * DAY..days(10_000, 1, 1) * DAY;
    years.contains(&instant).then(|| i128::from(instant) * NANOS + i128::from(nanos))
}

/// Days from the epoch to a date.
pub fn days(year: i64, month: i64, day: i64) -> i64 {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    // Leap days are counted in the years, and in this one from March on.
    let full = if month > 2 { year } else { year - 1 };
    let leap_days = full.div_euclid(4) - full.div_euclid(100) + full.div_euclid(400);
    year * 365 + leap_days + BEFORE[month as usize - 1] + day - 719_528
}
