//! How requests are counted that never had a connection: as waiting ones that failed, and not among those that were sent. And
//! how connections are that never had a filter chain. The same from Envoy.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{all_to, bootstrap, chain, cluster, http, http2_cluster, listener, routes, tcp};
use outrigger_tests::tcp::{ClosedPort, Conduct, Peer};
use outrigger_tests::{Proxy, Settings, h1, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_request_without_a_connection_was_pending_and_not_sent() {
    for program in [proxy::program(), proxy::envoy()] {
        let closed = ClosedPort::take();
        let ports = [closed.port()];
        let clusters = [cluster("h1", &ports), http2_cluster("h2", &ports), cluster("raw", &ports)];
        let listeners = [
            listener("h1", &[chain(&http("h1", &routes(&all_to("h1"))), "")], ""),
            listener("h2", &[chain(&http("h2", &routes(&all_to("h2"))), "")], ""),
            listener("raw", &[chain(&tcp("raw"), "")], ""),
        ];
        let settings = Settings { program: program.clone(), ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&listeners, &clusters), settings).await;
        for name in ["h1", "h2"] {
            assert_eq!(h1::get(proxy.listener(name).await, "/").await.status, 503, "{program:?}");
        }
        let mut raw = TcpStream::connect(proxy.listener("raw").await).await.unwrap();
        // An end or a reset, as it comes.
        let _ = within("the end", raw.read(&mut [0])).await;
        for name in ["h1", "h2", "raw"] {
            let stat = |what: &str| format!("cluster.{name}.{what}");
            proxy.wait_stat(&stat("upstream_rq_pending_failure_eject"), |count| count == 1).await;
            proxy.stat_is(&stat("upstream_rq_total"), 0).await;
            proxy.stat_is(&stat("upstream_rq_pending_total"), 1).await;
            proxy.stat_is(&stat("upstream_rq_pending_active"), 0).await;
            proxy.stat_is(&stat("upstream_cx_connect_fail"), 1).await;
        }
        let clusters = proxy.admin("/clusters").await.text();
        let line = format!("h1::127.0.0.1:{}::rq_total::0\n", ports[0]);
        assert!(clusters.contains(&line), "{program:?}: {clusters}");
    }
}

#[tokio::test]
async fn what_no_filter_chain_takes_is_no_connection() {
    const HEADER: &str = ", stat_prefix: own, listener_filters: [{ name: proxy, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol } }]";
    for program in [proxy::program(), proxy::envoy()] {
        let peer = Peer::start(Conduct::Echo).await;
        let chain = chain(&tcp("peer"), ", filter_chain_match: { destination_port: 80 }");
        let text = bootstrap(&[listener("own", &[chain], HEADER)], &[cluster("peer", &[peer.port()])]);
        let proxy = Proxy::start_with(&text, Settings { program: program.clone(), ..Settings::default() }).await;
        let address = proxy.listener("own").await;
        let stat = |what: &str| format!("listener.own.{what}");
        // As a load balancer looks whether the port is open.
        drop(TcpStream::connect(address).await.unwrap());
        proxy.wait_stat(&stat("downstream_listener_filter_remote_close"), |count| count == 1).await;
        let mut elsewhere = TcpStream::connect(address).await.unwrap();
        elsewhere.write_all(b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 81\r\n").await.unwrap();
        let _ = within("the end", elsewhere.read(&mut [0])).await;
        proxy.wait_stat(&stat("no_filter_chain_match"), |count| count == 1).await;
        proxy.stat_is(&stat("downstream_cx_total"), 0).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 80\r\nx").await.unwrap();
        within("the echo", client.read_exact(&mut [0])).await.unwrap();
        proxy.stat_is(&stat("downstream_cx_total"), 1).await;
        proxy.stat_is(&stat("downstream_cx_active"), 1).await;
        proxy.stat_is(&stat("downstream_cx_destroy"), 0).await;
        drop(client);
        proxy.wait_stat(&stat("downstream_cx_destroy"), |count| count == 1).await;
        proxy.stat_is(&stat("downstream_cx_active"), 0).await;
    }
}
