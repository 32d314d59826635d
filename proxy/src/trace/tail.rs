//! Spans of requests that nobody chose at their beginning, held back until their end.
//!
//! Owns the spans of such a request while it lasts, and the budget of all that are kept. Never decides what is worth it (see
//! `outrigger_policy::trace::worth_keeping`).

use std::cell::RefCell;
use std::time::{Duration, Instant};

use http::Method;
use outrigger_config::tracing::Tail;
use outrigger_policy::token_bucket::TokenBucket;
use outrigger_policy::trace::{Ended, Kept, worth_keeping};

use super::span::Span;
use crate::http::headers::HeaderId;
use crate::http::manager::request::Request;

/// What a request has to tell if it turns out to be worth it.
#[derive(Debug, Default)]
pub(super) struct Held(RefCell<Vec<Span>>);

impl Held {
    /// Holds a span back. What comes after the first of them is forgotten: a request has few tries.
    pub fn push(&self, span: Span) {
        let mut spans = self.0.borrow_mut();
        if spans.len() < MOST_HELD {
            spans.push(span);
        }
    }

    /// All of them, and the last one, which is always kept.
    pub fn close(&self, last: Span) -> Vec<Span> {
        let mut spans = self.0.take();
        spans.push(last);
        spans
    }
}

/// What may be kept, of all requests of a provider.
#[derive(Debug)]
pub(super) struct Budget {
    pub tail: Tail,
    bucket: TokenBucket,
    since: Instant,
}

impl Budget {
    /// A full one.
    pub fn new(tail: Tail, now: Instant) -> Self {
        Self { tail, bucket: TokenBucket::new(tail.budget), since: now }
    }

    /// Whether there is room for so many bytes, which are then gone.
    pub fn take(&self, bytes: usize, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since);
        self.bucket.rate().take(self.bucket.gone(), bytes as u64, age)
    }
}

/// Why a request is kept that is over, if it is.
pub(super) fn verdict(request: &Request<'_>, tail: &Tail, took: Duration) -> Option<Kept> {
    let headers = request.trailers.as_ref().unwrap_or(&request.response.headers);
    let status = headers.get_str(HeaderId::GrpcStatus).or(request.response.headers.get_str(HeaderId::GrpcStatus));
    let code = request.info.response_code.get();
    let tunnel = code == 101 || request.head.method() == Method::CONNECT.as_str().as_bytes();
    let ended = Ended {
        status: code,
        grpc_status: status.and_then(|status| status.parse().ok()),
        took: (!tunnel).then_some(took),
    };
    worth_keeping(tail, &ended)
}

/// Spans of one request that are held back.
const MOST_HELD: usize = 64;

#[cfg(test)]
mod tests {
    use outrigger_config::network::TokenBucket as Settings;

    use super::super::otlp::tests::span;
    use super::*;

    #[test]
    fn a_budget_is_used_up_and_comes_back() {
        let settings = Settings { max_tokens: 600, tokens_per_fill: 600, fill_interval: Duration::from_secs(60) };
        let start = Instant::now();
        let budget = Budget::new(Tail { errors: true, slow: None, budget: settings }, start);
        assert!(budget.take(400, start) && !budget.take(201, start) && budget.take(200, start));
        let later = start + Duration::from_secs(10);
        assert!(!budget.take(101, later) && budget.take(100, later));
        // What is larger than all of it never fits.
        assert!(!budget.take(601, start + Duration::from_secs(3600)));
    }

    #[test]
    fn a_request_holds_no_more_than_so_many() {
        let held = Held::default();
        for _ in 0..MOST_HELD + 3 {
            held.push(span());
        }
        assert_eq!(held.close(span()).len(), MOST_HELD + 1);
    }
}
