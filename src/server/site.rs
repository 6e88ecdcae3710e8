//! Decides how the server answers each request, and which clients it answers.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::timeout;

use super::StatsSource;
use crate::telemetry::stats::Stats;

/// How long an answer may take to be produced.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server waits for the rest of a request before it answers anyway.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of the rest the server reads at most, in bytes.
const MAX_BODY: usize = 64 * 1024;

const PAGE: &str = include_str!("page.html");
/// The page loads nothing, connects only to its own origin, and runs only its own script. The hashes are
/// those of its style and its script. If they have changed, a test reports the new ones.
const PAGE_POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    style-src 'sha256-DPlv+ITM/tfnZ3k40tcsrOayfQ8/fP8lsr5f4vYD7n0='; \
    script-src 'sha256-NGG36IIkpWixvabw72wjbIH6g54KoeJxwn2fQPB/xeU='; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The data that is served, and the host names under which it is served.
pub(super) struct Site {
    source: Arc<dyn StatsSource>,
    /// In lower case, without port and final dot.
    allow_hosts: Vec<String>,
}

impl Site {
    pub(super) fn new(source: Arc<dyn StatsSource>, allow_hosts: &[String]) -> Self {
        let allow_hosts =
            allow_hosts.iter().map(|name| bare_name(name).to_ascii_lowercase()).collect();
        Self { source, allow_hosts }
    }

    /// Returns the answer to `request`, in bounded time.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<String> {
        let mut answer = timeout(ANSWER_TIMEOUT, self.route(request)).await.unwrap_or_else(|_| {
            text(StatusCode::SERVICE_UNAVAILABLE, "the worker does not answer\n")
        });
        let headers = answer.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        answer
    }

    async fn route(&self, request: Request<Incoming>) -> Response<String> {
        let (head, body) = request.into_parts();
        if !head.headers.contains_key(header::EXPECT) {
            let _ = timeout(BODY_TIMEOUT, discard(body)).await;
        }
        if let Some(refusal) = self.check_host(&head) {
            return refusal;
        }
        let path = head.uri.path();
        if !["/", "/stats", "/metrics", "/healthz"].contains(&path) {
            return text(StatusCode::NOT_FOUND, "there is /, /stats, /metrics and /healthz here\n");
        }
        if head.method != Method::GET && head.method != Method::HEAD {
            let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD work here\n");
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match path {
            "/" => page(),
            "/stats" => json(&self.source.stats().await),
            "/metrics" => metrics(self.source.metrics()),
            _ if self.source.alive() => text(StatusCode::OK, "ok\n"),
            _ => text(StatusCode::SERVICE_UNAVAILABLE, "the worker has died\n"),
        }
    }

    /// Returns a refusal if the request does not address this server by a known name.
    fn check_host(&self, head: &Parts) -> Option<Response<String>> {
        let mut hosts = head.headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
        let (authority, host) = (head.uri.authority(), hosts.next());
        // HTTP/1.0 allows requests without Host, but no client sends them any more.
        if (authority.is_none() && host.is_none()) || hosts.next().is_some() {
            return Some(text(StatusCode::BAD_REQUEST, "there must be one Host header\n"));
        }
        let authority = authority.map(|authority| authority.as_str().as_bytes());
        let all_known = [authority, host]
            .into_iter()
            .flatten()
            .all(|host| str::from_utf8(host).is_ok_and(|host| self.knows(host)));
        (!all_known).then(|| {
            text(
                StatusCode::MISDIRECTED_REQUEST,
                "not served under this name: use an address, localhost, or a name given by --allow-host\n",
            )
        })
    }

    fn knows(&self, host: &str) -> bool {
        let name = bare_name(host);
        match name.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()),
            None => {
                let name = name.to_ascii_lowercase();
                name.parse::<Ipv4Addr>().is_ok()
                    || name == "localhost"
                    || self.allow_hosts.contains(&name)
            }
        }
    }
}

/// Returns `host` without its port and the final dot of a fully qualified name.
fn bare_name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// Reads and drops the body of a request. If it were left unread, closing the connection could destroy
/// the answer on its way.
async fn discard(body: Incoming) {
    let mut body = pin!(body);
    let mut taken = 0;
    while taken < MAX_BODY
        && let Some(Ok(frame)) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await
    {
        taken += frame.data_ref().map_or(0, |data| data.len());
    }
}

fn text(status: StatusCode, body: &str) -> Response<String> {
    response(status, "text/plain; charset=utf-8", body.to_owned())
}

/// Returns the page for people, which gets its data from `/stats`.
fn page() -> Response<String> {
    let mut page = response(StatusCode::OK, "text/html; charset=utf-8", PAGE.to_owned());
    let headers = page.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    page
}

fn metrics(figures: Result<String, String>) -> Response<String> {
    match figures {
        Ok(figures) => {
            response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", figures)
        }
        Err(error) => {
            tracing::error!("can't render the Prometheus metrics: {error}");
            text(StatusCode::INTERNAL_SERVER_ERROR, "can't render the metrics\n")
        }
    }
}

fn json(stats: &Stats) -> Response<String> {
    match serde_json::to_string(stats) {
        Ok(body) => response(StatusCode::OK, "application/json", body),
        Err(error) => {
            tracing::error!("can't serialize the stats: {error}");
            text(StatusCode::INTERNAL_SERVER_ERROR, "can't serialize the stats\n")
        }
    }
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine};
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_policy_has_the_hashes_of_the_page() {
        for tag in ["style", "script"] {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            assert_eq!(
                PAGE.matches(&format!("\n{open}\n")).count(),
                1,
                "one {tag}, and nothing else"
            );
            let (_, rest) = PAGE.split_once(&format!("\n{open}")).unwrap();
            let (content, _) = rest.split_once(&close).unwrap();
            let hash = BASE64_STANDARD.encode(Sha256::digest(content));
            let source = format!("{tag}-src 'sha256-{hash}';");
            assert!(PAGE_POLICY.contains(&source), "PAGE_POLICY has to have: {source}");
        }
    }

    #[test]
    fn the_page_names_no_other_place() {
        for other in ["://", "src=", "url(", "@import"] {
            assert!(!PAGE.contains(other), "{other}");
        }
    }

    struct Nobody;

    impl StatsSource for Nobody {
        fn stats(&self) -> std::pin::Pin<Box<dyn Future<Output = Stats> + Send + '_>> {
            Box::pin(std::future::pending())
        }

        fn metrics(&self) -> Result<String, String> {
            Err("nobody knows".to_owned())
        }

        fn alive(&self) -> bool {
            true
        }
    }

    #[test]
    #[rustfmt::skip] // one a line says no more
    fn only_addresses_and_known_names_are_served() {
        let names = ["Box.lan.".to_owned(), "other:8004".to_owned()];
        let site = Site::new(Arc::new(Nobody), &names);
        for known in [
            "localhost", "LocalHost", "localhost.", "localhost:8004", "localhost.:8004", "localhost:",
            "127.0.0.1", "127.0.0.1:8004", "192.168.1.2:1", "[::1]", "[::1]:8004", "[fe80::1]",
            "box.lan", "BOX.LAN:80", "other", "other:9",
        ] {
            assert!(site.knows(known), "{known}");
        }
        for unknown in [
            "", ":", ".", ":8004", "evil.example", "localhost.evil.example", "localhost:x", "localhost..",
            "localhost@evil.example", "127.0.0.1.evil.example", "[::1", "::1]", "[localhost]", "[]",
            "[127.0.0.1]", "[::1]x", "evil.example:127.0.0.1", "lan", "box", " localhost", "box.lan,evil",
        ] {
            assert!(!site.knows(unknown), "{unknown}");
        }
    }
}
