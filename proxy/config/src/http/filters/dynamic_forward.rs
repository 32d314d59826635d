//! Forwarding to whatever host a request names (`envoy.extensions.filters.http.dynamic_forward_proxy.v3`).
//!
//! Owns how its settings are read. Never resolves a name.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as pb;

use crate::cluster::DnsCache;
use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};

/// Source: `envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicForward {
    /// Where names are looked up.
    pub cache: Arc<DnsCache>,
    /// The filter state may name the host and the port.
    pub host_from_filter_state: bool,
}

/// Which host a request is for, in place of its own. Source: `PerRouteConfig`.
#[derive(Clone, Debug, PartialEq)]
pub enum DynamicHost {
    /// This one.
    Literal(String),
    /// The one in this header, if there is such a header.
    Header(Arc<str>),
}

impl DynamicForward {
    /// Reads the message at `at`.
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::FilterConfig) -> Parsed<Self> {
        use pb::filter_config::ImplementationSpecifier as Kind;
        decide!(wire, at, pb::FilterConfig as "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig" {
            implemented: allow_dynamic_host_from_filter_state, implementation_specifier;
            no_effect: ;
            unsupported: save_upstream_address;
        });
        match implementation_specifier {
            Some(Kind::DnsCacheConfig(wire)) => Ok(Self {
                cache: Arc::new(DnsCache::parse(context, &at.field("dns_cache_config"), wire)?),
                host_from_filter_state: allow_dynamic_host_from_filter_state,
            }),
            Some(Kind::SubClusterConfig(_)) => Err(at.field("sub_cluster_config").unsupported()),
            None => Err(at.field("dns_cache_config").reject("is required")),
        }
    }
}

impl DynamicHost {
    /// Reads what a route says; `None` if it says nothing.
    pub(super) fn parse_route(at: &FieldPath<'_>, wire: pb::PerRouteConfig) -> Parsed<Option<Self>> {
        use pb::per_route_config::HostRewriteSpecifier as Kind;
        decide!(wire, at, pb::PerRouteConfig as "envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig" {
            implemented: host_rewrite_specifier;
            no_effect: ;
            unsupported: ;
        });
        Ok(match host_rewrite_specifier {
            None => None,
            Some(Kind::HostRewriteLiteral(host)) if host.is_empty() => None,
            Some(Kind::HostRewriteLiteral(host)) => Some(Self::Literal(host)),
            Some(Kind::HostRewriteHeader(name)) if name.is_empty() => None,
            Some(Kind::HostRewriteHeader(name)) => {
                Some(Self::Header(header_name(&at.field("host_rewrite_header"), &name)?))
            }
        })
    }
}
