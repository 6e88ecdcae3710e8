//! A client for HTTP services. With the feature `report`, this is the only module that names reqwest.

use std::error::Error as _;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::sync::oneshot;

use crate::config::redacted;
use crate::error::Error;
use crate::sys::runtime;
use crate::telemetry::stats::Stats;

/// How long a running cleaner may take to return its stats.
const STATS_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of the stats of a running cleaner, in bytes: some hundred times the usual size.
const MAX_STATS: usize = 4 << 20;

/// Fetches the stats of a cleaner that serves them at the base address `url` (`run --listen`).
///
/// # Errors
/// [`Error::NoAnswer`] if no cleaner answers there, [`Error::Address`] if `url` is not a valid address,
/// [`Error::NoRuntime`] and [`Error::NoDriver`] if there is no suitable runtime.
pub async fn fetch_stats(url: &str) -> Result<Stats, Error> {
    runtime::require_sockets()?;
    let no_answer = |url: String, reason| Error::NoAnswer { url, reason };
    let service = Service::new(url, STATS_TIMEOUT)
        .map_err(|reason| Error::Address { url: redacted(url), reason })?;
    let answer = service.send(|client| client.get(service.endpoint("/stats"))).await;
    let answer = answer.map_err(|reason| no_answer(service.address.clone(), reason))?;
    let body = read_at_most(answer, MAX_STATS).await;
    let body = body.map_err(|reason| no_answer(service.address.clone(), reason))?;
    serde_json::from_slice(&body).map_err(|error| {
        // The error may quote any part of the answer.
        let reason = error.to_string().escape_debug().to_string();
        no_answer(service.address, format!("not what a cleaner answers: {reason}"))
    })
}

async fn read_at_most(mut answer: Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| cause(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(format!("not what a cleaner answers: more than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The answers of a service that does not have the endpoint. Another attempt soon would get the same.
const NO_ENDPOINT: [StatusCode; 4] = [
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::GONE,
    StatusCode::NOT_IMPLEMENTED,
];

/// A service at a base address.
pub(crate) struct Service {
    client: Client,
    base: Url,
    /// The address that may be shown: without user name and password.
    pub address: String,
}

impl Service {
    /// Creates a client for the service at the base address `given`. Each request may take `timeout`.
    ///
    /// # Errors
    /// What is wrong with the address, and what to do.
    pub(crate) fn new(given: &str, timeout: Duration) -> Result<Self, String> {
        let base = parse(given)?;

        let loopback = is_loopback(&base);
        let mut roots = rustls::RootCertStore::empty();
        // A proxy may require TLS even if the service does not.
        if base.scheme() == "https" || !loopback {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if base.scheme() == "https" && roots.is_empty() {
            return Err(
                "needs CA certificates to know the service by, and this machine has none: install \
                 the package ca-certificates, or name a file of certificates in SSL_CERT_FILE"
                    .to_owned(),
            );
        }
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls(roots).map_err(|error| error.to_string())?)
            .user_agent(concat!("result-cleaner/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .timeout(timeout)
            .connect_timeout(timeout)
            // Requests are rare, so a kept connection would mostly be found dead.
            .pool_max_idle_per_host(0);
        if loopback {
            // An external proxy can't reach this machine's own services.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            format!("can't be used: the HTTP client fails to start: {}", cause(&error))
        })?;

        let address = redacted(base.as_str().trim_end_matches('/'));
        Ok(Self { client, base, address })
    }

    /// Returns the address of `path` below the base address.
    pub(crate) fn endpoint(&self, path: &str) -> Url {
        let mut endpoint = self.base.clone();
        endpoint.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        endpoint
    }

    /// Sends a request. Returns the answer if it is a success, else the reason. Does not read the body.
    pub(crate) async fn send(
        &self,
        request: impl FnOnce(&Client) -> RequestBuilder,
    ) -> Result<Response, String> {
        answer(request(&self.client)).await.map_err(|failure| failure.reason)
    }

    /// Checks that something answers there. Returns the status of a server error, except for that of a server that
    /// only takes reports.
    ///
    /// # Errors
    /// The reason if nothing answers.
    pub(crate) async fn probe(&self) -> Result<Option<StatusCode>, String> {
        let answer = self.client.get(self.base.clone()).send().await;
        let status = answer.map_err(|error| in_words(&error))?.status();
        let is_error = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
        Ok(is_error.then_some(status))
    }

    /// Sends a request of whose answer only the status matters. Dropping the future cancels the request.
    ///
    /// The request has a thread and a runtime of its own. hyper reads what precedes an answer without a
    /// pause, for as long as it arrives. In this runtime, that would block all other tasks.
    pub(crate) async fn deliver(
        &self,
        request: impl FnOnce(&Client) -> RequestBuilder,
    ) -> Result<(), RequestFailure> {
        let request = request(&self.client);
        let (mut sender, result) = oneshot::channel();
        let exchange = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let outcome = runtime.map_err(|error| error.to_string().into()).and_then(|runtime| {
                let outcome = runtime.block_on(async {
                    tokio::select! {
                        outcome = answer(request) => outcome.map(drop),
                        () = sender.closed() => Err("nobody waits for it".to_owned().into()),
                    }
                });
                // A name lookup may hang.
                runtime.shutdown_background();
                outcome
            });
            let _ = sender.send(outcome);
        };
        thread::Builder::new().spawn(exchange).map_err(|error| error.to_string())?;
        result.await.unwrap_or_else(|_| Err("the request failed".to_owned().into()))
    }
}

/// Why a request did not succeed.
#[derive(Debug, PartialEq)]
pub(crate) struct RequestFailure {
    /// The reason, in one line.
    pub reason: String,
    /// The status of the answer, if there was one.
    status: Option<StatusCode>,
}

impl RequestFailure {
    /// Whether the service has answered that it has no such endpoint.
    pub(crate) fn is_no_endpoint(&self) -> bool {
        self.status.is_some_and(|status| NO_ENDPOINT.contains(&status))
    }
}

impl From<String> for RequestFailure {
    /// A failure without an answer.
    fn from(reason: String) -> Self {
        Self { reason, status: None }
    }
}

async fn answer(request: RequestBuilder) -> Result<Response, RequestFailure> {
    let answer = request.send().await.map_err(|error| in_words(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let hint = if status.is_redirection() { ", and redirects are not followed" } else { "" };
    Err(RequestFailure { reason: format!("HTTP {status}{hint}"), status: Some(status) })
}

/// Returns the reason why there is no answer.
fn in_words(error: &reqwest::Error) -> String {
    if error.is_timeout() { "timed out".to_owned() } else { cause(error) }
}

/// Creates the TLS configuration of this client alone. Nothing is installed for the whole process, and a
/// provider that the application has installed is used.
fn tls(roots: rustls::RootCertStore) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = rustls::crypto::CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Parses the base address; the error says what is wrong with it.
fn parse(given: &str) -> Result<Url, String> {
    const FORM: &str = "give one like http://localhost:PORT";
    if given.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("has spaces or control characters in it: {FORM}"));
    }
    let lower = given.to_ascii_lowercase();
    // The parser alone would accept `http:host`, and find a host in `http:///path`.
    let Some(rest) = lower.strip_prefix("http://").or_else(|| lower.strip_prefix("https://"))
    else {
        return Err(format!("does not begin with http:// or https://: {FORM}"));
    };
    if rest.starts_with(['/', '\\']) {
        return Err(format!("names no host: {FORM}"));
    }
    let url = Url::parse(given).map_err(|error| format!("can't be read ({error}): {FORM}"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("is a base address, so leave out what begins with ? or #".to_owned());
    }
    Ok(url)
}

/// Whether `url` refers to this machine by a loopback name or address, or by the unspecified address.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    if let Ok(ip) = host.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        return ip.is_loopback() || ip.is_unspecified();
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    name == "localhost" || name.ends_with(".localhost")
}

/// Returns the innermost cause of `error`; the outer ones only say that something failed.
fn cause(error: &reqwest::Error) -> String {
    let mut source = error.source();
    let mut innermost = None;
    while let Some(error) = source {
        innermost = Some(error);
        source = error.source();
    }
    let Some(innermost) = innermost else {
        return "the request failed".to_owned();
    };
    match innermost.downcast_ref::<io::Error>() {
        Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => error.kind().to_string(),
        _ => innermost.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_request_could_go_to_are_refused_without_their_secrets() {
        for (given, shown, reason) in [
            ("", "", "does not begin with http://"),
            ("localhost:8003", "localhost:8003", "does not begin with http://"),
            ("ftp://u:secret@x", "ftp://***@x", "does not begin with http://"),
            ("u:secret@x:8003", "***@x:8003", "does not begin with http://"),
            ("http:x", "http:x", "does not begin with http://"),
            ("http://", "http://", "can't be read"),
            ("http:///track", "http:///track", "names no host"),
            ("http://u:sec/ret@x", "http://***@x", "can't be read"),
            ("https://u:s#ec@ret@x:99999", "https://***@x:99999", "can't be read"),
            ("http://x/?token=secret", "http://x/?***", "leave out"),
            ("http://x/#top", "http://x/#top", "leave out"),
        ] {
            let Err(why) = Service::new(given, Duration::MAX) else { panic!("{given} is taken") };
            assert_eq!(redacted(given), shown);
            assert!(why.contains(reason) && !why.contains('\n'), "{given}: {why}");
        }
    }

    #[test]
    fn requests_go_below_the_base_address() {
        for (given, endpoint, shown) in [
            (
                "http://localhost:8003",
                "http://localhost:8003/track/cleanup",
                "http://localhost:8003",
            ),
            ("HTTP://LocalHost:80//", "http://localhost/track/cleanup", "http://localhost"),
            ("http://[::1]:1/a%20b/", "http://[::1]:1/a%20b/track/cleanup", "http://[::1]:1/a%20b"),
            ("http://u:p@x/y", "http://u:p@x/y/track/cleanup", "http://***@x/y"),
        ] {
            let service = Service::new(given, Duration::from_secs(5)).unwrap();
            assert_eq!(service.endpoint("/track/cleanup").as_str(), endpoint);
            assert_eq!(service.address, shown);
        }
    }

    #[test]
    fn this_machine_is_known_by_all_its_own_names() {
        for (url, own) in [
            ("http://localhost", true),
            ("http://a.LOCALHOST.:1", true),
            ("http://127.9.9.9", true),
            ("http://[::1]", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://0.0.0.0", true),
            ("http://localhost.example.com", false),
            ("http://notlocalhost", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&parse(url).unwrap()), own, "{url}");
        }
    }

    /// Runs `body` with `variables` set, in a process of its own that runs only `test`.
    fn with_variables(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
        if variables.iter().all(|(name, value)| std::env::var(name).is_ok_and(|v| v == *value)) {
            return body();
        }
        let (_, module) = module_path!().split_once("::").unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::{test}")])
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let output_text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && output_text.contains("1 passed"), "{output_text}");
    }

    #[test]
    fn without_certificates_only_https_is_refused() {
        let variables = [("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "/nonexistent")];
        with_variables("without_certificates_only_https_is_refused", &variables, || {
            for plain in ["http://localhost:8003", "http://metrics.example"] {
                assert!(Service::new(plain, Duration::from_secs(5)).is_ok());
            }
            let error = Service::new("https://localhost", Duration::from_secs(5)).err().unwrap();
            assert!(error.to_string().contains("ca-certificates"), "{error}");
        });
    }

    #[test]
    fn a_proxy_is_not_asked_for_this_machine() {
        // No host answers at an address that is reserved for documentation.
        let variables = [("http_proxy", "http://192.0.2.1:1"), ("no_proxy", "")];
        with_variables("a_proxy_is_not_asked_for_this_machine", &variables, || {
            let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", closed.local_addr().unwrap());
            drop(closed);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let refused = runtime.block_on(async {
                let service = Service::new(&url, Duration::from_secs(30)).unwrap();
                service.send(|client| client.get(service.endpoint("/"))).await.map(drop)
            });
            assert_eq!(refused, Err("connection refused".to_owned()));
        });
    }
}
