//! Keys of token issuers that are fetched from servers, for the filters of all workers.
//!
//! Owns which key sets are wanted, and the tasks that fetch them on the control thread. Never verifies anything.

mod fetch;
mod remote;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use outrigger_config::http::filters::{JwtAuthn, RemoteJwks};
use tokio::sync::Notify;

pub use remote::{Attempt, RemoteKeys};

use crate::process::Process;
use crate::scope;
use crate::stats::names;

scope! {
    /// What is counted of fetches, among the stats of the filter that wants the keys.
    pub struct FetchStats {
        jwks_fetch_failed: Counter,
        jwks_fetch_success: Counter,
    }
}

/// Where the stats of an authentication filter stand, if those of its connection manager begin with `manager`.
pub fn stat_prefix(manager: &str, settings: &JwtAuthn) -> String {
    let prefix = format!("{manager}jwt_authn.");
    if settings.stat_prefix.is_empty() {
        prefix
    } else {
        names::prefix(prefix.trim_end_matches('.'), &settings.stat_prefix)
    }
}

/// All key sets that somebody wants, each once.
#[derive(Default)]
pub struct JwksStore {
    /// The lock is held for a look or an insertion, when filters are made; never for I/O.
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    known: HashMap<(Arc<str>, Arc<RemoteJwks>), Weak<RemoteKeys>>,
    /// Nobody fetches them yet.
    new: Vec<Arc<RemoteKeys>>,
}

impl JwksStore {
    /// The key set of a filter whose stats have `stat_prefix`, which lives as long as somebody holds it.
    pub fn get(&self, stat_prefix: &Arc<str>, settings: &Arc<RemoteJwks>) -> Arc<RemoteKeys> {
        let mut state = self.lock();
        let key = (Arc::clone(stat_prefix), Arc::clone(settings));
        if let Some(keys) = state.known.get(&key).and_then(Weak::upgrade) {
            return keys;
        }
        state.known.retain(|_, keys| keys.strong_count() > 0);
        let keys = Arc::new(RemoteKeys::new(Arc::clone(stat_prefix), Arc::clone(settings)));
        state.known.insert(key, Arc::downgrade(&keys));
        state.new.push(Arc::clone(&keys));
        self.wake.notify_one();
        keys
    }

    /// Fetches what is wanted, for ever. For the control thread, once.
    pub async fn run(process: Arc<Process>) {
        loop {
            let new = std::mem::take(&mut process.jwks.lock().new);
            for keys in new {
                let stats: Arc<FetchStats> = process.stats.scope(keys.stat_prefix());
                let (weak, wake) = (Arc::downgrade(&keys), keys.wake());
                tokio::task::spawn_local(remote::look_after(weak, wake, Arc::clone(&process), stats));
            }
            process.jwks.wake.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_same_settings_share_keys_while_somebody_holds_them() {
        let store = JwksStore::default();
        let settings = |cluster: &str| {
            Arc::new(RemoteJwks {
                authority: "issuer".into(),
                path: "/".into(),
                cluster: cluster.into(),
                timeout: Duration::from_secs(1),
                cache_duration: Duration::from_secs(1),
                in_background: None,
                retries: None,
            })
        };
        let one = store.get(&"a.".into(), &settings("c"));
        assert!(Arc::ptr_eq(&one, &store.get(&"a.".into(), &settings("c"))));
        assert!(!Arc::ptr_eq(&one, &store.get(&"a.".into(), &settings("d"))));
        assert!(!Arc::ptr_eq(&one, &store.get(&"b.".into(), &settings("c"))));
        store.lock().new.clear();
        drop(one);
        store.get(&"a.".into(), &settings("e"));
        assert_eq!(store.lock().known.len(), 1);
    }
}
