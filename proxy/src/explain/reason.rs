//! One sentence why a stream failed.
//!
//! Owns the words. They name who is to blame, the limit or timer with its value, and the configuration field or header that
//! set it. Never invents: what was not recorded is not said.

use std::fmt::Write as _;
use std::time::Duration;

use super::cause::Cause;
use super::details;
use super::termination::{RetryClass, retry_class};
use crate::stream::{ResponseFlag, StreamInfo};

/// Why the stream failed, as one sentence; `None` for one that did not fail. An answer of class 5xx of the endpoint itself is a
/// failure, too.
pub fn reason(info: &StreamInfo) -> Option<String> {
    let flags = info.flags.get();
    let details = info.details.borrow();
    let code = info.response_code.get();
    let failed = flags.iter().any(|flag| flag != ResponseFlag::DelayInjected)
        || code >= 400
        || info.cause.get().is_some()
        || code == 0 && info.version.is_some() && info.end.get().is_some();
    if !failed {
        return None;
    }
    let mut text = clause(info, &details);
    if flags.contains(ResponseFlag::UpstreamRetryLimitExceeded) {
        // Writing to a string cannot fail.
        let _ = match info.version {
            Some(_) => write!(text, ", and all {} tries were used up (RetryPolicy.num_retries)", info.attempts.get()),
            None => {
                write!(text, ", and all {} tries were used up (TcpProxy.max_connect_attempts)", info.attempts.get())
            }
        };
    }
    let first = text.chars().next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    text.replace_range(..text.chars().next().map_or(0, char::len_utf8), &first);
    text.push('.');
    Some(text)
}

/// The sentence without its capital letter and its end.
fn clause(info: &StreamInfo, details: &str) -> String {
    let flags = info.flags.get();
    let has = |flag| flags.contains(flag);
    let cause = info.cause.get();
    if has(ResponseFlag::DownstreamConnectionTermination) {
        return format!("the client closed its connection {}", stage(info));
    }
    if has(ResponseFlag::DownstreamRemoteReset) {
        return format!("the client reset its stream {}", stage(info));
    }
    if let Some(cause) = cause {
        return limited(info, details, &cause);
    }
    if let Some(policy) = bracketed(details, "rbac_access_denied_matched_policy[", ']') {
        return match policy {
            "none" => "access was denied because no policy allows it (RBAC.rules.policies)".to_owned(),
            policy => format!("access was denied by the policy {policy:?} (RBAC.rules.policies)"),
        };
    }
    if let Some(why) = bracketed(details, "jwt_authn_access_denied{", '}') {
        return format!("the token was refused: {} (JwtAuthentication.rules)", spaced(why));
    }
    if let Some(why) = bracketed(details, "dns_resolution_failure{", '}') {
        return format!("the name of the host could not be resolved: {} (DnsCacheConfig)", spaced(why));
    }
    if has(ResponseFlag::NoHealthyUpstream) {
        return format!("{} has no endpoint that may be used (Cluster.load_assignment)", cluster(info));
    }
    if has(ResponseFlag::UpstreamConnectionFailure) {
        let failure = info.upstream_failure.borrow();
        return match failure.as_deref() {
            Some("connection timeout") => {
                format!("{} could not be reached in time (Cluster.connect_timeout)", endpoint(info))
            }
            Some(failure) => format!("{} could not be reached: {failure}", endpoint(info)),
            None => format!("{} could not be reached", endpoint(info)),
        };
    }
    if let Some(text) = reset(info, details) {
        return text;
    }
    if let Some((meaning, field)) = details::known(details) {
        return format!("{meaning} ({field})");
    }
    by_flag(info, details)
}

/// A limit that was recorded.
fn limited(info: &StreamInfo, details: &str, cause: &Cause) -> String {
    match *cause {
        Cause::Count { limit, field } if details == "upstream_queue_full" => {
            format!("{}: {limit} requests wait already, the limit of {field}", cluster(info))
        }
        Cause::Count { limit, field } => {
            format!("{} refused the {}: the limit of {limit} is reached ({field})", cluster(info), subject(info))
        }
        Cause::Time { limit, field } => {
            let limit = limit.map(|limit| format!(" within {}", Shown(limit))).unwrap_or_default();
            match details {
                "upstream_queue_timeout" => format!("{}: no endpoint had room{limit} ({field})", cluster(info)),
                "response_timeout" | "upstream_per_try_timeout" => {
                    let part = if retry_class(info) == RetryClass::Answered { " the whole response" } else { "" };
                    match info.upstream_host.borrow().is_some() {
                        true => format!("{} did not answer{part}{limit} ({field})", endpoint(info)),
                        false => format!("{} did not answer{limit} ({field})", cluster(info)),
                    }
                }
                "request_header_timeout" => format!("the client did not send the request head{limit} ({field})"),
                "request_overall_timeout" => format!("the client did not send the whole request{limit} ({field})"),
                "max_duration_timeout" => format!("the stream was not over{limit} ({field})"),
                "stream_idle_timeout" => format!("nothing moved{limit} {} ({field})", stage(info)),
                _ if field.ends_with("idle_timeout") => format!("nothing moved{limit} ({field})"),
                _ if info.flags.get().contains(ResponseFlag::UpstreamConnectionFailure) => {
                    format!("{} could not be connected to{limit} ({field})", endpoint(info))
                }
                _ => format!("the {} was not over{limit} ({field})", subject(info)),
            }
        }
    }
}

/// Connections and streams that the endpoint ended.
fn reset(info: &StreamInfo, details: &str) -> Option<String> {
    let (inside, when) = match bracketed(details, "upstream_reset_before_response_started{", '}') {
        Some(inside) => (inside, "before it answered"),
        None => (bracketed(details, "upstream_reset_after_response_started{", '}')?, "in the middle of its response"),
    };
    let (kind, more) = inside.split_once('|').unwrap_or((inside, ""));
    let more = if more.is_empty() { String::new() } else { format!(": {}", spaced(more)) };
    let endpoint = endpoint(info);
    Some(match kind {
        "connection_termination" => format!("{endpoint} closed the connection {when}{more}"),
        "remote_reset" => format!("{endpoint} reset the stream {when}{more}"),
        "remote_refused_stream_reset" => format!("{endpoint} refused the stream without looking at the request{more}"),
        "protocol_error" => format!("{endpoint} broke the protocol {when}{more}"),
        "overflow" => {
            format!("{} refused the request: a circuit breaker is open (Cluster.circuit_breakers)", cluster(info))
        }
        kind => format!("{endpoint} failed {when}: {}{more}", spaced(kind)),
    })
}

/// What is left: the flag says what, nothing says why.
fn by_flag(info: &StreamInfo, details: &str) -> String {
    let flags = info.flags.get();
    for (flag, text) in [
        (ResponseFlag::NoClusterFound, "the cluster does not exist (TcpProxy.cluster)"),
        (
            ResponseFlag::NoRouteFound,
            "no route and no filter chain matches (VirtualHost.routes, Listener.filter_chains)",
        ),
        (ResponseFlag::UpstreamOverflow, "a circuit breaker is open (Cluster.circuit_breakers)"),
        (ResponseFlag::DnsResolutionFailed, "the name of the host could not be resolved (DnsCacheConfig)"),
        (ResponseFlag::RateLimited, "a rate limit was reached (LocalRateLimit.token_bucket, RateLimit)"),
        (ResponseFlag::UnauthorizedExternalService, "the authorization service denied it (ExtAuthz)"),
        (ResponseFlag::NoFilterConfigFound, "a filter has not been discovered (ExtensionConfigSource)"),
        (ResponseFlag::OverloadManagerTerminated, "the process is overloaded (Bootstrap.overload_manager)"),
        (ResponseFlag::DurationTimeout, "it lasted too long (HttpProtocolOptions.max_connection_duration)"),
        (ResponseFlag::LocalReset, "the proxy drains, and the time for that is up (--drain-time-s)"),
        (ResponseFlag::DownstreamProtocolError, "the client broke the protocol (RFC 9110)"),
    ] {
        if flags.contains(flag) {
            return text.to_owned();
        }
    }
    if flags.contains(ResponseFlag::UpstreamRemoteReset) {
        return format!("{} reset the connection", endpoint(info));
    }
    if flags.contains(ResponseFlag::UpstreamConnectionTermination) {
        let failure = info.upstream_failure.borrow();
        return format!("{} is gone: {}", endpoint(info), failure.as_deref().unwrap_or("its connection ended"));
    }
    match (details, info.response_code.get()) {
        ("via_upstream", code) => format!("{} answered {code} itself", endpoint(info)),
        ("direct_response", code) => format!("the route answers {code} by itself (Route.direct_response)"),
        ("", 0) => "nobody answered".to_owned(),
        (details, code) => format!("the proxy answered {code}: {}", spaced(details)),
    }
}

/// Where a stream stood when it ended.
fn stage(info: &StreamInfo) -> &'static str {
    match retry_class(info) {
        RetryClass::Answered => "while the response was sent",
        RetryClass::Sent => "while the endpoint was waited for",
        RetryClass::NeverSent if info.version.is_none() => "while bytes were moved",
        RetryClass::NeverSent if !info.moments.queued().is_zero() => "while the request waited for an endpoint",
        RetryClass::NeverSent => "before the request was sent",
    }
}

fn subject(info: &StreamInfo) -> &'static str {
    if info.version.is_some() { "request" } else { "connection" }
}

fn cluster(info: &StreamInfo) -> String {
    match &*info.cluster.borrow() {
        Some(name) => format!("cluster {name:?}"),
        None => "the cluster".to_owned(),
    }
}

fn endpoint(info: &StreamInfo) -> String {
    match &*info.upstream_host.borrow() {
        Some(host) => format!("endpoint {} of {}", host.address, cluster(info)),
        None => cluster(info),
    }
}

/// What stands between the end of `before` and the last `close`.
fn bracketed<'a>(text: &'a str, before: &str, close: char) -> Option<&'a str> {
    let inside = text.strip_prefix(before)?;
    Some(inside.rsplit_once(close).map_or(inside, |(inside, _)| inside))
}

/// Details have no blanks.
fn spaced(text: &str) -> String {
    text.replace('_', " ")
}

/// A duration without needless digits.
struct Shown(Duration);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let milliseconds = self.0.as_millis();
        if milliseconds > 0 && milliseconds.is_multiple_of(1000) {
            write!(f, "{} s", milliseconds / 1000)
        } else if self.0.subsec_nanos().is_multiple_of(1_000_000) {
            write!(f, "{milliseconds} ms")
        } else {
            write!(f, "{} us", self.0.as_micros())
        }
    }
}
