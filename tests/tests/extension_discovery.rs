//! Listener, network and HTTP filters from a control plane (ECDS): they arrive, change, are refused and go, and connections and requests
//! follow.

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{
    self, ADS, Xds, access_log_of, ads_bootstrap, all_to, chain, cluster, resource, resources, tcp,
};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, SOON, Settings, Upstream, eventually, h1, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// A listener whose one filter is discovered under the name `filter`.
fn listener(more: &str) -> String {
    let filter =
        format!("{{ name: filter, config_discovery: {{ config_source: {ADS}, type_urls: [{TCP_PROXY}]{more} }} }}");
    resource("lds", &config::listener("tcp", &[chain(&filter, "")], ""))
}

/// The filter: a TCP proxy to a cluster.
fn filter(to: &str) -> String {
    let typed = tcp(to).replace("name: envoy.filters.network.tcp_proxy,", "name: filter,");
    resource("envoy.config.core.v3.TypedExtensionConfig", &typed)
}

/// What greets who connects; empty if the connection is closed at once.
async fn greeting(proxy: &Proxy) -> String {
    let mut stream = TcpStream::connect(proxy.listener("tcp").await).await.unwrap();
    // A peer closes once it has read to the end. What was closed already cannot be closed again.
    let _ = stream.shutdown().await;
    let mut text = String::new();
    // A reset says as little as an end.
    let _ = within("a greeting", stream.read_to_string(&mut text)).await;
    text
}

async fn greets(proxy: &Proxy, text: &str) {
    eventually("the right peer greets", async || match greeting(proxy).await {
        found if found == text => Ok(()),
        found => Err(found),
    })
    .await;
}

#[tokio::test]
async fn a_discovered_filter_arrives_changes_and_goes() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let peers =
            [Peer::start(Conduct::Greet(b"a".to_vec())).await, Peer::start(Conduct::Greet(b"b".to_vec())).await];
        let mock = MockControlPlane::start().await;
        let clusters =
            [("a", &peers[0]), ("b", &peers[1])].map(|(name, peer)| resource("cds", &cluster(name, &[peer.port()])));
        mock.set_yaml(&resources(&clusters)).unwrap();
        mock.set_yaml(&resources(&[listener("")])).unwrap();
        // The listener waits for its filter.
        mock.hold("ecds");
        mock.set_yaml(&resources(&[filter("a")])).unwrap();
        let settings = Settings { await_ready: false, ..Settings::default() };
        let proxy = Proxy::start_with(&ads_bootstrap(how, mock.address().port()), settings).await;
        mock.wait_ack("lds", SOON).await.unwrap();
        assert_eq!(proxy.admin("/ready").await.status, 503, "{how:?}");
        mock.release("ecds");
        proxy.wait_ready().await;
        greets(&proxy, "a").await;
        let address = proxy.listener("tcp").await;

        mock.set_yaml(&resources(&[filter("b")])).unwrap();
        greets(&proxy, "b").await;
        assert_eq!(proxy.listener("tcp").await, address);

        // One of another type is refused, and the last good one stays.
        let wrong = filter("a").replace(
            TCP_PROXY,
            "type.googleapis.com/envoy.extensions.filters.network.\
            http_connection_manager.v3.HttpConnectionManager",
        );
        let wrong = wrong.replace("stat_prefix: tcp, cluster: a", "stat_prefix: x, route_config: {}");
        mock.set_yaml(&resources(&[wrong])).unwrap();
        let nack = mock.wait_nack("ecds", SOON).await.unwrap();
        assert!(nack.error_detail.message.contains("filter"), "{}", nack.error_detail.message);
        assert_eq!(greeting(&proxy).await, "b");
        mock.set_yaml(&resources(&[filter("a")])).unwrap();
        greets(&proxy, "a").await;
        let prefix = "extension_config_discovery.network_filter.filter";
        proxy.wait_stat(&format!("{prefix}.update_success"), |count| count == 3).await;
        proxy.stat_is(&format!("{prefix}.update_rejected"), 1).await;
    }
}

#[tokio::test]
async fn a_default_serves_until_the_filter_arrives_and_again_when_it_is_gone() {
    let peers = [Peer::start(Conduct::Greet(b"a".to_vec())).await, Peer::start(Conduct::Greet(b"b".to_vec())).await];
    let mock = MockControlPlane::start().await;
    let default = format!(
        ", apply_default_config_without_warming: true, default_config: {{ '@type': {TCP_PROXY}, stat_prefix: default, cluster: b }}"
    );
    let clusters =
        [("a", &peers[0]), ("b", &peers[1])].map(|(name, peer)| resource("cds", &cluster(name, &[peer.port()])));
    mock.set_yaml(&resources(&clusters)).unwrap();
    mock.set_yaml(&resources(&[listener(&default)])).unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    greets(&proxy, "b").await;
    mock.set_yaml(&resources(&[filter("a")])).unwrap();
    greets(&proxy, "a").await;
    mock.remove("ecds", "filter");
    greets(&proxy, "b").await;
}

const MUTATION: &str = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

/// A listener for HTTP whose filters are `mark`, discovered, and the router.
fn http_listener(more: &str, router: &str) -> String {
    let routes = config::routes(&all_to("up"));
    let log = access_log_of("requests", "%RESPONSE_CODE% [%RESPONSE_FLAGS%]");
    let manager = config::http("http", &format!("{routes}{log}")).replace(
        "http_filters: [",
        &format!(
            "http_filters: [{{ name: mark, config_discovery: {{ config_source: {ADS}, type_urls: [{MUTATION}]{more} }} }}, "
        ),
    );
    let fixed = format!("typed_config: {{ '@type': {ROUTER} }}");
    assert!(manager.contains(&fixed), "{manager}");
    resource("lds", &config::listener("http", &[chain(&manager.replace(&fixed, router), "")], ""))
}

const FIXED_ROUTER: &str =
    "typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }";

/// What a filter that adds a response header is configured by.
fn marking(value: &str) -> String {
    format!(
        "'@type': {MUTATION}, mutations: {{ response_mutations: [{{ append: {{ header: {{ key: mark, value: {value} }} }} }}] }}"
    )
}

fn mark(value: &str) -> String {
    resource(
        "envoy.config.core.v3.TypedExtensionConfig",
        &format!("{{ name: mark, typed_config: {{ {} }} }}", marking(value)),
    )
}

/// Asks on this connection until the answer has this status and mark. New filters hold for connections that are there.
async fn answers(client: &mut h1::Client, status: u16, value: Option<&str>) {
    let client = tokio::sync::Mutex::new(client);
    eventually("the filters in force answer", async || {
        let response = client.lock().await.get("/").await;
        match (response.status, response.header("mark")) {
            found if found == (status, value) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn an_http_filter_arrives_changes_and_goes_for_connections_that_are_there() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let upstream = Upstream::start("up").await;
        let mock = MockControlPlane::start().await;
        mock.set_yaml(&resources(&[resource("cds", &cluster("up", &[upstream.port()]))])).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let listener = http_listener("", FIXED_ROUTER).replace("$dir", directory.path().to_str().unwrap());
        mock.set_yaml(&resources(&[listener])).unwrap();
        mock.hold("ecds");
        mock.set_yaml(&resources(&[mark("a")])).unwrap();
        let settings = Settings { await_ready: false, ..Settings::default() };
        let proxy = Proxy::start_in(directory, &ads_bootstrap(how, mock.address().port()), settings).await;
        mock.wait_ack("lds", SOON).await.unwrap();
        assert_eq!(proxy.admin("/ready").await.status, 503, "{how:?}");
        mock.release("ecds");
        proxy.wait_ready().await;
        let mut client = h1::Client::connect(proxy.listener("http").await).await;
        answers(&mut client, 200, Some("a")).await;
        mock.set_yaml(&resources(&[mark("b")])).unwrap();
        answers(&mut client, 200, Some("b")).await;

        // One of another type is refused, and the last good one stays.
        let wrong = mark("c").replace(MUTATION, "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors");
        let wrong = wrong.split(", mutations").next().unwrap().to_owned() + " } }";
        mock.set_yaml(&resources(&[wrong])).unwrap();
        let prefix = "extension_config_discovery.http_filter.mark";
        let rejected = if outrigger_tests::proxy::tests_envoy() { "config_fail" } else { "update_rejected" };
        proxy.wait_stat(&format!("{prefix}.{rejected}"), |count| count == 1).await;
        answers(&mut client, 200, Some("b")).await;

        if how == Xds::AdsDelta {
            mock.remove("ecds", "mark");
            answers(&mut client, 500, None).await;
            eventually("the answer is logged", async || {
                let log = std::fs::read_to_string(proxy.file("requests")).unwrap_or_default();
                if log.lines().any(|line| line == "500 [NFCF]") { Ok(()) } else { Err(log) }
            })
            .await;
            mock.set_yaml(&resources(&[mark("d")])).unwrap();
            answers(&mut client, 200, Some("d")).await;
        }
    }
}

#[tokio::test]
async fn a_default_of_an_http_filter_serves_until_it_arrives_and_the_router_may_be_discovered() {
    let upstream = Upstream::start("up").await;
    let mock = MockControlPlane::start().await;
    let default = format!(", apply_default_config_without_warming: true, default_config: {{ {} }}", marking("default"));
    let router = format!(
        "config_discovery: {{ config_source: {ADS}, type_urls: [{ROUTER}], default_config: {{ '@type': {ROUTER} }}, \
         apply_default_config_without_warming: true }}"
    );
    mock.set_yaml(&resources(&[resource("cds", &cluster("up", &[upstream.port()]))])).unwrap();
    let listener = http_listener(&default, &router).replace("$dir/requests", "/dev/null");
    mock.set_yaml(&resources(&[listener])).unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    let mut client = h1::Client::connect(proxy.listener("http").await).await;
    answers(&mut client, 200, Some("default")).await;
    mock.set_yaml(&resources(&[mark("a")])).unwrap();
    answers(&mut client, 200, Some("a")).await;
    mock.remove("ecds", "mark");
    answers(&mut client, 200, Some("default")).await;
}

const PROXY_PROTOCOL: &str = "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";

/// A listener whose listener filter is discovered under the name `first`.
fn inspected(more: &str) -> String {
    let log = access_log_of("connections", "%DOWNSTREAM_REMOTE_ADDRESS%");
    let filter = format!(
        ", listener_filters: [{{ name: first, config_discovery: {{ config_source: {ADS}, \
         type_urls: [{PROXY_PROTOCOL}]{more} }} }}]"
    );
    resource("lds", &config::listener("tcp", &[chain(&config::tcp_with(&format!("cluster: a{log}")), "")], &filter))
}

/// The listener filter: reads PROXY protocol headers.
fn header_filter(fields: &str) -> String {
    resource(
        "envoy.config.core.v3.TypedExtensionConfig",
        &format!("{{ name: first, typed_config: {{ '@type': {PROXY_PROTOCOL}{fields} }} }}"),
    )
}

/// What greets a client that begins with a PROXY protocol header; empty if the connection is closed.
async fn greeting_behind_a_header(proxy: &Proxy) -> String {
    let mut stream = TcpStream::connect(proxy.listener("tcp").await).await.unwrap();
    let mut text = String::new();
    // The connection may be closed by now.
    let _ = stream.write_all(b"PROXY TCP4 1.2.3.4 5.6.7.8 9 80\r\n").await;
    let _ = stream.shutdown().await;
    let _ = within("a greeting", stream.read_to_string(&mut text)).await;
    text
}

async fn greets_behind_a_header(proxy: &Proxy, text: &str) {
    eventually("the right peer greets", async || match greeting_behind_a_header(proxy).await {
        found if found == text => Ok(()),
        found => Err(found),
    })
    .await;
}

#[tokio::test]
async fn a_listener_filter_arrives_changes_and_goes() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let peer = Peer::start(Conduct::Greet(b"a".to_vec())).await;
        let mock = MockControlPlane::start().await;
        let directory = tempfile::tempdir().unwrap();
        mock.set_yaml(&resources(&[resource("cds", &cluster("a", &[peer.port()]))])).unwrap();
        mock.set_yaml(&resources(&[inspected("").replace("$dir", directory.path().to_str().unwrap())])).unwrap();
        // The listener waits for its filter.
        mock.hold("ecds");
        mock.set_yaml(&resources(&[header_filter("")])).unwrap();
        let settings = Settings { await_ready: false, ..Settings::default() };
        let proxy = Proxy::start_in(directory, &ads_bootstrap(how, mock.address().port()), settings).await;
        mock.wait_ack("lds", SOON).await.unwrap();
        assert_eq!(proxy.admin("/ready").await.status, 503, "{how:?}");
        mock.release("ecds");
        proxy.wait_ready().await;
        greets_behind_a_header(&proxy, "a").await;
        assert_eq!(proxy.lines("connections", 1).await[0], "1.2.3.4:9");

        mock.set_yaml(&resources(&[header_filter(", disallowed_versions: [V1]")])).unwrap();
        greets_behind_a_header(&proxy, "").await;
        mock.set_yaml(&resources(&[header_filter("")])).unwrap();
        greets_behind_a_header(&proxy, "a").await;

        // One of another type is refused, and the last good one stays.
        let other = "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
        mock.set_yaml(&resources(&[header_filter("").replace(PROXY_PROTOCOL, other)])).unwrap();
        let nack = mock.wait_nack("ecds", SOON).await.unwrap();
        assert!(nack.error_detail.message.contains("HttpInspector"), "{}", nack.error_detail.message);
        greets_behind_a_header(&proxy, "a").await;
        let prefix = "extension_config_discovery.tcp_listener_filter.first";
        proxy.wait_stat(&format!("{prefix}.update_success"), |count| count == 3).await;
        proxy.stat_is(&format!("{prefix}.update_rejected"), 1).await;

        if how == Xds::AdsDelta {
            // Without its filter a listener lets nobody in.
            mock.remove("ecds", "first");
            greets_behind_a_header(&proxy, "").await;
            let page = proxy.admin("/stats").await.text();
            let missing = page.lines().find(|line| line.contains(".extension_config_missing: "));
            assert!(missing.is_some_and(|line| !line.ends_with(": 0")), "{missing:?}");
        }
    }
}

#[tokio::test]
async fn a_default_of_a_listener_filter_serves_until_it_arrives() {
    let peer = Peer::start(Conduct::Greet(b"a".to_vec())).await;
    let mock = MockControlPlane::start().await;
    let default = format!(
        ", apply_default_config_without_warming: true, \
         default_config: {{ '@type': {PROXY_PROTOCOL}, disallowed_versions: [V1] }}"
    );
    mock.set_yaml(&resources(&[resource("cds", &cluster("a", &[peer.port()]))])).unwrap();
    mock.set_yaml(&resources(&[inspected(&default).replace("$dir/connections", "/dev/null")])).unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    assert_eq!(greeting_behind_a_header(&proxy).await, "");
    mock.set_yaml(&resources(&[header_filter("")])).unwrap();
    greets_behind_a_header(&proxy, "a").await;
    mock.remove("ecds", "first");
    greets_behind_a_header(&proxy, "").await;
}
