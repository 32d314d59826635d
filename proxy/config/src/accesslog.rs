//! Access loggers (`envoy.config.accesslog.v3.AccessLog`): what is written, where, and for which requests.
//!
//! Owns the checked model. Never writes anything.

mod filter;
mod open_telemetry;
mod parse;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cel::Expression;
use crate::format::Format;
use crate::matching::MetadataMatcher;
use crate::source::GrpcService;
use crate::tracing::CustomTag;
use crate::units::RuntimeFraction;

pub(crate) use filter::filter;
pub(crate) use open_telemetry::labels;
pub use open_telemetry::{OtlpAccessLog, OtlpConstant, OtlpFormat, OtlpLogOutlet};
pub(crate) use parse::{access_logs, log_format};

/// One access logger.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    /// As configured.
    pub name: Arc<str>,
    /// Which requests are logged; all when `None`.
    pub filter: Option<AccessLogFilter>,
    /// Where and how.
    pub sink: AccessLogSink,
}

/// Where log entries go.
#[derive(Clone, Debug, PartialEq)]
pub enum AccessLogSink {
    /// Appended to a file; `/dev/stdout` and `/dev/null` work.
    File { path: PathBuf, format: LogFormat },
    /// Standard output.
    Stdout { format: LogFormat },
    /// Standard error.
    Stderr { format: LogFormat },
    /// The gRPC access log service.
    Grpc(Arc<GrpcAccessLog>),
    /// A collector of OpenTelemetry.
    OpenTelemetry(Arc<OtlpAccessLog>),
}

/// A line format.
#[derive(Clone, Debug, PartialEq)]
pub enum LogFormat {
    /// Text, with its line end if it has one; nothing stands for what is absent if `omit_empty`.
    Text { format: Format, omit_empty: bool },
    /// One JSON object a line; key order as configured (sorted by name, as Envoy does).
    Json { fields: Vec<(String, JsonFormat)>, omit_empty: bool },
}

/// A value in a JSON format.
#[derive(Clone, Debug, PartialEq)]
pub enum JsonFormat {
    /// A string with operators; a lone operator keeps its type (numbers stay numbers).
    Text(Format),
    /// As it stands.
    Number(f64),
    /// As it stands.
    Bool(bool),
    /// `null`.
    Null,
    /// Nested.
    Object(Vec<(String, JsonFormat)>),
    /// Nested.
    List(Vec<JsonFormat>),
}

/// Source: `HttpGrpcAccessLogConfig` and `TcpGrpcAccessLogConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcAccessLog {
    /// `log_name` of the identifier.
    pub log_name: String,
    /// Whom to send to.
    pub service: GrpcService,
    /// Time between flushes; 1 s unless given.
    pub buffer_flush_interval: Duration,
    /// A flush happens when this much is waiting; 16 KiB unless given.
    pub buffer_size_bytes: u32,
    /// HTTP entries (and not TCP ones).
    pub http: bool,
    /// Objects of the filter state that entries have.
    pub filter_state: Vec<Arc<str>>,
    /// Tags that entries have.
    pub custom_tags: Vec<CustomTag>,
    /// Lower-case names added to HTTP entries.
    pub request_headers: Vec<Arc<str>>,
    /// Lower-case names added to HTTP entries.
    pub response_headers: Vec<Arc<str>>,
    /// Lower-case names added to HTTP entries.
    pub response_trailers: Vec<Arc<str>>,
}

/// Which requests are logged. Source: `AccessLogFilter`.
#[derive(Clone, Debug, PartialEq)]
pub enum AccessLogFilter {
    /// Compares the response code.
    StatusCode(Comparison),
    /// Compares the duration in milliseconds.
    Duration(Comparison),
    /// Not health check requests.
    NotHealthCheck,
    /// Traced requests only.
    Traceable,
    /// A share of requests.
    Runtime { fraction: RuntimeFraction, independent: bool },
    /// All of them hold.
    And(Vec<AccessLogFilter>),
    /// Any of them holds.
    Or(Vec<AccessLogFilter>),
    /// A request header matches.
    Header(Box<crate::route::HeaderMatcher>),
    /// Any of these response flags is set; any at all when empty.
    ResponseFlag(Vec<String>),
    /// The gRPC status is one of these (or not).
    GrpcStatus { codes: Vec<u32>, exclude: bool },
    /// Dynamic metadata matches; `if_absent` is what holds where there is none, or no matcher.
    Metadata { matcher: Option<Box<MetadataMatcher>>, if_absent: bool },
    /// The entry is of one of these types (`envoy.data.accesslog.v3.AccessLogType`), or not.
    LogType { types: Vec<i32>, exclude: bool },
    /// An expression is true.
    Expression(Arc<Expression>),
}

/// Source: `ComparisonFilter`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Comparison {
    /// How.
    pub operator: ComparisonOperator,
    /// With what.
    pub value: u32,
    /// Overrides the value; empty when not given.
    pub runtime_key: String,
}

/// Source: `ComparisonFilter.Op`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ComparisonOperator {
    /// `==`
    Equal,
    /// `>=`
    GreaterOrEqual,
    /// `<=`
    LessOrEqual,
    /// `!=`
    NotEqual,
}
