//! Rules about who may ask for what (`envoy.extensions.filters.http.rbac.v3.RBAC`).
//!
//! Owns the facts of a request as rules see them, stats, metadata and the refusal. Never decides (see
//! `outrigger_policy::rbac`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_config::cel::Expression;
use outrigger_config::http::RouteFilterConfig;
use outrigger_config::rbac::{HttpRbac, MetadataSource};
use outrigger_config::tls::SanMatcher;
use outrigger_policy::rbac::{Decision, Facts, LookAt, Peer, decide};

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::accesslog::attributes;
use crate::http::manager::client_address::client_address;
use crate::http::manager::reply::LocalReply;
use crate::http::message::RequestHead;
use crate::network::ConnectionFacts;
use crate::process::Process;
use crate::rbac::{self, HTTP_NAMESPACE, RbacStats, ShadowStats};
use crate::stats::{Scope, names};

/// The filter.
pub struct Rbac {
    config: Arc<HttpRbac>,
    process: Arc<Process>,
    enforced: RuleStats<RbacStats>,
    shadow: RuleStats<ShadowStats>,
}

/// Stats of rules of one kind, and of each of their policies.
struct RuleStats<S> {
    prefix: Arc<str>,
    all: Arc<S>,
    policies: RefCell<HashMap<Arc<str>, Arc<S>>>,
}

impl<S: Scope + Default> RuleStats<S> {
    fn new(process: &Process, prefix: Arc<str>) -> Self {
        Self { all: process.stats.scope(&prefix), prefix, policies: RefCell::default() }
    }

    fn policy(&self, process: &Process, name: &Arc<str>) -> Arc<S> {
        let make = || process.stats.scope(&format!("{}{}", self.prefix, names::prefix("policy", name)));
        Arc::clone(self.policies.borrow_mut().entry(Arc::clone(name)).or_insert_with(make))
    }
}

impl Rbac {
    /// A filter with its stats.
    pub fn new(maker: &Maker<'_>, config: Arc<HttpRbac>) -> Self {
        let process = Arc::clone(&maker.worker.process);
        let of = |rules: &str| rbac::stat_prefix(&maker.prefix, rules);
        Self {
            enforced: RuleStats::new(&process, of(&config.stat_prefix)),
            shadow: RuleStats::new(&process, of(&config.shadow_stat_prefix)),
            process,
            config,
        }
    }

    fn count_shadow(&self, decision: &Decision<'_>, by_policy: bool) {
        let count = |stats: &ShadowStats| match decision.allowed {
            true => stats.shadow_allowed.increment(),
            false => stats.shadow_denied.increment(),
        };
        count(&self.shadow.all);
        if let Some(policy) = decision.policy.filter(|_| by_policy) {
            count(&self.shadow.policy(&self.process, policy));
        }
    }

    fn count(&self, decision: &Decision<'_>, by_policy: bool) {
        let count = |stats: &RbacStats| match decision.allowed {
            true => stats.allowed.increment(),
            false => stats.denied.increment(),
        };
        count(&self.enforced.all);
        if let Some(policy) = decision.policy.filter(|_| by_policy) {
            count(&self.enforced.policy(&self.process, policy));
        }
    }
}

impl HttpFilter for Rbac {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let config = match exchange.route_config() {
            Some(RouteFilterConfig::Rbac(None)) => return Verdict::Continue,
            Some(RouteFilterConfig::Rbac(Some(config))) => config,
            _ => &self.config,
        };
        let HttpRbac { enforced, shadow, stat_prefix, shadow_stat_prefix, track_per_rule_stats } = &**config;
        let facts = RequestFacts::new(exchange);
        let metadata = &exchange.info().dynamic_metadata;
        if let Some(shadow) = shadow {
            let decision = decide(shadow, &facts);
            self.count_shadow(&decision, *track_per_rule_stats);
            rbac::tell_shadow(&mut metadata.borrow_mut(), HTTP_NAMESPACE, shadow_stat_prefix, &decision);
        }
        let Some(enforced) = enforced else { return Verdict::Continue };
        let decision = decide(enforced, &facts);
        self.count(&decision, *track_per_rule_stats);
        rbac::tell_log_hint(&mut metadata.borrow_mut(), &decision);
        rbac::tell_enforced(&mut metadata.borrow_mut(), HTTP_NAMESPACE, stat_prefix, &decision);
        if decision.allowed {
            return Verdict::Continue;
        }
        rbac::tell_nearest(enforced, &facts, || metadata.borrow_mut());
        let details = rbac::denied_details(decision.policy.map(|name| &**name));
        Verdict::reply(LocalReply::new(403, details).body(b"RBAC: access denied".as_slice()))
    }
}

/// A request as rules see it.
pub(super) struct RequestFacts<'a, 'b, 'r, 'g> {
    exchange: &'a Exchange<'b, 'r, 'g>,
    connection: ConnectionFacts<'a>,
}

impl<'a, 'b, 'r, 'g> RequestFacts<'a, 'b, 'r, 'g> {
    pub(super) fn new(exchange: &'a Exchange<'b, 'r, 'g>) -> Self {
        Self { exchange, connection: ConnectionFacts(&exchange.connection().info) }
    }
}

impl Facts for RequestFacts<'_, '_, '_, '_> {
    type Request = RequestHead;

    fn request(&self) -> Option<&RequestHead> {
        Some(self.exchange.head())
    }

    fn destination(&self) -> Option<SocketAddr> {
        self.connection.destination()
    }

    fn source(&self) -> Option<SocketAddr> {
        self.connection.source()
    }

    fn direct_remote(&self) -> Option<IpAddr> {
        self.connection.direct_remote()
    }

    fn remote(&self) -> Option<IpAddr> {
        client_address(self.exchange.connection(), self.exchange.info())
    }

    fn server_name(&self) -> &str {
        self.connection.server_name()
    }

    fn peer(&self) -> Option<Peer<'_>> {
        self.connection.peer()
    }

    fn has_name(&self, matcher: &SanMatcher) -> bool {
        self.connection.has_name(matcher)
    }

    fn metadata(&self, source: MetadataSource, namespace: &str, look: &mut LookAt<'_>) -> bool {
        match source {
            MetadataSource::Dynamic => look(self.exchange.info().dynamic_metadata.borrow().get(namespace)),
            MetadataSource::Route => {
                let Some(chosen) = self.exchange.chosen() else { return false };
                look(chosen.route.metadata.as_ref().and_then(|metadata| metadata.get(namespace)))
            }
        }
    }

    fn holds(&self, condition: &Expression) -> bool {
        attributes::holds(condition, &self.exchange.stream().facts())
    }

    fn filter_state(&self, key: &str, look: &mut dyn FnMut(Option<&str>) -> bool) -> bool {
        match self.exchange.info().filter_state.borrow().get(key) {
            Some(object) => look(Some(object)),
            None => self.connection.filter_state(key, look),
        }
    }
}
