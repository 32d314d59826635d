//! CONNECT and upgrades: ended here or passed on, between all versions of HTTP, with Envoy on either side.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use outrigger_tests::config::{bootstrap, chain, cluster, cluster_with, http, listener, routes};
use outrigger_tests::h1::Client;
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Settings, h2c, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const OPTIONS: &str = ", upgrade_configs: [{ upgrade_type: CONNECT }, { upgrade_type: websocket }], \
                       http2_protocol_options: { allow_connect: true }";

const HTTP2_CONNECT: &str = ", typed_extension_protocol_options: { \
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    explicit_http_config: { http2_protocol_options: { allow_connect: true } } } }";

async fn start(program: PathBuf, route: &str, clusters: &[String]) -> (Proxy, SocketAddr) {
    let web = listener("web", &[chain(&http("web", &format!("{}{OPTIONS}", routes(route))), "")], "");
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[web], clusters), settings).await;
    let address = proxy.listener("web").await;
    (proxy, address)
}

/// A route by which CONNECT ends and goes to `echo` as bytes.
const ENDS: &str = "{ match: { connect_matcher: {} }, route: { cluster: echo, \
                    upgrade_configs: [{ upgrade_type: CONNECT, connect_config: {} }] } }";

/// A way to ask for a tunnel.
#[derive(Clone, Copy, Debug)]
enum How {
    H1,
    H2,
    H2Bytestream,
}

/// Asks for a tunnel, and for an echo through it; tells what came.
async fn tunnel(address: SocketAddr, how: How) -> String {
    let protocol: &[(&str, &str)] = match how {
        How::H1 => {
            let mut client = Client::connect(address).await;
            client.send("CONNECT inside.example:443 HTTP/1.1\r\nhost: inside.example:443\r\n\r\n").await;
            return echo_h1(client, "CONNECT").await;
        }
        How::H2 => &[],
        How::H2Bytestream => &[(":protocol", "bytestream")],
    };
    echo_h2(address, "inside.example:443", protocol).await
}

async fn echo_h1(mut client: Client, method: &str) -> String {
    let head = client.head().await;
    if head.status >= 300 {
        let body = client.body(&head, method).await.unwrap_or_default();
        return format!("{} {}", head.status, String::from_utf8_lossy(&body));
    }
    for name in ["content-length", "transfer-encoding"] {
        assert_eq!(head.header(name), None, "{head:?}");
    }
    let upgrade = head.header("upgrade").unwrap_or("-").to_owned();
    client.send("ping and more").await;
    let echo = client.until(b"ping and more").await;
    format!("{} upgrade {upgrade}: {}", head.status, String::from_utf8_lossy(&echo))
}

async fn echo_h2(address: SocketAddr, authority: &str, headers: &[(&str, &str)]) -> String {
    let client = h2c::Client::connect(address).await.authority(authority);
    let (response, mut send) = within("a stream", client.open("CONNECT", "/", headers, false)).await.expect("a stream");
    let response = match within("a response", response).await {
        Ok(response) => response,
        Err(error) => return format!("reset: {:?}", error.reason()),
    };
    let (head, mut body) = response.into_parts();
    if head.status != 200 {
        return head.status.as_u16().to_string();
    }
    send.send_data(Bytes::from_static(b"ping and more"), false).expect("a stream");
    let mut echo = Vec::new();
    while echo.len() < 13 {
        let data = within("an echo", body.data()).await.expect("an echo").expect("an echo");
        body.flow_control().release_capacity(data.len()).expect("a stream");
        echo.extend_from_slice(&data);
    }
    // The end of one side reaches the other, and comes back.
    send.send_data(Bytes::new(), true).expect("a stream");
    let end = loop {
        match within("the end", body.data()).await {
            None => break "end",
            Some(Ok(data)) if data.is_empty() => {}
            Some(Ok(_)) => break "more",
            Some(Err(_)) => break "reset",
        }
    };
    format!("{}: {} {end}", head.status.as_u16(), String::from_utf8_lossy(&echo))
}

#[tokio::test]
async fn connect_ends_here() {
    let echo = Peer::start(Conduct::Echo).await;
    let mut told = Vec::new();
    for program in [proxy::envoy(), proxy::program()] {
        let (proxy, address) = start(program, ENDS, &[cluster("echo", &[echo.port()])]).await;
        let mut seen = Vec::new();
        for how in [How::H1, How::H2, How::H2Bytestream] {
            seen.push(format!("{how:?}: {}", tunnel(address, how).await));
        }
        proxy.wait_stat("cluster.echo.upstream_cx_active", |active| active == 0).await;
        seen.push(proxy.stat("http.web.downstream_cx_upgrades_total").await.to_string());
        told.push(seen);
    }
    assert_eq!(told[1], told[0], "not the same as with Envoy");
    assert_eq!(told[1][0], "H1: 200 upgrade -: ping and more");
    assert_eq!(told[1][1], "H2: 200: ping and more end");
}

#[tokio::test]
async fn half_of_a_tunnel_may_end_first() {
    let peer = Peer::start(Conduct::ReverseAtEnd).await;
    let (_proxy, address) = start(proxy::program(), ENDS, &[cluster("echo", &[peer.port()])]).await;
    let mut client = Client::connect(address).await;
    client.send("CONNECT inside:443 HTTP/1.1\r\nhost: inside:443\r\n\r\nabc").await;
    assert_eq!(client.head().await.status, 200);
    client.stream().shutdown().await.expect("half a connection");
    assert_eq!(within("the rest", client.rest()).await, b"cba");
}

#[tokio::test]
async fn connect_is_passed_on() {
    let echo = Peer::start(Conduct::Echo).await;
    for inner in [proxy::envoy(), proxy::program()] {
        let (_inner, inside) = start(inner.clone(), ENDS, &[cluster("echo", &[echo.port()])]).await;
        for (options, version) in [("", "h1"), (HTTP2_CONNECT, "h2")] {
            let mut told = Vec::new();
            for outer in [proxy::envoy(), proxy::program()] {
                let pass = "{ match: { connect_matcher: {} }, route: { cluster: inside } }";
                let next = cluster_with("inside", &[inside.port()], options);
                let (_outer, address) = start(outer, pass, &[next]).await;
                let mut seen = Vec::new();
                for how in [How::H1, How::H2] {
                    seen.push(format!("{how:?}: {}", tunnel(address, how).await));
                }
                told.push(seen);
            }
            assert_eq!(told[1][0], "H1: 200 upgrade -: ping and more", "by {version} to {inner:?}");
            assert!(told[1][1].starts_with("H2: 200: ping and more"), "by {version} to {inner:?}: {told:?}");
            assert_eq!(told[1][0], told[0][0], "by {version} to {inner:?}");
        }
    }
}

/// A server of one protocol that HTTP/1.1 is switched to; it echoes.
async fn switching_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let asked = head.starts_with("get /chat http/1.1\r\n")
                    && head.contains("\r\nupgrade: websocket\r\n")
                    && head.contains("\r\nconnection: upgrade\r\n");
                let answer = match asked {
                    true => "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
                    false => "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
                };
                drop(stream.write_all(answer.as_bytes()).await);
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    address
}

async fn websocket_h1(address: SocketAddr) -> String {
    let mut client = Client::connect(address).await;
    client.send("GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    echo_h1(client, "GET").await
}

async fn websocket_h2(address: SocketAddr) -> String {
    let client = h2c::Client::connect(address).await.authority("a");
    let protocol = [(":protocol", "websocket")];
    let (response, mut send) =
        within("a stream", client.open("CONNECT", "/chat", &protocol, false)).await.expect("a stream");
    let response = match within("a response", response).await {
        Ok(response) => response,
        Err(error) => return format!("reset: {:?}", error.reason()),
    };
    let (head, mut body) = response.into_parts();
    if head.status != 200 {
        return head.status.as_u16().to_string();
    }
    send.send_data(Bytes::from_static(b"ping and more"), false).expect("a stream");
    let mut echo = Vec::new();
    while echo.len() < 13 {
        let data = within("an echo", body.data()).await.expect("an echo").expect("an echo");
        echo.extend_from_slice(&data);
    }
    format!("{} {:?}: {}", head.status, head.headers.get("upgrade"), String::from_utf8_lossy(&echo))
}

#[tokio::test]
async fn protocols_are_switched_between_all_versions() {
    let server = switching_server().await;
    let all = "{ match: { prefix: / }, route: { cluster: next } }";
    for inner in [proxy::envoy(), proxy::program()] {
        let (_inner, inside) = start(inner.clone(), all, &[cluster("next", &[server.port()])]).await;
        for options in ["", HTTP2_CONNECT] {
            for outer in [proxy::envoy(), proxy::program()] {
                let next = cluster_with("next", &[inside.port()], options);
                let (_outer, address) = start(outer.clone(), all, &[next]).await;
                let case = format!("{outer:?} by {options:?} to {inner:?}");
                assert_eq!(websocket_h1(address).await, "101 upgrade websocket: ping and more", "{case}");
                assert_eq!(websocket_h2(address).await, "200 OK None: ping and more", "{case}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_enabled_is_refused() {
    let route = "{ match: { connect_matcher: {} }, route: { cluster: echo, \
                 upgrade_configs: [{ upgrade_type: CONNECT, enabled: false }] } }";
    let all = "{ match: { prefix: / }, route: { cluster: echo } }";
    let echo = Peer::start(Conduct::Echo).await;
    let mut told = Vec::new();
    for program in [proxy::envoy(), proxy::program()] {
        let mut seen = Vec::new();
        for route in [route, all] {
            let (_proxy, address) = start(program.clone(), route, &[cluster("echo", &[echo.port()])]).await;
            for how in [How::H1, How::H2] {
                seen.push(format!("{how:?}: {}", tunnel(address, how).await));
            }
        }
        told.push(seen);
    }
    assert_eq!(told[1], told[0], "not the same as with Envoy");
}

#[tokio::test]
async fn the_body_of_a_post_may_go_on_as_bytes() {
    let route = "{ match: { prefix: / }, route: { cluster: reverse, \
                 upgrade_configs: [{ upgrade_type: CONNECT, connect_config: { allow_post: true } }] } }";
    let peer = Peer::start(Conduct::ReverseAtEnd).await;
    let mut told = Vec::new();
    for program in [proxy::envoy(), proxy::program()] {
        let (proxy, address) = start(program, route, &[cluster("reverse", &[peer.port()])]).await;
        let mut seen = Vec::new();
        let response = Client::connect(address).await.request("POST", "/any", &[], b"abcdef").await;
        let framing = (response.header("content-length"), response.header("transfer-encoding"));
        seen.push(format!("h1: {} {framing:?} {}", response.status, response.text()));
        let response = h2c::Client::connect(address).await.request("POST", "/any", &[], b"abcdef").await;
        seen.push(format!("h2: {} {}", response.status, response.text()));
        proxy.wait_stat("cluster.reverse.upstream_cx_active", |active| active == 0).await;
        seen.push(proxy.stat("http.web.downstream_cx_upgrades_total").await.to_string());
        seen.push(proxy.stat("cluster.reverse.upstream_rq_200").await.to_string());
        told.push(seen);
    }
    assert_eq!(told[1], told[0], "not the same as with Envoy");
    assert_eq!(told[1][1], "h2: 200 fedcba");
}

#[tokio::test]
async fn a_proxy_header_goes_before_what_comes_by_connect() {
    let route = "{ match: { connect_matcher: {} }, route: { cluster: echo, upgrade_configs: [{ upgrade_type: CONNECT, \
                 connect_config: { proxy_protocol_config: { version: V1 } } }] } }";
    let echo = Peer::start(Conduct::Echo).await;
    for program in [proxy::envoy(), proxy::program()] {
        let (_proxy, address) = start(program, route, &[cluster("echo", &[echo.port()])]).await;
        let mut client = Client::connect(address).await;
        client.send("CONNECT inside:443 HTTP/1.1\r\nhost: inside:443\r\n\r\n").await;
        assert_eq!(client.head().await.status, 200);
        client.send("ping").await;
        let all = String::from_utf8(client.until(b"\r\nping").await).expect("text");
        let words: Vec<_> = all.split_whitespace().collect();
        let ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1", _, port, "ping"] = words[..] else { panic!("{all}") };
        assert_eq!(port, address.port().to_string());
    }
}

#[tokio::test]
async fn upgrades_pass_through_filters_of_their_own() {
    let says = |which: &str| {
        format!(
            "{{ name: says, typed_config: {{ '@type': \
             type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {{ \
             response_mutations: [{{ append: {{ header: {{ key: x-chain, value: {which} }} }} }}] }} }} }}, "
        )
    };
    let router = "{ name: envoy.filters.http.router, typed_config: { '@type': \
                  type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }";
    let server = switching_server().await;
    let options = format!(
        "{}, upgrade_configs: [{{ upgrade_type: websocket, filters: [{}{router}] }}, {{ upgrade_type: other }}]",
        routes("{ match: { prefix: / }, route: { cluster: next } }"),
        says("upgrade"),
    );
    let manager = http("web", &options).replacen("http_filters: [", &format!("http_filters: [{}", says("plain")), 1);
    let bootstrap = bootstrap(&[listener("web", &[chain(&manager, "")], "")], &[cluster("next", &[server.port()])]);
    for program in [proxy::envoy(), proxy::program()] {
        let proxy = Proxy::start_with(&bootstrap, Settings { program, ..Settings::default() }).await;
        let address = proxy.listener("web").await;
        for (path, protocol, status, passes) in [
            ("/chat", "websocket", 101, "upgrade"),
            ("/chat", "WebSocket", 101, "upgrade"),
            ("/chat", "other", 400, "plain"),
        ] {
            let mut client = Client::connect(address).await;
            client
                .send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: {protocol}\r\n\r\n"))
                .await;
            let head = client.head().await;
            assert_eq!((head.status, head.header("x-chain")), (status, Some(passes)), "{protocol}");
        }
        let plain = Client::connect(address).await.get("/").await;
        assert_eq!(plain.header("x-chain"), Some("plain"));
    }
}
