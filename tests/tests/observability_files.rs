//! The dashboard and the alert rules in `deploy/observability` ask for nothing that a proxy does not have: neither this one
//! nor Envoy.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{self, Xds, ads_bootstrap, all_to, chain, cluster, http, resource, resources, routes};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, programs, proxy};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/observability").join(name)
}

/// The metrics in an expression, each with the labels that it is matched or grouped by.
fn asked_for(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let mut rest = text;
    while let Some(at) = rest.find("envoy_") {
        let name: String = rest[at..].chars().take_while(|character| is_name(*character)).collect();
        rest = &rest[at + name.len()..];
        // Labels have such names too.
        if matches!(
            name.as_str(),
            "envoy_cluster_name" | "envoy_response_code_class" | "envoy_http_conn_manager_prefix"
        ) {
            continue;
        }
        let labels = found.entry(name).or_default();
        if let Some(inside) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            let pairs = inside.0.split(',').filter_map(|pair| pair.split_once('='));
            labels.extend(pairs.map(|(label, _)| label.trim().to_owned()).filter(|label| label != "instance"));
        }
    }
    found
}

fn all_asked_for() -> BTreeMap<String, BTreeSet<String>> {
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(file("grafana-dashboard.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(expressions.len() > 20);
    let rules = std::fs::read_to_string(file("prometheus-rules.yaml")).unwrap();
    // Texts for people are no expressions.
    let rules = rules.lines().filter(|line| !line.contains("summary:") && !line.contains("description:"));
    asked_for(&expressions.into_iter().chain(rules).collect::<Vec<_>>().join("\n"))
}

#[tokio::test]
async fn both_proxies_have_what_the_dashboard_and_the_rules_ask_for() {
    let asked = all_asked_for();
    let upstream = Upstream::start("a").await;
    for program in [proxy::program(), proxy::envoy()] {
        let mock = MockControlPlane::start().await;
        let web = config::listener("web", &[chain(&http("web", &routes(&all_to("a"))), "")], "");
        mock.set_yaml(&resources(&[resource("cds", &cluster("a", &[upstream.port()])), resource("lds", &web)]))
            .unwrap();
        let settings = Settings { program: program.clone(), ..Settings::default() };
        let proxy = Proxy::start_with(&ads_bootstrap(Xds::AdsDelta, mock.address().port()), settings).await;
        let web = proxy.listener("web").await;
        assert_eq!(h1::get(web, "/").await.status, 200);
        let missing = eventually("all metrics", async || {
            // Histograms of Envoy appear when it merges them.
            let page = proxy.admin("/stats/prometheus").await.text();
            let missing: Vec<&String> = asked
                .iter()
                .filter(|(name, labels)| {
                    let mut lines = page.lines().filter_map(|line| line.strip_prefix(name.as_str()));
                    let begins = |line: &str| line.starts_with('{') || line.starts_with(' ');
                    let has = |line: &str| labels.iter().all(|label| line.contains(&format!("{label}=\"")));
                    !lines.any(|line| begins(line) && has(line))
                })
                .map(|(name, _)| name)
                .collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{} has no {missing:?}", program.display())) }
        });
        missing.await;
    }
}

#[tokio::test]
async fn the_rules_are_rules() {
    let path = file("prometheus-rules.yaml");
    let said =
        programs::run("promtool", &["check", "rules", &path.to_string_lossy()], &[], Duration::from_secs(300)).await;
    assert!(said.contains("SUCCESS: 8 rules found"), "{said}");
}
