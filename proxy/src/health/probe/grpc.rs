//! Checks by `grpc.health.v1.Health/Check`, and the messages of that service.
//!
//! Owns its messages, which are of one field each. Never opens connections itself.

use bytes::Bytes;
use http::HeaderMap;
use outrigger_config::cluster::{GrpcProbe, HealthCheck, ProbeHeader};
use outrigger_policy::health::{CheckResult, FailureKind};
use prost::Message;

use super::http_request::{RequestParts, host_name, is_secure};
use super::{Checked, Ended, HttpVersion, Kept, Target, exchange};

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    /// 1 is SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

pub(super) async fn check(target: &Target, settings: &HealthCheck, probe: &GrpcProbe, kept: Kept) -> Ended {
    let headers = headers(probe);
    let parts = parts(target, probe, "/grpc.health.v1.Health/Check", &headers);
    let (found, kept) = exchange(target, settings, HttpVersion::Http2, kept, &parts, Some(MAX_ANSWER)).await?;
    let serving = found.status == 200
        && is_ok(&found.headers, found.trailers.as_ref())
        && answer(&found.body).is_some_and(|answer| answer.status == SERVING);
    let checked = match serving {
        true => Checked::of(CheckResult::Success { degraded: found.headers.contains_key("x-envoy-degraded") }),
        false => Checked::failure(FailureKind::Active),
    };
    Ok((checked, kept))
}

/// The headers of a call.
pub(super) fn headers(probe: &GrpcProbe) -> Vec<ProbeHeader> {
    let mut headers = probe.metadata.clone();
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        headers.push(ProbeHeader { name: name.into(), value: value.into() });
    }
    headers
}

/// The call of a method with the service in question.
pub(super) fn parts<'a>(
    target: &'a Target,
    probe: &'a GrpcProbe,
    path: &'a str,
    headers: &'a [ProbeHeader],
) -> RequestParts<'a> {
    RequestParts {
        method: "POST",
        path,
        host: host_name(target, &probe.authority),
        headers,
        removed: &[],
        secure: is_secure(target),
        body: frame(&Question { service: probe.service_name.clone() }),
    }
}

/// The status of an answer, if these bytes begin with all of it, and how many of them it takes. `Err` for bytes that are
/// no answer.
pub(super) fn first_answer(bytes: &[u8]) -> Result<Option<(i32, usize)>, NotAnAnswer> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if compressed != 0 || length > MAX_ANSWER {
        return Err(NotAnAnswer);
    }
    let Some(message) = rest.get(..length) else { return Ok(None) };
    let answer = Answer::decode(message).map_err(|_| NotAnAnswer)?;
    Ok(Some((answer.status, prefix.len() + length)))
}

/// Bytes that no server of this service sends.
#[derive(Debug)]
pub(super) struct NotAnAnswer;

/// The status stands in the trailers, or in the head if there is nothing else.
fn is_ok(head: &HeaderMap, trailers: Option<&HeaderMap>) -> bool {
    let status = trailers.and_then(|trailers| trailers.get("grpc-status")).or_else(|| head.get("grpc-status"));
    status.is_some_and(|status| status == "0")
}

fn frame(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut framed = Vec::with_capacity(5 + body.len());
    framed.push(0);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&body);
    framed.into()
}

/// The message of a body that holds one, uncompressed.
fn answer(body: &[u8]) -> Option<Answer> {
    let (prefix, message) = body.split_first_chunk::<5>()?;
    let [0, length @ ..] = *prefix else { return None };
    let message = message.get(..usize::try_from(u32::from_be_bytes(length)).ok()?)?;
    Answer::decode(message).ok()
}

pub(super) const SERVING: i32 = 1;
/// Far beyond what an answer of one number takes.
const MAX_ANSWER: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_frame() {
        let framed = frame(&Answer { status: SERVING });
        assert_eq!(&framed[..], [0, 0, 0, 0, 2, 8, 1]);
        assert_eq!(answer(&framed).unwrap().status, SERVING);
        for wrong in
            [&[][..], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 3, 8, 1], &[0, 255, 255, 255, 255], &[0, 0, 0, 0, 1, 8]]
        {
            assert!(answer(wrong).is_none(), "{wrong:?}");
        }
        assert_eq!(first_answer(&framed).unwrap(), Some((SERVING, 7)));
        assert!(first_answer(&framed[..6]).unwrap().is_none() && first_answer(&[1, 0, 0, 0, 0]).is_err());
        assert!(first_answer(&[0, 255, 255, 255, 255]).is_err() && first_answer(&[0, 0, 0, 0, 1, 8]).is_err());
        // A message of default values is empty.
        assert_eq!(answer(&[0, 0, 0, 0, 0]).unwrap().status, 0);
    }

    #[test]
    fn the_status_may_stand_in_head_or_trailers() {
        let map = |status: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
        assert!(is_ok(&map("0"), None) && is_ok(&HeaderMap::new(), Some(&map("0"))));
        assert!(!is_ok(&map("0"), Some(&map("5"))) && !is_ok(&HeaderMap::new(), None));
    }
}
