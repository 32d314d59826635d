//! Rules that come by extension config discovery, as agents put them in the place of modules that they cannot load.

use outrigger_tests::config::{bootstrap, cluster, listener};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{eventually, proxy};

use super::{Client, Workloads, chain};

fn rules(action: &str) -> String {
    format!(
        "version_info: '{action}'\nresources:\n- '@type': type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig\n  \
         name: guard\n  typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, \
         stat_prefix: guard, rules: {{ action: {action} }} }}\n"
    )
}

#[tokio::test]
async fn discovered_rules_are_enforced_and_replaced() {
    let peer = Peer::start(Conduct::Echo).await;
    let workloads = Workloads::new();
    let guard = "{ name: guard, config_discovery: { config_source: { resource_api_version: V3, path_config_source: \
        { path: $dir/guard.yaml } }, type_urls: [type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC] } }";
    let listener = listener("tcp", &[chain("tcp", &[guard.to_owned()], "")], "");
    let directory = workloads.directory();
    std::fs::write(directory.path().join("guard.yaml"), rules("ALLOW")).unwrap();
    let text = bootstrap(&[listener], &[cluster("peer", &[peer.port()])]);
    let proxy = outrigger_tests::Proxy::start_in(directory, &text, outrigger_tests::Settings::default()).await;
    let address = proxy.listener("tcp").await;
    assert!(!workloads.is_echoed(address, Client::Plain).await, "an empty list allows nobody");
    std::fs::write(proxy.file("new"), rules("DENY")).unwrap();
    std::fs::rename(proxy.file("new"), proxy.file("guard.yaml")).unwrap();
    eventually("the new rules are enforced", async || match workloads.is_echoed(address, Client::Plain).await {
        true => Ok(()),
        false => Err("still refused".to_owned()),
    })
    .await;
    proxy.wait_stat("guard.rbac.denied", |denied| denied >= 1).await;
    if !proxy::tests_envoy() {
        assert_eq!(peer.accepted(), 1, "refused connections lead nowhere");
    }
}
