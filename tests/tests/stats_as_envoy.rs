//! What the stats of clusters, listeners and connection managers say of the same traffic: every counter and gauge that Envoy
//! has a value for, the proxy under test has too, and with the same value.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it. Histograms are compared by name in `prometheus.rs`.

use std::collections::BTreeMap;

use outrigger_tests::config::{all_to, bootstrap, chain, cluster_with, http, listener, tcp};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, proxy};

/// What differs on purpose, by a part of the name.
const INTENDED: &[(&str, &str)] = &[
    ("cluster.limited.circuit_breakers.default.rq_open", "a limit of 0 is reached from the start"),
    ("cluster.none.lb_healthy_panic", "nobody is picked where there is nobody"),
    ("cluster.refused.upstream_cx_http1_total", "only connections that were made speak a protocol"),
    (".total_match_count", "`transport_socket_matches` have no stats of their own"),
    ("bytes_buffered", "what is buffered is not measured by connection"),
    (".watchdog", "there is no watchdog"),
    ("downstream_cx_tx_bytes_total", "x-envoy-upstream-service-time has more digits when it took longer"),
    ("upstream_cx_rx_bytes_total", "bodies tell the number of the connection"),
    ("http.web.downstream_cx_destroy_", "after a broken request, who of both closes first is a matter of luck"),
    ("http.async-client.", "requests of the proxy itself count for their clusters alone"),
    ("cluster.copy.upstream_cx_tx_bytes_total", "Envoy names its own address as a client of what it mirrors"),
    ("http.admin.", "looks at the admin port are counted there"),
    ("listener.admin.", "the same"),
];

const ROUTES: &str = "{ match: { prefix: /refused }, route: { cluster: refused } },
    { match: { prefix: /tried }, route: { cluster: refused, retry_policy: { retry_on: connect-failure, num_retries: 2 } } },
    { match: { prefix: /late }, route: { cluster: up, timeout: 0.2s } },
    { match: { prefix: /none }, route: { cluster: none } },
    { match: { prefix: /limited }, route: { cluster: limited } },
    { match: { prefix: /nowhere }, route: { cluster: nowhere } },
    { match: { prefix: /again }, route: { cluster: up, retry_policy: { retry_on: 5xx, num_retries: 1 } } },
    { match: { prefix: /pushed }, route: { cluster: up, retry_policy: { retry_on: retriable-status-codes, num_retries: 1,
      retriable_status_codes: [429], rate_limited_retry_back_off: { reset_headers: [{ name: retry-after, format: SECONDS }] } } } },
    { match: { prefix: /trial }, route: { cluster: trial } },
    { match: { prefix: /copied }, route: { cluster: up, request_mirror_policies: [{ cluster: copy }] } },";

/// Endpoints in a zone, of which one is a canary.
fn zoned(port: u16) -> String {
    format!(
        "{{ name: trial, type: STATIC, connect_timeout: 5s, load_assignment: {{ cluster_name: trial, endpoints: [{{ \
         locality: {{ zone: far }}, lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, \
         port_value: {port} }} }} }}, metadata: {{ filter_metadata: {{ envoy.lb: {{ canary: true }} }} }} }}] }}] }} }}"
    )
}

/// All counters and gauges that matter here.
async fn stats(proxy: &Proxy) -> BTreeMap<String, u64> {
    let text = proxy.admin("/stats?filter=%5E(cluster%7Chttp%7Clistener%7Ctcp)%5C.").await.text();
    let line = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Sends the traffic, and waits until nothing is in flight any more.
async fn drive(proxy: &Proxy, up: &Upstream) {
    let web = proxy.listener("web").await;
    let mut client = h1::Client::connect(web).await;
    for (target, order, status) in [
        ("/", "", 200),
        ("/missing", "status=404", 404),
        ("/moved", "status=301", 301),
        ("/made", "status=201", 201),
        ("/refused", "", 503),
        ("/tried", "", 503),
        ("/none", "", 503),
        ("/limited", "", 503),
        ("/nowhere", "", 503),
        ("/again", "status=503", 503),
        ("/again", "status=502 | status=200", 200),
        ("/pushed", "status=429 header=retry-after:1 | status=200", 200),
        ("/trial", "", 200),
        ("/trial", "status=500", 500),
        ("/said", "header=x-envoy-upstream-canary:true", 200),
        ("/copied", "", 200),
    ] {
        let response = client.request("GET", target, &[("x-reply", order)], b"").await;
        assert_eq!(response.status, status, "{target} {order}");
    }
    assert_eq!(client.request("POST", "/", &[], b"some").await.status, 200);
    drop(client);
    let mut late = h1::Client::connect(web).await;
    assert_eq!(late.request("GET", "/late", &[("x-reply", "hang")], b"").await.status, 504);
    drop(late);
    let mut hostless = h1::Client::connect(web).await;
    hostless.send("GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(hostless.response("GET").await.status, 400);
    drop(hostless);
    let mut broken = h1::Client::connect(web).await;
    broken.send("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n").await;
    assert_eq!(broken.response("GET").await.status, 400);
    drop(broken);
    let mut raw = h1::Client::connect(proxy.listener("raw").await).await;
    assert_eq!(raw.get("/").await.status, 200);
    drop(raw);
    up.wait("nothing is in flight", |counts| counts.active == 0).await;
    for name in ["http.web.downstream_cx_active", "tcp.raw.downstream_cx_active", "cluster.copy.upstream_rq_active"] {
        proxy.wait_stat(name, |active| active == 0).await;
    }
    proxy.wait_stat("cluster.copy.upstream_rq_completed", |count| count == 1).await;
}

#[tokio::test]
async fn the_same_traffic_is_counted_as_envoy_counts_it() {
    let mut seen = Vec::new();
    for program in [proxy::envoy(), proxy::program()] {
        let up = Upstream::start("up").await;
        let closed = ClosedPort::take();
        let manager = http(
            "web",
            &format!(
                ", route_config: {{ name: all, validate_clusters: false, virtual_hosts: [{{ name: v, include_request_attempt_count: true, domains: ['*'], routes: [{ROUTES}{}] }}] }}",
                all_to("up")
            ),
        );
        let listeners = [
            listener("web", &[chain(&manager, "")], ", stat_prefix: web"),
            listener("raw", &[chain(&tcp("up"), "")], ", stat_prefix: raw"),
        ];
        let limited = ", circuit_breakers: { thresholds: [{ max_requests: 0 }] }";
        let clusters = [
            cluster_with("up", &[up.port()], ""),
            cluster_with("refused", &[closed.port()], ""),
            cluster_with("none", &[], ""),
            cluster_with("limited", &[up.port()], limited),
            cluster_with("copy", &[up.port()], ""),
            zoned(up.port()),
        ];
        let arguments = ["--service-zone".to_owned(), "near".to_owned()].into();
        let settings = Settings { program, arguments, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&listeners, &clusters), settings).await;
        drive(&proxy, &up).await;
        seen.push((proxy, up));
    }
    let [(envoy, _), (ours, _)] = &seen[..] else { unreachable!("two were started") };
    let differs = async || {
        let (wanted, found) = (stats(envoy).await, stats(ours).await);
        assert!(wanted.len() > 400, "{wanted:?}");
        let names: std::collections::BTreeSet<&String> = wanted.keys().chain(found.keys()).collect();
        let value = |all: &BTreeMap<String, u64>, name: &str| all.get(name).copied().unwrap_or(0);
        let differences: Vec<String> = names
            .into_iter()
            .filter(|name| !INTENDED.iter().any(|(part, _)| name.contains(part)))
            .filter(|name| value(&wanted, name) != value(&found, name))
            .map(|name| format!("{name}: Envoy {:?}, here {:?}", wanted.get(name), found.get(name)))
            .collect();
        if differences.is_empty() { Ok(found) } else { Err(differences.join("\n")) }
    };
    let found = eventually("the same stats", differs).await;
    for (name, value) in [
        ("cluster.up.external.upstream_rq_200", 6),
        ("cluster.copy.internal.upstream_rq_2xx", 1),
        ("cluster.trial.canary.upstream_rq_500", 1),
        ("cluster.trial.zone.near.far.upstream_rq_completed", 2),
        ("cluster.refused.upstream_rq_pending_failure_eject", 4),
        ("cluster.refused.upstream_rq_total", 0),
        ("cluster.up.upstream_rq_retry_backoff_ratelimited", 1),
        ("listener.web.worker_0.downstream_cx_total", 4),
    ] {
        assert_eq!(found.get(name), Some(&value), "{name}");
    }
    let endpoints = ours.admin("/clusters").await.text();
    assert!(
        endpoints.lines().any(|line| line.starts_with("trial::") && line.ends_with("::canary::true")),
        "{endpoints}"
    );
}
