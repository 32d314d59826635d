//! The CORS filter: answers browsers that ask whether a page of another origin may send a request.
//!
//! Owns the headers of the Fetch standard's CORS protocol. Never decides which origins are allowed (routes do).

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::CorsPolicy;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::manager::reply::LocalReply;
use crate::scope;

scope! {
    /// Stats of the filter (`http.<prefix>.cors.*`).
    pub struct CorsStats {
        origin_invalid: Counter,
        origin_valid: Counter,
    }
}

/// The filter.
pub struct Cors {
    stats: Arc<CorsStats>,
}

/// An origin that the response is for.
#[derive(Default)]
struct Allowed(Vec<u8>);

impl Cors {
    /// A filter with its stats.
    pub fn new(maker: &Maker<'_>) -> Self {
        Self { stats: maker.stats("cors") }
    }
}

fn policy<'g>(exchange: &Exchange<'_, '_, 'g>) -> Option<&'g Arc<CorsPolicy>> {
    exchange.route_configs().find_map(|config| match config {
        RouteFilterConfig::Cors(policy) => Some(policy),
        _ => None,
    })
}

impl HttpFilter for Cors {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(policy) = policy(exchange) else { return Verdict::Continue };
        let Some(origin) = exchange.head().headers.get_by_name("origin").map(<[u8]>::to_vec) else {
            return Verdict::Continue;
        };
        let enabled = policy.enabled.as_ref().is_none_or(|share| exchange.holds(share));
        let shadow = policy.shadow_enabled.as_ref().is_some_and(|share| exchange.holds(share));
        if !enabled && !shadow {
            return Verdict::Continue;
        }
        let allowed = policy.allow_origin.iter().any(|matcher| matcher.matches(&origin));
        if allowed {
            self.stats.origin_valid.increment()
        } else {
            self.stats.origin_invalid.increment()
        }
        if !enabled {
            return Verdict::Continue;
        }
        let head = exchange.head();
        let preflight = head.method() == b"OPTIONS"
            && head.headers.get_by_name("access-control-request-method").is_some_and(|method| !method.is_empty());
        if !allowed {
            return match preflight && !policy.forward_not_matching_preflights {
                true => Verdict::reply(LocalReply::new(200, "cors_response")),
                false => Verdict::Continue,
            };
        }
        if !preflight {
            exchange.state::<Allowed>().0 = origin;
            return Verdict::Continue;
        }
        Verdict::reply(answer(policy, origin, exchange))
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(origin) = exchange.known_state::<Allowed>().map(|allowed| std::mem::take(&mut allowed.0)) else {
            return Verdict::Continue;
        };
        let Some(policy) = policy(exchange) else { return Verdict::Continue };
        let headers = &mut exchange.response_mut().headers;
        headers.set_by_name("access-control-allow-origin", &origin);
        if policy.allow_credentials {
            headers.set_by_name("access-control-allow-credentials", b"true");
        }
        if !policy.expose_headers.is_empty() {
            headers.set_by_name("access-control-expose-headers", policy.expose_headers.as_bytes());
        }
        Verdict::Continue
    }
}

/// The answer to a preflight request of an allowed origin.
fn answer(policy: &CorsPolicy, origin: Vec<u8>, exchange: &Exchange<'_, '_, '_>) -> LocalReply {
    let mut reply = LocalReply::new(200, "cors_response");
    reply.header("access-control-allow-origin", origin);
    if policy.allow_credentials {
        reply.header("access-control-allow-credentials", "true");
    }
    for (name, value) in [
        ("access-control-allow-methods", &policy.allow_methods),
        ("access-control-allow-headers", &policy.allow_headers),
        ("access-control-max-age", &policy.max_age),
    ] {
        if !value.is_empty() {
            reply.header(name, value.as_str());
        }
    }
    let asks = exchange.head().headers.get_by_name("access-control-request-private-network") == Some(b"true");
    if asks && policy.allow_private_network_access {
        reply.header("access-control-allow-private-network", "true");
    }
    reply
}
