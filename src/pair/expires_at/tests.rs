use super::*;
use InvalidExpiry::*;
use chrono_tz::Tz;
use proptest::prelude::*;

fn rfc3339(at: DateTime<Utc>) -> String {
    at.format("%FT%T%.fZ").to_string()
}

fn read(s: &str, zone: Tz) -> String {
    parse(s, &zone).map_or_else(|e| e.to_string(), rfc3339)
}

#[test]
fn forms_without_offset_are_local_time() {
    let cases = [
        ("2025-11-18T12:00:00", "2025-11-18T11:00:00Z"),
        ("2025-11-18t12:00:00", "2025-11-18T11:00:00Z"),
        ("2025-11-18 12:00:00", "2025-11-18T11:00:00Z"),
        ("20251118T120000", "2025-11-18T11:00:00Z"),
        ("20251118T12:00:00", "2025-11-18T11:00:00Z"),
        ("2025-11-18T120000", "2025-11-18T11:00:00Z"),
        ("2025-11-18T12:34", "2025-11-18T11:34:00Z"),
        ("2025-11-18T1234", "2025-11-18T11:34:00Z"),
        ("2025-11-18T12", "2025-11-18T11:00:00Z"),
        ("20251118 12", "2025-11-18T11:00:00Z"),
        ("2025-11-18", "2025-11-17T23:00:00Z"),
        ("20251118", "2025-11-17T23:00:00Z"),
        ("2025-07-18T12:00:00", "2025-07-18T10:00:00Z"),
        ("2025-11-18T12:00:00.5", "2025-11-18T11:00:00.500Z"),
        ("2025-11-18T12:00:00,25", "2025-11-18T11:00:00.250Z"),
        ("20251118T120000.123456789", "2025-11-18T11:00:00.123456789Z"),
        ("2025-11-18T12:00:00.1234567899999", "2025-11-18T11:00:00.123456789Z"),
        ("2024-02-29T23:59:59", "2024-02-29T22:59:59Z"),
    ];
    for (text, expected) in cases {
        assert_eq!(read(text, Tz::Europe__Berlin), expected, "{text}");
    }
    let long = format!("2025-11-18T12:00:00.{}", "3".repeat(100_000));
    assert_eq!(read(&long, Tz::Europe__Berlin), "2025-11-18T11:00:00.333333333Z");
}

#[test]
fn forms_with_offset_are_that_instant() {
    let cases = [
        ("2025-11-18T12:00:00Z", "2025-11-18T12:00:00Z"),
        ("2025-11-18T12:00:00z", "2025-11-18T12:00:00Z"),
        ("2025-11-18T12:00:00+05", "2025-11-18T07:00:00Z"),
        ("2025-11-18T12:00:00+0530", "2025-11-18T06:30:00Z"),
        ("2025-11-18T12:00:00+05:30", "2025-11-18T06:30:00Z"),
        ("2025-11-18T12:00:00-05:30:15", "2025-11-18T17:30:15Z"),
        ("2025-11-18T12:00:00-053015", "2025-11-18T17:30:15Z"),
        ("2025-11-18T12:00:00.25+00:00", "2025-11-18T12:00:00.250Z"),
        ("2025-11-18T12:00:00+23:59:59", "2025-11-17T12:00:01Z"),
        ("20251118T1200-00:00", "2025-11-18T12:00:00Z"),
        ("2025-11-18 12+01", "2025-11-18T11:00:00Z"),
        ("20251118t12Z", "2025-11-18T12:00:00Z"),
        ("0001-01-01T00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
    ];
    for (text, expected) in cases {
        assert_eq!(read(text, Tz::Asia__Tokyo), expected, "{text}");
        assert_eq!(rfc3339(from_text(text).unwrap()), expected, "{text}");
    }
}

#[test]
fn twice_is_the_later_instant_and_never_is_by_the_offset_before() {
    let cases = [
        (Tz::Europe__Berlin, "2026-03-29T01:59:59.9", "2026-03-29T00:59:59.900Z"),
        (Tz::Europe__Berlin, "2026-03-29T02:00", "2026-03-29T01:00:00Z"),
        (Tz::Europe__Berlin, "2026-03-29T02:30", "2026-03-29T01:30:00Z"),
        (Tz::Europe__Berlin, "2026-03-29T03:00", "2026-03-29T01:00:00Z"),
        (Tz::Europe__Berlin, "2026-10-25T01:59:59", "2026-10-24T23:59:59Z"),
        (Tz::Europe__Berlin, "2026-10-25T02:00", "2026-10-25T01:00:00Z"),
        (Tz::Europe__Berlin, "2026-10-25T02:59:59", "2026-10-25T01:59:59Z"),
        (Tz::Europe__Berlin, "2026-10-25T03:00", "2026-10-25T02:00:00Z"),
        (Tz::America__New_York, "2026-03-08T02:30", "2026-03-08T07:30:00Z"),
        (Tz::America__New_York, "2026-11-01T01:30", "2026-11-01T06:30:00Z"),
        (Tz::Australia__Lord_Howe, "2026-10-04T02:15", "2026-10-03T15:45:00Z"),
        (Tz::Australia__Lord_Howe, "2026-04-05T01:45", "2026-04-04T15:15:00Z"),
        // In winter, Dublin sets clocks back; its zone data may count winter time as "daylight saving".
        (Tz::Europe__Dublin, "2026-03-29T01:30", "2026-03-29T01:30:00Z"),
        (Tz::Europe__Dublin, "2026-10-25T01:30", "2026-10-25T01:30:00Z"),
        // Clocks change at midnight.
        (Tz::America__Santiago, "2026-09-06", "2026-09-06T04:00:00Z"),
        // One whole day was skipped, and one day came twice.
        (Tz::Pacific__Apia, "2011-12-30T12:00", "2011-12-30T22:00:00Z"),
        (Tz::Pacific__Apia, "2011-12-29T23:59:59", "2011-12-30T09:59:59Z"),
        (Tz::Pacific__Apia, "2011-12-31", "2011-12-30T10:00:00Z"),
        (Tz::Pacific__Kwajalein, "1969-09-30T12:00", "1969-10-01T00:00:00Z"),
        (Tz::Pacific__Kwajalein, "1993-08-21T12:00", "1993-08-22T00:00:00Z"),
    ];
    for (zone, text, expected) in cases {
        assert_eq!(read(text, zone), expected, "{text} in {zone}");
    }
}

#[test]
fn everything_else_is_invalid_and_says_why() {
    let not_a_date_time = [
        "soon|2025-11|2025-1118|202511-18|2025-1-18|2025/11/18|25-11-18|18.11.2025|2025-11-18T",
        "2025-11-18_12:00|2025-11-18\t12:00|2025-11-18\u{a0}12:00|2025-11-18  12:00",
        "2025-11-18T 12:00|2025-11-18T1|2025-11-18T12:|2025-11-18T12:0|2025-11-18T12:00:",
        "2025-11-18T12:0000|2025-11-18T1200:00|2025-11-18T12:00.5|2025-11-18T12.5",
        "2025-11-18T12:00:00.|2025-11-18T12:00:00.Z|2025-11-18T12:00:00;5",
        "2025-11-18T12:00:00 Z|2025-11-18T12:00:00 +01:00|2025-11-18T12:00:00UTC",
        "2025-11-18T12:00:00ZZ|2025-11-18T12:00:00Z+01|2025-11-18T12:00:00\u{2212}05:00",
        "2025-11-18T12:00:00\0|٢٠٢٥-11-18|2025-11-18T12:0０",
    ];
    for text in not_a_date_time.iter().flat_map(|texts| texts.split('|')) {
        assert_eq!(from_text(text), Err(NotADateTime(text.to_owned())), "{text}");
    }
    let cases: [(&[&str], InvalidExpiry); 11] = [
        (&[""], Empty),
        (&[" 2025-11-18", "2025-11-18 ", "2025-11-18T12:00Z\n", " ", "\u{2003}2025"], OuterSpace),
        (&["1795468284", "1795468284.5", "-1", "1e9", "0", "20251118120000"], NumberInQuotes),
        (&["0000-01-01", "00000101", "12025-01-01", "+2025-01-01", "-2025-01-01"], Year),
        (&["2025-13-01", "2025-00-01", "2025-02-29", "20251131", "2025-11-00T00Z"], Day),
        (&["2025-11-18T24:00", "2025-11-18T24:00:00Z", "20251118T24"], Hour24),
        (&["2025-11-18T12:00:60", "2016-12-31T23:59:60Z", "20251118T120060"], Second60),
        (&["2025-11-18T25:00", "2025-11-18T12:60", "2025-11-18T12:00:61", "20251118T99"], Time),
        (&["2025-W47-2", "2025W472", "2025-W47", "2025-W47-2T12:00"], WeekDate),
        (&["2025-322", "2025322", "2025-322T12:00Z", "2025322 12"], OrdinalDate),
        (&["2025-11-18Z", "2025-11-18+01:00", "20251118z", "2025-11-18-05"], OffsetWithoutTime),
    ];
    for (texts, expected) in cases {
        for text in texts {
            assert_eq!(from_text(text), Err(expected.clone()), "{text}");
        }
    }
    for offset in
        ["+24", "+05:60", "-05:30:60", "+5", "+053", "+05:3", "+", "-05:30:15.5", "+05:3015"]
    {
        let text = format!("2025-11-18T12:00:00{offset}");
        assert_eq!(from_text(&text), Err(Offset), "{text}");
    }
    for (text, zone) in [
        ("0001-01-01T00:00+00:01", Tz::UTC),
        ("9999-12-31T23:59:59-00:01", Tz::UTC),
        ("0001-01-01", Tz::Asia__Tokyo),
        ("9999-12-31T20:00", Tz::America__New_York),
    ] {
        assert_eq!(parse(text, &zone), Err(Year), "{text}");
    }
}

#[test]
fn reasons_are_one_short_line() {
    let long = from_text(&"é\n\u{1b}[31m".repeat(1000)).unwrap_err().to_string();
    assert!(long.len() < 300 && !long.contains(char::is_control), "{long}");
    let millis = from_number(1_795_468_284_498.0).unwrap_err().to_string();
    assert!(millis.contains("milliseconds") && millis.contains("in seconds"), "{millis}");
}

#[test]
fn numbers_are_seconds_since_the_epoch() {
    let cases = [
        (1.0, "1970-01-01T00:00:01Z"),
        (1_795_468_279.0, "2026-11-23T21:11:19Z"),
        (1_795_468_279.498_164_2, "2026-11-23T21:11:19.498164177Z"),
        (1.999_999_999_9, "1970-01-01T00:00:02Z"),
        (0.000_000_001, "1970-01-01T00:00:00.000000001Z"),
        (0.499_999_999e-9, "1970-01-01T00:00:00Z"),
        (f64::MIN_POSITIVE, "1970-01-01T00:00:00Z"),
        (f64::from_bits(1), "1970-01-01T00:00:00Z"),
        (253_402_300_799.0, "9999-12-31T23:59:59Z"),
        (253_402_300_800.0_f64.next_down(), "9999-12-31T23:59:59.999969482Z"),
    ];
    for (n, expected) in cases {
        assert_eq!(from_number(n).map(rfc3339).as_deref(), Ok(expected), "{n}");
    }
    let invalid = [
        (0.0, NotPositive),
        (-0.0, NotPositive),
        (-1.5, NotPositive),
        (f64::NEG_INFINITY, NotPositive),
        (253_402_300_800.0, NotSeconds("milliseconds")),
        (1_795_468_279_498.0, NotSeconds("milliseconds")),
        (1_795_468_279_498_164.0, NotSeconds("microseconds")),
        (1_795_468_279_498_164_200.0, NotSeconds("nanoseconds")),
        (1e21, TooLarge),
        (f64::INFINITY, TooLarge),
        (f64::NAN, TooLarge),
    ];
    for (n, expected) in invalid {
        assert_eq!(from_number(n), Err(expected), "{n}");
    }
}

const ZONES: [Tz; 5] = [
    Tz::Europe__Berlin,
    Tz::America__St_Johns,
    Tz::Australia__Lord_Howe,
    Tz::Africa__Casablanca,
    Tz::Pacific__Apia,
];

proptest! {
    #[test]
    fn no_text_panics(s in "[0-9TtZzW+:., -]{0,30}|\\PC{0,30}") {
        let _ = parse(&s, &Tz::Europe__Berlin);
    }

    /// Of the instants that show this local time, the result is the latest. If no instant shows it, the
    /// result shows a time that is later by as much as the clocks were set forward.
    #[test]
    fn local_time_is_resolved_to_the_last_instant(
        secs in 1_000_000_000_i64..2_500_000_000, zone in prop::sample::select(&ZONES[..]),
    ) {
        let local = DateTime::from_timestamp(secs, 0).unwrap().naive_utc();
        let at = resolve(local, &zone);
        let shown = |utc: NaiveDateTime| zone.from_utc_datetime(&utc).naive_local();
        prop_assert!(shown(at) >= local);
        for minutes in (15..=24 * 60).step_by(15) {
            let apart = TimeDelta::minutes(minutes);
            prop_assert_ne!(shown(at + apart), local);
            if shown(at) > local {
                prop_assert_ne!(shown(at - apart), local);
            }
        }
    }
}
