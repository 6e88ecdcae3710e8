use super::*;

#[test]
fn a_zone_that_nobody_knows_is_wrong() {
    for good in [
        None,
        Some(""),
        Some("UTC"),
        Some(":UTC"),
        Some("CET-1CEST,M3.5.0,M10.5.0/3"),
        Some("<+03>-3"),
    ] {
        assert_eq!(check_time_zone(good).status, CheckStatus::Ok, "{good:?}");
    }
    for bad in ["Europe/Nowhere", "nonsense", "../../etc"] {
        let check = check_time_zone(Some(bad));
        assert_eq!(check.status, CheckStatus::Wrong, "{bad}");
        assert!(check.found.contains(bad) && check.remedy.is_some());
    }
}

#[test]
fn clocks_that_disagree_are_wrong() {
    let at = |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap();
    assert_eq!(check_clock(Some(at(1)), at(0)).status, CheckStatus::Ok);
    assert_eq!(check_clock(Some(at(60)), at(0)).status, CheckStatus::Wrong);
    assert_eq!(check_clock(None, DateTime::UNIX_EPOCH).status, CheckStatus::Wrong);
}

#[test]
fn too_many_directories_are_reported_with_the_limit_to_raise() {
    let limit = inotify_limit("max_user_watches").unwrap();
    assert_eq!(check_watches(1, 0).status, CheckStatus::Ok);
    assert_eq!(check_watches(limit * 3 / 4, 0).status, CheckStatus::Warning);
    let check = check_watches(limit, 0);
    assert_eq!(check.status, CheckStatus::Wrong);
    assert!(check.remedy.unwrap().contains("sysctl fs.inotify.max_user_watches="));
}
