//! Connections that are made before a request needs them (`Cluster.preconnect_policy`).
//!
//! Owns how many, and at which endpoints. Never chooses the endpoint of a request (see `choice`), and never takes a
//! connection from a pool.

use std::rc::Rc;

use outrigger_config::cluster::{Preconnect, UpstreamProtocol};
use outrigger_policy::balance::Health;

use super::clusters::WorkerCluster;
use super::connect::{self, Claim};
use super::host::Host;
use super::pool::{self, Opened, Wanted};
use super::worker_host::WorkerHost;
use crate::worker::Worker;

/// Connections that one request may have made, its own included.
const MOST_AT_ONCE: u32 = 3;

/// Makes what is missing as a request begins, which is counted among those of `host` by now. `has_connection` says that it
/// found one there. For clusters whose connections are all alike; those that are made for somebody cannot be made in
/// advance.
pub fn preconnect(
    worker: &Rc<Worker>,
    cluster: &Rc<WorkerCluster>,
    host: &Rc<WorkerHost>,
    wanted: Wanted<'_>,
    has_connection: bool,
) {
    let Some(policy) = host.node.config.preconnect.as_deref() else { return };
    if !wanted.fit(host).is_plain() {
        return;
    }
    let protocol = pool::protocol(host, wanted);
    let has_connection = has_connection || host.has_free_spare();
    let streams = match protocol {
        UpstreamProtocol::Http2 => host.node.config.http.http2.max_concurrent_streams.max(1),
        _ => 1,
    };
    let spare = Wanted { host: "", alpn: None, connection: None, objects: None, ..wanted };
    let maker = Maker { worker, cluster, wanted: spare, protocol, streams };
    if policy.predictive > 1.0 {
        maker.for_next_requests(policy, host, has_connection);
    }
    if policy.per_upstream > 1.0 {
        maker.for_endpoint(policy, host, has_connection);
    }
}

struct Maker<'a> {
    worker: &'a Rc<Worker>,
    cluster: &'a Rc<WorkerCluster>,
    wanted: Wanted<'a>,
    protocol: UpstreamProtocol,
    /// Requests that a connection takes at the same time.
    streams: u32,
}

impl Maker<'_> {
    /// Connections at the endpoints whose turn comes next, until the cluster has as many as its requests, times the ratio.
    fn for_next_requests(&self, policy: &Preconnect, host: &Rc<WorkerHost>, has_connection: bool) {
        let stats = &self.cluster.stats;
        // Those that have a connection, those that wait for one, and the one at hand.
        let requests = (1 + stats.upstream_rq_active.value() + stats.upstream_rq_pending_active.value()).max(0) as f64;
        let mut provided = stats.upstream_cx_active.value().max(0) as f64 * f64::from(self.streams);
        let mut has_connection = has_connection;
        for _ in 0..MOST_AT_ONCE {
            if requests * policy.predictive <= provided {
                return;
            }
            let Some(next) = self.cluster.foresee(self.worker) else { return };
            if !has_connection && Rc::ptr_eq(&next, host) {
                // The request makes its own in a moment.
                has_connection = true;
            } else {
                let begun = u32::from(!Rc::ptr_eq(&next, host));
                if !self.lacks(&next, next.active.get() + begun, policy.predictive, 0) || !self.make(policy, &next) {
                    return;
                }
            }
            provided += f64::from(self.streams);
        }
    }

    /// Connections to the endpoint, until it has as many as its requests, times the ratio.
    fn for_endpoint(&self, policy: &Preconnect, host: &Rc<WorkerHost>, has_connection: bool) {
        let own = u32::from(!has_connection);
        for _ in own..MOST_AT_ONCE {
            if !self.lacks(host, host.active.get(), policy.per_upstream, own) || !self.make(policy, host) {
                return;
            }
        }
    }

    /// Whether an endpoint has less than `requests` times the ratio; `coming` connections are not counted yet.
    fn lacks(&self, host: &WorkerHost, requests: u32, ratio: f64, coming: u32) -> bool {
        let provided = f64::from(host.connections.get() + coming) * f64::from(self.streams);
        f64::from(requests) * ratio > provided
    }

    /// Begins one connection. Whether it has, and there may be another one.
    fn make(&self, policy: &Preconnect, host: &Rc<WorkerHost>) -> bool {
        let Host { health, shared, preconnect, .. } = &*host.host;
        if shared.flags.health(*health) != Health::Healthy || host.retired.get() {
            return false;
        }
        if !preconnect && policy.only.is_some() {
            self.cluster.stats.upstream_cx_preconnect_skipped.increment();
            return false;
        }
        let multiplexed = self.protocol != UpstreamProtocol::Http1;
        if multiplexed && host.connecting.get() {
            return false;
        }
        let Ok(counted) = connect::take_place(self.cluster, host, self.wanted.priority, Claim::Spare) else {
            return false;
        };
        let (worker, host, protocol) = (Rc::clone(self.worker), Rc::clone(host), self.protocol);
        let Wanted { priority, downstream, upgrade, .. } = self.wanted;
        tokio::task::spawn_local(async move {
            // Only now: the request on whose account it is made looks for one at once, and makes its own.
            let spare = Spare::new(&host);
            let wanted =
                Wanted { priority, downstream, upgrade, host: "", alpn: None, connection: None, objects: None };
            // Whoever needs a connection finds out by itself why there is none.
            if let Ok(Opened::Http1(connection)) = pool::open(&worker, &host, counted, protocol, wanted).await
                && !host.retired.get()
                && !connection.is_wanted_elsewhere()
            {
                host.idle.borrow_mut().insert(0, *connection);
                host.released.notify_one();
            }
            drop(spare);
        });
        true
    }
}

/// A connection that is being made, as long as that takes.
struct Spare(Rc<WorkerHost>);

impl Spare {
    fn new(host: &Rc<WorkerHost>) -> Self {
        host.spares.set(host.spares.get() + 1);
        Self(Rc::clone(host))
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.0.spares.set(self.0.spares.get().saturating_sub(1));
        self.0.connected.notify_waiters();
    }
}

/// A request that waits for a connection that is being made, instead of making another one.
struct Taken<'a>(&'a WorkerHost);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.spares_taken.set(self.0.spares_taken.get().saturating_sub(1));
    }
}

/// Waits until one of the connections that are being made is there, or failed, or another one is free again.
pub(super) async fn spare(host: &WorkerHost) {
    host.spares_taken.set(host.spares_taken.get() + 1);
    let _taken = Taken(host);
    tokio::select! {
        biased;
        () = host.connected.notified() => {}
        () = host.released.notified() => {}
    }
}
