//! What a request says about the endpoint it wants.
//!
//! Owns its hash, the cookies that clients without one are given, and the subset it asks for. Never picks an endpoint.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_config::cluster::{Discovery, LbMetadata};
use outrigger_config::route::{Forward, HashCookie, WeightedCluster};
use outrigger_policy::balance::{HashView, HostSet, Wanted, request_hash, xx_hash};
use outrigger_policy::route::RequestView;

use crate::graph::ClusterNode;
use crate::http::manager::normalize;
use crate::http::manager::request::Request;

/// The endpoint that a request wants, the same for all its tries.
#[derive(Debug, Default)]
pub struct Affinity {
    hash: Option<u64>,
    metadata: Option<Arc<LbMetadata>>,
    /// Values of `set-cookie`.
    cookies: Vec<String>,
}

impl Affinity {
    /// Reads what the cluster's policy asks for, from the request as it came.
    pub fn of(request: &Request<'_>, action: &Forward, weighted: Option<&WeightedCluster>, node: &ClusterNode) -> Self {
        let mut affinity = Self::default();
        // An aggregate cluster does not know which of its members will choose, and how.
        let aggregate = matches!(node.config.discovery, Discovery::Aggregate(_));
        let balance = node.hosts.balance.as_deref();
        if balance.map_or(aggregate, HostSet::wants_hash) {
            let of_cluster = &node.config.balancing.hash_policy;
            let policies = if of_cluster.is_empty() { &action.hash_policy } else { of_cluster };
            affinity.hash = request_hash(policies, &View(request), |cookie| {
                let value = cookie_value(request);
                affinity.cookies.push(set_cookie(cookie, &value));
                value
            });
        }
        if balance.map_or(aggregate, HostSet::wants_metadata) {
            let configured = match weighted {
                Some(weighted) => &weighted.metadata_match,
                None => &action.metadata_match,
            };
            affinity.metadata = with_dynamic(request, configured.as_ref());
        }
        affinity
    }

    /// For the balancer.
    pub fn wanted(&self) -> Wanted<'_> {
        Wanted { hash: self.hash, metadata: self.metadata.as_deref(), ..Wanted::default() }
    }

    /// Gives the client its cookies.
    pub fn response(&self, request: &mut Request<'_>) {
        for cookie in &self.cookies {
            request.response.headers.append(b"set-cookie", cookie.as_bytes());
        }
    }
}

/// What filters say of the wanted endpoint is added to what the route says.
fn with_dynamic(request: &Request<'_>, configured: Option<&Arc<LbMetadata>>) -> Option<Arc<LbMetadata>> {
    const NAMESPACE: &str = "envoy.lb";
    let mut metadata = configured.cloned();
    for namespaces in [&request.connection.info.dynamic_metadata, &request.info.dynamic_metadata] {
        if let Some(dynamic) = namespaces.borrow().get(NAMESPACE) {
            let dynamic = LbMetadata::from(dynamic);
            metadata =
                Some(Arc::new(metadata.as_deref().map_or_else(|| dynamic.clone(), |known| known.merged(&dynamic))));
        }
    }
    metadata
}

/// The same for all requests of a connection, so that those which are under way together agree.
fn cookie_value(request: &Request<'_>) -> String {
    let info = &request.connection.info;
    let ends = format!("{}{}", info.remote, info.local);
    format!("{:016x}", xx_hash(ends.as_bytes()))
}

/// The value of `set-cookie`.
pub fn set_cookie(cookie: &HashCookie, value: &str) -> String {
    let HashCookie { name, ttl, path, attributes } = cookie;
    let mut text = format!("{name}=\"{value}\"");
    // Writing to a string does not fail.
    if let Some(ttl) = ttl.filter(|ttl| !ttl.is_zero()) {
        let _ = write!(text, "; Max-Age={}", ttl.as_secs());
    }
    if let Some(path) = path {
        let _ = write!(text, "; Path={path}");
    }
    for (name, value) in attributes {
        let _ = if value.is_empty() { write!(text, "; {name}") } else { write!(text, "; {name}={value}") };
    }
    text.push_str("; HttpOnly");
    text
}

struct View<'a, 'r>(&'a Request<'r>);

impl HashView for View<'_, '_> {
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let head = &self.0.head;
        let pseudo = match name {
            ":path" => head.path(),
            ":authority" | "host" => head.authority(),
            ":method" => head.method(),
            _ => b"",
        };
        let pseudo = (!pseudo.is_empty()).then_some(pseudo);
        pseudo.into_iter().chain(RequestView::header(head, name))
    }

    fn path(&self) -> &str {
        self.0.head.path_str()
    }

    fn source_ip(&self) -> Option<IpAddr> {
        normalize::client_address(self.0.connection, &self.0.head)
    }

    fn filter_state(&self, key: &str) -> Option<Cow<'_, [u8]>> {
        let own = self.0.info.filter_state.borrow().get(key).cloned();
        let value = own.or_else(|| self.0.connection.info.filter_state.borrow().get(key).cloned())?;
        Some(Cow::Owned(value.into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn cookies_say_what_the_policy_says() {
        let mut cookie = HashCookie { name: "c".into(), ttl: Some(Duration::ZERO), path: None, attributes: Vec::new() };
        assert_eq!(set_cookie(&cookie, "1f"), "c=\"1f\"; HttpOnly");
        cookie.ttl = Some(Duration::from_secs(60));
        cookie.path = Some("/a".to_owned());
        cookie.attributes = vec![("SameSite".to_owned(), "Strict".to_owned()), ("Secure".to_owned(), String::new())];
        assert_eq!(set_cookie(&cookie, "1f"), "c=\"1f\"; Max-Age=60; Path=/a; SameSite=Strict; Secure; HttpOnly");
    }
}
