//! The gRPC status of a response, as logs show and filters compare it.
//!
//! Owns how it is found and named. Never decides about retries or replies.

use crate::http::headers::HeaderId;

use super::facts::Facts;

/// What stands for a `grpc-status` that is not a number.
pub(super) const INVALID: i64 = -1;
/// UNKNOWN.
pub(super) const UNKNOWN: i64 = 2;

/// The status from trailers, else from headers, else from the HTTP status. `None` before there is any response.
pub(crate) fn of(facts: &Facts<'_>) -> Option<i64> {
    let stated = facts
        .trailers
        .and_then(|trailers| trailers.get(HeaderId::GrpcStatus))
        .or_else(|| facts.response.and_then(|response| response.headers.get(HeaderId::GrpcStatus)));
    if let Some(text) = stated {
        return Some(
            std::str::from_utf8(text).ok().and_then(|text| text.parse::<u32>().ok()).map_or(INVALID, i64::from),
        );
    }
    match facts.info.response_code.get() {
        0 => None,
        code => Some(from_http(code)),
    }
}

/// Source: gRPC's "HTTP to gRPC status code mapping".
fn from_http(code: u16) -> i64 {
    match code {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => UNKNOWN,
    }
}

/// (`DeadlineExceeded`, `DEADLINE_EXCEEDED`), or `None` for a number without a name.
pub(super) fn names(status: i64) -> Option<(&'static str, &'static str)> {
    usize::try_from(status).ok().and_then(|index| NAMES.get(index)).copied()
}

/// Source: `google.rpc.Code`, in Envoy's spelling.
const NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];
