//! The same filters, routes and requests for Envoy and for the proxy under test, one beside the other.
//!
//! Owns how a case is sent, what of it is observed, and how two observations are compared. Never knows what is the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::{self, all_to, chain};
use crate::{LOOK_AGAIN, Proxy, Response, SOON, Settings, h1, h2c, proxy};

/// Differences that are meant, by case and the thing that differs; each with its reason.
pub type Intended = &'static [(&'static str, &'static str, &'static str)];

/// Headers of a request.
pub type Headers = &'static [(&'static str, &'static str)];

/// One request.
pub struct Case {
    /// What failures call it.
    pub name: &'static str,
    /// Where it is sent, by the name of a chain.
    pub listener: &'static str,
    /// Method.
    pub method: &'static str,
    /// Path with query.
    pub target: &'static str,
    /// Headers.
    pub headers: Headers,
    /// Body.
    pub body: &'static [u8],
    /// By HTTP/2 alone, since it is gRPC.
    pub grpc: bool,
}

/// A GET request.
pub const fn get(name: &'static str, listener: &'static str, target: &'static str, headers: Headers) -> Case {
    Case { name, listener, method: "GET", target, headers, body: b"", grpc: false }
}

/// A POST request with ten bytes.
pub const fn post(name: &'static str, listener: &'static str, target: &'static str, headers: Headers) -> Case {
    Case { name, listener, method: "POST", target, headers, body: b"0123456789", grpc: false }
}

/// A listener with HTTP filters.
pub struct Chain {
    /// Name of the listener, and prefix of its stats.
    pub name: &'static str,
    /// Names, types (after `envoy.extensions.filters.http.`) and fields of the filters before the router.
    pub filters: &'static [(&'static str, &'static str, &'static str)],
    /// Route entries besides the last one, which leads to cluster `one`; each ends with a comma. `$T/` stands for the
    /// URL of types.
    pub routes: &'static str,
    /// Fields of the virtual host.
    pub host: &'static str,
    /// What the log shows besides the outcome.
    pub log: &'static str,
    /// Prefix of the stats that are compared; none if empty.
    pub stats: &'static str,
}

/// A listener without further fields.
pub const fn chain_of(
    name: &'static str,
    filters: &'static [(&'static str, &'static str, &'static str)],
    routes: &'static str,
) -> Chain {
    Chain { name, filters, routes, host: "", log: "", stats: "" }
}

impl Chain {
    /// As YAML.
    pub fn listener(&self) -> String {
        let types = "type.googleapis.com/envoy.extensions.filters.http";
        let filter = |(name, message, settings): &(&str, &str, &str)| {
            let comma = if settings.is_empty() { "" } else { ", " };
            format!("{{ name: {name}, typed_config: {{ '@type': {types}.{message}{comma}{settings} }} }}, ")
        };
        let filters: String = self.filters.iter().map(filter).collect();
        let routes = format!("{}{}", self.routes, all_to("one"));
        let host = if self.host.is_empty() { String::new() } else { format!(", {}", self.host) };
        let name = self.name;
        let log = config::access_log_of(
            &format!("{name}.log"),
            &format!("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%{}", self.log),
        );
        let manager = format!(
            "{{ name: envoy.filters.network.http_connection_manager, typed_config: {{ \
             '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
             stat_prefix: {name}, http_filters: [{filters}{{ name: envoy.filters.http.router, typed_config: {{ \
             '@type': {types}.router.v3.Router }} }}], http_protocol_options: {{ enable_trailers: true }}, \
             route_config: {{ name: local, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}]{host} }}] }}{log} }} }}"
        );
        config::listener(name, &[chain(&manager.replace("$T/", &format!("{types}.")), "")], "")
    }
}

/// One proxy of the two that are compared.
pub struct Side {
    /// The proxy.
    pub proxy: Proxy,
    listeners: BTreeMap<&'static str, SocketAddr>,
    logged: BTreeMap<&'static str, usize>,
}

impl Side {
    /// Starts a proxy with listeners for all chains.
    pub async fn start(program: PathBuf, bootstrap: &str, chains: &[Chain]) -> Self {
        let proxy = Proxy::start_with(bootstrap, Settings { program, ..Settings::default() }).await;
        let mut listeners = BTreeMap::new();
        for chain in chains {
            listeners.insert(chain.name, proxy.listener(chain.name).await);
        }
        Self { proxy, listeners, logged: BTreeMap::new() }
    }

    /// Everything observable of one case, as lines that can be compared.
    pub async fn observe(&mut self, case: &Case) -> Vec<String> {
        let mut seen = if case.grpc { Vec::new() } else { self.observe_h1(case).await };
        seen.extend(self.observe_h2(case).await);
        seen
    }

    /// What one request over HTTP/1.1 gets, and what is logged of it.
    pub async fn observe_h1(&mut self, case: &Case) -> Vec<String> {
        let mut seen = Vec::new();
        let start = Instant::now();
        let request = h1::Client::connect(self.listeners[case.listener]).await;
        let response = { request }.request(case.method, case.target, case.headers, case.body).await;
        self.describe("h1", &response, &mut seen);
        seen.extend(waited(case, "h1", start.elapsed()));
        seen.push(format!("h1: logged {}", self.last_line(case.listener).await));
        seen
    }

    /// Likewise over HTTP/2.
    pub async fn observe_h2(&mut self, case: &Case) -> Vec<String> {
        let address = self.listeners[case.listener];
        let mut seen = Vec::new();
        let host = case.headers.iter().find(|(name, _)| *name == "host").map_or("example.com", |(_, value)| value);
        let headers: Vec<_> = case.headers.iter().copied().filter(|(name, _)| *name != "host").collect();
        let client = h2c::Client::connect(address).await.authority(host);
        let start = Instant::now();
        match client.try_request(case.method, case.target, &headers, case.body, &[]).await {
            Ok(response) => {
                self.describe("h2", &response, &mut seen);
                seen.extend(waited(case, "h2", start.elapsed()));
            }
            Err(error) => seen.push(format!("h2: no response: {error}")),
        }
        seen.push(format!("h2: logged {}", self.last_line(case.listener).await));
        seen
    }

    async fn last_line(&mut self, listener: &'static str) -> String {
        let count = self.logged.entry(listener).or_default();
        *count += 1;
        self.proxy.lines(&format!("{listener}.log"), *count).await.pop().unwrap_or_default()
    }

    fn describe(&self, how: &str, response: &Response, seen: &mut Vec<String>) {
        seen.push(format!("{how}: status {}", response.status));
        for (name, value) in &response.headers {
            seen.push(format!("{how}: header {name}: {}", self.steady(name, value)));
        }
        for (name, value) in &response.trailers {
            seen.push(format!("{how}: trailer {name}: {value}"));
        }
        let body = response.content();
        match serde_json::from_slice::<serde_json::Value>(&body) {
            Ok(report) if report["upstream"].is_string() => {
                for field in ["upstream", "method", "target", "authority", "body", "body_bytes", "trailers"] {
                    seen.push(format!("{how}: upstream sees {field} {}", report[field]));
                }
                for pair in report["headers"].as_array().into_iter().flatten() {
                    let (name, value) = (pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default());
                    seen.push(format!("{how}: upstream sees header {name}: {}", self.steady(name, value)));
                }
            }
            _ => seen.push(format!("{how}: body {:?}", String::from_utf8_lossy(&body))),
        }
        seen.sort();
    }

    /// A header value without what differs between any two runs.
    fn steady(&self, name: &str, value: &str) -> String {
        match name.to_ascii_lowercase().as_str() {
            "date" => "<date>".to_owned(),
            "x-request-id" if value.len() == 36 => "<uuid>".to_owned(),
            "x-envoy-upstream-service-time" => "<ms>".to_owned(),
            // What is left of seconds depends on the machine.
            "x-envoy-expected-rq-timeout-ms" => match value.parse::<u64>() {
                Ok(left) if left > 5000 => format!("up to {}", left.next_multiple_of(5000)),
                _ => value.to_owned(),
            },
            "x-ratelimit-reset" | "retry-after" if value.len() > 2 => "<seconds>".to_owned(),
            "content-length" if value.len() > 2 => "<length>".to_owned(),
            _ => value.to_owned(),
        }
    }

    /// Counters and gauges that are not 0, by prefix.
    pub async fn stats(&self, prefix: &str) -> Vec<String> {
        let page = self.proxy.admin("/stats").await.text();
        let lines = page.lines().filter(|line| line.starts_with(prefix));
        lines.filter(|line| !line.ends_with(": 0") && !line.contains("upstream_rq_time")).map(str::to_owned).collect()
    }
}

/// Whether an answer came no earlier than the request has asked for by the header of delays. How long others take is the
/// machine's doing.
fn waited(case: &Case, how: &str, took: Duration) -> Option<String> {
    let (_, delay) = case.headers.iter().find(|(name, _)| *name == "x-envoy-fault-delay-request")?;
    let delay = Duration::from_millis(delay.parse().ok()?);
    // Timers of whole milliseconds may be early by one, and clocks of two processes differ.
    Some(format!("{how}: waited for the delay: {}", took + Duration::from_millis(20) >= delay))
}

/// Sends all cases to both, and compares what they and the stats of all chains show. `ONLY_CASE` chooses cases by a part of
/// their names.
///
/// # Panics
/// If there is a difference that is not intended.
pub async fn same(bootstrap: &str, chains: &[Chain], cases: &[Case], intended: Intended) {
    let mut subject = Side::start(proxy::program(), bootstrap, chains).await;
    let mut envoy = Side::start(proxy::envoy(), bootstrap, chains).await;
    let only = std::env::var("ONLY_CASE").unwrap_or_default();
    let mut report = String::new();
    for case in cases.iter().filter(|case| case.name.contains(&only)) {
        compare(&mut report, intended, case.name, envoy.observe(case).await, subject.observe(case).await);
    }
    for chain in chains.iter().filter(|chain| !chain.stats.is_empty() && only.is_empty()) {
        compare_stats(&mut report, intended, chain.stats, &envoy, &subject).await;
    }
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
}

/// Compares the stats with a prefix once they have settled. Writes what differs for good into `report`.
pub async fn compare_stats(report: &mut String, intended: Intended, prefix: &str, envoy: &Side, subject: &Side) {
    let look = async || (envoy.stats(prefix).await, subject.stats(prefix).await);
    compare_settled(report, intended, prefix, look).await;
}

/// Compares what Envoy and the proxy show once it has settled: an answer may be with its client before all that belongs to
/// it is counted. Writes what differs for good into `report`.
pub async fn compare_settled(
    report: &mut String,
    intended: Intended,
    name: &str,
    look: impl AsyncFn() -> (Vec<String>, Vec<String>),
) {
    let deadline = Instant::now() + SOON;
    loop {
        let (expected, seen) = look().await;
        let mut different = String::new();
        compare(&mut different, intended, name, expected, seen);
        if different.is_empty() || Instant::now() >= deadline {
            return report.push_str(&different);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Compares lists of observations that have the same names in the same order.
///
/// # Panics
/// If there is a difference that is not intended.
pub fn assert_same<N: AsRef<str>>(intended: Intended, expected: Vec<(N, Vec<String>)>, seen: Vec<(N, Vec<String>)>) {
    assert_eq!(expected.len(), seen.len());
    let mut report = String::new();
    for ((name, expected), (_, seen)) in expected.into_iter().zip(seen) {
        compare(&mut report, intended, name.as_ref(), expected, seen);
    }
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
}

/// Writes what differs into `report`.
pub fn compare(report: &mut String, intended: Intended, name: &str, expected: Vec<String>, seen: Vec<String>) {
    let missing = expected.iter().filter(|line| !seen.contains(line)).map(|line| format!("  envoy: {line}"));
    let extra = seen.iter().filter(|line| !expected.contains(line)).map(|line| format!("  ours:  {line}"));
    let is_intended = |line: &str| {
        intended.iter().any(|(of, what, _reason)| (*of == "*" || name.starts_with(of)) && line.contains(what))
    };
    let different: Vec<String> = missing.chain(extra).filter(|line| !is_intended(line)).collect();
    if !different.is_empty() {
        writeln!(report, "{name}:\n{}", different.join("\n")).unwrap();
    }
}
