//! Which virtual host and route a described request gets, and what the route does with it.
//!
//! Owns the account of both. Never sends or changes anything.

use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::RequestPolicies;
use outrigger_config::route::{
    ClusterChoice, Forward, HostRewrite, RequireTls, RetryOn, RetryPolicy, Route, RouteAction, VirtualHost,
};
use outrigger_policy::route::{Explained, RouteTable, redirect_location, rewrite_path};

use super::super::tree::{Tree, tree};
use super::asked::{Asked, Described};
use super::{choice_of, cluster, words};
use crate::graph::{ChainNode, HttpNode, ListenerNode, Routes};
use crate::http::headers::HeaderId;
use crate::http::manager::normalize;
use crate::http::manager::request::Chosen;
use crate::http::manager::scopes::routes_of;
use crate::http::message::RequestHead;
use crate::http::router::retry_policy;
use crate::http::router::timeout::{Timeouts, hedges};
use crate::worker::GraphView;

/// Earlier routes that are told of at most.
const TOLD: usize = 20;

/// What became of a request.
pub(super) struct Account {
    pub members: Vec<(&'static str, Tree)>,
    pub result: String,
}

/// Follows a request through a connection manager.
pub(super) fn account(
    view: &GraphView,
    listener: &ListenerNode,
    chain: &ChainNode,
    node: &HttpNode,
    asked: &Asked,
) -> Account {
    let connection = asked.connection(listener, &chain.config.name, chain.tls.is_some());
    let mut head = asked.head();
    if let Err(reply) = normalize::described(&node.config, &connection, &mut head) {
        let result = format!("the connection manager answers {} ({})", reply.status, reply.details);
        return Account { members: Vec::new(), result };
    }
    let source = match &node.routes {
        Routes::Inline(_) => "in the listener".to_owned(),
        Routes::Discovered(name) => format!("discovered as {name:?}"),
        Routes::Scoped(_) => "where the scope of the request leads".to_owned(),
    };
    let table = routes_of(node, view, &head);
    let Some(table) = table else {
        let result = format!(
            "404 (route_not_found): there are no routes ({source}): they have not arrived, or nothing leads to them"
        );
        return Account { members: vec![("filters", filters(node, None))], result };
    };
    let request = Described { head: &head, connection: &connection };
    let explained = table.explain(&request, asked.random, &*view.runtime, TOLD);
    let chosen = explained.virtual_host.zip(explained.route).map(|((_, virtual_host), (_, route))| Chosen {
        table,
        virtual_host,
        route,
        weighted: None,
    });
    let mut members = vec![
        ("filters", filters(node, chosen.as_ref())),
        ("routes", routes(table, source, &explained)),
        ("nearer_misses", misses(&explained, &request)),
    ];
    let Some(chosen) = chosen else {
        let result = match explained.virtual_host {
            None => format!("404 (route_not_found): no virtual host has a domain for {:?}", explained.host),
            Some((_, host)) => format!("404 (route_not_found): no route of virtual host {:?} takes it", host.name),
        };
        return Account { members, result };
    };
    members.push(("route", route(chosen.route, explained.route.map_or(0, |(position, _)| position))));
    let way = format!(
        "by route {} of virtual host {:?}",
        named(chosen.route, explained.route.map_or(0, |(position, _)| position)),
        chosen.virtual_host.name
    );
    let result = match refused(&chosen, &head) {
        Some(refused) => refused,
        None => act(view, node, &chosen, &head, &mut members, &way),
    };
    Account { members, result }
}

fn refused(chosen: &Chosen<'_>, head: &RequestHead) -> Option<String> {
    let secure = head.headers.get(HeaderId::XForwardedProto) == Some(b"https");
    let wanted = match chosen.virtual_host.require_tls {
        RequireTls::None => false,
        RequireTls::ExternalOnly | RequireTls::All => !secure,
    };
    let location = || format!("https://{}{}", head.authority_str(), head.path_str());
    wanted.then(|| format!("301 to {}: virtual host {:?} wants TLS", location(), chosen.virtual_host.name))
}

fn act(
    view: &GraphView,
    node: &HttpNode,
    chosen: &Chosen<'_>,
    head: &RequestHead,
    members: &mut Vec<(&'static str, Tree)>,
    way: &str,
) -> String {
    match &chosen.route.action {
        RouteAction::NonForwarding => format!("503 (cluster_not_found) {way}, which forwards nothing"),
        RouteAction::Direct(direct) => {
            format!("{} with {} bytes {way}, which answers itself", direct.status, direct.body.len())
        }
        RouteAction::Redirect(redirect) => {
            let scheme = head.headers.get_str(HeaderId::XForwardedProto).unwrap_or("http");
            let (host, path) = (head.authority_str(), head.path_str());
            let location = redirect_location(redirect, &chosen.route.matches, scheme, host, path);
            format!("{} to {location} {way}", redirect.status)
        }
        RouteAction::Forward(forward) => {
            let name = chosen.cluster_name(head);
            let target = name.as_deref().and_then(|name| view.clusters.get(name));
            let of_cluster = target.and_then(|node| node.config.requests.as_deref());
            members.push(("policies", policies(node, chosen, forward, head, of_cluster)));
            let (clusters, goes) = cluster::of_request(view, forward, name);
            members.push(("clusters", clusters));
            format!("{goes} {way}")
        }
    }
}

fn named(route: &Route, position: usize) -> String {
    if route.name.is_empty() { format!("{position}") } else { format!("{:?} ({position})", route.name) }
}

/// The filters in order, and whether they run for the route.
fn filters(node: &HttpNode, chosen: Option<&Chosen<'_>>) -> Tree {
    let list = node.filters().map(|(filter, _)| {
        let said = chosen.and_then(|chosen| chosen.route_filters(&filter.name).next());
        let runs = said.map_or(!filter.disabled, |said| !said.disabled);
        tree! {
            "name": &filter.name,
            "runs": runs,
            "has_settings_for_route": said.is_some_and(|said| said.config.is_some()).then_some(true),
        }
    });
    Tree::List(list.collect())
}

fn routes(table: &RouteTable, source: String, explained: &Explained<'_>) -> Tree {
    let configuration = table.configuration();
    let virtual_host = explained.virtual_host.map(|(position, host): (usize, &Arc<VirtualHost>)| {
        let domains = host.domains.iter().take(TOLD).map(|domain| &**domain);
        tree! {
            "position": position,
            "name": &host.name,
            "domains": Tree::list(domains),
            "domains_in_all": (host.domains.len() > TOLD).then_some(host.domains.len()),
            "routes": host.routes.len(),
        }
    });
    tree! {
        "configuration": &configuration.name,
        "source": source,
        "virtual_hosts": configuration.virtual_hosts.len(),
        "host_compared": &*explained.host,
        "path_compared": &*explained.path,
        "virtual_host": virtual_host,
        "match_tree_leads_to": explained.by_tree.map(|positions| Tree::list(positions.iter().copied())),
    }
}

fn misses(explained: &Explained<'_>, request: &Described<'_>) -> Tree {
    if explained.misses.is_empty() {
        return Tree::Nothing;
    }
    let told = explained.misses.iter().map(|miss| {
        tree! {
            "position": miss.position,
            "name": (!miss.route.name.is_empty()).then_some(&miss.route.name),
            "why_not": words::unmet(&miss.mismatch, request, &explained.path),
        }
    });
    let told = Tree::List(told.collect());
    tree! { "routes_before": explained.asked, "told": told }
}

fn route(route: &Route, position: usize) -> Tree {
    let action = match &route.action {
        RouteAction::Forward(forward) => format!("forwards to {}", choice_of(&forward.cluster)),
        RouteAction::Redirect(redirect) => format!("redirects with {}", redirect.status),
        RouteAction::Direct(direct) => format!("answers {}", direct.status),
        RouteAction::NonForwarding => "forwards nothing".to_owned(),
    };
    tree! {
        "position": position,
        "name": (!route.name.is_empty()).then_some(&route.name),
        "takes": words::criteria(&route.matches),
        "action": action,
    }
}

fn policies(
    node: &HttpNode,
    chosen: &Chosen<'_>,
    forward: &Forward,
    head: &RequestHead,
    of_cluster: Option<&RequestPolicies>,
) -> Tree {
    let policy = retry_policy(head, chosen.virtual_host, forward, of_cluster);
    let hash =
        of_cluster.map(|policies| &policies.hash).filter(|hash| !hash.is_empty()).unwrap_or(&forward.hash_policy);
    let limits = Timeouts::of_head(head, node.config.max_stream_duration, forward, policy.as_deref());
    let idle = limits.idle.or(node.config.stream_idle_timeout).filter(|limit| !limit.is_zero());
    let timeouts = tree! {
        "route": limits.route.map(duration),
        "per_try": limits.per_try.map(duration),
        "per_try_idle": limits.per_try_idle.map(duration),
        "late_tries_go_on": hedges(head, chosen.virtual_host, forward).then_some(true),
        "stream_idle": idle.map(duration),
        "max_stream_duration": limits.stream.map(duration),
    };
    let path = head.path_str();
    let rewritten = rewrite_path(forward, &chosen.route.matches, path);
    let host = match &forward.host_rewrite {
        HostRewrite::Keep => None,
        HostRewrite::Literal(host) => Some(host.clone()),
        HostRewrite::Auto => Some("the host name of the endpoint".to_owned()),
        HostRewrite::Header(name) => Some(format!("the value of header {name:?}")),
        HostRewrite::PathRegex(_) => Some("a part of the path".to_owned()),
    };
    tree! {
        "timeouts": timeouts,
        "retries": policy.as_deref().map(retries),
        "path_becomes": (*rewritten != *path).then(|| rewritten.into_owned()),
        "host_becomes": host,
        "priority": if forward.priority == outrigger_config::route::Priority::High { "high" } else { "default" },
        "endpoint_by_hash_of": (!hash.is_empty()).then(|| format!("{} hash policies", hash.len())),
        "subset": forward.metadata_match.is_some().then_some("endpoints with the metadata that the route wants"),
        "mirrors": mirrors(chosen, forward, of_cluster),
        "rate_limits": (!forward.rate_limits.is_empty()).then_some(forward.rate_limits.len()),
        "follows_redirects": forward.internal_redirect.as_ref().map(|redirect| redirect.max_redirects),
    }
}

fn mirrors(chosen: &Chosen<'_>, forward: &Forward, of_cluster: Option<&RequestPolicies>) -> Option<usize> {
    let levels = [&forward.mirrors, &chosen.virtual_host.mirrors, &chosen.table.configuration().mirrors];
    of_cluster.map(|policies| &policies.mirrors).into_iter().chain(levels).map(Vec::len).find(|count| *count > 0)
}

fn retries(policy: &RetryPolicy) -> Tree {
    tree! {
        "at_most": policy.num_retries,
        "on": Tree::list(conditions(&policy.on)),
        "statuses": if policy.retriable_status_codes.is_empty() { Tree::Nothing } else { Tree::list(policy.retriable_status_codes.clone()) },
        "back_off": format!("{} to {}", duration(policy.base_interval), duration(policy.max_interval)),
        "avoids_endpoints_tried": policy.avoided_hosts.previous.then_some(true),
        "avoids_canaries": policy.avoided_hosts.canaries.then_some(true),
        "avoids_endpoints_by_metadata": (!policy.avoided_hosts.metadata.is_empty()).then_some(true),
    }
}

/// The names of conditions.
fn conditions(on: &RetryOn) -> Vec<&'static str> {
    let RetryOn {
        server_error,
        gateway_error,
        reset,
        reset_before_request,
        connect_failure,
        retriable_4xx,
        refused_stream,
        retriable_status_codes,
        retriable_headers,
        envoy_ratelimited,
        http3_post_connect_failure: _,
        grpc_codes,
    } = on;
    let grpc = |code: u32| grpc_codes & (1 << code) != 0;
    let all = [
        (*server_error, "5xx"),
        (*gateway_error, "gateway-error"),
        (*reset, "reset"),
        (*reset_before_request, "reset-before-request"),
        (*connect_failure, "connect-failure"),
        (*retriable_4xx, "retriable-4xx"),
        (*refused_stream, "refused-stream"),
        (*retriable_status_codes, "retriable-status-codes"),
        (*retriable_headers, "retriable-headers"),
        (*envoy_ratelimited, "envoy-ratelimited"),
        (grpc(1), "cancelled"),
        (grpc(4), "deadline-exceeded"),
        (grpc(8), "resource-exhausted"),
        (grpc(13), "internal"),
        (grpc(14), "unavailable"),
    ];
    all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect()
}

pub(super) fn duration(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}

/// The clusters that a route names, with their weights.
pub(super) fn targets(forward: &Forward, named: Option<&str>) -> Vec<(Option<Arc<str>>, u64)> {
    match &forward.cluster {
        ClusterChoice::Weighted(clusters) => {
            let name = |name: &Arc<str>| (!name.is_empty()).then(|| Arc::clone(name));
            clusters.iter().map(|cluster| (name(&cluster.name), u64::from(cluster.weight))).collect()
        }
        ClusterChoice::Cluster(_) | ClusterChoice::Header(_) => vec![(named.map(Into::into), 1)],
    }
}
