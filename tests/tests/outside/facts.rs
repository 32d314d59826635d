//! What services are told of us, and what logs are told of questions: for Envoy and for the proxy under test.

use std::path::PathBuf;

use outrigger_tests::config::{self, access_log_of, bootstrap, chain, cluster, http, http2_cluster, routes, tcp};
use outrigger_tests::{AskedService, ProcessingService, Proxy, Settings, Upstream, h1, proxy};

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";
const ASKED: &str = "transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: asked }, timeout: 60s }";
const SERVER: &str =
    "transport_api_version: V3, http_service: { server_uri: { uri: 'http://one/', cluster: one, timeout: 60s } }";
const LOG: &str = "%FILTER_STATE(f0:PLAIN)% %FILTER_STATE(f0:FIELD:latency_us)% %FILTER_STATE(f0:FIELD:bytesSent)% \
    %FILTER_STATE(f0:FIELD:bytesReceived)% %FILTER_STATE(f0:FIELD:other)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%";
const METADATA: &str = "node: { metadata: { labels: { app: shop, version: 2, parts: [a] }, other: { a: b } }, ";

/// A listener whose HTTP filters are named `f0`, and so on.
fn listener(name: &str, filters: &[String]) -> String {
    let table = routes(
        "{ match: { prefix: /direct }, direct_response: { status: 204 } }, \
        { match: { prefix: / }, route: { cluster: one } }",
    );
    let manager = http(name, &format!("{table}{}", access_log_of(&format!("{name}.log"), LOG)));
    let all: String = filters
        .iter()
        .enumerate()
        .map(|(place, filter)| format!("{{ name: f{place}, typed_config: {{ '@type': {TYPES}.http.{filter} }} }}, "))
        .collect();
    config::listener(name, &[chain(&manager.replace("http_filters: [", &format!("http_filters: [{all}")), "")], "")
}

fn asks(more: &str) -> String {
    format!("ext_authz.v3.ExtAuthz, {ASKED}{more}")
}

/// So many words of a script.
fn words(count: usize, word: &str) -> String {
    (0..count).map(|number| format!("{word}=x-h{number}:v ")).collect()
}

/// What was measured is only said to be there.
fn shape(line: &str) -> String {
    let measured = |(place, word): (usize, &str)| match (place, word.parse::<u64>()) {
        (1..=3, Ok(number)) if number > 0 => "<number>".to_owned(),
        _ => word.to_owned(),
    };
    line.split(' ').enumerate().map(measured).collect::<Vec<_>>().join(" ")
}

struct Stage {
    proxy: Proxy,
    asked: AskedService,
    processor: ProcessingService,
    _one: Upstream,
}

impl Stage {
    async fn set(program: PathBuf) -> Self {
        let (one, asked, processor) =
            (Upstream::start("one").await, AskedService::start().await, ProcessingService::start().await);
        let network = format!(
            "{{ name: asks, typed_config: {{ '@type': {TYPES}.network.ext_authz.v3.ExtAuthz, stat_prefix: asks, {ASKED}, \
             bootstrap_metadata_labels_key: labels }} }}, {}",
            tcp("one")
        );
        let told = "request_attributes: ['request.headers[\"x-a\"]', 'request.path.startsWith(\"/a\")', '1 + 2', '3u', '1.5', \
            '\"a\" + \"b\"', 'xds.route_name', 'nothing', 'request.headers', '[1, 2]', 'request.size', 'null'], \
            response_attributes: ['response.code + 1', 'response.headers[\"x-none\"]', 'request.method']";
        let listeners = [
            listener("labels", &[asks(", bootstrap_metadata_labels_key: labels")]),
            listener("no-labels", &[asks(", bootstrap_metadata_labels_key: nothing")]),
            config::listener("tcp", &[chain(&network, "")], ""),
            listener("plain", &[asks("")]),
            listener("measured", &[asks(", emit_filter_state_stats: true")]),
            listener("fields", &[asks(", filter_metadata: { a: b }")]),
            listener("twice", &[asks(", emit_filter_state_stats: true"), asks(", emit_filter_state_stats: true")])
                .replace("name: f1", "name: f0"),
            listener("by-http", &[format!("ext_authz.v3.ExtAuthz, {SERVER}, emit_filter_state_stats: true")]),
            listener(
                "disabled",
                &[asks(", emit_filter_state_stats: true, filter_enabled: { default_value: { numerator: 0 } }")],
            ),
            listener("limited", &[asks(", enforce_response_header_limits: true")]),
            listener(
                "attributes",
                &[format!(
                    "ext_proc.v3.ExternalProcessor, grpc_service: {{ envoy_grpc: {{ cluster_name: processor }} }}, \
                 message_timeout: 60s, filter_metadata: {{ a: b }}, {told}"
                )],
            ),
        ];
        let clusters = [
            cluster("one", &[one.port()]),
            http2_cluster("asked", &[asked.port()]),
            http2_cluster("processor", &[processor.port()]),
        ];
        let text = bootstrap(&listeners, &clusters).replace("node: { ", METADATA);
        let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
        Self { proxy, asked, processor, _one: one }
    }

    async fn get(&self, listener: &str, target: &str, script: &str) -> String {
        let mut client = h1::Client::connect(self.proxy.listener(listener).await).await;
        let response = client.request("GET", target, &[("x-authz", script), ("x-a", "b")], b"").await;
        let added = response.headers.iter().filter(|(name, _)| name.starts_with("x-h")).count();
        format!("{listener} {target} {} with {added}", response.status)
    }

    async fn logged(&self, listener: &str, count: usize) -> Vec<String> {
        let lines = self.proxy.lines(&format!("{listener}.log"), count).await;
        lines.iter().map(|line| format!("{listener} logged {}", shape(line))).collect()
    }
}

async fn both<T: PartialEq + std::fmt::Debug>(observe: impl AsyncFn(Stage) -> T) -> T {
    let expected = observe(Stage::set(proxy::envoy()).await).await;
    let seen = observe(Stage::set(proxy::program()).await).await;
    assert_eq!(seen, expected);
    seen
}

#[tokio::test]
async fn services_hear_our_labels() {
    let told = both(async |stage: Stage| {
        let mut told = Vec::new();
        for listener in ["labels", "no-labels"] {
            stage.get(listener, "/", "").await;
        }
        let mut client = h1::Client::connect(stage.proxy.listener("tcp").await).await;
        assert_eq!(client.get("/").await.status, 200);
        told.extend(
            stage.asked.take_told().into_iter().filter(|line| line.contains("destination") && line.contains("labels")),
        );
        told
    })
    .await;
    assert!(told.len() == 3 && told[0].contains("\"app\": \"shop\"") && told[2].contains("shop"), "{told:?}");
}

#[tokio::test]
async fn questions_are_measured() {
    both(async |stage: Stage| {
        let mut seen = Vec::new();
        for (listener, target, script) in [
            ("plain", "/", ""),
            ("measured", "/", ""),
            ("measured", "/", "deny=401"),
            ("measured", "/", "fail"),
            ("measured", "/direct", ""),
            ("fields", "/", ""),
            ("by-http", "/", ""),
            ("disabled", "/", ""),
            ("twice", "/", ""),
        ] {
            seen.push(stage.get(listener, target, script).await);
        }
        for (listener, count) in [("plain", 1), ("measured", 4), ("fields", 1), ("by-http", 1), ("disabled", 1)] {
            seen.extend(stage.logged(listener, count).await);
        }
        // What a filter of the same name has left is left alone.
        for listener in ["measured", "twice"] {
            let name = format!("http.{listener}.ext_authz.filter_state_name_collision");
            seen.push(format!("{name} {}", stage.proxy.stat(&name).await));
        }
        seen
    })
    .await;
}

#[tokio::test]
async fn heads_stay_within_their_limits() {
    let seen = both(async |stage: Stage| {
        let mut seen = Vec::new();
        for (listener, target, script) in [
            ("limited", "/", words(60, "response")),
            ("limited", "/", words(110, "response")),
            ("limited", "/", words(110, "response-absent")),
            ("limited", "/direct", words(110, "response")),
            ("limited", "/", format!("deny=401 {}", words(110, "header"))),
            ("plain", "/", words(110, "response")),
            ("plain", "/", words(60, "set")),
            ("plain", "/", words(110, "set")),
        ] {
            seen.push(stage.get(listener, target, &script).await);
        }
        for (listener, count) in [("limited", 5), ("plain", 3)] {
            let details = stage.logged(listener, count).await;
            seen.extend(details);
            let page = stage.proxy.admin(&format!("/stats?filter=http.{listener}.ext_authz")).await.text();
            seen.extend(page.lines().filter(|line| !line.ends_with(": 0")).map(str::to_owned));
        }
        seen
    })
    .await;
    assert!(seen[1].contains(" 500 ") && seen[5].contains("200 with 110") && seen[7].contains(" 500 "), "{seen:#?}");
}

#[tokio::test]
async fn expressions_are_told_as_attributes() {
    let told = both(async |stage: Stage| {
        let status = stage.get("attributes", "/a/b", "").await;
        let told = stage.processor.take_told();
        let mut seen = vec![status];
        seen.extend(told.into_iter().filter(|line| line.contains("attribute")));
        seen
    })
    .await;
    assert!(told.iter().any(|line| line.contains("1 + 2")), "{told:?}");
}
