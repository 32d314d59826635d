//! From the counters of endpoints to the messages of a report.
//!
//! Owns what each cluster had counted when it was last reported, so that a report holds what was counted since. Never sends
//! anything, and never resets a counter that others read.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::endpoint::v3::{
    ClusterStats, EndpointLoadMetricStats, UpstreamEndpointStats, UpstreamLocalityStats,
};
use outrigger_api::pb::google::protobuf::Duration as WireDuration;
use outrigger_config::address::Address;
use outrigger_config::cluster::{Discovery, Locality};

use crate::graph::ClusterNode;
use crate::stats::{Registry, names};
use crate::upstream::host::{Host, HostShared, LoadMetric};

/// What the server wants to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    /// Of all clusters.
    pub all: bool,
    /// Of these, otherwise.
    pub clusters: HashSet<String>,
    /// Of each endpoint too.
    pub endpoints: bool,
}

impl Wanted {
    fn includes(&self, name: &str) -> bool {
        self.all || self.clusters.contains(name)
    }
}

/// The clusters that are reported to one server.
#[derive(Default)]
pub(super) struct Loads {
    wanted: Wanted,
    clusters: BTreeMap<Arc<str>, Tracked>,
    /// When the last report was made, or the first was asked for.
    since: Option<Instant>,
}

/// A cluster, and where its counters stood when it was last reported.
struct Tracked {
    since: Instant,
    hosts: HashMap<usize, Known>,
    dropped: u64,
}

/// An endpoint, and what it stood at.
struct Known {
    /// Held, so that no other can have its address.
    _shared: Arc<HostShared>,
    counts: Counts,
    metrics: Metrics,
}

impl Known {
    fn of(host: &Host) -> Self {
        let shared = &host.shared;
        Self { _shared: Arc::clone(shared), counts: Counts::of(shared).0, metrics: shared.load_metrics() }
    }
}

/// What endpoints tell with their answers, by name.
type Metrics = BTreeMap<Arc<str>, LoadMetric>;

fn metrics_since(now: &Metrics, before: Option<&Metrics>) -> Metrics {
    let since = |(name, metric): (&Arc<str>, &LoadMetric)| {
        let before = before.and_then(|before| before.get(name)).copied().unwrap_or_default();
        let requests = metric.requests.saturating_sub(before.requests);
        (requests > 0).then(|| (Arc::clone(name), LoadMetric { requests, total: metric.total - before.total }))
    };
    now.iter().filter_map(since).collect()
}

fn metric_stats(metrics: &Metrics) -> Vec<EndpointLoadMetricStats> {
    let stats = |(name, metric): (&Arc<str>, &LoadMetric)| EndpointLoadMetricStats {
        metric_name: name.to_string(),
        num_requests_finished_with_metric: metric.requests,
        total_metric_value: metric.total,
    };
    metrics.iter().map(stats).collect()
}

/// Requests to one endpoint.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Counts {
    success: u64,
    error: u64,
    issued: u64,
}

impl Counts {
    /// Over all workers, and how many are in flight.
    fn of(host: &HostShared) -> (Self, u64) {
        let (mut counts, mut active) = (Self::default(), 0);
        host.each_stats(&mut |stats| {
            counts.success += stats.rq_success.value();
            counts.error += stats.rq_error.value();
            counts.issued += stats.rq_total.value();
            active += stats.rq_active.value();
        });
        (counts, u64::try_from(active).unwrap_or(0))
    }

    fn since(self, before: Self) -> Self {
        Self {
            success: self.success.saturating_sub(before.success),
            error: self.error.saturating_sub(before.error),
            issued: self.issued.saturating_sub(before.issued),
        }
    }
}

/// What is reported of endpoints in one place.
#[derive(Default)]
struct Sum {
    counts: Counts,
    active: u64,
    metrics: Metrics,
    endpoints: Vec<UpstreamEndpointStats>,
}

impl Loads {
    /// The server wants to know this from now on. What was counted before of clusters that are new to it is not its
    /// concern; that of others goes on.
    pub(super) fn follow<'a>(
        &mut self,
        wanted: Wanted,
        clusters: impl Iterator<Item = &'a Arc<ClusterNode>>,
        registry: &Registry,
        now: Instant,
    ) {
        self.clusters.retain(|name, _| wanted.includes(name));
        self.wanted = wanted;
        self.since.get_or_insert(now);
        for node in clusters.filter(|node| self.wanted.includes(&node.config.name)) {
            self.clusters.entry(Arc::clone(&node.config.name)).or_insert_with(|| Tracked::begin(node, registry, now));
        }
    }

    /// What was counted since the last report.
    pub(super) fn report<'a>(
        &mut self,
        clusters: impl Iterator<Item = &'a Arc<ClusterNode>>,
        registry: &Registry,
        now: Instant,
    ) -> Vec<ClusterStats> {
        // A cluster that was not there before has counted nothing until then.
        let since = self.since.replace(now).unwrap_or(now);
        let (mut report, mut there) = (Vec::new(), HashSet::new());
        for node in clusters.filter(|node| self.wanted.includes(&node.config.name)) {
            let name = &node.config.name;
            there.insert(Arc::clone(name));
            let tracked = self.clusters.entry(Arc::clone(name));
            let tracked = tracked.or_insert_with(|| Tracked { since, hosts: HashMap::new(), dropped: 0 });
            report.push(tracked.report(node, self.wanted.endpoints, registry, now));
        }
        self.clusters.retain(|name, _| there.contains(name));
        report.sort_by(|a, b| a.cluster_name.cmp(&b.cluster_name));
        report
    }
}

impl Tracked {
    fn begin(node: &ClusterNode, registry: &Registry, now: Instant) -> Self {
        let hosts = node.hosts.hosts.iter();
        let hosts = hosts.map(|host| (key(host), Known::of(host)));
        Self { since: now, hosts: hosts.collect(), dropped: dropped(node, registry) }
    }

    fn report(&mut self, node: &ClusterNode, by_endpoint: bool, registry: &Registry, now: Instant) -> ClusterStats {
        let mut places: BTreeMap<(u32, &Locality), Sum> = BTreeMap::new();
        let mut hosts = HashMap::with_capacity(node.hosts.hosts.len());
        for host in &node.hosts.hosts {
            let (counts, active) = Counts::of(&host.shared);
            let all = host.shared.load_metrics();
            let before = self.hosts.get(&key(host));
            let metrics = metrics_since(&all, before.map(|before| &before.metrics));
            let since = counts.since(before.map_or(Counts::default(), |before| before.counts));
            // The same endpoint may stand in several priorities, and is reported once.
            let known = Known { _shared: Arc::clone(&host.shared), counts, metrics: all };
            if hosts.insert(key(host), known).is_some() {
                continue;
            }
            let counts = since;
            if counts == Counts::default() && active == 0 {
                continue;
            }
            let sum = places.entry((host.priority, &host.locality)).or_default();
            sum.counts.success += counts.success;
            sum.counts.error += counts.error;
            sum.counts.issued += counts.issued;
            sum.active += active;
            for (name, metric) in &metrics {
                let sum = sum.metrics.entry(Arc::clone(name)).or_default();
                sum.requests += metric.requests;
                sum.total += metric.total;
            }
            if by_endpoint {
                sum.endpoints.push(endpoint_stats(host, counts, active, &metrics));
            }
        }
        self.hosts = hosts;
        let dropped_now = dropped(node, registry);
        let dropped = dropped_now.saturating_sub(std::mem::replace(&mut self.dropped, dropped_now));
        let interval = now.saturating_duration_since(std::mem::replace(&mut self.since, now));
        let service_name = match &node.config.discovery {
            Discovery::Eds { service_name, .. } if *service_name != node.config.name => service_name.to_string(),
            _ => String::new(),
        };
        ClusterStats {
            cluster_name: node.config.name.to_string(),
            cluster_service_name: service_name,
            upstream_locality_stats: places.into_iter().map(|(place, sum)| locality_stats(place, sum)).collect(),
            total_dropped_requests: dropped,
            dropped_requests: Vec::new(),
            load_report_interval: Some(WireDuration {
                seconds: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
                nanos: interval.subsec_nanos().cast_signed(),
            }),
        }
    }
}

fn key(host: &Host) -> usize {
    Arc::as_ptr(&host.shared) as usize
}

/// Requests of a cluster that its limits, or its maintenance, did not let through.
fn dropped(node: &ClusterNode, registry: &Registry) -> u64 {
    let prefix = names::prefix("cluster", &node.config.stat_name);
    registry.sum(&prefix, &DROPPED)
}

const DROPPED: [&str; 3] =
    ["upstream_rq_active_overflow", "upstream_rq_pending_overflow", "upstream_rq_maintenance_mode"];

fn locality_stats((priority, locality): (u32, &Locality), sum: Sum) -> UpstreamLocalityStats {
    let Locality { region, zone, sub_zone } = locality;
    UpstreamLocalityStats {
        locality: Some(core::Locality { region: region.clone(), zone: zone.clone(), sub_zone: sub_zone.clone() }),
        total_successful_requests: sum.counts.success,
        total_requests_in_progress: sum.active,
        total_error_requests: sum.counts.error,
        total_issued_requests: sum.counts.issued,
        load_metric_stats: metric_stats(&sum.metrics),
        upstream_endpoint_stats: sum.endpoints,
        priority,
        ..UpstreamLocalityStats::default()
    }
}

fn endpoint_stats(host: &Host, counts: Counts, active: u64, metrics: &Metrics) -> UpstreamEndpointStats {
    UpstreamEndpointStats {
        address: Some(wire_address(&host.address)),
        total_successful_requests: counts.success,
        total_requests_in_progress: active,
        total_error_requests: counts.error,
        total_issued_requests: counts.issued,
        load_metric_stats: metric_stats(metrics),
        ..UpstreamEndpointStats::default()
    }
}

fn wire_address(address: &Address) -> core::Address {
    use core::socket_address::PortSpecifier;
    let address = match address {
        Address::Ip(socket) => core::address::Address::SocketAddress(core::SocketAddress {
            address: socket.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(socket.port()))),
            ..core::SocketAddress::default()
        }),
        Address::Pipe { path, mode } => {
            core::address::Address::Pipe(core::Pipe { path: path.to_string_lossy().into_owned(), mode: *mode })
        }
        Address::Internal(internal) => core::address::Address::EnvoyInternalAddress(core::EnvoyInternalAddress {
            address_name_specifier: Some(core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(
                internal.listener.to_string(),
            )),
            endpoint_id: internal.endpoint.to_string(),
        }),
    };
    core::Address { address: Some(address) }
}
