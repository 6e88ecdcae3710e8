use super::*;

#[test]
fn only_a_leading_tilde_component_is_the_home_directory() {
    for plain in ["/a/~/b", "a~", "~user/x", "./~"] {
        assert_eq!(expand_home(Path::new(plain)).unwrap(), Path::new(plain));
    }
    let home = std::env::home_dir().unwrap();
    assert_eq!(expand_home(Path::new("~")).unwrap(), home);
    assert_eq!(expand_home(Path::new("~/x")).unwrap(), home.join("x"));
}

#[test]
fn intervals_that_make_no_sense_are_refused() {
    let mut config = Config::new("/x").with_check_interval(Duration::from_millis(999));
    assert!(config.validate().unwrap_err().to_string().contains("check_interval"));
    config.check_interval = Duration::from_secs(1);
    config.validate().unwrap();
    config.max_disk_time = Some(Duration::from_micros(999));
    assert!(config.validate().unwrap_err().to_string().contains("max_disk_time"));
    config.max_disk_time = Some(Duration::from_millis(1));
    config.validate().unwrap();
    config.remove_orphans = Some(MIN_ORPHAN_AGE - Duration::from_nanos(1));
    assert!(config.validate().unwrap_err().to_string().contains("remove_orphans"));
    (config.remove_orphans, config.prune_empty_dirs) = (Some(MIN_ORPHAN_AGE), Some(MIN_ORPHAN_AGE));
    config.validate().unwrap();
    config.max_size = Some(0);
    assert!(config.validate().unwrap_err().to_string().contains("max_size"));
    config.max_size = Some(u64::MAX);
    for (wrong, right) in [(0, 1), (91, 90)] {
        config.min_free = Some(MinFree::Percent(wrong));
        assert!(config.validate().unwrap_err().to_string().contains("min_free"));
        config.min_free = Some(MinFree::Percent(right));
        config.validate().unwrap();
    }
    config.evict_min_age = Duration::ZERO;
    assert!(config.validate().unwrap_err().to_string().contains("evict_min_age"));
    config.evict_min_age = Duration::from_millis(1);
    config.fallback_interval = Duration::ZERO;
    assert!(config.validate().is_err());
}

#[test]
fn durations_read_as_documented() {
    let seconds = Duration::from_secs;
    for (text, expected) in [
        ("6h", seconds(6 * 3600)),
        ("90s", seconds(90)),
        ("250ms", Duration::from_millis(250)),
        ("30d", seconds(30 * 86_400)),
        ("2w", seconds(14 * 86_400)),
        ("1h30m", seconds(5400)),
        ("1h 30m", seconds(5400)),
        ("7", seconds(7)),
    ] {
        assert_eq!(parse_duration(text), Ok(expected), "{text}");
    }
    for wrong in
        ["", "0", "0s", "0ms", "-1s", "6x", "h", "1.5", "six hours", "99999999999999999999"]
    {
        assert!(parse_duration(wrong).is_err(), "{wrong}");
    }
}

fn read(json: &str) -> Result<Config, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn every_setting_can_be_read_from_a_file_and_set_by_its_method() {
    let json = r#"{"cache_dir": "/c", "check_interval": "2h", "metrics_url": "http://m",
        "report_interval": 20, "fallback_interval": 30.0, "max_disk_time": "100ms",
        "remove_orphans": "1d", "prune_empty_dirs": "7d", "max_size": "20GiB", "min_free": "10%",
        "evict_min_age": "5m", "dry_run": true, "sandbox": true}"#;
    let set = Config::new("/x")
        .with_cache_dir("/c")
        .with_check_interval(Duration::from_secs(7200))
        .with_metrics_url("http://m")
        .with_report_interval(Duration::from_secs(20))
        .with_fallback_interval(Duration::from_secs(30))
        .with_max_disk_time(Duration::from_millis(100))
        .with_remove_orphans(Duration::from_secs(86_400))
        .with_prune_empty_dirs(Duration::from_secs(7 * 86_400))
        .with_max_size(20 << 30)
        .with_min_free(MinFree::Percent(10))
        .with_evict_min_age(Duration::from_secs(300))
        .with_dry_run(true)
        .with_sandbox(true);
    assert_eq!(format!("{:?}", read(json).unwrap()), format!("{set:?}"));
    assert_eq!(set.without_metrics().metrics_url, None);
}

#[test]
fn what_a_file_leaves_out_has_its_default_and_null_is_none() {
    let default = format!("{:?}", Config::default());
    assert_eq!(format!("{:?}", read("{}").unwrap()), default);
    let nulls = r#"{"metrics_url": null, "max_disk_time": null, "remove_orphans": null,
        "prune_empty_dirs": null, "max_size": null, "min_free": null}"#;
    let expected = format!("{:?}", Config::default().without_metrics());
    assert_eq!(format!("{:?}", read(nulls).unwrap()), expected);
    let bytes = read(r#"{"max_size": 4096, "min_free": 8192}"#).unwrap();
    assert_eq!((bytes.max_size, bytes.min_free), (Some(4096), Some(MinFree::Bytes(8192))));
}

#[test]
fn files_with_unknown_keys_or_values_that_the_command_line_refuses_are_refused() {
    for (json, reason) in [
        (r#"{"check_intervall": "1h"}"#, "unknown field `check_intervall`"),
        (r#"{"result_store": null}"#, "unknown field `result_store`"),
        (r#"{"check_interval": "6x"}"#, "invalid value \"6x\": write it like 6h"),
        (r#"{"check_interval": 0}"#, "it must be more than zero"),
        (r#"{"check_interval": -1}"#, "write it like 6h"),
        (r#"{"check_interval": 1.5}"#, "write it like 6h"),
        (r#"{"check_interval": null}"#, "expected text or a number"),
        (r#"{"check_interval": ["1h"]}"#, "expected text or a number"),
        (r#"{"max_disk_time": "fast"}"#, "write it like 6h"),
        (r#"{"max_size": 0}"#, "it must be more than zero"),
        (r#"{"max_size": "20 cats"}"#, "write it like 500M"),
        (r#"{"min_free": "100%"}"#, "a share must be 1% to 90%"),
        (r#"{"dry_run": "yes"}"#, "expected a boolean"),
    ] {
        let error = read(json).unwrap_err();
        assert!(error.contains(reason), "{json}: {error}");
    }
}
