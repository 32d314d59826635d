//! Connections and requests that go through a listener inside the process.

use std::net::SocketAddr;
use std::path::PathBuf;

use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{all_to, chain, cluster, http, listener, routes, tcp_with};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Upstream, h1, h2c, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{
    RAW, SIDES, UPSTREAM, chain_of, internal, leading_to, line, log, object, passing, set_objects, start, start_in,
};

const OBJECTS: &str = "once=%FILTER_STATE(a.once:PLAIN)% on=%FILTER_STATE(a.transitive:PLAIN)% \
    alone=%FILTER_STATE(a.alone:PLAIN)%";

/// Through two listeners, one after the other: how far objects and metadata go.
async fn chained(program: PathBuf) -> Vec<String> {
    let peer = Peer::start(Conduct::Echo).await;
    let set = set_objects(&[
        object("a.once", "envoy.string", "ONCE", "1"),
        object("a.transitive", "envoy.hashable_string", "TRANSITIVE", "%DOWNSTREAM_LOCAL_PORT%"),
        object("a.alone", "envoy.string", "NONE", "3"),
    ]);
    let proxied = |name: &str, to: &str| {
        tcp_with(&format!(
            "cluster: {to}{}",
            log(
                name,
                &format!("{SIDES} {OBJECTS} %DYNAMIC_METADATA(of.host)% %DYNAMIC_METADATA(of.cluster)% {UPSTREAM}")
            )
        ))
    };
    let listeners = [
        listener("out", &[chain_of(&[set, proxied("out", "to-first")])], ""),
        internal("first", &[chain(&proxied("first", "to-second"), "")], ""),
        internal("second", &[chain(&proxied("second", "peer"), "")], ", stat_prefix: mine"),
    ];
    let of_endpoint = ", metadata: { filter_metadata: { of.host: { text: a, number: 15, list: [1, true, {}] } } }";
    let of_cluster = ", metadata: { filter_metadata: { of.cluster: { name: here } } }";
    let passed = "{ kind: { host: {} }, name: of.host }, { kind: { cluster: {} }, name: of.cluster }, \
        { kind: { host: {} }, name: nowhere }";
    let clusters = [
        leading_to("to-first", "first", "one", of_endpoint, &format!("{of_cluster}{}", passing(passed, RAW))),
        leading_to("to-second", "second", "", "", &passing("", RAW)),
        cluster("peer", &[peer.port()]),
    ];
    let proxy = start(program, &listeners, &clusters).await;
    let address = proxy.listener("out").await;
    let mut seen = Vec::new();
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    let mut heard = [0; 4];
    stream.write_all(b"ping").await.expect("a connection");
    within("an echo", stream.read_exact(&mut heard)).await.expect("an echo");
    for name in ["listener.envoy_internal_first", "listener.mine"] {
        proxy.stat_is(&format!("{name}.downstream_cx_active"), 1).await;
    }
    drop(stream);
    let names = [(address.port().to_string(), "OUT"), (peer.port().to_string(), "PEER")];
    for name in ["out", "first", "second"] {
        seen.push(line(&proxy, name, 1, &names).await);
    }
    let page = proxy.admin("/listeners").await.text();
    seen.extend(page.lines().filter(|line| line.contains("envoy://")).map(str::to_owned));
    let page = proxy.admin("/listeners?format=json").await.json();
    let of = |status: &serde_json::Value| status["local_address"]["envoy_internal_address"].to_string();
    seen.extend(page["listener_statuses"].as_array().into_iter().flatten().map(of));
    let page = proxy.admin("/clusters").await.text();
    seen.extend(page.lines().filter(|line| line.contains("envoy://") && line.contains("cx_total")).map(str::to_owned));
    seen.push(proxy.stat("cluster.to-first.internal_upstream.no_metadata").await.to_string());
    seen
}

#[tokio::test]
async fn objects_and_metadata_go_as_far_as_with_envoy() {
    let seen = chained(proxy::program()).await;
    assert_eq!(seen, chained(proxy::envoy()).await);
}

/// Requests over HTTP/1.1 and HTTP/2 into a listener that speaks HTTP. Connections are told apart by objects that say so.
async fn requests(program: PathBuf) -> Vec<String> {
    let upstream = Upstream::start("up").await;
    let set = |factory: &str| {
        format!(
            "{{ name: set, typed_config: {{ '@type': \
             type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config, on_request_headers: [{}] }} }}",
            object("a.tenant", factory, "ONCE", "%REQ(X-TENANT)%")
        )
    };
    let manager = |name: &str, factory: &str| {
        let fields =
            format!("{}{}", routes(&all_to("inside")), log(name, &format!("%RESPONSE_CODE% %PROTOCOL% {UPSTREAM}")));
        http(name, &fields).replace("http_filters: [", &format!("http_filters: [{}, ", set(factory)))
    };
    let inner_log = log("inner", "%PROTOCOL% %REQ(X-TENANT)% %FILTER_STATE(a.tenant:PLAIN)%");
    let inner = http("inner", &format!("{}{inner_log}", routes(&all_to("up"))));
    let listeners = [
        listener("apart", &[chain(&manager("apart", "envoy.hashable_string"), "")], ""),
        listener("together", &[chain(&manager("together", "envoy.string"), "")], ""),
        internal("inner", &[chain(&inner, "")], ""),
    ];
    let clusters = [leading_to("inside", "inner", "", "", &passing("", RAW)), cluster("up", &[upstream.port()])];
    let proxy = start(program, &listeners, &clusters).await;
    let mut seen = Vec::new();
    let mut logged = 0;
    for (name, total) in [("apart", 2), ("together", 3)] {
        let address = proxy.listener(name).await;
        for tenant in ["a", "b", "a", "b"] {
            let mut client = h1::Client::connect(address).await;
            let response = client.request("GET", "/", &[("x-tenant", tenant)], b"").await;
            logged += 1;
            // The connection may serve the next one.
            proxy.stat_is("cluster.inside.upstream_rq_active", 0).await;
            seen.push(format!("{name} {tenant}: {} {}", response.status, line(&proxy, "inner", logged, &[]).await));
        }
        seen.push(line(&proxy, name, 4, &[]).await);
        // What the objects are tells whether a connection serves both.
        proxy.stat_is("cluster.inside.upstream_cx_total", total).await;
    }
    let client = h2c::Client::connect(proxy.listener("together").await).await;
    let response = client.request("POST", "/large", &[], &[b'x'; 300_000]).await;
    seen.push(format!("{} {}", response.status, line(&proxy, "inner", logged + 1, &[]).await));
    seen
}

#[tokio::test]
async fn requests_go_into_a_listener_inside_as_with_envoy() {
    let seen = requests(proxy::program()).await;
    assert_eq!(seen, requests(proxy::envoy()).await);
}

/// TLS between two ends of the same process.
async fn secured(program: PathBuf, authority: &Authority) -> Vec<String> {
    let peer = Peer::start(Conduct::ReverseAtEnd).await;
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).expect("a file");
    authority.issue(&["inner.example"]).write(directory.path(), "server");
    let inner_log = log("inner", "%REQUESTED_SERVER_NAME% %DYNAMIC_METADATA(of.host)%");
    let inner = tcp_with(&format!("cluster: peer{inner_log}"));
    let server = ", transport_socket: { name: tls, typed_config: { '@type': \
        type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: { \
        tls_certificates: [{ certificate_chain: { filename: $dir/server.crt }, \
        private_key: { filename: $dir/server.key } }] } } }";
    let client = "{ name: tls, typed_config: { '@type': \
        type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: inner.example, \
        common_tls_context: { validation_context: { trusted_ca: { filename: $dir/ca.pem }, \
        match_typed_subject_alt_names: [{ san_type: DNS, matcher: { exact: inner.example } }] } } } }";
    let listeners = [
        listener("out", &[chain(&tcp_with(&format!("cluster: inside{}", log("out", "%UPSTREAM_HOST%"))), "")], ""),
        internal(
            "inner",
            &[chain(&inner, server)],
            ", listener_filters: [{ name: t, typed_config: { \
             '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]",
        ),
    ];
    let of_endpoint = ", metadata: { filter_metadata: { of.host: { text: a } } }";
    let clusters = [
        leading_to("inside", "inner", "", of_endpoint, &passing("{ kind: { host: {} }, name: of.host }", client)),
        cluster("peer", &[peer.port()]),
    ];
    let proxy = start_in(program, directory, &listeners, &clusters).await;
    let mut stream = TcpStream::connect(proxy.listener("out").await).await.expect("a listener");
    let sent: Vec<u8> = (0..400_000_u32).map(|index| (index % 251) as u8).collect();
    let (mut reading, mut writing) = stream.split();
    let mut heard = Vec::new();
    let send = async {
        writing.write_all(&sent).await.expect("a connection");
        writing.shutdown().await.expect("a connection");
    };
    let both = async { tokio::join!(send, reading.read_to_end(&mut heard)).1.expect("an end") };
    within("all of it", both).await;
    heard.reverse();
    vec![
        (heard == sent).to_string(),
        line(&proxy, "out", 1, &[]).await,
        line(&proxy, "inner", 1, &[]).await,
        proxy.stat("listener.envoy_internal_inner.ssl.handshake").await.to_string(),
        proxy.stat("cluster.inside.ssl.handshake").await.to_string(),
    ]
}

#[tokio::test]
async fn tls_goes_into_a_listener_inside_as_with_envoy() {
    let authority = Authority::new();
    let seen = secured(proxy::program(), &authority).await;
    assert_eq!(seen[0], "true");
    assert_eq!(seen, secured(proxy::envoy(), &authority).await);
}

/// The filter chain of a listener inside is chosen by what came along.
async fn chosen(program: PathBuf) -> Vec<String> {
    let peers = [Peer::start(Conduct::Greet(b"a".to_vec())).await, Peer::start(Conduct::Greet(b"b".to_vec())).await];
    let to = |name: &str| {
        format!(
            "{{ action: {{ name: a, typed_config: {{ '@type': type.googleapis.com/google.protobuf.StringValue, \
             value: {name} }} }} }}"
        )
    };
    let tree = format!(
        ", filter_chain_matcher: {{ matcher_tree: {{ input: {{ name: i, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.FilterStateInput, key: a.tenant }} }}, \
         exact_match_map: {{ map: {{ first: {}, second: {} }} }} }} }}",
        to("a"),
        to("b"),
    );
    let chain_to = |name: &str| format!("{{ name: {name}, filters: [{}] }}", tcp_with(&format!("cluster: {name}")));
    let names = ["first", "second", "third"];
    let mut listeners = vec![internal("inner", &[chain_to("a"), chain_to("b")], &tree)];
    let mut clusters = vec![cluster("a", &[peers[0].port()]), cluster("b", &[peers[1].port()])];
    for name in names {
        let set = set_objects(&[object("a.tenant", "envoy.string", "ONCE", name)]);
        listeners.push(listener(name, &[chain_of(&[set, tcp_with("cluster: inside")])], ""));
    }
    clusters.push(leading_to("inside", "inner", "", "", &passing("", RAW)));
    let proxy = start(program, &listeners, &clusters).await;
    let mut seen = Vec::new();
    for name in names {
        let heard = connected(proxy.listener(name).await).await;
        seen.push(format!("{name}: {}", String::from_utf8_lossy(&heard)));
    }
    proxy.stat_is("listener.envoy_internal_inner.no_filter_chain_match", 1).await;
    seen
}

#[tokio::test]
async fn what_came_along_chooses_the_filter_chain_as_with_envoy() {
    let seen = chosen(proxy::program()).await;
    assert_eq!(seen, ["first: a", "second: b", "third: "]);
    assert_eq!(seen, chosen(proxy::envoy()).await);
}

async fn connected(address: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    let mut heard = Vec::new();
    // Whether it ends or is reset is the same to a client that has sent nothing.
    let _ = stream.shutdown().await;
    let _ = within("an end", stream.read_to_end(&mut heard)).await;
    heard
}

/// Nobody listens under the name of the endpoint.
async fn missing(program: PathBuf) -> (Proxy, Vec<String>) {
    let format = "%RESPONSE_CODE% host=%UPSTREAM_HOST% up=%UPSTREAM_REMOTE_ADDRESS% flags=%RESPONSE_FLAGS%";
    let of = |name: &str| log(name, format);
    let manager = http("requests", &format!("{}{}", routes(&all_to("nowhere")), of("requests")));
    let listeners = [
        listener("bytes", &[chain(&tcp_with(&format!("cluster: nowhere{}", of("bytes"))), "")], ""),
        listener("requests", &[chain(&manager, "")], ""),
        internal("other", &[chain(&tcp_with("cluster: nowhere"), "")], ""),
    ];
    // A listener with a socket is none of those.
    let clusters = [leading_to("nowhere", "bytes", "", "", "")];
    let proxy = start(program, &listeners, &clusters).await;
    let mut seen = vec![format!("{:?}", connected(proxy.listener("bytes").await).await)];
    let mut client = h1::Client::connect(proxy.listener("requests").await).await;
    seen.push(client.request("GET", "/", &[], b"").await.status.to_string());
    for name in ["bytes", "requests"] {
        seen.push(line(&proxy, name, 1, &[]).await);
    }
    for stat in ["upstream_cx_total", "upstream_cx_connect_fail"] {
        seen.push(format!("{stat}: {}", proxy.stat(&format!("cluster.nowhere.{stat}")).await));
    }
    (proxy, seen)
}

#[tokio::test]
async fn a_listener_that_is_not_there_is_an_endpoint_that_fails() {
    let (_proxy, seen) = missing(proxy::program()).await;
    let (_proxy, expected) = missing(proxy::envoy()).await;
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn the_log_says_which_listener_is_not_there() {
    // Envoy says "Invalid argument".
    let reason = log("out", "%UPSTREAM_TRANSPORT_FAILURE_REASON%");
    let listeners = [listener("out", &[chain(&tcp_with(&format!("cluster: nowhere{reason}")), "")], "")];
    let clusters = [leading_to("nowhere", "missing", "x", "", "")];
    let proxy = start(proxy::program(), &listeners, &clusters).await;
    connected(proxy.listener("out").await).await;
    assert_eq!(
        line(&proxy, "out", 1, &[]).await,
        "out: immediate_connect_error:_no_internal_listener_has_this_name|remote_address:envoy://missing/x"
    );
}
