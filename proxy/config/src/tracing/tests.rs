//! Tests of what is read, by YAML as users write it.

use std::io;
use std::path::Path;

use outrigger_api::UnknownFields;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager as Wire;

use super::*;
use crate::context::{Context, Environment};
use crate::http::HttpConnectionManager;
use crate::rejection::FieldPath;

struct Machine;

impl Environment for Machine {
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        match path.to_str().unwrap_or_default() {
            "dt_metadata_e617c525669e072eebe3d0f08212e8f2.properties" => Ok(b"/tmp/enrichment\n".to_vec()),
            "/tmp/enrichment" => Ok(b"dt.entity.host=HOST-1\nnonsense\n".to_vec()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        match name {
            "OTEL_RESOURCE_ATTRIBUTES" => Some("service.version=2,team=a".into()),
            "TOKEN" => Some("secret".into()),
            "BAD" => None,
            _ => None,
        }
    }
}

fn read(tracing: &str) -> Result<HttpConnectionManager, String> {
    let yaml = format!(
        "stat_prefix: p\n\
         http_filters: [{{name: r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]\n\
         route_config: {{virtual_hosts: []}}\n{tracing}"
    );
    let context = Context::new(&Machine);
    let parsed = context.schema().parse_yaml::<Wire>(&yaml, UnknownFields::Reject);
    let wire = parsed.unwrap_or_else(|error| panic!("{error}\n{yaml}")).message;
    let root = FieldPath::resource("listener", "l");
    HttpConnectionManager::parse(&context, &root, wire).map_err(|error| error.to_string())
}

fn tracing(inside: &str) -> Result<HttpTracing, String> {
    read(&format!("tracing: {{{inside}}}")).map(|manager| *manager.tracing.unwrap())
}

fn provider(kind: &str, inside: &str) -> Result<TraceProvider, String> {
    let text = format!(
        "provider: {{name: p, typed_config: {{'@type': type.googleapis.com/envoy.config.trace.v3.{kind}, {inside}}}}}"
    );
    tracing(&text).map(|tracing| Arc::unwrap_or_clone(tracing.provider.unwrap()))
}

#[test]
fn shares_are_read_as_envoy_reads_them() {
    let read = tracing(
        "client_sampling: {value: 33.9}, random_sampling: {value: 1.016}, overall_sampling: {value: 50}, \
         max_path_tag_length: 9, spawn_upstream_span: true, no_context_propagation: true, operation: 'x %REQ(:path)%'",
    )
    .unwrap();
    let parts = |share: &RuntimeFraction| share.default.parts();
    assert_eq!(parts(&read.sampling.client), (33, 100));
    assert_eq!(parts(&read.sampling.random), (102, 10_000));
    assert_eq!(parts(&read.sampling.overall), (5_000, 10_000));
    assert_eq!(read.sampling.random.runtime_key, "tracing.random_sampling");
    assert_eq!((read.max_path_tag_length, read.spawn_upstream_span, read.no_context_propagation), (9, true, true));
    assert!(read.operation.is_some() && read.provider.is_none());
    let defaults = tracing("").unwrap();
    assert_eq!(parts(&defaults.sampling.random), (10_000, 10_000));
    assert_eq!(defaults.max_path_tag_length, 256);
    assert!(tracing("random_sampling: {value: 101}").unwrap_err().contains("tracing.random_sampling.value"));
}

#[test]
fn custom_tags_of_all_kinds() {
    let tags = tracing(
        "custom_tags: [{tag: a, literal: {value: x}}, {tag: b, environment: {name: TOKEN}}, \
         {tag: c, environment: {name: BAD, default_value: d}}, {tag: d, request_header: {name: X-Y, default_value: z}}, \
         {tag: e, metadata: {kind: {host: {}}, metadata_key: {key: envoy.lb, path: [{key: k}]}}}, \
         {tag: f, value: '%REQ(:METHOD)%'}, \
         {tag: g, metadata: {kind: {cluster: {}}, metadata_key: {key: ns, path: [{key: k}]}}}, {tag: a, literal: {value: later}}]",
    )
    .unwrap()
    .custom_tags;
    assert_eq!(tags.len(), 7);
    let of_cluster = CustomTagValue::Metadata {
        of: TagMetadata::Cluster,
        namespace: "ns".into(),
        path: vec!["k".into()],
        default: "".into(),
    };
    assert_eq!(tags[6].value, of_cluster);
    assert_eq!(tags[0].value, CustomTagValue::Literal("x".into()));
    assert_eq!(tags[1].value, CustomTagValue::Literal("secret".into()));
    assert_eq!(tags[2].value, CustomTagValue::Literal("d".into()));
    assert_eq!(tags[3].value, CustomTagValue::RequestHeader { name: "x-y".into(), default: "z".into() });
    let of_host = CustomTagValue::Metadata {
        of: TagMetadata::Host,
        namespace: "envoy.lb".into(),
        path: vec!["k".into()],
        default: "".into(),
    };
    assert_eq!(tags[4].value, of_host);
    for (inside, place) in [
        ("{tag: '', literal: {value: x}}", "custom_tags[0].tag: must not be empty"),
        ("{tag: a}", "custom_tags[0]: needs one of"),
        ("{tag: a, literal: {value: ''}}", "custom_tags[0].literal.value"),
        ("{tag: a, metadata: {kind: {route: {}}}}", "custom_tags[0].metadata.metadata_key: is required"),
        (
            "{tag: a, metadata: {kind: {route: {}}, metadata_key: {key: a}}}",
            "custom_tags[0].metadata.metadata_key.path: must not be empty",
        ),
        (
            "{tag: a, metadata: {kind: {host: {}}, metadata_key: {key: a}}}",
            "metadata_key.key: \"a\": endpoints keep \"envoy.lb\" only",
        ),
        ("{tag: a, value: '%NOPE%'}", "custom_tags[0].value"),
    ] {
        let error = tracing(&format!("custom_tags: [{inside}]")).unwrap_err();
        assert!(error.contains(place), "{error}");
    }
}

#[test]
fn opentelemetry_with_its_resource_and_sampler() {
    let inside = "service_name: svc, max_cache_size: 7, set_instrumentation_scope: false, \
         http_service: {http_uri: {uri: 'http://col:4318/v1/traces', cluster: col, timeout: 1s}, \
         request_headers_to_add: [{header: {key: Authorization, value: 'Bearer %ENVIRONMENT(TOKEN)%'}}]}, \
         resource_detectors: [{name: e, typed_config: {'@type': type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig}}, \
         {name: s, typed_config: {'@type': type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig, attributes: {team: b}}}, \
         {name: d, typed_config: {'@type': type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.DynatraceResourceDetectorConfig}}], \
         sampler: {name: s, typed_config: {'@type': type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.ParentBasedSamplerConfig, \
         wrapped_sampler: {name: w, typed_config: {'@type': type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.TraceIdRatioBasedSamplerConfig, sampling_percentage: {numerator: 5}}}}}";
    let TraceProvider::OpenTelemetry(read) = provider("OpenTelemetryConfig", inside).unwrap() else { panic!() };
    let pairs: Vec<_> = read.resource.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let expected = [("dt.entity.host", "HOST-1"), ("service.name", "svc"), ("service.version", "2"), ("team", "b")];
    assert_eq!(pairs, expected);
    let ratio = Sampler::TraceIdRatio(Fraction::new(5, 100).unwrap());
    assert_eq!(read.sampler, Some(Sampler::ParentBased(Box::new(ratio))));
    assert_eq!((read.max_waiting, read.sdk_attributes, read.instrumentation_scope), (7, true, false));
    let OtlpExporter::Http(service) = read.exporter else { panic!() };
    assert_eq!((&*service.cluster, service.host.as_str(), service.path.as_str()), ("col", "col:4318", "/v1/traces"));
    assert_eq!(service.headers, [("authorization".into(), "Bearer secret".to_owned())]);
    let TraceProvider::OpenTelemetry(bare) = provider("OpenTelemetryConfig", COLLECTOR).unwrap() else { panic!() };
    assert_eq!(bare.resource, [("service.name".to_owned(), "unknown_service:envoy".to_owned())]);
    assert_eq!((bare.sampler, bare.tail, bare.max_waiting), (None, None, 1024));
}

/// Where spans go.
const COLLECTOR: &str = "http_service: {http_uri: {uri: 'http://col/v1/traces', cluster: col, timeout: 1s}}";

fn sampler(inside: &str) -> Result<(Option<Sampler>, Option<Tail>), String> {
    let inside = format!("{COLLECTOR}, sampler: {{name: s, typed_config: {{'@type': type.googleapis.com/{inside}}}}}");
    let TraceProvider::OpenTelemetry(read) = provider("OpenTelemetryConfig", &inside)? else { panic!() };
    Ok((read.sampler, read.tail))
}

#[test]
fn expressions_sample_in_all_their_forms() {
    const CEL: &str = "envoy.extensions.tracers.opentelemetry.samplers.v3.CELSamplerConfig";
    let expected = Expression::parse("true").unwrap();
    for form in [
        "cel_expr_string: 'true'",
        "cel_expr_parsed: {expr: {const_expr: {bool_value: true}}}",
        "cel_expr_checked: {expr: {const_expr: {bool_value: true}}}",
        "parsed_expr: {expr: {const_expr: {bool_value: true}}}",
        "checked_expr: {expr: {const_expr: {bool_value: true}}}",
    ] {
        let read = sampler(&format!("{CEL}, expression: {{{form}}}")).unwrap();
        assert_eq!(read, (Some(Sampler::Expression(expected.clone().into())), None), "{form}");
    }
    for (form, place) in [
        ("", "sampler.typed_config.expression: is required"),
        (", expression: {}", "sampler.typed_config.expression: needs an expression"),
        (", expression: {cel_expr_string: 'a ('}", "sampler.typed_config.expression.cel_expr_string: "),
        (", expression: {cel_expr_parsed: {}}", "sampler.typed_config.expression.cel_expr_parsed.expr: is required"),
    ] {
        let error = sampler(&format!("{CEL}{form}")).unwrap_err();
        assert!(error.contains(place), "{error}");
    }
}

#[test]
fn tails_have_a_budget() {
    const TAIL: &str = "outrigger.trace.v1.TailSampler";
    let tail = |errors, slow, bytes| {
        let budget = TokenBucket { max_tokens: bytes, tokens_per_fill: bytes, fill_interval: Duration::from_secs(60) };
        Some(Tail { errors, slow, budget })
    };
    assert_eq!(sampler(TAIL).unwrap(), (None, tail(true, None, 1024 * 1024)));
    let all = "errors: false, slow: 2s, bytes_per_minute: 9, wrapped_sampler: {name: s, typed_config: {'@type': \
               type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig}}";
    let read = sampler(&format!("{TAIL}, {all}")).unwrap();
    assert_eq!(read, (Some(Sampler::AlwaysOn), tail(false, Some(Duration::from_secs(2)), 9)));
    for (inside, expected) in [
        ("bytes_per_minute: 0", "sampler.typed_config.bytes_per_minute: 0 is not within 1 to 4294967295"),
        ("slow: 0s", "sampler.typed_config.slow: "),
        (
            "wrapped_sampler: {name: s, typed_config: {'@type': type.googleapis.com/outrigger.trace.v1.TailSampler}}",
            "wrapped_sampler.typed_config: the sampler \"type.googleapis.com/outrigger.trace.v1.TailSampler\" is not supported",
        ),
    ] {
        let error = sampler(&format!("{TAIL}, {inside}")).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn zipkin_in_both_forms() {
    let old = "collector_cluster: zip, collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON, \
               trace_id_128bit: true, split_spans_for_request: true, shared_span_context: false, trace_context_option: USE_B3_WITH_W3C_PROPAGATION";
    let TraceProvider::Zipkin(read) = provider("ZipkinConfig", old).unwrap() else { panic!() };
    assert_eq!((read.collector.host.as_str(), read.collector.path.as_str()), ("zip", "/api/v2/spans"));
    assert_eq!((read.encoding, read.w3c), (ZipkinEncoding::Json, true));
    assert_eq!((read.trace_id_128bit, read.shared_span_context, read.own_hop), (true, false, true));
    let new = "collector_endpoint_version: HTTP_PROTO, collector_service: \
               {http_uri: {uri: 'https://zip.example/spans', cluster: zip, timeout: 2s}}";
    let TraceProvider::Zipkin(read) = provider("ZipkinConfig", new).unwrap() else { panic!() };
    assert_eq!((read.collector.host.as_str(), read.collector.path.as_str()), ("zip.example", "/spans"));
    assert!(read.shared_span_context && !read.own_hop);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (kind, inside, expected) in [
        ("DatadogConfig", "collector_cluster: a, service_name: b", "DatadogConfig\" is not supported"),
        ("SkyWalkingConfig", "", "SkyWalkingConfig\" is not supported"),
        ("XRayConfig", "", "XRayConfig\" is not supported"),
        ("OpenTelemetryConfig", "", "provider.typed_config: needs one of grpc_service, http_service"),
        ("ZipkinConfig", "collector_cluster: a, collector_endpoint: /x", "expected HTTP_JSON or HTTP_PROTO"),
        (
            "ZipkinConfig",
            "collector_cluster: a, collector_endpoint: x, collector_endpoint_version: HTTP_JSON",
            "collector_endpoint: \"x\" is not a path",
        ),
        (
            "OpenTelemetryConfig",
            "http_service: {http_uri: {uri: 'http://x/', cluster: c, timeout: 1s}}, sampler: {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.DynatraceSamplerConfig}}",
            "DynatraceSamplerConfig\" is not supported",
        ),
        (
            "OpenTelemetryConfig",
            "http_service: {http_uri: {uri: 'ftp://x/', cluster: c, timeout: 1s}}",
            "http_service.http_uri.uri: \"ftp://x/\" is not a URI",
        ),
        (
            "OpenTelemetryConfig",
            "http_service: {http_uri: {uri: '/x', cluster: c, timeout: 1s}, request_headers_to_add: [{header: {key: a, value: '%REQ(b)%'}}]}",
            "only %ENVIRONMENT(..)% is known here",
        ),
    ] {
        let error = provider(kind, inside).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn request_ids_decide_unless_told_otherwise() {
    assert_eq!(read("").unwrap().request_id, RequestIdTracing { pack_trace_reason: true, decides: true });
    let text = "request_id_extension: {typed_config: {'@type': type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, \
                pack_trace_reason: false, use_request_id_for_trace_sampling: false}}";
    assert_eq!(read(text).unwrap().request_id, RequestIdTracing { pack_trace_reason: false, decides: false });
}
