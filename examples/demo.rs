//! Shows how late after its time each result goes: writes results that live for a few seconds into
//! a temporary directory, and prints a line for each that is deleted.
//!
//! `cargo run --release --example demo`

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "an example is as short as may be, and prints what it does"
)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use result_cleaner::{Cleaner, Config, ResultStore};

const RESULTS: usize = 30;

/// When each result expires, in seconds since the Unix epoch.
#[derive(Default)]
struct Expiries(Mutex<HashMap<PathBuf, f64>>);

impl Expiries {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<PathBuf, f64>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

struct Announcer(Arc<Expiries>);

impl ResultStore for Announcer {
    fn removed(&self, result: &Path) {
        let removed_at = now();
        if let Some(expired_at) = self.0.with(|expiries| expiries.remove(result)) {
            let name = result.file_name().unwrap_or_default().to_string_lossy();
            println!(
                "{name}  deleted {:6.2} ms after its time",
                (removed_at - expired_at) * 1000.0
            );
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Writes a file as the result store does: to a temporary name, then a rename.
fn publish(path: &Path, content: &str) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temp = tempfile::tempdir()?;
    let dir = temp.path().canonicalize()?;
    let expiries = Arc::new(Expiries::default());
    let config =
        Config::new(&dir).without_metrics().with_result_store(Announcer(Arc::clone(&expiries)));
    let cleaner = Cleaner::spawn(config).await?;

    for number in 0..RESULTS {
        let expires_at = now() + 1.0 + 0.1 * number as f64;
        let result = dir.join(format!("demo-{number:02}.result.json.lz4"));
        expiries.with(|expiries| expiries.insert(result.clone(), expires_at));
        publish(&result, "a cached result")?;
        let metadata = dir.join(format!("demo-{number:02}.metadata.json"));
        publish(&metadata, &format!(r#"{{"expires_at": {expires_at}}}"#))?;
    }
    println!("{RESULTS} results were written; they live for 1 to {} s", 1 + RESULTS / 10);
    while !expiries.with(|expiries| expiries.is_empty()) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{} deleted without a further sweep", cleaner.get_stats().total_deleted);
    cleaner.stop().await?;
    Ok(())
}
