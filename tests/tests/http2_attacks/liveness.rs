//! PING on both sides (`connection_keepalive`).

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster_with, http, routes};
use outrigger_tests::frames::{ACK, END_HEADERS, END_STREAM, HEADERS, PING, Peer, block};
use outrigger_tests::{Proxy, Settings, h2c, proxy, within};
use tokio::net::TcpListener;

use super::{Side, upstream_http2};

const IMPATIENT: &str = "connection_keepalive: { interval: 0.1s, timeout: 0.1s, interval_jitter: { value: 0 } }";
/// An endpoint that answers has the time that a busy machine takes.
const FOR_ENDPOINTS: &str = "connection_keepalive: { interval: 0.1s, timeout: 5s, interval_jitter: { value: 0 } }";
const PATIENT: &str = "connection_keepalive: { interval: 0.05s, timeout: 20s, interval_jitter: { value: 0 } }";

#[tokio::test]
async fn a_client_that_answers_pings_stays() {
    for side in Side::both("", PATIENT, "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        for _ in 0..5 {
            peer.wait("a ping", |frame| frame.kind == PING && frame.flags & ACK == 0).await;
        }
        assert!(peer.get(1, "/", &[]).await);
        assert_eq!(peer.status(1).await, 200);
        side.expect(&[("http2.keepalive_timeout", 0), ("http.web.downstream_cx_active", 1)]).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_answer_is_left() {
    for side in Side::both("", IMPATIENT, "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        assert!(peer.get(1, "/", &[("x-reply", "hang")]).await);
        let (frames, _) = peer.rest().await;
        assert!(frames.iter().any(|frame| frame.kind == PING), "{frames:?}");
        let stats = [("http2.keepalive_timeout", 1), ("http.web.downstream_rq_active", 0)];
        side.expect(&stats).await;
        side.expect(&[("cluster.up.upstream_rq_active", 0)]).await;
    }
}

/// A request to an endpoint that does not answer PINGs fails, and the next one goes over another connection.
#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_left() {
    for program in [proxy::program(), proxy::envoy()] {
        let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = endpoint.local_addr().unwrap().port();
        let cluster = cluster_with("up", &[port], &upstream_http2(FOR_ENDPOINTS));
        let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("up"))), "")], "");
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster]), settings).await;
        let web = proxy.listener("web").await;
        let ask = move || {
            tokio::spawn(async move {
                let client = h2c::Client::connect(web).await;
                client.get("/").await.status
            })
        };
        let first = ask();
        let mut silent = Peer::accept(&endpoint, &[]).await;
        let (frames, _) = silent.rest().await;
        assert!(frames.iter().any(|frame| frame.kind == PING), "{frames:?}");
        assert_eq!(within("an answer", first).await.unwrap(), 503);
        assert_eq!(proxy.wait_stat("cluster.up.http2.keepalive_timeout", |found| found > 0).await, 1);
        let second = ask();
        let mut lively = Peer::accept(&endpoint, &[]).await;
        lively.wait("a request", |frame| frame.kind == HEADERS).await;
        assert!(lively.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[(":status", "200")])).await);
        assert_eq!(within("an answer", second).await.unwrap(), 200);
    }
}
