//! Transparent interception: connections that iptables redirects go where their clients meant them to go.
//!
//! The outer test makes a network namespace of its own and runs the inner one, of the same executable, inside.
//! Needs `unshare`, `ip`, `iptables`, `ip6tables` and `curl`, and fails without them.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::config::{bootstrap, chain, http, listener_at, routes, tcp};
use outrigger_tests::{Proxy, Upstream, programs};

const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test]
async fn redirected_connections_reach_their_original_destination() {
    let script = programs::interop("interception/namespace.sh").display().to_string();
    let this = std::env::current_exe().unwrap().display().to_string();
    let inner = ["--exact", "--ignored", "--nocapture", "inside_the_namespace"];
    let mut arguments = vec!["-rnm", "sh", &script, &this];
    arguments.extend(inner);
    let said = programs::run("unshare", &arguments, &[], LIMIT).await;
    assert!(said.contains("1 passed"), "{said}");
}

/// Fetches a URL from the other namespace.
async fn curl(url: &str, arguments: &[&str]) -> serde_json::Value {
    let mut all = vec!["netns", "exec", "client", "curl", "-sSg", "--max-time", "60"];
    all.extend(arguments);
    all.push(url);
    let body = programs::run("ip", &all, &[], LIMIT).await;
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{url}: {error}: {body}"))
}

#[tokio::test]
#[ignore = "runs inside the namespace that redirected_connections_reach_their_original_destination makes"]
async fn inside_the_namespace() {
    let listen = async |name: &str, address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        Upstream::listen(name, address, None).await
    };
    let nine = listen("nine", "192.0.2.9:8080").await;
    let ten = listen("ten", "192.0.2.10:8080").await;
    let six = listen("six", "[2001:db8::9]:8080").await;
    let raw = listen("raw", "192.0.2.9:9090").await;

    let route = "{ match: { prefix: / }, route: { cluster: original } }";
    let chains = [
        chain(&http("out", &routes(route)), ", filter_chain_match: { destination_port: 8080 }"),
        chain(&tcp("original"), ""),
    ];
    let filter = ", listener_filters: [{ name: envoy.filters.listener.original_dst, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst } }], \
        traffic_direction: OUTBOUND";
    let listeners = [
        listener_at("outbound-4", "0.0.0.0", 15001, &chains, filter),
        listener_at("outbound-6", "::", 15001, &chains, filter),
    ];
    let original = "{ name: original, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 5s }";
    let proxy = Proxy::start(&bootstrap(&listeners, &[original.to_owned()])).await;
    proxy.listener("outbound-6").await;

    for (url, who, upstream) in [
        ("http://192.0.2.9:8080/a", "nine", &nine),
        ("http://192.0.2.10:8080/b", "ten", &ten),
        ("http://[2001:db8::9]:8080/c", "six", &six),
    ] {
        let seen = curl(url, &[]).await;
        assert_eq!(seen["upstream"], who, "{url}");
        assert_eq!(upstream.counts().requests, 1, "{url}");
        let request_id = seen["headers"].as_array().unwrap().iter().any(|pair| pair[0] == "x-request-id");
        assert!(request_id, "{url}: it went through the proxy: {seen}");
    }
    // Another port matches the other chain: bytes only.
    let seen = curl("http://192.0.2.9:9090/d", &[]).await;
    assert_eq!(seen["upstream"], "raw");
    assert!(!seen["headers"].as_array().unwrap().iter().any(|pair| pair[0] == "x-request-id"));
    assert_eq!(raw.counts().requests, 1);
    proxy.stat_is("tcp.tcp.downstream_cx_total", 1).await;
    // HTTP/2 by prior knowledge finds its way too (downstream; the upstream is asked by HTTP/1.1).
    let seen = curl("http://192.0.2.10:8080/e", &["--http2-prior-knowledge"]).await;
    assert_eq!(seen["upstream"], "ten");
    proxy.stat_is("cluster.original.upstream_cx_connect_fail", 0).await;
    proxy.stat_is("http.out.downstream_rq_2xx", 4).await;
}
