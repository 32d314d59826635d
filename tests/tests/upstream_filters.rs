//! HTTP filters in front of upstreams: the same requests for Envoy and for the proxy under test.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{self, bootstrap, chain, cluster, cluster_with};
use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get, post, same};
use outrigger_tests::{ProcessingService, Proxy, Settings, Upstream, eventually, h1, proxy};

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

/// A cluster with filters of its own.
fn guarded(name: &str, port: u16, filters: &str) -> String {
    let more = format!(
        ", typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ \
         '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
         explicit_http_config: {{ http_protocol_options: {{ enable_trailers: true }} }}, http_filters: [{filters}, \
         {{ name: codec, typed_config: {{ '@type': {TYPES}.upstream_codec.v3.UpstreamCodec }} }}] }} }}"
    );
    cluster_with(name, &[port], &more)
}

fn filter(message: &str, fields: &str) -> String {
    format!("{{ name: f, typed_config: {{ '@type': {TYPES}.{message}, {fields} }} }}")
}

const COMPRESSION: &str = "request_direction_config: { common_config: { min_content_length: 5 } }, \
     response_direction_config: { common_config: { min_content_length: 5 } }, compressor_library: { name: gz, typed_config: { \
     '@type': type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip } }";

const GUARDED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("too much to buffer", "header connection: close", "all of the body is read, so the connection stays in step"),
    ("a request is compressed", "upstream sees body", "two libraries make different bytes of the same content"),
    (
        "cluster.gz.compressor",
        "compressed_bytes",
        "reports tell the client's address, and two libraries make different bytes",
    ),
];

const GUARDED_CHAINS: &[Chain] = &[
    chain_of(
        "web",
        &[],
        "{ match: { prefix: /gz }, route: { cluster: gz } }, \
         { match: { prefix: /buffer }, route: { cluster: buffer } }, \
         { match: { path: /larger }, route: { cluster: buffer }, typed_per_filter_config: { f: { \
         '@type': $T/buffer.v3.BufferPerRoute, buffer: { max_request_bytes: 20 } } } }, \
         { match: { prefix: /rbac }, route: { cluster: rbac } }, \
         { match: { prefix: /admission }, route: { cluster: admission } }, \
         { match: { prefix: /trailers }, route: { cluster: trailers } }, ",
    ),
    Chain { stats: "cluster.gz.compressor.", ..chain_of("s1", &[], "") },
    Chain { stats: "cluster.rbac.rbac.", ..chain_of("s2", &[], "") },
    Chain { stats: "cluster.admission.admission_control.", ..chain_of("s3", &[], "") },
];

const GUARDED_CASES: &[Case] = &[
    post("a request is compressed", "web", "/gz", &[("content-type", "text/plain")]),
    post("a request of another type", "web", "/gz", &[("content-type", "image/png")]),
    get("a response is compressed", "web", "/gz", &[("accept-encoding", "gzip"), ("x-reply", "bytes=1000")]),
    get("a response is not", "web", "/gz", &[("x-reply", "bytes=1000")]),
    post("too much to buffer", "web", "/buffer", &[]),
    Case { body: b"0123", ..post("little enough to buffer", "web", "/buffer", &[]) },
    post("enough by route", "web", "/larger", &[]),
    get("nothing to buffer", "web", "/buffer", &[]),
    get("denied", "web", "/rbac", &[("x-bad", "1")]),
    get("allowed", "web", "/rbac", &[]),
    get("admitted", "web", "/admission", &[]),
    post("with trailers", "web", "/trailers", &[]),
];

#[tokio::test]
async fn filters_in_front_of_clusters_do_what_they_do_in_envoy() {
    let upstream = Upstream::start("one").await;
    let port = upstream.port();
    let listeners: Vec<String> = GUARDED_CHAINS.iter().map(Chain::listener).collect();
    let rules = "rules: { action: DENY, policies: { p: { permissions: [{ header: { name: x-bad, present_match: true } }], \
                 principals: [{ any: true }] } } }";
    let success = "success_criteria: { http_criteria: { http_success_status: [{ start: 200, end: 300 }] } }";
    let trailers = format!("mutations: {{ request_trailers_mutations: [{}] }}", append("x-late", "l"));
    let clusters = [
        cluster("one", &[port]),
        guarded("gz", port, &filter("compressor.v3.Compressor", COMPRESSION)),
        guarded("buffer", port, &filter("buffer.v3.Buffer", "max_request_bytes: 5")),
        guarded("rbac", port, &filter("rbac.v3.RBAC", rules)),
        guarded("admission", port, &filter("admission_control.v3.AdmissionControl", success)),
        guarded("trailers", port, &filter("header_mutation.v3.HeaderMutation", &trailers)),
    ];
    same(&bootstrap(&listeners, &clusters), GUARDED_CHAINS, GUARDED_CASES, GUARDED).await;
}

const PROCESSED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("streamed: immediate", "logged", "details that are empty are told as none"),
    ("buffered: ", "header content-length", "a body that is known as a whole has a known length"),
    ("buffered: ", "header transfer-encoding", "likewise"),
    ("cluster.streamed.", "stream_msgs_", "a body has the pieces that it comes in, and its end goes with the last"),
];

const PROCESSED_CHAINS: &[Chain] = &[
    chain_of(
        "web",
        &[],
        "{ match: { prefix: /streamed }, route: { cluster: streamed } }, \
         { match: { prefix: /buffered }, route: { cluster: buffered } }, ",
    ),
    Chain { stats: "cluster.streamed.ext_proc.", ..chain_of("s1", &[], "") },
    Chain { stats: "cluster.buffered.ext_proc.", ..chain_of("s2", &[], "") },
];

const PROCESSED_CASES: &[Case] = &[
    post("streamed: as it is", "web", "/streamed", &[]),
    post("streamed: heads", "web", "/streamed", &[("x-proc", "qh.set=x-a:2 rh.set=x-r:1 rh.set=%3astatus:202")]),
    post("streamed: changed", "web", "/streamed", &[("x-proc", "qb.upper rb.upper"), ("x-reply", "bytes=10")]),
    post("streamed: rerouted", "web", "/streamed", &[("x-proc", "qh.set=x-a:2 qh.reroute")]),
    get("streamed: failure", "web", "/streamed", &[("x-proc", "qh.fail=14")]),
    get("streamed: immediate", "web", "/streamed", &[("x-proc", "qh.immediate=403 qh.text=no")]),
    post("buffered: as it is", "web", "/buffered", &[]),
    post("buffered: changed", "web", "/buffered", &[("x-proc", "qb.upper rb.upper"), ("x-reply", "bytes=10")]),
    get("buffered: no body", "web", "/buffered", &[("x-proc", "qh.set=x-a:2")]),
];

#[tokio::test]
async fn services_process_what_goes_to_clusters_as_with_envoy() {
    let (upstream, service) = (Upstream::start("one").await, ProcessingService::start().await);
    let listeners: Vec<String> = PROCESSED_CHAINS.iter().map(Chain::listener).collect();
    let processing = |mode: &str| {
        let fields = format!(
            "grpc_service: {{ envoy_grpc: {{ cluster_name: asked }} }}, message_timeout: 60s, processing_mode: {{ \
             request_body_mode: {mode}, response_body_mode: {mode} }}"
        );
        filter("ext_proc.v3.ExternalProcessor", &fields)
    };
    let clusters = [
        cluster("one", &[upstream.port()]),
        config::http2_cluster("asked", &[service.port()]),
        guarded("streamed", upstream.port(), &processing("STREAMED")),
        guarded("buffered", upstream.port(), &processing("BUFFERED")),
    ];
    same(&bootstrap(&listeners, &clusters), PROCESSED_CHAINS, PROCESSED_CASES, PROCESSED).await;
}

/// Envoy compresses the body of the first try alone, and says of all that they are compressed: what it has changed of the
/// head stays.
#[tokio::test]
async fn each_try_is_compressed() {
    let upstream = Upstream::start("one").await;
    let routes = "{ match: { prefix: / }, route: { cluster: gz, retry_policy: { retry_on: 5xx, num_retries: 2 } } }";
    let manager = config::http("web", &config::routes(routes));
    let gz = guarded("gz", upstream.port(), &filter("compressor.v3.Compressor", COMPRESSION));
    let bootstrap = bootstrap(&[config::listener("web", &[chain(&manager, "")], "")], &[gz]);
    let proxy = Proxy::start(&bootstrap).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    let headers = [("content-type", "text/plain"), ("x-reply", "status=503")];
    let response = client.request("POST", "/", &headers, b"0123456789").await;
    assert_eq!(response.status, 503);
    let seen = upstream.seen();
    assert_eq!(seen.len(), 3);
    for seen in seen {
        assert_eq!(seen.header("content-encoding"), Some("gzip"));
        assert_eq!(outrigger_tests::response::decoded("gzip", seen.body), b"0123456789");
    }
}

/// What the filters of a cluster do to the head of a request they do to that of its copy; those of the router see no copies.
#[tokio::test]
async fn copies_pass_through_the_filters_of_their_cluster() {
    for program in [proxy::program(), proxy::envoy()] {
        let (upstream, shadow) = (Upstream::start("one").await, Upstream::start("two").await);
        let route = "{ match: { prefix: / }, route: { cluster: one, request_mirror_policies: [{ cluster: shadow }] } }";
        let mutations = format!("request_mutations: [{}]", append("x-router", "a"));
        let manager = config::http("web", &config::routes(route)).replace(
            "router.v3.Router }",
            &format!("router.v3.Router, upstream_http_filters: {} }}", self::filters(&mutations)),
        );
        let mutations = format!("mutations: {{ request_mutations: [{}] }}", append("x-copy", "%REQ(x-a)%"));
        let filter = filter("header_mutation.v3.HeaderMutation", &mutations);
        let clusters = [cluster("one", &[upstream.port()]), guarded("shadow", shadow.port(), &filter)];
        let bootstrap = bootstrap(&[config::listener("web", &[chain(&manager, "")], "")], &clusters);
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap, settings).await;
        let mut client = h1::Client::connect(proxy.listener("web").await).await;
        assert_eq!(client.request("GET", "/", &[("x-a", "1")], b"").await.status, 200);
        eventually("the copy has arrived", async || match shadow.seen().len() {
            1 => Ok(()),
            count => Err(count.to_string()),
        })
        .await;
        let of = |seen: &outrigger_tests::reply::Seen| {
            [seen.header("x-router"), seen.header("x-copy")].map(|value| value.map(str::to_owned))
        };
        assert_eq!(of(&upstream.seen()[0]), [Some("a".to_owned()), None]);
        assert_eq!(of(&shadow.seen()[0]), [None, Some("1".to_owned())]);
    }
}

/// A try that is late and loses is over for the filters in front of its endpoint as well: the service that was told of it
/// hears no more.
#[tokio::test]
async fn filters_are_told_of_the_end_of_tries_that_lose() {
    // Envoy may forget to count the end of a try that was answered when its client leaves.
    let cases = ["hang | status=200", "hang | status=503"];
    for (program, cases) in [(proxy::program(), &cases[..]), (proxy::envoy(), &cases[..1])] {
        let (upstream, service) = (Upstream::start("one").await, ProcessingService::start().await);
        let route = "{ match: { prefix: / }, route: { cluster: processed, timeout: 300s, \
             hedge_policy: { hedge_on_per_try_timeout: true }, retry_policy: { retry_on: 5xx, num_retries: 1, \
             per_try_timeout: 0.3s, retry_back_off: { base_interval: 0.001s, max_interval: 0.002s } } } }";
        let manager = config::http("web", &config::routes(route)).replace(
            "virtual_hosts: [{ name: all,",
            "virtual_hosts: [{ name: all, include_request_attempt_count: true,",
        );
        let processing = "grpc_service: { envoy_grpc: { cluster_name: asked } }, message_timeout: 60s";
        let processing = filter("ext_proc.v3.ExternalProcessor", processing);
        let clusters =
            [config::http2_cluster("asked", &[service.port()]), guarded("processed", upstream.port(), &processing)];
        let bootstrap = bootstrap(&[config::listener("web", &[chain(&manager, "")], "")], &clusters);
        let proxy = Proxy::start_with(&bootstrap, Settings { program, ..Settings::default() }).await;
        let mut client = h1::Client::connect(proxy.listener("web").await).await;
        for (count, orders) in cases.iter().copied().enumerate() {
            // The late one is given up for the other, or with the client.
            client.send(h1::request_bytes("GET", "/", &[("x-reply", orders)], b"")).await;
            if count == 0 {
                assert_eq!(client.response("GET").await.status, 200);
            } else {
                upstream
                    .wait("an answer that does not count", |counts| (counts.requests, counts.active) == (4, 1))
                    .await;
                client = h1::Client::connect(proxy.listener("web").await).await;
            }
            for stat in ["streams_started", "streams_closed"] {
                let stat = format!("cluster.processed.ext_proc.{stat}");
                proxy.wait_stat(&stat, |value| value == 2 * (count as u64 + 1)).await;
            }
            upstream.wait("the late one is given up", |counts| counts.abandoned == count + 1).await;
        }
    }
}
