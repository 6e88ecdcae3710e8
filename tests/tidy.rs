//! Rules about the source that no compiler and no lint knows.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens, and prints its figures"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Which rooms, folders and files at the top of `src`, a room may use. What is not named is used by
/// nobody else; `cli` and `main` use the public interface alone.
const ROOMS: &str = "
    display
    pair
    error     display
    config    pair error
    sys       error
    watch     pair
    disk      pair error
    remove    disk pair display
    schedule  pair sys
    jobs      remove disk watch pair sys config display
    telemetry pair sys config error display
    worker    jobs schedule watch disk telemetry pair sys config error display
    oneshot   jobs remove disk watch telemetry pair sys config error display
    server    telemetry sys error
    cleaner   worker telemetry server disk sys config error
    fuzzing   schedule watch pair sys
    cli
    main
";

/// Crates that are named in some rooms or files only, and where.
const CRATES: [(&str, &str); 8] = [
    ("notify", "watch/"),
    ("walkdir", "watch/limits.rs disk/occupancy.rs"),
    ("reqwest", "telemetry/http_client.rs"),
    ("prometheus", "telemetry/prometheus.rs"),
    ("procfs", "telemetry/process.rs"),
    ("hyper", "server/"),
    ("priority_queue", "schedule/queue.rs"),
    ("landlock", "remove/sandbox.rs"),
];

/// Each file's path below `src`, and its code without comments and tests.
fn sources() -> BTreeMap<String, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    for entry in walkdir::WalkDir::new(&source) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(&source).unwrap().to_str().unwrap().to_owned();
        let is_for_tests = path.contains("tests") || path.contains("timelines");
        if !path.ends_with(".rs") || is_for_tests {
            continue;
        }
        let code = fs::read_to_string(entry.path()).unwrap();
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code: Vec<_> =
            code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        sources.insert(path, code.join("\n"));
    }
    assert!(sources.len() > 50, "the source is not where it is expected");
    sources
}

/// The room of a path below `src`.
fn room(path: &str) -> &str {
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The names that paths with the `root` start with: of `root::a::b` the first, and of
/// `root::{a::{b, c}, d}` those at the first level.
fn names_below<'a>(code: &'a str, root: &str) -> Vec<&'a str> {
    let mut names = Vec::new();
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    for (at, _) in code.match_indices(root) {
        let rest = &code[at + root.len()..];
        if code[..at].ends_with(is_part) || !rest.starts_with("::") {
            continue;
        }
        let rest = rest[2..].trim_start();
        let Some(group) = rest.strip_prefix('{') else {
            names.extend(rest.split(|c| !is_part(c)).next());
            continue;
        };
        let (mut depth, mut begins) = (1, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' => begins = depth == 1 || begins,
                c if begins && depth == 1 && is_part(c) => {
                    names.extend(group[at..].split(|c| !is_part(c)).next());
                    begins = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

/// The rooms that a file uses, however it names them.
fn rooms_used(path: &str, code: &str) -> BTreeSet<String> {
    let mut used: BTreeSet<String> =
        names_below(code, "crate").into_iter().map(str::to_owned).collect();
    // `mod.rs` stands for its folder.
    let depth = path.trim_end_matches("/mod.rs").split('/').count();
    let to_the_top = vec!["super"; depth].join("::");
    used.extend(names_below(code, &to_the_top).into_iter().map(str::to_owned));
    used
}

#[test]
fn rooms_use_only_those_that_the_table_allows() {
    let rooms: BTreeMap<&str, Vec<&str>> = ROOMS
        .lines()
        .filter_map(|line| {
            let mut names = line.split_whitespace();
            Some((names.next()?, names.collect()))
        })
        .collect();
    for (path, code) in sources() {
        let own = room(&path);
        if own == "lib" {
            continue;
        }
        let allowed = rooms.get(own).unwrap_or_else(|| panic!("{path} has no room in the table"));
        for used in rooms_used(&path, &code) {
            let is_allowed = used == own || allowed.contains(&used.as_str());
            assert!(
                is_allowed || !rooms.contains_key(used.as_str()),
                "{path} uses {used}, which {own} may not"
            );
        }
    }
}

#[test]
fn the_core_has_no_input_or_output() {
    const OUTSIDE: [&str; 9] = [
        "tracing::",
        "std::fs",
        "std::thread",
        "std::process",
        "std::net",
        "tokio",
        "rustix",
        "::now()",
        "println!",
    ];
    for (path, code) in sources() {
        for outside in OUTSIDE {
            let is_pure = !path.starts_with("schedule/") || !code.contains(outside);
            assert!(is_pure, "{path} uses {outside}");
        }
    }
}

#[test]
fn every_form_of_use_is_seen() {
    let code = "use crate::{disk::{list, root}, pair};\nfn f() { crate::sys::g(); super::super::watch::h() }";
    let used: Vec<String> = rooms_used("jobs/scan.rs", code).into_iter().collect();
    assert_eq!(used, ["disk", "pair", "sys", "watch"]);
    assert_eq!(
        rooms_used("jobs/mod.rs", "use super::disk::root;").into_iter().collect::<Vec<_>>(),
        ["disk"]
    );
}

#[test]
fn some_crates_are_named_in_one_place_only() {
    for (path, code) in sources() {
        for (name, home) in CRATES {
            let is_named = code.match_indices(name).any(|(at, _)| {
                let (before, after) = (&code[..at], &code[at + name.len()..]);
                (after.starts_with("::") || after.starts_with(';'))
                    && before.ends_with([' ', '(', '<', '&', '!'])
                    && !before.ends_with("mod ")
            });
            // The fuzzers make events as notify does.
            let is_home =
                home.split(' ').any(|home| path.starts_with(home)) || path.starts_with("fuzzing/");
            assert!(!is_named || is_home, "{path} names {name}, which is for {home}");
        }
        let is_command = path.starts_with("cli/") || path == "main.rs";
        assert!(
            is_command || !code.contains("clap"),
            "{path} names clap, which is for the command"
        );
    }
}

/// A version as numbers: `1.88` is `[1, 88, 0]`.
fn version(text: &str) -> [u32; 3] {
    let mut version = [0; 3];
    let parts = text.split('.').map(|part| part.parse().expect("a number"));
    version.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    version
}

#[test]
fn no_locked_dependency_needs_a_newer_compiler_than_this_crate() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version=1", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let is_own = |package: &&serde_json::Value| package["name"] == env!("CARGO_PKG_NAME");
    let own = packages.iter().find(is_own).unwrap()["rust_version"].as_str().unwrap();
    for package in packages {
        let needed = package["rust_version"].as_str().unwrap_or("1.0");
        let (name, number) = (&package["name"], &package["version"]);
        assert!(version(needed) <= version(own), "{name} {number} needs Rust {needed}");
    }
}
