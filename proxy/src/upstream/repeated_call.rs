//! Calls that are made again when they fail.
//!
//! Owns the pauses between attempts and the limit on all of them together. Never knows what is asked.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::http_uri::CallRetries;
use outrigger_config::route::RetryOn;
use outrigger_config::source::GrpcCall;
use prost::Message;

use super::call::{self, Answer, Call, CallError, UnaryFailure};
use super::google_call;
use crate::http::headers::HeaderId;
use crate::http::message::ResponseHead;
use crate::http::seam::StreamError;
use crate::worker::Worker;

/// Asks `service` with a call of [`call::unary`], as often as it says.
///
/// # Errors
/// When the last attempt has no message of this type as its answer.
pub async fn ask<M: Message + Default>(
    worker: &Rc<Worker>,
    service: &GrpcCall,
    mut call: Call,
) -> Result<M, UnaryFailure> {
    let open = match &service.google {
        None => None,
        Some(google) => {
            let open = google_call::begin(worker, google);
            google_call::add_token(google.token.as_ref(), &mut call.head.headers).await?;
            Some(open)
        }
    };
    let result = call::message(call_repeatedly(worker, &service.cluster, call, service.retries).await);
    if let Some(open) = open {
        open.end(result.as_ref().map_or_else(UnaryFailure::status, |_| 0));
    }
    result
}

/// As [`call::call`], and again in the cases that `retries` name, all within the call's time limit.
///
/// # Errors
/// When the last attempt has no whole answer, whatever its status.
pub async fn call_repeatedly(
    worker: &Rc<Worker>,
    name: &Arc<str>,
    call: Call,
    retries: Option<CallRetries>,
) -> Result<Answer, CallError> {
    let Some(retries) = retries else { return call::call(worker, name, call).await };
    let limit = call.timeout;
    let attempts = attempts(worker, name, call, retries);
    match limit {
        None => attempts.await,
        Some(limit) => match tokio::time::timeout(limit, attempts).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Timeout(limit)),
        },
    }
}

async fn attempts(worker: &Rc<Worker>, name: &Arc<str>, call: Call, retries: CallRetries) -> Result<Answer, CallError> {
    let CallRetries { on, times } = retries;
    for tried in 0..times.count {
        let result = call::call(worker, name, call.clone()).await;
        if !is_named(&on, result.as_ref().map(|answer| &answer.head)) {
            return result;
        }
        let pause: Duration = times.pause(tried, worker.random.next());
        tokio::time::sleep(pause).await;
    }
    call::call(worker, name, call).await
}

/// Whether another attempt is wanted after this one; what could not be tried at all is not tried again.
pub(super) fn is_named(on: &RetryOn, result: Result<&ResponseHead, &CallError>) -> bool {
    // An end without an answer is an error 5xx to clients.
    let any = on.server_error || on.gateway_error;
    match result {
        // A status behind the body comes too late, as in Envoy.
        Ok(head) if has_grpc_status(head, on.grpc_codes) => true,
        Ok(head) => match head.status {
            502..=504 => any,
            500.. => on.server_error,
            409 => on.retriable_4xx,
            _ => false,
        },
        Err(CallError::Connect(_)) => any || on.connect_failure,
        Err(CallError::Stream(StreamError::Refused)) => any || on.reset || on.refused_stream,
        Err(
            CallError::Stream(StreamError::Answered(_))
            | CallError::NoCluster(_)
            | CallError::NoHost
            | CallError::Overflow
            | CallError::Timeout(_)
            | CallError::TooLong(_)
            | CallError::Token { .. },
        ) => false,
        Err(CallError::Stream(_)) => any || on.reset,
    }
}

/// Whether the head holds one of the gRPC statuses whose bits are set.
fn has_grpc_status(head: &ResponseHead, codes: u32) -> bool {
    let status = head.headers.get_str(HeaderId::GrpcStatus).and_then(|status| status.parse().ok());
    status.and_then(|status: u32| codes.checked_shr(status)).is_some_and(|bits| bits & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_named_cases_are_tried_again() {
        let answer = |status| {
            let head = ResponseHead { status, ..ResponseHead::default() };
            Ok(Answer { head, body: Vec::new(), trailers: None })
        };
        let is_named = |names: &str, result: Result<Answer, CallError>| {
            is_named(&RetryOn::from_names(names), result.as_ref().map(|answer| &answer.head))
        };
        assert!(is_named("5xx", answer(500)) && is_named("5xx", answer(503)) && !is_named("5xx", answer(403)));
        assert!(!is_named("gateway-error", answer(500)) && is_named("gateway-error", answer(503)));
        assert!(is_named("retriable-4xx", answer(409)) && !is_named("reset", answer(503)));
        assert!(
            is_named("reset", Err(StreamError::Closed.into()))
                && !is_named("connect-failure", Err(StreamError::Closed.into()))
        );
        let unavailable = || {
            let mut head = ResponseHead { status: 200, ..ResponseHead::default() };
            head.headers.append_id(HeaderId::GrpcStatus, b"14");
            Ok(Answer { head, body: Vec::new(), trailers: None })
        };
        assert!(is_named("unavailable", unavailable()) && !is_named("internal,5xx", unavailable()));
        assert!(!is_named("5xx", Err(CallError::Timeout(Duration::from_secs(1)))) && !is_named("", answer(503)));
    }
}
