//! The HTTP connection manager (`...http_connection_manager.v3.HttpConnectionManager`) and HTTP protocol options.
//!
//! Owns the checked model. Never reads requests.

mod client_address;
mod client_cert;
mod connection_manager;
mod early_mutations;
pub mod filters;
pub(crate) mod header_mutations;
mod local_replies;

pub(crate) mod protocol_options;
mod proxy_status;
mod scoped_routes;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use client_address::{Detection, TrustedProxies};
pub use client_cert::{ClientCertDetails, ClientCertForwarding, ForwardClientCert};
pub use local_replies::{BodyFormat, LocalReplies, ReplyMapper};
pub use proxy_status::{ProxyName, ProxyStatus};
pub use scoped_routes::{KeyElement, KeyFragment, ScopeSource, ScopedRoutes};

pub use filters::{HttpFilter, HttpFilterConfig, RouteFilter, RouteFilterConfig, RouteFilters, Router};

use crate::accesslog::AccessLog;
use crate::format::Format;
use crate::http::filters::Mutation;
use crate::matcher::Matcher;
use crate::matching::StringMatcher;
use crate::route::RouteConfiguration;
use crate::source::ConfigSource;
use crate::tracing::{HttpTracing, RequestIdTracing};
use crate::units::Percent;

/// When entries are written besides the end of a request. Source: `HcmAccessLogOptions`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccessLogTimes {
    /// Again and again while a request lasts.
    pub interval: Option<Duration>,
    /// When a request begins.
    pub on_new_request: bool,
    /// When a tunnel was granted.
    pub on_tunnel: bool,
}

/// An HTTP connection manager, checked.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// Which codec, or by looking.
    pub codec: Codec,
    /// The `<prefix>` in `http.<prefix>.*` stats.
    pub stat_prefix: Arc<str>,
    /// Where the routes come from.
    pub routes: RouteSource,
    /// In order; the last one is the router.
    pub filters: Vec<HttpFilter>,
    /// HTTP/1 options towards the downstream.
    pub http1: Http1Options,
    /// HTTP/2 options towards the downstream.
    pub http2: Http2Options,
    /// Value of the `server` header; `envoy` unless given.
    pub server_name: String,
    /// What happens to the `server` header of responses.
    pub server_header: ServerHeader,
    /// Overwrites `:scheme`, if set.
    pub scheme: Option<String>,
    /// `:scheme` becomes that of the connection to the endpoint; never with `scheme`.
    pub scheme_of_upstream: bool,
    /// Limit on the size of request heads; 60 KiB unless given.
    pub max_request_headers_bytes: u32,
    /// Limit on the number of request headers; 100 unless given.
    pub max_headers_count: u32,
    /// Idle time of a whole connection; 1 h unless given.
    pub idle_timeout: Option<Duration>,
    /// Limit on the age of a connection.
    pub max_connection_duration: Option<Duration>,
    /// The limit is longer by a random part of it, up to this.
    pub max_connection_duration_jitter: Option<Percent>,
    /// An HTTP/1 connection of that age ends with its next response, instead of while it is idle.
    pub http1_safe_max_connection_duration: bool,
    /// Limit on the age of a stream.
    pub max_stream_duration: Option<Duration>,
    /// Requests served on one connection.
    pub max_requests_per_connection: Option<u32>,
    /// What happens to header names with underscores.
    pub underscores: UnderscoreAction,
    /// Idle time of a stream; 5 min unless given.
    pub stream_idle_timeout: Option<Duration>,
    /// Limit for receiving the whole request; none unless given.
    pub request_timeout: Option<Duration>,
    /// Limit for receiving the request head; none unless given.
    pub request_headers_timeout: Option<Duration>,
    /// Time between the shutdown notice and the final GOAWAY; 5 s unless given.
    pub drain_timeout: Duration,
    /// That time is longer by a random part of it, up to this.
    pub drain_timeout_jitter: Option<Percent>,
    /// Time a connection stays half open after a response that closes it; 1 s unless given.
    pub delayed_close_timeout: Option<Duration>,
    /// Written when a request ends.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// When they are written besides the end of requests.
    pub access_log_times: AccessLogTimes,
    /// The peer's address counts as the client's (edge), rather than x-forwarded-for.
    pub use_remote_address: bool,
    /// How clients are found instead; in order.
    pub detections: Box<[Detection]>,
    /// Schemes by ports.
    pub forward_proto: Option<Box<ForwardProto>>,
    /// Trusted proxies in front, at the right end of x-forwarded-for.
    pub xff_num_trusted_hops: u32,
    /// Do not add the peer to x-forwarded-for.
    pub skip_xff_append: bool,
    /// Networks whose clients count as internal (`x-envoy-internal`).
    pub internal_networks: InternalAddresses,
    /// Added to the `via` header of requests and responses, if set.
    pub via: Option<String>,
    /// Make an x-request-id where there is none (true unless disabled).
    pub generate_request_id: bool,
    /// Keep an x-request-id that an edge client sent.
    pub preserve_external_request_id: bool,
    /// Send x-request-id back in every response.
    pub always_set_request_id_in_response: bool,
    /// What happens to x-forwarded-client-cert, unless the tree leads elsewhere.
    pub client_cert: ClientCertForwarding,
    /// What happens to it for some requests.
    pub client_cert_matcher: Option<Box<Matcher<ClientCertForwarding>>>,
    /// The `proxy-status` header of responses to requests that failed.
    pub proxy_status: Option<Box<ProxyStatus>>,
    /// Pass `100-continue` upstream instead of answering it here.
    pub proxy_100_continue: bool,
    /// RFC 3986 path normalisation.
    pub normalize_path: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// What happens to `%2F` and `%5C` in paths.
    pub escaped_slashes: EscapedSlashes,
    /// What happens to the port in `:authority`.
    pub strip_port: StripPort,
    /// `host.` becomes `host`.
    pub strip_trailing_host_dot: bool,
    /// Adds x-forwarded-port.
    pub append_x_forwarded_port: bool,
    /// Answers made because of overload carry `x-envoy-local-overloaded`.
    pub append_local_overload: bool,
    /// Upgrades let through, lower case, such as `websocket`.
    pub upgrades: Vec<Upgrade>,
    /// Set when requests may be traced.
    pub tracing: Option<Box<HttpTracing>>,
    /// How answers of our own look; as they are unless given.
    pub local_replies: Option<Box<LocalReplies>>,
    /// Done to request headers before anything else looks at them.
    pub early_mutations: Vec<Mutation>,
    /// Requests tell which cluster of services and which node they come from.
    pub add_user_agent: bool,
    /// What ids of requests are used for.
    pub request_id: RequestIdTracing,
}

/// Source: `HttpConnectionManager.CodecType`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Codec {
    /// By ALPN, else by the first bytes.
    Auto,
    /// HTTP/1.
    Http1,
    /// HTTP/2, with prior knowledge on plain connections.
    Http2,
}

/// Where a connection manager's routes come from.
#[derive(Clone, Debug)]
pub enum RouteSource {
    /// In the listener.
    Inline(Arc<RouteConfiguration>),
    /// By route discovery.
    Rds { name: Arc<str>, source: ConfigSource },
    /// By what a request yields.
    Scoped(Arc<ScopedRoutes>),
}

/// An upgrade that is let through.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// Lower case, such as `websocket`.
    pub protocol: String,
    /// Enabled unless routes say otherwise.
    pub enabled: bool,
    /// What its requests pass through instead of the other filters; those, if there are none.
    pub filters: Vec<HttpFilter>,
}

impl HttpConnectionManager {
    /// The filters of all requests, and behind them those of each upgrade that has its own.
    pub fn all_filters(&self) -> impl Iterator<Item = &HttpFilter> {
        self.filters.iter().chain(self.upgrades.iter().flat_map(|upgrade| &upgrade.filters))
    }
}

/// Source: `Http1ProtocolOptions`.
#[derive(Clone, Debug, PartialEq)]
pub struct Http1Options {
    /// `GET http://host/path` is taken (true unless disabled).
    pub allow_absolute_url: bool,
    /// HTTP/1.0 requests are taken; 426 otherwise.
    pub accept_http_10: bool,
    /// The host of HTTP/1.0 requests without one.
    pub default_host_for_http_10: Option<String>,
    /// How header names leave, unless the message remembers how its peer wrote them.
    pub header_case: HeaderCase,
    /// What this side receives remembers how names were written.
    pub preserve_case: Option<PreserveCase>,
    /// Trailers are passed on instead of dropped.
    pub enable_trailers: bool,
    /// A message with both content-length and chunked loses the former instead of being refused.
    pub allow_chunked_length: bool,
    /// A bad message ends the stream only.
    pub stream_error_on_invalid_message: bool,
    /// Methods that are not registered are let through.
    pub allow_custom_methods: bool,
    /// The request line upstream carries the absolute URL.
    pub send_fully_qualified_url: bool,
    /// Protocols that nobody asks to be upgraded to.
    pub ignored_upgrades: Vec<StringMatcher>,
}

impl Default for Http1Options {
    fn default() -> Self {
        Self {
            allow_absolute_url: true,
            accept_http_10: false,
            default_host_for_http_10: None,
            header_case: HeaderCase::Lower,
            preserve_case: None,
            enable_trailers: false,
            allow_chunked_length: false,
            stream_error_on_invalid_message: false,
            allow_custom_methods: false,
            send_fully_qualified_url: false,
            ignored_upgrades: Vec::new(),
        }
    }
}

/// How HTTP/1 header names are written.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum HeaderCase {
    /// `content-type`.
    Lower,
    /// `Content-Type`.
    Proper,
}

/// What is kept of the spelling of a received head. Source: `PreserveCaseFormatterConfig`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PreserveCase {
    /// The words behind the status are passed on, too.
    pub reason_phrase: bool,
    /// How names are written that were not received (`formatter_type_on_envoy_headers`).
    pub unknown: HeaderCase,
}

/// Source: `Http2ProtocolOptions`.
#[derive(Clone, Debug, PartialEq)]
pub struct Http2Options {
    /// HPACK table; 4,096 unless given.
    pub hpack_table_bytes: u32,
    /// SETTINGS_MAX_CONCURRENT_STREAMS; 1,024 unless given.
    pub max_concurrent_streams: u32,
    /// 16 MiB unless given.
    pub initial_stream_window_bytes: u32,
    /// 24 MiB unless given.
    pub initial_connection_window_bytes: u32,
    /// Extended CONNECT (RFC 8441).
    pub allow_connect: bool,
    /// PING on silence.
    pub keepalive: Option<Http2Keepalive>,
    /// A bad message ends the stream instead of the connection.
    pub stream_error_on_invalid_message: bool,
    /// What a peer may send, and make us send, before its connection ends.
    pub floods: FloodLimits,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            hpack_table_bytes: 4096,
            max_concurrent_streams: 1024,
            initial_stream_window_bytes: 16 * 1024 * 1024,
            initial_connection_window_bytes: 24 * 1024 * 1024,
            allow_connect: false,
            keepalive: None,
            stream_error_on_invalid_message: false,
            floods: FloodLimits::default(),
        }
    }
}

/// Limits on frames of which a peer has no honest use. Source: `Http2ProtocolOptions`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FloodLimits {
    /// Frames of any kind that wait for a peer that does not read; 10,000 unless given.
    pub outbound_frames: u32,
    /// Control frames (RST_STREAM, answers to PING and SETTINGS) that wait for it; 1,000 unless given.
    pub outbound_control_frames: u32,
    /// HEADERS, CONTINUATION and DATA frames in a row without content; 1 unless given.
    pub empty_frames_in_a_row: u32,
    /// PRIORITY frames for each stream that was opened, and one more; 100 unless given.
    pub priorities_per_stream: u32,
    /// WINDOW_UPDATE frames for each DATA frame that was sent (twice that, and a few more); 10 unless given.
    pub window_updates_per_data_frame: u32,
}

impl Default for FloodLimits {
    fn default() -> Self {
        Self {
            outbound_frames: 10_000,
            outbound_control_frames: 1000,
            empty_frames_in_a_row: 1,
            priorities_per_stream: 100,
            window_updates_per_data_frame: 10,
        }
    }
}

/// Source: `KeepaliveSettings`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Http2Keepalive {
    /// Between PINGs.
    pub interval: Option<Duration>,
    /// A connection to an endpoint that has said nothing for so long is asked when a request is sent on it.
    pub idle_interval: Option<Duration>,
    /// The connection is closed when an answer takes longer.
    pub timeout: Duration,
}

/// Source: `HttpConnectionManager.ServerHeaderTransformation`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum ServerHeader {
    /// Always ours.
    #[default]
    Overwrite,
    /// Ours unless the upstream set one.
    AppendIfAbsent,
    /// Whatever the upstream said.
    PassThrough,
}

/// Source: `HeadersWithUnderscoresAction`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum UnderscoreAction {
    /// Let through.
    #[default]
    Allow,
    /// 400, or a stream reset.
    RejectRequest,
    /// The header is dropped.
    DropHeader,
}

/// Source: `PathWithEscapedSlashesAction`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum EscapedSlashes {
    /// As they came.
    #[default]
    Keep,
    /// 400.
    Reject,
    /// Unescaped, then a redirect.
    UnescapeAndRedirect,
    /// Unescaped, and forwarded.
    UnescapeAndForward,
}

/// Source: `strip_port_mode`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum StripPort {
    /// Kept.
    #[default]
    Keep,
    /// Removed when it is the listener's.
    Matching,
    /// Removed.
    Any,
}

/// Source: `HttpConnectionManager.InternalAddressConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InternalAddresses {
    /// Unix sockets count as internal.
    pub unix_sockets: bool,
    /// Networks that count as internal.
    pub networks: Vec<IpNet>,
}

/// Schemes by the port that a client wanted to reach, where a listener filter restored it. Source: `ForwardProtoConfig`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ForwardProto {
    /// Ports of `https`; they come first.
    pub https: Vec<u32>,
    /// Ports of `http`.
    pub http: Vec<u32>,
}

/// Adds, sets or removes headers. Source: `HeaderValueOption` lists and `*_headers_to_remove`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderMutations {
    /// Lower-case names removed first.
    pub remove: Vec<Arc<str>>,
    /// Then these, in order.
    pub add: Vec<HeaderAddition>,
}

impl HeaderMutations {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

/// One header to add.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderAddition {
    /// Lower case.
    pub name: Arc<str>,
    /// The value, with command operators.
    pub value: Format,
    /// What happens if it is there.
    pub action: AppendAction,
    /// Added even when the value is empty.
    pub keep_empty_value: bool,
}

/// Source: `HeaderValueOption.HeaderAppendAction`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum AppendAction {
    /// Append to what is there, or add.
    #[default]
    AppendIfExistsOrAdd,
    /// Only if it is not there.
    AddIfAbsent,
    /// Replace what is there, or add.
    OverwriteIfExistsOrAdd,
    /// Replace what is there; nothing otherwise.
    OverwriteIfExists,
}
