//! Makes the pictures of the documentation anew: the page of a service in light and dark, and what
//! `status` and `list` print.
//!
//! `cargo run --example pictures`, on Linux with chromium, faketime, script and unshare. The service is
//! a real one with a demo cache, whose clock runs through a day in three minutes, if the machine has little else to do.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "an example is as short as may be, and prints what it does"
)]

#[allow(dead_code, reason = "it is for tests, too")]
#[path = "../tests/common/chromium.rs"]
mod chromium;

use std::error::Error;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstyle::RgbColor;
use anstyle_svg::Term;
use chromium::Chromium;
use result_cleaner::fetch_stats;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;
/// So long the service has run in the end: its last sweep, the fourth after the first scan, was lately.
const RUN: f64 = DAY + 0.5 * HOUR;
/// The clock is put forward by so many seconds at a time, and the service has time to notice.
const STEP: f64 = 600.0;
const PAUSE: Duration = Duration::from_millis(1200);
/// How wide the terminal is.
const COLUMNS: u32 = 132;
/// Where the demo cache seems to be.
const SHOWN_AT: &str = "/var/cache/results";
/// Runs `"$@"` in a name space of its own, in which `$0` is [`SHOWN_AT`].
const ELSEWHERE: &str = r#"mount -t tmpfs none /var/cache && mkdir /var/cache/results &&
    mount --bind "$0" /var/cache/results && exec "$@""#;

fn main() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let binary = build()?;
    let demo = Demo::new()?;
    demo.populate()?;
    demo.set_clock(-RUN)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let url = format!("http://{address}");
    let mut run = demo.command();
    demo.fake_clock(&mut run)?;
    run.arg(&binary).args(["run", SHOWN_AT, "--no-metrics", "--listen", &address]);
    let _service = Running(run.spawn()?);
    demo.live_through_a_day()?;

    let stats = tokio::runtime::Runtime::new()?.block_on(fetch_stats(&url))?;
    let last_sweep = stats.recent.and_then(|recent| recent.last_sweep);
    if last_sweep.is_none_or(|sweep| sweep.report.duration > Duration::from_secs(1)) {
        return Err("the clock went on during the last sweep: try again".into());
    }
    let Some(mut browser) = Chromium::start() else { return Err("no picture without it".into()) };
    browser.resize(1200, 800);
    browser.open(&format!("{url}/"));
    browser.wait_until(
        "the page shows the service",
        "document.getElementById('running').textContent === 'Running'",
    );
    for (scheme, name) in [("light", "page.png"), ("dark", "page-dark.png")] {
        browser.prefer(scheme);
        fs::write(docs.join(name), browser.screenshot())?;
    }
    let mut session = String::new();
    for command in ["result-cleaner status", &format!("result-cleaner list {SHOWN_AT} | head")] {
        session +=
            &format!("\x1b[1m$ {command}\x1b[0m\n{}\n", demo.terminal(command, &binary, &url)?);
    }
    let svg = Term::new()
        .fg_color(RgbColor(0xd8, 0xdd, 0xe1).into())
        .bg_color(RgbColor(0x17, 0x1b, 0x1e).into())
        .render_svg(session.trim_end());
    fs::write(docs.join("terminal.svg"), svg)?;
    println!("{} results were deleted, {} wait", stats.total_deleted, stats.heap_size);
    Ok(())
}

/// The steps of the clock, by how many are left.
fn steps() -> impl Iterator<Item = u32> {
    (0..(RUN / STEP) as u32).rev()
}

/// How long the clock stands still after a step: longer while the last sweep is expected, which the
/// next step would seem to make long.
fn pause(left: u32) -> Duration {
    if left < 5 { PAUSE * 4 } else { PAUSE }
}

/// The binary, built anew.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if !Command::new(cargo).args(["build", "--bin", "result-cleaner"]).status()?.success() {
        return Err("the binary can't be built".into());
    }
    let example = std::env::current_exe()?;
    let target = example.ancestors().nth(2).ok_or("this is not where cargo puts examples")?;
    Ok(target.join("result-cleaner"))
}

/// A process that is killed with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A demo cache, and the clock of who cleans it.
struct Demo {
    temp: tempfile::TempDir,
    /// When the day ends.
    end: f64,
}

impl Demo {
    fn new() -> Result<Self> {
        let temp = tempfile::tempdir()?;
        fs::create_dir(temp.path().join("cache"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let run: Duration = steps().map(pause).sum();
        Ok(Self { temp, end: now + run.as_secs_f64() })
    }

    fn cache(&self) -> PathBuf {
        self.temp.path().join("cache")
    }

    /// Results that expire during the day, most of them at its busy hours, and after it.
    fn populate(&self) -> Result<()> {
        let mut dice = Dice(7);
        for _ in 0..1000 {
            let hour = dice.below(24.0);
            // Most at the beginning, in the middle and at the end.
            let busy = (hour * std::f64::consts::TAU / 24.0).cos().powi(2);
            if dice.below(1.0) < 0.04 + 0.7 * busy {
                self.publish(&mut dice, (hour - 24.0) * HOUR)?;
            }
        }
        for (count, from, until) in [
            (3, 40.0, 60.0),
            (11, 60.0, 600.0),
            (34, 600.0, HOUR),
            (72, HOUR, 6.0 * HOUR),
            (118, 6.0 * HOUR, DAY),
            (61, DAY, 7.0 * DAY),
            (23, 7.0 * DAY, 30.0 * DAY),
            (4, 30.0 * DAY, 50.0 * DAY),
        ] {
            for _ in 0..count {
                let later = from + dice.below(until - from);
                self.publish(&mut dice, later)?;
            }
        }
        Ok(())
    }

    /// A pair that expires so long after the end of the day.
    fn publish(&self, dice: &mut Dice, later: f64) -> Result<()> {
        let metadata = format!(r#"{{"total_count": 50, "expires_at": {:.3}}}"#, self.end + later);
        self.write(dice, &metadata)
    }

    fn write(&self, dice: &mut Dice, metadata: &str) -> Result<()> {
        let dir = self.cache().join(format!("session_{}", 1 + dice.bits() % 6));
        fs::create_dir_all(&dir)?;
        let [a, b, c, d] = [(); 4].map(|()| dice.bits() as u16);
        let stem = format!(
            "{:08x}-{a:04x}-4{:03x}-a{:03x}-{c:04x}{:08x}",
            dice.bits(),
            b & 0xfff,
            d & 0xfff,
            dice.bits()
        );
        // Without blocks on the disk, but with a size.
        let size = (2_f64.powf(14.0 + dice.below(9.0))) as u64;
        File::create(dir.join(format!("{stem}.result.json.lz4")))?.set_len(size)?;
        let path = dir.join(format!("{stem}.metadata.json"));
        fs::write(path.with_extension("tmp"), metadata)?;
        fs::rename(path.with_extension("tmp"), path)?;
        Ok(())
    }

    /// Lets the clock run, with two mistakes of a writer on the way.
    fn live_through_a_day(&self) -> Result<()> {
        let mut dice = Dice(11);
        for left in steps() {
            self.set_clock(-STEP * f64::from(left))?;
            thread::sleep(pause(left));
            let mistake = match left {
                62 => r#"{"expires_at": 1795507200000}"#,
                9 => r#"{"expires_at": "tomorrow"}"#,
                _ => continue,
            };
            self.write(&mut dice, mistake)?;
        }
        Ok(())
    }

    /// Sets the clock to be `ahead` of the real one by so many seconds.
    fn set_clock(&self, ahead: f64) -> Result<()> {
        let path = self.temp.path().join("clock");
        fs::write(path.with_extension("tmp"), format!("{ahead:+}\n"))?;
        Ok(fs::rename(path.with_extension("tmp"), path)?)
    }

    /// Has what `command` runs go by the clock.
    fn fake_clock(&self, command: &mut Command) -> Result<()> {
        let dirs = fs::read_dir("/usr/lib")?.filter_map(|entry| Some(entry.ok()?.path()));
        let library = dirs
            .chain(["/usr/lib".into(), "/usr/lib64".into()])
            .map(|dir| dir.join("faketime/libfaketimeMT.so.1"))
            .find(|path| path.exists())
            .ok_or("libfaketime is not installed")?;
        // `env`, so that only the binary itself goes by it.
        command.arg("env");
        for (name, value) in [
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", self.temp.path().join("clock")),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ] {
            command.arg(format!("{name}={}", value.display()));
        }
        Ok(())
    }

    /// A command to which the demo cache is at [`SHOWN_AT`]; what it runs is to be added.
    fn command(&self) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", ELSEWHERE]).arg(self.cache());
        command.stdin(Stdio::null());
        command
    }

    /// What `line` prints on a terminal.
    fn terminal(&self, line: &str, binary: &Path, url: &str) -> Result<String> {
        let bin = binary.parent().ok_or("the binary is in no directory")?;
        let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
        let mut command = self.command();
        let wide = format!("stty rows 40 cols {COLUMNS}; {line}");
        command.args(["script", "--quiet", "--return", "--command", &wide, "/dev/null"]);
        command.env("PATH", path).env("RESULT_CLEANER_URL", url).env("TERM", "xterm-256color");
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!("{line}: {}", String::from_utf8_lossy(&output.stdout)).into());
        }
        Ok(String::from_utf8(output.stdout)?.replace("\r\n", "\n"))
    }
}

/// Numbers that look random, and are the same in each run.
struct Dice(u64);

impl Dice {
    fn bits(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// From 0 up to `end`.
    fn below(&mut self, end: f64) -> f64 {
        f64::from(self.bits()) / f64::from(u32::MAX >> 1) * end
    }
}
