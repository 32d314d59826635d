//! Time limits that become shorter under pressure (the action `reduce_timeouts`).
//!
//! Owns how short they are now, and the waking of tasks whose limits have changed. Never ends anything: tasks look at
//! their limits when they are woken.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use outrigger_config::overload::{OverloadActionKind, OverloadManager, TimerKind, TimerMinimum};
use outrigger_policy::overload::shortened;

use crate::process::Process;

/// The configured ones, by kind. The control thread writes their states, workers read.
#[derive(Debug)]
pub struct Timers([Option<Slot>; TimerKind::ALL.len()]);

#[derive(Debug)]
struct Slot {
    minimum: TimerMinimum,
    /// The bits of a number within 0..=1.
    state: AtomicU64,
}

impl Timers {
    /// Those that some action changes; `None` if none does.
    pub(super) fn of(config: &OverloadManager) -> Option<Self> {
        let mut slots = [const { None }; TimerKind::ALL.len()];
        for action in &config.actions {
            let OverloadActionKind::ReduceTimeouts(timers) = &action.kind else { continue };
            for scaled in timers {
                let slot = Slot { minimum: scaled.minimum, state: AtomicU64::new(0.0f64.to_bits()) };
                slots[scaled.timer as usize] = Some(slot);
            }
        }
        slots.iter().any(Option::is_some).then_some(Self(slots))
    }

    /// Sets the state of a timer, within 0..=1.
    pub(super) fn set(&self, timer: TimerKind, state: f64) {
        if let Some(Some(slot)) = self.0.get(timer as usize) {
            slot.state.store(state.to_bits(), Ordering::Relaxed);
        }
    }

    /// How long a limit is now that is usually `usual`.
    pub fn shortened(&self, timer: TimerKind, usual: Duration) -> Duration {
        match self.0.get(timer as usize) {
            Some(Some(slot)) => shortened(usual, slot.minimum, f64::from_bits(slot.state.load(Ordering::Relaxed))),
            _ => usual,
        }
    }
}

/// The tasks of one worker whose limits may become shorter.
pub struct Rescaling {
    process: Arc<Process>,
    /// Goes up when limits have changed.
    generation: Cell<u64>,
    /// By place; free places hold no waker.
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
}

impl Rescaling {
    /// `None` if no timer is configured.
    pub fn of(process: &Arc<Process>) -> Option<Rc<Self>> {
        process.overload.timers()?;
        Some(Rc::new(Self {
            process: Arc::clone(process),
            generation: Cell::new(0),
            wakers: RefCell::default(),
            free: RefCell::default(),
        }))
    }

    /// Limits have changed: wakes all tasks.
    pub fn changed(&self) {
        self.generation.set(self.generation.get() + 1);
        for waker in self.wakers.borrow().iter().flatten() {
            waker.wake_by_ref();
        }
    }
}

/// The limits of one task that may become shorter: since when they run, and how long they usually are.
pub struct Rescaled {
    board: Rc<Rescaling>,
    place: usize,
    seen: Cell<u64>,
    spans: [Cell<Option<(Instant, Duration)>>; TimerKind::ALL.len()],
}

impl Rescaled {
    /// For a task of the worker.
    pub fn new(board: &Rc<Rescaling>) -> Self {
        let place = board.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut wakers = board.wakers.borrow_mut();
            wakers.push(None);
            wakers.len() - 1
        });
        Self { board: Rc::clone(board), place, seen: Cell::new(board.generation.get()), spans: Default::default() }
    }

    /// A limit begins; returns when it ends as things are.
    pub fn begin(&self, timer: TimerKind, since: Instant, usual: Duration) -> Instant {
        self.spans[timer as usize].set(Some((since, usual)));
        self.end(timer, since, usual)
    }

    /// A limit is over, or is not one that becomes shorter.
    pub fn forget(&self, timer: TimerKind) {
        self.spans[timer as usize].set(None);
    }

    /// Tells the ends of limits that have changed since the last time, and remembers whom to wake when they do.
    pub fn refresh(&self, cx: &Context<'_>, mut set: impl FnMut(TimerKind, Instant)) {
        if self.seen.replace(self.board.generation.get()) != self.board.generation.get() {
            for timer in TimerKind::ALL {
                if let Some((since, usual)) = self.spans[timer as usize].get() {
                    set(timer, self.end(timer, since, usual));
                }
            }
        }
        if let Some(waker) = self.board.wakers.borrow_mut().get_mut(self.place) {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                waker => *waker = Some(cx.waker().clone()),
            }
        }
    }

    fn end(&self, timer: TimerKind, since: Instant, usual: Duration) -> Instant {
        since + self.board.process.overload.timers().map_or(usual, |timers| timers.shortened(timer, usual))
    }
}

impl Drop for Rescaled {
    fn drop(&mut self) {
        if let Some(waker) = self.board.wakers.borrow_mut().get_mut(self.place) {
            *waker = None;
        }
        self.board.free.borrow_mut().push(self.place);
    }
}

impl std::fmt::Debug for Rescaled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rescaled").field("place", &self.place).finish_non_exhaustive()
    }
}
