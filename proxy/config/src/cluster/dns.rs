//! Reading the DNS settings of a cluster, as the extension `DnsCluster` or the older fields of `Cluster`.
//!
//! Owns their defaults. Never resolves a name.

use std::time::Duration;

use outrigger_api::pb::envoy::config::cluster::v3::cluster;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily;
use outrigger_api::pb::envoy::extensions::clusters::dns::v3 as dns;
use outrigger_api::pb::google::protobuf::Duration as WireDuration;

use super::{DnsFamily, DnsOptions};
use crate::context::Context;
use crate::decide::decide;
use crate::dns::{DnsResolver, dns_resolution, dns_resolver, servers};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// The older fields of a cluster that are about DNS.
pub(super) struct DnsFields {
    pub refresh_rate: Option<WireDuration>,
    pub jitter: Option<WireDuration>,
    pub failure_refresh_rate: Option<cluster::RefreshRate>,
    pub respect_ttl: bool,
    pub family: i32,
    pub resolvers: Vec<core::Address>,
    pub use_tcp: bool,
    pub resolution: Option<core::DnsResolutionConfig>,
    pub typed_resolver: Option<core::TypedExtensionConfig>,
}

/// Reads the older fields of the cluster `at`.
pub(super) fn dns_options(context: &Context<'_>, at: &FieldPath<'_>, wire: DnsFields) -> Parsed<DnsOptions> {
    let family = family(&at.field("dns_lookup_family"), wire.family)?;
    let refresh_rate = refresh_rate(&at.field("dns_refresh_rate"), wire.refresh_rate)?;
    let failure_at = at.field("dns_failure_refresh_rate");
    let failure = match wire.failure_refresh_rate {
        None => (refresh_rate, refresh_rate),
        Some(cluster::RefreshRate { base_interval, max_interval }) => {
            failure_rate(&failure_at, base_interval, max_interval)?
        }
    };
    let resolver = older_resolver(context, at, wire.typed_resolver, wire.resolution, wire.resolvers, wire.use_tcp)?;
    Ok(DnsOptions {
        refresh_rate,
        jitter: jitter(&at.field("dns_jitter"), wire.jitter)?,
        failure_base_interval: failure.0,
        failure_max_interval: failure.1,
        respect_ttl: wire.respect_ttl,
        min_refresh_rate: None,
        family,
        resolver,
    })
}

/// Source: `Cluster.DnsLookupFamily`.
pub(super) fn family(at: &FieldPath<'_>, wire: i32) -> Parsed<DnsFamily> {
    use cluster::DnsLookupFamily as Wire;
    Ok(match Wire::try_from(wire).map_err(|_| wire::unknown_enum(at, wire))? {
        Wire::Auto => DnsFamily::Auto,
        Wire::V4Only => DnsFamily::V4Only,
        Wire::V6Only => DnsFamily::V6Only,
        Wire::V4Preferred => DnsFamily::V4Preferred,
        Wire::All => DnsFamily::All,
    })
}

/// Reads the extension, and whether all addresses are of one endpoint (a logical DNS cluster).
pub(super) fn dns_cluster(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: dns::DnsCluster,
) -> Parsed<(DnsOptions, bool)> {
    decide!(wire, at, dns::DnsCluster as "envoy.extensions.clusters.dns.v3.DnsCluster" {
        implemented: dns_refresh_rate, dns_failure_refresh_rate, respect_dns_ttl, dns_jitter,
            typed_dns_resolver_config, dns_lookup_family, all_addresses_in_single_endpoint, dns_min_refresh_rate;
        no_effect: ;
        unsupported: ;
    });
    let family_at = at.field("dns_lookup_family");
    let family = match DnsLookupFamily::try_from(dns_lookup_family)
        .map_err(|_| wire::unknown_enum(&family_at, dns_lookup_family))?
    {
        DnsLookupFamily::Unspecified | DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    };
    let refresh_rate = refresh_rate(&at.field("dns_refresh_rate"), dns_refresh_rate)?;
    let failure_at = at.field("dns_failure_refresh_rate");
    let failure = match dns_failure_refresh_rate {
        None => (refresh_rate, refresh_rate),
        Some(dns::dns_cluster::RefreshRate { base_interval, max_interval }) => {
            failure_rate(&failure_at, base_interval, max_interval)?
        }
    };
    let resolver = match typed_dns_resolver_config {
        None => None,
        Some(config) => Some(dns_resolver(context, &at.field("typed_dns_resolver_config"), config)?),
    };
    let options = DnsOptions {
        refresh_rate,
        jitter: jitter(&at.field("dns_jitter"), dns_jitter)?,
        failure_base_interval: failure.0,
        failure_max_interval: failure.1,
        respect_ttl: respect_dns_ttl,
        min_refresh_rate: min_refresh_rate(&at.field("dns_min_refresh_rate"), dns_min_refresh_rate)?,
        family,
        resolver,
    };
    Ok((options, all_addresses_in_single_endpoint))
}

fn refresh_rate(at: &FieldPath<'_>, wire: Option<WireDuration>) -> Parsed<Duration> {
    wire.map_or(Ok(DEFAULT_REFRESH_RATE), |wire| above_a_millisecond(at, wire))
}

fn min_refresh_rate(at: &FieldPath<'_>, wire: Option<WireDuration>) -> Parsed<Option<Duration>> {
    let Some(wire) = wire else { return Ok(None) };
    match wire::duration(at, wire)? {
        rate if rate >= Duration::from_secs(1) => Ok(Some(rate)),
        rate => Err(at.reject(format!("{rate:?} is below 1s"))),
    }
}

fn jitter(at: &FieldPath<'_>, wire: Option<WireDuration>) -> Parsed<Duration> {
    wire.map_or(Ok(Duration::ZERO), |wire| wire::duration(at, wire))
}

pub(super) fn failure_rate(
    at: &FieldPath<'_>,
    base: Option<WireDuration>,
    max: Option<WireDuration>,
) -> Parsed<(Duration, Duration)> {
    let base_at = at.field("base_interval");
    let Some(base) = base else {
        return Err(base_at.reject("is required"));
    };
    let base = above_a_millisecond(&base_at, base)?;
    let max_at = at.field("max_interval");
    let max = match max {
        None => base.saturating_mul(10),
        Some(max) => above_a_millisecond(&max_at, max)?,
    };
    if max < base {
        return Err(max_at.reject(format!("{max:?} must not be below base_interval, {base:?}")));
    }
    Ok((base, max))
}

/// A refresh rate.
pub(super) fn positive(at: &FieldPath<'_>, wire: WireDuration) -> Parsed<Duration> {
    above_a_millisecond(at, wire)
}

fn above_a_millisecond(at: &FieldPath<'_>, wire: WireDuration) -> Parsed<Duration> {
    let value = wire::duration(at, wire)?;
    if value <= Duration::from_millis(1) {
        return Err(at.reject(format!("{value:?} must be above 1ms")));
    }
    Ok(value)
}

/// Each newer form replaces the older ones.
fn older_resolver(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    typed: Option<core::TypedExtensionConfig>,
    resolution: Option<core::DnsResolutionConfig>,
    resolvers: Vec<core::Address>,
    use_tcp: bool,
) -> Parsed<Option<DnsResolver>> {
    if let Some(wire) = typed {
        return dns_resolver(context, &at.field("typed_dns_resolver_config"), wire).map(Some);
    }
    if let Some(wire) = resolution {
        return dns_resolution(&at.field("dns_resolution_config"), wire).map(Some);
    }
    if resolvers.is_empty() && !use_tcp {
        return Ok(None);
    }
    let servers = servers(&at.field("dns_resolvers"), resolvers)?;
    Ok(Some(DnsResolver { servers, use_tcp, ..DnsResolver::default() }))
}

const DEFAULT_REFRESH_RATE: Duration = Duration::from_secs(5);
