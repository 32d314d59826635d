//! The dynamic forward proxy filter: resolves the host that a request is for before the request goes on.
//!
//! Owns the choice of the host and the answers when there is no address. Never resolves names (see
//! `upstream::dns_cache`).

use std::borrow::Cow;
use std::sync::Arc;

use outrigger_config::cluster::Discovery;
use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{DynamicForward as Settings, DynamicHost};

use super::{Exchange, HttpFilter, Verdict};
use crate::http::manager::reply::LocalReply;
use crate::stream::ResponseFlag;
use crate::upstream::dns_cache::{DYNAMIC_HOST, DYNAMIC_PORT, Lookup, NoAddress, host_and_port};

/// The filter.
pub struct DynamicForward {
    settings: Arc<Settings>,
}

impl DynamicForward {
    /// A filter.
    pub fn new(settings: &Arc<Settings>) -> Self {
        Self { settings: Arc::clone(settings) }
    }
}

impl HttpFilter for DynamicForward {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(node) = exchange.cluster().cloned() else { return Verdict::Continue };
        let Discovery::DynamicForward(_) = &node.config.discovery else { return Verdict::Continue };
        let rewrite = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::DynamicForward(host) => Some(host.as_deref()),
            _ => None,
        });
        let host = match rewrite.flatten() {
            Some(DynamicHost::Literal(host)) => Some(Cow::Borrowed(host.as_bytes())),
            Some(DynamicHost::Header(name)) => exchange.head().lookup(name),
            None => None,
        };
        if let Some(host) = host.map(Cow::into_owned) {
            exchange.head_mut().set_authority(&host);
        }
        let default_port = if node.tls.get(0).is_some() { 443 } else { 80 };
        let request = exchange.request_mut();
        let (mut host, mut port) = host_and_port(request.head.authority_str(), default_port);
        let state = request.info.filter_state.borrow();
        if self.settings.host_from_filter_state {
            host = state.get(DYNAMIC_HOST).map_or(host, String::as_str);
            port = state.get(DYNAMIC_PORT).and_then(|port| port.parse().ok()).unwrap_or(port);
        }
        let worker = &request.connection.worker;
        let found = worker.dns.look_up(worker, &self.settings.cache, host, port);
        drop(state);
        match found {
            Lookup::Known(Ok(_)) => Verdict::Continue,
            Lookup::Known(Err(error)) => Verdict::reply(no_address(&error)),
            Lookup::Later(pending) => Verdict::wait(pending.answer(), |answer, _| match answer {
                Ok(_) => Verdict::Continue,
                Err(error) => Verdict::reply(no_address(&error)),
            }),
        }
    }
}

/// The answer to a request whose host has no address.
pub fn no_address(error: &NoAddress) -> LocalReply {
    match error {
        NoAddress::CacheFull => LocalReply::new(503, "dns_cache_overflow").body(&b"DNS cache overflow"[..]),
        NoAddress::TooManyWait => LocalReply::new(503, "dynamic_forward_proxy_pending_request_overflow")
            .body(&b"Dynamic forward proxy pending request overflow"[..]),
        NoAddress::Failed(reason) => LocalReply::new(503, format!("dns_resolution_failure{{{}}}", details(reason)))
            .flag(ResponseFlag::DnsResolutionFailed)
            .body(&b"DNS resolution failure"[..]),
    }
}

/// Details are one word.
fn details(reason: &str) -> String {
    reason.replace(|letter: char| letter.is_whitespace(), "_")
}
