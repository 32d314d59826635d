//! HTTP through a static configuration: both versions on both sides, and what may happen to one request.

use bytes::Bytes;
use outrigger_tests::config::{self, access_log, bootstrap, chain, cluster, http, http2_cluster, routes};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Response, Settings, Upstream, h1, h2c, reply, within};
use tokio::io::AsyncWriteExt;

const MEBIBYTE: usize = 1 << 20;

/// A proxy with one listener `web`: `/h1...` goes to an upstream of HTTP/1.1, `/h2...` to the same one by HTTP/2.
struct Mesh {
    proxy: Proxy,
    upstream: Upstream,
    web: std::net::SocketAddr,
}

impl Mesh {
    async fn start() -> Self {
        let upstream = Upstream::start("echo").await;
        let to = "{ match: { prefix: /h2 }, route: { cluster: by-h2 } }, { match: { prefix: /h1 }, route: { cluster: by-h1 } }";
        let manager = http("web", &format!("{}{}", routes(to), access_log("access.log")));
        let listener = config::listener("web", &[chain(&manager, "")], "");
        let clusters = [cluster("by-h1", &[upstream.port()]), http2_cluster("by-h2", &[upstream.port()])];
        let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
        let web = proxy.listener("web").await;
        Self { proxy, upstream, web }
    }

    /// Sends the same request by both versions to both kinds of upstream, and hands each response to `check`
    /// together with its pairing.
    async fn all_pairings(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        check: impl Fn(&str, &Response),
    ) {
        for upstream in ["/h1", "/h2"] {
            let target = format!("{upstream}{path}");
            let response = h1::Client::connect(self.web).await.request(method, &target, headers, body).await;
            check(&format!("h1 -> {upstream}"), &response);
            let response = h2c::Client::connect(self.web).await.request(method, &target, headers, body).await;
            check(&format!("h2 -> {upstream}"), &response);
        }
    }
}

/// A proxy with one listener `web` that sends everything by this route action to these clusters.
async fn one_route(action: &str, clusters: &[String]) -> (Proxy, std::net::SocketAddr) {
    let route = format!("{{ match: {{ prefix: / }}, route: {{ {action} }} }}");
    let manager = http("web", &format!("{}{}", routes(&route), access_log("access.log")));
    let proxy = Proxy::start(&bootstrap(&[config::listener("web", &[chain(&manager, "")], "")], clusters)).await;
    let web = proxy.listener("web").await;
    (proxy, web)
}

/// Code, flags and details of an access log line.
fn outcome(line: &str) -> (String, String, String) {
    let mut words = line.split_whitespace().map(str::to_owned);
    (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

#[tokio::test]
async fn a_small_request_passes_in_all_pairings() {
    let mesh = Mesh::start().await;
    mesh.all_pairings("GET", "/small?a=b", &[("x-mine", "yes")], b"", |pairing, response| {
        assert_eq!(response.status, 200, "{pairing}");
        let seen = response.json();
        assert_eq!(seen["method"], "GET", "{pairing}");
        assert_eq!(seen["target"], format!("{}/small?a=b", &pairing[6..]), "{pairing}");
        assert_eq!(seen["version"], if pairing.ends_with("/h2") { "2" } else { "1.1" }, "{pairing}");
        assert_eq!(seen["authority"], "example.com", "{pairing}");
        assert_eq!(response.upstream_header("x-mine").as_deref(), Some("yes"), "{pairing}");
        assert_eq!(response.upstream_header("x-forwarded-proto").as_deref(), Some("http"), "{pairing}");
        assert_eq!(response.upstream_header("x-request-id").map(|id| id.len()), Some(36), "{pairing}");
        assert_eq!(response.header("server"), Some("envoy"), "{pairing}");
        assert!(response.header("x-envoy-upstream-service-time").is_some(), "{pairing}");
    })
    .await;
    mesh.proxy.wait_stat("http.web.downstream_rq_2xx", |count| count == 4).await;
    mesh.proxy.stat_is("cluster.by-h1.upstream_rq_200", 2).await;
    mesh.proxy.stat_is("cluster.by-h2.upstream_rq_200", 2).await;
    mesh.proxy.stat_is("http.web.downstream_cx_http1_total", 2).await;
    mesh.proxy.stat_is("http.web.downstream_cx_http2_total", 2).await;
}

#[tokio::test]
async fn a_mebibyte_passes_both_ways_in_all_pairings() {
    let mesh = Mesh::start().await;
    let body = reply::pattern(MEBIBYTE);
    mesh.all_pairings("POST", "/up", &[], &body, |pairing, response| {
        assert_eq!(response.json()["body_bytes"], MEBIBYTE, "{pairing}");
        assert_eq!(response.json()["body_sum"], reply::sum(&body).to_string(), "{pairing}");
    })
    .await;
    mesh.all_pairings("POST", "/both", &[("x-reply", "bytes=1048576")], &body, |pairing, response| {
        assert!(response.body == body, "{pairing}: {} bytes", response.body.len());
    })
    .await;
    mesh.all_pairings("GET", "/down", &[("x-reply", "bytes=1048576 chunked")], b"", |pairing, response| {
        assert!(response.body == body, "{pairing}: {} bytes", response.body.len());
    })
    .await;
}

#[tokio::test]
async fn a_chunked_request_body_passes() {
    let mesh = Mesh::start().await;
    for upstream in ["/h1", "/h2"] {
        let mut client = h1::Client::connect(mesh.web).await;
        let head = format!("POST {upstream} HTTP/1.1\r\nhost: example.com\r\ntransfer-encoding: chunked\r\n\r\n");
        client.send(head).await;
        client.send("5;extension=1\r\nhello\r\n").await;
        client.send("6\r\n world\r\n0\r\n\r\n").await;
        let response = client.response("POST").await;
        assert_eq!(response.json()["body"], "hello world", "{upstream}");
        let length = response.upstream_header("content-length");
        assert_eq!(length, None, "{upstream}: nobody knows the length before the end");
    }
}

#[tokio::test]
async fn trailers_pass_between_http2_sides() {
    let mesh = Mesh::start().await;
    let client = h2c::Client::connect(mesh.web).await;
    let headers = [("x-reply", "trailers"), ("te", "trailers")];
    let response = client.try_request("POST", "/h2", &headers, b"body", &[("x-sum", "7")]).await.unwrap();
    assert_eq!(response.json()["trailers"][0][0], "x-sum");
    assert_eq!(response.json()["trailers"][0][1], "7");
    assert_eq!(response.trailer("x-trailer"), Some("after-the-body"));
    assert_eq!(response.trailer("x-checksum"), Some("42"));
    assert_eq!(response.upstream_header("te").as_deref(), Some("trailers"));

    let response = client.request("GET", "/h2", &[("x-reply", "trailers empty")], b"").await;
    assert_eq!(response.body, b"");
    assert_eq!(response.trailer("x-trailer"), Some("after-the-body"));

    // An HTTP/1.1 upstream sends trailers after its last chunk; by default they end there.
    let response = client.request("GET", "/h1", &[("x-reply", "trailers")], b"").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.trailers, []);
}

#[tokio::test]
async fn head_204_and_304_have_no_body_and_leave_the_connection_usable() {
    let mesh = Mesh::start().await;
    for upstream in ["/h1", "/h2"] {
        let mut client = h1::Client::connect(mesh.web).await;
        let response = client.request("HEAD", upstream, &[("x-reply", "bytes=1234")], b"").await;
        assert_eq!((response.status, response.header("content-length")), (200, Some("1234")), "{upstream}");
        for status in ["204", "304"] {
            let order = format!("status={status}");
            let response = client.request("GET", upstream, &[("x-reply", &order)], b"").await;
            assert_eq!(response.status.to_string(), status, "{upstream}");
            assert_eq!(response.header("transfer-encoding"), None, "{upstream} {status}");
        }
        assert_eq!(client.get(upstream).await.status, 200, "{upstream}: still in step");
    }
    let client = h2c::Client::connect(mesh.web).await;
    for upstream in ["/h1", "/h2"] {
        let response = client.request("HEAD", upstream, &[("x-reply", "bytes=1234")], b"").await;
        assert_eq!((response.status, response.header("content-length")), (200, Some("1234")), "{upstream}");
        assert_eq!(client.request("GET", upstream, &[("x-reply", "status=204")], b"").await.status, 204);
        assert_eq!(client.request("GET", upstream, &[("x-reply", "status=304")], b"").await.status, 304);
    }
    assert_eq!(mesh.upstream.counts().connections, 2, "one to each cluster: nothing broke an upstream connection");
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let mesh = Mesh::start().await;
    let mut client = h1::Client::connect(mesh.web).await;
    let mut upstream_connections = Vec::new();
    for number in 0..20 {
        let response = client.request("POST", "/h1", &[], format!("body {number}").as_bytes()).await;
        assert_eq!(response.json()["body"], format!("body {number}"));
        upstream_connections.push(response.json()["connection"].as_u64().unwrap());
    }
    assert_eq!(upstream_connections, [1; 20]);
    mesh.proxy.stat_is("http.web.downstream_cx_total", 1).await;
    mesh.proxy.stat_is("cluster.by-h1.upstream_cx_total", 1).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let mesh = Mesh::start().await;
    let mut client = h1::Client::connect(mesh.web).await;
    let mut burst = Vec::new();
    for number in 0..8 {
        let upstream = if number % 2 == 0 { "/h1" } else { "/h2" };
        let body = format!("body of {number}");
        burst.extend(h1::request_bytes("POST", &format!("{upstream}/{number}"), &[], body.as_bytes()));
    }
    client.send(burst).await;
    for number in 0..8 {
        let response = client.response("POST").await;
        assert_eq!(response.json()["body"], format!("body of {number}"));
    }
}

#[tokio::test]
async fn connection_close_is_honoured_and_http_1_0_closes() {
    let mesh = Mesh::start().await;
    let mut client = h1::Client::connect(mesh.web).await;
    let response = client.request("GET", "/h1", &[("connection", "close")], b"").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!(response.upstream_header("connection"), None);
    client.ended().await;

    let mut client = h1::Client::connect(mesh.web).await;
    client.send("GET /h1 HTTP/1.0\r\nhost: example.com\r\n\r\n").await;
    // Not spoken unless asked for: `accept_http_10` is off by default.
    let response = client.response("GET").await;
    assert_eq!(response.status, 426);
    client.ended().await;
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body() {
    let mesh = Mesh::start().await;
    for upstream in ["/h1", "/h2"] {
        let mut client = h1::Client::connect(mesh.web).await;
        let head = format!(
            "POST {upstream} HTTP/1.1\r\nhost: example.com\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n"
        );
        client.send(head).await;
        assert_eq!(client.head().await.status, 100, "{upstream}");
        client.send("body").await;
        let response = client.response("POST").await;
        assert_eq!((response.status, response.json()["body"].as_str()), (200, Some("body")), "{upstream}");
        assert_eq!(response.upstream_header("expect"), None, "{upstream}: answered by the proxy");
    }
}

#[tokio::test]
async fn a_request_body_streams_and_an_early_response_passes_before_its_end() {
    let mesh = Mesh::start().await;
    for upstream in ["/h1", "/h2"] {
        let mut client = h1::Client::connect(mesh.web).await;
        let head = format!(
            "POST {upstream} HTTP/1.1\r\nhost: example.com\r\nx-reply: early status=413\r\ncontent-length: 100000\r\n\r\n"
        );
        client.send(head).await;
        let response = client.response("POST").await;
        assert_eq!(response.status, 413, "{upstream}: the client has sent no byte of the body yet");
    }
    let client = h2c::Client::connect(mesh.web).await;
    for upstream in ["/h1", "/h2"] {
        let order = [("x-reply", "early status=413")];
        let (response, stream) = client.open("POST", upstream, &order, false).await.unwrap();
        let response = within("an early response", response).await.unwrap();
        assert_eq!(response.status(), 413, "{upstream}");
        drop(stream);
    }
}

#[tokio::test]
async fn a_response_streams_while_the_request_goes_on() {
    // Both directions at once over one stream, as bidirectional gRPC needs it.
    let mesh = Mesh::start().await;
    let client = h2c::Client::connect(mesh.web).await;
    let (response, mut stream) = client.open("POST", "/h2", &[("x-reply", "echo")], false).await.unwrap();
    let mut body = within("the response begins", response).await.unwrap().into_body();
    for word in ["first", "second", "third"] {
        stream.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
        let piece = within("the echo", body.data()).await.unwrap().unwrap();
        assert_eq!(piece, word.as_bytes(), "it came back before the next one was sent");
        body.flow_control().release_capacity(piece.len()).unwrap();
    }
    stream.send_data(Bytes::new(), true).unwrap();
    let rest = within("the end", body.data()).await;
    assert!(rest.is_none_or(|piece| piece.is_ok_and(|piece| piece.is_empty())), "nothing but the end");
}

#[tokio::test]
async fn no_route_is_404_without_a_body() {
    let mesh = Mesh::start().await;
    let response = h1::get(mesh.web, "/nowhere").await;
    assert_eq!((response.status, response.body.as_slice()), (404, b"".as_slice()));
    assert_eq!(response.header("server"), Some("envoy"));
    assert!(response.header("date").is_some());
    assert_eq!(response.header("content-length"), Some("0"));
    let lines = mesh.proxy.lines("access.log", 1).await;
    assert_eq!(outcome(&lines[0]), ("404".to_owned(), "NR".to_owned(), "route_not_found".to_owned()));
    mesh.proxy.stat_is("http.web.no_route", 1).await;
    mesh.proxy.stat_is("http.web.downstream_rq_4xx", 1).await;
}

#[tokio::test]
async fn an_unknown_cluster_is_503() {
    let (proxy, web) = one_route("cluster_header: x-to", &[cluster("known", &[1])]).await;
    let response = h1::Client::connect(web).await.request("GET", "/", &[("x-to", "unknown")], b"").await;
    assert_eq!((response.status, response.body.as_slice()), (503, b"".as_slice()));
    let lines = proxy.lines("access.log", 1).await;
    assert_eq!(outcome(&lines[0]), ("503".to_owned(), "NC".to_owned(), "cluster_not_found".to_owned()));
}

#[tokio::test]
async fn a_cluster_without_endpoints_is_503_uh() {
    let (proxy, web) = one_route("cluster: empty", &[cluster("empty", &[])]).await;
    let response = h1::get(web, "/").await;
    assert_eq!((response.status, response.text().as_str()), (503, "no healthy upstream"));
    assert_eq!(response.header("content-type"), Some("text/plain"));
    let lines = proxy.lines("access.log", 1).await;
    assert_eq!(outcome(&lines[0]), ("503".to_owned(), "UH".to_owned(), "no_healthy_upstream".to_owned()));
    proxy.stat_is("cluster.empty.upstream_cx_none_healthy", 1).await;
}

#[tokio::test]
async fn a_refused_connection_is_503_uf() {
    let port = ClosedPort::take();
    let (proxy, web) = one_route("cluster: gone", &[cluster("gone", &[port.port()])]).await;
    let response = h1::get(web, "/").await;
    assert_eq!(response.status, 503);
    let text = response.text();
    assert!(text.starts_with("upstream connect error or disconnect/reset before headers. "), "{text}");
    assert!(text.contains("reset reason: remote connection failure"), "{text}");
    let lines = proxy.lines("access.log", 1).await;
    let (code, flags, details) = outcome(&lines[0]);
    assert_eq!((code.as_str(), flags.as_str()), ("503", "UF"));
    assert!(details.starts_with("upstream_reset_before_response_started{remote_connection_failure"), "{details}");
    proxy.stat_is("cluster.gone.upstream_cx_connect_fail", 1).await;
    proxy.stat_is("cluster.gone.upstream_rq_503", 1).await;
}

#[tokio::test]
async fn an_upstream_that_closes_without_an_answer_is_503_uc() {
    let upstream = Upstream::start("rude").await;
    let clusters = [cluster("rude", &[upstream.port()])];
    let (proxy, web) = one_route("cluster: rude", &clusters).await;
    let response = h1::Client::connect(web).await.request("GET", "/", &[("x-reply", "reset")], b"").await;
    assert_eq!(response.status, 503);
    assert!(response.text().contains("reset reason: connection termination"), "{}", response.text());
    let lines = proxy.lines("access.log", 1).await;
    let (code, flags, details) = outcome(&lines[0]);
    assert_eq!((code.as_str(), flags.as_str()), ("503", "UC"));
    assert!(details.starts_with("upstream_reset_before_response_started{connection_termination"), "{details}");
}

#[tokio::test]
async fn an_upstream_that_resets_the_stream_is_503_ur() {
    let upstream = Upstream::start("rude").await;
    let (proxy, web) = one_route("cluster: rude", &[http2_cluster("rude", &[upstream.port()])]).await;
    let client = h2c::Client::connect(web).await;
    let response = client.request("GET", "/", &[("x-reply", "reset")], b"").await;
    assert_eq!(response.status, 503);
    assert!(response.text().contains("reset reason: remote reset"), "{}", response.text());
    let lines = proxy.lines("access.log", 1).await;
    let (code, flags, details) = outcome(&lines[0]);
    assert_eq!((code.as_str(), flags.as_str()), ("503", "UR"));
    assert!(details.starts_with("upstream_reset_before_response_started{remote_reset"), "{details}");
}

#[tokio::test]
async fn a_response_that_breaks_off_breaks_off_for_the_client() {
    let mesh = Mesh::start().await;
    for upstream in ["/h1", "/h2"] {
        let mut client = h1::Client::connect(mesh.web).await;
        let order = [("x-reply", "bytes=100000 half")];
        client.send(h1::request_bytes("GET", upstream, &order, b"")).await;
        let error = client.try_response("GET").await.expect_err("only half of it came");
        assert!(error.contains("body of 200"), "{upstream}: {error}");
        let client = h2c::Client::connect(mesh.web).await;
        client.try_request("GET", upstream, &order, b"", &[]).await.expect_err("only half of it came");
    }
    assert_eq!(h1::get(mesh.web, "/h1").await.status, 200);
}

#[tokio::test]
async fn a_slow_upstream_is_504_and_is_given_up() {
    let upstream = Upstream::start("slow").await;
    for (kind, clusters) in
        [("h1", cluster("slow", &[upstream.port()])), ("h2", http2_cluster("slow", &[upstream.port()]))]
    {
        let (proxy, web) = one_route("cluster: slow, timeout: 2s", &[clusters]).await;
        let response = h1::Client::connect(web).await.request("GET", "/", &[("x-reply", "hang")], b"").await;
        assert_eq!((response.status, response.text().as_str()), (504, "upstream request timeout"), "{kind}");
        let lines = proxy.lines("access.log", 1).await;
        let (code, flags, details) = outcome(&lines[0]);
        assert_eq!((code.as_str(), flags.as_str(), details.as_str()), ("504", "UT", "response_timeout"), "{kind}");
        proxy.stat_is("cluster.slow.upstream_rq_timeout", 1).await;
        upstream.wait("the request is given up", |counts| counts.active == 0).await;
    }
    upstream.wait("both are given up", |counts| counts.abandoned == 2).await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let mesh = Mesh::start().await;
    for upstream in ["/h1", "/h2"] {
        let abandoned = mesh.upstream.counts().abandoned;
        let mut client = h1::Client::connect(mesh.web).await;
        client.send(h1::request_bytes("GET", upstream, &[("x-reply", "hang")], b"")).await;
        mesh.upstream.wait("the request arrives", |counts| counts.active == 1).await;
        drop(client);
        mesh.upstream.wait("the request ends", |counts| counts.abandoned == abandoned + 1).await;

        let client = h2c::Client::connect(mesh.web).await;
        let (response, stream) = client.open("GET", upstream, &[("x-reply", "hang")], true).await.unwrap();
        mesh.upstream.wait("the request arrives", |counts| counts.active == 1).await;
        drop((response, stream));
        mesh.upstream.wait("the stream is reset", |counts| counts.abandoned == abandoned + 2).await;
        assert_eq!(client.get(upstream).await.status, 200, "the connection goes on");
    }
    let lines = mesh.proxy.lines("access.log", 6).await;
    let gone: Vec<_> = lines.iter().map(|line| (line, outcome(line))).filter(|(_, (code, ..))| code == "0").collect();
    assert_eq!(gone.len(), 4, "{lines:?}");
    for (line, (_, flags, details)) in gone {
        let expected =
            if line.contains("HTTP/2") { ("DR", "http2.remote_reset") } else { ("DC", "downstream_remote_disconnect") };
        assert_eq!((flags.as_str(), details.as_str()), expected, "{line}");
    }
}

#[tokio::test]
async fn errors_of_grpc_requests_have_the_shape_of_grpc() {
    let port = ClosedPort::take();
    let to = "{ match: { prefix: /gone }, route: { cluster: gone } }, \
              { match: { prefix: /empty }, route: { cluster: empty } }, \
              { match: { prefix: /slow }, route: { cluster: slow, timeout: 2s } }, \
              { match: { prefix: /said }, direct_response: { status: 403, body: { inline_string: 'go away' } } }";
    let slow = Upstream::start("slow").await;
    let clusters = [cluster("gone", &[port.port()]), cluster("empty", &[]), http2_cluster("slow", &[slow.port()])];
    let listener = config::listener("web", &[chain(&http("web", &routes(to)), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let client = h2c::Client::connect(proxy.listener("web").await).await;
    let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("x-reply", "hang")];
    for (target, status, message) in [
        ("/gone/Call", "14", "upstream connect error or disconnect/reset before headers."),
        ("/empty/Call", "14", "no healthy upstream"),
        ("/slow/Call", "14", "upstream request timeout"),
        ("/said/Call", "7", "go away"),
        ("/other/Call", "12", ""),
    ] {
        let response = client.request("POST", target, &headers, b"\0\0\0\0\0").await;
        assert_eq!(response.status, 200, "{target}");
        assert_eq!(response.header("content-type"), Some("application/grpc"), "{target}");
        assert_eq!(response.header("grpc-status"), Some(status), "{target}");
        assert!(response.header("grpc-message").unwrap_or_default().starts_with(message), "{target}: {response:?}");
        assert_eq!(response.body, b"", "{target}");
    }
}

#[tokio::test]
async fn an_idle_upstream_connection_that_closed_is_not_used_again() {
    let mesh = Mesh::start().await;
    let mut client = h1::Client::connect(mesh.web).await;
    for number in 1..=10 {
        let response = client.request("GET", "/h1", &[("x-reply", "close")], b"").await;
        assert_eq!((response.status, response.json()["connection"].as_u64()), (200, Some(number)));
        assert_eq!(response.header("connection"), None, "what closes upstream is nothing to the client");
    }
}

#[tokio::test]
async fn requests_spread_over_endpoints_and_workers() {
    let (a, b, c) = (Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await);
    let manager = http("web", &routes(&config::all_to("abc")));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let clusters = [cluster("abc", &[a.port(), b.port(), c.port()])];
    let settings = Settings { concurrency: 2, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;
    let web = proxy.listener("web").await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(h1::Client::connect(web).await);
    }
    for _ in 0..10 {
        for client in &mut clients {
            assert_eq!(client.get("/").await.status, 200);
        }
    }
    for upstream in [&a, &b, &c] {
        let share = upstream.counts().requests;
        assert!((18..=22).contains(&share), "round robin on each worker: {share} of 60");
    }
    proxy.stat_is("cluster.abc.upstream_rq_total", 60).await;
    proxy.stat_is("http.web.downstream_rq_total", 60).await;
}

#[tokio::test]
async fn a_malformed_request_is_400_and_ends_the_connection() {
    let mesh = Mesh::start().await;
    for bytes in [
        "GET / HTTP/1.1\r\nhost: a\r\nbad header: x\r\n\r\n",
        "GET /h1 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /h1 HTTP/1.1\r\nhost: a\r\ncontent-length: abc\r\n\r\n",
        "GET /h1 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        "GET /h1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        "GET /h1 HTTP/1.1\r\n\r\n",
        "garbage\r\n\r\n",
    ] {
        let mut client = h1::Client::connect(mesh.web).await;
        client.send(bytes).await;
        let response = client.response("GET").await;
        assert!(matches!(response.status, 400 | 501), "{bytes:?}: {response:?}");
        client.ended().await;
    }
    assert_eq!(mesh.upstream.counts().requests, 0, "none of them reached the upstream");
    assert_eq!(h1::get(mesh.web, "/h1").await.status, 200);
}

#[tokio::test]
async fn bytes_sent_slowly_are_a_request_too() {
    let mesh = Mesh::start().await;
    let mut client = h1::Client::connect(mesh.web).await;
    let bytes = h1::request_bytes("POST", "/h1/slow", &[("x-long", &"v".repeat(3000))], b"body");
    for part in bytes.chunks(97) {
        client.stream().write_all(part).await.unwrap();
        client.stream().flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    let response = client.response("POST").await;
    assert_eq!(response.json()["body"], "body");
    assert_eq!(response.upstream_header("x-long").map(|value| value.len()), Some(3000));
}

#[tokio::test]
async fn curl_and_h2load_are_content() {
    let mesh = Mesh::start().await;
    let limit = std::time::Duration::from_secs(300);
    let url = |path: &str| format!("http://{}{path}", mesh.web);
    let seen = outrigger_tests::programs::run("curl", &["-sSf", "--data", "from curl", &url("/h1")], &[], limit).await;
    assert!(seen.contains("from curl"), "{seen}");
    let arguments = ["-sSf", "--http2-prior-knowledge", "--data", "from curl", &url("/h2")];
    let seen = outrigger_tests::programs::run("curl", &arguments, &[], limit).await;
    assert!(seen.contains("from curl"), "{seen}");
    for arguments in
        [&["--h1", "-n", "500", "-c", "4", "-t", "1"][..], &["-n", "500", "-c", "4", "-m", "8", "-t", "1"][..]]
    {
        for path in ["/h1", "/h2"] {
            let url = url(path);
            let mut arguments = arguments.to_vec();
            arguments.push(&url);
            let report = outrigger_tests::programs::run("h2load", &arguments, &[], limit).await;
            assert!(report.contains("500 succeeded, 0 failed, 0 errored"), "{path}: {report}");
        }
    }
}
