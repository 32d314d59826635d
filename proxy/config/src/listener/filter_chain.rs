//! Reads filter chains.
//!
//! Owns the fields of `FilterChain` and the identity of its content. Never compares chains (see `filter_chain_match`).

use std::hash::{DefaultHasher, Hasher};

use outrigger_api::pb::envoy::config::listener::v3 as pb;
use prost::Message as _;

use super::network_filters::network_filters;
use super::{DownstreamTransport, FilterChain, FilterChainMatch};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::{tls, wire};

impl FilterChain {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, mut wire: pb::FilterChain) -> Parsed<Self> {
        // Metadata holds a map, which encodes in any order, and it changes nothing: left out of the identity.
        wire.metadata = None;
        let content_hash = content_hash(&wire);
        decide!(wire, at, pb::FilterChain as "envoy.config.listener.v3.FilterChain" {
            implemented: filter_chain_match, filters, transport_socket, transport_socket_connect_timeout, name,
                use_proxy_proto;
            no_effect: metadata = "nothing reads the metadata of a filter chain";
            unsupported: ;
        });
        // It concerns all connections of the listener, which reads it.
        let _ = use_proxy_proto;
        let timeout = at.field("transport_socket_connect_timeout");
        Ok(Self {
            name: name.into(),
            content_hash,
            matches: match filter_chain_match {
                Some(wire) => FilterChainMatch::parse(&at.field("filter_chain_match"), wire)?,
                None => FilterChainMatch::default(),
            },
            transport: match transport_socket {
                Some(wire) => tls::downstream_transport_socket(context, &at.field("transport_socket"), wire)?,
                None => DownstreamTransport::Raw,
            },
            transport_connect_timeout: wire::limit(&timeout, transport_socket_connect_timeout, None)?,
            filters: network_filters(context, &at.field("filters"), filters)?,
        })
    }
}

/// The same for the same content in every run: the hasher's keys are fixed.
fn content_hash(wire: &pb::FilterChain) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&wire.encode_to_vec());
    hasher.finish()
}
