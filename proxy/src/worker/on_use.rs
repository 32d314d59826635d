//! Stats that requests bring about: their names, or a part of them, come from clients.
//!
//! Owns this worker's instances, and the count of what there was no room for. How many there may be in the process, and
//! which go since nobody counts in them, is known to the registry.

use std::any::{Any, TypeId};
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::Worker;
use crate::scope;
use crate::stats::{MadeOnUse, Registry, Scope};

scope! {
    /// Names that got no stats of their own, by who wanted them (`stats.dropped.*`).
    pub struct DroppedStats { grpc_stats: Counter, fault: Counter, istio_stats: Counter }
}

/// Who wants stats.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wanting {
    /// `envoy.filters.http.grpc_stats`, of a method.
    GrpcStats,
    /// `envoy.filters.http.fault`, of a downstream.
    Fault,
    /// `istio.stats`, of the labels of a metric.
    IstioStats,
}

/// Stats that are kept for longer than a request: found as long as they are shown.
#[derive(Debug)]
pub struct Kept<S> {
    scope: Weak<S>,
    gone: Arc<AtomicBool>,
}

impl<S> Kept<S> {
    /// Of stats that stay for as long as the worker.
    pub fn for_good(scope: &Arc<S>) -> Self {
        Self { scope: Arc::downgrade(scope), gone: Arc::default() }
    }

    /// The stats, unless they are shown no more. Whoever counts in them holds them meanwhile, so that they stay.
    pub fn get(&self) -> Option<Arc<S>> {
        if self.gone.load(Ordering::Relaxed) { None } else { self.scope.upgrade() }
    }
}

/// This worker's instances.
#[derive(Default)]
pub struct OnUse {
    made: RefCell<HashMap<(TypeId, Box<str>), Made>>,
    dropped: OnceCell<Arc<DroppedStats>>,
}

struct Made {
    scope: Arc<dyn Any + Send + Sync>,
    gone: Arc<AtomicBool>,
}

impl OnUse {
    /// Forgets what is shown no more.
    pub fn sweep(&self) {
        self.made.borrow_mut().retain(|_, made| !made.gone.load(Ordering::Relaxed));
    }

    /// A name of `wanting` has no stats of its own.
    pub fn count_dropped(&self, registry: &Registry, wanting: Wanting) {
        let dropped = self.dropped.get_or_init(|| registry.scope("stats.dropped."));
        match wanting {
            Wanting::GrpcStats => dropped.grpc_stats.increment(),
            Wanting::Fault => dropped.fault.increment(),
            Wanting::IstioStats => dropped.istio_stats.increment(),
        }
    }
}

impl Worker {
    /// This worker's stats under `prefix`, which ends with a dot, and the form in which they may be kept; `None` if there are
    /// too many of that kind.
    pub fn scope_on_use<S: Scope + Default>(&self, wanting: Wanting, prefix: &str) -> Option<(Arc<S>, Kept<S>)> {
        let key = (TypeId::of::<S>(), Box::from(prefix));
        let mut made = self.on_use.made.borrow_mut();
        let known = made.get(&key).filter(|made| !made.gone.load(Ordering::Relaxed));
        if let Some(known) = known {
            let scope: Arc<S> = Arc::clone(&known.scope).downcast().ok()?;
            let kept = Kept { scope: Arc::downgrade(&scope), gone: Arc::clone(&known.gone) };
            return Some((scope, kept));
        }
        let registry = &self.process.stats;
        let Some(MadeOnUse { scope, gone }) = registry.scope_on_use::<S>(prefix, self.most_on_use()) else {
            self.on_use.count_dropped(registry, wanting);
            return None;
        };
        let kept = Kept { scope: Arc::downgrade(&scope), gone: Arc::clone(&gone) };
        made.insert(key, Made { scope: Arc::clone(&scope) as Arc<dyn Any + Send + Sync>, gone });
        Some((scope, kept))
    }

    /// How many names there may be in the process.
    pub fn most_on_use(&self) -> usize {
        let configured = self.view.borrow().runtime.integer(MOST_KEY);
        configured.map_or(DEFAULT_MOST, |most| usize::try_from(most).unwrap_or(usize::MAX))
    }
}

/// Runtime key: how many scopes requests may bring about.
const MOST_KEY: &str = "outrigger.stats.max_on_use";
/// Unless the runtime says more.
const DEFAULT_MOST: usize = 32_768;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Process;

    scope! {
        struct Sample { requests: Counter }
    }

    #[test]
    fn an_instance_is_found_again_until_it_is_gone() {
        let worker = Worker::new(0, Arc::new(Process::default()));
        let find = || worker.scope_on_use::<Sample>(Wanting::Fault, "a.").unwrap().0;
        let (_, kept) = worker.scope_on_use::<Sample>(Wanting::Fault, "a.").unwrap();
        assert!(Arc::ptr_eq(&find(), &kept.get().unwrap()));
        worker.process.stats.evict();
        assert_eq!(worker.process.stats.evict(), 1);
        // Nobody counts there any more, and a new one takes its place even before the sweep.
        assert!(kept.get().is_none());
        let new = find();
        new.requests.increment();
        worker.on_use.sweep();
        assert!(Arc::ptr_eq(&find(), &new));
        drop(new);
        worker.process.stats.evict();
        worker.process.stats.evict();
        worker.on_use.sweep();
        assert!(worker.on_use.made.borrow().is_empty());
    }
}
