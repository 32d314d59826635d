//! Callers in turn: start-time fair queueing, in which each request costs the same.
//!
//! Owns how far each caller is ahead of those that were served. Never knows who waits.

use std::collections::HashMap;

#[derive(Debug, Default)]
pub(super) struct Flows {
    /// The rank of the request that was served last.
    reached: i64,
    /// Callers of which somebody waits.
    callers: HashMap<u64, Flow>,
}

#[derive(Debug, Default)]
struct Flow {
    /// The rank of its last request.
    last: i64,
    waiting: u32,
}

impl Flows {
    /// The rank of a request of `caller`: one more than its last, and not before what is being served.
    pub(super) fn join(&mut self, caller: Option<u64>) -> i64 {
        // Those who do not say who they are are one more caller.
        let flow = self.callers.entry(caller.unwrap_or_default()).or_default();
        flow.last = flow.last.max(self.reached) + 1;
        flow.waiting += 1;
        flow.last
    }

    /// A request of this rank has been served.
    pub(super) fn served(&mut self, rank: i64, caller: Option<u64>) {
        if self.left(caller) {
            self.reached = self.reached.max(rank);
        }
    }

    /// A request of `caller` is gone; whether it had been counted.
    pub(super) fn left(&mut self, caller: Option<u64>) -> bool {
        let caller = caller.unwrap_or_default();
        let Some(flow) = self.callers.get_mut(&caller) else { return false };
        flow.waiting = flow.waiting.saturating_sub(1);
        if flow.waiting == 0 {
            self.callers.remove(&caller);
        }
        true
    }
}
