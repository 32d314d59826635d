//! Dynamic forward proxies: requests and connections go to whatever host they name.

use std::net::SocketAddr;

use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::{access_log_of, bootstrap, chain, listener, tcp};
use outrigger_tests::dns::{DnsServer, Say};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, proxy, upstream, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::resolver;

fn cache(dns: u16, more: &str) -> String {
    format!("dns_cache_config: {{ name: names, dns_lookup_family: V4_ONLY, {}{more} }}", resolver(dns))
}

fn cluster(cache: &str, more: &str) -> String {
    format!(
        "{{ name: anywhere, connect_timeout: 2s, lb_policy: CLUSTER_PROVIDED, cluster_type: {{ \
         name: envoy.clusters.dynamic_forward_proxy, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, \
         {cache} }} }}{more} }}"
    )
}

/// A connection manager with the filter, and these routes.
fn manager(cache: &str, routes: &str) -> String {
    format!(
        "{{ name: envoy.filters.network.http_connection_manager, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: web, http_filters: [{{ name: forward, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig, \
         {cache} }} }}, {{ name: envoy.filters.http.router, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}], \
         route_config: {{ name: local, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}] }}] }}{} }} }}",
        access_log_of("log.txt", "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%"),
    )
}

const ALL: &str = "{ match: { prefix: / }, route: { cluster: anywhere } }";

fn per_route(path: &str, rewrite: &str) -> String {
    format!(
        "{{ match: {{ prefix: {path} }}, route: {{ cluster: anywhere }}, typed_per_filter_config: {{ forward: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig, \
         {rewrite} }} }} }}"
    )
}

async fn start(dns: &DnsServer, cache_more: &str, cluster_more: &str, routes: &str) -> (Proxy, SocketAddr) {
    let cache = cache(dns.port(), cache_more);
    let listener = listener("web", &[chain(&manager(&cache, routes), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster(&cache, cluster_more)])).await;
    let address = proxy.listener("web").await;
    (proxy, address)
}

async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> outrigger_tests::Response {
    h1::Client::connect(address).await.request("GET", path, headers, b"").await
}

#[tokio::test]
async fn requests_go_to_the_host_they_name() {
    let dns = DnsServer::start().await;
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    dns.addresses("one.test", &["127.0.0.1"]);
    dns.addresses("two.test", &["127.0.0.1"]);
    let routes = [
        per_route("/literal", &format!("host_rewrite_literal: 'two.test:{}'", two.port())),
        per_route("/header", "host_rewrite_header: x-to"),
        ALL.to_owned(),
    ];
    let (proxy, address) = start(&dns, "", "", &routes.join(", ")).await;
    let host = |name: &str, upstream: &Upstream| format!("{name}:{}", upstream.port());
    let (at_one, at_two) = (host("one.test", &one), host("two.test", &two));
    for _ in 0..3 {
        assert_eq!(get(address, "/", &[("host", &at_one)]).await.served_by(), "one");
    }
    assert_eq!(get(address, "/", &[("host", &at_two)]).await.served_by(), "two");
    let rewritten = get(address, "/literal", &[("host", "ignored.test")]).await;
    assert_eq!(rewritten.served_by(), "two");
    assert_eq!(two.seen().last().unwrap().authority, at_two);
    let by_header = get(address, "/header", &[("host", "ignored.test"), ("x-to", &at_one)]).await;
    assert_eq!((by_header.served_by(), one.seen().last().unwrap().authority.clone()), ("one".to_owned(), at_one));
    let literal = host("127.0.0.1", &one);
    assert_eq!(get(address, "/", &[("host", &literal)]).await.served_by(), "one");
    assert_eq!((dns.questions("one.test"), dns.questions("two.test")), (1, 1));
    for (stat, expected) in [("host_added", 3), ("num_hosts", 3), ("dns_query_success", 3), ("dns_query_failure", 0)] {
        proxy.stat_is(&format!("dns_cache.names.{stat}"), expected).await;
    }
}

#[tokio::test]
async fn names_that_do_not_resolve_are_answered_at_once_and_asked_for_again() {
    let dns = DnsServer::start().await;
    let upstream = Upstream::start("late").await;
    let more = ", dns_failure_refresh_rate: { base_interval: 0.2s, max_interval: 0.3s }";
    let (proxy, address) = start(&dns, more, "", ALL).await;
    let host = format!("late.test:{}", upstream.port());
    let failed = get(address, "/", &[("host", &host)]).await;
    assert_eq!((failed.status, failed.text()), (503, "DNS resolution failure".to_owned()));
    let line = proxy.lines("log.txt", 1).await.remove(0);
    assert!(line.starts_with("503 DF dns_resolution_failure"), "{line}");
    if proxy::tests_envoy() {
        // There a name that does not exist has been answered, and is asked for again after `dns_refresh_rate`.
        return;
    }
    dns.addresses("late.test", &["127.0.0.1"]);
    eventually("the name resolves", async || match get(address, "/", &[("host", &host)]).await {
        response if response.status == 200 => Ok(()),
        response => Err(response.text()),
    })
    .await;
    proxy.wait_stat("dns_cache.names.dns_query_failure", |seen| seen >= 1).await;
}

#[tokio::test]
async fn caches_have_limits() {
    let dns = DnsServer::start().await;
    let upstream = Upstream::start("one").await;
    dns.addresses("one.test", &["127.0.0.1"]);
    dns.set("slow.test", Say::Silence);
    let more = ", max_hosts: 2, dns_cache_circuit_breaker: { max_pending_requests: 1 }, dns_query_timeout: 5s";
    let (proxy, address) = start(&dns, more, "", ALL).await;
    let host = format!("one.test:{}", upstream.port());
    assert_eq!(get(address, "/", &[("host", &host)]).await.status, 200);
    let waiting = tokio::spawn(async move { get(address, "/", &[("host", "slow.test")]).await });
    eventually("the question", async || if dns.questions("slow.test") > 0 { Ok(()) } else { Err(String::new()) }).await;
    // One may wait; a name that is known does not have to.
    let overflow = get(address, "/", &[("host", "other.test")]).await;
    assert_eq!((overflow.status, overflow.text()), (503, "Dynamic forward proxy pending request overflow".to_owned()));
    if !proxy::tests_envoy() {
        assert_eq!(get(address, "/", &[("host", &host)]).await.status, 200);
    }
    let late = within("the query's limit", waiting).await.unwrap();
    assert_eq!((late.status, late.text()), (503, "DNS resolution failure".to_owned()));
    let full = get(address, "/", &[("host", "third.test")]).await;
    assert_eq!((full.status, full.text()), (503, "DNS cache overflow".to_owned()));
    for stat in ["host_overflow", "dns_rq_pending_overflow", "dns_query_timeout"] {
        proxy.stat_is(&format!("dns_cache.names.{stat}"), 1).await;
    }
    let lines = proxy.lines("log.txt", 4).await.join("\n");
    for part in ["503 - dynamic_forward_proxy_pending_request_overflow", "503 - dns_cache_overflow"] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
}

#[tokio::test]
async fn unused_names_are_forgotten_and_addresses_followed() {
    let dns = DnsServer::start().await;
    let (one, two) = upstream::pair("127.0.0.2").await;
    dns.set("moving.test", Say::Addresses(vec!["127.0.0.1".parse().unwrap()], 1));
    let more = ", dns_min_refresh_rate: 1s, host_ttl: 6s, dns_refresh_rate: 1s";
    let (proxy, address) = start(&dns, more, "", ALL).await;
    let host = format!("moving.test:{}", one.port());
    assert_eq!(get(address, "/", &[("host", &host)]).await.served_by(), "one");
    dns.set("moving.test", Say::Addresses(vec!["127.0.0.2".parse().unwrap()], 1));
    // Connections that are there serve on; new ones go to the new address.
    proxy.wait_stat("dns_cache.names.host_address_changed", |count| count == 2).await;
    assert_eq!(get(address, "/", &[("host", &host)]).await.served_by(), "one");
    eventually("the new address", async || {
        match get(address, "/", &[("host", &host), ("x-reply", "close")]).await.served_by() {
            by if by == "two" => Ok(()),
            by => Err(by),
        }
    })
    .await;
    assert!(two.counts().connections > 0);
    // A resolver that fails does not take the address away.
    dns.set("moving.test", Say::Failure);
    proxy.wait_stat("dns_cache.names.dns_query_failure", |count| count > 0).await;
    assert_eq!(get(address, "/", &[("host", &host)]).await.served_by(), "two");
    proxy.wait_stat("dns_cache.names.host_removed", |count| count == 1).await;
    proxy.stat_is("dns_cache.names.num_hosts", 0).await;
}

#[tokio::test]
async fn certificates_must_be_for_the_host_that_the_request_names() {
    let dns = DnsServer::start().await;
    let authority = Authority::new();
    let upstream = Upstream::tls("secure", authority.issue(&["good.test"]).server(&[])).await;
    dns.addresses("good.test", &["127.0.0.1"]);
    dns.addresses("bad.test", &["127.0.0.1"]);
    let tls = format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
         common_tls_context: {{ validation_context: {{ trusted_ca: {{ inline_string: \"{}\" }} }} }} }} }}",
        authority.pem().replace('\n', "\\n")
    );
    let (proxy, address) = start(&dns, "", &tls, ALL).await;
    let at = |name: &str| format!("{name}:{}", upstream.port());
    assert_eq!(get(address, "/", &[("host", &at("good.test"))]).await.served_by(), "secure");
    let bad = get(address, "/", &[("host", &at("bad.test"))]).await;
    assert_eq!(bad.status, 503, "{}", bad.text());
    proxy.stat_is("cluster.anywhere.ssl.fail_verify_san", 1).await;
    assert_eq!(get(address, "/", &[("host", &at("good.test"))]).await.served_by(), "secure");
}

#[tokio::test]
async fn connections_go_to_the_host_of_their_server_name() {
    let dns = DnsServer::start().await;
    let authority = Authority::new();
    let upstream = Upstream::tls("secure", authority.issue(&["by-sni.test"]).server(&[])).await;
    dns.addresses("by-sni.test", &["127.0.0.1"]);
    let cache = cache(dns.port(), "");
    let filter = format!(
        "{{ name: sni, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig, \
         port_value: {}, {cache} }} }}",
        upstream.port()
    );
    let inspector = ", listener_filters: [{ name: tls, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]";
    let chains = [format!("{{ filters: [{filter}, {}] }}", tcp("anywhere"))];
    let proxy = Proxy::start(&bootstrap(&[listener("tls", &chains, inspector)], &[cluster(&cache, "")])).await;
    let address = proxy.listener("tls").await;
    let mut stream = certificates::connect(address, "by-sni.test", authority.client(&[], None)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: by-sni.test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    within("the answer", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(dns.questions("by-sni.test"), 1);
    let unknown = certificates::connect(address, "unknown.test", authority.client(&[], None)).await;
    assert!(unknown.is_err());
}

/// Limits on requests in flight at each host, which others wait for.
fn limits(options: &str) -> String {
    format!(
        ", typed_extension_protocol_options: {{ limits: {{ \
         '@type': type.googleapis.com/outrigger.upstream.v1.ConcurrencyOptions, {options} }} }}"
    )
}

#[tokio::test]
async fn requests_wait_for_a_place_at_the_host_they_name() {
    let dns = DnsServer::start().await;
    let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
    dns.addresses("one.test", &["127.0.0.1"]);
    dns.addresses("two.test", &["127.0.0.1"]);
    let cache = cache(dns.port(), "");
    let listener = listener("web", &[chain(&manager(&cache, ALL), "")], "");
    let cluster = cluster(&cache, &limits("max_requests: 1"));
    // Any worker may serve any of them.
    let settings = Settings { concurrency: 4, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster]), settings).await;
    let address = proxy.listener("web").await;
    let host = |name: &str, upstream: &Upstream| format!("{name}:{}", upstream.port());
    let send =
        |host: String| tokio::spawn(async move { get(address, "/", &[("host", &host), ("x-reply", "gate")]).await });
    let mut sent = vec![send(host("one.test", &one))];
    one.wait("the first at its gate", |counts| counts.waiting == 1).await;
    for waiting in 1..=6 {
        sent.push(send(host("one.test", &one)));
        proxy.wait_stat("cluster.anywhere.queue.active", |active| active == waiting).await;
    }
    // Another host has a place of its own.
    sent.push(send(host("two.test", &two)));
    two.wait("the other at its gate", |counts| counts.waiting == 1).await;
    assert_eq!(one.counts().requests, 1);
    one.open_gate();
    two.open_gate();
    for response in sent {
        assert_eq!(within("a response", response).await.unwrap().status, 200);
    }
    assert_eq!((one.counts().peak, one.counts().requests, two.counts().requests), (1, 7, 1));
    proxy.wait_stat("cluster.anywhere.queue.active", |active| active == 0).await;
    // The one for the other host was asked to queue, too, and its turn came at once.
    assert_eq!(proxy.stat("cluster.anywhere.queue.total").await, 7);
}

#[tokio::test]
async fn names_do_not_lead_to_addresses_that_are_filtered() {
    let mut seen = Vec::new();
    for program in [proxy::program(), proxy::envoy()] {
        let dns = DnsServer::start().await;
        let upstream = Upstream::start("inside").await;
        dns.addresses("inside.test", &["127.0.0.1"]);
        dns.addresses("mixed.test", &["127.0.0.66", "127.0.0.1"]);
        let run = async |ranges: &str, host: &str| {
            let filter = format!(", resolved_address_filter: {{ {ranges} }}");
            let cache = cache(dns.port(), &filter);
            let listener = listener("web", &[chain(&manager(&cache, ALL), "")], "");
            let settings = Settings { program: program.clone(), ..Settings::default() };
            let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster(&cache, "")]), settings).await;
            let host = format!("{host}:{}", upstream.port());
            let response = get(proxy.listener("web").await, "/", &[("host", &host)]).await;
            let line = proxy.lines("log.txt", 1).await.remove(0);
            // What Envoy's details say of the reason is its own.
            let line: String = line.chars().take_while(|letter| *letter != '{').collect();
            (response.status, line)
        };
        let network =
            |prefix: &str, length: u8| format!("ranges: [{{ address_prefix: {prefix}, prefix_len: {length} }}]");
        seen.push([
            run(&network("127.0.0.0", 8), "inside.test").await,
            run(&network("10.0.0.0", 8), "inside.test").await,
            run(&format!("{}, invert_match: true", network("127.0.0.1", 32)), "inside.test").await,
            run(&network("127.0.0.64", 26), "mixed.test").await,
            run(&network("127.0.0.0", 8), "127.0.0.1").await,
        ]);
    }
    let failed = (503, "503 DF dns_resolution_failure".to_owned());
    let good = (200, "200 - via_upstream".to_owned());
    assert_eq!(seen[0], [failed.clone(), good.clone(), good.clone(), good, failed]);
    assert_eq!(seen[0], seen[1]);
}
