//! Corners of the data path: connections that end at odd moments, limits that make requests wait, and who is told of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::{
    access_log, all_to, bootstrap, chain, cluster, cluster_with, http, listener, routes, tcp,
};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixSocket, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

/// A proxy with one HTTP listener `web` of these further fields, that sends everything to the cluster `up`.
async fn web_to(cluster: String, more: &str, settings: Settings) -> (Proxy, SocketAddr) {
    let log = access_log("access.log");
    let manager = http("web", &format!("{}{log}{more}", routes(&all_to("up"))));
    let listener = listener("web", &[chain(&manager, "")], "");
    let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster]), settings).await;
    let web = proxy.listener("web").await;
    (proxy, web)
}

fn gated(method: &str) -> Vec<u8> {
    h1::request_bytes(method, "/", &[("x-reply", "gate")], b"")
}

/// An upstream that says what its script has for the request of this number on the connection of this number (from 1),
/// and closes where it has nothing.
struct Scripted {
    port: u16,
    requests: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scripted {
    async fn start(script: fn(usize, usize) -> (&'static [u8], bool)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let count = requests.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for connection in 1.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let count = count.clone();
                connections.spawn(async move {
                    let mut reader = h1::Reader::new(Box::new(stream), Vec::new());
                    for request in 1.. {
                        let Ok(Some(_)) = reader.head().await else { return };
                        count.fetch_add(1, Ordering::Relaxed);
                        let (say, stay) = script(connection, request);
                        if reader.stream().write_all(say).await.is_err() || !stay {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, requests, task: task.abort_handle() }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

const FINE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_unix_endpoint_with_a_full_backlog_is_a_refusal_and_stops_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("full.sock");
    let socket = UnixSocket::new_stream().unwrap();
    socket.bind(&path).unwrap();
    let endpoint = socket.listen(0).unwrap();
    let first = UnixStream::connect(&path).await.unwrap();
    let up = format!(
        "{{ name: up, type: STATIC, connect_timeout: 15s, load_assignment: {{ cluster_name: up, endpoints: [{{ \
         lb_endpoints: [{{ endpoint: {{ address: {{ pipe: {{ path: '{}' }} }} }} }}] }}] }} }}",
        path.display()
    );
    let (proxy, web) = web_to(up, "", Settings::default()).await;
    assert_eq!(h1::get(web, "/").await.status, 503);
    let line = proxy.lines("access.log", 1).await.remove(0);
    let details =
        "{remote_connection_failure|immediate_connect_error:_Resource_temporarily_unavailable|remote_address:";
    assert!(line.starts_with("503 UF upstream_reset_before_response_started"), "{line}");
    assert!(line.contains(details), "{line}");
    // With room again, the same endpoint serves.
    drop(within("the first connection", endpoint.accept()).await.unwrap());
    drop(first);
    let mut client = h1::Client::connect(web).await;
    client.send(h1::request_bytes("GET", "/", &[], b"")).await;
    let (stream, _) = within("the second connection", endpoint.accept()).await.unwrap();
    let mut reader = h1::Reader::new(Box::new(stream), Vec::new());
    within("the request", reader.head()).await.unwrap();
    reader.stream().write_all(FINE).await.unwrap();
    assert_eq!(client.response("GET").await.status, 200);
}

/// Ours alone: Envoy answers 503 unless a retry policy says otherwise.
#[tokio::test]
async fn a_connection_that_ends_without_a_byte_costs_nobody_a_request() {
    if proxy::tests_envoy() {
        return;
    }
    let upstream = Scripted::start(|connection, request| match (connection, request) {
        (1, 2) => (b"", false),
        _ => (FINE, true),
    })
    .await;
    let (_proxy, web) = web_to(cluster("up", &[upstream.port]), "", Settings::default()).await;
    let mut client = h1::Client::connect(web).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(upstream.requests(), 3, "the second one was sent again");
}

#[tokio::test]
async fn a_request_that_was_seen_is_not_sent_again() {
    // An interim response, and a part of a head: the upstream has the request.
    for say in ["HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 200 OK\r\nx: "] {
        let interim = say.contains("103");
        let upstream = if interim {
            Scripted::start(|_, request| match request {
                1 => (FINE, true),
                _ => (b"HTTP/1.1 103 Early Hints\r\n\r\n", false),
            })
            .await
        } else {
            Scripted::start(|_, request| match request {
                1 => (FINE, true),
                _ => (b"HTTP/1.1 200 OK\r\nx: ", false),
            })
            .await
        };
        let (_proxy, web) = web_to(cluster("up", &[upstream.port]), "", Settings::default()).await;
        let mut client = h1::Client::connect(web).await;
        assert_eq!(client.get("/").await.status, 200);
        let response = client.get("/").await;
        assert!(response.status >= 500, "{say:?}: {response:?}");
        assert_eq!(upstream.requests(), 2, "{say:?}");
    }
}

#[tokio::test]
async fn an_idle_connection_with_tls_ends_with_a_goodbye() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue(&["server.example"]).write(directory.path(), "server");
    let tls = ", transport_socket: { name: envoy.transport_sockets.tls, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
        common_tls_context: { tls_certificates: [{ \
        certificate_chain: { filename: '$dir/server.crt' }, private_key: { filename: '$dir/server.key' } }] } } }";
    let upstream = Upstream::start("up").await;
    let idle = ", common_http_protocol_options: { idle_timeout: 3s }";
    let manager = http("web", &format!("{}{idle}", routes(&all_to("up"))));
    let listener = listener("web", &[chain(&manager, tls)], "");
    let text = bootstrap(&[listener], &[cluster("up", &[upstream.port()])]);
    let proxy = Proxy::start_in(directory, &text, Settings::default()).await;
    let address = proxy.listener("web").await;
    for requests in [0, 1] {
        let stream = certificates::connect(address, "server.example", authority.client(&[], None)).await.unwrap();
        let mut client = h1::Client::over(Box::new(stream));
        for _ in 0..requests {
            assert_eq!(client.get("/").await.status, 200);
        }
        // rustls calls an end without a goodbye an error.
        let mut rest = Vec::new();
        let end = within("the connection ends", client.stream().read_to_end(&mut rest)).await;
        assert_eq!(end.expect("close_notify"), 0);
    }
    proxy.stat_is("http.web.downstream_cx_idle_timeout", 2).await;
}

#[tokio::test]
async fn heads_that_arrive_byte_by_byte_are_heads() {
    let upstream = Upstream::start("up").await;
    let (_proxy, web) = web_to(cluster("up", &[upstream.port()]), "", Settings::default()).await;
    let mut stream = TcpStream::connect(web).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in h1::request_bytes("GET", "/slow", &[("x-some", "thing")], b"") {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let response = h1::Client::over(Box::new(stream)).response("GET").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.upstream_header("x-some").as_deref(), Some("thing"));
}

#[tokio::test]
async fn a_client_that_leaves_while_its_body_waits_is_noticed() {
    let upstream = Upstream::start("up").await;
    let breakers = ", circuit_breakers: { thresholds: [{ max_connections: 1 }] }";
    let up = cluster_with("up", &[upstream.port()], breakers);
    let (proxy, web) = web_to(up, "", Settings::default()).await;
    let mut first = h1::Client::connect(web).await;
    first.send(gated("GET")).await;
    upstream.wait("the only connection is taken", |counts| counts.waiting == 1).await;
    // What has come of the body fits into one buffer, or into a large one.
    for bytes in [10, 20_000] {
        let mut client = h1::Client::connect(web).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await;
        client.send(vec![b'x'; bytes]).await;
        proxy.wait_stat("cluster.up.upstream_rq_pending_active", |pending| pending == 1).await;
        drop(client);
        proxy.wait_stat("cluster.up.upstream_rq_pending_active", |pending| pending == 0).await;
    }
    proxy.stat_is("cluster.up.upstream_rq_cancelled", 2).await;
    upstream.open_gate();
    assert_eq!(first.response("GET").await.status, 200);
}

#[tokio::test]
async fn each_end_of_an_upstream_connection_is_counted_by_who_ended_it() {
    let upstream = Upstream::start("up").await;
    let (proxy, web) = web_to(cluster("up", &[upstream.port()]), "", Settings::default()).await;
    // The client goes.
    let mut client = h1::Client::connect(web).await;
    client.send(gated("GET")).await;
    upstream.wait("a request waits", |counts| counts.waiting == 1).await;
    drop(client);
    proxy.wait_stat("cluster.up.upstream_cx_destroy_local_with_active_rq", |count| count == 1).await;
    // The upstream goes.
    let reset = h1::Client::connect(web).await.request("GET", "/", &[("x-reply", "reset")], b"").await;
    assert_eq!(reset.status, 503);
    proxy.wait_stat("cluster.up.upstream_cx_destroy_remote_with_active_rq", |count| count == 1).await;
    proxy.stat_is("cluster.up.upstream_cx_destroy_with_active_rq", 2).await;
    // An answer after which the connection closes; which side is quicker is open.
    let last = h1::Client::connect(web).await.request("GET", "/", &[("x-reply", "close")], b"").await;
    assert_eq!(last.status, 200);
    proxy.wait_stat("cluster.up.upstream_cx_destroy", |count| count == 3).await;
    proxy.stat_is("cluster.up.upstream_cx_destroy_with_active_rq", 2).await;
    eventually("each end is somebody's", async || {
        let local = proxy.stat("cluster.up.upstream_cx_destroy_local").await;
        let remote = proxy.stat("cluster.up.upstream_cx_destroy_remote").await;
        if local + remote == 3 { Ok(()) } else { Err(format!("{local} and {remote}")) }
    })
    .await;
    proxy.wait_stat("cluster.up.upstream_cx_rx_bytes_total", |bytes| bytes > 0).await;
}

#[tokio::test]
async fn a_connection_that_is_not_made_is_counted_by_who_refused_it() {
    let closed = ClosedPort::take();
    let (proxy, web) = web_to(cluster("up", &[closed.port()]), "", Settings::default()).await;
    assert_eq!(h1::get(web, "/").await.status, 503);
    proxy.wait_stat("cluster.up.upstream_cx_destroy_remote", |count| count == 1).await;
    proxy.stat_is("cluster.up.upstream_cx_destroy", 1).await;
    proxy.stat_is("cluster.up.upstream_cx_destroy_with_active_rq", 0).await;
    let line = proxy.lines("access.log", 1).await.remove(0);
    assert!(
        line.ends_with("{remote_connection_failure|delayed_connect_error:_Connection_refused} HTTP/1.1 /"),
        "{line}"
    );
}

/// Envoy allows each worker one connection, whatever the limit.
fn workers() -> usize {
    if proxy::tests_envoy() { 1 } else { 4 }
}

#[tokio::test]
async fn waiting_requests_are_told_of_places_that_other_workers_free() {
    // Each connection ends with its only response, so its place goes round among all that wait.
    let limits = [
        "{ thresholds: [{ max_connections: 2, max_pending_requests: 1000 }] }",
        "{ thresholds: [{ max_pending_requests: 1000 }], per_host_thresholds: [{ max_connections: 1 }] }",
    ];
    for limit in limits {
        let upstream = Upstream::start("up").await;
        let up = cluster_with("up", &[upstream.port()], &format!(", circuit_breakers: {limit}"));
        let settings = Settings { concurrency: workers(), ..Settings::default() };
        let (proxy, web) = web_to(up, "", settings).await;
        let mut requests = JoinSet::new();
        for _ in 0..100 {
            requests.spawn(async move {
                let mut client = h1::Client::connect(web).await;
                client.request("GET", "/", &[("x-reply", "close gate")], b"").await.status
            });
        }
        upstream.wait("some have a connection", |counts| counts.waiting >= 1).await;
        proxy.wait_stat("cluster.up.upstream_rq_pending_active", |pending| pending >= 90).await;
        upstream.open_gate();
        while let Some(status) = requests.join_next().await {
            assert_eq!(status.unwrap(), 200, "{limit}");
        }
        proxy.stat_is("cluster.up.upstream_rq_pending_active", 0).await;
    }
}

#[tokio::test]
async fn waiting_requests_are_told_of_connections_that_come_back() {
    let upstream = Upstream::start("up").await;
    let breakers = ", circuit_breakers: { thresholds: [{ max_connections: 1, max_pending_requests: 1000 }] }";
    let (proxy, web) = web_to(cluster_with("up", &[upstream.port()], breakers), "", Settings::default()).await;
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        requests.spawn(async move {
            let mut client = h1::Client::connect(web).await;
            client.send(gated("GET")).await;
            client.response("GET").await.status
        });
    }
    proxy.wait_stat("cluster.up.upstream_rq_pending_active", |pending| pending == 49).await;
    upstream.open_gate();
    while let Some(status) = requests.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(upstream.counts().connections, 1);
}

#[tokio::test]
async fn the_age_of_a_connection_ends_it_after_its_request() {
    let upstream = Upstream::start("up").await;
    let more = ", common_http_protocol_options: { max_connection_duration: 3s }";
    let (proxy, web) = web_to(cluster("up", &[upstream.port()]), more, Settings::default()).await;
    let mut busy = h1::Client::connect(web).await;
    busy.send(gated("GET")).await;
    upstream.wait("a request waits", |counts| counts.waiting == 1).await;
    // One that is idle and younger ends by its age: so the age of the other is over too.
    h1::Client::connect(web).await.ended().await;
    upstream.open_gate();
    let response = busy.response("GET").await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    busy.ended().await;
    proxy.wait_stat("http.web.downstream_cx_max_duration_reached", |count| count == 2).await;
}

#[tokio::test]
async fn a_response_that_may_have_no_content_names_no_length() {
    let upstream = Upstream::start("up").await;
    let (_proxy, web) = web_to(cluster("up", &[upstream.port()]), "", Settings::default()).await;
    let mut client = h1::Client::connect(web).await;
    let reply = [("x-reply", "status=204 header=content-length:0")];
    let response = client.request("GET", "/", &reply, b"").await;
    assert_eq!((response.status, response.header("content-length")), (204, None));
    // Those of other answers stay.
    let reply = [("x-reply", "bytes=7")];
    assert_eq!(client.request("HEAD", "/", &reply, b"").await.header("content-length"), Some("7"));
}

/// Ours alone: Envoy's gauge counts what it has written to its buffers too.
#[tokio::test]
async fn a_tcp_session_holds_no_more_than_either_limit() {
    if proxy::tests_envoy() {
        return;
    }
    let (small, large) = (4096, 1 << 20);
    for (listener_limit, cluster_limit) in [(small, large), (large, small)] {
        let peer = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let limit = |bytes: u64| format!(", per_connection_buffer_limit_bytes: {bytes}");
        let up = cluster_with("up", &[peer.local_addr().unwrap().port()], &limit(cluster_limit));
        let listener = listener("tcp", &[chain(&tcp("up"), "")], &limit(listener_limit));
        let proxy = Proxy::start(&bootstrap(&[listener], &[up])).await;
        let mut client = TcpStream::connect(proxy.listener("tcp").await).await.unwrap();
        let (_silent, _) = within("the proxy connects", peer.accept()).await.unwrap();
        let writing = tokio::spawn(async move {
            let piece = vec![b'x'; 1 << 16];
            while client.write_all(&piece).await.is_ok() {}
        });
        proxy.wait_stat("tcp.tcp.downstream_flow_control_paused_reading_total", |pauses| pauses > 0).await;
        let held = proxy.wait_stat("tcp.tcp.downstream_cx_rx_bytes_buffered", |held| held > 0).await;
        assert!(held <= small, "{held}");
        writing.abort();
    }
}
