//! The HTTP server of `run --listen`: the state of the cleaner for people, scripts and monitoring.
//!
//! The server only reads. It answers requests by name only under names that the operator knows. So no
//! web page can read the answers through a name of its own that suddenly resolves to this machine (DNS
//! rebinding). Every client has time limits, and the number of connections is limited, so that slow or
//! silent clients block no others.

mod host;
mod routes;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use self::routes::Routes;
use crate::error::Error;
use crate::sys::descriptors::share_of_open_files;
use crate::sys::runtime::require_sockets;
use crate::telemetry::stats::Stats;

/// The maximum number of connections at a time; one more closes the oldest.
const MAX_CONNECTIONS: usize = 128;
/// The divisor for the connections' share of the descriptors that the process may have open. The others
/// are for the cleaner's own work, which many clients must not stop.
const CONNECTION_SHARE_DIVISOR: u64 = 8;
/// How long a client may take for the head of a request, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, whatever happens on it, even if the client does not read the answers.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// How long a connection that is to end may take for its current answer.
const GRACE: Duration = Duration::from_millis(400);
/// How many bytes from a client are buffered in memory.
const MAX_BUFFERED: usize = 64 * 1024;
/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The minimum interval between warnings about this.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// The source of the server's data. [`Handle`](crate::Handle) is one:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), result_cleaner::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// use std::sync::Arc;
/// use result_cleaner::{Cleaner, Config, server};
/// let cleaner = Cleaner::spawn(Config::new(dir.path()).without_metrics()).await?;
/// let listener = server::bind("127.0.0.1:0".parse().unwrap()).await?;
/// let (stop, stops) = tokio::sync::oneshot::channel::<()>();
/// let source = Arc::new(cleaner.handle());
/// let serve = server::serve(listener, source, Vec::new(), async { drop(stops.await) });
/// let served = tokio::spawn(serve);
/// stop.send(()).unwrap();
/// served.await.unwrap();
/// cleaner.stop().await?;
/// # Ok(())
/// # }
/// ```
pub trait StatsSource: Send + Sync + 'static {
    /// Returns the state of the cleaner. If this takes seconds, the server stops waiting.
    fn stats(&self) -> Pin<Box<dyn Future<Output = Stats> + Send + '_>>;
    /// Returns the metrics in the text format of Prometheus.
    ///
    /// # Errors
    /// The reason why they can't be rendered.
    fn metrics(&self) -> Result<String, String>;
    /// Returns whether the cleaner has neither stopped nor failed. True during the first scan and while the directory is
    /// absent. Does not detect a worker that hangs.
    fn alive(&self) -> bool;
}

/// Listens at `address`; port 0 chooses a free port.
///
/// # Errors
/// [`Error::Listen`], with what to do about the usual causes; [`Error::NoRuntime`] and [`Error::NoDriver`] if there is no
/// suitable runtime.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    require_sockets()?;
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there already: end it, or choose another port"
            }
            io::ErrorKind::PermissionDenied => {
                "that port takes privileges: choose one from 1024 upwards"
            }
            io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address: choose one of its own, such as 127.0.0.1"
            }
            _ => {
                return Error::Listen { address, source: error };
            }
        };
        Error::Listen { address, source: io::Error::new(error.kind(), advice) }
    })
}

/// Answers requests until `shutdown` completes, and for less than half a second after that.
///
/// Requests are answered if their `Host` is an address, `localhost`, or one of `allow_hosts` (in any
/// case, with or without a port). At most 128 connections are open at once, and no more than an eighth
/// of the descriptors that the process may have open when this is called. One more closes the oldest.
pub async fn serve(
    listener: TcpListener,
    source: Arc<dyn StatsSource>,
    allow_hosts: Vec<String>,
    shutdown: impl Future<Output = ()>,
) {
    let max_connections = share_of_open_files(CONNECTION_SHARE_DIVISOR, MAX_CONNECTIONS);
    serve_with(max_connections, listener, source, allow_hosts, shutdown).await;
}

/// Does the same with at most `max_connections` at a time.
async fn serve_with(
    max_connections: usize,
    listener: TcpListener,
    source: Arc<dyn StatsSource>,
    allow_hosts: Vec<String>,
    shutdown: impl Future<Output = ()>,
) {
    let routes = Arc::new(Routes::new(source, &allow_hosts));
    // Dropping the sender notifies all connections of the shutdown.
    let (open, closing) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    let mut warned = None;
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                while connections.try_join_next().is_some() {}
                by_age.retain(|connection| !connection.is_finished());
                while connections.len() >= max_connections {
                    if let Some(oldest) = by_age.pop_front() {
                        oldest.abort();
                    }
                    // The connection closes only when its task ends.
                    connections.join_next().await;
                }
                let connection = serve_connection(stream, routes.clone(), closing.clone());
                by_age.push_back(connections.spawn(connection));
            }
            // Most likely, the process is out of file descriptors. The connection stays in the kernel's
            // queue, so without a pause this loop would spin.
            Err(error) => {
                if warned.is_none_or(|warned: Instant| warned.elapsed() > WARN_PAUSE) {
                    warned = Some(Instant::now());
                    tracing::warn!("can't accept connections on --listen, retrying: {error}");
                }
                // Silent clients may hold the descriptors.
                for oldest in by_age.drain(..by_age.len().div_ceil(4)) {
                    oldest.abort();
                }
                tokio::select! {
                    () = &mut shutdown => break,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    drop((listener, open));
    // Each connection ends in time by itself.
    while connections.join_next().await.is_some() {}
}

/// Serves one client until it disconnects, its time is up, or the sender of `closing` is dropped.
async fn serve_connection(
    stream: TcpStream,
    routes: Arc<Routes>,
    mut closing: watch::Receiver<()>,
) {
    // Answers are small: waiting for more data to send would only delay them.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(routes.answer(request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_BUFFERED)
            // A client that has sent all may close its side and still expects the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // A client's mistakes are not worth a log line.
        _ = &mut connection => return,
        _ = closing.changed() => {}
        () = sleep(CONNECTION_LIFE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(GRACE, connection).await;
}
