//! Forwarding connections to whatever host their server name says
//! (`envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3`).
//!
//! Owns how its settings are read. Never resolves a name.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as pb;

use crate::cluster::DnsCache;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};

/// Source: `envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct SniDynamicForward {
    /// Where names are looked up.
    pub cache: Arc<DnsCache>,
    /// Where connections go; 443 unless given.
    pub port: u16,
}

impl SniDynamicForward {
    /// Reads the message at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::FilterConfig) -> Parsed<Self> {
        decide!(wire, at, pb::FilterConfig
            as "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig" {
            implemented: dns_cache_config, port_specifier;
            no_effect: ;
            unsupported: save_upstream_address;
        });
        let cache_at = at.field("dns_cache_config");
        let Some(cache) = dns_cache_config else { return Err(cache_at.reject("is required")) };
        let port_at = at.field("port_value");
        let port = match port_specifier {
            None => 443,
            Some(pb::filter_config::PortSpecifier::PortValue(port)) => match u16::try_from(port) {
                Ok(port) if port > 0 => port,
                _ => return Err(port_at.reject(format!("{port} is not within 1 to 65535"))),
            },
        };
        Ok(Self { cache: Arc::new(DnsCache::parse(context, &cache_at, cache)?), port })
    }
}
