//! The same requests for Envoy and for the proxy under test: names, kinds, tags, states and parents of their spans must be
//! the same, as well as what the upstream is told. Ids and times are each proxy's own.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::collections::BTreeMap;

use outrigger_tests::collector::{Collector, Span};
use outrigger_tests::config::{self, bootstrap, chain, cluster, cluster_with, http, http2_cluster};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

/// Tags whose values are each proxy's own.
const OWN: [&str; 1] = ["guid:x-request-id"];

const TAGS: &str = "custom_tags: [{ tag: literal, literal: { value: v } }, \
    { tag: environment, environment: { name: NO_SUCH_VARIABLE, default_value: d } }, \
    { tag: missing, environment: { name: NO_SUCH_VARIABLE } }, \
    { tag: header, request_header: { name: x-in, default_value: none } }, \
    { tag: no-header, request_header: { name: x-out } }, \
    { tag: format, value: '%REQ(:METHOD)% %RESPONSE_CODE%' }, { tag: component, literal: { value: mine } }]";

const ROUTES: &str = "{ name: table, virtual_hosts: [{ name: all, domains: ['*'], routes: [
  { match: { prefix: /decorated }, decorator: { operation: checkout }, route: { cluster: a } },
  { match: { prefix: /quiet }, decorator: { operation: quiet, propagate: false }, route: { cluster: a } },
  { match: { prefix: /direct }, direct_response: { status: 500 } },
  { match: { prefix: /redirect }, redirect: { path_redirect: /x } },
  { match: { prefix: /refused }, route: { cluster: refused, retry_policy: { retry_on: connect-failure, num_retries: 1 } } },
  { match: { prefix: /retry }, route: { cluster: a, retry_policy: { retry_on: 5xx, num_retries: 1 } } },
  { match: { prefix: /slow }, route: { cluster: a, timeout: 2s } },
  { match: { prefix: /tries }, route: { cluster: a, retry_policy: { retry_on: 5xx, num_retries: 0, per_try_timeout: 2s } } },
  { match: { prefix: /hedged }, route: { cluster: a, timeout: 1s, hedge_policy: { hedge_on_per_try_timeout: true },
    retry_policy: { retry_on: 5xx, num_retries: 1, per_try_timeout: 0.1s } } },
  { match: { prefix: /tagged }, metadata: { filter_metadata: { ns: { list: [1, { a: true }], text: t, number: 2 } } },
    tracing: { random_sampling: { numerator: 100 }, custom_tags: [
      { tag: literal, literal: { value: route } },
      { tag: list, metadata: { kind: { route: {} }, metadata_key: { key: ns, path: [{ key: list }] } } },
      { tag: text, metadata: { kind: { route: {} }, metadata_key: { key: ns, path: [{ key: text }] } } },
      { tag: number, metadata: { kind: { route: {} }, metadata_key: { key: ns, path: [{ key: number }] } } },
      { tag: cluster, metadata: { kind: { cluster: {} }, metadata_key: { key: ns, path: [{ key: inner }, { key: k }] } } },
      { tag: clusters, metadata: { kind: { cluster: {} }, metadata_key: { key: ns, path: [{ key: inner }] } } },
      { tag: absent, metadata: { kind: { route: {} }, metadata_key: { key: ns, path: [{ key: nothing }] }, default_value: x } }] },
    route: { cluster: a } },
  { match: { prefix: /rewritten }, route: { cluster: a, prefix_rewrite: /w, host_rewrite_literal: other.example } },
  { match: { prefix: /nowhere }, route: { cluster: empty } },
  { match: { prefix: /all }, route: { cluster: a } }] }] }";

fn provider(kind: &str) -> &'static str {
    match kind {
        "otlp" => {
            "provider: { name: p, typed_config: { '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, \
             service_name: shop, grpc_service: { envoy_grpc: { cluster_name: collector }, timeout: 30s } } }"
        }
        "cel" => {
            "provider: { name: p, typed_config: { '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, \
             service_name: shop, grpc_service: { envoy_grpc: { cluster_name: collector }, timeout: 30s }, \
             sampler: { name: s, typed_config: { \
             '@type': type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.CELSamplerConfig, \
             expression: { cel_expr_parsed: { expr: { call_expr: { function: _==_, args: [ \
             { select_expr: { field: path, operand: { ident_expr: { name: request } } } }, \
             { const_expr: { string_value: /all/chosen } }] } } } } } } } }"
        }
        "split" => {
            "provider: { name: p, typed_config: { '@type': type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, \
             collector_cluster: zipkin, collector_endpoint: /spans, collector_endpoint_version: HTTP_JSON, \
             split_spans_for_request: true } }"
        }
        _ => {
            "provider: { name: p, typed_config: { '@type': type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, \
             collector_cluster: zipkin, collector_endpoint: /spans, collector_endpoint_version: HTTP_JSON } }"
        }
    }
}

/// Name, direction and tracing of each listener.
fn listeners() -> Vec<String> {
    let settings = [
        ("in", "INBOUND", "otlp", TAGS),
        ("out", "OUTBOUND", "otlp", "verbose: true"),
        ("hop", "INBOUND", "otlp", "spawn_upstream_span: true, verbose: false"),
        ("rare", "INBOUND", "otlp", "random_sampling: { value: 0 }, max_path_tag_length: 4"),
        ("mute", "OUTBOUND", "otlp", "no_context_propagation: true"),
        (
            "named",
            "OUTBOUND",
            "otlp",
            "operation: 'op %REQ(:path)% %REQ(nothing)%', upstream_operation: 'up %UPSTREAM_HOST%', spawn_upstream_span: true",
        ),
        ("zin", "INBOUND", "zipkin", "verbose: false"),
        ("zout", "OUTBOUND", "zipkin", "spawn_upstream_span: true"),
        ("zsplit", "OUTBOUND", "split", "verbose: false"),
        ("cel", "INBOUND", "cel", "verbose: false"),
    ];
    let one = |(name, direction, kind, more): (&str, &str, &str, &str)| {
        let more = format!(", tracing: {{ {}, {more} }}, route_config: {}", provider(kind), ROUTES.replace('\n', " "));
        config::listener(name, &[chain(&http(name, &more), "")], &format!(", traffic_direction: {direction}"))
    };
    settings.into_iter().map(one).collect()
}

/// Listener, path, request headers, and how many spans that makes.
type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], usize);

const PARENT: (&str, &str) = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
const QUIET_PARENT: (&str, &str) = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
const FIXED: (&str, &str) = ("x-reply", "bytes=10");

const CASES: &[Case] = &[
    ("in", "/all?q=1", &[FIXED, ("user-agent", "ua"), ("x-in", "here")], 1),
    ("in", "/all", &[FIXED, PARENT, ("tracestate", "a=b")], 1),
    ("in", "/all", &[FIXED, QUIET_PARENT], 0),
    ("in", "/all", &[FIXED, ("traceparent", "00-nonsense")], 0),
    ("in", "/all", &[FIXED, ("traceparent", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-09")], 1),
    ("in", "/all", &[FIXED, ("traceparent", "00-00000000000000000000000000000000-b7ad6b7169203331-01")], 0),
    ("in", "/all", &[FIXED, ("x-client-trace-id", "mine"), ("x-envoy-downstream-service-cluster", "front")], 1),
    ("in", "/decorated", &[FIXED], 1),
    ("in", "/decorated", &[FIXED, ("x-envoy-decorator-operation", "theirs")], 1),
    ("in", "/quiet", &[FIXED], 1),
    ("in", "/direct", &[], 1),
    ("in", "/redirect", &[], 1),
    ("in", "/refused", &[], 1),
    ("in", "/nowhere", &[], 1),
    ("in", "/none", &[], 1),
    ("in", "/slow", &[("x-reply", "hang")], 1),
    ("in", "/rewritten/path", &[FIXED], 1),
    ("in", "/tagged", &[FIXED], 1),
    ("in", "/all", &[("x-reply", "status=404 empty")], 1),
    ("in", "/all", &[("x-reply", "status=503 empty")], 1),
    ("out", "/all", &[FIXED], 1),
    ("out", "/all", &[("x-reply", "status=404 empty")], 1),
    ("out", "/decorated", &[FIXED], 1),
    ("out", "/all", &[("x-reply", "bytes=10 header=x-envoy-decorator-operation:server")], 1),
    ("hop", "/all", &[FIXED, PARENT], 2),
    ("hop", "/all", &[("x-reply", "status=404 empty")], 2),
    ("hop", "/retry", &[("x-reply", "status=503 empty")], 3),
    ("hop", "/refused", &[], 3),
    ("hop", "/direct", &[], 1),
    ("hop", "/slow", &[("x-reply", "hang")], 2),
    ("hop", "/tries", &[("x-reply", "hang")], 2),
    ("hop", "/hedged", &[("x-reply", "hang")], 3),
    ("hop", "/all", &[("x-reply", "reset")], 2),
    ("rare", "/all/of/it", &[FIXED], 0),
    ("rare", "/all/of/it", &[FIXED, PARENT], 0),
    ("rare", "/all/of/it", &[FIXED, ("x-client-trace-id", "mine")], 1),
    ("rare", "/tagged", &[FIXED], 1),
    ("mute", "/all", &[FIXED], 1),
    ("named", "/decorated", &[FIXED], 2),
    ("zin", "/all", &[FIXED], 1),
    ("zin", "/all", &[FIXED, ("x-b3-traceid", "00000000000000aa"), ("x-b3-spanid", "00000000000000bb")], 1),
    (
        "zin",
        "/all",
        &[FIXED, ("x-b3-traceid", "aa"), ("x-b3-spanid", "bb"), ("x-b3-parentspanid", "cc"), ("x-b3-sampled", "true")],
        1,
    ),
    ("zin", "/all", &[FIXED, ("x-b3-traceid", "aa"), ("x-b3-spanid", "bb"), ("x-b3-sampled", "0")], 0),
    ("zin", "/all", &[FIXED, ("x-b3-traceid", "xx"), ("x-b3-spanid", "bb")], 0),
    ("zin", "/all", &[FIXED, ("b3", "00000000000000cc00000000000000aa-00000000000000bb-1-00000000000000dd")], 1),
    ("zin", "/all", &[FIXED, ("b3", "00000000000000aa-00000000000000bb")], 1),
    ("zin", "/all", &[FIXED, ("b3", "0")], 0),
    ("zin", "/all", &[FIXED, ("b3", "nonsense")], 0),
    ("zin", "/decorated", &[FIXED], 1),
    ("zout", "/all", &[FIXED, ("b3", "00000000000000aa-00000000000000bb-1")], 2),
    ("zout", "/all", &[FIXED], 2),
    ("zsplit", "/all", &[FIXED, ("b3", "00000000000000aa-00000000000000bb-1")], 1),
    ("zsplit", "/all", &[FIXED], 1),
    ("cel", "/all/chosen", &[FIXED], 1),
    ("cel", "/all/chosen", &[FIXED, QUIET_PARENT], 1),
    ("cel", "/all", &[FIXED, PARENT], 0),
    ("cel", "/all", &[FIXED], 0),
];

/// What must be the same of one case.
#[derive(Debug, PartialEq)]
struct Story {
    case: String,
    status: u16,
    answered: BTreeMap<String, String>,
    told: Vec<BTreeMap<String, String>>,
    spans: Vec<String>,
}

struct Stage {
    proxy: Proxy,
    upstream: Upstream,
    otlp: Collector,
    zipkin: Collector,
}

impl Stage {
    async fn set(program: std::path::PathBuf) -> Self {
        let (upstream, otlp, zipkin) = (Upstream::start("a").await, Collector::grpc().await, Collector::http().await);
        let clusters = [
            cluster_with(
                "a",
                &[upstream.port()],
                ", alt_stat_name: alias, metadata: { filter_metadata: { ns: { inner: { k: 7 } } } }",
            ),
            cluster("refused", &[1]),
            cluster("empty", &[]),
            http2_cluster("collector", &[otlp.port()]),
            cluster("zipkin", &[zipkin.port()]),
        ];
        let text = format!(
            "{}layered_runtime: {{ layers: [{{ name: quick, static_layer: {{ \
             tracing.opentelemetry.min_flush_spans: 1, tracing.zipkin.min_flush_spans: 1 }} }}] }}\n",
            bootstrap(&listeners(), &clusters)
        );
        let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
        Self { proxy, upstream, otlp, zipkin }
    }

    async fn play(&mut self, case: &Case) -> Story {
        let (listener, path, headers, count) = *case;
        let address = self.proxy.listener(listener).await;
        let before = self.upstream.seen().len();
        let mut client = h1::Client::connect(address).await;
        let response = client.request("GET", path, headers, b"").await;
        let mut spans = match listener.starts_with('z') {
            true => self.zipkin.take(count).await,
            false => self.otlp.take(count).await,
        };
        spans.extend(self.otlp.rest());
        spans.extend(self.zipkin.rest());
        let about = |name: &str| name.contains("decorator") || name == "location";
        let answered = response.headers.iter().filter(|(name, _)| about(name)).cloned().collect();
        let port = self.upstream.port().to_string();
        let seen = self.upstream.seen();
        let told = seen[before..].iter().map(|seen| told(&seen.headers)).collect();
        Story {
            case: format!("{listener} {path} {headers:?}"),
            status: response.status,
            answered,
            told,
            spans: retold(spans).iter().map(|span| span.replace(&port, "PORT")).collect(),
        }
    }
}

/// The headers of a request that have to do with tracing; ids by their form.
fn told(headers: &[(String, String)]) -> BTreeMap<String, String> {
    let wanted = |name: &str| {
        name.starts_with("trace") || name.contains("b3") || name.contains("decorator") || name == "x-request-id"
    };
    let form = |name: &str, value: &str| match name {
        "x-request-id" => value.get(14..15).unwrap_or_default().to_owned(),
        _ => value.split('-').map(shape).collect::<Vec<_>>().join("-"),
    };
    let all = headers.iter().filter(|(name, value)| wanted(name) && !(name == "tracestate" && value.is_empty()));
    all.map(|(name, value)| (name.clone(), form(name, value))).collect()
}

/// An id that a proxy made up, by its length; what a test sent as it is.
fn shape(part: &str) -> String {
    let sent = ["0af7", "b7ad", "0000000000000", "nonsense"].iter().any(|start| part.starts_with(start));
    if part.len() < 16 || sent { part.to_owned() } else { format!("<{}>", part.len()) }
}

/// Spans with ids by their place in the tree, sorted.
fn retold(spans: Vec<Span>) -> Vec<String> {
    let name_of = |id: &str| match spans.iter().find(|span| span.id == id) {
        Some(parent) => format!("the span {:?}", parent.name),
        None => shape(id),
    };
    let one = |span: &Span| {
        let mut tags = span.tags.clone();
        for name in OWN {
            tags.entry(name.to_owned()).and_modify(|value| *value = "own".into());
        }
        let Span { name, kind, trace_id, parent_id, state, failed, shared, events, .. } = span;
        if tags.get("response_flags").is_some_and(|flags| flags == "URX,UF") {
            // Envoy tells the client that it has tried again.
            tags.remove("response_size");
        }
        let parent = if parent_id == &span.id { "itself".to_owned() } else { name_of(parent_id) };
        let trace = shape(trace_id);
        format!(
            "{name:?} {kind} trace={trace} parent={parent} state={state:?} failed={failed} shared={shared} {events:?} {tags:?}"
        )
    };
    let mut all: Vec<String> = spans.iter().map(one).collect();
    all.sort();
    all
}

/// What only one of them tells.
fn difference(own: &Story, envoy: &Story) -> String {
    let lines = |story: &Story| {
        let head = [format!("{} {:?}", story.status, story.answered)];
        let told = story.told.iter().map(|told| format!("told {told:?}"));
        head.into_iter().chain(told).chain(story.spans.iter().cloned()).collect::<Vec<_>>()
    };
    let (own_lines, envoy_lines) = (lines(own), lines(envoy));
    let mut text = format!("\n{}\n", own.case);
    for line in envoy_lines.iter().filter(|line| !own_lines.contains(line)) {
        text.push_str(&format!("  Envoy {line}\n"));
    }
    for line in own_lines.iter().filter(|line| !envoy_lines.contains(line)) {
        text.push_str(&format!("  ours  {line}\n"));
    }
    text
}

#[tokio::test]
async fn spans_are_those_of_envoy() {
    let mut ours = Stage::set(proxy::program()).await;
    let mut theirs = Stage::set(proxy::envoy()).await;
    let mut differences = String::new();
    for case in CASES {
        let (own, envoy) = (ours.play(case).await, theirs.play(case).await);
        if own != envoy {
            differences.push_str(&difference(&own, &envoy));
        }
    }
    assert!(differences.is_empty(), "{differences}");
}
