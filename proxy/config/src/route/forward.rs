//! Reading routes that forward (`envoy.config.route.v3.RouteAction`, `WeightedCluster`).
//!
//! Owns the checks of where a request goes and how it is changed on the way. Never forwards anything.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::route::v3 as pb;
use outrigger_api::pb::google::protobuf::Duration as WireDuration;

use super::entry::RouteScope;
use super::hash_policy::hash_policies;
use super::hedge::hedge_on_per_try_timeout;
use super::internal_redirect;
use super::mirror::mirror_policies;
use super::parse::optional_plugin;
use super::retry::retry_policy;
use super::rewrite::regex_rewrite;
use super::{
    ClusterChoice, ConnectEnd, Forward, HostRewrite, MaxStreamDuration, PathMatch, Priority, WeightChoice,
    WeightedCluster,
};
use crate::cluster::{LbMetadata, lb_metadata};
use crate::decide::decide;
use crate::format::Format;
use crate::http::RouteFilters;
use crate::http::filters::deprecated_cors;
use crate::http::header_mutations::{header_name, request_header_mutations, response_header_mutations};
use crate::matching::UriRewrite;
use crate::rate_limit::{RateLimitPlace, rate_limits};
use crate::rejection::{FieldPath, Parsed};
use crate::tls::proxy_header;
use crate::wire;

/// Reads a forwarding action; `None` if its cluster is chosen by a plugin that is missing and may be.
pub(super) fn forward(
    scope: &RouteScope<'_, '_>,
    at: &FieldPath<'_>,
    path: &PathMatch,
    wire: pb::RouteAction,
) -> Parsed<Option<Forward>> {
    decide!(wire, at, pb::RouteAction as "envoy.config.route.v3.RouteAction" {
        implemented: cluster_not_found_response_code, prefix_rewrite, regex_rewrite, append_x_forwarded_host,
            timeout, idle_timeout, retry_policy, priority, max_grpc_timeout, upgrade_configs, max_stream_duration,
            cluster_specifier, host_rewrite_specifier, hash_policy, metadata_match, request_mirror_policies,
            path_rewrite_policy, rate_limits, include_vh_rate_limits, internal_redirect_policy,
            internal_redirect_action, max_internal_redirects, grpc_timeout_offset, path_rewrite, cors, hedge_policy;
        no_effect: early_data_policy = "TLS early data is neither taken nor sent",
            retry_policy_typed_config = "Envoy does not implement it: retry_policy counts";
        unsupported: flush_timeout;
    });
    let metadata = lb_metadata(metadata_match);
    let mut weight_choice = WeightChoice::default();
    let cluster = cluster_choice(scope, at, cluster_specifier, metadata.as_ref(), &mut weight_choice)?;
    let Some(cluster) = cluster else { return Ok(None) };
    if !prefix_rewrite.is_empty() && regex_rewrite.is_some() {
        return Err(at.field("regex_rewrite").reject("must not be set together with prefix_rewrite"));
    }
    wire::header_value(&at.field("prefix_rewrite"), &prefix_rewrite)?;
    let template_rewrite = match path_rewrite_policy {
        None => None,
        Some(_) if !prefix_rewrite.is_empty() || regex_rewrite.is_some() => {
            let at = at.field("path_rewrite_policy");
            return Err(at.reject("must not be set together with prefix_rewrite or regex_rewrite"));
        }
        Some(policy) => {
            let template = match path {
                PathMatch::Template(template) => Some(template),
                _ => None,
            };
            Some(Box::new(UriRewrite::parse(scope.context, &at.field("path_rewrite_policy"), policy, template)?))
        }
    };
    let path_at = at.field("path_rewrite");
    let rewritten = !prefix_rewrite.is_empty() || regex_rewrite.is_some() || template_rewrite.is_some();
    let path_format = match path_rewrite.as_str() {
        "" => None,
        _ if rewritten => {
            return Err(path_at.reject("excludes prefix_rewrite, regex_rewrite and path_rewrite_policy"));
        }
        text => {
            wire::header_value(&path_at, text)?;
            Some(Box::new(Format::parse(&path_at, text)?))
        }
    };
    let handles_redirects = match pb::route_action::InternalRedirectAction::try_from(internal_redirect_action) {
        Ok(pb::route_action::InternalRedirectAction::HandleInternalRedirect) => true,
        Ok(pb::route_action::InternalRedirectAction::PassThroughInternalRedirect) => false,
        Err(_) => return Err(wire::unknown_enum(&at.field("internal_redirect_action"), internal_redirect_action)),
    };
    let internal_redirect = match internal_redirect_policy {
        Some(policy) => {
            let at = at.field("internal_redirect_policy");
            Some(Box::new(internal_redirect::internal_redirect(scope.context, &at, policy)?))
        }
        None => handles_redirects.then(|| Box::new(internal_redirect::deprecated(max_internal_redirects))),
    };
    let (upgrades, connect) = upgrades(&at.field("upgrade_configs"), upgrade_configs)?;
    Ok(Some(Forward {
        cluster,
        weight_choice,
        cluster_not_found_code: not_found_code(
            &at.field("cluster_not_found_response_code"),
            cluster_not_found_response_code,
        )?,
        mirrors: mirror_policies(&at.field("request_mirror_policies"), request_mirror_policies)?,
        prefix_rewrite: Some(prefix_rewrite).filter(|prefix| !prefix.is_empty()),
        regex_rewrite: match regex_rewrite {
            None => None,
            Some(rewrite) => Some(self::regex_rewrite(&at.field("regex_rewrite"), rewrite)?),
        },
        host_rewrite: host_rewrite(at, host_rewrite_specifier)?,
        append_x_forwarded_host,
        timeout: wire::limit(&at.field("timeout"), timeout, Some(DEFAULT_TIMEOUT))?,
        idle_timeout: given(&at.field("idle_timeout"), idle_timeout)?,
        max_stream_duration: match max_stream_duration {
            None => None,
            Some(wire) => Some(self::max_stream_duration(&at.field("max_stream_duration"), wire)?),
        },
        grpc_timeout_offset: given(&at.field("grpc_timeout_offset"), grpc_timeout_offset)?,
        max_grpc_timeout: given(&at.field("max_grpc_timeout"), max_grpc_timeout)?,
        retry_policy: match retry_policy {
            None => None,
            Some(policy) => Some(Arc::new(self::retry_policy(scope.context, &at.field("retry_policy"), policy)?)),
        },
        hedges: match hedge_policy {
            None => None,
            Some(wire) => Some(hedge_on_per_try_timeout(&at.field("hedge_policy"), wire)?),
        },
        cors: deprecated_cors(&at.field("cors"), cors)?,
        priority: self::priority(&at.field("priority"), priority)?,
        upgrades,
        connect,
        hash_policy: hash_policies(&at.field("hash_policy"), hash_policy)?,
        metadata_match: metadata.map(Arc::new),
        template_rewrite,
        path_format,
        queue: None,
        rate_limits: self::rate_limits(&at.field("rate_limits"), rate_limits, RateLimitPlace::Route)?,
        include_virtual_host_rate_limits: include_vh_rate_limits.is_some_and(|flag| flag.value),
        internal_redirect,
    }))
}

fn cluster_choice(
    scope: &RouteScope<'_, '_>,
    at: &FieldPath<'_>,
    wire: Option<pb::route_action::ClusterSpecifier>,
    metadata: Option<&LbMetadata>,
    by: &mut WeightChoice,
) -> Parsed<Option<ClusterChoice>> {
    use pb::route_action::ClusterSpecifier as Wire;
    Ok(Some(match wire {
        Some(Wire::Cluster(name)) if name.is_empty() => return Err(at.field("cluster").reject("must not be empty")),
        Some(Wire::Cluster(name)) => ClusterChoice::Cluster(name.into()),
        Some(Wire::ClusterHeader(name)) => ClusterChoice::Header(header_name(&at.field("cluster_header"), &name)?),
        Some(Wire::WeightedClusters(clusters)) => {
            ClusterChoice::Weighted(weighted_clusters(scope, &at.field("weighted_clusters"), clusters, metadata, by)?)
        }
        Some(Wire::ClusterSpecifierPlugin(name)) => {
            if !scope.optional_plugins.contains(&name) {
                let at = at.field("cluster_specifier_plugin");
                return Err(at.reject(format!("{name:?} is not among the cluster_specifier_plugins")));
            }
            return Ok(None);
        }
        Some(Wire::InlineClusterSpecifierPlugin(plugin)) => {
            optional_plugin(&at.field("inline_cluster_specifier_plugin"), plugin)?;
            return Ok(None);
        }
        None => return Err(at.reject("needs one of cluster, cluster_header, weighted_clusters")),
    }))
}

fn weighted_clusters(
    scope: &RouteScope<'_, '_>,
    at: &FieldPath<'_>,
    wire: pb::WeightedCluster,
    metadata: Option<&LbMetadata>,
    by: &mut WeightChoice,
) -> Parsed<Vec<WeightedCluster>> {
    decide!(wire, at, pb::WeightedCluster as "envoy.config.route.v3.WeightedCluster" {
        implemented: clusters, random_value_specifier, runtime_key_prefix;
        no_effect: total_weight = "the sum of the weights counts";
        unsupported: ;
    });
    use pb::weighted_cluster::RandomValueSpecifier;
    *by = match random_value_specifier {
        Some(RandomValueSpecifier::HeaderName(name)) => {
            WeightChoice::Header(header_name(&at.field("header_name"), &name)?)
        }
        Some(RandomValueSpecifier::UseHashPolicy(flag)) if flag.value => WeightChoice::Hash,
        Some(RandomValueSpecifier::UseHashPolicy(_)) | None => WeightChoice::Random,
    };
    let clusters_at = at.field("clusters");
    if clusters.is_empty() {
        return Err(clusters_at.reject("needs at least one cluster"));
    }
    let mut clusters = wire::each(&clusters_at, clusters, |at, wire| weighted_cluster(scope, at, wire, metadata))?;
    let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    if sum == 0 || sum > u64::from(u32::MAX) {
        return Err(clusters_at.reject(format!("the weights add up to {sum}, expected 1 to {}", u32::MAX)));
    }
    if !runtime_key_prefix.is_empty() {
        for cluster in &mut clusters {
            cluster.runtime_key = Some(format!("{runtime_key_prefix}.{}", cluster.name).into());
        }
    }
    Ok(clusters)
}

fn weighted_cluster(
    scope: &RouteScope<'_, '_>,
    at: &FieldPath<'_>,
    wire: pb::weighted_cluster::ClusterWeight,
    of_route: Option<&LbMetadata>,
) -> Parsed<WeightedCluster> {
    decide!(wire, at, pb::weighted_cluster::ClusterWeight as "envoy.config.route.v3.WeightedCluster.ClusterWeight" {
        implemented: name, weight, request_headers_to_add, request_headers_to_remove, response_headers_to_add,
            response_headers_to_remove, typed_per_filter_config, host_rewrite_specifier, metadata_match,
            cluster_header;
        no_effect: ;
        unsupported: ;
    });
    let name_header = match (name.as_str(), cluster_header.as_str()) {
        ("", "") => return Err(at.reject("needs one of name, cluster_header")),
        (_, "") => None,
        ("", header) => Some(header_name(&at.field("cluster_header"), header)?),
        _ => return Err(at.field("cluster_header").reject("must not be set together with name")),
    };
    let Some(weight) = weight else {
        return Err(at.field("weight").reject("is required"));
    };
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let host_rewrite_literal = match host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => literal_host(at, host)?,
    };
    Ok(WeightedCluster {
        name: name.into(),
        name_header,
        weight: weight.value,
        runtime_key: None,
        request_headers: request_header_mutations(at, request_headers_to_add, request_headers_to_remove)?,
        response_headers: response_header_mutations(at, response_headers_to_add, response_headers_to_remove)?,
        host_rewrite_literal,
        metadata_match: match (of_route, lb_metadata(metadata_match)) {
            (None, own) => own.map(Arc::new),
            (Some(route), None) => Some(Arc::new(route.clone())),
            (Some(route), Some(own)) => Some(Arc::new(route.merged(&own))),
        },
        filters: RouteFilters::parse(scope.context, &at.field("typed_per_filter_config"), typed_per_filter_config)?,
    })
}

fn literal_host(at: &FieldPath<'_>, host: String) -> Parsed<Option<String>> {
    wire::header_value(&at.field("host_rewrite_literal"), &host)?;
    Ok(Some(host).filter(|host| !host.is_empty()))
}

fn host_rewrite(at: &FieldPath<'_>, wire: Option<pb::route_action::HostRewriteSpecifier>) -> Parsed<HostRewrite> {
    use pb::route_action::HostRewriteSpecifier as Wire;
    Ok(match wire {
        None => HostRewrite::Keep,
        Some(Wire::HostRewriteLiteral(host)) => literal_host(at, host)?.map_or(HostRewrite::Keep, HostRewrite::Literal),
        Some(Wire::AutoHostRewrite(flag)) if flag.value => HostRewrite::Auto,
        Some(Wire::AutoHostRewrite(_)) => HostRewrite::Keep,
        Some(Wire::HostRewriteHeader(name)) if name.is_empty() => HostRewrite::Keep,
        Some(Wire::HostRewriteHeader(name)) => {
            HostRewrite::Header(header_name(&at.field("host_rewrite_header"), &name)?)
        }
        Some(Wire::HostRewritePathRegex(rewrite)) => {
            HostRewrite::PathRegex(regex_rewrite(&at.field("host_rewrite_path_regex"), rewrite)?)
        }
        Some(Wire::HostRewrite(_)) => return Err(at.field("host_rewrite").unsupported()),
    })
}

fn not_found_code(at: &FieldPath<'_>, value: i32) -> Parsed<u16> {
    use pb::route_action::ClusterNotFoundResponseCode as Wire;
    Ok(match Wire::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        Wire::ServiceUnavailable => 503,
        Wire::NotFound => 404,
        Wire::InternalServerError => 500,
    })
}

/// Reads which circuit breaker thresholds are meant.
pub(crate) fn priority(at: &FieldPath<'_>, value: i32) -> Parsed<Priority> {
    Ok(match core::RoutingPriority::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        core::RoutingPriority::Default => Priority::Default,
        core::RoutingPriority::High => Priority::High,
    })
}

fn max_stream_duration(at: &FieldPath<'_>, wire: pb::route_action::MaxStreamDuration) -> Parsed<MaxStreamDuration> {
    decide!(wire, at, pb::route_action::MaxStreamDuration as "envoy.config.route.v3.RouteAction.MaxStreamDuration" {
        implemented: max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset;
        no_effect: ;
        unsupported: ;
    });
    Ok(MaxStreamDuration {
        max_stream_duration: given(&at.field("max_stream_duration"), max_stream_duration)?,
        grpc_timeout_header_max: given(&at.field("grpc_timeout_header_max"), grpc_timeout_header_max)?,
        grpc_timeout_header_offset: given(&at.field("grpc_timeout_header_offset"), grpc_timeout_header_offset)?,
    })
}

fn given(at: &FieldPath<'_>, wire: Option<WireDuration>) -> Parsed<Option<Duration>> {
    wire.map(|wire| wire::duration(at, wire)).transpose()
}

/// Protocols, and whether they may be upgraded to; how CONNECT ends here.
type Upgrades = (Vec<(String, bool)>, Option<Box<ConnectEnd>>);

fn upgrades(at: &FieldPath<'_>, wire: Vec<pb::route_action::UpgradeConfig>) -> Parsed<Upgrades> {
    let mut seen = HashSet::new();
    let mut upgrades = Vec::with_capacity(wire.len());
    let mut connect = None;
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        decide!(wire, at, pb::route_action::UpgradeConfig as "envoy.config.route.v3.RouteAction.UpgradeConfig" {
            implemented: upgrade_type, enabled, connect_config;
            no_effect: ;
            unsupported: ;
        });
        let type_at = at.field("upgrade_type");
        if upgrade_type.is_empty() {
            return Err(type_at.reject("must not be empty"));
        }
        wire::header_value(&type_at, &upgrade_type)?;
        let name = upgrade_type.to_ascii_lowercase();
        let enabled = enabled.is_none_or(|flag| flag.value);
        if enabled && name == "connect-udp" {
            return Err(type_at.reject(format!("{upgrade_type:?} is not supported")));
        }
        if !seen.insert(name.clone()) {
            return Err(type_at.reject(format!("{upgrade_type:?} is there twice")));
        }
        if let Some(wire) = connect_config {
            let at = at.field("connect_config");
            if name != "connect" {
                return Err(at.reject(format!("goes with CONNECT only, not with {upgrade_type:?}")));
            }
            connect = Some(Box::new(connect_end(&at, wire)?));
        }
        upgrades.push((name, enabled));
    }
    Ok((upgrades, connect))
}

fn connect_end(at: &FieldPath<'_>, wire: pb::route_action::upgrade_config::ConnectConfig) -> Parsed<ConnectEnd> {
    use pb::route_action::upgrade_config::ConnectConfig;
    decide!(wire, at, ConnectConfig as "envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig" {
        implemented: proxy_protocol_config, allow_post;
        no_effect: ;
        unsupported: ;
    });
    Ok(ConnectEnd {
        takes_post: allow_post,
        proxy_header: match proxy_protocol_config {
            None => None,
            Some(wire) => Some(proxy_header(&at.field("proxy_protocol_config"), wire)?),
        },
    })
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
