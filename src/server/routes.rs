//! The routes of the server, and how it answers each request.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::timeout;

use super::StatsSource;
use super::host::{HostRefused, KnownHosts};
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
    style-src 'sha256-lWj5v+8k6HIdF6GzFm/JPKBFK5P92rV2l7PdEsn5V6Q='; \
    script-src 'sha256-2av7sVmRVH2joyY2C+nFVrb0Fr1TK17fZC2c6ntgMe8='; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The data that is served, and the host names under which it is served.
pub(super) struct Routes {
    source: Arc<dyn StatsSource>,
    hosts: KnownHosts,
}

impl Routes {
    pub(super) fn new(source: Arc<dyn StatsSource>, allow_hosts: &[String]) -> Self {
        Self { source, hosts: KnownHosts::new(allow_hosts) }
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
        if let Err(HostRefused { status, reason }) = self.hosts.check(&head) {
            return text(status, reason);
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
}

/// Reads and drops the body of a request. If it were left unread, closing the connection could destroy
/// the answer on its way.
async fn discard(body: Incoming) {
    let mut body = pin!(body);
    let mut bytes_read = 0;
    while bytes_read < MAX_BODY
        && let Some(Ok(frame)) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await
    {
        bytes_read += frame.data_ref().map_or(0, |data| data.len());
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
}
