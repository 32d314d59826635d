//! A match tree says which transport an endpoint has, by its metadata or that of its locality: the same one as in Envoy.

use std::path::PathBuf;

use outrigger_tests::config::{bootstrap, chain, http, listener, routes};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

const INPUTS: &str = "type.googleapis.com/envoy.extensions.matching.common_inputs.transport_socket.v3";

/// A tree by the value that `path` of an endpoint's or its locality's metadata leads to.
fn tree(input: &str, path: &str, values: &str) -> String {
    format!(
        "{{ matcher_tree: {{ input: {{ name: said, typed_config: {{ '@type': {INPUTS}.{input}, {path} }} }}, \
         exact_match_map: {{ map: {{ {values} }} }} }} }}"
    )
}

fn named(transport: &str) -> String {
    format!(
        "{{ action: {{ name: chosen, typed_config: {{ '@type': {INPUTS}.TransportSocketNameAction, name: {transport} }} }} }}"
    )
}

/// A cluster whose default is TLS, which its endpoint does not speak. `endpoint` and `locality` are metadata.
fn cluster(name: &str, port: u16, matcher: &str, endpoint: &str, locality: &str) -> String {
    let metadata = |said: &str| format!(", metadata: {{ filter_metadata: {{ {said} }} }}");
    format!(
        "{{ name: {name}, type: STATIC, connect_timeout: 5s, load_assignment: {{ cluster_name: {name}, endpoints: [{{ \
         lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}{} }}]{} \
         }}] }}, transport_socket: {TLS}, transport_socket_matches: [{{ name: secure, match: {{ a: plain }}, \
         transport_socket: {TLS} }}, {{ name: plain, match: {{ b: c }}, transport_socket: {RAW} }}], \
         transport_socket_matcher: {matcher} }}",
        metadata(endpoint),
        metadata(locality),
    )
}

const TLS: &str = "{ name: tls, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext } }";
const RAW: &str = "{ name: raw, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }";

async fn statuses(program: PathBuf, names: &[&str], clusters: &[String]) -> Vec<(String, u16)> {
    let route = |name: &&str| format!("{{ match: {{ prefix: /{name}/ }}, route: {{ cluster: {name} }} }}");
    let all: Vec<String> = names.iter().map(route).collect();
    let listener = listener("web", &[chain(&http("web", &routes(&all.join(", "))), "")], "");
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], clusters), settings).await;
    let address = proxy.listener("web").await;
    let mut seen = Vec::new();
    for name in names {
        seen.push(((*name).to_owned(), h1::get(address, &format!("/{name}/")).await.status));
    }
    seen
}

#[tokio::test]
async fn a_tree_chooses_the_transport_as_in_envoy() {
    let upstream = Upstream::start("end").await;
    let plain = format!("plain: {}, '7': {}, secure: {}", named("plain"), named("plain"), named("secure"));
    let endpoint = |path: &str| tree("EndpointMetadataInput", path, &plain);
    let locality = |path: &str| tree("LocalityMetadataInput", path, &plain);
    let kind = "path: [{ key: kind }]";
    let otherwise = {
        let tree = endpoint(kind);
        format!("{}, on_no_match: {} }}", tree.strip_suffix(" }").unwrap(), named("plain"))
    };
    let cases = [
        ("by-endpoint", endpoint(kind), "envoy.lb: { kind: plain }", "", 200),
        ("by-locality", locality(kind), "envoy.lb: { kind: secure }", "envoy.lb: { kind: plain }", 200),
        ("by-number", endpoint("path: [{ key: a }, { key: b }]"), "envoy.lb: { a: { b: 7 } }", "", 200),
        ("another", endpoint(kind), "envoy.lb: { kind: secure }", "", 503),
        // Nothing leads anywhere, so it is the default.
        ("unknown", endpoint(kind), "envoy.lb: { kind: other }", "", 503),
        ("nothing-said", endpoint(kind), "", "", 503),
        ("otherwise", otherwise, "envoy.lb: { kind: other }", "", 200),
        // What the matches ask for does not count where there is a tree.
        ("not-by-criteria", endpoint(kind), "envoy.transport_socket_match: { b: c }", "", 503),
        (
            "other-namespace",
            endpoint(&format!("filter: envoy.transport_socket_match, {kind}")),
            "envoy.transport_socket_match: { kind: plain }",
            "",
            200,
        ),
    ];
    let clusters: Vec<String> =
        cases.iter().map(|(name, tree, said, zone, _)| cluster(name, upstream.port(), tree, said, zone)).collect();
    let names = cases.each_ref().map(|(name, ..)| *name);
    let ours = statuses(proxy::program(), &names, &clusters).await;
    let expected: Vec<(String, u16)> =
        cases.iter().map(|(name, _, _, _, status)| ((*name).to_owned(), *status)).collect();
    assert_eq!(ours, expected);
    assert_eq!(statuses(proxy::envoy(), &names, &clusters).await, expected);
}
