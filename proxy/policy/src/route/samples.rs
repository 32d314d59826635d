//! Small configuration values for tests.

use std::sync::Arc;

use outrigger_config::http::{HeaderMutations, RouteFilters};
use outrigger_config::route::*;

pub(crate) fn criteria(path: PathMatch) -> RouteMatch {
    RouteMatch {
        path,
        case_sensitive: true,
        headers: Vec::new(),
        query_parameters: Vec::new(),
        runtime_fraction: None,
        grpc: false,
        cookies: Vec::new(),
        more: None,
    }
}

pub(crate) fn forward(cluster: &str) -> Forward {
    Forward {
        cluster: ClusterChoice::Cluster(cluster.into()),
        weight_choice: WeightChoice::default(),
        cluster_not_found_code: 503,
        mirrors: Vec::new(),
        prefix_rewrite: None,
        regex_rewrite: None,
        host_rewrite: HostRewrite::Keep,
        append_x_forwarded_host: false,
        timeout: None,
        idle_timeout: None,
        max_stream_duration: None,
        grpc_timeout_offset: None,
        max_grpc_timeout: None,
        retry_policy: None,
        hedges: None,
        cors: None,
        priority: Priority::Default,
        upgrades: Vec::new(),
        connect: None,
        hash_policy: Arc::default(),
        metadata_match: None,
        path_format: None,
        template_rewrite: None,
        queue: None,
        rate_limits: Box::default(),
        include_virtual_host_rate_limits: false,
        internal_redirect: None,
    }
}

pub(crate) fn redirect() -> Redirect {
    Redirect {
        scheme: SchemeRedirect::Keep,
        host: None,
        port: None,
        path: PathRedirect::Keep,
        status: 301,
        strip_query: false,
    }
}

pub(crate) fn route(name: &str, matches: RouteMatch) -> Arc<Route> {
    Arc::new(Route {
        name: name.into(),
        matches,
        action: RouteAction::NonForwarding,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        stat_prefix: None,
        filters: RouteFilters::default(),
        metadata: None,
        trace: None,
        body_limit: None,
    })
}

pub(crate) fn virtual_host(name: &str, domains: &[&str], routes: Vec<Arc<Route>>) -> Arc<VirtualHost> {
    Arc::new(VirtualHost {
        name: name.into(),
        domains: domains.iter().map(ToString::to_string).collect(),
        routes,
        matcher: None,
        body_limit: None,
        require_tls: RequireTls::None,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
        include_is_timeout_retry: false,
        virtual_clusters: Box::default(),
        retry_policy: None,
        hedges: None,
        cors: None,
        mirrors: Vec::new(),
        rate_limits: Box::default(),
        filters: RouteFilters::default(),
    })
}

pub(crate) fn configuration(virtual_hosts: Vec<Arc<VirtualHost>>) -> RouteConfiguration {
    RouteConfiguration {
        name: "routes".into(),
        more_virtual_hosts: None,
        virtual_hosts,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        internal_only_headers: Vec::new(),
        most_specific_header_mutations_wins: false,
        validate_clusters: false,
        ignore_port_in_host_matching: false,
        host_header: None,
        ignore_path_parameters: false,
        mirrors: Vec::new(),
        filters: RouteFilters::default(),
    }
}
