//! How long a request may take.
//!
//! Owns which of the many limits applies and what set it: route, `x-envoy-*` headers, `grpc-timeout`. Never keeps time.

use std::time::Duration;

use outrigger_config::route::{Forward, RetryPolicy};

use crate::explain::Cause;
use crate::http::headers::HeaderId;
use crate::http::manager::request::Request;
use crate::http::message::RequestHead;
use crate::worker::deadlines::Limit;

/// The limits of one request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timeouts {
    /// From the last request byte to the last response byte.
    pub route: Option<Duration>,
    /// The same for one try.
    pub per_try: Option<Duration>,
    /// Silence within one try.
    pub per_try_idle: Option<Duration>,
    /// Silence in the stream, where the route has its own; zero disables.
    pub idle: Option<Duration>,
    /// The whole stream, from its start.
    pub stream: Option<Duration>,
    /// The fields or headers that set them.
    set_by: SetBy,
}

/// What set the limits of a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct SetBy {
    route: &'static str,
    per_try: &'static str,
    stream: &'static str,
}

impl Timeouts {
    /// Reads the limits off route and headers.
    pub fn of(request: &Request<'_>, action: &Forward, policy: Option<&RetryPolicy>) -> Self {
        Self::of_head(&request.head, request.connection.node.config.max_stream_duration, action, policy)
    }

    /// The same of a head alone; `global` is the connection manager's limit on streams.
    pub fn of_head(
        head: &RequestHead,
        global: Option<Duration>,
        action: &Forward,
        policy: Option<&RetryPolicy>,
    ) -> Self {
        let header = |id| {
            let text = head.headers.get_str(id)?;
            text.parse().ok().map(Duration::from_millis)
        };
        let grpc = head.headers.get(HeaderId::GrpcTimeout).and_then(grpc_timeout);
        let mut route = action.timeout;
        let mut set_by = SetBy { route: "RouteAction.timeout", ..SetBy::default() };
        if let (Some(max), Some(asked)) = (action.max_grpc_timeout, grpc) {
            // An offset that would leave nothing is not taken off.
            let offset = action.grpc_timeout_offset.filter(|offset| *offset < asked).unwrap_or_default();
            let asked = asked - offset;
            route = Some(if max.is_zero() { asked } else { asked.min(max) });
            set_by.route =
                if route == Some(asked) { "the header grpc-timeout" } else { "RouteAction.max_grpc_timeout" };
        }
        if let Some(asked) = header(HeaderId::XEnvoyUpstreamRqTimeoutMs) {
            route = Some(asked).filter(|asked| !asked.is_zero());
            set_by.route = "the header x-envoy-upstream-rq-timeout-ms";
        }
        let asked_per_try = header(HeaderId::XEnvoyUpstreamRqPerTryTimeoutMs);
        set_by.per_try = match asked_per_try {
            Some(_) => "the header x-envoy-upstream-rq-per-try-timeout-ms",
            None => "RetryPolicy.per_try_timeout",
        };
        let per_try = asked_per_try
            .or(policy.and_then(|policy| policy.per_try_timeout))
            .filter(|limit| !limit.is_zero() && route.is_none_or(|route| *limit < route));
        let per_try_idle = policy.and_then(|policy| policy.per_try_idle_timeout);
        set_by.stream = "HttpProtocolOptions.max_stream_duration";
        let stream = match &action.max_stream_duration {
            None => global,
            Some(limits) => match (limits.grpc_timeout_header_max, grpc) {
                (Some(max), Some(asked)) => {
                    let asked = if max.is_zero() { asked } else { asked.min(max) };
                    set_by.stream = "RouteAction.max_stream_duration.grpc_timeout_header_max";
                    let offset = limits.grpc_timeout_header_offset.unwrap_or_default();
                    Some(asked.checked_sub(offset).filter(|left| !left.is_zero()).unwrap_or(asked))
                }
                _ => {
                    if limits.max_stream_duration.is_some() {
                        set_by.stream = "RouteAction.max_stream_duration.max_stream_duration";
                    }
                    limits.max_stream_duration.or(global).filter(|limit| !limit.is_zero())
                }
            },
        };
        Self { route, per_try, per_try_idle, idle: action.idle_timeout, stream, set_by }
    }

    /// What ended a request when `limit` was reached, if it is one of these.
    pub fn cause(&self, limit: Limit) -> Option<Cause> {
        let SetBy { route, per_try, stream } = self.set_by;
        let (limit, field) = match limit {
            Limit::Route => (self.route, route),
            Limit::PerTry => match (self.per_try, self.per_try_idle) {
                (Some(whole), silence) if silence.is_none_or(|silence| whole <= silence) => (self.per_try, per_try),
                _ => (self.per_try_idle, "RetryPolicy.per_try_idle_timeout"),
            },
            Limit::StreamDuration => (self.stream, stream),
            Limit::StreamIdle => (self.idle.filter(|limit| !limit.is_zero()), "RouteAction.idle_timeout"),
            _ => return None,
        };
        limit.map(|limit| Cause::Time { limit: Some(limit), field })
    }
}

/// gRPC over HTTP/2: up to eight digits and a unit.
pub fn grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number = crate::http::h1::parse::decimal(digits)?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read() {
        assert_eq!(grpc_timeout(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(grpc_timeout(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout(b"5n"), Some(Duration::from_nanos(5)));
        for bad in ["", "S", "1", "123456789S", "-1S", "1x"] {
            assert_eq!(grpc_timeout(bad.as_bytes()), None, "{bad}");
        }
    }
}
