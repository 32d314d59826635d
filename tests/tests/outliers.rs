//! Outlier detection in numbers: the same requests to the same endpoints give the same stats as with Envoy.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster_with, http, routes};
use outrigger_tests::{Proxy, Settings, eventually, h1, proxy};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// An endpoint with one answer to everything, until it is told another.
struct Endpoint {
    address: SocketAddr,
    answer: watch::Sender<&'static str>,
    task: AbortHandle,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    /// `answer` is a status, and headers that end in `\r\n`.
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, answer) = watch::channel(answer);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut line = String::new();
                    while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
                        if line == "\r\n" {
                            let head = format!("HTTP/1.1 {}content-length: 0\r\n\r\n", *answer.borrow());
                            if stream.write_all(head.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                        line.clear();
                    }
                });
            }
        });
        Self { address, answer: sender, task: task.abort_handle() }
    }
}

const GOOD: &str = "200 OK\r\n";
const ERROR: &str = "500 Error\r\n";
const UNAVAILABLE: &str = "503 Unavailable\r\n";
const DEGRADED: &str = "200 OK\r\nx-envoy-degraded: true\r\n";

/// A proxy with these endpoints in a cluster that detects outliers.
struct Side {
    proxy: Proxy,
    web: SocketAddr,
    endpoints: Vec<Endpoint>,
}

impl Side {
    async fn start(program: PathBuf, detection: &str, answers: &[&'static str]) -> Self {
        Self::start_with(program, detection, answers, "").await
    }

    /// As [`Self::start`]; `events.log` tells of ejections.
    async fn start_logging(program: PathBuf, detection: &str, answers: &[&'static str]) -> Self {
        let log = "cluster_manager: { outlier_detection: { event_log_path: '$dir/events.log' } }\n";
        Self::start_with(program, detection, answers, log).await
    }

    async fn start_with(program: PathBuf, detection: &str, answers: &[&'static str], more: &str) -> Self {
        let mut endpoints = Vec::new();
        for answer in answers {
            endpoints.push(Endpoint::start(answer).await);
        }
        let ports: Vec<u16> = endpoints.iter().map(|endpoint| endpoint.address.port()).collect();
        let fields = format!(
            ", outlier_detection: {{ {detection} }}, common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}"
        );
        let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
        let settings = Settings { program, ..Settings::default() };
        let text = bootstrap(&[listener], &[cluster_with("c", &ports, &fields)]) + more;
        let proxy = Proxy::start_with(&text, settings).await;
        let web = proxy.listener("web").await;
        Self { proxy, web, endpoints }
    }

    async fn requests(&self, count: usize) {
        let mut client = h1::Client::connect(self.web).await;
        for _ in 0..count {
            client.request("GET", "/", &[], b"").await;
        }
    }

    async fn stat(&self, name: &str) -> u64 {
        self.proxy.stat(&format!("cluster.c.outlier_detection.{name}")).await
    }

    async fn wait(&self, name: &str, wanted: u64) {
        self.proxy.wait_stat(&format!("cluster.c.outlier_detection.{name}"), |value| value == wanted).await;
    }

    /// All stats of outlier detection that are not zero, and the flags of all endpoints.
    async fn seen(&self) -> (BTreeMap<String, u64>, Vec<String>) {
        let page = self.proxy.admin("/stats?filter=outlier_detection").await.text();
        let stats = page.lines().filter_map(|line| {
            let (name, value) = line.strip_prefix("cluster.c.outlier_detection.")?.split_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?)).filter(|(_, value)| *value != 0)
        });
        let page = self.proxy.admin("/clusters").await.text();
        let flags = self.endpoints.iter().map(|endpoint| {
            let prefix = format!("c::{}::health_flags::", endpoint.address);
            page.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
        });
        let mut flags: Vec<String> = flags.collect();
        flags.sort();
        (stats.collect(), flags)
    }
}

/// Runs a scenario on both; what ours shows, which is what Envoy shows.
async fn same(
    detection: &str,
    answers: &[&'static str],
    scenario: impl AsyncFn(&Side),
) -> (BTreeMap<String, u64>, Vec<String>) {
    let ours = Side::start(proxy::program(), detection, answers).await;
    scenario(&ours).await;
    let theirs = Side::start(proxy::envoy(), detection, answers).await;
    scenario(&theirs).await;
    eventually("both show the same", async || {
        let (seen, expected) = (ours.seen().await, theirs.seen().await);
        if seen == expected { Ok(seen) } else { Err(format!("{detection}: {seen:?}, with Envoy {expected:?}")) }
    })
    .await
}

#[tokio::test]
async fn what_is_not_enforced_is_counted_only() {
    let detection = "consecutive_5xx: 3, enforcing_consecutive_5xx: 0, consecutive_gateway_failure: 3, interval: 100s, \
                     max_ejection_percent: 100";
    let (stats, flags) = same(detection, &[GOOD, UNAVAILABLE], async |side| {
        // One request after the other, each judged before the next: three rows of three.
        for row in 1..=3 {
            side.requests(6).await;
            side.wait("ejections_detected_consecutive_5xx", row).await;
            side.wait("ejections_detected_consecutive_gateway_failure", row).await;
        }
    })
    .await;
    assert_eq!((stats["ejections_detected_consecutive_5xx"], stats.get("ejections_enforced_total")), (3, None));
    assert_eq!(flags, ["healthy", "healthy"]);
}

#[tokio::test]
async fn no_more_are_ejected_than_the_limit_allows() {
    // Two of five are 40 %, three would be 60 %.
    let detection = "consecutive_5xx: 1, interval: 100s, max_ejection_percent: 50";
    let (stats, _) = same(detection, &[ERROR; 5], async |side| {
        for count in 1..=5 {
            side.requests(1).await;
            side.wait("ejections_detected_consecutive_5xx", count).await;
        }
    })
    .await;
    assert_eq!((stats["ejections_active"], stats["ejections_overflow"]), (2, 3));
}

#[tokio::test]
async fn a_limit_of_nothing_spares_all_but_one_where_that_is_asked_for() {
    for (more, active) in [("", None), (", always_eject_one_host: true", Some(&1))] {
        let detection = format!("consecutive_5xx: 1, interval: 100s, max_ejection_percent: 0{more}");
        let (stats, _) = same(&detection, &[ERROR; 3], async |side| {
            for count in 1..=3 {
                side.requests(1).await;
                side.wait("ejections_detected_consecutive_5xx", count).await;
            }
        })
        .await;
        assert_eq!(stats.get("ejections_active"), active, "{more}");
    }
}

#[tokio::test]
async fn endpoints_that_succeed_less_often_than_others_are_ejected() {
    let statistics = "consecutive_5xx: 100000, consecutive_gateway_failure: 100000, interval: 3s, \
                      base_ejection_time: 100s, max_ejection_percent: 50, success_rate_minimum_hosts: 5, \
                      success_rate_request_volume: 5, success_rate_stdev_factor: 1000, \
                      failure_percentage_minimum_hosts: 5, failure_percentage_request_volume: 5";
    let answers = [GOOD, GOOD, GOOD, GOOD, ERROR];
    // With both enforced Envoy counts one ejection twice, so that is not compared.
    for (more, stat) in [
        ("", "ejections_enforced_success_rate"),
        (", enforcing_success_rate: 0, enforcing_failure_percentage: 100", "ejections_enforced_failure_percentage"),
    ] {
        let detection = format!("{statistics}{more}");
        let (stats, flags) = same(&detection, &answers, async |side| {
            eventually(stat, async || {
                side.requests(50).await;
                match side.stat(stat).await {
                    1 => Ok(()),
                    count => Err(count.to_string()),
                }
            })
            .await;
            side.wait("ejections_enforced_total", 1).await;
        })
        .await;
        assert_eq!(stats["ejections_active"], 1);
        assert_eq!(flags, ["/failed_outlier_check", "healthy", "healthy", "healthy", "healthy"]);
    }
}

#[tokio::test]
async fn endpoints_that_say_so_are_degraded_for_a_while() {
    let detection = "interval: 100s, detect_degraded_hosts: true";
    let (_, flags) = same(detection, &[GOOD, DEGRADED], async |side| {
        side.requests(2).await;
        eventually("one is degraded", async || match &*side.seen().await.1[0] {
            "healthy" => Err("healthy".to_owned()),
            _ => Ok(()),
        })
        .await;
    })
    .await;
    assert_eq!(flags, ["/degraded_outlier_detection", "healthy"]);
}

/// Ejections of one endpoint, one after the other.
#[derive(Debug)]
struct Ejections {
    /// Seconds between the return before and this one; whole ones, rounded down. `None` for the first.
    since: Option<u64>,
    /// Seconds that it lasted, likewise.
    lasted: u64,
}

/// Those that are over, from the event log.
fn ejections(log: &str) -> Vec<Ejections> {
    let mut ejections: Vec<Ejections> = Vec::new();
    let mut since = None;
    // The last line may not be whole yet.
    for event in log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        let seconds = event["secs_since_last_action"].as_str().and_then(|seconds| seconds.parse().ok());
        match event["action"].as_str() {
            Some("UNEJECT") => ejections.push(Ejections { since, lasted: seconds.unwrap() }),
            _ => since = seconds.filter(|_| !ejections.is_empty()),
        }
    }
    ejections
}

/// Whether ejections took as long as they must: a second more each time up to the limit of three, and after the fifth in a
/// row no longer than that. A row is broken where the endpoint was well for an interval, which makes the next one shorter.
fn grow_up_to_the_limit(ejections: &[Ejections]) -> bool {
    let mut row = 0;
    ejections.iter().any(|Ejections { since, lasted }| {
        row = if since.is_none_or(|seconds| seconds < 2) { row + 1 } else { 0 };
        assert!(*lasted >= row.min(3), "{ejections:?}");
        row >= 5 && *lasted < 5
    })
}

#[tokio::test]
async fn ejections_grow_with_each_one_up_to_the_limit_as_with_envoy() {
    let detection = "consecutive_5xx: 1, interval: 2s, base_ejection_time: 1s, max_ejection_time: 3s, \
                     max_ejection_percent: 100";
    let watch = async |program: PathBuf| {
        let side = Side::start_logging(program, detection, &[ERROR]).await;
        let log = side.proxy.file("events.log");
        // Whenever it is back it fails at once. A row may be broken on a slow machine, and the next one begins.
        let whole = async {
            loop {
                side.requests(1).await;
                if grow_up_to_the_limit(&ejections(&std::fs::read_to_string(&log).unwrap_or_default())) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(300), whole).await.expect("a row of five ejections");
    };
    tokio::join!(watch(proxy::program()), watch(proxy::envoy()));
}

#[tokio::test]
async fn an_endpoint_that_comes_back_is_tried_before_it_is_trusted() {
    let probation = "consecutive_5xx: 3, interval: 0.1s, base_ejection_time: 2s, max_ejection_percent: 50 }, \
                     metadata: { filter_metadata: { outrigger.outlier: { probation_requests: 2 } }";
    let side = Side::start(proxy::program(), probation, &[GOOD, ERROR]).await;
    let flags = async || side.seen().await.1[0].clone();
    let until = async |wanted: &str, traffic: usize| {
        eventually(wanted, async || {
            side.requests(traffic).await;
            match flags().await {
                seen if seen == wanted => Ok(()),
                seen => Err(seen),
            }
        })
        .await;
    };
    until("/failed_outlier_check", 2).await;
    until("/on_probation", 0).await;
    // One failure is enough now, where it takes three otherwise.
    let found = side.stat("ejections_detected_consecutive_5xx").await;
    until("/failed_outlier_check", 1).await;
    side.wait("ejections_detected_consecutive_5xx", found + 1).await;
    // Two successes are owed.
    side.endpoints[1].answer.send(GOOD).unwrap();
    until("/on_probation", 0).await;
    until("healthy", 2).await;
}
