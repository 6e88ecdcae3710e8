//! Writing results to standard output.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, IsTerminal, Write, stdout};
use std::time::Duration;

use chrono::{DateTime, Local, SecondsFormat, Timelike, Utc};
use serde::Serialize;

use super::CommandError;

/// Writes to standard output. Returns whether the output still has a reader. A reader that closes the
/// pipe may have seen enough (`| head`), so that is not a failure.
pub(crate) fn print(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<bool, CommandError> {
    let mut out = io::BufWriter::new(stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("can't write to standard output: {error}").into()),
    }
}

/// Whether output to `stream` may have colours: not into a pipe, nor if <https://no-color.org> or the
/// terminal forbids it.
pub(crate) fn has_colour(stream: &impl IsTerminal) -> bool {
    let is_set =
        |name, value: &dyn Fn(&OsStr) -> bool| std::env::var_os(name).is_some_and(|v| value(&v));
    let is_forbidden = is_set("NO_COLOR", &|value| !value.is_empty());
    let is_dumb = is_set("TERM", &|value| value == "dumb");
    stream.is_terminal() && !is_forbidden && !is_dumb
}

/// Returns the time that decides what is shown as old or due.
#[expect(
    clippy::disallowed_methods,
    reason = "it only decides how results are shown, and there is no cleaner whose clock could be asked"
)]
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now()
}

/// Returns one line of JSON without control characters. JSON itself allows those from U+007F on
/// unescaped, and some of them change a terminal's state.
pub(crate) fn json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value).map(|json| escape_controls(&json))
}

/// Escapes the control characters in the strings of a line of JSON.
pub(crate) fn escape_controls(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut text, c| {
        if c.is_control() && c != '\n' {
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
        text
    })
}

/// Formats a time as RFC 3339 in UTC, with at least milliseconds, and more digits if needed.
pub(crate) fn rfc3339(at: DateTime<Utc>) -> String {
    let digits = match at.nanosecond() {
        nanos if nanos % 1_000_000 == 0 => SecondsFormat::Millis,
        nanos if nanos % 1_000 == 0 => SecondsFormat::Micros,
        _ => SecondsFormat::Nanos,
    };
    at.to_rfc3339_opts(digits, true)
}

/// Formats the local time, for people.
pub(crate) fn local(at: DateTime<Utc>) -> String {
    at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string()
}

/// Formats the time from now, in at most two units: `3h 20m`, or `expired`.
pub(crate) fn time_left(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let Ok(left) = (at - now).to_std() else {
        return "expired".to_owned();
    };
    duration(left)
}

/// Formats a duration in whole seconds, in at most two units.
pub(crate) fn duration(length: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(length.as_secs())).to_string();
    let spaced = |part: &str| {
        let unit = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = &part[..part.len() - unit.len()];
        // Units that are words have a space before them.
        if unit.len() > 1 { format!("{number} {unit}") } else { part.to_owned() }
    };
    text.split(' ').take(2).map(spaced).collect::<Vec<_>>().join(" ")
}

/// Returns a number of things in words.
pub(super) fn counted(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_have_at_least_milliseconds() {
        let at = |nanos| rfc3339(DateTime::from_timestamp(0, nanos).unwrap());
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(250_000_000), "1970-01-01T00:00:00.250Z");
        assert_eq!(at(250_000), "1970-01-01T00:00:00.000250Z");
        assert_eq!(at(1), "1970-01-01T00:00:00.000000001Z");
    }

    #[test]
    fn json_holds_no_control_characters() {
        let text = "\u{1b}[2J\n\u{7f}\u{9b}2Jä";
        let line = json(&text).unwrap();
        assert!(!line.contains(char::is_control), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }

    #[test]
    fn time_left_has_two_units_at_most() {
        let now = DateTime::UNIX_EPOCH;
        let left = |seconds| time_left(DateTime::from_timestamp(seconds, 0).unwrap(), now);
        assert_eq!(left(3 * 3600 + 20 * 60 + 5), "3h 20m");
        assert_eq!(left(26 * 3600), "1 day 2h");
        assert_eq!(left(59), "59s");
        assert_eq!(left(0), "0s");
        assert_eq!(left(-1), "expired");
    }
}
