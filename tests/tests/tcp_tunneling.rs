//! TCP connections inside requests, and what else tells a TCP proxy when to connect and when to end: the same as with Envoy.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use outrigger_tests::config::{
    HTTP2, access_log_of, bootstrap, chain, cluster, cluster_with, http, listener, routes, tcp_with,
};
use outrigger_tests::tcp::{ClosedPort, Conduct, Peer};
use outrigger_tests::{Proxy, Settings, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// An HTTP/1 server that writes down what it is asked, gives one answer, and sends back what comes then.
struct Gate {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gate {
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heads = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer, Arc::clone(&heads)));
            }
        });
        Self { port, asked, task: task.abort_handle() }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn serve(mut stream: TcpStream, answer: &'static str, heads: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    heads.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
    stream.write_all(answer.as_bytes()).await?;
    let mut buffer = [0; 1024];
    if answer == CHUNKED {
        // The end of the request, or that of the connection, is answered by the end of the response.
        let mut request = Vec::new();
        while !request.ends_with(b"0\r\n\r\n") && stream.read_buf(&mut request).await? > 0 {}
        return stream.write_all(b"0\r\n\r\n").await;
    }
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}

const LOG: &str = "%RESPONSE_FLAGS% %UPSTREAM_TRANSPORT_FAILURE_REASON% %UPSTREAM_REQUEST_ATTEMPT_COUNT% \
                   %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER% \
                   %FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)%";

fn tunnel(name: &str, cluster: &str, fields: &str) -> String {
    let log = access_log_of(&format!("{name}.log"), LOG);
    listener(name, &[chain(&tcp_with(&format!("cluster: {cluster}, {fields}{log}")), "")], "")
}

async fn start(program: PathBuf, listeners: &[String], clusters: &[String]) -> Proxy {
    Proxy::start_with(&bootstrap(listeners, clusters), Settings { program, ..Settings::default() }).await
}

/// Sends `ping` and tells what comes back, up to this many bytes.
async fn ping(address: SocketAddr, expected: usize) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    stream.write_all(b"ping").await.expect("a connection");
    let mut heard = Vec::new();
    while heard.len() < expected {
        match within("an answer", stream.read_buf(&mut heard)).await {
            Ok(0) | Err(_) => return format!("{} and closed", String::from_utf8_lossy(&heard)),
            Ok(_) => {}
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

/// Listener, answer of the server, fields of the TCP proxy, and bytes that come back.
const TUNNELS: &[(&str, &str, &str, usize)] = &[
    ("connect", OK, "tunneling_config: { hostname: 'host.example:443' }", 4),
    (
        "formats",
        OK,
        "tunneling_config: { hostname: '%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%:%REQUESTED_SERVER_NAME%', headers_to_add: [ \
         { header: { key: X-Client, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%' } }, \
         { header: { key: x-client, value: again } }, { header: { key: x-empty, value: '' } }] }",
        4,
    ),
    ("post", CHUNKED, "tunneling_config: { hostname: host.example, use_post: true }", 5),
    ("path", CHUNKED, "tunneling_config: { hostname: host.example, use_post: true, post_path: /x/y }", 5),
    ("early", EARLY, "tunneling_config: { hostname: 'host.example:443' }", 9),
    ("no-content", NO_CONTENT, "tunneling_config: { hostname: 'host.example:443' }", 4),
    ("length", LENGTH, "tunneling_config: { hostname: 'host.example:443' }", 4),
    ("refused", FORBIDDEN, "max_connect_attempts: 2, tunneling_config: { hostname: 'host.example:443' }", 4),
    (
        "again",
        FORBIDDEN,
        "max_connect_attempts: 3, backoff_options: { base_interval: 0.001s, max_interval: 0.002s }, \
         tunneling_config: { hostname: 'host.example:443' }",
        4,
    ),
];
const OK: &str = "HTTP/1.1 200 OK\r\nx-a: b\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
const EARLY: &str = "HTTP/1.1 200 OK\r\n\r\nhello";
const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";
const LENGTH: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n";
const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nx-why: no\r\ncontent-length: 0\r\n\r\n";

async fn tunnels(program: PathBuf) -> Vec<String> {
    let mut gates = Vec::new();
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for (name, answer, fields, _) in TUNNELS {
        let gate = Gate::start(answer).await;
        listeners.push(tunnel(name, name, fields));
        clusters.push(cluster(name, &[gate.port]));
        gates.push(gate);
    }
    let proxy = start(program, &listeners, &clusters).await;
    let mut seen = Vec::new();
    for ((name, _, _, expected), gate) in TUNNELS.iter().zip(&gates) {
        seen.push(format!("{name}: {}", ping(proxy.listener(name).await, *expected).await));
        let lines = proxy.lines(&format!("{name}.log"), 1).await;
        seen.push(format!("{name}: logged {}", lines[0]));
        for head in gate.asked() {
            seen.push(format!("{name}: {head:?}"));
        }
    }
    seen
}

#[tokio::test]
async fn connections_go_through_requests_as_with_envoy() {
    let seen = tunnels(proxy::program()).await;
    assert_eq!(seen[0], "connect: ping");
    assert_eq!(seen[2], "connect: \"CONNECT host.example:443 HTTP/1.1\\r\\nhost: host.example:443\\r\\n\\r\\n\"");
    let expected = tunnels(proxy::envoy()).await;
    for (seen, expected) in seen.iter().zip(&expected) {
        assert_eq!(seen, expected);
    }
    assert_eq!(seen.len(), expected.len());
}

/// Ids of requests, and headers of answers.
async fn told(program: PathBuf) -> Vec<String> {
    let gate = Gate::start(OK).await;
    let id = "request_id_extension: { typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig } }";
    let log = access_log_of(
        "told.log",
        "%DYNAMIC_METADATA(envoy.filters.network.tcp_proxy:tunnel_request_id)%%DYNAMIC_METADATA(envoy.filters.network.tcp_proxy:mine)%",
    );
    let of = |name: &str, more: &str| {
        let fields =
            format!("cluster: gate, tunneling_config: {{ hostname: a, {id}{more} }}{}", log.replace("told", name));
        listener(name, &[chain(&tcp_with(&fields), "")], "")
    };
    let listeners = [of("usual", ""), of("own", ", request_id_header: X-Mine, request_id_metadata_key: mine")];
    let proxy = start(program, &listeners, &[cluster("gate", &[gate.port])]).await;
    let mut seen = Vec::new();
    for name in ["usual", "own"] {
        ping(proxy.listener(name).await, 4).await;
        let id = proxy.lines(&format!("{name}.log"), 1).await[0].replace('-', "");
        assert_eq!(id.len(), 32, "{id}");
        let head = gate.asked().concat().replace('-', "");
        assert!(head.contains(&id), "{head} has no {id}");
        seen.push(head.replace(&id, "ID"));
    }
    seen
}

#[tokio::test]
async fn requests_have_ids_as_with_envoy() {
    assert_eq!(told(proxy::program()).await, told(proxy::envoy()).await);
}

/// Through a proxy that ends tunnels, over HTTP/2, with a peer that answers at the end of what it is sent.
async fn halves(program: PathBuf, inner: PathBuf) -> Vec<String> {
    let peer = Peer::start(Conduct::ReverseAtEnd).await;
    let ends = "{ match: { connect_matcher: {}, headers: [{ name: ':authority', string_match: { prefix: deny } }] }, \
        direct_response: { status: 403 } }, \
        { match: { connect_matcher: {} }, route: { cluster: peer, \
          upgrade_configs: [{ upgrade_type: CONNECT, connect_config: {} }] } }";
    let options = ", upgrade_configs: [{ upgrade_type: CONNECT }], http2_protocol_options: { allow_connect: true }";
    let manager = http("ends", &format!("{}{options}", routes(ends)));
    let inside =
        start(inner, &[listener("ends", &[chain(&manager, "")], "")], &[cluster("peer", &[peer.port()])]).await;
    let port = inside.listener("ends").await.port();
    let listeners = [
        tunnel(
            "through",
            "inside",
            "tunneling_config: { hostname: 'host.example:443', propagate_response_headers: true }",
        ),
        tunnel("denied", "inside", "max_connect_attempts: 2, tunneling_config: { hostname: 'deny.example:443' }"),
    ];
    let proxy = start(program, &listeners, &[cluster_with("inside", &[port], HTTP2)]).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(proxy.listener("through").await).await.expect("a listener");
        stream.write_all(b"abc").await.expect("a connection");
        stream.shutdown().await.expect("a connection");
        let mut heard = Vec::new();
        within("the rest", stream.read_to_end(&mut heard)).await.expect("an end");
        seen.push(String::from_utf8_lossy(&heard).into_owned());
    }
    seen.push(ping(proxy.listener("denied").await, 4).await);
    for (name, count) in [("through", 2), ("denied", 1)] {
        let lines = proxy.lines(&format!("{name}.log"), count).await;
        seen.extend(lines.iter().map(|line| line.split(" {").next().unwrap_or_default().to_owned()));
        let kept = lines.iter().all(|line| line.contains("{\"key\":\":status\",\"value\":\"200\"}"));
        seen.push(format!("{name}: headers kept {kept}"));
    }
    proxy.wait_stat("cluster.inside.upstream_rq_active", |active| active == 0).await;
    seen.push(proxy.stat("cluster.inside.upstream_cx_total").await.to_string());
    seen
}

#[tokio::test]
async fn half_of_a_tunnel_over_http2_may_end_first() {
    for inner in [proxy::envoy(), proxy::program()] {
        let seen = halves(proxy::program(), inner.clone()).await;
        assert_eq!(seen[0], "cba");
        assert_eq!(seen, halves(proxy::envoy(), inner).await);
    }
}

/// What is connected, and when.
async fn timing(program: PathBuf) -> Vec<String> {
    let echo = Peer::start(Conduct::Echo).await;
    let closed = ClosedPort::take();
    let listeners = [
        tunnel("on-data", "echo", "upstream_connect_mode: ON_DOWNSTREAM_DATA, max_early_data_bytes: 100"),
        tunnel(
            "short",
            "echo",
            "max_downstream_connection_duration: 0.05s, \
            max_downstream_connection_duration_jitter_percentage: { value: 50 }",
        ),
        tunnel("nobody", "nobody", "max_connect_attempts: 3, backoff_options: { base_interval: 0.001s }"),
        tunnel("drained", "echo", "check_drain_close: true"),
    ];
    let clusters = [cluster("echo", &[echo.port()]), cluster("nobody", &[closed.port()])];
    let proxy = start(program, &listeners, &clusters).await;
    let mut seen = Vec::new();
    let mut stream = TcpStream::connect(proxy.listener("on-data").await).await.expect("a listener");
    proxy.wait_stat("tcp.tcp.downstream_cx_total", |total| total == 1).await;
    seen.push(format!("{} connected", echo.accepted()));
    stream.write_all(b"ping").await.expect("a connection");
    let mut heard = [0; 4];
    within("an echo", stream.read_exact(&mut heard)).await.expect("an echo");
    seen.push(format!("{} connected", echo.accepted()));
    drop(stream);
    let mut stream = TcpStream::connect(proxy.listener("short").await).await.expect("a listener");
    let _ = within("the end", stream.read(&mut [0])).await;
    seen.push(format!("nobody: {}", ping(proxy.listener("nobody").await, 4).await));
    let mut stream = TcpStream::connect(proxy.listener("drained").await).await.expect("a listener");
    for name in ["ping", "pong"] {
        stream.write_all(name.as_bytes()).await.expect("a connection");
        within("an echo", stream.read_exact(&mut heard)).await.expect("an echo");
    }
    proxy.admin_post("/healthcheck/fail").await;
    // A message may cross with the word that the listener drains.
    let mut messages = 0;
    while stream.write_all(b"last").await.is_ok() && matches!(within("an echo", stream.read(&mut heard)).await, Ok(1..))
    {
        messages += 1;
        assert!(messages < 10_000, "the connection goes on");
    }
    for name in ["short", "nobody"] {
        let line = proxy.lines(&format!("{name}.log"), 1).await.concat();
        seen.push(format!("{name}: logged {}", line.split(' ').next().unwrap_or_default()));
        let tries = line.split(' ').nth(2).filter(|_| name == "nobody");
        seen.push(format!("{name}: tries {tries:?}"));
    }
    seen
}

#[tokio::test]
async fn connections_begin_and_end_as_with_envoy() {
    let seen = timing(proxy::program()).await;
    assert_eq!(seen[..2], ["0 connected", "1 connected"]);
    assert_eq!(seen, timing(proxy::envoy()).await);
}
