//! Reader of the bootstrap.
//!
//! Owns how its sections come together, and that all that is wrong is told at once. Never reads a section's inside.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::bootstrap::v3 as bootstrap;
use outrigger_api::pb::envoy::config::bootstrap::v3::bootstrap::{StatsEviction, StatsFlush};
use outrigger_api::pb::google::protobuf::Duration as WireDuration;

use super::dynamic::Dynamic;
use super::statics::Statics;
use super::{Bootstrap, dynamic, process, runtime, sinks, stats};
use crate::context::Context;
use crate::decide::decide;
use crate::dns::{DnsResolver, dns_resolution, dns_resolver};
use crate::overload::OverloadManager;
use crate::rejection::{FieldPath, Parsed, Rejection};
use crate::source::GOOGLE_PREFIX;
use crate::tracing::bootstrap_provider;
use crate::wire;

impl Bootstrap {
    /// Reads a bootstrap. The error has at least one rejection, and one for each part that is wrong.
    pub fn parse(context: &Context<'_>, mut wire: bootstrap::Bootstrap) -> Result<Bootstrap, Vec<Rejection>> {
        let at = FieldPath::resource("bootstrap", "");
        let mut rejections = Rejections::default();
        // First, so that a refused field elsewhere does not hide what is wrong here.
        let manager = wire.cluster_manager.as_ref();
        context.set_local_cluster(manager.is_some_and(|manager| !manager.local_cluster_name.is_empty()));
        let statics_wire = mem::take(&mut wire.static_resources).unwrap_or_default();
        let statics = Statics::read(context, &at.field("static_resources"), statics_wire, &mut rejections);
        match read(context, &at, wire, statics, &mut rejections) {
            Ok(bootstrap) if rejections.0.is_empty() => Ok(bootstrap),
            Ok(_) => Err(rejections.0),
            Err(rejection) => {
                rejections.0.push(rejection);
                Err(rejections.0)
            }
        }
    }
}

/// What was refused so far.
#[derive(Default)]
pub(super) struct Rejections(Vec<Rejection>);

impl Rejections {
    /// The value, or else its rejection is kept.
    pub(super) fn keep<T>(&mut self, parsed: Parsed<T>) -> Option<T> {
        parsed.map_err(|rejection| self.0.push(rejection)).ok()
    }

    /// The value or its default, where the rejection is kept.
    pub(super) fn keep_or_default<T: Default>(&mut self, parsed: Parsed<T>) -> T {
        self.keep(parsed).unwrap_or_default()
    }
}

fn read(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: bootstrap::Bootstrap,
    statics: Statics,
    rejections: &mut Rejections,
) -> Parsed<Bootstrap> {
    decide!(wire, at, bootstrap::Bootstrap as "envoy.config.bootstrap.v3.Bootstrap" {
        implemented: node, static_resources, dynamic_resources, cluster_manager, stats_config, stats_sinks, stats_flush_interval, stats_flush,
            stats_eviction, layered_runtime, admin, overload_manager, header_prefix, stats_server_version_override, tracing,
            use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config, bootstrap_extensions,
            default_regex_engine, listener_manager, application_log_config;
        no_effect: node_context_params = "part of xdstp names only, which are refused",
            deferred_stat_options = "a stat is made when it is first used",
            watchdog = "there is no watchdog",
            watchdogs = "there is no watchdog",
            enable_dispatcher_stats = "the event loop has no such stats",
            certificate_provider_instances = "whoever refers to one is refused",
            inline_headers = "all headers are found equally fast",
            perf_tracing_file_path = "not built in",
            grpc_async_client_manager_config = "a gRPC channel lives as long as its user",
            memory_allocator_manager = "the allocator gives memory back by itself",
            enable_worker_cpu_affinity = "the command line decides";
        unsupported: hds_config, flags_path, fatal_actions, config_sources, default_config_source,
            default_socket_interface, xds_delegate_extension, xds_config_tracker_extension;
    });
    debug_assert!(static_resources.is_none(), "taken by the caller");
    for name in statics.clusters.iter().map(|cluster| &cluster.name).filter(|name| name.starts_with(GOOGLE_PREFIX)) {
        let at = FieldPath::resource("cluster", name);
        let why = format!("begins with {GOOGLE_PREFIX:?}, which stands for targets of google_grpc");
        rejections.0.push(at.field("name").reject(why));
    }
    let tracing = rejections.keep(bootstrap_provider(context, &at.field("tracing"), tracing)).flatten();
    let internal_buffer_bytes = process::extensions(context, &at.field("bootstrap_extensions"), bootstrap_extensions);
    let internal_buffer_bytes = rejections.keep_or_default(internal_buffer_bytes);
    rejections.keep(process::regex_engine(context, &at.field("default_regex_engine"), default_regex_engine));
    rejections.keep(process::listener_manager(context, &at.field("listener_manager"), listener_manager));
    let dns = dns(context, at, use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config);
    let dns = rejections.keep_or_default(dns);
    let manager_at = at.field("cluster_manager");
    let manager = dynamic::cluster_manager(context, &manager_at, cluster_manager.unwrap_or_default(), &statics);
    let manager = rejections.keep_or_default(manager);
    let dynamic_at = at.field("dynamic_resources");
    let dynamic = Dynamic::read(context, &dynamic_at, dynamic_resources, &statics, rejections);
    rejections.keep(dynamic.check_load_reports(&at.field("static_resources"), &statics));
    let check = |at: &FieldPath<'_>, source| dynamic.check(at, source, &statics);
    let layered = layered_runtime.unwrap_or_default();
    let runtime = runtime::layers(context, &at.field("layered_runtime"), layered, &check, rejections);
    let stats = stats::config(&at.field("stats_config"), stats_config.unwrap_or_default());
    let stats = rejections.keep_or_default(stats);
    let stats_flush_interval = flush_interval(at, stats_flush_interval, stats_flush);
    let stats_eviction_interval = match &stats_flush_interval {
        Ok(flush) => eviction_interval(at, stats_eviction, *flush),
        // Told already.
        Err(_) => Ok(None),
    };
    let stats_sinks = wire::each(&at.field("stats_sinks"), stats_sinks, |at, wire| sinks::sink(context, at, wire));
    let admin = rejections.keep_or_default(process::admin(context, &at.field("admin"), admin));
    let at_overload = at.field("overload_manager");
    let overload = overload_manager.map(|wire| OverloadManager::parse(context, &at_overload, wire)).transpose();
    Ok(Bootstrap {
        node: node.unwrap_or_default(),
        google_targets: context.take_google_targets(),
        listeners: statics.listeners,
        clusters: statics.clusters,
        secrets: statics.secrets,
        lds: dynamic.lds,
        cds: dynamic.cds,
        ads: dynamic.ads,
        admin,
        runtime,
        stats,
        stats_sinks: rejections.keep_or_default(stats_sinks),
        stats_flush_interval: rejections.keep_or_default(stats_flush_interval),
        stats_eviction_interval: rejections.keep_or_default(stats_eviction_interval),
        overload: rejections.keep_or_default(overload),
        internal_buffer_bytes,
        local_cluster_name: manager.local_cluster_name,
        upstream_bind: manager.upstream_bind,
        outlier_event_log: manager.outlier_event_log,
        load_reports: manager.load_reports,
        dns,
        tracing,
        stats_server_version: stats_server_version_override.map(|version| version.value),
        header_prefix: rejections.keep_or_default(prefix(&at.field("header_prefix"), header_prefix)),
        log_format: rejections.keep_or_default(process::log_format(
            &at.field("application_log_config"),
            application_log_config.unwrap_or_default(),
        )),
    })
}

fn dns(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    use_tcp: bool,
    older: Option<outrigger_api::pb::envoy::config::core::v3::DnsResolutionConfig>,
    typed: Option<outrigger_api::pb::envoy::config::core::v3::TypedExtensionConfig>,
) -> Parsed<Option<DnsResolver>> {
    // The newest of the three wins.
    if let Some(wire) = typed {
        return dns_resolver(context, &at.field("typed_dns_resolver_config"), wire).map(Some);
    }
    if let Some(wire) = older {
        return dns_resolution(&at.field("dns_resolution_config"), wire).map(Some);
    }
    Ok(use_tcp.then(|| DnsResolver { use_tcp, ..DnsResolver::default() }))
}

fn flush_interval(
    at: &FieldPath<'_>,
    interval: Option<WireDuration>,
    flush: Option<StatsFlush>,
) -> Parsed<Option<Duration>> {
    match flush {
        Some(StatsFlush::StatsFlushOnAdmin(true)) => return Ok(None),
        Some(StatsFlush::StatsFlushOnAdmin(false)) => {
            return Err(at.field("stats_flush_on_admin").reject("false, expected true or nothing"));
        }
        None => {}
    }
    let Some(wire) = interval else { return Ok(Some(DEFAULT_FLUSH_INTERVAL)) };
    let at = at.field("stats_flush_interval");
    let interval = wire::duration(&at, wire)?;
    if interval < Duration::from_millis(1) || interval >= Duration::from_secs(300) {
        return Err(at.reject(format!("{interval:?} is not within 1ms to 300s")));
    }
    Ok(Some(interval))
}

fn eviction_interval(
    at: &FieldPath<'_>,
    eviction: Option<StatsEviction>,
    flush: Option<Duration>,
) -> Parsed<Option<Duration>> {
    let Some(StatsEviction::StatsEvictionInterval(wire)) = eviction else { return Ok(None) };
    let at = at.field("stats_eviction_interval");
    let interval = wire::duration(&at, wire)?;
    if interval < Duration::from_millis(1) {
        return Err(at.reject(format!("{interval:?}, expected at least 1ms")));
    }
    // Without an interval of its own, flushing counts as every five seconds, as in Envoy.
    let flush = flush.unwrap_or(DEFAULT_FLUSH_INTERVAL);
    if interval.as_nanos() % flush.as_nanos() != 0 {
        return Err(at.reject(format!("{interval:?} is not a multiple of the stats_flush_interval, {flush:?}")));
    }
    Ok(Some(interval))
}

/// What headers such as `x-envoy-upstream-service-time` begin with.
fn prefix(at: &FieldPath<'_>, wire: String) -> Parsed<String> {
    if wire.is_empty() {
        return Ok("x-envoy".to_owned());
    }
    if !wire.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        return Err(at.reject(format!("{wire:?} cannot begin a header name")));
    }
    Ok(wire.to_ascii_lowercase())
}

/// An `Arc<str>` for each name that must be given once only.
pub(super) fn unique(names: &mut Vec<Arc<str>>, at: &FieldPath<'_>, name: &Arc<str>) -> Parsed<()> {
    if names.contains(name) {
        return Err(at.reject(format!("{name:?} is given twice")));
    }
    names.push(name.clone());
    Ok(())
}

const DEFAULT_FLUSH_INTERVAL: Duration = Duration::from_secs(5);
