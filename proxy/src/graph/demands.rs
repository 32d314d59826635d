//! What requests wait for that is discovered on demand: the routes of a scope, a virtual host, a cluster.
//!
//! Owns the way of the question from a worker to the control thread, and who waits there. Never discovers anything itself
//! (see `scopes`, `virtual_hosts` and `demanded_clusters`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Weak;
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_config::http::filters::OnDemandClusters;
use outrigger_policy::route::ScopeKey;
use outrigger_xds::WatchId;
use tokio::sync::{Notify, oneshot};

use super::demanded_clusters::DemandedCluster;
use super::manager::GraphManager;
use super::need::Need;
use crate::process::Process;

/// What is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// The routes of a scope that is known.
    Scope {
        /// Where the scopes come from, as in [`super::Graph::scopes`].
        source: Arc<str>,
        /// The key of the scope.
        key: ScopeKey,
    },
    /// A cluster.
    Cluster {
        /// Where it comes from.
        from: Arc<OnDemandClusters>,
        /// Its name.
        name: Arc<str>,
    },
    /// A virtual host.
    VirtualHost {
        /// The name of the route configuration.
        routes: Arc<str>,
        /// The host of the request, lower case, with its port.
        host: String,
    },
}

/// A question of a worker. The answer is that there is nothing more to wait for.
#[derive(Debug)]
struct Demand {
    wanted: Wanted,
    reply: oneshot::Sender<()>,
}

/// Questions on their way to the control thread.
#[derive(Debug, Default)]
pub struct Demands {
    asked: Mutex<Vec<Demand>>,
    wake: Notify,
}

impl Demands {
    /// Asks. The answer, which says nothing, comes after the graph was published that has what was found.
    pub fn ask(&self, wanted: Wanted) -> oneshot::Receiver<()> {
        let (reply, answer) = oneshot::channel();
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(Demand { wanted, reply });
        self.wake.notify_one();
        answer
    }

    async fn receive(&self) -> Vec<Demand> {
        loop {
            let asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
            if !asked.is_empty() {
                return asked;
            }
            self.wake.notified().await;
        }
    }
}

/// Takes questions for as long as the process lives.
pub(super) async fn take(manager: Weak<RefCell<GraphManager>>, process: Arc<Process>) {
    loop {
        let demands = process.demands.receive().await;
        let Some(manager) = manager.upgrade() else { return };
        let mut manager = manager.borrow_mut();
        for Demand { wanted, reply } in demands {
            // Nobody waits any longer.
            if reply.is_closed() {
                continue;
            }
            match wanted {
                Wanted::Scope { source, key } => manager.want_scope(&source, &key, reply),
                Wanted::Cluster { from, name } => manager.want_cluster(&from.source, &name, reply),
                Wanted::VirtualHost { routes, host } => manager.want_virtual_host(&routes, &host, reply),
            }
        }
        manager.proceed();
    }
}

/// A virtual host that a request has asked for by its name.
pub(super) struct Alias {
    /// The subscription to it.
    pub watch: WatchId,
    /// The route configuration that it is for.
    pub routes: Need,
    /// The control plane has said what it has.
    pub answered: bool,
    /// Those who wait for that.
    pub waiting: Vec<oneshot::Sender<()>>,
}

/// Who waits for what.
#[derive(Default)]
pub(super) struct Waiting {
    /// For these route configurations to be in use, or to be given up.
    pub routes: Vec<(Need, oneshot::Sender<()>)>,
    /// Virtual hosts by the need for all of their source and by their name.
    pub aliases: HashMap<(Need, Arc<str>), Alias>,
    /// Clusters by their names.
    pub clusters: HashMap<Arc<str>, DemandedCluster>,
}

impl GraphManager {
    /// Answers those for whom everything has arrived, or will not; after the graph was published.
    pub(super) fn answer_demands(&mut self) {
        self.answer_for_clusters();
        if self.waiting.routes.is_empty() {
            return;
        }
        for (need, reply) in std::mem::take(&mut self.waiting.routes) {
            match self.warming.is_settled(&need) {
                // A request that does not wait any longer needs no answer.
                true => drop(reply),
                false => self.waiting.routes.push((need, reply)),
            }
        }
    }
}
