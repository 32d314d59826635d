//! Network filters from a control plane (ECDS): they arrive, change, are refused and go, and connections follow.

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{self, ADS, Xds, ads_bootstrap, chain, cluster, resource, resources, tcp};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, SOON, Settings, eventually, within};
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
        assert_eq!(proxy.stat(&format!("{prefix}.update_rejected")).await, 1);
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
