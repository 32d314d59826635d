//! How long a request may take.
//!
//! Owns which of the many limits applies and what set it: route, `x-envoy-*` headers, `grpc-timeout`. Never keeps time.

use std::time::Duration;

use outrigger_config::route::{Forward, RetryPolicy, VirtualHost};

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
    /// A try that is late goes on beside the next one.
    pub hedges: bool,
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
        Self { route, per_try, per_try_idle, idle: action.idle_timeout, stream, hedges: false, set_by }
    }

    /// How long the upstream of a try may take, as it is told, when so much time has passed since the request came.
    pub fn expected(&self, elapsed: Duration) -> Option<Duration> {
        // A try that is late goes on for as long as the request.
        let own = self.per_try.filter(|_| !self.hedges).or(self.route)?;
        match self.route {
            None => Some(own),
            // None would stand for any time.
            Some(route) if elapsed >= route => Some(Duration::from_millis(1)),
            Some(route) => Some(own.min(route - elapsed)),
        }
    }

    /// What ended a request when `limit` was reached, if it is one of these.
    pub fn cause(&self, limit: Limit) -> Option<Cause> {
        let SetBy { route, per_try, stream } = self.set_by;
        let (limit, field) = match limit {
            Limit::Route => (self.route, route),
            Limit::PerTry => (self.per_try, per_try),
            Limit::PerTryIdle => (self.per_try_idle, "RetryPolicy.per_try_idle_timeout"),
            Limit::StreamDuration => (self.stream, stream),
            Limit::StreamIdle => (self.idle.filter(|limit| !limit.is_zero()), "RouteAction.idle_timeout"),
            _ => return None,
        };
        limit.map(|limit| Cause::Time { limit: Some(limit), field })
    }
}

/// Whether a try that is late goes on beside the next one: by header, route or virtual host.
pub fn hedges(head: &RequestHead, virtual_host: &VirtualHost, action: &Forward) -> bool {
    match head.headers.get(HeaderId::XEnvoyHedgeOnPerTryTimeout) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => action.hedges.or(virtual_host.hedges).unwrap_or(false),
    }
}

/// A time as `grpc-timeout` says it: in the smallest unit, from milliseconds on, of which eight digits are enough.
pub fn to_grpc_timeout(time: Duration) -> String {
    let mut value = time.as_millis();
    let mut units = [(1000, 'S'), (60, 'M'), (60, 'H')].into_iter();
    let mut unit = 'm';
    while value > 99_999_999
        && let Some((factor, larger)) = units.next()
    {
        (value, unit) = (value / factor, larger);
    }
    format!("{value}{unit}")
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
    fn upstreams_are_told_what_is_left() {
        let ms = Duration::from_millis;
        let limits = |route, per_try, hedges| Timeouts { route, per_try, hedges, ..Timeouts::default() };
        assert_eq!(limits(Some(ms(500)), Some(ms(100)), false).expected(ms(0)), Some(ms(100)));
        assert_eq!(limits(Some(ms(500)), Some(ms(100)), false).expected(ms(450)), Some(ms(50)));
        assert_eq!(limits(Some(ms(500)), Some(ms(100)), true).expected(ms(50)), Some(ms(450)));
        assert_eq!(limits(Some(ms(500)), None, false).expected(ms(500)), Some(ms(1)), "0 would be no limit");
        assert_eq!(limits(None, Some(ms(100)), false).expected(ms(500)), Some(ms(100)));
        assert_eq!(limits(None, None, false).expected(ms(0)), None);
    }

    #[test]
    fn grpc_timeouts_are_written() {
        assert_eq!(to_grpc_timeout(Duration::from_millis(250)), "250m");
        assert_eq!(to_grpc_timeout(Duration::from_secs(100_000)), "100000S");
        assert_eq!(to_grpc_timeout(Duration::from_secs(6_000_000_000)), "1666666H");
    }

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
