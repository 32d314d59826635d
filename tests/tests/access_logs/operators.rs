//! Each operator, in text and in JSON, for the same requests to Envoy and to the proxy under test.

use std::path::PathBuf;

use outrigger_tests::config::{self, bootstrap, chain, http, routes};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Settings, Upstream, h1, h2c, proxy};
use serde_json::Value;

use crate::setup::{clusters, file, logs, text};

/// Operators whose values are the same on both.
const SAME: &[&str] = &[
    "PATH",
    "PATH(NQ)",
    "PATH(WQ:PATH)",
    "PATH(NQ:ORIG)",
    "PATH:4",
    "PATH(NQ:ORIG_OR_PATH):3",
    "QUERY_PARAM(a)",
    "QUERY_PARAM(b):2",
    "QUERY_PARAM(none)",
    "QUERY_PARAM(flag)",
    "QUERY_PARAMS",
    "QUERY_PARAMS(ORIG):5",
    "QUERY_PARAMS(DECODED)",
    "REQUESTED_SERVER_NAME",
    "REQUESTED_SERVER_NAME(SNI_FIRST)",
    "REQUESTED_SERVER_NAME(HOST_FIRST:HOST)",
    "REQUESTED_SERVER_NAME(HOST_FIRST:ORIG)",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "PROTOCOL",
    "UPSTREAM_PROTOCOL",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "BYTES_RETRANSMITTED",
    "PACKETS_RETRANSMITTED",
    "RESPONSE_TRAILERS_BYTES",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_HOST",
    "UPSTREAM_HOST_NAME",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(8)",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_SERVER_NAME",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(24)",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TLS_GROUP",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_CERT",
    "TLS_JA3_FINGERPRINT",
    "ROUTE_NAME",
    "VIRTUAL_CLUSTER_NAME",
    "FILTER_CHAIN_NAME",
    "ACCESS_LOG_TYPE",
    "CUSTOM_FLAGS",
    "LOCAL_REPLY_BODY",
    "GRPC_STATUS",
    "TRACE_ID",
    "REQ(x-a?x-b)",
    "REQ(x-b?x-a):2",
    "RESP(x-upstream)",
    "TRAILER(x-none)",
    "METADATA(CLUSTER:m:text)",
    "METADATA(CLUSTER:m:deep:flag)",
    "CLUSTER_METADATA(m:number)",
    "METADATA(ROUTE:r:k)",
    "METADATA(DYNAMIC:none)",
    "ENVIRONMENT(OUTRIGGER_TESTS_NONE)",
    "COALESCE({\"operators\": [\"REQUESTED_SERVER_NAME\", {\"command\": \"REQ\", \"param\": \":authority\"}]})",
    "COALESCE({\"operators\": [{\"command\": \"REQ\", \"param\": \"x-none\"}, {\"command\": \"REQ\", \"param\": \"x-a\", \"max_length\": 2}]})",
    "COALESCE({\"operators\": [{\"command\": \"REQ\", \"param\": \"x-none\"}]})",
    "COMMON_DURATION(DS_RX_BEG:custom:ms)",
    "COMMON_DURATION(DS_CX_BEG:DS_CX_END:ms)",
    "ROUNDTRIP_DURATION",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "CEL(request.path)",
    "CEL(request.url_path):3",
    "CEL(request.query)",
    "CEL(request.method + request.path)",
    "CEL(request.headers['x-a'])",
    "CEL(request.headers['none'])",
    "CEL(request.headers['none'] == 'a' || request.method == 'GET')",
    "CEL('x-a' in request.headers)",
    "CEL(request.host)",
    "CEL(request.protocol)",
    "CEL(request.size)",
    "CEL(request.none)",
    "CEL(nothing)",
    "CEL(response.code)",
    "CEL(response.code >= 400)",
    "CEL(response.code_details)",
    "CEL(response.flags)",
    "CEL(response.size)",
    "CEL(response.grpc_status)",
    "CEL(connection.mtls)",
    "CEL(connection.requested_server_name)",
    "CEL(upstream.address)",
    "CEL(upstream.request_attempt_count)",
    "CEL(source.address.startsWith('127.0.0.1'))",
    "CEL(xds.cluster_name)",
    "CEL(xds.route_name)",
    "CEL(xds.cluster_metadata.filter_metadata['m']['text'])",
    "CEL(size(request.path))",
    "CEL(1 + 2 * 3)",
    "CEL(7 / 0)",
    "CEL(1.5)",
    "CEL(true ? 'a' : 'b')",
    "CEL(1 in [1, 2])",
    "CEL(duration('1h30m'))",
    "CEL(timestamp('2023-08-26T12:39:00-07:00'))",
    "CEL(request.path.matches('^/a'))",
    "CEL(has(request.headers))",
    "CEL(type(1) == int)",
    "TYPED_CEL(response.code)",
    "TYPED_CEL(connection.mtls)",
    "TYPED_CEL(request.path)",
    "TYPED_CEL([1, 'a', true])",
    "TYPED_CEL({'a': 1.5})",
    "TYPED_CEL(duration('1500ms'))",
    "TYPED_CEL(null)",
];

/// Operators whose values differ between any two runs; only whether there is one is compared.
const THERE: &[&str] = &[
    "START_TIME",
    "START_TIME_LOCAL(%s.%3f)",
    "EMIT_TIME",
    "EMIT_TIME(%Y %f)",
    "DURATION",
    "REQUEST_DURATION",
    "REQUEST_TX_DURATION",
    "RESPONSE_DURATION",
    "RESPONSE_TX_DURATION",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "COMMON_DURATION(DS_RX_BEG:DS_RX_END:us)",
    "COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)",
    "COMMON_DURATION(US_TX_BEG:US_TX_END:ns)",
    "COMMON_DURATION(US_TX_END:US_RX_BEG)",
    "COMMON_DURATION(US_RX_BEG:US_RX_END:ms)",
    "COMMON_DURATION(US_CX_BEG:US_CX_END:us)",
    "COMMON_DURATION(US_CX_END:US_HS_END:us)",
    "COMMON_DURATION(DS_TX_BEG:DS_TX_END:us)",
    "CONNECTION_ID",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_LOCAL_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_DIRECT_LOCAL_PORT",
    "STREAM_ID",
    "UNIQUE_ID",
    "HOSTNAME",
    "REQUEST_HEADERS_BYTES",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "CEL(request.time)",
    "CEL(request.id)",
    "CEL(connection.id)",
    "CEL(destination.port)",
];

/// Requests: a name, a method, a target and a body.
const REQUESTS: &[(&str, &str, &str, &[u8])] = &[
    ("forwarded", "GET", "/a/b?a=1&b=x%20y&flag&a=2", b""),
    ("with a body", "POST", "/a?b=%zz", b"12345"),
    ("without a route", "GET", "/none", b""),
    ("answered by the route", "GET", "/direct?", b""),
    ("to nobody", "GET", "/gone", b""),
    ("without an endpoint", "GET", "/empty", b""),
];

const HEADERS: &[(&str, &str)] = &[("x-a", "first"), ("x-request-id", "00000063-554f-4600-89ed-b47e695b9dc5")];

/// Differences that are meant: by request, operator and reason.
const INTENDED: &[(&str, &str, &str)] = &[
    ("", "LOCAL_REPLY_BODY", "Envoy documents it and leaves it empty"),
    ("to nobody", "UPSTREAM_CONNECTION_POOL_READY_DURATION", "a pool that gave no connection was not ready"),
];

fn setup(port: u16, gone: u16) -> String {
    let every = || SAME.iter().chain(THERE);
    let line = every().map(|operator| format!("%{operator}%")).collect::<Vec<_>>().join("\u{1}");
    let fields = every().map(|operator| format!("'{}': '{}'", quoted(operator), quoted(&format!("%{operator}%"))));
    let nested =
        "'nested': { 'list': [2, true, 'a%RESPONSE_CODE%', ['%RESPONSE_CODE%', null]], 'none': '%REQ(x-none)%' }";
    let fields = fields.chain([nested.to_owned()]).collect::<Vec<_>>().join(", ");
    let all = [
        file("text", &text(&line.replace('\u{1}', "\t")), ""),
        file("json", &format!(", log_format: {{ json_format: {{ {fields} }} }}"), ""),
        file("less", &format!(", log_format: {{ omit_empty_values: true, json_format: {{ {fields} }} }}"), ""),
        file(
            "bare",
            ", log_format: { omit_empty_values: true, text_format_source: { inline_string: '%REQ(x-none)%|%PATH%|%REQ(x-a)%\n\n' } }",
            "",
        ),
    ];
    let all_routes = "{ name: direct, match: { prefix: /direct }, direct_response: { status: 418, body: { inline_string: 'a b' } } }, \
         { name: gone, match: { prefix: /gone }, route: { cluster: gone } }, \
         { match: { prefix: /empty }, route: { cluster: empty } }, \
         { name: named, match: { prefix: /a }, metadata: { filter_metadata: { r: { k: [1, 2] } } }, route: { cluster: one } }";
    let manager = http("web", &format!("{}{}", logs(&all), routes(all_routes)));
    let listener = config::listener("web", &[chain(&manager, ", name: the-chain")], "");
    bootstrap(&[listener], &clusters(port, gone))
}

fn quoted(text: &str) -> String {
    text.replace('\'', "''")
}

/// What one proxy logs of all requests, file by file.
struct Logged {
    text: Vec<String>,
    json: Vec<Value>,
    less: Vec<Value>,
    bare: Vec<String>,
}

async fn run(program: PathBuf, bootstrap: &str) -> Logged {
    let proxy = Proxy::start_with(bootstrap, Settings { program, ..Settings::default() }).await;
    let web = proxy.listener("web").await;
    let mut count = 0;
    for (_, method, target, body) in REQUESTS {
        h1::Client::connect(web).await.request(method, target, HEADERS, body).await;
        count += 1;
        // One after the other, so that lines are in this order.
        proxy.lines("bare", count).await;
        let client = h2c::Client::connect(web).await.authority("example.com");
        client.try_request(method, target, HEADERS, body, &[]).await.unwrap();
        count += 1;
        proxy.lines("bare", count).await;
    }
    let parse = |lines: Vec<String>| lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    Logged {
        text: proxy.lines("text", count).await,
        json: parse(proxy.lines("json", count).await),
        less: parse(proxy.lines("less", count).await),
        bare: proxy.lines("bare", count).await,
    }
}

#[tokio::test]
async fn operators_print_what_envoy_prints() {
    let upstream = Upstream::start("a").await;
    let gone = ClosedPort::take();
    let bootstrap = setup(upstream.port(), gone.port());
    let envoy = run(proxy::envoy(), &bootstrap).await;
    let ours = run(proxy::program(), &bootstrap).await;
    let mut report = Vec::new();
    let mut compare = |request: &str, operator: &str, kind: &str, expected: String, seen: String| {
        let meant = INTENDED.iter().any(|(of, what, _)| request.starts_with(of) && *what == operator);
        if expected != seen && !meant {
            report.push(format!("{request}: {kind} %{operator}%:\n  envoy: {expected}\n  ours:  {seen}"));
        }
    };
    for (index, (expected, seen)) in envoy.text.iter().zip(&ours.text).enumerate() {
        let request = format!("{} by {}", REQUESTS[index / 2].0, if index % 2 == 0 { "HTTP/1.1" } else { "HTTP/2" });
        let (expected, seen): (Vec<_>, Vec<_>) = (expected.split('\t').collect(), seen.split('\t').collect());
        for (position, operator) in SAME.iter().chain(THERE).enumerate() {
            let there = |text: Option<&&str>| match text {
                Some(&"-") | None => "-".to_owned(),
                Some(text) if position < SAME.len() => (*text).to_owned(),
                Some(_) => "something".to_owned(),
            };
            compare(&request, operator, "text", there(expected.get(position)), there(seen.get(position)));
        }
        compare(&request, "all", "bare", envoy.bare[index].clone(), ours.bare[index].clone());
        for (kind, expected, seen) in
            [("json", &envoy.json[index], &ours.json[index]), ("less", &envoy.less[index], &ours.less[index])]
        {
            for operator in SAME.iter().chain(THERE).copied().chain(["nested"]) {
                let varies = THERE.contains(&operator);
                let shown = |value: Option<&Value>| match value {
                    None => "absent".to_owned(),
                    Some(Value::Number(_)) if varies => "a number".to_owned(),
                    Some(Value::String(_)) if varies => "a text".to_owned(),
                    Some(value) => value.to_string(),
                };
                compare(&request, operator, kind, shown(expected.get(operator)), shown(seen.get(operator)));
            }
        }
    }
    assert!(report.is_empty(), "{} differences:\n{}", report.len(), report.join("\n"));
}
