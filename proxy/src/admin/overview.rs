//! `/overview`, `/overview/clusters` and `/overview/routes`: the data of the page, for other tools too.
//!
//! Owns which figures they are, and the bounds on how many. Never keeps anything between two looks.

use outrigger_config::route::{ClusterChoice, Route, RouteAction, VirtualHost};
use outrigger_policy::balance::{Health, HostIndex};
use outrigger_policy::breaker::Resource;
use outrigger_policy::route::RouteTable;

use super::Admin;
use super::context::AdminContext;
use super::explain::{endpoint, path_in_words};
use super::request::Request;
use super::response::Response;
use super::tree::{Tree, tree};
use crate::graph::{Application, ChainNode, ClusterNode, HttpNode, ListenerNode, Routes, facts};
use crate::stats::buckets::{self, Bounds, Values};
use crate::stats::{Family, FamilyKind};
use crate::worker::GraphView;

/// Clusters told of unless a filter leaves fewer.
const CLUSTERS: usize = 300;
/// Endpoints of one cluster told of.
const ENDPOINTS: usize = 100;
/// Virtual hosts, and routes of each, told of.
const ROUTES: usize = 200;

/// State, totals and latencies of the whole process.
pub(super) fn overview(admin: &Admin, request: &Request) -> Response {
    admin.refresh_stats();
    let context = &admin.context;
    let graph = context.process.graph.load();
    let families = context.process.stats.collect(&|name| is_wanted(name));
    let sum = |kind: &str, stat: &str| total(&families, kind, stat);
    let waiting: u64 = graph
        .clusters
        .values()
        .filter_map(|node| node.shared.gate_if_used())
        .map(|gate| u64::from(gate.waiting()))
        .sum();
    let (bounds, counts, mean_sum) = latencies(&families);
    let memory = outrigger_sys::process::memory().map(|memory| memory.resident.saturating_sub(memory.shared)).ok();
    let tree = tree! {
        "state": context.server.state().as_str(),
        "version": &*context.facts.version,
        "node": &*context.facts.node.id,
        "uptime_seconds": context.server.uptime().as_secs(),
        "generation": graph.generation,
        "workers": context.workers.count(),
        "listeners": graph.listeners.len(),
        "clusters": graph.clusters.len(),
        "memory_bytes": memory,
        "waits_for": Tree::list(context.configuration.unready_targets()),
        "overrides": context.configuration.overrides().len(),
        "connections": sum("listener", "downstream_cx_active"),
        "connections_total": sum("listener", "downstream_cx_total"),
        "requests_active": sum("http", "downstream_rq_active"),
        "requests_total": sum("http", "downstream_rq_total"),
        "responses_2xx": sum("http", "downstream_rq_2xx"),
        "responses_3xx": sum("http", "downstream_rq_3xx"),
        "responses_4xx": sum("http", "downstream_rq_4xx"),
        "responses_5xx": sum("http", "downstream_rq_5xx"),
        "retries_total": sum("cluster", "upstream_rq_retry"),
        "upstream_connections": sum("cluster", "upstream_cx_active"),
        "upstream_connect_failures": sum("cluster", "upstream_cx_connect_fail"),
        "waiting": waiting,
        "latency_bounds_ms": Tree::list(bounds),
        "latency_counts": Tree::list(counts),
        "latency_sum_ms": mean_sum,
    };
    tree.answer(request)
}

fn is_wanted(name: &str) -> bool {
    const STATS: &[&str] = &[
        "downstream_cx_active",
        "downstream_cx_total",
        "downstream_rq_active",
        "downstream_rq_total",
        "downstream_rq_2xx",
        "downstream_rq_3xx",
        "downstream_rq_4xx",
        "downstream_rq_5xx",
        "downstream_rq_time",
        "upstream_rq_retry",
        "upstream_cx_active",
        "upstream_cx_connect_fail",
    ];
    let own = name.starts_with("http.admin.") || name.starts_with("listener.admin.");
    !own && name.rsplit_once('.').is_some_and(|(_, stat)| STATS.contains(&stat))
}

fn total(families: &[Family], kind: &str, stat: &str) -> i64 {
    let is_one = |family: &&Family| {
        let name = family.name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.'));
        // Workers and codes have names of their own below.
        name.and_then(|name| name.rsplit_once('.')).is_some_and(|(_, last)| last == stat)
    };
    let value = |family: &Family| match &family.kind {
        FamilyKind::Counter(value) => i64::try_from(*value).unwrap_or(i64::MAX),
        FamilyKind::Gauge(value) => value.unwrap_or(0),
        FamilyKind::Histogram(_) => 0,
    };
    families.iter().filter(is_one).map(value).sum()
}

/// Upper bounds in milliseconds, how many requests stayed within each, and the sum of all times.
fn latencies(families: &[Family]) -> (Vec<f64>, Vec<u64>, f64) {
    let default = Bounds::default();
    let bounds = default.of("");
    let mut counts = vec![0; bounds.len()];
    let mut sum = 0.0;
    let times = families.iter().filter(|family| family.name.ends_with(".downstream_rq_time"));
    for values in times.filter_map(|family| -> Option<&Values> {
        match &family.kind {
            FamilyKind::Histogram(values) => Some(values),
            FamilyKind::Counter(_) | FamilyKind::Gauge(_) => None,
        }
    }) {
        sum += buckets::sum(values);
        for (count, more) in counts.iter_mut().zip(buckets::cumulative(values, bounds)) {
            *count += more;
        }
    }
    (bounds.to_vec(), counts, sum)
}

/// Clusters and their endpoints, as they are now.
pub(super) fn clusters(context: &AdminContext, request: &Request) -> Response {
    let graph = context.process.graph.load();
    let filter = request.parameter("filter").unwrap_or_default();
    let mut nodes: Vec<_> = graph.clusters.values().filter(|node| node.config.name.contains(filter)).collect();
    nodes.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    let total = nodes.len();
    let shown: Vec<Tree> = nodes.into_iter().take(CLUSTERS).map(|node| cluster(node)).collect();
    tree! { "clusters_in_all": total, "clusters": shown }.answer(request)
}

fn cluster(node: &ClusterNode) -> Tree {
    let hosts = &node.hosts.hosts;
    let fit = |health| hosts.iter().filter(|host| host.shared.flags.health(host.health) == health).count();
    let thresholds = &node.config.circuit_breakers.default;
    let used = |resource| {
        let breaker = &node.shared.default;
        tree! { "now": breaker.usage(resource), "limit": breaker.limit(resource, thresholds, facts::now()) }
    };
    let gate = node.shared.gate_if_used();
    let endpoints = (0..).map(HostIndex).zip(hosts).take(ENDPOINTS).map(|(index, host)| {
        let Tree::Members(mut members) = endpoint(node, index, host) else { return Tree::Nothing };
        members.extend(host.shared.totals().into_iter().map(|(name, value, _)| (name, Tree::from(value.max(0)))));
        members.push(("override_weight", Tree::from(host.shared.weight_by_hand())));
        members.push(("override_limit", Tree::from(host.shared.limit_by_hand())));
        Tree::Members(members)
    });
    tree! {
        "name": &node.config.name,
        "checked": !node.config.health_checks.is_empty(),
        "limits_requests": node.config.concurrency.is_some(),
        "endpoints_in_all": hosts.len(),
        "healthy": fit(Health::Healthy),
        "degraded": fit(Health::Degraded),
        "connections": used(Resource::Connection),
        "pending_requests": used(Resource::PendingRequest),
        "requests": used(Resource::Request),
        "retries": used(Resource::Retry),
        "in_flight": gate.map(|gate| gate.in_flight()),
        "waiting": gate.map(|gate| gate.waiting()),
        "endpoints": Tree::List(endpoints.collect()),
    }
}

/// Listeners, their filter chains, and the routes of these.
pub(super) fn routes(context: &AdminContext, request: &Request) -> Response {
    let view = GraphView::new(context.process.graph.load());
    let bound = context.configuration.listeners();
    let mut nodes: Vec<_> = view.listeners.values().collect();
    nodes.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    nodes.retain(|node| request.parameter("listener").is_none_or(|name| *node.config.name == *name));
    let shown = nodes.into_iter().map(|node| {
        let addresses = bound.iter().find(|(name, _)| *name == node.config.name).map(|(_, addresses)| addresses.iter());
        let addresses = addresses.into_iter().flatten().map(ToString::to_string);
        listener(&view, node, Tree::list(addresses))
    });
    tree! { "listeners": Tree::List(shown.collect()) }.answer(request)
}

fn listener(view: &GraphView, node: &ListenerNode, addresses: Tree) -> Tree {
    let chains = node.chains.iter().map(|chain| chain_of(view, chain));
    tree! { "name": &node.config.name, "addresses": addresses, "filter_chains": Tree::List(chains.collect()) }
}

fn chain_of(view: &GraphView, chain: &ChainNode) -> Tree {
    let matches = &chain.config.matches;
    let ranges = matches.prefix_ranges.iter().take(5).map(ToString::to_string);
    let (does, http, clusters) = match &chain.application {
        Application::Missing => ("nothing", Tree::Nothing, Tree::Nothing),
        Application::OwnAnswer(_) => ("an answer of its own", Tree::Nothing, Tree::Nothing),
        Application::Http(node) => ("HTTP", manager(view, node), Tree::Nothing),
        Application::Tcp(node) => {
            ("TCP", Tree::Nothing, Tree::list(node.config.target.clusters.iter().map(|(name, _)| name)))
        }
    };
    tree! {
        "name": (!chain.config.name.is_empty()).then_some(&chain.config.name),
        "port": matches.destination_port,
        "ranges": if matches.prefix_ranges.is_empty() { Tree::Nothing } else { Tree::list(ranges) },
        "server_names": if matches.server_names.is_empty() { Tree::Nothing } else { Tree::list(matches.server_names.iter().take(5).map(|name| &**name)) },
        "protocols": if matches.application_protocols.is_empty() { Tree::Nothing } else { Tree::list(matches.application_protocols.iter().map(|name| &**name)) },
        "transport": (!matches.transport_protocol.is_empty()).then_some(&*matches.transport_protocol),
        "tls": chain.tls.is_some(),
        "does": does,
        "clusters": clusters,
        "http": http,
    }
}

fn manager(view: &GraphView, node: &HttpNode) -> Tree {
    let (table, name, scoped) = match &node.routes {
        Routes::Inline(table) => (Some(table), None, None),
        Routes::Discovered(name) => (view.routes.get(name), Some(name), None),
        // Which routes these are depends on the request.
        Routes::Scoped(_) => (None, None, Some(true)),
    };
    let filters = node.config.filters.iter().map(|filter| &filter.name);
    tree! {
        "filters": Tree::list(filters),
        "discovered_as": name,
        "scoped": scoped,
        "missing": (table.is_none() && scoped.is_none()).then_some(true),
        "virtual_hosts": table.map(|table| hosts(table)),
        "virtual_hosts_in_all": table.map(|table| table.configuration().virtual_hosts.len()),
    }
}

fn hosts(table: &RouteTable) -> Tree {
    let hosts = table.configuration().virtual_hosts.iter().take(ROUTES).map(|host: &std::sync::Arc<VirtualHost>| {
        let domains = host.domains.iter().take(5).map(|domain| &**domain);
        let routes = host.routes.iter().take(ROUTES).map(|route| shown(route));
        tree! {
            "name": &host.name,
            "domains": Tree::list(domains),
            "routes": Tree::List(routes.collect()),
            "routes_in_all": host.routes.len(),
        }
    });
    Tree::List(hosts.collect())
}

fn shown(route: &Route) -> Tree {
    let (does, clusters) = match &route.action {
        RouteAction::Forward(forward) => match &forward.cluster {
            ClusterChoice::Cluster(name) => ("to", Tree::list([name])),
            ClusterChoice::Weighted(many) => ("to one of", Tree::list(many.iter().map(|cluster| &cluster.name))),
            ClusterChoice::Header(_) => ("to the cluster that a header names", Tree::Nothing),
        },
        RouteAction::Redirect(_) => ("redirect", Tree::Nothing),
        RouteAction::Direct(_) => ("answered here", Tree::Nothing),
        RouteAction::NonForwarding => ("nothing", Tree::Nothing),
    };
    tree! {
        "name": (!route.name.is_empty()).then_some(&route.name),
        "takes": path_in_words(route),
        "does": does,
        "clusters": clusters,
    }
}
