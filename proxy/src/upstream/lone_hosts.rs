//! Endpoints that the graph does not know: original destinations, and names that dynamic forward proxies have resolved.
//!
//! Owns which of them a worker has, and what all workers share of each. Never resolves a name.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use outrigger_config::address::Address;
use outrigger_policy::transport::{Said, transport_of};

use super::clusters::WorkerCluster;
use super::dns_cache::{CachedName, Resolution};
use super::host::{Host, HostShared};
use super::worker_host::WorkerHost;
use crate::graph::hosts::http_proxy;

/// What such an endpoint is known by in its cluster.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum LoneHost {
    /// An original destination.
    Destination(SocketAddr),
    /// A name with its port.
    Name(Arc<str>, u16),
}

/// What the workers share of the endpoints of one cluster, as long as one of them has the endpoint. Locked when a worker
/// meets an endpoint for the first time, and not for requests.
#[derive(Debug, Default)]
pub struct LoneHosts(Mutex<HashMap<LoneHost, Weak<HostShared>>>);

impl LoneHosts {
    /// The state of an endpoint, made if no worker has it.
    pub fn shared(&self, host: LoneHost) -> Arc<HostShared> {
        // A map of pointers is whole whoever panicked with it.
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = hosts.get(&host).and_then(Weak::upgrade) {
            return shared;
        }
        if hosts.len() == hosts.capacity() {
            // Before the map grows: most of those that are gone may have been the reason.
            hosts.retain(|_, shared| shared.strong_count() > 0);
        }
        let shared = Arc::default();
        hosts.insert(host, Arc::downgrade(&shared));
        shared
    }
}

/// The host that a name is, as long as its addresses stay.
pub(super) struct Forwarded {
    pub(super) name: Arc<CachedName>,
    pub(super) resolution: Arc<Resolution>,
    pub(super) host: Rc<WorkerHost>,
}

impl WorkerCluster {
    /// The endpoint of an original destination, made on first use.
    pub fn destination(&self, address: SocketAddr, now: Instant) -> Rc<WorkerHost> {
        let mut destinations = self.destinations.borrow_mut();
        let make = || {
            let shared = self.node().shared.lone_hosts().shared(LoneHost::Destination(address));
            self.lone_host(Address::Ip(address), Vec::new(), "".into(), shared)
        };
        let host = destinations.entry(address).or_insert_with(make);
        host.last_used.set(Some(now));
        Rc::clone(host)
    }

    /// The endpoint that a resolved name is. `None` if it has no addresses.
    pub fn forwarded(&self, name: &Arc<CachedName>, all_addresses: bool) -> Option<Rc<WorkerHost>> {
        let mut all = self.forwarded.borrow_mut();
        let resolution = name.resolution();
        if let Some(known) = all.get(&Arc::as_ptr(name)).filter(|known| Arc::ptr_eq(&known.resolution, &resolution)) {
            return Some(Rc::clone(&known.host));
        }
        let Resolution::Resolved(addresses) = &*resolution else { return None };
        let mut addresses = addresses.iter().map(|ip| Address::Ip(SocketAddr::new(*ip, name.port)));
        let first = addresses.next()?;
        let more = if all_addresses { addresses.collect() } else { Vec::new() };
        let shared = self.node().shared.lone_hosts().shared(LoneHost::Name(Arc::clone(&name.host), name.port));
        let host = self.lone_host(first, more, Arc::clone(&name.host), shared);
        let made = Forwarded { name: Arc::clone(name), resolution, host: Rc::clone(&host) };
        if let Some(before) = all.insert(Arc::as_ptr(name), made) {
            // Connections to the addresses before serve on, as those of a logical DNS cluster do.
            let mut earlier = std::mem::take(&mut *before.host.earlier.borrow_mut());
            earlier.push(before.host);
            earlier.retain(|host| host.connections.get() > 0);
            *host.earlier.borrow_mut() = earlier;
        }
        Some(host)
    }

    /// An endpoint that the graph does not know.
    fn lone_host(
        &self,
        address: Address,
        more: Vec<Address>,
        name: Arc<str>,
        shared: Arc<HostShared>,
    ) -> Rc<WorkerHost> {
        let node = self.node();
        let transport = transport_of(&node.config, Said::default(), Said::default());
        let host = Host {
            address,
            additional_addresses: more,
            hostname: name,
            weight: 1,
            max_requests: None,
            priority: 0,
            locality: Arc::default(),
            health: outrigger_config::cluster::HealthStatus::Unknown,
            metadata: None,
            transport,
            preconnect: node.config.preconnect.as_ref().is_some_and(|policy| policy.only.is_none()),
            health_check: None,
            passed: None,
            http_proxy: http_proxy(&node.config, transport, None),
            shared,
        };
        WorkerHost::new(Arc::new(host), node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_an_endpoint_as_long_as_one_of_them_has_it() {
        let hosts = LoneHosts::default();
        let name = |port| LoneHost::Name("one.test".into(), port);
        let first = hosts.shared(name(80));
        assert!(Arc::ptr_eq(&first, &hosts.shared(name(80))));
        assert!(!Arc::ptr_eq(&first, &hosts.shared(name(443))));
        let weak = Arc::downgrade(&first);
        drop(first);
        assert!(weak.upgrade().is_none(), "nobody has it any more");
        // What is gone does not stay in the map for good.
        let destinations = (0..1000).map(|port| LoneHost::Destination(([127, 0, 0, 1], port).into()));
        destinations.for_each(|destination| drop(hosts.shared(destination)));
        assert!(hosts.0.lock().unwrap().len() < 100);
    }
}
