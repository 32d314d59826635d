//! Authentication by API keys (`envoy.extensions.filters.http.api_key_auth.v3`).
//!
//! Owns finding the key of a request and whether its client may come in. Keys stand in the settings.

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{ApiKeyAuth as Settings, KeySource};
use outrigger_policy::request::{cookie, query_parameter, without_cookie, without_query_parameter};

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::headers::HeaderId;
use crate::http::manager::reply::LocalReply;
use crate::http::message::RequestHead;
use crate::scope;

scope! {
    /// Stats of the filter (`http.<prefix>.api_key_auth.*`).
    pub struct ApiKeyAuthStats {
        allowed: Counter,
        forbidden: Counter,
        unauthorized: Counter,
    }
}

/// The filter.
pub struct ApiKeyAuth {
    settings: Arc<Settings>,
    stats: Arc<ApiKeyAuthStats>,
}

impl ApiKeyAuth {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        Self { settings: Arc::clone(settings), stats: maker.stats("api_key_auth") }
    }

    fn unauthorized(&self, details: &'static str) -> Verdict {
        self.stats.unauthorized.increment();
        Verdict::reply(LocalReply::new(401, details).body(&b"Client authentication failed."[..]))
    }
}

impl HttpFilter for ApiKeyAuth {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let of_route = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::ApiKeyAuth(route) => Some(route),
            _ => None,
        });
        let own = &*self.settings;
        let route = of_route.map(|route| &route.settings);
        let credentials = route.and_then(|route| route.credentials.as_ref()).or(own.credentials.as_ref());
        let sources = route.map(|route| &route.sources).filter(|sources| !sources.is_empty()).unwrap_or(&own.sources);
        let forwarding = route.and_then(|route| route.forwarding.as_ref()).or(own.forwarding.as_ref());
        if sources.is_empty() {
            return self.unauthorized("missing_key_sources");
        }
        let Some(credentials) = credentials else { return self.unauthorized("missing_credentials") };
        let key = sources.iter().find_map(|source| key_in(exchange.head(), source));
        let Some(key) = key else { return self.unauthorized("missing_api_key") };
        let Some(client) = credentials.client(&key) else { return self.unauthorized("unknown_api_key") };
        let allowed = of_route.map(|route| &route.allowed_clients).filter(|allowed| !allowed.is_empty());
        if allowed.is_some_and(|allowed| !allowed.contains(&**client)) {
            self.stats.forbidden.increment();
            return Verdict::reply(LocalReply::new(403, "client_not_allowed").body(&b"Client is forbidden."[..]));
        }
        if let Some(forwarding) = forwarding {
            if let Some(header) = &forwarding.header {
                exchange.head_mut().headers.set_by_name(header, client.as_bytes());
            }
            if forwarding.hide_credentials {
                sources.iter().for_each(|source| hide(exchange.head_mut(), source));
            }
        }
        self.stats.allowed.increment();
        Verdict::Continue
    }
}

/// A key that is not empty.
fn key_in(head: &RequestHead, source: &KeySource) -> Option<Vec<u8>> {
    let key = match source {
        KeySource::Header(name) => {
            let value = head.headers.get_by_name(name)?;
            value.strip_prefix(b"Bearer ").unwrap_or(value).to_vec()
        }
        KeySource::Query(name) => query_parameter(head.path_str(), name)?,
        KeySource::Cookie(name) => {
            head.headers.get_all(HeaderId::Cookie).find_map(|header| cookie(header, name))?.to_vec()
        }
    };
    (!key.is_empty()).then_some(key)
}

/// Takes a key out of what goes on.
fn hide(head: &mut RequestHead, source: &KeySource) {
    match source {
        KeySource::Header(name) => drop(head.headers.remove_by_name(name)),
        KeySource::Query(name) => {
            if let Some(path) = without_query_parameter(head.path_str(), name) {
                head.set_path(path.as_bytes());
            }
        }
        KeySource::Cookie(name) => {
            let rest: Vec<Vec<u8>> =
                head.headers.get_all(HeaderId::Cookie).map(|header| without_cookie(header, name)).collect();
            if rest.is_empty() {
                return;
            }
            head.headers.remove(HeaderId::Cookie);
            for header in rest.iter().filter(|header| !header.is_empty()) {
                head.headers.append_id(HeaderId::Cookie, header);
            }
        }
    }
}
