//! Which transport the connections to an endpoint have (`transport_socket`, `transport_socket_matches`).
//!
//! Owns the choice by what an endpoint, or its locality, says of itself. Never connects.

use std::collections::HashSet;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::envoy::config::core::v3 as core;

use super::{Cluster, LbMetadata, ProxyProtocolVersion};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::tls::{UpstreamTls, upstream_transport_socket};
use crate::wire;

/// Source: `Cluster.transport_socket`.
#[derive(Clone, Debug)]
pub enum UpstreamTransport {
    /// Plain bytes.
    Raw,
    /// TLS.
    Tls(Arc<UpstreamTls>),
    /// One of the others, after a header that says who is connecting.
    Proxied(Arc<ProxiedTransport>),
}

/// Source: `envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport`.
#[derive(Clone, Debug)]
pub struct ProxiedTransport {
    /// What is sent first.
    pub header: ProxyHeaderSettings,
    /// What follows; never proxied again.
    pub inner: UpstreamTransport,
}

/// How a PROXY protocol header is written. Source: `envoy.config.core.v3.ProxyProtocolConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyHeaderSettings {
    /// Which form.
    pub version: ProxyProtocolVersion,
    /// Which of the TLVs that came with the downstream connection are passed on.
    pub pass: TlvFilter,
    /// Further TLVs, in order: type and value.
    pub added: Vec<(u8, Arc<[u8]>)>,
}

/// Source: `envoy.config.core.v3.ProxyProtocolPassThroughTLVs`.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub enum TlvFilter {
    /// None of them.
    #[default]
    Nothing,
    /// All of them.
    All,
    /// Those of these types.
    Types(Vec<u8>),
}

impl TlvFilter {
    /// Whether TLVs of this type are taken.
    pub fn takes(&self, kind: u8) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Types(types) => types.contains(&kind),
        }
    }
}

impl UpstreamTransport {
    /// The TLS context, if there is TLS.
    pub fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        match self {
            Self::Raw => None,
            Self::Tls(tls) => Some(tls),
            Self::Proxied(proxied) => proxied.inner.tls(),
        }
    }

    /// The header that goes first, if there is one.
    pub fn proxy_header(&self) -> Option<&ProxyHeaderSettings> {
        match self {
            Self::Raw | Self::Tls(_) => None,
            Self::Proxied(proxied) => Some(&proxied.header),
        }
    }
}

/// Source: `Cluster.PreconnectPolicy`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preconnect {
    /// Connections to an endpoint for each request that it has; above 1.
    pub per_upstream: f64,
}

/// A transport for endpoints that say of themselves what it asks for. Source: `Cluster.TransportSocketMatch`.
#[derive(Clone, Debug)]
pub struct TransportMatch {
    /// Unique in the cluster.
    pub name: String,
    /// An endpoint must have all of these.
    pub criteria: LbMetadata,
    /// What its connections are then.
    pub transport: UpstreamTransport,
}

impl Cluster {
    /// All transports of its endpoints: the default first, then those of the matches.
    pub fn transports(&self) -> impl Iterator<Item = &UpstreamTransport> {
        std::iter::once(&self.transport).chain(self.transport_matches.iter().map(|wanted| &wanted.transport))
    }

    /// The place among [`Cluster::transports`] of an endpoint's transport, by what the endpoint and its locality say: the
    /// first match for the endpoint, else the first for the locality, else the default.
    pub fn transport_of(&self, endpoint: Option<&LbMetadata>, locality: Option<&LbMetadata>) -> usize {
        let first = |said: Option<&LbMetadata>| {
            let fits = |wanted: &TransportMatch| {
                let mut criteria = wanted.criteria.iter();
                criteria.all(|(key, value)| said.and_then(|said| said.get(key)) == Some(value))
            };
            self.transport_matches.iter().position(fits)
        };
        first(endpoint).or_else(|| locality.and_then(|locality| first(Some(locality)))).map_or(0, |place| place + 1)
    }
}

/// Reads the list of transports that stands at `at`.
pub(super) fn transport_matches(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<pb::cluster::TransportSocketMatch>,
) -> Parsed<Vec<TransportMatch>> {
    let matches = wire::each(at, wire, |at, wire| {
        decide!(wire, at, pb::cluster::TransportSocketMatch
            as "envoy.config.cluster.v3.Cluster.TransportSocketMatch" {
            implemented: name, r#match, transport_socket;
            no_effect: ;
            unsupported: ;
        });
        if name.is_empty() {
            return Err(at.field("name").reject("must not be empty"));
        }
        let transport_at = at.field("transport_socket");
        let transport = match transport_socket {
            None => UpstreamTransport::Raw,
            Some(socket) => upstream_transport_socket(context, &transport_at, socket)?,
        };
        Ok(TransportMatch { name, criteria: r#match.map(LbMetadata::from).unwrap_or_default(), transport })
    })?;
    let mut names = HashSet::new();
    for (index, TransportMatch { name, .. }) in matches.iter().enumerate() {
        if !names.insert(name) {
            let reason = format!("{name:?} is the name of another match too");
            return Err(at.item(index).field("name").reject(reason));
        }
    }
    Ok(matches)
}

/// What an endpoint or locality says of its transport; `None` if it says nothing.
pub(super) fn transport_metadata(wire: Option<&core::Metadata>) -> Option<Arc<LbMetadata>> {
    let said = wire?.filter_metadata.get("envoy.transport_socket_match")?;
    let metadata = LbMetadata::from(said.clone());
    (!metadata.is_empty()).then(|| Arc::new(metadata))
}
