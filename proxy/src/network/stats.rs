//! Stats of network filters.
//!
//! Owns each worker's instances, found by their prefix. Never counts.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::rbac::{RbacStats, ShadowStats};
use crate::scope;
use crate::stats::{Registry, Scope};

scope! {
    /// Stats of external authorization (`ext_authz.<prefix>.*`).
    pub struct AuthzStats {
        active: Gauge,
        cx_closed: Counter,
        denied: Counter,
        disabled: Counter,
        error: Counter,
        failure_mode_allowed: Counter,
        ok: Counter,
        total: Counter,
    }
}

scope! {
    /// Stats of a limit kept by a service (`ratelimit.<prefix>.*`).
    pub struct GlobalRateStats {
        active: Gauge,
        cx_closed: Counter,
        error: Counter,
        failure_mode_allowed: Counter,
        ok: Counter,
        over_limit: Counter,
        total: Counter,
    }
}

scope! {
    /// Stats of a connection limit (`connection_limit.<prefix>.*`).
    pub struct LimitStats { active_connections: Gauge, limited_connections: Counter }
}

scope! {
    /// Stats of a rate limit (`local_rate_limit.<prefix>.*`).
    pub struct RateStats { rate_limited: Counter }
}

/// One worker's stats of network filters.
#[derive(Default)]
pub struct NetworkStats {
    pub(super) authz: Scopes<AuthzStats>,
    pub(super) global_rate: Scopes<GlobalRateStats>,
    pub(super) rbac: Scopes<RbacStats>,
    pub(super) shadow: Scopes<ShadowStats>,
    pub(super) limit: Scopes<LimitStats>,
    pub(super) rate: Scopes<RateStats>,
}

/// Instances of one kind by prefix.
pub(super) struct Scopes<S>(RefCell<HashMap<Arc<str>, Arc<S>>>);

impl<S> Default for Scopes<S> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<S: Scope + Default> Scopes<S> {
    /// The instance of a prefix, which ends in a dot.
    pub fn get(&self, registry: &Registry, prefix: &Arc<str>) -> Arc<S> {
        let make = || registry.scope(prefix);
        Arc::clone(self.0.borrow_mut().entry(Arc::clone(prefix)).or_insert_with(make))
    }
}
