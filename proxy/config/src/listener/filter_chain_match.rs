//! Reads filter chain matches, and finds chains that no connection could tell apart.
//!
//! Owns the checks of `FilterChainMatch`. Never matches connections.

use std::collections::HashMap;

use ipnet::IpNet;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::listener::v3 as pb;

use super::{FilterChain, FilterChainMatch, SourceType};
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::{address_parse, wire};

impl FilterChainMatch {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::FilterChainMatch) -> Parsed<Self> {
        decide!(wire, at, pb::FilterChainMatch as "envoy.config.listener.v3.FilterChainMatch" {
            implemented: destination_port, prefix_ranges, direct_source_prefix_ranges, source_type,
                source_prefix_ranges, source_ports, server_names, transport_protocol, application_protocols;
            no_effect: ;
            unsupported: address_suffix, suffix_len;
        });
        use pb::filter_chain_match::ConnectionSourceType as Wire;
        let source_type = match Wire::try_from(source_type) {
            Ok(Wire::Any) => SourceType::Any,
            Ok(Wire::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
            Ok(Wire::External) => SourceType::External,
            Err(_) => return Err(wire::unknown_enum(&at.field("source_type"), source_type)),
        };
        let destination_port = match destination_port {
            Some(wire) => Some(port(&at.field("destination_port"), wire.value)?),
            None => None,
        };
        Ok(Self {
            destination_port,
            prefix_ranges: networks(&at.field("prefix_ranges"), prefix_ranges)?,
            server_names: wire::each(&at.field("server_names"), server_names, server_name)?,
            transport_protocol,
            application_protocols,
            direct_source_prefix_ranges: networks(
                &at.field("direct_source_prefix_ranges"),
                direct_source_prefix_ranges,
            )?,
            source_type,
            source_prefix_ranges: networks(&at.field("source_prefix_ranges"), source_prefix_ranges)?,
            source_ports: wire::each(&at.field("source_ports"), source_ports, port)?,
        })
    }

    /// Whether some combination of criteria stands in both, so that neither is more specific there.
    fn overlaps(&self, other: &Self) -> bool {
        self.destination_port == other.destination_port
            && self.transport_protocol == other.transport_protocol
            && self.source_type == other.source_type
            && share(&self.prefix_ranges, &other.prefix_ranges)
            && share(&self.server_names, &other.server_names)
            && share(&self.application_protocols, &other.application_protocols)
            && share(&self.direct_source_prefix_ranges, &other.direct_source_prefix_ranges)
            && share(&self.source_prefix_ranges, &other.source_prefix_ranges)
            && share(&self.source_ports, &other.source_ports)
    }
}

/// Refuses chains of a listener that match the same connections with the same precedence.
pub(super) fn check_unique<'a>(at: &FieldPath<'_>, chains: impl IntoIterator<Item = &'a FilterChain>) -> Parsed<()> {
    // Overlap needs a server name (or none) in common, so only chains under the same one are compared.
    let mut by_name: HashMap<&str, Vec<(usize, &FilterChain)>> = HashMap::new();
    for (index, chain) in chains.into_iter().enumerate() {
        let names = &chain.matches.server_names;
        let keys = names.iter().map(String::as_str).chain(names.is_empty().then_some(""));
        for key in keys {
            let earlier = by_name.entry(key).or_default();
            if let Some((first, other)) =
                earlier.iter().find(|(first, other)| *first != index && other.matches.overlaps(&chain.matches))
            {
                let relation =
                    if other.matches == chain.matches { "the same match as" } else { "a match that overlaps" };
                let (name, other) = (&*chain.name, &*other.name);
                return Err(at.item(index).field("filter_chain_match").reject(format!(
                    "filter chain {name:?} has {relation} filter chain {other:?} (filter_chains[{first}])"
                )));
            }
            earlier.push((index, chain));
        }
    }
    Ok(())
}

fn share<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    (a.is_empty() && b.is_empty()) || a.iter().any(|item| b.contains(item))
}

fn networks(at: &FieldPath<'_>, wire: Vec<core::CidrRange>) -> Parsed<Vec<IpNet>> {
    wire::each(at, wire, address_parse::cidr)
}

fn port(at: &FieldPath<'_>, value: u32) -> Parsed<u16> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(at.reject(format!("{value} is not within 1 to 65535"))),
    }
}

fn server_name(at: &FieldPath<'_>, name: String) -> Parsed<String> {
    let literal = name.strip_prefix("*.").unwrap_or(&name);
    if literal.is_empty() {
        return Err(at.reject(format!("{name:?} is not a server name")));
    }
    if literal.contains('*') {
        return Err(at.reject(format!("{name:?}: partial wildcards are not supported in \"server_names\"")));
    }
    Ok(name.to_ascii_lowercase())
}
