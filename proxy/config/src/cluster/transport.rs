//! What connections to endpoints are, and how many there are in advance (`transport_socket`, `transport_socket_matches`,
//! `transport_socket_matcher`, `preconnect_policy`).
//!
//! Owns the checked model. Never chooses a transport (see `outrigger-policy`), and never connects.

use std::collections::HashSet;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::matching::common_inputs::transport_socket::v3::TransportSocketNameAction;
use outrigger_api::pb::google::protobuf::{Any, DoubleValue};
use outrigger_api::pb::xds::r#type::matcher::v3 as xds;

use super::{Cluster, LbMetadata, ProxyProtocolVersion, TunneledTransport};
use crate::context::Context;
use crate::decide::decide;
use crate::matcher::{Kinds, Matcher, Place, check_endpoint_namespace};
use crate::matching::MetadataMatcher;
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
    /// One of the others, into a listener of this process that is told something of this side.
    Internal(Arc<InternalTransport>),
    /// Plain bytes or TLS, by way of an HTTP proxy.
    Tunneled(Arc<TunneledTransport>),
}

/// Source: `envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport`.
#[derive(Clone, Debug)]
pub struct InternalTransport {
    /// Metadata that the connection in the listener begins with. Of two with the same namespace the later one counts.
    pub passed: Vec<PassedMetadata>,
    /// How bytes go; never an internal one again.
    pub inner: UpstreamTransport,
}

/// Source: `InternalUpstreamTransport.MetadataValueSource`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PassedMetadata {
    /// Whose metadata.
    pub of: PassedMetadataOwner,
    /// Which namespace of it.
    pub namespace: Box<str>,
}

/// Whose metadata is passed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PassedMetadataOwner {
    /// The endpoint's.
    Host,
    /// The cluster's.
    Cluster,
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
            Self::Internal(internal) => internal.inner.tls(),
            Self::Tunneled(tunneled) => tunneled.inner.tls(),
        }
    }

    /// The header that goes first, if there is one.
    pub fn proxy_header(&self) -> Option<&ProxyHeaderSettings> {
        match self {
            Self::Raw | Self::Tls(_) | Self::Tunneled(_) => None,
            Self::Proxied(proxied) => Some(&proxied.header),
            Self::Internal(internal) => internal.inner.proxy_header(),
        }
    }

    /// What a listener of this process is told, if it is told anything.
    pub fn internal(&self) -> Option<&InternalTransport> {
        match self {
            Self::Internal(internal) => Some(internal),
            Self::Raw | Self::Tls(_) | Self::Proxied(_) | Self::Tunneled(_) => None,
        }
    }
}

/// Source: `Cluster.PreconnectPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct Preconnect {
    /// Connections to an endpoint for each request that it has; at least 1.
    pub per_upstream: f64,
    /// Connections of the cluster for each of its requests, at the endpoints whose turn comes next; at least 1.
    pub predictive: f64,
    /// Which endpoints may have connections in advance, by their metadata; all unless given.
    pub only: Option<MetadataMatcher>,
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

/// Reads the tree at `at`, which names one of `matches`. Its actions are places among `Cluster::transports`.
pub(super) fn transport_matcher(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    matches: &[TransportMatch],
    wire: xds::Matcher,
) -> Parsed<Matcher<usize>> {
    let action = |at: &FieldPath<'_>, any: &Any| {
        if wire::type_name(any) != NAME_ACTION {
            return Err(at.reject(format!("the action {:?} is not supported", any.type_url)));
        }
        let TransportSocketNameAction { name } = wire::decode(at, any)?;
        let place = matches.iter().position(|wanted| wanted.name == name);
        place.map(|place| place + 1).ok_or_else(|| {
            at.field("name").reject(format!("{name:?} is not the name of one of the transport_socket_matches"))
        })
    };
    Matcher::parse(context, at, &Kinds { place: Place::Endpoint, action: &action }, wire)
}

const NAME_ACTION: &str = "envoy.extensions.matching.common_inputs.transport_socket.v3.TransportSocketNameAction";

/// Reads which connections are made before they are needed; `None` if none are.
pub(super) fn preconnect(at: &FieldPath<'_>, wire: pb::cluster::PreconnectPolicy) -> Parsed<Option<Box<Preconnect>>> {
    decide!(wire, at, pb::cluster::PreconnectPolicy as "envoy.config.cluster.v3.Cluster.PreconnectPolicy" {
        implemented: per_upstream_preconnect_ratio, predictive_preconnect_ratio, preconnect_enabled_metadata;
        no_effect: ;
        unsupported: ;
    });
    let ratio = |field: &'static str, wire: Option<DoubleValue>| match wire {
        None => Ok(1.0),
        Some(DoubleValue { value }) if (1.0..=3.0).contains(&value) => Ok(value),
        Some(DoubleValue { value }) => Err(at.field(field).reject(format!("{value} is not within 1 to 3"))),
    };
    let per_upstream = ratio("per_upstream_preconnect_ratio", per_upstream_preconnect_ratio)?;
    let predictive = ratio("predictive_preconnect_ratio", predictive_preconnect_ratio)?;
    let only = match preconnect_enabled_metadata {
        None => None,
        Some(wire) => {
            let at = at.field("preconnect_enabled_metadata");
            check_endpoint_namespace(&at, &wire.filter)?;
            Some(MetadataMatcher::parse(&at, wire)?)
        }
    };
    let any = per_upstream > 1.0 || predictive > 1.0;
    Ok(any.then(|| Box::new(Preconnect { per_upstream, predictive, only })))
}

/// What an endpoint or locality says of its transport; `None` if it says nothing.
pub(super) fn transport_metadata(wire: Option<&core::Metadata>) -> Option<Arc<LbMetadata>> {
    let said = wire?.filter_metadata.get("envoy.transport_socket_match")?;
    let metadata = LbMetadata::from(said.clone());
    (!metadata.is_empty()).then(|| Arc::new(metadata))
}
