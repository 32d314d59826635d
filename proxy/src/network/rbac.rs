//! Rules about who may connect (`envoy.extensions.filters.network.rbac.v3.RBAC`).
//!
//! Owns the facts of a connection as rules see them, stats and metadata. Never decides (see `outrigger_policy::rbac`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_config::address::Address;
use outrigger_config::cel::Expression;
use outrigger_config::rbac::{MetadataSource, NetworkRbac};
use outrigger_config::tls::SanMatcher;
use outrigger_policy::rbac::{Facts, LookAt, NoRequest, Peer, decide};

use super::Refusal;
use crate::accesslog::attributes;
use crate::rbac::{self, NETWORK_NAMESPACE};
use crate::stream::ConnectionInfo;
use crate::tls::peer_has_name;
use crate::worker::Worker;

/// The filter of a chain.
pub struct RbacFilter {
    config: Arc<NetworkRbac>,
    prefix: Arc<str>,
    shadow_prefix: Arc<str>,
}

impl RbacFilter {
    pub(super) fn new(config: Arc<NetworkRbac>) -> Self {
        let prefix = rbac::stat_prefix(&config.stat_prefix, "");
        let shadow_prefix = rbac::stat_prefix(&config.stat_prefix, &config.shadow_stat_prefix);
        Self { config, prefix, shadow_prefix }
    }

    /// Asks the shadow rules, then the enforced ones.
    pub(super) fn check(&self, worker: &Worker, connection: &ConnectionInfo) -> Result<(), Refusal> {
        let facts = ConnectionFacts(connection);
        let NetworkRbac { enforced, shadow, shadow_stat_prefix, delay_deny, stat_prefix: _ } = &*self.config;
        if let Some(shadow) = shadow {
            let decision = decide(shadow, &facts);
            let stats = worker.network.shadow.get(&worker.process.stats, &self.shadow_prefix);
            if decision.allowed {
                stats.shadow_allowed.increment()
            } else {
                stats.shadow_denied.increment()
            }
            let mut metadata = connection.dynamic_metadata.borrow_mut();
            rbac::tell_shadow(&mut metadata, NETWORK_NAMESPACE, shadow_stat_prefix, &decision);
        }
        let Some(enforced) = enforced else { return Ok(()) };
        let decision = decide(enforced, &facts);
        let stats = worker.network.rbac.get(&worker.process.stats, &self.prefix);
        rbac::tell_log_hint(&mut connection.dynamic_metadata.borrow_mut(), &decision);
        if decision.allowed {
            stats.allowed.increment();
            return Ok(());
        }
        stats.denied.increment();
        rbac::tell_nearest(enforced, &facts, || connection.dynamic_metadata.borrow_mut());
        Err(Refusal {
            reason: None,
            details: Some(rbac::denied_details(decision.policy.map(|name| &**name)).into()),
            flag: None,
            after_first_bytes: true,
            delay: *delay_deny,
        })
    }
}

/// A connection as rules see it.
pub(crate) struct ConnectionFacts<'a>(pub &'a ConnectionInfo);

impl Facts for ConnectionFacts<'_> {
    type Request = NoRequest;

    fn request(&self) -> Option<&NoRequest> {
        None
    }

    fn destination(&self) -> Option<SocketAddr> {
        socket(&self.0.local)
    }

    fn source(&self) -> Option<SocketAddr> {
        socket(&self.0.remote)
    }

    fn direct_remote(&self) -> Option<IpAddr> {
        self.0.direct_remote.ip()
    }

    fn remote(&self) -> Option<IpAddr> {
        self.0.remote.ip()
    }

    fn server_name(&self) -> &str {
        self.0.server_name.as_deref().unwrap_or("")
    }

    fn peer(&self) -> Option<Peer<'_>> {
        let tls = self.0.tls.as_ref()?;
        Some(tls.peer.as_deref().map_or_else(Peer::default, |peer| Peer {
            uri_names: &peer.uri_sans,
            dns_names: &peer.dns_sans,
            subject: &peer.subject,
            verified: peer.verified,
        }))
    }

    fn has_name(&self, matcher: &SanMatcher) -> bool {
        let peer = self.0.tls.as_ref().and_then(|tls| tls.peer.as_deref());
        peer.is_some_and(|peer| peer_has_name(peer, matcher))
    }

    fn metadata(&self, source: MetadataSource, namespace: &str, look: &mut LookAt<'_>) -> bool {
        match source {
            MetadataSource::Dynamic => look(self.0.dynamic_metadata.borrow().get(namespace)),
            // A connection has no route.
            MetadataSource::Route => false,
        }
    }

    fn holds(&self, condition: &Expression) -> bool {
        attributes::holds_of_connection(condition, self.0)
    }

    fn filter_state(&self, key: &str, look: &mut dyn FnMut(Option<&str>) -> bool) -> bool {
        look(self.0.filter_state.borrow().get(key).map(String::as_str))
    }
}

fn socket(address: &Address) -> Option<SocketAddr> {
    match address {
        Address::Ip(socket) => Some(*socket),
        Address::Pipe { .. } | Address::Internal(_) => None,
    }
}
