//! Endpoints behind HTTP proxies, beside Envoy: which connections ask for a tunnel, for whom, and what is said of refusals.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{HTTP2, access_log_of, bootstrap, chain, http, listener, routes};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// An HTTP proxy that writes down what it is asked, and gives every CONNECT the same answer.
struct HttpProxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl HttpProxy {
    async fn start(answer: &'static [&'static str]) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&log), answer));
            }
        });
        Self { port, asked }
    }

    /// What it was asked since the last call, with each question once: checks ask again.
    fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.sort();
        asked.dedup();
        asked
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Vec<String>>>, answer: &'static [&'static str]) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let Some(authority) = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
        log.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nproxied").await;
        return;
    };
    log.lock().unwrap().push(head.clone());
    for part in answer {
        // In several packets.
        let _ = stream.write_all(part.as_bytes()).await;
        tokio::task::yield_now().await;
    }
    if !answer.concat().contains(" 200") {
        return;
    }
    let port: u16 = authority.rsplit(':').next().unwrap().parse().unwrap();
    if let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await {
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
    }
}

const TLS: &str = "transport_socket: { name: tls, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
    common_tls_context: {} } }";
const RAW: &str = "transport_socket: { name: raw, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }";

fn address(port: u16) -> String {
    format!("socket_address: {{ address: 127.0.0.1, port_value: {port} }}")
}

fn metadata(port: Option<u16>) -> String {
    port.map_or_else(String::new, |port| {
        format!(
            ", metadata: {{ typed_filter_metadata: {{ envoy.http11_proxy_transport_socket.proxy_address: {{ \
             '@type': type.googleapis.com/envoy.config.core.v3.Address, {} }} }} }}",
            address(port)
        )
    })
}

/// A cluster with one endpoint.
#[derive(Default)]
struct Way {
    name: &'static str,
    /// The transport inside.
    inner: &'static str,
    endpoint: u16,
    hostname: &'static str,
    /// The proxies that the transport, the endpoint and the locality name.
    default: Option<u16>,
    own: Option<u16>,
    locality: Option<u16>,
    more: &'static str,
}

impl Way {
    fn cluster(&self) -> String {
        let Self { name, inner, endpoint, hostname, default, own, locality, more } = self;
        let default =
            default.map_or_else(String::new, |port| format!(", default_proxy_address: {{ {} }}", address(port)));
        format!(
            "{{ name: {name}, connect_timeout: 5s, load_assignment: {{ cluster_name: {name}, endpoints: [{{ lb_endpoints: [{{ \
             endpoint: {{ address: {{ {} }}, hostname: '{hostname}' }}{} }}]{} }}] }}, transport_socket: {{ name: p, typed_config: {{ \
             '@type': type.googleapis.com/envoy.extensions.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport, \
             {inner}{default} }} }}{more} }}",
            address(*endpoint),
            metadata(*own),
            metadata(*locality),
        )
    }
}

/// What clients get, what is logged, and what the proxies are asked; and the reasons that are logged.
async fn observed(program: PathBuf) -> (Vec<String>, Vec<String>) {
    let authority = Authority::new();
    let secure = Upstream::tls("secure", authority.issue(&["a.example"]).server(&["h2", "http/1.1"])).await;
    let plain = Upstream::start("plain").await;
    let open = HttpProxy::start(&["HTTP/1.1 200 Conn", "ection established\r\nvia: x\r", "\n\r\n"]).await;
    let other = HttpProxy::start(&["HTTP/1.0 200\r\n\r\n"]).await;
    let forbids = HttpProxy::start(&["HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\n\r\nno\n"]).await;
    let creates = HttpProxy::start(&["HTTP/1.1 201 Created\r\n\r\n"]).await;
    let closed = ClosedPort::take();
    let tls = |name, default| Way { name, inner: TLS, endpoint: secure.port(), default, ..Way::default() };
    let raw = |name, default| Way { name, inner: RAW, endpoint: plain.port(), default, ..Way::default() };
    let check = ", health_checks: [{ timeout: 5s, interval: 60s, no_traffic_interval: 60s, healthy_threshold: 1, \
        unhealthy_threshold: 1, http_health_check: { path: /health } }]";
    let ways = [
        tls("secure", Some(open.port)),
        Way { hostname: "a.example", ..tls("named", Some(open.port)) },
        Way { more: HTTP2, ..tls("multiplexed", Some(open.port)) },
        Way { own: Some(other.port), locality: Some(forbids.port), ..tls("own", Some(forbids.port)) },
        Way { locality: Some(other.port), ..tls("locality", Some(forbids.port)) },
        tls("direct", None),
        raw("plain", Some(open.port)),
        Way { own: Some(open.port), ..raw("plain-tunnel", None) },
        raw("plain-direct", None),
        tls("forbidden", Some(forbids.port)),
        tls("created", Some(creates.port)),
        tls("closed", Some(closed.port())),
        Way { more: check, hostname: "checked.example", ..tls("checked", Some(open.port)) },
        Way { more: check, ..tls("fails", Some(forbids.port)) },
    ];
    let to: String = ways
        .iter()
        .map(|way| format!("{{ match: {{ path: /{0} }}, route: {{ cluster: {0} }} }}, ", way.name))
        .collect();
    let log = access_log_of(
        "requests",
        "%RESPONSE_FLAGS% %UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%|%RESPONSE_CODE_DETAILS% \
         %UPSTREAM_TRANSPORT_FAILURE_REASON%",
    );
    let clusters: Vec<String> = ways.iter().map(Way::cluster).collect();
    let listeners = [listener("l", &[chain(&http("h", &format!("{}{log}", routes(&to))), "")], "")];
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&listeners, &clusters), settings).await;
    let web = proxy.listener("l").await;
    proxy.stat_is("cluster.checked.health_check.success", 1).await;
    proxy.stat_is("cluster.fails.health_check.failure", 1).await;
    let (mut seen, mut reasons) = (Vec::new(), Vec::new());
    let proxies = [("open", &open), ("other", &other), ("forbids", &forbids), ("creates", &creates)];
    let hidden = |text: &str| {
        let mut text = text.to_owned();
        for (name, proxy) in proxies {
            text = text.replace(&format!("127.0.0.1:{}", proxy.port), name);
        }
        let ends = [("SECURE", secure.port()), ("PLAIN", plain.port()), ("CLOSED", closed.port())];
        ends.iter().fold(text, |text, (name, port)| text.replace(&format!(":{port}"), &format!(":{name}")))
    };
    let questions = |seen: &mut Vec<String>| {
        for (name, proxy) in proxies {
            seen.extend(proxy.asked().iter().map(|asked| hidden(&format!("  {name} {asked:?}"))));
        }
    };
    seen.push("checks".to_owned());
    questions(&mut seen);
    for (index, way) in ways.iter().enumerate() {
        let response = h1::get(web, &format!("/{}", way.name)).await;
        let who = if response.text() == "proxied" { "proxy" } else { "endpoint or nobody" };
        seen.push(format!("{}: {} by {who}", way.name, response.status));
        let lines = proxy.lines("requests", index + 1).await;
        let (line, reason) = lines[index].split_once('|').unwrap();
        seen.push(hidden(&format!("  logged {line}")));
        reasons.push(hidden(&format!("{}: {reason}", way.name)));
        questions(&mut seen);
    }
    (seen, reasons)
}

#[tokio::test]
async fn endpoints_are_reached_through_http_proxies_as_by_envoy() {
    let ((own, reasons), (envoy, _)) = tokio::join!(observed(proxy::program()), observed(proxy::envoy()));
    assert_eq!(own, envoy);
    for line in [
        "named: 200 by endpoint or nobody",
        "plain: 200 by proxy",
        "forbidden: 503 by endpoint or nobody",
        "  logged - 127.0.0.1:SECURE open",
        "  open \"CONNECT a.example:SECURE HTTP/1.1\\r\\nHost: a.example:SECURE\\r\\n\\r\\n\"",
        "  open \"GET /plain HTTP/1.1\"",
        "  other \"CONNECT 127.0.0.1:SECURE HTTP/1.1\\r\\nHost: 127.0.0.1:SECURE\\r\\n\\r\\n\"",
    ] {
        assert!(own.iter().any(|seen| seen == line), "{line} is not in {own:#?}");
    }
    // Envoy says that the connection failed, and no more.
    let answered = |name: &str, status: &str| {
        let reason = format!("the_HTTP_proxy_{name}_answered_CONNECT_127.0.0.1:SECURE_with_{status}");
        format!("upstream_reset_before_response_started{{remote_connection_failure|{reason}}} {reason}")
    };
    for line in [
        format!("forbidden: {}", answered("forbids", "403_Forbidden")),
        format!("created: {}", answered("creates", "201_Created")),
    ] {
        assert!(reasons.contains(&line), "{line} is not in {reasons:#?}");
    }
}
