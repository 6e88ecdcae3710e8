//! Rules about the source that no compiler knows.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Each module's code, without its tests.
fn modules() -> HashMap<String, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = HashMap::new();
    for entry in walkdir::WalkDir::new(&source) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(&source).unwrap();
        let name = path.to_str().unwrap();
        let is_for_tests = ["tests", "fuzzing", "timelines"].iter().any(|part| name.contains(part));
        if !name.ends_with(".rs") || is_for_tests {
            continue;
        }
        let code = fs::read_to_string(entry.path()).unwrap();
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        modules
            .insert(name.trim_end_matches(".rs").to_owned(), code.collect::<Vec<_>>().join("\n"));
    }
    assert!(modules.len() > 20, "the source is not where it is looked for");
    modules
}

#[test]
fn what_is_dangerous_or_replaceable_is_named_in_one_module_only() {
    for (words, homes) in [
        (
            &[" notify::", "(notify::", "use notify"][..],
            &["watch/watcher", "watch/reader", "watch/translate"][..],
        ),
        (&["read_dir", "Dir::read_from", "fs::Dir::new"], &["disk/list"]),
        (&["walkdir"], &["watch/limits"]),
        (
            &["unlinkat", "renameat", "remove_file", "fs::rename", "fs::remove_dir"],
            &["remove/claim"],
        ),
        (&["reqwest"], &["telemetry/http_client"]),
        (
            &["Utc::now", "SystemTime::now", "clock_gettime"],
            &["sys/clock", "cli/explain", "cli/list", "cli/run", "cli/status"],
        ),
        (&["prometheus::"], &["telemetry/prometheus"]),
        (&["hyper::", "hyper_util"], &["server/mod", "server/site"]),
        (&["priority_queue"], &["schedule/queue"]),
        (
            &["clap::"],
            &[
                "main",
                "cli/mod",
                "cli/log",
                "cli/metrics",
                "cli/run",
                "cli/sweep",
                "cli/list",
                "cli/status",
                "cli/explain",
                "cli/doctor",
                "cli/generate",
            ],
        ),
    ] {
        for (module, code) in modules() {
            let named = words.iter().find(|word| code.contains(*word));
            assert!(
                named.is_none() || homes.contains(&module.as_str()),
                "{module} names {}, which is for {homes:?} alone",
                named.unwrap()
            );
        }
    }
}
