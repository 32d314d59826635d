//! DNS resolvers (`typed_dns_resolver_config`, `dns_resolution_config`).
//!
//! Owns the checked settings of a resolver. Never resolves a name.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::network::dns_resolver::cares::v3 as cares;
use outrigger_api::pb::envoy::extensions::network::dns_resolver::getaddrinfo::v3 as getaddrinfo;
use outrigger_api::pb::envoy::extensions::network::dns_resolver::hickory::v3 as hickory;

use crate::address::Address;
use crate::address_parse::address;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// How names are resolved.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct DnsResolver {
    /// Servers to ask; the system's when empty.
    pub servers: Vec<SocketAddr>,
    /// The system's servers come first, and `servers` are asked only if it has none.
    pub servers_as_fallback: bool,
    /// Ask over TCP.
    pub use_tcp: bool,
    /// Names without dots are not completed with the system's search domains.
    pub no_search_domains: bool,
    /// Time for one try of a query; the resolver's own default when `None`.
    pub query_timeout: Option<Duration>,
    /// Tries of a query; the resolver's own default when `None`.
    pub query_tries: Option<u32>,
}

/// A resolver by its typed config.
pub(crate) fn dns_resolver(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::TypedExtensionConfig,
) -> Parsed<DnsResolver> {
    let core::TypedExtensionConfig { name: _, typed_config } = wire;
    let at = at.field("typed_config");
    let any = wire::extension(context, &at, typed_config.ok_or_else(|| at.reject("is required"))?)?;
    match wire::type_name(&any) {
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig" => {
            cares_resolver(&at, wire::decode(&at, &any)?)
        }
        "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig" => {
            system_resolver(&at, wire::decode(&at, &any)?)
        }
        "envoy.extensions.network.dns_resolver.hickory.v3.HickoryDnsResolverConfig" => {
            hickory_resolver(&at, wire::decode(&at, &any)?)
        }
        other => Err(at.reject(format!("{other:?} is not supported"))),
    }
}

/// A resolver by the older message.
pub(crate) fn dns_resolution(at: &FieldPath<'_>, wire: core::DnsResolutionConfig) -> Parsed<DnsResolver> {
    decide!(wire, at, core::DnsResolutionConfig as "envoy.config.core.v3.DnsResolutionConfig" {
        implemented: resolvers, dns_resolver_options;
        no_effect: ;
        unsupported: ;
    });
    if resolvers.is_empty() {
        return Err(at.field("resolvers").reject("must not be empty"));
    }
    with_options(servers(&at.field("resolvers"), resolvers)?, dns_resolver_options)
}

fn cares_resolver(at: &FieldPath<'_>, wire: cares::CaresDnsResolverConfig) -> Parsed<DnsResolver> {
    decide!(wire, at, cares::CaresDnsResolverConfig
        as "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig" {
        implemented: resolvers, dns_resolver_options, query_timeout_seconds, query_tries, use_resolvers_as_fallback;
        no_effect: udp_max_queries = "a query has a socket of its own",
            max_udp_channel_duration = "a query has a socket of its own",
            reinit_channel_on_timeout = "a query has a socket of its own",
            edns0_max_payload_size = "an answer that is cut is asked for again over TCP",
            qcache_max_ttl = "the cluster keeps its answer until it asks again",
            rotate_nameservers = "the order of servers follows how they answer";
        unsupported: filter_unroutable_families;
    });
    let resolver = with_options(servers(&at.field("resolvers"), resolvers)?, dns_resolver_options)?;
    let query_timeout = query_timeout_seconds.map(|seconds| seconds.value);
    if query_timeout == Some(0) {
        return Err(at.field("query_timeout_seconds").reject("must be above zero"));
    }
    Ok(DnsResolver {
        query_timeout: query_timeout.map(Duration::from_secs),
        query_tries: wire::number_within(&at.field("query_tries"), query_tries, 1..=u32::MAX)?,
        servers_as_fallback: use_resolvers_as_fallback,
        ..resolver
    })
}

/// The system's resolver, whose settings are the system's.
fn system_resolver(at: &FieldPath<'_>, wire: getaddrinfo::GetAddrInfoDnsResolverConfig) -> Parsed<DnsResolver> {
    decide!(wire, at, getaddrinfo::GetAddrInfoDnsResolverConfig
        as "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig" {
        implemented: num_retries;
        no_effect: num_resolver_threads = "questions are asked without threads of their own";
        unsupported: ;
    });
    let tries = num_retries.map(|retries| retries.value.saturating_add(1));
    Ok(DnsResolver { query_tries: tries, ..DnsResolver::default() })
}

fn hickory_resolver(at: &FieldPath<'_>, wire: hickory::HickoryDnsResolverConfig) -> Parsed<DnsResolver> {
    decide!(wire, at, hickory::HickoryDnsResolverConfig
        as "envoy.extensions.network.dns_resolver.hickory.v3.HickoryDnsResolverConfig" {
        implemented: resolvers, use_system_config, query_timeout, query_tries;
        no_effect: cache_size = "the cluster keeps its answer until it asks again",
            num_resolver_threads = "questions are asked without threads of their own";
        unsupported: dns_over_tls, dns_over_https, enable_dnssec;
    });
    let servers = servers(&at.field("resolvers"), resolvers)?;
    if servers.is_empty() && use_system_config.is_some_and(|wanted| !wanted.value) {
        return Err(at.field("use_system_config").reject("false needs resolvers"));
    }
    let timeout_at = at.field("query_timeout");
    Ok(DnsResolver {
        servers,
        query_timeout: query_timeout.map(|wire| wire::positive_duration(&timeout_at, wire)).transpose()?,
        query_tries: wire::number_within(&at.field("query_tries"), query_tries, 1..=u32::MAX)?,
        ..DnsResolver::default()
    })
}

fn with_options(servers: Vec<SocketAddr>, wire: Option<core::DnsResolverOptions>) -> Parsed<DnsResolver> {
    let core::DnsResolverOptions { use_tcp_for_dns_lookups, no_default_search_domain } = wire.unwrap_or_default();
    Ok(DnsResolver {
        servers,
        use_tcp: use_tcp_for_dns_lookups,
        no_search_domains: no_default_search_domain,
        ..DnsResolver::default()
    })
}

/// Servers to ask, each with an IP address.
pub(crate) fn servers(at: &FieldPath<'_>, wire: Vec<core::Address>) -> Parsed<Vec<SocketAddr>> {
    let mut servers = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let item = at.item(index);
        match address(&item, wire)? {
            // Port 0 stands for the port of DNS.
            Address::Ip(server) if server.port() == 0 => servers.push(SocketAddr::new(server.ip(), 53)),
            Address::Ip(server) => servers.push(server),
            Address::Pipe { .. } => return Err(item.field("pipe").unsupported()),
            Address::Internal(_) => return Err(item.field("envoy_internal_address").unsupported()),
        }
    }
    Ok(servers)
}
