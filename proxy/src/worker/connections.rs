//! The downstream connections of a worker.
//!
//! Owns how a drain reaches connections that wait for something else. Never closes one: connections look at their filter
//! chain's drain themselves when they are woken.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::graph::{Draining, Patience};

/// The connections of one worker.
#[derive(Default)]
pub struct Connections {
    slots: RefCell<Slots>,
}

#[derive(Default)]
struct Slots {
    wakers: Vec<Option<Entry>>,
    free: Vec<usize>,
}

struct Entry {
    draining: Arc<Draining>,
    patience: Patience,
    /// Was woken to learn that it is asked to end.
    told: bool,
    waker: Option<Waker>,
}

/// A place in the list, given back when dropped.
pub struct Registered {
    list: Rc<crate::worker::Worker>,
    slot: usize,
    draining: Arc<Draining>,
    patience: Patience,
    /// It is asked to end by itself.
    asked: Cell<bool>,
}

impl Connections {
    /// Wakes every connection that the drain of its filter chain now asks to end, or whose time is up.
    pub fn check_drains(&self) {
        for entry in self.slots.borrow_mut().wakers.iter_mut().flatten() {
            let newly_asked = !entry.told && entry.draining.asks(entry.patience);
            if newly_asked || entry.draining.ends_idle() {
                entry.told = true;
                if let Some(waker) = entry.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let slots = self.slots.borrow();
        slots.wakers.len() - slots.free.len()
    }

    /// Adds a connection of a filter chain.
    pub fn register(worker: &Rc<crate::worker::Worker>, draining: &Arc<Draining>) -> Registered {
        let mut slots = worker.connections.slots.borrow_mut();
        let patience = Patience::new(worker.random.next());
        let entry = Some(Entry { draining: Arc::clone(draining), patience, told: false, waker: None });
        let slot = match slots.free.pop() {
            Some(slot) => {
                slots.wakers[slot] = entry;
                slot
            }
            None => {
                slots.wakers.push(entry);
                slots.wakers.len() - 1
            }
        };
        Registered { list: Rc::clone(worker), slot, draining: Arc::clone(draining), patience, asked: Cell::new(false) }
    }
}

impl Registered {
    /// The drain of the filter chain.
    pub fn draining(&self) -> &Draining {
        &self.draining
    }

    /// Whether the connection is asked to end, by the drain of its filter chain or by itself.
    pub fn is_asked_to_end(&self) -> bool {
        self.asked.get() || self.draining.asks(self.patience)
    }

    /// Asks this connection to end, and wakes its task.
    pub fn ask_to_end(&self) {
        self.asked.set(true);
        self.wake();
    }

    /// Wakes the task of this connection.
    pub fn wake(&self) {
        let mut slots = self.list.connections.slots.borrow_mut();
        if let Some(Some(entry)) = slots.wakers.get_mut(self.slot)
            && let Some(waker) = entry.waker.take()
        {
            waker.wake();
        }
    }

    /// Ready when the connection is asked to end; the task is woken when it is.
    pub fn poll_asked_to_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_asked_to_end() {
            return Poll::Ready(());
        }
        self.remember(cx);
        Poll::Pending
    }

    /// Ready when the connection should end while it is idle; the task is woken when it should.
    pub fn poll_ends_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.draining.ends_idle() {
            return Poll::Ready(());
        }
        self.remember(cx);
        Poll::Pending
    }

    /// Ready when the drain's time is up; the task is woken when it is.
    pub fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.draining.has_expired() {
            return Poll::Ready(());
        }
        self.remember(cx);
        Poll::Pending
    }

    /// Whether the drain's time is up, for tasks that others wake.
    pub fn has_expired(&self) -> bool {
        self.draining.has_expired()
    }

    fn remember(&self, cx: &mut Context<'_>) {
        let mut slots = self.list.connections.slots.borrow_mut();
        if let Some(Some(entry)) = slots.wakers.get_mut(self.slot) {
            match &mut entry.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                waker => *waker = Some(cx.waker().clone()),
            }
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut slots = self.list.connections.slots.borrow_mut();
        if let Some(slot) = slots.wakers.get_mut(self.slot) {
            *slot = None;
        }
        slots.free.push(self.slot);
    }
}
