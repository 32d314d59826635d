//! Services that loggers share.
//!
//! Owns who uses which service, and which of them have to be run. A service ends, with all sent, after its last user is gone.

use std::sync::{Arc, Weak};

use super::batches::Batches;

/// Something that entries are sent to.
pub(super) trait Service {
    /// What is sent.
    type Entry;

    /// What waits for it.
    fn batches(&self) -> &Batches<Self::Entry>;
}

/// A logger's share in a service.
#[derive(Debug)]
pub(super) struct Handle<S: Service>(Arc<S>);

impl<S: Service> Handle<S> {
    /// A share in `service`.
    pub fn new(service: Arc<S>) -> Self {
        Self(service)
    }
}

impl<S: Service> std::ops::Deref for Handle<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}

impl<S: Service> Drop for Handle<S> {
    fn drop(&mut self) {
        self.0.batches().close();
    }
}

/// All services of one kind.
pub(super) struct Shares<S: Service> {
    /// All that some logger uses.
    used: Vec<Weak<Handle<S>>>,
    /// All that may have entries to send.
    running: Vec<Arc<S>>,
    /// Not yet running.
    new: Vec<Arc<S>>,
}

impl<S: Service> Default for Shares<S> {
    fn default() -> Self {
        Self { used: Vec::new(), running: Vec::new(), new: Vec::new() }
    }
}

impl<S: Service> Shares<S> {
    /// A share in the open service that `fits`, or in a new one.
    pub fn share(&mut self, fits: impl Fn(&S) -> bool, make: impl FnOnce() -> S) -> Arc<Handle<S>> {
        self.used.retain(|handle| handle.strong_count() > 0);
        let fits = |handle: &Arc<Handle<S>>| !handle.batches().is_closed() && fits(handle);
        if let Some(known) = self.used.iter().filter_map(Weak::upgrade).find(fits) {
            return known;
        }
        let service = Arc::new(make());
        let handle = Arc::new(Handle::new(Arc::clone(&service)));
        self.used.push(Arc::downgrade(&handle));
        self.new.push(service);
        handle
    }

    /// Those that are new since the last time, from now on running.
    pub fn start_new(&mut self) -> Vec<Arc<S>> {
        self.running.retain(|service| !service.batches().is_finished());
        let new = std::mem::take(&mut self.new);
        self.running.extend(new.iter().map(Arc::clone));
        new
    }

    /// Closes all, and tells which they are.
    pub fn close(&self) -> Vec<Arc<S>> {
        let all: Vec<_> = self.running.iter().chain(&self.new).map(Arc::clone).collect();
        for service in &all {
            service.batches().close();
        }
        all
    }
}
