//! TCP through the proxy: what goes in comes out, ends pass on one by one, and each connection finds its cluster.

use std::net::SocketAddr;

use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::{
    self, bootstrap, chain, cluster, cluster_with, http, http2_cluster, listener, routes, tcp, tcp_with,
};
use outrigger_tests::tcp::{ClosedPort, Conduct, Peer};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, h2c, proxy, reply, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A proxy whose listener `tcp` leads to this port.
async fn relay(port: u16) -> (Proxy, SocketAddr) {
    let listener = listener("tcp", &[chain(&tcp("peer"), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster("peer", &[port])])).await;
    let address = proxy.listener("tcp").await;
    (proxy, address)
}

async fn connect(address: SocketAddr) -> TcpStream {
    within("connecting", TcpStream::connect(address)).await.unwrap()
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    within("the end", stream.read_to_end(&mut all)).await.unwrap();
    all
}

#[tokio::test]
async fn bytes_come_back_from_an_echo() {
    let peer = Peer::start(Conduct::Echo).await;
    let (proxy, address) = relay(peer.port()).await;
    let mut stream = connect(address).await;
    for word in ["one", "two", "three"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut answer = vec![0; word.len()];
        within("the echo", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, word.as_bytes());
    }
    proxy.stat_is("tcp.tcp.downstream_cx_total", 1).await;
    proxy.stat_is("cluster.peer.upstream_cx_active", 1).await;
    drop(stream);
    proxy.wait_stat("cluster.peer.upstream_cx_active", |count| count == 0).await;
    proxy.stat_is("tcp.tcp.downstream_cx_rx_bytes_total", 11).await;
    proxy.stat_is("tcp.tcp.downstream_cx_tx_bytes_total", 11).await;
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let peer = Peer::start(Conduct::ReverseAtEnd).await;
    let (proxy, address) = relay(peer.port()).await;
    let mut stream = connect(address).await;
    stream.write_all(b"backwards").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, b"sdrawkcab");
    proxy.wait_stat("cluster.peer.upstream_cx_active", |count| count == 0).await;
}

#[tokio::test]
async fn a_peer_that_speaks_first_is_heard() {
    let peer = Peer::start(Conduct::Greet(b"220 hello".to_vec())).await;
    let (_proxy, address) = relay(peer.port()).await;
    let mut stream = connect(address).await;
    let mut greeting = vec![0; 9];
    within("the greeting", stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(greeting, b"220 hello");
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, b"");
}

#[tokio::test]
async fn a_big_transfer_arrives_whole_both_ways_at_once() {
    const SIZE: usize = 64 << 20;
    let peer = Peer::start(Conduct::Echo).await;
    let (_proxy, address) = relay(peer.port()).await;
    let (mut read, mut write) = connect(address).await.into_split();
    let sent = reply::pattern(SIZE);
    let expected = reply::sum(&sent);
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut received = Vec::with_capacity(SIZE);
    within("all of it", read.read_to_end(&mut received)).await.unwrap();
    writer.await.unwrap();
    assert_eq!(received.len(), SIZE);
    assert_eq!(reply::sum(&received), expected);
}

#[tokio::test]
async fn many_connections_at_once_keep_their_bytes_apart() {
    let peer = Peer::start(Conduct::Echo).await;
    let listener = listener("tcp", &[chain(&tcp("peer"), "")], "");
    let settings = Settings { concurrency: 2, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster("peer", &[peer.port()])]), settings).await;
    let address = proxy.listener("tcp").await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100_usize {
        tasks.spawn(async move {
            let mut stream = connect(address).await;
            let sent = format!("connection {number} ").repeat(number + 1).into_bytes();
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
            assert!(read_to_end(&mut stream).await == sent);
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    proxy.stat_is("cluster.peer.upstream_cx_total", 100).await;
}

#[tokio::test]
async fn a_peer_that_is_not_there_closes_the_client() {
    let port = ClosedPort::take();
    let (proxy, address) = relay(port.port()).await;
    let mut stream = connect(address).await;
    let mut byte = [0; 1];
    let read = within("the end", stream.read(&mut byte)).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    proxy.stat_is("cluster.peer.upstream_cx_connect_fail", 1).await;
}

#[tokio::test]
async fn a_peer_that_closes_or_resets_closes_the_client() {
    for conduct in [Conduct::CloseAtOnce, Conduct::Reset] {
        let peer = Peer::start(conduct.clone()).await;
        let (proxy, address) = relay(peer.port()).await;
        let mut stream = connect(address).await;
        drop(stream.write_all(b"x").await);
        let mut byte = [0; 1];
        let read = within("the end", stream.read(&mut byte)).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{conduct:?}: {read:?}");
        drop(stream);
        proxy.wait_stat("tcp.tcp.downstream_cx_total", |count| count == 1).await;
        proxy.wait_stat("cluster.peer.upstream_cx_active", |count| count == 0).await;
    }
}

#[tokio::test]
async fn an_idle_connection_ends_after_its_timeout() {
    let peer = Peer::start(Conduct::Echo).await;
    let filter = tcp_with("cluster: peer, idle_timeout: 3s");
    let listener = listener("tcp", &[chain(&filter, "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster("peer", &[peer.port()])])).await;
    let mut stream = connect(proxy.listener("tcp").await).await;
    let began = std::time::Instant::now();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, b"x");
    assert!(began.elapsed() >= std::time::Duration::from_millis(2500), "{:?}", began.elapsed());
    proxy.stat_is("tcp.tcp.idle_timeout", 1).await;
}

#[tokio::test]
async fn weighted_clusters_share_connections() {
    let (a, b) = (Peer::start(Conduct::Greet(b"a".to_vec())).await, Peer::start(Conduct::Greet(b"b".to_vec())).await);
    let never = Peer::start(Conduct::Greet(b"c".to_vec())).await;
    let filter = tcp_with("weighted_clusters: { clusters: [{ name: a, weight: 3 }, { name: b, weight: 1 }] }");
    let listener = listener("tcp", &[chain(&filter, "")], "");
    let clusters = [cluster("a", &[a.port()]), cluster("b", &[b.port()]), cluster("c", &[never.port()])];
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let address = proxy.listener("tcp").await;
    for _ in 0..200 {
        let mut stream = connect(address).await;
        let mut name = [0; 1];
        within("a name", stream.read_exact(&mut name)).await.unwrap();
    }
    assert_eq!(a.accepted() + b.accepted(), 200);
    assert!((110..=190).contains(&a.accepted()), "about three in four: {}", a.accepted());
    assert_eq!(never.accepted(), 0);
}

#[tokio::test]
async fn the_proxy_protocol_tells_the_client_and_is_told_on() {
    let upstream = Upstream::start("echo").await;
    let manager = http("web", &format!("{}, use_remote_address: true", routes(&config::all_to("echo"))));
    let filters = ", listener_filters: [{ name: envoy.filters.listener.proxy_protocol, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol } }]";
    let listener = listener("web", &[chain(&manager, "")], filters);
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster("echo", &[upstream.port()])])).await;
    let web = proxy.listener("web").await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    let mut client = h1::Client::connect(web).await;
    client.send(format!("PROXY TCP4 203.0.113.9 198.51.100.1 5555 80\r\n{request}")).await;
    let response = client.response("GET").await;
    assert_eq!(response.upstream_header("x-forwarded-for").as_deref(), Some("203.0.113.9"));

    let mut client = h1::Client::connect(web).await;
    client.send(format!("PROXY TCP6 2001:db8::7 2001:db8::1 5555 80\r\n{request}")).await;
    let response = client.response("GET").await;
    assert_eq!(response.upstream_header("x-forwarded-for").as_deref(), Some("2001:db8::7"));

    // Version 2: signature, PROXY over TCP/IPv4, 12 bytes of addresses.
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend([203, 0, 113, 10, 198, 51, 100, 1, 0x15, 0xb3, 0, 80]);
    bytes.extend_from_slice(request.as_bytes());
    let mut client = h1::Client::connect(web).await;
    client.send(bytes).await;
    let response = client.response("GET").await;
    assert_eq!(response.upstream_header("x-forwarded-for").as_deref(), Some("203.0.113.10"));

    // Without it the connection is refused.
    let mut client = h1::Client::connect(web).await;
    client.send(request).await;
    assert!(client.try_response("GET").await.is_err());
}

fn downstream_tls(name: &str, alpn: &str, more: &str) -> String {
    format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{ alpn_protocols: [{alpn}], tls_certificates: [{{ \
         certificate_chain: {{ filename: '$dir/{name}.crt' }}, private_key: {{ filename: '$dir/{name}.key' }} }}]{more} }} }} }}"
    )
}

fn upstream_tls(sni: &str, more: &str) -> String {
    format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: {sni}, \
         common_tls_context: {{ validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }}, \
         match_typed_subject_alt_names: [{{ san_type: DNS, matcher: {{ exact: {sni} }} }}] }}{more} }} }} }}"
    )
}

/// A directory with the authority's certificate and one for each name.
fn certificates_for(authority: &Authority, names: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    for name in names {
        authority.issue(&[name]).write(directory.path(), name);
    }
    directory
}

const SNIFF_TLS: &str = ", listener_filters: [{ name: envoy.filters.listener.tls_inspector, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]";

#[tokio::test]
async fn filter_chains_are_chosen_by_server_name_and_alpn_by_the_client() {
    let authority = Authority::new();
    let directory = certificates_for(&authority, &["one.example", "wild.example", "rest.example"]);
    let answer = |who: &str| {
        let route = format!(
            "{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: {who} }} }} }}"
        );
        http(who, &routes(&route))
    };
    let one = ", filter_chain_match: { server_names: [one.example], transport_protocol: tls }";
    let wild = ", filter_chain_match: { server_names: ['*.wild.example', wild.example] }";
    let plain = ", filter_chain_match: { transport_protocol: raw_buffer }";
    let chains = [
        chain(&answer("one"), &format!("{}{one}", downstream_tls("one.example", "h2, http/1.1", ""))),
        chain(&answer("wild"), &format!("{}{wild}", downstream_tls("wild.example", "http/1.1", ""))),
        chain(&answer("plain"), plain),
    ];
    let rest = chain(&answer("rest"), &downstream_tls("rest.example", "http/1.1", ""));
    let listener = listener("tls", &chains, &format!("{SNIFF_TLS}, default_filter_chain: {rest}"));
    let proxy = Proxy::start_in(directory, &bootstrap(&[listener], &[]), Settings::default()).await;
    let address = proxy.listener("tls").await;

    let both = authority.client(&["h2", "http/1.1"], None);
    let stream = certificates::connect(address, "one.example", both.clone()).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let client = h2c::Client::over(Box::new(stream), "https").await;
    assert_eq!(client.get("/").await.text(), "one");

    let old = authority.client(&["http/1.1"], None);
    let stream = certificates::connect(address, "one.example", old).await.unwrap();
    assert_eq!(h1::Client::over(Box::new(stream)).get("/").await.text(), "one");

    let stream = certificates::connect(address, "wild.example", both.clone()).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    assert_eq!(h1::Client::over(Box::new(stream)).get("/").await.text(), "wild");

    let stream = certificates::connect(address, "rest.example", both).await.unwrap();
    assert_eq!(h1::Client::over(Box::new(stream)).get("/").await.text(), "rest");

    assert_eq!(h1::get(address, "/").await.text(), "plain");
    proxy.stat_is("listener_manager.total_listeners_active", 1).await;
    let handshakes = proxy.stat(&format!("listener.127.0.0.1_{}.ssl.handshake", address.port())).await;
    assert!(handshakes == 4 || handshakes == 0, "{handshakes}");
}

#[tokio::test]
async fn tls_to_the_upstream_is_verified() {
    let authority = Authority::new();
    let directory = certificates_for(&authority, &[]);
    let good = Upstream::tls("good", authority.issue(&["good.example"]).server(&["h2", "http/1.1"])).await;
    let stranger = Upstream::tls("stranger", Authority::new().issue(&["good.example"]).server(&["http/1.1"])).await;
    let misnamed = Upstream::tls("misnamed", authority.issue(&["other.example"]).server(&["http/1.1"])).await;
    let tls = upstream_tls("good.example", "");
    let clusters = [
        cluster_with("good", &[good.port()], &tls),
        cluster_with(
            "good-h2",
            &[good.port()],
            &format!("{}{}", upstream_tls("good.example", ", alpn_protocols: [h2]"), config::HTTP2),
        ),
        cluster_with("stranger", &[stranger.port()], &tls),
        cluster_with("misnamed", &[misnamed.port()], &tls),
        cluster_with("plain", &[good.port()], ""),
    ];
    let to = ["good-h2", "good", "stranger", "misnamed"]
        .map(|name| format!("{{ match: {{ path: /{name} }}, route: {{ cluster: {name} }} }}"))
        .join(", ");
    let listener = listener("web", &[chain(&http("web", &routes(&to)), "")], "");
    let proxy = Proxy::start_in(directory, &bootstrap(&[listener], &clusters), Settings::default()).await;
    let web = proxy.listener("web").await;
    let response = h1::get(web, "/good").await;
    assert_eq!((response.served_by().as_str(), response.json()["version"].as_str()), ("good", Some("1.1")));
    assert_eq!(h1::get(web, "/good-h2").await.json()["version"], "2");
    for name in ["stranger", "misnamed"] {
        let response = h1::get(web, &format!("/{name}")).await;
        assert_eq!(response.status, 503, "{name}");
        assert!(response.text().starts_with("upstream connect error"), "{name}: {}", response.text());
        proxy.stat_is(&format!("cluster.{name}.upstream_cx_connect_fail"), 1).await;
    }
    proxy.stat_is("cluster.misnamed.ssl.fail_verify_san", 1).await;
    proxy.stat_is("cluster.good.ssl.handshake", 1).await;
}

#[tokio::test]
async fn mutual_tls_works_with_envoy_on_either_side() {
    let authority = Authority::new();
    let upstream = Upstream::start("echo").await;
    for (client_side, server_side) in [(proxy::program(), proxy::envoy()), (proxy::envoy(), proxy::program())] {
        let label = format!("{} -> {}", client_side.display(), server_side.display());
        let names = ["server.example", "client.example"];
        let (far, near) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for directory in [&far, &near] {
            std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
            for name in names {
                authority.issue(&[name]).write(directory.path(), name);
            }
        }
        // The context's own field stands beside `common_tls_context`.
        let demand = ", validation_context: { trusted_ca: { filename: $dir/ca.pem }, \
            match_typed_subject_alt_names: [{ san_type: DNS, matcher: { exact: client.example } }] }";
        let tls = downstream_tls("server.example", "h2, http/1.1", demand)
            .replace("DownstreamTlsContext,", "DownstreamTlsContext, require_client_certificate: true,");
        let chains = [chain(&http("far", &routes(&config::all_to("echo"))), &tls)];
        let settings = Settings { program: server_side, ..Settings::default() };
        let server_bootstrap = bootstrap(&[listener("far", &chains, "")], &[cluster("echo", &[upstream.port()])]);
        let server = Proxy::start_in(far, &server_bootstrap, settings).await;
        let far = server.listener("far").await;

        let identity = ", tls_certificates: [{ certificate_chain: { filename: $dir/client.example.crt }, \
            private_key: { filename: $dir/client.example.key } }]";
        let h1_cluster = cluster_with("h1", &[far.port()], &upstream_tls("server.example", identity));
        let identity2 = format!("{identity}, alpn_protocols: [h2]");
        let h2_tls = upstream_tls("server.example", &identity2);
        let h2_cluster = cluster_with("h2", &[far.port()], &format!("{h2_tls}{}", config::HTTP2));
        let anonymous = cluster_with("anonymous", &[far.port()], &upstream_tls("server.example", ""));
        let to = ["h1", "h2", "anonymous"]
            .map(|name| format!("{{ match: {{ path: /{name} }}, route: {{ cluster: {name} }} }}"))
            .join(", ");
        let near_listener = listener("near", &[chain(&http("near", &routes(&to)), "")], "");
        let settings = Settings { program: client_side, ..Settings::default() };
        let client_bootstrap = bootstrap(&[near_listener], &[h1_cluster, h2_cluster, anonymous]);
        let client = Proxy::start_in(near, &client_bootstrap, settings).await;
        let near = client.listener("near").await;
        let body = reply::pattern(300_000);
        for path in ["/h1", "/h2"] {
            let mut connection = h1::Client::connect(near).await;
            let response = connection.request("POST", path, &[("x-reply", "bytes=300000")], &body).await;
            assert!(response.body == body, "{label} {path}: {}", response.status);
        }
        server.stat_is("http.far.downstream_cx_http2_total", 1).await;
        let response = h1::get(near, "/anonymous").await;
        assert_eq!(response.status, 503, "{label}: a client without a certificate is refused");
        assert_eq!(upstream.counts().active, 0, "{label}");
    }
}

#[tokio::test]
async fn tcp_proxies_tls_through_and_ends_it() {
    let authority = Authority::new();
    let directory = certificates_for(&authority, &["ended.example"]);
    let secure = Upstream::tls("secure", authority.issue(&["secure.example"]).server(&["http/1.1"])).await;
    let plain = Peer::start(Conduct::Echo).await;
    let chains = [
        chain(&tcp("secure"), ", filter_chain_match: { server_names: [secure.example] }"),
        chain(
            &tcp("plain"),
            &format!(
                "{}, filter_chain_match: {{ server_names: [ended.example] }}",
                downstream_tls("ended.example", "", "")
            ),
        ),
    ];
    let listener = listener("tcp", &chains, SNIFF_TLS);
    let clusters = [cluster("secure", &[secure.port()]), cluster("plain", &[plain.port()])];
    let proxy = Proxy::start_in(directory, &bootstrap(&[listener], &clusters), Settings::default()).await;
    let address = proxy.listener("tcp").await;

    let stream = certificates::connect(address, "secure.example", authority.client(&[], None)).await.unwrap();
    assert_eq!(h1::Client::over(Box::new(stream)).get("/").await.served_by(), "secure");

    let mut stream = certificates::connect(address, "ended.example", authority.client(&[], None)).await.unwrap();
    let sent = reply::pattern(3 << 20);
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut received = vec![0; sent.len()];
    let both = async { tokio::join!(write.write_all(&sent), read.read_exact(&mut received)) };
    let (written, got) = within("the echo", both).await;
    written.unwrap();
    got.unwrap();
    assert!(received == sent);

    // No chain matches: closed without a word.
    let refused = certificates::connect(address, "other.example", authority.client(&[], None)).await;
    assert!(refused.is_err());
    eventually("it is counted", async || {
        let count = proxy.stat(&format!("listener.127.0.0.1_{}.no_filter_chain_match", address.port())).await;
        let zero = proxy.stat("listener.127.0.0.1_0.no_filter_chain_match").await;
        if count + zero == 1 { Ok(()) } else { Err(format!("{count} {zero}")) }
    })
    .await;
}

#[tokio::test]
async fn http_and_tcp_share_a_listener_by_protocol() {
    let upstream = Upstream::start("echo").await;
    let peer = Peer::start(Conduct::Echo).await;
    let chains = [
        chain(
            &http("web", &routes(&config::all_to("h2"))),
            ", filter_chain_match: { application_protocols: [http/1.1, h2c] }",
        ),
        chain(&tcp("peer"), ""),
    ];
    let filters = ", listener_filters: [{ name: envoy.filters.listener.http_inspector, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector } }], \
        listener_filters_timeout: 60s, continue_on_listener_filters_timeout: true";
    let listener = listener("both", &chains, filters);
    let clusters = [http2_cluster("h2", &[upstream.port()]), cluster("peer", &[peer.port()])];
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let address = proxy.listener("both").await;
    assert_eq!(h1::get(address, "/").await.served_by(), "echo");
    assert_eq!(h2c::Client::connect(address).await.get("/").await.served_by(), "echo");
    let mut stream = connect(address).await;
    stream.write_all(b"\0\x01\x02 no http").await.unwrap();
    let mut answer = [0; 11];
    within("the echo", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"\0\x01\x02 no http");
}
