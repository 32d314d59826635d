//! What the router does to a request head before it leaves.
//!
//! Owns rewrites and the headers that tell upstreams about the request. Never sends anything.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::address::Address;
use outrigger_config::cluster::{DnsCache, OriginalDstOptions};
use outrigger_config::route::{
    AvoidedHosts, Forward, HeaderMatch, HeaderMatcher, HostRewrite, RetryOn, RetryPolicy, WeightedCluster,
};
use outrigger_policy::route::{rewrite_path, rewrite_path_by_regex};

use super::mutate_for_cluster;
use super::timeout::{Timeouts, to_grpc_timeout};
use crate::accesslog::format;
use crate::http::h1::encode::decimal;
use crate::http::headers::HeaderId;
use crate::http::manager::request::{Chosen, Request};
use crate::upstream::clusters::WorkerCluster;
use crate::upstream::destination::{destination_in, told_destination};
use crate::upstream::dns_cache::{DYNAMIC_HOST, DYNAMIC_PORT, Lookup, host_and_port};
use crate::upstream::worker_host::WorkerHost;

/// Whether the router filter was told to add no `x-envoy-*` headers.
pub fn suppresses_envoy_headers(request: &Request<'_>) -> bool {
    request.filters.router.suppress_envoy_headers
}

/// Rewrites the head for the upstream.
pub fn request_head(
    request: &mut Request<'_>,
    chosen: &Chosen<'_>,
    action: &Forward,
    weighted: Option<&WeightedCluster>,
    timeouts: &Timeouts,
) {
    for steering in [
        HeaderId::XEnvoyUpstreamRqTimeoutMs,
        HeaderId::XEnvoyUpstreamRqPerTryTimeoutMs,
        HeaderId::XEnvoyRetryOn,
        HeaderId::XEnvoyRetryGrpcOn,
        HeaderId::XEnvoyMaxRetries,
        HeaderId::XEnvoyRetriableStatusCodes,
        HeaderId::XEnvoyRetriableHeaderNames,
        HeaderId::XEnvoyExpectedRqTimeoutMs,
        HeaderId::XEnvoyHedgeOnPerTryTimeout,
        HeaderId::XEnvoyUpstreamRqTimeoutAltResponse,
    ] {
        request.head.headers.remove(steering);
    }
    let suppress = suppresses_envoy_headers(request);
    tell_timeout(request, action, timeouts, Duration::ZERO);
    if let Some(weighted) = weighted {
        mutate_for_cluster(request, weighted);
    }
    chosen.mutate_request(request);
    let host = match (weighted.and_then(|weighted| weighted.host_rewrite_literal.as_ref()), &action.host_rewrite) {
        (Some(literal), _) | (None, HostRewrite::Literal(literal)) => Some(literal.clone()),
        (None, HostRewrite::Header(name)) => {
            request.head.headers.get_by_name(name).and_then(|host| String::from_utf8(host.to_vec()).ok())
        }
        (None, HostRewrite::PathRegex(rewrite)) => {
            let path = request.head.path_str();
            let bare = path.split(['?', '#']).next().unwrap_or_default();
            rewrite_path_by_regex(rewrite, bare)
        }
        (None, HostRewrite::Keep | HostRewrite::Auto) => None,
    };
    if let Some(host) = host.filter(|host| !host.is_empty()) {
        set_host(request, action, &host);
    }
    // After the host, which may be a part of the path as it came.
    if let Some(path) = rewritten_path(request, chosen, action) {
        if !suppress {
            let original = request.head.path().to_vec();
            request.head.headers.set(HeaderId::XEnvoyOriginalPath, &original);
        }
        request.head.set_path(path.as_bytes());
    }
}

/// Tells the upstream how long the next try may take, when so much time has passed since all of the request came.
pub fn tell_timeout(request: &mut Request<'_>, action: &Forward, timeouts: &Timeouts, elapsed: Duration) {
    // Counted in whole milliseconds, as everybody does who reads it.
    let elapsed = Duration::from_millis(elapsed.as_millis() as u64);
    let Some(limit) = timeouts.expected(elapsed) else { return };
    if !suppresses_envoy_headers(request) {
        let mut text = [0; 20];
        let text = decimal(limit.as_millis() as u64, &mut text);
        request.head.headers.set(HeaderId::XEnvoyExpectedRqTimeoutMs, text);
    }
    if action.max_grpc_timeout.is_some() && action.max_stream_duration.is_none() && request.head.is_grpc() {
        request.head.headers.set(HeaderId::GrpcTimeout, to_grpc_timeout(limit).as_bytes());
    }
}

/// The path that the route wants instead of the request's, if it does.
fn rewritten_path(request: &Request<'_>, chosen: &Chosen<'_>, action: &Forward) -> Option<String> {
    if let Some(format) = &action.path_format {
        let mut path = Vec::new();
        format::write_header(format, &request.facts(), &mut path);
        let path = String::from_utf8(path).ok().filter(|path| !path.is_empty())?;
        let old = request.head.path_str();
        let query = old.find(['?', '#']).map_or("", |end| &old[end..]);
        // What headers put into it must not end it.
        let is_sound = path.bytes().all(|byte| byte.is_ascii_graphic());
        return is_sound.then(|| path + query);
    }
    if action.prefix_rewrite.is_none() && action.regex_rewrite.is_none() && action.template_rewrite.is_none() {
        return None;
    }
    match rewrite_path(action, &chosen.route.matches, request.head.path_str()) {
        Cow::Owned(path) => Some(path),
        Cow::Borrowed(_) => None,
    }
}

fn set_host(request: &mut Request<'_>, action: &Forward, host: &str) {
    if action.append_x_forwarded_host {
        let before = request.head.authority().to_vec();
        let list = match request.head.headers.get(HeaderId::XForwardedHost) {
            Some(list) => [list, b",", &before].concat(),
            None => before,
        };
        request.head.headers.set(HeaderId::XForwardedHost, &list);
    }
    if !suppresses_envoy_headers(request) {
        let before = request.head.authority().to_vec();
        request.head.headers.set_by_name("x-envoy-original-host", &before);
    }
    request.head.set_authority(host.as_bytes());
}

/// The host name of the endpoint replaces the request's, where the route wants that.
pub fn host_name(request: &mut Request<'_>, action: &Forward, host: &Rc<WorkerHost>) {
    if matches!(action.host_rewrite, HostRewrite::Auto) && !host.host.hostname.is_empty() {
        let name = host.host.hostname.clone();
        set_host(request, action, &name);
    }
}

/// The scheme of the connection to the endpoint replaces the request's, where the connection manager wants that.
pub fn scheme(request: &mut Request<'_>, host: &WorkerHost) {
    if request.connection.node.config.scheme_of_upstream {
        let secure = host.node.tls.get(host.host.transport).is_some();
        request.head.set_scheme(if secure { b"https" } else { b"http" });
    }
}

/// Where an original-destination cluster sends a request.
pub fn original_destination(request: &Request<'_>, options: &OriginalDstOptions) -> Option<SocketAddr> {
    let info = &request.connection.info;
    let by_object =
        told_destination(&request.info.filter_state.borrow()).or_else(|| told_destination(&info.filter_state.borrow()));
    let by_header = options.http_header.as_ref().and_then(|name| {
        let value = request.head.headers.get_by_name(name)?;
        std::str::from_utf8(value).ok()?.parse::<SocketAddr>().ok()
    });
    let restored = || match &info.local {
        Address::Ip(address) if info.local_restored => Some(*address),
        _ => None,
    };
    let by_metadata = || {
        let path = options.metadata.as_ref()?;
        let of_request = destination_in(&request.info.dynamic_metadata.borrow(), path);
        of_request.or_else(|| destination_in(&info.dynamic_metadata.borrow(), path))
    };
    let mut address = by_object.or(by_header).or_else(by_metadata).or_else(restored)?;
    if let Some(port) = options.upstream_port_override {
        address.set_port(port);
    }
    Some(address)
}

/// Looks the host of a request up in the cache of a dynamic forward proxy.
pub fn look_up(request: &Request<'_>, cluster: &WorkerCluster, cache: &Arc<DnsCache>) -> Lookup {
    let default_port = if cluster.node().tls.get(0).is_some() { 443 } else { 80 };
    let (mut host, mut port) = host_and_port(request.head.authority_str(), default_port);
    let state = request.info.filter_state.borrow();
    host = state.get(DYNAMIC_HOST).map_or(host, String::as_str);
    port = state.get(DYNAMIC_PORT).and_then(|port| port.parse().ok()).unwrap_or(port);
    let worker = &request.connection.worker;
    worker.dns.look_up(worker, cache, host, port)
}

/// What `x-envoy-retry-on` gets where the route has no policy.
pub fn default_retry_policy() -> RetryPolicy {
    RetryPolicy {
        on: RetryOn::default(),
        num_retries: 1,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        retriable_status_codes: Vec::new(),
        base_interval: Duration::from_millis(25),
        max_interval: Duration::from_millis(250),
        host_selection_max_attempts: 1,
        avoided_hosts: AvoidedHosts::default(),
        retry_priority: None,
        retriable_headers: Vec::new(),
        retriable_request_headers: Vec::new(),
        rate_limited_back_off: None,
    }
}

/// Adds what `x-envoy-retriable-status-codes` and `x-envoy-retriable-header-names` list.
pub fn add_retriable(policy: &mut RetryPolicy, codes: Option<&str>, names: Option<&str>) {
    let codes = codes.into_iter().flat_map(|codes| codes.split(',')).filter_map(|code| code.trim().parse::<u16>().ok());
    policy.retriable_status_codes.extend(codes);
    let names = names.into_iter().flat_map(|names| names.split(',')).map(str::trim).filter(|name| !name.is_empty());
    policy.retriable_headers.extend(names.map(|name| HeaderMatcher {
        name: name.to_ascii_lowercase().into(),
        value: HeaderMatch::Present(true),
        invert: false,
        treat_missing_as_empty: false,
    }));
}

/// Adds the conditions of a header to those of the route.
pub fn add_conditions(on: &mut RetryOn, names: &str) {
    let more = RetryOn::from_names(names);
    on.server_error |= more.server_error;
    on.gateway_error |= more.gateway_error;
    on.reset |= more.reset;
    on.reset_before_request |= more.reset_before_request;
    on.connect_failure |= more.connect_failure;
    on.retriable_4xx |= more.retriable_4xx;
    on.refused_stream |= more.refused_stream;
    on.retriable_status_codes |= more.retriable_status_codes;
    on.retriable_headers |= more.retriable_headers;
    on.envoy_ratelimited |= more.envoy_ratelimited;
    on.http3_post_connect_failure |= more.http3_post_connect_failure;
    on.grpc_codes |= more.grpc_codes;
}
