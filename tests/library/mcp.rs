//! The example `mcp_server`, driven over standard input and output by a client of the protocol.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::common::{CacheDir, PATIENCE, Pair, has_strace, keys, now};
use lz4_flex::frame::FrameDecoder;
use rmcp::model::{CallToolRequestParams, CallToolResult};
use rmcp::service::RunningService;
use rmcp::transport::TokioChildProcess;
use rmcp::{RoleClient, ServiceExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// The example, which `cargo test` builds along with the tests; `cargo test --test library` does not.
fn server(cache: &CacheDir) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples/mcp_server");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mcp_server.rs");
    let changed = |path: &Path| fs::metadata(path).and_then(|seen| seen.modified()).ok();
    assert!(changed(&program) >= changed(&source), "first: cargo build --example mcp_server");
    let mut command = Command::new(program);
    command.arg(cache.path()).kill_on_drop(true);
    command
}

type Client = RunningService<RoleClient, ()>;

async fn connect(cache: &CacheDir) -> Client {
    connect_by(server(cache)).await
}

async fn connect_by(command: Command) -> Client {
    let builder = TokioChildProcess::builder(command).stderr(Stdio::null());
    let (transport, _) = builder.spawn().unwrap();
    timeout(PATIENCE, ().serve(transport)).await.expect("the server answers").unwrap()
}

async fn call(client: &Client, tool: &'static str, arguments: Value) -> CallToolResult {
    let arguments = arguments.as_object().unwrap().clone();
    let request = CallToolRequestParams::new(tool).with_arguments(arguments);
    timeout(PATIENCE, client.call_tool(request)).await.expect("the server answers").unwrap()
}

/// What a call that has to succeed returns.
#[track_caller]
fn content(result: CallToolResult) -> Value {
    assert_ne!(result.is_error, Some(true), "{result:?}");
    result.structured_content.expect("structured content")
}

/// What a call that has to fail says.
#[track_caller]
fn refusal(result: &CallToolResult) -> String {
    assert_eq!(result.is_error, Some(true), "{result:?}");
    result.content[0].as_text().expect("a text").text.clone()
}

/// Stores a result; its id and its files.
async fn store(client: &Client, cache: &CacheDir, result: &Value, ttl: f64) -> (String, Pair) {
    let arguments = json!({
        "result": result,
        "result_type": "search",
        "ttl_seconds": ttl,
        "query_context": {"query": "späte Ergebnisse"},
    });
    let stored = content(call(client, "store_result", arguments).await);
    let id = stored["result_id"].as_str().unwrap().to_owned();
    let name = format!("{id}.result.json.lz4");
    // Where it is gone already, any name that is not there does.
    let found = cache.files().into_iter().find(|file| file.ends_with(&name)).unwrap_or(name);
    let stem = found.strip_suffix(".result.json.lz4").unwrap();
    (id, Pair::at(cache.path(), stem))
}

/// Waits until `condition` holds, and leaves the thread to the client meanwhile.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn decompressed(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    io::copy(&mut FrameDecoder::new(File::open(path)?), &mut content)?;
    Ok(content)
}

fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files of the cache directory under names that nothing may be left under.
fn leftovers(cache: &CacheDir) -> Vec<String> {
    let odd = |name: &String| name.contains(".result-cleaner-") || name.ends_with(".tmp");
    cache.files().into_iter().filter(odd).collect()
}

#[tokio::test]
async fn a_result_is_stored_found_and_gone_when_it_expires() {
    let cache = CacheDir::new();
    let client = connect(&cache).await;
    let info = client.peer_info().unwrap();
    assert_eq!(info.server_info.as_ref().unwrap().name, "cached-results");
    assert!(info.capabilities.tools.is_some());
    let tools = client.list_all_tools().await.unwrap();
    let mut names: Vec<&str> = tools.iter().map(|tool| tool.name.as_ref()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cleanup_stats", "get_result", "store_result"]);
    assert!(tools.iter().all(|tool| tool.description.as_ref().is_some_and(|it| !it.is_empty())));

    let kept = json!([{"path": "src/mod_0.rs", "line": 649}, null, 1.5, "✓"]);
    let (long, long_pair) = store(&client, &cache, &kept, 3600.0).await;
    let brief = json!({"a": "short life"});
    // Long enough to be seen on this machine, and short enough to be waited for.
    let (mut stored, mut seconds) = (0, 1.0);
    let (short, short_pair, saved) = loop {
        let before = now();
        let (short, pair) = store(&client, &cache, &brief, seconds).await;
        stored += 1;
        let (is_whole, saved) = (pair.is_whole(), fs::read(&pair.result));
        let found = call(&client, "get_result", json!({"result_id": short})).await;
        if now() < before + seconds {
            assert!(is_whole, "{:?}", cache.files());
            assert_eq!(content(found), json!({"result": brief}));
            break (short, pair, saved.unwrap());
        }
        seconds *= 2.0;
    };

    until("the files are gone", async || short_pair.is_gone()).await;
    let gone = call(&client, "get_result", json!({"result_id": short})).await;
    assert!(refusal(&gone).contains("has expired"), "{gone:?}");
    let mut stats = Value::Null;
    until("the deletion is counted", async || {
        stats = content(call(&client, "cleanup_stats", json!({})).await);
        stats["total_deleted"] == stored
    })
    .await;
    let counted = ["running", "total_deleted", "total_errors", "heap_size", "watch"];
    assert_eq!(
        counted.map(|key| &stats[key]),
        [&json!(true), &json!(stored), &json!(0), &json!(1), &json!("active")]
    );
    // The index has dropped it, so that it is not found by its file either.
    fs::write(&short_pair.result, saved).unwrap();
    let gone = call(&client, "get_result", json!({"result_id": short})).await;
    assert!(refusal(&gone).contains("has expired"), "{gone:?}");
    fs::remove_file(&short_pair.result).unwrap();

    assert!(long_pair.is_whole());
    let found = content(call(&client, "get_result", json!({"result_id": long})).await);
    assert_eq!(found, json!({"result": kept}));
    client.cancel().await.unwrap();
    assert_eq!(cache.files().len(), 2, "{:?}", cache.files());
    assert_eq!(leftovers(&cache), [""; 0]);
}

#[tokio::test]
async fn files_are_those_of_the_result_store() {
    let cache = CacheDir::samples();
    let sample = cache.path().join("session_0/228d96a0-c31a-405e-8cfd-0074e290eafc");
    let sample = Pair::at(sample.parent().unwrap(), sample.file_name().unwrap().to_str().unwrap());
    let model: Value = serde_json::from_slice(&fs::read(&sample.metadata).unwrap()).unwrap();
    let result: Value = serde_json::from_slice(&decompressed(&sample.result).unwrap()).unwrap();

    let client = connect(&cache).await;
    // What lies there from before is found, and is what it was.
    let found = call(&client, "get_result", json!({"result_id": model["result_id"].clone()})).await;
    assert_eq!(content(found)["result"], result);

    let before = now();
    let (id, pair) = store(&client, &cache, &result, 3600.0).await;
    let text = fs::read_to_string(&pair.metadata).unwrap();
    let metadata: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(keys(&metadata), keys(&model));
    for key in ["total_count", "data_type", "result_type", "compressed"] {
        assert_eq!(metadata[key], model[key], "{key}");
    }
    assert_eq!(metadata["result_id"], *id);
    assert!(text.contains("\n  \"result_type\": \"search\",\n"), "not pretty: {text}");
    let expires_at = metadata["expires_at"].as_f64().unwrap();
    assert!((before + 3600.0..=now() + 3600.0).contains(&expires_at), "{expires_at}");
    let compressed = fs::read(&pair.result).unwrap();
    assert_eq!(metadata["size_bytes"], compressed.len());
    assert_eq!(metadata["checksum"], sha256(&pair.result));
    let content = decompressed(&pair.result).unwrap();
    assert_eq!(metadata["original_size_bytes"], content.len());
    assert_eq!(serde_json::from_slice::<Value>(&content).unwrap(), result);
    // Version and flags, and the size of blocks, of an LZ4 frame.
    assert_eq!(compressed[..6], fs::read(&sample.result).unwrap()[..6]);

    let relative = pair.result.strip_prefix(cache.path()).unwrap();
    assert_eq!(relative.components().count(), 2, "not in a session's directory: {relative:?}");
    assert_eq!(id.len(), model["result_id"].as_str().unwrap().len());
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn both_files_get_their_names_by_a_rename_the_result_first() {
    if !has_strace() {
        return;
    }
    let cache = CacheDir::new();
    let log = cache.outside("strace");
    let server = server(&cache);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-s", "4096", "-e", "trace=/^rename", "-o"]).arg(&log);
    traced.arg(server.as_std().get_program()).args(server.as_std().get_args());
    let client = connect_by(traced).await;
    let (id, pair) = store(&client, &cache, &json!("✓"), 3600.0).await;
    client.cancel().await.unwrap();
    let log = fs::read_to_string(log).unwrap();
    let renames: Vec<&str> = log.lines().filter(|line| line.contains(&id)).collect();
    assert_eq!(renames.len(), 2, "{log}");
    for (rename, path) in renames.iter().zip([&pair.result, &pair.metadata]) {
        let path = path.to_str().unwrap();
        assert!(rename.contains(&format!("\"{path}.tmp\", ")), "{rename}");
        assert!(rename.contains(&format!("\"{path}\") = 0")), "{rename}");
    }
}

#[test]
fn the_samples_are_read_and_their_checksum_is_that_of_the_file() {
    // Of a copy without a cleaner.
    let cache = CacheDir::samples();
    let mut seen = 0;
    for name in cache.files().into_iter().filter(|name| name.ends_with(".metadata.json")) {
        let pair = Pair::at(cache.path(), name.strip_suffix(".metadata.json").unwrap());
        let metadata: Value = serde_json::from_slice(&fs::read(&pair.metadata).unwrap()).unwrap();
        assert_eq!(metadata["checksum"], sha256(&pair.result), "{name}");
        assert_eq!(metadata["original_size_bytes"], decompressed(&pair.result).unwrap().len());
        seen += 1;
    }
    assert_eq!(seen, 24);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let cache = CacheDir::new();
    let client = connect(&cache).await;
    for ttl in [-1.0, 1e12] {
        let arguments = json!({"result": 1, "result_type": "x", "ttl_seconds": ttl});
        let refused = call(&client, "store_result", arguments).await;
        assert!(refusal(&refused).contains("ttl_seconds"), "{refused:?}");
    }
    let unknown = call(&client, "get_result", json!({"result_id": "../../etc/passwd"})).await;
    assert!(refusal(&unknown).contains("never stored"), "{unknown:?}");
    assert_eq!(cache.files(), [""; 0]);
    client.cancel().await.unwrap();
}

/// Starts the server with all of its streams at hand.
fn start(cache: &CacheDir) -> Child {
    let mut command = server(cache);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Says `messages` to the server and reads as many lines as `answers`.
async fn converse(server: &mut Child, messages: &[Value], answers: usize) -> Vec<Value> {
    let input = server.stdin.as_mut().unwrap();
    for message in messages {
        input.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }
    let output = server.stdout.as_mut().unwrap();
    let mut said = String::new();
    while said.lines().count() < answers || !said.ends_with('\n') {
        let mut piece = [0; 4096];
        let length = timeout(PATIENCE, output.read(&mut piece)).await.expect("it answers").unwrap();
        assert_ne!(length, 0, "it has ended after {said}");
        said.push_str(std::str::from_utf8(&piece[..length]).unwrap());
    }
    said.lines().map(|line| serde_json::from_str(line).expect("only the protocol")).collect()
}

fn terminate(server: &Child) {
    let pid = Pid::from_raw(server.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

/// Its exit status, what it yet wrote to standard output, and its log.
async fn end(mut server: Child) -> (ExitStatus, String, String) {
    // To wait for it would close its input.
    let _open = server.stdin.take();
    let status = timeout(PATIENCE, server.wait()).await.expect("it ends in time").unwrap();
    let (mut output, mut log) = (String::new(), String::new());
    server.stdout.take().unwrap().read_to_string(&mut output).await.unwrap();
    server.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    (status, output, log)
}

/// How a client begins.
fn greeting() -> [Value; 2] {
    let info = json!({"name": "test", "version": "1"});
    [
        json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info,
        }}),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
    ]
}

#[tokio::test]
async fn it_ends_well_by_either_way_and_writes_nothing_but_the_protocol() {
    for by_signal in [false, true] {
        let cache = CacheDir::samples();
        let mut server = start(&cache);
        let store = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": "store_result",
            "arguments": {"result": [1], "result_type": "x", "ttl_seconds": if by_signal { 3600.0 } else { 0.5 }},
        }});
        let [hello, ready] = greeting();
        let answers = converse(&mut server, &[hello, ready, store], 2).await;
        assert_eq!(answers[0]["result"]["protocolVersion"], "2025-06-18");
        assert_eq!(answers[1]["result"]["isError"], false, "{answers:?}");
        let left = if by_signal { 26 } else { 24 };
        until("what expires is gone", async || cache.files().len() == left).await;
        if by_signal {
            terminate(&server);
        } else {
            drop(server.stdin.take());
        }
        let (status, output, log) = end(server).await;
        assert!(status.success(), "{status}: {log}");
        assert_eq!(output, "");
        if !by_signal {
            let stored = answers[1]["result"]["structuredContent"]["result_id"].as_str().unwrap();
            let line = log.lines().find(|line| line.contains(stored)).expect(&log);
            assert!(line.contains(" after its time"), "{line}");
        }
        assert_eq!(cache.files().len(), left);
        assert_eq!(leftovers(&cache), [""; 0]);
    }
}

#[tokio::test]
async fn it_ends_by_a_signal_also_before_a_client_has_said_anything() {
    let cache = CacheDir::samples();
    let server = start(&cache);
    until("what had expired is gone", async || cache.files().len() == 24).await;
    terminate(&server);
    let (status, output, log) = end(server).await;
    assert!(status.success() && output.is_empty(), "{status}: {output}: {log}");
}
