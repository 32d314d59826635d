//! PROXY protocol headers towards endpoints: who is told what, and which connections are shared.

use std::net::SocketAddr;
use std::path::PathBuf;

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster_with, http, listener, routes, tcp};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn wrapped(config: &str, inner: &str) -> String {
    format!(
        ", transport_socket: {{ name: envoy.transport_sockets.upstream_proxy_protocol, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, \
         config: {{ {config} }}, transport_socket: {inner} }} }}"
    )
}

const RAW: &str = "{ name: envoy.transport_sockets.raw_buffer, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }";

fn reading(more: &str) -> String {
    format!(
        ", listener_filters: [{{ name: proxy, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol{more} }} }}]"
    )
}

/// What the first bytes of a connection through the proxy are.
async fn first_bytes(version: &str, send: &[u8]) -> (Vec<u8>, SocketAddr, SocketAddr) {
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = endpoint.local_addr().unwrap().port();
    let clusters = [cluster_with("end", &[port], &wrapped(version, RAW))];
    let proxy = Proxy::start(&bootstrap(&[listener("tcp", &[chain(&tcp("end"), "")], "")], &clusters)).await;
    let address = proxy.listener("tcp").await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let local = client.local_addr().unwrap();
    client.write_all(send).await.unwrap();
    client.shutdown().await.unwrap();
    let (mut accepted, _) = within("the connection", endpoint.accept()).await.unwrap();
    let mut all = Vec::new();
    within("all bytes", accepted.read_to_end(&mut all)).await.unwrap();
    (all, local, address)
}

#[tokio::test]
async fn both_versions_name_the_client() {
    let (bytes, client, proxy) = first_bytes("version: V1", b"hello").await;
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\nhello", client.port(), proxy.port());
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    let (bytes, client, proxy) = first_bytes("version: V2", b"hello").await;
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
    expected.extend_from_slice(&client.port().to_be_bytes());
    expected.extend_from_slice(&proxy.port().to_be_bytes());
    expected.extend_from_slice(b"hello");
    assert_eq!(bytes, expected);
}

#[tokio::test]
async fn addresses_and_tlvs_pass_through() {
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = endpoint.local_addr().unwrap().port();
    let config = "version: V2, pass_through_tlvs: { match_type: INCLUDE, tlv_type: [225] }, \
        added_tlvs: [{ type: 230, value: YWRkZWQ= }]";
    let clusters = [cluster_with("end", &[port], &wrapped(config, RAW))];
    let filters = reading(", pass_through_tlvs: {}");
    let proxy = Proxy::start(&bootstrap(&[listener("tcp", &[chain(&tcp("end"), "")], &filters)], &clusters)).await;
    let mut client = TcpStream::connect(proxy.listener("tcp").await).await.unwrap();
    let head = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1a\x0a\0\0\x01\x0a\0\0\x02\0\x05\0\x50";
    let sent = [&head[..], b"\xe1\0\x04kept\xe2\0\x04gone", b"hello"].concat();
    client.write_all(&sent).await.unwrap();
    let (mut accepted, _) = within("the connection", endpoint.accept()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut all = Vec::new();
    within("all bytes", accepted.read_to_end(&mut all)).await.unwrap();
    let head = &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1b\x0a\0\0\x01\x0a\0\0\x02\0\x05\0\x50"[..];
    assert_eq!(&all[..28], head);
    assert_eq!(all[28..], *b"\xe6\0\x05added\xe1\0\x04kepthello");
}

/// TLVs that a TCP proxy adds, by what becomes of those that came, and by what the cluster lets through: the headers that an
/// endpoint gets from clients without a header, with one, and with one that has TLVs.
async fn merged(program: PathBuf) -> Vec<String> {
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = endpoint.local_addr().unwrap().port();
    let own = "{ type: 2, value: dHdv }, { type: 5, format_string: { text_format_source: { \
        inline_string: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%' } } }, { type: 6, format_string: { text_format_source: { \
        inline_string: '%REQUESTED_SERVER_NAME%' } } }, { type: 4, value: Zm91cg== }";
    let policies = ["ADD_IF_ABSENT", "OVERWRITE_BY_TYPE_IF_EXISTS_OR_ADD", "APPEND_IF_EXISTS_OR_ADD"];
    let clusters = [
        ("all", "version: V2, pass_through_tlvs: {}"),
        ("some", "version: V2, pass_through_tlvs: { match_type: INCLUDE, tlv_type: [2, 5] }"),
        ("none", "version: V2"),
        ("added", "version: V2, pass_through_tlvs: {}, added_tlvs: [{ type: 2, value: bWluZQ== }]"),
        ("v1", "version: V1"),
    ];
    let filters = reading(", allow_requests_without_proxy_protocol: true, pass_through_tlvs: {}");
    let mut listeners = Vec::new();
    for (cluster, _) in clusters {
        for policy in policies {
            let fields =
                format!("cluster: {cluster}, proxy_protocol_tlv_merge_policy: {policy}, proxy_protocol_tlvs: [{own}]");
            listeners.push((format!("{cluster}-{policy}"), config::tcp_with(&fields)));
        }
    }
    let yaml: Vec<String> =
        listeners.iter().map(|(name, proxy)| listener(name, &[chain(proxy, "")], &filters)).collect();
    let clusters = clusters.map(|(name, config)| cluster_with(name, &[port], &wrapped(config, RAW)));
    let proxy = Proxy::start_with(&bootstrap(&yaml, &clusters), Settings { program, ..Settings::default() }).await;
    let head = |tlvs: &[u8]| {
        let length = u16::try_from(12 + tlvs.len()).unwrap().to_be_bytes();
        let head = b"\r\n\r\n\0\r\nQUIT\n\x21\x11";
        [head, &length[..], b"\x0a\0\0\x01\x0a\0\0\x02\0\x05\0\x50", tlvs].concat()
    };
    let came = [Vec::new(), head(b""), head(b"\x02\0\x02in\x03\0\x05three\x02\0\x04more")];
    let mut seen = Vec::new();
    for (name, _) in &listeners {
        let address = proxy.listener(name).await;
        for (index, came) in came.iter().enumerate() {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(&[came, &b"hello"[..]].concat()).await.unwrap();
            let (mut accepted, _) = within("the connection", endpoint.accept()).await.unwrap();
            client.shutdown().await.unwrap();
            let mut all = Vec::new();
            within("all bytes", accepted.read_to_end(&mut all)).await.unwrap();
            // Without a header the ports are those of this run.
            let text = String::from_utf8_lossy(&all).replace(&address.port().to_string(), "PORT");
            let text = text.replace(&client.local_addr().unwrap().port().to_string(), "CLIENT");
            let shown = if index > 0 || name.starts_with("v1") { text } else { format!("{:?}", all.get(28..)) };
            seen.push(format!("{name} {index}: {shown:?}"));
        }
    }
    seen
}

#[tokio::test]
async fn a_tcp_proxy_adds_tlvs_as_envoy_does() {
    let seen = merged(proxy::program()).await;
    assert!(seen[0].starts_with("all-ADD_IF_ABSENT 0: "), "{}", seen[0]);
    assert_eq!(seen, merged(proxy::envoy()).await);
}

/// A proxy of our own that reads the headers and passes requests on to `port`, saying whom it believes to be the client.
async fn behind(port: u16) -> Proxy {
    let routes = routes(&all_to("end"));
    let manager = http("web", &format!("{routes}, use_remote_address: true"));
    let clusters = [config::cluster("end", &[port])];
    Proxy::start(&bootstrap(&[listener("web", &[chain(&manager, "")], &reading(""))], &clusters)).await
}

#[tokio::test]
async fn requests_of_different_clients_never_share_a_connection() {
    let upstream = Upstream::start("end").await;
    let behind = behind(upstream.port()).await;
    let next = behind.listener("web").await.port();
    let clusters = [cluster_with("next", &[next], &wrapped("version: V2", RAW))];
    let filters = reading(", allow_requests_without_proxy_protocol: true");
    let front = listener("front", &[chain(&http("front", &routes(&all_to("next"))), "")], &filters);
    let proxy = Proxy::start(&bootstrap(&[front], &clusters)).await;
    let address = proxy.listener("front").await;
    let ask = async |client: &mut h1::Client| {
        assert_eq!(client.get("/").await.status, 200);
        upstream.seen().last().unwrap().header("x-forwarded-for").unwrap_or_default().to_owned()
    };
    for number in 1..=3_u8 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("PROXY TCP4 10.0.0.{number} 10.1.0.1 4000 80\r\n").as_bytes()).await.unwrap();
        let mut client = h1::Client::over(Box::new(stream));
        for _ in 0..3 {
            let seen = ask(&mut client).await;
            assert!(seen.ends_with(&format!("10.0.0.{number}")), "{number}: {seen}");
        }
    }
    proxy.stat_is("cluster.next.upstream_cx_total", 3).await;
    proxy.stat_is("cluster.next.upstream_rq_total", 9).await;
}

/// HAProxy on a Unix socket, which answers each request with the client that the PROXY header names.
async fn haproxy(directory: &std::path::Path) -> (tokio::process::Child, std::path::PathBuf) {
    let (socket, config) = (directory.join("haproxy.sock"), directory.join("haproxy.cfg"));
    let text = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
         frontend front\n bind unix@{} accept-proxy\n \
         http-request return status 200 content-type text/plain lf-string \"%[src]:%[src_port]\"\n",
        socket.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = tokio::process::Command::new("haproxy");
    command.args(["-db", "-q", "-f"]).arg(&config).kill_on_drop(true);
    let child = command.spawn().unwrap_or_else(|error| panic!("this test needs `haproxy`: {error}"));
    eventually("haproxy listens", async || {
        tokio::net::UnixStream::connect(&socket).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    (child, socket)
}

#[tokio::test]
async fn haproxy_believes_the_header() {
    let directory = tempfile::tempdir().unwrap();
    let (_haproxy, socket) = haproxy(directory.path()).await;
    for version in ["version: V1", "version: V2"] {
        let cluster = format!(
            "{{ name: haproxy, type: STATIC, connect_timeout: 5s, load_assignment: {{ cluster_name: haproxy, endpoints: \
             [{{ lb_endpoints: [{{ endpoint: {{ address: {{ pipe: {{ path: '{}' }} }} }} }}] }}] }}{} }}",
            socket.display(),
            wrapped(version, RAW)
        );
        let listeners = [
            listener("tcp", &[chain(&tcp("haproxy"), "")], ""),
            listener("web", &[chain(&http("web", &routes(&all_to("haproxy"))), "")], ""),
        ];
        let proxy = Proxy::start(&bootstrap(&listeners, &[cluster])).await;
        for name in ["tcp", "web"] {
            let stream = TcpStream::connect(proxy.listener(name).await).await.unwrap();
            let client = stream.local_addr().unwrap().to_string();
            let seen = h1::Client::over(Box::new(stream)).get("/").await.text();
            assert_eq!(seen, client, "{version} {name}");
        }
    }
}
