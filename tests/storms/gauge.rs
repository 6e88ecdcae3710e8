//! What a service holds, and how it answers, while something else goes on.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::Service;

const PAUSE: Duration = Duration::from_millis(20);

/// What the process of a service holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    pub threads: usize,
    pub descriptors: usize,
    pub inotify_instances: usize,
    /// KiB in memory.
    pub resident: u64,
    /// KiB in memory at most so far.
    pub peak: u64,
}

impl Held {
    pub fn by(service: &Service) -> Self {
        let process = format!("/proc/{}", service.pid());
        let list = |dir: &str| {
            let entries = fs::read_dir(format!("{process}/{dir}")).into_iter().flatten().flatten();
            entries.map(|entry| entry.path())
        };
        // A descriptor may be closed while it is looked at.
        let is_inotify = |link: &std::path::PathBuf| {
            fs::read_link(link).is_ok_and(|to| to.as_os_str() == "anon_inode:inotify")
        };
        let status = fs::read_to_string(format!("{process}/status")).unwrap_or_default();
        let kib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let words = line.and_then(|line| line.split_whitespace().next());
            words.and_then(|word| word.parse().ok()).unwrap_or_default()
        };
        Self {
            threads: list("task").count(),
            descriptors: list("fd").count(),
            inotify_instances: list("fd").filter(is_inotify).count(),
            resident: kib("VmRSS:"),
            peak: kib("VmHWM:"),
        }
    }

    /// The larger of each.
    pub fn max(&self, other: &Self) -> Self {
        Self {
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
            inotify_instances: self.inotify_instances.max(other.inotify_instances),
            resident: self.resident.max(other.resident),
            peak: self.peak.max(other.peak),
        }
    }

    /// Whether threads and descriptors are no more than those of `quiet`.
    pub fn is_within(&self, quiet: &Self) -> bool {
        self.threads <= quiet.threads
            && self.descriptors <= quiet.descriptors
            && self.inotify_instances <= quiet.inotify_instances
    }
}

/// What was seen over a time.
#[derive(Debug, Default)]
pub struct Gauged {
    /// The most of each.
    pub most: Held,
    pub sweeps: u64,
    /// The longest time without the end of a sweep.
    pub longest_gap: Duration,
    /// How long each request took.
    pub answers: Vec<Duration>,
    /// Requests without an answer.
    pub unanswered: usize,
    /// Whether `watch` was `degraded` at any time.
    pub was_degraded: bool,
}

impl Gauged {
    /// The 99th percentile of the response times.
    pub fn p99(&mut self) -> Duration {
        self.answers.sort_unstable();
        let at = self.answers.len() * 99 / 100;
        self.answers.get(at.min(self.answers.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// How many sweeps were completed.
pub fn sweeps(service: &Service) -> u64 {
    service.stats()["total_cleanups"].as_u64().unwrap()
}

/// Has the peak of resident memory counted from now on, where the kernel lets us.
pub fn reset_peak(service: &Service) {
    let _ = fs::write(format!("/proc/{}/clear_refs", service.pid()), "5");
}

/// Looks at `service` again and again until `over`.
pub fn gauge(service: &Service, over: &AtomicBool) -> Gauged {
    let mut gauged = Gauged::default();
    reset_peak(service);
    let mut known = sweeps(service);
    let mut last = Instant::now();
    loop {
        let is_over = over.load(Ordering::Relaxed);
        for path in ["/stats", "/healthz", "/metrics"] {
            let start = Instant::now();
            let answer = service.get(path);
            gauged.answers.push(start.elapsed());
            let Some((200, body)) = answer else {
                gauged.unanswered += 1;
                continue;
            };
            if path == "/stats" {
                let stats: Value = serde_json::from_str(&body).unwrap();
                gauged.was_degraded |= stats["watch"] == "degraded";
                let count = stats["total_cleanups"].as_u64().unwrap();
                gauged.longest_gap = gauged.longest_gap.max(last.elapsed());
                if count > known {
                    gauged.sweeps += count - known;
                    known = count;
                    last = Instant::now();
                }
            }
        }
        let held = Held::by(service);
        let most = &mut gauged.most;
        most.threads = most.threads.max(held.threads);
        most.descriptors = most.descriptors.max(held.descriptors);
        most.inotify_instances = most.inotify_instances.max(held.inotify_instances);
        most.resident = most.resident.max(held.resident);
        most.peak = most.peak.max(held.peak).max(most.resident);
        if is_over {
            return gauged;
        }
        thread::sleep(PAUSE);
    }
}
