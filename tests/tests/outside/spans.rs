//! Spans of the calls that filters make for traced requests: the same requests for Envoy and for the proxy under test must
//! make the same spans with the same parents, and the services must hear of the same trace.

use std::collections::BTreeMap;
use std::path::PathBuf;

use outrigger_tests::collector::{Collector, Span};
use outrigger_tests::config::{self, bootstrap, chain, cluster, cluster_with, http, http2_cluster};
use outrigger_tests::{AskedService, ProcessingService, Proxy, Settings, Upstream, eventually, h1, proxy};

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// Asks by gRPC; the header `x-authz` says what is answered.
const BY_GRPC: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, \
    grpc_service: { envoy_grpc: { cluster_name: asked }, timeout: 30s }";
const BY_GRPC_SOON: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, \
    grpc_service: { envoy_grpc: { cluster_name: asked }, timeout: 0.3s }";
const BY_GRPC_AS: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, \
    grpc_service: { envoy_grpc: { cluster_name: asked, authority: auth.example }, timeout: 30s }";
const BY_GRPC_AGAIN: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, grpc_service: { \
    envoy_grpc: { cluster_name: asked }, timeout: 30s, retry_policy: { retry_on: internal, num_retries: 2, \
    retry_back_off: { base_interval: 0.001s, max_interval: 60s } } }";
const BY_GRPC_REFUSED: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, \
    grpc_service: { envoy_grpc: { cluster_name: refused }, timeout: 30s }";
const BY_GOOGLE: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, grpc_service: { \
    google_grpc: { target_uri: 'ipv4:127.0.0.1:ASKED_PORT', stat_prefix: goo }, timeout: 30s }";
/// Asks an HTTP server, which obeys `x-reply`.
const BY_HTTP: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, \
    allowed_headers: { patterns: [{ exact: x-reply }, { prefix: trace }] }, \
    http_service: { server_uri: { uri: 'http://authz/', cluster: authz, timeout: 30s } }";
const BY_HTTP_SOON: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, \
    allowed_headers: { patterns: [{ exact: x-reply }] }, \
    http_service: { server_uri: { uri: 'http://authz/', cluster: authz, timeout: 0.3s } }";
const BY_HTTP_REFUSED: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, \
    http_service: { server_uri: { uri: 'http://authz/', cluster: refused, timeout: 30s } }";
const BY_HTTP_EMPTY: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, \
    http_service: { server_uri: { uri: 'http://authz/', cluster: empty, timeout: 30s } }";
const BY_HTTP_QUIET: &str = "ext_authz.v3.ExtAuthz', transport_api_version: V3, emit_client_span: false, \
    http_service: { server_uri: { uri: 'http://authz/', cluster: authz, timeout: 30s } }";
const LIMITS: &str = "ratelimit.v3.RateLimit', domain: d, timeout: 30s, rate_limit_service: { transport_api_version: V3, \
    grpc_service: { envoy_grpc: { cluster_name: asked } } }";
const PROCESSOR: &str = "ext_proc.v3.ExternalProcessor', grpc_service: { envoy_grpc: { cluster_name: processor } }, \
    message_timeout: 30s";
const PROCESSOR_SOON: &str = "ext_proc.v3.ExternalProcessor', \
    grpc_service: { envoy_grpc: { cluster_name: processor } }, message_timeout: 0.3s";
const OBSERVER: &str = "ext_proc.v3.ExternalProcessor', grpc_service: { envoy_grpc: { cluster_name: processor } }, \
    observability_mode: true, deferred_close_timeout: 0.1s";

fn provider(kind: &str) -> &'static str {
    match kind {
        "zipkin" => {
            "provider: { name: p, typed_config: { '@type': type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, \
             collector_cluster: zipkin, collector_endpoint: /spans, collector_endpoint_version: HTTP_JSON } }"
        }
        _ => {
            "provider: { name: p, typed_config: { '@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, \
             service_name: shop, grpc_service: { envoy_grpc: { cluster_name: collector }, timeout: 30s } } }"
        }
    }
}

/// Name, provider, further tracing fields and filters of each listener.
const LISTENERS: &[(&str, &str, &str, &[&str])] = &[
    ("grpc", "otlp", "", &[BY_GRPC]),
    ("grpc-soon", "otlp", "", &[BY_GRPC_SOON]),
    ("grpc-as", "otlp", "", &[BY_GRPC_AS]),
    ("grpc-again", "otlp", "", &[BY_GRPC_AGAIN]),
    ("grpc-refused", "otlp", "", &[BY_GRPC_REFUSED]),
    ("google", "otlp", "", &[BY_GOOGLE]),
    ("http", "otlp", "", &[BY_HTTP]),
    ("http-soon", "otlp", "", &[BY_HTTP_SOON]),
    ("http-refused", "otlp", "", &[BY_HTTP_REFUSED]),
    ("http-empty", "otlp", "", &[BY_HTTP_EMPTY]),
    ("http-quiet", "otlp", "", &[BY_HTTP_QUIET]),
    ("limits", "otlp", "", &[LIMITS]),
    ("processor", "otlp", "", &[PROCESSOR]),
    ("processor-soon", "otlp", "", &[PROCESSOR_SOON]),
    ("observer", "otlp", "", &[OBSERVER]),
    ("all", "otlp", ", verbose: true, spawn_upstream_span: true", &[BY_GRPC, BY_HTTP, LIMITS, PROCESSOR]),
    ("mute", "otlp", ", no_context_propagation: true", &[BY_GRPC, BY_HTTP, LIMITS, PROCESSOR]),
    ("rare", "otlp", ", random_sampling: { value: 0 }", &[BY_GRPC, BY_HTTP, LIMITS, PROCESSOR]),
    ("zipkin", "zipkin", "", &[BY_GRPC, BY_HTTP, LIMITS, PROCESSOR]),
];

fn listener(name: &str, kind: &str, more: &str, filters: &[&str]) -> String {
    let routes = "route_config: { name: table, virtual_hosts: [{ name: all, domains: ['*'], routes: [ \
        { match: { prefix: / }, route: { cluster: one, rate_limits: [{ actions: [ \
          { request_headers: { header_name: x-limit, descriptor_key: script } }] }] } }] }] }";
    let manager = http(name, &format!(", tracing: {{ {}{more} }}, {routes}", provider(kind)));
    let all: String = filters
        .iter()
        .enumerate()
        .map(|(place, filter)| format!("{{ name: f{place}, typed_config: {{ '@type': '{TYPES}.{filter} }} }}, "))
        .collect();
    let manager = manager.replace("http_filters: [", &format!("http_filters: [{all}"));
    config::listener(name, &[chain(&manager, "")], ", traffic_direction: INBOUND")
}

/// Listener, request headers, and how many spans that makes.
type Case = (&'static str, &'static [(&'static str, &'static str)], usize);

const PARENT: (&str, &str) = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
const QUIET_PARENT: (&str, &str) = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
const STATE: (&str, &str) = ("tracestate", "a=b");
const LIMIT: (&str, &str) = ("x-limit", "request=x-a:b");

const CASES: &[Case] = &[
    ("grpc", &[], 2),
    ("grpc", &[PARENT, STATE], 2),
    ("grpc", &[QUIET_PARENT, STATE], 0),
    ("grpc", &[("traceparent", "00-nonsense")], 0),
    ("grpc", &[("x-authz", "deny")], 2),
    ("grpc", &[("x-authz", "deny=401 header=x-a:b")], 2),
    ("grpc", &[("x-authz", "error=503")], 2),
    ("grpc", &[("x-authz", "fail")], 2),
    ("grpc-soon", &[("x-authz", "hang")], 2),
    ("grpc-as", &[], 2),
    ("grpc-again", &[("x-authz", "fail")], 2),
    ("grpc-refused", &[], 2),
    ("google", &[], 2),
    ("google", &[("x-authz", "fail")], 2),
    ("http", &[], 2),
    ("http", &[PARENT, STATE], 2),
    ("http", &[STATE], 2),
    ("http", &[QUIET_PARENT, STATE], 0),
    ("http", &[("x-reply", "status=403")], 2),
    ("http", &[("x-reply", "status=302")], 2),
    ("http", &[("x-reply", "status=500")], 2),
    ("http", &[("x-reply", "reset")], 2),
    ("http-soon", &[("x-reply", "hang")], 2),
    ("http-refused", &[], 2),
    ("http-empty", &[], 2),
    ("http-quiet", &[PARENT, STATE], 1),
    ("limits", &[LIMIT], 2),
    ("limits", &[], 1),
    ("limits", &[("x-limit", "over")], 2),
    ("limits", &[("x-limit", "fail")], 2),
    ("processor", &[], 2),
    ("processor", &[("x-proc", "qh.fail=14")], 2),
    ("processor", &[("x-proc", "qh.close")], 2),
    ("processor-soon", &[("x-proc", "qh.hang")], 2),
    ("processor", &[("x-proc", "qh.immediate=403")], 2),
    ("processor", &[("x-proc", "qh.spurious")], 2),
    ("observer", &[], 2),
    ("all", &[LIMIT], 6),
    ("mute", &[LIMIT], 5),
    ("rare", &[LIMIT], 0),
    ("zipkin", &[LIMIT], 5),
    ("zipkin", &[LIMIT, ("b3", "00000000000000aa-00000000000000bb-1")], 5),
    ("zipkin", &[LIMIT, ("b3", "00000000000000aa-00000000000000bb-0")], 0),
];

struct Stage {
    proxy: Proxy,
    one: Upstream,
    authz: Upstream,
    asked: AskedService,
    processor: ProcessingService,
    otlp: Collector,
    zipkin: Collector,
}

impl Stage {
    async fn set(program: PathBuf) -> Self {
        let (one, authz) = (Upstream::start("one").await, Upstream::start("authz").await);
        let (asked, processor) = (AskedService::start().await, ProcessingService::start().await);
        let (otlp, zipkin) = (Collector::grpc().await, Collector::http().await);
        let clusters = [
            cluster("one", &[one.port()]),
            cluster_with("authz", &[authz.port()], ", alt_stat_name: alias"),
            http2_cluster("asked", &[asked.port()]),
            http2_cluster("processor", &[processor.port()]),
            cluster("refused", &[1]),
            cluster("empty", &[]),
            http2_cluster("collector", &[otlp.port()]),
            cluster("zipkin", &[zipkin.port()]),
        ];
        let listeners: Vec<_> =
            LISTENERS.iter().map(|(name, kind, more, filters)| listener(name, kind, more, filters)).collect();
        let target = asked.port().to_string();
        let text = format!(
            "{}layered_runtime: {{ layers: [{{ name: quick, static_layer: {{ \
             tracing.opentelemetry.min_flush_spans: 1, tracing.zipkin.min_flush_spans: 1 }} }}] }}\n",
            bootstrap(&listeners, &clusters).replace("ASKED_PORT", &target)
        );
        let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
        Self { proxy, one, authz, asked, processor, otlp, zipkin }
    }

    /// What is seen of a case: the status, what each service was told of the trace, and the spans.
    async fn play(&mut self, (name, headers, count): Case) -> Vec<String> {
        let before = [&self.one, &self.authz].map(|upstream| upstream.seen().len());
        let mut client = h1::Client::connect(self.proxy.listener(name).await).await;
        let response = client.request("GET", "/", headers, b"").await;
        let spans = self.spans(count, name == "zipkin").await;
        let mut seen = vec![format!("status {}", response.status)];
        for (what, upstream, before) in [("one", &self.one, before[0]), ("authz", &self.authz, before[1])] {
            seen.extend(upstream.seen()[before..].iter().map(|seen| told(what, &seen.headers, &spans)));
        }
        for (what, heads) in [("asked", self.asked.take_heads()), ("processor", self.processor.take_heads())] {
            seen.extend(heads.iter().map(|headers| told(what, headers, &spans)));
        }
        // A call whose connection has ended is made again here, within the same span.
        seen.dedup();
        let ports = [self.one.port(), self.authz.port(), self.asked.port()].map(|port| format!("127.0.0.1:{port}"));
        let mut lines: Vec<_> = spans.iter().map(|span| line(span, &spans)).collect();
        lines.sort();
        for (port, name) in ports.iter().zip(["ONE", "AUTHZ", "ASKED"]) {
            lines.iter_mut().for_each(|line| *line = line.replace(port, name));
        }
        seen.extend(lines);
        seen
    }

    async fn spans(&mut self, count: usize, zipkin: bool) -> Vec<Span> {
        let mut spans = if zipkin { self.zipkin.take(count).await } else { self.otlp.take(count).await };
        spans.extend(self.otlp.rest());
        spans.extend(self.zipkin.rest());
        spans
    }
}

/// An id by whose it is, or by its length.
fn whose(part: &str, spans: &[Span]) -> String {
    if let Some(span) = spans.iter().find(|span| span.id == part && !span.shared) {
        return format!("<{}>", span.name);
    }
    if let Some(span) = spans.iter().find(|span| span.id == part) {
        return format!("<shared {}>", span.kind);
    }
    if spans.iter().any(|span| span.trace_id == part) {
        return "<trace>".to_owned();
    }
    let sent = ["0af7", "b7ad", "0000000000000", "nonsense"].iter().any(|start| part.starts_with(start));
    if part.len() < 16 || sent { part.to_owned() } else { format!("<{}>", part.len()) }
}

fn told(what: &str, headers: &[(String, String)], spans: &[Span]) -> String {
    let wanted = |name: &str| name.starts_with("trace") || name.contains("b3");
    let mut all = BTreeMap::new();
    for (name, value) in headers.iter().filter(|(name, value)| wanted(name) && !value.is_empty()) {
        all.insert(name, value.split('-').map(|part| whose(part, spans)).collect::<Vec<_>>().join("-"));
    }
    format!("told {what} {all:?}")
}

fn line(span: &Span, spans: &[Span]) -> String {
    let Span { name, kind, parent_id, state, failed, shared, events, .. } = span;
    let mut tags = span.tags.clone();
    // Of one request alone; what comes back is the report of an upstream, which tells ids.
    tags.retain(|name, _| !["guid:x-request-id", "http.url", "response_size"].contains(&name.as_str()));
    let name = if *kind == "CLIENT" { name } else { "of the request" };
    format!(
        "span {name:?} {kind} parent={} state={state:?} failed={failed} shared={shared} {events:?} {tags:?}",
        whose(parent_id, spans)
    )
}

#[tokio::test]
async fn spans_of_calls_are_those_of_envoy() {
    let mut ours = Stage::set(proxy::program()).await;
    let mut theirs = Stage::set(proxy::envoy()).await;
    let mut differences = String::new();
    for case in CASES {
        let (own, envoy) = (ours.play(*case).await, theirs.play(*case).await);
        if own != envoy {
            differences.push_str(&format!("\n{} {:?}\n", case.0, case.1));
            let only = |these: &[String], those: &[String], who: &str| {
                let lines = these.iter().filter(|line| !those.contains(line));
                lines.map(|line| format!("  {who} {line}\n")).collect::<String>()
            };
            differences.push_str(&(only(&envoy, &own, "Envoy") + &only(&own, &envoy, "ours ")));
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[tokio::test]
async fn the_span_of_a_call_that_nobody_waits_for_any_more_says_so() {
    for program in [proxy::envoy(), proxy::program()] {
        let mut stage = Stage::set(program).await;
        let upstream = stage.authz.seen().len();
        for (name, script, tag) in
            [("grpc", "x-authz: hang", ("status", "canceled")), ("http", "x-reply: hang", ("canceled", "true"))]
        {
            let mut client = h1::Client::connect(stage.proxy.listener(name).await).await;
            client.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{script}\r\n\r\n")).await;
            eventually("the service is asked", async || {
                let asked = !stage.asked.take_heads().is_empty() || stage.authz.seen().len() > upstream;
                if asked { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            drop(client);
            let spans = stage.spans(2, false).await;
            let call = spans.iter().find(|span| span.name.starts_with("async ")).unwrap();
            assert_eq!((call.tag(tag.0), call.failed), (Some(tag.1), false), "{spans:#?}");
        }
    }
}

#[tokio::test]
async fn spans_of_calls_are_kept_with_their_request() {
    let (mut otlp, asked, one) = (Collector::grpc().await, AskedService::start().await, Upstream::start("one").await);
    let tail = "sampler: { name: tail, typed_config: { '@type': type.googleapis.com/outrigger.trace.v1.TailSampler, errors: true } }";
    let provider = provider("otlp").replace("service_name: shop,", &format!("service_name: shop, {tail},"));
    let manager = http(
        "tail",
        &format!(
            ", tracing: {{ random_sampling: {{ value: 0 }}, {provider} }}{}",
            config::routes(&config::all_to("one"))
        ),
    );
    let filter = format!(
        "http_filters: [{{ name: f, typed_config: {{ '@type': '{TYPES}.{BY_GRPC}, status_on_error: {{ code: 503 }} }} }}, "
    );
    let listener = config::listener("tail", &[chain(&manager.replace("http_filters: [", &filter), "")], "");
    let clusters = [
        cluster("one", &[one.port()]),
        http2_cluster("asked", &[asked.port()]),
        http2_cluster("collector", &[otlp.port()]),
    ];
    let quick =
        "layered_runtime: { layers: [{ name: quick, static_layer: { tracing.opentelemetry.min_flush_spans: 1 } }] }\n";
    let proxy = Proxy::start(&(bootstrap(&[listener], &clusters) + quick)).await;
    let mut client = h1::Client::connect(proxy.listener("tail").await).await;
    for (script, status) in [("", 200), ("deny", 403), ("fail", 503)] {
        assert_eq!(client.request("GET", "/", &[("x-authz", script)], b"").await.status, status);
    }
    // The last one alone has failed.
    let spans = otlp.take(2).await;
    let call = spans.iter().find(|span| span.name.starts_with("async ")).expect("the span of the call");
    let request = spans.iter().find(|span| span.tag("outrigger.kept").is_some()).expect("the span of the request");
    assert_eq!((call.tag("grpc.status_code"), &call.parent_id), (Some("13"), &request.id));
    assert!(otlp.rest().is_empty());
}
