//! Runtime layers from a control plane: what they switch shows in traffic, and `/runtime` shows them.

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{self, ADS, Xds, ads_bootstrap, bootstrap, chain, http, resource, resources, routes};
use outrigger_tests::{Proxy, SOON, Settings, eventually, h1};

/// `new` while `feature.new` says so, else `old`.
fn listener() -> String {
    let answer = |text: &str| format!("direct_response: {{ status: 200, body: {{ inline_string: {text} }} }}");
    let list = format!(
        "{{ match: {{ prefix: /, runtime_fraction: {{ default_value: {{ numerator: 0 }}, runtime_key: feature.new }} }}, {} }}, \
         {{ match: {{ prefix: / }}, {} }}",
        answer("new"),
        answer("old")
    );
    config::listener("web", &[chain(&http("web", &routes(&list)), "")], "")
}

/// A static layer, two discovered ones, and the admin layer on top.
fn layers(source: &str) -> String {
    format!(
        "layered_runtime:
  layers:
  - {{ name: base, static_layer: {{ feature.new: 0, feature.other: unchanged }} }}
  - {{ name: first, rtds_layer: {{ name: runtime-0, rtds_config: {source} }} }}
  - {{ name: second, rtds_layer: {{ name: runtime-1, rtds_config: {source} }} }}
  - {{ name: admin, admin_layer: {{}} }}
"
    )
}

fn layer(name: &str, values: &str) -> String {
    resource("envoy.service.runtime.v3.Runtime", &format!("{{ name: {name}, layer: {{ {values} }} }}"))
}

async fn answers(proxy: &Proxy, text: &str) {
    let web = proxy.listener("web").await;
    eventually("the runtime decides", async || match h1::get(web, "/").await.text() {
        found if found == text => Ok(()),
        found => Err(found),
    })
    .await;
}

#[tokio::test]
async fn discovered_layers_switch_behaviour_and_are_shown() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let mock = MockControlPlane::start().await;
        mock.set_yaml(&resources(&[
            resource("lds", &listener()),
            layer("runtime-0", "feature.new: 100"),
            layer("runtime-1", "unrelated: 1"),
        ]))
        .unwrap();
        let text = format!("{}{}", ads_bootstrap(how, mock.address().port()), layers(ADS));
        let proxy = Proxy::start(&text).await;
        answers(&proxy, "new").await;
        mock.wait_ack("rtds", SOON).await.unwrap();
        let page = proxy.admin("/runtime").await.json();
        assert_eq!(page["layers"], serde_json::json!(["base", "first", "second", "admin"]), "{page}");
        let entry = &page["entries"]["feature.new"];
        assert_eq!(entry["final_value"], "100", "{page}");
        assert_eq!(entry["layer_values"], serde_json::json!(["0", "100", "", ""]), "{page}");

        // A later layer wins over an earlier one.
        mock.set_yaml(&resources(&[layer("runtime-1", "feature.new: 0")])).unwrap();
        answers(&proxy, "old").await;
        // Unless it says nothing about it.
        mock.set_yaml(&resources(&[layer("runtime-1", "unrelated: 2")])).unwrap();
        answers(&proxy, "new").await;
        // A fraction is as good as a number.
        mock.set_yaml(&resources(&[layer("runtime-0", "feature.new: { numerator: 0, denominator: HUNDRED }")]))
            .unwrap();
        answers(&proxy, "old").await;
        // The admin port has the last word.
        assert_eq!(proxy.admin_post("/runtime_modify?feature.new=100").await.status, 200);
        answers(&proxy, "new").await;
        assert_eq!(proxy.admin_post("/runtime_modify?feature.new=").await.status, 200);
        answers(&proxy, "old").await;
    }
}

#[tokio::test]
async fn a_layer_that_is_removed_or_wrong_gives_way_or_stays() {
    let mock = MockControlPlane::start().await;
    mock.set_yaml(&resources(&[resource("lds", &listener()), layer("runtime-0", "feature.new: 100")])).unwrap();
    let text = format!("{}{}", ads_bootstrap(Xds::AdsDelta, mock.address().port()), layers(ADS));
    let proxy = Proxy::start(&text).await;
    answers(&proxy, "new").await;
    // The other layer does not exist, which is no reason to wait.
    assert_eq!(proxy.admin("/ready").await.status, 200);
    mock.remove("rtds", "runtime-0");
    answers(&proxy, "old").await;
    let page = proxy.admin("/runtime").await.json();
    assert_eq!(page["entries"]["feature.new"]["final_value"], "0", "{page}");
}

#[tokio::test]
async fn a_layer_may_come_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let write = |values: &str| {
        std::fs::write(path.join("new"), resources(&[layer("runtime-0", values)])).unwrap();
        std::fs::rename(path.join("new"), path.join("runtime.yaml")).unwrap();
    };
    write("feature.new: 100");
    let source = "{ resource_api_version: V3, path_config_source: { path: $dir/runtime.yaml } }";
    let text = format!("{}{}", bootstrap(&[listener()], &[]), layers(source));
    let proxy = Proxy::start_in(directory, &text, Settings::default()).await;
    answers(&proxy, "new").await;
    write("feature.new: 0");
    answers(&proxy, "old").await;
}
