//! OTLP: spans as OpenTelemetry's collectors take them.
//!
//! Owns the translation and the gRPC call. Never decides when to send.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status as SpanStatus, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue as Any, InstrumentationScope as WireScope, KeyValue as WireKeyValue,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as WireSpan};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use outrigger_config::source::GrpcService;
use outrigger_config::tracing::OpenTelemetry;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::manager::Channels;
use super::span::{Kind, Span};
use crate::upstream::call_metadata::call_metadata;

/// Of OTLP over HTTP.
pub const CONTENT_TYPE: &str = "application/x-protobuf";
/// Source: the OTLP exporter specification, "User Agent".
pub const USER_AGENT: &str = concat!("OTel-OTLP-Exporter-outrigger/", env!("CARGO_PKG_VERSION"));

/// Calls a collector by gRPC.
pub struct Client {
    service: GrpcService,
    channels: Arc<Channels>,
    /// Made when it is first needed; connects again by itself.
    channel: Option<Channel>,
}

impl Client {
    /// A client that has not connected.
    pub fn new(service: GrpcService, channels: Arc<Channels>) -> Self {
        Self { service, channels, channel: None }
    }

    /// Sends a batch.
    ///
    /// # Errors
    /// When the collector cannot be reached in time, or does not want it.
    pub async fn export(&mut self, batch: ExportTraceServiceRequest) -> Result<(), Status> {
        let send = |channel: Channel, request: Request<_>| async move {
            TraceServiceClient::new(channel).export(request).await
        };
        let sent = self.call(batch, send);
        let partial = sent.await?.partial_success.filter(|partial| partial.rejected_spans > 0);
        if let Some(partial) = partial {
            let (count, message) = (partial.rejected_spans, partial.error_message);
            tracing::warn!("the collector rejected {count} spans: {message}");
        }
        Ok(())
    }

    /// Makes a call with `send`.
    ///
    /// # Errors
    /// When the collector cannot be reached in time, or does not want it.
    pub async fn call<B, R, F>(&mut self, batch: B, send: impl FnOnce(Channel, Request<B>) -> F) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => {
                let made = (self.channels)(&self.service).map_err(|error| Status::unavailable(error.to_string()))?;
                self.channel.insert(made).clone()
            }
        };
        let mut request = Request::new(batch);
        *request.metadata_mut() =
            call_metadata(&self.service).map_err(|error| Status::unauthenticated(error.to_string()))?;
        let limit = self.service.timeout.filter(|limit| !limit.is_zero()).unwrap_or(DEFAULT_TIMEOUT);
        match tokio::time::timeout(limit, send(channel, request)).await {
            Ok(result) => result.map(Response::into_inner),
            Err(_) => Err(Status::unavailable(format!("no answer within {limit:?}"))),
        }
    }
}

/// Source: the OTLP specification, "Failures".
pub fn may_try_again(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
            | Code::Unauthenticated
            // What tonic makes of connections that cannot be made.
            | Code::Unknown
    )
}

/// What a status says, with its causes.
pub fn reason(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// A batch as it is sent.
pub fn request(batch: &[Span], config: &OpenTelemetry) -> ExportTraceServiceRequest {
    let mut attributes: Vec<WireKeyValue> = Vec::new();
    if config.sdk_attributes {
        let version = env!("CARGO_PKG_VERSION");
        let own = [("language", "rust"), ("name", SCOPE), ("version", version)];
        attributes.extend(own.map(|(name, value)| attribute(format!("telemetry.sdk.{name}"), value.to_owned())));
    }
    for (key, value) in &config.resource {
        attributes.retain(|known| known.key != *key);
        attributes.push(attribute(key.clone(), value.clone()));
    }
    let scope = config.instrumentation_scope.then(|| WireScope {
        name: SCOPE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..WireScope::default()
    });
    let spans = ScopeSpans { scope, spans: batch.iter().map(wire).collect(), ..ScopeSpans::default() };
    let resource = Some(Resource { attributes, ..Resource::default() });
    let spans = ResourceSpans { resource, scope_spans: vec![spans], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }
}

/// An attribute whose value is text.
pub fn attribute(key: String, value: String) -> WireKeyValue {
    WireKeyValue { key, value: Some(Any { value: Some(AnyValue::StringValue(value)) }), ..WireKeyValue::default() }
}

fn wire(span: &Span) -> WireSpan {
    let mut wire = WireSpan::from(data(span));
    if !span.failed {
        // As Envoy does: nothing is said of spans that are well.
        wire.status = None;
    }
    wire
}

fn data(span: &Span) -> SpanData {
    let identity = &span.identity;
    let flags = if identity.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    // A malformed state is none (W3C Trace Context section 3.3.1).
    let state: TraceState = span.trace_state.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default();
    let context = SpanContext::new(
        TraceId::from_bytes(identity.trace_id.to_be_bytes()),
        SpanId::from_bytes(identity.span_id.to_be_bytes()),
        flags,
        false,
        state,
    );
    let mut events = SpanEvents::default();
    events.events = span.events.iter().map(|(at, name)| Event::new(*name, *at, Vec::new(), 0)).collect();
    SpanData {
        span_context: context,
        parent_span_id: identity.parent_id.map_or(SpanId::INVALID, |id| SpanId::from_bytes(id.to_be_bytes())),
        parent_span_is_remote: identity.remote_parent,
        span_kind: match span.kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Internal => SpanKind::Internal,
        },
        name: Cow::Owned(span.name.to_string()),
        start_time: span.start,
        end_time: span.end,
        attributes: span.tags.iter().map(|(name, value)| KeyValue::new(name.to_owned(), value.to_string())).collect(),
        dropped_attributes_count: 0,
        events,
        links: SpanLinks::default(),
        status: if span.failed { SpanStatus::error("") } else { SpanStatus::Unset },
        instrumentation_scope: InstrumentationScope::default(),
    }
}

/// Our name among makers of spans.
/// Who speaks, in OTLP.
pub const SCOPE: &str = "outrigger";
/// Of a call, unless the service has its own. Source: the OTLP exporter specification.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
pub mod tests {
    use std::time::UNIX_EPOCH;

    use outrigger_config::source::GrpcTarget;
    use outrigger_config::tracing::OtlpExporter;
    use outrigger_policy::trace::{Format, Identity};

    use super::super::span::{Tags, Value};
    use super::*;

    /// A client's span that failed.
    pub fn span() -> Span {
        let mut tags = Tags::default();
        tags.set("component", Value::Known("proxy"));
        tags.set("http.status_code", Value::Number(503));
        Span {
            identity: Identity {
                trace_id: 0x11 << 64 | 0x22,
                span_id: 0x33,
                parent_id: Some(0x44),
                remote_parent: true,
                sampled: true,
                format: Format::W3c,
            },
            trace_state: Some("a=b,c=d".into()),
            kind: Kind::Client,
            name: "egress a".into(),
            start: UNIX_EPOCH + Duration::from_micros(1_000_001),
            end: UNIX_EPOCH + Duration::from_micros(1_000_301),
            tags,
            failed: true,
            events: vec![(UNIX_EPOCH + Duration::from_micros(1_000_100), "first_upstream_rx_byte_received")],
        }
    }

    /// A provider whose collector is the cluster `c`.
    pub fn config(sdk_attributes: bool) -> OpenTelemetry {
        let target = GrpcTarget::Cluster { name: "c".into(), authority: None, max_receive_message_bytes: None };
        OpenTelemetry {
            exporter: OtlpExporter::Grpc(GrpcService { target, timeout: None, initial_metadata: Vec::new() }),
            resource: vec![("service.name".into(), "svc".into()), ("telemetry.sdk.name".into(), "mine".into())],
            sdk_attributes,
            instrumentation_scope: sdk_attributes,
            sampler: None,
            tail: None,
            max_waiting: 1,
        }
    }

    #[test]
    fn a_span_on_the_wire() {
        let sent = request(&[span()], &config(true));
        let resource = &sent.resource_spans[0];
        let keys: Vec<_> = resource.resource.as_ref().unwrap().attributes.iter().map(|a| a.key.as_str()).collect();
        let expected = ["telemetry.sdk.language", "telemetry.sdk.version", "service.name", "telemetry.sdk.name"];
        assert_eq!(keys, expected);
        assert_eq!(resource.scope_spans[0].scope.as_ref().unwrap().name, "outrigger");
        let span = &resource.scope_spans[0].spans[0];
        assert_eq!(span.trace_id, [[0, 0, 0, 0, 0, 0, 0, 0x11], [0, 0, 0, 0, 0, 0, 0, 0x22]].concat());
        assert_eq!((span.span_id[7], span.parent_span_id[7], span.flags), (0x33, 0x44, 0x301));
        assert_eq!((span.trace_state.as_str(), span.name.as_str(), span.kind), ("a=b,c=d", "egress a", 3));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1_000_001_000, 1_000_301_000));
        assert_eq!(span.attributes[1], attribute("http.status_code".into(), "503".into()));
        assert_eq!((span.events.len(), span.status.as_ref().unwrap().code), (1, 2));
    }

    #[test]
    fn what_was_switched_off_is_not_said() {
        let mut well = span();
        well.failed = false;
        well.identity.parent_id = None;
        let sent = request(&[well], &config(false));
        let resource = &sent.resource_spans[0];
        assert_eq!(resource.resource.as_ref().unwrap().attributes.len(), 2);
        assert_eq!(resource.scope_spans[0].scope, None);
        let span = &resource.scope_spans[0].spans[0];
        assert!(span.status.is_none() && span.parent_span_id.is_empty());
    }
}
