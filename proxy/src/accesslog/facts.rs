//! What one log entry, or one header value, can be made from.
//!
//! Owns the view over a stream that formats, filters and log services share. Never changes or keeps what it shows.

use std::time::{Duration, Instant};

use outrigger_config::address::Address;
use outrigger_policy::trace::Identity;

use super::entry;
use crate::http::headers::Headers;
use crate::http::message::{RequestHead, ResponseHead};
use crate::stream::{ConnectionInfo, StreamInfo, WallClock};

/// The facts of a stream at one moment. Start from [`Facts::new`] and set what is known.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The stream.
    pub info: &'a StreamInfo,
    /// The connection that carries it.
    pub connection: &'a ConnectionInfo,
    /// Head of the request; `None` for TCP.
    pub request: Option<&'a RequestHead>,
    /// Head of the response, once there is one.
    pub response: Option<&'a ResponseHead>,
    /// Trailers of the response, once there are some.
    pub trailers: Option<&'a Headers>,
    /// Turns instants into dates.
    pub clock: &'a WallClock,
    /// This moment.
    pub now: Instant,
    /// The client that `x-forwarded-for` tells of; the connection's remote address when `None`.
    pub client: Option<&'a Address>,
    /// Configured name of the cluster, where it is not its stat name.
    pub cluster_name: Option<&'a str>,
    /// Why the downstream's handshake failed; empty if it did not.
    pub downstream_failure: &'a str,
    /// Body of the reply made here; empty for other responses.
    pub local_reply_body: &'a [u8],
    /// Id of the stream; the header `x-request-id` when empty.
    pub stream_id: &'a str,
    /// Name of this machine; counts as absent when empty.
    pub hostname: &'a str,
    /// The moment in the stream's life.
    pub log_type: LogType,
    /// A service asked for a trace of this stream.
    pub traced: bool,
    /// The stream's span, recorded or not.
    pub span: Option<&'a Identity>,
}

impl<'a> Facts<'a> {
    /// Facts of a stream of which nothing but its info is known.
    pub fn new(info: &'a StreamInfo, connection: &'a ConnectionInfo, clock: &'a WallClock, now: Instant) -> Self {
        Self {
            info,
            connection,
            request: None,
            response: None,
            trailers: None,
            clock,
            now,
            client: None,
            cluster_name: None,
            downstream_failure: "",
            local_reply_body: b"",
            stream_id: "",
            hostname: "",
            log_type: LogType::NotSet,
            traced: false,
            span: None,
        }
    }

    /// Time from the beginning of the stream to `instant`.
    pub(super) fn since_start(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.info.start)
    }

    /// First value of a request header or pseudo header.
    pub(super) fn request_header(&self, name: &str) -> Option<&'a [u8]> {
        let request = self.request?;
        let pseudo = match name {
            ":path" => request.path(),
            ":method" => request.method(),
            ":authority" | "host" => request.authority(),
            ":scheme" => request.scheme(),
            ":protocol" => request.protocol(),
            _ => return request.headers.get_by_name(name),
        };
        (!pseudo.is_empty()).then_some(pseudo)
    }

    /// The client: by `x-forwarded-for`, a PROXY protocol header, or the socket.
    pub(super) fn remote(&self) -> &'a Address {
        self.client.or(self.info.client.get().map(|client| &**client)).unwrap_or(&self.connection.remote)
    }

    /// Id of the stream, if it has one.
    pub(super) fn stream_id(&self) -> Option<&'a [u8]> {
        if self.stream_id.is_empty() {
            return self.request_header("x-request-id");
        }
        Some(self.stream_id.as_bytes())
    }
}

/// When in a stream's life an entry is written. Source: `envoy.data.accesslog.v3.AccessLogType`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogType {
    /// Not a log entry, such as a header value.
    #[default]
    NotSet,
    /// A TCP connection got its upstream.
    TcpUpstreamConnected,
    /// A TCP connection lasts.
    TcpPeriodic,
    /// A TCP connection began.
    TcpConnectionStart,
    /// A TCP connection is over.
    TcpConnectionEnd,
    /// A request began.
    DownstreamStart,
    /// A request lasts.
    DownstreamPeriodic,
    /// A request is over.
    DownstreamEnd,
    /// A tunnel was granted.
    DownstreamTunnelEstablished,
    /// A try got its connection.
    UpstreamPoolReady,
    /// A try lasts.
    UpstreamPeriodic,
    /// A try is over.
    UpstreamEnd,
}

impl LogType {
    /// As in `%ACCESS_LOG_TYPE%`.
    pub fn as_str(self) -> &'static str {
        match self {
            LogType::NotSet => "NotSet",
            LogType::TcpUpstreamConnected => "TcpUpstreamConnected",
            LogType::TcpPeriodic => "TcpPeriodic",
            LogType::TcpConnectionStart => "TcpConnectionStart",
            LogType::TcpConnectionEnd => "TcpConnectionEnd",
            LogType::DownstreamStart => "DownstreamStart",
            LogType::DownstreamPeriodic => "DownstreamPeriodic",
            LogType::DownstreamEnd => "DownstreamEnd",
            LogType::DownstreamTunnelEstablished => "DownstreamTunnelSuccessfullyEstablished",
            LogType::UpstreamPoolReady => "UpstreamPoolReady",
            LogType::UpstreamPeriodic => "UpstreamPeriodic",
            LogType::UpstreamEnd => "UpstreamEnd",
        }
    }

    /// As the API numbers it.
    pub fn number(self) -> i32 {
        entry::log_type(self).into()
    }
}
