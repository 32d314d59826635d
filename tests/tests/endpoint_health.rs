//! Endpoints that fail are left out and come back: by the results of requests, and by active checks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};

use control_plane_mock::MockControlPlane;
use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{
    self, Xds, ads_bootstrap, all_to, bootstrap, chain, cluster_with, endpoints, http, resource, resources, routes,
};
use outrigger_tests::tcp::HeldPort;
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// An HTTP/1.1 endpoint whose answers a scenario changes while it runs.
struct Endpoint {
    address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
    /// So that nobody else is there when it is gone.
    _held: HeldPort,
}

#[derive(Default)]
struct State {
    /// 0 closes the connection instead of answering.
    status: AtomicU16,
    requests: AtomicUsize,
    /// Answers say that checks are to fail at once.
    leaves: AtomicBool,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    async fn start(status: u16) -> Self {
        let (listener, held) = held_listener().await;
        let state = Arc::new(State { status: status.into(), ..State::default() });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&shared)));
            }
        });
        Self::of(held, state, task.abort_handle())
    }

    fn of(held: HeldPort, state: Arc<State>, task: AbortHandle) -> Self {
        Self { address: held.address(), state, task, _held: held }
    }

    /// Nobody listens there from now on.
    async fn end(&self) {
        self.task.abort();
        eventually("the endpoint refuses", async || match TcpStream::connect(self.address).await {
            Ok(_) => Err("it accepts".to_owned()),
            Err(_) => Ok(()),
        })
        .await;
    }

    fn port(&self) -> u16 {
        self.address.port()
    }

    fn set(&self, status: u16) {
        self.state.status.store(status, Ordering::SeqCst);
    }

    fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }
}

async fn held_listener() -> (TcpListener, HeldPort) {
    let held = HeldPort::take();
    (TcpListener::bind(held.address()).await.unwrap(), held)
}

async fn answer(mut stream: TcpStream, state: Arc<State>) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        while !buffer.windows(4).any(|window| window == b"\r\n\r\n") {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        buffer.clear();
        state.requests.fetch_add(1, Ordering::SeqCst);
        match state.status.load(Ordering::SeqCst) {
            0 => return Ok(()),
            status => {
                let leaves = state.leaves.load(Ordering::SeqCst);
                let more = if leaves { "x-envoy-immediate-health-check-fail: true\r\n" } else { "" };
                let head = format!("HTTP/1.1 {status} Told\r\n{more}content-length: 0\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
            }
        }
    }
}

/// A proxy with a cluster `c` of these endpoints and these further fields.
async fn proxy_to(endpoints: &[&Endpoint], fields: &str, workers: usize) -> (Proxy, SocketAddr) {
    let ports: Vec<u16> = endpoints.iter().map(|endpoint| endpoint.port()).collect();
    let clusters = [cluster_with("c", &ports, fields)];
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
    let log = "cluster_manager: { outlier_detection: { event_log_path: '$dir/events.log' } }\n";
    let settings = Settings { concurrency: workers, ..Settings::default() };
    let proxy = Proxy::start_with(&format!("{log}{}", bootstrap(&[listener], &clusters)), settings).await;
    let web = proxy.listener("web").await;
    (proxy, web)
}

/// Statuses of `count` requests, each on a connection of its own so that all workers get some.
async fn statuses(web: SocketAddr, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(h1::Client::connect(web).await.request("GET", "/", &[], b"").await.status);
    }
    statuses
}

async fn flags(proxy: &Proxy, endpoint: &Endpoint) -> String {
    let page = proxy.admin("/clusters").await.text();
    let prefix = format!("c::{}::health_flags::", endpoint.address);
    page.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
}

async fn wait_flags(proxy: &Proxy, endpoint: &Endpoint, wanted: &str) {
    eventually(wanted, async || {
        let seen = flags(proxy, endpoint).await;
        if seen == wanted { Ok(()) } else { Err(seen) }
    })
    .await;
}

fn outlier_stat(name: &str) -> String {
    format!("cluster.c.outlier_detection.{name}")
}

#[tokio::test]
async fn an_endpoint_that_answers_5xx_is_ejected_and_comes_back() {
    let (good, other, bad) = (Endpoint::start(200).await, Endpoint::start(200).await, Endpoint::start(500).await);
    let fields = ", outlier_detection: { consecutive_5xx: 5, interval: 0.1s, base_ejection_time: 8s, \
                  max_ejection_percent: 50 }";
    let (proxy, web) = proxy_to(&[&good, &other, &bad], fields, 4).await;
    while bad.requests() < 5 {
        statuses(web, 1).await;
    }
    wait_flags(&proxy, &bad, "/failed_outlier_check").await;
    proxy.stat_is("cluster.c.membership_healthy", 2).await;
    proxy.stat_is(&outlier_stat("ejections_active"), 1).await;
    let requests = bad.requests();
    assert!(statuses(web, 12).await.iter().all(|status| *status == 200));
    assert_eq!(bad.requests(), requests, "an ejected endpoint gets no requests");
    bad.set(200);
    wait_flags(&proxy, &bad, "healthy").await;
    proxy.stat_is("cluster.c.membership_healthy", 3).await;
    eventually("it takes part again", async || {
        assert_eq!(statuses(web, 1).await, [200]);
        if bad.requests() > requests { Ok(()) } else { Err(requests.to_string()) }
    })
    .await;
    for (stat, value) in [
        ("ejections_active", 0),
        ("ejections_consecutive_5xx", 1),
        ("ejections_detected_consecutive_5xx", 1),
        ("ejections_enforced_consecutive_5xx", 1),
        ("ejections_enforced_total", 1),
        ("ejections_overflow", 0),
    ] {
        proxy.stat_is(&outlier_stat(stat), value).await;
    }
    proxy.admin_post("/reopen_logs").await;
    let lines = proxy.lines("events.log", 2).await;
    assert!(lines[0].contains("\"action\":\"EJECT\"") && lines[1].contains("\"action\":\"UNEJECT\""), "{lines:?}");
    assert!(lines[0].contains(&format!("\"upstream_url\":\"{}\"", bad.address)), "{lines:?}");
}

#[tokio::test]
async fn no_more_than_the_allowed_share_is_ejected() {
    let (good, bad) = (Endpoint::start(200).await, Endpoint::start(500).await);
    // A tenth of two endpoints is none.
    let fields = ", outlier_detection: { consecutive_5xx: 2, interval: 100s }";
    let (proxy, web) = proxy_to(&[&good, &bad], fields, 1).await;
    statuses(web, 4).await;
    proxy.wait_stat(&outlier_stat("ejections_overflow"), |count| count == 1).await;
    assert_eq!(flags(&proxy, &bad).await, "healthy");
    proxy.stat_is(&outlier_stat("ejections_enforced_total"), 0).await;
    let fields = ", outlier_detection: { consecutive_5xx: 2, interval: 100s, always_eject_one_host: true }";
    let (proxy, web) = proxy_to(&[&good, &bad], fields, 1).await;
    statuses(web, 4).await;
    wait_flags(&proxy, &bad, "/failed_outlier_check").await;
}

#[tokio::test]
async fn rows_of_failures_are_counted_over_all_workers() {
    let (good, bad) = (Endpoint::start(200).await, Endpoint::start(503).await);
    let fields = ", outlier_detection: { consecutive_5xx: 8, interval: 100s, max_ejection_percent: 50 }, \
                  lb_policy: RANDOM";
    let (proxy, web) = proxy_to(&[&good, &bad], fields, 4).await;
    // Whichever worker has the eighth, no worker has a ninth once the control thread has heard of it.
    while bad.requests() < 8 {
        assert_eq!(flags(&proxy, &bad).await, "healthy");
        statuses(web, 1).await;
    }
    wait_flags(&proxy, &bad, "/failed_outlier_check").await;
    assert!(statuses(web, 20).await.iter().all(|status| *status == 200));
    assert_eq!(bad.requests(), 8);
    proxy.stat_is(&outlier_stat("ejections_detected_consecutive_5xx"), 1).await;
}

#[tokio::test]
async fn endpoints_that_cannot_be_reached_are_ejected_for_tcp_too() {
    let good = Endpoint::start(200).await;
    let gone = Endpoint::start(200).await;
    gone.end().await;
    let ports = [good.port(), gone.port()];
    let fields = ", outlier_detection: { consecutive_5xx: 2, interval: 100s, max_ejection_percent: 50 }";
    let clusters = [cluster_with("c", &ports, fields)];
    let listener = config::listener("tcp", &[chain(&config::tcp_with("cluster: c, max_connect_attempts: 2"), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let address = proxy.listener("tcp").await;
    for _ in 0..4 {
        assert_eq!(h1::Client::connect(address).await.request("GET", "/", &[], b"").await.status, 200);
    }
    wait_flags(&proxy, &gone, "/failed_outlier_check").await;
    let failed = 2;
    proxy.stat_is("cluster.c.upstream_cx_connect_fail", failed).await;
    h1::Client::connect(address).await.request("GET", "/", &[], b"").await;
    proxy.stat_is("cluster.c.upstream_cx_connect_fail", failed).await;
}

#[tokio::test]
async fn local_origin_failures_are_kept_apart_when_asked_for() {
    let (good, closes) = (Endpoint::start(200).await, Endpoint::start(0).await);
    let fields = ", outlier_detection: { split_external_local_origin_errors: true, consecutive_5xx: 1, \
                  consecutive_local_origin_failure: 3, interval: 100s, max_ejection_percent: 50 }";
    let (proxy, web) = proxy_to(&[&good, &closes], fields, 1).await;
    // Each of its requests reaches it first, which ends the row: a connection that breaks is not an endpoint out of
    // reach.
    statuses(web, 20).await;
    assert_eq!(flags(&proxy, &closes).await, "healthy");
    closes.end().await;
    eventually("out of reach", async || {
        statuses(web, 2).await;
        let seen = flags(&proxy, &closes).await;
        if seen == "/failed_outlier_check" { Ok(()) } else { Err(seen) }
    })
    .await;
    proxy.stat_is(&outlier_stat("ejections_enforced_consecutive_local_origin_failure"), 1).await;
    proxy.stat_is(&outlier_stat("ejections_detected_consecutive_5xx"), 0).await;
}

/// Checks that follow each other quickly, whatever traffic there is.
fn checks(kind: &str) -> String {
    format!(
        ", health_checks: [{{ timeout: 10s, interval: 0.1s, no_traffic_interval: 0.1s, unhealthy_threshold: 2, \
         healthy_threshold: 2, event_log_path: '$dir/events.log', {kind} }}], \
         common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}"
    )
}

fn check_stat(name: &str) -> String {
    format!("cluster.c.health_check.{name}")
}

#[tokio::test]
async fn http_checks_keep_requests_away_until_an_endpoint_is_well() {
    let (good, bad) = (Endpoint::start(200).await, Endpoint::start(503).await);
    let (proxy, web) = proxy_to(&[&good, &bad], &checks("http_health_check: { path: /healthz }"), 2).await;
    // Ready means that everybody was checked.
    assert_eq!((&*flags(&proxy, &good).await, &*flags(&proxy, &bad).await), ("healthy", "/failed_active_hc"));
    assert!(statuses(web, 10).await.iter().all(|status| *status == 200));
    proxy.stat_is("cluster.c.membership_healthy", 1).await;
    bad.set(200);
    wait_flags(&proxy, &bad, "healthy").await;
    proxy.stat_is(&check_stat("healthy"), 2).await;
    // An answer that is wrong counts at once, for the others there is nobody left.
    good.set(404);
    wait_flags(&proxy, &good, "/failed_active_hc").await;
    bad.set(500);
    wait_flags(&proxy, &bad, "/failed_active_hc").await;
    eventually("nobody is left", async || {
        let response = h1::Client::connect(web).await.request("GET", "/", &[], b"").await;
        let seen = (response.status, response.text());
        if seen == (503, "no healthy upstream".to_owned()) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let (attempts, successes) = (proxy.stat(&check_stat("attempt")).await, proxy.stat(&check_stat("success")).await);
    let failures = proxy.stat(&check_stat("failure")).await;
    assert!(successes > 2 && failures > 2 && attempts >= successes, "{attempts} {successes} {failures}");
    proxy.stat_is(&check_stat("network_failure"), 0).await;
    proxy.admin_post("/reopen_logs").await;
    let lines = proxy.lines("events.log", 5).await;
    let count = |event: &str| lines.iter().filter(|line| line.contains(event)).count();
    assert_eq!((count("add_healthy_event"), count("eject_unhealthy_event")), (2, 2), "{lines:?}");
    assert_eq!(count("health_check_failure_event"), 1, "{lines:?}");
}

#[tokio::test]
async fn endpoints_out_of_reach_fail_after_as_many_checks_as_configured() {
    let endpoint = Endpoint::start(200).await;
    let (proxy, _) = proxy_to(&[&endpoint], &checks("tcp_health_check: {}"), 1).await;
    assert_eq!(flags(&proxy, &endpoint).await, "healthy");
    endpoint.end().await;
    wait_flags(&proxy, &endpoint, "/failed_active_hc").await;
    proxy.wait_stat(&check_stat("network_failure"), |count| count >= 2).await;
    let listener = TcpListener::bind(endpoint.address).await.unwrap();
    let accepts = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    wait_flags(&proxy, &endpoint, "healthy").await;
    accepts.abort();
}

#[tokio::test]
async fn tcp_checks_compare_what_comes_back() {
    let (listener, held) = held_listener().await;
    let answers = Arc::new(AtomicUsize::new(1));
    let told = Arc::clone(&answers);
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = Arc::clone(&told);
            tokio::spawn(async move {
                let mut question = [0; 4];
                while stream.read_exact(&mut question).await.is_ok() && &question == b"PING" {
                    let answer: &[u8] = if told.load(Ordering::SeqCst) == 1 { b"+PONG\r\n" } else { b"-ERR\r\n" };
                    if stream.write_all(answer).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    let endpoint = Endpoint::of(held, Arc::default(), task.abort_handle());
    // PING, and P.N anywhere in the answer.
    let kind = "tcp_health_check: { send: { text: '50494E47' }, receive: [{ text: '50' }, { text: '4E' }] }";
    // A wrong answer is waited with, since the right one may follow.
    let checks = checks(kind).replace("timeout: 10s", "timeout: 3s");
    let (proxy, _) = proxy_to(&[&endpoint], &checks, 1).await;
    assert_eq!(flags(&proxy, &endpoint).await, "healthy");
    answers.store(0, Ordering::SeqCst);
    wait_flags(&proxy, &endpoint, "/failed_active_hc/active_hc_timeout").await;
    answers.store(1, Ordering::SeqCst);
    wait_flags(&proxy, &endpoint, "healthy").await;
}

/// A gRPC server that answers health checks with this status (1 is SERVING).
async fn grpc_endpoint(serving: Arc<AtomicUsize>) -> Endpoint {
    let (listener, held) = held_listener().await;
    let state = Arc::new(State::default());
    let seen = Arc::clone(&state);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (serving, seen) = (Arc::clone(&serving), Arc::clone(&seen));
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await?;
                while let Some(request) = connection.accept().await {
                    let (request, mut respond) = request?;
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.uri().authority().unwrap().as_str(), "health.example");
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    assert_eq!(request.headers()["x-token"], "secret");
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                    let status = serving.load(Ordering::SeqCst) as u8;
                    let head = http_response("application/grpc");
                    let mut body = respond.send_response(head, false)?;
                    body.send_data(vec![0, 0, 0, 0, 2, 8, status].into(), false)?;
                    let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
                    body.send_trailers(trailers.into_iter().collect())?;
                }
                Ok::<(), h2::Error>(())
            });
        }
    });
    Endpoint::of(held, state, task.abort_handle())
}

fn http_response(content_type: &str) -> ::http::Response<()> {
    ::http::Response::builder().header("content-type", content_type).body(()).unwrap()
}

#[tokio::test]
async fn grpc_checks_ask_for_a_service() {
    let serving = Arc::new(AtomicUsize::new(1));
    let endpoint = grpc_endpoint(Arc::clone(&serving)).await;
    let kind = "grpc_health_check: { service_name: billing, authority: health.example, \
                initial_metadata: [{ header: { key: x-token, value: secret } }] }";
    let (proxy, _) = proxy_to(&[&endpoint], &format!("{}{}", checks(kind), config::HTTP2), 1).await;
    assert_eq!(flags(&proxy, &endpoint).await, "healthy");
    serving.store(2, Ordering::SeqCst);
    wait_flags(&proxy, &endpoint, "/failed_active_hc").await;
    proxy.stat_is(&check_stat("network_failure"), 0).await;
    serving.store(1, Ordering::SeqCst);
    wait_flags(&proxy, &endpoint, "healthy").await;
    assert!(endpoint.requests() >= 4);
}

#[tokio::test]
async fn a_successful_check_ends_an_ejection() {
    let (good, bad) = (Endpoint::start(200).await, Endpoint::start(500).await);
    let outliers = ", outlier_detection: { consecutive_5xx: 2, interval: 100s, max_ejection_percent: 50 }";
    // Checks expect what the endpoint answers, so they never mind.
    let fields = format!(
        "{outliers}{}",
        checks("http_health_check: { path: /, expected_statuses: [{ start: 200, end: 600 }] }")
    );
    let (proxy, web) = proxy_to(&[&good, &bad], &fields, 1).await;
    eventually("it was ejected", async || {
        statuses(web, 2).await;
        match proxy.stat(&outlier_stat("ejections_enforced_total")).await {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    bad.set(200);
    wait_flags(&proxy, &bad, "healthy").await;
    proxy.stat_is(&outlier_stat("ejections_active"), 0).await;
}

#[tokio::test]
async fn checks_go_to_another_port_and_skip_who_asks_for_that() {
    let (traffic, checked, unchecked) =
        (Endpoint::start(200).await, Endpoint::start(200).await, Endpoint::start(200).await);
    let endpoint = |port: u16, config: String| {
        format!(
            "{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}, \
             health_check_config: {{ {config} }} }} }}"
        )
    };
    let endpoints = [
        endpoint(traffic.port(), format!("port_value: {}, hostname: other.example", checked.port())),
        endpoint(unchecked.port(), "disable_active_health_check: true".into()),
    ];
    let cluster = format!(
        "{{ name: c, type: STATIC, connect_timeout: 5s{}, load_assignment: {{ cluster_name: c, endpoints: [{{ \
         lb_endpoints: [{}] }}] }} }}",
        checks("http_health_check: { path: /healthz }"),
        endpoints.join(", ")
    );
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster])).await;
    proxy.wait_stat(&check_stat("success"), |count| count > 3).await;
    assert!(checked.requests() > 3);
    assert_eq!((traffic.requests(), unchecked.requests()), (0, 0));
    assert_eq!((&*flags(&proxy, &traffic).await, &*flags(&proxy, &unchecked).await), ("healthy", "healthy"));
    checked.set(500);
    wait_flags(&proxy, &traffic, "/failed_active_hc").await;
    proxy.stat_is("cluster.c.membership_healthy", 1).await;
}

#[tokio::test]
async fn what_counts_as_an_error_can_be_said() {
    let (teapot, failing) = (Endpoint::start(418).await, Endpoint::start(500).await);
    let options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let fields = format!(
        ", outlier_detection: {{ consecutive_5xx: 3, interval: 100s, max_ejection_percent: 50 }}, \
         typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ '@type': {options}, \
         explicit_http_config: {{ http_protocol_options: {{}} }}, outlier_detection: {{ error_matcher: {{ \
         http_response_headers_match: {{ headers: [{{ name: ':status', string_match: {{ exact: '418' }} }}] }} }} }} }} }}"
    );
    let (proxy, web) = proxy_to(&[&teapot, &failing], &fields, 1).await;
    statuses(web, 8).await;
    wait_flags(&proxy, &teapot, "/failed_outlier_check").await;
    assert_eq!(flags(&proxy, &failing).await, "healthy");
}

#[tokio::test]
async fn tcp_sessions_end_with_the_health_of_their_endpoint_when_asked_for() {
    let (traffic, checked) = (Endpoint::start(200).await, Endpoint::start(200).await);
    let cluster = format!(
        "{{ name: c, type: STATIC, connect_timeout: 5s, close_connections_on_host_health_failure: true{}, \
         load_assignment: {{ cluster_name: c, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ \
         socket_address: {{ address: 127.0.0.1, port_value: {} }} }}, \
         health_check_config: {{ port_value: {} }} }} }}] }}] }} }}",
        checks("http_health_check: { path: /healthz }"),
        traffic.port(),
        checked.port()
    );
    let listener = config::listener("tcp", &[chain(&config::tcp("c"), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster])).await;
    let mut client = h1::Client::connect(proxy.listener("tcp").await).await;
    assert_eq!(client.request("GET", "/", &[], b"").await.status, 200);
    checked.set(500);
    client.ended().await;
    wait_flags(&proxy, &traffic, "/failed_active_hc").await;
}

#[tokio::test]
async fn a_response_can_take_its_endpoint_out_at_once() {
    let (good, leaving) = (Endpoint::start(200).await, Endpoint::start(200).await);
    let kind = "http_health_check: { path: /healthz }";
    let slow = checks(kind).replace("interval: 0.1s", "interval: 100s");
    let (proxy, web) = proxy_to(&[&good, &leaving], &slow, 1).await;
    leaving.state.leaves.store(true, Ordering::SeqCst);
    let flagged = "/failed_active_hc/excluded_via_immediate_hc_fail";
    eventually(flagged, async || {
        statuses(web, 2).await;
        let seen = flags(&proxy, &leaving).await;
        if seen == flagged { Ok(()) } else { Err(seen) }
    })
    .await;
    proxy.stat_is("cluster.c.membership_excluded", 1).await;
    // More than one if it answered again before that was known.
    proxy.wait_stat(&check_stat("passive_failure"), |count| count >= 1).await;
    let requests = leaving.requests();
    statuses(web, 10).await;
    assert_eq!(leaving.requests(), requests);
}

/// A cluster `c` of discovered endpoints that are checked.
fn discovered(fields: &str) -> String {
    let kind = checks("http_health_check: { path: /healthz }").replace("$dir/events.log", "/dev/null");
    let source = config::ADS;
    format!(
        "{{ name: c, type: EDS, connect_timeout: 5s, eds_cluster_config: {{ eds_config: {source} }}{kind}{fields} }}"
    )
}

fn gone(proxy: &Proxy, endpoint: &Endpoint) -> impl Future<Output = ()> {
    eventually("the endpoint is gone", async || match &*flags(proxy, endpoint).await {
        "" => Ok(()),
        seen => Err(seen.to_owned()),
    })
}

#[tokio::test]
async fn endpoints_that_discovery_forgot_stay_while_they_are_well() {
    let (staying, leaving) = (Endpoint::start(200).await, Endpoint::start(200).await);
    let both = endpoints("c", &[staying.port(), leaving.port()]);
    let one = endpoints("c", &[staying.port()]);
    let mock = MockControlPlane::start().await;
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
    let push = |all: &[String]| mock.set_yaml(&resources(all)).unwrap();
    push(&[resource("cds", &discovered("")), resource("eds", &both), resource("lds", &listener)]);
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    let web = proxy.listener("web").await;
    wait_flags(&proxy, &leaving, "healthy").await;
    push(&[resource("eds", &one)]);
    wait_flags(&proxy, &leaving, "/pending_dynamic_removal").await;
    let before = leaving.requests();
    assert!(statuses(web, 10).await.iter().all(|status| *status == 200));
    assert!(leaving.requests() > before);
    // Discovery may change its mind.
    push(&[resource("eds", &both)]);
    wait_flags(&proxy, &leaving, "healthy").await;
    push(&[resource("eds", &one)]);
    wait_flags(&proxy, &leaving, "/pending_dynamic_removal").await;
    leaving.set(503);
    gone(&proxy, &leaving).await;
    proxy.stat_is("cluster.c.membership_total", 1).await;
    assert!(statuses(web, 4).await.iter().all(|status| *status == 200));

    leaving.set(200);
    push(&[resource("cds", &discovered(", ignore_health_on_host_removal: true")), resource("eds", &both)]);
    wait_flags(&proxy, &leaving, "healthy").await;
    push(&[resource("eds", &one)]);
    gone(&proxy, &leaving).await;
}

#[tokio::test]
async fn a_changed_cluster_serves_once_its_endpoints_were_checked() {
    let (old, new) = (Endpoint::start(200).await, Endpoint::start(0).await);
    let mock = MockControlPlane::start().await;
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
    let kind = checks("http_health_check: { path: /healthz }")
        .replace("$dir/events.log", "/dev/null")
        .replace("timeout: 10s", "timeout: 5s");
    let cluster = |port: u16| resource("cds", &cluster_with("c", &[port], &kind));
    mock.set_yaml(&resources(&[cluster(old.port()), resource("lds", &listener)])).unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsSotw, mock.address().port())).await;
    let web = proxy.listener("web").await;
    assert_eq!(flags(&proxy, &old).await, "healthy");
    // Nobody answers the first check of the new one, so the old one serves until that is certain.
    let (silent, held) = held_listener().await;
    let slow = Endpoint::of(held, Arc::default(), tokio::spawn(async {}).abort_handle());
    mock.set_yaml(&resources(&[cluster(slow.port())])).unwrap();
    let (_checked, _) = within("the new one is checked", silent.accept()).await.unwrap();
    assert_eq!((&*flags(&proxy, &old).await, statuses(web, 1).await), ("healthy", vec![200]));
    eventually("the check has failed", async || match flags(&proxy, &slow).await {
        seen if seen.starts_with("/failed_active_hc") => Ok(()),
        seen => Err(seen),
    })
    .await;
    new.set(200);
    mock.set_yaml(&resources(&[cluster(new.port())])).unwrap();
    wait_flags(&proxy, &new, "healthy").await;
    eventually("the new one serves", async || match statuses(web, 1).await[0] {
        200 => Ok(()),
        seen => Err(seen.to_string()),
    })
    .await;
}

#[tokio::test]
async fn checks_use_the_transport_and_the_version_that_they_are_told() {
    let authority = Authority::new();
    let trusted = Upstream::tls("trusted", authority.issue(&["up.example"]).server(&["h2"])).await;
    let foreign = Upstream::tls("foreign", Authority::new().issue(&["up.example"]).server(&["h2"])).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let tls = format!(
        ", transport_socket: {{ name: tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: up.example, \
         common_tls_context: {{ validation_context: {{ trusted_ca: {{ filename: '{}' }} }} }} }} }}",
        ca.display()
    );
    let kind = checks(
        "tls_options: { alpn_protocols: [h2] }, http_health_check: { path: /healthz, codec_client_type: HTTP2 }",
    );
    let clusters = [cluster_with("c", &[trusted.port(), foreign.port()], &format!("{kind}{tls}"))];
    let proxy = Proxy::start(&bootstrap(&[], &clusters)).await;
    let flags_of = async |upstream: &Upstream| {
        let prefix = format!("c::{}::health_flags::", upstream.address());
        let page = proxy.admin("/clusters").await.text();
        page.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
    };
    assert_eq!((&*flags_of(&trusted).await, &*flags_of(&foreign).await), ("healthy", "/failed_active_hc"));
    let seen = trusted.wait("several checks", |counts| counts.requests > 3).await;
    assert_eq!(seen.connections, 1, "one connection serves them all");
    assert_eq!(foreign.counts().requests, 0);
}
