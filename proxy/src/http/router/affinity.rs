//! What a request says about the endpoint it wants.
//!
//! Owns its hash, the cookies that clients without one are given, the subset it asks for and the endpoints it names.
//! Never picks an endpoint.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Write;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::cluster::{Discovery, LbMetadata, OverrideHosts, OverrideSource};
use outrigger_config::route::{Forward, HashCookie, WeightedCluster};
use outrigger_policy::balance::{HashView, HostSet, Wanted, request_hash, xx_hash};
use outrigger_policy::route::RequestView;

use crate::graph::ClusterNode;
use crate::http::manager::client_address::client_address;
use crate::http::manager::request::Request;
use crate::upstream::clusters::WorkerCluster;
use crate::upstream::worker_host::WorkerHost;

/// The endpoint that a request wants, the same for all its tries.
#[derive(Debug, Default)]
pub struct Affinity {
    hash: Option<u64>,
    metadata: Option<Arc<LbMetadata>>,
    /// Addresses of endpoints that the request names, which are tried in this order before the policy chooses.
    named: Option<Box<Named>>,
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
            let of_policy = &node.config.balancing.hash_policy;
            let of_cluster = node.config.requests.as_deref().map(|policies| &policies.hash);
            let levels = [Some(of_policy), of_cluster].into_iter().flatten();
            let policies = levels.into_iter().find(|policies| !policies.is_empty()).unwrap_or(&action.hash_policy);
            affinity.hash = request_hash(policies, &View(request), |cookie| {
                let value = cookie_value(request);
                affinity.cookies.push(set_cookie(cookie, &value));
                value
            });
        }
        affinity.named =
            node.config.balancing.override_hosts.as_ref().map(|options| Box::new(Named::of(request, options)));
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

    /// The next of the endpoints that the request names, if the cluster has it.
    pub fn named(&self, cluster: &WorkerCluster) -> Option<Rc<WorkerHost>> {
        self.named.as_ref()?.next(cluster)
    }

    /// Tells which endpoint was chosen, where the policy says so.
    pub fn tell(&self, request: &Request<'_>, host: &WorkerHost) {
        if let Some(selected) = self.named.as_ref().and_then(|named| named.options.selected.as_ref()) {
            let mut namespaces = request.info.dynamic_metadata.borrow_mut();
            let namespace = namespaces.entry(selected.namespace.to_string()).or_default();
            set_path(namespace, &selected.keys, host.host.address.to_string());
        }
    }

    /// Gives the client its cookies.
    pub fn response(&self, request: &mut Request<'_>) {
        for cookie in &self.cookies {
            request.response.headers.append(b"set-cookie", cookie.as_bytes());
        }
    }
}

/// Endpoints that a request names. Source: `envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost`.
#[derive(Debug)]
struct Named {
    options: Arc<OverrideHosts>,
    addresses: Vec<String>,
    next: Cell<usize>,
}

impl Named {
    fn of(request: &Request<'_>, options: &Arc<OverrideHosts>) -> Self {
        let mut addresses = Vec::new();
        let mut add = |list: &str| {
            addresses.extend(list.split(',').map(str::trim).filter(|address| !address.is_empty()).map(str::to_owned));
        };
        for source in &options.sources {
            match source {
                OverrideSource::Header(name) => {
                    let first = request.head.headers.get_by_name(name);
                    if let Some(list) = first.and_then(|value| std::str::from_utf8(value).ok()) {
                        add(list);
                    }
                }
                OverrideSource::Metadata(path) => {
                    let namespaces = request.info.dynamic_metadata.borrow();
                    if let Some(list) = namespaces.get(&*path.namespace).and_then(|map| at_path(map, &path.keys)) {
                        add(list);
                    }
                }
            }
        }
        Self { options: Arc::clone(options), addresses, next: Cell::new(0) }
    }

    fn next(&self, cluster: &WorkerCluster) -> Option<Rc<WorkerHost>> {
        while let Some(address) = self.addresses.get(self.next.get()) {
            self.next.set(self.next.get() + 1);
            if let Some(host) = cluster.named(address) {
                return Some(host);
            }
        }
        None
    }
}

type Metadata = serde_json::Map<String, serde_json::Value>;

fn at_path<'a>(map: &'a Metadata, keys: &[Arc<str>]) -> Option<&'a str> {
    let (last, outer) = keys.split_last()?;
    let map = outer.iter().try_fold(map, |map, key| map.get(&**key)?.as_object())?;
    map.get(&**last)?.as_str()
}

fn set_path(map: &mut Metadata, keys: &[Arc<str>], value: String) {
    match keys {
        [] => {}
        [last] => {
            map.insert(last.to_string(), value.into());
        }
        [first, rest @ ..] => {
            let inner = map.entry(first.to_string()).or_insert_with(|| Metadata::new().into());
            if !inner.is_object() {
                *inner = Metadata::new().into();
            }
            if let Some(inner) = inner.as_object_mut() {
                set_path(inner, rest, value);
            }
        }
    }
}

/// The hash that the policies of a route make of a request, if any does. A client without a cookie is given one later,
/// and counts as nobody's until it comes back with it.
pub fn route_hash(request: &Request<'_>, action: &Forward) -> Option<u64> {
    let chance = || request.connection.worker.random.next().to_string();
    request_hash(&action.hash_policy, &View(request), |_| chance())
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
        client_address(self.0.connection, &self.0.info)
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
    fn metadata_is_found_and_set_where_a_path_leads() {
        let path: Vec<Arc<str>> = vec!["a".into(), "b".into()];
        let mut map = Metadata::new();
        assert_eq!(at_path(&map, &path), None);
        map.insert("a".into(), "in the way".into());
        map.insert("c".into(), 1.into());
        set_path(&mut map, &path, "10.0.0.1:80".into());
        assert_eq!(at_path(&map, &path), Some("10.0.0.1:80"));
        assert_eq!(map.get("c"), Some(&1.into()));
    }

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
