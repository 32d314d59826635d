//! Reading the DNS cache of dynamic forward proxies (`envoy.extensions.common.dynamic_forward_proxy.v3.DnsCacheConfig`).
//!
//! Owns its defaults. Never resolves a name.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::common::dynamic_forward_proxy::v3 as pb;
use outrigger_api::pb::envoy::r#type::matcher::v3::AddressMatcher;
use outrigger_api::pb::xds::core::v3::CidrRange;

use super::DnsOptions;
use super::dns::{failure_rate, family, positive};
use crate::address::EndpointAddress;
use crate::address_parse::{cidr, endpoint_socket_address};
use crate::context::Context;
use crate::decide::decide;
use crate::dns::{DnsResolver, dns_resolution, dns_resolver};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// A cache of resolved names that those share who give it the same name.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsCache {
    /// In `dns_cache.<name>.*`, and what tells caches apart.
    pub name: Arc<str>,
    /// How names are asked for. `refresh_rate` is that of names that do not resolve, 60 s unless given; `min_refresh_rate`
    /// is 5 s unless given.
    pub dns: DnsOptions,
    /// Names that nobody used for this long are forgotten; 5 minutes unless given.
    pub host_ttl: Duration,
    /// 1,024 unless given.
    pub max_hosts: u32,
    /// A name whose question failed is forgotten instead of being asked again.
    pub forget_failures: bool,
    /// Requests that wait for names; 1,024 unless given.
    pub max_pending_requests: u32,
    /// Limit on a question; 5 s unless given, `None` for the resolver's own.
    pub query_timeout: Option<Duration>,
    /// Addresses that answers are not believed to have: names must not lead there.
    pub refused: Option<AddressFilter>,
    /// Resolved at once and never forgotten.
    pub preresolve: Vec<(Arc<str>, u16)>,
}

/// Addresses by networks. Source: `envoy.type.matcher.v3.AddressMatcher`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AddressFilter {
    ranges: Box<[IpNet]>,
    invert: bool,
}

impl AddressFilter {
    /// Whether it is an address within one of the networks; outside of all of them if that is what is asked for.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address)) != self.invert
    }

    fn parse(at: &FieldPath<'_>, wire: AddressMatcher) -> Parsed<Self> {
        decide!(wire, at, AddressMatcher as "envoy.type.matcher.v3.AddressMatcher" {
            implemented: ranges, invert_match;
            no_effect: ;
            unsupported: ;
        });
        Ok(Self { ranges: wire::each(&at.field("ranges"), ranges, network)?.into(), invert: invert_match })
    }
}

impl DnsCache {
    /// Reads the message at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::DnsCacheConfig) -> Parsed<Self> {
        decide!(wire, at, pb::DnsCacheConfig as "envoy.extensions.common.dynamic_forward_proxy.v3.DnsCacheConfig" {
            implemented: name, dns_lookup_family, dns_refresh_rate, dns_min_refresh_rate, host_ttl, max_hosts,
                disable_dns_refresh_on_failure, dns_failure_refresh_rate, dns_cache_circuit_breaker,
                use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config, preresolve_hostnames,
                dns_query_timeout, resolved_address_filter;
            no_effect: ;
            unsupported: key_value_config;
        });
        if name.is_empty() {
            return Err(at.field("name").reject("must not be empty"));
        }
        let refresh_rate = match dns_refresh_rate {
            None => DEFAULT_REFRESH,
            Some(wire) => positive(&at.field("dns_refresh_rate"), wire)?,
        };
        let (failure_base_interval, failure_max_interval) = match dns_failure_refresh_rate {
            None => (refresh_rate, refresh_rate),
            Some(rate) => failure_rate(&at.field("dns_failure_refresh_rate"), rate.base_interval, rate.max_interval)?,
        };
        let resolver = match (typed_dns_resolver_config, dns_resolution_config) {
            (Some(wire), _) => Some(dns_resolver(context, &at.field("typed_dns_resolver_config"), wire)?),
            (None, Some(wire)) => Some(dns_resolution(&at.field("dns_resolution_config"), wire)?),
            (None, None) => use_tcp_for_dns_lookups.then(|| DnsResolver { use_tcp: true, ..DnsResolver::default() }),
        };
        let mut dns = DnsOptions {
            refresh_rate,
            jitter: Duration::ZERO,
            failure_base_interval,
            failure_max_interval,
            respect_ttl: true,
            min_refresh_rate: None,
            family: family(&at.field("dns_lookup_family"), dns_lookup_family)?,
            resolver,
        };
        let breaker = dns_cache_circuit_breaker.unwrap_or_default();
        let min = match dns_min_refresh_rate {
            None => DEFAULT_MIN_REFRESH,
            Some(wire) => wire::positive_duration(&at.field("dns_min_refresh_rate"), wire)?,
        };
        dns.min_refresh_rate = Some(min);
        let or = |field, wire: Option<_>, default| match wire {
            None => Ok(default),
            Some(wire) => wire::positive_duration(&at.field(field), wire),
        };
        Ok(Self {
            name: name.into(),
            dns,
            host_ttl: or("host_ttl", host_ttl, DEFAULT_HOST_TTL)?,
            max_hosts: wire::number_within(&at.field("max_hosts"), max_hosts, 1..=u32::MAX)?.unwrap_or(1024),
            forget_failures: disable_dns_refresh_on_failure,
            max_pending_requests: breaker.max_pending_requests.map_or(1024, |limit| limit.value),
            query_timeout: wire::limit(&at.field("dns_query_timeout"), dns_query_timeout, Some(DEFAULT_QUERY_TIMEOUT))?,
            refused: match resolved_address_filter {
                None => None,
                Some(wire) => Some(AddressFilter::parse(&at.field("resolved_address_filter"), wire)?),
            },
            preresolve: wire::each(&at.field("preresolve_hostnames"), preresolve_hostnames, preresolved)?,
        })
    }
}

fn network(at: &FieldPath<'_>, wire: CidrRange) -> Parsed<IpNet> {
    let CidrRange { address_prefix, prefix_len } = wire;
    cidr(at, core::CidrRange { address_prefix, prefix_len })
}

fn preresolved(at: &FieldPath<'_>, wire: core::SocketAddress) -> Parsed<(Arc<str>, u16)> {
    match endpoint_socket_address(at, wire)? {
        EndpointAddress::Named { host, port } => Ok((host, port)),
        EndpointAddress::Resolved(_) => Err(at.field("address").reject("is an IP address, expected a host name")),
    }
}

const DEFAULT_REFRESH: Duration = Duration::from_secs(60);
const DEFAULT_MIN_REFRESH: Duration = Duration::from_secs(5);
const DEFAULT_HOST_TTL: Duration = Duration::from_secs(300);
const DEFAULT_QUERY_TIMEOUT: Duration = Duration::from_secs(5);
