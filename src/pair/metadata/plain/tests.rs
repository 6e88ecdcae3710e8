//! What the scanner finds is what serde_json finds, and it leaves all else to serde_json.

use super::*;
use crate::pair::metadata::{InvalidMetadata, expires_at as read, with_serde_json};

/// What the real result store wrote, and what the integration guide shows.
const SAMPLES: [&str; 2] = [
    include_str!("../../../../benches/data/metadata.json"),
    r#"{"expires_at": "2025-11-18T12:00:00", "file_size": 1024, "compression_ratio": 0.85}"#,
];

fn nested(depth: u32, open: &str, close: &str) -> String {
    let depth = depth as usize;
    format!(r#"{{"a":{}0{},"expires_at":1}}"#, open.repeat(depth), close.repeat(depth))
}

#[test]
fn plain_metadata_is_read_here() {
    let mut plain = SAMPLES.map(String::from).to_vec();
    plain.extend([MAX_DEPTH, MAX_DEPTH - 1].map(|depth| nested(depth, "[", "]")));
    plain.push(nested(MAX_DEPTH, r#"{"a":"#, "}"));
    plain.extend(
        [
            r#"{"expires_at":1}"#,
            " \r\n\t{ \r\n\t\"expires_at\" \r\n\t: \r\n\t1 \r\n\t, \"a\" : [ ] , \"b\" : { } } \r\n\t",
            r#"{"expires_at":4890609687.1605}"#,
            r#"{"expires_at":0.1}"#,
            r#"{"expires_at":1795468279.49816420000000000000000000000000000000000001}"#,
            r#"{"expires_at":"2026-11-23 21:11:19.123456+05:30"}"#,
            r#"{"n":[0,-0,-1,10,0.0,-0.10,1e5,0E0,1e+5,1.5E-05,1e999,99999999999999999999],"expires_at":1}"#,
            r#"{"w":[true,false,null],"expires_at":1}"#,
            r#"{"q":{"expires_at":2,"l":[{"expires_at":3}]},"expires_at":1,"a":[],"a":{}}"#,
            r#"{"Expires_at":5,"expires_at ":6,"expires_a":7,"":8,"expires_at":1}"#,
            r#"{"s":"\"\\\/\b\f\n\r\t\u00e4\u0000\uD83D\uDE00\ud800","expires_at":1}"#,
            "{\"ä✓😀\u{7f}\u{80}\":\"ä✓😀\u{7f}\u{80}\u{ffff}\",\"expires_at\":1}",
        ]
        .map(String::from),
    );
    for json in plain {
        let found = expires_at(&json);
        assert!(found.is_some(), "{json}");
        assert_eq!(found.ok_or(InvalidMetadata::Empty), with_serde_json(&json), "{json}");
    }
}

#[test]
fn what_is_valid_but_unusual_is_left_to_serde_json() {
    let deep = nested(MAX_DEPTH + 1, "[", "]");
    let deep_objects = nested(MAX_DEPTH + 1, r#"{"a":"#, "}");
    let unusual = [
        &deep,
        &deep_objects,
        r#"{"expires_at":1e0}"#,
        r#"{"expires_at":10E-1}"#,
        r#"{"expires_at":"1970-01-01\u002000:00:01Z"}"#,
        r#"{"expires\u005fat":1}"#,
        r#"{"expires\u005Fat":1}"#,
        r#"{"\n":0,"expires_at":1}"#,
        r#"{"o":{"\"":0},"expires_at":1}"#,
    ];
    for json in unusual {
        assert_eq!(expires_at(json), None, "{json}");
        assert_eq!(read(json.as_bytes()), Ok(DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(1)));
    }
}

/// What is no value. Each takes the place of one.
const MEMBERS: &[&str] = &[
    // Strings.
    "\"\n\"",
    "\"\0\"",
    "\"\x1f\"",
    "\"12345678\x1f\"",
    "\"1234567\t12345678\"",
    r#""\x""#,
    r#""\u00g0""#,
    r#""\u00""#,
    r#""\U0000""#,
    r#""\"#,
    r#"""#,
    "'a'",
    "a",
    // Numbers.
    "01",
    "-01",
    "00",
    "-",
    "+1",
    ".5",
    "1.",
    "1.e5",
    "-.5",
    "1e",
    "1e+",
    "1E-",
    "1e5.5",
    "0x1",
    "1_0",
    "--1",
    "NaN",
    "Infinity",
    "-Infinity",
    "1 2",
    // Words.
    "True",
    "tru",
    "truee",
    "nul",
    "nulll",
    "fals",
    "falsee",
    "undefined",
    // Arrays and objects.
    "",
    "[",
    "]",
    "[1",
    "[1,",
    "[1,]",
    "[,1]",
    "[,]",
    "[1,,2]",
    "[1 2]",
    "[1}",
    "[1]]",
    "[:]",
    "{",
    "}",
    r#"{"a"}"#,
    r#"{"a":}"#,
    r#"{"a":1"#,
    r#"{"a":1,}"#,
    r#"{"a":1,,"b":2}"#,
    "{,}",
    r#"{"a":1 "b":2}"#,
    r#"{"a" 1}"#,
    r#"{"a"::1}"#,
    r#"{"a":1]"#,
    r#"{"a":1}}"#,
    "{1:1}",
    "{a:1}",
    r#"{:1}"#,
    "{\"\n\":1}",
    // White space that is none in JSON.
    "\x0b1",
    "\x0c1",
    "\u{a0}1",
    "\u{2028}1",
    "\u{feff}1",
    "/**/1",
];

/// Values that are JSON, but no valid expiry.
const EXPIRIES: &[&str] = &[
    "0",
    "-1",
    "-0.0",
    "1e400",
    "253402300800",
    "1795468279498",
    "18446744073709551616",
    "null",
    "true",
    "[1]",
    r#"{"expires_at":1}"#,
    r#""""#,
    r#""1795468279""#,
    r#"" 2025-11-18""#,
    r#""2025-02-30""#,
    r#""2025-11-18T24:00""#,
];

/// Files that are wrong as a whole.
const FILES: &[&str] = &[
    "",
    " ",
    "{}",
    "{",
    "}",
    "1",
    "[]",
    "null",
    r#""expires_at""#,
    r#"[{"expires_at":1}]"#,
    r#"{"q":{"expires_at":1}}"#,
    r#"{"expires_at":1,"expires_at":1}"#,
    r#"{"expires_at":1,"a":0,"expires_at":2}"#,
    r#"{"expires_at":1,"expires\u005fat":1}"#,
    r#"{"expires\u005fat":1,"expires_at":1}"#,
    r#"{"expires_at":null,"expires_at":1}"#,
    r#"{"expires_at":1,}"#,
    r#"{,"expires_at":1}"#,
    r#"{"expires_at":1}}"#,
    r#"{"expires_at":1},"#,
    r#"{"expires_at":1}{}"#,
    "{\"expires_at\":1}\0",
    "{\"expires_at\":1}\u{a0}",
    "{\"expires_at\":1}\x0c",
    "\u{feff}{\"expires_at\":1}",
    r#"{"expires_at" 1}"#,
    r#"{"expires_at"=1}"#,
    r#"{"expires_at":1;"a":1}"#,
    r#"{"expires_at":1 "a":1}"#,
    r#"{"expires_at":1]"#,
    "{\"a\0\":1,\"expires_at\":1}",
    "{\"expires_at\":\"2025-11-18\n\"}",
    r#"{"expires_at":1} // until then"#,
];

#[test]
fn what_is_invalid_is_left_to_serde_json() {
    let mut invalid: Vec<String> = Vec::new();
    for member in MEMBERS {
        invalid.push(format!(r#"{{"a":{member},"expires_at":1}}"#));
        invalid.push(format!(r#"{{"expires_at":1,"a":{member}}}"#));
        invalid.push(format!(r#"{{"expires_at":1,"a":[{{"a":{member}}}]}}"#));
        invalid.push(format!(r#"{{"expires_at":{member}}}"#));
    }
    invalid.extend(EXPIRIES.iter().map(|value| format!(r#"{{"expires_at":{value}}}"#)));
    invalid.extend(FILES.iter().map(|file| file.to_string()));
    for sample in SAMPLES {
        let ends = (0..sample.trim_end().len()).filter(|end| sample.is_char_boundary(*end));
        invalid.extend(ends.map(|end| sample[..end].to_owned()));
    }
    for json in invalid {
        assert_eq!(expires_at(&json), None, "{json:?}");
        assert!(read(json.as_bytes()).is_err(), "{json:?}");
    }
}
