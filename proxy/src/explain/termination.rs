//! HAProxy's termination state of a stream, and whether it can be repeated.
//!
//! Owns the table from what was recorded to letters. Source: HAProxy's configuration manual, "Session state at
//! disconnection".

use crate::moments::Milestone;
use crate::stream::{ResponseFlag, StreamInfo};

/// How far a request got, which says whether it may be sent again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RetryClass {
    /// No byte of it left for an endpoint, or the endpoint said that it did not look at it: repeating it is safe.
    NeverSent,
    /// It was sent and not answered: nobody knows whether it was acted on.
    Sent,
    /// A response began.
    Answered,
}

impl RetryClass {
    /// As in `%RETRY_CLASS%`.
    pub fn as_str(self) -> &'static str {
        match self {
            RetryClass::NeverSent => "never_sent",
            RetryClass::Sent => "sent",
            RetryClass::Answered => "answered",
        }
    }
}

/// How far the last try of a stream got.
pub fn retry_class(info: &StreamInfo) -> RetryClass {
    if info.response_start.get().is_some() {
        return RetryClass::Answered;
    }
    let refused = info.details.borrow().contains("remote_refused_stream_reset");
    match info.moments.offset(Milestone::UpstreamTxBegin) {
        Some(_) if !refused => RetryClass::Sent,
        _ => RetryClass::NeverSent,
    }
}

/// The four letters of HAProxy: who ended the stream, in which phase, and two about persistence cookies, which are `-`
/// because the balancer's affinity is not told apart here. `----` is a stream that ended well.
pub fn termination_state(info: &StreamInfo) -> [u8; 4] {
    let who = who(info);
    let phase = if who == b'-' { b'-' } else { phase(info, who) };
    [who, phase, b'-', b'-']
}

fn who(info: &StreamInfo) -> u8 {
    let flags = info.flags.get();
    let any = |wanted: &[ResponseFlag]| wanted.iter().any(|flag| flags.contains(*flag));
    let details = info.details.borrow();
    use ResponseFlag as Flag;
    if any(&[Flag::DownstreamConnectionTermination, Flag::DownstreamRemoteReset]) {
        return b'C';
    }
    if any(&[Flag::UpstreamRequestTimeout]) || details.contains("connection_timeout") {
        return b's';
    }
    if any(&[Flag::StreamIdleTimeout]) || matches!(&**details, "request_overall_timeout" | "request_header_timeout") {
        // While the request is not there, it is the client that is waited for.
        return if info.request_end.get().is_none() { b'c' } else { b's' };
    }
    if any(&[Flag::UpstreamOverflow, Flag::DropOverload]) {
        return if &*details == "upstream_queue_timeout" { b's' } else { b'P' };
    }
    if any(&[
        Flag::UpstreamConnectionFailure,
        Flag::UpstreamConnectionTermination,
        Flag::UpstreamRemoteReset,
        Flag::UpstreamProtocolError,
        Flag::NoHealthyUpstream,
        Flag::NoClusterFound,
        Flag::DnsResolutionFailed,
    ]) {
        return b'S';
    }
    if any(&[Flag::LocalReset]) {
        return b'K';
    }
    if any(&[
        Flag::DownstreamProtocolError,
        Flag::RateLimited,
        Flag::RateLimitServiceError,
        Flag::UnauthorizedExternalService,
        Flag::FailedLocalHealthCheck,
        Flag::FaultInjected,
        Flag::NoFilterConfigFound,
        Flag::OverloadManagerTerminated,
        Flag::DurationTimeout,
    ]) {
        return b'P';
    }
    if info.version.is_none() {
        // Nobody sent anything; HAProxy blames the client first.
        return if info.cause.get().is_some() { b'c' } else { b'-' };
    }
    match &**details {
        "" | "via_upstream" | "internal_redirect" => b'-',
        // Answered here because that is what the configuration asks for.
        "direct_response" | "cors_response" | "health_check_ok" | "health_check_cached" | "admin_filter_response" => {
            b'L'
        }
        _ if info.response_code.get() < 400 => b'L',
        _ => b'P',
    }
}

fn phase(info: &StreamInfo, who: u8) -> u8 {
    let reached = |milestone| info.moments.offset(milestone).is_some();
    let details = info.details.borrow();
    if matches!(&**details, "upstream_queue_timeout" | "upstream_queue_full") {
        return b'Q';
    }
    if who == b'L' {
        return b'R';
    }
    if info.response_start.get().is_some() {
        // All of the response is here, and the client did not take it.
        return if reached(Milestone::UpstreamRxEnd) { b'L' } else { b'D' };
    }
    // Bytes of TCP flow as soon as there is a connection.
    if info.version.is_none() {
        return if reached(Milestone::PoolReady) { b'D' } else { b'C' };
    }
    let flags = info.flags.get();
    if flags.contains(ResponseFlag::UpstreamOverflow) || flags.contains(ResponseFlag::DropOverload) {
        return b'C';
    }
    if reached(Milestone::PoolReady) {
        return b'H';
    }
    let sought = reached(Milestone::UpstreamBegin) || matches!(who, b'S' | b's');
    if sought {
        return b'C';
    }
    if !info.moments.queued().is_zero() { b'Q' } else { b'R' }
}
