//! One of three endpoints fails under load, in one way after the other: what is lost, and for how long.
//!
//! Owns the faults and the table. They happen in a network namespace of this process, so that dropping packets hurts
//! nobody else.

use std::process::Command;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::load::{self, Record};
use super::proxies::{Contender, Kind};

const RATE: u32 = 500;
const DURATION: Duration = Duration::from_secs(8);
const BEFORE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The process ends.
    Kill,
    /// Packets to it are dropped.
    Blackhole,
    /// It takes five seconds for each request.
    Slow,
    /// It answers 503.
    Errors,
    /// It dies and comes back, again and again.
    Flaps,
}

/// Goes on in a new network namespace, in which only the loopback interface exists: the process starts itself anew there.
///
/// # Errors
/// What is missing for that.
pub fn enter_namespace() -> Result<(), String> {
    const INSIDE: &str = "OUTRIGGER_BENCH_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        return match up {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("the loopback interface does not come up: {other:?}")),
        };
    }
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let status = Command::new("unshare").arg("--net").arg(own).arg("faults").env(INSIDE, "1").status();
    match status {
        Ok(status) if status.success() => std::process::exit(0),
        other => Err(format!("no network namespace (unshare, as root): {other:?}")),
    }
}

pub async fn run() {
    println!(
        "\nThree endpoints, {RATE} requests/s for {} s; after {} s one of them fails. The same outlier detection (3 \
         consecutive 5xx or gateway errors, 5 s), connect timeout 250 ms, route timeout 1 s.\n",
        DURATION.as_secs(),
        BEFORE.as_secs()
    );
    println!("| fault | proxy | lost | last lost after ms | p99 ms |");
    println!("| --- | --- | --- | --- | --- |");
    for fault in [Fault::Kill, Fault::Blackhole, Fault::Slow, Fault::Errors, Fault::Flaps] {
        for contender in contenders() {
            if let Some(record) = one(fault, &contender).await {
                let last = record
                    .failures
                    .iter()
                    .max()
                    .map_or("-".to_owned(), |last| last.saturating_sub(BEFORE).as_millis().to_string());
                println!(
                    "| {} | {} | {} | {last} | {:.1} |",
                    name(fault),
                    contender.name,
                    record.failures.len(),
                    record.quantile_ms(0.99)
                );
            }
        }
    }
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Kill => "killed",
        Fault::Blackhole => "packets dropped",
        Fault::Slow => "5 s a request",
        Fault::Errors => "answers 503",
        Fault::Flaps => "dies every 0.6 s for 0.3 s",
    }
}

async fn one(fault: Fault, contender: &Contender) -> Option<Record> {
    let service = Duration::from_millis(2);
    let endpoints =
        [Endpoint::start(64, service).await, Endpoint::start(64, service).await, Endpoint::start(64, service).await];
    let ports = endpoints.each_ref().map(Endpoint::port);
    let proxy = contender.start(&ports).await?;
    let load = tokio::spawn(load::run(proxy.address(), RATE, DURATION));
    tokio::time::sleep(BEFORE).await;
    let victim = &endpoints[1];
    let port = victim.port().to_string();
    match fault {
        Fault::Kill => victim.kill(),
        Fault::Blackhole => iptables("-A", &port),
        Fault::Slow => victim.set_service(Duration::from_secs(5)),
        Fault::Errors => victim.set_status(503),
        Fault::Flaps => {
            for _ in 0..8 {
                victim.kill();
                tokio::time::sleep(Duration::from_millis(300)).await;
                victim.revive().await;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
    }
    let record = load.await.ok();
    if matches!(fault, Fault::Blackhole) {
        iptables("-D", &port);
    }
    record
}

/// Drops what goes to a port, or no longer.
fn iptables(how: &str, port: &str) {
    let status = Command::new("iptables").args([how, "INPUT", "-p", "tcp", "--dport", port, "-j", "DROP"]).status();
    assert!(status.is_ok_and(|status| status.success()), "iptables");
}

fn contenders() -> Vec<Contender> {
    let cluster = ", circuit_breakers: { thresholds: [{ max_retries: 100 }] }, outlier_detection: { consecutive_5xx: 3, consecutive_gateway_failure: 3, \
        enforcing_consecutive_gateway_failure: 100, interval: 1s, base_ejection_time: 5s, max_ejection_percent: 50 }";
    let plain = ", timeout: 1s";
    let retry = ", timeout: 1s, retry_policy: { retry_on: '5xx,reset,connect-failure', num_retries: 2, \
        per_try_timeout: 0.3s, retry_host_predicate: [{ name: envoy.retry_host_predicates.previous_hosts, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate } }] }";
    let outrigger = |route: &str| Kind::Outrigger(cluster.to_owned(), route.to_owned());
    let envoy = |route: &str| Kind::Envoy(cluster.to_owned(), route.to_owned());
    let haproxy = |lines: &str| {
        let options = "observe layer7 on-error mark-down error-limit 3 check inter 5s fall 1 rise 1";
        Kind::HaProxy(format!("    balance roundrobin\n    timeout server 1s\n{lines}"), options.to_owned())
    };
    vec![
        Contender { name: "outrigger", kind: outrigger(plain) },
        Contender { name: "Envoy", kind: envoy(plain) },
        Contender { name: "HAProxy", kind: haproxy("    retries 0\n") },
        Contender { name: "outrigger, retries", kind: outrigger(retry) },
        Contender { name: "Envoy, retries", kind: envoy(retry) },
        Contender {
            name: "HAProxy, retries",
            kind: haproxy("    retries 2\n    retry-on all-retryable-errors\n    option redispatch 1\n"),
        },
    ]
}
