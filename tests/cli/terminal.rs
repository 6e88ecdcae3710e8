//! What a terminal gets that a pipe does not: progress and colour. By script(1), which gives a command
//! a terminal of its own; without that these tests are skipped.

use std::process::{Command, Stdio};

use crate::common::{CacheDir, now, publish, text, wait_until};

const ESCAPE: char = '\u{1b}';

/// What a call writes to a terminal; `None`, with a message, where there can't be one.
fn on_a_terminal(args: &[&str], variables: &[(&str, &str)]) -> Option<String> {
    let quoted = args.iter().map(|arg| format!("'{arg}'")).collect::<Vec<_>>().join(" ");
    let call = format!("'{}' {quoted}", env!("CARGO_BIN_EXE_result-cleaner"));
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &call, "/dev/null"]).stdin(Stdio::null());
    script.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(variables.iter().copied());
    match script.output() {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => {
            eprintln!("skipped: script can't be run: {error}");
            None
        }
    }
}

/// How many results have been seen, each time that it is shown.
fn seen(shown: &str) -> impl Iterator<Item = u64> {
    let states = shown.split('\r').filter_map(|state| state.split_once(" results seen, "));
    states.map(|(seen, _)| seen.split(' ').next_back().unwrap().parse::<u64>().unwrap())
}

#[test]
fn a_sweep_that_takes_long_shows_how_far_it_is() {
    let cache = CacheDir::new();
    publish(&cache.store("broken", 1.5).metadata, b"{");
    // As slow as it has to be on this machine.
    let mut shown = String::new();
    for bound in ["64ms", "16ms", "4ms", "1ms"] {
        for number in 0..300 {
            cache.store(&format!("{}/{number}", number % 10), now() - 1.0);
        }
        let slowly = ["sweep", text(cache.path()), "--max-disk-time", bound];
        let Some(all) = on_a_terminal(&slowly, &[]) else { return };
        shown = all;
        if seen(&shown).any(|seen| 0 < seen && seen < 301) {
            break;
        }
    }
    assert!(seen(&shown).any(|seen| 0 < seen && seen < 301), "{shown}");
    assert!(seen(&shown).is_sorted(), "{shown}");
    assert!(shown.contains("deleted 300 of 301 results"), "{shown}");
    // The warning has a line of its own.
    let mut lines = shown.split(['\r', '\n']);
    let warning = lines.find(|line| line.contains("broken.metadata.json")).unwrap();
    assert!(!warning.contains("results seen, "), "{warning:?}");
}

#[test]
fn a_sweep_that_is_soon_over_shows_no_progress() {
    let cache = CacheDir::new();
    // On a busy machine it may take long.
    wait_until("nothing but the outcome is shown", || {
        cache.pair("a").settled(1.5);
        on_a_terminal(&["sweep", text(cache.path())], &[]).is_none_or(|shown| {
            assert!(shown.contains("deleted 1 of 1 results"), "{shown:?}");
            !shown.contains("results seen") && !shown.contains(ESCAPE)
        })
    });
}

#[test]
fn there_is_colour_on_a_terminal_unless_it_is_forbidden() {
    let cache = CacheDir::new();
    cache.store("expired", now() - 1.0);
    let live = cache.store("live", now() + 100.0);
    let explain = ["explain", "--cache-dir", text(cache.path()), text(&live.result)];
    let list = ["list", text(cache.path())];
    let doctor = ["doctor", text(cache.path()), "--no-metrics"];
    for args in [&explain[..], &list, &doctor] {
        let Some(shown) = on_a_terminal(args, &[]) else { return };
        assert!(shown.contains(ESCAPE), "{shown:?}");
        let plain = on_a_terminal(args, &[("NO_COLOR", "1")]).unwrap();
        assert!(!plain.contains(ESCAPE), "{plain:?}");
        let json = on_a_terminal(&[args, &["--json"]].concat(), &[]).unwrap();
        assert!(!json.contains(ESCAPE), "{json:?}");
    }
}

#[test]
fn on_a_narrow_terminal_the_middle_of_a_path_is_cut_out() {
    let cache = CacheDir::new();
    cache.store(&format!("{}/first", "session".repeat(20)), now() + 100.0);
    let list = format!("'{}' list", env!("CARGO_BIN_EXE_result-cleaner"));
    let call = format!("stty cols 80 rows 24 && {list} {}", text(cache.path()));
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &call, "/dev/null"]).stdin(Stdio::null()).env("NO_COLOR", "1");
    let Ok(output) = script.output() else { return eprintln!("skipped: script can't be run") };
    let shown = String::from_utf8(output.stdout).unwrap();
    let row = shown.lines().nth(1).unwrap_or_else(|| panic!("{shown}"));
    let row = row.trim_end();
    assert!(row.contains("session") && row.contains('…'), "{shown}");
    assert!(row.ends_with("json.lz4") && row.chars().count() <= 80, "{shown}");
}
