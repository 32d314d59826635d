//! Calls that are made again when they fail.
//!
//! Owns the pauses between attempts and the limit on all of them together. Never knows what is asked.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::http_uri::FetchRetries;

use super::call::{self, Answer, Call, CallError};
use crate::worker::Worker;

/// As [`call::call`], and again after errors 5xx and failures as far as `retries` allow, all within the call's time limit.
///
/// # Errors
/// When the last attempt has no whole answer, whatever its status.
pub async fn call_repeatedly(
    worker: &Rc<Worker>,
    name: &Arc<str>,
    call: Call,
    retries: Option<FetchRetries>,
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

async fn attempts(
    worker: &Rc<Worker>,
    name: &Arc<str>,
    call: Call,
    retries: FetchRetries,
) -> Result<Answer, CallError> {
    for tried in 0..retries.count {
        let result = call::call(worker, name, call.clone()).await;
        if is_final(&result) {
            return result;
        }
        let pause: Duration = retries.pause(tried, worker.random.next());
        tokio::time::sleep(pause).await;
    }
    call::call(worker, name, call).await
}

/// Another attempt would not help, or is not allowed.
fn is_final(result: &Result<Answer, CallError>) -> bool {
    match result {
        Ok(answer) => answer.head.status < 500,
        Err(CallError::NoCluster(_) | CallError::TooLong(_) | CallError::Timeout(_)) => true,
        Err(CallError::NoHost | CallError::Overflow | CallError::Connect(_) | CallError::Stream(_)) => false,
    }
}
