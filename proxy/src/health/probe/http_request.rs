//! The requests of checks.
//!
//! Owns what they are made of. Never sends one.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use outrigger_config::cluster::{ProbeHeader, UpstreamTransport};

use super::Target;

/// What a request for a check is made of.
pub(super) struct RequestParts<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a str,
    pub headers: &'a [ProbeHeader],
    /// Names of headers that are left out unless they are among `headers`: removal comes before additions.
    pub removed: &'a [Arc<str>],
    pub secure: bool,
    pub body: Bytes,
}

impl RequestParts<'_> {
    /// Whether a header is left out.
    pub(super) fn removes(&self, name: &str) -> bool {
        self.removed.iter().any(|removed| **removed == *name)
            && !self.headers.iter().any(|header| *header.name == *name)
    }

    /// For HTTP/2.
    pub(super) fn http2(&self) -> Result<Request<Full<Bytes>>, http::Error> {
        let scheme = if self.secure { "https" } else { "http" };
        let mut builder = Request::builder()
            .version(http::Version::HTTP_2)
            .method(self.method)
            .uri(format!("{scheme}://{}{}", self.host, self.path));
        if !self.removes("user-agent") {
            builder = builder.header(http::header::USER_AGENT, USER_AGENT);
        }
        for ProbeHeader { name, value } in self.headers {
            builder = builder.header(&**name, &**value);
        }
        builder.body(Full::new(self.body.clone()))
    }
}

/// The name that the requests of an endpoint's checks go to.
pub(super) fn host_name<'a>(target: &'a Target, configured: &'a str) -> &'a str {
    let own = target.host.health_check.as_deref().and_then(|check| check.hostname.as_deref());
    own.unwrap_or(if configured.is_empty() { &target.node.config.name } else { configured })
}

/// Whether requests go over TLS.
pub(super) fn is_secure(target: &Target) -> bool {
    target.node.config.transports().nth(target.host.transport).and_then(UpstreamTransport::tls).is_some()
}

/// What upstreams know checks by.
pub(in crate::health) const USER_AGENT: &str = "Envoy/HC";
