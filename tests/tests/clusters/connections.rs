//! Connections to endpoints: how many there are, for whom, and to which address.

use std::net::SocketAddr;

use control_plane_mock::MockControlPlane;
use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{self, HTTP2, all_to, bootstrap, chain, cluster_with, http, listener, resource, routes};
use outrigger_tests::{Proxy, Upstream, eventually, h1, h2c, proxy, within};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

async fn start(cluster: String, more: &str) -> (Proxy, SocketAddr) {
    let manager = http("web", &format!("{}{more}", routes(&all_to("end"))));
    let proxy = Proxy::start(&bootstrap(&[listener("web", &[chain(&manager, "")], "")], &[cluster])).await;
    let address = proxy.listener("web").await;
    (proxy, address)
}

/// An address where nobody answers: the queue of those who wait to be accepted is full.
fn black_hole() -> (Socket, Vec<Socket>, u16) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = (0..4).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address);
        socket
    });
    let waiting = waiting.collect();
    (listener, waiting, address.as_socket().unwrap().port())
}

#[tokio::test]
async fn the_next_address_does_not_wait_for_one_that_says_nothing() {
    let (_listener, _waiting, silent) = black_hole();
    let upstream = Upstream::start("end").await;
    let address = |port: u16| format!("{{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}");
    let cluster = format!(
        "{{ name: end, type: STATIC, connect_timeout: 10s, load_assignment: {{ cluster_name: end, endpoints: [{{ \
         lb_endpoints: [{{ endpoint: {{ address: {}, additional_addresses: [{{ address: {} }}] }} }}] }}] }} }}",
        address(silent),
        address(upstream.port())
    );
    let (proxy, front) = start(cluster, "").await;
    assert_eq!(h1::get(front, "/").await.served_by(), "end");
    proxy.stat_is("cluster.end.upstream_cx_connect_timeout", 0).await;
}

#[tokio::test]
async fn each_downstream_connection_may_have_its_own() {
    let upstream = Upstream::start("end").await;
    let own = ", connection_pool_per_downstream_connection: true";
    let (proxy, front) = start(cluster_with("end", &[upstream.port()], own), "").await;
    let (mut one, mut two) = (h1::Client::connect(front).await, h1::Client::connect(front).await);
    for _ in 0..3 {
        assert_eq!(one.get("/").await.status, 200);
        assert_eq!(two.get("/").await.status, 200);
    }
    proxy.stat_is("cluster.end.upstream_cx_total", 2).await;
}

#[tokio::test]
async fn connections_are_made_before_they_are_needed() {
    let upstream = Upstream::start("end").await;
    let policy = ", preconnect_policy: { per_upstream_preconnect_ratio: 2.0 }";
    let (proxy, front) = start(cluster_with("end", &[upstream.port()], policy), "").await;
    assert_eq!(h1::get(front, "/").await.status, 200);
    proxy.wait_stat("cluster.end.upstream_cx_total", |count| count == 2).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = h1::Client::connect(front).await;
        client.send(h1::request_bytes("GET", "/", &[("x-reply", "gate")], b"")).await;
        clients.push(client);
    }
    upstream.wait("both at the gate", |counts| counts.active == 2).await;
    upstream.open_gate();
    for client in &mut clients {
        assert_eq!(client.response("GET").await.status, 200);
    }
}

/// An endpoint that speaks HTTP/2, takes one request at a time on a connection, and counts connections.
async fn one_at_a_time() -> (u16, tokio::sync::watch::Receiver<usize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (opened, count) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            opened.send_modify(|count| *count += 1);
            let mut count = opened.subscribe();
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(1);
                let mut connection = builder.handshake::<_, bytes::Bytes>(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut count = count.clone();
                    tokio::spawn(async move {
                        // Nobody is answered before all three are here.
                        count.wait_for(|count| *count >= 3).await.unwrap();
                        respond.send_response(http_response(), true).unwrap();
                    });
                }
                count.mark_unchanged();
            });
        }
    });
    (port, count)
}

fn http_response() -> ::http::Response<()> {
    ::http::Response::new(())
}

/// Of our own: Envoy gives the first connection all requests that come before its settings, and they fail.
#[tokio::test]
async fn http2_has_as_many_connections_as_its_endpoint_s_limit_on_streams_asks_for() {
    if proxy::tests_envoy() {
        return;
    }
    let (port, mut count) = one_at_a_time().await;
    let (proxy, front) = start(cluster_with("end", &[port], HTTP2), "").await;
    let client = h2c::Client::connect(front).await;
    let all = within("all three", async { tokio::join!(client.get("/a"), client.get("/b"), client.get("/c")) }).await;
    assert_eq!([all.0.status, all.1.status, all.2.status], [200; 3]);
    assert!(*count.borrow_and_update() >= 3);
    proxy.wait_stat("cluster.end.upstream_cx_http2_total", |seen| seen >= 3).await;
}

#[tokio::test]
async fn names_of_requests_are_checked_and_keep_connections_apart() {
    let authority = Authority::new();
    let upstream = Upstream::tls("secure", authority.issue(&["a.test", "b.test"]).server(&[])).await;
    let more = format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
         common_tls_context: {{ validation_context: {{ trusted_ca: {{ inline_string: \"{}\" }} }} }} }} }}, \
         typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ \
         '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
         upstream_http_protocol_options: {{ auto_sni: true, auto_san_validation: true }}, \
         explicit_http_config: {{ http_protocol_options: {{}} }} }} }}",
        authority.pem().replace('\n', "\\n")
    );
    let (proxy, front) = start(cluster_with("end", &[upstream.port()], &more), "").await;
    let get = async |host: &str| h1::Client::connect(front).await.request("GET", "/", &[("host", host)], b"").await;
    for _ in 0..2 {
        assert_eq!(get("a.test").await.status, 200);
        assert_eq!(get("b.test:8443").await.status, 200);
    }
    proxy.stat_is("cluster.end.upstream_cx_total", 2).await;
    assert_eq!(get("c.test").await.status, 503);
    proxy.stat_is("cluster.end.ssl.fail_verify_san", 1).await;
}

#[tokio::test]
async fn original_destinations_stand_in_headers_and_metadata() {
    let upstream = Upstream::start("end").await;
    let by_header = format!(
        "{{ name: end, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 2s, \
         original_dst_lb_config: {{ use_http_header: true, http_header_name: x-to, upstream_port_override: {} }} }}",
        upstream.port()
    );
    let (_proxy, front) = start(by_header, "").await;
    let mut client = h1::Client::connect(front).await;
    let found = client.request("GET", "/", &[("x-to", "127.0.0.1:1")], b"").await;
    assert_eq!((found.status, found.served_by()), (200, "end".to_owned()));
    assert_eq!(client.request("GET", "/", &[("x-to", "nowhere")], b"").await.status, 503);
    let by_metadata = "{ name: end, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 2s, \
        original_dst_lb_config: { metadata_key: { key: routing, path: [{ key: to }, { key: address }] } } }";
    let filter = format!(
        "{{ name: metadata, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config, \
         metadata: [{{ metadata_namespace: routing, value: {{ to: {{ address: '127.0.0.1:{}' }} }} }}] }} }}",
        upstream.port()
    );
    let manager =
        http("web", &routes(&all_to("end"))).replace("http_filters: [", &format!("http_filters: [{filter}, "));
    let web = listener("web", &[chain(&manager, "")], "");
    let proxy = Proxy::start(&bootstrap(&[web], &[by_metadata.to_owned()])).await;
    assert_eq!(h1::get(proxy.listener("web").await, "/").await.served_by(), "end");
}

/// Of our own: with Envoy they end by the idle timeout.
#[tokio::test]
async fn connections_for_one_client_end_with_it() {
    if proxy::tests_envoy() {
        return;
    }
    let upstream = Upstream::start("end").await;
    let own = ", connection_pool_per_downstream_connection: true";
    let (_proxy, front) = start(cluster_with("end", &[upstream.port()], own), "").await;
    let mut client = h1::Client::over(Box::new(TcpStream::connect(front).await.unwrap()));
    assert_eq!(client.get("/").await.status, 200);
    drop(client);
    eventually("the connection is closed", async || match upstream.counts().open {
        0 => Ok(()),
        open => Err(open.to_string()),
    })
    .await;
}

#[tokio::test]
async fn a_removed_endpoint_finishes_what_it_has_begun() {
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let control = MockControlPlane::start().await;
    let set = |kind: &str, body: &str| {
        control.set_yaml(&config::resources(&[resource(kind, body)])).unwrap();
    };
    let manager = http("web", &routes(&all_to("end")));
    set("lds", &listener("web", &[chain(&manager, "")], ""));
    set("cds", &config::eds_cluster("end"));
    set("eds", &config::endpoints("end", &[one.port()]));
    let proxy = Proxy::start(&config::ads_bootstrap(config::Xds::AdsDelta, control.address().port())).await;
    let front = proxy.listener("web").await;
    let mut waiting = h1::Client::connect(front).await;
    assert_eq!(waiting.get("/").await.served_by(), "one");
    let mut idle = h1::Client::connect(front).await;
    waiting.send(h1::request_bytes("GET", "/", &[("x-reply", "gate")], b"")).await;
    one.wait("the request", |counts| counts.active == 1).await;
    assert_eq!(idle.get("/").await.served_by(), "one");
    one.wait("both connections", |counts| counts.open == 2).await;
    set("eds", &config::endpoints("end", &[two.port()]));
    // The idle connection goes at once, the other one with its request.
    proxy.wait_stat("cluster.end.membership_change", |count| count >= 2).await;
    eventually("requests go to the new endpoint", async || match idle.get("/").await.served_by() {
        by if by == "two" => Ok(()),
        by => Err(by),
    })
    .await;
    one.wait("the idle connection ends", |counts| counts.open == 1).await;
    one.open_gate();
    assert_eq!(waiting.response("GET").await.served_by(), "one");
    one.wait("the last connection ends", |counts| counts.open == 0).await;
}

#[tokio::test]
async fn all_connections_may_be_given_up_when_endpoints_change() {
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    let control = MockControlPlane::start().await;
    let set = |kind: &str, body: &str| {
        control.set_yaml(&config::resources(&[resource(kind, body)])).unwrap();
    };
    for close in [true, false] {
        let cluster = config::eds_cluster("end").replace(
            "name: end,",
            &format!("name: end, common_lb_config: {{ close_connections_on_host_set_change: {close} }},"),
        );
        set("lds", &listener("web", &[chain(&http("web", &routes(&all_to("end"))), "")], ""));
        set("cds", &cluster);
        set("eds", &config::endpoints("end", &[one.port()]));
        let proxy = Proxy::start(&config::ads_bootstrap(config::Xds::AdsDelta, control.address().port())).await;
        let front = proxy.listener("web").await;
        assert_eq!(h1::get(front, "/").await.served_by(), "one");
        one.wait("a connection", |counts| counts.open == 1).await;
        set("eds", &config::endpoints("end", &[one.port(), two.port()]));
        proxy.wait_stat("cluster.end.membership_total", |count| count == 2).await;
        let connections = one.counts().connections;
        // Who answers from the new endpoint has heard of the change, and has dealt with its connections.
        for by in ["two", "one"] {
            eventually("both serve", async || match h1::get(front, "/").await.served_by() {
                served if served == by => Ok(()),
                served => Err(served),
            })
            .await;
        }
        assert_eq!(one.counts().connections > connections, close, "{close}");
        drop(proxy);
        one.wait("the end", |counts| counts.open == 0).await;
    }
}
