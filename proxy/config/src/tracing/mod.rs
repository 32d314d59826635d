//! Distributed tracing: which requests are traced, what their spans say, and where spans go.
//!
//! Owns the checked model of connection managers' and routes' settings and of the providers. Never samples or sends.

mod custom_tag;
mod http_service;
mod opentelemetry;
mod parse;
mod resource;
mod sampler;
#[cfg(test)]
mod tests;
mod zipkin;

use std::sync::Arc;
use std::time::Duration;

use crate::cel::Expression;
use crate::format::Format;
use crate::network::TokenBucket;
use crate::source::GrpcService;
use crate::units::{Fraction, RuntimeFraction};

pub(crate) use custom_tag::custom_tag;
pub(crate) use http_service::http_service;
pub(crate) use resource::resource;

pub(crate) use parse::{bootstrap_provider, http_tracing, request_id, route_trace};

/// Tracing of a connection manager. Source: `HttpConnectionManager.Tracing`.
#[derive(Debug)]
pub struct HttpTracing {
    /// Where spans go; to the bootstrap's provider when `None`.
    pub provider: Option<Arc<TraceProvider>>,
    /// Which requests are traced.
    pub sampling: Sampling,
    /// Spans tell when things happened.
    pub verbose: bool,
    /// Bytes of the path in `http.url`; 256 unless given.
    pub max_path_tag_length: usize,
    /// Tags of all spans.
    pub custom_tags: Vec<CustomTag>,
    /// Each try has a span of its own.
    pub spawn_upstream_span: bool,
    /// Upstreams are not told of the trace.
    pub no_context_propagation: bool,
    /// Names the span of a request, instead of decorators.
    pub operation: Option<Format>,
    /// Names the spans of tries.
    pub upstream_operation: Option<Format>,
}

/// Which requests are traced. Each share has a runtime key of its own: `tracing.client_enabled`,
/// `tracing.random_sampling` and `tracing.global_enabled`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sampling {
    /// Of those whose client sent `x-client-trace-id`.
    pub client: RuntimeFraction,
    /// Of those that nobody asked for.
    pub random: RuntimeFraction,
    /// Of all that would be traced otherwise.
    pub overall: RuntimeFraction,
}

impl Sampling {
    /// Shares with the keys that override them.
    pub fn new(client: Fraction, random: Fraction, overall: Fraction) -> Self {
        let share = |default, key: &str| RuntimeFraction { default, runtime_key: key.to_owned() };
        Self {
            client: share(client, "tracing.client_enabled"),
            random: share(random, "tracing.random_sampling"),
            overall: share(overall, "tracing.global_enabled"),
        }
    }
}

/// What a route says about tracing.
#[derive(Clone, Debug)]
pub struct RouteTrace {
    /// Source: `Route.decorator`.
    pub decorator: Option<Decorator>,
    /// Source: `Route.tracing`.
    pub tracing: Option<RouteTracing>,
}

/// Source: `envoy.config.route.v3.Decorator`.
#[derive(Clone, Debug)]
pub struct Decorator {
    /// Name of the span.
    pub operation: Arc<str>,
    /// Tells the other side (`x-envoy-decorator-operation`).
    pub propagate: bool,
}

/// Source: `envoy.config.route.v3.Tracing`.
#[derive(Clone, Debug)]
pub struct RouteTracing {
    /// Replaces the connection manager's shares.
    pub sampling: Sampling,
    /// Win over the connection manager's of the same name.
    pub custom_tags: Vec<CustomTag>,
    /// Wins over the connection manager's.
    pub operation: Option<Format>,
    /// Wins over the connection manager's.
    pub upstream_operation: Option<Format>,
}

/// A tag that the configuration adds to spans. Source: `envoy.type.tracing.v3.CustomTag`.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomTag {
    /// Its name.
    pub name: Arc<str>,
    /// Its value; spans do not have the tag when that is empty.
    pub value: CustomTagValue,
}

/// Where the value of a [`CustomTag`] comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum CustomTagValue {
    /// Fixed, or an environment variable as it was when the configuration came.
    Literal(Arc<str>),
    /// A request header (lower case), or a default.
    RequestHeader { name: Arc<str>, default: Arc<str> },
    /// A piece of metadata, or a default.
    Metadata { of: TagMetadata, namespace: Arc<str>, path: Vec<Arc<str>>, default: Arc<str> },
    /// A format.
    Format(Format),
}

/// Whose metadata a tag shows. Source: `envoy.type.metadata.v3.MetadataKind`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TagMetadata {
    /// What filters left.
    Request,
    /// The route's.
    Route,
    /// The cluster's.
    Cluster,
    /// The endpoint's, `envoy.lb` only.
    Host,
}

/// What an id of requests is used for. Source: `UuidRequestIdConfig`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RequestIdTracing {
    /// Ids say whether their request is traced; true unless given.
    pub pack_trace_reason: bool,
    /// Whether a request is traced follows from its id; every request is traced otherwise. True unless given.
    pub decides: bool,
}

impl Default for RequestIdTracing {
    fn default() -> Self {
        Self { pack_trace_reason: true, decides: true }
    }
}

/// Where spans go, and in which form. Source: `envoy.config.trace.v3.Tracing.Http`.
#[expect(clippy::large_enum_variant, reason = "there are few, and each is shared")]
#[derive(Clone, Debug, PartialEq)]
pub enum TraceProvider {
    /// `envoy.tracers.opentelemetry`
    OpenTelemetry(OpenTelemetry),
    /// `envoy.tracers.zipkin`
    Zipkin(Zipkin),
}

impl TraceProvider {
    /// Whether this process is a hop of its own in a trace, whatever its connection managers say.
    pub fn is_own_hop(&self) -> bool {
        matches!(self, TraceProvider::Zipkin(Zipkin { own_hop: true, .. }))
    }
}

/// Source: `envoy.config.trace.v3.OpenTelemetryConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenTelemetry {
    /// Where spans go.
    pub exporter: OtlpExporter,
    /// Attributes of the resource, without those of the SDK; sorted by name.
    pub resource: Vec<(String, String)>,
    /// Adds `telemetry.sdk.*` to the resource.
    pub sdk_attributes: bool,
    /// Names the instrumentation scope.
    pub instrumentation_scope: bool,
    /// Decides instead of the connection manager's shares.
    pub sampler: Option<Sampler>,
    /// Decides once more at the end of requests that were not sampled.
    pub tail: Option<Tail>,
    /// Spans that may wait; 1024 unless given.
    pub max_waiting: usize,
}

/// How OTLP is spoken.
#[derive(Clone, Debug, PartialEq)]
pub enum OtlpExporter {
    /// `grpc_service`
    Grpc(GrpcService),
    /// `http_service`
    Http(HttpService),
}

/// Decides on spans by OpenTelemetry's rules.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampler {
    /// All of them.
    AlwaysOn,
    /// A share of traces, by their ids.
    TraceIdRatio(Fraction),
    /// As the caller did, or as another sampler says where there is none.
    ParentBased(Box<Sampler>),
    /// Those of which this is true when their spans begin.
    Expression(Arc<Expression>),
}

/// Which requests that were not sampled are kept all the same. Source: `outrigger.trace.v1.TailSampler`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tail {
    /// Those that failed.
    pub errors: bool,
    /// Those that took at least so long.
    pub slow: Option<Duration>,
    /// Of bytes of spans.
    pub budget: TokenBucket,
}

/// Source: `envoy.config.trace.v3.ZipkinConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Zipkin {
    /// Where spans go.
    pub collector: HttpService,
    /// In which form.
    pub encoding: ZipkinEncoding,
    /// New traces get ids of 128 bits, not 64.
    pub trace_id_128bit: bool,
    /// The server's span has the id of its client's; true unless given.
    pub shared_span_context: bool,
    /// W3C headers are understood where there are none of B3, and sent beside them.
    pub w3c: bool,
    /// New trace ids begin with the time in seconds.
    pub timestamp_trace_ids: bool,
    /// Spans of requests are a server's for `OUTBOUND` listeners too. Source: `split_spans_for_request`.
    pub own_hop: bool,
}

/// Source: `ZipkinConfig.CollectorEndpointVersion`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ZipkinEncoding {
    /// `HTTP_JSON`
    Json,
    /// `HTTP_PROTO`
    Proto,
}

/// A service that takes HTTP posts. Source: `envoy.config.core.v3.HttpService`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpService {
    /// The cluster it is reached by.
    pub cluster: Arc<str>,
    /// Value of the `host` header.
    pub host: String,
    /// With query, if any.
    pub path: String,
    /// Limit on a whole exchange.
    pub timeout: Duration,
    /// Added to each request; lower-case names.
    pub headers: Vec<(Arc<str>, String)>,
}
