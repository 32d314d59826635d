//! Substitution formats: text with command operators such as `%REQ(:METHOD)%`.
//!
//! Owns the compiled form shared by access logs, header values and local replies. Never evaluates it (see the proxy's
//! `accesslog`), and never reads a clock.

mod coalesce;
mod named;
mod parameters;
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
    /// `REQ_WITHOUT_QUERY(name?alternative)`: a request header up to its first `?`.
    RequestWithoutQuery { name: Arc<str>, alternative: Option<Arc<str>> },
    /// `QUERY_PARAM(name)`.
    QueryParameter(Arc<str>),
    /// `QUERY_PARAMS(ORIG|DECODED)`.
    QueryParameters { decoded: bool },
    /// `PATH(WQ|NQ:ORIG|PATH|ORIG_OR_PATH)`.
    Path { query: bool, source: Original },
    /// `START_TIME(format)` and its kin; `None` is ISO 8601 with milliseconds.
    Date { of: DateOf, local: bool, format: Option<Arc<str>> },
    /// `PROTOCOL`.
    Protocol,
    /// `RESPONSE_CODE`.
    ResponseCode,
    /// `RESPONSE_CODE_DETAILS`, with blanks as `_` unless `ALLOW_WHITESPACES` is given.
    ResponseCodeDetails { blanks: bool },
    /// `RESPONSE_FLAGS`.
    ResponseFlags,
    /// `RESPONSE_FLAGS_LONG`.
    ResponseFlagsLong,
    /// A count of bytes.
    Bytes(Bytes),
    /// `DURATION` in milliseconds.
    Duration,
    /// `REQUEST_DURATION`: until the last request byte.
    RequestDuration,
    /// `RESPONSE_DURATION`: until the first response byte.
    ResponseDuration,
    /// `RESPONSE_TX_DURATION`: first to last response byte.
    ResponseTxDuration,
    /// `REQUEST_TX_DURATION`: until the last request byte went upstream.
    RequestTxDuration,
    /// `ROUNDTRIP_DURATION`: HTTP/3 alone, so never there.
    RoundtripDuration,
    /// `DOWNSTREAM_HANDSHAKE_DURATION`.
    DownstreamHandshakeDuration,
    /// `UPSTREAM_CONNECTION_POOL_READY_DURATION`.
    UpstreamPoolReadyDuration,
    /// `COMMON_DURATION(start:end:precision)`; points of time that are not known are never reached.
    CommonDuration { from: Option<TimePoint>, to: Option<TimePoint>, precision: Precision },
    /// `UPSTREAM_HOST`.
    UpstreamHost,
    /// `UPSTREAM_HOST_NAME`, `UPSTREAM_HOST_NAME_WITHOUT_PORT`.
    UpstreamHostName { port: bool },
    /// `UPSTREAM_HOSTS_ATTEMPTED` and its kin.
    UpstreamHostsAttempted { names: bool, port: bool },
    /// `UPSTREAM_CONNECTION_ID`.
    UpstreamConnectionId,
    /// `UPSTREAM_CONNECTION_IDS_ATTEMPTED`.
    UpstreamConnectionIdsAttempted,
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
    /// `DOWNSTREAM_DIRECT_LOCAL_ADDRESS` and its parts: the socket's own.
    DownstreamDirectLocalAddress(AddressPart),
    /// `CONNECTION_ID`.
    ConnectionId,
    /// `CONNECTION_TERMINATION_DETAILS`.
    ConnectionTerminationDetails,
    /// `DOWNSTREAM_TRANSPORT_FAILURE_REASON`.
    DownstreamTransportFailureReason,
    /// `REQUESTED_SERVER_NAME(SNI_ONLY|SNI_FIRST|HOST_FIRST:ORIG|HOST|ORIG_OR_HOST)`.
    RequestedServerName { order: ServerNameOrder, host: Original },
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
    /// `DOWNSTREAM_TLS_GROUP`.
    DownstreamTlsGroup,
    /// `UPSTREAM_TLS_VERSION`.
    UpstreamTlsVersion,
    /// `UPSTREAM_TLS_CIPHER`.
    UpstreamTlsCipher,
    /// `UPSTREAM_TLS_GROUP`.
    UpstreamTlsGroup,
    /// `UPSTREAM_TLS_SESSION_ID`.
    UpstreamTlsSessionId,
    /// `UPSTREAM_SERVER_NAME`: the SNI that was sent.
    UpstreamServerName,
    /// A part of a certificate of a connection.
    Certificate { whose: Whose, part: CertificatePart },
    /// `TLS_JA3_FINGERPRINT`.
    TlsJa3,
    /// `TLS_JA4_FINGERPRINT`.
    TlsJa4,
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
    /// `UNIQUE_ID`: a new UUID each time.
    UniqueId,
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
    /// The round-trip time of the client's connection, close types and reasons, and state of upstream filters: never there.
    Nothing,
    /// Flags of custom filters and endpoint ids of internal addresses: always empty.
    Empty,
    /// `COALESCE`: the first that is there and not empty.
    Coalesce(Arc<[FormatPart]>),
    /// `CEL(expression)`, or `TYPED_CEL` which keeps types in JSON.
    Cel { expression: Arc<crate::cel::Expression>, typed: bool },
    /// `TIMER(name)`: one of HAProxy's timers in milliseconds, -1 if it did not end.
    Timer(Arc<str>),
    /// `TERMINATION_STATE`: HAProxy's four letters.
    TerminationState,
    /// `RETRY_CLASS`: `never_sent`, `sent` or `answered`.
    RetryClass,
    /// `REASON`: a sentence why it failed.
    Reason,
}

/// What a date is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DateOf {
    /// The beginning of the stream.
    Start,
    /// The writing of the entry.
    Emit,
    /// The beginning of the validity of a certificate.
    NotBefore(Whose),
    /// The end of the validity of a certificate.
    NotAfter(Whose),
}

/// Bytes that are counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bytes {
    /// `BYTES_RECEIVED`: body bytes from downstream.
    Received,
    /// `BYTES_SENT`: body bytes to downstream.
    Sent,
    /// `UPSTREAM_WIRE_BYTES_RECEIVED`.
    UpstreamReceived,
    /// `UPSTREAM_WIRE_BYTES_SENT`.
    UpstreamSent,
    /// `DOWNSTREAM_WIRE_BYTES_RECEIVED`.
    DownstreamReceived,
    /// `DOWNSTREAM_WIRE_BYTES_SENT`.
    DownstreamSent,
    /// `UPSTREAM_HEADER_BYTES_SENT`, and decompressed.
    UpstreamHeadSent,
    /// `UPSTREAM_HEADER_BYTES_RECEIVED`, and decompressed.
    UpstreamHeadReceived,
    /// `DOWNSTREAM_HEADER_BYTES_SENT`, and decompressed.
    DownstreamHeadSent,
    /// `DOWNSTREAM_HEADER_BYTES_RECEIVED`, and decompressed.
    DownstreamHeadReceived,
    /// `RESPONSE_TRAILERS_BYTES`.
    ResponseTrailers,
    /// Bytes and packets that QUIC sent again: none.
    Retransmitted,
}

/// A point in a stream's life. Source: `COMMON_DURATION`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimePoint {
    /// `DS_RX_BEG`.
    RequestBegin,
    /// `DS_RX_END`.
    RequestEnd,
    /// `US_CX_BEG`.
    ConnectBegin,
    /// `US_CX_END`.
    ConnectEnd,
    /// `US_HS_END`.
    HandshakeEnd,
    /// `US_TX_BEG`.
    UpstreamTxBegin,
    /// `US_TX_END`.
    UpstreamTxEnd,
    /// `US_RX_BEG`.
    ResponseBegin,
    /// `US_RX_BODY_BEG`.
    ResponseBodyBegin,
    /// `US_RX_END`.
    ResponseEnd,
    /// `DS_TX_BEG`.
    DownstreamTxBegin,
    /// `DS_TX_END`.
    DownstreamTxEnd,
    /// `DS_CX_BEG`.
    ConnectionBegin,
    /// `DS_CX_END`.
    ConnectionEnd,
}

/// The unit of a duration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Precision {
    /// `ms`
    Milliseconds,
    /// `us`
    Microseconds,
    /// `ns`
    Nanoseconds,
}

/// Where a path or host comes from: the header that keeps the original one, or the request as it is now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Original {
    /// `ORIG`
    Only,
    /// `PATH`, `HOST`
    Current,
    /// `ORIG_OR_PATH`, `ORIG_OR_HOST`
    First,
}

/// Source: `REQUESTED_SERVER_NAME(X)`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServerNameOrder {
    /// `SNI_ONLY`
    SniOnly,
    /// `SNI_FIRST`
    SniFirst,
    /// `HOST_FIRST`
    HostFirst,
}

/// Whose certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Whose {
    /// The client's.
    DownstreamPeer,
    /// Ours, towards the client.
    DownstreamLocal,
    /// The endpoint's.
    UpstreamPeer,
    /// Ours, towards the endpoint.
    UpstreamLocal,
}

/// What is printed of a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CertificatePart {
    /// URI names.
    UriSans,
    /// DNS names.
    DnsSans,
    /// IP addresses.
    IpSans,
    /// Mail addresses.
    EmailSans,
    /// Names of other kinds.
    OtherSans,
    /// RFC 2253 subject.
    Subject,
    /// RFC 2253 issuer.
    Issuer,
    /// SHA-256.
    Fingerprint256,
    /// SHA-1.
    Fingerprint1,
    /// Serial number.
    Serial,
    /// SHA-256 of all certificates.
    ChainFingerprints256,
    /// SHA-1 of all certificates.
    ChainFingerprints1,
    /// Serial numbers of all certificates.
    ChainSerials,
    /// SHA-256 of the issuer.
    IssuerFingerprint256,
    /// Serial number of the issuer.
    IssuerSerial,
    /// URL-encoded PEM.
    Pem,
}

/// Which part of an address an operator prints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AddressPart {
    /// `1.2.3.4:80`.
    Full,
    /// `1.2.3.4`.
    WithoutPort,
    /// `1.2.0.0/16`.
    Masked(u8),
    /// `80`.
    Port,
    /// What tells an endpoint apart that leads to a listener of this process.
    EndpointId,
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
    /// The filter chain.
    FilterChain,
    /// The virtual host of the request.
    VirtualHost,
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
