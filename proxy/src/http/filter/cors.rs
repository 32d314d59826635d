//! The CORS filter: answers browsers that ask whether a page of another origin may send a request.
//!
//! Owns the headers of the Fetch standard's CORS protocol. Never decides which origins are allowed (routes do).

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::CorsPolicy;
use outrigger_config::route::RouteAction;
use outrigger_config::units::RuntimeFraction;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::manager::reply::LocalReply;
use crate::http::manager::request::Chosen;
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

/// What the levels of a route configuration say of a request, the most specific one first: what one leaves open, the next
/// may say.
struct Policies<'g>([Option<&'g CorsPolicy>; LEVELS]);

/// Weighted cluster, route, virtual host, route configuration.
const LEVELS: usize = 4;

impl<'g> Policies<'g> {
    /// The policies that are named for the filter, or else the deprecated ones; `None` if there are none.
    fn of(exchange: &Exchange<'_, '_, 'g>) -> Option<Self> {
        let mut policies = [None; LEVELS];
        let named = exchange.route_configs().filter_map(|config| match config {
            RouteFilterConfig::Cors(policy) => Some(&**policy),
            _ => None,
        });
        for (place, policy) in policies.iter_mut().zip(named) {
            *place = Some(policy);
        }
        if policies[0].is_none() {
            let deprecated = exchange.chosen().into_iter().flat_map(deprecated);
            for (place, policy) in policies.iter_mut().zip(deprecated) {
                *place = Some(&**policy);
            }
        }
        policies[0].map(|_| Self(policies))
    }

    fn each(&self) -> impl Iterator<Item = &'g CorsPolicy> {
        self.0.into_iter().flatten()
    }

    /// The share of requests that the most specific policy names.
    fn share(&self, of: impl Fn(&'g CorsPolicy) -> Option<&'g RuntimeFraction>) -> Option<&'g RuntimeFraction> {
        self.each().next().and_then(of)
    }

    fn allow(&self, origin: &[u8]) -> bool {
        let matchers = self.each().map(|policy| &policy.allow_origin).find(|matchers| !matchers.is_empty());
        matchers.is_some_and(|matchers| matchers.iter().any(|matcher| matcher.matches(origin)))
    }

    fn text(&self, of: impl Fn(&'g CorsPolicy) -> &'g str) -> Option<&'g str> {
        self.each().map(of).find(|text| !text.is_empty())
    }

    fn flag(&self, of: impl Fn(&CorsPolicy) -> Option<bool>) -> Option<bool> {
        self.each().find_map(of)
    }

    fn allows_credentials(&self) -> bool {
        self.flag(|policy| policy.allow_credentials).unwrap_or(false)
    }
}

/// Of route and virtual host.
fn deprecated<'g>(chosen: &Chosen<'g>) -> impl Iterator<Item = &'g Arc<CorsPolicy>> {
    let of_route = match &chosen.route.action {
        RouteAction::Forward(forward) => forward.cors.as_ref(),
        RouteAction::Redirect(_) | RouteAction::Direct(_) | RouteAction::NonForwarding => None,
    };
    of_route.into_iter().chain(chosen.virtual_host.cors.as_ref())
}

impl HttpFilter for Cors {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(policies) = Policies::of(exchange) else { return Verdict::Continue };
        let Some(origin) = exchange.head().headers.get_by_name("origin").map(<[u8]>::to_vec) else {
            return Verdict::Continue;
        };
        let enabled = policies.share(|policy| policy.enabled.as_ref()).is_none_or(|share| exchange.holds(share));
        let shadow = policies.share(|policy| policy.shadow_enabled.as_ref()).is_some_and(|share| exchange.holds(share));
        if !enabled && !shadow {
            return Verdict::Continue;
        }
        let allowed = policies.allow(&origin);
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
            let forwards = policies.flag(|policy| policy.forward_not_matching_preflights).unwrap_or(true);
            return match preflight && !forwards {
                true => Verdict::reply(LocalReply::new(200, "cors_response")),
                false => Verdict::Continue,
            };
        }
        if !preflight {
            exchange.state::<Allowed>().0 = origin;
            return Verdict::Continue;
        }
        Verdict::reply(answer(&policies, origin, exchange))
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(origin) = exchange.known_state::<Allowed>().map(|allowed| std::mem::take(&mut allowed.0)) else {
            return Verdict::Continue;
        };
        let Some(policies) = Policies::of(exchange) else { return Verdict::Continue };
        let headers = &mut exchange.response_mut().headers;
        headers.set_by_name("access-control-allow-origin", &origin);
        if policies.allows_credentials() {
            headers.set_by_name("access-control-allow-credentials", b"true");
        }
        if let Some(names) = policies.text(|policy| &policy.expose_headers) {
            headers.set_by_name("access-control-expose-headers", names.as_bytes());
        }
        Verdict::Continue
    }
}

/// The answer to a preflight request of an allowed origin.
fn answer(policies: &Policies<'_>, origin: Vec<u8>, exchange: &Exchange<'_, '_, '_>) -> LocalReply {
    let mut reply = LocalReply::new(200, "cors_response");
    reply.header("access-control-allow-origin", origin);
    if policies.allows_credentials() {
        reply.header("access-control-allow-credentials", "true");
    }
    for (name, value) in [
        ("access-control-allow-methods", policies.text(|policy| &policy.allow_methods)),
        ("access-control-allow-headers", policies.text(|policy| &policy.allow_headers)),
        ("access-control-max-age", policies.text(|policy| &policy.max_age)),
    ] {
        if let Some(value) = value {
            reply.header(name, value);
        }
    }
    let asks = exchange.head().headers.get_by_name("access-control-request-private-network") == Some(b"true");
    if asks && policies.flag(|policy| policy.allow_private_network_access).unwrap_or(false) {
        reply.header("access-control-allow-private-network", "true");
    }
    reply
}
