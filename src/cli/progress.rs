//! Shows the progress of a sweep on a terminal.

use std::io::{self, Write, stderr};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use result_cleaner::Progress;
use tracing_subscriber::fmt::MakeWriter;

/// The progress line appears only if the work takes longer than this.
const PATIENCE: Duration = Duration::from_millis(500);
const REDRAW: Duration = Duration::from_millis(100);

/// A line on standard error that shows the progress of a sweep; nothing if standard error is not a
/// terminal.
#[derive(Debug, Clone)]
pub(crate) struct ProgressLine {
    bar: ProgressBar,
    dry_run: bool,
}

impl ProgressLine {
    pub(super) fn new(dry_run: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{spinner} {msg}");
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Self { bar, dry_run }
    }

    /// Shows `progress` while `work` runs, if that takes a while.
    pub(super) async fn show_while<T>(
        &self,
        progress: Arc<Progress>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        let mut pause = PATIENCE;
        loop {
            tokio::select! {
                done = &mut work => {
                    self.bar.finish_and_clear();
                    return done;
                }
                () = tokio::time::sleep(pause) => {}
            }
            if pause == PATIENCE {
                self.bar.set_draw_target(ProgressDrawTarget::stderr());
                pause = REDRAW;
            }
            let (checked, deleted) = (progress.checked(), progress.deleted());
            let rate = checked as f64 / self.bar.elapsed().as_secs_f64().max(f64::EPSILON);
            let freed = BinaryBytes(progress.freed_bytes());
            let done = if self.dry_run {
                format!("would delete {deleted}, {freed} to free")
            } else {
                format!("{deleted} deleted, {freed} freed")
            };
            self.bar.set_message(format!("{checked} results seen, {rate:.0} per second, {done}"));
        }
    }
}

/// Writes to standard error, around the line.
impl Write for ProgressLine {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.bar.suspend(|| stderr().write(text))
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for ProgressLine {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
