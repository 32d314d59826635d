//! Authorization servers that fail, with retry policies: the same filter, server and requests for Envoy and for the proxy
//! under test.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::path::PathBuf;

use outrigger_tests::config::{bootstrap, chain, http, http2_cluster, listener, routes};
use outrigger_tests::h1::Client;
use outrigger_tests::side_by_side::{Intended, compare};
use outrigger_tests::{Proxy, Settings, Upstream, proxy};

const INTENDED: Intended = &[];

/// Cases that are tried again, by listener.
const POLICIES: [(&str, Option<&str>); 6] = [
    ("none", None),
    ("unnamed", Some("")),
    ("errors", Some("5xx")),
    ("gateway", Some("gateway-error")),
    ("resets", Some("reset")),
    ("conflicts", Some("retriable-4xx")),
];

const REPLIES: [&str; 8] =
    ["status=200", "status=403", "status=409", "status=429", "status=500", "status=502", "status=503", "reset"];

/// A listener whose requests the cluster `authz` is asked about.
fn asking(name: &str, retry_on: Option<&str>) -> String {
    // Envoy limits each attempt by the longest pause.
    let retries = retry_on.map_or_else(String::new, |names| {
        format!(
            ", retry_policy: {{ retry_on: '{names}', num_retries: 2, retry_back_off: {{ base_interval: 0.001s, \
             max_interval: 60s }} }}"
        )
    });
    let filter = format!(
        "http_filters: [{{ name: authz, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz, transport_api_version: V3, \
         allowed_headers: {{ patterns: [{{ exact: x-reply }}] }}, http_service: {{ \
         server_uri: {{ uri: 'http://authz/', cluster: authz, timeout: 60s }}{retries} }} }} }}, "
    );
    let manager = http(name, &routes("{ match: { prefix: / }, direct_response: { status: 204 } }"));
    listener(name, &[chain(&manager.replace("http_filters: [", &filter), "")], "")
}

async fn observed(program: PathBuf) -> Vec<(&'static str, Vec<String>)> {
    let server = Upstream::start("authz").await;
    let listeners = POLICIES.map(|(name, retry_on)| asking(name, retry_on));
    let clusters = [http2_cluster("authz", &[server.port()])];
    let proxy = Proxy::start_with(&bootstrap(&listeners, &clusters), Settings { program, ..Settings::default() }).await;
    let mut all = Vec::new();
    for (name, _) in POLICIES {
        let mut client = Client::connect(proxy.listener(name).await).await;
        let mut seen = Vec::new();
        for reply in REPLIES {
            let before = server.counts().requests;
            let status = client.request("GET", "/", &[("x-reply", reply)], b"").await.status;
            seen.push(format!("{reply}: {status} after {} questions", server.counts().requests - before));
        }
        let page = proxy.admin(&format!("/stats?filter=http.{name}.ext_authz")).await.text();
        let counted = page.lines().filter(|line| !line.ends_with(": 0"));
        seen.extend(counted.map(str::to_owned));
        all.push((name, seen));
    }
    all
}

#[tokio::test]
async fn servers_that_fail_are_asked_again_as_by_envoy() {
    let expected = observed(proxy::envoy()).await;
    let seen = observed(proxy::program()).await;
    let mut report = String::new();
    for ((name, expected), (_, seen)) in expected.into_iter().zip(seen) {
        compare(&mut report, INTENDED, name, expected, seen);
    }
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
}
