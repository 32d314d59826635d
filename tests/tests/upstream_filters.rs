//! HTTP filters in front of upstreams: the same requests for Envoy and for the proxy under test.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{self, bootstrap, chain, cluster, cluster_with};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// Header mutations, and the codec that ends the chain.
fn filters(mutations: &str) -> String {
    format!(
        "[{{ name: hm, typed_config: {{ '@type': {TYPES}.header_mutation.v3.HeaderMutation, mutations: {{ {mutations} }} }} }}, \
         {{ name: codec, typed_config: {{ '@type': {TYPES}.upstream_codec.v3.UpstreamCodec }} }}]"
    )
}

fn append(name: &str, value: &str) -> String {
    format!("{{ append: {{ header: {{ key: {name}, value: '{value}' }}, append_action: APPEND_IF_EXISTS_OR_ADD }} }}")
}

fn bootstrap_for(upstream: &Upstream) -> String {
    let routes = format!(
        "{{ match: {{ path: /bare }}, route: {{ cluster: bare }} }}, \
         {{ match: {{ path: /disabled }}, route: {{ cluster: own }}, typed_per_filter_config: {{ hm: {{ \
         '@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true }} }} }}, \
         {{ match: {{ prefix: / }}, typed_per_filter_config: {{ hm: {{ \
         '@type': {TYPES}.header_mutation.v3.HeaderMutationPerRoute, mutations: {{ request_mutations: [{}] }} }} }}, \
         route: {{ cluster: own, retry_policy: {{ retry_on: '5xx,retriable-headers', num_retries: 1, \
         retriable_headers: [{{ name: x-again }}] }} }} }}",
        append("x-route", "r")
    );
    let log = config::access_log_of("web.log", "%RESPONSE_CODE% %RESPONSE_FLAGS% %REQ(x-try)% %RESP(x-answer)%");
    let manager = config::http("web", &(config::routes(&routes) + &log))
        .replace("virtual_hosts: [{ name: all,", "virtual_hosts: [{ name: all, include_request_attempt_count: true,")
        .replace(
            "router.v3.Router }",
            &format!(
                "router.v3.Router, upstream_http_filters: {} }}",
                filters(&format!("request_mutations: [{}]", append("x-router", "a")))
            ),
        );
    let own = format!(
        ", typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ \
         '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
         explicit_http_config: {{ http_protocol_options: {{}} }}, http_filters: {} }} }}",
        filters(&format!(
            "request_mutations: [{}, {{ remove: x-secret }}], response_mutations: [{}, {{ remove: x-again }}], \
             response_trailers_mutations: [{}]",
            append("x-try", "%REQ(x-envoy-attempt-count)%-%UPSTREAM_HOST%"),
            append("x-answer", "%REQ(x-envoy-attempt-count)%"),
            append("x-late", "l"),
        ))
    );
    bootstrap(
        &[config::listener("web", &[chain(&manager, "")], "")],
        &[cluster_with("own", &[upstream.port()], &own), cluster("bare", &[upstream.port()])],
    )
}

#[tokio::test]
async fn each_try_passes_through_the_filters_of_its_cluster_or_the_routers() {
    let mut observed = Vec::new();
    for program in [proxy::program(), proxy::envoy()] {
        let upstream = Upstream::start("one").await;
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap_for(&upstream), settings).await;
        let mut client = h1::Client::connect(proxy.listener("web").await).await;
        let mut lines = Vec::new();
        for (target, reply) in [
            ("/", "bytes=10 chunked trailers"),
            ("/retried", "status=503"),
            // The retry policy sees what the filters leave.
            ("/not-retried", "header=x-again:1"),
            ("/bare", "bytes=3"),
            ("/disabled", "bytes=3"),
        ] {
            let before = upstream.seen().len();
            let response = client.request("GET", target, &[("x-secret", "s"), ("x-reply", reply)], b"").await;
            lines.push(format!("{target}: {} {:?}", response.status, response.header("x-answer")));
            for seen in &upstream.seen()[before..] {
                let of = |name: &str| {
                    let values =
                        seen.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
                    values.collect::<Vec<_>>().join("|").replace(&upstream.port().to_string(), "port")
                };
                let headers = ["x-try", "x-route", "x-router", "x-secret"].map(|name| format!("{name}={}", of(name)));
                lines.push(format!("  {}", headers.join(" ")));
            }
        }
        let logged = proxy.lines("web.log", 5).await.join("\n");
        lines.push(logged.replace(&upstream.port().to_string(), "port"));
        observed.push(lines);
    }
    assert_eq!(observed[0], observed[1]);
    let ours = observed[0].join("\n");
    for expected in [
        "/retried: 503 Some(\"2\")\n  x-try=1-127.0.0.1:port x-route=r x-router= x-secret=\n  \
         x-try=1-127.0.0.1:port|2-127.0.0.1:port x-route=r|r",
        "/not-retried: 200 Some(\"1\")\n  x-try=1-127.0.0.1:port x-route=r x-router= x-secret=\n/bare",
        "/bare: 200 None\n  x-try= x-route= x-router=a x-secret=s\n/disabled: 200 None\n  x-try= x-route= x-router= x-secret=s",
    ] {
        assert!(ours.contains(expected), "{expected}\nis not in\n{ours}");
    }
}
