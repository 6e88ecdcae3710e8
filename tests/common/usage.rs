//! What the process of a service holds and does, as the kernel reports it.

use super::*;

/// Of one process, all its threads together.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub descriptors: usize,
    pub threads: usize,
    /// How often its threads were switched to or away from.
    pub switches: u64,
    /// Hundredths of a second on a processor.
    pub cpu: u64,
}

/// What a service may do in a second in which nothing happens: 50 times of what it does.
const QUIET_SWITCHES: u64 = 500;
const QUIET_CPU: u64 = 20;

#[cfg(feature = "cli")]
impl Service {
    pub fn usage(&self) -> Usage {
        let process = PathBuf::from(format!("/proc/{}", self.pid()));
        let count = |dir: &str| fs::read_dir(process.join(dir)).unwrap().count();
        let stat = fs::read_to_string(process.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        // The 14th and 15th of all fields.
        let cpu = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        let tasks = fs::read_dir(process.join("task")).unwrap();
        // A thread may end while it is looked at.
        let status =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
        let switches = status.map(|status| switches(&status)).sum();
        Usage { descriptors: count("fd"), threads: count("task"), switches, cpu }
    }

    /// Asserts that it comes to do next to nothing: that it does not spin.
    #[track_caller]
    pub fn assert_comes_to_rest(&self) {
        let mut last = self.usage();
        let deadline = Instant::now() + PATIENCE;
        loop {
            thread::sleep(Duration::from_secs(1));
            let next = self.usage();
            let switches = next.switches.saturating_sub(last.switches);
            let cpu = next.cpu.saturating_sub(last.cpu);
            if switches <= QUIET_SWITCHES && cpu <= QUIET_CPU {
                return;
            }
            assert!(Instant::now() < deadline, "{last:?}, a second later {next:?}\n{}", self.log());
            last = next;
        }
    }
}

fn switches(status: &str) -> u64 {
    let lines = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
    lines.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
}
