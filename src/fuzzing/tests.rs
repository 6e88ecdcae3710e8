//! Replays the corpus of the fuzzers, and mutations of it.
//!
//! `TEST_RESULT_CLEANER_MUTATIONS` sets the number of mutations.

use std::path::Path;
use std::process::Command;

use crate::trial::{Random, extent, figure, seed};

mod plain;

/// Calls `check` with each input of the corpus `name`, and with mutations of them: in a short run with as many as
/// `mutations`, in a long run with 200 times as many.
fn replay(name: &str, check: fn(&[u8]), mutations: u64) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/fuzz/{name}.txt"));
    let corpus = std::fs::read_to_string(corpus).unwrap();
    let inputs: Vec<Vec<u8>> = corpus.lines().map(unescaped).collect();
    assert!(inputs.len() > 50, "the corpus is not where it is looked for");
    for input in &inputs {
        check(input);
    }
    figure(&format!("fuzzed inputs replayed, {name}"), inputs.len());

    let mut random = Random(seed());
    let mutations = extent("TEST_RESULT_CLEANER_MUTATIONS", mutations, 200 * mutations);
    for _ in 0..mutations {
        check(&mutated(&inputs, &mut random));
    }
    figure(&format!("mutations of them, {name}"), mutations);
}

/// Decodes a line: a backslash, and every unprintable byte, is written as `\x` and two digits.
fn unescaped(line: &str) -> Vec<u8> {
    let mut parts = line.split("\\x");
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        let (digits, plain) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).unwrap());
        bytes.extend(plain.as_bytes());
    }
    bytes
}

/// Returns the start of one input and the end of another, with some bytes changed.
fn mutated(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let one = &inputs[random.below(inputs.len())];
    let other = if random.one_in(2) { one } else { &inputs[random.below(inputs.len())] };
    let at = random.below(one.len() + 1);
    let from = if random.one_in(2) { at.min(other.len()) } else { random.below(other.len() + 1) };
    let mut bytes = [&one[..at], &other[from..]].concat();
    for _ in 0..random.below(3) {
        if let Some(at) = bytes.len().checked_sub(1).map(|last| random.below(last + 1)) {
            bytes[at] = if random.one_in(2) { random.next() as u8 } else { bytes[at] ^ 1 };
        }
    }
    bytes
}

#[test]
fn values_of_expires_at_mean_what_the_reference_says() {
    replay("expires_at", super::expires_at, 5_000);
}

#[test]
fn every_event_becomes_the_changes_that_it_stands_for() {
    replay("events", super::events, 5_000);
}

#[test]
fn whatever_happens_is_made_up_for() {
    replay("simulation", super::simulation, 500);
}

#[test]
fn metadata_says_what_the_reference_says_in_any_time_zone() {
    const ZONE_IS_SET: &str = "RESULT_CLEANER_ZONE_IS_SET";
    if std::env::var_os(ZONE_IS_SET).is_some() {
        return replay("metadata", super::metadata, 5_000);
    }
    // The time zone belongs to the process, so each zone needs a process of its own.
    let test = "fuzzing::tests::metadata_says_what_the_reference_says_in_any_time_zone";
    for zone in ["UTC", super::SUMMER_TIME] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .envs([("TZ", zone), (ZONE_IS_SET, "1")])
            .output()
            .unwrap();
        let reported = String::from_utf8_lossy(&output.stdout);
        println!("TZ={zone}: {reported}");
        let failure = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && reported.contains("1 passed"), "{failure}");
    }
}
