//! However a pair arrives, it is known without a sweep and goes when its time has come. One file: each
//! test is a few lines for one way to arrive.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::common::{
    CacheDir, Pair, Service, now, pair_of_bytes, publish, tool, wait_for_later_pair, wait_for_tick,
    wait_until,
};

const HOUR: f64 = 3600.0;

/// Lets pairs arrive that wait, and others that are to go soon; `arrive` brings in pairs whose
/// names begin with the given name, and reports where they are then.
fn assert_known(arrive: impl Fn(&CacheDir, &str, f64) -> Vec<Pair>) {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);

    let start = now();
    let waiting = arrive(&cache, "waiting", start + HOUR);
    // Those that go must not do so before they have arrived.
    let time = 1.0 + 3.0 * (now() - start);
    service.wait_for_stat("heap_size", waiting.len());

    let at = now() + time;
    let going = arrive(&cache, "going", at);
    for pair in &going {
        wait_until("the pair is gone", || pair.is_gone());
    }
    assert!(now() >= at, "they were deleted too early");
    service.wait_for_stat("total_deleted", going.len());
    service.wait_for_stat("heap_size", waiting.len());
    assert!(waiting.iter().all(Pair::is_whole));
    service.assert_calm();
}

/// Writes pairs, some of them in directories of directories, into a new directory.
fn populate(dir: &Path, expires_at: f64) -> Vec<Pair> {
    (0..50).map(|n| Pair::at(dir, &nested(n)).write(expires_at)).collect()
}

fn nested(n: usize) -> String {
    match n % 3 {
        0 => format!("{n}"),
        1 => format!("sub/{n}"),
        _ => format!("sub/{}/deep/er/{n}", n % 4),
    }
}

/// The same pairs in another directory.
fn pairs_in(dir: &Path) -> Vec<Pair> {
    (0..50).map(|n| Pair::at(dir, &nested(n))).collect()
}

#[test]
fn a_pair_that_is_renamed_into_place() {
    assert_known(|cache, name, at| {
        vec![cache.store(name, at), cache.store(&format!("session/{name}"), at)]
    });
}

#[test]
fn a_pair_that_is_written_in_place() {
    assert_known(|cache, name, at| {
        vec![cache.guide(name, at), cache.guide(&format!("session/{name}"), at)]
    });
}

#[test]
fn a_pair_whose_metadata_comes_first() {
    assert_known(|cache, name, at| {
        let renamed = cache.pair(&format!("renamed-{name}"));
        renamed.set_expiry(at);
        publish(&renamed.result, b"result");
        let written = cache.pair(&format!("written-{name}"));
        fs::write(&written.metadata, format!(r#"{{"expires_at": {at}}}"#)).unwrap();
        fs::write(&written.result, "result").unwrap();
        vec![renamed, written]
    });
}

#[test]
fn a_pair_that_is_linked_into_place() {
    assert_known(|cache, name, at| {
        let outside = Pair::at(&cache.outside("store"), name).write(at);
        let linked = cache.pair(name);
        fs::hard_link(&outside.result, &linked.result).unwrap();
        fs::hard_link(&outside.metadata, &linked.metadata).unwrap();
        vec![linked]
    });
}

#[test]
fn a_pair_that_is_moved_in_from_outside() {
    assert_known(|cache, name, at| {
        let outside = Pair::at(&cache.outside("store"), name).write(at);
        let moved = cache.pair(name);
        assert!(tool("mv", &[outside.result.as_ref(), moved.result.as_ref()]));
        assert!(tool("mv", &[outside.metadata.as_ref(), moved.metadata.as_ref()]));
        vec![moved]
    });
}

#[test]
fn a_pair_that_is_moved_from_one_directory_to_another() {
    assert_known(|cache, name, at| {
        let before = cache.store(&format!("from/{name}"), at);
        let after = cache.pair(&format!("to/{name}"));
        fs::rename(&before.result, &after.result).unwrap();
        fs::rename(&before.metadata, &after.metadata).unwrap();
        let renamed = cache.pair(&format!("to/renamed-{name}"));
        let other = cache.store(&format!("to/other-{name}"), at);
        fs::rename(&other.result, &renamed.result).unwrap();
        fs::rename(&other.metadata, &renamed.metadata).unwrap();
        vec![after, renamed]
    });
}

#[test]
fn a_populated_directory_that_is_moved_in_from_outside() {
    assert_known(|cache, name, at| {
        let outside = cache.outside(name);
        populate(&outside, at);
        let inside = cache.path().join(name);
        fs::rename(&outside, &inside).unwrap();
        pairs_in(&inside)
    });
}

#[test]
fn a_populated_directory_that_is_moved_within_and_what_is_put_into_it_then() {
    assert_known(|cache, name, at| {
        let before = cache.path().join(format!("before-{name}"));
        let after = cache.path().join("into").join(name);
        populate(&before, at);
        fs::create_dir_all(after.parent().unwrap()).unwrap();
        fs::rename(&before, &after).unwrap();
        let mut pairs = pairs_in(&after);
        for dir in ["", "sub/", "sub/2/deep/"] {
            pairs.push(cache.store(&format!("into/{name}/{dir}added"), at));
        }
        pairs
    });
}

#[test]
fn a_directory_that_was_known_is_watched_under_its_new_name() {
    let cache = CacheDir::new();
    cache.store("before/deep/known", now() + HOUR);
    let service = Service::ready(cache.path(), &[]);
    service.wait_for_stat("heap_size", 1);
    fs::rename(cache.path().join("before"), cache.path().join("after")).unwrap();
    wait_for_later_pair(&cache);
    for (count, dir) in [(2, "after"), (3, "after/deep"), (4, "before"), (5, "before/deep")] {
        cache.store(&format!("{dir}/added"), now() + HOUR);
        service.wait_for_stat("heap_size", count);
    }
    Pair::at(cache.path(), "after/deep/known").set_expiry(now());
    service.wait_for_stat("heap_size", 4);
    service.wait_for_stat("total_deleted", 2);
    service.assert_calm();
}

#[test]
fn what_is_moved_out_is_forgotten_and_safe() {
    let cache = CacheDir::new();
    let at = now() + HOUR;
    let service = Service::ready(cache.path(), &[]);
    let whole = cache.store("whole", at);
    let result = cache.store("result", at);
    let metadata = cache.store("metadata", at);
    populate(&cache.path().join("dir"), at);
    service.wait_for_stat("heap_size", 53);

    let outside = cache.outside("elsewhere");
    fs::create_dir(&outside).unwrap();
    let leave = |path: &Path| fs::rename(path, outside.join(path.file_name().unwrap())).unwrap();
    leave(&result.result);
    service.wait_for_stat("heap_size", 52);
    leave(&metadata.metadata);
    service.wait_for_stat("heap_size", 51);
    leave(&whole.result);
    leave(&whole.metadata);
    service.wait_for_stat("heap_size", 50);
    leave(&cache.path().join("dir"));
    service.wait_for_stat("heap_size", 0);

    // What still would be watched out there would report these.
    for pair in pairs_in(&outside.join("dir")) {
        pair.set_expiry(now() - 1.0);
    }
    wait_for_later_pair(&cache);
    assert!(pairs_in(&outside.join("dir")).iter().all(Pair::is_whole));
    assert!(Pair::at(&outside, "whole").is_whole());
    assert!(result.metadata.exists() && metadata.result.exists());
    service.wait_for_stat("total_deleted", 1);
    service.assert_calm();
}

#[test]
fn what_leaves_while_it_is_being_scanned_is_forgotten() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let (outside, inside) = (cache.outside("dir"), cache.path().join("dir"));
    let pairs = |dir: &Path| (0..2000).map(|n| Pair::at(dir, &n.to_string())).collect::<Vec<_>>();
    pairs(&outside).into_iter().for_each(|pair| drop(pair.write(now() + HOUR)));
    fs::rename(&outside, &inside).unwrap();
    for pair in pairs(&inside) {
        fs::remove_file(pair.result).unwrap();
    }
    wait_for_later_pair(&cache);
    service.wait_for_stat("heap_size", 0);
    service.assert_calm();
}

#[test]
fn directories_that_only_pass_through_are_forgotten() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let dirs: Vec<_> = (0..40)
        .map(|n| (cache.outside(&n.to_string()), cache.path().join(n.to_string())))
        .collect();
    for (outside, _) in &dirs {
        Pair::at(outside, "pair").write(now() + HOUR);
    }
    for _ in 0..150 {
        dirs.iter().for_each(|(outside, inside)| fs::rename(outside, inside).unwrap());
        dirs.iter().for_each(|(outside, inside)| fs::rename(inside, outside).unwrap());
        wait_for_later_pair(&cache);
        service.wait_for_stat("heap_size", 0);
    }
    // A directory may be gone when it is to be watched; that a watch failed may cost a sweep.
    let (sweeps, errors) = (service.count("total_cleanups"), service.count("total_errors"));
    assert!(sweeps < 15 && errors == 0, "{sweeps} sweeps, {errors} errors\n{}", service.log());
}

#[test]
fn a_tree_that_is_copied_in_by_cp_rsync_or_tar() {
    assert_known(|cache, name, at| {
        let outside = cache.outside(name);
        populate(&outside, at);
        let inside = |tool: &str| cache.path().join(format!("{name}-{tool}"));
        let mut pairs = Vec::new();
        assert!(tool("cp", &["-r".as_ref(), outside.as_ref(), inside("cp").as_ref()]));
        pairs.extend(pairs_in(&inside("cp")));
        assert!(tool("cp", &["-a".as_ref(), outside.as_ref(), inside("cp-a").as_ref()]));
        pairs.extend(pairs_in(&inside("cp-a")));
        if tool("rsync", &["-a".as_ref(), outside.as_ref(), inside("rsync").as_ref()]) {
            pairs.extend(pairs_in(&inside("rsync").join(name)));
        }
        let archive = cache.outside("archive.tar");
        let [c, x] = ["cf", "xf"].map(OsStr::new);
        let (at_dir, here) = (OsStr::new("-C"), OsStr::new("."));
        if tool("tar", &[c, archive.as_ref(), at_dir, outside.as_ref(), here]) {
            fs::create_dir(inside("tar")).unwrap();
            assert!(tool("tar", &[x, archive.as_ref(), at_dir, inside("tar").as_ref()]));
            pairs.extend(pairs_in(&inside("tar")));
        }
        pairs
    });
}

#[test]
fn directories_that_are_made_and_filled_in_quick_succession() {
    assert_known(|cache, name, at| {
        let mut pairs = Vec::new();
        for n in 0..200 {
            let dir = match n % 4 {
                0 => format!("{name}-{n}"),
                1 => format!("{name}-{}/{n}", n - 1),
                2 => format!("{name}-{}/{}/{n}", n - 2, n - 1),
                _ => format!("{name}-x/{n}/a/b/c"),
            };
            for m in 0..5 {
                pairs.push(Pair::at(&cache.path().join(&dir), &m.to_string()).write(at));
            }
        }
        pairs
    });
}

#[test]
fn a_directory_that_is_renamed_right_after_it_was_made_and_filled() {
    assert_known(|cache, name, at| {
        let mut pairs = Vec::new();
        for n in 0..50 {
            let temporary = cache.path().join(format!("{name}-{n}.tmp"));
            Pair::at(&temporary, "sub/pair").write(at);
            let dir = cache.path().join(format!("{name}-{n}"));
            fs::rename(&temporary, &dir).unwrap();
            pairs.push(Pair::at(&dir, "sub/pair"));
        }
        pairs
    });
}

#[test]
fn names_are_bytes() {
    assert_known(|cache, name, at| {
        let longest = "x".repeat(255 - ".result.json.lz4".len() - name.len());
        let stems: [&[u8]; 8] = [
            b"\xff\xfe",
            b"new\nline",
            b"\x1b[31mred",
            b" ",
            b"a'b\"c\\",
            "ä€🦀".as_bytes(),
            b".metadata.json",
            longest.as_bytes(),
        ];
        let mut pairs = Vec::new();
        for (n, stem) in stems.into_iter().enumerate() {
            let stem = [name.as_bytes(), stem].concat();
            pairs.push(pair_of_bytes(cache.path(), &stem).write(at));
            if n < 7 {
                let dir = pair_of_bytes(cache.path(), &stem).metadata.with_extension("d");
                pairs.push(pair_of_bytes(&dir, &stem).write(at));
            }
        }
        // Nothing but the ends.
        pairs.push(pair_of_bytes(&cache.path().join(name), b"").write(at));
        pairs
    });
}

#[test]
fn metadata_in_pieces_is_no_error_while_its_writer_has_it_open() {
    let cache = CacheDir::new();
    let at = now() + HOUR;
    cache.store("session/known", at);
    let service = Service::ready(cache.path(), &[]);
    let first = cache.pair("result-first");
    fs::write(&first.result, "result").unwrap();
    let mut result_first = File::create(&first.metadata).unwrap();
    let last = cache.pair("session/result-last");
    let mut result_last = File::create(&last.metadata).unwrap();
    for file in [&mut result_first, &mut result_last] {
        file.write_all(br#"{"expires_at": "#).unwrap();
        file.flush().unwrap();
    }
    // What has been half of a pair becomes whole, and is still being written.
    wait_for_later_pair(&cache);
    publish(&last.result, b"result");
    let other = cache.store("other", now() + 2.5);
    wait_until("seconds have passed", || other.is_gone());
    service.wait_for_stat("heap_size", 1);
    service.assert_calm();

    for file in [&mut result_first, &mut result_last] {
        file.write_all(format!("{at}, ").as_bytes()).unwrap();
        file.write_all(br#""total_count": 1}"#).unwrap();
    }
    service.wait_for_stat("heap_size", 3);
    drop((result_first, result_last));
    wait_for_later_pair(&cache);
    assert!(first.is_whole() && last.is_whole());
    service.assert_calm();
}

#[test]
fn metadata_that_stays_invalid_counts_once_its_writer_is_done() {
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    let half: &[u8] = br#"{"expires_at": 1"#;

    let written = cache.store("written", now() + HOUR);
    let mut file = File::create(&written.metadata).unwrap();
    file.write_all(half).unwrap();
    wait_for_later_pair(&cache);
    assert_eq!(service.count("total_errors"), 0, "it is open");
    drop(file);
    service.wait_for_stat("total_errors", 1);

    let renamed = cache.pair("renamed");
    publish(&renamed.result, b"result");
    publish(&renamed.metadata, half);
    service.wait_for_stat("total_errors", 2);

    // By a link: the other name may stay or go.
    for (count, name, content) in
        [(3, "linked", half), (4, "linked-alone", half), (5, "linked-alone-and-empty", b"")]
    {
        let linked = cache.pair(name);
        publish(&linked.result, b"result");
        fs::write(cache.outside(name), content).unwrap();
        // An empty file shows by its ctime alone that it was complete when it was linked.
        wait_for_tick(&cache.outside(name));
        fs::hard_link(cache.outside(name), &linked.metadata).unwrap();
        if count > 3 {
            fs::remove_file(cache.outside(name)).unwrap();
        }
        service.wait_for_stat("total_errors", count);
    }

    let moved = Pair::at(&cache.outside("moved"), "pair").write(0.0);
    fs::rename(moved.result.parent().unwrap(), cache.path().join("moved")).unwrap();
    service.assert_errors(6);
    assert_eq!(cache.files().len(), 12, "they stay");
}
