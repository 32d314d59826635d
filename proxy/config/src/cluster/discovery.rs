//! Reading where a cluster's endpoints come from (`type`, `cluster_type` and what belongs to each of them).
//!
//! Owns the types of clusters that exist. The DNS settings of two of them are in `dns`.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::cluster::v3 as pb;
use outrigger_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrigger_api::pb::envoy::extensions::clusters as extensions;
use outrigger_api::pb::google::protobuf::{Duration as WireDuration, UInt32Value};
use pb::cluster::{ClusterDiscoveryType, DiscoveryType, OriginalDstLbConfig};

use super::balancing::metadata_path;
pub(super) use super::dns::DnsFields;
use super::dns::{dns_cluster, dns_options};
use super::endpoints::{named_assignment, resolved_assignment};
use super::{Assignment, Discovery, DnsCache, DnsOptions, OriginalDstOptions};
use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};
use crate::source::config_source;
use crate::wire;

/// The fields of a cluster that are about discovery.
pub(super) struct DiscoveryFields<'a> {
    pub cluster_name: &'a str,
    pub kind: Option<ClusterDiscoveryType>,
    pub eds: Option<pb::cluster::EdsClusterConfig>,
    pub assignment: Option<ClusterLoadAssignment>,
    pub original_dst: Option<OriginalDstLbConfig>,
    pub cleanup_interval: Option<WireDuration>,
    pub dns: DnsFields,
}

/// Reads where the endpoints of the cluster `at` come from.
pub(super) fn discovery(context: &Context<'_>, at: &FieldPath<'_>, wire: DiscoveryFields<'_>) -> Parsed<Custom> {
    let DiscoveryFields { cluster_name, kind, eds, assignment, original_dst, cleanup_interval, dns } = wire;
    if eds.is_some() && !is_eds(&kind) {
        return Err(at.field("eds_cluster_config").reject("is for clusters of type EDS"));
    }
    let kind = match kind {
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return custom_type(context, at, custom, assignment, original_dst, cleanup_interval);
        }
        Some(ClusterDiscoveryType::Type(kind)) => {
            DiscoveryType::try_from(kind).map_err(|_| wire::unknown_enum(&at.field("type"), kind))?
        }
        None => DiscoveryType::Static,
    };
    let assignment_at = at.field("load_assignment");
    let discovery: Parsed<Discovery> = match kind {
        DiscoveryType::Static => Ok(Discovery::Static(Arc::new(match assignment {
            None => Assignment::empty(cluster_name),
            Some(assignment) => resolved_assignment(&assignment_at, assignment)?,
        }))),
        DiscoveryType::StrictDns => {
            strict_dns(&assignment_at, cluster_name, assignment, dns_options(context, at, dns)?)
        }
        DiscoveryType::LogicalDns => logical_dns(&assignment_at, assignment, dns_options(context, at, dns)?),
        DiscoveryType::Eds => {
            refuse_assignment(&assignment_at, &assignment, "EDS")?;
            self::eds(context, &at.field("eds_cluster_config"), cluster_name, eds)
        }
        DiscoveryType::OriginalDst => {
            refuse_assignment(&assignment_at, &assignment, "ORIGINAL_DST")?;
            let config = original_dst.unwrap_or_default();
            self::original_dst(at, &at.field("original_dst_lb_config"), config, cleanup_interval)
        }
    };
    discovery.map(Custom::from)
}

fn is_eds(kind: &Option<ClusterDiscoveryType>) -> bool {
    matches!(kind, Some(ClusterDiscoveryType::Type(kind)) if *kind == DiscoveryType::Eds as i32)
}

fn refuse_assignment(at: &FieldPath<'_>, wire: &Option<ClusterLoadAssignment>, kind: &str) -> Parsed<()> {
    match wire {
        None => Ok(()),
        Some(_) => Err(at.reject(format!("must not be set for a cluster of type {kind}"))),
    }
}

fn strict_dns(
    at: &FieldPath<'_>,
    cluster_name: &str,
    wire: Option<ClusterLoadAssignment>,
    dns: DnsOptions,
) -> Parsed<Discovery> {
    let assignment = match wire {
        None => Assignment::empty(cluster_name),
        Some(wire) => named_assignment(at, wire)?,
    };
    Ok(Discovery::StrictDns { assignment: Arc::new(assignment), dns })
}

fn logical_dns(at: &FieldPath<'_>, wire: Option<ClusterLoadAssignment>, dns: DnsOptions) -> Parsed<Discovery> {
    let Some(wire) = wire else {
        return Err(at.reject("is required for a cluster of type LOGICAL_DNS"));
    };
    let assignment = named_assignment(at, wire)?;
    let endpoints: usize = assignment.localities.iter().map(|locality| locality.endpoints.len()).sum();
    if assignment.localities.len() != 1 || endpoints != 1 {
        return Err(at.reject(format!(
            "has {} localities with {endpoints} endpoints, but a cluster of type LOGICAL_DNS needs one of each",
            assignment.localities.len()
        )));
    }
    Ok(Discovery::LogicalDns { assignment: Arc::new(assignment), dns })
}

fn eds(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    cluster_name: &str,
    wire: Option<pb::cluster::EdsClusterConfig>,
) -> Parsed<Discovery> {
    let Some(wire) = wire else {
        return Err(at.reject("is required for a cluster of type EDS"));
    };
    decide!(wire, at, pb::cluster::EdsClusterConfig as "envoy.config.cluster.v3.Cluster.EdsClusterConfig" {
        implemented: eds_config, service_name;
        no_effect: ;
        unsupported: ;
    });
    let source_at = at.field("eds_config");
    let Some(source) = eds_config else {
        return Err(source_at.reject("is required"));
    };
    let source = config_source(context, &source_at, source)?;
    let service_name = if service_name.is_empty() { cluster_name.into() } else { service_name.into() };
    Ok(Discovery::Eds { service_name, source })
}

/// `interval_at` is the cluster, which has `cleanup_interval`; `at` is the message `wire`.
fn original_dst(
    interval_at: &FieldPath<'_>,
    at: &FieldPath<'_>,
    wire: OriginalDstLbConfig,
    cleanup_interval: Option<WireDuration>,
) -> Parsed<Discovery> {
    decide!(wire, at, OriginalDstLbConfig as "envoy.config.cluster.v3.Cluster.OriginalDstLbConfig" {
        implemented: use_http_header, http_header_name, upstream_port_override, metadata_key;
        no_effect: ;
        unsupported: ;
    });
    let header_at = at.field("http_header_name");
    let http_header = match (use_http_header, http_header_name.as_str()) {
        (false, "") => None,
        (false, _) => return Err(header_at.reject("needs use_http_header")),
        (true, "") => Some(DEFAULT_HEADER.into()),
        (true, name) => Some(header_name(&header_at, name)?),
    };
    let cleanup_at = interval_at.field("cleanup_interval");
    Ok(Discovery::OriginalDst(OriginalDstOptions {
        http_header,
        upstream_port_override: port_override(&at.field("upstream_port_override"), upstream_port_override)?,
        metadata: metadata_key.map(|wire| metadata_path(&at.field("metadata_key"), wire)).transpose()?,
        cleanup_interval: match cleanup_interval {
            None => DEFAULT_CLEANUP,
            Some(interval) => wire::positive_duration(&cleanup_at, interval)?,
        },
    }))
}

fn port_override(at: &FieldPath<'_>, wire: Option<UInt32Value>) -> Parsed<Option<u16>> {
    let Some(UInt32Value { value }) = wire else { return Ok(None) };
    let port = u16::try_from(value).map_err(|_| at.reject(format!("{value} is not within 0 to 65535")))?;
    Ok(Some(port))
}

fn aggregate(at: &FieldPath<'_>, wire: extensions::aggregate::v3::ClusterConfig) -> Parsed<Discovery> {
    decide!(wire, at, extensions::aggregate::v3::ClusterConfig as "envoy.extensions.clusters.aggregate.v3.ClusterConfig" {
        implemented: clusters;
        no_effect: ;
        unsupported: ;
    });
    if clusters.is_empty() {
        return Err(at.field("clusters").reject("must not be empty"));
    }
    Ok(Discovery::Aggregate(clusters.into_iter().map(Arc::from).collect()))
}

fn dynamic_forward(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: extensions::dynamic_forward_proxy::v3::ClusterConfig,
) -> Parsed<Custom> {
    use extensions::dynamic_forward_proxy::v3::cluster_config::ClusterImplementationSpecifier as Kind;
    decide!(wire, at, extensions::dynamic_forward_proxy::v3::ClusterConfig
        as "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig" {
        implemented: allow_insecure_cluster_options, cluster_implementation_specifier;
        no_effect: ;
        unsupported: allow_coalesced_connections;
    });
    match cluster_implementation_specifier {
        Some(Kind::DnsCacheConfig(wire)) => {
            let cache = DnsCache::parse(context, &at.field("dns_cache_config"), wire)?;
            let discovery = Discovery::DynamicForward(Arc::new(cache));
            Ok(Custom { discovery, insecure_names: allow_insecure_cluster_options })
        }
        Some(Kind::SubClustersConfig(_)) => Err(at.field("sub_clusters_config").unsupported()),
        None => Err(at.field("dns_cache_config").reject("is required")),
    }
}

/// What a cluster type that is an extension says.
pub(super) struct Custom {
    pub discovery: Discovery,
    /// A dynamic forward proxy may do without `auto_sni` and `auto_san_validation`.
    pub insecure_names: bool,
}

impl From<Discovery> for Custom {
    fn from(discovery: Discovery) -> Self {
        Self { discovery, insecure_names: false }
    }
}

/// A cluster type given as an extension.
fn custom_type(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::cluster::CustomClusterType,
    assignment: Option<ClusterLoadAssignment>,
    original_dst: Option<OriginalDstLbConfig>,
    cleanup_interval: Option<WireDuration>,
) -> Parsed<Custom> {
    let type_at = at.field("cluster_type");
    let pb::cluster::CustomClusterType { name, typed_config } = wire;
    if name.is_empty() {
        return Err(type_at.field("name").reject("must not be empty"));
    }
    let config_at = type_at.field("typed_config");
    let Some(config) = typed_config else {
        return Err(config_at.reject("is required"));
    };
    let config = wire::extension(context, &config_at, config)?;
    let assignment_at = at.field("load_assignment");
    match wire::type_name(&config) {
        "envoy.extensions.clusters.dns.v3.DnsCluster" => {
            let (dns, single_endpoint) = dns_cluster(context, &config_at, wire::decode(&config_at, &config)?)?;
            if single_endpoint {
                logical_dns(&assignment_at, assignment, dns).map(Custom::from)
            } else {
                strict_dns(&assignment_at, &name, assignment, dns).map(Custom::from)
            }
        }
        "envoy.extensions.clusters.aggregate.v3.ClusterConfig" => {
            refuse_assignment(&assignment_at, &assignment, "envoy.clusters.aggregate")?;
            aggregate(&config_at, wire::decode(&config_at, &config)?).map(Custom::from)
        }
        "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig" => {
            refuse_assignment(&assignment_at, &assignment, "envoy.clusters.dynamic_forward_proxy")?;
            dynamic_forward(context, &config_at, wire::decode(&config_at, &config)?)
        }
        "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster" => {
            refuse_assignment(&assignment_at, &assignment, "ORIGINAL_DST")?;
            if original_dst.is_some() {
                return Err(at.field("original_dst_lb_config").reject("must not be set together with cluster_type"));
            }
            let wire = wire::decode(&config_at, &config)?;
            decide!(wire, config_at, extensions::original_dst::v3::OriginalDstCluster
                as "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster" {
                implemented: use_http_header, http_header_name, upstream_port_override, metadata_key;
                no_effect: ;
                unsupported: ;
            });
            let older = OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key };
            self::original_dst(at, &config_at, older, cleanup_interval).map(Custom::from)
        }
        _ => Err(config_at.reject(format!("cluster type {:?} is not supported", config.type_url))),
    }
}

const DEFAULT_HEADER: &str = "x-envoy-original-dst-host";
const DEFAULT_CLEANUP: Duration = Duration::from_secs(5);
