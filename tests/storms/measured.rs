//! Pairs whose deletion is timed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::common::{Pair, now, publish};

/// Long expired.
pub const LONG_AGO: f64 = 1.5;
/// A result that is not older than its metadata is unchanged for so long before it goes.
const SETTLING: f64 = 1.0;
/// Longer than a tick of most kernels' coarse clock: what is made then bears another time.
const TICK: Duration = Duration::from_millis(5);

/// A pair, and when it has to go.
#[derive(Debug, Clone)]
pub struct Measured {
    pub pair: Pair,
    pub place: &'static str,
    pub expires_at: f64,
    /// The latest of its expiry, its becoming complete, and the end of its settling.
    pub due: f64,
    pub gone: Option<f64>,
}

impl Measured {
    /// Publishes a pair in `dir`, which is made. One that is to settle has halves that may be of one
    /// instant.
    pub fn publish(dir: &Path, place: &'static str, expires_at: f64, settles: bool) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static SERIAL: AtomicU64 = AtomicU64::new(0);

        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let pair = Pair::at(dir, &format!("measured-{serial}"));
        fs::create_dir_all(dir).unwrap();
        publish(&pair.result, b"a result of 23 bytes...");
        let result = ctime(&fs::metadata(&pair.result).unwrap());
        if !settles {
            thread::sleep(TICK);
        }
        let temporary = pair.metadata.with_extension("json.tmp");
        let mut file = fs::File::create(&temporary).unwrap();
        write!(file, r#"{{"expires_at": {expires_at}}}"#).unwrap();
        fs::rename(&temporary, &pair.metadata).unwrap();
        let complete = now();
        let metadata = ctime(&file.metadata().unwrap());
        let mut due = expires_at.max(complete);
        if result >= metadata {
            due = due.max(result + SETTLING);
        }
        Self { pair, place, expires_at, due, gone: None }
    }

    /// Takes note of when it has gone.
    pub fn look(&mut self) {
        if self.gone.is_none() && self.pair.is_gone() {
            self.gone = Some(now());
        }
    }

    /// By how many seconds it was late, or is by now.
    pub fn late(&self) -> f64 {
        self.gone.unwrap_or_else(now) - self.due
    }
}

fn ctime(seen: &fs::Metadata) -> f64 {
    seen.ctime() as f64 + seen.ctime_nsec() as f64 / 1e9
}

/// All pairs that are timed.
#[derive(Debug, Default)]
pub struct Field(Mutex<Vec<Measured>>);

impl Field {
    pub fn add(&self, pair: Measured) {
        self.0.lock().unwrap().push(pair);
    }

    /// Looks which have gone; how many are left.
    pub fn look(&self) -> usize {
        let mut pairs = self.0.lock().unwrap();
        pairs.iter_mut().for_each(Measured::look);
        pairs.iter().filter(|pair| pair.gone.is_none()).count()
    }

    pub fn into_pairs(self) -> Vec<Measured> {
        self.0.into_inner().unwrap()
    }
}
