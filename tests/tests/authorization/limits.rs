//! Limits on connections, and the cluster by server name.

use std::time::{Duration, Instant};

use outrigger_tests::config::{self, bootstrap, cluster, listener};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{eventually, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Client, Workloads, chain, filter, mutual_tls};

async fn echoing(address: std::net::SocketAddr) -> TcpStream {
    let mut stream = within("connecting", TcpStream::connect(address)).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    within("the echo", stream.read_exact(&mut answer)).await.unwrap();
    stream
}

#[tokio::test]
async fn a_limit_on_connections_at_a_time() {
    let peer = Peer::start(Conduct::Echo).await;
    let workloads = Workloads::new();
    let limit = |more: &str| {
        filter("connection_limit.v3.ConnectionLimit", &format!("stat_prefix: limit, max_connections: 2{more}"))
    };
    let listeners = [
        listener("limited", &[chain("limited", &[limit(", delay: 0.3s")], "")], ""),
        listener(
            "switched",
            &[chain("switched", &[limit(", runtime_enabled: { default_value: false, runtime_key: a.key }")], "")],
            "",
        ),
    ];
    let text = bootstrap(&listeners, &[cluster("peer", &[peer.port()])]);
    let proxy = workloads.start(proxy::program(), &text).await;
    let address = proxy.listener("limited").await;
    let (first, second) = (echoing(address).await, echoing(address).await);
    proxy.stat_is("connection_limit.limit.active_connections", 2).await;
    let began = Instant::now();
    assert!(!workloads.is_echoed(address, Client::Plain).await);
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    proxy.stat_is("connection_limit.limit.limited_connections", 1).await;
    drop(first);
    proxy.wait_stat("connection_limit.limit.active_connections", |count| count == 1).await;
    let third = echoing(address).await;
    assert_eq!(proxy.lines("log.txt", 2).await, ["limited - -", "limited - -"]);
    drop((second, third));
    proxy.wait_stat("connection_limit.limit.active_connections", |count| count == 0).await;

    let address = proxy.listener("switched").await;
    let many = [echoing(address).await, echoing(address).await, echoing(address).await];
    drop(many);
    if proxy::tests_envoy() {
        // It gives back places that connections did not take while the limit was off.
        return;
    }
    proxy.admin_post("/runtime_modify?a.key=true").await;
    let mut counted = Vec::new();
    eventually("the limit holds", async || {
        counted.push(echoing(address).await);
        let active = proxy.stat("connection_limit.limit.active_connections").await;
        if active >= 1 { Ok(()) } else { Err("not counted".to_owned()) }
    })
    .await;
    counted.push(echoing(address).await);
    assert!(!workloads.is_echoed(address, Client::Plain).await);
}

#[tokio::test]
async fn a_limit_on_connections_in_a_time() {
    let peer = Peer::start(Conduct::Echo).await;
    let workloads = Workloads::new();
    let limit = |more: &str| {
        filter(
            "local_ratelimit.v3.LocalRateLimit",
            &format!("stat_prefix: rate, token_bucket: {{ max_tokens: 2, fill_interval: 3600s }}{more}"),
        )
    };
    let one = |name: &str, more: &str| listener(name, &[chain(name, &[limit(more)], "")], "");
    let listeners = [one("alone", ""), one("a", ", share_key: both"), one("b", ", share_key: both")];
    let text = bootstrap(&listeners, &[cluster("peer", &[peer.port()])]);
    let proxy = workloads.start(proxy::program(), &text).await;
    let (alone, a, b) = (proxy.listener("alone").await, proxy.listener("a").await, proxy.listener("b").await);
    for (address, allowed) in
        [(alone, true), (alone, true), (alone, false), (a, true), (b, true), (a, false), (b, false)]
    {
        assert_eq!(workloads.is_echoed(address, Client::Plain).await, allowed);
    }
    proxy.stat_is("local_rate_limit.rate.rate_limited", 3).await;
    let refused = proxy.lines("log.txt", 7).await.into_iter().filter(|line| line.contains("URX")).count();
    assert_eq!(refused, 3);
}

#[tokio::test]
async fn the_server_name_is_the_cluster() {
    let (server, other) = (Peer::start(Conduct::Echo).await, Peer::start(Conduct::CloseAtOnce).await);
    let workloads = Workloads::new();
    let sniff = ", listener_filters: [{ name: envoy.filters.listener.tls_inspector, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]";
    let sni = filter("sni_cluster.v3.SniCluster", "");
    let listener = listener("tls", &[chain("tls", &[sni], &mutual_tls(false))], sniff);
    let clusters = [cluster("server", &[server.port()]), cluster("peer", &[other.port()])];
    let proxy = workloads.start(proxy::program(), &bootstrap(&[listener], &clusters)).await;
    assert!(workloads.is_echoed(proxy.listener("tls").await, Client::Anonymous).await);
    assert_eq!((server.accepted(), other.accepted()), (1, 0));
}

/// As in Consul's mesh gateways, which name no cluster.
async fn only_the_filter_chooses_a_cluster(program: std::path::PathBuf) {
    let server = Peer::start(Conduct::Echo).await;
    let workloads = Workloads::new();
    let sniff = ", listener_filters: [{ name: envoy.filters.listener.tls_inspector, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]";
    let tcp = config::tcp_with(&format!("cluster: ''{}", config::access_log_of("log.txt", "%RESPONSE_FLAGS%")));
    let filters = format!("{}, {tcp}", filter("sni_cluster.v3.SniCluster", ""));
    let with = format!("{{ filters: [{filters}]{} }}", mutual_tls(false));
    let without = format!("{{ filters: [{tcp}] }}");
    let listeners = [listener("tls", &[with], sniff), listener("none", &[without], "")];
    let proxy = workloads.start(program, &bootstrap(&listeners, &[cluster("server", &[server.port()])])).await;
    assert!(workloads.is_echoed(proxy.listener("tls").await, Client::Anonymous).await);
    assert!(!workloads.is_echoed(proxy.listener("none").await, Client::Plain).await);
    assert_eq!(server.accepted(), 1);
    proxy.wait_stat("tcp.tcp.downstream_cx_no_route", |count| count == 1).await;
    let mut flags = proxy.lines("log.txt", 2).await;
    flags.sort_unstable();
    assert_eq!(flags, ["-", "NC"]);
}

#[tokio::test]
async fn a_tcp_proxy_may_leave_the_cluster_to_filters() {
    only_the_filter_chooses_a_cluster(proxy::program()).await;
}

#[tokio::test]
async fn envoy_lets_a_tcp_proxy_leave_the_cluster_to_filters() {
    only_the_filter_chooses_a_cluster(proxy::envoy()).await;
}

#[tokio::test]
async fn rules_see_what_filters_before_them_have_left() {
    let (peer, other) = (Peer::start(Conduct::Echo).await, Peer::start(Conduct::CloseAtOnce).await);
    let workloads = Workloads::new();
    let objects = |name: &str| {
        filter(
            "set_filter_state.v3.Config",
            &format!(
                "on_new_connection: [{{ object_key: envoy.tcp_proxy.cluster, format_string: {{ text_format_source: \
                 {{ inline_string: second }} }} }}, {{ object_key: who, factory_key: envoy.string, format_string: \
                 {{ text_format_source: {{ inline_string: '%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%-{name}' }} }} }}]"
            ),
        )
    };
    let rules = super::rbac(
        "state",
        "rules: { policies: { p: { permissions: [{ any: true }], principals: [{ filter_state: { key: who, string_match: \
         { exact: 127.0.0.1-one } } }] } } }",
    );
    let one = |name: &str| listener(name, &[chain(name, &[objects(name), rules.clone()], "")], "");
    let clusters = [cluster("peer", &[other.port()]), cluster("second", &[peer.port()])];
    let proxy = workloads.start(proxy::program(), &bootstrap(&[one("one"), one("two")], &clusters)).await;
    assert!(workloads.is_echoed(proxy.listener("one").await, Client::Plain).await);
    assert!(!workloads.is_echoed(proxy.listener("two").await, Client::Plain).await);
    assert_eq!(other.accepted(), 0);
}
