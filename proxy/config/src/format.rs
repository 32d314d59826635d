//! Substitution formats: text with command operators such as `%REQ(:METHOD)%`.
//!
//! Owns the compiled form shared by access logs, header values and local replies. Never evaluates it (see the proxy's
//! `accesslog`), and never reads a clock.

mod parse;

use std::sync::Arc;

/// A compiled format string.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Format {
    /// Written one after the other.
    pub parts: Vec<FormatPart>,
}

impl Format {
    /// A format without operators.
    pub fn literal(text: &str) -> Self {
        Self { parts: vec![FormatPart::Literal(text.into())] }
    }

    /// The text, when there is no operator in it.
    pub fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [FormatPart::Literal(text)] => Some(text),
            _ => None,
        }
    }
}

/// A piece of a [`Format`].
#[derive(Clone, Debug, PartialEq)]
pub enum FormatPart {
    /// As it stands.
    Literal(Arc<str>),
    /// Looked up per request or connection; cut to `max_bytes` if given.
    Operator { operator: Operator, max_bytes: Option<usize> },
}

/// The command operators that exist. Source: Envoy's access log format documentation.
#[derive(Clone, Debug, PartialEq)]
pub enum Operator {
    /// `REQ(name?alternative)`; lower-case names.
    RequestHeader { name: Arc<str>, alternative: Option<Arc<str>> },
    /// `RESP(name?alternative)`.
    ResponseHeader { name: Arc<str>, alternative: Option<Arc<str>> },
    /// `TRAILER(name?alternative)`.
    ResponseTrailer { name: Arc<str>, alternative: Option<Arc<str>> },
    /// `START_TIME(format)`; `None` is ISO 8601 with milliseconds in UTC.
    StartTime { format: Option<Arc<str>> },
    /// `PROTOCOL`.
    Protocol,
    /// `RESPONSE_CODE`.
    ResponseCode,
    /// `RESPONSE_CODE_DETAILS`.
    ResponseCodeDetails,
    /// `RESPONSE_FLAGS`.
    ResponseFlags,
    /// `RESPONSE_FLAGS_LONG`.
    ResponseFlagsLong,
    /// `BYTES_RECEIVED`: body bytes from downstream.
    BytesReceived,
    /// `BYTES_SENT`: body bytes to downstream.
    BytesSent,
    /// `UPSTREAM_WIRE_BYTES_RECEIVED`, or the body bytes where the wire is not counted.
    UpstreamBytesReceived,
    /// `UPSTREAM_WIRE_BYTES_SENT`.
    UpstreamBytesSent,
    /// `DURATION` in milliseconds.
    Duration,
    /// `REQUEST_DURATION`: until the last request byte.
    RequestDuration,
    /// `RESPONSE_DURATION`: until the first response byte.
    ResponseDuration,
    /// `RESPONSE_TX_DURATION`: first to last response byte.
    ResponseTxDuration,
    /// `UPSTREAM_HOST`.
    UpstreamHost,
    /// `UPSTREAM_CLUSTER` (`alt_stat_name` if given) or `UPSTREAM_CLUSTER_RAW`.
    UpstreamCluster { raw: bool },
    /// `UPSTREAM_LOCAL_ADDRESS`, `UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT`, `UPSTREAM_LOCAL_PORT`.
    UpstreamLocalAddress(AddressPart),
    /// `UPSTREAM_REMOTE_ADDRESS` and its parts.
    UpstreamRemoteAddress(AddressPart),
    /// `UPSTREAM_TRANSPORT_FAILURE_REASON`.
    UpstreamTransportFailureReason,
    /// `UPSTREAM_REQUEST_ATTEMPT_COUNT`.
    UpstreamRequestAttemptCount,
    /// `UPSTREAM_PROTOCOL`.
    UpstreamProtocol,
    /// `DOWNSTREAM_REMOTE_ADDRESS` and its parts: the client, x-forwarded-for considered.
    DownstreamRemoteAddress(AddressPart),
    /// `DOWNSTREAM_DIRECT_REMOTE_ADDRESS` and its parts: the peer.
    DownstreamDirectRemoteAddress(AddressPart),
    /// `DOWNSTREAM_LOCAL_ADDRESS` and its parts.
    DownstreamLocalAddress(AddressPart),
    /// `CONNECTION_ID`.
    ConnectionId,
    /// `CONNECTION_TERMINATION_DETAILS`.
    ConnectionTerminationDetails,
    /// `DOWNSTREAM_TRANSPORT_FAILURE_REASON`.
    DownstreamTransportFailureReason,
    /// `REQUESTED_SERVER_NAME` (SNI).
    RequestedServerName,
    /// `ROUTE_NAME`.
    RouteName,
    /// `VIRTUAL_CLUSTER_NAME`.
    VirtualClusterName,
    /// `FILTER_CHAIN_NAME`.
    FilterChainName,
    /// `DOWNSTREAM_TLS_VERSION`.
    DownstreamTlsVersion,
    /// `DOWNSTREAM_TLS_CIPHER`.
    DownstreamTlsCipher,
    /// `DOWNSTREAM_TLS_SESSION_ID`.
    DownstreamTlsSessionId,
    /// `DOWNSTREAM_PEER_URI_SAN`.
    DownstreamPeerUriSan,
    /// `DOWNSTREAM_PEER_DNS_SAN`.
    DownstreamPeerDnsSan,
    /// `DOWNSTREAM_LOCAL_URI_SAN`.
    DownstreamLocalUriSan,
    /// `DOWNSTREAM_PEER_SUBJECT`.
    DownstreamPeerSubject,
    /// `DOWNSTREAM_PEER_ISSUER`.
    DownstreamPeerIssuer,
    /// `DOWNSTREAM_PEER_FINGERPRINT_256`.
    DownstreamPeerFingerprint256,
    /// `DYNAMIC_METADATA(namespace:key:...)`.
    DynamicMetadata { path: Vec<Arc<str>> },
    /// `FILTER_STATE(key:form)`.
    FilterState { key: Arc<str>, form: FilterStateForm },
    /// `CLUSTER_METADATA`, `UPSTREAM_METADATA` (`METADATA(CLUSTER:...)`), looked up in resource metadata.
    Metadata { of: MetadataOf, path: Vec<Arc<str>> },
    /// `ENVIRONMENT(name)`, read when compiled.
    Environment { value: Option<Arc<str>> },
    /// `HOSTNAME`.
    Hostname,
    /// `LOCAL_REPLY_BODY`.
    LocalReplyBody,
    /// `GRPC_STATUS` (camel-case name), `GRPC_STATUS(SNAKE_STRING)`, `GRPC_STATUS(NUMBER)` or `GRPC_STATUS_NUMBER`.
    GrpcStatus(GrpcStatusForm),
    /// `STREAM_ID`.
    StreamId,
    /// `TRACE_ID`; absent without tracing.
    TraceId,
    /// `SPAN_ID`; absent without tracing, and for Zipkin.
    SpanId,
    /// `REQUEST_HEADERS_BYTES`.
    RequestHeadersBytes,
    /// `RESPONSE_HEADERS_BYTES`.
    ResponseHeadersBytes,
    /// `ACCESS_LOG_TYPE`.
    AccessLogType,
}

/// Which part of an address an operator prints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AddressPart {
    /// `1.2.3.4:80`.
    Full,
    /// `1.2.3.4`.
    WithoutPort,
    /// `80`.
    Port,
}

/// How an object of the filter state is printed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum FilterStateForm {
    /// `TYPED`: as JSON.
    #[default]
    Typed,
    /// `PLAIN`: its text.
    Plain,
    /// `FIELD:name`: one of its fields.
    Field(Arc<str>),
}

/// Whose metadata `METADATA(...)` means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MetadataOf {
    /// The cluster of the request.
    Cluster,
    /// The route of the request.
    Route,
    /// The endpoint of the request.
    UpstreamHost,
    /// The listener.
    Listener,
}

/// How a gRPC status is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GrpcStatusForm {
    /// `DeadlineExceeded`.
    Camel,
    /// `DEADLINE_EXCEEDED`.
    Snake,
    /// `4`.
    Number,
}
