//! Tries that go on beside the next one (`HedgePolicy.hedge_on_per_try_timeout`, `x-envoy-hedge-on-per-try-timeout`), and the
//! limits of tries that have stats of their own: what happens is the same on Envoy and on the proxy under test.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::path::PathBuf;

use outrigger_tests::config::{self, bootstrap, chain, cluster, cluster_with, http, http2_cluster};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Both proxies.
fn both() -> [(&'static str, PathBuf); 2] {
    [("Envoy", proxy::envoy()), ("the proxy under test", proxy::program())]
}

/// What the routes have in common.
const BACK_OFF: &str = "retry_back_off: { base_interval: 0.001s, max_interval: 0.002s }";

/// A proxy with routes that hedge, and its upstream.
struct Mesh {
    proxy: Proxy,
    upstream: Upstream,
    web: std::net::SocketAddr,
    /// Answers with the beginning of a response, and says nothing more.
    _halting: tokio::task::JoinHandle<()>,
}

/// Answers each connection with a part of a response.
async fn halt(listener: TcpListener) {
    let mut connections = Vec::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
        connections.push(stream);
    }
}

impl Mesh {
    async fn start(program: PathBuf) -> Self {
        let upstream = Upstream::start("up").await;
        let halting = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let limits = ", circuit_breakers: { thresholds: [{ max_retries: 0 }] }";
        let clusters = [
            cluster("one", &[upstream.port()]),
            http2_cluster("two", &[upstream.port()]),
            cluster_with("full", &[upstream.port()], limits),
            cluster("halting", &[halting.local_addr().unwrap().port()]),
        ];
        let hedge = "hedge_policy: { hedge_on_per_try_timeout: true }";
        let route = |prefix: &str, to: &str, times: &str, more: &str| {
            format!(
                "{{ match: {{ prefix: /{prefix} }}, route: {{ cluster: {to}, {times}, retry_policy: {{ retry_on: 5xx, {BACK_OFF}, \
                 num_retries: 1, per_try_timeout: 0.3s }}{more} }} }}, "
            )
        };
        let silence = |prefix: &str, to: &str, time: &str| {
            format!(
                "{{ match: {{ prefix: /{prefix} }}, route: {{ cluster: {to}, timeout: 300s, retry_policy: {{ retry_on: 5xx, {BACK_OFF}, \
                 num_retries: 1, per_try_idle_timeout: {time} }} }} }}, "
            )
        };
        let long = "timeout: 300s";
        let routes = [
            route("hedged", "one", long, &format!(", {hedge}")),
            route("multiplexed", "two", long, &format!(", {hedge}")),
            route("short", "one", "timeout: 1s", &format!(", {hedge}")),
            route("full", "full", long, &format!(", {hedge}")),
            route("plain", "one", long, ", hedge_policy: {}"),
            silence("idle", "one", "0.3s"),
            // Its head has to come in time.
            silence("halting", "halting", "5s"),
            format!(
                "{{ match: {{ prefix: /without }}, route: {{ cluster: one, timeout: 300s }} }}, \
                 {{ match: {{ prefix: /host }}, route: {{ cluster: one, {long}, retry_policy: {{ retry_on: 5xx, {BACK_OFF}, \
                 num_retries: 1, per_try_timeout: 0.3s }} }} }}"
            ),
        ];
        let hosts = |name: &str, domains: &str, more: &str| {
            format!(
                "{{ name: {name}, domains: [{domains}], include_request_attempt_count: true, \
                 include_attempt_count_in_response: true, include_is_timeout_retry_header: true{more}, routes: [{}] }}",
                routes.concat()
            )
        };
        let log = config::access_log_of(
            "requests.log",
            "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %BYTES_RECEIVED%",
        );
        let manager = http(
            "web",
            &format!(
                ", use_remote_address: true, internal_address_config: {{ cidr_ranges: [{{ address_prefix: 0.0.0.0, prefix_len: 0 }}] }}, \
                 route_config: {{ name: local, virtual_hosts: [{}, {}] }}{log}",
                hosts("all", "'*'", ""),
                hosts("hedging", "hedging.example", &format!(", {hedge}")),
            ),
        );
        let text = bootstrap(&[config::listener("web", &[chain(&manager, "")], "")], &clusters);
        let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
        let web = proxy.listener("web").await;
        Self { proxy, upstream, web, _halting: tokio::spawn(halt(halting)) }
    }

    /// Sends a request in a task of its own.
    fn send(&self, path: &'static str, headers: &'static [(&'static str, &'static str)]) -> Pending {
        let web = self.web;
        tokio::spawn(async move { h1::Client::connect(web).await.request("GET", path, headers, b"").await })
    }

    /// Waits until so many requests have come to the upstream.
    async fn requests(&self, count: usize) {
        self.upstream.wait("requests", |counts| counts.requests >= count).await;
    }

    async fn stat(&self, name: &str, value: u64) {
        self.proxy.stat_is(&format!("cluster.{name}"), value).await;
    }

    async fn last_line(&self, count: usize) -> String {
        self.proxy.lines("requests.log", count).await.pop().unwrap_or_default()
    }
}

type Pending = tokio::task::JoinHandle<outrigger_tests::Response>;

/// The status, and how many tries the response tells of.
async fn answer(pending: Pending) -> (u16, String) {
    let response = outrigger_tests::within("the answer", pending).await.unwrap();
    (response.status, response.header("x-envoy-attempt-count").unwrap_or_default().to_owned())
}

fn second() -> (u16, String) {
    (200, "2".to_owned())
}

#[tokio::test]
async fn the_next_try_wins_over_one_that_is_late() {
    for (who, program) in both() {
        let mesh = Mesh::start(program).await;
        for (count, (path, cluster)) in [("/hedged", "one"), ("/multiplexed", "two")].into_iter().enumerate() {
            assert_eq!(answer(mesh.send(path, &[("x-reply", "hang | status=200")])).await, second(), "{who}");
            // The first one is given up once the other is answered.
            mesh.upstream.wait("the late one is given up", |counts| counts.abandoned == count + 1).await;
            let line = mesh.last_line(count + 1).await;
            assert!(line.starts_with("200 ") && line.ends_with(" via_upstream 2 0"), "{who}: {line}");
            mesh.stat(&format!("{cluster}.upstream_rq_retry"), 1).await;
            mesh.stat(&format!("{cluster}.upstream_rq_total"), 2).await;
            mesh.stat(&format!("{cluster}.upstream_rq_completed"), 1).await;
            mesh.stat(&format!("{cluster}.upstream_rq_200"), 1).await;
            mesh.stat(&format!("{cluster}.upstream_rq_timeout"), 0).await;
            // Nothing was cut off.
            mesh.stat(&format!("{cluster}.upstream_rq_per_try_timeout"), 0).await;
        }
        mesh.stat("two.upstream_rq_tx_reset", 1).await;
        let seen = mesh.upstream.seen();
        assert_eq!(seen[1].header("x-envoy-is-timeout-retry"), Some("true"), "{who}");
        // A try that goes on has as much time as the request.
        let expected: u64 = seen[0].header("x-envoy-expected-rq-timeout-ms").unwrap().parse().unwrap();
        assert_eq!(expected, 300_000, "{who}");
        let left: u64 = seen[1].header("x-envoy-expected-rq-timeout-ms").unwrap().parse().unwrap();
        assert!((100..=299_800).contains(&left), "{who}: {left}");
    }
}

#[tokio::test]
async fn a_late_try_wins_if_it_is_answered_first() {
    for (who, program) in both() {
        let mesh = Mesh::start(program).await;
        for (count, path) in ["/hedged", "/multiplexed"].into_iter().enumerate() {
            mesh.upstream.close_gate();
            let pending = mesh.send(path, &[("x-reply", "gate header=x-try:first | hang")]);
            mesh.requests(2 * count + 2).await;
            mesh.upstream.open_gate();
            let response = outrigger_tests::within("the answer", pending).await.unwrap();
            assert_eq!((response.status, response.header("x-try")), (200, Some("first")), "{who}");
            assert_eq!(response.header("x-envoy-attempt-count"), Some("2"), "{who}");
            mesh.upstream.wait("the other is given up", |counts| counts.abandoned == count + 1).await;
            assert!(mesh.last_line(count + 1).await.ends_with(" via_upstream 2 0"), "{who}");
        }
        // Nobody knows whether the retry would have been a success.
        mesh.stat("one.upstream_rq_retry", 1).await;
        mesh.stat("one.upstream_rq_retry_success", 0).await;
        mesh.stat("one.upstream_rq_completed", 1).await;
    }
}

#[tokio::test]
async fn a_late_try_that_fails_is_passed_over() {
    for (who, program) in both() {
        let mesh = Mesh::start(program).await;
        for (count, orders) in [
            &[("x-reply", "gate status=503 | gate status=200")],
            &[("x-reply", "gate reset | gate status=200")],
            &[("x-reply", "gate status=200 | gate status=503")],
        ]
        .into_iter()
        .enumerate()
        {
            mesh.upstream.close_gate();
            let pending = mesh.send("/hedged", orders);
            mesh.requests(2 * count + 2).await;
            mesh.upstream.open_gate();
            assert_eq!(answer(pending).await, second(), "{who}: {orders:?}");
        }
        mesh.stat("one.upstream_rq_200", 3).await;
        mesh.stat("one.upstream_rq_retry", 3).await;
        // A response that is passed over counts for its endpoint alone.
        mesh.stat("one.upstream_rq_completed", mesh.proxy.stat("cluster.one.upstream_rq_5xx").await + 3).await;
    }
}

#[tokio::test]
async fn the_limit_of_retries_holds_and_the_late_one_is_waited_for() {
    for (who, program) in both() {
        let mesh = Mesh::start(program).await;
        let pending = mesh.send("/hedged", &[("x-reply", "gate | status=503")]);
        mesh.proxy.wait_stat("cluster.one.upstream_rq_retry_limit_exceeded", |count| count > 0).await;
        mesh.upstream.open_gate();
        assert_eq!(answer(pending).await, second(), "{who}");
        assert_eq!(mesh.last_line(1).await, "200 URX via_upstream 2 0", "{who}");
        mesh.upstream.close_gate();
        // All fail: the last one is what the client gets.
        let pending = mesh.send("/hedged", &[("x-reply", "gate status=503 | status=503")]);
        mesh.proxy.wait_stat("cluster.one.upstream_rq_retry_limit_exceeded", |count| count > 1).await;
        mesh.upstream.open_gate();
        assert_eq!(answer(pending).await, (503, "2".to_owned()), "{who}");
        assert_eq!(mesh.last_line(2).await, "503 URX via_upstream 2 0", "{who}");
        mesh.stat("one.upstream_rq_503", 1).await;
        mesh.stat("one.upstream_rq_total", 4).await;
    }
}

#[tokio::test]
async fn all_tries_end_with_the_time_of_the_request() {
    for (who, program) in both() {
        let mesh = Mesh::start(program).await;
        assert_eq!(answer(mesh.send("/short", &[("x-reply", "hang")])).await, (504, "2".to_owned()), "{who}");
        assert_eq!(mesh.last_line(1).await, "504 URX,UT response_timeout 2 0", "{who}");
        mesh.upstream.wait("both are given up", |counts| counts.abandoned == 2).await;
        // Each of them counts, as far as both were under way.
        mesh.stat("one.upstream_rq_timeout", 2).await;
        mesh.stat("one.upstream_rq_504", 2).await;
        mesh.stat("one.upstream_rq_per_try_timeout", 0).await;
        mesh.stat("one.upstream_rq_retry_limit_exceeded", 1).await;
    }
}

#[tokio::test]
async fn all_tries_end_with_the_client() {
    for (_, program) in both() {
        let mesh = Mesh::start(program).await;
        for (count, path) in ["/hedged", "/multiplexed"].into_iter().enumerate() {
            let mut client = h1::Client::connect(mesh.web).await;
            client.send(h1::request_bytes("GET", path, &[("x-reply", "hang")], b"")).await;
            mesh.requests(2 * count + 2).await;
            drop(client);
            mesh.upstream.wait("both are given up", |counts| counts.abandoned == 2 * count + 2).await;
        }
        mesh.stat("two.upstream_rq_tx_reset", 2).await;
    }
}

#[tokio::test]
async fn each_try_sends_the_whole_body() {
    for (who, program) in both() {
        let mesh = Mesh::start(program).await;
        let body = vec![b'x'; 40_000];
        for (count, path) in ["/hedged", "/multiplexed"].into_iter().enumerate() {
            let headers = [("x-reply", "hang | status=200 empty")];
            let response = h1::Client::connect(mesh.web).await.request("POST", path, &headers, &body).await;
            assert_eq!(response.status, 200, "{who}");
            let line = mesh.last_line(count + 1).await;
            assert!(line.ends_with(" 2 40000"), "what is sent twice is received once; {who}: {line}");
        }
        let seen = mesh.upstream.seen();
        assert!(seen.len() >= 4 && seen.iter().all(|seen| seen.body == body), "{who}");
    }
}

/// What a try may take that is cut off, instead of what routes say.
const ENOUGH: (&str, &str) = ("x-envoy-upstream-rq-per-try-timeout-ms", "5000");

#[tokio::test]
async fn clients_of_the_mesh_say_whether_to_hedge() {
    for (who, program) in both() {
        let mesh = Mesh::start(program).await;
        // Not by the route, but by the header.
        let says: &[_] = &[("x-envoy-hedge-on-per-try-timeout", "true"), ("x-reply", "hang | status=200")];
        assert_eq!(answer(mesh.send("/plain", says)).await, second(), "{who}");
        mesh.stat("one.upstream_rq_per_try_timeout", 0).await;
        assert_eq!(mesh.upstream.seen()[1].header("x-envoy-hedge-on-per-try-timeout"), None, "{who}");
        // By the route, but not by the header.
        // A try that may be cut off has the time that a busy machine takes.
        let says: &[_] = &[("x-envoy-hedge-on-per-try-timeout", "false"), ("x-reply", "hang | status=200"), ENOUGH];
        assert_eq!(answer(mesh.send("/hedged", says)).await, second(), "{who}");
        let cut_off = mesh.proxy.stat("cluster.one.upstream_rq_per_try_timeout").await;
        assert!(cut_off > 0, "{who}");
        // By the virtual host, unless the route says something.
        let of_host: &[_] = &[("host", "hedging.example"), ("x-reply", "hang | status=200")];
        assert_eq!(answer(mesh.send("/host", of_host)).await, second(), "{who}");
        mesh.stat("one.upstream_rq_per_try_timeout", cut_off).await;
        let of_route: &[_] = &[("host", "hedging.example"), ("x-reply", "hang | status=200"), ENOUGH];
        assert_eq!(answer(mesh.send("/plain", of_route)).await, second(), "{who}");
        mesh.proxy.wait_stat("cluster.one.upstream_rq_per_try_timeout", |count| count > cut_off).await;
    }
}

#[tokio::test]
async fn a_try_that_must_not_be_repeated_goes_on() {
    for (who, program) in both() {
        let mesh = Mesh::start(program).await;
        let pending = mesh.send("/full", &[("x-reply", "gate")]);
        mesh.proxy.wait_stat("cluster.full.upstream_rq_retry_overflow", |count| count > 0).await;
        mesh.upstream.open_gate();
        assert_eq!(answer(pending).await, (200, "1".to_owned()), "{who}");
        mesh.upstream.close_gate();
        // Without a retry policy there is nothing to begin.
        let per_try: &[_] = &[
            ("x-envoy-hedge-on-per-try-timeout", "true"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "50"),
            ("x-reply", "delay=200"),
        ];
        assert_eq!(answer(mesh.send("/without", per_try)).await, (200, "1".to_owned()), "{who}");
        mesh.stat("one.upstream_rq_per_try_timeout", 0).await;
    }
}

#[tokio::test]
async fn silence_within_a_try_has_a_stat_of_its_own() {
    for (who, program) in both() {
        let mesh = Mesh::start(program).await;
        assert_eq!(answer(mesh.send("/idle", &[("x-reply", "hang")])).await, (504, "2".to_owned()), "{who}");
        assert_eq!(mesh.last_line(1).await, "504 URX,UT upstream_per_try_idle_timeout 2 0", "{who}");
        mesh.stat("one.upstream_rq_per_try_idle_timeout", 2).await;
        mesh.stat("one.upstream_rq_per_try_timeout", 0).await;
        // It holds until the response has ended.
        let mut client = h1::Client::connect(mesh.web).await;
        client.send(h1::request_bytes("GET", "/halting", &[], b"")).await;
        assert_eq!(client.head().await.status, 200, "{who}");
        assert_eq!(client.rest().await, b"half", "{who}");
        assert_eq!(mesh.last_line(2).await, "200 UT upstream_per_try_idle_timeout 1 0", "{who}");
        mesh.stat("halting.upstream_rq_per_try_idle_timeout", 1).await;
    }
}
