//! Routes by what stands beside the request: the client's address and certificate. And match trees of virtual hosts by
//! what Envoy's cannot ask.

use std::path::PathBuf;

use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::{bootstrap, chain, http, listener, routes};
use outrigger_tests::{Proxy, Settings, h1, proxy};

const HOSTS: &str = ", route_config: { name: local, virtual_hosts: [{ name: all, domains: ['*'], matcher: { \
  matcher_list: { matchers: [{ \
    predicate: { and_matcher: { predicate: [ \
      { single_predicate: { input: { name: i, typed_config: { \
        '@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestQueryParamMatchInput, query_param: kind } }, \
        value_match: { exact: a b } } }, \
      { single_predicate: { input: { name: i, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.SourceIPInput } }, \
        custom_match: { name: m, typed_config: { \
          '@type': type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip, stat_prefix: ip, \
          cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] } } } }] } }, \
    on_match: { action: { name: a, typed_config: { '@type': type.googleapis.com/envoy.config.route.v3.Route, \
      match: { prefix: / }, direct_response: { status: 203 } } } } }] }, \
  on_no_match: { action: { name: a, typed_config: { '@type': type.googleapis.com/envoy.config.route.v3.Route, \
    match: { prefix: /known }, direct_response: { status: 206 } } } } } }] }";

#[tokio::test]
async fn routes_are_found_by_parameters_and_addresses() {
    let proxy = Proxy::start(&bootstrap(&[listener("web", &[chain(&http("web", HOSTS), "")], "")], &[])).await;
    let address = proxy.listener("web").await;
    for (target, status) in [
        ("/x?kind=a%20b", 203),
        ("/known?other=1&kind=a%20b&kind=c", 203),
        ("/known?kind=a+b", 206),
        ("/known", 206),
        ("/unknown", 404),
    ] {
        assert_eq!(h1::get(address, target).await.status, status, "{target}");
    }
}

/// What the route for each kind of client answers.
async fn statuses(program: PathBuf, authority: &Authority) -> Vec<u16> {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).expect("a file");
    authority.issue(&["proxy.example"]).write(directory.path(), "server");
    let tls = ", transport_socket: { name: tls, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
        common_tls_context: { validation_context: { trusted_ca: { filename: $dir/ca.pem } }, \
        tls_certificates: [{ certificate_chain: { filename: $dir/server.crt }, \
        private_key: { filename: $dir/server.key } }] } } }";
    let table = "{ match: { prefix: /, tls_context: { presented: true, validated: true } }, \
        direct_response: { status: 201 } }, \
        { match: { prefix: /, tls_context: { presented: false } }, direct_response: { status: 202 } }";
    let web = listener("web", &[chain(&http("web", &routes(table)), tls)], "");
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_in(directory, &bootstrap(&[web], &[]), settings).await;
    let address = proxy.listener("web").await;
    let mut statuses = Vec::new();
    for identity in [Some(authority.issue(&["client.example"])), None] {
        let config = authority.client(&[], identity.as_ref());
        let stream = certificates::connect(address, "proxy.example", config).await.expect("a handshake");
        statuses.push(h1::Client::over(Box::new(stream)).get("/").await.status);
    }
    statuses
}

#[tokio::test]
async fn routes_may_ask_for_a_certificate() {
    let authority = Authority::new();
    for program in [proxy::envoy(), proxy::program()] {
        assert_eq!(statuses(program, &authority).await, [201, 202]);
    }
}
