//! Which requests of a worker are reset because they hold much memory (`reset_high_memory_stream`).
//!
//! Owns one round at a time: all requests are woken and say what they hold, and those that hold most are chosen. Requests are
//! weighed at no other time. Never ends a request itself: who is chosen sees it when it is woken again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use outrigger_policy::overload::MOST_RESETS;

use super::stats::{RESETS_PREFIX, ResetStats};
use crate::stream::{Kill, StreamInfo};
use crate::worker::Worker;

/// The round that is on, if one is.
#[derive(Default)]
pub struct Weighing {
    /// From how many bytes on a request may be chosen; 0 while there is no round.
    from: Cell<u64>,
    heavy: RefCell<Vec<Heavy>>,
}

struct Heavy {
    held: u64,
    info: Rc<StreamInfo>,
    waker: Waker,
}

impl Weighing {
    /// Whether requests are to say what they hold.
    pub fn is_on(&self) -> bool {
        self.from.get() != 0
    }

    /// A request holds so many bytes. Of what it says in a round the most counts.
    pub fn weigh(&self, held: usize, info: &Rc<StreamInfo>, waker: &Waker) {
        let held = held as u64;
        if held < self.from.get() || info.kill.get() != Kill::No {
            return;
        }
        let mut heavy = self.heavy.borrow_mut();
        match heavy.iter_mut().find(|heavy| Rc::ptr_eq(&heavy.info, info)) {
            Some(known) => known.held = known.held.max(held),
            None => heavy.push(Heavy { held, info: Rc::clone(info), waker: waker.clone() }),
        }
    }

    /// Ends the round. How many were chosen.
    fn choose(&self) -> usize {
        self.from.set(0);
        let mut heavy = self.heavy.take();
        heavy.sort_unstable_by_key(|heavy| std::cmp::Reverse(heavy.held));
        heavy.truncate(MOST_RESETS);
        for Heavy { info, waker, .. } in &heavy {
            info.kill.set(Kill::Overload);
            waker.wake_by_ref();
        }
        heavy.len()
    }
}

impl Worker {
    /// Resets the requests that hold most, if any are to be reset at this moment.
    pub fn reset_heavy_requests(self: &Rc<Self>) {
        let from = self.process.overload.reset_from.load(Ordering::Relaxed);
        if from == 0 || self.weighing.is_on() {
            return;
        }
        self.weighing.from.set(from);
        self.live.wake_requests();
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            // Whoever was woken has been asked by then: tasks go in the order in which they are woken.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let chosen = worker.weighing.choose();
            if chosen > 0 {
                worker.scope::<ResetStats>(RESETS_PREFIX).count.add(chosen as u64);
                tracing::warn!(target: "main", "{chosen} requests that hold {from} bytes or more are reset");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn those_that_hold_most_are_chosen_and_not_too_many() {
        let weighing = Weighing::default();
        let requests: Vec<Rc<StreamInfo>> = (0..60).map(|_| Rc::new(StreamInfo::new(Instant::now(), None))).collect();
        let weigh = |held: usize, info| weighing.weigh(held, info, Waker::noop());
        assert!(!weighing.is_on());
        weighing.from.set(100);
        requests.iter().zip(95..).for_each(|(info, held)| weigh(held, info));
        // Another part of the same request is asked later.
        weigh(0, &requests[59]);
        weigh(200, &requests[5]);
        assert_eq!((weighing.is_on(), weighing.choose(), weighing.is_on()), (true, MOST_RESETS, false));
        let spared = |index: usize| requests[index].kill.get() == Kill::No;
        // Five are too light, and of the 55 others the five lightest are spared, one of which has grown.
        let light: Vec<usize> = (0..60).filter(|index| spared(*index)).collect();
        assert_eq!(light, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]);
        weighing.from.set(100);
        weigh(500, &requests[59]);
        assert_eq!(weighing.choose(), 0);
    }
}
