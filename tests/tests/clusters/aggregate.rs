//! Aggregate clusters: members in order, failover by health, and whose settings and stats hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use control_plane_mock::MockControlPlane;
use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{
    self, Xds, ads_bootstrap, all_to, bootstrap, chain, cluster, cluster_with, http, listener, resource, routes, tcp,
};
use outrigger_tests::tcp::{ClosedPort, Conduct, Peer};
use outrigger_tests::{Proxy, Upstream, eventually, h1, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn aggregate(name: &str, members: &[&str], more: &str) -> String {
    format!(
        "{{ name: {name}, connect_timeout: 1s, lb_policy: CLUSTER_PROVIDED, cluster_type: {{ \
         name: envoy.clusters.aggregate, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, \
         clusters: [{}] }} }}{more} }}",
        members.join(", ")
    )
}

/// A cluster whose endpoints are in these states.
fn with_health(name: &str, endpoints: &[(u16, &str)], more: &str) -> String {
    let one = |(port, health): &(u16, &str)| {
        format!(
            "{{ health_status: {health}, endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, \
             port_value: {port} }} }} }} }}"
        )
    };
    let all: Vec<String> = endpoints.iter().map(one).collect();
    format!(
        "{{ name: {name}, type: STATIC, connect_timeout: 1s, load_assignment: {{ cluster_name: {name}, \
         endpoints: [{{ lb_endpoints: [{}] }}] }}{more} }}",
        all.join(", ")
    )
}

fn web(route: &str) -> String {
    listener("web", &[chain(&http("web", &routes(route)), "")], "")
}

async fn served_by(address: SocketAddr, times: usize) -> BTreeMap<String, usize> {
    let mut client = h1::Client::connect(address).await;
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let response = client.get("/").await;
        let by = if response.status == 200 { response.served_by() } else { response.status.to_string() };
        *counts.entry(by).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn members_follow_each_other_by_health() {
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let clusters = [
        with_health("down", &[(one.port(), "UNHEALTHY")], ""),
        with_health("up", &[(two.port(), "HEALTHY")], ""),
        with_health("half", &[(one.port(), "HEALTHY"), (one.port() + 1, "UNHEALTHY")], ""),
        aggregate("failover", &["missing", "down", "up"], ""),
        aggregate("both", &["half", "up"], ""),
        aggregate("first", &["up", "down"], ""),
        aggregate("nobody", &["missing", "failover"], ""),
    ];
    let route = |name: &str| format!("{{ match: {{ prefix: /{name} }}, route: {{ cluster: {name} }} }}");
    let all: Vec<String> = ["failover", "both", "first", "nobody"].map(route).into();
    let proxy = Proxy::start(&bootstrap(&[web(&all.join(", "))], &clusters)).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    for _ in 0..20 {
        assert_eq!(client.get("/failover").await.served_by(), "two");
        assert_eq!(client.get("/first").await.served_by(), "two");
    }
    // Half of the endpoints, times 1.4, take 70 % of the traffic.
    let mut of_one = 0;
    for _ in 0..400 {
        of_one += usize::from(client.get("/both").await.served_by() == "one");
    }
    assert!((220..340).contains(&of_one), "{of_one} of 400");
    let none = client.get("/nobody").await;
    assert_eq!((none.status, none.text()), (503, "no healthy upstream".to_owned()));
}

#[tokio::test]
async fn settings_limits_and_stats_are_those_of_the_member() {
    let upstream = Upstream::start("plain").await;
    let authority = Authority::new();
    let secure = Upstream::tls("secure", authority.issue(&["secure.test"]).server(&[])).await;
    let tls = format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: secure.test, \
         common_tls_context: {{ validation_context: {{ trusted_ca: {{ inline_string: \"{}\" }} }} }} }} }}",
        authority.pem().replace('\n', "\\n")
    );
    let full = ", circuit_breakers: { thresholds: [{ max_requests: 0 }] }";
    let clusters = [
        cluster("plain", &[upstream.port()]),
        cluster_with("secure", &[secure.port()], &tls),
        cluster_with("full", &[upstream.port()], full),
        aggregate("to_plain", &["plain"], full),
        aggregate("to_secure", &["secure"], ""),
        aggregate("to_full", &["full", "plain"], ""),
    ];
    let route = |name: &str| format!("{{ match: {{ prefix: /{name} }}, route: {{ cluster: {name} }} }}");
    let mut all: Vec<String> = ["to_plain", "to_secure", "to_full"].map(route).into();
    all.push("{ match: { prefix: /late }, route: { cluster: to_plain, timeout: 0.5s } }".to_owned());
    let proxy = Proxy::start(&bootstrap(&[web(&all.join(", "))], &clusters)).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    assert_eq!(client.get("/to_plain").await.served_by(), "plain");
    assert_eq!(client.get("/to_secure").await.served_by(), "secure");
    assert_eq!(client.get("/to_full").await.status, 503);
    assert_eq!(client.request("GET", "/late", &[("x-reply", "hang")], b"").await.status, 504);
    for (stat, expected) in [
        ("cluster.plain.upstream_rq_total", 2),
        ("cluster.plain.upstream_rq_timeout", 0),
        ("cluster.to_plain.upstream_rq_timeout", 1),
        ("cluster.plain.upstream_cx_total", 1),
        ("cluster.to_plain.upstream_rq_total", 0),
        ("cluster.to_plain.upstream_cx_total", 0),
        ("cluster.to_plain.upstream_rq_200", 1),
        ("cluster.to_plain.upstream_rq_completed", 2),
        ("cluster.plain.upstream_rq_completed", 0),
        ("cluster.secure.ssl.handshake", 1),
        ("cluster.full.upstream_rq_pending_overflow", 0),
        ("cluster.to_full.upstream_rq_503", 1),
    ] {
        proxy.stat_is(stat, expected).await;
    }
}

#[tokio::test]
async fn retries_count_for_the_aggregate_and_ejections_fail_over() {
    let (gone, there) = (ClosedPort::take(), Upstream::start("there").await);
    let outliers = ", outlier_detection: { consecutive_5xx: 1, consecutive_gateway_failure: 1, \
        enforcing_consecutive_gateway_failure: 100, max_ejection_percent: 100, base_ejection_time: 60s }";
    let clusters = [
        cluster_with("gone", &[gone.port()], outliers),
        cluster("there", &[there.port()]),
        aggregate("failover", &["gone", "there"], ""),
    ];
    let route = "{ match: { prefix: / }, route: { cluster: failover, retry_policy: { \
        retry_on: connect-failure, num_retries: 3, retry_back_off: { base_interval: 0.05s, max_interval: 0.1s } } } }";
    let proxy = Proxy::start(&bootstrap(&[web(route)], &clusters)).await;
    let address = proxy.listener("web").await;
    assert_eq!(served_by(address, 1).await, BTreeMap::from([("there".to_owned(), 1)]));
    assert_eq!(served_by(address, 5).await, BTreeMap::from([("there".to_owned(), 5)]));
    proxy.wait_stat("cluster.failover.upstream_rq_retry", |seen| seen >= 1).await;
    proxy.stat_is("cluster.gone.upstream_rq_retry", 0).await;
    proxy.stat_is("cluster.there.upstream_rq_total", 6).await;
}

#[tokio::test]
async fn tcp_goes_through_aggregates_too() {
    let peer = Peer::start(Conduct::Echo).await;
    let gone = ClosedPort::take();
    let clusters = [
        with_health("down", &[(gone.port(), "UNHEALTHY")], ""),
        cluster("echo", &[peer.port()]),
        aggregate("failover", &["down", "echo"], ""),
    ];
    let listener = listener("tcp", &[chain(&tcp("failover"), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let mut stream = TcpStream::connect(proxy.listener("tcp").await).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    within("the echo", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
    proxy.stat_is("cluster.echo.upstream_cx_active", 1).await;
}

#[tokio::test]
async fn members_come_and_go() {
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let control = MockControlPlane::start().await;
    let set = |kind: &str, body: &str| {
        control.set_yaml(&config::resources(&[resource(kind, body)])).unwrap();
    };
    set("lds", &web(&all_to("failover")));
    set("cds", &aggregate("failover", &["one", "two"], ""));
    set("cds", &cluster("two", &[two.port()]));
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, control.address().port())).await;
    let address = proxy.listener("web").await;
    let until = async |expected: &str| {
        eventually(expected, async || {
            let seen = served_by(address, 1).await;
            if seen.contains_key(expected) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    };
    until("two").await;
    set("cds", &cluster("one", &[one.port()]));
    until("one").await;
    control.remove("type.googleapis.com/envoy.config.cluster.v3.Cluster", "one");
    until("two").await;
}
