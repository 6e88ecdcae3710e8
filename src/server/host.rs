//! The check of the Host header: which names a request may address this server by. It keeps web pages
//! of other sites from reading the statistics by a name that they control (DNS rebinding).

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;

/// The host names under which the server answers, beside addresses and `localhost`.
pub(super) struct KnownHosts {
    /// In lower case, without port and final dot.
    allowed: Vec<String>,
}

/// The answer to a request that does not address this server by a known name.
pub(super) struct HostRefused {
    pub(super) status: StatusCode,
    pub(super) reason: &'static str,
}

impl KnownHosts {
    pub(super) fn new(allowed: &[String]) -> Self {
        let allowed = allowed.iter().map(|name| bare_name(name).to_ascii_lowercase()).collect();
        Self { allowed }
    }

    /// Checks that the request addresses this server by known names only.
    pub(super) fn check(&self, head: &Parts) -> Result<(), HostRefused> {
        let mut hosts = head.headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
        let (authority, host) = (head.uri.authority(), hosts.next());
        // HTTP/1.0 allows requests without Host, but no client sends them any more.
        if (authority.is_none() && host.is_none()) || hosts.next().is_some() {
            return Err(HostRefused {
                status: StatusCode::BAD_REQUEST,
                reason: "there must be one Host header\n",
            });
        }
        let authority = authority.map(|authority| authority.as_str().as_bytes());
        let all_known = [authority, host]
            .into_iter()
            .flatten()
            .all(|host| str::from_utf8(host).is_ok_and(|host| self.contain(host)));
        if all_known {
            return Ok(());
        }
        Err(HostRefused {
            status: StatusCode::MISDIRECTED_REQUEST,
            reason: "not served under this name: use an address, localhost, or a name given by --allow-host\n",
        })
    }

    fn contain(&self, host: &str) -> bool {
        let name = bare_name(host);
        match name.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()),
            None => {
                let name = name.to_ascii_lowercase();
                name.parse::<Ipv4Addr>().is_ok()
                    || name == "localhost"
                    || self.allowed.contains(&name)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip] // one a line says no more
    fn only_addresses_and_known_names_are_served() {
        let names = ["Box.lan.".to_owned(), "other:8004".to_owned()];
        let hosts = KnownHosts::new(&names);
        for known in [
            "localhost", "LocalHost", "localhost.", "localhost:8004", "localhost.:8004", "localhost:",
            "127.0.0.1", "127.0.0.1:8004", "192.168.1.2:1", "[::1]", "[::1]:8004", "[fe80::1]",
            "box.lan", "BOX.LAN:80", "other", "other:9",
        ] {
            assert!(hosts.contain(known), "{known}");
        }
        for unknown in [
            "", ":", ".", ":8004", "evil.example", "localhost.evil.example", "localhost:x", "localhost..",
            "localhost@evil.example", "127.0.0.1.evil.example", "[::1", "::1]", "[localhost]", "[]",
            "[127.0.0.1]", "[::1]x", "evil.example:127.0.0.1", "lan", "box", " localhost", "box.lan,evil",
        ] {
            assert!(!hosts.contain(unknown), "{unknown}");
        }
    }
}
