//! The `proxy-status` header (RFC 9209): why there is no proper response.
//!
//! Owns which error a response flag is, the header's form, and the status that is recommended for an error. Never decides
//! that a request failed.

use std::borrow::Cow;

use outrigger_config::http::{ProxyName, ProxyStatus};

use super::request::Request;
use crate::stream::{ResponseFlag, ResponseFlags};

/// An error by its registered name, with the status that is recommended for it.
type ErrorType = (&'static str, u16);

/// What flags say, the first of those that are set. Source: RFC 9209 section 2.3, with Envoy's choice among them.
const ERRORS: &[(ResponseFlag, ErrorType)] = &[
    (ResponseFlag::FailedLocalHealthCheck, ("destination_unavailable", 503)),
    (ResponseFlag::NoHealthyUpstream, ("destination_unavailable", 503)),
    (ResponseFlag::UpstreamRequestTimeout, ("http_response_timeout", 504)),
    (ResponseFlag::LocalReset, ("connection_timeout", 504)),
    (ResponseFlag::UpstreamRemoteReset, ("connection_terminated", 502)),
    (ResponseFlag::UpstreamConnectionFailure, ("connection_refused", 502)),
    (ResponseFlag::UpstreamConnectionTermination, ("connection_terminated", 502)),
    (ResponseFlag::UpstreamOverflow, ("connection_limit_reached", 503)),
    (ResponseFlag::NoRouteFound, ("destination_not_found", 500)),
    (ResponseFlag::RateLimited, ("connection_limit_reached", 503)),
    (ResponseFlag::RateLimitServiceError, ("connection_limit_reached", 503)),
    (ResponseFlag::UpstreamRetryLimitExceeded, ("destination_unavailable", 503)),
    (ResponseFlag::StreamIdleTimeout, ("http_response_timeout", 504)),
    (ResponseFlag::NoFilterConfigFound, ("proxy_configuration_error", 500)),
    (ResponseFlag::UpstreamProtocolError, ("http_protocol_error", 502)),
    (ResponseFlag::NoClusterFound, ("destination_unavailable", 503)),
    (ResponseFlag::DnsResolutionFailed, ("dns_error", 502)),
];

/// Adds the header to the response of a request that failed, and changes its status where that is wanted.
pub(super) fn tell(request: &mut Request<'_>) {
    let connection = request.connection;
    let Some(config) = connection.node.config.proxy_status.as_deref() else { return };
    let Some((error, status)) = error_of(request.info.flags.get()) else { return };
    let name = match &config.name {
        ProxyName::Server => &*connection.node.config.server_name,
        ProxyName::Node => &*connection.worker.process.node_id,
        ProxyName::Literal(name) => name,
    };
    let details = {
        let (details, termination) = (request.info.details.borrow(), request.info.termination.borrow());
        member(config, name, error, &details, termination.as_deref(), request.info.flags.get())
    };
    let headers = &mut request.response.headers;
    let value = match headers.get_by_name(PROXY_STATUS) {
        Some(before) => [before, b", ", details.as_bytes()].concat(),
        None => details.into_bytes(),
    };
    headers.set_by_name(PROXY_STATUS, &value);
    if config.recommended_code {
        request.response.status = status;
    }
}

fn error_of(flags: ResponseFlags) -> Option<ErrorType> {
    ERRORS.iter().find(|(flag, _)| flags.contains(*flag)).map(|(_, error)| *error)
}

/// The list member that this proxy adds.
fn member(
    config: &ProxyStatus,
    name: &str,
    error: &str,
    details: &str,
    termination: Option<&str>,
    flags: ResponseFlags,
) -> String {
    let mut parts: Vec<Cow<'_, str>> = Vec::new();
    if config.details && !details.is_empty() {
        parts.push(Cow::Borrowed(details));
    }
    if let Some(termination) = termination.filter(|_| config.termination) {
        parts.push(Cow::Borrowed(termination));
    }
    if config.flags {
        parts.push(flags.iter().map(ResponseFlag::short).collect::<Vec<_>>().join(",").into());
    }
    match parts.is_empty() {
        true => format!("{name}; error={error}"),
        false => format!("{name}; error={error}; details=\"{}\"", quoted(&parts.join("; "))),
    }
}

/// As the inside of a string of structured fields (RFC 8941 section 3.3.3).
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => quoted.push('_'),
        }
    }
    quoted
}

/// RFC 9209 section 2.
const PROXY_STATUS: &str = "proxy-status";

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ProxyStatus =
        ProxyStatus { name: ProxyName::Server, details: true, termination: true, flags: true, recommended_code: false };

    #[test]
    fn details_are_what_is_wanted_of_them() {
        let flags = ResponseFlags::default().with(ResponseFlag::UpstreamConnectionFailure);
        let with = |config: &ProxyStatus| member(config, "me", "connection_refused", "why {\"x\"}", Some("end"), flags);
        assert_eq!(with(&ALL), "me; error=connection_refused; details=\"why {\\\"x\\\"}; end; UF\"");
        assert_eq!(
            with(&ProxyStatus { details: false, termination: false, ..ALL }),
            "me; error=connection_refused; details=\"UF\""
        );
        let none = ProxyStatus { details: false, termination: false, flags: false, ..ALL };
        assert_eq!(with(&none), "me; error=connection_refused");
    }

    #[test]
    fn the_first_flag_of_the_list_counts() {
        let flags = ResponseFlags::default().with(ResponseFlag::UpstreamRetryLimitExceeded);
        assert_eq!(error_of(flags), Some(("destination_unavailable", 503)));
        assert_eq!(error_of(flags.with(ResponseFlag::UpstreamConnectionFailure)), Some(("connection_refused", 502)));
        assert_eq!(error_of(ResponseFlags::default().with(ResponseFlag::FaultInjected)), None);
    }
}
