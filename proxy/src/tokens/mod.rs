//! Tokens of this workload, which authorization servers give (RFC 6749 section 4.4), for the filters of all workers.
//!
//! Owns which tokens are wanted, and the tasks that fetch them on the control thread. Never puts one into a request.

mod remote;
mod request;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use outrigger_config::http::filters::ClientToken;
use tokio::sync::Notify;

pub use remote::RemoteToken;

use crate::process::Process;
use crate::scope;
use crate::stats::names;

scope! {
    /// Stats of fetches (`<prefix>credential_injector.oauth2.*`).
    pub struct TokenStats {
        token_fetch_failed_on_bad_response_code: Counter,
        token_fetch_failed_on_bad_token: Counter,
        token_fetch_failed_on_client_secret: Counter,
        token_fetch_failed_on_cluster_not_found: Counter,
        token_fetch_failed_on_stream_reset: Counter,
        token_fetched: Counter,
        token_requested: Counter,
    }
}

/// Where the stats of a filter's token stand, whose own begin with `prefix`.
pub fn stat_prefix(prefix: &str) -> String {
    format!("{prefix}credential_injector.oauth2.")
}

/// What the stats of filters in front of upstreams begin with, if the router of a connection manager has them. As in Envoy,
/// no dot follows.
pub fn upstream_prefix(manager: &str) -> String {
    names::prefix("http", manager).trim_end_matches('.').to_owned()
}

/// All tokens that somebody wants, each once.
#[derive(Default)]
pub struct TokenStore {
    /// The lock is held for a look or an insertion, when filters are made; never for I/O.
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    known: HashMap<(Arc<str>, Arc<ClientToken>), Weak<RemoteToken>>,
    /// Nobody fetches them yet.
    new: Vec<Arc<RemoteToken>>,
}

impl TokenStore {
    /// The token of a filter whose stats about it have `stat_prefix`, which lives as long as somebody holds it.
    pub fn get(&self, stat_prefix: &Arc<str>, settings: &Arc<ClientToken>) -> Arc<RemoteToken> {
        let mut state = self.lock();
        let key = (Arc::clone(stat_prefix), Arc::clone(settings));
        if let Some(token) = state.known.get(&key).and_then(Weak::upgrade) {
            return token;
        }
        state.known.retain(|_, token| token.strong_count() > 0);
        let token = Arc::new(RemoteToken::new(Arc::clone(stat_prefix), Arc::clone(settings)));
        state.known.insert(key, Arc::downgrade(&token));
        state.new.push(Arc::clone(&token));
        self.wake.notify_one();
        token
    }

    /// Fetches what is wanted, for ever. For the control thread, once.
    pub async fn run(process: Arc<Process>) {
        loop {
            let new = std::mem::take(&mut process.tokens.lock().new);
            for token in new {
                let stats: Arc<TokenStats> = process.stats.scope(token.stat_prefix());
                let gone = token.gone();
                let task = remote::look_after(Arc::downgrade(&token), gone, Arc::clone(&process), stats);
                tokio::task::spawn_local(task);
            }
            process.tokens.wake.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
