//! An endpoint as one worker has it: its pools, and how much it has to do.
//!
//! Owns the connections that wait for requests, and what becomes of them when the endpoint moves, fails or goes. Never opens
//! one (see `pool`), and never picks an endpoint.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::cluster::{Cluster, LoadBalancing, ProxyHeaderSettings};
use tokio::sync::Notify;

use super::cut::Cuts;
use super::feedback::Feedback;
use super::host::{Host, HostStats};
use super::key::ConnectionKey;
use super::{h1, h2};
use crate::graph::ClusterNode;

/// One endpoint on one worker.
pub struct WorkerHost {
    /// The endpoint of the graph.
    pub host: Arc<Host>,
    /// The cluster's configuration that its connections were made for.
    pub node: Arc<ClusterNode>,
    /// This worker's share of its stats.
    pub stats: Arc<HostStats>,
    /// Requests in flight from this worker.
    pub active: Cell<u32>,
    /// Open connections of this worker.
    pub connections: Cell<u32>,
    /// Connections for HTTP/1 that wait for a request, the last used last.
    pub idle: RefCell<Vec<h1::Connection>>,
    /// Tells one of those who wait for a connection that a request has ended and there is room for theirs.
    pub released: Notify,
    /// Connections for HTTP/2.
    pub multiplexed: RefCell<Vec<Rc<h2::Connection>>>,
    /// An HTTP/2 connection is being made.
    pub connecting: Cell<bool>,
    /// For whose requests alone.
    pub connecting_for: RefCell<Option<Box<ConnectionKey>>>,
    /// Notified when that is over.
    pub connected: Notify,
    /// Why the last attempt at an HTTP/2 connection failed, and how many have.
    pub connect_failure: RefCell<(u32, String)>,
    /// Connections for HTTP/1 that are being made before a request needs them. `connected` tells when that is over for one.
    pub(super) spares: Cell<u32>,
    /// Requests that wait for one of those.
    pub(super) spares_taken: Cell<u32>,
    /// The same endpoint while it was at other addresses: connections to those serve on.
    pub earlier: RefCell<Vec<Rc<WorkerHost>>>,
    /// The endpoint, or the configuration it was used with, is gone.
    pub retired: Cell<bool>,
    /// Its connections, where they may have to be cut.
    pub(super) cuts: Cuts,
    /// When its health was last looked at, checks or outlier detection kept requests away.
    failed: Cell<bool>,
    pub(super) last_used: Cell<Option<Instant>>,
    /// What answers have told, where the policy goes by it.
    pub feedback: OnceCell<Box<Feedback>>,
}

impl WorkerHost {
    pub(super) fn new(host: Arc<Host>, node: Arc<ClusterNode>) -> Rc<Self> {
        let stats = host.shared.stats();
        Rc::new(Self {
            host,
            node,
            stats,
            active: Cell::new(0),
            connections: Cell::new(0),
            idle: RefCell::default(),
            released: Notify::new(),
            multiplexed: RefCell::default(),
            connecting: Cell::new(false),
            connecting_for: RefCell::new(None),
            connected: Notify::new(),
            connect_failure: RefCell::default(),
            spares: Cell::new(0),
            spares_taken: Cell::new(0),
            earlier: RefCell::default(),
            retired: Cell::new(false),
            cuts: Cuts::default(),
            failed: Cell::new(false),
            last_used: Cell::new(None),
            feedback: OnceCell::new(),
        })
    }

    /// The header that its connections begin with, if there is one.
    pub fn proxy_header(&self) -> Option<&ProxyHeaderSettings> {
        self.node.config.transports().nth(self.host.transport)?.proxy_header()
    }

    /// A connection is being made that no request waits for yet.
    pub(super) fn has_free_spare(&self) -> bool {
        self.spares.get() > self.spares_taken.get()
    }

    /// One request or session more is in flight to it.
    pub fn begin(&self) {
        self.active.set(self.active.get() + 1);
        if counts_over_workers(&self.node.config) {
            self.host.shared.count();
        }
    }

    /// One of those has ended.
    pub fn end(&self) {
        self.active.set(self.active.get().saturating_sub(1));
        if counts_over_workers(&self.node.config) {
            self.host.shared.discount();
        }
    }

    /// No connection of it is used for new requests from now on; idle ones close.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.close_unused();
        for earlier in self.earlier.borrow_mut().drain(..) {
            earlier.retire();
        }
    }

    /// As [`Self::retire`], and what is still open when the time is up is cut.
    pub(super) fn retire_within(self: &Rc<Self>, limit: Duration) {
        let mut hosts = self.earlier.borrow().clone();
        hosts.push(Rc::clone(self));
        self.retire();
        hosts.retain(|host| host.connections.get() > 0);
        if hosts.is_empty() {
            return;
        }
        tokio::task::spawn_local(async move {
            tokio::time::sleep(limit).await;
            hosts.iter().for_each(|host| host.cuts.cut_all());
        });
    }

    /// The same endpoint, which new connections find at other addresses or under another name.
    pub(super) fn moved(self: Rc<Self>, host: Arc<Host>, node: Arc<ClusterNode>) -> Rc<Self> {
        let moved = Self::new(host, node);
        let mut earlier = std::mem::take(&mut *self.earlier.borrow_mut());
        earlier.push(self);
        earlier.retain(|host| host.connections.get() > 0);
        *moved.earlier.borrow_mut() = earlier;
        moved
    }

    /// Closes pooled connections that died, were idle for too long, or have nobody left whom they are for.
    pub(super) fn sweep(&self, now: Instant, idle_timeout: Option<Duration>) {
        self.idle.borrow_mut().retain(|connection| {
            connection.is_usable() && !connection.is_orphaned() && !connection.expired(now, idle_timeout)
        });
        self.multiplexed.borrow_mut().retain(|connection| connection.keep(now, idle_timeout));
        let mut earlier = self.earlier.borrow_mut();
        if !earlier.is_empty() {
            earlier.iter().for_each(|host| host.sweep(now, idle_timeout));
            earlier.retain(|host| host.connections.get() > 0);
        }
    }

    fn close_unused(&self) {
        self.idle.borrow_mut().clear();
        self.multiplexed.borrow_mut().clear();
    }

    /// Connections to an endpoint that has failed are not kept for when it comes back.
    pub(super) fn look_at_health(&self) {
        let failed = self.host.shared.flags.has_failed();
        if failed && !self.failed.replace(failed) {
            self.close_unused();
        }
        self.failed.set(failed);
    }
}

/// Whether the policy goes by the requests of all workers, as in Envoy. Others need not pay for counting them.
pub(super) fn counts_over_workers(config: &Cluster) -> bool {
    matches!(config.load_balancing, LoadBalancing::LeastRequest { .. } | LoadBalancing::PeakEwma(_))
}
