//! File names: results, their metadata, and the reserved names of claimed files.
//!
//! Nothing here accesses the disk. A name is a byte string that is classified by its ending:
//! `<stem>.result.json.lz4`, `<stem>.metadata.json`, and `.result-cleaner-<stem>.r` (or `.m`) for a half
//! that a cleaner has claimed to inspect it undisturbed. A claimed `.tmp` file of either half has the
//! same reserved name with `t` appended. A half that was claimed as an orphan has it with `o` appended.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use uuid::fmt::Hyphenated;

const RESULT_SUFFIX: &[u8] = b".result.json.lz4";
const METADATA_SUFFIX: &[u8] = b".metadata.json";
/// The suffix that a writer appends to the name of a half until the file is complete.
const TMP_SUFFIX: &[u8] = b".tmp";
const RESERVED_PREFIX: &[u8] = b".result-cleaner-";
const RESERVED_TMP_SUFFIX: &[u8] = b"t";
const RESERVED_ORPHAN_SUFFIX: &[u8] = b"o";
const CANARY_PREFIX: &[u8] = b"canary-";

/// One of the two files of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Half {
    Result,
    Metadata,
}

impl Half {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Result => Self::Metadata,
            Self::Metadata => Self::Result,
        }
    }

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

/// The meaning of a file name, with the stem of its pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name<S = Stem> {
    /// A half of a pair, under its own name.
    Half(Half, S),
    /// A half that a writer has not completed yet.
    Tmp(Half, S),
    /// A half that a cleaner, possibly one that died, has claimed under a reserved name.
    Claim(Half, S),
    /// A claimed `.tmp` file of a half.
    TmpClaim(Half, S),
    /// A half that was claimed because it has no other half.
    OrphanClaim(Half, S),
    /// A file that a check created to test the directory.
    ProbeFile,
    /// Any other file.
    Other,
}

impl<'a> Name<&'a [u8]> {
    /// Classifies `name` and leaves its stem as it is. Allocates nothing.
    pub(crate) fn parse(name: &'a [u8]) -> Self {
        let halves = [Half::Metadata, Half::Result];
        let half_of = |name: &'a [u8]| {
            halves.into_iter().find_map(|half| Some((half, name.strip_suffix(half.suffix())?)))
        };
        let claim_of = |claim: &'a [u8]| {
            let stem = |half: Half| Some((half, claim.strip_suffix(half.claim_suffix())?));
            halves.into_iter().find_map(stem)
        };
        if let Some((half, stem)) = half_of(name) {
            return Self::Half(half, stem);
        }
        if let Some((half, stem)) = name.strip_suffix(TMP_SUFFIX).and_then(half_of) {
            return Self::Tmp(half, stem);
        }
        let Some(claim) = name.strip_prefix(RESERVED_PREFIX) else {
            return Self::Other;
        };
        if let Some((half, stem)) = claim_of(claim) {
            return Self::Claim(half, stem);
        }
        if let Some((half, stem)) = claim.strip_suffix(RESERVED_TMP_SUFFIX).and_then(claim_of) {
            return Self::TmpClaim(half, stem);
        }
        if let Some((half, stem)) = claim.strip_suffix(RESERVED_ORPHAN_SUFFIX).and_then(claim_of) {
            return Self::OrphanClaim(half, stem);
        }
        if claim.starts_with(CANARY_PREFIX) { Self::ProbeFile } else { Self::Other }
    }
}

impl Name {
    pub(crate) fn of(name: &[u8]) -> Self {
        match Name::parse(name) {
            Name::Half(half, stem) => Self::Half(half, Stem::new(stem)),
            Name::Tmp(half, stem) => Self::Tmp(half, Stem::new(stem)),
            Name::Claim(half, stem) => Self::Claim(half, Stem::new(stem)),
            Name::TmpClaim(half, stem) => Self::TmpClaim(half, Stem::new(stem)),
            Name::OrphanClaim(half, stem) => Self::OrphanClaim(half, Stem::new(stem)),
            Name::ProbeFile => Self::ProbeFile,
            Name::Other => Self::Other,
        }
    }
}

impl<S> Name<S> {
    /// Returns whether the name is reserved for cleaners.
    pub(crate) fn is_claim(&self) -> bool {
        use Name::{Claim, OrphanClaim, ProbeFile, TmpClaim};
        matches!(self, Claim(..) | TmpClaim(..) | OrphanClaim(..) | ProbeFile)
    }
}

/// A file name without the suffix that identifies the half.
///
/// The result store names its results by UUIDs; a UUID takes 16 bytes here and no allocation.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Stem {
    Uuid(Uuid),
    Bytes(Box<[u8]>),
}

impl Stem {
    pub(crate) fn new(stem: &[u8]) -> Self {
        parse_uuid(stem).map_or_else(|| Self::Bytes(stem.into()), Self::Uuid)
    }

    pub(crate) fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Uuid(uuid) => Cow::Owned(format_uuid(uuid).to_vec()),
            Self::Bytes(bytes) => Cow::Borrowed(bytes),
        }
    }

    /// Returns the name of a half of this pair.
    pub(crate) fn name(&self, half: Half) -> Vec<u8> {
        self.between(b"", half.suffix())
    }

    /// Returns the reserved name of a half of this pair while a cleaner has claimed it. It is the same
    /// for all cleaners.
    pub(crate) fn claim(&self, half: Half) -> Vec<u8> {
        self.between(RESERVED_PREFIX, half.claim_suffix())
    }

    /// Returns the name under which a writer writes a half of this pair until it is complete.
    pub(crate) fn tmp_name(&self, half: Half) -> Vec<u8> {
        [&self.name(half), TMP_SUFFIX].concat()
    }

    /// Returns the reserved name of the `.tmp` file of a half while a cleaner has claimed it.
    pub(crate) fn tmp_claim(&self, half: Half) -> Vec<u8> {
        [&self.claim(half), RESERVED_TMP_SUFFIX].concat()
    }

    /// Returns the reserved name of a half that a cleaner has claimed because it has no other half.
    pub(crate) fn orphan_claim(&self, half: Half) -> Vec<u8> {
        [&self.claim(half), RESERVED_ORPHAN_SUFFIX].concat()
    }

    fn between(&self, prefix: &[u8], suffix: &[u8]) -> Vec<u8> {
        let stem = match self {
            Self::Uuid(_) => Hyphenated::LENGTH,
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
pub(crate) struct PairKey {
    pub dir: Arc<Path>,
    pub stem: Stem,
}

// Compares bytes: directories never have two spellings here, and splitting paths into components is
// slow.
impl PartialEq for PairKey {
    fn eq(&self, other: &Self) -> bool {
        self.stem == other.stem && self.dir.as_os_str() == other.dir.as_os_str()
    }
}

impl Hash for PairKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.dir.as_os_str().hash(state);
        self.stem.hash(state);
    }
}

impl PairKey {
    /// Returns the path of a half, relative to the cache directory.
    pub(crate) fn path(&self, half: Half) -> PathBuf {
        self.dir.join(OsStr::from_bytes(&self.stem.name(half)))
    }
}

/// Parses a UUID in the canonical lower-case form only, so that [`format_uuid`] restores every byte of
/// the name.
fn parse_uuid(text: &[u8]) -> Option<Uuid> {
    let uuid = Uuid::try_parse_ascii(text).ok()?;
    (format_uuid(&uuid) == *text).then_some(uuid)
}

fn format_uuid(uuid: &Uuid) -> [u8; Hyphenated::LENGTH] {
    let mut text = [0; Hyphenated::LENGTH];
    uuid.hyphenated().encode_lower(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(half: Half, stem: &[u8]) -> Name {
        Name::Half(half, Stem::new(stem))
    }

    #[test]
    fn names_are_classified_by_their_ends() {
        use Half::{Metadata, Result};
        for (name, expected) in [
            (&b"a.result.json.lz4"[..], half(Result, b"a")),
            (b"a.metadata.json", half(Metadata, b"a")),
            (b".result.json.lz4", half(Result, b"")),
            (b"\xff\n.metadata.json", half(Metadata, b"\xff\n")),
            (b"a.metadata.json.result.json.lz4", half(Result, b"a.metadata.json")),
            // A pattern wins over the reserved prefix.
            (b".result-cleaner-a.metadata.json", half(Metadata, b".result-cleaner-a")),
            (b"a.result.json.lz4.tmp", Name::Tmp(Result, Stem::new(b"a"))),
            (b".metadata.json.tmp", Name::Tmp(Metadata, Stem::new(b""))),
            (b"a.tmp", Name::Other),
            (b"a.result.json.lz4.tmp.tmp", Name::Other),
            (b"a.RESULT.json.lz4", Name::Other),
            (b"aresult.json.lz4", Name::Other),
            (b".result-cleaner-a.r", Name::Claim(Result, Stem::new(b"a"))),
            (b".result-cleaner-.m", Name::Claim(Metadata, Stem::new(b""))),
            (b".result-cleaner-a.rt", Name::TmpClaim(Result, Stem::new(b"a"))),
            (b".result-cleaner-a.r.mt", Name::TmpClaim(Metadata, Stem::new(b"a.r"))),
            (b".result-cleaner-a.mo", Name::OrphanClaim(Metadata, Stem::new(b"a"))),
            (b".result-cleaner-canary-1", Name::ProbeFile),
            // With this ending, it is a claim like any other.
            (b".result-cleaner-canary-1.r", Name::Claim(Result, Stem::new(b"canary-1"))),
            (b".result-cleaner-t", Name::Other),
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
