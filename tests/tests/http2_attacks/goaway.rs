//! GOAWAY in two steps towards clients, and in the middle of everything from endpoints.

use std::path::PathBuf;

use outrigger_tests::config::{self, bootstrap, chain, cluster_with, http, routes};
use outrigger_tests::frames::{
    DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, GOAWAY, HEADERS, NO_ERROR, PING, PRIORITY, Peer,
    WINDOW_UPDATE, block,
};
use outrigger_tests::{Proxy, Settings, h2c, proxy, within};
use tokio::net::TcpListener;

use super::{LOG, Side, upstream_http2};

const ALL_STREAMS: u32 = 0x7fff_ffff;

/// The first GOAWAY takes nothing away: what is opened before the second one is served.
#[tokio::test]
async fn clients_are_warned_before_they_are_refused() {
    // Time for a request that crosses with the warning, on a busy machine.
    let manager = ", drain_timeout: 5s, common_http_protocol_options: { max_requests_per_connection: 2 }";
    for side in Side::both(manager, "", "").await {
        let mut peer = Peer::connect(side.web, &[]).await;
        assert!(peer.get(1, "/", &[]).await);
        assert_eq!(peer.status(1).await, 200);
        assert!(peer.get(3, "/", &[("x-reply", "gate")]).await);
        let warned = until(&mut peer, |frame| frame.kind == GOAWAY).await;
        assert_eq!(warned.goaway(), Some((ALL_STREAMS, NO_ERROR)));
        // The peer has not heard of it yet, as far as the proxy knows.
        assert!(peer.get(5, "/", &[("x-reply", "gate")]).await);
        side.upstream.wait("both wait", |counts| counts.waiting == 2).await;
        let last = peer.wait("the last word", |frame| frame.kind == GOAWAY).await;
        assert_eq!(last.goaway(), Some((5, NO_ERROR)));
        side.upstream.open_gate();
        let (frames, _) = peer.rest().await;
        for stream in [3, 5] {
            let status =
                frames.iter().find(|frame| frame.kind == HEADERS && frame.stream == stream).and_then(Frame::status);
            assert_eq!(status, Some(200), "{frames:?}");
            let ended = |frame: &&Frame| frame.kind == DATA && frame.stream == stream && frame.flags & END_STREAM != 0;
            assert!(frames.iter().find(ended).is_some(), "{frames:?}");
        }
        side.expect(&[("http.web.downstream_rq_2xx", 3), ("http.web.downstream_cx_active", 0)]).await;
    }
}

/// Waits without an answer to pings, by which the proxy would know that the GOAWAY before has come.
async fn until(peer: &mut Peer, wanted: impl Fn(&Frame) -> bool) -> Frame {
    loop {
        let frame = peer.next().await.expect("a frame");
        if wanted(&frame) {
            return frame;
        }
    }
}

/// A proxy in front of an endpoint that the test plays itself.
struct Played {
    proxy: Proxy,
    web: std::net::SocketAddr,
    endpoint: TcpListener,
}

impl Played {
    async fn start(program: PathBuf, route: &str) -> Self {
        let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = endpoint.local_addr().unwrap().port();
        let cluster = cluster_with("up", &[port], &upstream_http2(""));
        let log = config::access_log_of(LOG, "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %REQ(:PATH)%");
        let routes = routes(&format!("{{ match: {{ prefix: / }}, route: {{ cluster: up, timeout: 0s{route} }} }}"));
        let listener = config::listener("web", &[chain(&http("web", &format!("{routes}{log}")), "")], "");
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster]), settings).await;
        let web = proxy.listener("web").await;
        Self { proxy, web, endpoint }
    }

    /// The status of a request whose body is sent at once.
    fn post(&self, path: &'static str) -> tokio::task::JoinHandle<u16> {
        let web = self.web;
        tokio::spawn(async move {
            let client = h2c::Client::connect(web).await;
            client.request("POST", path, &[], b"body").await.status
        })
    }
}

/// Waits for the whole of a request.
async fn whole_request(endpoint: &mut Peer, stream: u32) {
    let ended = |frame: &Frame| frame.stream == stream && frame.flags & END_STREAM != 0;
    endpoint.wait("a whole request", |frame| matches!(frame.kind, HEADERS | DATA) && ended(frame)).await;
}

async fn answer(endpoint: &mut Peer, stream: u32) {
    assert!(endpoint.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(":status", "200")])).await);
}

fn goaway(last: u32, code: u32) -> Vec<u8> {
    [last.to_be_bytes(), code.to_be_bytes()].concat()
}

/// Of three requests the endpoint takes two and leaves; the third is sent again on a connection of its own.
async fn leaves_in_the_middle(program: PathBuf, code: u32) {
    let played = Played::start(program, ", retry_policy: { retry_on: refused-stream }").await;
    let first = played.post("/1");
    let mut endpoint = Peer::accept(&played.endpoint, &[]).await;
    whole_request(&mut endpoint, 1).await;
    let second = played.post("/2");
    whole_request(&mut endpoint, 3).await;
    let third = played.post("/3");
    whole_request(&mut endpoint, 5).await;
    assert!(endpoint.send(GOAWAY, 0, 0, &goaway(3, code)).await);
    let mut next = Peer::accept(&played.endpoint, &[]).await;
    whole_request(&mut next, 1).await;
    answer(&mut next, 1).await;
    assert_eq!(within("the third", third).await.unwrap(), 200);
    // What it had taken goes on as if nothing had been.
    answer(&mut endpoint, 3).await;
    assert_eq!(within("the second", second).await.unwrap(), 200);
    answer(&mut endpoint, 1).await;
    assert_eq!(within("the first", first).await.unwrap(), 200);
    // And nothing new comes to it.
    let fourth = played.post("/4");
    whole_request(&mut next, 3).await;
    answer(&mut next, 3).await;
    assert_eq!(within("the fourth", fourth).await.unwrap(), 200);
    let stats = [
        ("cluster.up.upstream_rq_retry", 1),
        ("cluster.up.upstream_rq_retry_success", 1),
        ("cluster.up.upstream_cx_total", 2),
    ];
    for (name, value) in stats {
        assert_eq!(played.proxy.wait_stat(name, |found| found >= value).await, value, "{name}");
    }
}

#[tokio::test]
async fn an_endpoint_leaves_in_the_middle() {
    for program in [proxy::program(), proxy::envoy()] {
        leaves_in_the_middle(program, NO_ERROR).await;
    }
}

/// Why it leaves says nothing of the requests that it has not looked at.
#[tokio::test]
async fn an_endpoint_leaves_in_anger() {
    for program in [proxy::program(), proxy::envoy()] {
        leaves_in_the_middle(program, ENHANCE_YOUR_CALM).await;
    }
}

/// A request that the endpoint may have acted on is not sent twice, although the endpoint had said that it leaves.
#[tokio::test]
async fn what_was_taken_and_not_answered_is_not_sent_again() {
    for program in [proxy::program(), proxy::envoy()] {
        let played = Played::start(program, ", retry_policy: { retry_on: refused-stream }").await;
        let first = played.post("/1");
        let mut endpoint = Peer::accept(&played.endpoint, &[]).await;
        whole_request(&mut endpoint, 1).await;
        assert!(endpoint.send(GOAWAY, 0, 0, &goaway(1, NO_ERROR)).await);
        // It has read the GOAWAY when it answers what follows.
        assert!(endpoint.send(PING, 0, 0, &[7; 8]).await);
        endpoint.wait("an answer", |frame| frame.kind == PING && frame.payload == [7; 8]).await;
        drop(endpoint);
        assert_eq!(within("the first", first).await.unwrap(), 503);
        let lines = played.proxy.lines(LOG, 1).await;
        assert_eq!(lines, ["503 UC upstream_reset_before_response_started{connection_termination} /1"]);
        assert_eq!(played.proxy.stat("cluster.up.upstream_rq_retry").await, 0);
    }
}

/// A server that sends its GOAWAY in two steps is left before the second.
#[tokio::test]
async fn a_warning_of_an_endpoint_is_heeded() {
    for program in [proxy::program(), proxy::envoy()] {
        let played = Played::start(program, "").await;
        let first = played.post("/1");
        let mut endpoint = Peer::accept(&played.endpoint, &[]).await;
        whole_request(&mut endpoint, 1).await;
        assert!(endpoint.send(GOAWAY, 0, 0, &goaway(ALL_STREAMS, NO_ERROR)).await);
        assert!(endpoint.send(PING, 0, 0, &[7; 8]).await);
        endpoint.wait("an answer", |frame| frame.kind == PING && frame.payload == [7; 8]).await;
        let second = played.post("/2");
        let mut next = Peer::accept(&played.endpoint, &[]).await;
        whole_request(&mut next, 1).await;
        answer(&mut next, 1).await;
        answer(&mut endpoint, 1).await;
        assert_eq!(within("the first", first).await.unwrap(), 200);
        assert_eq!(within("the second", second).await.unwrap(), 200);
        // The old connection ends with its last request.
        let (frames, _) = endpoint.rest().await;
        assert!(!frames.iter().any(|frame| frame.kind == HEADERS), "{frames:?}");
    }
}

/// The limits hold for endpoints as well, and what is in flight on the connection fails as with Envoy.
#[tokio::test]
async fn floods_of_an_endpoint_end_its_connection() {
    let updates = Frame::bytes(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(200);
    let priorities = Frame::bytes(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]).repeat(500);
    let head = Frame::bytes(HEADERS, END_HEADERS, 1, &block(&[(":status", "200")]));
    let empty = [head, Frame::bytes(DATA, 0, 1, b"").repeat(2)].concat();
    for program in [proxy::program(), proxy::envoy()] {
        for (flood, stat) in [(&updates, "window_update"), (&priorities, "priority"), (&empty, "empty")] {
            let played = Played::start(program.clone(), "").await;
            let first = played.post("/1");
            let mut endpoint = Peer::accept(&played.endpoint, &[]).await;
            whole_request(&mut endpoint, 1).await;
            endpoint.send_bytes(flood).await;
            endpoint.rest().await;
            played.proxy.wait_stat(&format!("cluster.up.http2.inbound_{stat}_frames_flood"), |found| found == 1).await;
            played.proxy.wait_stat("cluster.up.upstream_cx_protocol_error", |found| found == 1).await;
            // A response that has begun ends in the middle.
            let status = within("an end", first).await;
            assert!(status.as_ref().map_or(stat == "empty", |status| *status == 502), "{status:?}");
            let lines = played.proxy.lines(LOG, 1).await;
            assert!(lines[0].contains(" UPE upstream_reset_"), "{lines:?}");
            let second = played.post("/2");
            let mut next = Peer::accept(&played.endpoint, &[]).await;
            whole_request(&mut next, 1).await;
            answer(&mut next, 1).await;
            assert_eq!(within("the second", second).await.unwrap(), 200);
        }
    }
}
