//! The service as a process of its own, and what the kernel reports of it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::measure::Outcome;
use crate::ours::BINARY;
use crate::usage::Usage;

/// A service that is killed when this is dropped.
pub struct Process {
    child: Child,
    /// Where it serves its stats, if it does.
    address: Option<SocketAddr>,
    notes: Arc<AtomicU64>,
}

/// Of one thread, since it began.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadUsage {
    pub cpu: Duration,
    pub switches: u64,
}

impl Process {
    /// Starts it, and waits until its first scan is done.
    pub fn start(root: &Path) -> Outcome<Self> {
        Self::start_with(BINARY.as_ref(), root, &[])
    }

    /// The same with the HTTP server, as a service runs that somebody monitors.
    pub fn start_serving(binary: &Path, root: &Path) -> Outcome<Self> {
        Self::start_with(binary, root, &["--listen", "127.0.0.1:0"])
    }

    fn start_with(binary: &Path, root: &Path, flags: &[&str]) -> Outcome<Self> {
        let mut command = Command::new(binary);
        command.arg("run").arg(root).arg("--no-metrics").args(flags).stderr(Stdio::piped());
        let mut process = Self { child: command.spawn()?, address: None, notes: Arc::default() };
        let log = process.child.stderr.take().ok_or("no log")?;
        let mut log = BufReader::new(log).lines();
        let mut has_scanned = false;
        while !has_scanned || process.address.is_none() != flags.is_empty() {
            let line = log.next().ok_or("the service has ended by itself")??;
            has_scanned |= line.contains("Cleanup completed");
            if let Some((_, address)) = line.split_once("serving http://") {
                let end = address.find('/').ok_or("no address")?;
                process.address = Some(address[..end].parse()?);
            }
        }
        let notes = Arc::clone(&process.notes);
        // Reads all of it, so that the service is never held up by a pipe that is full.
        thread::spawn(move || {
            for line in log {
                let is_note = line.is_ok_and(|line| {
                    ["Cleanup completed", "WARN", "ERROR"].iter().any(|word| line.contains(word))
                });
                notes.fetch_add(is_note.into(), Ordering::Relaxed);
            }
        });
        Ok(process)
    }

    /// How many sweeps, warnings and errors the service has logged since its first scan.
    pub fn notes(&self) -> u64 {
        self.notes.load(Ordering::Relaxed)
    }

    /// Its stats, as JSON.
    pub fn stats(&self) -> Outcome<String> {
        Ok(get_stats(self.address.ok_or("the service does not serve its stats")?)?)
    }

    /// Its directory below `/proc`.
    pub fn proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.child.id()))
    }

    /// Memory that it holds now, in bytes.
    pub fn resident(&self) -> Outcome<usize> {
        let status = fs::read_to_string(self.proc().join("status"))?;
        let kib = field(&status, "VmRSS").ok_or("no VmRSS")?;
        Ok(kib.trim_end_matches(" kB").parse::<usize>()? * 1024)
    }

    /// Memory that it holds once that has not changed for some seconds.
    pub fn resident_at_rest(&self) -> Outcome<usize> {
        let mut last = self.resident()?;
        let mut unchanged = 0;
        for _ in 0..60 {
            thread::sleep(Duration::from_millis(500));
            let now = self.resident()?;
            unchanged = if now == last { unchanged + 1 } else { 0 };
            if unchanged == 4 {
                break;
            }
            last = now;
        }
        Ok(last)
    }

    /// Processor time that it has used, in hundredths of a second, with that of threads that have ended. Context
    /// switches are not counted.
    pub fn used(&self) -> Outcome<Usage> {
        let stat = fs::read_to_string(self.proc().join("stat"))?;
        // The name of the program, in parentheses, may contain anything.
        let (_, fields) = stat.rsplit_once(')').ok_or("no name")?;
        let mut fields = fields.split_ascii_whitespace().skip(11);
        let mut next = || -> Outcome<Duration> {
            let ticks: u64 = fields.next().ok_or("no processor time")?.parse()?;
            Ok(Duration::from_millis(10 * ticks))
        };
        Ok(Usage { user: next()?, system: next()?, ..Usage::default() })
    }

    /// What its threads have used, each by its number.
    pub fn usage(&self) -> Outcome<HashMap<String, ThreadUsage>> {
        let mut usage = HashMap::new();
        for thread in fs::read_dir(self.proc().join("task"))? {
            let thread = thread?;
            // It may end while it is looked at.
            let read = |file| fs::read_to_string(thread.path().join(file));
            let (Ok(scheduled), Ok(status)) = (read("schedstat"), read("status")) else {
                continue;
            };
            // In nanoseconds, while `stat` counts in hundredths of a second.
            let cpu = scheduled.split(' ').next().ok_or("no schedstat")?.parse()?;
            let switches = ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"]
                .iter()
                .filter_map(|name| field(&status, name)?.parse::<u64>().ok())
                .sum();
            let name = thread.file_name().to_string_lossy().into_owned();
            usage.insert(name, ThreadUsage { cpu: Duration::from_nanos(cpu), switches });
        }
        Ok(usage)
    }

    /// What its threads use within `span`. What a thread that ends meanwhile has used is left out.
    pub fn usage_within(&self, span: Duration) -> Outcome<ThreadUsage> {
        let before = self.usage()?;
        thread::sleep(span);
        let mut sum = ThreadUsage::default();
        for (thread, after) in self.usage()? {
            let before = before.get(&thread).copied().unwrap_or_default();
            sum.cpu += after.cpu - before.cpu;
            sum.switches += after.switches - before.switches;
        }
        Ok(sum)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time that the threads of this name have used in the process `proc`, a directory below
/// `/proc`. Nothing where there is no such thread.
pub fn cpu_of(proc: &Path, name: &str) -> Outcome<Option<Duration>> {
    let mut sum = None;
    for thread in fs::read_dir(proc.join("task"))? {
        let thread = thread?.path();
        // It may end meanwhile.
        let read = |file| fs::read_to_string(thread.join(file));
        let (Ok(comm), Ok(scheduled)) = (read("comm"), read("schedstat")) else { continue };
        if comm.trim_end() == name {
            let cpu = scheduled.split(' ').next().ok_or("no schedstat")?.parse()?;
            sum = Some(sum.unwrap_or_default() + Duration::from_nanos(cpu));
        }
    }
    Ok(sum)
}

/// Gets `/stats` as a script does: with a connection of its own.
pub fn get_stats(address: SocketAddr) -> io::Result<String> {
    let mut connection = TcpStream::connect(address)?;
    write!(connection, "GET /stats HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other(answer)),
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
