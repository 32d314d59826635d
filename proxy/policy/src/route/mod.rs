//! Which route a request gets (`RouteConfiguration`).
//!
//! Owns the compiled table and the order in which virtual hosts and routes are asked. Never changes requests; what an
//! action does to a path is in [`rewrite_path`] and [`redirect_location`].

mod domains;
mod explain;
mod internal_redirect;
mod matches;
mod paths;
mod rewrite;
mod scope;

use std::sync::Arc;

use outrigger_config::matcher::Matcher;
use outrigger_config::route::{Route, RouteConfiguration, StreamMatch, VirtualHost};
use outrigger_config::units::{Fraction, RuntimeFraction};

use domains::DomainIndex;
pub use explain::{Explained, Miss};
pub use internal_redirect::{RedirectHistory, RedirectRefusal, RedirectTarget};
pub use matches::{Mismatch, header_matches, request_header_matches, rule_matches};
use paths::PathIndex;
pub use rewrite::{pick_weighted, redirect_location, rewrite_path, rewrite_path_by_regex};
pub use scope::{ScopeKey, ScopeTable};

/// What route matching asks of a request.
pub trait RequestView {
    /// The host with its port, if it has one.
    fn host(&self) -> &str;
    /// The path with its query; empty for CONNECT requests that have none.
    fn path(&self) -> &str;
    /// Such as `GET`.
    fn method(&self) -> &str;
    /// The values of a header by its lower-case name, one for each time it stands in the request. `:method`, `:path`,
    /// `:authority` and `host` are never asked for; other pseudo headers are.
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]>;
    /// POST with a content type of gRPC.
    fn is_grpc(&self) -> bool;
    /// Whether the connection and what filters left are as wanted. Where they are not known, they are not.
    fn stream_matches(&self, _wanted: &StreamMatch) -> bool {
        false
    }
    /// Where a match tree leads with this request, if there is such a place.
    fn find<'t, A>(&self, _tree: &'t Matcher<A>) -> Option<&'t A> {
        None
    }
}

/// What decisions ask of the runtime.
pub trait RuntimeView {
    /// The value of a key as a fraction; whole numbers are in percent.
    fn fraction(&self, key: &str) -> Option<Fraction>;
}

/// A runtime without any values.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRuntime;

impl RuntimeView for NoRuntime {
    fn fraction(&self, _key: &str) -> Option<Fraction> {
        None
    }
}

/// Whether `fraction`, or what the runtime has in its place, holds for an evenly distributed `random`.
pub fn fraction_holds(fraction: &RuntimeFraction, random: u64, runtime: &dyn RuntimeView) -> bool {
    let overridden = if fraction.runtime_key.is_empty() { None } else { runtime.fraction(&fraction.runtime_key) };
    overridden.unwrap_or(fraction.default).holds(random)
}

/// A route configuration, indexed.
#[derive(Debug)]
pub struct RouteTable {
    configuration: Arc<RouteConfiguration>,
    domains: DomainIndex,
    /// One for each virtual host.
    paths: Box<[PathIndex]>,
}

/// The route of a request and the virtual host that it stands in.
#[derive(Clone, Copy, Debug)]
pub struct RouteMatch<'a> {
    /// Chosen by the host.
    pub virtual_host: &'a Arc<VirtualHost>,
    /// The first of its routes that matches.
    pub route: &'a Arc<Route>,
}

/// Why a request has no route. Both are answered with 404.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoRoute {
    /// No domain takes the host.
    #[error("no virtual host has a domain for the request's host")]
    NoVirtualHost,
    /// The host's virtual host takes it, but none of its routes.
    #[error("no route of virtual host {} matches the request", .0.name)]
    NoRoute(Arc<VirtualHost>),
}

impl RouteTable {
    /// Indexes a route configuration.
    pub fn build(configuration: Arc<RouteConfiguration>) -> Self {
        let domains = DomainIndex::build(configuration.virtual_hosts.iter().map(|host| host.domains.as_slice()));
        let paths = configuration.virtual_hosts.iter().map(|host| PathIndex::build(&host.routes)).collect();
        Self { configuration, domains, paths }
    }

    /// What the table was built from.
    pub fn configuration(&self) -> &Arc<RouteConfiguration> {
        &self.configuration
    }

    /// The first route that matches in the virtual host with the most specific domain. `random` decides routes that
    /// take a share of requests only.
    pub fn find(
        &self,
        request: &impl RequestView,
        random: u64,
        runtime: &dyn RuntimeView,
    ) -> Result<RouteMatch<'_>, NoRoute> {
        let index = self.domains.find(self.matched_host(request)).ok_or(NoRoute::NoVirtualHost)?;
        let virtual_host = &self.configuration.virtual_hosts[index];
        self.first_in(index, request, random, runtime)
            .map(|route| RouteMatch { virtual_host, route: &virtual_host.routes[route] })
            .ok_or_else(|| NoRoute::NoRoute(Arc::clone(virtual_host)))
    }

    /// The host that domains are compared with.
    fn matched_host<'r>(&'r self, request: &'r impl RequestView) -> &'r str {
        let host = match &self.configuration.host_header {
            None => request.host(),
            Some(name) => {
                request.header(name).next().and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default()
            }
        };
        if self.configuration.ignore_port_in_host_matching { without_port(host) } else { host }
    }

    /// The path and the query that routes are compared with.
    fn matched_path<'r>(&self, request: &'r impl RequestView) -> (&'r str, &'r str) {
        let (path, query) = split_path(request.path());
        match self.configuration.ignore_path_parameters {
            false => (path, query),
            true => (path.split(';').next().unwrap_or_default(), query),
        }
    }

    /// The first route of a virtual host that matches.
    fn first_in(
        &self,
        index: usize,
        request: &impl RequestView,
        random: u64,
        runtime: &dyn RuntimeView,
    ) -> Option<usize> {
        let virtual_host = &self.configuration.virtual_hosts[index];
        let (path, query) = self.matched_path(request);
        let accepts = |route: usize| {
            let criteria = &virtual_host.routes[route].matches;
            matches::first_mismatch(criteria, request, path, query, random, runtime).is_none()
        };
        match &virtual_host.matcher {
            None => self.paths[index].first(path, accepts),
            Some(tree) => request.find(tree).and_then(|routes| routes.iter().copied().find(|route| accepts(*route))),
        }
    }
}

/// The path without query and fragment, and the query without `?` and fragment.
pub(crate) fn split_path(path: &str) -> (&str, &str) {
    let end = path.find(['?', '#']).unwrap_or(path.len());
    let query = path[end..].strip_prefix('?').unwrap_or("");
    (&path[..end], query.split_once('#').map_or(query, |(query, _)| query))
}

/// Where the port (with its colon) begins in a host, if it has one.
fn port_start(host: &str) -> Option<usize> {
    let colon = host.rfind(':')?;
    // IPv6 addresses stand in brackets; a colon before the closing one is part of the address.
    host.rfind(']').is_none_or(|bracket| bracket < colon).then_some(colon)
}

fn without_port(host: &str) -> &str {
    match port_start(host) {
        Some(colon) if host[colon + 1..].parse::<u32>().is_ok() => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
