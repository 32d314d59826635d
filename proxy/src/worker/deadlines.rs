//! Time limits of one task.
//!
//! Owns one timer for any number of limits. Setting a limit is a plain store; the timer is touched only when a limit
//! comes to lie before it. Never decides what a limit's end means.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_config::overload::TimerKind;
use tokio::time::Sleep;

use crate::overload::{Rescaled, Rescaling};

/// What a limit is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// Receiving a request head.
    RequestHeaders,
    /// Receiving a whole request.
    Request,
    /// Nothing moving in a stream.
    StreamIdle,
    /// The response to a request.
    Route,
    /// One try.
    PerTry,
    /// Nothing moving in a try.
    PerTryIdle,
    /// The life of a stream.
    StreamDuration,
    /// A connection without streams, or a TCP session without bytes.
    Idle,
    /// The life of a connection.
    ConnectionDuration,
    /// An endpoint acknowledging what was sent to it.
    Acknowledgement,
    /// No limit: an entry of a request that lasts is due.
    LogFlush,
}

const LIMITS: [Limit; 11] = [
    Limit::RequestHeaders,
    Limit::Request,
    Limit::StreamIdle,
    Limit::Route,
    Limit::PerTry,
    Limit::PerTryIdle,
    Limit::StreamDuration,
    Limit::Idle,
    Limit::ConnectionDuration,
    Limit::Acknowledgement,
    Limit::LogFlush,
];

/// Free deadlines kept; more are freed.
const KEPT: usize = 128;

/// The limits of one task.
#[derive(Debug, Default)]
pub struct Deadlines {
    slots: [Cell<Option<Instant>>; LIMITS.len()],
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
    /// Where limits may become shorter while they run.
    rescaled: Option<Box<Rescaled>>,
}

impl Deadlines {
    /// Sets or clears a limit.
    pub fn set(&self, limit: Limit, at: Option<Instant>) {
        self.slots[limit as usize].set(at);
        if let (Some(rescaled), Some(timer)) = (&self.rescaled, timer_of(limit)) {
            rescaled.forget(timer);
        }
    }

    /// Sets or clears a limit that usually lasts for `usual`, and ends earlier where overload makes it shorter.
    pub fn begin(&self, limit: Limit, since: Instant, usual: Option<Duration>) {
        match (&self.rescaled, timer_of(limit), usual) {
            (Some(rescaled), Some(timer), Some(usual)) => {
                self.slots[limit as usize].set(Some(rescaled.begin(timer, since, usual)));
            }
            _ => self.set(limit, usual.map(|usual| since + usual)),
        }
    }

    /// Whether a limit is set.
    pub fn is_set(&self, limit: Limit) -> bool {
        self.slots[limit as usize].get().is_some()
    }

    /// Clears the limits of a request, keeping those of the connection.
    pub fn clear_request(&self) {
        for limit in [
            Limit::RequestHeaders,
            Limit::Request,
            Limit::StreamIdle,
            Limit::Route,
            Limit::PerTry,
            Limit::PerTryIdle,
            Limit::StreamDuration,
            Limit::LogFlush,
        ] {
            self.set(limit, None);
        }
    }

    /// Ready with a limit whose time has come. It stays until it is set anew.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Limit> {
        if let Some(rescaled) = &self.rescaled {
            rescaled.refresh(cx, |timer, end| {
                if let Some(limit) = LIMITS.into_iter().find(|limit| timer_of(*limit) == Some(timer)) {
                    self.slots[limit as usize].set(Some(end));
                }
            });
        }
        let Some(earliest) = self.slots.iter().filter_map(Cell::get).min() else { return Poll::Pending };
        let mut timer = self.timer.borrow_mut();
        let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(earliest.into())));
        // A timer that is due earlier is left as it is: most limits are cleared long before their time.
        if earliest < sleep.deadline().into_std() {
            sleep.as_mut().reset(earliest.into());
        }
        while sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let passed = |limit: &Limit| self.slots[*limit as usize].get().is_some_and(|at| at <= now);
            if let Some(limit) = LIMITS.into_iter().find(passed) {
                return Poll::Ready(limit);
            }
            sleep.as_mut().reset(earliest.into());
        }
        Poll::Pending
    }
}

/// The timer that a limit is, for overload.
fn timer_of(limit: Limit) -> Option<TimerKind> {
    match limit {
        Limit::Idle => Some(TimerKind::ConnectionIdle),
        Limit::StreamIdle => Some(TimerKind::StreamIdle),
        Limit::ConnectionDuration => Some(TimerKind::ConnectionMax),
        _ => None,
    }
}

/// A worker's free deadlines. Their timers stay armed, so that who takes one need not touch the runtime's timers: most
/// tasks end long before their limits.
#[derive(Default)]
pub struct FreeDeadlines {
    free: RefCell<Vec<Deadlines>>,
    rescaling: Option<Rc<Rescaling>>,
}

impl FreeDeadlines {
    /// None are free. `rescaling` is there if limits may become shorter.
    pub fn new(rescaling: Option<Rc<Rescaling>>) -> Self {
        Self { free: RefCell::default(), rescaling }
    }

    /// Whether limits may become shorter.
    pub fn are_rescaled(&self) -> bool {
        self.rescaling.is_some()
    }

    /// Limits have become shorter or longer: wakes the tasks whose they are.
    pub fn rescale(&self) {
        if let Some(rescaling) = &self.rescaling {
            rescaling.changed();
        }
    }

    /// Deadlines without a limit, which may be used for as long as they last.
    pub fn fresh(&self) -> Deadlines {
        let rescaled = self.rescaling.as_ref().map(|rescaling| Box::new(Rescaled::new(rescaling)));
        Deadlines { rescaled, ..Deadlines::default() }
    }

    /// Deadlines without a limit, to be given back.
    pub fn take(&self) -> Deadlines {
        self.free.borrow_mut().pop().unwrap_or_else(|| self.fresh())
    }

    /// Takes deadlines back.
    pub fn give(&self, deadlines: Deadlines) {
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT && deadlines.rescaled.is_some() == self.rescaling.is_some() {
            LIMITS.into_iter().for_each(|limit| deadlines.set(limit, None));
            free.push(deadlines);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_earliest_limit_ends_first_and_cleared_ones_never() {
        let start = tokio::time::Instant::now();
        // The paused clock moves tokio's instants only, so limits lie relative to its start.
        let deadlines = Deadlines::default();
        deadlines.set(Limit::Idle, Some(start.into_std() + Duration::from_secs(3600)));
        assert!(poll_fn(|cx| Poll::Ready(deadlines.poll(cx).is_pending())).await);
        deadlines.set(Limit::Route, Some(start.into_std() + Duration::from_millis(1)));
        deadlines.clear_request();
        assert!(poll_fn(|cx| Poll::Ready(deadlines.poll(cx).is_pending())).await);
        deadlines.set(Limit::Route, Some(start.into_std()));
        assert_eq!(poll_fn(|cx| deadlines.poll(cx)).await, Limit::Route);
    }

    #[tokio::test(start_paused = true)]
    async fn used_deadlines_have_no_limit_and_still_end_in_time() {
        let start = tokio::time::Instant::now();
        let free = FreeDeadlines::default();
        let used = free.take();
        used.set(Limit::Route, Some(start.into_std() + Duration::from_secs(15)));
        assert!(poll_fn(|cx| Poll::Ready(used.poll(cx).is_pending())).await);
        free.give(used);
        let again = free.take();
        assert!(poll_fn(|cx| Poll::Ready(again.poll(cx).is_pending())).await);
        again.set(Limit::Idle, Some(start.into_std()));
        assert_eq!(poll_fn(|cx| again.poll(cx)).await, Limit::Idle);
    }
}
