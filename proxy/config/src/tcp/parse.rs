//! Reads TCP proxies.
//!
//! Owns how the message is checked. Never moves bytes.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use outrigger_api::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy as parts;
use outrigger_api::pb::envoy::r#type::v3 as types;
use outrigger_api::pb::google::protobuf;

use super::{BackOff, ProxyTlvs, TcpProxy, Tunneling, WeightedClusters};
use crate::accesslog::access_logs;
use crate::cluster::lb_metadata;
use crate::context::Context;
use crate::decide::decide;
use crate::http::filters::{OnDemandClusters, on_demand_source};
use crate::rejection::{FieldPath, Parsed};
use crate::route::{HashPolicy, HashSource};
use crate::wire;

impl TcpProxy {
    /// Reads the message at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: tcp::TcpProxy) -> Parsed<Self> {
        decide!(wire, at, tcp::TcpProxy as "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" {
            implemented: stat_prefix, cluster_specifier, idle_timeout, access_log, max_connect_attempts,
                max_downstream_connection_duration, access_log_flush_interval, access_log_options, hash_policy,
                metadata_match, flush_access_log_on_connected, tunneling_config, backoff_options,
                max_downstream_connection_duration_jitter_percentage, upstream_connect_mode, max_early_data_bytes,
                check_drain_close, on_demand, proxy_protocol_tlvs, proxy_protocol_tlv_merge_policy;
            no_effect: downstream_idle_timeout = "Envoy does not implement it either",
                upstream_idle_timeout = "Envoy does not implement it either";
            unsupported: ;
        });
        if stat_prefix.is_empty() {
            return Err(at.field("stat_prefix").reject("must not be empty"));
        }
        let options = at.field("access_log_options");
        let (access_log_flush_interval, log_on_connected, log_on_start) = match access_log_options {
            Some(wire) => log_times(&options, wire)?,
            None => {
                let field = at.field("access_log_flush_interval");
                (at_least_1_ms(&field, access_log_flush_interval)?, flush_access_log_on_connected, false)
            }
        };
        let attempts = at.field("max_connect_attempts");
        Ok(Self {
            stat_prefix: stat_prefix.into(),
            target: target(at, cluster_specifier)?,
            hash_policy: self::hash_policy(&at.field("hash_policy"), hash_policy)?,
            on_demand: self::on_demand(context, &at.field("on_demand"), on_demand)?,
            metadata_match: lb_metadata(metadata_match).map(Arc::new),
            idle_timeout: wire::limit(&at.field("idle_timeout"), idle_timeout, Some(DEFAULT_IDLE_TIMEOUT))?,
            max_connect_attempts: wire::number_within(&attempts, max_connect_attempts, 1..=u32::MAX)?.unwrap_or(1),
            max_downstream_connection_duration: at_least_1_ms(
                &at.field("max_downstream_connection_duration"),
                max_downstream_connection_duration,
            )?,
            max_downstream_connection_duration_jitter: max_downstream_connection_duration_jitter_percentage
                .map(|wire| wire::percent(&at.field("max_downstream_connection_duration_jitter_percentage"), wire))
                .transpose()?,
            back_off: back_off(&at.field("backoff_options"), backoff_options)?,
            tunneling: match tunneling_config {
                Some(wire) => Some(Box::new(Tunneling::parse(context, &at.field("tunneling_config"), wire)?)),
                None => None,
            },
            proxy_tlvs: ProxyTlvs::parse(context, at, proxy_protocol_tlvs, proxy_protocol_tlv_merge_policy)?,
            connect_on_data: connect_on_data(at, upstream_connect_mode, max_early_data_bytes)?,
            check_drain_close: check_drain_close.is_some_and(|flag| flag.value),
            access_logs: access_logs(context, &at.field("access_log"), access_log)?,
            access_log_flush_interval,
            log_on_connected,
            log_on_start,
        })
    }
}

/// Where clusters come from that are not known; `None` if nobody waits for them.
fn on_demand(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<parts::OnDemand>,
) -> Parsed<Option<Arc<OnDemandClusters>>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, at, parts::OnDemand as "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.OnDemand" {
        implemented: odcds_config, timeout;
        no_effect: ;
        unsupported: resources_locator;
    });
    let timeout = timeout.map(|limit| wire::positive_duration(&at.field("timeout"), limit)).transpose()?;
    let Some(source) = odcds_config else { return Ok(None) };
    let source = on_demand_source(context, &at.field("odcds_config"), source)?;
    Ok(Some(Arc::new(OnDemandClusters { source, timeout: timeout.unwrap_or(DEFAULT_ON_DEMAND_TIMEOUT) })))
}

fn back_off(at: &FieldPath<'_>, wire: Option<core::BackoffStrategy>) -> Parsed<Option<BackOff>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, at, core::BackoffStrategy as "envoy.config.core.v3.BackoffStrategy" {
        implemented: base_interval, max_interval;
        no_effect: ;
        unsupported: ;
    });
    let base_at = at.field("base_interval");
    let Some(base) = at_least_1_ms(&base_at, base_interval)? else { return Err(base_at.reject("is required")) };
    let max_at = at.field("max_interval");
    let max = at_least_1_ms(&max_at, max_interval)?.unwrap_or(base * 10);
    if max < base {
        return Err(max_at.reject(format!("{max:?} is less than base_interval, {base:?}")));
    }
    Ok(Some(BackOff { base, max }))
}

/// Whether the endpoint has to wait for the client. What a client sends before there is an endpoint stays in its socket, so
/// no limit for it is needed here.
fn connect_on_data(at: &FieldPath<'_>, mode: i32, early_bytes: Option<protobuf::UInt32Value>) -> Parsed<bool> {
    let early_at = at.field("max_early_data_bytes");
    let early_bytes = wire::number_within(&early_at, early_bytes, 0..=MAX_EARLY_BYTES)?;
    let mode_at = at.field("upstream_connect_mode");
    let mode = tcp::UpstreamConnectMode::try_from(mode).map_err(|_| wire::unknown_enum(&mode_at, mode))?;
    if mode != tcp::UpstreamConnectMode::Immediate && early_bytes.is_none() {
        return Err(early_at.reject("is required unless upstream_connect_mode is IMMEDIATE"));
    }
    match mode {
        // The handshake is over before the filter hears of the connection.
        tcp::UpstreamConnectMode::Immediate | tcp::UpstreamConnectMode::OnDownstreamTlsHandshake => Ok(false),
        tcp::UpstreamConnectMode::OnDownstreamData => Ok(true),
    }
}

fn hash_policy(at: &FieldPath<'_>, wire: Vec<types::HashPolicy>) -> Parsed<Arc<[HashPolicy]>> {
    use types::hash_policy::{FilterState, PolicySpecifier, SourceIp};
    if wire.len() > 1 {
        return Err(at.reject("must not have more than one item"));
    }
    let mut policies = Vec::with_capacity(wire.len());
    for (index, types::HashPolicy { policy_specifier }) in wire.into_iter().enumerate() {
        let at = at.item(index);
        let source = match policy_specifier {
            Some(PolicySpecifier::SourceIp(SourceIp {})) => HashSource::SourceIp,
            Some(PolicySpecifier::FilterState(FilterState { key })) if key.is_empty() => {
                return Err(at.field("filter_state").field("key").reject("must not be empty"));
            }
            Some(PolicySpecifier::FilterState(FilterState { key })) => HashSource::FilterState(key),
            None => return Err(at.reject("needs one of source_ip, filter_state")),
        };
        policies.push(HashPolicy { source, terminal: false });
    }
    Ok(policies.into())
}

fn target(at: &FieldPath<'_>, wire: Option<parts::ClusterSpecifier>) -> Parsed<WeightedClusters> {
    match wire {
        // No name is none of a cluster: what an earlier filter chose (`sni_cluster`) is the only one then.
        Some(parts::ClusterSpecifier::Cluster(name)) => Ok(WeightedClusters { clusters: vec![(name.into(), 1)] }),
        Some(parts::ClusterSpecifier::WeightedClusters(parts::WeightedCluster { clusters })) => {
            let list = at.field("weighted_clusters");
            let list = list.field("clusters");
            if clusters.is_empty() {
                return Err(list.reject("must not be empty"));
            }
            let clusters = wire::each(&list, clusters, weighted)?;
            Ok(WeightedClusters { clusters })
        }
        None => Err(at.reject("needs one of cluster, weighted_clusters")),
    }
}

fn weighted(at: &FieldPath<'_>, wire: parts::weighted_cluster::ClusterWeight) -> Parsed<(Arc<str>, u32)> {
    use parts::weighted_cluster::ClusterWeight;
    decide!(wire, at, ClusterWeight as "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight" {
        implemented: name, weight;
        no_effect: ;
        unsupported: metadata_match;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    if weight == 0 {
        return Err(at.field("weight").reject("0 must be above zero"));
    }
    Ok((name.into(), weight))
}

fn log_times(at: &FieldPath<'_>, wire: parts::TcpAccessLogOptions) -> Parsed<(Option<Duration>, bool, bool)> {
    use parts::TcpAccessLogOptions;
    decide!(wire, at, TcpAccessLogOptions as "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TcpAccessLogOptions" {
        implemented: access_log_flush_interval, flush_access_log_on_connected, flush_access_log_on_start;
        no_effect: ;
        unsupported: ;
    });
    let interval = at_least_1_ms(&at.field("access_log_flush_interval"), access_log_flush_interval)?;
    Ok((interval, flush_access_log_on_connected, flush_access_log_on_start))
}

/// A duration of at least 1 ms, if given.
fn at_least_1_ms(at: &FieldPath<'_>, wire: Option<protobuf::Duration>) -> Parsed<Option<Duration>> {
    let Some(wire) = wire else { return Ok(None) };
    let value = wire::duration(at, wire)?;
    if value < Duration::from_millis(1) {
        return Err(at.reject(format!("{value:?} must be at least 1 ms")));
    }
    Ok(Some(value))
}

/// Source: `(validate.rules)` of `max_early_data_bytes`.
const MAX_EARLY_BYTES: u32 = 1 << 20;
/// What Envoy has where `TcpProxy.OnDemand.timeout` is not given.
const DEFAULT_ON_DEMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Source: `TcpProxy.idle_timeout`.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
