//! Readers of what a bootstrap says about discovery (`DynamicResources`, `ClusterManager`).
//!
//! Owns that the management servers named there can be reached without discovery. Never connects.

use std::path::PathBuf;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::bootstrap::v3 as bootstrap;
use outrigger_api::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources;

use super::parse::Rejections;
use super::statics::Statics;
use crate::address_parse::bind_config;
use crate::cluster::{BindConfig, LoadReports};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::source::{ApiSource, ConfigSource, GrpcTarget, SourceKind, api_source, config_source};

/// Where resources are discovered.
#[derive(Default)]
pub(super) struct Dynamic {
    pub lds: Option<ConfigSource>,
    pub cds: Option<ConfigSource>,
    pub ads: Option<Arc<ApiSource>>,
    /// An `ads_config` is there, though perhaps refused.
    has_ads: bool,
}

impl Dynamic {
    pub(super) fn read(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: Option<DynamicResources>,
        statics: &Statics,
        rejections: &mut Rejections,
    ) -> Self {
        let Some(wire) = wire else { return Dynamic::default() };
        let read = Self::read_each(context, at, wire, statics, rejections);
        rejections.keep_or_default(read)
    }

    fn read_each(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: DynamicResources,
        statics: &Statics,
        rejections: &mut Rejections,
    ) -> Parsed<Self> {
        decide!(wire, at, DynamicResources as "envoy.config.bootstrap.v3.Bootstrap.DynamicResources" {
            implemented: lds_config, cds_config, ads_config;
            no_effect: ;
            unsupported: lds_resources_locator, cds_resources_locator;
        });
        let mut dynamic = Dynamic { has_ads: ads_config.is_some(), ..Dynamic::default() };
        let ads_at = at.field("ads_config");
        let ads = ads_config.map(|wire| {
            let source = api_source(context, &ads_at, wire)?;
            check_servers(&ads_at, &source, statics)?;
            Ok(Arc::new(source))
        });
        dynamic.ads = ads.and_then(|ads| rejections.keep(ads));
        for (field, wire, slot) in [("lds_config", lds_config, 0), ("cds_config", cds_config, 1)] {
            let Some(wire) = wire else { continue };
            let source = config_source(context, &at.field(field), wire)
                .and_then(|source| dynamic.check(&at.field(field), source, statics));
            let source = rejections.keep(source);
            if slot == 0 { dynamic.lds = source } else { dynamic.cds = source }
        }
        Ok(dynamic)
    }

    /// Refuses static clusters that report their load to a server that is not there.
    pub(super) fn check_load_reports(&self, at: &FieldPath<'_>, statics: &Statics) -> Parsed<()> {
        let list = at.field("clusters");
        for (index, cluster) in statics.clusters.iter().enumerate() {
            match &cluster.load_reports {
                Some(LoadReports::SameServer | LoadReports::Ads) if !self.has_ads => {
                    let item = list.item(index);
                    return Err(item.field("lrs_server").reject("needs dynamic_resources.ads_config"));
                }
                Some(LoadReports::Api(api)) => {
                    let item = list.item(index);
                    check_servers(&item.field("lrs_server").field("api_config_source"), api, statics)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses a source whose servers cannot be reached.
    pub(super) fn check(&self, at: &FieldPath<'_>, source: ConfigSource, statics: &Statics) -> Parsed<ConfigSource> {
        match &source.kind {
            SourceKind::Ads if !self.has_ads => Err(at.field("ads").reject("needs dynamic_resources.ads_config")),
            SourceKind::Api(api) => {
                check_servers(&at.field("api_config_source"), api, statics)?;
                Ok(source)
            }
            SourceKind::Ads | SourceKind::File(_) => Ok(source),
        }
    }
}

fn check_servers(at: &FieldPath<'_>, source: &ApiSource, statics: &Statics) -> Parsed<()> {
    let list = at.field("grpc_services");
    for (index, service) in source.services.iter().enumerate() {
        if let GrpcTarget::Cluster { name, authority: _, max_receive_message_bytes: _ } = &service.target {
            statics.discovery_server(name).map_err(|reason| {
                let item = list.item(index);
                item.field("envoy_grpc").field("cluster_name").reject(format!("{name:?} {reason}"))
            })?;
        }
    }
    Ok(())
}

/// What `cluster_manager` says.
#[derive(Default)]
pub(super) struct Manager {
    pub local_cluster_name: Option<Arc<str>>,
    pub upstream_bind: Option<BindConfig>,
    pub outlier_event_log: Option<PathBuf>,
    pub load_reports: Option<Arc<ApiSource>>,
}

pub(super) fn cluster_manager(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: bootstrap::ClusterManager,
    statics: &Statics,
) -> Parsed<Manager> {
    decide!(wire, at, bootstrap::ClusterManager as "envoy.config.bootstrap.v3.ClusterManager" {
        implemented: local_cluster_name, upstream_bind_config, outlier_detection, load_stats_config;
        no_effect: enable_deferred_cluster_creation = "a cluster that nobody uses costs little";
        unsupported: ;
    });
    let known = statics.clusters.iter().any(|cluster| *cluster.name == *local_cluster_name)
        || statics.refused_clusters.contains(&local_cluster_name);
    if !local_cluster_name.is_empty() && !known {
        let at = at.field("local_cluster_name");
        return Err(at.reject(format!("{local_cluster_name:?} is not a static cluster")));
    }
    let bind_at = at.field("upstream_bind_config");
    let loads_at = at.field("load_stats_config");
    let load_reports = load_stats_config.map(|wire| {
        let source = api_source(context, &loads_at, wire)?;
        check_servers(&loads_at, &source, statics)?;
        Ok(Arc::new(source))
    });
    Ok(Manager {
        load_reports: load_reports.transpose()?,
        local_cluster_name: (!local_cluster_name.is_empty()).then(|| Arc::from(local_cluster_name)),
        upstream_bind: upstream_bind_config.map(|wire| bind_config(&bind_at, wire)).transpose()?,
        outlier_event_log: match outlier_detection {
            None => None,
            Some(wire) => outlier_event_log(&at.field("outlier_detection"), wire)?,
        },
    })
}

/// Where ejections are logged, if at all.
fn outlier_event_log(
    at: &FieldPath<'_>,
    wire: bootstrap::cluster_manager::OutlierDetection,
) -> Parsed<Option<PathBuf>> {
    decide!(wire, at, bootstrap::cluster_manager::OutlierDetection
        as "envoy.config.bootstrap.v3.ClusterManager.OutlierDetection" {
        implemented: event_log_path;
        no_effect: ;
        unsupported: event_service;
    });
    Ok((!event_log_path.is_empty()).then(|| PathBuf::from(event_log_path)))
}
