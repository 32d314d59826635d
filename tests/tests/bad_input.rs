//! What a person is told about a configuration that cannot work: the exact words, with the path to the place.
//!
//! The words are ours, so against Envoy only the refusal itself is checked.

use outrigger_tests::proxy;

/// Which part of an otherwise good bootstrap is given.
#[derive(Clone, Copy)]
enum Part {
    /// All of it.
    Text(&'static str),
    /// All clusters.
    Clusters(&'static str),
    /// Further fields of the cluster `a`.
    Cluster(&'static str),
    /// The endpoints of the cluster `a`.
    Endpoints(&'static str),
    /// All listeners.
    Listeners(&'static str),
    /// The filter chains of the listener `web`.
    Chains(&'static str),
    /// The fields of its one certificate.
    Certificate(&'static str),
    /// The fields of its connection manager.
    Manager(&'static str),
    /// The fields of its route configuration `r`.
    Routes(&'static str),
    /// The fields of its one route.
    Route(&'static str),
}

use Part::{Certificate, Chains, Cluster, Clusters, Endpoints, Listeners, Manager, Route, Routes, Text};

/// What is wrong, the configuration, and what is said about it.
#[rustfmt::skip]
const CASES: &[(&str, Part, &str)] = &[
    ("not YAML", Text("static_resources: ["), r##"--config-yaml: not valid YAML: did not find expected node content at line 2 column 1, while parsing a flow node"##),
    ("not a mapping", Text("- a\n- b"), r##"--config-yaml: document: got ["a","b"], expected an object (envoy.config.bootstrap.v3.Bootstrap)"##),
    ("unknown field at the top", Text("static_resource: {}"), r##"--config-yaml: static_resource: unknown field of envoy.config.bootstrap.v3.Bootstrap; did you mean static_resources?"##),
    ("unknown field in a cluster", Cluster(", bogus: 1"), r##"--config-yaml: static_resources.clusters[0].bogus: unknown field of envoy.config.cluster.v3.Cluster"##),
    ("wrong type of a field", Clusters("{ name: a, connect_timeout: soon }"), r##"--config-yaml: static_resources.clusters[0].connect_timeout: got "soon", expected a duration in seconds such as "0.25s""##),
    ("unknown enum value", Cluster(", lb_policy: FASTEST"), r##"--config-yaml: static_resources.clusters[0].lb_policy: got "FASTEST", expected one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV, CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG (envoy.config.cluster.v3.Cluster.LbPolicy)"##),
    ("cluster without a name", Clusters("{ connect_timeout: 1s }"), r##"bootstrap "": static_resources.clusters[0]: cluster "": name: must not be empty"##),
    ("negative timeout", Clusters("{ name: a, connect_timeout: -1s }"), r##"bootstrap "": static_resources.clusters[0]: cluster "a": connect_timeout: -1.000000000s must not be negative"##),
    ("two clusters of one name", Clusters("{ name: a }, { name: a }"), r##"bootstrap "": static_resources.clusters[1]: "a" is given twice"##),
    ("endpoint that is no IP", Endpoints("{ endpoint: { address: { socket_address: { address: example.com, port_value: 80 } } } }"), r##"bootstrap "": static_resources.clusters[0]: cluster "a": load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: "example.com" is not an IP address; names are for clusters of type STRICT_DNS or LOGICAL_DNS"##),
    ("port out of range", Endpoints("{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 70000 } } } }"), r##"bootstrap "": static_resources.clusters[0]: cluster "a": load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: 70000 is not a port, expected 0 to 65535"##),
    ("endpoint without an address", Endpoints("{ endpoint: {} }"), r##"bootstrap "": static_resources.clusters[0]: cluster "a": load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: is required"##),
    ("EDS cluster without a source", Cluster(", type: EDS"), r##"bootstrap "": static_resources.clusters[0]: cluster "a": eds_cluster_config: is required for a cluster of type EDS"##),
    ("EDS over ADS without ADS", Cluster(", type: EDS, eds_cluster_config: { eds_config: { ads: {}, resource_api_version: V3 } }"), r##"cluster "a": the source is ADS, but the bootstrap has no dynamic_resources.ads_config"##),
    ("route to an unknown cluster", Route("match: { prefix: / }, route: { cluster: nowhere }"), r##"listener "web": route_config "r": unknown cluster 'nowhere'"##),
    ("route without a match", Route("route: { cluster: a }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].match: is required"##),
    ("route without an action", Route("match: { prefix: / }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0]: needs one of route, redirect, direct_response, non_forwarding_action"##),
    ("prefix and path at once", Route("match: { prefix: /, path: /a }, route: { cluster: a }"), r##"--config-yaml: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].match.prefix: excludes path, expected one of them"##),
    ("bad regex", Route("match: { safe_regex: { regex: 'a(b' } }, route: { cluster: a }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].match.safe_regex.regex: is not a valid regular expression: regex parse error:
    ^(?:a(b)$
     ^
error: unclosed group"##),
    ("separated prefix ending in a slash", Route("match: { path_separated_prefix: /api/ }, route: { cluster: a }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].match.path_separated_prefix: "/api/" must have two characters or more, must not contain '?' or '#' and must not end in '/'"##),
    ("direct response with a bad status", Route("match: { prefix: / }, direct_response: { status: 99 }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].direct_response.status: 99 is not within 200 to 599"##),
    ("weighted clusters without weights", Route("match: { prefix: / }, route: { weighted_clusters: { clusters: [{ name: a, weight: 0 }] } }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.weighted_clusters.clusters: the weights add up to 0, expected 1 to 4294967295"##),
    ("virtual host without a domain", Routes("virtual_hosts: [{ name: v, domains: [] }]"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].domains: needs at least one domain"##),
    ("domain twice", Routes("virtual_hosts: [{ name: v, domains: [a.b] }, { name: w, domains: [a.b] }]"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[1].domains[0]: "a.b" of virtual host "w" is already a domain of virtual host "v""##),
    ("header name with a blank", Route("match: { prefix: / }, route: { cluster: a }, request_headers_to_add: [{ header: { key: 'a b', value: c } }]"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].request_headers_to_add[0].header.key: "a b" is not a valid header name"##),
    ("header that must not be changed", Route("match: { prefix: / }, route: { cluster: a }, request_headers_to_remove: [host]"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].request_headers_to_remove[0]: "host": ":"-prefixed or host headers may not be removed"##),
    ("unknown format operator", Route("match: { prefix: / }, route: { cluster: a }, request_headers_to_add: [{ header: { key: a, value: '%NOPE%' } }]"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].request_headers_to_add[0].header.value: the operator NOPE is not supported"##),
    ("connection manager without routes", Manager("stat_prefix: web"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config: needs one of rds, route_config, scoped_routes"##),
    ("no stat prefix", Manager("stat_prefix: '', route_config: {}"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.stat_prefix: must not be empty"##),
    ("no HTTP filters", Manager("stat_prefix: web, route_config: {}, http_filters: []"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.http_filters: must not be empty, expected a router at the end"##),
    ("unknown extension", Manager("stat_prefix: web, route_config: {}, http_filters: [{ name: a, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.nothing.v3.Nothing } }]"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filters[0].typed_config.http_filters[0].typed_config: unknown message type type.googleapis.com/envoy.extensions.filters.http.nothing.v3.Nothing"##),
    ("listener without an address", Listeners("{ name: web, filter_chains: [{}] }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": address: is required"##),
    ("listener without filter chains", Listeners("{ name: web, address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains: no filter chains specified"##),
    ("two listeners on one address", Listeners("{ name: web, address: { socket_address: { address: 127.0.0.1, port_value: 10000 } }, filter_chains: [{ filters: [] }] }, { name: other, address: { socket_address: { address: 127.0.0.1, port_value: 10000 } }, filter_chains: [{ filters: [] }] }"), r##"listener "other": has duplicate address 127.0.0.1:10000 as existing listener "web""##),
    ("the same chain match twice", Chains("{ filters: [] }, { filters: [] }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[1].filter_chain_match: filter chain "" has the same match as filter chain "" (filter_chains[0])"##),
    ("certificate file that is not there", Certificate("certificate_chain: { filename: /nonexistent.crt }, private_key: { filename: /nonexistent.key }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].transport_socket.typed_config.common_tls_context.tls_certificates[0].certificate_chain.filename: cannot read "/nonexistent.crt": No such file or directory (os error 2)"##),
    ("certificate that is none", Certificate("certificate_chain: { inline_string: hello }, private_key: { inline_string: hello }"), r##"listener "web": filter_chains[0].transport_socket: certificate chain (inline): no certificate in the PEM data"##),
    ("breaker for an unknown priority", Cluster(", circuit_breakers: { thresholds: [{ priority: LOW }] }"), r##"--config-yaml: static_resources.clusters[0].circuit_breakers.thresholds[0].priority: got "LOW", expected one of DEFAULT, HIGH (envoy.config.core.v3.RoutingPriority)"##),
    ("server name with a wildcard inside", Chains("{ filters: [], filter_chain_match: { server_names: ['a.*.b'] } }"), r##"bootstrap "": static_resources.listeners[0]: listener "web": filter_chains[0].filter_chain_match.server_names[0]: "a.*.b": partial wildcards are not supported in "server_names""##),
    ("ADS from an unknown cluster", Text("node: { id: a, cluster: b }\ndynamic_resources: { cds_config: { ads: {} }, ads_config: { api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{ envoy_grpc: { cluster_name: nowhere } }] } }"), r##"bootstrap "": dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name: "nowhere" is not a static cluster"##),
    ("discovery without a node id", Text("node: { cluster: b }\ndynamic_resources: { cds_config: { path_config_source: { path: /tmp/x }, resource_api_version: V3 } }"), r##"dynamic_resources.cds_config: node 'id' and 'cluster' are required. Set it either in 'node' config or via --service-node and --service-cluster options."##),
    ("discovered listeners without a node", Text("dynamic_resources: { lds_config: { path_config_source: { path: /tmp/x }, resource_api_version: V3 } }"), r##"dynamic_resources.lds_config: node 'id' and 'cluster' are required. Set it either in 'node' config or via --service-node and --service-cluster options."##),
    ("discovered routes without a node cluster", Text("node: { id: a }\nstatic_resources: { listeners: [{ name: web, address: { socket_address: { address: 127.0.0.1, port_value: 0 } }, filter_chains: [{ filters: [{ name: http, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: web, rds: { route_config_name: r, config_source: { path_config_source: { path: /tmp/x }, resource_api_version: V3 } }, http_filters: [{ name: router, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }] } }] }] }] }"), r##"listener "web": node 'id' and 'cluster' are required. Set it either in 'node' config or via --service-node and --service-cluster options."##),
    ("old API version", Cluster(", type: EDS, eds_cluster_config: { eds_config: { path_config_source: { path: /tmp/x }, resource_api_version: V2 } }"), r##"bootstrap "": static_resources.clusters[0]: cluster "a": eds_cluster_config.eds_config.resource_api_version: V2 is not supported, expected V3"##),
];

/// Cases that Envoy lets pass; each is refused here because it can only be a mistake.
const STRICTER: [&str; 3] = ["header name with a blank", "no HTTP filters", "discovered listeners without a node"];

const ROUTER: &str = "{ name: router, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }";

impl Part {
    /// The whole bootstrap.
    fn bootstrap(self) -> String {
        match self {
            Text(text) => text.to_owned(),
            Clusters(clusters) => format!("static_resources: {{ clusters: [{clusters}] }}"),
            Cluster(more) => format!(
                "node: {{ id: a, cluster: b }}\nstatic_resources: {{ clusters: [{{ name: a, connect_timeout: 1s{more} }}] }}"
            ),
            Endpoints(endpoints) => format!(
                "static_resources: {{ clusters: [{{ name: a, load_assignment: {{ cluster_name: a, endpoints: [{{ \
                 lb_endpoints: [{endpoints}] }}] }} }}] }}"
            ),
            Listeners(listeners) => {
                format!("static_resources: {{ listeners: [{listeners}], clusters: [{{ name: a }}] }}")
            }
            other => with_listeners(&format!(
                "{{ name: web, address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}, \
                 filter_chains: [{}] }}",
                other.chains()
            )),
        }
    }

    fn chains(self) -> String {
        let certificate = match self {
            Chains(chains) => return chains.to_owned(),
            Certificate(fields) => format!(
                ", transport_socket: {{ name: tls, typed_config: {{ \
                 '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
                 common_tls_context: {{ tls_certificates: [{{ {fields} }}] }} }} }}"
            ),
            _ => String::new(),
        };
        format!(
            "{{ filters: [{{ name: http, typed_config: {{ '@type': \
             type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
             {} }} }}]{certificate} }}",
            self.manager()
        )
    }

    fn manager(self) -> String {
        let fields = match self {
            Manager(fields) => fields.to_owned(),
            Routes(fields) => format!("stat_prefix: web, route_config: {{ name: r, {fields} }}"),
            Route(fields) => format!(
                "stat_prefix: web, route_config: {{ name: r, virtual_hosts: [{{ name: v, domains: ['*'], routes: [{{ {fields} }}] }}] }}"
            ),
            _ => "stat_prefix: web, route_config: { name: r }".to_owned(),
        };
        if fields.contains("http_filters") { fields } else { format!("{fields}, http_filters: [{ROUTER}]") }
    }
}

fn with_listeners(listeners: &str) -> String {
    Listeners("").bootstrap().replace("listeners: []", &format!("listeners: [{listeners}]"))
}

#[tokio::test]
async fn what_is_wrong_is_said_exactly() {
    let mut report = String::new();
    for (name, part, expected) in CASES {
        let text = part.bootstrap();
        let arguments = ["--mode", "validate", "--config-yaml", &text, "-l", "critical", "--disable-hot-restart"];
        let (status, stdout, stderr) = proxy::run(&arguments).await;
        if proxy::tests_envoy() {
            let refused = status.code() == Some(1);
            assert!(refused != STRICTER.contains(name), "{name}: {stdout}{stderr}");
            continue;
        }
        assert_eq!(status.code(), Some(1), "{name}: {stdout}{stderr}");
        let (_, said) = stderr.split_once("error initializing configuration '': ").unwrap_or(("", &stderr));
        if said.trim_end() != *expected {
            report.push_str(&format!("## {name}\n{}\n", said.trim_end()));
        }
    }
    assert!(report.is_empty(), "not the words expected:\n{report}");
}
