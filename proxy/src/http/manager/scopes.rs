//! The routes of a request where they depend on its scope.
//!
//! Owns finding them, and saying what is missing where they are discovered on demand. Never discovers anything (see
//! `graph::scopes`).

use std::sync::Arc;

use outrigger_config::http::{KeyFragment, RouteSource};
use outrigger_policy::route::{RequestView, RouteTable, ScopeKey};

use super::HttpConnection;
use crate::graph::{Graph, Routes, ScopePlace, ScopeTarget, Wanted};
use crate::http::message::RequestHead;

impl HttpConnection {
    /// The routes for a request with this head; `None` if it has no scope, or they have not been discovered.
    pub fn routes<'a>(&'a self, graph: &'a Graph, head: &RequestHead) -> Option<&'a Arc<RouteTable>> {
        match &self.node.routes {
            Routes::Inline(table) => Some(table),
            Routes::Discovered(name) => graph.routes.get(name),
            Routes::Scoped(place) => match self.scope(place, graph, &self.scope_key(head)?)? {
                ScopeTarget::Inline(table) => Some(table),
                ScopeTarget::Discovered(name) => graph.routes.get(name),
            },
        }
    }

    /// What a request without a route may wait for.
    pub fn missing(&self, graph: &Graph, head: &RequestHead) -> Option<Wanted> {
        if let Some(table) = self.routes(graph, head) {
            let routes = table.configuration();
            return routes.more_virtual_hosts.is_some().then(|| Wanted::VirtualHost {
                routes: Arc::clone(&routes.name),
                host: head.host().to_ascii_lowercase(),
            });
        }
        let Routes::Scoped(place @ ScopePlace::Discovered(source)) = &self.node.routes else { return None };
        let key = self.scope_key(head)?;
        self.scope(place, graph, &key)?;
        Some(Wanted::Scope { source: Arc::clone(source), key })
    }

    fn scope_key(&self, head: &RequestHead) -> Option<ScopeKey> {
        let fragments: &[KeyFragment] = match &self.node.config.routes {
            RouteSource::Scoped(scoped) => &scoped.key,
            RouteSource::Inline(_) | RouteSource::Rds { .. } => &[],
        };
        ScopeKey::of_request(fragments, head)
    }

    fn scope<'a>(&'a self, place: &'a ScopePlace, graph: &'a Graph, key: &ScopeKey) -> Option<&'a ScopeTarget> {
        match place {
            ScopePlace::Inline(table) => table.find(key),
            ScopePlace::Discovered(source) => graph.scopes.get(source)?.find(key),
        }
    }
}
