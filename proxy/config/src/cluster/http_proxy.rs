//! HTTP proxies on the way to endpoints (`envoy.extensions.transport_sockets.http_11_proxy.v3`).
//!
//! Owns which proxy the connections of an endpoint go through, and whether it is asked for a tunnel. Never connects.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::transport_sockets::http_11_proxy::v3 as pb;

use super::UpstreamTransport;
use crate::address::Address;
use crate::address_parse::address;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::tls::upstream_transport_socket;
use crate::wire;

/// Source: `envoy.extensions.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport`.
#[derive(Clone, Debug)]
pub struct TunneledTransport {
    /// The proxy to endpoints that name none.
    pub default_proxy: Option<Arc<Address>>,
    /// How bytes go through it: plain ones, or TLS.
    pub inner: UpstreamTransport,
}

/// A proxy on the way to an endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpProxy {
    /// Where it is.
    pub address: Arc<Address>,
    /// It is asked for a tunnel (CONNECT). Otherwise it gets what the endpoint would get.
    pub tunnel: bool,
}

impl UpstreamTransport {
    /// The proxy to an endpoint that has itself named `named`.
    pub fn http_proxy(&self, named: Option<&Arc<Address>>) -> Option<HttpProxy> {
        let Self::Tunneled(transport) = self else { return None };
        match named {
            Some(address) => Some(HttpProxy { address: Arc::clone(address), tunnel: true }),
            // Plain bytes then go to the proxy as they are, as with Envoy.
            None => {
                let address = transport.default_proxy.clone()?;
                Some(HttpProxy { address, tunnel: transport.inner.tls().is_some() })
            }
        }
    }
}

/// Reads the transport socket.
pub(crate) fn tunneled(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::Http11ProxyUpstreamTransport,
) -> Parsed<UpstreamTransport> {
    decide!(wire, at, pb::Http11ProxyUpstreamTransport
        as "envoy.extensions.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport" {
        implemented: transport_socket, default_proxy_address;
        no_effect: ;
        unsupported: ;
    });
    let socket_at = at.field("transport_socket");
    let inner = match transport_socket {
        None => UpstreamTransport::Raw,
        Some(wire) => upstream_transport_socket(context, &socket_at, wire)?,
    };
    if !matches!(inner, UpstreamTransport::Raw | UpstreamTransport::Tls(_)) {
        return Err(socket_at.reject("must be raw_buffer or tls"));
    }
    let default_at = at.field("default_proxy_address");
    let default_proxy = default_proxy_address.map(|wire| address(&default_at, wire)).transpose()?.map(Arc::new);
    Ok(UpstreamTransport::Tunneled(Arc::new(TunneledTransport { default_proxy, inner })))
}

/// The proxy that an endpoint or a locality names in its metadata, at `at`.
pub(super) fn named_proxy(at: &FieldPath<'_>, metadata: Option<&core::Metadata>) -> Parsed<Option<Arc<Address>>> {
    let Some(any) = metadata.and_then(|metadata| metadata.typed_filter_metadata.get(METADATA)) else {
        return Ok(None);
    };
    let typed_at = at.field("typed_filter_metadata");
    let at = typed_at.key(METADATA);
    if wire::type_name(any) != "envoy.config.core.v3.Address" {
        return Err(at.reject(format!("is {:?}, expected an envoy.config.core.v3.Address", any.type_url)));
    }
    address(&at, wire::decode(&at, any)?).map(|address| Some(Arc::new(address)))
}

const METADATA: &str = "envoy.http11_proxy_transport_socket.proxy_address";
