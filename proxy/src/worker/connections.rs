//! The downstream connections of a worker.
//!
//! Owns how a drain reaches connections that wait for something else. Never closes one: connections look at their filter
//! chain's drain themselves when they are woken.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::graph::Draining;

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
    waker: Option<Waker>,
}

/// A place in the list, given back when dropped.
pub struct Registered {
    list: Rc<crate::worker::Worker>,
    slot: usize,
    draining: Arc<Draining>,
}

impl Connections {
    /// Wakes every connection whose filter chain drains.
    pub fn check_drains(&self) {
        for entry in self.slots.borrow_mut().wakers.iter_mut().flatten() {
            if entry.draining.has_begun()
                && let Some(waker) = entry.waker.take()
            {
                waker.wake();
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
        let entry = Some(Entry { draining: Arc::clone(draining), waker: None });
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
        Registered { list: Rc::clone(worker), slot, draining: Arc::clone(draining) }
    }
}

impl Registered {
    /// The drain of the filter chain.
    pub fn draining(&self) -> &Draining {
        &self.draining
    }

    /// Ready when draining has begun; the task is woken when it does.
    pub fn poll_begun(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.draining.has_begun() {
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
