//! Operators that print the time between two moments.
//!
//! Owns which moments they mean. Never records moments (see [`crate::moments`]).

use std::time::{Duration, Instant};

use outrigger_config::format::{Operator, Precision, TimePoint};

use super::facts::Facts;
use super::format::{Given, milliseconds, number};
use crate::moments::Milestone;

/// Writes one of them.
pub(super) fn write(operator: &Operator, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let moments = &facts.info.moments;
    let since_start = |milestone| {
        let offset = u64::try_from(moments.offset(milestone)?).unwrap_or(0);
        Some(Duration::from_nanos(offset))
    };
    match operator {
        Operator::RequestTxDuration => milliseconds(since_start(Milestone::UpstreamTxEnd), out),
        Operator::UpstreamPoolReadyDuration => {
            let begin = since_start(Milestone::UpstreamBegin);
            let ready = since_start(Milestone::PoolReady);
            milliseconds(ready.zip(begin).map(|(ready, begin)| ready.saturating_sub(begin)), out)
        }
        Operator::DownstreamHandshakeDuration => milliseconds(
            facts.connection.tls.as_ref().map(|tls| tls.handshake).filter(|_| facts.info.version.is_none()),
            out,
        ),
        Operator::CommonDuration { from: Some(from), to: Some(to), precision } => {
            let (Some(from), Some(to)) = (offset(*from, facts), offset(*to, facts)) else { return Given::Absent };
            signed(to.saturating_sub(from), *precision, out)
        }
        // HTTP/3 alone has round trips that are measured, and custom filters alone have points of their own.
        _ => Given::Absent,
    }
}

/// Nanoseconds from the beginning of the stream to a point.
fn offset(point: TimePoint, facts: &Facts<'_>) -> Option<i64> {
    let info = facts.info;
    let of = |at: Instant| {
        let after = at.saturating_duration_since(info.start).as_nanos();
        i64::try_from(after).unwrap_or(i64::MAX)
    };
    let http = info.version.is_some();
    let milestone = match point {
        TimePoint::RequestBegin => return http.then_some(0),
        TimePoint::RequestEnd => return info.request_end.get().map(of),
        TimePoint::ResponseBegin => return info.response_start.get().map(of),
        TimePoint::ConnectionBegin => {
            let before = info.start.saturating_duration_since(facts.connection.start).as_nanos();
            return Some(i64::try_from(before).map_or(i64::MIN + 1, |before| -before)).filter(|_| !http);
        }
        TimePoint::ConnectionEnd => return info.end.get().map(of).filter(|_| !http),
        TimePoint::ConnectBegin => Milestone::ConnectBegin,
        TimePoint::ConnectEnd => Milestone::Connected,
        TimePoint::HandshakeEnd => Milestone::HandshakeEnd,
        TimePoint::UpstreamTxBegin => Milestone::UpstreamTxBegin,
        TimePoint::UpstreamTxEnd => Milestone::UpstreamTxEnd,
        TimePoint::ResponseBodyBegin => Milestone::ResponseBodyBegin,
        TimePoint::ResponseEnd => Milestone::UpstreamRxEnd,
        TimePoint::DownstreamTxBegin => Milestone::DownstreamTxBegin,
        TimePoint::DownstreamTxEnd => Milestone::DownstreamTxEnd,
    };
    info.moments.offset(milestone)
}

fn signed(nanoseconds: i64, precision: Precision, out: &mut Vec<u8>) -> Given {
    let unit = match precision {
        Precision::Milliseconds => 1_000_000,
        Precision::Microseconds => 1_000,
        Precision::Nanoseconds => 1,
    };
    let value = nanoseconds / unit;
    if value < 0 {
        out.push(b'-');
    }
    number(value.unsigned_abs(), out)
}
