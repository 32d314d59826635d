//! Reading a cluster (`envoy.config.cluster.v3.Cluster`).
//!
//! Owns the message itself and what its parts demand of each other. The parts have files of their own: `discovery`,
//! `balancing`, `limits`, `http`, `endpoints`.

use std::time::Duration;

use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_api::pb::google::protobuf::BoolValue;
use prost::Message as _;

use super::balancing::{BalancingFields, ReadBalancing, balancing, metric};
use super::concurrency::{Carriers, concurrency};
use super::discovery::{Custom, DiscoveryFields, DnsFields, discovery};
use super::health_check::health_checks;
use super::http::{HttpFields, ReadHttp, upstream_http};
use super::limits::circuit_breakers;
use super::load_reports::load_reports;
use super::outlier::{outlier_detection, probation_requests};
use super::transport::{preconnect, transport_matcher, transport_matches};
use super::{
    Cluster, Concurrency, Discovery, HappyEyeballs, LoadBalancing, Probe, UpstreamProtocol, UpstreamTransport,
};
use crate::address_parse::{bind_config, tcp_keepalive};
use crate::context::Context;
use crate::decide::decide;
use crate::istio::{ClusterHints, upstream_filters};
use crate::listener::TcpKeepalive;
use crate::rejection::{FieldPath, Parsed};
use crate::tls::{retire_within, upstream_transport_socket};
use crate::wire;

impl Cluster {
    /// Reads a cluster.
    pub fn parse(context: &Context<'_>, wire: pb::Cluster) -> Parsed<Self> {
        let name = wire.name.clone();
        parse(context, &FieldPath::resource("cluster", &name), wire)
    }
}

fn parse(context: &Context<'_>, at: &FieldPath<'_>, mut wire: pb::Cluster) -> Parsed<Cluster> {
    wire::drop_zero(&mut wire.per_connection_buffer_high_watermark_timeout);
    decide!(wire, at, pb::Cluster as "envoy.config.cluster.v3.Cluster" {
        implemented: name, alt_stat_name, eds_cluster_config, connect_timeout, per_connection_buffer_limit_bytes,
            lb_policy, load_assignment, max_requests_per_connection, circuit_breakers,
            upstream_http_protocol_options, common_http_protocol_options, http_protocol_options,
            http2_protocol_options, typed_extension_protocol_options, dns_refresh_rate, dns_jitter,
            dns_failure_refresh_rate, respect_dns_ttl, dns_lookup_family, dns_resolvers, use_tcp_for_dns_lookups,
            dns_resolution_config, typed_dns_resolver_config, wait_for_warm_on_init, cleanup_interval,
            upstream_bind_config, common_lb_config, transport_socket, transport_socket_matches, protocol_selection,
            upstream_connection_options, ignore_health_on_host_removal, load_balancing_policy, upstream_config,
            cluster_discovery_type, lb_config, preconnect_policy, connection_pool_per_downstream_connection,
            lb_subset_config, outlier_detection, health_checks, metadata, filters,
            close_connections_on_host_health_failure, lrs_server, lrs_report_endpoint_metrics,
            transport_socket_matcher, queuing_policies;
        no_effect: stats_matcher = "the bootstrap's stats matcher holds for all clusters",
            track_timeout_budgets = "these stats are not kept",
            track_cluster_stats = "these stats are not kept";
        unsupported: per_connection_buffer_high_watermark_timeout;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    check_wait_for_warm(&at.field("wait_for_warm_on_init"), wait_for_warm_on_init)?;
    check_upstream_config(context, &at.field("upstream_config"), upstream_config)?;
    check_queue(context, &at.field("queuing_policies"), queuing_policies)?;
    let fields = BalancingFields {
        policy: lb_policy,
        config: lb_config,
        list: load_balancing_policy,
        subsets: lb_subset_config,
        common: common_lb_config,
    };
    let ReadBalancing { policy, options, original_dst, healthy_panic_threshold, update_merge_window } =
        balancing(context, at, fields)?;
    let Custom { discovery, insecure_names } = discovery(
        context,
        at,
        DiscoveryFields {
            cluster_name: &name,
            kind: cluster_discovery_type,
            eds: eds_cluster_config,
            assignment: load_assignment,
            original_dst,
            cleanup_interval,
            dns: DnsFields {
                refresh_rate: dns_refresh_rate,
                jitter: dns_jitter,
                failure_refresh_rate: dns_failure_refresh_rate,
                respect_ttl: respect_dns_ttl,
                family: dns_lookup_family,
                resolvers: dns_resolvers,
                use_tcp: use_tcp_for_dns_lookups,
                resolution: dns_resolution_config,
                typed_resolver: typed_dns_resolver_config,
            },
        },
    )?;
    check_policy_fits(&at.field("lb_policy"), &discovery, &policy)?;
    let transport = match transport_socket {
        None => UpstreamTransport::Raw,
        Some(socket) => upstream_transport_socket(context, &at.field("transport_socket"), socket)?,
    };
    let forwards = matches!(discovery, Discovery::DynamicForward(_));
    // Names that requests bring have to be checked, unless somebody says that they need not be.
    let http_defaults =
        core::UpstreamHttpProtocolOptions { auto_sni: true, auto_san_validation: true, ..Default::default() };
    let upstream_http_protocol_options = upstream_http_protocol_options.or_else(|| forwards.then_some(http_defaults));
    let ReadHttp { http, requests, max_requests_per_connection, concurrency: typed } = upstream_http(
        context,
        at,
        HttpFields {
            typed: typed_extension_protocol_options,
            common: common_http_protocol_options,
            upstream: upstream_http_protocol_options,
            http1: http_protocol_options,
            http2: http2_protocol_options,
            protocol_selection,
            max_requests_per_connection,
        },
    )?;
    if http.protocol == UpstreamProtocol::Auto && transport.tls().is_none() {
        return Err(at.field("typed_extension_protocol_options").reject("auto_config needs a TLS transport_socket"));
    }
    let (circuit_breakers, per_host) =
        self::circuit_breakers(&at.field("circuit_breakers"), circuit_breakers.unwrap_or_default())?;
    let health_checks = self::health_checks(context, &at.field("health_checks"), &name, health_checks)?;
    // An agent may set a limit at any time (`maxconn:30`), over which requests wait.
    let has_agent = health_checks.iter().any(|check| matches!(check.probe, Probe::Agent(_)));
    let concurrency = self::concurrency(context, at, Carriers { typed, metadata: metadata.as_ref(), per_host })?
        .or_else(|| has_agent.then(Concurrency::default));
    if concurrency.is_some() {
        check_has_places(&at.field("cluster_type"), &discovery)?;
    }
    if forwards && !insecure_names && !(http.auto_sni && http.auto_san_validation) {
        let reason = "must have auto_sni and auto_san_validation unless allow_insecure_cluster_options is set";
        return Err(at.field("typed_extension_protocol_options").reject(reason));
    }
    let ConnectionOptions { tcp_keepalive, happy_eyeballs } =
        connection_options(&at.field("upstream_connection_options"), upstream_connection_options.unwrap_or_default())?;
    let retire_within = retire_within(context, &at.field("metadata"), metadata.as_ref())?;
    let probation = probation_requests(&at.field("metadata"), metadata.as_ref())?;
    let transport_matches =
        self::transport_matches(context, &at.field("transport_socket_matches"), transport_socket_matches)?;
    let transport_matcher = match transport_socket_matcher {
        None => None,
        Some(wire) => {
            let at = at.field("transport_socket_matcher");
            Some(Box::new(self::transport_matcher(context, &at, &transport_matches, wire)?))
        }
    };
    let connect_at = at.field("connect_timeout");
    Ok(Cluster {
        stat_name: if alt_stat_name.is_empty() { name.as_str().into() } else { alt_stat_name.into() },
        name: name.as_str().into(),
        discovery,
        connect_timeout: match connect_timeout {
            None => DEFAULT_CONNECT_TIMEOUT,
            Some(timeout) => wire::positive_duration(&connect_at, timeout)?,
        },
        per_connection_buffer_limit_bytes: per_connection_buffer_limit_bytes
            .map_or(DEFAULT_BUFFER_BYTES, |limit| limit.value),
        load_balancing: policy,
        balancing: options,
        circuit_breakers,
        concurrency: concurrency.map(Box::new),
        http,
        requests: requests.map(Box::new),
        transport,
        transport_matches,
        transport_matcher,
        retire_within,
        tcp_keepalive,
        happy_eyeballs,
        preconnect: match preconnect_policy {
            None => None,
            Some(wire) => preconnect(&at.field("preconnect_policy"), wire)?,
        },
        pool_per_downstream: connection_pool_per_downstream_connection,
        bind: match upstream_bind_config {
            None => None,
            Some(config) => Some(Box::new(bind_config(&at.field("upstream_bind_config"), config)?)),
        },
        healthy_panic_threshold,
        update_merge_window,
        max_requests_per_connection,
        ignore_health_on_host_removal,
        close_connections_on_host_health_failure,
        istio: ClusterHints::read(&name, metadata.as_ref()),
        metadata: metadata
            .as_ref()
            .filter(|wire| !wire.filter_metadata.is_empty())
            .map(|wire| wire.encode_to_vec().into()),
        metadata_exchange: upstream_filters(context, &at.field("filters"), filters)?,
        health_checks,
        load_reports: self::load_reports(context, &at.field("lrs_server"), lrs_server)?,
        load_metrics: lrs_report_endpoint_metrics.iter().map(|name| metric(name)).collect(),
        outlier_detection: match outlier_detection {
            None => None,
            Some(wire) => {
                let at = at.field("outlier_detection");
                Some(Box::new(self::outlier_detection(&at, wire, probation)?))
            }
        },
    })
}

/// A cluster is always warm before it is used, which is the default.
fn check_wait_for_warm(at: &FieldPath<'_>, wire: Option<BoolValue>) -> Parsed<()> {
    match wire {
        Some(BoolValue { value: false }) => Err(at.reject("false is not supported")),
        _ => Ok(()),
    }
}

/// The generic pool is the default under another name.
fn check_upstream_config(context: &Context<'_>, at: &FieldPath<'_>, wire: Option<TypedExtensionConfig>) -> Parsed<()> {
    let Some(TypedExtensionConfig { name: _, typed_config }) = wire else { return Ok(()) };
    let at = at.field("typed_config");
    let Some(config) = typed_config else { return Err(at.reject("is required")) };
    let config = wire::extension(context, &at, config)?;
    match wire::type_name(&config) {
        "envoy.extensions.upstreams.http.generic.v3.GenericConnectionPoolProto" => Ok(()),
        _ => Err(at.reject(format!("{:?} is not supported", config.type_url))),
    }
}

/// Some cluster types bring a policy of their own, and they know no other.
fn check_policy_fits(at: &FieldPath<'_>, discovery: &Discovery, policy: &LoadBalancing) -> Parsed<()> {
    let provided = *policy == LoadBalancing::ClusterProvided;
    match (discovery.provides_choice(), provided) {
        (true, false) => {
            let kind = discovery.type_name();
            Err(at.reject(format!("must be CLUSTER_PROVIDED for a cluster of type {kind}")))
        }
        (false, true) => {
            let kind = discovery.type_name();
            Err(at.reject(format!("CLUSTER_PROVIDED is not for clusters of type {kind}, which leave the choice open")))
        }
        (true, true) | (false, false) => Ok(()),
    }
}

/// Places are those of endpoints, which an aggregate cluster does not have.
fn check_has_places(at: &FieldPath<'_>, discovery: &Discovery) -> Parsed<()> {
    match discovery {
        Discovery::Aggregate(_) => Err(at.reject(
            "an aggregate cluster has no endpoints that could have concurrency options: give them to its members, where \
             they hold for requests of both",
        )),
        _ => Ok(()),
    }
}

/// Who waits first is served first, which is the one order there is.
fn check_queue(context: &Context<'_>, at: &FieldPath<'_>, wire: Option<pb::cluster::QueuingPolicies>) -> Parsed<()> {
    let Some(wire) = wire else { return Ok(()) };
    decide!(wire, at, pb::cluster::QueuingPolicies as "envoy.config.cluster.v3.Cluster.QueuingPolicies" {
        implemented: pending_rq_policy;
        no_effect: ;
        unsupported: ;
    });
    let Some(TypedExtensionConfig { name: _, typed_config }) = pending_rq_policy else { return Ok(()) };
    let at = at.field("pending_rq_policy");
    let at = at.field("typed_config");
    let Some(config) = typed_config else { return Err(at.reject("is required")) };
    let config = wire::extension(context, &at, config)?;
    match wire::type_name(&config) {
        "envoy.extensions.queue_policy.fifo.v3.FifoQueuePolicyConfig" => Ok(()),
        _ => Err(at.reject(format!("{:?} is not supported", config.type_url))),
    }
}

/// What holds for each new connection.
struct ConnectionOptions {
    tcp_keepalive: Option<TcpKeepalive>,
    happy_eyeballs: HappyEyeballs,
}

fn connection_options(at: &FieldPath<'_>, wire: pb::UpstreamConnectionOptions) -> Parsed<ConnectionOptions> {
    decide!(wire, at, pb::UpstreamConnectionOptions as "envoy.config.cluster.v3.UpstreamConnectionOptions" {
        implemented: tcp_keepalive, happy_eyeballs_config;
        no_effect: set_local_interface_name_on_upstream_connections = "no extension reads the interface name";
        unsupported: ;
    });
    let happy_at = at.field("happy_eyeballs_config");
    Ok(ConnectionOptions {
        tcp_keepalive: match tcp_keepalive {
            None => None,
            Some(settings) => self::tcp_keepalive(&at.field("tcp_keepalive"), settings)?,
        },
        happy_eyeballs: happy_eyeballs_config
            .map_or(Ok(HappyEyeballs::default()), |wire| happy_eyeballs(&happy_at, wire))?,
    })
}

fn happy_eyeballs(
    at: &FieldPath<'_>,
    wire: pb::upstream_connection_options::HappyEyeballsConfig,
) -> Parsed<HappyEyeballs> {
    use pb::upstream_connection_options::FirstAddressFamilyVersion as Version;
    decide!(wire, at, pb::upstream_connection_options::HappyEyeballsConfig
        as "envoy.config.cluster.v3.UpstreamConnectionOptions.HappyEyeballsConfig" {
        implemented: first_address_family_version, first_address_family_count;
        no_effect: ;
        unsupported: ;
    });
    let version_at = at.field("first_address_family_version");
    let unknown = |_| wire::unknown_enum(&version_at, first_address_family_version);
    let count_at = at.field("first_address_family_count");
    Ok(HappyEyeballs {
        first_is_ipv6: match Version::try_from(first_address_family_version).map_err(unknown)? {
            Version::Default => None,
            Version::V4 => Some(false),
            Version::V6 => Some(true),
            // An address of another kind has no other family.
            Version::Pipe | Version::Internal => return Err(version_at.reject("is not supported: neither V4 nor V6")),
        },
        first_count: wire::number_within(&count_at, first_address_family_count, 1..=u32::MAX)?.unwrap_or(1),
    })
}

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_BUFFER_BYTES: u32 = 1 << 20;
