//! A server of the Model Context Protocol that keeps results of tools until they expire.
//!
//! `cargo run --example mcp_server [DIR]` — a client starts it, and speaks with it over its standard
//! input and output. It logs to standard error, and ends when its input is closed, or by SIGTERM.

#![expect(
    clippy::disallowed_methods,
    reason = "an example is as short as may be, and prints what it does"
)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use chrono::Utc;
use lz4_flex::frame::{BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use result_cleaner::{Cleaner, Config, DEFAULT_CACHE_DIR, Event, Events, Handle, ResultStore};
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::model::CallToolResult;
use rmcp::transport::stdio_pipes;
use rmcp::{ServerHandler, ServiceExt, schemars, tool, tool_handler, tool_router};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

const RESULT: &str = ".result.json.lz4";
const METADATA: &str = ".metadata.json";
const MAX_TTL: f64 = 10.0 * 365.0 * 86_400.0;

/// Where each result lies, by its id.
#[derive(Clone, Default)]
struct Index(Arc<Mutex<HashMap<String, PathBuf>>>);

impl Index {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResultStore for Index {
    fn removed(&self, result: &Path) {
        result_id(result).and_then(|id| self.lock().remove(id));
    }
}

fn result_id(result: &Path) -> Option<&str> {
    result.file_name()?.to_str()?.strip_suffix(RESULT)
}

#[derive(Deserialize, schemars::JsonSchema)]
struct StoreArguments {
    /// The result: any JSON.
    result: Value,
    /// What kind of result it is, such as `search`.
    result_type: String,
    /// For how many seconds it is kept.
    ttl_seconds: f64,
    /// What it was asked by.
    #[serde(default)]
    query_context: Map<String, Value>,
}

#[derive(Serialize, schemars::JsonSchema)]
struct Stored {
    /// By which `get_result` finds it.
    result_id: String,
    /// In seconds since the Unix epoch.
    expires_at: f64,
}

#[derive(Deserialize, schemars::JsonSchema)]
struct GetArguments {
    /// As `store_result` has returned it.
    result_id: String,
}

#[derive(Serialize, schemars::JsonSchema)]
struct Found {
    result: Value,
}

#[derive(Clone)]
struct Server {
    /// Where the results of this run go.
    session_dir: PathBuf,
    index: Index,
    /// Reads the stats, and does not keep the cleaner running.
    cleaner: Handle,
}

#[tool_router]
impl Server {
    /// Keeps a result until its time to live is over.
    #[tool]
    async fn store_result(
        &self,
        Parameters(arguments): Parameters<StoreArguments>,
    ) -> Result<Json<Stored>, String> {
        let server = self.clone();
        on_thread(move || server.store(arguments)).await.map(Json)
    }

    /// A stored result, as long as it has not expired.
    #[tool]
    async fn get_result(
        &self,
        Parameters(GetArguments { result_id }): Parameters<GetArguments>,
    ) -> Result<Json<Found>, String> {
        let gone = || format!("{result_id} has expired, or was never stored");
        let path = self.index.lock().get(&result_id).cloned().ok_or_else(gone)?;
        let read = on_thread(move || match fs::File::open(path) {
            // It has just been deleted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => Ok(Some(serde_json::from_reader(FrameDecoder::new(file?))?)),
        });
        read.await?.map(|result| Json(Found { result })).ok_or_else(gone)
    }

    /// What the cleaner has done since the start, how many results wait, and when the next expires.
    #[tool]
    async fn cleanup_stats(&self) -> CallToolResult {
        CallToolResult::structured(json!(self.cleaner.stats()))
    }
}

#[tool_handler(name = "cached-results", version = "1.0.0")]
impl ServerHandler for Server {}

impl Server {
    /// Publishes both files, the result first: until its metadata is there, it stays.
    fn store(&self, arguments: StoreArguments) -> io::Result<Stored> {
        let StoreArguments { result, result_type, ttl_seconds, query_context } = arguments;
        if !(0.0..=MAX_TTL).contains(&ttl_seconds) {
            return Err(io::Error::other(format!("ttl_seconds must be from 0 to {MAX_TTL}")));
        }
        let original = serde_json::to_vec(&result)?;
        let compressed = compress(&original)?;
        let result_id = Uuid::new_v4().to_string();
        let created_at = Utc::now().timestamp_micros() as f64 / 1e6;
        let expires_at = created_at + ttl_seconds;
        let checksum = Sha256::digest(&compressed);
        let metadata = json!({
            "total_count": result.as_array().map_or(1, Vec::len),
            "data_type": result_type,
            "query_context": query_context,
            "compression_ratio": compressed.len() as f64 / original.len() as f64,
            "result_id": result_id,
            "result_type": result_type,
            "checksum": checksum.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "size_bytes": compressed.len(),
            "original_size_bytes": original.len(),
            "created_at": created_at,
            "expires_at": expires_at,
            "compressed": true,
        });
        let [path, metadata_path] =
            [RESULT, METADATA].map(|suffix| self.session_dir.join(format!("{result_id}{suffix}")));
        // Again each time: empty directories are removed.
        fs::create_dir_all(&self.session_dir)?;
        publish(&path, &compressed)?;
        // It may be deleted as soon as its metadata is there.
        self.index.lock().insert(result_id.clone(), path.clone());
        publish(&metadata_path, &serde_json::to_vec_pretty(&metadata)?).inspect_err(|_| {
            self.index.lock().remove(&result_id);
            let _ = fs::remove_file(&path);
        })?;
        Ok(Stored { result_id, expires_at })
    }
}

/// An LZ4 frame as the result store writes it.
fn compress(content: &[u8]) -> io::Result<Vec<u8>> {
    let info =
        FrameInfo::new().content_size(Some(content.len() as u64)).block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    io::Write::write_all(&mut encoder, content)?;
    Ok(encoder.finish()?)
}

/// Writes a file under its name only when it is whole.
fn publish(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Runs what waits for the disk where it holds up nobody else.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

/// Logs what the cleaner deletes, until it ends.
async fn follow(mut events: Events) {
    while let Some(event) = events.next().await {
        if let Event::Deleted { result, freed_bytes, late } = event {
            let result = result.display();
            tracing::info!("deleted {result}: {freed_bytes} bytes, {late:?} after its time");
        }
    }
}

async fn run(dir: PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let index = Index::default();
    let config = Config::new(dir)
        .without_metrics()
        .with_result_store(index.clone())
        // Each run makes a directory.
        .with_prune_empty_dirs(Duration::from_secs(3600));
    for pair in result_cleaner::list(&config).await? {
        let id = result_id(&pair.result).map(str::to_owned);
        index.lock().extend(id.map(|id| (id, pair.result)));
    }
    let cache_dir = config.expanded_cache_dir()?;
    // Reported of what expires from here on, the index forgets also what was just listed.
    let cleaner = Cleaner::spawn(config).await?;
    let handle = cleaner.handle();
    let log = tokio::spawn(follow(cleaner.subscribe()));
    let server = Server {
        session_dir: cache_dir.join(Uuid::new_v4().to_string()),
        index,
        cleaner: handle.clone(),
    };
    let mut terminated = signal(SignalKind::terminate())?;
    let served = async {
        server.serve(stdio_pipes()).await?.waiting().await?;
        Ok(())
    };
    let ended = tokio::select! {
        ended = served => ended,
        _ = terminated.recv() => Ok(()),
        ended = handle.closed() => return ended.map_err(Into::into),
    };
    cleaner.stop().await?;
    log.await?;
    ended
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Standard output is the protocol's.
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| DEFAULT_CACHE_DIR.into());
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(run(dir.into()));
    // A result that is being stored is published whole; a read of a terminal would never end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}
