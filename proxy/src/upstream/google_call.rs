//! What calls of `google_grpc` targets have besides: stats of their own, and tokens.
//!
//! Owns the counting, and reading the token for each call, since whoever issues tokens replaces them before they expire. Never
//! makes the call.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::source::{GoogleCall, TokenFile};

use super::call::CallError;
use crate::http::headers::Headers;
use crate::scope;
use crate::stats::names;
use crate::worker::Worker;

scope! {
    /// Stats of a target (`grpc.<stat_prefix>.*`).
    pub struct GoogleStats {
        streams_total: Counter,
        streams_closed_0: Counter,
        streams_closed_1: Counter,
        streams_closed_2: Counter,
        streams_closed_3: Counter,
        streams_closed_4: Counter,
        streams_closed_5: Counter,
        streams_closed_6: Counter,
        streams_closed_7: Counter,
        streams_closed_8: Counter,
        streams_closed_9: Counter,
        streams_closed_10: Counter,
        streams_closed_11: Counter,
        streams_closed_12: Counter,
        streams_closed_13: Counter,
        streams_closed_14: Counter,
        streams_closed_15: Counter,
        streams_closed_16: Counter,
    }
}

/// One worker's stats, by prefix.
#[derive(Default)]
pub struct GoogleCalls(RefCell<HashMap<Arc<str>, Arc<GoogleStats>>>);

/// A call that was begun. One that is given up counts as nothing else, as in Envoy.
pub struct OpenCall(Arc<GoogleStats>);

/// Counts a call.
pub fn begin(worker: &Rc<Worker>, google: &GoogleCall) -> OpenCall {
    let mut known = worker.google_calls.0.borrow_mut();
    let make = || worker.scope(&names::prefix("grpc", &google.stat_prefix));
    let stats = known.entry(Arc::clone(&google.stat_prefix)).or_insert_with(make);
    stats.streams_total.increment();
    OpenCall(Arc::clone(stats))
}

impl OpenCall {
    /// The call has ended with this status.
    pub fn end(self, status: u32) {
        let stats = &self.0;
        match status {
            0 => &stats.streams_closed_0,
            1 => &stats.streams_closed_1,
            3 => &stats.streams_closed_3,
            4 => &stats.streams_closed_4,
            5 => &stats.streams_closed_5,
            6 => &stats.streams_closed_6,
            7 => &stats.streams_closed_7,
            8 => &stats.streams_closed_8,
            9 => &stats.streams_closed_9,
            10 => &stats.streams_closed_10,
            11 => &stats.streams_closed_11,
            12 => &stats.streams_closed_12,
            13 => &stats.streams_closed_13,
            14 => &stats.streams_closed_14,
            15 => &stats.streams_closed_15,
            16 => &stats.streams_closed_16,
            // Unknown, as are statuses that gRPC does not have.
            _ => &stats.streams_closed_2,
        }
        .increment();
    }
}

/// Adds the token, if the target wants one. The file is read beside the worker, which serves others meanwhile.
///
/// # Errors
/// If it cannot be read, or is nothing that a header can hold.
pub async fn add_token(token: Option<&TokenFile>, headers: &mut Headers) -> Result<(), CallError> {
    let Some(TokenFile { file, header, prefix }) = token else { return Ok(()) };
    let failed = |why: String| CallError::Token { file: file.clone(), why };
    let path = file.clone();
    let content = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
    let content = content.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
    let mut value = prefix.clone().into_bytes();
    value.extend(content.trim_ascii());
    // What it holds is nobody's business.
    if value.iter().any(|byte| byte.is_ascii_control()) {
        return Err(failed("its content is not a header value".to_owned()));
    }
    headers.set_by_name(header, &value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_read_for_each_call() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let token = TokenFile { file: file.clone(), header: "authorization".into(), prefix: "Bearer ".into() };
        let token = Some(&token);
        let mut headers = Headers::default();
        assert!(matches!(add_token(token, &mut headers).await, Err(CallError::Token { .. })));
        for content in ["first", "second"] {
            std::fs::write(&file, format!("{content}\n")).unwrap();
            add_token(token, &mut headers).await.unwrap();
            assert_eq!(headers.get_by_name("authorization"), Some(format!("Bearer {content}").as_bytes()));
        }
        std::fs::write(&file, "two\nlines").unwrap();
        let error = add_token(token, &mut headers).await.unwrap_err().to_string();
        assert!(error.contains("header value") && !error.contains("lines"), "{error}");
    }
}
