//! Names that are long, empty, no text, or made to look like something else.

use std::fs;
use std::path::PathBuf;

use super::inputs::{Input, LONG_AGO, broken, calm, expired};
use crate::common::{Pair, extent, pair_of_bytes};

pub fn inputs() -> Vec<Input> {
    [good_names(), names_of_broken_pairs(), other_names(), names_of_directories()]
        .into_iter()
        .flatten()
        .collect()
}

/// What a log line begins with, and could be mistaken for.
const LINE: &str = "2026-01-01T00:00:00.000Z  WARN forged";

/// Stems that a log line or a terminal could be fooled by.
fn treacherous() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a line feed and a line of a log", format!("a\n{LINE}").into()),
        ("a carriage return", format!("a\r{LINE}").into()),
        ("a sequence that clears the screen", b"\x1b[2J\x1b[H\x1b]0;title\x07".to_vec()),
        ("a sequence with one byte to begin", "\u{9b}2J\u{9d}0;title\u{9c}".into()),
        ("backspaces and deletions", b"a\x08\x08\x7f\x7f".to_vec()),
        ("every control character", (1..32).chain(127..=127).collect()),
        ("line separators and overrides", "a\u{2028}b\u{2029}c\u{202e}d\u{2066}e\u{85}f".into()),
        (
            "an end of a JSON string",
            format!(r#"a"}}{{"level":"ERROR","message":"{LINE}"}}"#).into(),
        ),
        ("an end of a quoted field", br#"a" errors=0 x="\"#.to_vec()),
        ("backslashes", br"\n\x1b[2J\u001b\\".to_vec()),
        ("no text, and a line feed", b"\xff\xfe\n\xc3\x28".to_vec()),
        ("escapes cut off", b"\xc2\n\xe2\x80\x1b[".to_vec()),
        ("fields of formats", b"%s%n%x{}{0}{:?}$(id)`id`".to_vec()),
    ]
}

fn names_of_broken_pairs() -> Vec<Input> {
    let input = |(name, stem): (&'static str, Vec<u8>)| {
        broken(name, "cut short", move |place| place.stays(&stem, "{"))
    };
    let mut inputs: Vec<Input> = treacherous().into_iter().map(input).collect();
    inputs.push(broken("no stem, and broken", "cut short", |place| place.stays("", "{")));
    inputs.push(broken("255 bytes, and broken", "cut short", |place| {
        place.stays("n".repeat(239), "{")
    }));
    inputs
}

fn good_names() -> Vec<Input> {
    vec![
        calm("255 bytes", |place| place.goes("n".repeat(239), expired())),
        calm("255 bytes that are no text", |place| place.goes([0xff; 239], expired())),
        calm("lengths about which reserved names become too long", |place| {
            (235..=239).try_for_each(|length| place.goes("l".repeat(length), expired()))
        }),
        calm("no stem", |place| place.goes("", expired())),
        calm("dots and blanks", |place| {
            [".", "..", " ", "   ", "~", "-rf", "*", "?", "-"]
                .into_iter()
                .try_for_each(|stem| place.goes(stem, expired()))
        }),
        calm("stems that are suffixes", |place| {
            [".metadata.json", ".result.json.lz4", "a.result.json.lz4", "a.metadata.json", "a.tmp"]
                .into_iter()
                .try_for_each(|stem| place.goes(stem, expired()))
        }),
        calm("every treacherous stem, expired", |place| {
            treacherous().iter().try_for_each(|(_, stem)| place.goes(stem, expired()))
        }),
        calm("one UUID in small letters, in capitals and without dashes", |place| {
            [
                "b9cae70a-aead-4aa8-9037-cd243541f7b3",
                "B9CAE70A-AEAD-4AA8-9037-CD243541F7B3",
                "b9cae70aaead4aa89037cd243541f7b3",
            ]
            .into_iter()
            .try_for_each(|stem| place.goes(stem, expired()))
        }),
        calm("letters that look alike, composed and not", |place| {
            ["\u{e9}", "e\u{301}", "\u{430}", "a"]
                .into_iter()
                .try_for_each(|stem| place.goes(stem, expired()))
        }),
    ]
}

fn other_names() -> Vec<Input> {
    vec![
        calm("names that only look like a pair's", |place| {
            for name in [
                "a.RESULT.json.lz4",
                "a.result.json",
                "a.result.json.lz4.bak",
                "a.result.json.lz4~",
                "result.json.lz4",
                "aresult.json.lz4",
                "a.result.json.lz4 ",
                "a.result.json.lz4\n",
                "a.result.json.gz",
            ] {
                place.write(name, "a result")?;
            }
            place.metadata("a", expired())?;
            place.result("b")?;
            place.write("b.metadata.json ", expired())?;
            place.write("b.Metadata.json", expired())?;
            place.write("b.metadata.jsonl", expired())
        }),
        calm("what writers have not finished", |place| {
            place.write("a.result.json.lz4.tmp", "a result")?;
            place.write("a.metadata.json.tmp", expired())?;
            place.result("b")?;
            place.write("b.metadata.json.tmp", expired())
        }),
    ]
}

fn names_of_directories() -> Vec<Input> {
    // Longer than what the kernel takes for a path.
    let levels = extent("TEST_RESULT_CLEANER_LEVELS", 800, 4000);
    vec![
        calm("directories with treacherous names", |place| {
            for (_, name) in treacherous() {
                let pair = Pair::at(&place.dir(name)?, "a").write(LONG_AGO);
                place.has_to_go(pair);
            }
            Ok(())
        }),
        broken("a broken pair below directories with treacherous names", "cut short", |place| {
            let mut dir = place.dir.clone();
            for (_, name) in treacherous() {
                dir = pair_of_bytes(&dir, &name).result;
                fs::create_dir(&dir)?;
            }
            let pair = Pair::at(&dir, "a").write(LONG_AGO);
            fs::write(pair.metadata, "{")
        }),
        calm("paths as long as may be", |place| {
            // With the separators, 16 bytes a level up to the limit of 4,096.
            let mut path = PathBuf::from(&place.dir);
            while path.as_os_str().len() + 16 + "/a.result.json.lz4".len() < 4096 {
                path.push("a-directory-of-x");
                path = path.with_file_name("a-directory-15b");
            }
            fs::create_dir_all(&path)?;
            let pair = Pair::at(&path, "a").write(LONG_AGO);
            place.has_to_go(pair);
            Ok(())
        }),
        calm("a pair on the last of very many levels", move |place| {
            place.chain(levels, "deeper", &expired(), true)
        }),
        calm("300 levels with names of 255 bytes", |place| {
            place.chain(300, &"d".repeat(255), &expired(), true)
        }),
        broken("a broken pair on the last of very many levels", "cut short", move |place| {
            place.chain(levels, "deeper", "{", false)
        }),
        calm("500 directories in one", |place| {
            place.dir("many")?;
            (0..500).try_for_each(|number| fs::create_dir(place.path(format!("many/{number}"))))?;
            let pair = Pair::at(&place.path("many/499"), "a").write(LONG_AGO);
            place.has_to_go(pair);
            Ok(())
        }),
    ]
}
