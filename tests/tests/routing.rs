//! What routes and endpoints say beyond where a request goes: copies for other clusters, when to try again, and which
//! transport an endpoint has.

use std::time::{Duration, Instant};

use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{self, access_log, bootstrap, chain, cluster, http, http2_cluster, routes};
use outrigger_tests::{Proxy, Upstream, h1, h2c, reply, upstream};

async fn serve(routes_text: &str, clusters: &[String]) -> (Proxy, std::net::SocketAddr) {
    // Clients count as internal, so that their x-envoy headers are taken.
    let internal = ", internal_address_config: { cidr_ranges: [{ address_prefix: 10.0.0.0, prefix_len: 8 }] }";
    let manager = http("web", &format!("{}{}{internal}", routes(routes_text), access_log("access.log")));
    let proxy = Proxy::start(&bootstrap(&[config::listener("web", &[chain(&manager, "")], "")], clusters)).await;
    let web = proxy.listener("web").await;
    (proxy, web)
}

fn forward(prefix: &str, action: &str) -> String {
    format!("{{ match: {{ prefix: {prefix} }}, route: {{ {action} }} }}")
}

#[tokio::test]
async fn requests_are_mirrored_with_their_bodies() {
    let (main, copy) = (Upstream::start("main").await, Upstream::start("copy").await);
    let mirror = "request_mirror_policies: [{ cluster: copy }]";
    let to = [
        forward("/kept", "cluster: main, request_mirror_policies: [{ cluster: copy, disable_shadow_host_suffix_append: true }]"),
        forward("/header", "cluster: main, request_mirror_policies: [{ cluster_header: x-copy }]"),
        forward("/never", "cluster: main, request_mirror_policies: [{ cluster: copy, runtime_fraction: { default_value: { numerator: 0 } } }]"),
        forward("/h2", "cluster: main, request_mirror_policies: [{ cluster: copy-h2 }]"),
        forward("/", &format!("cluster: main, {mirror}")),
    ]
    .join(", ");
    let clusters =
        [cluster("main", &[main.port()]), cluster("copy", &[copy.port()]), http2_cluster("copy-h2", &[copy.port()])];
    let (proxy, web) = serve(&to, &clusters).await;
    let mut client = h1::Client::connect(web).await;
    let body = reply::pattern(300_000);
    let response = client.request("POST", "/upload", &[("host", "shop.example")], &body).await;
    assert_eq!((response.status, response.served_by()), (200, "main".to_owned()));
    copy.wait("the copy arrives", |counts| counts.requests == 1 && counts.active == 0).await;
    let seen = &copy.seen()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/upload"));
    assert_eq!(seen.authority, "shop.example-shadow");
    assert!(seen.body == body, "{} bytes", seen.body.len());

    // An answer that never comes is nothing to the request.
    let response = client.request("GET", "/kept", &[("host", "shop.example:80")], b"").await;
    assert_eq!(response.status, 200);
    copy.wait("the copy arrives", |counts| counts.requests == 2 && counts.active == 0).await;
    assert_eq!(copy.seen()[1].authority, "shop.example:80");

    assert_eq!(client.request("GET", "/header", &[], b"").await.status, 200);
    assert_eq!(client.request("GET", "/never", &[], b"").await.status, 200);
    assert_eq!(client.request("GET", "/header", &[("x-copy", "copy")], b"").await.status, 200);
    copy.wait("the copy arrives", |counts| counts.requests == 3 && counts.active == 0).await;
    assert_eq!(copy.seen()[2].target, "/header");

    let client = h2c::Client::connect(web).await;
    assert_eq!(client.request("POST", "/h2", &[], &body).await.status, 200);
    copy.wait("the copy arrives", |counts| counts.requests == 4 && counts.active == 0).await;
    let seen = &copy.seen()[3];
    assert_eq!((seen.version, seen.body.len()), ("2", body.len()));
    proxy.stat_is("cluster.copy.upstream_rq_total", 3).await;
    proxy.stat_is("cluster.copy.upstream_rq_200", 3).await;
}

#[tokio::test]
async fn what_is_tried_again_can_be_told_by_headers() {
    let upstream = Upstream::start("up").await;
    let policy = "retry_on: retriable-headers, num_retries: 2, retriable_headers: [{ name: x-again, string_match: { exact: 'yes' } }]";
    let only = format!("{policy}, retriable_request_headers: [{{ name: x-may }}]");
    let to = [
        forward("/only", &format!("cluster: up, retry_policy: {{ {only} }}")),
        forward("/plain", "cluster: up"),
        forward("/", &format!("cluster: up, retry_policy: {{ {policy} }}")),
    ]
    .join(", ");
    let (_proxy, web) = serve(&to, &[cluster("up", &[upstream.port()])]).await;
    let mut client = h1::Client::connect(web).await;
    let mut before = 0;
    for (target, headers, tries) in [
        ("/", vec![("x-reply", "header=x-again:yes")], 3),
        ("/", vec![("x-reply", "header=x-again:no")], 1),
        ("/", vec![("x-reply", "status=503")], 1),
        ("/only", vec![("x-reply", "header=x-again:yes")], 1),
        ("/only", vec![("x-reply", "header=x-again:yes"), ("x-may", "1")], 3),
        (
            "/plain",
            vec![
                ("x-reply", "status=418"),
                ("x-forwarded-for", "10.0.0.1"),
                ("x-envoy-retry-on", "retriable-status-codes"),
                ("x-envoy-retriable-status-codes", "409, 418"),
            ],
            2,
        ),
        (
            "/plain",
            vec![
                ("x-reply", "header=x-odd:1"),
                ("x-forwarded-for", "10.0.0.1"),
                ("x-envoy-retry-on", "retriable-headers"),
                ("x-envoy-retriable-header-names", "x-odd,x-other"),
                ("x-envoy-max-retries", "3"),
            ],
            4,
        ),
    ] {
        client.request("GET", target, &headers, b"").await;
        let after = upstream.counts().requests;
        assert_eq!(after - before, tries, "{target} {headers:?}");
        before = after;
    }
}

#[tokio::test]
async fn an_upstream_says_when_to_come_back() {
    let upstream = Upstream::start("up").await;
    let policy = "retry_policy: { retry_on: 5xx, num_retries: 1, rate_limited_retry_back_off: { \
                  reset_headers: [{ name: Retry-After, format: SECONDS }], max_interval: 60s } }";
    let (_proxy, web) =
        serve(&forward("/", &format!("cluster: up, {policy}")), &[cluster("up", &[upstream.port()])]).await;
    let mut client = h1::Client::connect(web).await;
    let mut time = async |reply: &str| {
        let start = Instant::now();
        assert_eq!(client.request("GET", "/", &[("x-reply", reply)], b"").await.status, 503);
        start.elapsed()
    };
    // Clocks round.
    assert!(time("status=503 header=retry-after:1").await >= Duration::from_millis(950));
    assert!(time("status=503 header=retry-after:3600").await < Duration::from_secs(60), "longer than the limit");
    assert_eq!(upstream.counts().requests, 4);
}

#[tokio::test]
async fn endpoints_have_the_transport_that_they_say_they_have() {
    let authority = Authority::new();
    let secure = Upstream::tls("secure", authority.issue(&["up.example"]).server(&["http/1.1"])).await;
    let (plain, elsewhere) = upstream::pair("127.0.0.2").await;
    let by_locality = Upstream::tls("by-locality", authority.issue(&["up.example"]).server(&["http/1.1"])).await;
    let endpoint = |port: u16, says: &str| {
        format!(
            "{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}{says} }}"
        )
    };
    let says = |mode: &str| {
        format!(", metadata: {{ filter_metadata: {{ envoy.transport_socket_match: {{ tlsMode: {mode} }} }} }}")
    };
    let tls = "{ name: tls, typed_config: { '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
               sni: up.example, common_tls_context: { validation_context: { trusted_ca: { filename: $dir/ca.pem } } } } }";
    let raw = "{ name: raw, typed_config: { '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }";
    let cluster = format!(
        "{{ name: up, type: STATIC, connect_timeout: 5s, transport_socket_matches: [\
         {{ name: tlsMode-istio, match: {{ tlsMode: istio }}, transport_socket: {tls} }}, \
         {{ name: tlsMode-disabled, match: {{ tlsMode: 'off' }}, transport_socket: {raw} }}], \
         load_assignment: {{ cluster_name: up, endpoints: [\
         {{ locality: {{ zone: a }}, lb_endpoints: [{}, {}, {}] }}, \
         {{ locality: {{ zone: b }}, lb_endpoints: [{}]{} }}] }} }}",
        endpoint(secure.port(), &says("istio")),
        endpoint(plain.port(), &says("'off'")),
        // Says nothing that any match wants, so it has the cluster's own transport, which is plain.
        endpoint(plain.port(), "").replace("127.0.0.1", "127.0.0.2"),
        endpoint(by_locality.port(), ""),
        says("istio"),
    );
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    let manager = http("web", &routes(&config::all_to("up")));
    let text = bootstrap(&[config::listener("web", &[chain(&manager, "")], "")], &[cluster]);
    let proxy = Proxy::start_in(directory, &text, Default::default()).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    let mut served = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let response = client.get("/").await;
        assert_eq!(response.status, 200, "{}", response.text());
        served.insert(response.served_by());
    }
    assert_eq!(served.into_iter().collect::<Vec<_>>(), ["by-locality", "one", "secure", "two"]);
    drop(elsewhere);
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_made_again_elsewhere() {
    // Takes connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Upstream::start("good").await;
    let ports = [silent.local_addr().unwrap().port(), upstream.port()];
    let to = "{ match: { prefix: / }, route: { cluster: c, timeout: 60s, retry_policy: { retry_on: '5xx,reset', num_retries: 2, \
        per_try_timeout: 3s, retry_host_predicate: [{ name: previous, typed_config: { '@type': \
        type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate } }] } } }";
    let listener = config::listener("web", &[config::chain(&config::http("web", &config::routes(to)), "")], "");
    let proxy = Proxy::start(&config::bootstrap(&[listener], &[config::cluster("c", &ports)])).await;
    let web = proxy.listener("web").await;
    for _ in 0..4 {
        assert_eq!(h1::get(web, "/").await.status, 200);
    }
    let timeouts = proxy.stat("cluster.c.upstream_rq_per_try_timeout").await;
    assert!(timeouts >= 2, "{timeouts}");
    proxy.stat_is("cluster.c.upstream_rq_retry_success", timeouts).await;
}
