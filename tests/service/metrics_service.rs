//! A metrics service that misbehaves in every way it can. Whatever it does, deletions come at their
//! time, memory stays bounded, SIGTERM ends the cleaner, and the figures that it acknowledged are
//! the totals: none lost, none doubled.
//!
//! A report counts as acknowledged once the head of a 2xx answer is complete; what follows the head
//! says nothing. The long run takes one misbehaviour after the other, so that the lateness of
//! deletions can be compared with that of a cleaner without a metrics service.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::common::{
    CacheDir, PATIENCE, Pair, Random, Service, extent, figure, free_address, is_long, last_stats,
    many_services, now, own_host, publish, result_cleaner, seed, text, wait_until,
};
use crate::rogue::{ACKNOWLEDGING, FAILING, Manner, Rogue};
use serde_json::Value;

const FIGURES: [(&str, &str); 3] = [
    ("deleted_count", "total_deleted"),
    ("freed_bytes", "total_freed_bytes"),
    ("errors", "total_errors"),
];
const TAKES_NONE: &str = "unreachable";
const NOT_HEARD: &str = "undelivered figures:";
/// How much memory a misbehaving service may cost. Some of them send ten mebibytes each time.
const MEMORY_KIB: u64 = 4096;

/// A cleaner at work, and its metrics service.
struct Trial {
    cache: CacheDir,
    rogue: Rogue,
    service: Service,
    stored: u64,
    broken: u64,
}

impl Trial {
    /// One with a metrics service that behaves so.
    fn start(manner: Manner) -> Self {
        let (cache, rogue) = (CacheDir::new(), Rogue::start());
        rogue.behave(manner);
        let args = ["--metrics-url", &rogue.url, "--report-interval", "100ms"];
        let service = Service::ready(cache.path(), &args);
        Self { cache, rogue, service, stored: 0, broken: 0 }
    }

    fn of(cache: CacheDir, service: Service) -> Self {
        Self { cache, rogue: Rogue::start(), service, stored: 0, broken: 0 }
    }

    fn store(&mut self, expires_at: f64) -> Pair {
        self.stored += 1;
        self.cache.store(&self.stored.to_string(), expires_at)
    }

    /// Deletes `count` pairs that expire one after the other; how late each was, in milliseconds.
    fn delete_on_time(&mut self, count: u64) -> Vec<f64> {
        let often = Duration::from_micros(if is_long() { 200 } else { 4000 });
        // Past the second in which a result may be half published.
        let first = now() + 1.2;
        let at = |n: u64| first + n as f64 * 0.03;
        let pairs: Vec<_> = (0..count).map(|n| self.store(at(n))).collect();
        let lateness = pairs.iter().zip(0..).map(|(pair, n)| {
            let patience_ends = now() + PATIENCE.as_secs_f64();
            while !pair.is_gone() {
                assert!(now() < patience_ends, "not deleted: {}", self.service.log());
                thread::sleep(often);
            }
            (now() - at(n)) * 1000.0
        });
        lateness.collect()
    }

    /// Adds an error to the figures.
    fn break_one(&mut self) {
        self.broken += 1;
        let pair = self.cache.store(&format!("broken-{}", self.broken), 1e10);
        publish(&pair.metadata, b"broken");
        self.service.wait_for_stat("total_errors", self.broken);
    }

    /// Waits until what was acknowledged are the totals.
    #[track_caller]
    fn wait_for_delivery(&self) {
        self.service.wait_for_stat("total_deleted", self.stored);
        let stats = self.service.stats();
        wait_until("all is delivered", || is_all(&self.rogue, &stats));
    }

    /// The most memory that the cleaner has ever had.
    fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.service.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Asserts that memory was bounded since it was `before` at the most; by how much it grew.
    #[track_caller]
    fn assert_memory(&self, before: u64) -> u64 {
        let grown = self.peak_kib().saturating_sub(before);
        assert!(grown < MEMORY_KIB, "{grown} KiB more than before");
        grown
    }

    /// Ends it. What was acknowledged and what is logged as undelivered are the totals.
    #[track_caller]
    fn end(self) -> (Duration, String, Rogue) {
        let Self { service, rogue, .. } = self;
        let (status, took, log) = service.terminate();
        assert!(status.success() && took < PATIENCE, "{status} after {took:?}: {log}");
        assert!(log.lines().last().is_some_and(|line| line.contains("stopped: ")), "{log}");
        let stats = last_stats(&log);
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(NOT_HEARD)).collect();
        assert!(lines.len() <= 1, "{log}");
        for (figure, total) in FIGURES {
            let logged: u64 = lines.first().map_or(0, |line| {
                let reported =
                    line.split(' ').find_map(|word| word.strip_prefix(&format!("{figure}=")));
                reported.expect("the figure is logged").parse().unwrap()
            });
            assert_eq!(rogue.acknowledged(figure) + logged, stats[total], "{figure}: {log}");
        }
        assert!(!rogue.was_redirected_to(), "a redirect was followed");
        (took, log, rogue)
    }
}

fn is_all(rogue: &Rogue, stats: &Value) -> bool {
    FIGURES.iter().all(|(figure, total)| rogue.acknowledged(figure) == stats[total])
}

/// Checks each manner: all at once, or one after the other where figures are wanted.
fn each(manners: &[Manner], check: impl Fn(Manner) + Sync) {
    if is_long() {
        return manners.iter().for_each(|manner| check(*manner));
    }
    let _many = many_services();
    thread::scope(|scope| {
        for manner in manners {
            let name = manner.name.to_owned();
            thread::Builder::new().name(name).spawn_scoped(scope, || check(*manner)).unwrap();
        }
    });
}

/// Prints figures of a long run.
fn print(manner: &str, mut lateness: Vec<f64>, memory: u64) {
    if is_long() {
        lateness.sort_by(f64::total_cmp);
        let (middle, last) = (lateness[lateness.len() / 2], lateness[lateness.len() - 1]);
        let value = format!("{middle:.1} ms at the median, {last:.1} ms at the most");
        figure(&format!("lateness while the metrics service {manner}"), value);
        figure(&format!("memory while the metrics service {manner}"), format!("+{memory} KiB"));
    }
}

#[test]
fn while_it_takes_no_report_deletions_are_on_time_and_afterwards_it_gets_every_figure_once() {
    if is_long() {
        let mut trial = Trial::start(Manner::GOOD);
        let cache = CacheDir::new();
        trial.service = Service::ready(cache.path(), &[]);
        trial.cache = cache;
        print("is not there (--no-metrics)", trial.delete_on_time(40), 0);
    }
    each(FAILING, |manner| {
        let mut trial = Trial::start(Manner::GOOD);
        trial.delete_on_time(3);
        trial.break_one();
        trial.wait_for_delivery();
        let peak = trial.peak_kib();
        let (delivered, connections) = (trial.rogue.delivered(), trial.rogue.connections());

        trial.rogue.behave(manner);
        trial.break_one();
        let mut lateness = Vec::new();
        wait_until("pairs are deleted while a report is on its way", || {
            if manner.holds {
                wait_until("a report is begun", || trial.rogue.open_report().is_some());
            }
            let open = trial.rogue.open_report();
            lateness = trial.delete_on_time(extent("TEST_RESULT_CLEANER_PAIRS", 10, 40));
            // One that ends at once holds up nothing.
            !manner.holds || open.is_some_and(|open| trial.rogue.is_open(open))
        });
        let attempts = if manner.holds { extent("TEST_RESULT_CLEANER_ATTEMPTS", 1, 3) } else { 3 };
        wait_until("it was tried so often", || {
            !manner.accepts || trial.rogue.connections() >= connections + attempts
        });
        assert_eq!(trial.rogue.delivered(), delivered);
        let grown = trial.assert_memory(peak);

        trial.rogue.behave(Manner::GOOD);
        trial.wait_for_delivery();
        trial.service.assert_lines_with("reachable again", 1);
        let (_, log, rogue) = trial.end();
        assert!(is_all(&rogue, &last_stats(&log)) && !log.contains(NOT_HEARD), "{log}");
        let outages = log.lines().filter(|line| line.contains(TAKES_NONE));
        assert!(outages.clone().all(|line| line.contains("WARN")), "{log}");
        assert_eq!(outages.count(), 1, "{log}");
        print(manner.name, lateness, grown);
    });
}

#[test]
fn an_acknowledged_report_is_sent_once_whatever_follows_the_acknowledgement() {
    each(ACKNOWLEDGING, |manner| {
        let mut trial = Trial::start(Manner::GOOD);
        trial.delete_on_time(3);
        trial.wait_for_delivery();
        let peak = trial.peak_kib();

        trial.rogue.behave(manner);
        let mut lateness = Vec::new();
        for _ in 0..extent("TEST_RESULT_CLEANER_ROUNDS", 2, 10) {
            trial.break_one();
            lateness.extend(trial.delete_on_time(4));
            trial.wait_for_delivery();
        }
        wait_until("no connection is left", || trial.rogue.open_report().is_none());
        let grown = trial.assert_memory(peak);
        let (_, log, rogue) = trial.end();
        assert!(is_all(&rogue, &last_stats(&log)), "{log}");
        assert!(!log.contains(TAKES_NONE) && !log.contains(NOT_HEARD), "{log}");
        assert_eq!(rogue.connections(), rogue.delivered(), "one was sent again");
        print(manner.name, lateness, grown);
    });
}

#[test]
fn sigterm_ends_it_whatever_the_metrics_service_does_and_what_was_not_delivered_is_logged() {
    each(&[FAILING, ACKNOWLEDGING].concat(), |manner| {
        let took = sigterm_while(manner);
        if is_long() {
            figure(&format!("SIGTERM to exit while it {}", manner.name), format!("{took:.0?}"));
        }
    });
}

#[test]
fn sigterm_does_not_wait_for_the_time_out_of_a_report() {
    let _many = many_services();
    let hangs = FAILING.iter().find(|manner| manner.holds).unwrap();
    // However busy the machine is, not each time the 5 s.
    let times = (0..5).map(|_| sigterm_while(*hangs));
    let slow: Vec<Duration> = times.take_while(|took| took.as_secs() >= 4).collect();
    assert!(slow.len() < 5, "{slow:?}");
}

/// Ends a cleaner whose metrics service behaves so; how long that took.
fn sigterm_while(manner: Manner) -> Duration {
    let mut trial = Trial::start(manner);
    for _ in 0..5 {
        trial.store(now() - 1.0);
    }
    trial.break_one();
    trial.service.wait_for_stat("total_deleted", 5);
    let rogue = &trial.rogue;
    wait_until("a report is begun", || !manner.accepts || rogue.connections() > 0);
    let (took, log, rogue) = trial.end();
    assert_eq!(log.contains(NOT_HEARD), rogue.delivered() == 0, "{log}");
    took
}

#[test]
fn however_each_report_is_treated_the_acknowledged_figures_are_the_totals() {
    let mut random = Random(seed());
    // Those that hold on cost a time-out each.
    let failing = FAILING.iter().filter(|manner| manner.accepts && (is_long() || !manner.holds));
    let manners: Vec<Manner> = ACKNOWLEDGING.iter().chain(failing).copied().collect();
    let mut trial = Trial::start(Manner::GOOD);
    let reports = extent("TEST_RESULT_CLEANER_REPORTS", 30, 500);
    while trial.rogue.connections() < reports {
        trial.rogue.behave(manners[random.below(manners.len())]);
        for _ in 0..random.below(4) {
            if random.one_in(5) {
                trial.break_one();
            }
            trial.store(now() + random.fraction());
        }
        thread::sleep(Duration::from_millis(random.below(150) as u64));
    }
    trial.rogue.behave(Manner::GOOD);
    trial.wait_for_delivery();
    let (_, log, rogue) = trial.end();
    assert!(is_all(&rogue, &last_stats(&log)), "{log}");
    let taken = format!("{} of {} reports", rogue.delivered(), rogue.connections());
    figure("acknowledged by a metrics service that does as it likes", taken);
}

/// Has a report sent to a name, and ends while that can't be resolved.
fn check_that_a_name_holds_up_nothing(mut command: Command, name: &str, asked: impl Fn() -> bool) {
    let (cache, address) = (CacheDir::new(), free_address());
    command.arg("run").arg(cache.path()).args(["--listen", &address, "--report-interval", "100ms"]);
    command.args(["--metrics-url", &format!("http://{name}:8003")]).env("no_proxy", "*");
    let mut trial = Trial::of(cache, Service::spawn(command, &format!("http://{address}")));
    wait_until("it is asked for the name", || asked() || trial.service.lines_with(TAKES_NONE) > 0);
    let lateness = trial.delete_on_time(10);
    trial.service.wait_for_stat("total_deleted", 10);
    let (took, log, _) = trial.end();
    assert!(log.contains(name) && log.contains(NOT_HEARD), "{log}");
    assert!(log.matches(TAKES_NONE).count() <= 1, "{log}");
    print(&format!("is {name}"), lateness, 0);
    if is_long() {
        figure(&format!("SIGTERM to exit while it is {name}"), format!("{took:.0?}"));
    }
}

#[test]
fn a_name_that_does_not_resolve_is_an_outage_like_any_other() {
    check_that_a_name_holds_up_nothing(result_cleaner(), "nowhere.invalid", || false);
}

/// Needs root, and a namespace in which another name server can be named.
#[test]
fn a_name_server_that_never_answers_holds_up_nothing() {
    let host = own_host();
    let Ok(server) = UdpSocket::bind((host, 53)) else {
        return eprintln!("skipped: no name server can be pretended by this user");
    };
    server.set_nonblocking(true).unwrap();
    let cache = CacheDir::new();
    let resolv = cache.outside("resolv.conf");
    fs::write(&resolv, format!("nameserver {host}\noptions timeout:30 attempts:1\n")).unwrap();
    let namespace = |run: &str| {
        let mut command = Command::new("unshare");
        let script = format!("mount --bind {} /etc/resolv.conf && {run}", text(&resolv));
        command.args(["--mount", "sh", "-c", &script, "sh"]);
        command
    };
    if !namespace("true").output().is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: no namespace can be made, or /etc/resolv.conf is no file");
    }
    let mut command = namespace("exec \"$@\"");
    command.arg(env!("CARGO_BIN_EXE_result-cleaner"));
    let asked = || server.recv(&mut [0; 512]).is_ok();
    check_that_a_name_holds_up_nothing(command, "never-answered.example", asked);
}
