//! Services that fail, with retry policies: the same filters, services and requests for Envoy and for the proxy under test.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::path::PathBuf;

use outrigger_tests::config::{bootstrap, chain, cluster, http, http2_cluster, listener, routes};
use outrigger_tests::h1::Client;
use outrigger_tests::side_by_side::{Intended, assert_same};
use outrigger_tests::{AskedService, Proxy, Settings, Upstream, proxy};

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

/// Envoy limits each attempt by the longest pause.
fn policy(names: &str) -> String {
    format!(
        ", retry_policy: {{ retry_on: '{names}', num_retries: 2, retry_back_off: {{ base_interval: 0.001s, \
         max_interval: 60s }} }}"
    )
}

/// A listener with an HTTP filter.
fn with_filter(name: &str, kind: &str, fields: &str, route: &str) -> String {
    let filter = format!(
        "http_filters: [{{ name: asks, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.{kind}, {fields} }} }}, "
    );
    let manager = http(name, &routes(route));
    listener(name, &[chain(&manager.replace("http_filters: [", &filter), "")], "")
}

/// Its requests the cluster `authz` is asked about.
fn asking(name: &str, retry_on: Option<&str>) -> String {
    let retries = retry_on.map(policy).unwrap_or_default();
    let fields = format!(
        "transport_api_version: V3, allowed_headers: {{ patterns: [{{ exact: x-reply }}] }}, http_service: {{ \
         server_uri: {{ uri: 'http://authz/', cluster: authz, timeout: 60s }}{retries} }}"
    );
    with_filter(name, "ext_authz.v3.ExtAuthz", &fields, ANSWER)
}

/// The same of a service of gRPC; what it is to do is in `x-authz`.
fn asking_by_grpc(name: &str, retry_on: &str) -> String {
    let fields = format!(
        "transport_api_version: V3, grpc_service: {{ envoy_grpc: {{ cluster_name: asked }}, timeout: 60s{} }}",
        policy(retry_on)
    );
    with_filter(name, "ext_authz.v3.ExtAuthz", &fields, ANSWER)
}

/// The same of a service of limits.
fn limited(name: &str, retry_on: &str) -> String {
    let fields = format!(
        "domain: d, timeout: 60s, failure_mode_deny: true, rate_limit_service: {{ transport_api_version: V3, \
         grpc_service: {{ envoy_grpc: {{ cluster_name: asked }}{} }} }}",
        policy(retry_on)
    );
    // Direct responses have no limits.
    let route = "{ match: { prefix: / }, route: { cluster: one, rate_limits: [{ actions: [{ request_headers: { \
                 header_name: x-authz, descriptor_key: script } }] }] } }";
    with_filter(name, "ratelimit.v3.RateLimit", &fields, route)
}

const ANSWER: &str = "{ match: { prefix: / }, direct_response: { status: 204 } }";
const BY_GRPC: [&str; 4] = ["grpc-named", "grpc-others", "limits-named", "limits-others"];

async fn observed(program: PathBuf) -> Vec<(&'static str, Vec<String>)> {
    let (one, server, service) =
        (Upstream::start("one").await, Upstream::start("authz").await, AskedService::start().await);
    let mut listeners = POLICIES.map(|(name, retry_on)| asking(name, retry_on)).to_vec();
    listeners.extend([
        asking_by_grpc("grpc-named", "internal"),
        asking_by_grpc("grpc-others", "unavailable,5xx"),
        limited("limits-named", "internal"),
        limited("limits-others", "unavailable,5xx"),
    ]);
    let clusters = [
        cluster("one", &[one.port()]),
        http2_cluster("authz", &[server.port()]),
        http2_cluster("asked", &[service.port()]),
    ];
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
    for name in BY_GRPC {
        let mut client = Client::connect(proxy.listener(name).await).await;
        let mut seen = Vec::new();
        for script in ["meta=k:v", "deny", "over", "fail"] {
            let status = client.request("GET", "/", &[("x-authz", script)], b"").await.status;
            let told = service.take_told();
            let asked = |line: &&String| line.starts_with("authz: time") || line.starts_with("limits: domain");
            seen.push(format!("{script}: {status} after {} questions", told.iter().filter(asked).count()));
        }
        all.push((name, seen));
    }
    all
}

#[tokio::test]
async fn servers_that_fail_are_asked_again_as_by_envoy() {
    let expected = observed(proxy::envoy()).await;
    let seen = observed(proxy::program()).await;
    assert_same(INTENDED, expected, seen);
}
