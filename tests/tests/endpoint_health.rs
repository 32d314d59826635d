//! Endpoints that fail are left out and come back: by the results of requests.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster_with, http, routes};
use outrigger_tests::{Proxy, Settings, eventually, h1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// An HTTP/1.1 endpoint whose answers a scenario changes while it runs.
struct Endpoint {
    address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

#[derive(Default)]
struct State {
    /// 0 closes the connection instead of answering.
    status: AtomicU16,
    requests: AtomicUsize,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    async fn start(status: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { status: status.into(), requests: AtomicUsize::new(0) });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&shared)));
            }
        });
        Self { address, state, task: task.abort_handle() }
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
                let head = format!("HTTP/1.1 {status} Told\r\ncontent-length: 0\r\n\r\n");
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
    let fields = ", outlier_detection: { consecutive_5xx: 5, interval: 0.1s, base_ejection_time: 1s, \
                  max_ejection_percent: 50 }";
    let (proxy, web) = proxy_to(&[&good, &other, &bad], fields, 4).await;
    while bad.requests() < 5 {
        statuses(web, 1).await;
    }
    wait_flags(&proxy, &bad, "/failed_outlier_check").await;
    assert_eq!(proxy.stat("cluster.c.membership_healthy").await, 2);
    assert_eq!(proxy.stat(&outlier_stat("ejections_active")).await, 1);
    let requests = bad.requests();
    assert!(statuses(web, 12).await.iter().all(|status| *status == 200));
    assert_eq!(bad.requests(), requests, "an ejected endpoint gets no requests");
    bad.set(200);
    wait_flags(&proxy, &bad, "healthy").await;
    assert_eq!(proxy.stat("cluster.c.membership_healthy").await, 3);
    assert!(statuses(web, 12).await.iter().all(|status| *status == 200));
    assert!(bad.requests() > requests, "it takes part again");
    for (stat, value) in [
        ("ejections_active", 0),
        ("ejections_consecutive_5xx", 1),
        ("ejections_detected_consecutive_5xx", 1),
        ("ejections_enforced_consecutive_5xx", 1),
        ("ejections_enforced_total", 1),
        ("ejections_overflow", 0),
    ] {
        assert_eq!(proxy.stat(&outlier_stat(stat)).await, value, "{stat}");
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
    assert_eq!(proxy.stat(&outlier_stat("ejections_enforced_total")).await, 0);
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
    assert_eq!(proxy.stat(&outlier_stat("ejections_detected_consecutive_5xx")).await, 1);
}

#[tokio::test]
async fn endpoints_that_cannot_be_reached_are_ejected_for_tcp_too() {
    let good = Endpoint::start(200).await;
    let gone = Endpoint::start(200).await;
    gone.task.abort();
    let ports = [good.port(), gone.port()];
    let fields = ", outlier_detection: { consecutive_5xx: 2, interval: 100s, max_ejection_percent: 50 }";
    let clusters = [cluster_with("c", &ports, fields)];
    let listener = config::listener("tcp", &[chain(&config::tcp_with("cluster: c, max_connect_attempts: 2"), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let address = proxy.listener("tcp").await;
    eventually("the endpoint refuses", async || match TcpStream::connect(gone.address).await {
        Ok(_) => Err("it accepts".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    for _ in 0..4 {
        assert_eq!(h1::Client::connect(address).await.request("GET", "/", &[], b"").await.status, 200);
    }
    wait_flags(&proxy, &gone, "/failed_outlier_check").await;
    let failed = proxy.stat("cluster.c.upstream_cx_connect_fail").await;
    assert_eq!(failed, 2);
    h1::Client::connect(address).await.request("GET", "/", &[], b"").await;
    assert_eq!(proxy.stat("cluster.c.upstream_cx_connect_fail").await, failed);
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
    closes.task.abort();
    eventually("out of reach", async || {
        statuses(web, 2).await;
        let seen = flags(&proxy, &closes).await;
        if seen == "/failed_outlier_check" { Ok(()) } else { Err(seen) }
    })
    .await;
    let found = proxy.stat(&outlier_stat("ejections_enforced_consecutive_local_origin_failure")).await;
    assert_eq!((found, proxy.stat(&outlier_stat("ejections_detected_consecutive_5xx")).await), (1, 0));
}
