//! The way into the configuration for the rest of the control thread: start, state, drains, and what admin shows.
//!
//! Owns the handle. Never changes configuration by itself.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_config::address::Address;
use outrigger_config::bootstrap::Bootstrap;
use outrigger_xds::{ResourceKind, XdsClient};

use super::coverage::{Coverage, Idle};
use super::drains::DrainRequest;
use super::history::{History, Record};
use super::journal::{Difference, Journal, Push};
use super::manager::{GraphManager, ManagerOptions};
use super::need::Need;
use super::offers::explain;
use super::overrides::{Changes, Undo};
use super::runtime_layers::NoAdminLayer;
use super::warming::Phase;
use super::xds_handler::XdsHandler;
use super::{RuntimeSnapshot, identity, sockets};
use crate::process::Process;
use crate::worker::Workers;

/// Where starting stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Readiness {
    /// Static clusters and discovery of clusters.
    PreInitializing,
    /// Listeners.
    Initializing,
    /// In service.
    Live,
    /// In service, but the health check fails by order.
    Draining,
}

/// The handle to the configuration. Stays on the control thread.
#[derive(Clone)]
pub struct ManagerHandle {
    manager: Rc<RefCell<GraphManager>>,
    xds: XdsClient,
}

impl GraphManager {
    /// Starts from a checked bootstrap: static resources are built and static listeners bound before this returns, all
    /// else follows. Must be called on the control thread, inside its local runtime.
    ///
    /// # Errors
    /// What is wrong with the static resources, in words for an operator.
    pub fn start(
        process: Arc<Process>,
        bootstrap: Bootstrap,
        node: Node,
        workers: Workers,
        options: ManagerOptions,
    ) -> Result<ManagerHandle, Vec<String>> {
        let anonymous = identity::missing(&bootstrap);
        let (xds, driver) = XdsClient::new(node);
        let client = xds.clone();
        let manager = Rc::new_cyclic(|this: &Weak<RefCell<GraphManager>>| {
            RefCell::new(GraphManager::new(process, bootstrap, xds.clone(), workers, options, Weak::clone(this)))
        });
        {
            let mut manager = manager.borrow_mut();
            let problems: Vec<String> = anonymous.into_iter().chain(manager.check_statics()).collect();
            if !problems.is_empty() {
                return Err(problems);
            }
            manager.bind_statics().map_err(|problem| vec![problem])?;
            manager.open_event_logs().map_err(|problem| vec![problem])?;
            manager.watch_runtime_directories();
            manager.begin(Phase::Primary);
            manager.proceed();
        }
        let shared = Arc::clone(&manager.borrow().process);
        let resolver = manager.borrow().resolvers.default_settings().clone();
        tokio::task::spawn_local(super::dns_caches::answer(Arc::clone(&shared), resolver));
        tokio::task::spawn_local(super::endpoint_health::watch(Rc::downgrade(&manager), shared));
        tokio::task::spawn_local(super::demands::take(Rc::downgrade(&manager), Arc::clone(&manager.borrow().process)));
        tokio::task::spawn_local(driver.run(XdsHandler(Rc::clone(&manager))));
        Ok(ManagerHandle { manager, xds: client })
    }

    fn bind_statics(&mut self) -> Result<(), String> {
        let workers = self.workers.count().max(1);
        for (listener, bound) in &mut self.static_listeners {
            *bound = sockets::bind(listener, workers)
                .map_err(|error| format!("listener {:?}: {}", listener.name, explain(&error)))?;
        }
        Ok(())
    }

    /// Builds everything static once, to find what is wrong with it.
    pub(super) fn check_statics(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        let targets = self.static_targets.iter().map(|target| &target.cluster);
        for cluster in self.static_clusters.iter().chain(targets) {
            if let Err(error) = self.compile_cluster(cluster, None) {
                problems.push(format!("cluster {:?}: {}", cluster.name, explain(&error)));
            }
            for reference in super::need::of_cluster(cluster) {
                if let Err(error) = self.sources.need_of(&reference) {
                    problems.push(format!("cluster {:?}: {}", cluster.name, explain(&error)));
                }
            }
        }
        for (position, (listener, _)) in self.static_listeners.iter().enumerate() {
            let problem = |error: String| format!("listener {:?}: {error}", listener.name);
            if let Err(error) = self.compile_listener(listener, &Default::default(), &[]) {
                problems.push(problem(explain(&error)));
            }
            for reference in super::need::of_listener(listener, &|_| None) {
                if let Err(error) = self.sources.need_of(&reference) {
                    problems.push(problem(explain(&error)));
                }
            }
            for (other, _) in &self.static_listeners[..position] {
                if listener.bind_to_port
                    && other.bind_to_port
                    && let Some(address) = sockets::conflict(listener, other)
                {
                    let reason = format!("has duplicate address {address} as existing listener {:?}", other.name);
                    problems.push(problem(reason));
                }
            }
        }
        for secret in self.resources.static_secrets.values() {
            if let Err(error) = super::tls_inputs::check_secret(secret) {
                problems.push(format!("secret {:?}: {}", secret.name, explain(&error)));
            }
        }
        for (what, source) in [("cds_config", &self.cds), ("lds_config", &self.lds)] {
            if let Some(Err(error)) = source.as_ref().map(|source| self.sources.resolve(source)) {
                problems.push(format!("dynamic_resources.{what}: {}", explain(&error)));
            }
        }
        problems
    }

    /// Writes the static resources into the history, and keeps their names from discovery.
    pub(super) fn record_statics(&mut self) {
        let message = self.options.bootstrap_message.take();
        self.coverage.set_all(&std::mem::take(&mut self.options.without_effect));
        let mut push = Push::new("bootstrap", "the command line".to_owned(), String::new());
        let wire = message.as_ref().and_then(|message| message.static_resources.as_ref());
        let now = SystemTime::now();
        let record =
            |resource: Option<Any>| Record { version: String::new(), updated: now, resource: resource.map(Arc::new) };
        for cluster in &self.static_clusters {
            let known = wire.iter().flat_map(|wire| &wire.clusters).find(|wire| *wire.name == *cluster.name);
            let any = known.map(outrigger_api::pack);
            self.static_names.insert((ResourceKind::Cluster, Arc::clone(&cluster.name)));
            self.history.offered(ResourceKind::Cluster, &cluster.name, record(any), true);
        }
        for (position, (listener, _)) in self.static_listeners.iter().enumerate() {
            // By place, since a listener of the bootstrap may have no name.
            let any = wire.and_then(|wire| wire.listeners.get(position)).map(outrigger_api::pack);
            self.static_names.insert((ResourceKind::Listener, Arc::clone(&listener.name)));
            self.history.offered(ResourceKind::Listener, &listener.name, record(any), true);
        }
        let clusters = self.static_clusters.iter().map(|cluster| &cluster.name);
        let listeners = self.static_listeners.iter().map(|(listener, _)| &listener.name);
        let secrets = self.resources.static_secrets.keys();
        clusters.chain(listeners).chain(secrets).for_each(|name| push.added.push(name));
        // All of it is there before the first graph is.
        let first = self.generation() + 1;
        self.journal.begin(first);
        self.journal.write(push, Vec::new(), first);
        for name in self.resources.static_secrets.keys() {
            let known = wire.iter().flat_map(|wire| &wire.secrets).find(|wire| *wire.name == **name);
            let any = known.map(outrigger_api::pack);
            self.history.offered(ResourceKind::Secret, name, record(any), true);
            self.history.activated(ResourceKind::Secret, name);
        }
    }

    /// Reads disk layers of the runtime again when their directories change.
    fn watch_runtime_directories(&mut self) {
        let directories: Vec<_> = self.runtime.directories().map(std::path::Path::to_path_buf).collect();
        for directory in directories {
            // Values are replaced by swapping the link that leads to them.
            let mut watcher = outrigger_xds::FileWatcher::new(&directory, None);
            let this = Weak::clone(&self.this);
            self.spawn(async move {
                loop {
                    watcher.changed().await;
                    let Some(manager) = this.upgrade() else { return };
                    let mut manager = manager.borrow_mut();
                    manager.read_runtime();
                    manager.proceed();
                }
            });
        }
    }

    /// The last pushes.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What differs between two generations.
    ///
    /// # Errors
    /// In words, when one of them is not known.
    pub fn differences(&self, from: u64, to: u64) -> Result<Vec<Difference>, String> {
        let now = self.generation();
        if to > now + 1 {
            return Err(format!("generation {to} is still to come; the last one is {now}"));
        }
        self.journal.between(from, to, |kind, name| self.history.latest(kind, name))
    }

    /// Fields of the configuration that have no effect here.
    pub fn coverage(&mut self) -> &Coverage {
        let Self { coverage, history, .. } = self;
        // Those of the bootstrap itself stay.
        coverage.retain(|kind, name| kind == "bootstrap" || history.knows(kind, name));
        coverage
    }

    /// What arrived, for dumps.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The runtime layers merged.
    pub fn runtime(&self) -> &Arc<RuntimeSnapshot> {
        &self.runtime_snapshot
    }

    /// Source: `/runtime_modify`. Empty values take a key out again.
    pub fn modify_runtime(&mut self, changes: &[(String, String)]) -> Result<(), NoAdminLayer> {
        let mut push = Push::new("runtime", "admin port".to_owned(), String::new());
        for (key, value) in changes {
            self.runtime.set(key, value)?;
            push.changed.push(&Arc::from(format!("{key}={value}")));
        }
        self.publish_runtime();
        self.proceed();
        let generation = self.generation();
        self.journal.write(push, Vec::new(), generation);
        Ok(())
    }

    /// Names and bound addresses of listeners in use, in the order in which they were added.
    pub fn listener_addresses(&self) -> Vec<(Arc<str>, Vec<Address>)> {
        let mut listeners: Vec<_> = self.listeners.iter().collect();
        listeners.sort_by_key(|(_, running)| running.position);
        listeners.into_iter().map(|(name, running)| (Arc::clone(name), running.addresses.clone())).collect()
    }

    /// What is still waited for, for `/init_dump`: the clusters and listeners that wait, and the needs that nobody has
    /// answered.
    pub fn unready(&self) -> Vec<String> {
        let clusters = self.warming.clusters().filter(|(_, entry)| entry.active().is_none());
        let listeners = self.warming.listeners().filter(|(_, entry)| entry.active().is_none());
        let needs = self.warming.needs().filter(|(_, answered)| !answered).map(|(need, _): (&Need, _)| need);
        let clusters = clusters.map(|(name, _)| format!("cluster {name:?}"));
        let listeners = listeners.map(|(name, _)| format!("listener {name:?}"));
        clusters.chain(listeners).chain(needs.map(ToString::to_string)).collect()
    }

    /// Where starting stands.
    pub fn readiness(&self) -> Readiness {
        match self.warming.phase() {
            Phase::Primary | Phase::Clusters => Readiness::PreInitializing,
            Phase::Listeners => Readiness::Initializing,
            Phase::Initialised if self.health_check_failed => Readiness::Draining,
            Phase::Initialised => Readiness::Live,
        }
    }

    /// How long connections of what has gone have.
    pub fn drain_time(&self) -> Duration {
        self.options.drain_time
    }
}

impl ManagerHandle {
    /// Looks at the configuration.
    pub fn with<R>(&self, look: impl FnOnce(&GraphManager) -> R) -> R {
        look(&self.manager.borrow())
    }

    /// Looks at the configuration, after its stats were brought up to date.
    pub fn refresh_stats(&self) {
        let mut manager = self.manager.borrow_mut();
        manager.refresh_stats();
        manager.refresh_breakers();
    }

    /// Where starting stands.
    pub fn ready(&self) -> Readiness {
        self.with(GraphManager::readiness)
    }

    /// Returns when everything has arrived or was given up.
    pub async fn wait_initialised(&self) {
        let mut phase = self.manager.borrow().phase.subscribe();
        // The sender lives as long as this handle.
        let _ = phase.wait_for(|phase| *phase == Phase::Initialised).await;
    }

    /// Source: `/drain_listeners`.
    pub fn drain(&self, request: DrainRequest) {
        self.manager.borrow_mut().drain_listeners(request);
    }

    /// Source: `/healthcheck/fail` and `/healthcheck/ok`.
    pub fn fail_health_check(&self, failed: bool) {
        self.manager.borrow_mut().fail_health_check(failed);
    }

    /// Source: `/runtime_modify`.
    pub fn modify_runtime(&self, changes: &[(String, String)]) -> Result<(), NoAdminLayer> {
        self.manager.borrow_mut().modify_runtime(changes)
    }

    /// Fields of the configuration that have no effect here, and how many are not told of.
    pub fn without_effect(&self) -> (Vec<Idle>, u64) {
        let mut manager = self.manager.borrow_mut();
        let coverage = manager.coverage();
        (coverage.all(), coverage.left_out())
    }

    /// Makes an override.
    ///
    /// # Errors
    /// In words, when it cannot be.
    pub fn override_for(&self, what: Changes, time: Duration, undo: Option<Undo>) -> Result<u64, String> {
        self.manager.borrow_mut().override_for(what, time, undo)
    }

    /// Ends an override. Whether there was one.
    pub fn end_override(&self, id: u64) -> bool {
        self.manager.borrow_mut().end_override(id, "removed by hand")
    }

    /// No new connections from now on, and the others are asked to end.
    pub fn shutdown(&self) {
        self.manager.borrow_mut().shut_down();
    }

    /// The xDS client, for its own snapshot.
    pub fn xds(&self) -> &XdsClient {
        &self.xds
    }
}
