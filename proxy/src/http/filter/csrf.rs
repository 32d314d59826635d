//! The CSRF filter: refuses requests that change something and come from pages of other origins.
//!
//! Owns the comparison of origins. Never sets or reads a token.

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::CsrfPolicy;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::manager::reply::LocalReply;
use crate::http::message::RequestHead;
use crate::scope;

scope! {
    /// Stats of the filter (`http.<prefix>.csrf.*`).
    pub struct CsrfStats {
        missing_source_origin: Counter,
        request_invalid: Counter,
        request_valid: Counter,
    }
}

/// The filter.
pub struct Csrf {
    policy: Arc<CsrfPolicy>,
    stats: Arc<CsrfStats>,
}

impl Csrf {
    /// A filter with its stats.
    pub fn new(policy: &Arc<CsrfPolicy>, maker: &Maker<'_>) -> Self {
        Self { policy: Arc::clone(policy), stats: maker.stats("csrf") }
    }
}

impl HttpFilter for Csrf {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if !matches!(exchange.head().method(), b"POST" | b"PUT" | b"DELETE" | b"PATCH") {
            return Verdict::Continue;
        }
        let of_route = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::Csrf(policy) => Some(policy),
            _ => None,
        });
        let policy = of_route.unwrap_or(&self.policy);
        let enforced = exchange.holds(&policy.enabled);
        if !enforced && !policy.shadow_enabled.as_ref().is_some_and(|share| exchange.holds(share)) {
            return Verdict::Continue;
        }
        let head = exchange.head();
        let source = source_origin(head);
        let counter = match source {
            None => &self.stats.missing_source_origin,
            Some(source) if is_allowed(policy, source, head) => {
                self.stats.request_valid.increment();
                return Verdict::Continue;
            }
            Some(_) => &self.stats.request_invalid,
        };
        counter.increment();
        if !enforced {
            return Verdict::Continue;
        }
        Verdict::reply(LocalReply::new(403, "csrf_origin_mismatch").body(&b"Invalid origin"[..]))
    }
}

/// Where the page came from that sent the request: `origin`, else `referer`. An opaque origin is none.
fn source_origin(head: &RequestHead) -> Option<&[u8]> {
    let header = |name| head.headers.get_by_name(name).filter(|value| !value.is_empty());
    let origin = header("origin").or_else(|| header("referer"))?;
    (origin != b"null").then(|| host_and_port(origin))
}

fn is_allowed(policy: &CsrfPolicy, source: &[u8], head: &RequestHead) -> bool {
    source == host_and_port(head.authority()) || policy.additional_origins.iter().any(|origin| origin.matches(source))
}

/// Host and port of a URL as they stand there; what is no URL stays as it is.
fn host_and_port(url: &[u8]) -> &[u8] {
    let Some(start) = url.windows(3).position(|window| window == b"://") else { return url };
    let rest = &url[start + 3..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let authority = &rest[..end];
    let user = authority.iter().rposition(|byte| *byte == b'@').map_or(0, |at| at + 1);
    match &authority[user..] {
        [] => url,
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_by_host_and_port() {
        for (url, expected) in [
            ("http://localhost", "localhost"),
            ("https://localhost:8443/path?query", "localhost:8443"),
            ("http://localhost?query", "localhost"),
            ("http://user@localhost", "localhost"),
            ("http://[::1]:80/", "[::1]:80"),
            ("localhost:80", "localhost:80"),
            ("http://", "http://"),
        ] {
            assert_eq!(host_and_port(url.as_bytes()), expected.as_bytes(), "{url}");
        }
    }

    #[test]
    fn a_referer_counts_where_there_is_no_origin() {
        let source = |headers: &[(&str, &str)]| {
            let mut head = RequestHead::default();
            for (name, value) in headers {
                head.headers.append(name.as_bytes(), value.as_bytes());
            }
            source_origin(&head).map(|source| String::from_utf8(source.to_vec()).unwrap())
        };
        let found = |text: &str| Some(text.to_owned());
        assert_eq!(source(&[("origin", "http://a"), ("referer", "http://b/")]), found("a"));
        assert_eq!(source(&[("origin", ""), ("referer", "http://b/")]), found("b"));
        assert_eq!(source(&[("origin", "null"), ("referer", "http://b/")]), None);
        assert_eq!(source(&[]), None);
    }
}
