//! Names on the disk: results, their metadata, and the reserved names of files that were taken.
//!
//! Nothing here touches the disk. A name is bytes; what is recognised is only its end:
//! `<stem>.result.json.lz4`, `<stem>.metadata.json`, and `.result-cleaner-<stem>.r` (or `.m`)
//! for a half that a cleaner has taken to look at it undisturbed.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const RESULT_SUFFIX: &[u8] = b".result.json.lz4";
const METADATA_SUFFIX: &[u8] = b".metadata.json";
const RESERVED_PREFIX: &[u8] = b".result-cleaner-";

/// One of the two files of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Half {
    Result,
    Metadata,
}

impl Half {
    fn suffix(self) -> &'static [u8] {
        match self {
            Self::Result => RESULT_SUFFIX,
            Self::Metadata => METADATA_SUFFIX,
        }
    }

    fn claim_suffix(self) -> &'static [u8] {
        match self {
            Self::Result => b".r",
            Self::Metadata => b".m",
        }
    }
}

/// What a file name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    /// A half of a pair, under its own name.
    Half(Half, Stem),
    /// A half that a cleaner, perhaps a dead one, has taken to a reserved name.
    Claim(Half, Stem),
    /// Nothing of ours.
    Other,
}

impl Name {
    pub fn of(name: &[u8]) -> Self {
        for half in [Half::Metadata, Half::Result] {
            if let Some(stem) = name.strip_suffix(half.suffix()) {
                return Self::Half(half, Stem::new(stem));
            }
        }
        let Some(claim) = name.strip_prefix(RESERVED_PREFIX) else {
            return Self::Other;
        };
        for half in [Half::Result, Half::Metadata] {
            if let Some(stem) = claim.strip_suffix(half.claim_suffix()) {
                return Self::Claim(half, Stem::new(stem));
            }
        }
        Self::Other
    }
}

/// A file name without the part that tells which half it is.
///
/// The result store names its results by UUIDs; those take 16 bytes here instead of an allocation.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Stem {
    Uuid([u8; 16]),
    Bytes(Box<[u8]>),
}

impl Stem {
    pub fn new(stem: &[u8]) -> Self {
        parse_uuid(stem).map_or_else(|| Self::Bytes(stem.into()), Self::Uuid)
    }

    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Uuid(uuid) => Cow::Owned(format_uuid(uuid).to_vec()),
            Self::Bytes(bytes) => Cow::Borrowed(bytes),
        }
    }

    /// The name of a half of this pair.
    pub fn name(&self, half: Half) -> Vec<u8> {
        self.between(b"", half.suffix())
    }

    /// The name that a half of this pair bears while a cleaner, whichever it is, has taken it.
    pub fn claim(&self, half: Half) -> Vec<u8> {
        self.between(RESERVED_PREFIX, half.claim_suffix())
    }

    fn between(&self, prefix: &[u8], suffix: &[u8]) -> Vec<u8> {
        let stem = match self {
            Self::Uuid(_) => UUID_LENGTH,
            Self::Bytes(bytes) => bytes.len(),
        };
        let mut name = Vec::with_capacity(prefix.len() + stem + suffix.len());
        name.extend_from_slice(prefix);
        match self {
            Self::Uuid(uuid) => name.extend_from_slice(&format_uuid(uuid)),
            Self::Bytes(bytes) => name.extend_from_slice(bytes),
        }
        name.extend_from_slice(suffix);
        name
    }
}

impl fmt::Debug for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", OsStr::from_bytes(&self.bytes()))
    }
}

/// A pair: its directory, relative to the cache directory, and its stem.
#[derive(Debug, Clone, Eq)]
pub(crate) struct Key {
    pub dir: Arc<Path>,
    pub stem: Stem,
}

// By bytes: directories are never named in two ways here, and to take paths apart is slow.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.stem == other.stem && self.dir.as_os_str() == other.dir.as_os_str()
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.dir.as_os_str().hash(state);
        self.stem.hash(state);
    }
}

impl Key {
    /// The path of a half, relative to the cache directory.
    pub fn path(&self, half: Half) -> PathBuf {
        self.dir.join(OsStr::from_bytes(&self.stem.name(half)))
    }
}

const UUID_LENGTH: usize = 36;
const UUID_DASHES: [usize; 4] = [8, 13, 18, 23];

/// Only the canonical lower-case form, so that the name can be made again to the byte.
fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != UUID_LENGTH {
        return None;
    }
    let mut uuid = [0; 16];
    let mut digits = 0;
    for (at, &byte) in text.iter().enumerate() {
        if UUID_DASHES.contains(&at) {
            if byte != b'-' {
                return None;
            }
            continue;
        }
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        uuid[digits / 2] = uuid[digits / 2] << 4 | digit;
        digits += 1;
    }
    Some(uuid)
}

fn format_uuid(uuid: &[u8; 16]) -> [u8; UUID_LENGTH] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; UUID_LENGTH];
    let places = (0..UUID_LENGTH).filter(|place| !UUID_DASHES.contains(place));
    let digits = uuid.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    for (place, digit) in places.zip(digits) {
        text[place] = DIGITS[usize::from(digit)];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(half: Half, stem: &[u8]) -> Name {
        Name::Half(half, Stem::new(stem))
    }

    #[test]
    fn names_are_told_by_their_ends() {
        use Half::{Metadata, Result};
        for (name, expected) in [
            (&b"a.result.json.lz4"[..], half(Result, b"a")),
            (b"a.metadata.json", half(Metadata, b"a")),
            (b".result.json.lz4", half(Result, b"")),
            (b"\xff\n.metadata.json", half(Metadata, b"\xff\n")),
            (b"a.metadata.json.result.json.lz4", half(Result, b"a.metadata.json")),
            // A pattern wins over the reserved prefix.
            (b".result-cleaner-a.metadata.json", half(Metadata, b".result-cleaner-a")),
            (b"a.result.json.lz4.tmp", Name::Other),
            (b"a.RESULT.json.lz4", Name::Other),
            (b"aresult.json.lz4", Name::Other),
            (b".result-cleaner-a.r", Name::Claim(Result, Stem::new(b"a"))),
            (b".result-cleaner-.m", Name::Claim(Metadata, Stem::new(b""))),
            (b".result-cleaner-canary", Name::Other),
        ] {
            assert_eq!(Name::of(name), expected, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn every_name_can_be_made_again_from_its_parts() {
        for stem in [
            &b"b9cae70a-aead-4aa8-9037-cd243541f7b3"[..],
            b"B9CAE70A-AEAD-4AA8-9037-CD243541F7B3",
            b"b9cae70a-aead-4aa8-9037-cd243541f7b",
            b"b9cae70aaaead-4aa8-9037-cd243541f7b3",
            b"",
            b"\xff.result.json.lz4",
            b"x.metadata.json",
            b"x.tmp",
        ] {
            let parsed = Stem::new(stem);
            assert_eq!(*parsed.bytes(), *stem);
            for half in [Half::Result, Half::Metadata] {
                assert_eq!(Name::of(&parsed.name(half)), Name::Half(half, parsed.clone()));
                let claim = parsed.claim(half);
                assert_eq!(Name::of(&claim), Name::Claim(half, parsed.clone()));
                assert!(!claim.ends_with(b".tmp"));
            }
        }
    }

    #[test]
    fn a_uuid_costs_no_allocation() {
        assert!(matches!(Stem::new(b"b9cae70a-aead-4aa8-9037-cd243541f7b3"), Stem::Uuid(_)));
        assert_eq!(size_of::<Stem>(), 24);
    }
}
