//! Match trees of virtual hosts by what Envoy's cannot ask: parameters of the query, and addresses.

use outrigger_tests::config::{bootstrap, chain, http, listener};
use outrigger_tests::{Proxy, h1};

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
