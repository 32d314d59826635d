//! Message heads that are used again.
//!
//! Owns a worker's free heads, whose buffers keep their memory. Never looks into one.

use std::cell::RefCell;

use crate::http::message::{RequestHead, ResponseHead};

/// Heads kept; more are freed.
const KEPT: usize = 128;

/// A worker's free heads.
#[derive(Debug, Default)]
pub struct Heads {
    requests: RefCell<Vec<RequestHead>>,
    responses: RefCell<Vec<ResponseHead>>,
}

impl Heads {
    /// An empty request head.
    pub fn take(&self) -> RequestHead {
        self.requests.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a request head back.
    pub fn give(&self, mut head: RequestHead) {
        let mut requests = self.requests.borrow_mut();
        if requests.len() < KEPT {
            head.clear();
            requests.push(head);
        }
    }

    /// An empty response head.
    pub fn take_response(&self) -> ResponseHead {
        self.responses.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a response head back.
    pub fn give_response(&self, mut head: ResponseHead) {
        let mut responses = self.responses.borrow_mut();
        if responses.len() < KEPT {
            head.clear();
            responses.push(head);
        }
    }
}
