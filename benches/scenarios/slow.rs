//! Three endpoints, one of them twenty times slower, at seven tenths of what they can do together.
//!
//! Owns the scenario and its table.

use std::time::Duration;

use super::endpoint::Endpoint;
use super::load;
use super::proxies::{Contender, Kind};

/// Requests that an endpoint works on at a time.
const PLACES: usize = 4;
const SERVICE: Duration = Duration::from_millis(2);
const SLOWER: u32 = 20;
/// One of ten requests costs five times as much, so a fast endpoint does 4 / 2.8 ms = 1,429 requests a second and the
/// slow one 71: together 2,929.
const RATE: u32 = 2050;
const DURATION: Duration = Duration::from_secs(10);
/// Routes give up after this.
const TIMEOUT: &str = ", timeout: 5s";

pub async fn run() {
    println!(
        "Three endpoints of {PLACES} places, 2 ms a request, one of them 40 ms; {RATE} requests/s for {} s.\n",
        DURATION.as_secs()
    );
    println!("| proxy | p50 ms | p90 ms | p99 ms | p99.9 ms | failed | to the slow one |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for contender in contenders() {
        let endpoints = [
            Endpoint::start(PLACES, SERVICE).await,
            Endpoint::start(PLACES, SERVICE).await,
            Endpoint::start(PLACES, SERVICE * SLOWER).await,
        ];
        let ports = endpoints.each_ref().map(Endpoint::port);
        let Some(proxy) = contender.start(&ports).await else { continue };
        let record = load::run(proxy.address(), RATE, DURATION).await;
        let served: u64 = endpoints.iter().map(Endpoint::served).sum();
        println!(
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {:.1} % |",
            contender.name,
            record.quantile_ms(0.5),
            record.quantile_ms(0.9),
            record.quantile_ms(0.99),
            record.quantile_ms(0.999),
            record.failures.len(),
            endpoints[2].served() as f64 * 100.0 / served.max(1) as f64,
        );
    }
}

fn contenders() -> Vec<Contender> {
    let outrigger = |cluster: String| Kind::Outrigger(cluster, TIMEOUT.to_owned());
    let envoy = |cluster: &str| Kind::Envoy(cluster.to_owned(), TIMEOUT.to_owned());
    let haproxy = |balance: &str, options: &str| Kind::HaProxy(format!("    balance {balance}\n"), options.to_owned());
    let policy = |name: &str| {
        format!(
            ", load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: policy, typed_config: {{ \
             '@type': type.googleapis.com/{name} }} }} }}] }}"
        )
    };
    let queue = |cluster: &str| {
        format!(
            "{cluster}, typed_extension_protocol_options: {{ outrigger.upstream: {{ \
             '@type': type.googleapis.com/outrigger.upstream.v1.ConcurrencyOptions, max_requests: {PLACES} }} }}"
        )
    };
    let least = ", lb_policy: LEAST_REQUEST";
    let ewma = policy("outrigger.lb.v1.PeakEwma");
    vec![
        Contender { name: "outrigger, round robin", kind: outrigger(String::new()) },
        Contender { name: "outrigger, least request", kind: outrigger(least.to_owned()) },
        Contender { name: "outrigger, peak EWMA", kind: outrigger(ewma.clone()) },
        Contender { name: "outrigger, round robin, queue", kind: outrigger(queue("")) },
        Contender { name: "outrigger, least request, queue", kind: outrigger(queue(least)) },
        Contender { name: "outrigger, peak EWMA, queue", kind: outrigger(queue(&ewma)) },
        Contender { name: "Envoy, round robin", kind: envoy("") },
        Contender { name: "Envoy, least request", kind: envoy(least) },
        Contender { name: "HAProxy, roundrobin", kind: haproxy("roundrobin", "") },
        Contender { name: "HAProxy, leastconn", kind: haproxy("leastconn", "") },
        Contender { name: "HAProxy, leastconn, maxconn 4", kind: haproxy("leastconn", "maxconn 4") },
    ]
}
