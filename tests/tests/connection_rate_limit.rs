//! Connections that a rate limit service is asked about: the same filter, service and clients for Envoy and for the proxy
//! under test.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::path::PathBuf;

use outrigger_tests::config::{self, bootstrap, chain, cluster, http2_cluster, listener};
use outrigger_tests::side_by_side::{Intended, assert_same};
use outrigger_tests::tcp::{ClosedPort, Conduct, Peer};
use outrigger_tests::{AskedService, Proxy, Settings, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const INTENDED: Intended = &[];

/// A listener of a TCP proxy whose clients the service in `cluster` is asked about.
fn asking(name: &str, cluster: &str, script: &str, more: &str) -> String {
    let log = config::access_log_of(
        &format!("{name}.log"),
        "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(envoy.filters.network.ratelimit:k)%",
    );
    let filters = format!(
        "{{ name: limit, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.ratelimit.v3.RateLimit, \
         stat_prefix: {name}, domain: connections, timeout: 60s{more}, \
         descriptors: [{{ entries: [{{ key: client, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%' }}, \
         {{ key: '%NOT%', value: '%DYNAMIC_METADATA(a:b)%' }}] }}, {{ entries: [{{ key: script, value: '{script}' }}], \
         limit: {{ requests_per_unit: 3, unit: HOUR }}, hits_addend: 5 }}], \
         rate_limit_service: {{ transport_api_version: V3, grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }}, \
         timeout: 0.001s }} }} }} }}, {}",
        config::tcp_with(&format!("cluster: peer{log}"))
    );
    listener(name, &[chain(&filters, "")], "")
}

/// A client that says something: what comes back, or how it ends.
async fn say(stream: &mut TcpStream, words: &[u8]) -> String {
    // A connection that is refused may be gone before anything is written.
    let _ = stream.write_all(words).await;
    let mut bytes = vec![0; words.len()];
    match within("an answer or the end", stream.read_exact(&mut bytes)).await {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        // Whether it is a reset depends on what has arrived by then.
        Err(_) => "the end".to_owned(),
    }
}

async fn observed(program: PathBuf) -> Vec<(&'static str, Vec<String>)> {
    let (peer, service, closed) = (Peer::start(Conduct::Echo).await, AskedService::start().await, ClosedPort::take());
    let deny = ", failure_mode_deny: true";
    let listeners = [
        asking("ok", "asked", "meta=k:v", ""),
        asking("over", "asked", "over", ""),
        asking("over-told", "asked", "over meta=k:v", ""),
        asking("fail", "asked", "fail", ""),
        asking("fail-deny", "asked", "fail", deny),
        asking("dead", "dead", "", ""),
        asking("dead-deny", "dead", "", deny),
        asking("nowhere", "nowhere", "", deny),
    ];
    let clusters = [
        cluster("peer", &[peer.port()]),
        http2_cluster("asked", &[service.port()]),
        http2_cluster("dead", &[closed.port()]),
    ];
    let proxy = Proxy::start_with(&bootstrap(&listeners, &clusters), Settings { program, ..Settings::default() }).await;
    let mut all = Vec::new();
    for name in ["ok", "over", "over-told", "fail", "fail-deny", "dead", "dead-deny", "nowhere"] {
        let mut stream = TcpStream::connect(proxy.listener(name).await).await.unwrap();
        let mut seen = vec![format!("answer: {}", say(&mut stream, b"hello").await)];
        drop(stream);
        seen.extend(service.take_told());
        seen.extend(proxy.lines(&format!("{name}.log"), 1).await);
        all.push((name, seen));
    }
    let page = proxy.admin("/stats").await.text();
    let lines = page.lines().filter(|line| line.starts_with("ratelimit.") && !line.ends_with(": 0"));
    all.push(("stats", lines.map(str::to_owned).collect()));
    all
}

#[tokio::test]
async fn connections_are_limited_as_by_envoy() {
    let expected = observed(proxy::envoy()).await;
    let seen = observed(proxy::program()).await;
    assert_same(INTENDED, expected, seen);
}
