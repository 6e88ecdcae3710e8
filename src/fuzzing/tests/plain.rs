//! Mutations of metadata that the result store wrote, for the scanner of plain metadata and serde_json.

use std::path::Path;

use crate::fuzzing::plain;
use crate::pair::metadata::plain::MAX_DEPTH;
use crate::trial::{Random, extent, figure, seed};

/// What the real result store wrote, and what the integration guide shows.
fn samples() -> Vec<String> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cached_results");
    let files = walkdir::WalkDir::new(data).sort_by_file_name();
    let files = files.into_iter().map(|entry| entry.unwrap().into_path());
    let metadata = files.filter(|path| path.to_string_lossy().ends_with(".metadata.json"));
    let mut samples: Vec<String> =
        metadata.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert_eq!(samples.len(), 24);
    samples.push(include_str!("../../../benches/data/metadata.json").into());
    samples.push(r#"{"expires_at": "2025-11-18T12:00:00", "file_size": 1024, "r": 0.85}"#.into());
    samples
}

/// Values in many forms, almost all of them valid.
const VALUES: [&str; 32] = [
    "\"\"",
    "[]",
    "{}",
    "[[], {}]",
    "true",
    "false",
    "null",
    "0",
    "-0",
    "01",
    "0.0",
    "1.",
    ".5",
    "1e5",
    "1E+05",
    "1e999",
    "1.5e-3",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775809",
    "253402300799.99999999",
    "0.1",
    "1795468279.4981642",
    "9007199254740993",
    "0.000000000499999999999999",
    "\"2025-11-18T12:00:00Z\"",
    "\"2025-11-18 12:00\"",
    "\"a\\\"b\\n\"",
    "\"\\u005f\\uD83D\"",
    "\"\\u00\"",
    "\"ä😀\u{7f}\"",
    "{\"expires_at\": 1}",
];

/// Pieces of JSON, and of what is none.
const PIECES: [&str; 48] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "/",
    "-",
    "+",
    ".",
    "e",
    "E",
    "0",
    "1",
    "9",
    "t",
    "u",
    " ",
    "\n",
    "\r",
    "\t",
    "\0",
    "\x1f",
    "\x7f",
    "\x0b",
    "\u{80}",
    "ä",
    "😀",
    "\u{feff}",
    "\u{a0}",
    "\\\"",
    "\\\\",
    "\\n",
    "\\u",
    "\\u00",
    "\\u005f",
    "\\uD83D",
    "\\x",
    "{\"a\":",
    "expires_at",
    "\"expires_at\"",
    "\"expires_at\":1,",
    ",\"expires_at\":1",
    "\"expires\\u005fat\":1,",
    "[[[[[[[[",
    "]]]]]]]]",
];

/// Names of members that are added.
const NAMES: [&str; 8] =
    ["a", "", "expires_at", "expires\\u005fat", "expires_a", "\\n", "\t", "Expires_at"];

/// Returns a sample that something has happened to. In half of the cases it is likely to remain valid.
fn mutated(samples: &[String], random: &mut Random) -> Vec<u8> {
    let mut json = samples[random.below(samples.len())].clone().into_bytes();
    for _ in 0..1 + random.below(2) {
        if random.one_in(2) {
            vary(&mut json, random);
        } else {
            damage(&mut json, samples, random);
        }
    }
    json
}

/// Changes a number or a value, adds a member, nests deeper or expires at another time.
fn vary(json: &mut Vec<u8>, random: &mut Random) {
    let value =
        if random.one_in(2) { VALUES[random.below(VALUES.len())].into() } else { number(random) };
    match random.below(4) {
        0 => nest(json, random),
        1 => {
            let name = NAMES[random.below(NAMES.len())];
            let at = after(json, b"{", random);
            json.splice(at..at, format!("\"{name}\": {value}, ").into_bytes());
        }
        form => {
            let expires_at = json.windows(14).position(|part| part == b"\"expires_at\": ");
            let at = if form == 2 { expires_at.map(|at| at + 14) } else { None };
            let at = at.unwrap_or_else(|| after(json, b":", random));
            let end = json[at..].iter().position(|byte| b",}]\n".contains(byte));
            json.splice(at..at + end.unwrap_or(0), value.into_bytes());
        }
    }
}

/// Changes bytes anywhere, mostly where a token begins or ends.
fn damage(json: &mut Vec<u8>, samples: &[String], random: &mut Random) {
    let at = place(json, random);
    match random.below(6) {
        0 => json.truncate(at),
        1 if at < json.len() => json[at] ^= 1 << random.below(8),
        2 if at < json.len() => drop(json.remove(at)),
        3 => {
            let other = samples[random.below(samples.len())].as_bytes();
            json.splice(at.., other[place(other, random)..].iter().copied());
        }
        4 => {
            let end = place(json, random);
            drop(json.drain(at.min(end)..at.max(end).min(at.min(end) + 30)));
        }
        _ => {
            let piece = PIECES[random.below(PIECES.len())];
            json.splice(at..at, piece.bytes());
        }
    }
}

/// Returns a position in `json`. In three of four cases a token begins or ends there.
fn place(json: &[u8], random: &mut Random) -> usize {
    let at = random.below(json.len() + 1);
    if random.one_in(4) {
        return at;
    }
    let is_part = |at: &usize| json.get(*at).is_some_and(|byte| !b"{}[],:\" ".contains(byte));
    at + (at..json.len()).take_while(is_part).count()
}

/// Returns a position after one of `bytes`, or the end.
fn after(json: &[u8], bytes: &[u8], random: &mut Random) -> usize {
    let start = random.below(json.len() + 1);
    let found = json[start..].iter().position(|byte| bytes.contains(byte));
    found.map_or(json.len(), |found| start + found + 1)
}

/// Puts arrays and objects around the first array, about as many as the scanner reads.
fn nest(json: &mut Vec<u8>, random: &mut Random) {
    let find = |json: &[u8], wanted| json.iter().position(|byte| *byte == wanted);
    let (Some(start), Some(end)) = (find(json, b'['), find(json, b']')) else { return };
    for _ in 0..MAX_DEPTH as usize - 4 + random.below(6) {
        let (open, close) = if random.one_in(2) { ("[", "]") } else { (r#"{"a":"#, "}") };
        json.splice(end..end, close.bytes());
        json.splice(start..start, open.bytes());
    }
}

/// Returns a number with any count of digits before and after its point, which may be too many or too few.
fn number(random: &mut Random) -> String {
    let mut digits = |count: usize| -> String {
        (0..count).map(|_| char::from(b'0' + random.below(10) as u8)).collect()
    };
    let (whole, fraction) = (digits(12), digits(24));
    let (long, short) = (random.below(13), random.below(25));
    let exponent = match random.below(8) {
        0 => format!("e{}", random.below(20)),
        1 => format!("E-{}", random.below(20)),
        _ => String::new(),
    };
    let point = if random.one_in(4) { "" } else { "." };
    format!("{}{point}{}{exponent}", &whole[..long], &fraction[..short])
}

#[test]
fn whatever_the_scanner_finds_serde_json_finds_too() {
    let samples = samples();
    for sample in &samples {
        assert!(plain(sample.as_bytes()), "{sample}");
    }
    let mut random = Random(seed());
    let inputs = extent("TEST_RESULT_CLEANER_MUTATIONS", 20_000, 10_000_000);
    let plain = (0..inputs).filter(|_| plain(&mutated(&samples, &mut random))).count() as u64;
    assert!(plain > inputs / 10, "{plain} of {inputs} were plain, so that little was compared");
    figure("mutated metadata, plain", format!("{inputs}, {plain} of them plain, 0 differences"));
}
