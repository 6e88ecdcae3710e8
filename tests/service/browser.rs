//! The page that `run --listen` serves, in a real browser.

use crate::common::*;
use serde_json::{Value, json};

/// Opens the page, and waits until it shows the state of the service.
fn open(browser: &mut Chromium, service: &Service) {
    browser.open(&format!("{}/", service.url));
    browser.wait_until("the page has an answer", &says("running", "Running"));
}

/// An expression: whether the element `id` has exactly this text.
fn says(id: &str, text: &str) -> String {
    format!("document.getElementById('{id}').textContent === {}", json!(text))
}

fn text_of(browser: &mut Chromium, id: &str) -> String {
    let text = browser.evaluate(&format!("document.getElementById('{id}').textContent"));
    text.as_str().unwrap().to_owned()
}

/// Has the page think that it is hidden, or not; when that was, by its clock.
fn hide(browser: &mut Chromium, is_hidden: bool) -> f64 {
    let change = format!(
        "Object.defineProperty(document, 'hidden', {{value: {is_hidden}, configurable: true}}); \
         window.changed = performance.now(); \
         document.dispatchEvent(new Event('visibilitychange')); window.changed"
    );
    browser.evaluate(&change).as_f64().unwrap()
}

/// A broken pair for the list of errors.
fn broken(cache: &CacheDir, name: &str) -> Pair {
    let pair = cache.store(name, now() + 3600.0);
    publish(&pair.metadata, br#"{"expires_at": true}"#);
    pair
}

#[test]
fn shows_what_waits_and_when_it_expires() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    let next = now() + 50.5 * 60.0;
    cache.store("soon", next);
    for number in 0..3 {
        cache.store(&format!("later-{number}"), now() + 20.0 * 86_400.0);
    }
    let service = Service::ready(cache.path(), &[]);
    open(&mut browser, &service);

    assert_eq!(text_of(&mut browser, "waiting"), "4");
    assert_eq!(text_of(&mut browser, "directory"), text(cache.path()));
    let stats = service.stats();
    let host = stats["host"].as_str().unwrap();
    assert_eq!(text_of(&mut browser, "host"), format!("on {host}"));
    assert_eq!(text_of(&mut browser, "version"), env!("CARGO_PKG_VERSION"));
    let title = browser.evaluate("document.title");
    assert_eq!(title, format!("{host}:{} – result-cleaner", text(cache.path())));
    assert!(text_of(&mut browser, "since").starts_with("started "));
    assert_eq!(text_of(&mut browser, "freed-heading"), "Freed since start");
    assert_eq!(text_of(&mut browser, "watch"), "active (inotify)");
    let left = text_of(&mut browser, "next-left");
    assert!(left.starts_with("in 50 min") || left.starts_with("in 49 min"), "{left}");
    let local = browser.evaluate(&format!(
        "const at = new Date({next} * 1000); [at.getHours(), at.getMinutes(), at.getSeconds()]\
            .map(part => String(part).padStart(2, '0')).join(':')"
    ));
    let at = text_of(&mut browser, "next-at");
    assert!(at.ends_with(local.as_str().unwrap()), "{at} is not {local}");
    // Answers alone would have it change by two seconds or more.
    browser.evaluate(
        "const next = document.getElementById('next-left'); window.seconds = []; \
         new MutationObserver(() => window.seconds.push(Number(/(\\d+) s$/.exec(next.textContent)?.[1]))) \
             .observe(next, {childList: true, characterData: true, subtree: true}); 0",
    );
    browser.wait_until(
        "it counts down each second",
        "seconds.some((left, index) => left === seconds[index - 1] - 1)",
    );

    let chart = browser.evaluate(
        "({bars: [...document.querySelectorAll('#expiring .bar')].map(bar => bar.width.baseVal.value > 0), \
          numbers: [...document.querySelectorAll('#expiring .count, #expiring .none')].map(e => e.textContent), \
          described: document.getElementById('expiring-desc').textContent})",
    );
    let counts: Vec<u64> = service.stats()["expiring"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bucket| bucket["count"].as_u64().unwrap())
        .collect();
    assert_eq!(counts.iter().sum::<u64>(), 4);
    let bars: Vec<bool> = counts.iter().map(|count| *count > 0).collect();
    let numbers: Vec<String> = counts.iter().map(u64::to_string).collect();
    assert_eq!(chart["bars"], json!(bars));
    assert_eq!(chart["numbers"], json!(numbers));
    let described = chart["described"].as_str().unwrap();
    assert!(described.contains("1 h: 1") && described.contains("30 days: 3"), "{described}");
}

#[test]
fn updates_itself_when_results_go() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    cache.store("stays", now() + 3600.0);
    let goes = cache.store("goes", now() + 1800.0);
    let service = Service::ready(cache.path(), &[]);
    open(&mut browser, &service);
    assert_eq!(text_of(&mut browser, "waiting"), "2");
    assert_eq!(text_of(&mut browser, "deleted"), "0");
    assert_eq!(browser.evaluate("document.querySelectorAll('#freed-chart .bar').length"), 0);

    goes.set_expiry(now() - 5.0);
    browser.wait_until("it shows that one went", &says("deleted", "1"));
    assert_eq!(text_of(&mut browser, "waiting"), "1");
    let freed = service.stats()["total_freed_bytes"].as_u64().unwrap();
    assert_eq!(text_of(&mut browser, "freed"), format!("{freed} B"));
    assert_eq!(text_of(&mut browser, "freed-note"), format!("{freed} B, 1 result"));
    assert_eq!(browser.evaluate("document.querySelectorAll('#freed-chart .bar').length"), 1);
    assert_eq!(text_of(&mut browser, "sweep-checked"), "2");
}

#[test]
fn shows_errors_and_takes_no_name_for_markup() {
    const NAME: &str = "<img src=x onerror=\"document.title='taken'\">";
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    broken(&cache, NAME);
    let service = Service::start(cache.path(), &[]);
    service.wait_for_stat("total_errors", 1);
    open(&mut browser, &service);

    browser
        .wait_until("it shows the error", "document.querySelectorAll('#errors > li').length === 1");
    assert_eq!(text_of(&mut browser, "error-count"), "1");
    let error = &service.stats()["recent"]["errors"][0];
    let shown = browser.evaluate(
        "({path: document.querySelector('#errors .path').title, \
           shown: document.querySelector('#errors .path').textContent, \
           reason: document.querySelector('#errors strong').textContent, \
           images: document.images.length, is_taken: document.title === 'taken'})",
    );
    assert!(error["path"].as_str().unwrap().contains(NAME), "{error}");
    assert_eq!(
        shown,
        json!({"path": error["path"], "shown": format!("{NAME}.metadata.json"), "reason": error["reason"],
            "images": 0, "is_taken": false})
    );

    broken(&cache, "second");
    browser.wait_until(
        "the newest stands first",
        "document.querySelector('#errors .path').textContent === 'second.metadata.json'",
    );
}

#[test]
fn errors_of_one_reason_stand_together_with_their_number() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    for number in 0..6 {
        broken(&cache, &format!("broken-{number}"));
    }
    let service = Service::start(cache.path(), &[]);
    service.wait_for_stat("total_errors", 6);
    publish(&cache.store("other", now() + 3600.0).metadata, b"{}");
    service.wait_for_stat("total_errors", 7);
    open(&mut browser, &service);
    const GROUPS: &str = "[...document.querySelectorAll('#errors > li')].map(group => \
        [group.querySelector('p span').textContent, group.querySelectorAll('.path').length, \
         group.querySelector('summary')?.textContent ?? null])";
    browser.wait_until("both reasons are there", &format!("{GROUPS}.length === 2"));
    let groups = browser.evaluate(GROUPS);
    assert_eq!(groups, json!([["once", 1, null], ["6 times", 6, "2 more"]]));
    assert_eq!(text_of(&mut browser, "errors-note"), "7 since start: 7 invalid metadata");

    // What somebody has opened stays open when an error comes.
    browser.evaluate("document.querySelector('#errors details').open = true; 0");
    broken(&cache, "one-more");
    browser.wait_until(
        "its group comes first and is open",
        "document.querySelector('#errors > li details[open] summary')?.textContent === '3 more' \
         && document.querySelector('#errors > li p span').textContent === '7 times'",
    );
}

#[test]
fn a_budget_shows_what_is_used_of_it_and_when_it_is_exceeded() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    cache.store("a", now() + 1800.0);
    let service = Service::ready(cache.path(), &["--max-size", "1", "--min-free", "1"]);
    open(&mut browser, &service);
    let shown = "document.getElementById('size').checkVisibility() \
        && document.getElementById('free').checkVisibility()";
    browser.wait_until("size and space are shown", shown);
    assert_eq!(text_of(&mut browser, "size-of"), "of 1 B");
    assert_eq!(text_of(&mut browser, "free-of"), "at least 1 B must stay free");
    assert_eq!(browser.evaluate("document.getElementById('size').className"), "over");
    assert_eq!(browser.evaluate("document.getElementById('free').className"), "");
    let note = text_of(&mut browser, "expiring-note");
    assert!(note.starts_with("1 result waiting, ") && note.ends_with(" on disk"), "{note}");
}

#[test]
fn asks_nobody_but_the_service_and_complains_of_nothing() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    broken(&cache, "broken");
    let goes = cache.store("goes", now() + 3600.0);
    let service = Service::ready(cache.path(), &[]);
    open(&mut browser, &service);
    goes.set_expiry(now() - 5.0);
    browser.wait_until("it shows that one went", &says("deleted", "1"));

    let requests = browser.events("Network.requestWillBeSent");
    let urls: Vec<&str> =
        requests.iter().map(|event| event["request"]["url"].as_str().unwrap()).collect();
    assert!(urls.len() > 2, "{urls:?}");
    for url in urls {
        let path = url.strip_prefix(&service.url);
        assert!(matches!(path, Some("/" | "/stats")) || url == "data:,", "{url} was asked for");
    }
    for method in ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"] {
        assert_eq!(browser.events(method), Vec::<&Value>::new());
    }
}

/// The smallest contrast of any text with what lies behind it, and whose it is.
const MIN_CONTRAST: &str = "(() => {
    const luminance = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
            .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        for (; element; element = element.parentElement) {
            const color = getComputedStyle(element).backgroundColor;
            if (color !== 'rgba(0, 0, 0, 0)') return color;
        }
        return 'rgb(255, 255, 255)';
    };
    let least = [21, ''];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode, parent = text.parentElement;
        if (!text.data.trim() || !parent.getClientRects().length) continue;
        const style = getComputedStyle(parent);
        const pair = [parent.closest('svg') ? style.fill : style.color, behind(parent)].map(luminance);
        const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        if (contrast < least[0]) least = [contrast, text.data];
    }
    return least;
})()";

#[test]
fn fits_narrow_and_wide_screens_and_is_legible_in_both_schemes() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    for number in 0..3 {
        broken(&cache, &format!("{number}-{}", "a_name_without_an_end_".repeat(7)));
    }
    cache.store("soon", now() + 3600.0);
    cache.store("expired", now() - 5.0);
    let mut service = Some(Service::ready(cache.path(), &[]));
    browser.resize(360, 640);
    open(&mut browser, service.as_ref().unwrap());
    browser.wait_until(
        "it shows the errors",
        "document.querySelectorAll('#errors .path').length === 3",
    );

    // While the service answers, and when it does not.
    for _ in 0..2 {
        // No answer comes that would have it draw.
        hide(&mut browser, true);
        browser.wait_until("it rests", "!isAsking");
        let mut luminance = Vec::new();
        for scheme in ["dark", "light"] {
            browser.prefer(scheme);
            let background = browser.evaluate("getComputedStyle(document.body).backgroundColor");
            let parts = background.as_str().unwrap().split(|c: char| !c.is_ascii_digit());
            let parts: Vec<u32> = parts.filter_map(|part| part.parse().ok()).collect();
            luminance.push(parts[..3].iter().sum::<u32>() / 3);
            let least = browser.evaluate(MIN_CONTRAST);
            assert!(least[0].as_f64().unwrap() >= 4.5, "{scheme}: {least}");
            for width in [360, 1280] {
                browser.resize(width, 720);
                let fit = "[document.documentElement.scrollWidth, window.innerWidth, \
                    document.getElementById('expiring').viewBox.baseVal.width, \
                    document.getElementById('expiring').clientWidth]";
                // The charts are drawn anew after the page was laid out.
                browser.wait_until(
                    "charts and page are as wide as the screen",
                    &format!(
                        "(([page, screen, drawn, chart]) => page === screen && screen === {width} && drawn === chart)({fit})"
                    ),
                );
            }
        }
        assert!(luminance[0] < 64 && luminance[1] > 192, "{luminance:?}");
        drop(service.take());
        hide(&mut browser, false);
        browser.wait_until("it is stale", "document.body.className === 'stale'");
    }
}

#[test]
fn says_that_the_service_is_silent_and_recovers() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    cache.store("a", now() + 3600.0);
    let service = Service::ready(cache.path(), &[]);
    open(&mut browser, &service);
    assert_eq!(browser.evaluate("document.getElementById('trouble').checkVisibility()"), false);
    let url = service.url.clone();
    let at = url.strip_prefix("http://").unwrap();
    service.kill();

    browser.wait_until(
        "it says so",
        "document.getElementById('trouble').checkVisibility() && document.body.className === 'stale'",
    );
    let trouble = text_of(&mut browser, "trouble");
    assert!(trouble.contains("has not answered since"), "{trouble}");
    assert_eq!(text_of(&mut browser, "running"), "Not answering");
    assert_eq!(text_of(&mut browser, "waiting"), "1", "the last state stays");

    cache.store("b", now() + 3600.0);
    let mut command = result_cleaner();
    command.arg("run").arg(cache.path()).args(["--listen", at, "--no-metrics"]);
    let _service = Service::spawn(command, &url);
    browser.wait_until("it recovers", &says("waiting", "2"));
    assert_eq!(text_of(&mut browser, "running"), "Running");
    assert_eq!(
        browser.evaluate(
            "document.getElementById('trouble').checkVisibility() || document.body.className === 'stale'"
        ),
        false
    );
}

#[test]
fn gives_up_a_service_that_hangs_and_recovers() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    open(&mut browser, &service);
    service.signal(rustix::process::Signal::STOP);
    browser.wait_until("it says so", "document.body.className === 'stale'");
    let trouble = text_of(&mut browser, "trouble");
    assert!(trouble.contains("nothing came within 5 s"), "{trouble}");
    service.signal(rustix::process::Signal::CONT);
    browser.wait_until("it recovers", "document.body.className === ''");
}

#[test]
fn rests_while_nobody_looks() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    let service = Service::ready(cache.path(), &[]);
    open(&mut browser, &service);
    let hidden = hide(&mut browser, true);
    let asked = |browser: &Chromium| browser.events("Network.requestWillBeSent").len();
    let before = asked(&browser);
    let would_have = format!("performance.now() > {hidden} + 4500");
    browser.wait_until("it would have asked twice", &would_have);
    assert_eq!(asked(&browser), before);

    // At once, and not only when it would have asked anyhow; on a busy machine once in a few times.
    let asks_at_once = |browser: &mut Chromium| {
        let shown = hide(browser, false);
        let first = format!(
            "performance.getEntriesByType('resource').find(entry => entry.startTime >= {shown})?.startTime"
        );
        browser.wait_until("it asks again", &format!("{first} !== undefined"));
        let late = browser.evaluate(&first).as_f64().unwrap() - shown;
        hide(browser, true);
        late < 1000.0
    };
    assert!((0..10).any(|_| asks_at_once(&mut browser)), "it asked only after a second");
}

#[test]
fn tells_each_state_in_words() {
    let Some(mut browser) = Chromium::start() else { return };
    let cache = CacheDir::new();
    cache.store("a", now() + 3600.0);
    let service = Service::ready(cache.path(), &[]);
    open(&mut browser, &service);
    let visible = |id: &str| format!("document.getElementById('{id}').checkVisibility()");
    assert_eq!(browser.evaluate(&visible("orphans")), false);
    assert_eq!(browser.evaluate(&visible("pruned")), false);
    assert_eq!(browser.evaluate(&visible("size")), false);
    assert_eq!(browser.evaluate(&visible("no-errors")), true);

    // States that are hard to bring about: what the service says is changed on its way.
    browser.evaluate(
        "window.change = {}; window.untouched = window.fetch; \
         window.fetch = async (...request) => { \
             const answer = await window.untouched(...request); \
             return Response.json({...await answer.json(), ...window.change}, {headers: answer.headers}); \
         }; 0",
    );
    let mut change = |change: Value, id: &str, text: &str| {
        browser.evaluate(&format!("window.change = {change}; 0"));
        // At once.
        hide(&mut browser, false);
        browser.wait_until(&format!("{id} is {text}"), &says(id, text));
    };
    for (watch, words) in [
        ("degraded", "degraded: some directories are swept instead of watched"),
        ("polling", "polling: the file system does not report all changes"),
        ("absent", "absent: the cache directory does not exist yet"),
        ("unheard-of", "unheard-of"),
        ("active", "active (inotify)"),
    ] {
        change(json!({"watch": watch}), "watch", words);
    }
    change(json!({"running": false}), "running", "Not running");
    change(json!({"next_expiry": null, "heap_size": 0}), "next-left", "none");
    change(json!({"next_expiry": "2025-01-01T00:00:00Z"}), "next-left", "now");
    change(json!({"heap_size": 1_234_567}), "waiting", "1,234,567");
    change(json!({"total_freed_bytes": 1_288_490_189_u64}), "freed", "1.2 GiB");
    change(json!({"expiring": null, "recent": null, "total_deleted": 7}), "deleted", "7");
    change(json!({"total_orphans_removed": 3, "total_orphan_bytes_freed": 2048}), "orphans", "3");
    change(json!({"free_bytes": 3_u64 << 30, "total_evicted": 1234}), "free", "3 GiB");
    change(json!({"total_evicted": 1234}), "evicted", "1,234");
    let budget = json!({"size_bytes": 50 << 20, "max_size_bytes": 64 << 20});
    let mut all = json!({"total_orphans_removed": 3, "total_directories_pruned": 4});
    all.as_object_mut().unwrap().extend(budget.as_object().unwrap().clone());
    change(all, "pruned", "4");
    assert_eq!(browser.evaluate(&visible("orphans")), true);
    assert_eq!(browser.evaluate(&visible("pruned")), true);
    assert_eq!(browser.evaluate(&visible("size")), true);
    let thrown = browser.events("Runtime.exceptionThrown");
    assert!(thrown.is_empty(), "{thrown:?}");
}
