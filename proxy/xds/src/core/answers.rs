//! ACKs and NACKs that wait to be sent.
//!
//! Owns their order: one answer per response, oldest first. Never decides which of the two it is.

use std::collections::VecDeque;
use std::time::Instant;

use outrigger_api::pb::google::rpc::Status;

use super::nack::{self, Damping};
use super::{Rejection, ResourceKind};

/// The answer to one response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub nonce: String,
    /// Version that counts as accepted after that response.
    pub version: String,
    /// `Some` makes it a NACK.
    pub error: Option<Status>,
    /// A repeated NACK is held back until then.
    not_before: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Answers {
    queue: VecDeque<Answer>,
    damping: Damping,
}

impl Answers {
    pub(crate) fn push(
        &mut self,
        kind: ResourceKind,
        nonce: String,
        version: String,
        rejections: &[Rejection],
        now: Instant,
    ) {
        let (error, not_before) = if rejections.is_empty() {
            self.damping.ack();
            (None, now)
        } else {
            (Some(nack::error_detail(kind, rejections)), now + self.damping.nack())
        };
        self.queue.push_back(Answer { nonce, version, error, not_before });
    }

    pub(crate) fn pop(&mut self) -> Option<Answer> {
        self.queue.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Until when the only waiting answer is held back. With a second response behind it there is nothing to damp.
    pub(crate) fn held_until(&self, now: Instant) -> Option<Instant> {
        match self.queue.front() {
            Some(answer) if self.queue.len() == 1 && answer.not_before > now => Some(answer.not_before),
            _ => None,
        }
    }

    /// Answers belong to a stream and die with it. Damping stays: a server that resends bad content also does so on
    /// the next stream.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
    }
}
