//! The routes of a request where they depend on its scope.
//!
//! Owns finding them, and saying what is missing where they are discovered on demand. Never discovers anything (see
//! `graph::scopes`).

use std::sync::Arc;

use outrigger_config::http::{KeyFragment, RouteSource};
use outrigger_policy::route::{RequestView, RouteTable, ScopeKey};

use super::HttpConnection;
use crate::graph::{Graph, HttpNode, Routes, ScopePlace, ScopeTarget, Wanted};
use crate::http::message::RequestHead;

impl HttpConnection {
    /// The routes for a request with this head; `None` if it has no scope, or they have not been discovered.
    pub fn routes<'a>(&'a self, graph: &'a Graph, head: &RequestHead) -> Option<&'a Arc<RouteTable>> {
        routes_of(&self.node, graph, head)
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
        let key = scope_key(&self.node, head)?;
        scope(place, graph, &key)?;
        Some(Wanted::Scope { source: Arc::clone(source), key })
    }
}

/// The routes of a connection manager for a request; `None` if they have not been discovered, or there is no scope for it.
pub fn routes_of<'a>(node: &'a HttpNode, graph: &'a Graph, head: &RequestHead) -> Option<&'a Arc<RouteTable>> {
    match &node.routes {
        Routes::Inline(table) => Some(table),
        Routes::Discovered(name) => graph.routes.get(name),
        Routes::Scoped(place) => match scope(place, graph, &scope_key(node, head)?)? {
            ScopeTarget::Inline(table) => Some(table),
            ScopeTarget::Discovered(name) => graph.routes.get(name),
        },
    }
}

fn scope_key(node: &HttpNode, head: &RequestHead) -> Option<ScopeKey> {
    let fragments: &[KeyFragment] = match &node.config.routes {
        RouteSource::Scoped(scoped) => &scoped.key,
        RouteSource::Inline(_) | RouteSource::Rds { .. } => &[],
    };
    ScopeKey::of_request(fragments, head)
}

fn scope<'a>(place: &'a ScopePlace, graph: &'a Graph, key: &ScopeKey) -> Option<&'a ScopeTarget> {
    match place {
        ScopePlace::Inline(table) => table.find(key),
        ScopePlace::Discovered(source) => graph.scopes.get(source)?.find(key),
    }
}
