//! An application that embeds the cleaner, watches it with its stats, and stops it cleanly.
//!
//! `cargo run --example embed [DIR]` — until Ctrl-C.

use std::io::{Write, stdout};
use std::path::Path;
use std::time::Duration;

use result_cleaner::{Cleaner, Config, DEFAULT_CACHE_DIR, ResultStore};

/// What the application keeps about its results; here it only prints.
struct Index;

impl ResultStore for Index {
    fn removed(&self, result: &Path) {
        let _ = writeln!(stdout(), "dropped from the index: {}", result.display());
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| DEFAULT_CACHE_DIR.into());
    let config = Config::new(dir)
        .with_check_interval(Duration::from_secs(6 * 3600))
        .without_metrics()
        .with_result_store(Index);
    let cleaner = Cleaner::spawn(config).await?;

    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = every_second.tick() => {
                let stats = cleaner.get_stats();
                let line = format!(
                    "{} waiting, {} deleted, {:.2} MiB freed, {} errors, next expiry {:?}",
                    stats.heap_size,
                    stats.total_deleted,
                    stats.total_freed_mb,
                    stats.total_errors,
                    stats.next_expiry
                );
                // Whoever reads the output may have seen enough (`| head`).
                if writeln!(stdout(), "{line}").is_err() {
                    break;
                }
            }
            // The application's own work goes here.
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                break;
            }
        }
    }
    cleaner.stop().await?;
    let _ = writeln!(stdout(), "stopped");
    Ok(())
}
