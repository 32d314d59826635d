//! Clusters whose endpoints are host names: what their addresses are, and when they are asked for again.

use std::net::{IpAddr, SocketAddr};

use outrigger_tests::config::{all_to, bootstrap, chain, http, listener, routes};
use outrigger_tests::dns::{DnsServer, Say};
use outrigger_tests::{Proxy, Upstream, eventually, h1, proxy, upstream};

use super::resolver;

fn cluster(kind: &str, dns: u16, name: &str, port: u16, more: &str) -> String {
    format!(
        "{{ name: named, type: {kind}, connect_timeout: 2s, {}, load_assignment: {{ cluster_name: named, endpoints: [{{ \
         lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {name}, port_value: {port} }} }} }} }}] \
         }}] }}{more} }}",
        resolver(dns)
    )
}

async fn start(cluster: String) -> (Proxy, SocketAddr) {
    let web = listener("web", &[chain(&http("web", &routes(&all_to("named"))), "")], "");
    let proxy = Proxy::start(&bootstrap(&[web], &[cluster])).await;
    let address = proxy.listener("web").await;
    (proxy, address)
}

/// Who answers on a new connection, after which the upstream closes its own.
async fn answered_by(address: SocketAddr) -> String {
    let response = h1::Client::connect(address).await.request("GET", "/", &[("x-reply", "close")], b"").await;
    if response.status == 200 { response.served_by() } else { response.status.to_string() }
}

fn for_seconds(seconds: u32, addresses: &[&str]) -> Say {
    Say::Addresses(addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect(), seconds)
}

#[tokio::test]
async fn a_resolver_that_fails_takes_nothing_away() {
    let dns = DnsServer::start().await;
    let upstream = Upstream::start("one").await;
    dns.addresses("one.test", &["127.0.0.1"]);
    let rates = ", dns_refresh_rate: 0.3s, dns_failure_refresh_rate: { base_interval: 0.2s, max_interval: 0.4s }, \
        dns_lookup_family: V4_ONLY";
    let (proxy, address) = start(cluster("STRICT_DNS", dns.port(), "one.test", upstream.port(), rates)).await;
    assert_eq!(answered_by(address).await, "one");
    for say in [Say::Failure, Say::NoName] {
        // For Envoy a name that does not exist any more has no endpoints.
        if proxy::tests_envoy() && matches!(say, Say::NoName) {
            continue;
        }
        dns.set("one.test", say);
        let before = proxy.stat("cluster.named.update_failure").await;
        proxy.wait_stat("cluster.named.update_failure", |count| count >= before + 2).await;
        assert_eq!(answered_by(address).await, "one");
        proxy.stat_is("cluster.named.membership_total", 1).await;
    }
    dns.addresses("one.test", &["127.0.0.1", "127.0.0.2"]);
    proxy.wait_stat("cluster.named.membership_total", |count| count == 2).await;
}

#[tokio::test]
async fn answers_hold_as_long_as_they_say_where_that_is_wanted() {
    let dns = DnsServer::start().await;
    let upstream = Upstream::start("one").await;
    dns.set("one.test", for_seconds(1, &["127.0.0.1"]));
    let more = ", dns_refresh_rate: 600s, respect_dns_ttl: true, dns_lookup_family: V4_ONLY";
    let (_proxy, address) = start(cluster("STRICT_DNS", dns.port(), "one.test", upstream.port(), more)).await;
    assert_eq!(answered_by(address).await, "one");
    eventually("more questions", async || match dns.questions("one.test") {
        count if count >= 3 => Ok(()),
        count => Err(count.to_string()),
    })
    .await;
}

#[tokio::test]
async fn a_logical_name_that_moves_keeps_its_connections() {
    let dns = DnsServer::start().await;
    let (one, two) = upstream::pair("127.0.0.2").await;
    dns.addresses("moving.test", &["127.0.0.1"]);
    let more = ", dns_refresh_rate: 0.2s, dns_lookup_family: V4_ONLY";
    let (proxy, address) = start(cluster("LOGICAL_DNS", dns.port(), "moving.test", one.port(), more)).await;
    let mut client = h1::Client::connect(address).await;
    assert_eq!(client.get("/").await.served_by(), "one");
    dns.addresses("moving.test", &["127.0.0.2"]);
    let asked = dns.questions("moving.test");
    eventually("the new address", async || match dns.questions("moving.test") {
        count if count >= asked + 3 => Ok(()),
        count => Err(count.to_string()),
    })
    .await;
    if proxy::tests_envoy() {
        // There, whether the pooled connection serves on depends on who asks.
        return;
    }
    // What is there serves on, and is the only connection.
    assert_eq!(client.get("/").await.served_by(), "one");
    proxy.stat_is("cluster.named.upstream_cx_total", 1).await;
    assert_eq!(answered_by(address).await, "one");
    assert_eq!(client.get("/").await.served_by(), "two");
    assert_eq!(two.counts().connections, 1);
}

#[tokio::test]
async fn each_family_is_asked_for_as_configured() {
    let dns = DnsServer::start().await;
    let (four, _six) = upstream::pair("::1").await;
    dns.addresses("both.test", &["127.0.0.1", "::1"]);
    dns.addresses("four.test", &["127.0.0.1"]);
    dns.addresses("six.test", &["::1"]);
    for (family, name, expected) in [
        ("V4_ONLY", "both.test", "one"),
        ("V6_ONLY", "both.test", "two"),
        ("AUTO", "both.test", "two"),
        ("AUTO", "four.test", "one"),
        ("V4_PREFERRED", "both.test", "one"),
        ("V4_PREFERRED", "six.test", "two"),
    ] {
        let more = format!(", dns_lookup_family: {family}");
        let (proxy, address) = start(cluster("STRICT_DNS", dns.port(), name, four.port(), &more)).await;
        assert_eq!(answered_by(address).await, expected, "{family} {name}");
        proxy.stat_is("cluster.named.membership_total", 1).await;
    }
    let all = ", dns_lookup_family: ALL";
    let (proxy, _) = start(cluster("STRICT_DNS", dns.port(), "both.test", four.port(), all)).await;
    proxy.stat_is("cluster.named.membership_total", 2).await;
}

#[tokio::test]
async fn a_logical_name_with_both_families_is_reached_by_the_one_that_answers() {
    let dns = DnsServer::start().await;
    let six = Upstream::listen("six", SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0)), None).await;
    dns.addresses("both.test", &["127.0.0.1", "::1"]);
    let all = ", dns_lookup_family: ALL";
    let (_proxy, address) = start(cluster("LOGICAL_DNS", dns.port(), "both.test", six.port(), all)).await;
    assert_eq!(answered_by(address).await, "six");
}
