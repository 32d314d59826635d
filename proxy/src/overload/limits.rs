//! How many downstream connections there may be: in the process, and at a listener.
//!
//! Owns the counts by listener, which all workers share, and the exact taking of places. Never accepts or closes anything.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::graph::RuntimeSnapshot;
use crate::process::Process;

/// Downstream connections by the name of their listener. The lock is taken when a worker first meets a listener.
#[derive(Debug, Default)]
pub struct ConnectionCounts(Mutex<HashMap<Arc<str>, Arc<AtomicU64>>>);

impl ConnectionCounts {
    /// The count of a listener.
    pub fn of(&self, listener: &Arc<str>) -> Arc<AtomicU64> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(counts.entry(Arc::clone(listener)).or_default())
    }
}

/// Takes a place where there may be `limit`; false when all are taken.
pub fn take_place(count: &AtomicU64, limit: Option<u64>) -> bool {
    let within = |count: u64| limit.is_none_or(|limit| count < limit).then_some(count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok()
}

/// How many there may be in the process: the monitor of connections says it, or else the runtime.
pub fn of_process(process: &Process, runtime: &RuntimeSnapshot) -> Option<u64> {
    process.max_downstream_connections.or_else(|| runtime.integer("overload.global_downstream_max_connections"))
}

/// How many there may be at a listener.
pub fn of_listener(name: &str, runtime: &RuntimeSnapshot) -> Option<u64> {
    // Most processes have no such key, and should not make its name for each connection.
    if runtime.values.is_empty() {
        return None;
    }
    runtime.integer(&format!("envoy.resource_limits.listener.{name}.connection_limit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_has_one_count_and_no_more_places_than_its_limit() {
        let counts = ConnectionCounts::default();
        let (web, other): (Arc<str>, Arc<str>) = ("web".into(), "other".into());
        assert!(take_place(&counts.of(&web), Some(2)));
        assert!(take_place(&counts.of(&web), Some(2)));
        assert!(!take_place(&counts.of(&web), Some(2)));
        assert!(take_place(&counts.of(&other), Some(2)));
        assert!(take_place(&counts.of(&web), None));
        assert_eq!(counts.of(&web).load(Ordering::Relaxed), 3);
    }
}
