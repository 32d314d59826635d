//! HAProxy's timers of a stream.
//!
//! Owns what each of them means here. Source: HAProxy's configuration manual, "Timing events".

use std::time::{Duration, Instant};

use crate::moments::Milestone;
use crate::stream::StreamInfo;

/// A timer by HAProxy's name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Timer {
    /// From the first byte of a request to the end of its head (HAProxy's TR, which it called Tq with what came before).
    Request,
    /// Waiting for a place at an endpoint, over all tries.
    Queue,
    /// Waiting for a connection to the endpoint of the last try.
    Connect,
    /// From the connection to the head of the response.
    Response,
    /// From the head of the response to the end of all.
    Data,
    /// From the first byte of the request to the end of all.
    Active,
}

/// Operator parameter and timer. Tq and Ta have a second name each.
const NAMES: [(&str, Timer); 8] = [
    ("TR", Timer::Request),
    ("Tq", Timer::Request),
    ("Tw", Timer::Queue),
    ("Tc", Timer::Connect),
    ("Tr", Timer::Response),
    ("Td", Timer::Data),
    ("Ta", Timer::Active),
    ("Tt", Timer::Active),
];

impl Timer {
    /// The timer of this name.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, timer)| *timer)
    }
}

/// What a timer shows at `now`. `None` (HAProxy's -1) if the stream ended before the timer's end.
pub fn timer(timer: Timer, info: &StreamInfo, now: Instant) -> Option<Duration> {
    let moments = &info.moments;
    let offset = |milestone| moments.offset(milestone);
    let between = |from: i64, to: i64| Duration::from_nanos(u64::try_from(to.saturating_sub(from)).unwrap_or(0));
    let response = info.response_start.get().map(|at| at.saturating_duration_since(info.start));
    match timer {
        Timer::Request => Some(info.head_duration.get()),
        // Who never asked for an endpoint has not reached the queue.
        Timer::Queue => {
            let reached = info.attempts.get() > 0 || !moments.queued().is_zero();
            reached.then(|| moments.queued())
        }
        Timer::Connect => Some(between(offset(Milestone::UpstreamBegin)?, offset(Milestone::PoolReady)?)),
        Timer::Response => {
            let ready = Duration::from_nanos(u64::try_from(offset(Milestone::PoolReady)?).unwrap_or(0));
            Some(response?.saturating_sub(ready))
        }
        Timer::Data => Some(info.duration(now).saturating_sub(response?)),
        Timer::Active => Some(info.duration(now)),
    }
}
