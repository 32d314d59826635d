//! What HTTP/2 clients and endpoints may not do, and how resets are counted.

use std::net::SocketAddr;

use outrigger_tests::config::{self, all_to, bootstrap, chain, http, http2_cluster, routes};
use outrigger_tests::{Proxy, Upstream, eventually, h2c, proxy, within};

/// A proxy between HTTP/2 and HTTP/2, with further fields of the connection manager.
async fn proxied(manager: &str) -> (Upstream, Proxy, SocketAddr) {
    let upstream = Upstream::start("echo").await;
    let clusters = [http2_cluster("echo", &[upstream.port()])];
    let manager = http("web", &format!("{}{manager}", routes(&all_to("echo"))));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let web = proxy.listener("web").await;
    (upstream, proxy, web)
}

async fn expect(proxy: &Proxy, stats: &[(&str, u64)]) {
    for (name, value) in stats {
        proxy.stat_is(name, *value).await;
    }
}

#[tokio::test]
async fn more_headers_than_max_headers_count_are_refused_and_the_connection_goes_on() {
    let (upstream, proxy, web) = proxied(", common_http_protocol_options: { max_headers_count: 20 }").await;
    let client = h2c::Client::connect(web).await;
    let names: Vec<String> = (0..30).map(|number| format!("x-{number}")).collect();
    let headers: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let refused = client.try_request("GET", "/", &headers, b"", &[]).await;
    if proxy::tests_envoy() {
        // It resets the stream instead.
        assert!(refused.is_err());
    } else {
        assert_eq!(refused.unwrap().status, 431);
    }
    assert_eq!(client.request("GET", "/", &headers[..10], b"").await.status, 200);
    assert_eq!(upstream.seen().len(), 1);
    expect(&proxy, &[("http2.header_overflow", 1)]).await;
}

#[tokio::test]
async fn a_client_that_only_opens_and_resets_streams_is_cut_off() {
    let (upstream, proxy, web) = proxied("").await;
    let client = h2c::Client::connect(web).await;
    let other = h2c::Client::connect(web).await;
    // Each is reset once the endpoint has it: of what is reset at once the endpoint may never hear. One that took longer
    // than a second is not premature, so there may be more of them than 250.
    let mut resets = 0;
    while proxy.stat("http.web.downstream_rq_too_many_premature_resets").await == 0 {
        let Ok((response, mut stream)) = client.open("GET", "/", &[("x-reply", "hang")], true).await else { break };
        let cut_off = eventually("the endpoint has it, or it is cut off", async || {
            let cut_off = proxy.stat("http.web.downstream_rq_too_many_premature_resets").await > 0;
            if cut_off || upstream.counts().requests > resets { Ok(cut_off) } else { Err(String::new()) }
        })
        .await;
        if cut_off {
            break;
        }
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
        resets += 1;
    }
    assert!(resets >= 250, "{resets}");
    expect(&proxy, &[("http.web.downstream_rq_too_many_premature_resets", 1)]).await;
    proxy.wait_stat("http.web.downstream_rq_rx_reset", |count| count >= 250).await;
    let refused = client.try_request("GET", "/", &[], b"", &[]).await.unwrap_err();
    // Envoy does not say why.
    assert!(proxy::tests_envoy() || refused.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM), "{refused}");
    proxy.wait_stat("cluster.echo.upstream_rq_active", |active| active == 0).await;
    assert_eq!(other.get("/").await.status, 200);
}

#[tokio::test]
async fn streams_that_are_reset_before_anybody_looked_count_too() {
    let (_upstream, proxy, web) = proxied("").await;
    let client = h2c::Client::connect(web).await;
    assert_eq!(client.get("/").await.status, 200);
    let flood = async {
        while let Ok((response, mut stream)) = client.open("GET", "/", &[("x-reply", "hang")], true).await {
            stream.send_reset(h2::Reason::CANCEL);
            drop(response);
            tokio::task::yield_now().await;
        }
    };
    within("the connection ends", flood).await;
    expect(&proxy, &[("http.web.downstream_rq_too_many_premature_resets", 1)]).await;
    proxy.wait_stat("cluster.echo.upstream_rq_active", |active| active == 0).await;
}

#[tokio::test]
async fn a_client_that_resets_some_streams_goes_on() {
    let (_upstream, proxy, web) = proxied("").await;
    let client = h2c::Client::connect(web).await;
    for number in 0..400 {
        if number % 2 == 0 {
            assert_eq!(client.get("/").await.status, 200);
        } else {
            let (response, mut stream) = client.open("GET", "/", &[("x-reply", "hang")], true).await.unwrap();
            stream.send_reset(h2::Reason::CANCEL);
            drop(response);
        }
    }
    assert_eq!(client.get("/").await.status, 200);
    proxy.stat_is("http.web.downstream_rq_too_many_premature_resets", 0).await;
}

#[tokio::test]
async fn a_reset_by_the_client_is_passed_on_and_counted() {
    let (upstream, proxy, web) = proxied("").await;
    let client = h2c::Client::connect(web).await;
    let (response, mut stream) = client.open("GET", "/", &[("x-reply", "hang")], true).await.unwrap();
    upstream.wait("the endpoint has it", |counts| counts.active == 1).await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(response);
    let stats = [
        ("http.web.downstream_rq_rx_reset", 1),
        ("http2.rx_reset", 1),
        ("cluster.echo.upstream_rq_tx_reset", 1),
        ("cluster.echo.http2.tx_reset", 1),
        ("http.web.downstream_rq_tx_reset", 0),
        ("http2.tx_reset", 0),
        ("cluster.echo.upstream_rq_rx_reset", 0),
    ];
    expect(&proxy, &stats).await;
}

#[tokio::test]
async fn a_client_that_leaves_is_counted_as_a_reset() {
    let (upstream, proxy, web) = proxied("").await;
    let client = h2c::Client::connect(web).await;
    let request = client.open("GET", "/", &[("x-reply", "hang")], true).await.unwrap();
    upstream.wait("the endpoint has it", |counts| counts.active == 1).await;
    drop(request);
    drop(client);
    let stats = [("http.web.downstream_rq_rx_reset", 1), ("cluster.echo.upstream_rq_tx_reset", 1)];
    expect(&proxy, &stats).await;
}

#[tokio::test]
async fn resets_by_the_endpoint_are_counted_before_and_within_the_response() {
    let (_upstream, proxy, web) = proxied("").await;
    let client = h2c::Client::connect(web).await;
    assert_eq!(client.request("GET", "/", &[("x-reply", "reset")], b"").await.status, 503);
    let stats = [
        ("cluster.echo.upstream_rq_rx_reset", 1),
        ("cluster.echo.http2.rx_reset", 1),
        ("http.web.downstream_rq_rx_reset", 0),
        ("http2.tx_reset", 0),
    ];
    expect(&proxy, &stats).await;
    let broken = client.try_request("GET", "/", &[("x-reply", "half bytes=1000")], b"", &[]).await;
    assert!(broken.unwrap_err().is_reset());
    let stats = [
        ("cluster.echo.upstream_rq_rx_reset", 2),
        ("cluster.echo.http2.rx_reset", 2),
        ("http.web.downstream_rq_rx_reset", 1),
        ("http.web.downstream_rq_tx_reset", 1),
        ("http2.tx_reset", 1),
        ("cluster.echo.upstream_rq_tx_reset", 0),
    ];
    expect(&proxy, &stats).await;
}

#[tokio::test]
async fn the_end_of_an_upstream_connection_is_counted_by_who_ended_it() {
    let (upstream, proxy, web) = proxied("").await;
    let client = h2c::Client::connect(web).await;
    assert_eq!(client.get("/").await.status, 200);
    let (response, stream) = client.open("GET", "/", &[("x-reply", "hang")], true).await.unwrap();
    upstream.wait("the endpoint has it", |counts| counts.active == 1).await;
    drop(upstream);
    assert_eq!(h2c::read(response.await.unwrap()).await.unwrap().status, 503);
    drop(stream);
    let stats = [
        ("cluster.echo.upstream_cx_destroy", 1),
        ("cluster.echo.upstream_cx_destroy_remote", 1),
        ("cluster.echo.upstream_cx_destroy_remote_with_active_rq", 1),
        ("cluster.echo.upstream_cx_destroy_with_active_rq", 1),
        ("cluster.echo.upstream_cx_destroy_local", 0),
        ("cluster.echo.upstream_cx_active", 0),
        ("cluster.echo.upstream_rq_rx_reset", 0),
    ];
    expect(&proxy, &stats).await;
}

#[tokio::test]
async fn bodies_end_with_their_last_chunk_and_trailers_follow_it() {
    let (upstream, _proxy, web) = proxied("").await;
    let client = h2c::Client::connect(web).await;
    for size in [1, 1000, 70_000, 300_000] {
        let body = vec![b'x'; size];
        let echoed = client.request("POST", "/", &[("x-reply", "echo")], &body).await;
        assert_eq!((echoed.status, echoed.body.len()), (200, size));
        let sent = client.try_request("POST", "/", &[], &body, &[("x-sum", "1")]).await.unwrap();
        assert_eq!(sent.status, 200);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.trailers, [("x-sum".to_owned(), "1".to_owned())]);
    }
}
