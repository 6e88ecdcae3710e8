//! What metadata may hold, and the sizes and times that files may have.

use std::fs::{self, File, FileTimes};
use std::time::{Duration, UNIX_EPOCH};

use super::inputs::{Input, broken, calm, expired};

/// As much as metadata may have.
const MIB: usize = 1024 * 1024;
const DEEP: usize = 200_000;

pub fn inputs() -> Vec<Input> {
    let mut inputs = sizes_and_times();
    inputs.extend(
        valid()
            .into_iter()
            .map(|(name, content)| calm(name, move |place| place.goes("a", content()))),
    );
    inputs.extend(invalid().into_iter().map(|(name, reason, content)| {
        broken(name, reason, move |place| place.stays("a", content()))
    }));
    inputs
}

type Content = fn() -> Vec<u8>;

/// Metadata that has expired.
fn valid() -> Vec<(&'static str, Content)> {
    vec![
        ("1 MiB of metadata", || padded(MIB)),
        ("arrays 200,000 deep", || nested("[", "]")),
        ("objects 200,000 deep", || nested("{\"\":", "}")),
        ("100,000 keys", || {
            let keys: String = (0..100_000).map(|_| "\"k\":1,").collect();
            format!("{{{keys}\"expires_at\":1.5}}").into()
        }),
        ("a key of 1 MB", || {
            format!(r#"{{"{}":0,"expires_at":1.5}}"#, "k".repeat(1_000_000)).into()
        }),
        ("a number of 1 MB elsewhere", || {
            format!(r#"{{"n":{},"expires_at":1.5}}"#, "9".repeat(1_000_000)).into()
        }),
        ("escaped halves of characters", || {
            br#"{"\ud800":"\udfff\u0000","expires_at":1.5}"#.to_vec()
        }),
        ("another key twice, and expires_at deeper down", || {
            br#"{"a":{"expires_at":9e9},"a":[{"expires_at":9e9}],"expires_at":1.5}"#.to_vec()
        }),
        ("a key that is escaped", || br#"{"expires\u005fat":1.5}"#.to_vec()),
        ("a time as small as can be", || br#"{"expires_at":5e-324}"#.to_vec()),
        ("lines of a log as a value", || {
            let line = r"\n2026-01-01T00:00:00.000Z  INFO stopped: {}\r\u001b[2J";
            format!(r#"{{"query":"{line}","expires_at":1.5}}"#).into()
        }),
    ]
}

/// Metadata that can't be used, and a word of why.
fn invalid() -> Vec<(&'static str, &'static str, Content)> {
    vec![
        ("1 MiB and a byte of metadata", "larger than 1048576", || padded(MIB + 1)),
        ("nothing", "empty", Vec::new),
        ("blanks", "cut short", || b" \n\t ".to_vec()),
        ("NUL bytes", "not JSON", || vec![0; 4096]),
        ("1 MiB of NUL bytes", "not JSON", || vec![0; MIB]),
        ("a NUL byte within text", "not JSON", || b"{\"a\":\"\0\",\"expires_at\":1.5}".to_vec()),
        ("a NUL byte at the end", "not JSON", || b"{\"expires_at\":1.5}\0".to_vec()),
        ("a NUL byte before the key", "missing", || br#"{"\u0000expires_at":1.5}"#.to_vec()),
        ("UTF-16 with a mark", "UTF-16", || utf16(u16::to_le_bytes, "\u{feff}")),
        ("UTF-16, the other way round", "UTF-16", || utf16(u16::to_be_bytes, "")),
        ("UTF-16 without a mark", "UTF-16", || utf16(u16::to_le_bytes, "")),
        ("UTF-8 with a mark", "byte order mark", || b"\xef\xbb\xbf{\"expires_at\":1.5}".to_vec()),
        ("bytes that are no UTF-8", "not UTF-8", || {
            b"{\"a\":\"\xc3\x28\",\"expires_at\":1}".to_vec()
        }),
        ("a character that is too long", "not UTF-8", || {
            b"{\"\xc0\xaf\":0,\"expires_at\":1}".to_vec()
        }),
        ("expires_at twice", "more than once", || br#"{"expires_at":1,"expires_at":1}"#.to_vec()),
        ("expires_at twice, once escaped", "more than once", || {
            br#"{"expires_at":1,"\u0065xpires_at":9e9}"#.to_vec()
        }),
        ("expires_at deeper down only", "missing", || br#"{"a":{"expires_at":1.5}}"#.to_vec()),
        ("expires_at in capitals", "missing", || br#"{"EXPIRES_AT":1.5}"#.to_vec()),
        ("arrays 200,000 deep, never closed", "cut short", || {
            format!("{{\"a\":{}", "[".repeat(DEEP)).into()
        }),
        ("objects 200,000 deep, never closed", "cut short", || "{\"\":".repeat(DEEP).into()),
        ("an array 200,000 deep as expires_at", "is an array", || {
            format!(r#"{{"expires_at":{}{}}}"#, "[".repeat(DEEP), "]".repeat(DEEP)).into()
        }),
        ("an object 200,000 deep as expires_at", "is an object", || {
            format!(r#"{{"expires_at":{}0{}}}"#, "{\"\":".repeat(DEEP), "}".repeat(DEEP)).into()
        }),
        ("a number of 1 MB as expires_at", "out of range", || {
            format!(r#"{{"expires_at":{}}}"#, "9".repeat(1_000_000)).into()
        }),
        ("a number beyond all bounds", "out of range", || br#"{"expires_at":1e999999}"#.to_vec()),
        ("no number", "not JSON", || br#"{"expires_at":NaN}"#.to_vec()),
        ("infinity", "not JSON", || br#"{"expires_at":Infinity}"#.to_vec()),
        ("minus zero", "zero or negative", || br#"{"expires_at":-0.0}"#.to_vec()),
        ("a text of 1 MB as expires_at", "no date", || {
            format!(r#"{{"expires_at":"{}"}}"#, "x".repeat(1_000_000)).into()
        }),
        ("lines of a log as expires_at", "no date", || {
            br#"{"expires_at":"soon\n2026-01-01T00:00:00.000Z  INFO stopped: {}\r\u001b[2J\u009b2J\u2028."}"#
                .to_vec()
        }),
        ("only the beginning", "cut short", || br#"{"expires_at":1.5"#.to_vec()),
        ("two objects", "not JSON", || br#"{"expires_at":1.5}{"expires_at":1.5}"#.to_vec()),
        ("a comment", "not JSON", || br#"{"expires_at":1.5} // soon"#.to_vec()),
        ("an array", "not an object", || br#"[{"expires_at":1.5}]"#.to_vec()),
        ("a text that is JSON", "not an object", || br#""{\"expires_at\":1.5}""#.to_vec()),
        ("a compressed file", "not UTF-8", || b"\x04\x22\x4d\x18\x64\x40\xa7\xff\x00".to_vec()),
        ("a program", "not UTF-8", || fs::read("/proc/self/exe").unwrap()[..100_000].to_vec()),
    ]
}

fn padded(size: usize) -> Vec<u8> {
    let mut content = expired().into_bytes();
    content.resize(size, b' ');
    content
}

fn nested(open: &str, close: &str) -> Vec<u8> {
    let (open, close) = (open.repeat(DEEP), close.repeat(DEEP));
    format!(
        r#"{{"a":{open}{}{close},"expires_at":1.5}}"#,
        if open.ends_with(':') { "0" } else { "" }
    )
    .into()
}

fn utf16(bytes: fn(u16) -> [u8; 2], mark: &str) -> Vec<u8> {
    format!("{mark}{}", expired()).encode_utf16().flat_map(bytes).collect()
}

fn sizes_and_times() -> Vec<Input> {
    const GIB: u64 = 1024 * 1024 * 1024;
    vec![
        calm("a result of 8 GiB without content", |place| {
            place.result("a")?;
            File::options().write(true).open(place.pair("a").result)?.set_len(8 * GIB)?;
            place.metadata("a", expired())?;
            place.has_to_go(place.pair("a"));
            Ok(())
        }),
        broken("metadata of 8 GiB without content", "larger than 1048576", |place| {
            place.stays("a", expired())?;
            File::options().write(true).open(place.pair("a").metadata)?.set_len(8 * GIB)
        }),
        broken("metadata with a hole", "not JSON", |place| {
            place.stays("a", expired())?;
            File::options().write(true).open(place.pair("a").metadata)?.set_len(MIB as u64)
        }),
        calm("a result without content", |place| {
            place.write("a.result.json.lz4", "")?;
            place.metadata("a", expired())?;
            place.has_to_go(place.pair("a"));
            Ok(())
        }),
        calm("halves from the past and from the future", |place| {
            for (stem, result, metadata) in
                [("a", 0, 1 << 33), ("b", 1 << 33, 0), ("c", 1 << 33, 1 << 33)]
            {
                place.goes(stem, expired())?;
                let pair = place.pair(stem);
                for (path, seconds) in [(pair.result, result), (pair.metadata, metadata)] {
                    let modified = UNIX_EPOCH + Duration::from_secs(seconds);
                    let times = FileTimes::new().set_modified(modified).set_accessed(modified);
                    File::options().write(true).open(path)?.set_times(times)?;
                }
            }
            Ok(())
        }),
        calm("halves without their other halves", |place| {
            place.result("a")?;
            place.metadata("b", expired())?;
            place.metadata("c", "broken")
        }),
    ]
}
