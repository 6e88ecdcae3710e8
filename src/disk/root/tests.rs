use super::*;
use std::os::unix::fs::symlink;

#[test]
fn both_lookups_follow_no_link_and_stay_beneath() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(temp.path().join("cache/a/b")).unwrap();
    std::fs::create_dir(temp.path().join("outside")).unwrap();
    symlink("../outside", temp.path().join("cache/link")).unwrap();
    symlink("b", temp.path().join("cache/a/inner")).unwrap();
    let root = Root::at(&temp.path().join("cache")).unwrap().unwrap();
    for (path, allowed) in [
        ("", true),
        ("a/b", true),
        ("link", false),
        ("a/inner", false),
        ("..", false),
        ("a/../../outside", false),
        ("gone", false),
    ] {
        let rel: Arc<Path> = Path::new(path).into();
        assert_eq!(root.open_dir(&rel).is_ok(), allowed, "{path}");
        let path = if path.is_empty() { "." } else { path };
        assert_eq!(root.step_down(Path::new(path)).is_ok(), allowed, "{path}, stepwise");
    }
}

#[test]
fn a_directory_is_in_place_until_it_is_moved_or_replaced() {
    let temp = tempfile::tempdir().unwrap();
    let cache = temp.path().join("cache");
    std::fs::create_dir_all(cache.join("a/b")).unwrap();
    let root = Root::at(&cache).unwrap().unwrap();
    let dir = root.open_dir(&Path::new("a/b").into()).unwrap();
    let answers = |dir| (root.still_contains(dir).unwrap(), root.path_leads_to(dir).unwrap());
    assert_eq!(answers(&dir), (true, true));
    std::fs::rename(cache.join("a"), temp.path().join("moved")).unwrap();
    assert_eq!(answers(&dir), (false, false));
    std::fs::write(cache.join("a"), "").unwrap();
    assert_eq!(answers(&dir), (false, false));
    std::fs::remove_file(cache.join("a")).unwrap();
    symlink(temp.path().join("moved"), cache.join("a")).unwrap();
    assert_eq!(answers(&dir), (false, true), "its path leads there by a link");
    std::fs::remove_file(cache.join("a")).unwrap();
    std::fs::create_dir_all(cache.join("a/b")).unwrap();
    assert_eq!(answers(&dir), (false, false));
}

#[test]
fn a_stepwise_lookup_enters_no_mount_point() {
    let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
    let temp = tempfile::tempdir().unwrap();
    assert!(!is_mount_root(&open(temp.path().to_str().unwrap())).unwrap());
    let found = statx(CWD, "/proc", AtFlags::empty(), StatxFlags::empty()).unwrap();
    if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        assert!(is_mount_root(&open("/proc")).unwrap());
    }
}

#[test]
fn errors_of_the_machine_say_nothing_of_a_file() {
    let is_unrelated = |error: Errno| is_unrelated(&error.into());
    for error in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::IO, Errno::INTR, Errno::AGAIN] {
        assert!(is_unrelated(error), "{error}");
    }
    for error in [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::ACCESS, Errno::PERM] {
        assert!(!is_unrelated(error), "{error}");
    }
}

#[test]
fn a_replaced_directory_is_another_one() {
    let temp = tempfile::tempdir().unwrap();
    let cache = temp.path().join("cache");
    assert!(matches!(locate(&cache), Located::Absent));
    std::fs::create_dir(&cache).unwrap();
    let Located::Directory(first) = locate(&cache) else { panic!() };
    std::fs::rename(&cache, temp.path().join("old")).unwrap();
    std::fs::create_dir(&cache).unwrap();
    let Located::Directory(second) = locate(&cache) else { panic!() };
    assert_ne!(first, second);
    assert_eq!(Root::open(first).unwrap_err().kind(), io::ErrorKind::NotFound);
    std::fs::remove_dir(&cache).unwrap();
    std::fs::write(&cache, "").unwrap();
    assert!(matches!(locate(&cache), Located::NotADirectory));
}
