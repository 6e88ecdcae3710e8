//! `result-cleaner run`: the service.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use result_cleaner::text::parse_duration;
use result_cleaner::{Cleaner, Stats, server};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::cli::log::{LogArgs, LogFormat, ServiceLog};
use crate::cli::metrics::MetricsArgs;
use crate::cli::{CommandError, DeletionArgs, DirectoryArg, at_least, output, switch, systemd};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  result-cleaner run --no-metrics
  result-cleaner run ~/cache --listen :8004    open http://localhost:8004/ then
  result-cleaner run --metrics-url https://metrics.example --check-interval 1h

Exit status: 0 after SIGTERM, SIGINT or SIGHUP, 1 if it can't start or fails.")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    directory: DirectoryArg,
    /// Interval between full sweeps (at least 1s)
    #[arg(long, value_name = "TIME", value_parser = check_interval, default_value = "6h", help_heading = "Watching", env = "RESULT_CLEANER_CHECK_INTERVAL")]
    check_interval: Duration,
    #[command(flatten)]
    metrics: MetricsArgs,
    /// Serve a status page, /stats, /metrics and /healthz on this address, such as 127.0.0.1:8004; `:8004` is
    /// that port on the loopback address
    #[arg(long, value_name = "ADDR:PORT", value_parser = address, help_heading = "Serving", env = "RESULT_CLEANER_LISTEN")]
    listen: Option<SocketAddr>,
    /// Minimum interval between reports of deletions outside of sweeps
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s", help_heading = "Reporting", env = "RESULT_CLEANER_REPORT_INTERVAL")]
    report_interval: Duration,
    /// Interval between sweeps while the kernel can't report all changes
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s", help_heading = "Watching", env = "RESULT_CLEANER_FALLBACK_INTERVAL")]
    fallback_interval: Duration,
    #[command(flatten)]
    deletions: DeletionArgs,
    /// Accept requests to --listen under this host name, besides addresses and localhost
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Serving",
        env = "RESULT_CLEANER_ALLOW_HOST"
    )]
    allow_host: Vec<String>,
    /// Log each pair at its time as "would delete", and delete nothing
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_DRY_RUN")]
    dry_run: bool,
    #[command(flatten)]
    log: LogArgs,
}

fn check_interval(text: &str) -> Result<Duration, String> {
    at_least(text, Duration::from_secs(1), "")
}

/// Reads an address and a port. A port alone, or that of `localhost`, is on the loopback address.
fn address(text: &str) -> Result<SocketAddr, String> {
    let on_loopback = text.strip_prefix("localhost").unwrap_or(text).strip_prefix(':');
    let parsed = match on_loopback {
        Some(port) => port.parse().ok().map(|port| (Ipv4Addr::LOCALHOST, port).into()),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| "write an address and a port, like 127.0.0.1:8004 or :8004".to_owned())
}

/// Whether this process was started with SIGHUP ignored, as by nohup(1).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (SignalKind::hangup().as_raw_value() - 1)) != 0)
}

/// The signals that end the service.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` if the process was started with it ignored.
    hangup: Option<Signal>,
}

impl EndSignals {
    fn new() -> io::Result<Self> {
        let hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup())).transpose()?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())?, hangup })
    }

    /// Waits for the first of them.
    async fn received(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }
}

pub(crate) fn execute(args: RunArgs) -> Result<(), CommandError> {
    let mut log = args.log.start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // A different thread may run each check of every second. With tokio's keep-alive of 10 s, ten
        // threads would remain after a busy time.
        .thread_keep_alive(Duration::from_millis(1200))
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(args, &mut log));
    // A thread that hangs in the file system must not block the exit.
    runtime.shutdown_timeout(Duration::from_millis(50));
    log.finish();
    result
}

async fn serve(args: RunArgs, log: &mut ServiceLog) -> Result<(), CommandError> {
    let mut config = args.directory.config().with_check_interval(args.check_interval);
    config.metrics_url = args.metrics.url;
    config.report_interval = args.report_interval;
    config.fallback_interval = args.fallback_interval;
    args.deletions.apply(&mut config);
    config.dry_run = args.dry_run;
    // Binding comes before any deletion, so that a second service does not start by mistake.
    let listener = match args.listen {
        Some(address) => Some(server::bind(address).await?),
        None => None,
    };
    let mut signals = EndSignals::new()?;
    let cleaner = Cleaner::spawn(config).await?;
    let handle = cleaner.handle();

    let (stop_server, server_stops) = oneshot::channel::<()>();
    let served = listener.map(|listener| {
        if let Ok(address) = listener.local_addr() {
            tracing::info!("serving http://{address}/");
        }
        let source = Arc::new(handle.clone());
        let stops = async move { drop(server_stops.await) };
        tokio::spawn(server::serve(listener, source, args.allow_host, stops))
    });

    tokio::select! {
        () = signals.received() => {}
        _ = handle.closed() => {}
        never = systemd::keep_notified(handle.clone()) => match never {},
    }
    log.stopping();
    systemd::stopping();
    drop(stop_server);
    let stopped = cleaner.stop().await.map_err(CommandError::from);
    if let Some(served) = served {
        let _ = served.await;
    }
    log_last(&handle.stats(), args.log.format, log);
    stopped
}

/// Writes the last log line: the stats, as JSON.
fn log_last(stats: &Stats, format: LogFormat, log: &mut ServiceLog) {
    match format {
        LogFormat::Text => {
            let json = serde_json::to_string(stats).unwrap_or_default();
            tracing::info!("stopped: {json}");
        }
        // The log's own formatter can't write nested fields.
        LogFormat::Json if tracing::enabled!(tracing::Level::INFO) => {
            let line = serde_json::json!({
                "timestamp": output::rfc3339(output::now()),
                "level": "INFO",
                "message": "stopped",
                "stats": stats,
            });
            log.line(&output::escape_controls(&line.to_string()));
        }
        LogFormat::Json => {}
    }
}
