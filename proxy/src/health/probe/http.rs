//! Checks by an HTTP request.
//!
//! Owns which answers are good. Never opens connections itself.

use bytes::Bytes;
use http::HeaderMap;
use outrigger_config::cluster::{HealthCheck, HttpProbe};
use outrigger_policy::health::{CheckResult, FailureKind, contains_in_order};

use super::http_request::{RequestParts, host_name, is_secure};
use super::{Answer, Checked, Ended, HttpVersion, Kept, Target, exchange};

pub(super) async fn check(target: &Target, settings: &HealthCheck, probe: &HttpProbe, kept: Kept) -> Ended {
    let parts = RequestParts {
        method: probe.method,
        path: &probe.path,
        host: host_name(target, &probe.host),
        headers: &probe.headers,
        removed: &probe.headers_to_remove,
        secure: is_secure(target),
        body: Bytes::from(probe.send.clone()),
    };
    let limit = match probe.response_buffer_size {
        _ if probe.receive.is_empty() => Some(0),
        0 => None,
        size => Some(usize::try_from(size).unwrap_or(usize::MAX)),
    };
    let version = if probe.http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
    let (answer, kept) = exchange(target, settings, version, kept, &parts, limit).await?;
    let Answer { status, headers, body, trailers: _ } = answer;
    Ok((judge(probe, status, &headers, &body, target.verify), kept))
}

fn judge(probe: &HttpProbe, status: u16, headers: &HeaderMap, body: &[u8], verify: bool) -> Checked {
    let within = |ranges: &[std::ops::Range<u16>]| ranges.iter().any(|range| range.contains(&status));
    let failure = |retriable| CheckResult::Failure { kind: FailureKind::Active, retriable };
    let mut verified = false;
    let result = if !within(&probe.expected) {
        failure(within(&probe.retriable))
    } else if !contains_in_order(&probe.receive, body) {
        failure(false)
    } else {
        let matcher = probe.service_name.as_ref().filter(|_| verify);
        verified = matcher.is_some();
        let name = headers.get("x-envoy-upstream-healthchecked-cluster").map_or(&b""[..], |name| name.as_bytes());
        match matcher.is_none_or(|matcher| matcher.matches(name)) {
            true => CheckResult::Success { degraded: headers.contains_key("x-envoy-degraded") },
            false => failure(false),
        }
    };
    let failed = matches!(result, CheckResult::Failure { .. });
    let excluded = failed && headers.contains_key("x-envoy-immediate-health-check-fail");
    Checked { status, excluded, verified, ..Checked::of(result) }
}

#[cfg(test)]
mod tests {
    use outrigger_config::matching::StringMatcher;

    use super::*;

    fn probe() -> HttpProbe {
        HttpProbe {
            method: "GET",
            path: "/".into(),
            host: "".into(),
            send: Vec::new(),
            receive: vec![b"ok".to_vec()],
            response_buffer_size: 1024,
            headers: Vec::new(),
            headers_to_remove: Vec::new(),
            expected: std::iter::once(200..300).collect(),
            retriable: vec![200..201, 500..600],
            service_name: Some(StringMatcher::Prefix { value: "local".into(), ignore_case: false }),
            http2: false,
        }
    }

    fn judged(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> CheckResult {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        judge(&probe(), status, &headers, body.as_bytes(), true).result
    }

    const MINE: (&str, &str) = ("x-envoy-upstream-healthchecked-cluster", "local-1");

    #[test]
    fn status_body_and_service_have_to_be_right() {
        let failure = |retriable| CheckResult::Failure { kind: FailureKind::Active, retriable };
        assert_eq!(judged(204, &[MINE], "is ok"), CheckResult::Success { degraded: false });
        assert_eq!(judged(200, &[MINE, ("x-envoy-degraded", "")], "ok"), CheckResult::Success { degraded: true });
        assert_eq!(judged(404, &[MINE], "ok"), failure(false));
        assert_eq!(judged(503, &[MINE], "ok"), failure(true));
        assert_eq!(judged(200, &[MINE], "o k"), failure(false));
        assert_eq!(judged(200, &[], "ok"), failure(false));
    }

    #[test]
    fn only_a_failure_excludes() {
        let headers = HeaderMap::from_iter([
            ("x-envoy-immediate-health-check-fail".parse().unwrap(), "true".parse().unwrap()),
            (MINE.0.parse().unwrap(), MINE.1.parse().unwrap()),
        ]);
        assert!(judge(&probe(), 503, &headers, b"", true).excluded);
        assert!(!judge(&probe(), 200, &headers, b"ok", true).excluded);
        assert!(!judge(&probe(), 200, &headers, b"ok", false).verified);
    }
}
